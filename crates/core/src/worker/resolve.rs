//! Finds the tenant of each event, and finds the entity or payment that takes its facts. Tenant isolation: the tenant
//! comes from the account in the signed body and never from metadata; metadata only names an entity, which must then
//! belong to that tenant.
//!
//! An event about a connected account belongs to its tenant; an event about a piece to the statement of that piece or,
//! if no statement has it, to the one that the metadata names. An event about a payment always belongs to the payment,
//! whose other names may be aliases; what its metadata names, or a row with its PaymentIntent in a column, becomes a link
//! of the payment. An event that names a row which does not exist, or another tenant's, is parked: its payment takes the
//! facts, but no link.
//!
//! Reads are gathered: a batch of ten events usually costs one or two reads of rows and never more than `READS_MAX`. The
//! decision is `resolve_event`, a
//! pure function. An index is only a hint: what it returns is checked against the row, read consistently. So is the tenant
//! of an account, which a cache of up to 60 s may name: its row is in the first of these reads, and costs no call.
//! docs/SEMANTICS.md, "Which entity an event belongs to", states the rules.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt as _};

use crate::entity::key::{InvoiceKey, PaymentKey, StateKey};
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::payment::linked::LinkState;
use crate::entity::payment::state::{LinkSource, PaymentState, referenced_entities};
use crate::entity::schema::UnreadableRow;
use crate::entity::tenant::{AccountHits, find_account_tenant};
use crate::entity::{Entity, EntityKey};
use crate::error::{DependencyError, error_chain};
use crate::ids::{AccountId, EventId, PaymentIntentId, PieceId, TenantId};
use crate::outcome::{EventVerdict, IgnoreReason, ParkReason};
use crate::provider::interpret::{EventSubject, PaymentEventFacts};
use crate::worker::batch::{CALLS_AT_ONCE, ProcessingFailure};
use crate::worker::ports::{EventUpdate, Ledger, LoadedRows, TenantLookup};
use crate::worker::step::{EventCandidate, EventStep, EventTarget, fail_each};

/// Reads until every row that the decision needs is known. Each further read follows a reference: from a name
/// to the payment, from there to its links and invoices, from an invoice to its other payments and their links.
const READS_MAX: usize = 5;

/// What an index returned for each payment and piece. A query that failed fails only the events that need it.
#[derive(Default)]
pub(super) struct IndexHints {
    by_intent: BTreeMap<PaymentIntentId, Result<Vec<EntityKey>, String>>,
    by_piece: BTreeMap<PieceId, Result<Vec<EntityKey>, String>>,
}

/// The tenant of each account.
#[derive(Default)]
pub(super) struct AccountTenants(BTreeMap<AccountId, AccountTenant>);

enum AccountTenant {
    /// These may have it, and their rows are not read yet.
    Asked(AccountHits),
    /// The tenant whose row bears it; the reason why its events are parked if none does, or several.
    Found(Result<TenantId, ParkReason>),
    /// A call failed, so nothing can be said of it.
    Failed(String),
}

impl AccountTenants {
    /// Asks which tenants may have each account; their rows decide ([`confirm`](Self::confirm)).
    pub(super) async fn ask<L: Ledger>(
        ledger: &L,
        accounts: impl IntoIterator<Item = AccountId>,
    ) -> Self {
        let accounts: BTreeSet<AccountId> = accounts.into_iter().collect();
        let mut tenants = BTreeMap::new();
        for account in accounts {
            let lookup = TenantLookup::MayBeCached;
            let asked = match ledger.tenants_by_account(&account, lookup).await {
                Ok(hits) if hits.is_empty() => AccountTenant::Found(Err(ParkReason::TenantUnknown)),
                Ok(hits) => AccountTenant::Asked(hits),
                Err(error) => AccountTenant::Failed(error_chain(&error)),
            };
            tenants.insert(account, asked);
        }
        Self(tenants)
    }

