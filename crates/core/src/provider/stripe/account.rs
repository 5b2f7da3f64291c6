//! Reads the facts of a connected account from Stripe's events. `entity::account` merges them and derives the columns.

use crate::entity::account::{AccountCapabilities, AccountFacts, ConnectedAccount};
use crate::entity::merge::MaxRegister;
use crate::outcome::ParkReason;
use crate::provider::stripe::event::StripeEvent;
use crate::time::Timestamp;

/// The facts of an account event; `None` if the type is about something else. Fails with `field_malformed` (parked) if
/// the time or one of the two abilities is missing: a guess could show an account as able to take payments.
pub fn read_account_facts(event: &StripeEvent) -> Option<Result<AccountFacts, ParkReason>> {
    let read = match event.event_type.as_str() {
        "account.updated" => read_account_updated,
        "account.application.authorized" => |_: &StripeEvent, at| {
            Ok(ConnectedAccount {
                authorized: Some(MaxRegister(at)),
                ..ConnectedAccount::default()
            })
        },
        "account.application.deauthorized" => |_: &StripeEvent, at| {
            Ok(ConnectedAccount {
                deauthorized: Some(MaxRegister(at)),
                ..ConnectedAccount::default()
            })
        },
        _ => return None,
    };
    let at = event.created().ok_or(ParkReason::FieldMalformed);
    let stated = at.and_then(|at| read(event, at));
    Some(stated.map(|account| {
        AccountFacts {
            accounts: event
                .account
                .iter()
                .map(|id| (id.clone(), account.clone()))
                .collect(),
        }
    }))
}

fn read_account_updated(
    event: &StripeEvent,
    at: Timestamp,
) -> Result<ConnectedAccount, ParkReason> {
    let account = event.resource().ok_or(ParkReason::FieldMalformed)?;
    let told = account
        .charges_enabled
        .value()
        .zip(account.payouts_enabled.value());
    let (&charges_enabled, &payouts_enabled) = told.ok_or(ParkReason::FieldMalformed)?;
    let abilities = AccountCapabilities {
        charges_enabled,
        payouts_enabled,
    };
    Ok(ConnectedAccount {
        abilities: Some(MaxRegister((at, abilities))),
        ..ConnectedAccount::default()
    })
}
