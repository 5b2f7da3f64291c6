//! Proves an order, statement or tenant: the copies of its payments, the facts of its letters and account by their
//! events, what follows from them, its row, and whose it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::facts::{compare_facts, correct_facts, named_events, remembers_all};
use super::payment::{check_outcome, is_only_witness, is_undecided, link_of, take_readings};
use super::stated::{
    EventReadings, EventUse, StatedByEvents, merge_account_events, merge_mail_events,
};
use super::{DifferenceSource, StateCorrection, StateDifference, StateProof};
use crate::entity::account::AccountFacts;
use crate::entity::columns::ColumnOwner;
use crate::entity::key::StateKey;
use crate::entity::kind::StatedFacts;
use crate::entity::mail::facts::MailFacts;
use crate::entity::merge::Merge;
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::payment::linked::{LinkState, PaymentCopy};
use crate::entity::payment::state::PaymentState;
use crate::entity::projection::RowStanding;
use crate::entity::schema::EVENT_IDS_MAX;
use crate::entity::{Entity, EntityKey};
use crate::ids::{AccountId, EventId, TenantId};
use crate::time::Timestamp;
use crate::worker::ports::{ChangedColumn, Ledger, LoadedRows};

/// The tenant of each account that has exactly one.
pub(super) type TenantsByAccount = BTreeMap<AccountId, TenantId>;

/// The events that its proof needs beside those of its payments.
pub(super) fn needed_events(entity: &Entity, named: &BTreeSet<EventId>) -> BTreeSet<EventId> {
    let of_mail = entity.mail_facts().map(named_events);
    let Some(mut needed) = of_mail.or(entity.account_facts().map(named_events)) else {
        return BTreeSet::new();
    };
    needed.extend(entity.event_ids().iter().chain(named).cloned());
    needed
}

/// Whether billhook wrote the row from facts that the state does not have: the state was lost, or is older.
pub(super) fn is_behind(entity: &Entity) -> bool {
    entity.standing() == RowStanding::Ahead
}

/// What the events about an entity are read for.
pub(super) fn use_of(key: &EntityKey) -> EventUse {
    match key {
        EntityKey::Tenant(_) => EventUse::Account,
        EntityKey::Order(_) | EntityKey::Statement(_) => EventUse::Mail,
    }
}

/// The events of an entity whose state was lost or is older than its row: those of its timeline, and those that an index
/// names.
pub(super) fn own_events<L: Ledger>(
    entity: &Entity,
    row: &L::Row,
    named: &BTreeSet<EventId>,
) -> BTreeSet<EventId> {
    let of_row = L::timeline_events(row).into_iter();
    let remembered = entity.event_ids().iter().chain(named);
    of_row.chain(remembered.cloned()).collect()
}

/// What its payments and these events state of an entity whose state was lost or is older than its row.
pub(super) fn restate<R>(
    entity: &Entity,
    own_events: &BTreeSet<EventId>,
    rows: &LoadedRows<R>,
    events: &EventReadings,
) -> Vec<StatedFacts> {
    let key = &entity.key();
    let own = || events.read().filter(|event| own_events.contains(&event.id));
    let payments = rows.payments.values().filter_map(|(payment, _)| {
        let link = link_of(payment, key);
        let is_known = payment.copied.contains_key(key) || link != LinkState::Elsewhere;
        is_known.then(|| {
            let copy = Box::new(payment.copy_for(link));
            StatedFacts::Payment(payment.key.clone(), copy)
        })
    });
    let mut stated: Vec<StatedFacts> = payments.collect();
    match key {
        EntityKey::Order(_) => {}
        EntityKey::Statement(_) => stated.push(StatedFacts::Mail(merge_mail_events(own()).all)),
        EntityKey::Tenant(_) => stated.push(StatedFacts::Account(merge_account_events(own()).all)),
    }
    stated
}

fn states_something(stated: &StatedFacts) -> bool {
    match stated {
        StatedFacts::Payment(..) | StatedFacts::Cancelled(_) | StatedFacts::Manual(_) => true,
        StatedFacts::Mail(mail) => *mail != MailFacts::default(),
        StatedFacts::Account(account) => *account != AccountFacts::default(),
    }
}

