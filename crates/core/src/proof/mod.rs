//! Proof that a state is what its stored events say: they are read and merged again, from nothing, and the result is
//! compared with the state, its copies, and the application's row.
//!
//! The fold reads payloads and never facts, so a fact that an earlier release read wrongly is found. Events do not last
//! for ever: where one is gone, what only it could say is left alone, and a fact is taken away only where the very event
//! that it names can be read and does not state it. Payloads that are missing are ordinary input: such a state is
//! unprovable, which is no fault.
//!
//! Each state is proven alone, with what it rests on: a payment with its events, an order or statement with its payments,
//! its letters' events and its row. `stated` merges events, `facts` compares, `payment` and `entity` say what is compared,
//! `prover` loads, and `repair` has the worker write what can be mended. Nothing here calls for an effect.

mod copies;
pub mod entity;
mod facts;
pub mod listing;
pub mod payment;
pub mod prover;
pub mod repair;
mod stated;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::entity::EntityKey;
use crate::entity::account::AccountFacts;
use crate::entity::key::{PaymentKey, StateKey};
use crate::entity::mail::facts::MailFacts;
use crate::entity::payment::state::PaymentFacts;
use crate::ids::{EventId, ProviderId};
use crate::provider::stripe::comparison::StripeDifference;
use crate::time::Timestamp;

/// What a person decides about a row that is there and cannot be read.
const UNREADABLE: &str = "deploy the release that wrote it, or restore it from a backup";

/// How a state stands to everything that it can be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProofResult {
    Equal,
    /// Somebody edited the row since billhook wrote it: the next event takes the edit as a fact, or overwrites it.
    Edited,
    /// What is there agrees, but events are missing.
    Unprovable,
    Different,
}

impl ProofResult {
    pub const ALL: [Self; 4] = [Self::Equal, Self::Edited, Self::Unprovable, Self::Different];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Edited => "edited",
            Self::Unprovable => "unprovable",
            Self::Different => "different",
        }
    }
}

/// What showed a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DifferenceSource {
    /// The stored events.
    Events,
    /// Another state: a payment and its copies, a payment and its other names.
    States,
    /// The application's row.
    Row,
    /// An edit of the row.
    Edit,
    /// The provider's own objects.
    Stripe,
}

impl DifferenceSource {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::States => "states",
            Self::Row => "row",
            Self::Edit => "edit",
            Self::Stripe => "stripe",
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDifference {
    pub source: DifferenceSource,
    /// Where, such as `facts.money.payments.pi_1.received` or `row.status`.
    pub place: String,
    pub stored: Option<String>,
    pub expected: Option<String>,
    /// What a person has to decide, if a repair cannot.
    pub decision: Option<&'static str>,
}

impl StateDifference {
    pub(crate) fn new(
        source: DifferenceSource,
        place: impl Into<String>,
        stored: Option<&str>,
        expected: Option<&str>,
    ) -> Self {
        Self {
            source,
            place: place.into(),
            stored: stored.map(str::to_owned),
            expected: expected.map(str::to_owned),
            decision: None,
        }
    }

    /// What Stripe's own objects say.
    pub fn at_stripe(difference: &StripeDifference) -> Self {
        let StripeDifference {
            object,
            field,
            stored,
            at_stripe,
        } = difference;
        let place = format!("{object} {field}");
        Self::new(DifferenceSource::Stripe, place, Some(stored), Some(at_stripe)).decided_by(
            "if an event never arrived, billhook reconcile run brings it for 30 days; else compare with Stripe's dashboard and repair the order or statement",
        )
    }

    /// Stripe was asked and gave no answer that can be compared.
    pub fn not_compared(cause: &str) -> Self {
        Self::new(DifferenceSource::Stripe, "payment at stripe", None, Some(cause)).decided_by(
            "the payment was not compared with Stripe: see what was expected for the cause, and ask again, or compare it with Stripe's dashboard",
        )
    }

    #[must_use]
    pub(crate) fn decided_by(self, decision: &'static str) -> Self {
        Self {
            decision: Some(decision),
            ..self
        }
    }
}

/// What would mend a state.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct StateCorrection {
    /// A payment's facts as they should be.
    pub payment: Option<Box<PaymentFacts>>,
    /// Events of the payment that its state does not remember, by the provider's time.
    pub event_ids: Vec<(EventId, Option<Timestamp>)>,
    /// Payments whose copies in these orders and statements have to be written again.
    pub copies: BTreeSet<(PaymentKey, EntityKey)>,
    /// The state and the row of an order, statement or tenant have to be written again.
    pub row: bool,
    pub mail: Option<MailFacts>,
    pub account: Option<AccountFacts>,
    /// Events whose outcome is not what their facts say.
    pub events: BTreeSet<(ProviderId, EventId)>,
}

impl StateCorrection {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The proof of one state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateProof {
    pub key: StateKey,
    pub differences: Vec<StateDifference>,
    /// Events that the state names and that cannot be read any more.
    pub unreadable_events: BTreeSet<EventId>,
    /// It has more events than it remembers.
    pub has_forgotten_events: bool,
    pub correction: StateCorrection,
}

impl StateProof {
    pub(crate) fn new(key: StateKey) -> Self {
        Self {
            key,
            differences: Vec::new(),
            unreadable_events: BTreeSet::new(),
            has_forgotten_events: false,
            correction: StateCorrection::default(),
        }
    }

    pub fn result(&self) -> ProofResult {
        let is_edit = |of: &StateDifference| of.source == DifferenceSource::Edit;
        if !self.differences.iter().all(is_edit) {
            return ProofResult::Different;
        }
        if !self.differences.is_empty() {
            return ProofResult::Edited;
        }
        match self.unreadable_events.is_empty() && !self.has_forgotten_events {
            true => ProofResult::Equal,
            false => ProofResult::Unprovable,
        }
    }
}

/// A value as people read it: text without quotes.
fn show_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
