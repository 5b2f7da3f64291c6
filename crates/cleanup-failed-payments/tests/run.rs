//! Runs of the cleanup over tables in memory and a Stripe that says what the test wants.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use billhook_core::entity::{Columns, Derived, Entity, EntityKey, Facts};
use billhook_core::event::stripe::Event;
use billhook_core::ids::{OrderId, PaymentIntentId};
use billhook_core::merge::Merge as _;
use billhook_core::money::{Currency, Money};
use billhook_core::payment;
use billhook_core::ports::Ended;
use billhook_core::time::Timestamp;
use billhook_testkit::events::{intent_failed, intent_succeeded};
use billhook_testkit::memory::{Fault, FixedClock, MemoryTables, Payments};
use cleanup_failed_payments::{Cleanup, Input, Summary};
use serde_json::{Value, json};

const T: i64 = 1_781_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_s(T + second).unwrap()
}

/// Puts an order into the tables as the worker leaves it after these events.
fn order(tables: &MemoryTables, id: &str, events: &[Value]) -> EntityKey {
    let key = EntityKey::Order(OrderId::parse(id).unwrap());
    let mut facts = Facts::default();
    for event in events {
        let event = Event::parse(event.to_string().as_bytes()).unwrap();
        facts
            .payment
            .merge(payment::read::facts(&event).unwrap().unwrap());
    }
    let mut row = Entity {
        key: key.clone(),
        version: 1,
        tenant: None,
        due: Some(Money {
            amount: 4200,
            currency: Currency::parse("usd").unwrap(),
        }),
        intent: None,
        session: None,
        user: None,
        mailed: None,
        columns: Columns::default(),
        derived: Derived::default(),
        facts: Facts::default(),
    };
    let next = row.with(facts, at(0));
    row.facts = next.facts;
    row.columns = next.derived.columns.clone();
    row.derived = next.derived;
    tables.entities.lock().unwrap().insert(key.clone(), row);
    key
}

fn failed(tables: &MemoryTables, id: &str, second: i64) -> EntityKey {
    let event = intent_failed(
        &format!("evt_{id}"),
        T + second,
        &format!("pi_{id}"),
        json!({}),
        &format!("ch_{id}"),
    );
    order(tables, id, &[event])
}

fn status(tables: &MemoryTables, key: &EntityKey) -> String {
    tables.entities.lock().unwrap()[key]
        .columns
        .status
        .clone()
        .unwrap()
}

/// Two hours after everything.
fn cleanup<'a>(
    tables: &'a MemoryTables,
    payments: &'a Payments,
) -> Cleanup<&'a MemoryTables, &'a Payments, FixedClock> {
    Cleanup {
        ledger: tables,
        payments,
        clock: FixedClock::at(at(7_200)),
        grace: Duration::from_secs(3_600),
    }
}

