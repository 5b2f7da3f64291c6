//! Interprets a stored event: its facts, and the ids by which its entity may be found. Pure: it reads no rows.
//!
//! An event that ends here gets a verdict: ignored (it means nothing to us, safe to forget) or parked (it may mean
//! something, and needs manual action). In doubt about money we park.
//! `worker::resolve` then finds the entity and checks the tenant; `stripe::payments`, `stripe::account` and `lob::mail`
//! read the facts.

use crate::entity::EntityKey;
use crate::entity::account::AccountFacts;
use crate::entity::kind::StatedFacts;
use crate::ids::{AccountId, OrderId, PaymentIntentId, PieceId, ProviderId, StatementId};
use crate::outcome::{EventVerdict, IgnoreReason, ParkReason};
use crate::provider::lob::event::{LobEvent, LobMetadata};
use crate::provider::lob::mail::read_mail_facts;
use crate::provider::stripe::account::read_account_facts;
use crate::provider::stripe::event::{StripeEvent, StripeMetadata};
use crate::provider::stripe::payments::read_payment_facts;
use crate::provider::stripe::types::HANDLED_TYPES;

/// The facts of an event, and everything in it by which its entity may be found.
#[derive(Clone, Debug, PartialEq)]
pub struct EventFacts {
    /// The entity that the metadata names. The tenant writes metadata, so this never proves anything (tenant
    /// isolation).
    pub named_entity: Option<EntityKey>,
    pub intent: Option<PaymentIntentId>,
    pub piece: Option<PieceId>,
    /// The event is about the connected account itself, so its entity is the account's tenant.
    pub about_account: bool,
    pub facts: StatedFacts,
}

/// Interprets a stored payload. `Err` is the verdict of an event that ends here.
///
/// `account` comes from the event's row and not from the payload: for an event that reconciliation found, it is the
/// account that billhook asked about.
pub fn interpret(
    provider: ProviderId,
    live_mode: bool,
    account: Option<&AccountId>,
    payload: &[u8],
) -> Result<EventFacts, EventVerdict> {
    match provider {
        ProviderId::Stripe => interpret_stripe(live_mode, account, payload),
        ProviderId::Lob => interpret_lob(payload),
    }
}

fn interpret_stripe(
    live_mode: bool,
    account: Option<&AccountId>,
    payload: &[u8],
) -> Result<EventFacts, EventVerdict> {
    let mut event = StripeEvent::parse(payload)
        .map_err(|_| EventVerdict::Parked(ParkReason::PayloadUnreadable))?;
    event.account = account.cloned();
    // Not symmetric. A live event in a test environment means a wrong endpoint, and it is about real money: park it, so
    // that somebody looks. A test event in a live environment is normal, because Stripe sends the test events of
    // connected accounts to live endpoints too.
    match (event.livemode, live_mode) {
        (Some(true), false) => return Err(EventVerdict::Parked(ParkReason::LiveEventOnTestStage)),
        (Some(false), true) => {
            return Err(EventVerdict::Ignored(IgnoreReason::TestEventOnLiveStage));
        }
        (Some(true), true) | (Some(false), false) | (None, _) => {}
    }
    if event.is_thin() {
        return Err(EventVerdict::Ignored(IgnoreReason::ThinEvent));
    }
    if !HANDLED_TYPES.contains(&event.event_type.as_str()) {
        return Err(EventVerdict::Ignored(IgnoreReason::UnhandledType));
    }
    // In a live environment we do not guess the mode. This check comes after the type, so that thin and unhandled
    // events, some of which have no mode, are ignored and not parked.
    if live_mode && event.livemode.is_none() {
        return Err(EventVerdict::Parked(ParkReason::FieldMalformed));
    }
    if let Some(facts) = read_account_facts(&event) {
        return interpret_account_event(account, facts);
    }
    let facts =
        read_payment_facts(&event).ok_or(EventVerdict::Ignored(IgnoreReason::UnhandledType))?;
    let malformed = || EventVerdict::Parked(ParkReason::FieldMalformed);
    let resource = event.resource().ok_or_else(malformed)?;
    let named_entity = resource
        .metadata()
        .map_or(Ok(None), read_named_entity)
        .map_err(EventVerdict::Parked)?;
    let intent = resource.intent().map_err(|_| malformed())?;
    // Before the facts are checked: many events of an account are not about our orders, and a malformed amount in
    // one of those must not need manual action.
    if named_entity.is_none() && intent.is_none() {
        return Err(EventVerdict::Ignored(IgnoreReason::NothingNamed));
    }
    Ok(EventFacts {
        named_entity,
        intent,
        piece: None,
        about_account: false,
        facts: StatedFacts::Payment(facts.map_err(EventVerdict::Parked)?),
    })
}

/// An event without an account is about the platform's own account, which belongs to no tenant.
fn interpret_account_event(
    account: Option<&AccountId>,
    facts: Result<AccountFacts, ParkReason>,
) -> Result<EventFacts, EventVerdict> {
    if account.is_none() {
        return Err(EventVerdict::Ignored(IgnoreReason::NothingNamed));
    }
    Ok(EventFacts {
        named_entity: None,
        intent: None,
        piece: None,
        about_account: true,
        facts: StatedFacts::Account(facts.map_err(EventVerdict::Parked)?),
    })
}

/// The order comes before the statement. An empty string counts as missing; an id that is there and not valid parks the
/// event, because it does name something.
fn read_named_entity(metadata: &StripeMetadata) -> Result<Option<EntityKey>, ParkReason> {
    let bad = |_| ParkReason::FieldMalformed;
    let order = metadata
        .order_id_camel
        .checked()?
        .or(metadata.order_id.checked()?);
    if let Some(id) = order.filter(|id| !id.is_empty()) {
        return OrderId::parse(id)
            .map(EntityKey::Order)
            .map(Some)
            .map_err(bad);
    }
    match metadata.statement_id.checked()?.filter(|id| !id.is_empty()) {
        Some(id) => StatementId::parse(id)
            .map(EntityKey::Statement)
            .map(Some)
            .map_err(bad),
        None => Ok(None),
    }
}

fn interpret_lob(payload: &[u8]) -> Result<EventFacts, EventVerdict> {
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
        intent: None,
        piece: event.piece_id().cloned(),
        about_account: false,
        facts: StatedFacts::Mail(facts.map_err(EventVerdict::Parked)?),
    })
}
