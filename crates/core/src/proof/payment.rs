//! Proves a payment: its facts by its events, its other names, the invoices that it pays, and the copies of it.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{
    compare_facts, correct_facts, fill_missing, first_time, named_events, remembers_all,
};
use super::stated::{EventReading, EventReadings, ReadEvent, StatedPayment, merge_payment_events};
use super::{DifferenceSource, StateDifference, StateProof};
use crate::entity::invoice::InvoiceFacts;
use crate::entity::key::{InvoiceKey, PaymentKey, StateKey};
use crate::entity::merge::{MaxRegister, Merge as _, MinRegister};
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::payment::linked::{LinkState, PaymentCopy};
use crate::entity::payment::state::{LinkSource, PaymentFacts, PaymentState, RelinkDecision};
use crate::entity::schema::EVENT_IDS_MAX;
use crate::entity::timeline::ACTOR;
use crate::entity::{Entity, EntityKey};
use crate::ids::{EventId, PaymentRef};
use crate::outcome::EventOutcome;
use crate::time::Timestamp;
use crate::worker::ports::LoadedRows;

/// The events that a payment's proof needs: those that it remembers, those that its facts name, and others that are said
/// to be about it.
pub(super) fn needed_events(
    payment: Option<&PaymentState>,
    named: &BTreeSet<EventId>,
) -> BTreeSet<EventId> {
    let mut needed = named.clone();
    if let Some(payment) = payment {
        needed.extend(payment.history.event_ids.iter().cloned());
        needed.extend(named_events(&payment.facts.money));
    }
    needed
}

/// Proves one payment. `rows` has it, its other names, what it is linked to and its invoices, as far as they exist;
/// `named` are events of which an index says that they are about it.
pub(super) fn prove_payment<R>(
    key: &PaymentKey,
    rows: &LoadedRows<R>,
    events: &EventReadings,
    named: &BTreeSet<EventId>,
) -> StateProof {
    let mut proof = StateProof::new(StateKey::Payment(key.clone()));
    let missing = PaymentState::new(key.clone());
    let known = rows.payment(key);
    let stored = known.unwrap_or(&missing);
    if let Some(payment) = &stored.alias_of {
        prove_alias(key, payment, rows, &mut proof);
        return proof;
    }
    let needed = needed_events(known, named);
    let readings = take_readings(&needed, events, &mut proof);
    let remembered = &stored.history.event_ids;
    let remembers_all = remembers_all(remembered, &stored.facts.money);
    proof.has_forgotten_events = remembered.len() >= EVENT_IDS_MAX || !remembers_all;
    let is_complete = proof.unreadable_events.is_empty() && !proof.has_forgotten_events;
    let names = known_names(stored, rows);
    let stated = merge_payment_events(key, &names, readings.into_iter());
    if let Some(payment) = find_better_state(stored, rows) {
        // Its own repair makes this one its alias.
        proof.differences.push(StateDifference::new(
            DifferenceSource::States,
            "alias_of",
            None,
            Some(&payment.to_string()),
        ));
        return proof;
    }
    if let Some((payment, event)) = find_better_name(key, &stated) {
        proof.correction.events.insert(event.id.clone());
        proof.differences.push(StateDifference::new(
            DifferenceSource::Events,
            "alias_of",
            None,
            Some(&payment.to_string()),
        ));
        return proof;
    }
    let mut corrected = match is_complete {
        true => correct_payment(stored, &stated, is_complete),
        false => correct_payment(&with_copied_members(stored, rows), &stated, is_complete),
    };
    let mut is_copied = false;
    if known.is_none() {
        is_copied = add_copied_facts(key, rows, &mut corrected);
    }
    restore_copied_links(stored, &stated, is_complete, rows, &mut corrected);
    restore_links(stored, rows, is_complete, &mut corrected);
    if known.is_none() {
        if !is_copied && stated.events.is_empty() {
            // Nothing that can be read speaks of it: who names it is told.
            return proof;
        }
        let lost = StateDifference::new(DifferenceSource::Events, "state", None, Some("present"));
        proof.differences.push(lost);
    }
    let found = compare_facts(DifferenceSource::Events, "facts", &stored.facts, &corrected);
    if !found.is_empty() {
        proof.correction.payment = Some(Box::new(corrected.clone()));
    }
    if known.is_some() {
        proof.differences.extend(found);
    }
    let forgotten = stated.events.iter();
    let forgotten = forgotten.filter(|event| !remembered.contains(&event.id));
    // Where some of its events are not known, none is added: the next proof would take those that are for all, and take
    // away what only the others state.
    let is_everything = match known {
        Some(_) => remembers_all,
        None => corrected.money == stated.money.all,
    };
    proof.correction.event_ids = match proof.correction.payment.is_some() && is_everything {
        true => forgotten
            .map(|event| (event.id.clone(), event.created_at()))
            .collect(),
        false => Vec::new(),
    };
    for event in &stated.events {
        check_outcome(event, remembered, &mut proof);
    }
    check_names(key, &corrected, rows, &mut proof);
    check_invoices(key, &stated, &corrected, rows, &mut proof);
    if known.is_some() {
        check_copies(stored, rows, &mut proof);
    }
    proof
}

