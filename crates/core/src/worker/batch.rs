//! What a batch is made of: messages, candidates, and what a round found out about each event.

use std::future::ready;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _};

use crate::entity::EntityKey;
use crate::error::{DependencyError, error_chain};
use crate::ids::{CorrelationId, EventId, ProviderId, TenantId};
use crate::intake::inbox::EventRecord;
use crate::outcome::{EventOutcome, EventVerdict};
use crate::provider::interpret::EventFacts;
use crate::worker::ports::{EventUpdate, PaymentKey};

/// A message goes to the dead-letter queue after so many receives; `template.yaml` says the same.
pub const RECEIVES_MAX: u32 = 3;

/// Events of one entity in one transaction; the rest comes in the next round.
pub(super) const EVENTS_PER_COMMIT_MAX: usize = 50;

/// Their rows together: DynamoDB takes 4 MB in one transaction, and the entity's row is in it too.
pub(super) const BYTES_PER_COMMIT_MAX: usize = 3_000_000;

/// DynamoDB takes so many rows in one transaction.
pub(super) const ROWS_PER_COMMIT_MAX: usize = 100;

/// Events' rows in a transaction of several entities: ten of those, of at most 300 KB, are in it too.
pub(super) const BYTES_PER_COMMON_COMMIT_MAX: usize = 1_000_000;

/// How long a transaction of several entities is waited for, so that time is left for each by itself.
pub(super) const COMMON_COMMIT_WAIT_MAX: Duration = Duration::from_secs(2);

/// Calls under way at once: as many as there are connections to keep warm.
pub const CALLS_AT_ONCE: usize = 4;

/// What a last transaction and the marking of failures may need.
pub const TIME_TO_FINISH: Duration = Duration::from_secs(2);

/// A message as the queue handed it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedMessage {
    /// The queue's id for this message, reported back if it failed.
    pub message_id: String,
    /// The pointer.
    pub body: String,
    /// How often it was received, this time included.
    pub receive_count: u32,
}

/// What became of a message, or of an event that waited for one.
#[derive(Debug)]
pub struct MessageReport {
    /// The message; none where the event waited for a payment that another's message linked.
    pub message: Option<ReceivedMessage>,
    /// The event it names, if it could be read.
    pub event: Option<EventId>,
    /// The story it belongs to: of the delivery or replay that sent the message, else of the event's first delivery.
    pub correlation_id: Option<CorrelationId>,
    /// What the row said when it was read, if it was.
    pub stored: Option<EventRecord>,
    /// Whose it is, where its account says so.
    pub tenant: Option<TenantId>,
    /// The entity that its facts went into.
    pub entity: Option<EntityKey>,
    /// Done or not.
    pub result: Result<EventCompletion, ProcessingFailure>,
}

/// A message that needs no further receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventCompletion {
    /// This worker wrote the verdict.
    Concluded(EventVerdict),
    /// It was done before.
    Already(EventOutcome),
}

/// A message to be received again, or given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessingFailure {
    /// Not JSON, or without an event id.
    #[error("the message is no pointer to an event")]
    Unreadable,
    /// The row is not there (yet).
    #[error("the event is not stored")]
    NotStored,
    /// A bug met by this record.
    #[error("deciding it panicked")]
    Panicked,
    /// The store did not answer, or kept changing.
    #[error("{0}")]
    Infrastructure(String),
    /// Little time was left.
    #[error("no time was left in this invocation")]
    OutOfTime,
}

/// One provider's worker.
#[derive(Debug)]
pub struct Worker<L, C> {
    /// Whose events.
    pub provider: ProviderId,
    /// Whether the stage takes live events.
    pub live_mode: bool,
    /// The rows.
    pub ledger: L,
    /// Time.
    pub clock: C,
}

/// An event read and ready to be decided.
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
            intent,
        })
    }

    pub(super) fn processed_disposition(&self, entity: &EntityKey) -> EventDisposition {
        EventDisposition {
            event: self.stored.id.clone(),
            released: self.waited.then(|| self.stored.clone()),
            tenant: self.tenant.clone(),
            entity: Some(entity.clone()),
            result: Ok(EventCompletion::Concluded(EventVerdict::Processed)),
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

/// What a round found out about an event.
pub(super) struct EventDisposition {
    pub(super) event: EventId,
    /// Its row, where no message of this batch brought it.
    pub(super) released: Option<EventRecord>,
    pub(super) tenant: Option<TenantId>,
    pub(super) entity: Option<EntityKey>,
    pub(super) result: Result<EventCompletion, ProcessingFailure>,
}

impl EventDisposition {
    pub(super) fn new(event: &EventId, result: Result<EventCompletion, ProcessingFailure>) -> Self {
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

/// What a round found out so far. It outlives the round: a call that hangs takes back nothing that was committed.
#[derive(Default)]
pub(super) struct RoundOutcome(Mutex<Vec<EventDisposition>>);

impl RoundOutcome {
    pub(super) fn add(&self, findings: impl IntoIterator<Item = EventDisposition>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(findings);
    }

    /// Of futures, some under way at once, each as it ends.
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
