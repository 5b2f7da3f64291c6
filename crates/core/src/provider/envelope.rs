//! What is stored beside an event's payload, of either provider: a strict envelope that is checked once.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{AccountId, EventId, ProviderId};

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
pub struct InvalidEventType;

impl TryFrom<String> for EventType {
    type Error = InvalidEventType;
    fn try_from(text: String) -> Result<Self, InvalidEventType> {
        let fits = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then_some(Self(text)).ok_or(InvalidEventType)
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
pub struct EventEnvelope {
    /// Whose event it is.
    pub provider: ProviderId,
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

pub(crate) fn message_group(
    provider: ProviderId,
    account: Option<&AccountId>,
    object: &str,
) -> String {
    let account = account.map_or("", AccountId::as_str);
    let digest = Sha256::digest(format!("{provider}|{account}|{object}"));
    data_encoding::HEXLOWER.encode(&digest)
}
