//! The worker's types and limits: the messages of a batch, and the report for each message, which becomes the partial
//! batch response in `adapters::batch`. The number of receives before a message goes to the dead-letter queue is here
//! too. No decisions here; `worker` runs the rounds.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::entity::key::{PaymentKey, StateKey};
use crate::error::{DependencyError, error_chain};
use crate::ids::{CorrelationId, EventId, ProviderId, TenantId};
use crate::intake::inbox::EventRecord;
use crate::outcome::{EventOutcome, EventVerdict};
use crate::ports::Clock;
use crate::provider::interpret::InterpretRules;
use crate::time::Timestamp;
use crate::worker::ports::{CommitError, EntityCommit, PaymentNotice};

/// Receives after which the queue moves a message to the dead-letter queue, unless the stack says otherwise (its parameter
/// `MaxReceives`).
pub const RECEIVES_MAX: u32 = 3;

/// All rows of one transaction. DynamoDB accepts 4 MB; a row may grow by what is written. Example: of ten events of
/// 400 KB, seven (2.8 MB) fit beside a small entity, and three wait for the next round.
pub(super) const BYTES_PER_COMMIT_MAX: usize = 3_000_000;

/// DynamoDB accepts 100 rows in one transaction.
pub(super) const ROWS_PER_COMMIT_MAX: usize = 100;

/// An entity takes two rows of a transaction: its state and the application's row. Pages of a large state are not counted:
/// the limits leave no room for them, so DynamoDB may refuse the transaction, and then each unit is tried alone.
pub(super) const ROWS_PER_ENTITY: usize = 2;

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
    /// A pointer to an event or a payment (`intake::message`).
    pub body: String,
    /// Starts at 1: this receive counts.
    pub receive_count: u32,
    /// If this receive fails, the queue moves the message to the dead-letter queue.
    pub is_last_receive: bool,
}

/// The results of a batch.
#[derive(Debug)]
pub struct BatchReport {
    /// One per message.
    pub messages: Vec<MessageReport>,
    /// What the transactions of the batch changed about entities, in the order in which they were written.
    pub commits: Vec<EntityCommit>,
    /// What somebody has to hear of the payments that the batch wrote or rechecked, each once.
    pub notices: BTreeSet<PaymentNotice>,
}

/// The result for a message.
#[derive(Clone, Debug)]
pub struct MessageReport {
    /// None until the report of an event is given to its messages.
    pub message: Option<ReceivedMessage>,
    /// None if the message is about a payment, or is not a pointer.
    pub event: Option<EventId>,
    /// The payment that the message has rechecked.
    pub payment: Option<PaymentKey>,
    /// Of the delivery or replay that sent the message; else of the event's first delivery.
    pub correlation_id: Option<CorrelationId>,
    /// The event's row as last read.
    pub stored: Option<EventRecord>,
    /// The tenant of the event's account.
    pub tenant: Option<TenantId>,
    /// The entities that took the event's facts.
    pub entities: BTreeSet<StateKey>,
    pub result: Result<ProcessingSuccess, ProcessingFailure>,
}

impl MessageReport {
    pub(super) fn of_event(
        event: EventId,
        result: Result<ProcessingSuccess, ProcessingFailure>,
    ) -> Self {
        Self {
            event: Some(event),
            ..Self::of_message(None, result)
        }
    }

    pub(super) fn of_message(
        message: Option<ReceivedMessage>,
        result: Result<ProcessingSuccess, ProcessingFailure>,
    ) -> Self {
        Self {
            message,
            event: None,
            payment: None,
            correlation_id: None,
            stored: None,
            tenant: None,
            entities: BTreeSet::new(),
            result,
        }
    }
}

/// A message that needs no further receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessingSuccess {
    /// This worker wrote the verdict.
    Decided(EventVerdict),
    /// The row already said so when it was read.
    AlreadyDone(EventOutcome),
    /// A payment was rechecked, and all copies that can be written are up to date.
    Rechecked,
    /// That failed, and it is left to the sweep, which finds the payment in the index of open ones.
    LeftToSweep(String),
}

/// A message to be received again or, after its last receive, moved to the dead-letter queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessingFailure {
    /// Not JSON, or without an event id or a payment.
    #[error("the message is not a pointer to an event or a payment")]
    Unreadable,
    /// There is no readable row. Ingress stores before it sends, so the message was written manually, or the row was
    /// deleted or damaged.
    #[error("the event is not stored")]
    NotStored,
    /// A newer release wrote the entity's state: this one must not write it.
    #[error("{0}")]
    NewerSchema(String),
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

/// Why a payment was not linked to an order or statement.
#[derive(Debug, thiserror::Error)]
pub enum RelinkError {
    #[error("no event of this payment has arrived")]
    PaymentUnknown,
    #[error("this is another name of {0}: relink {0} instead")]
    Alias(PaymentKey),
    #[error("there is no such order or statement")]
    TargetUnknown,
    #[error(
        "its row was written by more than its state knows: rebuild it first (billhook rebuild)"
    )]
    StateBehind,
    #[error("it belongs to another tenant than the payment's account")]
    OtherTenant,
    #[error(transparent)]
    Failed(#[from] ProcessingFailure),
}

/// One provider's worker.
#[derive(Debug)]
pub struct Worker<L, C> {
    pub provider: ProviderId,
    pub rules: InterpretRules,
    pub ledger: L,
    pub clock: C,
}

impl From<DependencyError> for ProcessingFailure {
    fn from(error: DependencyError) -> Self {
        Self::Infrastructure(error_chain(&error))
    }
}

impl From<CommitError> for ProcessingFailure {
    fn from(error: CommitError) -> Self {
        Self::Infrastructure(error_chain(&error))
    }
}

/// Whether a round or a transaction may still be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeLeft {
    Enough,
    /// Less than [`TIME_TO_FINISH`].
    TooLittle,
}

impl<L, C: Clock> Worker<L, C> {
    pub(super) fn time_left(&self, deadline: Timestamp) -> TimeLeft {
        match self.clock.now().after(TIME_TO_FINISH) > deadline {
            true => TimeLeft::TooLittle,
            false => TimeLeft::Enough,
        }
    }
}