    /// Adds the tenants of further accounts, and the rows that decide.
    pub(super) async fn add<L: Ledger>(
        &mut self,
        ledger: &L,
        accounts: impl IntoIterator<Item = AccountId>,
        rows: &mut LoadedRows<L::Row>,
    ) -> Result<(), DependencyError> {
        let accounts = accounts.into_iter();
        let new: BTreeSet<AccountId> = accounts.filter(|of| !self.0.contains_key(of)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut more = Self::ask(ledger, new).await;
        let keys = more.row_keys();
        if !keys.is_empty() {
            rows.extend(ledger.load_rows(&keys).await?);
        }
        more.confirm(ledger, rows).await;
        self.0.extend(more.0);
        Ok(())
    }

    /// The rows that decide.
    pub(super) fn row_keys(&self) -> BTreeSet<StateKey> {
        let hits = self.0.values().filter_map(|tenant| match tenant {
            AccountTenant::Asked(hits) => Some(hits),
            AccountTenant::Found(_) | AccountTenant::Failed(_) => None,
        });
        hits.flat_map(row_keys_of).collect()
    }

    /// Decides by the rows, which were read after the hits. What was remembered and is not confirmed is asked for again.
    pub(super) async fn confirm<L: Ledger>(&mut self, ledger: &L, rows: &mut LoadedRows<L::Row>) {
        for (account, tenant) in &mut self.0 {
            if let AccountTenant::Asked(hits) = tenant {
                let found = confirm_tenant(ledger, account, hits, rows).await;
                *tenant = match found {
                    Ok(found) => AccountTenant::Found(found),
                    Err(error) => AccountTenant::Failed(error_chain(&error)),
                };
            }
        }
    }

    /// `Err` if the tenant of one of these accounts could not be read, so that nothing can be said of it.
    pub(super) fn check_known<'a>(
        &self,
        accounts: impl IntoIterator<Item = &'a AccountId>,
    ) -> Result<(), ProcessingFailure> {
        for account in accounts {
            if let Some(AccountTenant::Failed(cause)) = self.0.get(account) {
                return Err(ProcessingFailure::Infrastructure(cause.clone()));
            }
        }
        Ok(())
    }

    /// Whether an event or payment of this account may change this entity: an event of a connected account only those
    /// of its own tenant. One of the platform may change any, because destination charges for tenants live on the
    /// platform's account.
    pub(super) fn may_change(&self, account: Option<&AccountId>, entity: &Entity) -> bool {
        if entity.write_refusal().is_some() {
            return false;
        }
        let Some(account) = account else { return true };
        match self.0.get(account) {
            Some(AccountTenant::Found(Ok(tenant))) => entity.tenant() == Some(tenant),
            _ => false,
        }
    }

    /// Why the money of a platform's payment may not be an entity's: only the tenant whose account gets it, or for which it
    /// is charged, has a claim.
    pub(super) fn receipt_refusal(
        &self,
        recipients: &BTreeSet<AccountId>,
        entity: &Entity,
    ) -> Option<ParkReason> {
        recipients
            .iter()
            .find_map(|account| match self.0.get(account) {
                Some(AccountTenant::Found(Ok(tenant))) => {
                    (entity.tenant() != Some(tenant)).then_some(ParkReason::CrossTenant)
                }
                Some(AccountTenant::Found(Err(reason))) => Some(*reason),
                Some(AccountTenant::Asked(_) | AccountTenant::Failed(_)) | None => {
                    Some(ParkReason::TenantUnknown)
                }
            })
    }
}

/// The accounts that get the money of these payments.
pub(super) fn recipients_of<R>(rows: &LoadedRows<R>) -> impl Iterator<Item = AccountId> {
    let payments = rows.payments.values();
    payments.flat_map(|(payment, _)| payment.facts.recipients.iter().cloned())
}

fn row_keys_of(hits: &AccountHits) -> impl Iterator<Item = StateKey> {
    let tenants = hits.tenants().cloned().map(EntityKey::Tenant);
    tenants.map(StateKey::Entity)
}

