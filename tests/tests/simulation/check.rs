//! The invariants, with their numbers in `docs/reliability.md`: checked while a seed runs and on what it leaves.

use billhook_core::provider::interpret::InterpretRules;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use billhook_core::entity::key::StateKey;
use billhook_core::entity::payment::linked::{LinkState, LinkedPaymentFacts};
use billhook_core::entity::projection::RowStanding;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{EventId, PerProvider, ProviderId};
use billhook_core::outcome::EventOutcome;
use billhook_core::proof::prover::{EventsByState, StateProver};
use billhook_core::provider::stripe::types::{IntentStatus, SessionStatus};
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::RECEIVES_MAX;
use billhook_core::worker::ports::NextState;
use billhook_testkit::sim::World;
use billhook_testkit::sim::application::{EditKind, RowEdit};
use billhook_testkit::sim::store::{EntityRow, Written, amount_paid_of, amount_refunded_of};
use billhook_testkit::sim::stripe::{Emitted, End, Says};
use serde_json::Value;
use webhook_secret::KNOWN_AFTER;

use crate::customers::tenant;
use crate::functions::{Functions, Seen};
use crate::links::{is_reached, link_evidence, linked_entities};
use crate::logs;
use crate::oracle::{OrderDecisions, expected};
use crate::senders::{Answered, Call};

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    pub(crate) invariant: u8,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.invariant, self.what)
    }
}

#[derive(Default)]
pub(crate) struct Found(pub(crate) BTreeSet<Violation>);

impl Found {
    pub(crate) fn add(&mut self, invariant: u8, what: impl fmt::Display) {
        let what = what.to_string();
        self.0.insert(Violation { invariant, what });
    }

    fn unless(&mut self, holds: bool, invariant: u8, what: impl FnOnce() -> String) {
        if !holds {
            self.add(invariant, what());
        }
    }
}

type Key = (ProviderId, String);

fn by_id(world: &World) -> BTreeMap<(&'static str, &str), &Emitted> {
    let all = world.stripe.events.iter();
    all.map(|event| ((event.provider.as_str(), event.id.as_str()), event))
        .collect()
}

/// What must hold once everything is quiet.
pub(crate) fn at_the_end(functions: &Functions, found: &mut Found) {
    let world = functions.sim.world();
    let seen = functions.seen();
    answers(&world, &seen, found);
    writes(&world, found);
    batches(&seen, found);
    events(&world, &seen, found);
    rows(&world, found);
    unclaimed(&world, found);
    for line in logs::told() {
        found.add(19, format!("the log says {line}"));
    }
    for ended in &world.stripe.ended_under_way {
        found.add(11, ended);
    }
    for name in &seen.panics {
        found.add(18, format!("{name} panicked"));
    }
    for provider in ProviderId::ALL.iter().copied() {
        for sent in &world.queues[provider.as_str()].sent {
            let is_pointer = sent.body.is_ascii() && !sent.body.contains("CANARY");
            found.unless(is_pointer, 19, || format!("a message holds {}", sent.body));
        }
    }
    for answer in &world.stack_answers {
        found.unless(!answer.to_string().contains("CANARY"), 19, || {
            format!("an answer holds {answer}")
        });
    }
}

