//! A tenant's connected account: what Stripe's events state of it, and what the tenant's row says by that.

use serde::{Deserialize, Serialize};

use crate::event::stripe::Event;
use crate::inbox::ParkReason;
use crate::merge::{Greatest, merge_fields};
use crate::time::Timestamp;

/// Everything known of the account.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AccountFacts {
    /// What it may do, as told last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abilities: Option<Greatest<(Timestamp, Abilities)>>,
    /// When it was connected last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorized: Option<Greatest<Timestamp>>,
    /// When it was disconnected last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deauthorized: Option<Greatest<Timestamp>>,
}

merge_fields!(AccountFacts {
    abilities,
    authorized,
    deauthorized
});

/// What an account may do. Of two statements of one second the one that allows less is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Abilities {
    /// Take payments.
    pub charges_enabled: bool,
    /// Pay out.
    pub payouts_enabled: bool,
}

/// What follows for the tenant's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountStanding {
    /// `charges_enabled` and `payouts_enabled`, once told.
    pub abilities: Option<Abilities>,
    /// `stripe_status`.
    pub status: StripeStatus,
}

/// A tenant's `stripe_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripeStatus {
    /// It may take payments and pay out, as far as is known.
    Connected,
    /// One of the two is withheld.
    Restricted,
    /// We may no longer act for it.
    Deauthorized,
}

impl StripeStatus {
    /// The word in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Restricted => "restricted",
            Self::Deauthorized => "deauthorized",
        }
    }
}

/// What the event states of its account; `None` where its type is about something else.
pub fn facts(event: &Event) -> Option<Result<AccountFacts, ParkReason>> {
    let read = |make: fn(&Event, Timestamp) -> Result<AccountFacts, ParkReason>| {
        let at = event.created().ok_or(ParkReason::FieldMalformed);
        Some(at.and_then(|at| make(event, at)))
    };
    match event.event_type.as_str() {
        "account.updated" => read(updated),
        "account.application.authorized" => read(|_, at| {
            Ok(AccountFacts {
                authorized: Some(Greatest(at)),
                ..AccountFacts::default()
            })
        }),
        "account.application.deauthorized" => read(|_, at| {
            Ok(AccountFacts {
                deauthorized: Some(Greatest(at)),
                ..AccountFacts::default()
            })
        }),
        _ => None,
    }
}

fn updated(event: &Event, at: Timestamp) -> Result<AccountFacts, ParkReason> {
    let account = event.resource().ok_or(ParkReason::FieldMalformed)?;
    let told = account
        .charges_enabled
        .value()
        .zip(account.payouts_enabled.value());
    let (&charges_enabled, &payouts_enabled) = told.ok_or(ParkReason::FieldMalformed)?;
    let abilities = Abilities {
        charges_enabled,
        payouts_enabled,
    };
    Ok(AccountFacts {
        abilities: Some(Greatest((at, abilities))),
        ..AccountFacts::default()
    })
}

/// Derives it. In the second of a disconnection, it is disconnected.
pub fn derive(facts: &AccountFacts) -> AccountStanding {
    let abilities = facts.abilities.as_ref().map(|told| told.0.1);
    let is_able = abilities.is_none_or(|able| able.charges_enabled && able.payouts_enabled);
    let status = if facts.deauthorized.is_some() && facts.deauthorized >= facts.authorized {
        StripeStatus::Deauthorized
    } else if is_able {
        StripeStatus::Connected
    } else {
        StripeStatus::Restricted
    };
    AccountStanding { abilities, status }
}
