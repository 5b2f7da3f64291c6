//! What one write makes of a row: the columns that the application or a person may have touched.
#![cfg(test)]

use billhook_core::entity::EntityKey;
use billhook_core::entity::kind::{EntityState, StatedFacts};
use billhook_core::entity::manual::ManualEdits;
use billhook_core::entity::merge::MinRegister;
use billhook_core::entity::order::{OrderColumns, OrderKind};
use billhook_core::entity::schema::GuardedColumns;
use billhook_core::ids::{OrderId, UserId};
use billhook_core::time::Timestamp;
use billhook_testkit::events::{
    dispute, intent_failed, intent_succeeded, linked_facts, refund, session_completed,
};
use billhook_testkit::memory;
use serde_json::{Value, json};

const T: i64 = 1_781_000_000;

fn now() -> Timestamp {
    Timestamp::from_unix_s(T + 1_000).unwrap()
}

fn order() -> EntityState<OrderKind> {
    let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
    memory::order_mut(&mut memory::entity(&key)).clone()
}

fn facts(events: &[&Value]) -> Vec<StatedFacts> {
    linked_facts(events.iter().copied())
}

fn session(reference: &str, metadata: Value) -> Value {
    let mut event = session_completed("evt_c", T, "cs_1", Some("pi_1"), metadata, "paid");
    event["data"]["object"]["client_reference_id"] = json!(reference);
    event
}

#[test]
fn a_missing_user_is_filled_by_the_best_hint_in_any_order() {
    let by_reference = session("user_r", json!({ "order_id": "ord_1" }));
    let by_metadata = intent_succeeded(
        "evt_i",
        T,
        "pi_1",
        json!({ "order_id": "ord_1", "userId": "user_m" }),
        4200,
    );
    for events in [[&by_reference, &by_metadata], [&by_metadata, &by_reference]] {
        // In one write, and in two: a later, better hint replaces our own.
        let at_once = order().apply_facts(facts(&events), now());
        assert_eq!(at_once.next.last_derived.user.unwrap().as_str(), "user_r");
        let mut row = order();
        for known in 1..=events.len() {
            row = row.apply_facts(facts(&events[..known]), now()).next;
        }
        assert_eq!(row.given.user.unwrap(), "user_r");
    }
    // Theirs stays, in a form that is none of ours too.
    for theirs in ["user_theirs", "Pat Sample"] {
        let row = order();
        let of_the_application = EntityState {
            given: OrderColumns {
                user: Some(theirs.to_owned()),
                ..row.given
            },
            ..row
        };
        let update = of_the_application.apply_facts(facts(&[&by_reference]), now());
        assert_eq!(update.next.last_derived.user, None, "{theirs}");
    }
}

#[test]
fn what_is_no_user_is_no_hint() {
    for (reference, metadata, user) in [
        ("ord_1", json!({ "order_id": "ord_1" }), None),
        (
            "ord_1",
            json!({ "orderId": "ord_1", "user_id": "user_m" }),
            Some("user_m"),
        ),
        // Its order is found by its payment only.
        ("ord_1", json!({}), None),
        ("", json!({ "order_id": "ord_1" }), None),
        (&*"x".repeat(10_000), json!({ "order_id": "ord_1" }), None),
    ] {
        let update = order().apply_facts(facts(&[&session(reference, metadata)]), now());
        let found = update.next.last_derived.user;
        assert_eq!(found.as_ref().map(UserId::as_str), user);
    }
    // Who gave money back is not who paid.
    let mut back = refund("evt_r", T, "re_1", ("pi_1", "ch_1"), 4200, "succeeded");
    back["data"]["object"]["metadata"] = json!({ "user_id": "agent_7" });
    let update = order().apply_facts(facts(&[&back]), now());
    assert_eq!(update.next.last_derived.user, None);
}

#[test]
fn an_edit_that_is_no_repair_is_derived_again_and_told() {
    let failed = intent_failed("evt_f", T, "pi_1", json!({}), "ch_1");
    let paid = intent_succeeded("evt_i", T + 5, "pi_1", json!({}), 4200);
    let row = order()
        .apply_facts(facts(&[&failed]), now())
        .with_row_written();
    let edited = |edit: fn(&mut GuardedColumns)| {
        let mut row = row.clone();
        edit(&mut row.columns);
        let next = row.apply_facts(facts(&[&failed, &paid]), now());
        let told = next.discarded_edits.iter();
        told.map(|edit| format!("{} {} {}", edit.column, edit.found, edit.written))
            .collect::<Vec<_>>()
    };
    assert_eq!(edited(|_| {}), [""; 0]);
    assert_eq!(
        edited(|columns| columns.status = Some("pending".to_owned())),
        ["status pending completed"]
    );
    assert_eq!(
        edited(|columns| columns.payment_status = Some("unpaid".to_owned())),
        ["paymentStatus unpaid paid"]
    );
    // What somebody wrote ahead of us is so, and repairs stand.
    assert_eq!(
        edited(|columns| columns.status = Some("completed".to_owned())),
        [""; 0]
    );
    assert_eq!(
        edited(|columns| columns.status = Some("refunded".to_owned())),
        [""; 0]
    );
    assert_eq!(
        edited(|columns| columns.requires_review = Some(true)),
        [""; 0]
    );
}

#[test]
fn a_cleared_review_that_a_new_reason_flags_again_is_no_overruled_edit() {
    let open = |id: &str, at: i64, of: &str| dispute(id, at, of, "pi_1", "needs_response");
    let (first, second) = (open("evt_1", T, "dp_1"), open("evt_2", T + 5, "dp_2"));
    let flagged = order().apply_facts(facts(&[&first]), now());
    let mut cleared = flagged.with_row_written();
    cleared.columns.requires_review = Some(false);
    let update = cleared.apply_facts(facts(&[&first, &second]), now());
    let reasons = update.next.last_derived.review_reasons;
    assert_eq!(reasons, ["dispute_open:dp_2"]);
    assert_eq!(update.discarded_edits, []);
}

#[test]
fn of_many_reasons_for_review_the_first_hundred_stand_and_then_the_next() {
    let failed = |n: usize| {
        let (event, id) = (format!("evt_{n}"), format!("re_{n:03}"));
        refund(&event, T, &id, ("pi_1", "ch_1"), 1, "failed")
    };
    let failed: Vec<Value> = (0..250).map(failed).collect();
    let mut row = order()
        .apply_facts(linked_facts(&failed), now())
        .with_row_written();
    let mut seen = Vec::new();
    for standing in [100, 100, 50, 0] {
        let reasons = row.last_derived.review_reasons.clone();
        assert_eq!(reasons.len(), standing);
        let cleared = reasons
            .iter()
            .map(|reason| (reason.clone(), MinRegister(now())));
        let cleared = ManualEdits {
            cleared: cleared.collect(),
            ..ManualEdits::default()
        };
        row = row
            .apply_facts([StatedFacts::Manual(cleared)], now())
            .with_row_written();
        seen.extend(reasons);
    }
    let all = (0..250).map(|n| format!("refund_failed:re_{n:03}"));
    assert_eq!(seen, all.collect::<Vec<_>>());
}

#[test]
fn a_first_write_overrules_only_what_is_not_the_initial_state() {
    let paid = intent_succeeded("evt_i", T, "pi_1", json!({}), 4200);
    for (status, overruled) in [("pending", 0), ("payment_failed", 1)] {
        let mut row = order();
        row.columns.status = Some(status.to_owned());
        let next = row.apply_facts(facts(&[&paid]), now());
        assert_eq!(next.discarded_edits.len(), overruled, "{status}");
    }
}
