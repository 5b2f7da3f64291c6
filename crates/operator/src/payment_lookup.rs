//! Finds the payments rows of a PaymentIntent. Their key contains the account (tenant isolation), and a PaymentIntent's
//! id does not tell its account: so the platform is looked up, and every account that may have the payment.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{AccountId, PaymentIntentId, PaymentRef, TenantId};
use billhook_core::worker::ports::{Ledger, PaymentKey, PaymentRow};

/// The connected accounts of these tenants.
pub(crate) async fn load_tenant_accounts(
    ledger: &impl Ledger,
    tenants: impl IntoIterator<Item = TenantId>,
) -> Result<BTreeSet<AccountId>> {
    let keys: BTreeSet<EntityKey> = tenants.into_iter().map(EntityKey::Tenant).collect();
    if keys.is_empty() {
        return Ok(BTreeSet::new());
    }
    let rows = ledger.load_rows(&keys, &BTreeSet::new()).await?;
    if let Some((key, reason)) = rows.unreadable.first_key_value() {
        bail!("cannot read {key}: {reason}");
    }
    let accounts = rows.entities.into_values().filter_map(|(entity, _)| {
        if let Entity::Tenant(tenant) = entity {
            tenant.given.account
        } else {
            None
        }
    });
    Ok(accounts.collect())
}

/// The payment's rows on the platform and on these accounts, as far as they exist.
pub(crate) async fn load_payment_rows(
    ledger: &impl Ledger,
    intent: &PaymentIntentId,
    accounts: BTreeSet<AccountId>,
) -> Result<Vec<PaymentRow>> {
    let accounts = accounts.into_iter().map(Some).chain([None]);
    let keys = accounts.map(|account| PaymentKey {
        account,
        payment: PaymentRef::Intent(intent.clone()),
    });
    let rows = ledger.load_rows(&BTreeSet::new(), &keys.collect()).await?;
    Ok(rows.payments.into_values().collect())
}
