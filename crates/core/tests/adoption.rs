//! Rows that an application made before billhook was given its table: what each word means that they say at first, and
//! what the events make of it that come later.
#![cfg(test)]

mod stored_order;

use std::time::Duration;

use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::projection::RowFinding;
use billhook_core::entity::rules::{RowRules, VersionColumn};
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::outcome::ParkReason;
use billhook_core::provider::lob::event::LobEvent;
use billhook_core::provider::lob::mail::read_mail_facts;
use billhook_core::tasks::cleanup::{CleanupDecision, decide_cleanup};
use billhook_testkit::events::{
    charge_refunded, dispute, intent_failed, intent_is, intent_succeeded, letter, linked_facts,
    stripe,
};
use billhook_testkit::memory::JsonRow;
use serde_json::{Value, json};

use self::stored_order::{StoredOrder, T, at};

/// The row says that it was made a day before.
fn rules() -> RowRules {
    RowRules {
        adopted_before: Some(at(0)),
        ..RowRules::default()
    }
}

fn made_at(created_at: Value, columns: Value) -> StoredOrder {
    let mut row = json!({ "id": "ord_1", "amountTotal": 4200, "currency": "usd",
        "stripePaymentIntentId": "pi_1", "createdAt": created_at });
    let columns = columns.as_object().unwrap().clone();
    row.as_object_mut().unwrap().extend(columns);
    StoredOrder {
        rules: rules(),
        ..StoredOrder::of(row)
    }
}

fn adopted(columns: Value) -> StoredOrder {
    made_at(json!("2026-06-08T10:00:00Z"), columns)
}

/// Without the time, the words of the reasons.
fn words_of(order: &StoredOrder) -> String {
    let reasons = order.column("reviewReasons");
    let reasons = reasons.as_array().into_iter().flatten();
    let words: Vec<&str> = reasons
        .map(|reason| reason.as_str().unwrap().split(':').next().unwrap())
        .collect();
    let text = |name| order.column(name).as_str().unwrap_or("-").to_owned();
    let refunded = order.column("amountRefunded");
    let words = words.join("+");
    format!(
        "{}/{} {refunded} {words}",
        text("status"),
        text("paymentStatus")
    )
    .trim_end()
    .to_owned()
}

fn paid(intent: &str) -> Value {
    intent_succeeded("evt_p", T + 60, intent, json!({}), 4200)
}

fn failed() -> Value {
    intent_failed("evt_f", T + 50, "pi_1", json!({}), "ch_1")
}

/// An event that states nothing about the payment's outcome.
fn expired() -> Value {
    let session = json!({ "id": "cs_1", "object": "checkout.session", "payment_intent": "pi_1" });
    stripe("evt_x", "checkout.session.expired", T + 40, session)
}

fn all_back() -> Value {
    charge_refunded("evt_r", T + 70, "ch_1", Some("pi_1"), 4200)
}

fn refunded(cents: i64) -> Value {
    charge_refunded("evt_r", T + 70, "ch_1", Some("pi_1"), cents)
}

fn disputed(status: &str) -> Value {
    dispute("evt_d", T + 80, "dp_1", "pi_1", status)
}

