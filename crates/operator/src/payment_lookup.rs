//! Finds the payments of a PaymentIntent and what bears them, and links them. A payment's key contains the account (tenant
//! isolation), and a PaymentIntent's id does not tell its account: so the platform is looked up, and every account that may
//! have the payment.
//!
//! A link goes through the worker's own path and is read back: what is said to be linked was seen to be.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::entity::schema::GuardedColumns;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{AccountId, PaymentIntentId, PaymentRef, ProviderId, TenantId};
use billhook_core::ports::Pause as _;
use billhook_core::worker::batch::{ProcessingFailure, RelinkError, Worker};
use billhook_core::worker::ports::Ledger;
use serde_json::{Value, json};

use crate::audit::{AuditContext, ChangeAuthor};
use crate::entity_repair::write_timeline_note;
use crate::exit::CommandExit;
use crate::row_standing::{describe_row_standing, load_entity};
use crate::session::StackSession;

/// The connected accounts of these tenants, also those that they had before.
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
    let tenants = rows.tenants.values();
    let accounts = tenants.flat_map(|tenant| tenant.accounts().cloned());
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

/// The other orders and statements that bear this PaymentIntent: in their column, or because one of these payments is linked
/// to them. The index is only a hint, so their rows are read.
pub(crate) async fn find_rivals(
    ledger: &impl Ledger,
    intent: &PaymentIntentId,
    payments: &[PaymentState],
    own: &EntityKey,
) -> Result<BTreeSet<EntityKey>> {
    let mut rivals = find_bearers(ledger, intent).await?;
    rivals.extend(payments.iter().flat_map(PaymentState::linked_entities));
    rivals.remove(own);
    Ok(rivals)
}

/// The orders and statements that have this PaymentIntent in their column.
pub(crate) async fn find_bearers(
    ledger: &impl Ledger,
    intent: &PaymentIntentId,
) -> Result<BTreeSet<EntityKey>> {
    let hits = ledger.entities_by_payment_intent(intent).await?;
    if hits.is_empty() {
        return Ok(BTreeSet::new());
    }
    let keys: BTreeSet<StateKey> = hits.into_iter().map(StateKey::Entity).collect();
    let rows = ledger.load_rows(&keys).await?;
    let bears =
        |entity: &Entity| !entity.row().is_missing && entity.payment_intent() == Some(intent);
    let mut bearers = BTreeSet::new();
    for key in keys.into_iter().filter_map(StateKey::into_entity) {
        let row = rows.entities.get(&key);
        // One that cannot be read may bear it.
        if row.is_none_or(|(entity, _)| bears(entity)) {
            bearers.insert(key);
        }
    }
    Ok(bearers)
}

/// Attempts to win the optimistic lock. A worker that processes a burst of events may win a few times.
const ATTEMPTS_MAX: u32 = 5;

/// A person's or a column's word about what a payment is linked to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkChange<'a> {
    /// The row bears the PaymentIntent; a better link stays.
    ByColumn(&'a EntityKey),
    /// Decided, whatever else names it; to none if it is nobody's.
    Decided(Option<&'a EntityKey>, &'a AuditContext),
}

/// Links a payment through the worker's own path, and returns it as it is then.
pub(crate) async fn change_link(
    session: &StackSession,
    payment: &PaymentKey,
    change: LinkChange<'_>,
) -> Result<PaymentState> {
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: session.stack.interpret_rules()?,
        ledger: session.ledger(ProviderId::Stripe)?,
        clock: SystemClock,
    };
    let mut attempt = 1;
    let changed = loop {
        let changed = match change {
            LinkChange::ByColumn(to) => worker.link_payment(payment, to).await,
            LinkChange::Decided(to, audit) => {
                let ChangeAuthor { actor, reason } = &audit.author;
                worker.relink_payment(payment, to, actor, reason).await
            }
        };
        match changed {
            Err(RelinkError::Failed(ProcessingFailure::Infrastructure(_)))
                if attempt < ATTEMPTS_MAX =>
            {
                SystemClock
                    .pause(Duration::from_millis(25 << attempt))
                    .await;
                attempt += 1;
            }
            changed => break changed,
        }
    };
    let to = match change {
        LinkChange::ByColumn(to) => Some(to),
        LinkChange::Decided(to, _) => to,
    };
    let of = to.map_or_else(|| payment.to_string(), ToString::to_string);
    match changed {
        Ok(_) => load_payment(session, payment.clone()).await,
        Err(error @ (RelinkError::TargetUnknown | RelinkError::PaymentUnknown)) => {
            Err(CommandExit::NotFound(format!("{of}: {error}")).into())
        }
        Err(error @ RelinkError::OtherTenant) => {
            Err(CommandExit::Refused(format!("{of}: {error}")).into())
        }
        Err(error) => match to {
            Some(to) => bail!("cannot link {payment} to {to}: {error}"),
            None => bail!("cannot take {payment} from what it is linked to: {error}"),
        },
    }
}

/// The payment of this name; of an alias the payment that it leads to.
pub(crate) async fn load_payment(session: &StackSession, key: PaymentKey) -> Result<PaymentState> {
    let ledger = session.ledger(ProviderId::Stripe)?;
    let mut key = key;
    loop {
        let state = StateKey::Payment(key.clone());
        let mut rows = ledger.load_rows(&[state.clone()].into()).await?;
        if let Some(reason) = rows.unreadable.remove(&state) {
            bail!("cannot read {key}: {reason}");
        }
        let Some((payment, _)) = rows.payments.remove(&key) else {
            let stack = &session.stack.name;
            return Err(CommandExit::NotFound(format!(
                "no event of {key} has arrived in {stack}; for a payment of a connected account, add --account"
            ))
            .into());
        };
        match payment.alias_of.clone() {
            Some(alias_of) => key = alias_of,
            None => return Ok(payment),
        }
    }
}

/// Writes into the timelines of these orders and statements what was decided about a payment; of one whose row is gone
/// there is no timeline.
pub(crate) async fn note_link(
    session: &StackSession,
    entities: impl IntoIterator<Item = &EntityKey>,
    action: &str,
    audit: &AuditContext,
) -> Result<()> {
    for key in entities {
        let entity = load_entity(session, key).await?;
        if entity.is_some_and(|entity| !entity.row().is_missing) {
            write_timeline_note(session, key, action, audit).await?;
        }
    }
    Ok(())
}

/// What an order or statement shows now.
pub(crate) async fn describe_side(session: &StackSession, key: &EntityKey) -> Result<Value> {
    let entity = load_entity(session, key).await?;
    let entity = entity.as_ref();
    let columns = entity.map(Entity::columns);
    let of = |column: fn(&GuardedColumns) -> &Option<String>| {
        columns.and_then(|columns| column(columns).clone())
    };
    Ok(json!({
        "entity": key,
        "status": of(|columns| &columns.status),
        "payment_status": of(|columns| &columns.payment_status),
        "review_reasons": entity.map(|entity| entity.last_derived().review_reasons.clone()),
        "row": entity.and_then(describe_row_standing),
    }))
}

/// Names of orders and statements for a sentence.
pub(crate) fn list_entities<'a>(entities: impl IntoIterator<Item = &'a EntityKey>) -> String {
    let names: Vec<String> = entities.into_iter().map(ToString::to_string).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}
