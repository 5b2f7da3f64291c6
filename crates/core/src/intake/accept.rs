//! The idempotent receiver: an event is stored once and queued, however often it is delivered.

use crate::error::DependencyError;
use crate::intake::inbox::{EventRecord, EventSource, NewEvent, RecordResult, RedeliveryAction};
use crate::intake::message::EventPointer;
use crate::intake::ports::{RecordEvent, SendMessage};
use crate::ports::Clock;

/// Keeps a genuine event and puts its pointer on the queue; `Ok` means that both are done. Whether it is a duplicate, of
/// which nothing is left to do.
pub async fn accept_event(
    inbox: &impl RecordEvent,
    queue: &impl SendMessage,
    clock: &impl Clock,
    new: &NewEvent<'_>,
) -> Result<bool, DependencyError> {
    let (stored, repeat) = match inbox.record(new).await? {
        RecordResult::New => (new.to_record(), RedeliveryAction::SendAgain),
        RecordResult::Known(stored) => {
            let repeat = stored.redelivery_action();
            // The row keeps the first delivery's; the message tells whose it is.
            let correlation_id = Some(new.correlation_id);
            let stored = EventRecord {
                correlation_id,
                ..stored
            };
            (stored, repeat)
        }
    };
    let deduplication_id = match (repeat, new.source) {
        (RedeliveryAction::Duplicate, _) => return Ok(true),
        (RedeliveryAction::SendAgain, EventSource::Stripe | EventSource::Lob) => {
            stored.first_deduplication_id()
        }
        // Nobody repeats what is no delivery, and the queue may still know a delivery's message whose row is gone.
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
    Ok(false)
}
