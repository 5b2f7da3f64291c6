//! Plans transactions: which events and rows belong together, and what each row says after them. Pure.
//!
//! A unit is everything that must be written together: events, the payments and entities that take their facts, the
//! other names of those payments, and the orders and statements that are linked to them. Two payments of one order are in
//! one unit, because both write the order. If a linked row cannot be written, because it is missing or another tenant's,
//! the payment stays open, and the sweep has the worker recheck it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::entity::EntityKey;
use crate::entity::invoice::{InvoiceFacts, InvoiceState};
use crate::entity::key::{InvoiceKey, PaymentKey, StateKey};
use crate::entity::kind::StatedFacts;
use crate::entity::merge::{MaxRegister, Merge as _, MinRegister};
use crate::entity::payment::linked::{LinkState, RelinkDecision};
use crate::entity::payment::opened_disputes::find_opened_disputes;
use crate::entity::payment::state::{LinkSource, NoticeReport, PaymentFacts, PaymentState};
use crate::ids::EventId;
use crate::intake::inbox::EventRecord;
use crate::outcome::EventVerdict;
use crate::provider::interpret::{EventSubject, PaymentEventFacts};
use crate::tasks::sweep::FIRST_RETRY_AFTER;
use crate::time::Timestamp;
use crate::worker::ports::{
    CommitPart, EntityWrite, EventUpdate, LoadedRows, NextState, StateWrite,
};
use crate::worker::resolve::AccountTenants;
use crate::worker::step::{EventCandidate, EventTarget};

/// Other payments of an invoice that are linked to its order in the transaction of the event that names it. The others get
/// the link later: with their next event, or, if they have no link yet, when the sweep rechecks them.
const INVOICE_PAYMENTS_MAX: usize = 10;

/// An index shows a write at the latest after this.
const INDEX_LAG_MAX: Duration = Duration::from_mins(1);

/// Copies of one payment that one transaction writes: a tenant may name any number of its orders for a payment. The
/// others stay outdated until the payment is rechecked.
const LINKED_MAX: usize = 10;

/// Events, and payments to recheck, whose rows are written together.
#[derive(Default)]
pub(super) struct CommitUnit {
    pub(super) events: Vec<EventCandidate>,
    pub(super) rechecks: Vec<PaymentRecheck>,
}

/// A payment that is rechecked without an event.
pub(super) struct PaymentRecheck {
    pub(super) payment: PaymentKey,
    /// The rows that it was found to belong to.
    pub(super) hits: Vec<(EntityKey, LinkSource)>,
    /// A person's decision about what it is linked to.
    pub(super) relink: Option<RelinkDecision>,
    pub(super) rebuild: PaymentRebuild,
    pub(super) notices: NoticeReport,
}

impl PaymentRecheck {
    /// A command that has yet to say what it is for.
    pub(super) fn of_command(payment: &PaymentKey) -> Self {
        Self {
            payment: payment.clone(),
            hits: Vec::new(),
            relink: None,
            rebuild: PaymentRebuild::default(),
            notices: NoticeReport::ByNextRecheck,
        }
    }
}

/// How a payment's state has to be changed to be what its events say.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PaymentRebuild {
    /// Its facts, if they are others.
    pub facts: Option<Box<PaymentFacts>>,
    /// The events that state them.
    pub events: Vec<(EventId, Option<Timestamp>)>,
    /// Orders and statements whose copy is written again, whatever it is.
    pub copies: BTreeSet<EntityKey>,
}

/// Groups events by the rows that they write.
pub(super) fn group_units<R>(events: Vec<EventCandidate>, rows: &LoadedRows<R>) -> Vec<CommitUnit> {
    // Each row points to the unit that writes it; units that share a row become one.
    let mut units: Vec<Option<CommitUnit>> = Vec::new();
    let mut unit_of: BTreeMap<StateKey, usize> = BTreeMap::new();
    for event in events {
        let keys = written_keys(&event, rows);
        let met: BTreeSet<usize> = keys
            .iter()
            .filter_map(|key| unit_of.get(key).copied())
            .collect();
        let mut joined = CommitUnit::default();
        for unit in &met {
            if let Some(unit) = units.get_mut(*unit).and_then(Option::take) {
                joined.events.extend(unit.events);
            }
        }
        joined.events.push(event);
        let own = units.len();
        for unit in unit_of.values_mut() {
            if met.contains(unit) {
                *unit = own;
            }
        }
        unit_of.extend(keys.into_iter().map(|key| (key, own)));
        units.push(Some(joined));
    }
    units.into_iter().flatten().collect()
}

