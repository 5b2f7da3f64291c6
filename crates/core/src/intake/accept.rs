//! The idempotent receiver: stores an event once and queues a pointer to it, however often the event is delivered.
//!
//! Guarantee: `Ok` means that the row exists and the queue has a message, or that the event is already processed or
//! ignored. Not guaranteed: exactly one message. If the sender gets an error, it delivers again, and the stored row
//! says what is left to do. Read next: `inbox` for the decision about redeliveries, `worker` for processing.

use crate::error::DependencyError;
use crate::intake::inbox::{EventRecord, EventSource, NewEvent, RecordResult, RedeliveryAction};
use crate::intake::message::EventPointer;
use crate::intake::ports::{RecordEvent, SendMessage};
use crate::ports::Clock;

/// How an event was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptResult {
    /// It is stored and its pointer is queued.
    Queued,
    /// It is stored, and processed or ignored: nothing is left to do.
    Duplicate,
}

/// Stores a genuine event, then queues its pointer.
///
/// First the row, then the message: if the second call fails, the event is `pending`, and both the sender's retry and
/// the sweep send the message. The other order could queue a pointer to a row that never gets written.
///
/// ```text
/// delivery 1   PutItem ok, SendMessage times out          503, the row is pending
/// delivery 2   PutItem: already there, pending            SendMessage with the same deduplication id: 200
///              (if the first message did arrive, the queue drops the second one)
/// worker       processes the event
/// delivery 3   PutItem: already there, processed          no message: 200, duplicate
/// ```
pub async fn accept_event(
    inbox: &impl RecordEvent,
    queue: &impl SendMessage,
    clock: &impl Clock,
    new: &NewEvent<'_>,
) -> Result<AcceptResult, DependencyError> {
    let (stored, action) = match inbox.record(new).await? {
        RecordResult::New => (new.to_record(), RedeliveryAction::SendAgain),
        RecordResult::Known(stored) => {
            let action = stored.redelivery_action();
            // The row keeps the correlation id of the first delivery; the message carries the one of this delivery, so
            // that the worker's log line belongs to the delivery that caused it.
            let correlation_id = Some(new.correlation_id);
            let stored = EventRecord {
                correlation_id,
                ..stored
            };
            (stored, action)
        }
    };
    let deduplication_id = match (action, new.source) {
        (RedeliveryAction::Duplicate, _) => return Ok(AcceptResult::Duplicate),
        (RedeliveryAction::SendAgain, EventSource::Delivery(_)) => stored.first_deduplication_id(),
        // Reconcile needs a fresh id: nobody retries for it if the queue drops its message. Example: a row was deleted
        // within 5 minutes of its delivery, and reconcile stored the event again; the queue still knew the first
        // deduplication id, dropped the message, and the event stayed pending.
        (
            RedeliveryAction::SendAgain,
            EventSource::ManualReplay | EventSource::Sweep | EventSource::Reconcile,
        )
        | (RedeliveryAction::Retry, _) => stored.fresh_deduplication_id(clock.new_id()),
    };
    let body = EventPointer::message_for(&stored, new.source);
    queue
        .send(
            new.envelope.provider,
            &stored.group,
            &deduplication_id,
            &body,
        )
        .await?;
    Ok(AcceptResult::Queued)
}
