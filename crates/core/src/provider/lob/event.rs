//! Lob's event. `body` is the whole resource, with strings in place of objects where Lob redacted them.
//!
//! Source: `lob-openapi` `resources/events`, `Using webhooks`, read 2026-11.

use serde::{Deserialize, Serialize};

use crate::ids::{EventId, PieceId, ProviderId};
use crate::json::{BoundedList, JsonError, LenientField, NestedObject, lenient_struct, parse_body};
use crate::provider::envelope::{EventEnvelope, EventType, message_group};
use crate::time::Timestamp;

/// What Lob puts in place of metadata values it keeps to itself.
const REDACTED: &str = "REDACTED";

/// The strict envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LobEvent {
    /// `evt_…`, the same prefix as Stripe's.
    pub id: EventId,
    /// Holds the type's name.
    pub event_type: LobEventType,
    /// The piece it is about.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub reference_id: LenientField<PieceId>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub date_created: LenientField<String>,
    /// The piece as it was when the event was made.
    #[serde(default, skip_serializing_if = "LenientField::is_absent")]
    pub body: LenientField<NestedObject<LobPiece>>,
}

/// `event_type` of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LobEventType {
    /// Such as `letter.in_transit`.
    pub id: EventType,
}

lenient_struct! {
    /// The fields we read of a printed piece.
    LobPiece {
        /// The piece's id, the same as `reference_id`.
        id: PieceId,
        /// A date, `2026-06-17`.
        expected_delivery_date: String,
        /// The carrier's.
        tracking_number: String,
        /// What the carrier's scanners saw.
        tracking_events: BoundedList<NestedObject<LobScan>>,
        /// Often redacted.
        metadata: NestedObject<LobMetadata>,
    }
}

lenient_struct! {
    /// One scan.
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
    /// The keys of metadata that we know.
    LobMetadata {
        /// The statement that was printed.
        statement_id: String,
        /// The tenant, as a hint.
        tenant_id: String,
        /// The template's version.
        template_version: String,
    }
}

impl LobMetadata {
    /// The value, unless Lob withheld it.
    pub fn unredacted(field: &LenientField<String>) -> Option<&String> {
        field.value().filter(|text| *text != REDACTED)
    }
}

impl LobEvent {
    /// Reads a body.
    pub fn parse(raw_body: &[u8]) -> Result<Self, JsonError> {
        parse_body(raw_body)
    }

    /// The piece's fields, if `body` is an object.
    pub fn piece(&self) -> Option<&LobPiece> {
        self.body.value().map(|NestedObject(piece)| piece)
    }

    /// The piece's id.
    pub fn piece_id(&self) -> Option<&PieceId> {
        self.reference_id
            .value()
            .or_else(|| self.piece()?.id.value())
    }

    /// When Lob made it.
    pub fn created(&self) -> Option<Timestamp> {
        Timestamp::parse(self.date_created.value()?).ok()
    }

    /// The metadata, if it is an object.
    pub fn metadata(&self) -> Option<&LobMetadata> {
        self.piece()?
            .metadata
            .value()
            .map(|NestedObject(metadata)| metadata)
    }

    /// What ingress stores beside the payload.
    pub fn envelope(&self) -> EventEnvelope {
        let object_id = self.piece_id().map(PieceId::to_string);
        let grouped_by = object_id.clone().unwrap_or_else(|| self.id.to_string());
        EventEnvelope {
            provider: ProviderId::Lob,
            id: self.id.clone(),
            event_type: self.event_type.id.clone(),
            account: None,
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
