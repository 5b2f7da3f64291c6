//! Proves a payment: its facts by its events, its other names, the invoices that it pays, and the copies of it.

use std::collections::BTreeSet;

use super::copies::{
    add_copied_facts, copy_in, has_unknown_rival, is_of_no_event, restore_links,
    with_copied_members,
};
use super::facts::{compare_facts, correct_facts, fill_missing, named_events, remembers_all};
use super::stated::{EventReading, EventReadings, ReadEvent, StatedPayment, merge_payment_events};
use super::{DifferenceSource, StateDifference, StateProof};
use crate::entity::EntityKey;
use crate::entity::invoice::InvoiceFacts;
use crate::entity::key::{InvoiceKey, PaymentKey, StateKey};
use crate::entity::merge::Merge as _;
use crate::entity::payment::linked::{LinkState, PaymentCopy};
use crate::entity::payment::state::{PaymentFacts, PaymentState};
use crate::entity::schema::EVENT_IDS_MAX;
use crate::ids::{EventId, PaymentRef};
use crate::outcome::EventOutcome;
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
        proof.correction.events.insert(event.key());
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
    restore_links(stored, &stated, is_complete, rows, &mut corrected);
    if known.is_none() {
        if !is_copied && stated.events.is_empty() {
            // Nothing that can be read speaks of it: the proof of the state that names it says so.
            return proof;
        }
        let lost = StateDifference::new(DifferenceSource::Events, "state", None, Some("present"));
        if has_unknown_rival(key, rows, &corrected) {
            proof.differences.push(lost.decided_by(UNKNOWN_RIVAL));
            return proof;
        }
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
        let payment = PaymentState {
            facts: corrected,
            ..stored.clone()
        };
        check_copies(&payment, rows, &mut proof);
    }
    proof
}

const UNKNOWN_RIVAL: &str = "an order or statement shares the payment with another one, and nothing says any more with which: restore the payment from a backup";

/// Its other names, by its state and by their own rows: one that the state lost may be known only by the latter, because
/// the event that stated it is gone.
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
        names
            .contains(&key.payment)
            .then(|| (key.with_name(best.clone()), event))
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
    names.map(|name| payment.key.with_name(name.clone()))
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
    let (stated, is_complete) = merge_own_events(payment, events);
    !is_complete && correct_facts(&filled, &stated.money, is_complete) == filled
}

/// Whether a copy has facts that its payment does not have, and events are gone that may have stated them: then the
/// payment was made again without them, and to empty the copy would lose them.
pub(super) fn is_only_witness(
    payment: &PaymentState,
    copy: &PaymentCopy,
    events: &EventReadings,
) -> bool {
    let money = &payment.facts.money;
    let filled = fill_missing(money, &copy.facts);
    filled != *money && {
        let (stated, is_complete) = merge_own_events(payment, events);
        !is_complete && correct_facts(&filled, &stated.money, is_complete) != *money
    }
}

/// What the events state that a payment remembers or names, and whether these are all.
fn merge_own_events(payment: &PaymentState, events: &EventReadings) -> (StatedPayment, bool) {
    let mut proof = StateProof::new(StateKey::Payment(payment.key.clone()));
    let needed = needed_events(Some(payment), &BTreeSet::new());
    let readings = take_readings(&needed, events, &mut proof);
    let remembered = &payment.history.event_ids;
    let is_complete = proof.unreadable_events.is_empty()
        && !remembered.is_empty()
        && remembered.len() < EVENT_IDS_MAX
        && remembers_all(remembered, &payment.facts.money);
    let names = &payment.facts.names;
    let stated = merge_payment_events(&payment.key, names, readings.into_iter());
    (stated, is_complete)
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
        corrected.named.merge(known.named.clone());
        corrected.recipients.merge(known.recipients.clone());
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
    proof.correction.events.insert(event.key());
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
        let name = key.with_name(name.clone());
        let found = match rows.payment(&name) {
            // Its own proof says so.
            None if rows.unreadable.contains_key(&name.clone().into()) => continue,
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
        // Its own proof says so.
        None if rows.unreadable.contains_key(&payment.clone().into()) => return,
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
        let row = StateKey::Invoice(invoice.clone());
        if rows.unreadable.contains_key(&row) {
            // Its own proof says so.
            continue;
        }
        let known = rows.invoices.get(&invoice).map(|(known, _)| &known.facts);
        let lacks = match payment.is_of_session() {
            // A parked one has given nothing to the order that it names.
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
            proof.correction.events.insert(event.key());
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
        // The proof of the order or statement names a newer copy.
        let is_newer = copy.is_some_and(|copy| copy.version >= *version);
        // Its own proof says so.
        let is_unreadable = rows.unreadable.contains_key(&entity.clone().into());
        if is_newer || is_unreadable {
            continue;
        }
        let copy = copy.map(|copy| format!("version {}", copy.version));
        let difference = StateDifference::new(
            DifferenceSource::States,
            format!("copy in {entity}"),
            copy.as_deref(),
            Some(&format!("version {version}")),
        );
        let difference = match rows.entities.contains_key(entity) {
            true => {
                let repair = (payment.key.clone(), entity.clone());
                proof.correction.copies.insert(repair);
                difference
            }
            false => {
                difference.decided_by("its row and its state are gone: restore them from a backup")
            }
        };
        proof.differences.push(difference);
    }
    let outdated = payment.outdated_copies();
    if !outdated.is_empty() && payment.open_since.is_none() {
        let repair = outdated
            .into_keys()
            .map(|entity| (payment.key.clone(), entity));
        proof.correction.copies.extend(repair);
        proof.differences.push(StateDifference::new(
            DifferenceSource::States,
            "copies",
            Some("outdated, and in no index"),
            Some("up to date"),
        ));
    }
}

/// How a payment is linked to an order or statement.
pub(super) fn link_of(payment: &PaymentState, entity: &EntityKey) -> LinkState {
    let links = payment.link_states();
    links.get(entity).copied().unwrap_or(LinkState::Elsewhere)
}