/// Its other names, by its state and by their own rows: one that the state lost may be known only by the latter, because
/// the event that told it is gone.
fn known_names<R>(stored: &PaymentState, rows: &LoadedRows<R>) -> BTreeSet<PaymentRef> {
    let all = rows.payments.values().map(|(payment, _)| payment);
    let aliases = all.filter(|alias| alias.alias_of.as_ref() == Some(&stored.key));
    let mut names = stored.facts.names.clone();
    names.extend(aliases.map(|alias| alias.key.payment.clone()));
    names
}

/// The payment of which this is only another name, and an event that says so.
fn find_better_name<'s>(
    key: &PaymentKey,
    stated: &'s StatedPayment,
) -> Option<(PaymentKey, &'s ReadEvent)> {
    let mut better = stated.events.iter().filter_map(|event| {
        let names = &event.payment()?.names;
        let best = names.first().filter(|best| **best != key.payment)?;
        names.contains(&key.payment).then(|| {
            let payment = PaymentKey {
                account: key.account.clone(),
                payment: best.clone(),
            };
            (payment, event)
        })
    });
    better.next()
}

/// The payment that has this one's name, if this has facts of its own all the same.
fn find_better_state<R>(stored: &PaymentState, rows: &LoadedRows<R>) -> Option<PaymentKey> {
    let mut better = possible_names(stored).filter(|better| {
        let better = rows.payment(better);
        better.is_some_and(|better| {
            better.alias_of.is_none() && better.facts.names.contains(&stored.key.payment)
        })
    });
    better.next()
}

/// The payments of which its facts are. It has only those of one, which may be known under a better name.
pub(super) fn possible_names(payment: &PaymentState) -> impl Iterator<Item = PaymentKey> {
    let names = payment.facts.money.payments.keys();
    let names = names.filter(|name| **name != payment.key.payment);
    names.map(|name| PaymentKey {
        account: payment.key.account.clone(),
        payment: name.clone(),
    })
}

/// With everything that a copy of the same version has and the payment has not: nothing is dropped because one of the two
/// lost it. Where both have a value, the payment's counts.
fn with_copied_members<R>(stored: &PaymentState, rows: &LoadedRows<R>) -> PaymentState {
    let mut filled = stored.clone();
    for (state, _) in rows.entities.values() {
        let copies = state.linked_payment_facts();
        let copy = copies.and_then(|copies| copies.payments.get(&stored.key));
        if let Some(copy) = copy.filter(|copy| copy.version == stored.facts_version) {
            filled.facts.money = fill_missing(&filled.facts.money, &copy.facts);
            filled.facts.invoices.merge(copy.invoices.clone());
        }
    }
    filled
}