/// The rows that an event may write.
fn written_keys<R>(event: &EventCandidate, rows: &LoadedRows<R>) -> BTreeSet<StateKey> {
    let mut keys = BTreeSet::new();
    let (key, links) = match &event.target {
        None => return keys,
        Some(EventTarget::Entity(key)) => return BTreeSet::from([key.clone().into()]),
        Some(EventTarget::Payment { key, links }) => (key, links),
    };
    let mut payments = BTreeSet::from([key.clone()]);
    if let EventSubject::Payment(payment) = &event.event.subject {
        payments.extend(event.payment_names(payment));
        if let Some(invoice) = event.invoice(payment) {
            if let Some((known, _)) = rows.invoices.get(&invoice) {
                payments.extend(known.facts.payments.iter().cloned());
            }
            keys.insert(invoice.into());
        }
    }
    let known = payments.iter().filter_map(|key| rows.payment(key));
    for payment in known {
        let links = payment.facts.links.keys().chain(payment.copied.keys());
        keys.extend(links.cloned().map(StateKey::Entity));
        for invoice in invoices_of(payment, &payment.facts) {
            let orders = rows.invoices.get(&invoice).into_iter();
            let orders = orders.flat_map(|(invoice, _)| invoice.facts.orders.keys().cloned());
            keys.extend(orders.map(StateKey::Entity));
        }
    }
    keys.extend(links.iter().map(|(entity, _)| entity.clone().into()));
    keys.extend(payments.into_iter().map(StateKey::Payment));
    keys
}

fn invoices_of<'f>(
    payment: &'f PaymentState,
    facts: &'f PaymentFacts,
) -> impl Iterator<Item = InvoiceKey> + 'f {
    let invoices = facts.invoices.iter().cloned();
    invoices.map(|invoice| InvoiceKey {
        account: payment.key.account.clone(),
        invoice,
    })
}

/// A payment while its unit is planned.
struct PaymentDraft {
    read: PaymentState,
    facts: PaymentFacts,
    alias_of: Option<PaymentKey>,
    events: Vec<(EventId, Option<Timestamp>)>,
    /// Since when one of its other names had money to which nothing was linked.
    unlinked_since: Option<Timestamp>,
    /// An event or a recheck is about it, so what it is linked to is derived again even if no fact changed.
    must_derive: bool,
    /// The copies that are written again, whatever they are.
    copies: BTreeSet<EntityKey>,
    notices: NoticeReport,
}

struct UnitDrafts<'a, R> {
    rows: &'a LoadedRows<R>,
    payments: BTreeMap<PaymentKey, PaymentDraft>,
    invoices: BTreeMap<InvoiceKey, InvoiceState>,
    /// Facts that go into entities, with the events that state them.
    entities: BTreeMap<EntityKey, Vec<StatedFacts>>,
    events: BTreeMap<EntityKey, Vec<(EventId, Option<Timestamp>)>>,
}

/// What the rows of a unit say after its events.
pub(super) fn plan_unit<'a, R>(
    unit: &CommitUnit,
    rows: &'a LoadedRows<R>,
    tenants: &AccountTenants,
    now: Timestamp,
) -> CommitPart<'a, R> {
    let mut drafts = UnitDrafts {
        rows,
        payments: BTreeMap::new(),
        invoices: BTreeMap::new(),
        entities: BTreeMap::new(),
        events: BTreeMap::new(),
    };
    for event in &unit.events {
        drafts.take_event(event, now);
    }
    for recheck in &unit.rechecks {
        drafts.take_recheck(recheck, tenants, now);
    }
    drafts.add_invoice_links();
    drafts.build_part(unit, tenants, now)
}

