//! Which tenants have each connected account, now or before, by the rows of the tenants table: an index lags, and none has
//! the accounts that a tenant had before. And which account is the platform's own, which no tenant may have.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use billhook_adapters::dynamodb::attributes::{Item, read_text};
use billhook_adapters::dynamodb::read_tenant_row;
use billhook_core::entity::tenant::{ACCOUNT_COLUMN, MUTED_COLUMN, PREVIOUS_COLUMN, TenantColumns};
use billhook_core::ids::AccountId;

use crate::application_tables::TENANTS;
use crate::exit::CommandExit;
use crate::output::print_notice;
use crate::session::StackSession;
use crate::stripe_endpoints::open_stripe;

/// How an account may be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum AccountHolding {
    Present,
    Previous,
}

/// The holders of each account, by their `tenant_id`, which need not be a valid id.
#[derive(Debug, Default)]
pub(crate) struct AccountHolders {
    holders: BTreeMap<AccountId, BTreeSet<(AccountHolding, String)>>,
    /// The muted tenants, and since when.
    pub(crate) muted: BTreeMap<String, String>,
}

impl AccountHolders {
    /// Reads the whole table, consistently.
    pub(crate) async fn load(session: &StackSession) -> Result<Self> {
        let table = TENANTS.name(session)?;
        let mut pages = session
            .dynamodb
            .scan()
            .table_name(table)
            .consistent_read(true)
            .projection_expression("#tenant, #account, #previous, #muted")
            .expression_attribute_names("#muted", MUTED_COLUMN)
            .expression_attribute_names("#tenant", TENANTS.key())
            .expression_attribute_names("#account", ACCOUNT_COLUMN)
            .expression_attribute_names("#previous", PREVIOUS_COLUMN)
            .into_paginator()
            .send();
        let mut holders = Self::default();
        while let Some(page) = pages.next().await {
            let page = page.with_context(|| format!("cannot read {table}"))?;
            page.items().iter().for_each(|row| holders.add_row(row));
        }
        Ok(holders)
    }

    fn add_row(&mut self, row: &Item) {
        if let Some(tenant) = read_text(row, TENANTS.key()) {
            self.add(tenant, &read_tenant_row(row));
            let muted_at = read_text(row, MUTED_COLUMN).map(str::to_owned);
            let muted = muted_at.map(|at| (tenant.to_owned(), at));
            self.muted.extend(muted);
        }
    }

    pub(crate) fn add(&mut self, tenant: &str, columns: &TenantColumns) {
        let present = columns
            .account
            .iter()
            .map(|id| (AccountHolding::Present, id));
        let previous = columns
            .previous
            .iter()
            .map(|id| (AccountHolding::Previous, id));
        for (holding, account) in present.chain(previous) {
            let holders = self.holders.entry(account.clone()).or_default();
            holders.insert((holding, tenant.to_owned()));
        }
    }

    /// Whether the tenant has this account now.
    pub(crate) fn is_present(&self, account: &AccountId, tenant: &str) -> bool {
        let holders = self.holders.get(account).into_iter().flatten();
        let mut present = holders.filter(|(holding, _)| *holding == AccountHolding::Present);
        present.any(|(_, holder)| holder == tenant)
    }

    /// Refuses an account that another tenant has or had, because nobody could say whose its events are.
    pub(crate) fn check_free(&self, account: &AccountId, tenant: &str) -> Result<(), CommandExit> {
        let mut others = self.holders.get(account).into_iter().flatten();
        let Some((holding, other)) = others.find(|(_, holder)| holder != tenant) else {
            return Ok(());
        };
        Err(CommandExit::Refused(match holding {
            AccountHolding::Present => format!(
                "{account} already belongs to {other}: if it had two tenants, its events would be parked as tenant_ambiguous"
            ),
            AccountHolding::Previous => format!(
                "{account} was {other}'s before, and late events of it still belong to {other}"
            ),
        }))
    }

    /// Who has an account now.
    pub(crate) fn present(&self, account: &AccountId) -> Vec<&str> {
        let holders = self.holders.get(account).into_iter().flatten();
        let present = holders.filter(|(holding, _)| *holding == AccountHolding::Present);
        present.map(|(_, holder)| holder.as_str()).collect()
    }

    /// Who has or had an account.
    pub(crate) fn all(&self, account: &AccountId) -> Vec<&str> {
        let holders = self.holders.get(account).into_iter().flatten();
        holders.map(|(_, holder)| holder.as_str()).collect()
    }

    pub(crate) fn accounts(&self) -> impl Iterator<Item = &AccountId> {
        self.holders.keys()
    }
}

/// The platform's own account; `None` if Stripe cannot be asked, or does not tell it to this key.
pub(crate) async fn find_platform_account(session: &StackSession) -> Result<Option<AccountId>> {
    Ok(open_stripe(session).await?.find_own_account().await?)
}

/// Refuses the platform's own account: its events have no account, and would never find a tenant.
pub(crate) struct PlatformCheck(Option<AccountId>);

impl PlatformCheck {
    /// A tenant can be added without a key, and with one that may not ask; then it is said that nothing was checked.
    pub(crate) async fn load(session: &StackSession) -> Self {
        let unknown = match find_platform_account(session).await {
            Ok(Some(platform)) => return Self(Some(platform)),
            Ok(None) => "Stripe does not tell it to this restricted key".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        print_notice(&format!(
            "not checked: whether the account is the platform's own ({unknown})"
        ));
        Self(None)
    }

    pub(crate) fn check(&self, account: &AccountId) -> Result<(), CommandExit> {
        match self.0.as_ref() == Some(account) {
            true => Err(CommandExit::Refused(format!(
                "{account} is the platform's own account, which belongs to no tenant"
            ))),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str) -> AccountId {
        AccountId::parse(id).unwrap()
    }

    fn columns(present: &str, previous: &[&str]) -> TenantColumns {
        TenantColumns {
            is_muted: false,
            account: Some(account(present)),
            previous: previous.iter().map(|id| account(id)).collect(),
        }
    }

    #[test]
    fn an_account_that_another_tenant_has_or_had_is_refused() {
        let mut holders = AccountHolders::default();
        holders.add("ten_1", &columns("acct_2", &["acct_1"]));
        holders.add("Bäckerei Müller", &columns("acct_3", &[]));
        let refusal = |id: &str, tenant: &str| {
            let checked = holders.check_free(&account(id), tenant);
            checked.err().map(|refusal| refusal.to_string())
        };
        for (id, tenant, part) in [
            ("acct_2", "ten_2", "acct_2 already belongs to ten_1"),
            ("acct_1", "ten_2", "acct_1 was ten_1's before"),
            ("acct_3", "ten_2", "belongs to Bäckerei Müller"),
        ] {
            let refusal = refusal(id, tenant).unwrap();
            assert!(refusal.contains(part), "{refusal}");
        }
        assert_eq!(refusal("acct_1", "ten_1"), None);
        assert_eq!(refusal("acct_4", "ten_2"), None);
        assert!(holders.is_present(&account("acct_2"), "ten_1"));
        assert!(!holders.is_present(&account("acct_1"), "ten_1"));
    }

    #[test]
    fn the_platforms_own_account_is_refused() {
        let platform = PlatformCheck(Some(account("acct_platform")));
        let refused = platform.check(&account("acct_platform")).unwrap_err();
        assert_eq!(refused.exit_code(), 4);
        assert!(platform.check(&account("acct_1")).is_ok());
        assert!(PlatformCheck(None).check(&account("acct_platform")).is_ok());
    }
}
