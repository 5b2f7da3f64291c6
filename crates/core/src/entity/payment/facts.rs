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
    /// Who may pay, by any event.
    #[serde(skip_serializing_if = "UserHints::is_none")]
    pub users: UserHints,
}

/// Who pays, as the application told Stripe. A hint, not a proof: whoever makes a session writes it.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UserHints {
    /// A session's `client_reference_id`. Beats `metadata`, because the application set it for this purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<MinRegister<UserId>>,
    /// The metadata of a session or PaymentIntent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MinRegister<UserId>>,
}

impl UserHints {
    fn is_none(&self) -> bool {
        self.best().is_none()
    }

    pub fn best(&self) -> Option<&UserId> {
        let best = self.reference.as_ref().or(self.metadata.as_ref());
        best.map(|MinRegister(user)| user)
    }

    pub fn all(&self) -> impl Iterator<Item = &UserId> {
        let all = self.reference.iter().chain(&self.metadata);
        all.map(|MinRegister(user)| user)
    }
}

/// The facts of one payment: a PaymentIntent, or a Checkout Session without one.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IntentFacts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<FactSource>,
    /// All amounts that events of the payment itself reported as received. Normally one; with two different ones the payment
    /// does not match.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub received: BTreeSet<Money>,
    /// Who paid, by the events that say that it succeeded.
    #[serde(skip_serializing_if = "UserHints::is_none")]
    pub payer: UserHints,
    /// The amount is blocked at the customer's bank and not captured yet; first and last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorized: Option<SeenInterval>,
    /// First and last time of `payment_intent.processing`, and of the session that completed unpaid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processing: Option<SeenInterval>,
    /// It can no longer succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canceled: Option<FactSource>,
    #[serde(skip_serializing_if = "NewestFailures::is_empty")]
    pub failures: NewestFailures,
}

impl IntentFacts {
    /// Whether it is authorised, and has not succeeded, failed or been canceled at the same time or later.
    pub(super) fn is_authorized(&self) -> bool {
        self.is_going_on(self.authorized.as_ref())
    }

    /// Whether it is in progress: it was processing, and has not succeeded, nor failed or been canceled at the same time or
    /// later, by Stripe's timestamps.
    ///
    /// This compares times, because an attempt may fail and the next one be processing. `ch_1` fails at 10:00, processing
    /// at 10:01, `ch_2` fails at 10:02: in progress from 10:01, failed from 10:02, in whatever order the three arrive.
    /// Within one second the failure or the cancellation wins.
    pub(super) fn is_processing(&self) -> bool {
        self.is_going_on(self.processing.as_ref())
    }

    fn is_going_on(&self, seen: Option<&SeenInterval>) -> bool {
        if self.succeeded.is_some() {
            return false;
        }
        let last = seen.map(|seen| seen.last_at.0);
        last.is_some() && last > self.ended_at()
    }

    /// When it last failed or was canceled.
    pub(super) fn ended_at(&self) -> Option<Timestamp> {
        let canceled = self.canceled.as_ref().map(|stated| stated.at);
        self.failures.last_at().max(canceled)
    }
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
        self.last().map(|stated| stated.at)
    }

    pub fn last(&self) -> Option<&FactSource> {
        let attempts = self.0.values();
        attempts.map(|attempt| &attempt.stated).max()
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
    /// Its amounts, by the events that say that it is paid. Normally one; with two the payment does not match.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub paid: BTreeSet<SessionAmounts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<MinRegister<PaymentIntentId>>,
}

/// What a Checkout Session charges, and how that follows from its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAmounts {
    pub total: Money,
    /// The items alone. The parts are none if the event does not have them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<SessionParts>,
}

/// In the minor unit of the total's currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionParts {
    pub subtotal: i64,
    pub discount: i64,
    pub tax: i64,
    pub shipping: i64,
}

impl SessionAmounts {
    /// The sum of the items, if the total follows from it by the session's own discount, shipping and tax. A tax may be
    /// in the items' prices already, of some or of all.
    pub fn adjusted_from(&self) -> Option<Money> {
        let parts = self.parts?;
        let without_tax = parts
            .subtotal
            .checked_sub(parts.discount)?
            .checked_add(parts.shipping)?;
        let with_tax = without_tax.checked_add(parts.tax)?;
        let is_explained = (without_tax..=with_tax).contains(&self.total.amount);
        is_explained.then_some(Money {
            amount: parts.subtotal,
            ..self.total
        })
    }
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
    /// What the customer's bank demands; none if no event says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<MaxRegister<Money>>,
    /// Such as `fraudulent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<MinRegister<String>>,
    /// Until when somebody has to answer, by the newest event, which has the time before it; none if nobody has to any
    /// more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond_by: Option<MaxRegister<(Timestamp, Option<Timestamp>)>>,
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

impl MoneyFacts {
    /// Whether nothing is stated about money: at most that a session expired or that the payment exists.
    pub fn states_nothing(&self) -> bool {
        let Self {
            payments,
            sessions,
            charges,
            refunds,
            disputes,
            warnings,
            reviews,
            users: _,
        } = self;
        payments
            .values()
            .all(|payment| *payment == IntentFacts::default())
            && sessions.values().all(|session| session.completed.is_none())
            && charges.is_empty()
            && refunds.is_empty()
            && disputes.is_empty()
            && warnings.is_empty()
            && reviews.is_empty()
    }

