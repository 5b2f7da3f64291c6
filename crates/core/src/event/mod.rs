//! A provider's event: a strict envelope that is checked once, and a lenient object of which few fields are read.
//!
//! `stripe` and `lob` describe the two shapes. What ingress needs of either is the [`Envelope`]; what an event means
//! is decided in `payment` and `mail`.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{AccountId, EventId, Provider};
use crate::json::NotJson;

pub mod lob;
pub mod stripe;
pub mod stripe_types;

/// The provider's name of what happened: 1 to 128 printable ASCII characters. Unknown ones are legal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventType(String);

impl EventType {
    /// The type as the provider writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is no event type.
#[derive(Debug, thiserror::Error)]
#[error("an event type has 1 to 128 printable ASCII characters")]
pub struct NotAnEventType;

impl TryFrom<String> for EventType {
    type Error = NotAnEventType;
    fn try_from(text: String) -> Result<Self, NotAnEventType> {
        let fits = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then_some(Self(text)).ok_or(NotAnEventType)
    }
}

impl From<EventType> for String {
    fn from(event_type: EventType) -> Self {
        event_type.0
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is stored beside an event's payload, of either provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Whose event it is.
    pub provider: Provider,
    /// The same on every delivery and for every endpoint.
    pub id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// The connected account; none for the platform's own events, and for Lob.
    pub account: Option<AccountId>,
    /// Stripe's mode, where the body says it.
    pub livemode: Option<bool>,
    /// The version the payload was rendered with.
    pub api_version: Option<String>,
    /// The object the event is about.
    pub object_id: Option<String>,
    /// The template that a piece was printed from, where Lob tells it.
    pub template_version: Option<String>,
    /// A tenant that the object's metadata names. A hint for people and logs, never proof.
    pub tenant_hint: Option<String>,
    /// Hex SHA-256 of `provider|account|object`: messages of one group are handed out one at a time.
    pub group: String,
}

/// Reads the envelope of a genuine body.
pub fn envelope(provider: Provider, raw_body: &[u8]) -> Result<Envelope, NotJson> {
    match provider {
        Provider::Stripe => stripe::Event::parse(raw_body).map(|event| event.envelope()),
        Provider::Lob => lob::Event::parse(raw_body).map(|event| event.envelope()),
    }
}

/// The fields we read and nothing else: what is kept of a body that is too large to keep whole.
pub fn projection(provider: Provider, raw_body: &[u8]) -> Result<Vec<u8>, NotJson> {
    let projected = match provider {
        Provider::Stripe => serde_json::to_vec(&stripe::Event::parse(raw_body)?),
        Provider::Lob => serde_json::to_vec(&lob::Event::parse(raw_body)?),
    };
    projected.map_err(|_| NotJson::Unreadable { line: 0, column: 0 })
}

fn group(provider: Provider, account: Option<&AccountId>, object: &str) -> String {
    let account = account.map_or("", AccountId::as_str);
    let digest = Sha256::digest(format!("{provider}|{account}|{object}"));
    data_encoding::HEXLOWER.encode(&digest)
}