impl<'a, R> UnitDrafts<'a, R> {
    fn payment(&mut self, key: &PaymentKey) -> &mut PaymentDraft {
        let rows = self.rows;
        self.payments.entry(key.clone()).or_insert_with(|| {
            let read = rows.payment(key).cloned();
            let read = read.unwrap_or_else(|| PaymentState {
                version: newest_copy(rows, key),
                ..PaymentState::new(key.clone())
            });
            PaymentDraft {
                facts: read.facts.clone(),
                alias_of: read.alias_of.clone(),
                read,
                events: Vec::new(),
                unlinked_since: None,
                must_derive: false,
                copies: BTreeSet::new(),
                notices: NoticeReport::ByWriter,
            }
        })
    }

    fn take_event(&mut self, event: &EventCandidate, now: Timestamp) {
        let (id, at) = (event.stored.id.clone(), event.event.created_at);
        match (&event.target, &event.event.subject) {
            (Some(EventTarget::Payment { key, links }), EventSubject::Payment(payment)) => {
                // An event of this batch may just have shown that this is another payment's name.
                let alias_of = self.payment(key).alias_of.clone();
                let key = alias_of.as_ref().unwrap_or(key);
                self.take_payment(event, key, links, payment, at.unwrap_or(now));
                self.payment(key).events.push((id, at));
            }
            (Some(EventTarget::Entity(key)), EventSubject::Piece(_, mail)) => {
                self.take_facts(key, StatedFacts::Mail(mail.clone()), (id, at));
            }
            (Some(EventTarget::Entity(key)), EventSubject::Account(account)) => {
                self.take_facts(key, StatedFacts::Account(account.clone()), (id, at));
            }
            _ => {}
        }
    }

    fn take_facts(
        &mut self,
        key: &EntityKey,
        facts: StatedFacts,
        event: (EventId, Option<Timestamp>),
    ) {
        self.entities.entry(key.clone()).or_default().push(facts);
        self.events.entry(key.clone()).or_default().push(event);
    }

    /// Merges what an event states about its payment, and every name and link that it adds.
    fn take_payment(
        &mut self,
        event: &EventCandidate,
        key: &PaymentKey,
        links: &[(EntityKey, LinkSource)],
        payment: &PaymentEventFacts,
        at: Timestamp,
    ) {
        let mut facts = PaymentFacts {
            money: payment.money.clone(),
            invoices: payment.invoice.iter().cloned().collect(),
            named: event.event.named_entity.iter().cloned().collect(),
            recipients: payment.recipients.clone(),
            ..PaymentFacts::default()
        };
        add_links(&mut facts, links.iter().cloned(), at);
        for name in event.payment_names(payment).filter(|name| name != key) {
            facts.names.insert(name.payment.clone());
            self.absorb_alias(key, &name);
        }
        let draft = self.payment(key);
        draft.facts.merge(facts);
        draft.must_derive = true;
        let Some(invoice) = event.invoice(payment) else {
            return;
        };
        let stated = match payment.is_of_session() {
            true => InvoiceFacts {
                orders: links
                    .iter()
                    .filter(|(entity, _)| entity.order().is_some())
                    .map(|(order, _)| (order.clone(), MinRegister(at)))
                    .collect(),
                ..InvoiceFacts::default()
            },
            false => InvoiceFacts {
                payments: BTreeSet::from([key.clone()]),
                ..InvoiceFacts::default()
            },
        };
        let known = self.rows.invoices.get(&invoice);
        let has_new_order = stated
            .orders
            .keys()
            .any(|order| known.is_none_or(|(known, _)| !known.facts.orders.contains_key(order)));
        if has_new_order {
            let payments = known
                .into_iter()
                .flat_map(|(known, _)| &known.facts.payments);
            for payment in payments.take(INVOICE_PAYMENTS_MAX) {
                let known = self.rows.payment(payment);
                let alias_of = known.and_then(|known| known.alias_of.as_ref());
                let payment = alias_of.unwrap_or(payment);
                if self.rows.payments.contains_key(payment) {
                    self.payment(payment);
                }
            }
        }
        let draft = self.invoices.entry(invoice.clone());
        let draft = draft.or_insert_with(|| match known {
            Some((known, _)) => known.clone(),
            None => InvoiceState::new(invoice),
        });
        draft.facts.merge(stated);
    }

