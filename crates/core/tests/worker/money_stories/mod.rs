//! Stories of money, drawn from seeds: whatever people paid, gave back, disputed and wrote, the order ends as the story
//! says. `story` makes the events, `oracle` knows what follows; they share no code with what they judge.

mod oracle;
mod story;

use std::collections::BTreeSet;

use billhook_core::entity::EntityUpdate;
use billhook_core::time::Timestamp;
use billhook_testkit::sim::rng::Rng;
use serde_json::{Value, json};

use self::oracle::{Ending, RULES, Rules};
use self::story::{Edit, Story, abandoned, draw, events_of, second};
use super::T;
use crate::stored_order::StoredOrder;

const STORIES: u64 = 1_500;
/// How many stories are told instead, as by `make simulate`.
const ASKED: &str = "BILLHOOK_STORIES";

#[expect(clippy::disallowed_methods, reason = "a test is told in no other way")]
fn stories() -> u64 {
    let asked = std::env::var(ASKED).ok();
    asked.map_or(STORIES, |count| count.parse().unwrap())
}

/// What a story became, and which edits said something new.
struct Played {
    update: EntityUpdate,
    edits: Vec<(i64, Edit)>,
    cleared: BTreeSet<String>,
}

/// Facts of people are dated by billhook's clock, so of their reasons only the word is compared.
fn reasons_of(update: &EntityUpdate) -> BTreeSet<String> {
    let reasons = &update.payment().unwrap().review_reasons;
    let words = reasons.iter().map(|reason| match reason.split_once(':') {
        Some((word, fact)) if Timestamp::parse(fact).is_ok() => word.to_owned(),
        _ => reason.clone(),
    });
    words.collect()
}

/// Plays a story: between two edits the events come in any order, some of them twice.
fn play(story: &Story, rng: &mut Rng) -> Played {
    let row = json!({ "id": "ord_1", "amountTotal": story.due, "currency": "usd", "status": "pending",
        "createdAt": "2026-06-09T10:00:00.000Z" });
    let mut order = StoredOrder::of(row);
    let mut events: Vec<(i64, Value)> = story.payments.iter().flat_map(events_of).collect();
    events.sort_by_key(|(at, _)| *at);
    let mut taken: Vec<Value> = Vec::new();
    let mut said = Vec::new();
    let mut cleared = BTreeSet::new();
    let mut update = order.take(&taken);
    for (until, edit) in story
        .edits
        .iter()
        .copied()
        .chain([(i64::MAX, Edit::Cleared)])
    {
        let now = events.partition_point(|(at, _)| *at <= until);
        let mut arriving: Vec<Value> = events.drain(..now).map(|(_, event)| event).collect();
        while !arriving.is_empty() {
            let many = u64::try_from(arriving.len()).unwrap();
            let next = usize::try_from(rng.below(many)).unwrap();
            taken.push(arriving.remove(next));
            if rng.chance(100) {
                taken.push(rng.pick(&taken));
            }
            update = order.take(&taken);
        }
        if until == i64::MAX {
            break;
        }
        order.now = second(until) - T - 60;
        let says = match edit {
            Edit::Due(due) => {
                let is_new = order.column("amountTotal") != json!(due);
                order.set("amountTotal", json!(due));
                is_new
            }
            Edit::Status(word) => {
                let is_new = order.column("status") != json!(word);
                order.set("status", json!(word));
                is_new
            }
            Edit::PaymentStatus(word) => {
                let is_new = order.column("paymentStatus") != json!(word);
                order.set("paymentStatus", json!(word));
                is_new
            }
            Edit::Other(column) => {
                let value = match column.starts_with("amount") {
                    true => json!(7),
                    false => json!("pi_app"),
                };
                order.set(column, value);
                false
            }
            Edit::Intent => {
                order.set("stripePaymentIntentId", json!("pi_app"));
                true
            }
            Edit::Recorded => {
                let mut entries = order
                    .column("timeline")
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let at = Timestamp::from_unix_s(second(until)).unwrap();
                entries.push(
                    json!({ "type": "payment_recorded", "at": at.to_string(), "actor": "shop" }),
                );
                order.set("timeline", json!(entries));
                true
            }
            Edit::Cleared => {
                let is_new = order.column("requiresReview") == json!(true);
                if is_new {
                    order.set("requiresReview", json!(false));
                    cleared.extend(reasons_of(&update));
                }
                is_new
            }
        };
        let edit = match edit {
            Edit::PaymentStatus("paid") => Edit::Status("completed"),
            Edit::PaymentStatus(word) => Edit::Status(word),
            other => other,
        };
        said.extend(says.then_some((until, edit)));
        update = order.take(&taken);
        // What a person says anew is a reason anew.
        if says && edit == Edit::Status("completed") {
            cleared.remove("paid_unproven");
        }
    }
    // Again from what is stored: nothing is left to write.
    let rest = order.row.clone();
    order.take(&taken);
    assert_eq!(order.row, rest);
    Played {
        update,
        edits: said,
        cleared,
    }
}

fn found(played: &Played) -> Ending {
    let payment = played.update.payment().unwrap();
    Ending {
        status: payment.status.as_str(),
        payment: payment.payment_status.as_str(),
        paid: payment.received.map(|received| received.amount),
        refunded: payment.amount_refunded,
        reasons: reasons_of(&played.update),
        user: payment.user.as_ref().map(ToString::to_string),
        dispute_due_by: payment.dispute_due_by.map(|at| at.unix_s()),
    }
}

/// What differs from what the oracle says.
fn difference(seed: u64, rules: &Rules) -> Option<String> {
    let mut rng = Rng::new(seed);
    let story = draw(&mut rng);
    let played = play(&story, &mut rng);
    let mut expected = rules.ending(&story, &played.edits, i64::MAX);
    expected
        .reasons
        .retain(|reason| !played.cleared.contains(reason));
    let found = found(&played);
    (found != expected)
        .then(|| format!("story {seed}: {story:#?}\nis       {found:?}\nshould be {expected:?}"))
}

#[test]
fn every_story_of_money_ends_as_a_payments_engineer_expects() {
    let all = Rules { without: None };
    for seed in 0..stories() {
        if let Some(difference) = difference(seed, &all) {
            panic!("{difference}");
        }
    }
}

/// Without any one rule, the oracle finds fault with some story: each is tried by the stories, and the check can fail.
#[test]
fn every_rule_is_needed_by_some_story() {
    for rule in RULES {
        let without = Rules {
            without: Some(rule),
        };
        let needs = (0..STORIES).find(|seed| difference(*seed, &without).is_some());
        assert!(needs.is_some(), "no story needs: {rule}");
    }
}

#[test]
fn a_session_that_nobody_paid_changes_no_user() {
    let mut order = StoredOrder::new();
    order.set("userId", Value::Null);
    let paid = billhook_testkit::events::intent_succeeded(
        "evt_1",
        T,
        "pi_1",
        json!({ "user_id": "victim" }),
        4200,
    );
    for events in [vec![paid.clone()], vec![paid, abandoned("attacker", 1)]] {
        order.take(&events);
        assert_eq!(order.column("userId"), "victim");
        assert_eq!(order.column("status"), "completed");
    }
    assert_eq!(order.column("reviewReasons"), json!(["user_conflict:cs_x"]));
}