/// 23: money that nothing claims for a day is reported, and no other.
fn unclaimed(world: &World, found: &mut Found) {
    let told = logs::unclaimed();
    let now_s = world.now().unix_s();
    let mut expected = BTreeSet::new();
    for event in &world.stripe.events {
        let body: Value = serde_json::from_str(&event.body).unwrap();
        let is_strange = !world.stripe.intents.contains_key(&event.of);
        let has_no_owner = match &event.end {
            End::Unlinked => true,
            End::Parked(why) => {
                ["", "cross_tenant", "order_unknown", "tenant_unknown"].contains(why)
            }
            End::In(_) | End::Ignored => false,
        };
        if event.provider != ProviderId::Stripe || !is_strange || !has_no_owner {
            continue;
        }
        let object = &body["data"]["object"];
        let intent = match &object["payment_intent"] {
            Value::String(intent) => intent,
            _ => object["id"].as_str().unwrap(),
        };
        let metadata = &object["metadata"];
        let id = metadata["orderId"]
            .as_str()
            .or(metadata["order_id"].as_str());
        let statement = metadata["statement_id"].as_str();
        let is_named = id.or(statement).is_some_and(|id| !id.contains(' '));
        let account = event.account.as_deref();
        if account.is_none() || is_named {
            let account = account.unwrap_or("platform");
            expected.insert((format!("payment#{account}#{intent}"), event.created_s));
        }
    }
    for payment in &told {
        found.unless(expected.iter().any(|(of, _)| of == payment), 23, || {
            format!("{payment} was reported as unclaimed")
        });
    }
    for (payment, created_s) in &expected {
        // A delivery may be hours late.
        let is_due = created_s + 25 * 60 * 60 < now_s;
        found.unless(!is_due || told.contains(payment), 23, || {
            format!("nobody heard of {payment}")
        });
    }
}

/// 22: at rest every state is what its events say; and once its events are gone, nothing is different.
pub(crate) async fn proofs(functions: &Functions, found: &mut Found) {
    let (tables, now) = {
        let world = functions.sim.world();
        let tables = PerProvider::new(|provider| world.store.to_tables(provider));
        (tables, world.now())
    };
    let prover = StateProver {
        states: tables.of(ProviderId::Stripe),
        events: PerProvider::new(|provider| tables.of(provider)),
        rules: InterpretRules::default(),
    };
    let keys: BTreeSet<StateKey> = {
        let tables = tables.of(ProviderId::Stripe);
        let entities = tables.entities.lock().unwrap();
        let payments = tables.payments.lock().unwrap();
        let invoices = tables.invoices.lock().unwrap();
        let entities = entities.keys().cloned().map(StateKey::Entity);
        let payments = payments.keys().cloned().map(StateKey::Payment);
        let invoices = invoices.keys().cloned().map(StateKey::Invoice);
        entities.chain(payments).chain(invoices).collect()
    };
    for when in ["", " on day 401"] {
        let proven = prover.prove(&keys, &EventsByState::new(), now).await;
        for proof in proven.unwrap() {
            for different in &proof.differences {
                let (key, place) = (&proof.key, &different.place);
                let (stored, expected) = (&different.stored, &different.expected);
                found.add(
                    22,
                    format!("{key}{when}: {place} is {stored:?}, not {expected:?}"),
                );
            }
        }
        for (_, tables) in tables.iter() {
            tables.events.lock().unwrap().clear();
        }
    }
}

/// 22: nor does a run of the nightly proof find a state different while workers write it.
pub(crate) fn proofs_meanwhile(functions: &Functions, found: &mut Found) {
    for (run, state) in &functions.seen().different {
        found.add(22, format!("{run} found {state} different"));
    }
}

/// What must hold a quarter of an hour after the last fault.
pub(crate) fn drained(functions: &Functions, healed: Timestamp, found: &mut Found) {
    let world = functions.sim.world();
    for provider in ProviderId::ALL.iter().copied() {
        for message in &world.queues[provider.as_str()].messages {
            let is_old = message.sent_at < healed.after(Duration::from_mins(8));
            found.unless(!is_old, 12, || {
                format!("{} is still on the queue", message.body)
            });
        }
    }
}

fn answers(world: &World, seen: &Seen, found: &mut Found) {
    for answered in &seen.answers {
        let status = answered.status();
        let body = answered
            .answer
            .as_ref()
            .map_or("", |(_, body)| body.as_str());
        found.unless(!body.contains("CANARY"), 19, || {
            format!("an answer says {body}")
        });
        match &answered.call {
            Call::Forged(how, statuses) => {
                let is_right = status.is_none_or(|status| statuses.contains(&status));
                let invariant = if status == Some(200) { 2 } else { 17 };
                let excused = status == Some(503) && answered.faults > 0;
                found.unless(is_right || excused, invariant, || {
                    format!("{how}: answered {status:?}")
                });
            }
            Call::Genuine(provider, id, secret) => {
                genuine(world, answered, *provider, id, found);
                if status == Some(400) && stood(world, secret, answered.began) {
                    found.add(
                        16,
                        format!("{id}: a secret that counts was refused at {}", answered.at),
                    );
                }
            }
        }
    }
}

