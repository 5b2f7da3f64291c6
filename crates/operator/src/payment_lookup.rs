//! Finds the payments of a PaymentIntent, and has them rechecked. A payment's key contains the account (tenant isolation),
//! and a PaymentIntent's id does not tell its account: so the platform is looked up, and every account that may have the
//! payment.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::sqs::EventQueues;
use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{AccountId, PaymentIntentId, PaymentRef, ProviderId, TenantId};
use billhook_core::intake::message::PaymentPointer;
use billhook_core::intake::ports::SendMessage as _;
use billhook_core::ports::Clock as _;
use billhook_core::worker::ports::Ledger;

/// The connected accounts of these tenants.
pub(crate) async fn load_tenant_accounts(
    ledger: &impl Ledger,
    tenants: impl IntoIterator<Item = TenantId>,
) -> Result<BTreeSet<AccountId>> {
    let keys = tenants.into_iter().map(EntityKey::Tenant);
    let keys: BTreeSet<StateKey> = keys.map(StateKey::Entity).collect();
    if keys.is_empty() {
        return Ok(BTreeSet::new());
    }
    let rows = ledger.load_rows(&keys).await?;
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

/// The payment on the platform and on these accounts, as far as an event of it has arrived.
pub(crate) async fn load_payments(
    ledger: &impl Ledger,
    intent: &PaymentIntentId,
    accounts: BTreeSet<AccountId>,
) -> Result<Vec<PaymentState>> {
    let accounts = accounts.into_iter().map(Some).chain([None]);
    let keys = accounts.map(|account| PaymentKey {
        account,
        payment: PaymentRef::Intent(intent.clone()),
    });
    let rows = ledger
        .load_rows(&keys.map(StateKey::Payment).collect())
        .await?;
    if let Some((key, reason)) = rows.unreadable.first_key_value() {
        bail!("cannot read {key}: {reason}");
    }
    let payments = rows.payments.into_values();
    Ok(payments.map(|(payment, _)| payment).collect())
}

/// Has the worker recheck a payment: it searches the rows that have the payment, and updates outdated copies.
pub(crate) async fn send_payment(queue: &EventQueues, payment: &PaymentKey) -> Result<()> {
    let body = PaymentPointer::message_for(payment);
    let deduplication_id = SystemClock.new_id().hyphenated().to_string();
    let group = PaymentPointer::group(payment);
    queue
        .send(ProviderId::Stripe, &group, &deduplication_id, &body)
        .await
        .with_context(|| format!("cannot send {payment} to the worker"))
}
