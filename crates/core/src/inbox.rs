//! The inbox: how an event is taken in, whoever brings it, and what became of it. `adapters::dynamodb` keeps the rows.

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use crate::event::{EventEnvelope, EventType};
use crate::ids::{AccountId, CorrelationId, EventId};
use crate::pointer::{EventPointer, EventSource};
use crate::ports::{Clock, DependencyError, RecordEvent, SendMessage};
use crate::time::Timestamp;

/// How long an event is kept: longer than any redelivery (Stripe's resend by hand ends after 30 days) and than a
/// year's books. 400 days.
pub const EVENT_RETENTION: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventOutcome {
    /// Taken in, not yet decided.
    Pending,
    /// Its facts are in the entity.
    Processed,
    /// It means nothing to us.
    Ignored,
    /// It will not succeed by itself: a person looks.
    Parked,
    /// Three tries were used up for want of infrastructure.
    Failed,
}

impl EventOutcome {
    /// The word in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processed => "processed",
            Self::Ignored => "ignored",
            Self::Parked => "parked",
            Self::Failed => "failed",
        }
    }

    /// Reads the row's word.
    pub fn parse(word: &str) -> Option<Self> {
        [
            Self::Pending,
            Self::Processed,
            Self::Ignored,
            Self::Parked,
            Self::Failed,
        ]
        .into_iter()
        .find(|outcome| outcome.as_str() == word)
    }

    /// Whether nothing is left to do.
    pub fn is_done(self) -> bool {
        match self {
            Self::Processed | Self::Ignored => true,
            Self::Pending | Self::Parked | Self::Failed => false,
        }
    }
}

impl fmt::Display for EventOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

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

/// What a worker writes into a row: the end of an event, or the reason why it waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventVerdict {
    /// Its facts are in the entity.
    Processed,
    /// It means nothing to us.
    Ignored(IgnoreReason),
    /// A person looks, or the sweep looks again.
    Parked(ParkReason),
    /// Gave up on infrastructure: the failure's text.
    Failed(String),
}

impl EventVerdict {
    /// The row's outcome.
    pub fn outcome(&self) -> EventOutcome {
        match self {
            Self::Processed => EventOutcome::Processed,
            Self::Ignored(_) => EventOutcome::Ignored,
            Self::Parked(_) => EventOutcome::Parked,
            Self::Failed(_) => EventOutcome::Failed,
        }
    }

    /// The row's `processing_error`: why, for everything but success.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Processed => None,
            Self::Ignored(reason) => Some(reason.as_str()),
            Self::Parked(reason) => Some(reason.as_str()),
            Self::Failed(text) => Some(text),
        }
    }
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Each of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in row, log and metric.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

reasons! {
    /// Why an event means nothing to us.
    IgnoreReason {
        /// A type without a meaning here.
        UnhandledType = "unhandled_type",
        /// A thin (v2) notification: it holds no object.
        ThinEvent = "thin_event",
        /// A test event at a live stage: Stripe sends them to live Connect endpoints.
        TestEventOnLiveStage = "test_event_on_live_stage",
        /// It names neither an entity nor a payment.
        NothingNamed = "nothing_named",
        /// Nothing came to bear its PaymentIntent in 4 days.
        NeverLinked = "never_linked",
        /// What it names was not there in 30 days.
        NeverFound = "never_found",
    }
}

reasons! {
    /// Why an event waits.
    ParkReason {
        /// No tenant has its account.
        TenantUnknown = "tenant_unknown",
        /// Several tenants have its account.
        TenantAmbiguous = "tenant_ambiguous",
        /// It names another tenant's entity.
        CrossTenant = "cross_tenant",
        /// The order it names is not there.
        OrderUnknown = "order_unknown",
        /// The statement it names is not there.
        StatementUnknown = "statement_unknown",
        /// No statement bears its letter.
        LetterUnknown = "letter_unknown",
        /// Several statements bear its letter, or several entities its payment.
        EntityAmbiguous = "entity_ambiguous",
        /// Nothing bears its PaymentIntent yet.
        Unlinked = "unlinked",
        /// Its PaymentIntent belongs to another entity than it names.
        LinkConflict = "link_conflict",
        /// A live event at a test stage.
        LiveEventOnTestStage = "live_event_on_test_stage",
        /// The stored payload is not the one that was verified.
        Tampered = "tampered",
        /// The stored payload cannot be read.
        PayloadUnreadable = "payload_unreadable",
        /// A field that the meaning needs is missing or of another kind.
        FieldMalformed = "field_malformed",
        /// An amount is negative, a fraction or beyond 2^53, or the currency is none.
        AmountMalformed = "amount_malformed",
        /// A person set it aside.
        ByHand = "by_hand",
        /// The row would pass what is kept of it.
        EntityTooLarge = "entity_too_large",
        /// The row holds facts or a timeline that are not ours.
        EntityUnreadable = "entity_unreadable",
    }
}

/// What would take away the reason to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockedOn {
    /// A tenant with the account.
    Tenant,
    /// The row that the event is about.
    Row,
    /// Whatever comes to bear the payment.
    Link,
    /// The release by the person who set it aside.
    Release,
    /// A person: nothing else removes it.
    Person,
}

impl ParkReason {
    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == word)
    }

    /// What would take it away.
    pub fn blocked_on(self) -> BlockedOn {
        match self {
            Self::TenantUnknown => BlockedOn::Tenant,
            Self::OrderUnknown | Self::StatementUnknown | Self::LetterUnknown => BlockedOn::Row,
            Self::Unlinked => BlockedOn::Link,
            Self::ByHand => BlockedOn::Release,
            Self::TenantAmbiguous
            | Self::CrossTenant
            | Self::EntityAmbiguous
            | Self::LinkConflict
            | Self::LiveEventOnTestStage
            | Self::Tampered
            | Self::PayloadUnreadable
            | Self::FieldMalformed
            | Self::AmountMalformed
            | Self::EntityTooLarge
            | Self::EntityUnreadable => BlockedOn::Person,
        }
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
