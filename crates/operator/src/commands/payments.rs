//! `billhook payments`: show a payment as billhook knows it, and link it to the order or statement that it is for.

use std::collections::BTreeSet;

use anyhow::Result;
use billhook_core::entity::EntityKey;
use billhook_core::entity::key::PaymentKey;
use billhook_core::entity::payment::linked::LinkState;
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::ids::{AccountId, OrderId, PaymentRef, ProviderId, StatementId};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::audit::AuditContext;
use crate::confirm::ChangeArgs;
use crate::exit::{CommandExit, end_of_several};
use crate::output::{OutputWriter, print_notice};
use crate::payment_lookup::{
    LinkChange, change_link, describe_side, find_bearers, list_entities, load_payment, note_link,
};
use crate::session::StackSession;
use crate::unclaimed::list_unclaimed;

#[derive(Debug, Subcommand)]
pub(crate) enum PaymentsCommand {
    /// Show what is known of a payment, and what it is linked to
    #[command(after_help = "Examples:\n  billhook payments show pi_1\n  \
        billhook payments show pi_1 --account acct_1\n  billhook payments show ch_1 --account acct_1")]
    Show(PaymentsShowArgs),
    /// List the payments that have money and to which nothing has been linked for a day
    #[command(
        after_help = "Amounts are in the currency's minor unit.\n\nExample:\n  billhook payments unclaimed"
    )]
    Unclaimed(PaymentsUnclaimedArgs),
    /// Decide which order or statement a payment is linked to
    #[command(
        after_help = "Later events, replays and rebuilds keep the decision; the next one replaces it. The order or statement that \
        loses the payment is derived anew with the one that gets it, and both timelines say why.\n--none: it belongs to neither; \
        then nothing waits for it any more.\nThe exit code is 4 if one was refused.\n\nExamples:\n  \
        billhook payments relink pi_1 --account acct_1 --order ord_1 --reason 'the shop sent a wrong order id'\n  \
        billhook payments relink pi_1 pi_2 --none --reason 'of the other shop'"
    )]
    Relink(PaymentsRelinkArgs),
}

#[derive(Args, Debug)]
pub(crate) struct PaymentsShowArgs {
    #[command(flatten)]
    payment: PaymentName,
}

