//! What a person decides about the review of an order or statement: that it is done, or that the amount is accepted.

use anyhow::{Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::manual::{AcceptedAmount, ManualEdits};
use billhook_core::entity::merge::{MaxRegister, MinRegister};
use billhook_core::entity::payment::linked::LinkState;
use billhook_core::entity::payment::status::PaymentStatus;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::PaymentRef;
use billhook_core::ports::Clock as _;

use crate::audit::ChangeAuthor;
use crate::confirm::ChangeArgs;
use crate::entity_repair::repair_entity;
use crate::output::print_notice;
use crate::session::StackSession;

/// What ends a `link_conflict`.
pub(crate) const RELINK: &str = "billhook payments relink pi_… --order ord_… --reason …";

/// A payment that is less than what was due, or of which nobody can say.
const AMOUNT_MISMATCH: &str = "amount_mismatch";
/// The other reasons that a person ends by accepting what was paid: it stays as it is.
const REASONS_ENDED_BY_ACCEPTING: [&str; 2] = ["due_changed", "overpaid"];

/// Clears the reasons that the row shows.
pub(crate) async fn clear_review(
    session: &StackSession,
    key: &EntityKey,
    change: ChangeArgs,
) -> Result<()> {
    let facts = |entity: &Entity, _: &ChangeAuthor| clear_review_facts(entity);
    repair_entity(session, key, "review clear", change, facts).await?;
    print_notice(&format!("cleared the review of {key}"));
    Ok(())
}

/// Takes what was paid as what was due.
pub(crate) async fn accept_amounts(
    session: &StackSession,
    key: &EntityKey,
    change: ChangeArgs,
) -> Result<()> {
    repair_entity(session, key, "review accept", change, accept_facts).await?;
    print_notice(&format!("accepted what was paid for {key}"));
    Ok(())
}

fn clear_review_facts(entity: &Entity) -> Result<StatedFacts> {
    let shown = &entity.last_derived().review_reasons;
    if entity.columns().requires_review != Some(true) {
        bail!("{} has no open review", entity.key());
    }
    let mut conflicts = entity
        .linked_payment_facts()
        .into_iter()
        .flat_map(|facts| facts.conflicts());
    // The reason would stay, because only a relink ends it.
    if let Some((payment, _)) = conflicts.next() {
        bail!(
            "{} and another order or statement have equally good links to {payment}: decide with `{RELINK}`, then clear",
            entity.key()
        );
    }
    let now = MinRegister(SystemClock.now());
    Ok(StatedFacts::Manual(ManualEdits {
        cleared: shown
            .iter()
            .map(|reason| (reason.clone(), now.clone()))
            .collect(),
        ..ManualEdits::default()
    }))
}

fn accept_facts(entity: &Entity, author: &ChangeAuthor) -> Result<StatedFacts> {
    let at = SystemClock.now();
    let Some(due) = entity.amount_due() else {
        bail!(
            "{} does not say what is due, so nothing can be accepted for it",
            entity.key()
        );
    };
    let accepted = || {
        MaxRegister(AcceptedAmount {
            at,
            by: author.actor.clone(),
            reason: author.reason.clone(),
            due,
        })
    };
    let mut manual = ManualEdits::default();
    for reason in &entity.last_derived().review_reasons {
        let (word, fact) = reason.split_once(':').unwrap_or_default();
        match (word, PaymentRef::parse(fact)) {
            // It pays what is due from now on.
            (AMOUNT_MISMATCH, Ok(payment)) => drop(manual.accepted.insert(payment, accepted())),
            _ if REASONS_ENDED_BY_ACCEPTING.contains(&word) => {
                manual.cleared.insert(reason.clone(), MinRegister(at));
            }
            _ => {}
        }
    }
    // An instalment of a statement needs no review; accepting it waives the rest.
    let status = entity.columns().payment_status.as_deref();
    if status == Some(PaymentStatus::PartiallyPaid.as_str()) {
        let payments = entity.linked_payment_facts().into_iter();
        let payments = payments.flat_map(|facts| &facts.payments);
        let paid = payments.filter(|(_, copy)| copy.link == LinkState::Linked && copy.is_paid);
        for (key, _) in paid {
            manual.accepted.insert(key.payment.clone(), accepted());
        }
    }
    if manual == ManualEdits::default() {
        bail!(
            "{} is not partially_paid and has no open review about an amount ({AMOUNT_MISMATCH}, {})",
            entity.key(),
            REASONS_ENDED_BY_ACCEPTING.join(", ")
        );
    }
    Ok(StatedFacts::Manual(manual))
}

#[cfg(test)]
mod tests {
    use billhook_core::entity::key::PaymentKey;
    use billhook_core::entity::payment::linked::PaymentCopy;
    use billhook_core::money::Money;
    use billhook_testkit::events::{intent_succeeded, linked_facts};
    use billhook_testkit::memory;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_payment_that_is_linked_to_two_orders_is_not_cleared() {
        let now = SystemClock.now();
        let order = EntityKey::parse("order#ord_1").unwrap();
        let payment = PaymentKey::parse("payment#platform#pi_1").unwrap();
        let linked = |link| {
            let copy = PaymentCopy {
                link,
                ..PaymentCopy::linked(1)
            };
            let copy = StatedFacts::Payment(payment.clone(), Box::new(copy));
            let flagged = StatedFacts::Manual(ManualEdits {
                flagged: [now].into(),
                ..ManualEdits::default()
            });
            let order = memory::entity(&order);
            order.apply_facts([copy, flagged], now).with_row_written()
        };
        assert!(clear_review_facts(&linked(LinkState::Linked)).is_ok());
        let refused = clear_review_facts(&linked(LinkState::Conflict(now)));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("payment#platform#pi_1") && refused.contains(RELINK));
    }

    #[test]
    fn what_was_paid_is_accepted_as_what_was_due() {
        let author = ChangeAuthor {
            actor: "pat".to_owned(),
            reason: "a tip".to_owned(),
        };
        let paid = |amount| {
            let row = json!({ "amountTotal": 4200, "currency": "usd" });
            let order = memory::entity_of(&EntityKey::parse("order#ord_1").unwrap(), row);
            let event = intent_succeeded("evt_1", 1_781_000_000, "pi_1", json!({}), amount);
            let next = order.apply_facts(linked_facts(&[event]), SystemClock.now());
            next.with_row_written()
        };
        for (amount, was, word) in [
            (4100, "partially_paid", "amount_mismatch:pi_1"),
            (4300, "paid", "overpaid:pi_1"),
        ] {
            let order = paid(amount);
            assert_eq!(order.columns().payment_status.as_deref(), Some(was));
            assert_eq!(order.last_derived().review_reasons, [word]);
            let facts = accept_facts(&order, &author).unwrap();
            let update = order.apply_facts([facts], SystemClock.now());
            let accepted = update.payment().unwrap();
            assert_eq!(accepted.payment_status, PaymentStatus::Paid);
            assert_eq!(accepted.review_reasons, [].into(), "{amount}");
            // It is accepted for what was due then, and for nothing else.
            let mut order = update.with_row_written();
            let due = &mut memory::order_mut(&mut order).given.due;
            *due = due.map(|due| Money {
                amount: 9000,
                ..due
            });
            let changed = order.apply_facts([], SystemClock.now());
            let reasons = &changed.payment().unwrap().review_reasons;
            assert_eq!(*reasons, ["due_changed:9000_usd".to_owned()].into());
        }
        let refused = accept_facts(&paid(4200), &author).unwrap_err().to_string();
        assert_eq!(
            refused,
            "order#ord_1 is not partially_paid and has no open review about an amount (amount_mismatch, due_changed, overpaid)"
        );
    }
}