async fn confirm_tenant<L: Ledger>(
    ledger: &L,
    account: &AccountId,
    hits: &AccountHits,
    rows: &mut LoadedRows<L::Row>,
) -> Result<Result<TenantId, ParkReason>, DependencyError> {
    let found = find_account_tenant(account, hits, &rows.tenants);
    if !hits.is_cached || found != Err(ParkReason::TenantUnknown) {
        return Ok(found);
    }
    let fresh = ledger
        .tenants_by_account(account, TenantLookup::Fresh)
        .await?;
    let missing = row_keys_of(&fresh).filter(|key| match key {
        StateKey::Entity(EntityKey::Tenant(tenant)) => !rows.tenants.contains_key(tenant),
        _ => false,
    });
    let missing: BTreeSet<StateKey> = missing.collect();
    if !missing.is_empty() {
        rows.extend(ledger.load_rows(&missing).await?);
    }
    Ok(find_account_tenant(account, &fresh, &rows.tenants))
}

/// Sets each event's tenant, if it is known already. An event without an account belongs to the platform and has no tenant.
/// Parks the event if no tenant or several have its account; if it is about a payment, only after the payment took its
/// facts.
pub(super) fn assign_tenants(
    candidates: Vec<EventCandidate>,
    tenants: &AccountTenants,
) -> Vec<EventStep<EventCandidate>> {
    let assign = |mut candidate: EventCandidate| {
        let account = candidate.stored.account.as_ref();
        match account.and_then(|account| tenants.0.get(account)) {
            None | Some(AccountTenant::Asked(_)) => EventStep::Ready(candidate),
            Some(AccountTenant::Failed(cause)) => {
                candidate.fail(ProcessingFailure::Infrastructure(cause.clone()))
            }
            Some(AccountTenant::Found(Ok(tenant))) => {
                candidate.tenant = Some(tenant.clone());
                EventStep::Ready(candidate)
            }
            Some(AccountTenant::Found(Err(reason))) => match candidate.event.subject {
                EventSubject::Payment(_) => {
                    candidate.parked = Some(*reason);
                    EventStep::Ready(candidate)
                }
                EventSubject::Piece(..) | EventSubject::Account(_) => candidate.park(*reason),
            },
        }
    };
    candidates.into_iter().map(assign).collect()
}

/// Sets the tenant of each event and what it belongs to. Returns the rows too, for the commit.
pub(super) async fn resolve_events<L: Ledger>(
    ledger: &L,
    candidates: Vec<EventCandidate>,
    tenants: &mut AccountTenants,
) -> (Vec<EventStep<EventCandidate>>, LoadedRows<L::Row>) {
    let (payments, more) = (BTreeSet::new(), tenants.row_keys());
    let (mut rows, hints) = match gather_rows(ledger, &candidates, &payments, &more).await {
        Ok(gathered) => gathered,
        Err(error) => {
            let ids = candidates.into_iter().map(|candidate| candidate.stored.id);
            return (fail_each(ids, &error.into()), LoadedRows::empty());
        }
    };
    tenants.confirm(ledger, &mut rows).await;
    let recipients: Vec<AccountId> = recipients_of(&rows).collect();
    if let Err(error) = tenants.add(ledger, recipients, &mut rows).await {
        let ids = candidates.into_iter().map(|candidate| candidate.stored.id);
        return (fail_each(ids, &error.into()), LoadedRows::empty());
    }
    let resolved = assign_tenants(candidates, tenants).into_iter();
    let resolved = resolved
        .map(|step| step.and_then(|event| ignore_if_muted(event, &rows)))
        .map(|step| step.and_then(|event| resolve_event(event, &rows, &hints, tenants)))
        .collect();
    (resolved, rows)
}