async fn run(tables: &MemoryTables, payments: &Payments, input: &str) -> Summary {
    let input: Input = serde_json::from_str(input).unwrap();
    cleanup(tables, payments)
        .run(&input, at(9_000))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_stale_failed_order_is_given_up_after_its_payments_are_ended() {
    let (tables, payments) = (MemoryTables::default(), Payments::default());
    let stale = failed(&tables, "old", 0);
    let young = failed(&tables, "young", 7_000);
    let summary = run(&tables, &payments, "{}").await;
    assert_eq!(
        summary,
        Summary {
            scanned: 2,
            cancelled: 1,
            skipped: 1,
            ..Summary::default()
        }
    );
    assert_eq!(
        (status(&tables, &stale), status(&tables, &young)),
        ("cancelled".into(), "payment_failed".into())
    );
    let calls = payments.calls.lock().unwrap();
    assert_eq!(
        *calls,
        [(
            "pi_old".to_owned(),
            "billhook-cleanup-order#old-1-pi_old".to_owned()
        )]
    );
}

#[tokio::test]
async fn money_at_stripe_or_in_the_facts_forbids_the_cancel() {
    let (tables, payments) = (MemoryTables::default(), Payments::default());
    let paying = failed(&tables, "paying", 0);
    payments
        .states
        .lock()
        .unwrap()
        .insert("pi_paying".into(), Ended::PaidOrProcessing);
    // Its column was put back by somebody; the facts know of money.
    let events = [
        intent_failed("evt_1", T, "pi_1", json!({}), "ch_1"),
        intent_succeeded("evt_2", T, "pi_2", json!({}), 1),
    ];
    let underpaid = order(&tables, "underpaid", &events);
    tables
        .entities
        .lock()
        .unwrap()
        .get_mut(&underpaid)
        .unwrap()
        .columns
        .status = Some("payment_failed".into());
    let summary = run(&tables, &payments, "{}").await;
    assert_eq!(
        summary,
        Summary {
            scanned: 2,
            reconciled: 1,
            skipped: 1,
            ..Summary::default()
        }
    );
    assert_eq!(status(&tables, &paying), "payment_failed");
    assert_eq!(payments.calls.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_payment_that_only_the_application_knows_is_asked_about_too() {
    let (tables, payments) = (MemoryTables::default(), Payments::default());
    let key = failed(&tables, "again", 0);
    let intent = PaymentIntentId::parse("pi_second").unwrap();
    tables
        .entities
        .lock()
        .unwrap()
        .get_mut(&key)
        .unwrap()
        .intent = Some(intent);
    payments
        .states
        .lock()
        .unwrap()
        .insert("pi_second".into(), Ended::PaidOrProcessing);
    let summary = run(&tables, &payments, "{}").await;
    assert_eq!((summary.cancelled, summary.reconciled), (0, 1));
}

#[tokio::test]
async fn a_payment_that_lands_between_reading_and_writing_wins() {
    let (tables, payments) = (MemoryTables::default(), Payments::default());
    let key = failed(&tables, "raced", 0);
    let paid: fn(&MemoryTables) = |tables| {
        let mut entities = tables.entities.lock().unwrap();
        let row = entities.values_mut().next().unwrap();
        row.version += 1;
        row.columns.status = Some("completed".into());
    };
    tables.before_commit.lock().unwrap().push_back(paid);
    let summary = run(&tables, &payments, "{}").await;
    assert_eq!(
        summary,
        Summary {
            scanned: 1,
            skipped: 1,
            ..Summary::default()
        }
    );
    assert_eq!(status(&tables, &key), "completed");
}

#[tokio::test]
async fn what_fails_is_counted_and_found_again_by_the_next_run() {
    for fault in [Fault::Before, Fault::AnswerLost] {
        let (tables, payments) = (MemoryTables::default(), Payments::default());
        let keys = [failed(&tables, "a", 0), failed(&tables, "b", 0)];
        payments.plan.then([Some(fault)]);
        let summary = run(&tables, &payments, "{}").await;
        assert_eq!(
            summary,
            Summary {
                scanned: 2,
                cancelled: 1,
                failed: 1,
                ..Summary::default()
            }
        );
        let summary = run(&tables, &payments, "{}").await;
        assert_eq!(
            summary,
            Summary {
                scanned: 1,
                cancelled: 1,
                ..Summary::default()
            }
        );
        assert!(keys.iter().all(|key| status(&tables, key) == "cancelled"));
    }
}

#[tokio::test]
async fn a_payment_after_the_cancel_completes_the_order_and_asks_for_a_review() {
    let (tables, payments) = (MemoryTables::default(), Payments::default());
    let key = failed(&tables, "late", 0);
    run(&tables, &payments, "{}").await;
    let row = tables.entities.lock().unwrap()[&key].clone();
    let paid = intent_succeeded("evt_late", T + 9_000, "pi_late", json!({}), 4200);
    let paid = payment::read::facts(&Event::parse(paid.to_string().as_bytes()).unwrap())
        .unwrap()
        .unwrap();
    let next = row.with(
        Facts {
            payment: paid,
            ..Facts::default()
        },
        at(9_000),
    );
    assert_eq!(next.standing.status.as_str(), "completed");
    assert!(
        next.standing
            .review_reasons
            .contains("paid_after_cancel:pi_late")
    );
}

#[tokio::test]
async fn a_dry_run_a_limit_and_the_deadline_do_what_they_say() {
    let (tables, payments) = (MemoryTables::default(), Payments::default());
    for id in ["a", "b", "c"] {
        failed(&tables, id, 0);
    }
    let summary = run(&tables, &payments, r#"{"task":"cleanup","dry_run":true}"#).await;
    assert_eq!(
        summary,
        Summary {
            scanned: 3,
            cancelled: 3,
            dry_run: true,
            ..Summary::default()
        }
    );
    assert!(payments.calls.lock().unwrap().is_empty());
    let summary = run(&tables, &payments, r#"{"minutes":180}"#).await;
    assert_eq!(
        summary,
        Summary {
            scanned: 3,
            skipped: 3,
            ..Summary::default()
        }
    );
    let summary = run(&tables, &payments, r#"{"limit":2}"#).await;
    assert_eq!(
        summary,
        Summary {
            scanned: 2,
            cancelled: 2,
            ..Summary::default()
        }
    );
    let late = cleanup(&tables, &payments)
        .run(&Input::default(), at(7_210))
        .await
        .unwrap();
    assert_eq!(late, Summary::default());
}

#[test]
fn a_misspelt_input_is_refused_instead_of_cancelling_orders() {
    for wrong in [
        r#"{"dryrun":true}"#,
        r#"{"task":"clean"}"#,
        r#"{"minutes":-1}"#,
        r#"{"minutes":"60"}"#,
    ] {
        assert!(serde_json::from_str::<Input>(wrong).is_err(), "{wrong}");
    }
}