/// Whether nobody can say which is right, a payment or its copy of the same version: both have a value and not the same,
/// and events are gone that would say it. `events` has those of the payment.
pub(super) fn is_undecided(
    payment: &PaymentState,
    copy: &PaymentCopy,
    events: &EventReadings,
) -> bool {
    if copy.link == LinkState::Elsewhere {
        return false;
    }
    let money = &payment.facts.money;
    let filled = fill_missing(money, &copy.facts);
    if fill_missing(&copy.facts, money) == filled {
        return false;
    }
    let mut proof = StateProof::new(StateKey::Payment(payment.key.clone()));
    let needed = needed_events(Some(payment), &BTreeSet::new());
    let readings = take_readings(&needed, events, &mut proof);
    let is_complete =
        proof.unreadable_events.is_empty() && payment.history.event_ids.len() < EVENT_IDS_MAX;
    let stated = merge_payment_events(&payment.key, &payment.facts.names, readings.into_iter());
    !is_complete && correct_facts(&filled, &stated.money, is_complete) == filled
}

/// Puts back the links that the copies show and the payment has lost. Who is not open has written all of its copies, and
/// a link is never taken back, so one of a copy is right, and one that no copy follows was altered: its sources are those
/// of the link that is missing.
fn restore_copied_links<R>(
    stored: &PaymentState,
    stated: &StatedPayment,
    is_complete: bool,
    rows: &LoadedRows<R>,
    corrected: &mut PaymentFacts,
) {
    if stored.open_since.is_some() || stored.facts.relink.is_some() {
        return;
    }
    let links = &stored.facts.links;
    let copied = stored.copied.keys();
    let lost = copied.filter(|entity| !links.contains_key(*entity));
    let lost = lost.filter_map(|entity| Some((entity, copy_in(entity, &stored.key, rows)?)));
    let lost = lost.filter(|(_, copy)| {
        copy.version == stored.facts_version && copy.link != LinkState::Elsewhere
    });
    let unfollowed = links
        .iter()
        .filter(|(entity, _)| !stored.copied.contains_key(*entity));
    for (entity, copy) in lost {
        let sources = unfollowed.clone().flat_map(|(_, sources)| sources);
        let mut sources: BTreeMap<LinkSource, MinRegister<Timestamp>> = sources
            .map(|(source, at)| (*source, at.clone()))
            // All events can be read, and none names it.
            .filter(|(source, _)| !is_complete || is_of_no_event(*source))
            .collect();
        if let (true, false, Some(at)) = (sources.is_empty(), is_complete, first_time(&copy.facts))
        {
            sources.insert(LinkSource::Metadata, MinRegister(at));
        }
        if sources.is_empty() {
            continue;
        }
        let links = corrected.links.entry(entity.clone()).or_default();
        for (source, at) in sources {
            let link = links.entry(source).or_insert_with(|| at.clone());
            link.merge(at);
        }
        for (unfollowed, _) in unfollowed.clone() {
            if !stated.possible_links.contains_key(unfollowed) {
                corrected.links.remove(unfollowed);
            }
        }
    }
}

/// An index and an invoice state these, and no event of the payment.
fn is_of_no_event(source: LinkSource) -> bool {
    match source {
        LinkSource::Column | LinkSource::Invoice => true,
        LinkSource::Metadata | LinkSource::Object => false,
    }
}

fn copy_in<'r, R>(
    entity: &EntityKey,
    payment: &PaymentKey,
    rows: &'r LoadedRows<R>,
) -> Option<&'r PaymentCopy> {
    let (entity, _) = rows.entities.get(entity)?;
    entity.linked_payment_facts()?.payments.get(payment)
}

/// What the copies of a payment say whose own state was lost. They have all of its facts.
fn add_copied_facts<R>(
    key: &PaymentKey,
    rows: &LoadedRows<R>,
    corrected: &mut PaymentFacts,
) -> bool {
    let mut is_copied = false;
    for (_, copy) in copies_of(key, rows) {
        is_copied = true;
        corrected.money.merge(copy.facts.clone());
        corrected.invoices.merge(copy.invoices.clone());
        let names = copied_names(key, copy).filter(|name| {
            let alias = rows.payment(name);
            alias.is_some_and(|alias| alias.alias_of.as_ref() == Some(key))
        });
        corrected.names.extend(names.map(|name| name.payment));
    }
    is_copied
}

