//! What the copies of a payment in orders and statements show, and the payment itself has lost.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{fill_missing, first_time};
use super::stated::StatedPayment;
use crate::entity::key::PaymentKey;
use crate::entity::merge::{Merge, MinRegister};
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::payment::linked::{LinkState, PaymentCopy};
use crate::entity::payment::state::{LinkSource, PaymentFacts, PaymentState};
use crate::entity::{Entity, EntityKey};
use crate::ids::PaymentRef;
use crate::time::Timestamp;
use crate::worker::ports::LoadedRows;

/// The copies that orders and statements have of a payment.
pub(super) fn copies_of<'r, R>(
    key: &PaymentKey,
    rows: &'r LoadedRows<R>,
) -> impl Iterator<Item = (&'r EntityKey, &'r PaymentCopy)> {
    let entities = rows.entities.iter();
    entities.filter_map(move |(entity, (state, _))| {
        let copies = state.linked_payment_facts()?;
        Some((entity, copies.payments.get(key)?))
    })
}

pub(super) fn copy_in<'r, R>(
    entity: &EntityKey,
    payment: &PaymentKey,
    rows: &'r LoadedRows<R>,
) -> Option<&'r PaymentCopy> {
    let (entity, _) = rows.entities.get(entity)?;
    entity.linked_payment_facts()?.payments.get(payment)
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
    names.into_iter().map(|name| key.with_name(name))
}

