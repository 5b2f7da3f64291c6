//! Loads what the proofs of some states need: the states and rows, what they rest on, and their events. A few reads of
//! rows and one of events for each provider, however many states are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::copies::{copied_names, copies_of};
use super::entity::{TenantsByAccount, is_behind, prove_entity};
use super::payment::prove_payment;
use super::stated::{EventReading, EventReadings, EventUse, NeededEvents, ReadEvent};
use super::{
    DifferenceSource, ProofResult, StateDifference, StateProof, UNREADABLE, entity, payment,
};
use crate::entity::key::{InvoiceKey, PaymentKey, StateKey};
use crate::entity::payment::linked::LinkState;
use crate::entity::tenant::find_account_tenant;
use crate::entity::{Entity, EntityKey};
use crate::error::DependencyError;
use crate::ids::{AccountId, EventId, PaymentRef, PerProvider, ProviderId};
use crate::provider::interpret;
use crate::provider::interpret::InterpretRules;
use crate::time::Timestamp;
use crate::worker::ports::{Ledger, LoadedRows, StoredEvent, StoredPayload, TenantLookup};

/// How often a state is read that looks different.
const READS_MAX: usize = 3;

/// Events by the state that took their facts, as an index says.
pub type EventsByState = BTreeMap<StateKey, BTreeSet<EventId>>;

/// Proves states. It only reads.
#[derive(Debug)]
pub struct StateProver<L> {
    /// Reads states and rows.
    pub states: L,
    /// Reads the events of each provider.
    pub events: PerProvider<L>,
    pub rules: InterpretRules,
}

/// What a proof rests on.
pub struct ProofRows<R> {
    pub(super) rows: LoadedRows<R>,
    pub(super) events: EventReadings,
    tenants: TenantsByAccount,
}

impl<R> ProofRows<R> {}

impl<L: Ledger> StateProver<L> {
    /// Proves these states. `named` are events that an index names for them, which they may have lost.
    ///
    /// A state and what it rests on are not read at one time, so a worker may write in between. What looks different is
    /// read again, and is different only if it stays so.
    pub async fn prove(
        &self,
        keys: &BTreeSet<StateKey>,
        named: &EventsByState,
        now: Timestamp,
    ) -> Result<Vec<StateProof>, DependencyError> {
        let mut proven = BTreeMap::new();
        let mut rest = keys.clone();
        for _ in 0..READS_MAX {
            let loaded = self.load(&rest, named).await?;
            let proofs = prove_states::<L>(&rest, named, &loaded, now);
            rest.clear();
            for proof in proofs {
                if proof.result() == ProofResult::Different {
                    rest.insert(proof.key.clone());
                }
                proven.insert(proof.key.clone(), proof);
            }
            if rest.is_empty() {
                break;
            }
        }
        Ok(proven.into_values().collect())
    }

    /// These states and those that their proofs rest on.
    pub async fn with_related(
        &self,
        keys: &BTreeSet<StateKey>,
    ) -> Result<BTreeSet<StateKey>, DependencyError> {
        let loaded = self.load(keys, &EventsByState::new()).await?;
        let mut all = related_keys(keys, &loaded.rows, &loaded.events);
        all.extend(keys.iter().cloned());
        Ok(all)
    }

    pub(super) async fn load(
        &self,
        keys: &BTreeSet<StateKey>,
        named: &EventsByState,
    ) -> Result<ProofRows<L::Row>, DependencyError> {
        let mut rows = self.states.load_rows(keys).await?;
        let mut known = keys.clone();
        let mut events = EventReadings::default();
        self.read_events(needed_events::<L>(keys, &rows, named), &mut events)
            .await?;
        // From an entity or event to the payment, from there to its other names and its invoices, and to each order that a
        // person linked it to. If the entity's state was lost, first to its tenant, whose account the payment is of.
        let copied = self.find_copies_of_lost(keys, &rows).await?;
        loop {
            let mut needed = related_keys(keys, &rows, &events);
            needed.extend(copied.iter().cloned());
            needed.retain(|key| !known.contains(key));
            if needed.is_empty() {
                break;
            }
            rows.extend(self.states.load_rows(&needed).await?);
            known.extend(needed);
        }
        let contradicted = contradicted_events(keys, &rows).into_iter();
        let contradicted = contradicted.map(|id| (id, EventUse::Payment));
        self.read_events(contradicted.collect(), &mut events)
            .await?;
        let accounts: BTreeSet<AccountId> = rows
            .payments
            .keys()
            .filter_map(|payment| payment.account.clone())
            .collect();
        let mut tenants = TenantsByAccount::new();
        for account in accounts {
            let lookup = TenantLookup::MayBeCached;
            let hits = self.states.tenants_by_account(&account, lookup).await?;
            let keys = hits.tenants().cloned().map(EntityKey::Tenant);
            let missing: BTreeSet<StateKey> = keys
                .map(StateKey::Entity)
                .filter(|key| !known.contains(key))
                .collect();
            if !missing.is_empty() {
                let read = self.states.load_rows(&missing).await?;
                rows.tenants.extend(read.tenants);
            }
            let found = find_account_tenant(&account, &hits, &rows.tenants);
            tenants.extend(found.ok().map(|tenant| (account, tenant)));
        }
        Ok(ProofRows {
            rows,
            events,
            tenants,
        })
    }

