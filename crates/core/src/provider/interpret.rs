//! What a stored event says and whom it may concern: the pure half of "who it belongs to".

use crate::entity::tenant::AccountFacts;
use crate::entity::{EntityFacts, EntityKey};
use crate::ids::{AccountId, OrderId, PaymentIntentId, PieceId, ProviderId, StatementId};
use crate::outcome::{EventVerdict, IgnoreReason, ParkReason};
use crate::provider::lob::event::{LobEvent, LobMetadata};
use crate::provider::lob::mail::read_mail_facts;
use crate::provider::stripe::account::read_account_facts;
use crate::provider::stripe::event::{StripeEvent, StripeMetadata};
use crate::provider::stripe::payments::read_payment_facts;
use crate::provider::stripe::types::HANDLED_TYPES;

/// The facts of an event, and everything it names by which an entity may be found.
#[derive(Clone, Debug, PartialEq)]
pub struct EventFacts {
    /// The entity that the metadata names. Written by the tenant, so never proof.
    pub names: Option<EntityKey>,
    /// The payment it is about.
    pub intent: Option<PaymentIntentId>,
    /// The printed piece it is about.
    pub piece: Option<PieceId>,
    /// It is about the account itself, and so about its tenant.
    pub about_account: bool,
    /// What it states.
    pub facts: EntityFacts,
}

/// Reads a stored payload. `account` is the row's, not the payload's. `Err` is an event that ends here.
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
    // Live money is not given up on a missing field.
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
    let names = resource
        .metadata()
        .map_or(Ok(None), read_named_entity)
        .map_err(EventVerdict::Parked)?;
    let intent = resource.intent().map_err(|_| malformed())?;
    // Before its facts: what concerns nothing of ours is not looked at for faults.
    if names.is_none() && intent.is_none() {
        return Err(EventVerdict::Ignored(IgnoreReason::NothingNamed));
    }
    Ok(EventFacts {
        names,
        intent,
        piece: None,
        about_account: false,
        facts: EntityFacts {
            payment: facts.map_err(EventVerdict::Parked)?,
            ..EntityFacts::default()
        },
    })
}

/// The platform's own account is no tenant's.
fn interpret_account_event(
    account: Option<&AccountId>,
    facts: Result<AccountFacts, ParkReason>,
) -> Result<EventFacts, EventVerdict> {
    if account.is_none() {
        return Err(EventVerdict::Ignored(IgnoreReason::NothingNamed));
    }
    Ok(EventFacts {
        names: None,
        intent: None,
        piece: None,
        about_account: true,
        facts: EntityFacts {
            account: facts.map_err(EventVerdict::Parked)?,
            ..EntityFacts::default()
        },
    })
}

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
    // Metadata is a second way to the statement, often redacted: what is wrong with it is no reason to park.
    let names = event
        .metadata()
        .and_then(|metadata| LobMetadata::unredacted(&metadata.statement_id))
        .and_then(|id| StatementId::parse(id).ok())
        .map(EntityKey::Statement);
    Ok(EventFacts {
        names,
        intent: None,
        piece: event.piece_id().cloned(),
        about_account: false,
        facts: EntityFacts {
            mail: facts.map_err(EventVerdict::Parked)?,
            ..EntityFacts::default()
        },
    })
}