/// Proves one entity. `rows` has it and its payments; `events` what [`needed_events`] names.
pub(super) fn prove_entity<L: Ledger>(
    entity: &Entity,
    row: &L::Row,
    rows: &LoadedRows<L::Row>,
    events: &EventReadings,
    tenants: &TenantsByAccount,
    named: &BTreeSet<EventId>,
    now: Timestamp,
) -> StateProof {
    let key = entity.key();
    let mut proof = StateProof::new(StateKey::Entity(key.clone()));
    proof.has_forgotten_events = entity.event_ids().len() >= EVENT_IDS_MAX;
    check_tenant(entity, tenants, &mut proof);
    if is_behind(entity) {
        let version = entity.row().version.map(|version| version.to_string());
        let stored = (entity.version() > 0).then(|| entity.version().to_string());
        let lost = StateDifference::new(
            DifferenceSource::Row,
            "version",
            stored.as_deref(),
            version.as_deref(),
        );
        let own = own_events::<L>(entity, row, named);
        if restate(entity, &own, rows, events)
            .iter()
            .any(states_something)
        {
            proof.correction.row = proof.differences.is_empty();
            proof.differences.push(lost);
        } else {
            // From nothing the row would be derived as unpaid.
            proof.differences.push(lost.decided_by(
                "its payments and events are gone too, or cannot be found: restore the state from a backup",
            ));
        }
        return proof;
    }
    let is_own = proof.differences.is_empty();
    check_copies(entity, rows, events, &mut proof);
    check_own_facts(entity, events, named, &mut proof);
    if proof.differences.is_empty() {
        // Only of right facts the columns can be right.
        check_row::<L>(entity, row, now, &mut proof);
    } else if entity.write_refusal().is_none() {
        let differences = &mut proof.differences.iter();
        proof.correction.row = differences.any(|of| of.decision.is_none());
    }
    if !is_own {
        // Nothing is written until a person said whose it is.
        proof.correction = StateCorrection::default();
    }
    proof
}

/// The payments of which an entity has another copy than it should, of the payment's own version, or one that it should
/// not have.
pub(super) fn contradicted_payments<'r, R>(
    entity: &'r Entity,
    rows: &'r LoadedRows<R>,
) -> impl Iterator<Item = &'r PaymentState> {
    let key = entity.key();
    let facts = entity.linked_payment_facts();
    let copies = facts.into_iter().flat_map(|facts| &facts.payments);
    copies.filter_map(move |(payment, copy)| {
        let known = rows.payment(payment)?;
        let expected = expect_copy(known, entity, &key);
        let expected = expected.unwrap_or_else(|| known.copy_for(LinkState::Elsewhere));
        let is_emptied = expected.link == LinkState::Elsewhere && copy.link != expected.link;
        let is_contradicted = copy.version == known.facts_version && expected.facts != copy.facts;
        (is_contradicted || is_emptied).then_some(known)
    })
}

/// Its row and its state say the same tenant, and it is that of each payment's account.
fn check_tenant(entity: &Entity, tenants: &TenantsByAccount, proof: &mut StateProof) {
    let of_row = entity.tenant();
    let show =
        |tenant: Option<&TenantId>| tenant.map_or("the platform", TenantId::as_str).to_owned();
    let of_state = entity.state_tenant();
    let decision = "say whose it is: restore the tenant's column of the row, or move the account's tenant; billhook writes nothing of it until then";
    let mut differ = |stored: Option<&TenantId>, expected: Option<&TenantId>| {
        proof.differences.push(
            StateDifference::new(
                DifferenceSource::Row,
                "tenant",
                Some(&show(stored)),
                Some(&show(expected)),
            )
            .decided_by(decision),
        );
    };
    if of_state.is_some() && of_state != of_row {
        differ(of_row, of_state);
        return;
    }
    let payments = entity.linked_payment_facts();
    let payments = payments.into_iter().flat_map(|facts| facts.payment_keys());
    let accounts: BTreeSet<&AccountId> = payments
        .filter_map(|payment| payment.account.as_ref())
        .collect();
    for account in accounts {
        if let Some(tenant) = tenants.get(account)
            && of_row != Some(tenant)
        {
            differ(of_row, Some(tenant));
        }
    }
}

