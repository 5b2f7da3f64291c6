//! The facts about the money of a payment, and how they merge. `provider::stripe::event_types` reads them from events,
//! the payment's state stores them (`state`), and each order or statement that is linked to the payment has a copy (`linked`).
//! `derive` and `refunds` derive columns from them.
//!
//! Facts are keyed by the provider's ids, because two events may report one change: `checkout.session.completed` and
//! `payment_intent.succeeded` of one payment are one success under `pi_1`, not two. Amounts are stored as the
//! provider's cumulative figures, never as differences. Every field is a building block of `entity::merge`; add one to
//! `STATE_SCHEMA` (`entity::schema`) when you add a field.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::entity::merge::{
    FactSource, MaxRegister, Merge, MinRegister, SeenInterval, merge_fields,
};
use crate::ids::{
    ChargeId, CheckoutSessionId, ObjectId, PaymentIntentId, PaymentRef, RefundId, UserId,
};
use crate::money::Money;
use crate::time::Timestamp;

/// The facts about the money of one payment, or of all payments of an order or statement together.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MoneyFacts {
    /// By PaymentIntent; by Checkout Session or charge if that has none (nothing to pay, a subscription's session, or
    /// Stripe's old Charges API).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub payments: BTreeMap<PaymentRef, IntentFacts>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sessions: BTreeMap<CheckoutSessionId, SessionFacts>,
    /// Only charges of which something was captured later than authorised, or refunded, or that have no PaymentIntent.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub charges: BTreeMap<ChargeId, ChargeFacts>,
    /// By id, from `refund.*` and `charge.refund.updated`. The same money may also be in `charges`; see `refunds`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refunds: BTreeMap<RefundId, RefundFacts>,
    /// Inquiries included: Stripe reports them as disputes with a `warning_…` status.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub disputes: BTreeMap<ObjectId, DisputeFacts>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub warnings: BTreeMap<ObjectId, FactSource>,
    /// Stripe's reviews (Radar), not billhook's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reviews: BTreeMap<ObjectId, ReviewFacts>,
    /// Who pays, by a session's `client_reference_id`. Beats `user`, because the application set it for this purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<MinRegister<UserId>>,
    /// Who pays, by the metadata of a session or PaymentIntent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<MinRegister<UserId>>,
}

/// The facts of one payment: a PaymentIntent, or a Checkout Session without one.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IntentFacts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<FactSource>,
    /// All amounts that events reported as received. Normally one; with two different ones the payment does not match.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub received: BTreeSet<Money>,
    /// The amount is blocked at the customer's bank and not captured yet; first and last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorized: Option<SeenInterval>,
    /// First and last time of `payment_intent.processing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing: Option<SeenInterval>,
    /// It can no longer succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canceled: Option<FactSource>,
    #[serde(skip_serializing_if = "NewestFailures::is_empty")]
    pub failures: NewestFailures,
}

/// The newest 20 failed attempts of a payment: card testing (trying stolen cards) makes thousands, and nobody acts on an
/// old one.
/// By charge, so that two events about one attempt count once; by the payment if no charge is named.
///
/// An attempt that was dropped cannot come back, because only greater ones are kept and a kept one only grows.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NewestFailures(BTreeMap<PaymentRef, FailedAttempt>);

const FAILURES_MAX: usize = 20;

impl NewestFailures {
    pub fn insert(&mut self, of: PaymentRef, attempt: FailedAttempt) {
        Merge::merge(self, Self(BTreeMap::from([(of, attempt)])));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&PaymentRef, &FailedAttempt)> {
        self.0.iter()
    }