#[test]
fn what_an_adopted_row_says_is_believed_until_stripe_states_more() {
    let completed = || json!({ "status": "completed" });
    let fully = |word: &str, payment: &str| json!({ "status": word, "paymentStatus": payment });
    let cases = [
        // Paid before: no review, and a refund counts.
        (completed(), vec![expired()], "completed/paid 0"),
        (completed(), vec![paid("pi_1")], "completed/paid 0"),
        (completed(), vec![refunded(1200)], "completed/paid 1200"),
        (completed(), vec![all_back()], "refunded/refunded 4200"),
        (
            completed(),
            vec![all_back(), paid("pi_1")],
            "refunded/refunded 4200",
        ),
        (completed(), vec![failed()], "completed/paid 0"),
        (
            completed(),
            vec![disputed("needs_response")],
            "completed/disputed 0 dispute_open",
        ),
        (
            json!({ "paymentStatus": "paid" }),
            vec![expired()],
            "completed/paid 0",
        ),
        (
            fully("pending", "paid"),
            vec![expired()],
            "completed/paid 0",
        ),
        // Two payments of which one arrived after the other are one too many, as always.
        (
            completed(),
            vec![
                paid("pi_1"),
                intent_succeeded("evt_q", T + 61, "pi_2", json!({}), 4200),
            ],
            "completed/paid 0 paid_twice",
        ),
        // Refunded before: stays refunded, and is not refunded by hand.
        (
            fully("refunded", "refunded"),
            vec![expired()],
            "refunded/refunded 0",
        ),
        (
            json!({ "status": "refunded" }),
            vec![paid("pi_1")],
            "refunded/refunded 0",
        ),
        (
            json!({ "status": "refunded" }),
            vec![refunded(1200)],
            "refunded/refunded 1200",
        ),
        // What was refunded before is in the charge's total, which is cumulative.
        (
            json!({ "status": "completed", "amountRefunded": 1200 }),
            vec![expired()],
            "completed/paid 1200",
        ),
        (
            json!({ "status": "completed", "amountRefunded": 1200 }),
            vec![refunded(2000)],
            "completed/paid 2000",
        ),
        // Cancelled before: a payment wins, and somebody has to know.
        (
            json!({ "status": "cancelled" }),
            vec![expired()],
            "cancelled/unpaid 0",
        ),
        (
            json!({ "status": "cancelled" }),
            vec![failed()],
            "cancelled/failed 0",
        ),
        (
            json!({ "status": "cancelled" }),
            vec![paid("pi_1")],
            "completed/paid 0 paid_after_cancel",
        ),
        (
            json!({ "status": "cancelled" }),
            vec![all_back()],
            "refunded/refunded 4200",
        ),
        // The application knew of the payment when it cancelled.
        (
            fully("cancelled", "paid"),
            vec![expired()],
            "cancelled/paid 0",
        ),
        (
            fully("cancelled", "paid"),
            vec![paid("pi_1")],
            "cancelled/paid 0",
        ),
        (
            fully("cancelled", "refunded"),
            vec![paid("pi_1")],
            "cancelled/refunded 0",
        ),
        (
            fully("cancelled", "paid"),
            vec![all_back()],
            "refunded/refunded 4200",
        ),
        // Unfinished: the first that Stripe states of the payment counts.
        (
            fully("payment_failed", "failed"),
            vec![expired()],
            "payment_failed/failed 0",
        ),
        (
            fully("payment_failed", "failed"),
            vec![paid("pi_1")],
            "completed/paid 0",
        ),
        (
            fully("payment_failed", "failed"),
            vec![intent_is("evt_i", T + 45, "pi_1", json!({}), "processing")],
            "pending/processing 0",
        ),
        (
            fully("pending", "processing"),
            vec![expired()],
            "pending/processing 0",
        ),
        (
            fully("pending", "processing"),
            vec![failed()],
            "payment_failed/failed 0",
        ),
        (
            fully("pending", "unpaid"),
            vec![paid("pi_1")],
            "completed/paid 0",
        ),
        (json!({}), vec![paid("pi_1")], "completed/paid 0"),
        // Disputes, until Stripe states one.
        (
            fully("completed", "disputed"),
            vec![expired()],
            "completed/disputed 0",
        ),
        (
            fully("completed", "charged_back"),
            vec![refunded(1)],
            "completed/charged_back 1",
        ),
        (
            fully("completed", "disputed"),
            vec![disputed("won")],
            "completed/paid 0",
        ),
        // A review stays, with its reasons, and without them.
        (
            json!({ "status": "completed", "requiresReview": true }),
            vec![paid("pi_1")],
            "completed/paid 0 flagged_by_hand",
        ),
        (
            json!({ "status": "completed", "requiresReview": true, "reviewReasons": ["dispute_open:dp_0", "ask Pat"] }),
            vec![paid("pi_1")],
            "completed/paid 0 ask Pat+dispute_open",
        ),
        (
            json!({ "status": "completed", "requiresReview": false, "reviewReasons": ["old:1"] }),
            vec![paid("pi_1")],
            "completed/paid 0",
        ),
        // A word of the application's own stays, and says nothing about the payment.
        (
            json!({ "status": "shipped" }),
            vec![expired()],
            "shipped/unpaid 0",
        ),
        (
            json!({ "status": "shipped", "paymentStatus": "paid" }),
            vec![expired()],
            "shipped/paid 0",
        ),
    ];
    for (columns, events, expected) in cases {
        let mut order = adopted(columns.clone());
        order.take(&events);
        assert_eq!(words_of(&order), expected, "{columns}");
        // Nobody knows when it came to that, so the timeline does not say.
        if events == [expired()] {
            assert_eq!(timeline(&order), ["checkout_expired"], "{columns}");
        }
        // A later release, another parameter or none at all: it was stored with the first write.
        for adopted_before in [None, Some(at(-1_000_000))] {
            let mut later = StoredOrder {
                rules: RowRules {
                    adopted_before,
                    ..RowRules::default()
                },
                ..order.clone()
            };
            later.take(&events);
            assert_eq!(words_of(&later), expected, "{columns}");
            assert_eq!(later.row, order.row, "{columns}");
        }
    }
}

