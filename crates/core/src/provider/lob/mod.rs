//! Lob: signature headers ([`signature`]), event format ([`event`]), the catalogue of event types ([`event_types`]), and
//! the facts that events state about letters ([`mail`]).

pub mod event;
pub mod event_types;
pub mod mail;
pub mod signature;

use secrecy::SecretString;

use crate::entity::EntityKey;
use crate::entity::kind::EntityKind as _;
use crate::entity::statement::StatementKind;
use crate::ids::{AccountId, StatementId};
use crate::json::JsonError;
use crate::outcome::{EventVerdict, IgnoreReason, ParkReason};
use crate::provider::envelope::{EnvelopeError, EventEnvelope};
use crate::provider::interpret::{
    CatalogueEntry, EventFacts, EventFields, EventScope, EventSubject, InterpretRules,
    SignedHeaders, TimeForm, WebhookProvider,
};
use crate::provider::lob::event::{LobEvent, LobMetadata};
use crate::provider::lob::event_types::EVENT_TYPES;
use crate::provider::lob::mail::read_mail_facts;
use crate::provider::lob::signature::parse_signature_headers;
use crate::provider::signature::{
    SignatureFailure, SignatureHeaders, UnverifiedSignature, Verified, sign_hmac,
};
use crate::time::Timestamp;

#[derive(Debug)]
pub struct LobWebhooks;

impl WebhookProvider for LobWebhooks {
    const SIGNATURE_HEADERS: &'static [&'static str] =
        &["lob-signature", "lob-signature-timestamp"];

    const EVENT_SCOPE: EventScope = EventScope {
        kinds: &[StatementKind::SCHEMA],
    };

    const EVENT_FIELDS: EventFields = EventFields {
        id: "id",
        event_type: "event_type.id",
        created_at: "date_created",
        time_form: TimeForm::Rfc3339,
    };

    fn catalogue() -> impl Iterator<Item = CatalogueEntry> {
        EVENT_TYPES.iter().copied()
    }

    fn sign(secret: &SecretString, body: &[u8], now: Timestamp) -> Option<SignedHeaders> {
        let at = now.unix_ms().to_string();
        let signature = sign_hmac(secret, &format!("{at}."), body)?;
        Some(vec![
            ("Lob-Signature", signature),
            ("Lob-Signature-Timestamp", at),
        ])
    }

    fn parse_signature(
        headers: &impl SignatureHeaders,
    ) -> Result<UnverifiedSignature, SignatureFailure> {
        parse_signature_headers(
            headers.signature_header("lob-signature")?,
            headers.signature_header("lob-signature-timestamp")?,
        )
    }

    fn read_envelope(body: &Verified<'_>) -> Result<EventEnvelope, EnvelopeError> {
        Ok(LobEvent::parse(body.raw_body())?.envelope())
    }

    /// Lob's events have neither a mode nor an account.
    fn interpret(
        _: &InterpretRules,
        _: Option<&AccountId>,
        payload: &[u8],
    ) -> Result<EventFacts, EventVerdict> {
        let event = LobEvent::parse(payload)
            .map_err(|_| EventVerdict::Parked(ParkReason::PayloadUnreadable))?;
        let facts =
            read_mail_facts(&event).ok_or(EventVerdict::Ignored(IgnoreReason::UnhandledType))?;
        // Lob's metadata is only the second way to the statement, after the piece's id, and Lob often redacts it. So a bad
        // value counts as missing, other than in Stripe's events.
        let named_entity = event
            .metadata()
            .and_then(|metadata| LobMetadata::unredacted(&metadata.statement_id))
            .and_then(|id| StatementId::parse(id).ok())
            .map(EntityKey::Statement);
        Ok(EventFacts {
            named_entity,
            created_at: event.created(),
            subject: EventSubject::Piece(
                event.piece_id().cloned(),
                facts.map_err(EventVerdict::Parked)?,
            ),
        })
    }

    fn trim_payload(raw_body: &[u8]) -> Result<Vec<u8>, JsonError> {
        let trimmed = serde_json::to_vec(&LobEvent::parse(raw_body)?);
        trimmed.map_err(|_| JsonError::Unreadable { line: 0, column: 0 })
    }
}
