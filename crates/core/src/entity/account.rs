//! A connected Stripe account: the facts from Stripe's events, and the tenant's state derived from them.
//!
//! This module does not decide which tenant an account belongs to (tenant isolation); `worker::resolve` does.
//! `entity::tenant` has the columns.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::entity::merge::{MaxRegister, Merge, merge_fields};
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<LatestCapabilities>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorized: Option<MaxRegister<Timestamp>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deauthorized: Option<MaxRegister<Timestamp>>,
}

merge_fields!(AccountFacts { accounts });

merge_fields!(ConnectedAccount {
    capabilities,
    authorized,
    deauthorized
});

/// What an account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountCapabilities {
    pub charges_enabled: bool,
    pub payouts_enabled: bool,
}

/// What the latest `account.updated` says. If several of one second disagree, what any of them forbids is forbidden:
/// nobody can tell which is the later, and a payment that is refused does less harm than one that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatestCapabilities(pub Timestamp, pub AccountCapabilities);

impl Merge for LatestCapabilities {
    fn merge(&mut self, other: Self) {
        match other.0.cmp(&self.0) {
            Ordering::Less => {}
            Ordering::Greater => *self = other,
            Ordering::Equal => {
                self.1.charges_enabled &= other.1.charges_enabled;
                self.1.payouts_enabled &= other.1.payouts_enabled;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DerivedAccount {
    /// The columns `charges_enabled` and `payouts_enabled`; `None` until an event says something about them.
    pub capabilities: Option<AccountCapabilities>,
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
        capabilities,
        authorized,
        deauthorized,
    } = known.cloned().unwrap_or_default();
    if deauthorized.is_some() && deauthorized >= authorized {
        let none = AccountCapabilities {
            charges_enabled: false,
            payouts_enabled: false,
        };
        return DerivedAccount {
            capabilities: Some(none),
            status: StripeStatus::Deauthorized,
        };
    }
    let capabilities = capabilities.map(|latest| latest.1);
    let is_able = capabilities.is_none_or(|able| able.charges_enabled && able.payouts_enabled);
    DerivedAccount {
        capabilities,
        status: match is_able {
            true => StripeStatus::Connected,
            false => StripeStatus::Restricted,
        },
    }
}