const OF_ANOTHER: &str = "rebuild the payment, with --since before its first event, or the order or statement that has it";

const UNDECIDED: &str = "the payment and this copy differ, and the events that would say which is right are gone: compare the payment with Stripe (--with-stripe), and restore the one that is wrong from a backup";

/// Each copy is what the payment says of this entity.
fn check_copies<R>(
    entity: &Entity,
    rows: &LoadedRows<R>,
    events: &EventReadings,
    proof: &mut StateProof,
) {
    let key = entity.key();
    let facts = entity.linked_payment_facts();
    for (payment, copy) in facts.into_iter().flat_map(|facts| &facts.payments) {
        let place = format!("facts.payments.{payment}");
        let repair = (payment.clone(), key.clone());
        let Some(known) = rows.payment(payment) else {
            if rows.unreadable.contains_key(&payment.clone().into()) {
                // Its own proof says so.
                continue;
            }
            let source = DifferenceSource::States;
            let lost = StateDifference::new(source, place, Some("a copy"), Some("a payment"));
            if copy.link == LinkState::Linked {
                proof.correction.copies.insert(repair);
                proof.differences.push(lost);
            } else {
                // This copy alone does not say whose the payment is.
                proof.differences.push(lost.decided_by(OF_ANOTHER));
            }
            continue;
        };
        let expected = expect_copy(known, entity, &key);
        let is_own_version = copy.version == known.facts_version;
        let differs = match (&expected, copy.version > known.facts_version) {
            (_, true) => true,
            // It has an older copy until the payment's next write; the payment's own proof says whether that is due.
            (Some(_), false) if !is_own_version => match known.copied.get(&key) {
                Some(version) => *version != copy.version,
                // It had lost it, and gets it again.
                None => copy.link != LinkState::Elsewhere,
            },
            (Some(expected), false) => expected != copy,
            // One that it lost leaves an empty copy.
            (None, false) => {
                copy.link != LinkState::Elsewhere || copy.facts != MoneyFacts::default()
            }
        };
        if differs {
            let expected = expected.unwrap_or_else(|| known.copy_for(LinkState::Elsewhere));
            let found = compare_facts(DifferenceSource::States, &place, copy, &expected);
            let is_emptied = expected.link == LinkState::Elsewhere;
            if (is_emptied && is_only_witness(known, copy, events))
                || (is_own_version && is_undecided(known, copy, events))
            {
                let decide = |difference: StateDifference| difference.decided_by(UNDECIDED);
                proof.differences.extend(found.into_iter().map(decide));
            } else {
                proof.correction.copies.insert(repair);
                proof.differences.extend(found);
            }
        }
    }
}

/// The copy that an entity should have of a payment; `None` if it should have none.
fn expect_copy(payment: &PaymentState, entity: &Entity, key: &EntityKey) -> Option<PaymentCopy> {
    let is_known = payment.copied.contains_key(key);
    let link = link_of(payment, key);
    (is_known || link != LinkState::Elsewhere).then(|| {
        let copy = payment.copy_for(link);
        entity.take_copy(copy)
    })
}

/// The facts of its letters or its account are what their events state.
fn check_own_facts(
    entity: &Entity,
    events: &EventReadings,
    named: &BTreeSet<EventId>,
    proof: &mut StateProof,
) {
    let needed = needed_events(entity, named);
    if needed.is_empty() {
        return;
    }
    let remembered = entity.event_ids();
    let mail = entity.mail_facts();
    let account = entity.account_facts();
    proof.has_forgotten_events |= mail.is_some_and(|mail| !remembers_all(remembered, mail))
        || account.is_some_and(|account| !remembers_all(remembered, account));
    let readings = take_readings(&needed, events, proof);
    let is_complete = proof.unreadable_events.is_empty() && !proof.has_forgotten_events;
    if let Some(mail) = mail {
        let stated = merge_mail_events(readings.iter().copied());
        proof.correction.mail = check_facts("facts.mail", mail, &stated, is_complete, proof);
    }
    if let Some(account) = account {
        let stated = merge_account_events(readings.iter().copied());
        proof.correction.account = check_facts("facts", account, &stated, is_complete, proof);
    }
    let of = use_of(&entity.key());
    for event in readings.iter().filter(|event| event.is_for(of)) {
        check_outcome(event, remembered, proof);
    }
}

