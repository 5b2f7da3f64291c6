//! What a provider's module must know of its webhooks ([`WebhookProvider`]), and what a stored event says
//! ([`EventFacts`]).
//!
//! An event that ends at its interpretation gets a verdict: ignored (it means nothing to us, safe to forget) or parked
//! (it may mean something, and needs manual action). In doubt about money we park. `worker::resolve` then finds the
//! entity and checks the tenant.

use std::collections::BTreeSet;

use secrecy::SecretString;

use crate::entity::EntityKey;
use crate::entity::account::AccountFacts;
use crate::entity::columns::EntitySchema;
use crate::entity::mail::facts::MailFacts;
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::payment::state::LinkSource;
use crate::ids::{AccountId, InvoiceId, PaymentRef, PieceId};
use crate::json::JsonError;
use crate::outcome::EventVerdict;
use crate::provider::envelope::{EnvelopeError, EventEnvelope};
use crate::provider::order_ids::OrderIdRules;
use crate::provider::signature::{
    SignatureFailure, SignatureHeaders, UnverifiedSignature, Verified,
};
use crate::time::Timestamp;

/// What an environment says about the events that it takes.
#[derive(Clone, Debug, Default)]
pub struct InterpretRules {
    /// Whether the environment processes live events; it ignores or parks those of the other mode.
    pub live_mode: bool,
    pub order_ids: OrderIdRules,
}

/// The facts of an event, and everything in it by which its entity may be found.
#[derive(Clone, Debug, PartialEq)]
pub struct EventFacts {
    /// The entity that the metadata names. The tenant writes metadata, so this never proves anything (tenant
    /// isolation).
    pub named_entity: Option<EntityKey>,
    /// When the provider created the event.
    pub created_at: Option<Timestamp>,
    pub subject: EventSubject,
}

/// What an event is about, and what it states of it.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "few exist at a time, and they are merged at once"
)]
pub enum EventSubject {
    Payment(PaymentEventFacts),
    /// A printed piece; `None` if the event does not say which.
    Piece(Option<PieceId>, MailFacts),
    /// The connected account itself, so the entity is the account's tenant.
    Account(AccountFacts),
}

/// The facts of one event about a payment, and its names.
#[derive(Clone, Debug, PartialEq)]
pub struct PaymentEventFacts {
    /// The best name first: PaymentIntent, session, charge.
    pub names: Vec<PaymentRef>,
    pub invoice: Option<InvoiceId>,
    /// The connected accounts that get the money, or for which it is charged.
    pub recipients: BTreeSet<AccountId>,
    /// What kind of link it is if the metadata names an order or statement.
    pub link_source: LinkSource,
    pub money: MoneyFacts,
}

impl PaymentEventFacts {
    /// Whether it is of a Checkout Session, which made its invoice.
    pub fn is_of_session(&self) -> bool {
        !self.money.sessions.is_empty()
    }
}

/// A row of a provider's catalogue: an event type that changes an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogueEntry {
    pub event_type: &'static str,
    /// What an event of this type states; docs/SEMANTICS.md has the same text.
    pub meaning: &'static str,
    /// A file in `events/payloads/<provider>`, without its ending: an event of this type.
    pub sample: &'static str,
}

/// What a provider's events are about, and so which tables its worker needs.
#[derive(Clone, Copy, Debug)]
pub struct EventScope {
    /// The kinds that its events change.
    pub kinds: &'static [EntitySchema],
}

/// Names and values of headers.
pub type SignedHeaders = Vec<(&'static str, String)>;

/// Where an event of a provider has the members that every event has; paths with dots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventFields {
    pub id: &'static str,
    pub event_type: &'static str,
    pub created_at: &'static str,
    pub time_form: TimeForm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeForm {
    UnixSeconds,
    Rfc3339,
}

/// A provider of webhooks: how it signs, what its events look like, and what they mean. Each has a module beside this
/// one with one implementation; `provider` calls the one that a `ProviderId` names.
pub trait WebhookProvider {
    /// The headers that its signature needs, in lower case.
    const SIGNATURE_HEADERS: &'static [&'static str];

    const EVENT_SCOPE: EventScope;

    /// The event types that change an entity, or one for each of several that mean the same: Lob's other pieces have the
    /// stages of a letter. An event of any other type is ignored as `unhandled_type`.
    fn catalogue() -> impl Iterator<Item = CatalogueEntry>;

    /// For test deliveries: what to change in a sample.
    const EVENT_FIELDS: EventFields;

    /// For test deliveries: signs as the provider does. `None` if only the provider can, with its private key.
    fn sign(secret: &SecretString, body: &[u8], now: Timestamp) -> Option<SignedHeaders>;

    /// Parses the signature of a delivery, without verifying it.
    fn parse_signature(
        headers: &impl SignatureHeaders,
    ) -> Result<UnverifiedSignature, SignatureFailure>;

    fn read_envelope(body: &Verified<'_>) -> Result<EventEnvelope, EnvelopeError>;

    /// Interprets a stored payload. `Err` is the verdict of an event that ends here.
    ///
    /// `account` comes from the event's row and not from the payload: for an event that reconciliation found, it is the
    /// account that billhook asked about.
    fn interpret(
        rules: &InterpretRules,
        account: Option<&AccountId>,
        payload: &[u8],
    ) -> Result<EventFacts, EventVerdict>;

    /// The fields that we read, and nothing else: stored instead of a body that is too large for a row. Reading it
    /// gives the same facts as reading the whole body; malformed fields stay malformed.
    fn trim_payload(raw_body: &[u8]) -> Result<Vec<u8>, JsonError>;

    /// The fields that we read in this environment, for people: what is stored may have more.
    fn redact_payload(_: &InterpretRules, raw_body: &[u8]) -> Result<Vec<u8>, JsonError> {
        Self::trim_payload(raw_body)
    }
}
