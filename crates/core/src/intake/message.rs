//! The queue's message: names a stored event and carries nothing that could forge one.

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, CorrelationId, EventId};
use crate::intake::inbox::{EventRecord, EventSource};
use crate::provider::envelope::EventType;

/// The message as written. All of it is ASCII, but for what a person wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventPointer<'a> {
    source: EventSource,
    event_id: &'a EventId,
    event_type: &'a EventType,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_account_id: Option<&'a AccountId>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    by: Option<ReplayedBy<'a>>,
}

/// Who had an event decided again, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReplayedBy<'a> {
    /// As AWS knows them.
    pub actor: &'a str,
    /// In their words.
    pub reason: &'a str,
}

/// The message as read. Unknown members are ignored and only the event's id is needed, so that one written by hand
/// works.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ReceivedPointer {
    /// The event to look at.
    pub event_id: EventId,
    /// The delivery's, if the message says it.
    #[serde(default)]
    pub correlation_id: Option<String>,
}

impl EventPointer<'_> {
    /// The message for a stored event.
    pub fn message_for(stored: &EventRecord, source: EventSource) -> String {
        Self::encode(stored, source, stored.correlation_id, None)
    }

    /// The message by which a person has a stored event decided again: a story of its own.
    pub fn replay_message(
        stored: &EventRecord,
        correlation_id: CorrelationId,
        by: ReplayedBy<'_>,
    ) -> String {
        Self::encode(
            stored,
            EventSource::ManualReplay,
            Some(correlation_id),
            Some(by),
        )
    }

    fn encode(
        stored: &EventRecord,
        source: EventSource,
        correlation_id: Option<CorrelationId>,
        by: Option<ReplayedBy<'_>>,
    ) -> String {
        let pointer = EventPointer {
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

impl ReceivedPointer {
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
        assert_eq!(
            ReceivedPointer::parse(by_hand).unwrap().event_id.as_str(),
            "evt_1"
        );
        for unreadable in [
            "",
            "evt_1",
            "{}",
            r#"{"event_id":"pi_1"}"#,
            r#"{"event_id":null}"#,
        ] {
            assert!(ReceivedPointer::parse(unreadable).is_err(), "{unreadable}");
        }
    }
}