/// The table of docs/SEMANTICS.md: what an adopted order says, times the first that Stripe states of it.
#[test]
fn the_table_of_adopted_orders_is_what_is_derived() {
    let events = [
        ("nothing about its outcome", expired()),
        ("a payment", paid("pi_1")),
        ("a failed attempt", failed()),
        ("a refund in part", refunded(1200)),
        ("a refund in full", all_back()),
        ("a dispute", disputed("needs_response")),
    ];
    let openings = [
        ("completed", "paid"),
        ("completed", "disputed"),
        ("refunded", "refunded"),
        ("cancelled", "unpaid"),
        ("cancelled", "paid"),
        ("payment_failed", "failed"),
        ("pending", "processing"),
        ("pending", "unpaid"),
    ];
    let heads = events.iter().map(|(head, _)| *head);
    let heads: Vec<&str> = ["the row says"].into_iter().chain(heads).collect();
    let mut lines = vec![
        format!("| {} |", heads.join(" | ")),
        format!("|{}", "---|".repeat(heads.len())),
    ];
    for (status, payment) in openings {
        let opening = format!("`{status}/{payment}`");
        let mut cells = vec![opening.clone()];
        for (_, event) in &events {
            let columns = json!({ "status": status, "paymentStatus": payment });
            let mut order = adopted(columns);
            order.take(std::slice::from_ref(event));
            let words = words_of(&order);
            let mut words = words.split(' ');
            let mut cell = format!("`{}", words.next().unwrap());
            // The amount is not in the table.
            words.next();
            for reason in words {
                cell += &format!(" +{reason}");
            }
            cell += "`";
            cells.push(match cell == opening {
                true => String::new(),
                false => cell,
            });
        }
        lines.push(format!("| {} |", cells.join(" | ")));
    }
    let table = lines
        .join("\n")
        .replace("|  |", "| |")
        .replace("|  |", "| |");
    let semantics = include_str!("../../../docs/SEMANTICS.md");
    assert!(semantics.contains(&table), "SEMANTICS.md has not:\n{table}");
}

