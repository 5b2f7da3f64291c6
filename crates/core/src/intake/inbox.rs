//! The event store, seen from the outside: a new event, its record, and what a redelivery of it leaves to do
//! (deduplication). `adapters::dynamodb` keeps the rows.

use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use crate::ids::{AccountId, CorrelationId, EventId, ProviderId};
use crate::outcome::EventOutcome;
use crate::provider::envelope::{EventEnvelope, EventType};
use crate::time::Timestamp;

/// How long an event is kept: longer than any redelivery (Stripe's resend by hand ends after 30 days) and than a
/// year's books. 400 days.
pub const EVENT_RETENTION: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// A genuine event on its way into the store.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    /// How it came: a delivery, or an answer to a question.
    pub source: EventSource,
    /// What was read of it.
    pub envelope: EventEnvelope,
    /// The body exactly as received.
    pub raw_body: &'a [u8],
    /// The delivery's.
    pub correlation_id: CorrelationId,
    /// When it came.
    pub received_at: Timestamp,
}

impl NewEvent<'_> {
    /// What the row will say of it, for the message.
    pub fn to_record(&self) -> EventRecord {
        EventRecord {
            id: self.envelope.id.clone(),
            event_type: self.envelope.event_type.clone(),
            account: self.envelope.account.clone(),
            tenant_hint: self.envelope.tenant_hint.clone(),
            group: self.envelope.group.clone(),
            correlation_id: Some(self.correlation_id),
            received_at: Some(self.received_at),
            processed: false,
            outcome: EventOutcome::Pending,
        }
    }
}

/// A row of the inbox, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// The key.
    pub id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// The connected account, from the signed body or the question that was asked of Stripe.
    pub account: Option<AccountId>,
    /// A tenant that the metadata names: for people and logs, never proof.
    pub tenant_hint: Option<String>,
    /// The message group.
    pub group: String,
    /// The first delivery's.
    pub correlation_id: Option<CorrelationId>,
    /// The first delivery's arrival.
    pub received_at: Option<Timestamp>,
    /// Whether a repeat has nothing to do. By hand it may be set to false for another try.
    pub processed: bool,
    /// What became of it.
    pub outcome: EventOutcome,
}

/// The answer of the store to a new event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordResult {
    /// It was not there before.
    New,
    /// It was: by an earlier delivery, or by the first try of this very write whose answer was lost.
    Known(EventRecord),
}

/// What a repeated delivery leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedeliveryAction {
    /// Nothing.
    Duplicate,
    /// The message may never have reached the queue: the same message again, which the queue swallows if it did.
    SendAgain,
    /// It was decided without success: a new message, which the queue must not swallow.
    Retry,
}

impl EventRecord {
    /// A stored event's answer to its own repetition. The stored state decides, never the failed condition alone.
    pub fn redelivery_action(&self) -> RedeliveryAction {
        match (self.processed, self.outcome) {
            (true, _) => RedeliveryAction::Duplicate,
            (false, EventOutcome::Pending) => RedeliveryAction::SendAgain,
            (
                false,
                EventOutcome::Processed
                | EventOutcome::Ignored
                | EventOutcome::Parked
                | EventOutcome::Failed,
            ) => RedeliveryAction::Retry,
        }
    }

    /// The deduplication id of the first message about this event, and of its repetition.
    pub fn first_deduplication_id(&self) -> String {
        self.id.to_string()
    }

    /// The deduplication id of a message that must not be taken for an earlier one.
    pub fn fresh_deduplication_id(&self, unique: Uuid) -> String {
        format!("{}.r.{}", self.id, unique.hyphenated())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_repeat_leaves_to_do_is_read_from_the_row() {
        for (processed, outcome, expected) in [
            (true, EventOutcome::Processed, RedeliveryAction::Duplicate),
            (true, EventOutcome::Ignored, RedeliveryAction::Duplicate),
            (false, EventOutcome::Pending, RedeliveryAction::SendAgain),
            (false, EventOutcome::Parked, RedeliveryAction::Retry),
            (false, EventOutcome::Failed, RedeliveryAction::Retry),
            // An operator set `processed` back by hand.
            (false, EventOutcome::Processed, RedeliveryAction::Retry),
        ] {
            let stored = EventRecord {
                id: EventId::parse("evt_1").unwrap(),
                event_type: "charge.refunded".to_owned().try_into().unwrap(),
                account: None,
                tenant_hint: None,
                group: String::new(),
                correlation_id: None,
                received_at: None,
                processed,
                outcome,
            };
            assert_eq!(
                stored.redelivery_action(),
                expected,
                "{processed} {outcome}"
            );
        }
    }

    #[test]
    fn outcomes_read_their_own_word() {
        for outcome in [
            EventOutcome::Pending,
            EventOutcome::Processed,
            EventOutcome::Ignored,
            EventOutcome::Parked,
            EventOutcome::Failed,
        ] {
            assert_eq!(EventOutcome::parse(outcome.as_str()), Some(outcome));
        }
        assert_eq!(EventOutcome::parse("done"), None);
    }
}

/// Who put the message on the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// Ingress, for a delivery of Stripe's.
    Stripe,
    /// Ingress, for a delivery of Lob's.
    Lob,
    /// A person.
    ManualReplay,
    /// The sweep.
    Sweep,
    /// The reconciliation with Stripe.
    Reconcile,
}

impl EventSource {
    /// The word in row and message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Lob => "lob",
            Self::ManualReplay => "manual_replay",
            Self::Sweep => "sweep",
            Self::Reconcile => "reconcile",
        }
    }
}

impl Serialize for EventSource {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl From<ProviderId> for EventSource {
    fn from(provider: ProviderId) -> Self {
        match provider {
            ProviderId::Stripe => Self::Stripe,
            ProviderId::Lob => Self::Lob,
        }
    }
}
