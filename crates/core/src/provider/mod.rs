//! The webhook providers, Stripe and Lob: signature formats, event formats, and the facts that events state.
//!
//! `stripe` and `lob` know one provider's formats each; `signature` verifies a delivery, `envelope` is what the events
//! table has beside the payload, and `interpret` turns a stored event into facts. Ingress calls `signature` and
//! `read_envelope`, in this order; the worker calls `interpret`.

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

/// Reads the envelope. For a delivery, verify the signature first: unverified bytes must not reach the parser.
pub fn read_envelope(provider: ProviderId, raw_body: &[u8]) -> Result<EventEnvelope, JsonError> {
    match provider {
        ProviderId::Stripe => StripeEvent::parse(raw_body).map(|event| event.envelope()),
        ProviderId::Lob => LobEvent::parse(raw_body).map(|event| event.envelope()),
    }
}

/// The fields that we read, and nothing else: stored instead of a body that is too large for a row. Reading it gives
/// the same facts as reading the whole body; malformed fields stay malformed.
pub fn trim_payload(provider: ProviderId, raw_body: &[u8]) -> Result<Vec<u8>, JsonError> {
    let projected = match provider {
        ProviderId::Stripe => serde_json::to_vec(&StripeEvent::parse(raw_body)?),
        ProviderId::Lob => serde_json::to_vec(&LobEvent::parse(raw_body)?),
    };
    projected.map_err(|_| JsonError::Unreadable { line: 0, column: 0 })
}