/// Ends an event of a muted tenant's account. Its row was read anyway, consistently, so a mute counts from the next event
/// on, and its end too.
fn ignore_if_muted<R>(
    candidate: EventCandidate,
    rows: &LoadedRows<R>,
) -> EventStep<EventCandidate> {
    let tenant = candidate.tenant.as_ref();
    match tenant.is_some_and(|tenant| is_muted(tenant, rows)) {
        true => {
            let muted = EventVerdict::Ignored(IgnoreReason::Muted);
            EventStep::Close(candidate.event_update(muted))
        }
        false => EventStep::Ready(candidate),
    }
}

fn is_muted<R>(tenant: &TenantId, rows: &LoadedRows<R>) -> bool {
    rows.tenants.get(tenant).is_some_and(|row| row.is_muted)
}

/// The same for an event that would be parked before anything is known of its tenant, because it cannot be read: whoever
/// floods us with such events must not page anybody either. `accounts` are theirs.
pub(super) fn ignore_unread_if_muted<R>(
    closed: &mut [EventUpdate],
    accounts: &BTreeMap<EventId, AccountId>,
    tenants: &AccountTenants,
    rows: &LoadedRows<R>,
) {
    for update in closed {
        let account = accounts.get(&update.event);
        let tenant = account.and_then(|account| tenants.0.get(account));
        if let Some(AccountTenant::Found(Ok(tenant))) = tenant
            && is_muted(tenant, rows)
        {
            update.tenant = Some(tenant.clone());
            update.verdict = EventVerdict::Ignored(IgnoreReason::Muted);
        }
    }
}

/// Reads all rows that the events and these payments need, and some more.
pub(super) async fn gather_rows<L: Ledger>(
    ledger: &L,
    candidates: &[EventCandidate],
    payments: &BTreeSet<PaymentKey>,
    more: &BTreeSet<StateKey>,
) -> Result<(LoadedRows<L::Row>, IndexHints), DependencyError> {
    let mut rows = LoadedRows::empty();
    let mut known = BTreeSet::new();
    let mut hints = None;
    for _ in 0..READS_MAX {
        let mut needed = needed_keys(candidates, payments, &rows, hints.as_ref());
        needed.extend(more.iter().cloned());
        needed.retain(|key| !known.contains(key));
        if needed.is_empty() {
            match hints {
                Some(_) => break,
                None => {
                    hints = Some(ask_indexes(ledger, candidates, payments, &rows).await);
                    continue;
                }
            }
        }
        rows.extend(ledger.load_rows(&needed).await?);
        known.extend(needed);
        if hints.is_none() {
            hints = Some(ask_indexes(ledger, candidates, payments, &rows).await);
        }
    }
    let mut hints = hints.unwrap_or_default();
    hints.keep_confirmed(&rows);
    Ok((rows, hints))
}