    /// The orders and statements that may have a copy of a payment whose state was lost, and that no event names: a person
    /// linked it to them, or they have its PaymentIntent in their column.
    async fn find_copies_of_lost(
        &self,
        keys: &BTreeSet<StateKey>,
        rows: &LoadedRows<L::Row>,
    ) -> Result<BTreeSet<StateKey>, DependencyError> {
        let mut found = BTreeSet::new();
        for key in keys {
            if let StateKey::Payment(payment) = key
                && !rows.payments.contains_key(payment)
                && !rows.unreadable.contains_key(key)
                && let Some(intent) = payment.payment.intent()
            {
                let hits = self.states.entities_by_payment_intent(intent).await?;
                let hits = hits.into_iter();
                found.extend(hits.filter(|hit| !rows.entities.contains_key(hit)));
            }
        }
        Ok(found.into_iter().map(StateKey::Entity).collect())
    }

    async fn read_events(
        &self,
        needed: NeededEvents,
        readings: &mut EventReadings,
    ) -> Result<(), DependencyError> {
        for provider in ProviderId::ALL {
            let missing: BTreeSet<EventId> = needed
                .iter()
                .filter(|(id, of)| !readings.has(id, *of))
                .map(|(id, _)| id.clone())
                .collect();
            self.read_events_of(*provider, &missing, readings).await?;
        }
        Ok(())
    }

    pub(super) async fn read_events_of(
        &self,
        provider: ProviderId,
        ids: &BTreeSet<EventId>,
        readings: &mut EventReadings,
    ) -> Result<(), DependencyError> {
        if ids.is_empty() {
            return Ok(());
        }
        let ledger = self.events.of(provider);
        for event in ledger.load_events(provider, ids).await? {
            let id = event.stored.id.clone();
            readings.insert(id, self.read_event(provider, event));
        }
        Ok(())
    }

    fn read_event(&self, provider: ProviderId, event: StoredEvent) -> EventReading {
        let StoredEvent {
            stored,
            payload,
            is_set_aside,
            ..
        } = event;
        let payload = match payload {
            StoredPayload::Intact(payload) => payload,
            StoredPayload::Tampered => return EventReading::Tampered,
            StoredPayload::Unreadable => return EventReading::Unreadable,
        };
        let account = stored.account.as_ref();
        let read = || interpret(provider, &self.rules, account, &payload);
        // A payload that no release can read is no reason to stop.
        match catch_unwind(AssertUnwindSafe(read)) {
            Ok(facts) => EventReading::Read(Box::new(ReadEvent {
                provider,
                id: stored.id.clone(),
                account: stored.account.clone(),
                outcome: stored.outcome,
                processed: stored.processed,
                is_set_aside,
                facts: facts.ok(),
            })),
            Err(_) => EventReading::Unreadable,
        }
    }
}