/// The copies that orders and statements have of a payment.
fn copies_of<'r, R>(
    key: &PaymentKey,
    rows: &'r LoadedRows<R>,
) -> impl Iterator<Item = (&'r EntityKey, &'r PaymentCopy)> {
    let entities = rows.entities.iter();
    entities.filter_map(move |(entity, (state, _))| {
        let copies = state.linked_payment_facts()?;
        Some((entity, copies.payments.get(key)?))
    })
}

/// Keeps the links that the newest copies have, and that nothing which is left explains: the index or the event that made
/// one may be gone, and what a person decided is in no event at all. Without this a lost relink would be undone.
fn restore_links<R>(
    stored: &PaymentState,
    rows: &LoadedRows<R>,
    is_complete: bool,
    corrected: &mut PaymentFacts,
) {
    if corrected.relink.is_some() {
        return;
    }
    let is_lost = stored.version == 0;
    let versions = copies_of(&stored.key, rows).map(|(_, copy)| copy.version);
    let newest = match is_lost {
        true => versions.max().unwrap_or_default(),
        false => stored.facts_version,
    };
    // Of a state that is there, a copy is believed only if the state says that it told it.
    let is_told =
        |entity: &EntityKey| is_lost || stored.copied.get(entity) == Some(&stored.facts_version);
    let by_events = PaymentState {
        facts: corrected.clone(),
        ..PaymentState::new(stored.key.clone())
    };
    let by_events = by_events.link_states();
    let linked_by_events = || {
        let links = by_events.iter();
        links.filter(|(_, link)| **link != LinkState::Elsewhere)
    };
    // Whether another one has the payment by the events, and the newest copies say that it does not.
    let is_contradicted = |entity: &EntityKey| {
        let others = || linked_by_events().filter(|(other, _)| *other != entity);
        let has_it = |other: &EntityKey| {
            let mut copies = copies_of(&stored.key, rows);
            copies.any(|(of, copy)| {
                of == other && copy.version == newest && copy.link != LinkState::Elsewhere
            })
        };
        others().next().is_some() && !others().any(|(other, _)| has_it(other))
    };
    for (entity, copy) in copies_of(&stored.key, rows) {
        let expected = by_events.get(entity).copied();
        let expected = expected.unwrap_or(LinkState::Elsewhere);
        let is_known = match copy.link {
            LinkState::Linked => expected == LinkState::Linked,
            LinkState::Conflict(_) | LinkState::Elsewhere => expected != LinkState::Elsewhere,
        };
        if is_known || copy.version != newest || !is_told(entity) {
            continue;
        }
        let since = match copy.link {
            LinkState::Linked if is_contradicted(entity) => {
                corrected.relink = Some(MaxRegister(RelinkDecision {
                    number: 1,
                    entity: entity.clone(),
                    actor: ACTOR.to_owned(),
                    reason: "linked by its copy; the decision was lost".to_owned(),
                }));
                return;
            }
            LinkState::Linked => first_time(&copy.facts),
            LinkState::Conflict(since) => Some(since),
            LinkState::Elsewhere => None,
        };
        if let Some(since) = since {
            let state = rows.entities.get(entity).map(|(state, _)| state);
            let is_in_column = state.is_some_and(|state| has_own_intent(state, &stored.key));
            // If all events can be read, and none states it, an index did.
            let source = match is_complete || is_in_column {
                true => LinkSource::Column,
                false => LinkSource::Metadata,
            };
            let links = corrected.links.entry(entity.clone()).or_default();
            links.entry(source).or_insert(MinRegister(since));
        }
    }
}

/// Whether the application wrote this payment into the row, and not billhook.
fn has_own_intent(entity: &Entity, key: &PaymentKey) -> bool {
    let intent = entity.payment_intent();
    let is_bearing = intent.is_some_and(|intent| key.payment.as_str() == intent.as_str());
    is_bearing && entity.last_derived().intent.is_none()
}