fn genuine(
    world: &World,
    answered: &Answered,
    provider: ProviderId,
    id: &EventId,
    found: &mut Found,
) {
    let status = answered.status();
    let is_known = matches!(status, None | Some(200 | 400 | 503));
    found.unless(is_known, 17, || {
        format!("{id} at {}: answered {status:?}", answered.at)
    });
    let excused = answered.faults > 0 || status != Some(503);
    found.unless(excused, 17, || {
        format!("{id}: 503 from {}, to which nothing happened", answered.by)
    });
    if status != Some(200) {
        return;
    }
    let Some((processed, _)) = answered.after else {
        return found.add(1, format!("{id} was accepted and is not stored"));
    };
    let is_duplicate = answered
        .answer
        .as_ref()
        .is_some_and(|(_, body)| body.contains("\"duplicate\":true"));
    if is_duplicate {
        return found.unless(processed, 1, || format!("{id} is a duplicate and not done"));
    }
    let names = format!("\"event_id\":\"{id}\"");
    let mut sent = world.queues[provider.as_str()].sent.iter().filter(|sent| {
        sent.by == answered.by && sent.at >= answered.began && sent.body.contains(&names)
    });
    let first = sent.next();
    found.unless(first.is_some(), 1, || {
        format!("{id} was accepted and not queued")
    });
    let was_given_up = matches!(
        answered.before,
        Some((false, EventOutcome::Parked | EventOutcome::Failed))
    );
    let is_swallowed =
        first.is_some_and(|first| first.is_swallowed) && sent.all(|sent| sent.is_swallowed);
    found.unless(!(was_given_up && is_swallowed), 14, || {
        format!("{id} was sent again and swallowed")
    });
}

/// Whether every ingress had time to know that this secret counts.
fn stood(world: &World, secret: &str, now: Timestamp) -> bool {
    let holds = |then: Timestamp| {
        world.secrets.values().any(|versions| {
            let current = versions.iter().rev().find(|(_, at)| *at <= then);
            current.is_some_and(|(text, _)| text.contains(secret))
        })
    };
    holds(now.before(KNOWN_AFTER)) && holds(now)
}