    /// Makes the row of another name an alias, and moves to the payment what is known under that name. A name that
    /// already leads to another payment stays as it is.
    fn absorb_alias(&mut self, key: &PaymentKey, name: &PaymentKey) {
        let alias = self.payment(name);
        if alias.alias_of.is_some() {
            return;
        }
        alias.alias_of = Some(key.clone());
        let links = alias.facts.links.clone();
        let facts = std::mem::take(&mut alias.facts);
        // They had a copy of what was known under this name, and lose it.
        alias.facts.links = links;
        let has_money = facts.money.has_money();
        let since = alias.read.open_since.filter(|_| has_money);
        let mut events: Vec<_> = std::mem::take(&mut alias.events);
        let known = std::mem::take(&mut alias.read.history.event_ids);
        events.extend(known.into_iter().map(|id| (id, None)));
        let draft = self.payment(key);
        draft.facts.merge(facts);
        draft.facts.names.insert(name.payment.clone());
        draft.events.extend(events);
        draft.unlinked_since = draft.unlinked_since.into_iter().chain(since).min();
    }

    fn take_recheck(&mut self, recheck: &PaymentRecheck, tenants: &AccountTenants, now: Timestamp) {
        let rows = self.rows;
        let key = &recheck.payment;
        let own = recheck.hits.iter().filter(|(hit, _)| {
            let row = rows.entities.get(hit);
            row.is_some_and(|(entity, _)| tenants.may_change(key.account.as_ref(), entity))
        });
        let links: Vec<_> = own.cloned().collect();
        let draft = self.payment(key);
        draft.must_derive = true;
        draft.notices = recheck.notices;
        draft
            .facts
            .relink
            .merge(recheck.relink.clone().map(MaxRegister));
        add_links(&mut draft.facts, links.into_iter(), now);
        self.take_rebuild(key, &recheck.rebuild);
    }

    fn take_rebuild(&mut self, key: &PaymentKey, rebuild: &PaymentRebuild) {
        let draft = self.payment(key);
        draft.copies.extend(rebuild.copies.iter().cloned());
        draft.events.extend(rebuild.events.iter().cloned());
        let Some(facts) = &rebuild.facts else {
            return;
        };
        draft.facts = (**facts).clone();
        // One that was copied to another name has that name among its own.
        draft.facts.names.remove(&key.payment);
        for name in draft.facts.names.clone() {
            let name = PaymentKey {
                account: key.account.clone(),
                payment: name,
            };
            self.absorb_alias(key, &name);
        }
    }

    /// The orders and statements that the payment names although its money is another tenant's.
    fn find_denied(&self, draft: &PaymentDraft, tenants: &AccountTenants) -> BTreeSet<EntityKey> {
        let recipients = &draft.facts.recipients;
        if recipients.is_empty() {
            return BTreeSet::new();
        }
        let read = &draft.read;
        let has_new_recipient = read.facts.recipients != *recipients;
        let is_denied = |key: &&EntityKey| {
            let entity = self.rows.entities.get(*key).map(|(entity, _)| entity);
            let is_refused =
                entity.is_none_or(|entity| tenants.receipt_refusal(recipients, entity).is_some());
            // What was linked rightly stays so, whatever becomes of the tenant's row since.
            let is_new = has_new_recipient || !read.facts.links.contains_key(*key);
            let was_denied = read.denied.contains(*key);
            is_refused && (was_denied || (is_new && entity.is_some()))
        };
        draft
            .facts
            .links
            .keys()
            .filter(is_denied)
            .cloned()
            .collect()
    }

