//! What Stripe's events state about payments, and how statements add up. `read` makes facts of an event.
//!
//! Facts carry the provider's own ids and merge by them, because two different events may describe one change, and
//! amounts are kept as the provider's cumulative figures, never as differences.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::entity::merge::{FactSource, MaxRegister, MinRegister, SeenInterval, merge_fields};
use crate::ids::{
    AccountId, ChargeId, CheckoutSessionId, ObjectId, PaymentIntentId, RefundId, UserId,
};
use crate::money::Money;
use crate::time::Timestamp;

/// Everything known of the payments for one order or statement.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PaymentFacts {
    /// By PaymentIntent; by Checkout Session where that has none (nothing to pay, or a subscription's).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub payments: BTreeMap<ObjectId, IntentFacts>,
    /// Checkout Sessions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sessions: BTreeMap<CheckoutSessionId, SessionFacts>,
    /// Charges, as far as money went back.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub charges: BTreeMap<ChargeId, ChargeFacts>,
    /// Refunds that are known by their own id.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refunds: BTreeMap<RefundId, RefundFacts>,
    /// Disputes, inquiries included.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub disputes: BTreeMap<ObjectId, DisputeFacts>,
    /// Early fraud warnings.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub warnings: BTreeMap<ObjectId, FactSource>,
    /// Stripe's own reviews.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reviews: BTreeMap<ObjectId, ReviewFacts>,
    /// Who pays, as the application told Checkout: a session's `client_reference_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<MinRegister<UserId>>,
    /// Who pays, as the metadata of a session or intent says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<MinRegister<UserId>>,
    /// When the cleanup, or a person, gave the order up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<MinRegister<Timestamp>>,
    /// What people changed by hand.
    #[serde(skip_serializing_if = "ManualEdits::is_none")]
    pub manual: ManualEdits,
}

/// A person's repairs, with the moments at which they were found.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ManualEdits {
    /// The order was set to refunded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refunded: Option<MinRegister<Timestamp>>,
    /// Review reasons that were cleared; others flag again.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cleared: BTreeMap<String, MinRegister<Timestamp>>,
    /// A review was asked for.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub flagged: BTreeSet<Timestamp>,
}

/// One way of paying.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IntentFacts {
    /// The connected account it lives on; none for the platform's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<MinRegister<AccountId>>,
    /// It was paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<FactSource>,
    /// The amounts that were said to be received: one, unless the provider contradicts itself.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub received: BTreeSet<Money>,
    /// Money was on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing: Option<SeenInterval>,
    /// It can no longer be paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canceled: Option<FactSource>,
    /// Attempts that failed, by their charge; by the payment itself where no charge is named.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<ObjectId, FailedAttempt>,
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedAttempt {
    /// When; more than once, where no charge tells the attempts apart.
    #[serde(flatten)]
    pub seen: SeenInterval,
    /// Such as `card_declined`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<MinRegister<String>>,
    /// Such as `insufficient_funds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decline_code: Option<MinRegister<String>>,
}

/// A Checkout Session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionFacts {
    /// Nobody can pay with it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expired: Option<FactSource>,
    /// When it was completed, paid or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<FactSource>,
    /// The payment it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<MinRegister<PaymentIntentId>>,
}

/// A charge of which money went back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChargeFacts {
    /// The payment it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<MinRegister<PaymentIntentId>>,
    /// When money first went back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refunded: Option<FactSource>,
    /// What was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<MaxRegister<Money>>,
    /// What has gone back so far: cumulative, so the greatest is the newest.
    pub amount_refunded: MaxRegister<i64>,
}

/// A refund.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefundFacts {
    /// The charge it is of; the payment, where none is named.
    pub of: MinRegister<ObjectId>,
    /// The payment it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<MinRegister<PaymentIntentId>>,
    /// How much.
    pub amount: MaxRegister<Money>,
    /// The states it was in.
    pub states: BTreeMap<RefundState, SeenInterval>,
}

/// A refund's state. A later one in this order is believed of two that are told in the same second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefundState {
    /// On its way.
    Pending,
    /// Waits for the customer.
    RequiresAction,
    /// Arrived; it may still fail days later.
    Succeeded,
    /// Withdrawn.
    Canceled,
    /// Came back.
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

    /// Whether its amount counts as gone back.
    pub fn counts_as_refunded(self) -> bool {
        match self {
            Self::Pending | Self::RequiresAction | Self::Succeeded => true,
            Self::Canceled | Self::Failed => false,
        }
    }
}

/// A dispute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DisputeFacts {
    /// The states it was in.
    pub states: BTreeMap<DisputeState, SeenInterval>,
}

/// A dispute's state, from its `status`. A later one in this order is believed of two told in the same second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisputeState {
    /// An inquiry: no money was taken.
    Inquiry,
    /// Open, an appeal included; also a status that is not known here.
    Open,
    /// The inquiry was closed.
    InquiryClosed,
    /// Ended before it began.
    Prevented,
    /// The money stays.
    Won,
    /// The money is gone.
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
            // `needs_response`, `under_review`, `appeal_…`, and whatever Stripe thinks of next: a person looks.
            _ => Self::Open,
        }
    }
}

/// A review of Stripe's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReviewFacts {
    /// It was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<FactSource>,
    /// It was closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<FactSource>,
}

merge_fields!(PaymentFacts {
    payments,
    sessions,
    charges,
    refunds,
    disputes,
    warnings,
    reviews,
    reference,
    user,
    cancelled,
    manual
});

merge_fields!(ManualEdits {
    refunded,
    cleared,
    flagged
});

merge_fields!(IntentFacts {
    account,
    succeeded,
    received,
    processing,
    canceled,
    failures
});

merge_fields!(FailedAttempt {
    seen,
    code,
    decline_code
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
    states
});

merge_fields!(DisputeFacts { states });

merge_fields!(ReviewFacts { opened, closed });

merge_fields!(ChargeFacts {
    intent,
    refunded,
    captured,
    amount_refunded
});

impl ManualEdits {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl PaymentFacts {
    /// Whether Stripe stated anything; a person's repair alone is no payment.
    pub fn has_stripe_facts(&self) -> bool {
        let manual = self.manual.clone();
        *self
            != Self {
                manual,
                ..Self::default()
            }
    }

    /// Whether this PaymentIntent is already known here.
    pub fn has_payment_intent(&self, intent: &PaymentIntentId) -> bool {
        self.payments
            .keys()
            .any(|key| key.as_str() == intent.as_str())
    }
}
