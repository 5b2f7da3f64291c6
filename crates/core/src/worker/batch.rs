//! The worker's types and limits: the messages of a batch, the event candidates of a round, and the report for each
//! message, which becomes the partial batch response in `adapters::batch`. The number of receives
//! before a message goes to the dead-letter queue is here too. No decisions here; `worker` runs the rounds.

use std::future::ready;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _};

use crate::entity::EntityKey;
use crate::error::{DependencyError, error_chain};
use crate::ids::{CorrelationId, EventId, PaymentRef, ProviderId, TenantId};
use crate::intake::inbox::EventRecord;
use crate::outcome::{EventOutcome, EventVerdict};
use crate::provider::interpret::EventFacts;
use crate::worker::ports::{EventUpdate, PaymentKey};

/// Receives after which the queue moves a message to the dead-letter queue. Must equal `maxReceiveCount` in
/// `template.yaml`: the worker writes `failed` on the last receive.
pub const RECEIVES_MAX: u32 = 3;

/// Events of one entity in one transaction; events over the limit wait for the next round. A batch has at most 10
/// messages, so at most 10 payments rows join them: 1 + 50 + 10 of the 100 rows that DynamoDB accepts.
pub(super) const EVENTS_PER_COMMIT_MAX: usize = 50;

/// The event rows of one entity's transaction. DynamoDB accepts 4 MB in one transaction, and the entity's row is in it
/// too. Example: of ten events of 400 KB, seven (2.8 MB) fit, and three wait for the next round.
pub(super) const BYTES_PER_COMMIT_MAX: usize = 3_000_000;

/// DynamoDB accepts 100 rows in one transaction.
pub(super) const ROWS_PER_COMMIT_MAX: usize = 100;

/// The event rows of a transaction of several entities: up to ten entity rows of at most 300 KiB are in it too, about
/// 3 of DynamoDB's 4 MB.
pub(super) const BYTES_PER_COMMON_COMMIT_MAX: usize = 1_000_000;

/// Longest wait for a transaction of several entities. The worker has 10 s in all, and after a failure it still has to
/// try each entity alone.
pub(super) const COMMON_COMMIT_WAIT_MAX: Duration = Duration::from_secs(2);

/// Calls in progress at the same time: each needs its own warm connection (HTTP/1.1).
pub const CALLS_AT_ONCE: usize = 4;

/// Reserve before the end of the invocation, for marking failures and for the response.
pub const TIME_TO_FINISH: Duration = Duration::from_secs(2);

/// A message as the queue delivered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedMessage {
    /// The queue's id for this message, reported back if it failed.
    pub message_id: String,
    /// A pointer to an event (`intake::message`).
    pub body: String,
    /// Starts at 1: this receive counts.
    pub receive_count: u32,
}

/// The result for a message, or for an event that waited for a payment.
#[derive(Debug)]
pub struct MessageReport {
    /// None if the event had no message in this batch: it waited for a payment that another event linked.
    pub message: Option<ReceivedMessage>,
    /// None if the message is not a pointer.
    pub event: Option<EventId>,
    /// Of the delivery or replay that sent the message; else of the event's first delivery.
    pub correlation_id: Option<CorrelationId>,
    /// The event's row as last read.
    pub stored: Option<EventRecord>,
    /// The tenant of the event's account.
    pub tenant: Option<TenantId>,
    /// The entity that the event's facts were merged into.
    pub entity: Option<EntityKey>,
    pub result: Result<ProcessingSuccess, ProcessingFailure>,
}

/// A message that needs no further receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessingSuccess {
    /// This worker wrote the verdict.
    Decided(EventVerdict),
    /// The row already said so when it was read.
    AlreadyDone(EventOutcome),
}