fn timeline(order: &StoredOrder) -> Vec<String> {
    let entries = order.column("timeline");
    let entries = entries.as_array().into_iter().flatten();
    entries
        .map(|entry| entry["type"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn only_a_row_that_was_made_before_is_adopted_whatever_form_its_time_has() {
    let first = T - 1;
    let forms = [
        (json!("2026-06-08T10:00:00Z"), true),
        (json!("2026-06-09T10:13:19.999+00:00"), true),
        (json!("2026-06-09"), true),
        (json!(first), true),
        (json!(first * 1000), true),
        (json!(first.to_string()), true),
        (json!(1_780_999_999.123), true),
        (json!(format!("{first}.5")), true),
        (json!(format!("{first}123.456")), true),
        // Without an offset, as Python and SQL print it: UTC.
        (json!("2026-06-09T10:13:19.999999"), true),
        (json!("2026-06-09 10:13:19"), true),
        (json!("2026-06-09T10:13"), true),
        (json!(1_000_000_000), true),
        // The very moment, and later.
        (json!(T), false),
        (json!(T * 1000), false),
        (json!("2026-06-09T10:13:20.000Z"), false),
        (json!("2026-06-10"), false),
        (json!(1_781_000_000.001), false),
        (json!("2026-06-09T10:13:20.000001"), false),
        (json!("2026-06-09 10:13:21"), false),
        // Nobody knows.
        (json!("yesterday"), false),
        (json!(20_261_205), false),
        (json!("20261205"), false),
        (json!(202_612_051_013_i64), false),
        (json!("2026"), false),
        (json!(0), false),
        (json!(999_999_999), false),
        (json!(-first), false),
        (json!(first * 1_000_000), false),
        (json!("1.7e9"), false),
        (json!("2026-06-09T10:13:19+25:99"), false),
        (json!(1.5), false),
        (json!([first]), false),
        (json!(null), false),
        (json!(""), false),
    ];
    for (created_at, is_adopted) in forms {
        let mut order = made_at(created_at.clone(), json!({ "status": "completed" }));
        order.take(&[expired()]);
        let expected = match is_adopted {
            true => "completed/paid 0",
            false => "completed/paid 0 paid_unproven",
        };
        assert_eq!(words_of(&order), expected, "{created_at}");
        // Without the parameter none is.
        let mut order = made_at(created_at, json!({ "status": "completed" }));
        order.rules = RowRules::default();
        order.take(&[expired()]);
        assert_eq!(words_of(&order), "completed/paid 0 paid_unproven");
    }
}

#[test]
fn what_a_person_does_to_an_adopted_row_later_counts_as_ever() {
    // Refunded at first, then set to completed: paid again, and nobody said why.
    let mut order = adopted(json!({ "status": "refunded" }));
    order.take(&[expired()]);
    order.set("status", json!("completed"));
    order.take(&[expired()]);
    assert_eq!(words_of(&order), "completed/paid 0 paid_unproven");

    // Completed at first, then set to refunded.
    let mut order = adopted(json!({ "status": "completed" }));
    order.take(&[expired()]);
    order.set("status", json!("refunded"));
    order.take(&[expired()]);
    assert_eq!(words_of(&order), "refunded/refunded 0");

    // Its first reasons are cleared for good.
    let mut order = adopted(
        json!({ "status": "completed", "requiresReview": true, "reviewReasons": ["ask Pat"] }),
    );
    order.take(&[expired()]);
    order.set("requiresReview", json!(false));
    order.take(&[expired(), paid("pi_1")]);
    assert_eq!(words_of(&order), "completed/paid 0");

    // Another row in its place is not adopted: it was made later.
    let mut order = adopted(json!({ "status": "completed" }));
    order.take(&[expired()]);
    order.row = made_at(json!(T + 500), json!({ "status": "pending" })).row;
    order.take(&[expired()]);
    assert_eq!(words_of(&order), "pending/- null row_replaced");
    order.set("requiresReview", json!(false));
    order.take(&[expired()]);
    assert_eq!(words_of(&order), "pending/unpaid 0");
}

/// What the row says is about the payment that it names; a payment that comes in addition is told, and refunding that
/// one takes nothing from the first.
#[test]
fn a_payment_in_addition_to_the_first_is_told_and_may_go_back_alone() {
    let second = || intent_succeeded("evt_2", T + 61, "pi_2", json!({}), 4200);
    let second_back = || charge_refunded("evt_b", T + 71, "ch_2", Some("pi_2"), 4200);
    let before = || intent_succeeded("evt_0", T - 60, "pi_2", json!({}), 4200);
    let fully = |word: &str, payment: &str| json!({ "status": word, "paymentStatus": payment });
    let unnamed = |word: &str| json!({ "status": word, "stripePaymentIntentId": null });
    let mut partly = fully("completed", "paid");
    partly["amountRefunded"] = json!(1200);
    let cases = [
        (
            fully("completed", "paid"),
            vec![second()],
            "completed/paid 0 paid_twice",
        ),
        (
            fully("completed", "paid"),
            vec![second(), second_back()],
            "completed/paid 4200",
        ),
        (
            fully("completed", "paid"),
            vec![second(), second_back(), all_back()],
            "refunded/refunded 8400",
        ),
        (
            fully("completed", "paid"),
            vec![second(), all_back()],
            "completed/paid 4200 paid_twice",
        ),
        (partly, vec![second(), second_back()], "completed/paid 5400"),
        (
            fully("refunded", "refunded"),
            vec![second()],
            "completed/paid 0 paid_twice",
        ),
        (
            fully("refunded", "refunded"),
            vec![second(), second_back()],
            "refunded/refunded 4200",
        ),
        (
            fully("cancelled", "paid"),
            vec![second()],
            "completed/paid 0 paid_after_cancel+paid_twice",
        ),
        // A row that names none: what succeeded before the adoption is its own.
        (
            unnamed("completed"),
            vec![second()],
            "completed/paid 0 paid_twice",
        ),
        (unnamed("completed"), vec![before()], "completed/paid 0"),
        (
            unnamed("completed"),
            vec![second(), second_back()],
            "completed/paid 4200",
        ),
        (
            unnamed("completed"),
            vec![before(), second_back()],
            "refunded/refunded 4200",
        ),
    ];
    for (columns, events, expected) in cases {
        let mut order = adopted(columns.clone());
        order.take(&events);
        assert_eq!(words_of(&order), expected, "{columns} {}", events.len());
        // One by one, and in the other order.
        let mut order = adopted(columns.clone());
        for count in 1..=events.len() {
            order.take(&events[events.len() - count..]);
        }
        assert_eq!(words_of(&order), expected, "{columns} backwards");
    }
}

#[test]
fn a_repair_stands_on_an_adopted_row_too() {
    let cases = [
        (
            ("cancelled", "paid"),
            ("status", "refunded"),
            "refunded/refunded 0",
        ),
        (
            ("cancelled", "paid"),
            ("status", "completed"),
            "completed/paid 0",
        ),
        (
            ("completed", "disputed"),
            ("paymentStatus", "paid"),
            "completed/paid 0",
        ),
        (
            ("pending", "unpaid"),
            ("status", "completed"),
            "completed/paid 0 paid_unproven",
        ),
    ];
    for ((status, payment), (column, word), expected) in cases {
        let mut order = adopted(json!({ "status": status, "paymentStatus": payment }));
        order.take(&[expired()]);
        order.set(column, json!(word));
        order.take(&[expired()]);
        assert_eq!(words_of(&order), expected, "{status}/{payment} {word}");
    }
}

#[test]
fn a_time_of_the_same_day_makes_no_other_row() {
    let day = || json!("2026-06-08");
    for (was, is, is_replaced) in [
        (day(), json!("2026-06-08T10:00:00Z"), false),
        (day(), json!("2026-06-08 23:59:59.999"), false),
        (day(), json!(1_780_912_800), false),
        (json!("2026-06-08T10:00:00Z"), day(), false),
        (day(), json!("2026-06-09"), true),
        (day(), json!("2026-06-09T00:00:00Z"), true),
        // Not the day, but its first moment.
        (
            json!("2026-06-08T00:00:00Z"),
            json!("2026-06-08T00:00:01Z"),
            true,
        ),
        (json!(1_780_912_800), json!(1_780_912_800.5), true),
    ] {
        let mut order = made_at(was.clone(), json!({ "status": "completed" }));
        order.take(&[expired()]);
        order.set("createdAt", is.clone());
        order.take(&[expired()]);
        let is_found = words_of(&order).ends_with("row_replaced");
        assert_eq!(is_found, is_replaced, "{was} {is}");
    }
}

#[test]
fn a_row_that_another_stack_wrote_is_adopted_under_another_version_column() {
    let mut order = adopted(json!({ "status": "refunded" }));
    order.take(&[paid("pi_1"), all_back()]);
    order.state = None;
    assert_eq!(order.load().write_refusal(), Some(ParkReason::StateBehind));
    order.rules.version_column = VersionColumn::parse("billhookVersion").unwrap();
    assert_eq!(order.load().write_refusal(), None);
    order.take(&[expired()]);
    assert_eq!(words_of(&order), "refunded/refunded 4200");
}

#[test]
fn columns_of_which_nothing_is_known_stay_as_the_application_left_them() {
    let failed_at = json!("2026-06-01T00:00:00.000Z");
    let mut order = adopted(json!({ "status": "payment_failed", "paymentFailedAt": failed_at }));
    order.take(&[expired()]);
    assert_eq!(order.column("paymentFailedAt"), failed_at);
    order.take(&[expired(), failed()]);
    assert_ne!(order.column("paymentFailedAt"), failed_at);
}

/// `StatusIndex` lists every order that says `payment_failed`, those that were never billhook's too.
#[test]
fn the_cleanup_never_cancels_an_order_of_whose_failure_stripe_told_nothing() {
    let grace = Duration::from_secs(3600);
    let long_after = at(1_000_000);
    for columns in [
        json!({ "status": "payment_failed" }),
        json!({ "status": "payment_failed", "paymentStatus": "failed", "paymentFailedAt": "2026-06-01T00:00:00Z" }),
        json!({ "status": "payment_failed", "paymentStatus": "paid" }),
        json!({ "status": "payment_failed", "requiresReview": true }),
    ] {
        let orders = [
            adopted(columns.clone()),
            made_at(json!(null), columns.clone()),
            made_at(json!(T + 10), columns.clone()),
        ];
        for mut order in orders {
            let decided = decide_cleanup(&order.load(), grace, long_after);
            assert!(
                !matches!(decided, CleanupDecision::Cancel(_)),
                "{columns}: {decided:?}"
            );
            // An event that says nothing of a failed attempt does not make it due.
            order.take(&[expired()]);
            let decided = decide_cleanup(&order.load(), grace, long_after);
            assert!(
                !matches!(decided, CleanupDecision::Cancel(_)),
                "{columns}: {decided:?}"
            );
        }
    }
    // An attempt that fails now is billhook's to judge, as with any order.
    let mut order = adopted(json!({ "status": "payment_failed" }));
    order.take(&[failed()]);
    let decided = decide_cleanup(&order.load(), grace, long_after);
    assert!(matches!(decided, CleanupDecision::Cancel(_)), "{decided:?}");
    for status in ["completed", "refunded", "cancelled"] {
        let mut order = adopted(json!({ "status": status }));
        order.take(&[failed()]);
        let decided = decide_cleanup(&order.load(), grace, long_after);
        assert_eq!(decided, CleanupDecision::NotFailed, "{status}");
    }
}

/// A statement that billhook wrote once, for its letter, and what its row said then.
fn statement(opening: Value, columns: Value) -> Entity {
    let mut row = json!({ "statement_id": "st_1", "amount_due": 4200, "currency": "usd",
        "lob_letter_id": "ltr_1", "version": 1 });
    row.as_object_mut()
        .unwrap()
        .extend(columns.as_object().unwrap().clone());
    let mut opening = opening;
    opening["adoptedBefore"] = json!(at(0));
    let state = json!({ "schema": 1, "version": 1, "written": { "1": {} },
        "facts": { "payment": { "opening": opening }, "mail": {} } });
    let key = EntityKey::parse("statement#st_1").unwrap();
    key.read(&rules(), Some(&JsonRow(row)), Some(&state))
        .unwrap()
}

/// The columns that are written, as text.
fn written(statement: &Entity, stated: Vec<StatedFacts>) -> String {
    let update = statement.apply_facts(stated, at(100));
    let columns = update.write_columns().into_iter();
    let shown = columns.map(|(name, value)| match value {
        None => format!("{name}="),
        Some(value) => format!("{name}={}", json!(stored_order::json_of(value))),
    });
    let mut shown: Vec<String> = shown.collect();
    shown.sort();
    shown.join(" ").replace('"', "")
}

fn mailed(stage: &str) -> Vec<StatedFacts> {
    let event = letter("evt_l", "2026-06-09T11:00:00.000Z", "ltr_1", stage);
    let event = LobEvent::parse(event.to_string().as_bytes()).unwrap();
    vec![StatedFacts::Mail(read_mail_facts(&event).unwrap().unwrap())]
}

#[test]
fn an_adopted_statement_keeps_its_payment_and_its_letter() {
    let was_paid = || json!({ "paymentStatus": "paid" });
    let row = json!({ "payment_status": "paid", "paid_at": "in May", "amount_paid": 4150 });
    // Its letter's events leave the payment alone.
    let of_mail = written(&statement(was_paid(), row.clone()), mailed("in_transit"));
    let expected = "attention_reason= expected_delivery_date=2026-11-27 mail_status=in_transit mail_status_at=2026-06-09T11:00:00.000Z needs_attention=false";
    assert_eq!(of_mail, expected);
    // Its refund is of that payment, of which only the application knows when it was made.
    let paid_before = statement(was_paid(), row.clone());
    assert_eq!(
        written(&paid_before, linked_facts(&[refunded(1200)])),
        "amount_refunded=1200 authorized_until= dispute_due_by= payment_status=paid requires_review=false review_reasons= stripe_payment_intent_id=pi_1"
    );
    let back = written(&paid_before, linked_facts(&[all_back()]));
    assert!(back.contains("payment_status=refunded"), "{back}");
    // Written to paid after billhook's first write: found.
    let found = written(
        &statement(json!({ "paymentStatus": "unpaid" }), row),
        linked_facts(&[refunded(1)]),
    );
    assert!(found.contains("paid_unproven"), "{found}");

    let at_first = |stage: &str, piece: &str| {
        let opening = json!({ "mailStatus": stage, "piece": piece });
        statement(
            opening,
            json!({ "mail_status": stage, "needs_attention": true }),
        )
    };
    let no_attention = "attention_reason= needs_attention=false";
    let moves_to =
        |stage: &str| format!("attention_reason= mail_status={stage} needs_attention=false");
    for (stage, piece, stated, expected) in [
        // A stage without effect, and one that was passed long ago.
        ("delivered", "ltr_1", "viewed", String::new()),
        ("delivered", "ltr_1", "in_transit", String::new()),
        ("in_local_area", "ltr_1", "mailed", String::new()),
        (
            "delivered",
            "ltr_1",
            "issue",
            "attention_reason=issue needs_attention=true".to_owned(),
        ),
        ("mailed", "ltr_1", "in_transit", moves_to("in_transit")),
        (
            "returned_to_sender",
            "ltr_1",
            "delivered",
            moves_to("delivered"),
        ),
        // It was mailed again since.
        ("returned_to_sender", "ltr_0", "mailed", moves_to("mailed")),
        // A word of the application's own stays, and says nothing.
        ("posted", "ltr_1", "mailed", no_attention.to_owned()),
    ] {
        let found = written(&at_first(stage, piece), mailed(stated));
        let is_asked = |column: &&str| {
            ["mail_status=", "needs_attention=", "attention_reason="]
                .iter()
                .any(|name| column.starts_with(name))
        };
        let found: Vec<&str> = found.split(' ').filter(is_asked).collect();
        assert_eq!(found.join(" "), expected, "{stage} {stated}");
    }
}

#[test]
fn the_version_column_is_another_for_an_orm_with_a_version_of_its_own() {
    // The ORM counts its own saves; billhook writes its version beside.
    let mut order = StoredOrder::new();
    order.rules.version_column = VersionColumn::parse("billhookVersion").unwrap();
    order.set("version", json!(57));
    let events = [paid("pi_1")];
    order.take(&events);
    assert_eq!(order.column("version"), json!(57));
    assert_eq!(order.column("billhookVersion"), json!(1));
    for save in 1..40 {
        order.set("version", json!(57 + save));
        let next = order.take(&events);
        assert_eq!(next.row_findings(), []);
        assert_eq!(order.load().write_refusal(), None);
        assert_eq!(words_of(&order), "completed/paid 0");
    }
    assert_eq!(order.column("billhookVersion"), json!(1));
    // An older copy with the ORM's next version is restored, and no conflict.
    let older = order.row.clone();
    let events = [paid("pi_1"), all_back()];
    order.take(&events);
    order.row = older;
    order.set("version", json!(99));
    order.take(&events);
    assert_eq!(words_of(&order), "refunded/refunded 4200");
    assert_eq!(order.column("version"), json!(99));

    // Under the same name its saves look like writes of billhook's that the state has never had.
    let mut order = StoredOrder::new();
    let events = [paid("pi_1")];
    order.take(&events);
    order.set("version", json!(2));
    assert_eq!(order.load().write_refusal(), Some(ParkReason::StateBehind));
    // After the change of the parameter the row has no version, and is written once more.
    order.rules.version_column = VersionColumn::parse("billhookVersion").unwrap();
    order.take(&events);
    assert_eq!(order.load().write_refusal(), None);
    assert_eq!(words_of(&order), "completed/paid 0");
    // A value of another type belongs to somebody else: the column is left alone.
    order.set("billhookVersion", json!("v1"));
    order.take(&[paid("pi_1"), all_back()]);
    assert_eq!(order.column("billhookVersion"), json!("v1"));
    assert_eq!(words_of(&order), "refunded/refunded 4200");
    let column = "billhookVersion";
    assert_eq!(order.findings, [RowFinding::ColumnForeign { column }]);
    order.take(&[paid("pi_1"), all_back()]);
    assert_eq!(order.findings, []);
}

#[test]
fn no_edit_is_lost_when_the_version_gets_another_column_and_none_is_found_twice() {
    let named = |name: &str| VersionColumn::parse(name).unwrap();
    let events = [paid("pi_1"), disputed("needs_response")];
    let mut order = StoredOrder::new();
    order.take(&events);
    assert_eq!(words_of(&order), "completed/disputed 0 dispute_open");
    // To another name and back, as functions of both releases do while a deployment is under way.
    for name in ["billhookVersion", "version", "billhookVersion"] {
        order.rules.version_column = named(name);
        order.take(&events);
        assert_eq!(order.findings, [], "{name}");
        assert_eq!(words_of(&order), "completed/disputed 0 dispute_open");
    }
    order.rules.version_column = named("version");
    order.set("requiresReview", json!(false));
    order.take(&events);
    assert_eq!(order.findings, []);
    assert_eq!(words_of(&order), "completed/disputed 0");
    // From then on an older copy is known again.
    let copy = order.row.clone();
    let more = [paid("pi_1"), disputed("needs_response"), refunded(1200)];
    order.take(&more);
    order.row = copy;
    order.take(&more);
    assert!(
        matches!(order.findings[..], [RowFinding::Restored { .. }]),
        "{:?}",
        order.findings
    );
    assert_eq!(words_of(&order), "completed/disputed 1200");
}

#[test]
fn a_version_column_is_a_name_that_nothing_else_has() {
    for name in ["version", "billhookVersion", "bh_version2", "V"] {
        assert_eq!(VersionColumn::parse(name).unwrap().as_str(), name);
    }
    let malformed = |name: &str| {
        format!("must be a letter and then at most 63 letters, digits or underscores, got {name:?}")
    };
    let taken = |name: &str| format!("must not be {name}, which is another column of billhook's");
    for (name, refused) in [
        ("", malformed("")),
        ("2nd", malformed("2nd")),
        ("a b", malformed("a b")),
        ("a.b", malformed("a.b")),
        ("größe", malformed("größe")),
        (&"v".repeat(65), malformed(&"v".repeat(65))),
        ("status", taken("status")),
        ("id", taken("id")),
        ("tenant_id", taken("tenant_id")),
        ("mail_status", taken("mail_status")),
        ("stripe_status", taken("stripe_status")),
    ] {
        assert_eq!(VersionColumn::parse(name).unwrap_err().to_string(), refused);
    }
    assert!(VersionColumn::parse(&"v".repeat(64)).is_ok());
}

/// Money came that only the application knows of: a declined attempt must not make it due for the cleanup.
#[test]
fn an_adopted_order_that_was_paid_in_part_is_not_failed_by_an_attempt() {
    let row = json!({ "status": "pending", "paymentStatus": "partially_paid" });
    let mut order = adopted(row);
    order.take(&[intent_failed("evt_f", T + 60, "pi_2", json!({}), "ch_2")]);
    assert_eq!(order.column("status"), "pending");
    assert_eq!(order.column("paymentStatus"), "partially_paid");
}
