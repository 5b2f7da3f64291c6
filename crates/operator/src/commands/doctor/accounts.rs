//! Checks the connected accounts in the tenants table: each is of one tenant, and none is the platform's own.

use anyhow::Result;
use billhook_core::ids::AccountId;

use super::finding::CheckFinding;
use crate::account_holders::{AccountHolders, find_platform_account};
use crate::session::StackSession;

const PAGE: &str = "docs/runbook/onboarding.md";

/// `can_ask` is false if no key for Stripe is stored: then who the platform is, is not asked.
pub(super) async fn check_accounts(
    session: &StackSession,
    can_ask: bool,
) -> Result<Vec<CheckFinding>> {
    let holders = AccountHolders::load(session).await?;
    let mut findings = vec![report_shared(&holders), report_muted(&holders)];
    if can_ask {
        let platform = find_platform_account(session).await?;
        findings.push(report_platform(&holders, platform.as_ref()));
    }
    Ok(findings)
}

fn report_shared(holders: &AccountHolders) -> CheckFinding {
    let shared = holders.accounts().filter_map(|account| {
        let tenants = holders.present(account);
        (tenants.len() > 1).then(|| format!("{account}: {}", tenants.join(", ")))
    });
    let shared: Vec<String> = shared.collect();
    let check = "each connected account has one tenant";
    let fix = format!("leave it with one tenant, then release its events: {PAGE}");
    CheckFinding::from_check(check, shared.is_empty(), shared.join("; "), fix)
}

/// Somebody muted them on purpose, so it is no fault; it is said, so that nobody forgets it.
fn report_muted(holders: &AccountHolders) -> CheckFinding {
    let muted = holders.muted.iter();
    let muted = muted.map(|(tenant, at)| format!("{tenant} since {at}"));
    let mut detail = muted.collect::<Vec<_>>().join(", ");
    if !detail.is_empty() {
        detail += "; billhook tenants unmute TENANT --replay has their events processed";
    }
    CheckFinding::from_check("muted tenants", true, detail, "")
}

fn report_platform(holders: &AccountHolders, platform: Option<&AccountId>) -> CheckFinding {
    let check = "no tenant has the platform's own account";
    let Some(platform) = platform else {
        let detail = "not checked: Stripe does not tell the account of this restricted key";
        return CheckFinding::from_check(check, true, detail, "");
    };
    let tenants = holders.all(platform);
    let detail = match tenants.is_empty() {
        true => String::new(),
        false => format!("{platform}: {}", tenants.join(", ")),
    };
    let fix = format!("take the account out of that row: {PAGE}");
    CheckFinding::from_check(check, tenants.is_empty(), detail, fix)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use billhook_core::entity::tenant::TenantColumns;

    use super::*;

    #[test]
    fn a_shared_account_and_the_platforms_own_are_named_with_their_tenants() {
        let account = |id: &str| AccountId::parse(id).unwrap();
        let mut holders = AccountHolders::default();
        let mut add = |tenant: &str, present: &str, previous: &[&str]| {
            let previous: BTreeSet<AccountId> = previous.iter().map(|id| account(id)).collect();
            let account = Some(account(present));
            let is_muted = false;
            let columns = TenantColumns {
                account,
                previous,
                is_muted,
            };
            holders.add(tenant, &columns);
        };
        add("ten_1", "acct_1", &[]);
        add("ten_2", "acct_1", &["acct_platform"]);
        add("ten_3", "acct_3", &["acct_1"]);
        let shared = report_shared(&holders);
        assert!(!shared.is_good);
        assert_eq!(shared.detail, "acct_1: ten_1, ten_2");
        let platform = report_platform(&holders, Some(&account("acct_platform")));
        assert!(!platform.is_good);
        assert_eq!(platform.detail, "acct_platform: ten_2");
        assert!(report_platform(&holders, Some(&account("acct_9"))).is_good);
        assert!(report_platform(&holders, None).is_good);
        assert!(report_shared(&AccountHolders::default()).is_good);
        assert_eq!(report_muted(&holders).detail, "");
        let at = "2026-11-21T08:00:00.000Z".to_owned();
        holders.muted.insert("ten_2".to_owned(), at);
        let muted = report_muted(&holders);
        assert!(
            muted.is_good
                && muted
                    .detail
                    .starts_with("ten_2 since 2026-11-21T08:00:00.000Z;")
        );
    }
}