/// Names that a payment may have had whose own state was lost: its sessions and the charges of its refunds.
pub(super) fn copied_names(
    key: &PaymentKey,
    copy: &PaymentCopy,
) -> impl Iterator<Item = PaymentKey> {
    let MoneyFacts {
        sessions,
        charges,
        refunds,
        ..
    } = &copy.facts;
    let sessions = sessions.keys().cloned().map(PaymentRef::Session);
    let charges = charges.keys().cloned().map(PaymentRef::Charge);
    let refunded = refunds.values();
    let refunded = refunded.filter_map(|refund| PaymentRef::parse(refund.of.0.as_str()).ok());
    let names = sessions.chain(charges).chain(refunded);
    let names: BTreeSet<PaymentRef> = names.filter(|name| *name != key.payment).collect();
    let account = key.account.clone();
    names.into_iter().map(move |payment| PaymentKey {
        account: account.clone(),
        payment,
    })
}

/// The readings of these events; what cannot be read is noted in the proof.
pub(super) fn take_readings<'e>(
    needed: &BTreeSet<EventId>,
    events: &'e EventReadings,
    proof: &mut StateProof,
) -> Vec<&'e ReadEvent> {
    let mut readings = Vec::new();
    for id in needed {
        let of_event = events.of(id);
        let is_read = of_event
            .iter()
            .any(|reading| matches!(reading, EventReading::Read(_)));
        if !is_read {
            proof.unreadable_events.insert(id.clone());
        }
        for reading in of_event {
            match reading {
                EventReading::Read(event) => readings.push(&**event),
                EventReading::Unreadable => {}
                EventReading::Tampered => proof.differences.push(
                    StateDifference::new(
                        DifferenceSource::Events,
                        format!("event {id}"),
                        Some("another payload than was signed"),
                        None,
                    )
                    .decided_by("somebody changed the event's row: see docs/runbook/tampered.md"),
                ),
            }
        }
    }
    readings
}

/// The payment's facts as they should be.
fn correct_payment(
    stored: &PaymentState,
    stated: &StatedPayment,
    is_complete: bool,
) -> PaymentFacts {
    let known = &stored.facts;
    let mut corrected = PaymentFacts {
        money: correct_facts(&known.money, &stated.money, is_complete),
        // Only a person states it.
        relink: known.relink.clone(),
        ..stated.facts.clone()
    };
    if !is_complete {
        corrected.names.merge(known.names.clone());
        corrected.invoices.merge(known.invoices.clone());
    }
    if known.relink.is_some() {
        // Once a person has decided, what an event names is not taken any more.
        corrected.links = known.links.clone();
        return corrected;
    }
    for (entity, sources) in &known.links {
        for (source, at) in sources {
            // A link may be of an event that is processed again now, and older than all that are processed.
            let possible = stated.possible_links.get(entity);
            let possible = possible.and_then(|possible| possible.get(source));
            let is_possible = is_of_no_event(*source)
                || possible.is_some_and(|possible| possible.contains(&at.0));
            if is_possible || !is_complete {
                let links = corrected.links.entry(entity.clone()).or_default();
                let link = links.entry(*source).or_insert_with(|| at.clone());
                link.merge(at.clone());
            }
        }
    }
    corrected
}

/// An event whose facts are stored was processed, or waits to be processed again.
pub(super) fn check_outcome(event: &ReadEvent, remembered: &[EventId], proof: &mut StateProof) {
    if event.is_taken() || !remembered.contains(&event.id) {
        return;
    }
    proof.correction.events.insert(event.id.clone());
    proof.differences.push(StateDifference::new(
        DifferenceSource::Events,
        format!("event {}", event.id),
        Some(event.outcome.as_str()),
        Some("processed"),
    ));
}

/// Each other name of a payment is an alias of it, unless it led to another payment before.
fn check_names<R>(
    key: &PaymentKey,
    facts: &PaymentFacts,
    rows: &LoadedRows<R>,
    proof: &mut StateProof,
) {
    for name in &facts.names {
        let name = PaymentKey {
            account: key.account.clone(),
            payment: name.clone(),
        };
        let found = match rows.payment(&name) {
            Some(alias) if alias.alias_of.is_some() => continue,
            Some(_) => "a payment of its own",
            None => "no row",
        };
        proof
            .correction
            .payment
            .get_or_insert_with(|| Box::new(facts.clone()));
        proof.differences.push(StateDifference::new(
            DifferenceSource::States,
            name.to_string(),
            Some(found),
            Some("another name of this payment"),
        ));
    }
}