    /// Links an order to the payments of the invoice that its session made.
    fn add_invoice_links(&mut self) {
        let rows = self.rows;
        for draft in self.payments.values_mut() {
            let invoices: Vec<InvoiceKey> = invoices_of(&draft.read, &draft.facts).collect();
            for invoice in invoices {
                let drafted = self.invoices.get(&invoice);
                let known = rows.invoices.get(&invoice).map(|(known, _)| known);
                for (order, at) in drafted
                    .or(known)
                    .into_iter()
                    .flat_map(|of| &of.facts.orders)
                {
                    let link = (order.clone(), LinkSource::Invoice);
                    add_links(&mut draft.facts, [link].into_iter(), at.0);
                }
            }
        }
    }

    fn build_part(
        mut self,
        unit: &CommitUnit,
        tenants: &AccountTenants,
        now: Timestamp,
    ) -> CommitPart<'a, R> {
        let mut states = Vec::new();
        // The rows that each payment's events are in, in the end.
        let mut written: BTreeMap<PaymentKey, BTreeSet<StateKey>> = BTreeMap::new();
        let mut aliases = Vec::new();
        for (key, draft) in std::mem::take(&mut self.payments) {
            aliases.extend(draft.alias_of.clone().map(|payment| (key.clone(), payment)));
            let denied = self.find_denied(&draft, tenants);
            let mut next = draft.read.next_state(draft.facts, draft.alias_of, denied);
            let since = draft.unlinked_since.into_iter();
            next.open_since = since.chain(next.open_since).min();
            let before = next.history.event_ids.clone();
            let events = draft.events.iter().map(|(id, at)| (id, *at));
            next.history.record_events(events);
            let rows_of_events = written.entry(key.clone()).or_default();
            rows_of_events.insert(key.clone().into());
            if !draft.copies.is_empty() {
                // A copy is replaced only by one of a greater version.
                next.facts_version = next.version;
            }
            let mut outdated = next.outdated_copies();
            let mut links = next.link_states();
            for entity in draft.copies {
                let link = *links.entry(entity.clone()).or_insert(LinkState::Elsewhere);
                outdated.insert(entity, link);
            }
            let mut links: Vec<_> = links.into_iter().collect();
            // First the outdated copies; of them the one that gets the money, then those that lose it.
            links.sort_by_key(|(entity, link)| {
                let rank = match link {
                    LinkState::Linked => 0,
                    LinkState::Elsewhere => 1,
                    LinkState::Conflict(_) => 2,
                };
                (!outdated.contains_key(entity), rank)
            });
            let mut written_links = 0;
            for (entity, link) in links {
                let is_outdated = outdated.contains_key(&entity);
                let is_concerned = draft.must_derive && link != LinkState::Elsewhere;
                let row = self.rows.entities.get(&entity);
                let is_writable =
                    row.is_some_and(|(entity, _)| tenants.may_change(key.account.as_ref(), entity));
                if !is_writable || !(is_outdated || is_concerned) || written_links == LINKED_MAX {
                    continue;
                }
                written_links += 1;
                let stated = self.entities.entry(entity.clone()).or_default();
                if is_outdated {
                    let copy = next.copy_for(link);
                    stated.push(StatedFacts::Payment(key.clone(), Box::new(copy)));
                    next.record_copy(&entity, link);
                }
                if link != LinkState::Elsewhere {
                    let known = self.events.entry(entity.clone()).or_default();
                    known.extend(draft.events.iter().cloned());
                    rows_of_events.insert(entity.into());
                }
            }
            if written_links == LINKED_MAX {
                // Restarts the backoff, so that the sweep has the remaining copies written within minutes, however long the
                // payment has been open.
                next.open_since = Some(now);
            }
            next.note_open(now, draft.notices);
            let is_same = next.facts_version == draft.read.facts_version
                && next.copied == draft.read.copied
                && next.denied == draft.read.denied
                && next.history.event_ids == before
                && next.open_since == draft.read.open_since
                && next.open == draft.read.open
                && next.version > 1;
            // Who is rechecked near a deadline is written even if nothing changes, because a write reports it: the worker
            // that wrote before may have ended before it could report.
            let must_report = draft.must_derive && next.near_deadlines(now).next().is_some();
            // An open payment is always written, because the time of its next recheck changes.
            if !is_same || must_report || next.open_since.is_some() {
                let row = self.rows.payments.get(&key).map(|(_, row)| row);
                let opened_disputes =
                    find_opened_disputes(&draft.read.facts.money, &next.facts.money);
                states.push(StateWrite {
                    row,
                    next: NextState::Payment(next),
                    opened_disputes,
                });
            }
        }
        for (alias, payment) in aliases {
            let of_payment = written.get(&payment).cloned().unwrap_or_default();
            written.entry(alias).or_default().extend(of_payment);
        }
        for (key, mut draft) in std::mem::take(&mut self.invoices) {
            let known = self.rows.invoices.get(&key);
            if known.is_none_or(|(known, _)| known.facts != draft.facts) {
                draft.version = draft.version.saturating_add(1);
                states.push(StateWrite {
                    row: known.map(|(_, row)| row),
                    next: NextState::Invoice(draft),
                    opened_disputes: Vec::new(),
                });
            }
        }
        let rows = self.rows;
        let leading: BTreeSet<&EventId> = unit
            .events
            .iter()
            .filter(|event| leads_sweep(&event.stored, now))
            .map(|event| &event.stored.id)
            .collect();
        let entities = std::mem::take(&mut self.entities).into_iter();
        let entities = entities.filter_map(|(key, stated)| {
            let (entity, row) = rows.entities.get(&key)?;
            let mut next = entity.apply_facts(stated, now);
            let events = self.events.get(&key).map(Vec::as_slice).unwrap_or_default();
            next.record_events(events.iter().map(|(id, at)| (id, *at)));
            if events.iter().any(|(id, _)| leading.contains(id)) {
                next.note_arrival();
            }
            Some(EntityWrite { entity, row, next })
        });
        CommitPart {
            entities: entities.collect(),
            states,
            events: unit
                .events
                .iter()
                .map(|event| end_event(event, &written))
                .collect(),
            now,
        }
    }
}