/// Proves states of which everything is loaded. Pure.
pub(super) fn prove_states<L: Ledger>(
    keys: &BTreeSet<StateKey>,
    named: &EventsByState,
    loaded: &ProofRows<L::Row>,
    now: Timestamp,
) -> Vec<StateProof> {
    let none = BTreeSet::new();
    let rows = &loaded.rows;
    let prove = |key: &StateKey| {
        if let Some(unreadable) = rows.unreadable.get(key) {
            let mut proof = StateProof::new(key.clone());
            proof.differences.push(
                StateDifference::new(
                    DifferenceSource::States,
                    "state",
                    Some(&unreadable.to_string()),
                    None,
                )
                .decided_by(UNREADABLE),
            );
            return proof;
        }
        let named = named.get(key).unwrap_or(&none);
        match key {
            StateKey::Payment(key) => prove_payment(key, rows, &loaded.events, named),
            StateKey::Invoice(key) => prove_invoice(key, rows),
            StateKey::Entity(key) => match rows.entities.get(key) {
                Some((entity, row)) => prove_entity::<L>(
                    entity,
                    row,
                    rows,
                    &loaded.events,
                    &loaded.tenants,
                    named,
                    now,
                ),
                None => StateProof::new(key.clone().into()),
            },
        }
    };
    keys.iter().map(prove).collect()
}

/// Each payment of an invoice says that it pays it.
fn prove_invoice<R>(key: &InvoiceKey, rows: &LoadedRows<R>) -> StateProof {
    let mut proof = StateProof::new(StateKey::Invoice(key.clone()));
    let Some((invoice, _)) = rows.invoices.get(key) else {
        return proof;
    };
    for payment in &invoice.facts.payments {
        let known = rows.payment(payment);
        let of_alias = known.and_then(|known| rows.payment(known.alias_of.as_ref()?));
        let known = of_alias.or(known);
        // Its own proof says so.
        let is_unreadable = rows.unreadable.contains_key(&payment.clone().into());
        let is_its = known.is_some_and(|known| known.facts.invoices.contains(&key.invoice));
        if is_its || is_unreadable {
            continue;
        }
        let found = match known {
            Some(_) => "a payment of other invoices",
            None => "no state",
        };
        proof.differences.push(
            StateDifference::new(
                DifferenceSource::States,
                format!("facts.payments.{payment}"),
                Some(found),
                Some("a payment of this invoice"),
            )
            .decided_by(
                "rebuild the payment; if it is another one's, only people know why it is here",
            ),
        );
    }
    proof
}

fn needed_events<L: Ledger>(
    keys: &BTreeSet<StateKey>,
    rows: &LoadedRows<L::Row>,
    named: &EventsByState,
) -> NeededEvents {
    let none = BTreeSet::new();
    let mut needed = NeededEvents::new();
    for key in keys {
        let named = named.get(key).unwrap_or(&none);
        match key {
            StateKey::Payment(key) => {
                let events = payment::needed_events(rows.payment(key), named);
                needed.extend(events.into_iter().map(|id| (id, EventUse::Payment)));
            }
            StateKey::Entity(key) => {
                if let Some((entity, row)) = rows.entities.get(key) {
                    let events = entity::needed_events(entity, named).into_iter();
                    needed.extend(events.map(|id| (id, entity::use_of(key))));
                    if is_behind(entity) {
                        let events = entity::own_events::<L>(entity, row, named).into_iter();
                        needed.extend(events.map(|id| (id, EventUse::Any)));
                    }
                }
            }
            StateKey::Invoice(_) => {}
        }
    }
    needed
}

/// The events of payments that do not agree with their copies: they say which is right.
fn contradicted_events<R>(keys: &BTreeSet<StateKey>, rows: &LoadedRows<R>) -> BTreeSet<EventId> {
    let entities = keys.iter().filter_map(|key| match key {
        StateKey::Entity(key) => rows.entities.get(key),
        StateKey::Payment(_) | StateKey::Invoice(_) => None,
    });
    let payments = entities.flat_map(|(entity, _)| entity::contradicted_payments(entity, rows));
    payments
        .flat_map(|payment| payment::needed_events(Some(payment), &BTreeSet::new()))
        .collect()
}

