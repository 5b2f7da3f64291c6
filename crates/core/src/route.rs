//! What a stored event says and whom it may concern: the pure half of "who it belongs to".

use crate::entity::{EntityKey, Facts};
use crate::event::stripe_types::HANDLED_TYPES;
use crate::event::{lob, stripe};
use crate::ids::{AccountId, OrderId, PaymentIntentId, PieceId, Provider, StatementId};
use crate::inbox::{IgnoreReason, ParkReason, Verdict};
use crate::tenant::AccountFacts;
use crate::{mail, payment, tenant};

/// The facts of an event, and everything it names by which an entity may be found.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The entity that the metadata names. Written by the tenant, so never proof.
    pub names: Option<EntityKey>,
    /// The payment it is about.
    pub intent: Option<PaymentIntentId>,
    /// The printed piece it is about.
    pub piece: Option<PieceId>,
    /// It is about the account itself, and so about its tenant.
    pub about_account: bool,
    /// What it states.
    pub facts: Facts,
}

/// Reads a stored payload. `account` is the row's, not the payload's. `Err` is an event that ends here.
pub fn read(
    provider: Provider,
    live_mode: bool,
    account: Option<&AccountId>,
    payload: &[u8],
) -> Result<Claim, Verdict> {
    match provider {
        Provider::Stripe => read_stripe(live_mode, account, payload),
        Provider::Lob => read_lob(payload),
    }
}

fn read_stripe(
    live_mode: bool,
    account: Option<&AccountId>,
    payload: &[u8],
) -> Result<Claim, Verdict> {
    let mut event = stripe::Event::parse(payload)
        .map_err(|_| Verdict::Parked(ParkReason::PayloadUnreadable))?;
    event.account = account.cloned();
    match (event.livemode, live_mode) {
        (Some(true), false) => return Err(Verdict::Parked(ParkReason::LiveEventOnTestStage)),
        (Some(false), true) => {
            return Err(Verdict::Ignored(IgnoreReason::TestEventOnLiveStage));
        }
        (Some(true), true) | (Some(false), false) | (None, _) => {}
    }
    if event.is_thin() {
        return Err(Verdict::Ignored(IgnoreReason::ThinEvent));
    }
    if !HANDLED_TYPES.contains(&event.event_type.as_str()) {
        return Err(Verdict::Ignored(IgnoreReason::UnhandledType));
    }
    // Live money is not given up on a missing field.
    if live_mode && event.livemode.is_none() {
        return Err(Verdict::Parked(ParkReason::FieldMalformed));
    }
    if let Some(facts) = tenant::facts(&event) {
        return about_account(account, facts);
    }
    let facts =
        payment::read::facts(&event).ok_or(Verdict::Ignored(IgnoreReason::UnhandledType))?;
    let malformed = || Verdict::Parked(ParkReason::FieldMalformed);
    let resource = event.resource().ok_or_else(malformed)?;
    let names = resource
        .metadata()
        .map_or(Ok(None), named)
        .map_err(Verdict::Parked)?;
    let intent = resource.intent().map_err(|_| malformed())?;
    // Before its facts: what concerns nothing of ours is not looked at for faults.
    if names.is_none() && intent.is_none() {
        return Err(Verdict::Ignored(IgnoreReason::NothingNamed));
    }
    Ok(Claim {
        names,
        intent,
        piece: None,
        about_account: false,
        facts: Facts {
            payment: facts.map_err(Verdict::Parked)?,
            ..Facts::default()
        },
    })
}

/// The platform's own account is no tenant's.
fn about_account(
    account: Option<&AccountId>,
    facts: Result<AccountFacts, ParkReason>,
) -> Result<Claim, Verdict> {
    if account.is_none() {
        return Err(Verdict::Ignored(IgnoreReason::NothingNamed));
    }
    Ok(Claim {
        names: None,
        intent: None,
        piece: None,
        about_account: true,
        facts: Facts {
            account: facts.map_err(Verdict::Parked)?,
            ..Facts::default()
        },
    })
}

fn named(metadata: &stripe::Metadata) -> Result<Option<EntityKey>, ParkReason> {
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

fn read_lob(payload: &[u8]) -> Result<Claim, Verdict> {
    let event =
        lob::Event::parse(payload).map_err(|_| Verdict::Parked(ParkReason::PayloadUnreadable))?;
    let facts = mail::facts::read(&event).ok_or(Verdict::Ignored(IgnoreReason::UnhandledType))?;
    // Metadata is a second way to the statement, often redacted: what is wrong with it is no reason to park.
    let names = event
        .metadata()
        .and_then(|metadata| lob::Metadata::told(&metadata.statement_id))
        .and_then(|id| StatementId::parse(id).ok())
        .map(EntityKey::Statement);
    Ok(Claim {
        names,
        intent: None,
        piece: event.piece_id().cloned(),
        about_account: false,
        facts: Facts {
            mail: facts.map_err(Verdict::Parked)?,
            ..Facts::default()
        },
    })
}