    /// Whether money came in or went out, or somebody demands it back. What was free, or only authorised, is no money.
    pub fn has_money(&self) -> bool {
        let mut payments = self.payments.iter();
        let mut charges = self.charges.values();
        let mut refunds = self.refunds.values();
        let is_paid = |(id, payment): (&PaymentRef, &IntentFacts)| {
            let received = self.received_amounts(id);
            let is_free = !received.is_empty() && received.iter().all(|money| money.amount == 0);
            payment.succeeded.is_some() && !is_free
        };
        let is_captured = |charge: &ChargeFacts| {
            let captured = charge.captured.as_ref();
            captured.is_some_and(|captured| captured.0.amount > 0)
        };
        payments.any(is_paid)
            || charges.any(is_captured)
            || refunds.any(|refund| refund.release.is_none())
            || !self.disputes.is_empty()
            || !self.warnings.is_empty()
    }

    /// Who may pay, by any event.
    pub fn user_hints(&self) -> impl Iterator<Item = &UserId> {
        let payers = self
            .payments
            .values()
            .flat_map(|payment| payment.payer.all());
        payers.chain(self.users.all())
    }

    /// When money came, was refused or went back, by what; for comparison with other facts of the payment.
    pub(super) fn money_times(&self) -> BTreeSet<(&str, Timestamp)> {
        let payments = self.payments.iter().flat_map(|(id, payment)| {
            let failures = payment.failures.iter();
            let failures = failures.map(|(of, attempt)| (of.as_str(), attempt.stated.at));
            let success = payment.succeeded.iter();
            failures.chain(success.map(|stated| (id.as_str(), stated.at)))
        });
        let refunds = self.refunds.iter().flat_map(|(id, refund)| {
            let states = refund.states.values();
            states.map(|seen| (id.as_str(), seen.last_at.0))
        });
        let charges = self.charges.iter().filter_map(|(id, charge)| {
            let stated = charge.refunded.as_ref()?;
            Some((id.as_str(), stated.at))
        });
        payments.chain(refunds).chain(charges).collect()
    }

    /// The first thing that any event states of it.
    pub(super) fn first_stated(&self) -> Option<&FactSource> {
        let payments = self.payments.values().flat_map(|payment| {
            let seen = payment.authorized.iter().chain(&payment.processing);
            let seen = seen.map(|seen| &seen.first);
            let failures = payment.failures.iter().map(|(_, attempt)| &attempt.stated);
            let ends = payment.succeeded.iter().chain(&payment.canceled);
            seen.chain(failures).chain(ends)
        });
        let sessions = self.sessions.values();
        let sessions =
            sessions.flat_map(|session| session.completed.iter().chain(&session.expired));
        let all = payments.chain(sessions);
        all.min_by_key(|stated| (stated.at, &stated.event))
    }

    /// The amounts that this payment received, normally one: as its own events say, else as its paid sessions say.
    pub fn received_amounts(&self, payment: &PaymentRef) -> BTreeSet<Money> {
        let own = self.payments.get(payment);
        if let Some(own) = own.filter(|own| !own.received.is_empty()) {
            return own.received.clone();
        }
        let sessions = self.paid_amounts(payment);
        sessions.map(|amounts| amounts.total).collect()
    }

    /// What the sessions of this payment charged.
    fn paid_amounts(&self, payment: &PaymentRef) -> impl Iterator<Item = &SessionAmounts> {
        let is_its = move |id: &CheckoutSessionId, session: &SessionFacts| match payment {
            PaymentRef::Intent(intent) => session.intent.as_ref().is_some_and(|of| of.0 == *intent),
            PaymentRef::Session(session) => session == id,
            PaymentRef::Charge(_) => false,
        };
        let its = self.sessions.iter();
        let its = its.filter(move |(id, session)| is_its(id, session));
        its.flat_map(|(_, session)| &session.paid)
    }
}

merge_fields!(MoneyFacts {
    payments,
    sessions,
    charges,
    refunds,
    disputes,
    warnings,
    reviews,
    users
});

merge_fields!(UserHints {
    reference,
    metadata
});

merge_fields!(IntentFacts {
    succeeded,
    received,
    payer,
    authorized,
    processing,
    canceled,
    failures
});

merge_fields!(SessionFacts {
    completed,
    paid,
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

merge_fields!(DisputeFacts {
    states,
    amount,
    reason,
    respond_by
});

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
