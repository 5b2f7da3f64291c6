//! Stripe: signature header ([`signature`]), event format ([`event`]), Stripe's words ([`types`]), the catalogue of
//! event types with what they state about payments ([`event_types`]), and the facts about connected accounts
//! ([`account`]). What Stripe's API says about a payment now is read in [`objects`] and compared with what is stored in
//! [`comparison`].

pub mod account;
pub mod comparison;
pub mod event;
pub mod event_types;
pub mod objects;
pub mod signature;
pub mod types;

use std::collections::BTreeSet;

use secrecy::SecretString;
use serde_json::Value;

use crate::entity::account::AccountFacts;
use crate::entity::payment::state::LinkSource;
use crate::entity::{ENTITY_SCHEMAS, EntityKey};
use crate::ids::{AccountId, StatementId};
use crate::json::JsonError;
use crate::outcome::{EventVerdict, IgnoreReason, ParkReason};
use crate::provider::envelope::{EnvelopeError, EventEnvelope};
use crate::provider::interpret::{
    CatalogueEntry, EventFacts, EventFields, EventScope, EventSubject, InterpretRules,
    PaymentEventFacts, SignedHeaders, TimeForm, WebhookProvider,
};
use crate::provider::order_ids::OrderIdRules;
use crate::provider::signature::{
    SignatureFailure, SignatureHeaders, UnverifiedSignature, Verified, sign_hmac,
};
use crate::provider::stripe::event::{
    STATEMENT_KEYS, StripeEvent, StripeMetadata, TENANT_KEYS, USER_KEYS,
};
use crate::provider::stripe::event_types::{EVENT_TYPES, StripeFacts, read_facts};
use crate::provider::stripe::signature::parse_signature_header;
use crate::time::Timestamp;

#[derive(Debug)]
pub struct StripeWebhooks;