/// A message to be received again or, after its last receive, moved to the dead-letter queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessingFailure {
    /// Not JSON, or without an event id.
    #[error("the message is not a pointer to an event")]
    Unreadable,
    /// There is no readable row. Ingress stores before it sends, so the message was written manually, or the row was
    /// deleted or damaged.
    #[error("the event is not stored")]
    NotStored,
    /// A bug that this record triggers: only its own message fails.
    #[error("processing the event panicked")]
    Panicked,
    /// A call to the store failed, or every round lost a race.
    #[error("{0}")]
    Infrastructure(String),
    /// Less than [`TIME_TO_FINISH`] was left, or a call was still running when the time was up.
    #[error("no time was left in this invocation")]
    OutOfTime,
}

/// One provider's worker.
#[derive(Debug)]
pub struct Worker<L, C> {
    pub provider: ProviderId,
    /// Whether the environment processes live events; it ignores or parks those of the other mode.
    pub live_mode: bool,
    pub ledger: L,
    pub clock: C,
}

/// An event that was read and interpreted, ready for a decision.
#[derive(Clone)]
pub(super) struct EventCandidate {
    pub(super) stored: EventRecord,
    pub(super) event: EventFacts,
    pub(super) tenant: Option<TenantId>,
    pub(super) waited: bool,
    pub(super) row_bytes: usize,
}

impl EventCandidate {
    pub(super) fn payment(&self) -> Option<PaymentKey> {
        let intent = self.event.intent.clone()?;
        Some(PaymentKey {
            account: self.stored.account.clone(),
            payment: PaymentRef::Intent(intent),
        })
    }

    pub(super) fn processed_disposition(&self, entity: &EntityKey) -> EventDisposition {
        EventDisposition {
            event: self.stored.id.clone(),
            released: self.waited.then(|| self.stored.clone()),
            tenant: self.tenant.clone(),
            entity: Some(entity.clone()),
            result: Ok(ProcessingSuccess::Decided(EventVerdict::Processed)),
        }
    }

    pub(super) fn event_update(&self, verdict: EventVerdict) -> EventUpdate {
        EventUpdate {
            event: self.stored.id.clone(),
            tenant: self.tenant.clone(),
            verdict,
            waited: self.waited,
        }
    }
}

/// A round's result for one event.
pub(super) struct EventDisposition {
    pub(super) event: EventId,
    /// The row of an event that waited for a payment and has no message in this batch.
    pub(super) released: Option<EventRecord>,
    pub(super) tenant: Option<TenantId>,
    pub(super) entity: Option<EntityKey>,
    pub(super) result: Result<ProcessingSuccess, ProcessingFailure>,
}

impl EventDisposition {
    pub(super) fn new(
        event: &EventId,
        result: Result<ProcessingSuccess, ProcessingFailure>,
    ) -> Self {
        Self {
            event: event.clone(),
            released: None,
            tenant: None,
            entity: None,
            result,
        }
    }

    pub(super) fn failed(event: &EventId, failure: ProcessingFailure) -> Self {
        Self::new(event, Err(failure))
    }
}

/// A round's results so far. They live outside the round's future: if one row's call hangs and the round is dropped,
/// the results of what was already committed stay. Before this existed, one slow row made the worker report its
/// neighbours' committed events as failed.
#[derive(Default)]
pub(super) struct RoundOutcome(Mutex<Vec<EventDisposition>>);

impl RoundOutcome {
    pub(super) fn add(&self, findings: impl IntoIterator<Item = EventDisposition>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(findings);
    }

    /// Runs the futures, at most [`CALLS_AT_ONCE`] at a time, and adds the result of each as soon as it completes.
    pub(super) async fn add_each<F: Future<Output: IntoIterator<Item = EventDisposition>>>(
        &self,
        futures: impl Stream<Item = F>,
    ) {
        let ended = futures.buffer_unordered(CALLS_AT_ONCE);
        let adding = ended.for_each(|findings| {
            self.add(findings);
            ready(())
        });
        adding.await;
    }

    pub(super) fn into_all(self) -> Vec<EventDisposition> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<DependencyError> for ProcessingFailure {
    fn from(error: DependencyError) -> Self {
        Self::Infrastructure(error_chain(&error))
    }
}