fn writes(world: &World, found: &mut Found) {
    let emitted = by_id(world);
    let mut processed: BTreeSet<Key> = BTreeSet::new();
    let mut of_payment: BTreeMap<&str, Vec<KnownEvent<'_>>> = BTreeMap::new();
    let mut of_letter: BTreeMap<EntityKey, Vec<&Emitted>> = BTreeMap::new();
    for written in &world.store.written {
        for (provider, before, outcome) in &written.events {
            let is_processed = *outcome == EventOutcome::Processed;
            // A payment takes the facts of an event that is parked for its tenant or its order.
            let is_taken = *outcome == EventOutcome::Parked && !written.states.is_empty();
            if !is_processed && !is_taken {
                continue;
            }
            let id = before.id.to_string();
            let Some(event) = emitted.get(&(provider.as_str(), id.as_str())) else {
                found.add(2, format!("{id} is processed and nobody made it"));
                continue;
            };
            if is_taken {
                let known = of_payment.entry(event.of.as_str()).or_default();
                let is_known = known.iter().any(|known| known.event == *event);
                let since = written.states.iter().find_map(|state| match state {
                    NextState::Payment(payment) if payment.key.payment.as_str() == event.of => {
                        Some(payment.facts_version)
                    }
                    NextState::Payment(_) | NextState::Invoice(_) => None,
                });
                let since = since.unwrap_or_default();
                known.extend((!is_known).then_some(KnownEvent { event, since }));
                continue;
            }
            found.unless(processed.insert((*provider, id.clone())), 3, || {
                format!("{id} was applied twice")
            });
            let is_live = event.end == End::Parked("live_event_on_test_stage");
            found.unless(!is_live, 8, || format!("{id} is live and was processed"));
            if *provider == ProviderId::Stripe {
                let known = of_payment.entry(event.of.as_str()).or_default();
                let is_known = known.iter().any(|known| known.event == *event);
                known.retain(|known| known.event != *event);
                known.push(KnownEvent { event, since: 0 });
                found.unless(is_known || !written.states.is_empty(), 9, || {
                    format!("{id} is processed and moved no payment")
                });
                continue;
            }
            let Some((_, row)) = written.entities.first() else {
                found.add(9, format!("{id} is processed and moved no entity"));
                continue;
            };
            let key = row.entity.key();
            found.unless(event.end == End::In(key.clone()), 4, || {
                format!("{id} moved {key} instead of {:?}", event.end)
            });
            let known = of_letter.entry(key).or_default();
            known.extend((!known.contains(event)).then_some(*event));
        }
        copies_are_written(written, found);
        for (before, after) in &written.entities {
            let applied = applied(after, &of_payment, &of_letter);
            isolation(world, after, found);
            let conflicts = after.entity.linked_payment_facts().into_iter();
            let conflicts = conflicts.flat_map(|facts| facts.conflicts());
            let conflicts = conflicts.map(|(payment, _)| payment.payment.to_string());
            let decided = decided(world, after, written.at, conflicts.collect());
            as_the_set_says(after, &applied, &decided, found);
            cancelling(world, written, before, after, found);
        }
    }
}

/// An event whose facts a payment has.
struct KnownEvent<'e> {
    event: &'e Emitted,
    /// The version since which copies have it: while the event is parked, no copy is written with it.
    since: i64,
}

/// The events whose facts an entity has: those of the payments that are linked to it, and of its letters.
fn applied<'e>(
    row: &EntityRow,
    of_payment: &BTreeMap<&str, Vec<KnownEvent<'e>>>,
    of_letter: &BTreeMap<EntityKey, Vec<&'e Emitted>>,
) -> Vec<&'e Emitted> {
    let linked = row.entity.linked_payment_facts().into_iter();
    let linked = linked.flat_map(|facts| &facts.payments);
    let linked = linked.filter(|(_, copy)| copy.link == LinkState::Linked);
    let of_payments = linked.filter_map(|(key, copy)| {
        let known = of_payment.get(key.payment.as_str())?.iter();
        let known = known.filter(|known| known.since <= copy.version);
        Some(known.map(|known| known.event).collect::<Vec<_>>())
    });
    let reached = of_payments.flat_map(|events| {
        let all = events.clone().into_iter();
        events
            .into_iter()
            .filter(move |event| is_reached(event, all.clone()))
    });
    let of_letters = of_letter.get(&row.entity.key()).into_iter().flatten();
    reached.chain(of_letters.copied()).collect()
}

/// 9: a copy that a payment records is in the entity in the same write.
fn copies_are_written(written: &Written, found: &mut Found) {
    for state in &written.states {
        let NextState::Payment(payment) = state else {
            continue;
        };
        let now = payment.copied.iter();
        let now = now.filter(|(_, version)| **version == payment.version);
        for (entity, version) in now {
            let rows = written.entities.iter().map(|(_, row)| &row.entity);
            let row = rows.into_iter().find(|row| row.key() == *entity);
            let facts = row.and_then(|row| row.linked_payment_facts());
            let copy = facts.and_then(|facts| facts.payments.get(&payment.key));
            let is_written = copy.is_some_and(|copy| copy.version == *version);
            found.unless(is_written, 9, || {
                format!(
                    "{} says that {entity} has its copy, and it has not",
                    payment.key
                )
            });
        }
    }
}