/// What the proofs of these states rest on, as far as it is known by now.
fn related_keys<R>(
    keys: &BTreeSet<StateKey>,
    rows: &LoadedRows<R>,
    events: &EventReadings,
) -> BTreeSet<StateKey> {
    let mut related = BTreeSet::new();
    for key in keys {
        match key {
            StateKey::Payment(key) => related.extend(related_to_payment(key, rows)),
            StateKey::Entity(key) => {
                if let Some((entity, _)) = rows.entities.get(key) {
                    let payments = entity.linked_payment_facts();
                    let payments = payments.into_iter().flat_map(|facts| facts.payments.keys());
                    related.extend(payments.cloned().map(StateKey::Payment));
                    if is_behind(entity) {
                        let tenant = entity.tenant().cloned().map(EntityKey::Tenant);
                        related.extend(tenant.map(StateKey::Entity));
                        related.extend(payments_of_row(entity, events, rows));
                    }
                }
            }
            StateKey::Invoice(key) => {
                if let Some((invoice, _)) = rows.invoices.get(key) {
                    let payments = &invoice.facts.payments;
                    related.extend(payments.iter().cloned().map(StateKey::Payment));
                    let known = payments.iter().filter_map(|payment| rows.payment(payment));
                    let aliases = known.filter_map(|payment| payment.alias_of.clone());
                    related.extend(aliases.map(StateKey::Payment));
                }
            }
        }
    }
    // A payment that was lost is known by its events.
    let asked = |payment: &PaymentKey| keys.contains(&StateKey::Payment(payment.clone()));
    for event in events.read() {
        let names: Vec<PaymentKey> = names_of(event).collect();
        let is_asked = names.iter().any(asked);
        // Also of an event that seems to be about another payment: the row of its name may say that it is not.
        related.extend(names.into_iter().map(StateKey::Payment));
        if is_asked {
            related.extend(event.named_entity().cloned().map(StateKey::Entity));
            let invoice = event.payment().and_then(|payment| payment.invoice.clone());
            related.extend(invoice.map(|invoice| {
                StateKey::Invoice(InvoiceKey {
                    account: event.account.clone(),
                    invoice,
                })
            }));
        }
    }
    related
}

fn names_of(event: &ReadEvent) -> impl Iterator<Item = PaymentKey> + '_ {
    let names = event
        .payment()
        .into_iter()
        .flat_map(|payment| &payment.names);
    names.map(|name| PaymentKey {
        account: event.account.clone(),
        payment: name.clone(),
    })
}

fn related_to_payment<R>(key: &PaymentKey, rows: &LoadedRows<R>) -> BTreeSet<StateKey> {
    let mut related = BTreeSet::new();
    let Some(payment) = rows.payment(key) else {
        // Lost: its copies say what its other names may be, and where a person linked it.
        for (_, copy) in copies_of(key, rows) {
            related.extend(copied_names(key, copy).map(StateKey::Payment));
            let relink = copy.relink.iter();
            let relink = relink.filter_map(|relink| relink.0.entity.clone());
            related.extend(relink.map(StateKey::Entity));
        }
        return related;
    };
    if let Some(payment) = &payment.alias_of {
        related.insert(StateKey::Payment(payment.clone()));
        return related;
    }
    related.extend(payment::possible_names(payment).map(StateKey::Payment));
    let links = payment.link_states().into_iter();
    let linked = links.filter(|(_, link)| *link != LinkState::Elsewhere);
    let linked = linked.map(|(entity, _)| entity);
    let copied = payment.copied.keys().cloned();
    related.extend(linked.chain(copied).map(StateKey::Entity));
    let names = payment.facts.names.iter().cloned();
    related.extend(names.map(|name| StateKey::Payment(key.with_name(name))));
    related.extend(payment.facts.invoices.iter().map(|invoice| {
        StateKey::Invoice(InvoiceKey {
            account: key.account.clone(),
            invoice: invoice.clone(),
        })
    }));
    related
}

/// The payments that the events in the row's timeline are about.
fn payments_of_row<R>(
    entity: &Entity,
    events: &EventReadings,
    rows: &LoadedRows<R>,
) -> BTreeSet<StateKey> {
    let mut payments: BTreeSet<PaymentKey> = events.read().flat_map(names_of).collect();
    let tenant = entity.tenant().cloned().map(EntityKey::Tenant);
    let tenant = tenant.and_then(|tenant| rows.entities.get(&tenant));
    let accounts = tenant.into_iter().flat_map(|(tenant, _)| tenant.accounts());
    let accounts: BTreeSet<_> = accounts.cloned().map(Some).chain([None]).collect();
    if let Some(intent) = entity.payment_intent() {
        payments.extend(accounts.into_iter().map(|account| PaymentKey {
            account,
            payment: PaymentRef::Intent(intent.clone()),
        }));
    }
    let aliases = payments
        .iter()
        .filter_map(|payment| rows.payment(payment)?.alias_of.clone());
    let aliases: Vec<PaymentKey> = aliases.collect();
    payments.extend(aliases);
    payments.into_iter().map(StateKey::Payment).collect()
}
