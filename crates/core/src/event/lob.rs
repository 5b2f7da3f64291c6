//! Lob's event. `body` is the whole resource, with strings in place of objects where Lob redacted them.
//!
//! Source: `lob-openapi` `resources/events`, `Using webhooks`, read 2026-11.

use serde::{Deserialize, Serialize};

use super::stripe::lenient;
use super::{Envelope, EventType, group};
use crate::ids::{EventId, PieceId, Provider};
use crate::json::{self, Field, List, NotJson, Object};
use crate::time::Timestamp;

/// What Lob puts in place of metadata values it keeps to itself.
const REDACTED: &str = "REDACTED";

/// The strict envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `evt_…`, the same prefix as Stripe's.
    pub id: EventId,
    /// Holds the type's name.
    pub event_type: Kind,
    /// The piece it is about.
    #[serde(default, skip_serializing_if = "Field::is_absent")]
    pub reference_id: Field<PieceId>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Field::is_absent")]
    pub date_created: Field<String>,
    /// The piece as it was when the event was made.
    #[serde(default, skip_serializing_if = "Field::is_absent")]
    pub body: Field<Object<Piece>>,
}

/// `event_type` of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// Such as `letter.in_transit`.
    pub id: EventType,
}

lenient! {
    /// The fields we read of a printed piece.
    Piece {
        /// The piece's id, the same as `reference_id`.
        id: PieceId,
        /// A date, `2026-06-17`.
        expected_delivery_date: String,
        /// The carrier's.
        tracking_number: String,
        /// What the carrier's scanners saw.
        tracking_events: List<Object<Scan>>,
        /// Often redacted.
        metadata: Object<Metadata>,
    }
}

lenient! {
    /// One scan.
    Scan {
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

lenient! {
    /// The keys of metadata that we know.
    Metadata {
        /// The statement that was printed.
        statement_id: String,
        /// The tenant, as a hint.
        tenant_id: String,
        /// The template's version.
        template_version: String,
    }
}

impl Metadata {
    /// The value, unless Lob withheld it.
    pub fn told(field: &Field<String>) -> Option<&String> {
        field.value().filter(|text| *text != REDACTED)
    }
}

impl Event {
    /// Reads a body.
    pub fn parse(raw_body: &[u8]) -> Result<Self, NotJson> {
        json::parse(raw_body)
    }

    /// The piece's fields, if `body` is an object.
    pub fn piece(&self) -> Option<&Piece> {
        self.body.value().map(|Object(piece)| piece)
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
    pub fn metadata(&self) -> Option<&Metadata> {
        self.piece()?
            .metadata
            .value()
            .map(|Object(metadata)| metadata)
    }

    /// What ingress stores beside the payload.
    pub fn envelope(&self) -> Envelope {
        let object_id = self.piece_id().map(PieceId::to_string);
        let grouped_by = object_id.clone().unwrap_or_else(|| self.id.to_string());
        Envelope {
            provider: Provider::Lob,
            id: self.id.clone(),
            event_type: self.event_type.id.clone(),
            account: None,
            livemode: None,
            api_version: None,
            object_id,
            template_version: self
                .metadata()
                .and_then(|metadata| Metadata::told(&metadata.template_version).cloned()),
            tenant_hint: self
                .metadata()
                .and_then(|metadata| Metadata::told(&metadata.tenant_id).cloned()),
            group: group(Provider::Lob, None, &grouped_by),
        }
    }
}
