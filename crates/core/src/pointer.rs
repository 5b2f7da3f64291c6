//! The queue's message: names a stored event and carries nothing that could forge one.

use serde::{Deserialize, Serialize};

use crate::event::EventType;
use crate::ids::{AccountId, CorrelationId, EventId, Provider};
use crate::inbox::Stored;

/// Who put the message on the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Ingress, for a delivery of Stripe's.
    Stripe,
    /// Ingress, for a delivery of Lob's.
    Lob,
    /// A person.
    ManualReplay,
    /// The sweep.
    Sweep,
    /// The reconciliation with Stripe.
    Reconcile,
}

impl Source {
    /// The word in row and message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Lob => "lob",
            Self::ManualReplay => "manual_replay",
            Self::Sweep => "sweep",
            Self::Reconcile => "reconcile",
        }
    }
}

impl Serialize for Source {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl From<Provider> for Source {
    fn from(provider: Provider) -> Self {
        match provider {
            Provider::Stripe => Self::Stripe,
            Provider::Lob => Self::Lob,
        }
    }
}

/// The message as written. All of it is ASCII, but for what a person wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pointer<'a> {
    source: Source,
    event_id: &'a EventId,
    event_type: &'a EventType,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_account_id: Option<&'a AccountId>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    by: Option<By<'a>>,
}

/// Who had an event decided again, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct By<'a> {
    /// As AWS knows them.
    pub actor: &'a str,
    /// In their words.
    pub reason: &'a str,
}

/// The message as read. Unknown members are ignored and only the event's id is needed, so that one written by hand
/// works.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// The event to look at.
    pub event_id: EventId,
    /// The delivery's, if the message says it.
    #[serde(default)]
    pub correlation_id: Option<String>,
}

impl Pointer<'_> {
    /// The message for a stored event.
    pub fn to(stored: &Stored, source: Source) -> String {
        Self::written(stored, source, stored.correlation_id, None)
    }

    /// The message by which a person has a stored event decided again: a story of its own.
    pub fn replay(stored: &Stored, correlation_id: CorrelationId, by: By<'_>) -> String {
        Self::written(stored, Source::ManualReplay, Some(correlation_id), Some(by))
    }

    fn written(
        stored: &Stored,
        source: Source,
        correlation_id: Option<CorrelationId>,
        by: Option<By<'_>>,
    ) -> String {
        let pointer = Pointer {
            source,
            event_id: &stored.id,
            event_type: &stored.event_type,
            correlation_id: correlation_id.as_ref().map(CorrelationId::to_string),
            connected_account_id: stored.account.as_ref(),
            by,
        };
        // Strings and enums only: there is nothing in it that could fail to be written.
        serde_json::to_string(&pointer).unwrap_or_default()
    }
}

impl Message {
    /// Reads a message's body.
    pub fn parse(body: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_written_by_hand_is_enough() {
        let by_hand = r#"{"source":"manual_replay","event_id":"evt_1","reason":"asked by support","event_type":7}"#;
        assert_eq!(Message::parse(by_hand).unwrap().event_id.as_str(), "evt_1");
        for unreadable in [
            "",
            "evt_1",
            "{}",
            r#"{"event_id":"pi_1"}"#,
            r#"{"event_id":null}"#,
        ] {
            assert!(Message::parse(unreadable).is_err(), "{unreadable}");
        }
    }
}