/// Tells what is different, and returns the facts as they should be if they are others.
fn check_facts<F>(
    place: &str,
    stored: &F,
    stated: &StatedByEvents<F>,
    is_complete: bool,
    proof: &mut StateProof,
) -> Option<F>
where
    F: Merge + Clone + Serialize + DeserializeOwned,
{
    let corrected = correct_facts(stored, stated, is_complete);
    let found = compare_facts(DifferenceSource::Events, place, stored, &corrected);
    let is_other = !found.is_empty();
    proof.differences.extend(found);
    is_other.then_some(corrected)
}

/// What follows from the facts is what the state says was derived, and what the row shows. The row is compared as if
/// nobody had edited it, so that edits and faults can be told apart.
fn check_row<L: Ledger>(entity: &Entity, row: &L::Row, now: Timestamp, proof: &mut StateProof) {
    if entity.version() == 0 || entity.row().is_missing {
        return;
    }
    let next = entity.unedited().apply_facts([], now);
    let standing = entity.standing();
    let is_all_edited = standing == RowStanding::Replaced || entity.has_unseen_statement();
    let schema = entity.key().schema();
    let is_of_both = |name: &str| {
        let mut columns = schema.columns.iter();
        columns.any(|column| column.name == name && column.owner == ColumnOwner::Both)
    };
    // The application says which letter counts, and nothing says which one counted when billhook wrote.
    let has_other_piece = entity.may_be_of_another_piece();
    let is_of_piece = |name: &str| has_other_piece && PIECE_COLUMNS.contains(&name);
    let source_of = |change: &ChangedColumn| {
        let name = change.column.as_str();
        let is_guarded = schema.guarded.contains(&name);
        // A review flag that was removed alone is a clearing, and a column of both may be emptied.
        let may_be_empty = REVIEW_FLAGS.contains(&name) || is_of_both(name);
        let is_edit = is_guarded && (change.found.is_some() || may_be_empty);
        let is_current = standing == RowStanding::Current;
        match is_all_edited || is_of_piece(name) || (is_edit && is_current) {
            true => DifferenceSource::Edit,
            false => DifferenceSource::Row,
        }
    };
    let mut found = compare_facts(
        DifferenceSource::States,
        "derived",
        entity.last_derived(),
        next.last_derived(),
    );
    for difference in &mut found {
        let name = difference.place.trim_start_matches("derived.");
        // One that billhook did not write is filled only once the application removed its own; and in a row that was
        // written over, the application's own counts.
        let is_given = DERIVED_OF_BOTH.contains(&name)
            && (difference.stored.is_none() || standing != RowStanding::Current);
        if is_all_edited || is_given || is_of_piece(name) {
            difference.source = DifferenceSource::Edit;
        }
    }
    for change in L::changed_columns(entity, row, &next, now) {
        found.push(StateDifference {
            source: source_of(&change),
            place: format!("row.{}", change.column),
            stored: change.found,
            expected: change.next,
            decision: None,
        });
    }
    if found.is_empty() && matches!(standing, RowStanding::Stale { .. }) {
        let show = |version: Option<i64>| version.map(|version| version.to_string());
        found.push(StateDifference::new(
            DifferenceSource::Row,
            "row.version",
            show(entity.row().version).as_deref(),
            show(entity.last_version()).as_deref(),
        ));
    }
    proof.correction.row = !found.is_empty() && entity.write_refusal().is_none();
    proof.differences.extend(found);
}

/// The members of `derived` whose columns the application writes too.
const DERIVED_OF_BOTH: [&str; 3] = ["intent", "session", "user"];

/// What depends on which of a statement's letters counts, in `derived` and in the row.
const PIECE_COLUMNS: [&str; 9] = [
    "mailStatus",
    "needsAttention",
    "mail_status",
    "mail_status_at",
    "needs_attention",
    "attention_reason",
    "expected_delivery_date",
    "tracking_number",
    "template_version",
];

const REVIEW_FLAGS: [&str; 2] = ["requiresReview", "requires_review"];
