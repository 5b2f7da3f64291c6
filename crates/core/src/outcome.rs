//! What processing an event can end with: its outcome, and the reason where it was ignored or parked.

use std::fmt;

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
