//! The outcomes of an event (`processed`, `ignored`, `parked`, `failed`) and the reasons for `ignored` and `parked`.
//! Each reason says what the event is blocked on, which decides whether the sweep retries it or it needs manual action.
//!
//! The words are in rows, log lines and metrics, and never change. docs/SEMANTICS.md lists each with what to do; the
//! test `crates/core/tests/docs.rs` compares that list with this one.

use std::fmt;

/// `processing_outcome` of an event's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventOutcome {
    /// Stored, not processed yet.
    Pending,
    /// Its facts are in the entity.
    Processed,
    /// It has no meaning here.
    Ignored,
    /// It cannot be processed now: the sweep retries it, or it needs manual action.
    Parked,
    /// Three receives were used up, because of infrastructure or a bug; the message is in the dead-letter queue.
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

/// The outcome that a worker or the sweep writes into a row, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventVerdict {
    Processed,
    Ignored(IgnoreReason),
    Parked(ParkReason),
    /// With the text of the last failure.
    Failed(String),
}

impl EventVerdict {
    pub fn outcome(&self) -> EventOutcome {
        match self {
            Self::Processed => EventOutcome::Processed,
            Self::Ignored(_) => EventOutcome::Ignored,
            Self::Parked(_) => EventOutcome::Parked,
            Self::Failed(_) => EventOutcome::Failed,
        }
    }

    /// The row's `processing_error`; none for `processed`.
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
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in the row, the log and the metric.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

reasons! {
    /// Why an event is ignored.
    IgnoreReason {
        UnhandledType = "unhandled_type",
        /// A thin (v2) notification, which contains no object.
        ThinEvent = "thin_event",
        /// A test event in a live environment: Stripe sends test events of connected accounts to live endpoints too.
        TestEventOnLiveStage = "test_event_on_live_stage",
        /// It names no payment, or it is about the platform's own account.
        NothingNamed = "nothing_named",
        /// How the money of a platform's payment arrives on a connected account: the payment itself states it.
        Transfer = "transfer",
        /// The row that it names did not exist for 30 days.
        NeverFound = "never_found",
        /// Its tenant is muted: `billhook tenants mute`.
        Muted = "muted",
        /// A person gave it up: `billhook events close`.
        Closed = "closed",
    }
}

impl IgnoreReason {
    /// Whether a row's `processing_error` says that a person had the event ignored: by a mute, or by closing it. Its payment
    /// may have taken its facts while it was parked.
    pub fn is_by_person(word: &str) -> bool {
        [Self::Muted, Self::Closed]
            .iter()
            .any(|reason| reason.as_str() == word)
    }
}

reasons! {
    /// Why an event is parked.
    ParkReason {
        /// No tenant has its account.
        TenantUnknown = "tenant_unknown",
        /// Several tenants have its account.
        TenantAmbiguous = "tenant_ambiguous",
        /// It names an entity of another tenant, or of none.
        CrossTenant = "cross_tenant",
        /// The order that it names does not exist (yet).
        OrderUnknown = "order_unknown",
        /// The statement that it names does not exist (yet).
        StatementUnknown = "statement_unknown",
        /// No statement has its piece in `lob_letter_id`, or the statement that its metadata names does not exist.
        LetterUnknown = "letter_unknown",
        /// Several statements have its piece.
        EntityAmbiguous = "entity_ambiguous",
        /// A live event reached a test environment.
        LiveEventOnTestStage = "live_event_on_test_stage",
        /// The stored payload is not the one that was verified.
        Tampered = "tampered",
        /// The stored payload is missing or is not an event.
        PayloadUnreadable = "payload_unreadable",
        /// A required field is missing or has the wrong type.
        FieldMalformed = "field_malformed",
        /// An amount is missing, negative, a fraction or greater than 2^53, or the currency is not valid.
        AmountMalformed = "amount_malformed",
        /// A person parked it with `billhook events park`.
        ByHand = "by_hand",
        /// The row would be larger than 300 KiB, or DynamoDB rejects it.
        EntityTooLarge = "entity_too_large",
        /// The entity's state cannot be read.
        EntityUnreadable = "entity_unreadable",
        /// The row bears a version that its state has never had: the table of the states was restored from a backup.
        StateBehind = "state_behind",
        /// A newer release wrote the entity's state, for example before a rollback.
        NewerSchema = "newer_schema",
    }
}

/// What a parked event waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockedOn {
    /// A tenant with the event's account; the sweep retries.
    Tenant,
    /// The order, statement or letter that the event names; the sweep retries.
    Row,
    /// A deployment of the release that wrote the entity; the sweep retries.
    NewerDeployment,
    /// The person who parked it.
    Person,
    /// Manual action: no retry can succeed before that.
    ManualAction,
}

impl ParkReason {
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == word)
    }

    pub fn blocked_on(self) -> BlockedOn {
        match self {
            Self::TenantUnknown => BlockedOn::Tenant,
            Self::OrderUnknown | Self::StatementUnknown | Self::LetterUnknown => BlockedOn::Row,
            Self::NewerSchema => BlockedOn::NewerDeployment,
            Self::ByHand => BlockedOn::Person,
            Self::TenantAmbiguous
            | Self::CrossTenant
            | Self::EntityAmbiguous
            | Self::LiveEventOnTestStage
            | Self::Tampered
            | Self::PayloadUnreadable
            | Self::FieldMalformed
            | Self::AmountMalformed
            | Self::EntityTooLarge
            | Self::StateBehind
            | Self::EntityUnreadable => BlockedOn::ManualAction,
        }
    }
}