/// 7: an entity has only facts of its tenant's account. 4: and only of payments that something says are its own.
fn isolation(world: &World, row: &EntityRow, found: &mut Found) {
    let (key, owner) = (row.entity.key(), row.entity.tenant());
    let payments = row.entity.linked_payment_facts().into_iter();
    for payment in payments.flat_map(|facts| facts.payment_keys()) {
        if let Some(account) = &payment.account {
            let is_owners = ["a", "b", "c"].iter().any(|name| {
                let (of, its) = tenant(name);
                its == *account && Some(&of) == owner
            });
            found.unless(is_owners, 7, || {
                format!("{payment} moved {key}, which is {owner:?}'s")
            });
        }
        let of = payment.payment.as_str();
        let said = world
            .stripe
            .intents
            .get(of)
            .is_some_and(|intent| intent.pays == key || intent.rival.as_ref() == Some(&key));
        let is_its = said
            || world
                .stripe
                .events
                .iter()
                .any(|event| event.of == of && link_evidence(event).names.as_ref() == Some(&key));
        found.unless(is_its, 4, || format!("{payment} moved {key}"));
    }
}

/// 4, 6, 10: whatever came so far, the row is what the set of it says; what it lowers must be what the set lowers.
fn as_the_set_says(
    row: &EntityRow,
    applied: &[&Emitted],
    decided: &OrderDecisions,
    found: &mut Found,
) {
    let (key, columns) = (row.entity.key(), row.entity.columns());
    let Some(facts) = row.entity.linked_payment_facts() else {
        return;
    };
    // A row that lost its only payment is what it is without one.
    let lost = facts.payments.values();
    let lost = lost.filter(|copy| copy.link == LinkState::Elsewhere);
    if applied.is_empty() && decided.conflicts.is_empty() && lost.count() == 0 {
        return;
    }
    let wanted = expected(&key, applied, decided);
    let rank = |status: Option<&str>| match status {
        Some("cancelled") => 1,
        Some("completed") => 2,
        Some("refunded") => 3,
        _ => 0,
    };
    let differs = |what: &str, is: &dyn fmt::Debug, should: &dyn fmt::Debug| {
        format!("{key}: {what} is {is:?} and should be {should:?}")
    };
    // A word of the application's own stays.
    let is_foreign = row.entity.row().foreign.contains("status");
    let status = match is_foreign {
        true => wanted.status,
        false => columns.status.as_deref(),
    };
    let invariant = if rank(status) < rank(wanted.status) {
        6
    } else {
        4
    };
    found.unless(status == wanted.status, invariant, || {
        differs("status", &status, &wanted.status)
    });
    let texts = [
        (
            "payment status",
            columns.payment_status.as_deref(),
            wanted.payment_status,
        ),
        (
            "mail status",
            columns.mail_status.as_deref(),
            wanted.mail_status,
        ),
    ];
    for (what, is, should) in texts {
        found.unless(is == should, 4, || differs(what, &is, &should));
    }
    let (is, should) = (columns.requires_review, wanted.requires_review);
    found.unless(is == should, 4, || differs("review", &is, &should));
    // Of a row that is gone the state keeps the reasons that somebody could see.
    if !row.entity.row().is_missing {
        let shown = row.entity.last_derived().review_reasons.iter();
        let is: BTreeSet<String> = shown.map(|reason| without_charge(reason)).collect();
        let should = wanted.review_reasons;
        found.unless(is == should, 4, || differs("the reasons", &is, &should));
    }
    // The amounts went with the row.
    let (paid, refunded) = match row.entity.row().is_missing {
        true => {
            let now = Timestamp::from_unix_s(0).unwrap();
            let next = row.entity.apply_facts([], now);
            let paid = amount_paid_of(&next);
            (paid.unwrap_or_default(), amount_refunded_of(&next))
        }
        false => (row.amount_paid, row.amount_refunded),
    };
    let amounts = [
        ("what was paid", paid, wanted.amount_paid),
        ("what went back", refunded, wanted.amount_refunded),
    ];
    for (what, is, should) in amounts {
        found.unless(is == should, 10, || differs(what, &is, &should));
    }
    let told = applied.iter().filter_map(|event| match &event.says {
        Says::Refund(id, ..) => Some(id.as_str()),
        _ => None,
    });
    let (is, should) = (
        facts.merge_linked_facts().refunds.len(),
        told.collect::<BTreeSet<_>>().len(),
    );
    found.unless(is == should, 5, || {
        differs("the number of refunds", &is, &should)
    });
    let mut once = BTreeSet::new();
    for (kind, fact, _) in &row.timeline {
        found.unless(once.insert((kind, fact)), 3, || {
            format!("{key} tells {kind} of {fact} twice")
        });
    }
}