fn prove_alias<R>(
    key: &PaymentKey,
    payment: &PaymentKey,
    rows: &LoadedRows<R>,
    proof: &mut StateProof,
) {
    let found = match rows.payment(payment) {
        Some(_) if payment == key => "itself",
        Some(state) if state.facts.names.contains(&key.payment) => return,
        Some(_) => "a payment without this name",
        None => "no state",
    };
    let difference = StateDifference::new(
        DifferenceSource::States,
        payment.to_string(),
        Some(found),
        Some("the payment of this name"),
    );
    proof.differences.push(difference.decided_by(
        "rebuild the payment that this name leads to, with --since before its first event",
    ));
}

/// The invoice of each event knows the payment, or the order that the event's session is for.
fn check_invoices<R>(
    key: &PaymentKey,
    stated: &StatedPayment,
    facts: &PaymentFacts,
    rows: &LoadedRows<R>,
    proof: &mut StateProof,
) {
    for event in &stated.events {
        let Some(payment) = event.payment() else {
            continue;
        };
        let Some(invoice) = payment.invoice.clone() else {
            continue;
        };
        let invoice = InvoiceKey {
            account: key.account.clone(),
            invoice,
        };
        let known = rows.invoices.get(&invoice).map(|(known, _)| &known.facts);
        let lacks = match payment.is_of_session() {
            // A parked one has told nothing of the order that it names.
            true => event
                .named_entity()
                .filter(|_| event.outcome == EventOutcome::Processed)
                .filter(|named| named.order().is_some() && facts.links.contains_key(*named))
                .filter(|order| known.is_none_or(|known| !known.orders.contains_key(*order)))
                .map(ToString::to_string),
            false => {
                let knows = |known: &InvoiceFacts| {
                    let its = known.payments.iter();
                    its.filter(|its| its.account == key.account)
                        .any(|its| its == key || facts.names.contains(&its.payment))
                };
                (!known.is_some_and(knows)).then(|| key.to_string())
            }
        };
        if let Some(lacks) = lacks {
            proof.correction.events.insert(event.id.clone());
            proof.differences.push(StateDifference::new(
                DifferenceSource::Events,
                format!("invoice {}", StateKey::Invoice(invoice)),
                None,
                Some(&lacks),
            ));
        }
    }
}

/// Each order and statement that has a copy by the payment's account has that copy.
fn check_copies<R>(payment: &PaymentState, rows: &LoadedRows<R>, proof: &mut StateProof) {
    for (entity, version) in &payment.copied {
        let copy = copy_in(entity, &payment.key, rows);
        // A newer copy is told by the proof of the order or statement.
        if copy.is_some_and(|copy| copy.version >= *version) {
            continue;
        }
        let copy = copy.map(|copy| format!("version {}", copy.version));
        let repair = (payment.key.clone(), entity.clone());
        proof.correction.copies.insert(repair);
        proof.differences.push(StateDifference::new(
            DifferenceSource::States,
            format!("copy in {entity}"),
            copy.as_deref(),
            Some(&format!("version {version}")),
        ));
    }
    let is_outdated = !payment.outdated_copies().is_empty();
    if is_outdated && payment.open_since.is_none() {
        let outdated = payment.outdated_copies().into_keys();
        let repair = outdated.map(|entity| (payment.key.clone(), entity));
        proof.correction.copies.extend(repair);
        proof.differences.push(StateDifference::new(
            DifferenceSource::States,
            "copies",
            Some("outdated, and in no index"),
            Some("up to date"),
        ));
    }
}

/// The copy of a payment that an order or statement should have.
pub(super) fn link_of(payment: &PaymentState, entity: &EntityKey) -> LinkState {
    let links = payment.link_states();
    links.get(entity).copied().unwrap_or(LinkState::Elsewhere)
}