/// The keys of all rows that are known to matter so far.
fn needed_keys<R>(
    candidates: &[EventCandidate],
    payments: &BTreeSet<PaymentKey>,
    rows: &LoadedRows<R>,
    hints: Option<&IndexHints>,
) -> BTreeSet<StateKey> {
    let mut needed = BTreeSet::new();
    let mut named = |candidate: &EventCandidate| {
        let named = candidate.event.named_entity.clone();
        needed.extend(named.map(StateKey::Entity));
    };
    let mut referenced_by_events: Vec<StateKey> = Vec::new();
    let mut reached: BTreeSet<PaymentKey> = payments.clone();
    let mut invoices: BTreeSet<InvoiceKey> = BTreeSet::new();
    // Of an invoice that gets an order here, the payments get that order too.
    let mut with_payments: BTreeSet<InvoiceKey> = BTreeSet::new();
    for candidate in candidates {
        match &candidate.event.subject {
            EventSubject::Account(_) => {}
            // The index comes first and the metadata second, so both are read together, after the index was asked.
            EventSubject::Piece(..) if hints.is_none() => {}
            EventSubject::Piece(..) => named(candidate),
            EventSubject::Payment(payment) => {
                named(candidate);
                if candidate.event.named_entity.is_none() {
                    let referenced = referenced_entities(&payment.money).into_iter();
                    referenced_by_events.extend(referenced.map(StateKey::Entity));
                }
                reached.extend(candidate.payment_names(payment));
                let invoice = candidate.invoice(payment);
                if payment.is_of_session() {
                    with_payments.extend(invoice.clone());
                }
                invoices.extend(invoice);
            }
        }
    }
    needed.extend(referenced_by_events);
    // Who gets the money decides about each link, also about one that another outranks.
    let has_recipients = candidates.iter().any(EventCandidate::has_recipients);
    let hits = hints.into_iter().flat_map(IndexHints::all);
    needed.extend(hits.map(StateKey::Entity));
    let of_invoices = rows
        .invoices
        .iter()
        .filter(|(key, _)| with_payments.contains(*key));
    reached.extend(of_invoices.flat_map(|(_, (invoice, _))| invoice.facts.payments.clone()));
    let aliases = reached
        .iter()
        .filter_map(|key| rows.payment(key)?.alias_of.clone());
    let aliases: Vec<PaymentKey> = aliases.collect();
    reached.extend(aliases);
    for payment in reached.iter().filter_map(|key| rows.payment(key)) {
        let links = payment.link_states().into_iter();
        let linked = links.filter(|(_, link)| *link != LinkState::Elsewhere);
        let linked = linked.map(|(entity, _)| entity);
        let copied = payment.copied.keys().cloned();
        let outdated = payment.outdated_copies().into_keys();
        needed.extend(linked.chain(copied).chain(outdated).map(StateKey::Entity));
        let facts = &payment.facts;
        if has_recipients || !facts.recipients.is_empty() {
            needed.extend(facts.links.keys().cloned().map(StateKey::Entity));
        }
        if payment.may_be_claimed() {
            let referenced = referenced_entities(&facts.money).into_iter();
            needed.extend(referenced.map(StateKey::Entity));
        }
        let account = &payment.key.account;
        let its = payment.facts.invoices.iter().map(|invoice| InvoiceKey {
            account: account.clone(),
            invoice: invoice.clone(),
        });
        invoices.extend(its);
    }
    for (invoice, _) in invoices.iter().filter_map(|key| rows.invoices.get(key)) {
        needed.extend(invoice.facts.orders.keys().cloned().map(StateKey::Entity));
    }
    needed.extend(reached.into_iter().map(StateKey::Payment));
    needed.extend(invoices.into_iter().map(StateKey::Invoice));
    needed
}

/// Queries the indexes, once for each piece, and for each payment that has no link and gets none from the metadata of an
/// event of the batch.
async fn ask_indexes<L: Ledger>(
    ledger: &L,
    candidates: &[EventCandidate],
    payments: &BTreeSet<PaymentKey>,
    rows: &LoadedRows<L::Row>,
) -> IndexHints {
    let mut pieces = BTreeSet::new();
    let mut unlinked: BTreeSet<PaymentKey> = payments.clone();
    let mut named: BTreeSet<PaymentKey> = BTreeSet::new();
    for candidate in candidates {
        match &candidate.event.subject {
            EventSubject::Account(_) => {}
            EventSubject::Piece(piece, _) => pieces.extend(piece.clone()),
            EventSubject::Payment(payment) => {
                let key = candidate.find_payment(payment, rows);
                match (&candidate.event.named_entity, candidate.parked) {
                    (Some(_), _) => named.extend(key),
                    (None, None) => unlinked.extend(key),
                    (None, Some(_)) => {}
                }
            }
        }
    }
    let may_be_claimed = |key: &PaymentKey| {
        let payment = rows.payment(key);
        payment.is_none_or(PaymentState::may_be_claimed)
    };
    unlinked.retain(|key| !named.contains(key) && may_be_claimed(key));
    let intents: BTreeSet<PaymentIntentId> = unlinked
        .into_iter()
        .filter_map(|key| key.payment.intent().cloned())
        .collect();
    let asked = stream::iter(intents).map(async |intent| {
        let hits = ledger.entities_by_payment_intent(&intent).await;
        (intent, hits.map_err(|error| error_chain(&error)))
    });
    let by_intent = asked.buffer_unordered(CALLS_AT_ONCE).collect().await;
    let asked = stream::iter(pieces).map(async |piece| {
        let hits = ledger.statements_by_piece(&piece).await;
        (piece, hits.map_err(|error| error_chain(&error)))
    });
    let by_piece = asked.buffer_unordered(CALLS_AT_ONCE).collect().await;
    IndexHints {
        by_intent,
        by_piece,
    }
}