/// What people and the cleanup had decided about a row at that time.
fn decided(
    world: &World,
    row: &EntityRow,
    at: Timestamp,
    conflicts: BTreeSet<String>,
) -> OrderDecisions {
    let facts = row.entity.linked_payment_facts();
    let mut decided = OrderDecisions {
        is_cancelled: facts.is_some_and(|facts| !facts.cancelled.is_empty()),
        conflicts,
        expects: own_intent(&row.entity),
        linked: facts.into_iter().flat_map(relinked_payments).collect(),
        ..OrderDecisions::default()
    };
    for edit in edits_of(world, &row.entity.key(), at) {
        match &edit.what {
            EditKind::Refunded => {
                let found = facts.and_then(|facts| facts.manual.refunded.last());
                decided.refunded_at = Some(found.unwrap_or(&edit.at).unix_s());
            }
            EditKind::Cancelled => decided.is_cancelled = true,
            EditKind::Cleared(reasons) => {
                let named = reasons.iter().map(|reason| without_charge(reason));
                decided.cleared.extend(named);
            }
        }
    }
    decided
}

/// A reason as the oracle says it, which does not know charges.
fn without_charge(reason: &str) -> String {
    match reason.split_once(':') {
        Some((word @ "refund_exceeds_captured", _)) => word.to_owned(),
        _ => reason.to_owned(),
    }
}

/// The payments of which the row knows that a person linked them.
fn relinked_payments(facts: &LinkedPaymentFacts) -> impl Iterator<Item = String> {
    let payments = facts.payments.iter();
    let linked = payments.filter(|(_, copy)| copy.relink.is_some());
    linked.map(|(key, _)| key.payment.to_string())
}

/// The PaymentIntent that the application wrote into the row, and not billhook.
fn own_intent(entity: &Entity) -> Option<String> {
    let last = entity.last_derived().intent.as_ref();
    let intent = entity.payment_intent();
    let own = intent.filter(|intent| Some(*intent) != last);
    own.map(ToString::to_string)
}

fn edits_of<'w>(
    world: &'w World,
    key: &EntityKey,
    at: Timestamp,
) -> impl Iterator<Item = &'w RowEdit> {
    let edits = world.store.edits.iter();
    edits.filter(move |edit| edit.key == *key && edit.at <= at)
}

