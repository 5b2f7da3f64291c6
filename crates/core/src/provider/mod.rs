//! The webhook providers: signature formats, event formats, catalogues of event types, and the facts that events state.
//!
//! `stripe` and `lob` know one provider's formats each, as implementations of `interpret::WebhookProvider`; the
//! functions here call the one that a [`ProviderId`] names. `signature` verifies a delivery, `envelope` is what the
//! events table has beside the payload. Ingress calls [`parse_signature`] and [`read_envelope`], in this order; the
//! worker calls [`interpret()`].

pub mod envelope;
pub mod interpret;
pub mod lob;
pub mod order_ids;
#[cfg(feature = "third-provider")]
pub mod parcel;
pub mod signature;
pub mod stripe;

use secrecy::SecretString;

use crate::ids::{AccountId, ProviderId};
use crate::json::JsonError;
use crate::outcome::EventVerdict;
use crate::provider::envelope::{EnvelopeError, EventEnvelope};
use crate::provider::interpret::{
    CatalogueEntry, EventFacts, EventFields, EventScope, InterpretRules, SignedHeaders,
    WebhookProvider,
};
use crate::provider::signature::{
    SignatureFailure, SignatureHeaders, UnverifiedSignature, Verified,
};
use crate::time::Timestamp;

/// Calls the implementation of a provider. A macro and not a `dyn WebhookProvider`, so that a function contains only
/// what it calls: ingress is started without the interpretation of events.
macro_rules! call_provider {
    ($provider:expr, $name:ident => $call:expr) => {
        match $provider {
            ProviderId::Stripe => {
                type $name = stripe::StripeWebhooks;
                $call
            }
            ProviderId::Lob => {
                type $name = lob::LobWebhooks;
                $call
            }
            #[cfg(feature = "third-provider")]
            ProviderId::Parcel => {
                type $name = parcel::ParcelWebhooks;
                $call
            }
        }
    };
}

/// The headers that the signature of any provider needs, in lower case.
pub fn signature_headers() -> impl Iterator<Item = &'static str> {
    let headers = |provider: &ProviderId| call_provider!(*provider, P => P::SIGNATURE_HEADERS);
    ProviderId::ALL.iter().flat_map(headers).copied()
}

/// Parses the signature of a delivery, without verifying it.
pub fn parse_signature(
    provider: ProviderId,
    headers: &impl SignatureHeaders,
) -> Result<UnverifiedSignature, SignatureFailure> {
    call_provider!(provider, P => P::parse_signature(headers))
}

/// Reads the envelope of a proven body. Unverified bytes never reach a parser.
pub fn read_envelope(body: &Verified<'_>) -> Result<EventEnvelope, EnvelopeError> {
    call_provider!(body.provider(), P => P::read_envelope(body))
}

/// Interprets a stored payload; see [`WebhookProvider::interpret`].
pub fn interpret(
    provider: ProviderId,
    rules: &InterpretRules,
    account: Option<&AccountId>,
    payload: &[u8],
) -> Result<EventFacts, EventVerdict> {
    call_provider!(provider, P => P::interpret(rules, account, payload))
}

/// Keeps the fields that we read; see [`WebhookProvider::trim_payload`].
pub fn trim_payload(provider: ProviderId, raw_body: &[u8]) -> Result<Vec<u8>, JsonError> {
    call_provider!(provider, P => P::trim_payload(raw_body))
}

/// Keeps the fields that we read in this environment; see [`WebhookProvider::redact_payload`].
pub fn redact_payload(
    provider: ProviderId,
    rules: &InterpretRules,
    raw_body: &[u8],
) -> Result<Vec<u8>, JsonError> {
    call_provider!(provider, P => P::redact_payload(rules, raw_body))
}

/// What a provider's events are about.
pub fn event_scope(provider: ProviderId) -> EventScope {
    call_provider!(provider, P => P::EVENT_SCOPE)
}

/// Signs a test delivery; see [`WebhookProvider::sign`].
pub fn sign_test_delivery(
    provider: ProviderId,
    secret: &SecretString,
    body: &[u8],
    now: Timestamp,
) -> Option<SignedHeaders> {
    call_provider!(provider, P => P::sign(secret, body, now))
}

/// What to change in a sample for a test delivery.
pub fn event_fields(provider: ProviderId) -> EventFields {
    call_provider!(provider, P => P::EVENT_FIELDS)
}

/// The event types of a provider that change an entity.
pub fn catalogue(provider: ProviderId) -> Vec<CatalogueEntry> {
    call_provider!(provider, P => P::catalogue().collect())
}