    /// When the newest attempt failed.
    pub fn last_at(&self) -> Option<Timestamp> {
        let attempts = self.0.values();
        attempts.map(|attempt| attempt.stated.at).max()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Merge for NewestFailures {
    fn merge(&mut self, other: Self) {
        Merge::merge(&mut self.0, other.0);
        while self.0.len() > FAILURES_MAX {
            let oldest = self.0.iter().min_by_key(|(of, attempt)| (*attempt, *of));
            let Some(oldest) = oldest.map(|(of, _)| of.clone()) else {
                break;
            };
            self.0.remove(&oldest);
        }
    }
}

/// A failed attempt as the latest event about it states it. If no charge tells the attempts apart, it covers several:
/// failed at 10:00 and at 10:01:30 is one, and the cleanup's grace period starts at 10:01:30.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedAttempt {
    #[serde(flatten)]
    pub stated: FactSource,
    /// Such as `card_declined`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Such as `insufficient_funds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decline_code: Option<String>,
}

impl Merge for FailedAttempt {
    fn merge(&mut self, other: Self) {
        if other > *self {
            *self = other;
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionFacts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expired: Option<FactSource>,
    /// The customer finished the session; with a delayed payment method the payment may still fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<FactSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<MinRegister<PaymentIntentId>>,
}

/// A charge. Amounts are in the minor unit.
///
/// What was authorised and not captured was never ours, so its release is no refund; but before Stripe's API version
/// 2025-03-31 (basil) it is told as one. Source: Stripe's support page "Changes to balance transaction behavior for
/// partial capture and payment cancellation flows", read 2026-11.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ChargeFacts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<MinRegister<PaymentIntentId>>,
    /// What was authorised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<MaxRegister<Money>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<MaxRegister<Money>>,
    /// Until when it can be captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_before: Option<MaxRegister<Timestamp>>,
    /// An event of an API version before basil states that less was captured than authorised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_basil: Option<FactSource>,
    /// The first `charge.refunded`: it dates the part of the cumulative figure that no refund by id explains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refunded: Option<FactSource>,
    /// Stripe says that everything captured went back (`refunded`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refunded_in_full: Option<FactSource>,
    /// Cumulative, so the greatest is the newest: 10.00 and then 15.00 mean 15.00 in all. If a refund fails
    /// later, this stays at 15.00, and `refunds` subtracts the failed refund.
    pub amount_refunded: MaxRegister<i64>,
}

/// A refund by its own id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefundFacts {
    /// The charge; if the refund names none, the payment; if it names neither, the refund itself.
    pub of: MinRegister<ObjectId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<MinRegister<PaymentIntentId>>,
    pub amount: MaxRegister<Money>,
    /// Stripe made it to release what was not captured, by its `reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<FactSource>,
    /// All states it has had. The current one is [`latest_state`](crate::entity::merge::latest_state).
    pub states: BTreeMap<RefundState, SeenInterval>,
}

/// A refund's state. If two have the same timestamp, the later in this order wins: `refund.created` with `pending` and
/// `refund.updated` with `succeeded` may be of the same second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefundState {
    Pending,
    /// The customer has to act before the refund goes on.
    RequiresAction,
    /// Not final: a refund may fail days later, if the customer's bank sends it back.
    Succeeded,
    Canceled,
    /// The money is with us again.
    Failed,
}

impl RefundState {
    pub(crate) fn parse_status(status: &str) -> Option<Self> {
        Some(match status {
            "pending" => Self::Pending,
            "requires_action" => Self::RequiresAction,
            "succeeded" => Self::Succeeded,
            "canceled" => Self::Canceled,
            "failed" => Self::Failed,
            _ => return None,
        })
    }

    /// Whether the amount counts as refunded. Pending counts, because the money has left our balance and only a failure
    /// brings it back.
    pub fn counts_as_refunded(self) -> bool {
        match self {
            Self::Pending | Self::RequiresAction | Self::Succeeded => true,
            Self::Canceled | Self::Failed => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DisputeFacts {
    pub states: BTreeMap<DisputeState, SeenInterval>,
}

/// A dispute's state, from its `status`. The latest timestamp wins: `needs_response`, lost, `appeal_under_review` and
/// won end as won, in any order of arrival. If two have the same timestamp, the later in this order wins:
/// `charge.dispute.funds_withdrawn` (open) and `charge.dispute.closed` (lost) in one second mean lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisputeState {
    /// The bank asks; no money was taken.
    Inquiry,
    /// Appeals included, and every status that we do not know.
    Open,
    InquiryClosed,
    Prevented,
    /// We keep the money.
    Won,
    /// The customer's bank has the money.
    Lost,
}

impl DisputeState {
    pub(crate) fn parse_status(status: &str) -> Self {
        match status {
            "warning_needs_response" | "warning_under_review" => Self::Inquiry,
            "warning_closed" => Self::InquiryClosed,
            "prevented" => Self::Prevented,
            "won" => Self::Won,
            "lost" => Self::Lost,
            // `needs_response`, `under_review`, `appeal_…`, and statuses that Stripe adds later. An unknown status
            // counts as open, because a needless review costs a minute and a missed due date costs the dispute.
            _ => Self::Open,
        }
    }
}

/// A review of Stripe's: two facts and not one flag, so that `closed` wins although it may arrive before `opened`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReviewFacts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<FactSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<FactSource>,
}

merge_fields!(MoneyFacts {
    payments,
    sessions,
    charges,
    refunds,
    disputes,
    warnings,
    reviews,
    reference,
    user
});

merge_fields!(IntentFacts {
    succeeded,
    received,
    authorized,
    processing,
    canceled,
    failures
});

merge_fields!(SessionFacts {
    completed,
    expired,
    intent
});

merge_fields!(RefundFacts {
    of,
    intent,
    amount,
    release,
    states
});

merge_fields!(DisputeFacts { states });

merge_fields!(ReviewFacts { opened, closed });

merge_fields!(ChargeFacts {
    intent,
    amount,
    captured,
    capture_before,
    before_basil,
    refunded,
    refunded_in_full,
    amount_refunded
});