/// The greatest version of a copy of this payment. A state that was lost must begin above it: a copy of an older version
/// would not be taken.
fn newest_copy<R>(rows: &LoadedRows<R>, key: &PaymentKey) -> i64 {
    let entities = rows.entities.values();
    let facts = entities.filter_map(|(entity, _)| entity.linked_payment_facts());
    let versions = facts.filter_map(|facts| Some(facts.payments.get(key)?.version));
    versions.max().unwrap_or_default()
}

/// Whether the sweep, which reads what arrived 10 minutes and a day ago, comes to the rows of this event both times.
fn leads_sweep(event: &EventRecord, now: Timestamp) -> bool {
    let first_look = event.received_at.map(|at| at.after(FIRST_RETRY_AFTER));
    first_look.is_some_and(|at| at > now.after(INDEX_LAG_MAX))
}

fn add_links(
    facts: &mut PaymentFacts,
    links: impl Iterator<Item = (EntityKey, LinkSource)>,
    at: Timestamp,
) {
    for (entity, by) in links {
        let sources = facts.links.entry(entity).or_default();
        let known = sources.entry(by).or_insert(MinRegister(at));
        known.merge(MinRegister(at));
    }
}

/// The outcome of an event whose facts are in these rows.
fn end_event(
    event: &EventCandidate,
    written: &BTreeMap<PaymentKey, BTreeSet<StateKey>>,
) -> EventUpdate {
    let verdict: EventVerdict = event.verdict();
    let entities = match &event.target {
        None => BTreeSet::new(),
        Some(EventTarget::Entity(key)) => BTreeSet::from([key.clone().into()]),
        Some(EventTarget::Payment { key, .. }) => written.get(key).cloned().unwrap_or_default(),
    };
    EventUpdate {
        entities,
        ..event.event_update(verdict)
    }
}
