//! What an application or a person does to a row, times what happened since: each pair, with what billhook makes of it.
//! The table is the one in docs/SEMANTICS.md.
#![cfg(test)]

mod stored_order;

use std::time::Duration;

use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::projection::{RowFinding, RowStanding};
use billhook_core::entity::rules::RowRules;
use billhook_core::entity::{Entity, EntityKey, EntityUpdate};
use billhook_core::outcome::ParkReason;
use billhook_core::provider::lob::event::LobEvent;
use billhook_core::provider::lob::mail::read_mail_facts;
use billhook_core::tasks::cleanup::{CleanupDecision, decide_cleanup};
use billhook_testkit::events::{charge_refunded, dispute, intent_failed, intent_succeeded, stripe};
use billhook_testkit::memory::JsonRow;
use serde_json::{Value, json};

use self::stored_order::{StoredOrder, T, at};

const SEMANTICS: &str = include_str!("../../../docs/SEMANTICS.md");

const OURS: [&str; 9] = [
    "version",
    "status",
    "paymentStatus",
    "requiresReview",
    "reviewReasons",
    "amountRefunded",
    "stripePaymentIntentId",
    "updatedAt",
    "timeline",
];

/// Changes a row, with the row as it was after each write.
type RowChange = fn(&mut StoredOrder, &[Value]);

/// What the application or a person does, by the words of the table.
const WRITES: [(&str, RowChange); 15] = [
    ("nothing", |_, _| {}),
    ("the whole row, as it was 1 write ago", |order, past| {
        order.row = Some(past[past.len() - 2].clone());
    }),
    ("the whole row, as it was 5 writes ago", |order, past| {
        order.row = Some(past[past.len() - 6].clone());
    }),
    ("the whole row, as it was 20 writes ago", |order, past| {
        order.row = Some(past[past.len() - 21].clone());
    }),
    (
        "the whole row of 1 write ago, with `status` edited to `refunded`",
        |order, past| {
            order.row = Some(past[past.len() - 2].clone());
            order.set("status", json!("refunded"));
        },
    ),
    (
        "the whole row of 20 writes ago, with `status` edited to `refunded`",
        |order, past| {
            order.row = Some(past[past.len() - 21].clone());
            order.set("status", json!("refunded"));
        },
    ),
    ("the whole row with its own columns only", |order, past| {
        order.row = Some(past[0].clone());
    }),
    ("`status` `refunded`", |order, _| {
        order.set("status", json!("refunded"))
    }),
    (
        "`status` `shipped`, which is no word of billhook's",
        |order, _| {
            order.set("status", json!("shipped"));
        },
    ),
    ("`requiresReview` false", |order, _| {
        order.set("requiresReview", json!(false))
    }),
    ("`requiresReview` removed", |order, _| {
        if let Some(Value::Object(row)) = &mut order.row {
            row.remove("requiresReview");
        }
    }),
    ("all columns of billhook removed", |order, _| {
        if let Some(Value::Object(row)) = &mut order.row {
            row.retain(|name, _| !OURS.contains(&name.as_str()));
        }
    }),
    ("the row is deleted", |order, _| order.row = None),
    ("the row is deleted, and made anew", |order, past| {
        order.row = Some(past[0].clone());
        order.set("createdAt", json!("2026-06-10T10:00:00.000Z"));
    }),
    (
        "billhook's table is restored from a backup of 5 writes ago",
        |order, past| {
            order.state = Some(past[past.len() - 6]["state"].clone());
        },
    ),
];

