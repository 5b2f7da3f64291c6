//! The providers that send webhooks: how each signs, what its events look like, and which facts they state.
//!
//! `stripe` and `lob` hold one provider each; `signature` verifies, `envelope` is what is stored beside a payload, and
//! `interpret` turns a stored event into facts.

pub mod envelope;
pub mod interpret;
pub mod lob;
pub mod signature;
pub mod stripe;

use crate::ids::ProviderId;
use crate::json::JsonError;
use crate::provider::envelope::EventEnvelope;
use crate::provider::lob::event::LobEvent;
use crate::provider::stripe::event::StripeEvent;

/// Reads the envelope of a genuine body.
pub fn read_envelope(provider: ProviderId, raw_body: &[u8]) -> Result<EventEnvelope, JsonError> {
    match provider {
        ProviderId::Stripe => StripeEvent::parse(raw_body).map(|event| event.envelope()),
        ProviderId::Lob => LobEvent::parse(raw_body).map(|event| event.envelope()),
    }
}

/// The fields we read and nothing else: what is kept of a body that is too large to keep whole.
pub fn trim_payload(provider: ProviderId, raw_body: &[u8]) -> Result<Vec<u8>, JsonError> {
    let projected = match provider {
        ProviderId::Stripe => serde_json::to_vec(&StripeEvent::parse(raw_body)?),
        ProviderId::Lob => serde_json::to_vec(&LobEvent::parse(raw_body)?),
    };
    projected.map_err(|_| JsonError::Unreadable { line: 0, column: 0 })
}
