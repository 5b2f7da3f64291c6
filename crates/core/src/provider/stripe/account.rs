//! Reads the facts of a connected account from Stripe's events. `entity::account` merges them and derives the columns.

use crate::entity::account::{
    AccountCapabilities, AccountFacts, ConnectedAccount, LatestCapabilities,
};
use crate::entity::merge::MaxRegister;
use crate::outcome::ParkReason;
use crate::provider::stripe::event::StripeEvent;
use crate::time::Timestamp;

pub(super) type AccountReader = fn(&StripeEvent, Timestamp) -> Result<ConnectedAccount, ParkReason>;

/// The facts of an account event. Fails with `field_malformed` (parked) if the time or one of the two capabilities is
/// missing: a guess could show an account as able to take payments.
pub(super) fn read_account_facts(
    event: &StripeEvent,
    reader: AccountReader,
) -> Result<AccountFacts, ParkReason> {
    let at = event.created().ok_or(ParkReason::FieldMalformed)?;
    let stated = reader(event, at)?;
    let account = event.account.iter().cloned();
    Ok(AccountFacts {
        accounts: account.map(|id| (id, stated.clone())).collect(),
    })
}

pub(super) fn read_account_authorized(
    _: &StripeEvent,
    at: Timestamp,
) -> Result<ConnectedAccount, ParkReason> {
    Ok(ConnectedAccount {
        authorized: Some(MaxRegister(at)),
        ..ConnectedAccount::default()
    })
}

pub(super) fn read_account_deauthorized(
    _: &StripeEvent,
    at: Timestamp,
) -> Result<ConnectedAccount, ParkReason> {
    Ok(ConnectedAccount {
        deauthorized: Some(MaxRegister(at)),
        ..ConnectedAccount::default()
    })
}

pub(super) fn read_account_updated(
    event: &StripeEvent,
    at: Timestamp,
) -> Result<ConnectedAccount, ParkReason> {
    let account = event.resource().ok_or(ParkReason::FieldMalformed)?;
    let stated = account
        .charges_enabled
        .value()
        .zip(account.payouts_enabled.value());
    let (&charges_enabled, &payouts_enabled) = stated.ok_or(ParkReason::FieldMalformed)?;
    let capabilities = AccountCapabilities {
        charges_enabled,
        payouts_enabled,
    };
    Ok(ConnectedAccount {
        capabilities: Some(LatestCapabilities(at, capabilities)),
        ..ConnectedAccount::default()
    })
}