/// With everything that a copy of the same version has and the payment has not: nothing is dropped because one of the two
/// lost it. Where both have a value, the payment's counts.
pub(super) fn with_copied_members<R>(stored: &PaymentState, rows: &LoadedRows<R>) -> PaymentState {
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

/// What the copies of a payment state whose own state was lost: all of its facts, unless it is another one's.
pub(super) fn add_copied_facts<R>(
    key: &PaymentKey,
    rows: &LoadedRows<R>,
    corrected: &mut PaymentFacts,
) -> bool {
    let mut is_copied = false;
    let copies = copies_of(key, rows).filter(|(_, copy)| copy.link != LinkState::Elsewhere);
    for (_, copy) in copies {
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

/// Puts back the links and the decision that the copies show and the payment has lost. The index or the event that made a
/// link may be gone, and what a person decided is in no event at all.
pub(super) fn restore_links<R>(
    stored: &PaymentState,
    stated: &StatedPayment,
    is_complete: bool,
    rows: &LoadedRows<R>,
    corrected: &mut PaymentFacts,
) {
    let known_relink = corrected.relink.clone();
    for (_, copy) in copies_of(&stored.key, rows) {
        corrected.relink.merge(copy.relink.clone());
    }
    if corrected.relink.is_some() {
        // Once a person has decided, what an event names is not taken any more.
        match known_relink {
            Some(_) => {}
            None if stored.version > 0 => corrected.links = stored.facts.links.clone(),
            None => {
                let has_copy = |entity: &EntityKey| copy_in(entity, &stored.key, rows).is_some();
                corrected.links.retain(|entity, _| has_copy(entity));
            }
        }
        return;
    }
    let newest = newest_copies(stored, rows);
    let altered = altered_links(stored, &newest);
    for entity in altered.keys() {
        if !stated.possible_links.contains_key(*entity) {
            corrected.links.remove(*entity);
        }
    }
    let moved = altered.values().copied().flatten();
    // All events can be read, and none names the entity of a copy that lost its link.
    let moved = moved.filter(|(source, _)| !is_complete || is_of_no_event(**source));
    let moved: BTreeMap<LinkSource, MinRegister<Timestamp>> =
        moved.map(|(source, at)| (*source, at.clone())).collect();
    let by_events = PaymentState {
        facts: corrected.clone(),
        denied: stored.denied.clone(),
        ..PaymentState::new(stored.key.clone())
    };
    let by_events = by_events.link_states();
    let is_conflict = |link: LinkState| matches!(link, LinkState::Conflict(_));
    let conflicts = newest
        .iter()
        .filter(|(_, copy)| is_conflict(copy.link))
        .count();
    for (entity, copy) in newest {
        let expected = by_events.get(entity).copied();
        let expected = expected.unwrap_or(LinkState::Elsewhere);
        let (is_known, since) = match copy.link {
            LinkState::Linked => (expected == LinkState::Linked, first_time(&copy.facts)),
            // Alone it would be linked.
            LinkState::Conflict(_) if stored.version == 0 && conflicts < 2 => continue,
            LinkState::Conflict(since) => (expected != LinkState::Elsewhere, Some(since)),
            LinkState::Elsewhere => continue,
        };
        let mut sources = match stored.facts.links.contains_key(entity) {
            true => BTreeMap::new(),
            false => moved.clone(),
        };
        if let (false, true, Some(since)) = (is_known, sources.is_empty(), since) {
            let state = rows.entities.get(entity).map(|(state, _)| state);
            let is_in_column = state.is_some_and(|state| has_own_intent(state, &stored.key));
            // If all events can be read, and none states it, an index did.
            let source = match is_complete || is_in_column {
                true => LinkSource::Column,
                false => LinkSource::Metadata,
            };
            sources.insert(source, MinRegister(since));
        }
        if !sources.is_empty() {
            let links = corrected.links.entry(entity.clone()).or_default();
            Merge::merge(links, sources);
        }
    }
}

/// Whether a copy of a lost payment is in conflict with one that nothing names any more: written again, the payment would
/// be linked to the one that is left, and a person has to decide that.
pub(super) fn has_unknown_rival<R>(
    key: &PaymentKey,
    rows: &LoadedRows<R>,
    corrected: &PaymentFacts,
) -> bool {
    let by_facts = PaymentState {
        facts: corrected.clone(),
        ..PaymentState::new(key.clone())
    };
    let links = by_facts.link_states();
    let is_conflict = |link: LinkState| matches!(link, LinkState::Conflict(_));
    let mut copies = copies_of(key, rows);
    corrected.relink.is_none()
        && copies.any(|(entity, copy)| {
            let expected = links.get(entity).copied();
            is_conflict(copy.link) && !expected.is_some_and(is_conflict)
        })
}

/// The newest copies. Of a payment that is there, a copy is believed only if the payment says that it wrote it.
fn newest_copies<'r, R>(
    stored: &PaymentState,
    rows: &'r LoadedRows<R>,
) -> Vec<(&'r EntityKey, &'r PaymentCopy)> {
    let is_lost = stored.version == 0;
    let copies = || copies_of(&stored.key, rows);
    let version = match is_lost {
        true => copies().map(|(_, copy)| copy.version).max(),
        false => Some(stored.facts_version),
    };
    let newest = copies().filter(|(entity, copy)| {
        Some(copy.version) == version && (is_lost || stored.copied.get(*entity) == version.as_ref())
    });
    newest.collect()
}

/// The links that no copy follows, where a copy has lost its link: its key was altered. Who is not open has written all
/// of its copies, and a link is never taken back.
fn altered_links<'s>(
    stored: &'s PaymentState,
    newest: &[(&EntityKey, &PaymentCopy)],
) -> BTreeMap<&'s EntityKey, &'s BTreeMap<LinkSource, MinRegister<Timestamp>>> {
    let links = &stored.facts.links;
    let mut linked = newest.iter();
    let has_lost_link = linked
        .any(|(entity, copy)| copy.link != LinkState::Elsewhere && !links.contains_key(*entity));
    if stored.open_since.is_some() || !has_lost_link {
        return BTreeMap::new();
    }
    let unfollowed = links.iter();
    unfollowed
        .filter(|(entity, _)| !stored.copied.contains_key(*entity))
        .collect()
}

/// An index and an invoice state these, and no event of the payment.
pub(super) fn is_of_no_event(source: LinkSource) -> bool {
    match source {
        LinkSource::Column | LinkSource::Invoice | LinkSource::Reference => true,
        LinkSource::Metadata | LinkSource::Object => false,
    }
}

/// Whether the application wrote this payment into the row, and not billhook.
fn has_own_intent(entity: &Entity, key: &PaymentKey) -> bool {
    let intent = entity.payment_intent();
    let is_bearing = intent.is_some_and(|intent| key.payment.as_str() == intent.as_str());
    is_bearing && entity.last_derived().intent.is_none()
}
