//! The format of Lob's events.
//!
//! Quirk: `body` is the whole piece, but Lob redacts it: an object may be the string `REDACTED`, and so may a metadata
//! value. All fields of the piece are therefore lenient (`json::LenientField`), and metadata is only a hint. We read
//! no mode and no account from Lob's events. `mail` reads the facts.
//! Source: `lob-openapi` `resources/events`, `Using webhooks`, read 2026-11.

use std::borrow::Cow;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::ids::{EventId, PieceId, ProviderId};
use crate::json::{BoundedList, JsonError, LenientField, NestedObject, lenient_struct, parse_body};
use crate::provider::envelope::{EventEnvelope, EventType, message_group};
use crate::time::Timestamp;

/// Lob's placeholder. As a value it would be dangerous: every redacted event would name the statement `REDACTED`.
const REDACTED: &str = "REDACTED";

/// The envelope is strict in `id` and `event_type`: without them the whole body is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LobEvent {
    /// `evt_…`, the same prefix as Stripe's: an id alone does not tell the provider.
    #[serde(deserialize_with = "parse_own_event_id")]
    pub id: EventId,
    pub event_type: LobEventType,
    /// The id of the piece.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub reference_id: LenientField<PieceId>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub date_created: LenientField<String>,
    /// The piece as it was when Lob created the event.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub body: LenientField<NestedObject<LobPiece>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LobEventType {
    /// Such as `letter.in_transit`.
    pub id: EventType,
}

lenient_struct! {
    /// The fields that we read of a printed piece.
    LobPiece {
        /// The same as `reference_id`.
        id: PieceId,
        /// A date, `2026-06-17`.
        expected_delivery_date: String,
        tracking_number: String,
        /// All scans so far, in every event.
        tracking_events: BoundedList<NestedObject<LobScan>>,
        /// Often redacted.
        metadata: NestedObject<LobMetadata>,
    }
}

lenient_struct! {
    /// A scan by the carrier.
    LobScan {
        /// `evnt_…`
        id: String,
        /// Such as `In Transit`.
        name: String,
        /// RFC 3339.
        time: String,
        /// A ZIP code.
        location: String,
    }
}

lenient_struct! {
    /// The metadata keys that we know.
    LobMetadata {
        statement_id: String,
        /// A hint for people and logs.
        tenant_id: String,
        template_version: String,
    }
}

impl LobMetadata {
    /// The value, unless Lob redacted it.
    pub fn unredacted(field: &LenientField<String>) -> Option<&String> {
        field.value().filter(|text| *text != REDACTED)
    }
}

fn parse_own_event_id<'de, D: Deserializer<'de>>(from: D) -> Result<EventId, D::Error> {
    let text = Cow::<str>::deserialize(from)?;
    ProviderId::Lob
        .parse_event_id(&text)
        .map_err(D::Error::custom)
}

impl LobEvent {
    pub fn parse(raw_body: &[u8]) -> Result<Self, JsonError> {
        parse_body(raw_body)
    }

    /// `None` if Lob redacted the whole `body`.
    pub fn piece(&self) -> Option<&LobPiece> {
        self.body.value().map(|NestedObject(piece)| piece)
    }

    pub fn piece_id(&self) -> Option<&PieceId> {
        self.reference_id
            .value()
            .or_else(|| self.piece()?.id.value())
    }

    /// When Lob created the event; `None` if the field is not RFC 3339.
    pub fn created(&self) -> Option<Timestamp> {
        Timestamp::parse(self.date_created.value()?).ok()
    }

    pub fn metadata(&self) -> Option<&LobMetadata> {
        self.piece()?
            .metadata
            .value()
            .map(|NestedObject(metadata)| metadata)
    }

    /// The columns that ingress stores beside the payload. The message group is the piece's, else the event's own.
    pub(super) fn envelope(&self) -> EventEnvelope {
        let object_id = self.piece_id().map(PieceId::to_string);
        let grouped_by = object_id.clone().unwrap_or_else(|| self.id.to_string());
        EventEnvelope {
            provider: ProviderId::Lob,
            id: self.id.clone(),
            event_type: self.event_type.id.clone(),
            account: None,
            created_at: self.created(),
            livemode: None,
            api_version: None,
            object_id,
            template_version: self
                .metadata()
                .and_then(|metadata| LobMetadata::unredacted(&metadata.template_version).cloned()),
            tenant_hint: self
                .metadata()
                .and_then(|metadata| LobMetadata::unredacted(&metadata.tenant_id).cloned()),
            group: message_group(ProviderId::Lob, None, &grouped_by),
        }
    }
}