#[derive(Args, Debug)]
pub(crate) struct PaymentsUnclaimedArgs {
    /// Show at most this many payments
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct PaymentsRelinkArgs {
    /// The PaymentIntents, charges or Checkout Sessions; or whole keys, `payment#acct_1#pi_1`
    #[arg(required = true)]
    payments: Vec<String>,
    /// The payments' connected account; without this option, the platform's own
    #[arg(long, value_parser = AccountId::parse)]
    account: Option<AccountId>,
    #[command(flatten)]
    to: LinkTarget,
    /// Also if another row has the PaymentIntent in its column
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
struct PaymentName {
    /// The PaymentIntent, charge or Checkout Session; or the whole key, `payment#acct_1#pi_1`
    payment: String,
    /// The payment's connected account; without this option, the platform's own
    #[arg(long, value_parser = AccountId::parse)]
    account: Option<AccountId>,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct LinkTarget {
    /// The order that it is linked to from now on
    #[arg(long, value_parser = OrderId::parse)]
    order: Option<OrderId>,
    /// The statement that it is linked to from now on
    #[arg(long, value_parser = StatementId::parse)]
    statement: Option<StatementId>,
    /// It belongs to no order and no statement, such as a payment of another shop on the same account
    #[arg(long)]
    none: bool,
}

impl LinkTarget {
    /// None if it belongs to no order and no statement.
    fn key(self) -> Option<EntityKey> {
        let statement = self.statement.map(EntityKey::Statement);
        self.order.map(EntityKey::Order).or(statement)
    }
}

impl PaymentName {
    fn key(&self) -> Result<PaymentKey> {
        if let Some(key) = PaymentKey::parse(&self.payment) {
            return Ok(key);
        }
        Ok(PaymentKey {
            account: self.account.clone(),
            payment: PaymentRef::parse(&self.payment)?,
        })
    }
}

pub(crate) async fn run_payments(
    command: PaymentsCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    match command {
        PaymentsCommand::Show(show) => {
            let payment = load_payment(session, show.payment.key()?).await?;
            output.print_object(&describe_payment(&payment));
        }
        PaymentsCommand::Unclaimed(unclaimed) => {
            list_unclaimed(session, output, unclaimed.limit).await?;
        }
        PaymentsCommand::Relink(relink) => relink_payments(relink, session, output).await?,
    }
    Ok(())
}

/// Relinks each payment, and goes on after one that was refused or failed.
async fn relink_payments(
    relink: PaymentsRelinkArgs,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let to = relink.to.key();
    let payments = relink.payments.join(", ");
    let what = match &to {
        Some(to) => format!("{payments} would be linked to {to}, and to nothing else"),
        None => format!("{payments} would belong to no order and no statement"),
    };
    let audit = relink
        .change
        .confirm(session, &what, Some(relink.payments.len()))
        .await?;
    let account = relink.account;
    let mut names = Vec::new();
    for payment in relink.payments {
        let account = account.clone();
        names.push(PaymentName { payment, account });
    }
    let mut results = Vec::new();
    let mut errors = Vec::new();
    for name in &names {
        let relinked = relink_one(name, to.as_ref(), relink.force, &audit, session).await;
        match relinked {
            Ok(result) => results.push(result),
            Err(error) if names.len() == 1 => return Err(error),
            Err(error) => {
                print_notice(&format!("{}: {error:#}", name.payment));
                errors.push(error);
            }
        }
    }
    match results.as_slice() {
        [only] if names.len() == 1 => output.print_object(only),
        all => output.print_list(&["payment", "moved_from", "moved_to"], all),
    }
    end_of_several(results.len(), "relinked", &errors)
}

async fn relink_one(
    name: &PaymentName,
    to: Option<&EntityKey>,
    force: bool,
    audit: &AuditContext,
    session: &StackSession,
) -> Result<Value> {
    let payment = load_payment(session, name.key()?).await?;
    let key = &payment.key;
    let from = payment.linked_entities();
    // What it is linked to now is what it is taken from. Another row that bears it in its column would be left with that.
    if let Some(intent) = key.payment.intent() {
        let mut bearers = find_bearers(&session.ledger(ProviderId::Stripe)?, intent).await?;
        bearers.retain(|bearer| !from.contains(bearer) && Some(bearer) != to);
        if !bearers.is_empty() && !force {
            return Err(CommandExit::Refused(format!(
                "{key} is in the column of {}: link it there, correct that row, or repeat with --force",
                list_entities(&bearers)
            ))
            .into());
        }
    }
    let now = change_link(session, key, LinkChange::Decided(to, audit)).await?;
    let moved = format!("from {} to {}", list_entities(&from), list_entities(to));
    let sides: BTreeSet<&EntityKey> = from.iter().chain(to).collect();
    note_link(
        session,
        sides.iter().copied(),
        &format!("relink {key} {moved}"),
        audit,
    )
    .await?;
    print_notice(&format!("{key} was moved {moved}"));
    let outdated = now.outdated_copies();
    if !outdated.is_empty() {
        print_notice(&format!(
            "the copy in {} could not be updated yet; the sweep retries",
            list_entities(outdated.keys())
        ));
    }
    let mut shown = Vec::new();
    for side in sides {
        shown.push(describe_side(session, side).await?);
    }
    let mut described = describe_payment(&now);
    if let Some(members) = described.as_object_mut() {
        members.insert("moved_from".to_owned(), json!(from));
        members.insert("moved_to".to_owned(), json!(to));
        members.insert("entities".to_owned(), json!(shown));
    }
    Ok(described)
}

fn describe_payment(payment: &PaymentState) -> Value {
    let states = payment.link_states();
    let links = states.iter().map(|(key, link)| {
        let word = match link {
            LinkState::Linked => "linked",
            LinkState::Conflict(_) => "conflict",
            LinkState::Elsewhere => "elsewhere",
        };
        let sources = payment.facts.links.get(key);
        json!({ "entity": key, "link": word, "sources": sources, "copied": payment.copied.get(key) })
    });
    json!({
        "payment": payment.key,
        "version": payment.version,
        "facts_version": payment.facts_version,
        "names": payment.facts.names,
        "invoices": payment.facts.invoices,
        "named": payment.facts.named,
        "recipients": payment.facts.recipients,
        "denied": payment.denied,
        "links": links.collect::<Vec<_>>(),
        "relink": payment.facts.relink,
        "open_since": payment.open_since,
        "facts": payment.facts.money,
        "event_ids": payment.history.event_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_is_named_by_its_id_or_by_its_key() {
        let named = |payment: &str, account: Option<&str>| {
            let account = account.map(|id| AccountId::parse(id).unwrap());
            let payment = payment.to_owned();
            let name = PaymentName { payment, account };
            name.key().unwrap().to_string()
        };
        assert_eq!(named("pi_1", None), "payment#platform#pi_1");
        assert_eq!(named("ch_1", Some("acct_1")), "payment#acct_1#ch_1");
        assert_eq!(named("payment#acct_1#cs_1", None), "payment#acct_1#cs_1");
    }
}
