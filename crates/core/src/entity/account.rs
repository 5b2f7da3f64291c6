//! A connected Stripe account: the facts from Stripe's events, and the tenant's state derived from them.
//!
//! This module does not decide which tenant an account belongs to (tenant isolation); `worker::resolve` does.
//! `entity::tenant` has the columns.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::entity::merge::{MaxRegister, merge_fields};
use crate::ids::AccountId;
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountFacts {
    /// By account, because a tenant may change its account. When there was one record per tenant, `deauthorized` of the
    /// old account marked the new one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub accounts: BTreeMap<AccountId, ConnectedAccount>,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectedAccount {
    /// The latest `account.updated` wins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abilities: Option<MaxRegister<(Timestamp, AccountCapabilities)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorized: Option<MaxRegister<Timestamp>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deauthorized: Option<MaxRegister<Timestamp>>,
}

merge_fields!(AccountFacts { accounts });

merge_fields!(ConnectedAccount {
    abilities,
    authorized,
    deauthorized
});

/// What an account may do. If two events of one second disagree, the greater value wins, so the one that allows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountCapabilities {
    pub charges_enabled: bool,
    pub payouts_enabled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DerivedAccount {
    /// The columns `charges_enabled` and `payouts_enabled`; `None` until an `account.updated` arrives.
    pub abilities: Option<AccountCapabilities>,
    pub status: StripeStatus,
}

/// A tenant's `stripe_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripeStatus {
    /// It may take payments and pay out, as far as its events say.
    Connected,
    /// It may not take payments, or not pay out.
    Restricted,
    /// Disconnected: we may no longer act for it.
    Deauthorized,
}

impl StripeStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Restricted => "restricted",
            Self::Deauthorized => "deauthorized",
        }
    }
}

/// Derives the columns for the account that the tenant's row names now. If it was connected and disconnected in the
/// same second, it is disconnected.
pub fn derive_account(facts: &AccountFacts, account: Option<&AccountId>) -> DerivedAccount {
    let known = account.and_then(|account| facts.accounts.get(account));
    let ConnectedAccount {
        abilities,
        authorized,
        deauthorized,
    } = known.cloned().unwrap_or_default();
    let abilities = abilities.map(|latest| latest.0.1);
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