/// 11: an order is given up only where every payment and session that was known of it can never be paid.
fn cancelling(
    world: &World,
    written: &Written,
    before: &EntityRow,
    after: &EntityRow,
    found: &mut Found,
) {
    let facts_of = |row: &EntityRow| {
        row.entity
            .linked_payment_facts()
            .cloned()
            .unwrap_or_default()
    };
    let facts = facts_of(before);
    let is_edit = |edit: &RowEdit| edit.what == EditKind::Cancelled;
    if edits_of(world, &before.entity.key(), written.at).any(is_edit) {
        return;
    }
    if !facts.cancelled.is_empty() || facts_of(after).cancelled.is_empty() {
        return;
    }
    let known = facts.payment_keys().map(|key| key.payment.to_string());
    // One that the column names and that is linked to another order is that order's (`links` checks to whom).
    let noted = before.entity.payment_intent().into_iter();
    let noted = noted.filter(|intent| !facts.knows_payment_intent(intent));
    let noted = noted.map(ToString::to_string);
    for id in known.chain(noted) {
        let Some(intent) = world.stripe.intents.get(&id) else {
            continue;
        };
        let then = intent
            .statuses
            .iter()
            .rev()
            .find(|(at, _)| *at <= written.at);
        let status = then.map(|(_, status)| status);
        // What failed after its session was completed has no page any more, and Stripe does not cancel it.
        let has_no_page = matches!(&intent.session, Some((_, SessionStatus::Complete)));
        let is_dead = status == Some(&IntentStatus::RequiresPaymentMethod) && has_no_page;
        let is_ended = status == Some(&IntentStatus::Canceled) || is_dead;
        found.unless(is_ended, 11, || {
            format!(
                "{} was cancelled while {id} was {status:?}",
                before.entity.key()
            )
        });
    }
    let page = before.entity.checkout_session();
    let page = page.and_then(|session| Some((session, world.stripe.pages.get(session.as_str())?)));
    if let Some((session, page)) = page {
        let is_expired = page.expired_at.is_some_and(|at| at <= written.at);
        let intent = page
            .intent
            .as_ref()
            .and_then(|id| world.stripe.intents.get(id));
        // By the time the customer had opened it, what became of its payment counts.
        let is_opened = intent.is_some_and(|intent| {
            let last = intent.statuses.last();
            intent.created <= written.at
                && last.is_some_and(|(at, _)| *at <= written.at)
                && (intent.status() == IntentStatus::Canceled
                    || intent.status() == IntentStatus::RequiresPaymentMethod)
        });
        found.unless(is_expired || is_opened, 11, || {
            format!(
                "{} was cancelled while {session} was open",
                before.entity.key()
            )
        });
    }
}

/// 13: a message fails only where something went wrong, or by itself.
fn batches(seen: &Seen, found: &mut Found) {
    for batch in &seen.batches {
        for (message, is_failed) in &batch.messages {
            let is_poison = message.body.contains("poison");
            found.unless(!is_failed || is_poison || batch.faults > 0, 13, || {
                format!("{} failed where nothing went wrong", message.body)
            });
            found.unless(message.receives <= RECEIVES_MAX, 13, || {
                format!("{} was tried {} times", message.body, message.receives)
            });
        }
    }
}

fn events(world: &World, seen: &Seen, found: &mut Found) {
    let emitted = by_id(world);
    for provider in ProviderId::ALL.iter().copied() {
        for row in world.store.events_of(provider) {
            let (stored, reason) = (&row.stored, row.error.as_deref().unwrap_or_default());
            let id = &stored.id;
            let Some(event) = emitted.get(&(provider.as_str(), id.as_str())) else {
                found.add(2, format!("{id} is stored and nobody made it"));
                continue;
            };
            found.unless(stored.outcome != EventOutcome::Pending, 1, || {
                format!("{id} is still pending")
            });
            found.unless(stored.outcome != EventOutcome::Failed, 14, || {
                format!("{id} is still failed: {reason}")
            });
            let is_right = match &event.end {
                End::In(_) => stored.outcome == EventOutcome::Processed,
                // Another tenant's row may have the payment in its column.
                End::Unlinked => {
                    stored.outcome == EventOutcome::Processed
                        || (stored.outcome, reason) == (EventOutcome::Parked, "cross_tenant")
                }
                End::Ignored => stored.outcome == EventOutcome::Ignored,
                End::Parked(why) => {
                    stored.outcome == EventOutcome::Parked && (why.is_empty() || reason == *why)
                }
            };
            let is_open = matches!(stored.outcome, EventOutcome::Pending | EventOutcome::Failed);
            found.unless(is_right || is_open, 4, || {
                format!("{id} is {} {reason}, not {:?}", stored.outcome, event.end)
            });
        }
    }
    let mut recorded = BTreeSet::new();
    for id in &world.store.recorded {
        found.unless(recorded.insert(id), 15, || {
            format!("{id:?} was forgotten and taken in again")
        });
    }
    for answered in &seen.answers {
        if let (Call::Genuine(provider, id, _), Some(200)) = (&answered.call, answered.status()) {
            let is_there = world
                .store
                .events
                .get(&(provider.as_str(), id.clone()))
                .is_some();
            found.unless(is_there, 15, || {
                format!("{id} was accepted and is no longer stored")
            });
        }
    }
    // What Stripe made is there, whoever brought it.
    for event in &world.stripe.events {
        let id = EventId::parse(&event.id).unwrap();
        let is_there = world
            .store
            .events
            .get(&(event.provider.as_str(), id))
            .is_some();
        let is_asked_for = event.provider == ProviderId::Stripe && matches!(event.end, End::In(_));
        found.unless(is_there || !is_asked_for, 1, || {
            format!("{} never came", event.id)
        });
    }
}