impl IndexHints {
    fn all(&self) -> impl Iterator<Item = EntityKey> {
        let answers = self.by_intent.values().chain(self.by_piece.values());
        answers.flatten().flatten().cloned()
    }

    /// The rows with this payment's PaymentIntent in their column.
    pub(super) fn of_payment(&self, payment: &PaymentKey) -> Result<&[EntityKey], String> {
        let asked = payment.payment.intent();
        match asked.and_then(|intent| self.by_intent.get(intent)) {
            None => Ok(&[]),
            Some(Ok(hits)) => Ok(hits),
            Some(Err(cause)) => Err(cause.clone()),
        }
    }

    /// Drops the hits that the rows do not confirm, because an index lags behind its table. Example: the application
    /// moved `pi_1` from `ord_1` to `ord_2`, and the index returns both. Unchecked, both would be linked to it. A row
    /// that was deleted confirms nothing; a row that cannot be read stays a hit, so that the event is parked as
    /// `entity_unreadable`.
    fn keep_confirmed<R>(&mut self, rows: &LoadedRows<R>) {
        let is_confirmed = |key: &EntityKey, has_column: &dyn Fn(&Entity) -> bool| {
            rows.unreadable.contains_key(&StateKey::Entity(key.clone()))
                || rows
                    .entities
                    .get(key)
                    .is_some_and(|(entity, _)| !entity.row().is_missing && has_column(entity))
        };
        for (intent, hits) in &mut self.by_intent {
            if let Ok(keys) = hits {
                keys.retain(|key| {
                    is_confirmed(key, &|entity| entity.payment_intent() == Some(intent))
                });
            }
        }
        for (piece, hits) in &mut self.by_piece {
            if let Ok(keys) = hits {
                keys.retain(|key| is_confirmed(key, &|entity| entity.piece() == Some(piece)));
            }
        }
    }
}

/// Decides what an event belongs to, by the rules at the head of this module.
fn resolve_event<R>(
    mut candidate: EventCandidate,
    rows: &LoadedRows<R>,
    hints: &IndexHints,
    tenants: &AccountTenants,
) -> EventStep<EventCandidate> {
    let target = match &candidate.event.subject {
        EventSubject::Account(_) => match candidate.own_tenant() {
            Some(tenant) => check_entity(&candidate, tenant, rows),
            None => candidate.park(ParkReason::TenantUnknown),
        },
        EventSubject::Piece(piece, _) => {
            let hits = piece.as_ref().and_then(|piece| hints.by_piece.get(piece));
            let found = match hits {
                None => Ok(None),
                Some(Err(cause)) => Err(cause.clone()),
                Some(Ok(hits)) => match hits.as_slice() {
                    [] => Ok(None),
                    [key] => Ok(Some(key.clone())),
                    _ => return candidate.park(ParkReason::EntityAmbiguous),
                },
            };
            match found {
                Err(cause) => candidate.fail(ProcessingFailure::Infrastructure(cause)),
                Ok(hit) => match hit.or_else(|| candidate.event.named_entity.clone()) {
                    Some(key) => check_entity(&candidate, key, rows),
                    None => candidate.park(ParkReason::LetterUnknown),
                },
            }
        }
        EventSubject::Payment(payment) => {
            resolve_payment(&candidate, payment, rows, hints, tenants)
        }
    };
    target.and_then(|(target, parked)| {
        candidate.target = Some(target);
        candidate.parked = candidate.parked.or(parked);
        EventStep::Ready(candidate)
    })
}