/// What happens between the copy and the write, with the facts of the order before it.
fn happenings() -> [(&'static str, Option<Value>); 5] {
    let review = json!({ "id": "prv_1", "object": "review", "payment_intent": "pi_1", "open": true, "reason": "rule" });
    [
        ("nothing", None),
        (
            "a payment",
            Some(intent_succeeded("evt_s", T + 5000, "pi_2", json!({}), 4200)),
        ),
        (
            "a refund",
            Some(charge_refunded(
                "evt_s",
                T + 5000,
                "ch_1",
                Some("pi_1"),
                4200,
            )),
        ),
        (
            "a dispute",
            Some(dispute("evt_s", T + 5000, "dp_1", "pi_1", "needs_response")),
        ),
        (
            "a review",
            Some(stripe("evt_s", "review.opened", T + 5000, review)),
        ),
    ]
}

/// What billhook makes of the row, by the words of the table.
fn outcome(order: &StoredOrder, known: &Entity, next: &EntityUpdate) -> String {
    let refusal = order.load().write_refusal();
    if refusal == Some(ParkReason::StateBehind) {
        return "`state_behind`".to_owned();
    }
    let mut words = Vec::new();
    match next.standing() {
        RowStanding::Missing => return "`projection_missing`".to_owned(),
        RowStanding::Replaced => return "`row_replaced`".to_owned(),
        RowStanding::Stale { .. } => words.push("restored".to_owned()),
        _ => {}
    }
    for finding in &order.findings {
        if let RowFinding::ColumnForeign { .. } = finding {
            words.push("`column_foreign`".to_owned());
        }
    }
    let before = &known.last_derived().review_reasons;
    let after = &next.last_derived().review_reasons;
    for reason in after.iter().filter(|reason| !before.contains(reason)) {
        words.push(format!("+`{}`", reason.split(':').next().unwrap()));
    }
    for reason in before.iter().filter(|reason| !after.contains(reason)) {
        words.push(format!("-`{}`", reason.split(':').next().unwrap()));
    }
    let (was, is) = (&known.last_derived().columns, &next.last_derived().columns);
    if was.status != is.status && words.is_empty() {
        words.push("the edit stands".to_owned());
    }
    words.join(", ")
}

#[test]
fn each_write_of_an_application_ends_as_the_table_says() {
    let mut rendered = Vec::new();
    for (wrote, write) in WRITES {
        let mut cells = vec![wrote.to_owned()];
        for (_, since) in happenings() {
            let mut order = StoredOrder::new();
            let mut past = vec![order.row.clone().unwrap()];
            let mut events = vec![intent_succeeded("evt_p", T, "pi_1", json!({}), 4200)];
            // Each refund of a cent is a write.
            for cent in 0..22 {
                let id = format!("evt_{cent:02}");
                if cent > 0 {
                    events.push(charge_refunded(&id, T + cent, "ch_1", Some("pi_1"), cent));
                }
                order.take(&events);
                let mut row = order.row.clone().unwrap();
                row["state"] = order.state.clone().unwrap();
                past.push(row);
            }
            if let Some(event) = since {
                events.push(event);
                order.take(&events);
                past.push(order.row.clone().unwrap());
            }
            for row in &mut past {
                if !wrote.contains("backup") {
                    row.as_object_mut().unwrap().remove("state");
                }
            }
            let known = order.load();
            write(&mut order, &past);
            let next = order.take(&events);
            cells.push(outcome(&order, &known, &next));

            // Money and reviews are never lost in silence: the row says what the facts say, or a person is told.
            let payment = next.payment().unwrap();
            let is_told = payment.review_reasons.iter().any(|reason| {
                ["row_conflict", "row_replaced"].contains(&reason.split(':').next().unwrap())
            }) || !order.findings.is_empty()
                || order.load().write_refusal().is_some();
            let is_as_derived = order.column("status") == json!(payment.status.as_str())
                && order.column("amountRefunded") == json!(payment.amount_refunded)
                && order.column("requiresReview") == json!(!payment.review_reasons.is_empty());
            assert!(is_as_derived || is_told, "{wrote}: {:?}", order.row);
            // And it comes to rest: another look changes nothing.
            let rest = order.row.clone();
            order.take(&events);
            assert_eq!(order.row, rest, "{wrote}");
        }
        rendered.push(format!("| {} |", cells.join(" | ")));
    }
    for line in &rendered {
        assert!(
            SEMANTICS.contains(line.as_str()),
            "SEMANTICS.md has not:\n{}",
            rendered.join("\n")
        );
    }
}

fn paid(id: &str, intent: &str) -> Value {
    intent_succeeded(id, T, intent, json!({}), 4200)
}

/// What the row says, and why a person should look.
fn told(order: &StoredOrder) -> (Value, Value, Value) {
    let words = order.column("reviewReasons");
    let words: Vec<String> = words
        .as_array()
        .into_iter()
        .flatten()
        .map(|reason| {
            reason
                .as_str()
                .unwrap()
                .split(':')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    (
        order.column("status"),
        order.column("paymentStatus"),
        json!(words),
    )
}

#[test]
fn a_payment_outside_stripe_is_found_or_attested() {
    let attested = json!([{ "type": "payment_recorded", "at": "2026-06-09T13:00:00+02:00", "actor": "shop",
        "actorId": "cashier_7", "meta": { "reason": "cash" } }]);
    // What is written into a row that billhook knows, the events after it, and the end.
    type Case = (
        &'static str,
        Value,
        Vec<Value>,
        (&'static str, &'static str, &'static [&'static str]),
    );
    let failed = intent_failed("evt_f", T, "pi_1", json!({}), "ch_1");
    let cases: [Case; 8] = [
        (
            "status",
            json!("completed"),
            vec![],
            ("completed", "paid", &["paid_unproven"]),
        ),
        (
            "paymentStatus",
            json!("paid"),
            vec![],
            ("completed", "paid", &["paid_unproven"]),
        ),
        (
            "status",
            json!("completed"),
            vec![paid("evt_p", "pi_1")],
            ("completed", "paid", &[]),
        ),
        (
            "status",
            json!("completed"),
            vec![
                paid("evt_p", "pi_1"),
                charge_refunded("evt_r", T + 9_000, "ch_1", Some("pi_1"), 4200),
            ],
            ("refunded", "refunded", &[]),
        ),
        (
            "timeline",
            attested.clone(),
            vec![],
            ("completed", "paid", &[]),
        ),
        (
            "timeline",
            attested.clone(),
            vec![paid("evt_p", "pi_1")],
            ("completed", "paid", &["paid_twice"]),
        ),
        (
            "timeline",
            attested.clone(),
            vec![
                paid("evt_p", "pi_1"),
                charge_refunded("evt_r", T + 9_000, "ch_1", Some("pi_1"), 4200),
            ],
            ("completed", "paid", &[]),
        ),
        // An entry without a time could not be known again.
        (
            "timeline",
            json!([{ "type": "payment_recorded", "actor": "shop" }]),
            vec![],
            ("payment_failed", "failed", &[]),
        ),
    ];
    for (column, value, after, (status, payment, reasons)) in cases {
        let mut order = StoredOrder::new();
        let mut events = vec![failed.clone()];
        order.take(&events);
        order.set(column, value.clone());
        order.take(&events);
        for event in after {
            events.push(event);
            order.take(&events);
        }
        let expected = (json!(status), json!(payment), json!(reasons));
        assert_eq!(told(&order), expected, "{column} {value}");
    }
}

#[test]
fn a_recorded_payment_whose_entry_is_gone_gets_one_of_billhooks() {
    let entry = json!({ "type": "payment_recorded", "at": "2026-06-09T11:00:00Z", "actor": "shop",
        "meta": { "reason": "cash" } });
    let recorded = |order: &StoredOrder| -> Vec<String> {
        let entries = order.column("timeline");
        let entries = entries.as_array().cloned().unwrap_or_default().into_iter();
        let entries = entries.filter(|entry| entry["type"] == "payment_recorded");
        entries
            .map(|entry| entry["actor"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut order = StoredOrder::new();
    let events = [intent_failed("evt_f", T, "pi_1", json!({}), "ch_1")];
    order.set("timeline", json!([entry]));
    order.take(&events);
    assert_eq!(recorded(&order), ["shop"]);
    // Somebody saves the whole row as it was before the entry.
    order.set("timeline", json!([]));
    for _ in 0..2 {
        order.take(&events);
        assert_eq!(recorded(&order), ["billhook"]);
        assert_eq!(told(&order), (json!("completed"), json!("paid"), json!([])));
    }
}

#[test]
fn a_row_in_the_place_of_another_gets_its_columns_once_a_person_says_so() {
    let mut order = StoredOrder::new();
    let events = [paid("evt_p", "pi_1")];
    order.take(&events);
    order.row = StoredOrder::new().row;
    order.set("createdAt", json!("2026-06-10T10:00:00.000Z"));
    for _ in 0..2 {
        order.take(&events);
        let (status, payment, reasons) = told(&order);
        assert_eq!((status, payment), (json!("pending"), Value::Null));
        assert_eq!(reasons, json!(["row_replaced"]));
    }
    order.set("requiresReview", json!(false));
    order.take(&events);
    assert_eq!(told(&order), (json!("completed"), json!("paid"), json!([])));
}

#[test]
fn a_word_of_the_applications_in_an_older_copy_is_no_conflict() {
    let mut order = StoredOrder::new();
    let mut events = vec![paid("evt_p", "pi_1")];
    order.take(&events);
    order.set("status", json!("shipped"));
    let copy = order.row.clone();
    events.push(dispute("evt_d", T + 5, "dp_1", "pi_1", "needs_response"));
    order.take(&events);
    order.row = copy;
    order.take(&events);
    assert_eq!(
        told(&order),
        (json!("shipped"), json!("disputed"), json!(["dispute_open"]))
    );
}

#[test]
fn a_row_that_comes_back_gets_what_happened_without_it() {
    let mut order = StoredOrder::new();
    let mut events = vec![paid("evt_p", "pi_1")];
    order.take(&events);
    let row = order.row.take();
    events.push(dispute("evt_d", T + 5, "dp_1", "pi_1", "needs_response"));
    order.take(&events);
    assert_eq!(order.findings, [RowFinding::ProjectionMissing]);
    let state = order.state.clone().unwrap();
    assert!(
        state["open"].as_str().unwrap().starts_with("missing#"),
        "{state}"
    );
    order.row = row;
    order.take(&events);
    assert_eq!(
        told(&order),
        (
            json!("completed"),
            json!("disputed"),
            json!(["dispute_open"])
        )
    );
    assert_eq!(order.state.unwrap().get("open"), None);
}

#[test]
fn what_an_orm_writes_for_nothing_is_nothing() {
    let mut order = StoredOrder::new();
    for column in [
        "timeline",
        "requiresReview",
        "paymentStatus",
        "version",
        "reviewReasons",
        "tenantId",
    ] {
        order.set(column, Value::Null);
    }
    order.take(&[paid("evt_p", "pi_1")]);
    assert_eq!(order.findings, []);
    assert_eq!(told(&order), (json!("completed"), json!("paid"), json!([])));
}

#[test]
fn a_foreign_value_stays_and_everything_else_is_written() {
    for (column, value) in [
        ("status", json!("shipped")),
        ("status", json!({ "code": 7 })),
        ("timeline", json!({ "first": "created" })),
        ("reviewReasons", json!("none")),
        ("updatedAt", json!(1_781_000_000)),
    ] {
        let mut order = StoredOrder::new();
        order.set(column, value.clone());
        order.take(&[paid("evt_p", "pi_1")]);
        assert_eq!(order.findings, [RowFinding::ColumnForeign { column }]);
        assert_eq!(order.column(column), value);
        assert_eq!(order.column("paymentStatus"), json!("paid"));
        let state = order.state.clone().unwrap();
        assert!(
            state["open"].as_str().unwrap().starts_with("foreign#"),
            "{state}"
        );
        // Once it is moved, the column is billhook's.
        order.set(column, Value::Null);
        order.take(&[paid("evt_p", "pi_1")]);
        assert_eq!(order.findings, []);
        assert_eq!(order.column("status"), json!("completed"));
    }
}

#[test]
fn what_the_application_wrote_into_an_old_copy_of_its_own_columns_stays() {
    let mut order = StoredOrder::new();
    let mut events = vec![failed("evt_f", "pi_1")];
    order.take(&events);
    assert_eq!(order.column("stripePaymentIntentId"), "pi_1");
    // The application saves its own columns, with the payment that the customer makes now.
    order.row = StoredOrder::new().row;
    order.set("stripePaymentIntentId", json!("pi_2"));
    order.set("userId", json!("user_2"));
    events.push(failed("evt_f2", "pi_1"));
    order.take(&events);
    assert_eq!(order.column("stripePaymentIntentId"), "pi_2");
    assert_eq!(order.column("status"), "payment_failed");
    // Ours is restored.
    order.row = StoredOrder::new().row;
    order.take(&events);
    assert_eq!(order.column("stripePaymentIntentId"), "pi_1");
}

fn failed(id: &str, intent: &str) -> Value {
    intent_failed(id, T, intent, json!({}), &format!("ch_{id}"))
}

#[test]
fn a_review_is_cleared_only_by_who_saw_it_and_meant_it() {
    let disputed = [
        paid("evt_p", "pi_1"),
        dispute("evt_d", T + 5, "dp_1", "pi_1", "needs_response"),
    ];
    // An admin page that writes another type, and an ORM that drops what its model does not have.
    let not_meant: [fn(&mut StoredOrder); 3] = [
        |order| order.set("requiresReview", json!("true")),
        |order| drop_columns(order, &["requiresReview", "amountRefunded"]),
        |order| drop_columns(order, &["requiresReview", "timeline"]),
    ];
    for change in not_meant {
        let mut order = StoredOrder::new();
        order.take(&disputed);
        change(&mut order);
        let next = order.take(&disputed);
        let reasons = &next.payment().unwrap().review_reasons;
        assert_eq!(reasons.len(), 1, "{reasons:?}");
    }
    // A row that was gone comes back, and its flag is removed: what came meanwhile was in no row.
    let mut order = StoredOrder::new();
    order.take(&[paid("evt_p", "pi_1"), paid("evt_p2", "pi_2")]);
    let row = order.row.take();
    let events = [disputed.as_slice(), &[paid("evt_p2", "pi_2")]].concat();
    order.take(&events);
    order.row = row;
    order.set("requiresReview", json!(false));
    order.take(&events);
    assert_eq!(told(&order).2, json!(["dispute_open"]));
}

fn drop_columns(order: &mut StoredOrder, names: &[&str]) {
    if let Some(Value::Object(row)) = &mut order.row {
        row.retain(|name, _| !names.contains(&name.as_str()));
    }
}

#[test]
fn what_was_said_about_a_row_is_not_said_about_the_one_in_its_place() {
    let mut order = StoredOrder::new();
    let events = [failed("evt_f", "pi_1")];
    order.take(&events);
    for (column, word) in [
        ("status", "cancelled"),
        ("status", "refunded"),
        ("status", "completed"),
    ] {
        order.set(column, json!(word));
        order.take(&events);
    }
    order.row = StoredOrder::new().row;
    order.set("createdAt", json!("2026-06-10T10:00:00Z"));
    order.take(&events);
    order.set("requiresReview", json!(false));
    order.take(&events);
    assert_eq!(
        told(&order),
        (json!("payment_failed"), json!("failed"), json!([]))
    );
    // And it can be said again.
    order.set("status", json!("refunded"));
    order.take(&events);
    assert_eq!(told(&order).0, "refunded");
}

#[test]
fn a_row_is_another_one_by_when_it_was_made_in_whatever_form() {
    let known = "2026-06-09T10:00:00.000Z";
    for (found, is_another) in [
        (json!("2026-06-09T10:00:00Z"), false),
        (json!("2026-06-09T12:00:00+02:00"), false),
        (json!(1_780_999_200), false),
        (json!(1_780_999_200_000_i64), false),
        (json!("2026-06-09T10:00:01Z"), true),
        (json!("2026-06-09T11:00:00+00:00"), true),
        (json!("2026-06-10"), true),
        (json!(1_781_099_200), true),
    ] {
        for keeps_version in [false, true] {
            let mut order = StoredOrder::new();
            order.set("createdAt", json!(known));
            order.take(&[paid("evt_p", "pi_1")]);
            let version = order.column("version");
            if !keeps_version {
                order.row = StoredOrder::new().row;
            }
            order.set("createdAt", found.clone());
            let next = order.take(&[paid("evt_p", "pi_1")]);
            let is_replaced = *next.standing() == RowStanding::Replaced;
            assert_eq!(is_replaced, is_another, "{found} {version}");
        }
    }
}

#[test]
fn a_payment_that_meets_a_cancellation_or_comes_after_a_refund_is_reviewed() {
    let mut order = StoredOrder::new();
    let mut events = vec![failed("evt_f", "pi_1")];
    order.take(&events);
    order.set("status", json!("cancelled"));
    order.take(&events);
    let entry =
        json!([{ "type": "payment_recorded", "at": "2026-06-09T11:00:00Z", "actor": "shop" }]);
    order.set("timeline", entry);
    order.take(&events);
    assert_eq!(
        told(&order),
        (
            json!("completed"),
            json!("paid"),
            json!(["paid_after_cancel"])
        )
    );

    let mut order = StoredOrder::new();
    events = vec![
        paid("evt_p", "pi_1"),
        charge_refunded("evt_r", T + 9, "ch_1", Some("pi_1"), 4200),
    ];
    order.take(&events);
    assert_eq!(told(&order).0, "refunded");
    order.set("status", json!("completed"));
    order.take(&events);
    assert_eq!(
        told(&order),
        (json!("completed"), json!("paid"), json!(["paid_unproven"]))
    );
}

#[test]
fn the_cleanup_leaves_a_row_alone_that_a_person_has_to_look_at() {
    let events = [failed("evt_f", "pi_1"), failed("evt_f2", "pi_1")];
    let grace = Duration::from_secs(60);
    let decide = |order: &StoredOrder| decide_cleanup(&order.load(), grace, at(100_000));
    let mut order = StoredOrder::new();
    order.take(&events[..1]);
    let copy = order.row.clone();
    order.take(&[failed("evt_f", "pi_1"), failed("evt_x", "pi_9")]);
    assert!(matches!(decide(&order), CleanupDecision::Cancel(_)));
    // A copy with an edit, a row in the place of another one, and none.
    let mut conflict = order.clone();
    conflict.row = copy;
    conflict.set("paymentStatus", json!("paid"));
    let mut replaced = order.clone();
    replaced.set("createdAt", json!("2027-01-01"));
    let mut missing = order.clone();
    missing.row = None;
    for mut order in [conflict, replaced, missing] {
        assert_eq!(decide(&order), CleanupDecision::NotFailed);
        order.take(&events);
        assert_eq!(decide(&order), CleanupDecision::NotFailed);
    }
}

#[test]
fn a_column_of_the_applications_is_neither_a_conflict_nor_foreign_before_it_is_billhooks() {
    let key = EntityKey::parse("statement#st_1").unwrap();
    let row = json!({ "statement_id": "st_1", "amount_due": 4200, "currency": "usd", "payment_status": "partially_paid",
        "amount_paid": 2000, "mail_status": "draft" });
    let entity = key
        .read(&RowRules::default(), Some(&JsonRow(row)), None::<&Value>)
        .unwrap();
    let mail =
        billhook_testkit::events::letter("evt_l", "2026-06-09T10:13:20.000Z", "ltr_1", "mailed");
    let mail = LobEvent::parse(mail.to_string().as_bytes()).unwrap();
    let mail = read_mail_facts(&mail).unwrap().unwrap();
    let next = entity.apply_facts([StatedFacts::Mail(mail)], at(0));
    let written = next.write_columns();
    let names: Vec<_> = written.iter().map(|(name, _)| *name).collect();
    assert!(
        !names
            .iter()
            .any(|name| name.starts_with("amount") || *name == "paid_at"),
        "{names:?}"
    );
    assert_eq!(
        next.row_findings(),
        [RowFinding::ColumnForeign {
            column: "mail_status"
        }]
    );
}
