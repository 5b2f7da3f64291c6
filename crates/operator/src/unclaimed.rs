//! `billhook payments unclaimed`: the payments with money to which nothing has been linked for a day.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::key::StateKey;
use billhook_core::entity::payment::facts::MoneyFacts;
use billhook_core::entity::payment::state::{PaymentState, unclaimed_index_keys};
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::tasks::ports::FindOpenStates as _;
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::Ledger as _;
use serde_json::{Value, json};

use crate::output::{OutputWriter, print_notice};
use crate::session::StackSession;

/// Payments that are read at once.
const READ_AT_ONCE: usize = 50;
/// Later than any recheck of an unclaimed payment, which comes within 30 days.
const ALL_RECHECKS: std::time::Duration = std::time::Duration::from_hours(60 * 24);

/// Lists them, the oldest first.
pub(crate) async fn list_unclaimed(
    session: &StackSession,
    output: OutputWriter,
    limit: usize,
) -> Result<()> {
    let ledger = session.ledger(ProviderId::Stripe)?;
    let now = SystemClock.now();
    let mut keys = Vec::new();
    for index_key in unclaimed_index_keys() {
        let until = now.after(ALL_RECHECKS);
        keys.extend(ledger.open_payments(&index_key, until, limit).await?);
    }
    let mut found: Vec<(Timestamp, PaymentState)> = Vec::new();
    for keys in keys.chunks(READ_AT_ONCE) {
        let states: BTreeSet<StateKey> = keys.iter().cloned().map(StateKey::Payment).collect();
        let rows = ledger.load_rows(&states).await?;
        if let Some((key, reason)) = rows.unreadable.first_key_value() {
            bail!("cannot read {key}: {reason}");
        }
        let payments = rows.payments.into_values().map(|(payment, _)| payment);
        // The index lags.
        found.extend(payments.filter_map(|of| Some((of.unclaimed_since(now)?, of))));
    }
    found.sort_by(|(one, a), (other, b)| (one, &a.key).cmp(&(other, &b.key)));
    let listed = found.iter().take(limit);
    let rows: Vec<Value> = listed
        .map(|(since, payment)| describe_unclaimed(*since, payment))
        .collect();
    output.print_list(&["payment", "since", "money", "names", "events"], &rows);
    if found.len() >= limit {
        print_notice(&format!(
            "there may be more than {limit}: raise --limit to see them"
        ));
    }
    Ok(())
}

fn describe_unclaimed(since: Timestamp, payment: &PaymentState) -> Value {
    let key = &payment.key;
    let account = key.account.as_ref().map(ToString::to_string);
    json!({
        "payment": key.payment,
        "account": account.unwrap_or_else(|| "platform".to_owned()),
        "since": since,
        "money": describe_money(&payment.facts.money).join(", "),
        "names": payment.facts.named,
        "recipients": payment.facts.recipients,
        "events": payment.history.event_ids,
    })
}

/// What is known of the payment's money, in the minor unit.
fn describe_money(money: &MoneyFacts) -> Vec<String> {
    let mut known = Vec::new();
    for id in money.payments.keys() {
        let received = money.received_amounts(id).into_iter();
        known.extend(received.map(|received| format!("received {received}")));
    }
    for (id, charge) in &money.charges {
        let captured = charge.captured.as_ref().map(|captured| captured.0);
        let refunded = charge.amount_refunded.0;
        if let Some(captured) = captured.filter(|_| refunded > 0) {
            known.push(format!("refunded {refunded} {} of {id}", captured.currency));
        }
    }
    let refunds = money.refunds.iter();
    known.extend(refunds.map(|(id, refund)| format!("refund {id} of {}", refund.amount.0)));
    let disputes = money.disputes.iter().map(|(id, dispute)| {
        let amount = dispute
            .amount
            .as_ref()
            .map(|amount| format!(" of {}", amount.0));
        format!("dispute {id}{}", amount.unwrap_or_default())
    });
    known.extend(disputes);
    known.extend(money.warnings.keys().map(|id| format!("warning {id}")));
    known
}

#[cfg(test)]
mod tests {
    use billhook_core::entity::merge::Merge as _;
    use billhook_testkit::events::{
        charge_refunded, dispute, intent_succeeded, money_facts, refund,
    };

    use super::*;

    #[test]
    fn money_is_described_by_what_came_and_what_went() {
        let mut money = MoneyFacts::default();
        for event in [
            intent_succeeded("evt_1", 1, "pi_1", json!({}), 4200),
            charge_refunded("evt_2", 2, "ch_1", Some("pi_1"), 1000),
            refund("evt_3", 3, "re_1", ("pi_1", "ch_1"), 1000, "succeeded"),
            dispute("evt_4", 4, "dp_1", "pi_1", "needs_response"),
        ] {
            money.merge(money_facts(&event));
        }
        assert_eq!(
            describe_money(&money),
            [
                "received 4200 usd",
                "refunded 1000 usd of ch_1",
                "refund re_1 of 1000 usd",
                "dispute dp_1 of 4200 usd"
            ]
        );
        assert_eq!(describe_money(&MoneyFacts::default()), [""; 0]);
    }
}