type ResolvedTarget = (EventTarget, Option<ParkReason>);

/// Finds the payment of an event and the links that the event adds to it.
fn resolve_payment<R>(
    candidate: &EventCandidate,
    payment: &PaymentEventFacts,
    rows: &LoadedRows<R>,
    hints: &IndexHints,
    tenants: &AccountTenants,
) -> EventStep<ResolvedTarget> {
    let Some(key) = candidate.find_payment(payment, rows) else {
        return candidate.park(ParkReason::FieldMalformed);
    };
    let names = candidate.payment_names(payment).chain([key.clone()]);
    let names = names.map(StateKey::Payment);
    let invoice = candidate.invoice(payment).map(StateKey::Invoice);
    for key in names.chain(invoice) {
        match rows.unreadable.get(&key) {
            None => {}
            Some(newer @ UnreadableRow::NewerSchema(_)) => {
                return candidate.fail(newer_schema(&key, newer));
            }
            Some(UnreadableRow::Broken(_)) => return candidate.park(ParkReason::EntityUnreadable),
            Some(UnreadableRow::Tampered) => return candidate.park(ParkReason::Tampered),
        }
    }
    let state = rows.payment(&key);
    let known = state.map(|state| &state.facts);
    let is_decided = known.is_some_and(|known| known.relink.is_some());
    let known_recipients = known.map(|known| known.recipients.clone());
    let mut recipients = known_recipients.unwrap_or_default();
    let has_new_recipient = !payment.recipients.is_subset(&recipients);
    recipients.extend(payment.recipients.iter().cloned());
    if let Err(failure) = tenants.check_known(&recipients) {
        return candidate.fail(failure);
    }
    let may_claim = |row: &Entity| {
        candidate.may_change(row) && tenants.receipt_refusal(&recipients, row).is_none()
    };
    let named: Vec<(EntityKey, LinkSource)> = match &candidate.event.named_entity {
        Some(named) => vec![(named.clone(), payment.link_source)],
        None if !state.is_none_or(PaymentState::may_be_claimed) => Vec::new(),
        None => match find_claims(&key, state, Some(&payment.money), rows, hints, may_claim) {
            Err(cause) => return candidate.fail(ProcessingFailure::Infrastructure(cause)),
            Ok(claims) => claims,
        },
    };
    let named = named.into_iter().map(|(entity, by)| (entity, Some(by)));
    let linked = state.map(PaymentState::linked_entities).unwrap_or_default();
    let linked = linked.into_iter().map(|entity| (entity, None));
    let (mut links, mut parked) = (Vec::new(), candidate.parked);
    for (entity, by) in named.chain(linked) {
        let reason = match check_link(candidate, &entity, rows) {
            Ok(reason) => reason,
            Err(failure) => return candidate.fail(failure),
        };
        // What is linked stays so, whatever becomes of the tenant, until another recipient is known.
        let is_checked = !is_decided && (by.is_some() || has_new_recipient);
        let sources = known.and_then(|known| known.links.get(&entity));
        // Nothing says that a reference was meant as a name.
        let is_name = by.is_some() || !sources.is_some_and(is_reference_only);
        let row = rows.entities.get(&entity).filter(|_| is_checked && is_name);
        let refusal = row.and_then(|(row, _)| tenants.receipt_refusal(&recipients, row));
        match (reason.or(refusal), by, candidate.parked) {
            (None, Some(by), None) => links.push((entity, by)),
            // A person decided otherwise: what the event names does not matter any more.
            (Some(_), Some(_), _) if is_decided => {}
            (Some(reason), ..) => parked = parked.or(Some(reason)),
            _ => {}
        }
    }
    let target = EventTarget::Payment { key, links };
    EventStep::Ready((target, parked))
}

