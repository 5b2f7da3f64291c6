//! `Parcel`, a third provider that exists only for tests (feature `third-provider`): a parcel service that signs with
//! Ed25519 over `timestamp|body`, and whose event ids are UUIDs.
//!
//! With it the tests see what follows of itself when a provider is added, and that nothing stays silent. It differs from
//! Stripe and Lob in everything in which providers may differ.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::entity::EntityKey;
use crate::entity::kind::EntityKind as _;
use crate::entity::mail::facts::{MailFacts, MailStage, PieceFacts};
use crate::entity::merge::{FactSource, SeenInterval};
use crate::entity::statement::StatementKind;
use crate::ids::{AccountId, EventId, PieceId, ProviderId, StatementId};
use crate::json::{JsonError, parse_body};
use crate::outcome::{EventVerdict, IgnoreReason, ParkReason};
use crate::provider::envelope::{EnvelopeError, EventEnvelope, EventType, message_group};
use crate::provider::interpret::{
    CatalogueEntry, EventFacts, EventFields, EventScope, EventSubject, InterpretRules,
    SignedHeaders, TimeForm, WebhookProvider,
};
use crate::provider::signature::{
    SignatureFailure, SignatureHeaders, SignatureScheme, UnverifiedSignature, Verified,
    parse_timestamp_digits,
};
use crate::time::Timestamp;

#[derive(Debug)]
pub struct ParcelWebhooks;

#[derive(Serialize, Deserialize)]
struct ParcelEvent {
    data: ParcelPayload,
}

#[derive(Serialize, Deserialize)]
struct ParcelPayload {
    id: EventId,
    event_type: EventType,
    occurred_at: String,
    parcel_id: PieceId,
    #[serde(default)]
    statement_id: Option<StatementId>,
}

const EVENT_TYPES: &[CatalogueEntry] = &[
    CatalogueEntry {
        event_type: "parcel.mailed",
        meaning: "the parcel service has it",
        sample: "parcel_mailed",
    },
    CatalogueEntry {
        event_type: "parcel.delivered",
        meaning: "it was delivered",
        sample: "parcel_mailed",
    },
];

impl WebhookProvider for ParcelWebhooks {
    const SIGNATURE_HEADERS: &'static [&'static str] =
        &["parcel-signature-ed25519", "parcel-timestamp"];

    const EVENT_SCOPE: EventScope = EventScope {
        kinds: &[StatementKind::SCHEMA],
    };

    const EVENT_FIELDS: EventFields = EventFields {
        id: "data.id",
        event_type: "data.event_type",
        created_at: "data.occurred_at",
        time_form: TimeForm::Rfc3339,
    };

    fn catalogue() -> impl Iterator<Item = CatalogueEntry> {
        EVENT_TYPES.iter().copied()
    }

    /// Only the provider has the private key.
    fn sign(_: &SecretString, _: &[u8], _: Timestamp) -> Option<SignedHeaders> {
        None
    }

    fn parse_signature(
        headers: &impl SignatureHeaders,
    ) -> Result<UnverifiedSignature, SignatureFailure> {
        let header = |name| {
            headers
                .signature_header(name)?
                .ok_or(SignatureFailure::HeaderMissing)
        };
        let signature = header("parcel-signature-ed25519")?;
        let timestamp = header("parcel-timestamp")?;
        let at = Timestamp::from_unix_s(parse_timestamp_digits(timestamp, 12)?);
        let signature = data_encoding::BASE64.decode(signature.as_bytes());
        Ok(UnverifiedSignature {
            provider: ProviderId::Parcel,
            signed_prefix: format!("{timestamp}|"),
            at: at.map_err(|_| SignatureFailure::TimestampMalformed)?,
            scheme: SignatureScheme::Ed25519(
                signature.map_err(|_| SignatureFailure::HeaderMalformed)?,
            ),
        })
    }

    fn read_envelope(body: &Verified<'_>) -> Result<EventEnvelope, EnvelopeError> {
        let ParcelEvent { data } = parse_body(body.raw_body())?;
        let id = ProviderId::Parcel.parse_event_id(data.id.as_str());
        let object = data.parcel_id.to_string();
        Ok(EventEnvelope {
            provider: ProviderId::Parcel,
            id: id.map_err(|_| JsonError::Unreadable { line: 0, column: 0 })?,
            event_type: data.event_type,
            account: None,
            created_at: Timestamp::parse(&data.occurred_at).ok(),
            livemode: None,
            api_version: None,
            group: message_group(ProviderId::Parcel, None, &object),
            object_id: Some(object),
            template_version: None,
            tenant_hint: None,
        })
    }

    fn interpret(
        _: &InterpretRules,
        _: Option<&AccountId>,
        payload: &[u8],
    ) -> Result<EventFacts, EventVerdict> {
        let ParcelEvent { data } =
            parse_body(payload).map_err(|_| EventVerdict::Parked(ParkReason::PayloadUnreadable))?;
        let stage = match data.event_type.as_str() {
            "parcel.mailed" => MailStage::Mailed,
            "parcel.delivered" => MailStage::Delivered,
            _ => return Err(EventVerdict::Ignored(IgnoreReason::UnhandledType)),
        };
        let at = Timestamp::parse(&data.occurred_at)
            .map_err(|_| EventVerdict::Parked(ParkReason::FieldMalformed))?;
        let first = FactSource { at, event: data.id };
        let piece = PieceFacts {
            stages: BTreeMap::from([(stage, SeenInterval::once(first))]),
            ..PieceFacts::default()
        };
        Ok(EventFacts {
            named_entity: data.statement_id.map(EntityKey::Statement),
            created_at: Some(at),
            subject: EventSubject::Piece(
                Some(data.parcel_id.clone()),
                MailFacts {
                    pieces: BTreeMap::from([(data.parcel_id, piece)]),
                },
            ),
        })
    }

    fn trim_payload(raw_body: &[u8]) -> Result<Vec<u8>, JsonError> {
        let trimmed = serde_json::to_vec(&parse_body::<ParcelEvent>(raw_body)?);
        trimmed.map_err(|_| JsonError::Unreadable { line: 0, column: 0 })
    }
}