impl WebhookProvider for StripeWebhooks {
    const SIGNATURE_HEADERS: &'static [&'static str] = &["stripe-signature"];

    const EVENT_SCOPE: EventScope = EventScope {
        kinds: ENTITY_SCHEMAS,
    };

    const EVENT_FIELDS: EventFields = EventFields {
        id: "id",
        event_type: "type",
        created_at: "created",
        time_form: TimeForm::UnixSeconds,
    };

    fn catalogue() -> impl Iterator<Item = CatalogueEntry> {
        EVENT_TYPES.iter().map(|(entry, _)| *entry)
    }

    fn sign(secret: &SecretString, body: &[u8], now: Timestamp) -> Option<SignedHeaders> {
        let at = now.unix_s();
        let signature = sign_hmac(secret, &format!("{at}."), body)?;
        Some(vec![("Stripe-Signature", format!("t={at},v1={signature}"))])
    }

    fn parse_signature(
        headers: &impl SignatureHeaders,
    ) -> Result<UnverifiedSignature, SignatureFailure> {
        parse_signature_header(headers.signature_header("stripe-signature")?)
    }

    fn read_envelope(body: &Verified<'_>) -> Result<EventEnvelope, EnvelopeError> {
        let mut event = StripeEvent::parse(body.raw_body())?;
        event.account = body.account(event.account)?;
        Ok(event.envelope())
    }

    fn interpret(
        rules: &InterpretRules,
        account: Option<&AccountId>,
        payload: &[u8],
    ) -> Result<EventFacts, EventVerdict> {
        let live_mode = rules.live_mode;
        let mut event = StripeEvent::parse(payload)
            .map_err(|_| EventVerdict::Parked(ParkReason::PayloadUnreadable))?;
        event.account = account.cloned();
        // Not symmetric. A live event in a test environment means a wrong endpoint, and it is about real money: park it, so
        // that somebody looks. A test event in a live environment is normal, because Stripe sends the test events of
        // connected accounts to live endpoints too.
        match (event.livemode, live_mode) {
            (Some(true), false) => {
                return Err(EventVerdict::Parked(ParkReason::LiveEventOnTestStage));
            }
            (Some(false), true) => {
                return Err(EventVerdict::Ignored(IgnoreReason::TestEventOnLiveStage));
            }
            (Some(true), true) | (Some(false), false) | (None, _) => {}
        }
        if event.is_thin() {
            return Err(EventVerdict::Ignored(IgnoreReason::ThinEvent));
        }
        let facts = read_facts(&event).ok_or(EventVerdict::Ignored(IgnoreReason::UnhandledType))?;
        // In a live environment we do not guess the mode. This check comes after the type, so that thin and unhandled
        // events, some of which have no mode, are ignored and not parked.
        if live_mode && event.livemode.is_none() {
            return Err(EventVerdict::Parked(ParkReason::FieldMalformed));
        }
        let facts = match facts {
            StripeFacts::Account(facts) => {
                return interpret_account_event(account, event.created(), facts);
            }
            StripeFacts::Payment(facts) => facts,
        };
        let malformed = || EventVerdict::Parked(ParkReason::FieldMalformed);
        let resource = event.resource().ok_or_else(malformed)?;
        let metadata = resource.metadata();
        let named_entity =
            metadata.and_then(|metadata| read_named_entity(metadata, &rules.order_ids));
        let names = resource.payment_names().map_err(|_| malformed())?;
        // Before the facts are checked: many events of an account are not about our orders, and a malformed amount in
        // one of those must not need manual action.
        if resource.is_transfer() {
            return Err(EventVerdict::Ignored(IgnoreReason::Transfer));
        }
        if names.is_empty() {
            // It names an order, but no payment to which its facts could belong.
            return Err(match named_entity {
                Some(_) => malformed(),
                None => EventVerdict::Ignored(IgnoreReason::NothingNamed),
            });
        }
        Ok(EventFacts {
            named_entity,
            created_at: event.created(),
            subject: EventSubject::Payment(PaymentEventFacts {
                names,
                invoice: resource.invoice.value().cloned(),
                // A connected account's own payment has no other recipient.
                recipients: match account {
                    None => resource.recipients().map_err(|_| malformed())?,
                    Some(_) => BTreeSet::new(),
                },
                link_source: match resource.object.value().map(String::as_str) {
                    Some("payment_intent" | "checkout.session") => LinkSource::Metadata,
                    // A charge of the old Charges API is the payment itself.
                    Some("charge") if resource.payment_intent.is_absent() => LinkSource::Metadata,
                    _ => LinkSource::Object,
                },
                money: facts.map_err(EventVerdict::Parked)?,
            }),
        })
    }

    fn trim_payload(raw_body: &[u8]) -> Result<Vec<u8>, JsonError> {
        let trimmed = serde_json::to_vec(&StripeEvent::parse(raw_body)?);
        trimmed.map_err(|_| JsonError::Unreadable { line: 0, column: 0 })
    }

    fn redact_payload(rules: &InterpretRules, raw_body: &[u8]) -> Result<Vec<u8>, JsonError> {
        let unreadable = |_| JsonError::Unreadable { line: 0, column: 0 };
        let event = StripeEvent::parse(raw_body)?;
        let mut event = serde_json::to_value(event).map_err(unreadable)?;
        let metadata = event.pointer_mut("/data/object/metadata");
        if let Some(metadata) = metadata.and_then(Value::as_object_mut) {
            let others = [TENANT_KEYS, USER_KEYS, STATEMENT_KEYS].concat();
            metadata.retain(|key, _| rules.order_ids.reads(key) || others.contains(&key.as_str()));
        }
        serde_json::to_vec(&event).map_err(unreadable)
    }
}

/// An event without an account is about the platform's own account, which belongs to no tenant.
fn interpret_account_event(
    account: Option<&AccountId>,
    created_at: Option<Timestamp>,
    facts: Result<AccountFacts, ParkReason>,
) -> Result<EventFacts, EventVerdict> {
    if account.is_none() {
        return Err(EventVerdict::Ignored(IgnoreReason::NothingNamed));
    }
    Ok(EventFacts {
        named_entity: None,
        created_at,
        subject: EventSubject::Account(facts.map_err(EventVerdict::Parked)?),
    })
}

/// The order comes before the statement. An id that cannot be one of ours names nothing: the payment is then found by its
/// PaymentIntent, or reported once nothing has claimed it for a day.
fn read_named_entity(metadata: &StripeMetadata, order_ids: &OrderIdRules) -> Option<EntityKey> {
    let order = order_ids.find_order(|key| metadata.get(key));
    let statement = || {
        let mut ids = STATEMENT_KEYS
            .into_iter()
            .filter_map(|key| metadata.get(key));
        ids.find_map(|id| StatementId::parse(id.trim()).ok())
    };
    let order = order.map(EntityKey::Order);
    order.or_else(|| statement().map(EntityKey::Statement))
}
