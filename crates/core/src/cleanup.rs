//! Which failed orders are given up, and why. Pure: `cleanup-failed-payments` asks Stripe first and then writes.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::entity::{Entity, Facts};
use crate::ids::{AccountId, PaymentIntentId};
use crate::merge::Least;
use crate::payment::derive::OrderStatus;
use crate::payment::facts::PaymentFacts;
use crate::time::Timestamp;

/// A payment to be ended at Stripe before its order is cancelled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenPayment {
    /// Which.
    pub intent: PaymentIntentId,
    /// Where it lives; none is the platform.
    pub account: Option<AccountId>,
}

/// What the row says about a candidate that an index nominated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Give it up, once these can no longer be paid.
    Cancel(BTreeSet<OpenPayment>),
    /// It has another status by its facts: money, an earlier cancel, a person's repair.
    NotFailed,
    /// Its last attempt is younger than the grace.
    TooYoung,
}

/// Decides about one order. The facts decide, never the index or the column: money that does not fit what was due has
/// another status too.
pub fn due(order: &Entity, grace: Duration, now: Timestamp) -> Due {
    let next = order.with(Facts::default(), now);
    if next.standing.status != OrderStatus::PaymentFailed {
        return Due::NotFailed;
    }
    match next.standing.payment_failed_at {
        Some(failed_at) if failed_at.after(grace) <= now => {}
        Some(_) | None => return Due::TooYoung,
    }
    let payments = next.facts.payment.payments.iter();
    // One that the application put into its column and that no event told of yet lives where the others do.
    let accounts = || {
        next.facts
            .payment
            .payments
            .values()
            .map(|payment| &payment.account)
    };
    let account = accounts()
        .next()
        .cloned()
        .flatten()
        .map(|account| account.0);
    let noted = order
        .intent
        .clone()
        .map(|intent| OpenPayment { intent, account });
    let noted = noted.filter(|noted| !next.facts.payment.bears(&noted.intent));
    Due::Cancel(
        payments
            .filter_map(|(id, payment)| {
                let intent = PaymentIntentId::parse(id.as_str()).ok()?;
                Some(OpenPayment {
                    intent,
                    account: payment.account.clone().map(|account| account.0),
                })
            })
            .chain(noted)
            .collect(),
    )
}

/// The fact that an order was given up.
pub fn cancelled(now: Timestamp) -> Facts {
    Facts {
        payment: PaymentFacts {
            cancelled: Some(Least(now)),
            ..PaymentFacts::default()
        },
        ..Facts::default()
    }
}