/// The rows that claim a payment of which no metadata says whose it is: those that have its PaymentIntent in their column,
/// else the order or statement whose key its session has as `client_reference_id`.
pub(super) fn find_claims<R>(
    payment: &PaymentKey,
    known: Option<&PaymentState>,
    stated: Option<&MoneyFacts>,
    rows: &LoadedRows<R>,
    hints: &IndexHints,
    may_claim: impl Fn(&Entity) -> bool,
) -> Result<Vec<(EntityKey, LinkSource)>, String> {
    let hits = hints.of_payment(payment)?;
    // What billhook wrote follows from a link, and says nothing beside what the application wrote.
    let is_own = |key: &&EntityKey| {
        let row = rows.entities.get(*key).map(|(row, _)| row);
        row.is_some_and(|row| row.last_derived().intent.as_ref() == payment.payment.intent())
    };
    let (own, given): (Vec<_>, Vec<_>) = hits.iter().partition(is_own);
    let hits = if given.is_empty() { own } else { given };
    if !hits.is_empty() {
        let hits = hits.into_iter().cloned();
        return Ok(hits.map(|hit| (hit, LinkSource::Column)).collect());
    }
    // Metadata is better, even while there is no row of that name.
    if known.is_some_and(|known| !known.facts.named.is_empty()) {
        return Ok(Vec::new());
    }
    let of_known = known.map(|known| &known.facts.money);
    let referenced = stated
        .into_iter()
        .chain(of_known)
        .flat_map(referenced_entities);
    // A reference may be anything: only an own row makes it a name, and the order comes before the statement.
    let mut own = referenced.filter(|key| {
        let row = rows.entities.get(key).map(|(row, _)| row);
        row.is_some_and(|row| !row.row().is_missing && may_claim(row))
    });
    let own = own.next().map(|key| (key, LinkSource::Reference));
    Ok(own.into_iter().collect())
}

fn is_reference_only<V>(sources: &BTreeMap<LinkSource, V>) -> bool {
    sources
        .keys()
        .all(|source| *source == LinkSource::Reference)
}

fn newer_schema(key: &StateKey, newer: &UnreadableRow) -> ProcessingFailure {
    ProcessingFailure::NewerSchema(format!("{key}: {newer}"))
}

/// Why an entity may not be linked to the event's payment. One that a newer release wrote is left to that release: the
/// message comes again.
fn check_link<R>(
    candidate: &EventCandidate,
    key: &EntityKey,
    rows: &LoadedRows<R>,
) -> Result<Option<ParkReason>, ProcessingFailure> {
    let state = StateKey::Entity(key.clone());
    match (rows.entities.get(key), rows.unreadable.get(&state)) {
        (Some((entity, _)), _) => {
            let is_own = candidate.may_change(entity);
            let refusal = entity.write_refusal();
            Ok(refusal.or((!is_own).then_some(ParkReason::CrossTenant)))
        }
        (None, Some(newer @ UnreadableRow::NewerSchema(_))) => Err(newer_schema(&state, newer)),
        (None, Some(UnreadableRow::Broken(_))) => Ok(Some(ParkReason::EntityUnreadable)),
        (None, Some(UnreadableRow::Tampered)) => Ok(Some(ParkReason::Tampered)),
        (None, None) => Ok(Some(key.unknown_reason())),
    }
}

/// Checks that the entity of an event exists, can be read and belongs to the event's tenant; else the event is parked.
fn check_entity<R>(
    candidate: &EventCandidate,
    key: EntityKey,
    rows: &LoadedRows<R>,
) -> EventStep<ResolvedTarget> {
    match check_link(candidate, &key, rows) {
        Err(failure) => candidate.fail(failure),
        Ok(None) => EventStep::Ready((EventTarget::Entity(key), None)),
        // An event about a piece looks for the piece's statement, whatever its metadata names.
        Ok(Some(ParkReason::StatementUnknown | ParkReason::OrderUnknown)) => {
            candidate.park(ParkReason::LetterUnknown)
        }
        Ok(Some(reason)) => candidate.park(reason),
    }
}