fn rows(world: &World, found: &mut Found) {
    let mut by_payment: BTreeMap<&str, Vec<&Emitted>> = BTreeMap::new();
    let mut by_entity: BTreeMap<EntityKey, Vec<&Emitted>> = BTreeMap::new();
    for event in &world.stripe.events {
        let id = EventId::parse(&event.id).unwrap();
        let row = world.store.events.get(&(event.provider.as_str(), id));
        let is_in = row.is_some_and(|row| row.stored.outcome == EventOutcome::Processed);
        match (&event.end, event.provider) {
            (End::In(key), ProviderId::Lob) if is_in => {
                by_entity.entry(key.clone()).or_default().push(event);
            }
            (End::In(_), ProviderId::Stripe) if is_in => {
                by_payment.entry(event.of.as_str()).or_default().push(event);
            }
            _ => {}
        }
    }
    let mut conflicts: BTreeMap<EntityKey, BTreeSet<String>> = BTreeMap::new();
    for (of, events) in by_payment {
        let linked = linked_entities(world, of);
        if let (1, Some(key)) = (linked.len(), linked.first()) {
            let all = events.iter().copied();
            let reached = events.iter().filter(|event| is_reached(event, all.clone()));
            by_entity.entry(key.clone()).or_default().extend(reached);
            continue;
        }
        for key in linked {
            conflicts.entry(key).or_default().insert(of.to_owned());
        }
    }
    for (key, row) in world.store.entities.all() {
        let applied = by_entity.remove(key).unwrap_or_default();
        let conflicts = conflicts.remove(key).unwrap_or_default();
        let decided = decided(world, row, world.now(), conflicts);
        as_the_set_says(row, &applied, &decided, found);
        as_the_state_says(row, world.now(), found);
    }
}

/// 21: at rest, every row that billhook has written is the projection of its state.
fn as_the_state_says(row: &EntityRow, now: Timestamp, found: &mut Found) {
    let entity = &row.entity;
    if entity.version() == 0 {
        return;
    }
    let next = entity.apply_facts([], now);
    let is_troubled = entity.row().is_missing || !entity.row().foreign.is_empty();
    found.unless(is_troubled == entity.trouble_since().is_some(), 21, || {
        format!("{}: its trouble is not what the state lists", entity.key())
    });
    let should = match entity.row().is_missing {
        true => RowStanding::Missing,
        false => RowStanding::Current,
    };
    let is = entity.standing();
    found.unless(is == should, 21, || format!("{}: {is:?}", entity.key()));
    let is_same = !next.must_write_row()
        && *entity.columns() == next.last_derived().columns
        && next.next().payment_intent() == entity.payment_intent();
    found.unless(is_same, 21, || {
        format!("{} is not what its state says", entity.key())
    });
    if entity.row().is_missing {
        return;
    }
    let entries: BTreeSet<_> = next
        .timeline()
        .into_iter()
        .map(|entry| (entry.kind, entry.fact))
        .collect();
    let shown = row.timeline.iter();
    let shown: BTreeSet<_> = shown
        .map(|(kind, fact, _)| (kind.clone(), fact.clone()))
        .collect();
    found.unless(entries == shown, 21, || {
        format!("{} does not tell what its state knows", entity.key())
    });
}
