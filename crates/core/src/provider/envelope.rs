//! The envelope of an event, the same for every provider: the columns that ingress stores beside the payload.
//!
//! It is all that ingress knows of an event; what the event means is for the worker (`interpret`). The id is the key
//! for deduplication, the group is the message group of the FIFO queue: events of one PaymentIntent share a group, else
//! those of one subscription, customer or object, so that they are processed one batch at a time.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{AccountId, EventId, ProviderId};
use crate::json::JsonError;
use crate::time::Timestamp;

/// 1 to 128 printable ASCII characters. Types that we do not know are valid: the worker ignores them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventType(String);

impl EventType {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The type of the test events that `billhook doctor` delivers. No worker handles it: they end as `ignored` and touch no
/// order.
pub const DOCTOR_EVENT_TYPE: &str = "billhook.doctor";

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

/// Why a verified body has no envelope.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The secret that signed it proves no event of this kind.
    #[error("the event is signed with the secret of the other endpoint")]
    WrongScope,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventEnvelope {
    pub provider: ProviderId,
    /// The same on every redelivery and at every endpoint, so it serves for deduplication.
    pub id: EventId,
    pub event_type: EventType,
    /// The connected account; `None` for the platform's own events and for Lob.
    pub account: Option<AccountId>,
    /// When the provider created the event, by its own clock; `None` if the body does not say.
    pub created_at: Option<Timestamp>,
    /// Stripe only: true for real money; `None` if the body does not say.
    pub livemode: Option<bool>,
    /// Stripe only: the API version that shaped the payload.
    pub api_version: Option<String>,
    /// The id of the object that the event is about; a string, because ids of objects that we do not handle count too.
    pub object_id: Option<String>,
    /// Lob only: the template of the piece, unless Lob redacted it.
    pub template_version: Option<String>,
    /// The tenant that the metadata names. A hint for people and logs, never proof (tenant isolation).
    pub tenant_hint: Option<String>,
    /// The message group: hex SHA-256 of `provider|account|object`. SQS delivers one batch of a group at a time, which
    /// spares the worker lost races between events of one object; correctness does not depend on it. It is a hash,
    /// because a message group id has at most 128 characters and an object's id may be longer.
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
