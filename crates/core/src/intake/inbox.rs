//! The event store: the record of an event, how long it is kept (retention), and what a redelivery of it leaves to do
//! (deduplication). The stored row decides, never the failed condition alone.
//!
//! `adapters::dynamodb::events` reads and writes the rows; `accept` is the only caller of the decision here.

use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use crate::ids::{AccountId, CorrelationId, EventId, ProviderId};
use crate::outcome::EventOutcome;
use crate::provider::envelope::{EventEnvelope, EventType};
use crate::provider::signature::Verified;
use crate::time::Timestamp;

/// Retention of an event: 400 days. That is longer than any redelivery (Stripe resends manually for up to 30 days) and
/// longer than a financial year.
pub const EVENT_RETENTION: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// A genuine event that is to be stored.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    pub source: EventSource,
    pub envelope: EventEnvelope,
    /// The exact bytes received.
    pub body: Verified<'a>,
    pub correlation_id: CorrelationId,
    pub received_at: Timestamp,
}

impl NewEvent<'_> {
    /// The record that the new row will contain, for its message.
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

/// An event's row without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    pub id: EventId,
    pub event_type: EventType,
    /// The connected account: from the signed body, or for reconcile the account that we asked Stripe about.
    pub account: Option<AccountId>,
    /// A tenant that the metadata names: information for people and logs, never proof (tenant isolation).
    pub tenant_hint: Option<String>,
    /// The queue's message group: SHA-256 of `provider|account|object`.
    pub group: String,
    /// Of the first delivery.
    pub correlation_id: Option<CorrelationId>,
    /// Arrival of the first delivery.
    pub received_at: Option<Timestamp>,
    /// True if nothing is left to do. A person may set it to false to have the event reprocessed, whatever `outcome`
    /// says.
    pub processed: bool,
    pub outcome: EventOutcome,
}

/// The store's answer to a new event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordResult {
    /// This write created the row.
    New,
    /// The row already existed: an earlier delivery wrote it, or the SDK's first attempt of this write whose
    /// answer was lost.
    Known(EventRecord),
}

/// What a redelivery leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedeliveryAction {
    /// Nothing.
    Duplicate,
    /// Send the same message again, because the first may never have reached the queue. If it did, the queue drops the
    /// second one (same deduplication id within 5 minutes).
    SendAgain,
    /// Send a message with a new deduplication id: the event was parked or failed, and the queue must not drop the
    /// message that asks for another try.
    Retry,
}

impl EventRecord {
    /// What a redelivery of this event leaves to do.
    ///
    /// That the row already existed does not make the delivery a duplicate. Example: PutItem succeeds, its answer is
    /// lost, and the SDK's own second attempt fails the condition. The row is `pending` and no message was sent yet;
    /// an answer "duplicate" here would lose the event.
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

    /// Deduplication id of an event's first message, and of its repetition by a redelivery.
    pub fn first_deduplication_id(&self) -> String {
        self.id.to_string()
    }

    /// Deduplication id of a message that the queue must not drop as a repetition of an earlier one.
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
            // An operator set `processed` to false to have the event reprocessed.
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

/// Who sent the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// A delivery that ingress accepted.
    Delivery(ProviderId),
    ManualReplay,
    Sweep,
    Reconcile,
}

impl EventSource {
    /// The word in `source` of the row and the message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivery(provider) => provider.as_str(),
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
