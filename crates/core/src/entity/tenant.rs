//! A tenant's connected account: what Stripe's events state of it, and what the tenant's row says by that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::entity::merge::{MaxRegister, merge_fields};
use crate::ids::AccountId;
use crate::time::Timestamp;

/// Everything known of the accounts that the tenant has had.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountFacts {
    /// By account: what was true of one says nothing of the next.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub accounts: BTreeMap<AccountId, ConnectedAccount>,
}

/// Everything known of one account.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectedAccount {
    /// What it may do, as told last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abilities: Option<MaxRegister<(Timestamp, AccountCapabilities)>>,
    /// When it was connected last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorized: Option<MaxRegister<Timestamp>>,
    /// When it was disconnected last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deauthorized: Option<MaxRegister<Timestamp>>,
}

merge_fields!(AccountFacts { accounts });

merge_fields!(ConnectedAccount {
    abilities,
    authorized,
    deauthorized
});

/// What an account may do. Of two statements of one second the one that allows less is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountCapabilities {
    /// Take payments.
    pub charges_enabled: bool,
    /// Pay out.
    pub payouts_enabled: bool,
}

/// What follows for the tenant's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DerivedAccount {
    /// `charges_enabled` and `payouts_enabled`, once told.
    pub abilities: Option<AccountCapabilities>,
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

/// Derives it for the account in the tenant's row. In the second of a disconnection, it is disconnected.
pub fn derive_account(facts: &AccountFacts, account: Option<&AccountId>) -> DerivedAccount {
    let known = account.and_then(|account| facts.accounts.get(account));
    let ConnectedAccount {
        abilities,
        authorized,
        deauthorized,
    } = known.cloned().unwrap_or_default();
    let abilities = abilities.map(|told| told.0.1);
    let is_able = abilities.is_none_or(|able| able.charges_enabled && able.payouts_enabled);
    let status = if deauthorized.is_some() && deauthorized >= authorized {
        StripeStatus::Deauthorized
    } else if is_able {
        StripeStatus::Connected
    } else {
        StripeStatus::Restricted
    };
    DerivedAccount { abilities, status }
}
