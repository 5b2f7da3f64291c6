//! Runs of the cleanup over tables and a Stripe in memory, and payments that come at every moment of one.
#![cfg(test)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use billhook_adapters::metrics::{MetricEnvironment, drain_lines};
use billhook_adapters::telemetry::build_subscriber;
use billhook_core::entity::EntityKey;
use billhook_core::entity::kind::{EntityState, StatedFacts};
use billhook_core::entity::order::OrderKind;
use billhook_core::ids::{AccountId, CheckoutSessionId, OrderId, PaymentIntentId, TenantId};
use billhook_core::ports::Clock;
use billhook_core::provider::stripe::types::{IntentSnapshot, IntentStatus, SessionStatus};
use billhook_core::tasks::checkpoint::{Checkpoint, cleanup_account_key};
use billhook_core::tasks::cleanup::{CancellablePayment, CancellableSession};
use billhook_core::tasks::definitions::{CleanupInput, TaskInvocation};
use billhook_core::tasks::ports::{PaymentCallError, PaymentsAtStripe};
use billhook_core::time::Timestamp;
use billhook_testkit::events::{
    account_facts, from_account, intent_failed, intent_is, intent_succeeded, linked_facts,
    linked_facts_after, session_completed, stripe as stripe_event,
};
use billhook_testkit::memory::{self, Fault, FixedClock, MemoryStripe, MemoryTables};
use cleanup_failed_payments::ScheduledTask as _;
use cleanup_failed_payments::tasks::cleanup::{CleanupSummary, CleanupTask};
use serde_json::{Value, json};

const T: i64 = 1_781_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_s(T + second).unwrap()
}

/// What the worker does when an event comes.
fn deliver(tables: &MemoryTables, key: &EntityKey, event: &Value) {
    let mut entities = tables.entities.lock().unwrap();
    let row = entities.get_mut(key).unwrap();
    *row = row
        .apply_facts(linked_facts_after(row, event), at(9_000))
        .next();
}

/// Puts an order into the tables as the worker leaves it after these events.
fn order(tables: &MemoryTables, id: &str, events: &[Value]) -> EntityKey {
    let key = EntityKey::Order(OrderId::parse(id).unwrap());
    let row = memory::entity(&key)
        .apply_facts(linked_facts(events), at(0))
        .next();
    tables.entities.lock().unwrap().insert(key.clone(), row);
    key
}

/// What the application or a person writes.
fn edit_order(
    tables: &MemoryTables,
    key: &EntityKey,
    edit: impl FnOnce(&mut EntityState<OrderKind>),
) {
    let mut entities = tables.entities.lock().unwrap();
    edit(memory::order_mut(entities.get_mut(key).unwrap()));
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
        .columns()
        .status
        .clone()
        .unwrap()
}

/// Two hours after everything.
fn cleanup<'a>(
    tables: &'a MemoryTables,
    stripe: &'a MemoryStripe,
) -> CleanupTask<&'a MemoryTables, &'a MemoryStripe, &'a MemoryTables, FixedClock> {
    CleanupTask {
        ledger: tables,
        payments: Some(stripe),
        jobs: tables,
        clock: FixedClock::at(at(7_200)),
        grace: Duration::from_secs(3_600),
    }
}

async fn run(tables: &MemoryTables, stripe: &MemoryStripe, input: &str) -> CleanupSummary {
    let TaskInvocation::Cleanup(options) = serde_json::from_str(input).unwrap() else {
        panic!("{input} is another task's");
    };
    cleanup(tables, stripe)
        .run(&options, at(9_000))
        .await
        .unwrap()
}

fn stands(stripe: &MemoryStripe, intent: &str, status: IntentStatus) {
    stripe
        .intents
        .lock()
        .unwrap()
        .insert(intent.to_owned(), status);
}

/// As an earlier system left it: nothing that billhook knows says so.
#[tokio::test]
async fn an_order_that_says_it_failed_without_any_facts_is_decided_once() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let key = EntityKey::Order(OrderId::parse("ord_old").unwrap());
    let row = json!({ "status": "payment_failed", "amountTotal": 4200, "currency": "usd" });
    let row = memory::entity_of(&key, row);
    tables.entities.lock().unwrap().insert(key.clone(), row);
    let dry = run(&tables, &stripe, r#"{"task":"cleanup","dry_run":true}"#).await;
    assert_eq!((dry.scanned, dry.cancelled), (1, 0));
    for scanned in [1, 0] {
        let summary = run(&tables, &stripe, "{}").await;
        assert_eq!((summary.scanned, summary.cancelled), (scanned, 0));
        let entities = tables.entities.lock().unwrap();
        let status = entities[&key].columns().status.clone();
        assert_eq!(status.as_deref(), Some("pending"));
    }
}

#[tokio::test]
async fn a_stale_failed_order_is_given_up_after_its_payments_are_ended() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let stale = failed(&tables, "old", 0);
    let young = failed(&tables, "young", 7_000);
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!(
        summary,
        CleanupSummary {
            scanned: 2,
            cancelled: 1,
            skipped: 1,
            ..CleanupSummary::default()
        }
    );
    assert_eq!(
        (status(&tables, &stale), status(&tables, &young)),
        ("cancelled".into(), "payment_failed".into())
    );
    assert_eq!(stripe.intent("pi_old"), IntentStatus::Canceled);
    let calls = stripe.calls.lock().unwrap();
    let calls: Vec<_> = calls
        .iter()
        .map(|(call, of, _)| (*call, of.as_str()))
        .collect();
    assert_eq!(
        calls,
        [
            ("status", "pi_old"),
            ("sessions", "pi_old"),
            ("cancel", "pi_old")
        ]
    );
}

#[tokio::test]
async fn a_payment_of_an_open_session_ends_by_the_session() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let key = failed(&tables, "old", 0);
    let session = ("pi_old".to_owned(), SessionStatus::Open);
    stripe
        .sessions
        .lock()
        .unwrap()
        .insert("cs_1".to_owned(), session);
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!(
        (summary.cancelled, status(&tables, &key)),
        (1, "cancelled".into())
    );
    assert_eq!(stripe.intent("pi_old"), IntentStatus::Canceled);
    let calls = stripe.calls.lock().unwrap();
    let calls: Vec<_> = calls.iter().map(|(call, ..)| *call).collect();
    assert_eq!(calls, ["status", "sessions", "expire", "status"]);
}

#[tokio::test]
async fn money_at_stripe_or_in_the_facts_forbids_the_cancel() {
    for word in [
        "processing",
        "succeeded",
        "requires_capture",
        "invented_tomorrow",
    ] {
        let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
        let paying = failed(&tables, "paying", 0);
        stands(&stripe, "pi_paying", IntentStatus::parse(word));
        // Its column was put back by somebody; the facts know of money.
        let events = [
            intent_failed("evt_1", T, "pi_1", json!({}), "ch_1"),
            intent_succeeded("evt_2", T, "pi_2", json!({}), 1),
        ];
        let underpaid = order(&tables, "underpaid", &events);
        edit_order(&tables, &underpaid, |order| {
            order.columns.status = Some("payment_failed".into());
        });
        let summary = run(&tables, &stripe, "{}").await;
        assert_eq!(
            summary,
            CleanupSummary {
                scanned: 2,
                reconciled: 1,
                skipped: 1,
                ..CleanupSummary::default()
            },
            "{word}"
        );
        assert_eq!(status(&tables, &paying), "payment_failed");
        assert_eq!(stripe.calls.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn no_payment_is_ended_while_another_one_of_the_order_may_bring_money() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let events = [
        intent_failed("evt_1", T, "pi_1", json!({}), "ch_1"),
        intent_failed("evt_2", T, "pi_2", json!({}), "ch_2"),
    ];
    order(&tables, "twice", &events);
    stands(&stripe, "pi_2", IntentStatus::Processing);
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!((summary.reconciled, summary.cancelled), (1, 0));
    assert_eq!(
        stripe.intent("pi_1"),
        IntentStatus::RequiresPaymentMethod,
        "the customer may need it if the other one fails"
    );
}

#[tokio::test]
async fn a_payment_that_only_the_application_knows_is_asked_about_too() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let key = failed(&tables, "again", 0);
    let intent = PaymentIntentId::parse("pi_second").unwrap();
    edit_order(&tables, &key, |order| order.given.intent = Some(intent));
    stands(&stripe, "pi_second", IntentStatus::Succeeded);
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!((summary.cancelled, summary.reconciled), (0, 1));
}

/// The whole story of one order, the customer's payment and its event at every moment of a run.
#[tokio::test]
async fn a_payment_at_any_moment_is_never_cancelled_and_never_leaves_a_cancelled_order() {
    let mut seen = (0, 0, 0);
    for with_session in [false, true] {
        // (the call before which the customer pays, that before which the event comes); the last is after the run.
        for paid_at in 0..=8 {
            for told_at in paid_at..=8 {
                let tables = Arc::new(MemoryTables::default());
                let stripe = Arc::new(MemoryStripe::default());
                let key = failed(&tables, "raced", 0);
                if with_session {
                    let session = ("pi_raced".to_owned(), SessionStatus::Open);
                    stripe
                        .sessions
                        .lock()
                        .unwrap()
                        .insert("cs_1".to_owned(), session);
                }
                // Calls begun, whether it was paid, whether that was told.
                let story = Arc::new(Mutex::new((0, false, false)));
                let step = {
                    let (tables, stripe, story) = (tables.clone(), stripe.clone(), story.clone());
                    let key = key.clone();
                    move || {
                        let (call, paid, told) = &mut *story.lock().unwrap();
                        if *call == paid_at {
                            *paid = stripe.pay("pi_raced");
                        }
                        if *call >= told_at && *paid && !*told {
                            *told = true;
                            let event = intent_succeeded(
                                "evt_paid",
                                T + 8_000,
                                "pi_raced",
                                json!({}),
                                4200,
                            );
                            deliver(&tables, &key, &event);
                        }
                        *call += 1;
                    }
                };
                tables.hook.set(step.clone());
                stripe.hook.set(step.clone());
                run(&tables, &stripe, "{}").await;
                let calls = story.lock().unwrap().0;
                assert!((1..=9).contains(&calls), "{calls} calls");
                let before = tables.entities.lock().unwrap()[&key].clone();
                let paid = story.lock().unwrap().1;
                let at = format!("session {with_session}, paid {paid_at}, told {told_at}");
                if paid {
                    assert_eq!(stripe.intent("pi_raced"), IntentStatus::Succeeded, "{at}");
                    assert_eq!(
                        before.linked_payment_facts().unwrap().cancelled,
                        [].into(),
                        "{at}"
                    );
                    seen.0 += 1;
                } else if calls > paid_at {
                    // Too late: Stripe takes no money for what was ended.
                    assert_eq!(stripe.intent("pi_raced"), IntentStatus::Canceled, "{at}");
                    assert_eq!(status(&tables, &key), "cancelled", "{at}");
                    seen.1 += 1;
                }
                // Whatever has not happened yet happens now.
                while story.lock().unwrap().0 <= 9 {
                    step();
                }
                if story.lock().unwrap().1 {
                    assert_eq!(status(&tables, &key), "completed", "{at}");
                } else {
                    assert_eq!(status(&tables, &key), "cancelled", "{at}");
                    seen.2 += 1;
                }
            }
        }
    }
    // Only between the cancel at Stripe and the write is a payment too late, and nothing else goes wrong there.
    assert_eq!(seen, (78, 11, 12));
}

/// The application made a second payment that no event and no column tells of: money still wins.
#[tokio::test]
async fn money_from_a_payment_nobody_knew_of_completes_the_order_at_any_moment() {
    for told_at in 0..=8 {
        let tables = Arc::new(MemoryTables::default());
        let stripe = MemoryStripe::default();
        let key = failed(&tables, "raced", 0);
        let calls = Arc::new(Mutex::new(0));
        let step = {
            let (tables, key, calls) = (tables.clone(), key.clone(), calls.clone());
            move || {
                let mut calls = calls.lock().unwrap();
                if *calls == told_at {
                    let event = intent_succeeded("evt_2", T + 8_000, "pi_2", json!({}), 4200);
                    deliver(&tables, &key, &event);
                }
                *calls += 1;
            }
        };
        tables.hook.set(step.clone());
        stripe.hook.set(step.clone());
        run(&tables, &stripe, "{}").await;
        while *calls.lock().unwrap() <= 8 {
            step();
        }
        assert_eq!(status(&tables, &key), "completed", "{told_at}");
    }
}

#[tokio::test]
async fn the_webhook_of_our_own_cancel_does_not_keep_the_order_open() {
    let (tables, stripe) = (Arc::new(MemoryTables::default()), MemoryStripe::default());
    let key = failed(&tables, "old", 0);
    // The worker writes between our read and our write, once.
    let rival: fn(&MemoryTables) = |tables| {
        let canceled = intent_is("evt_c", T + 7_200, "pi_old", json!({}), "canceled");
        let key = EntityKey::Order(OrderId::parse("old").unwrap());
        deliver(tables, &key, &canceled);
    };
    tables.before_commit.lock().unwrap().push_back(rival);
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!((summary.cancelled, summary.skipped), (1, 0));
    assert_eq!(status(&tables, &key), "cancelled");
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_counts_as_what_it_is() {
    for (fault, counted) in [(Fault::AnswerLost, (1, 0)), (Fault::Before, (0, 1))] {
        let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
        let key = failed(&tables, "old", 0);
        tables.writes.then([Some(fault)]);
        let summary = run(&tables, &stripe, "{}").await;
        assert_eq!((summary.cancelled, summary.failed), counted, "{fault:?}");
        let written = status(&tables, &key) == "cancelled";
        assert_eq!(written, fault == Fault::AnswerLost);
    }
}

#[tokio::test]
async fn what_fails_is_counted_and_found_again_by_the_next_run() {
    for failing in 0..3 {
        let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
        let keys = [failed(&tables, "a", 0), failed(&tables, "b", 0)];
        stripe
            .plan
            .then((0..failing).map(|_| None).chain([Some(Fault::Before)]));
        let summary = run(&tables, &stripe, "{}").await;
        assert_eq!(
            summary,
            CleanupSummary {
                scanned: 2,
                cancelled: 1,
                failed: 1,
                ..CleanupSummary::default()
            },
            "{failing}"
        );
        let summary = run(&tables, &stripe, "{}").await;
        assert_eq!(
            summary,
            CleanupSummary {
                scanned: 1,
                cancelled: 1,
                ..CleanupSummary::default()
            }
        );
        assert!(keys.iter().all(|key| status(&tables, key) == "cancelled"));
    }
}

#[tokio::test]
async fn a_repeated_call_of_a_later_run_has_another_key() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let event = intent_failed("evt_1", T, "pi_1", json!({}), "ch_1");
    let key = order(&tables, &"x".repeat(255), &[event]);
    // The cancel is carried out, and its answer lost with the write.
    tables.writes.then([Some(Fault::Before)]);
    run(&tables, &stripe, "{}").await;
    stands(&stripe, "pi_1", IntentStatus::RequiresConfirmation);
    assert_eq!(status(&tables, &key), "payment_failed");
    let other = cleanup(&tables, &stripe);
    other.clock.set(at(7_300));
    // Another container: its identifiers are others.
    Clock::new_id(&other.clock);
    other
        .run(&CleanupInput::default(), at(9_000))
        .await
        .unwrap();
    let calls = stripe.calls.lock().unwrap();
    let keys: Vec<&String> = calls
        .iter()
        .filter(|(call, ..)| *call == "cancel")
        .map(|(.., key)| key)
        .collect();
    assert_eq!(keys.len(), 2);
    assert_ne!(keys[0], keys[1]);
    assert!(keys.iter().all(|key| key.len() <= 255));
}

#[tokio::test]
async fn a_payment_after_the_cancel_completes_the_order_and_asks_for_a_review() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let key = failed(&tables, "late", 0);
    run(&tables, &stripe, "{}").await;
    let paid = intent_succeeded("evt_late", T + 9_000, "pi_late", json!({}), 4200);
    let row = tables.entities.lock().unwrap()[&key].clone();
    let next = row.apply_facts(linked_facts_after(&row, &paid), at(9_000));
    let payment = next.payment().unwrap();
    assert_eq!(payment.status.as_str(), "completed");
    assert!(payment.review_reasons.contains("paid_after_cancel:pi_late"));
}

#[tokio::test]
async fn without_a_key_no_order_is_cancelled_and_no_run_fails() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let without = || CleanupTask {
        payments: None,
        ..cleanup(&tables, &stripe)
    };
    let nothing = without()
        .run(&CleanupInput::default(), at(9_000))
        .await
        .unwrap();
    assert_eq!(nothing, CleanupSummary::default());
    failed(&tables, "a", 0);
    failed(&tables, "b", 0);
    // The dry run asks too.
    for dry_run in [false, true] {
        let input = CleanupInput {
            dry_run,
            ..CleanupInput::default()
        };
        let unasked = without().run(&input, at(9_000)).await.unwrap();
        let expected = CleanupSummary {
            scanned: 2,
            unasked: 2,
            dry_run,
            ..CleanupSummary::default()
        };
        assert_eq!(unasked, expected);
    }
    let environment = MetricEnvironment::new("billhook", "test");
    assert_eq!(drain_lines(&environment, at(0)), "");
    // With a key they are.
    let done = cleanup(&tables, &stripe)
        .run(&CleanupInput::default(), at(9_000))
        .await
        .unwrap();
    assert_eq!(done.cancelled, 2);
}

#[tokio::test]
async fn a_dry_run_and_the_minutes_do_what_they_say() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    for id in ["a", "b", "c"] {
        failed(&tables, id, 0);
    }
    let summary = run(
        &tables,
        &stripe,
        r#"{"task":"cleanup","dry_run":true,"limit":2}"#,
    )
    .await;
    assert_eq!(
        summary,
        CleanupSummary {
            scanned: 2,
            cancelled: 2,
            dry_run: true,
            ..CleanupSummary::default()
        }
    );
    let calls: Vec<_> = stripe
        .calls
        .lock()
        .unwrap()
        .drain(..)
        .map(|(call, of, _)| (call, of))
        .collect();
    let asked = |call, of: &str| (call, of.to_owned());
    assert_eq!(
        calls,
        [
            asked("status", "pi_a"),
            asked("sessions", "pi_a"),
            asked("status", "pi_b"),
            asked("sessions", "pi_b"),
        ]
    );
    assert!(tables.jobs.lock().unwrap().is_empty());
    let summary = run(&tables, &stripe, r#"{"minutes":180}"#).await;
    assert_eq!(
        summary,
        CleanupSummary {
            scanned: 3,
            skipped: 3,
            ..CleanupSummary::default()
        }
    );
}

#[tokio::test]
async fn a_run_that_is_cut_goes_on_behind_the_orders_that_it_came_to() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    for id in ["a", "b", "c", "d", "e"] {
        failed(&tables, id, 0);
        // None of them can be ended: without a place to go on at, only the first two would ever be tried.
        stands(&stripe, &format!("pi_{id}"), IntentStatus::Processing);
    }
    let tried = async || {
        stripe.calls.lock().unwrap().clear();
        run(&tables, &stripe, r#"{"limit":2}"#).await;
        let calls = stripe.calls.lock().unwrap();
        calls
            .iter()
            .map(|(_, of, _)| of.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(tried().await, ["pi_a", "pi_b"]);
    assert_eq!(tried().await, ["pi_c", "pi_d"]);
    assert_eq!(tried().await, ["pi_e"]);
    assert_eq!(tried().await, ["pi_a", "pi_b"]);
}

#[tokio::test]
async fn the_deadline_cuts_a_run_between_two_orders() {
    let (tables, stripe) = (Arc::new(MemoryTables::default()), MemoryStripe::default());
    for id in ["a", "b", "c", "d"] {
        failed(&tables, id, 0);
    }
    let clock = Arc::new(FixedClock::at(at(7_200)));
    let mut calls = 0;
    stripe.hook.set({
        let clock = clock.clone();
        move || {
            calls += 1;
            if calls == 4 {
                clock.set(at(8_990));
            }
        }
    });
    let cleanup = CleanupTask {
        ledger: &*tables,
        payments: Some(&stripe),
        jobs: &*tables,
        clock: &*clock,
        grace: Duration::from_secs(3_600),
    };
    let first = cleanup
        .run(&CleanupInput::default(), at(9_000))
        .await
        .unwrap();
    assert!((1..4).contains(&first.cancelled), "{first:?}");
    assert!(tables.jobs.lock().unwrap()["cleanup"].resume_at.is_some());
    let late = cleanup
        .run(&CleanupInput::default(), at(9_000))
        .await
        .unwrap();
    assert_eq!(late, CleanupSummary::default());
    let rest = cleanup
        .run(&CleanupInput::default(), at(10_000))
        .await
        .unwrap();
    assert_eq!(
        (first.cancelled + rest.cancelled, rest.scanned),
        (4, 4 - first.scanned)
    );
    assert_eq!(
        tables.jobs.lock().unwrap()["cleanup"],
        Checkpoint::default()
    );
}

/// A Stripe that takes nearly all the time that a call may take.
struct Slow<'a>(&'a MemoryStripe);

const SLOW: Duration = Duration::from_secs(30);

#[expect(
    clippy::disallowed_methods,
    reason = "it takes of tokio's time, which the test pauses"
)]
impl PaymentsAtStripe for Slow<'_> {
    async fn read_intent(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Option<IntentSnapshot>, PaymentCallError> {
        tokio::time::sleep(SLOW).await;
        self.0.read_intent(payment).await
    }

    async fn list_sessions(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Vec<(CheckoutSessionId, SessionStatus)>, PaymentCallError> {
        tokio::time::sleep(SLOW).await;
        self.0.list_sessions(payment).await
    }

    async fn read_session(
        &self,
        session: &CancellableSession,
    ) -> Result<Option<SessionStatus>, PaymentCallError> {
        tokio::time::sleep(SLOW).await;
        self.0.read_session(session).await
    }

    async fn expire_session(
        &self,
        session: &CancellableSession,
        key: &str,
    ) -> Result<Option<SessionStatus>, PaymentCallError> {
        tokio::time::sleep(SLOW).await;
        self.0.expire_session(session, key).await
    }

    async fn cancel_payment(
        &self,
        payment: &CancellablePayment,
        key: &str,
    ) -> Result<Option<IntentSnapshot>, PaymentCallError> {
        tokio::time::sleep(SLOW).await;
        self.0.cancel_payment(payment, key).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_stripe_does_not_keep_a_run_beyond_its_deadline() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let mut keys = Vec::new();
    for id in ["a", "b", "c", "d"] {
        keys.push(failed(&tables, id, 0));
    }
    let begun = tokio::time::Instant::now();
    let slow = CleanupTask {
        payments: Some(Slow(&stripe)),
        ledger: &tables,
        jobs: &tables,
        clock: FixedClock::at(at(7_200)),
        grace: Duration::from_secs(3_600),
    };
    slow.run(&CleanupInput::default(), at(7_260)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60));
    run(&tables, &stripe, "{}").await;
    assert!(keys.iter().all(|key| status(&tables, key) == "cancelled"));
}

/// Paid in cash: somebody sets the order to completed, at any moment of a run.
#[tokio::test]
async fn an_order_that_is_set_to_completed_meanwhile_stays_completed() {
    let mut cancelled = Vec::new();
    for edited_at in 0..=8 {
        let tables = Arc::new(MemoryTables::default());
        let stripe = MemoryStripe::default();
        let key = failed(&tables, "cash", 0);
        let calls = Arc::new(Mutex::new(0));
        let step = {
            let (tables, key, calls) = (tables.clone(), key.clone(), calls.clone());
            move || {
                let mut calls = calls.lock().unwrap();
                if *calls == edited_at {
                    edit_order(&tables, &key, |order| {
                        order.columns.status = Some("completed".into());
                    });
                }
                *calls += 1;
            }
        };
        tables.hook.set(step.clone());
        stripe.hook.set(step.clone());
        let summary = run(&tables, &stripe, "{}").await;
        while *calls.lock().unwrap() <= 8 {
            step();
        }
        // The next event finds the edit.
        let again = intent_failed("evt_cash", T, "pi_cash", json!({}), "ch_cash");
        deliver(&tables, &key, &again);
        assert_eq!(status(&tables, &key), "completed", "{edited_at}");
        cancelled.push(summary.cancelled);
    }
    // Only an edit after the write comes too late for the run.
    assert!(cancelled.is_sorted(), "{cancelled:?}");
    assert_eq!((cancelled.first(), cancelled.last()), (Some(&0), Some(&1)));
}

/// The cases of `ends`: what Stripe says of the order's payment, and whether the order stays.
async fn ends(
    with: impl FnOnce(&MemoryTables, &MemoryStripe, &EntityKey),
) -> (CleanupSummary, String) {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let key = failed(&tables, "old", 0);
    with(&tables, &stripe, &key);
    let before = tables.entities.lock().unwrap()[&key].clone();
    // The dry run says what the run does, and does nothing.
    let mut dry = run(&tables, &stripe, r#"{"task":"cleanup","dry_run":true}"#).await;
    assert_eq!(tables.entities.lock().unwrap()[&key], before);
    let ended = ["cancel", "expire"];
    let calls = stripe.calls.lock().unwrap().clone();
    assert!(
        !calls.iter().any(|(call, ..)| ended.contains(call)),
        "{calls:?}"
    );
    let summary = run(&tables, &stripe, "{}").await;
    dry.dry_run = false;
    assert_eq!(dry, summary);
    (summary, status(&tables, &key))
}

fn acts(stripe: &MemoryStripe, intent: &str, action: &str, created: i64) {
    stands(stripe, intent, IntentStatus::RequiresAction);
    let mut actions = stripe.actions.lock().unwrap();
    actions.insert(intent.to_owned(), (action.to_owned(), at(created)));
}

#[tokio::test]
async fn a_voucher_or_transfer_that_the_customer_holds_is_not_ended() {
    for action in [
        "oxxo_display_details",
        "boleto_display_details",
        "konbini_display_details",
        "multibanco_display_details",
        "display_bank_transfer_instructions",
        "verify_with_microdeposits",
        "pix_display_qr_code",
        "invented_tomorrow",
    ] {
        let (summary, status) = ends(|_, stripe, _| acts(stripe, "pi_old", action, 0)).await;
        assert_eq!(
            (summary.reconciled, summary.cancelled, summary.failed),
            (1, 0, 0),
            "{action}"
        );
        assert_eq!(status, "payment_failed", "{action}");
    }
}

#[tokio::test]
async fn a_page_that_the_customer_left_is_ended_and_one_of_this_hour_is_not() {
    for action in ["use_stripe_sdk", "redirect_to_url"] {
        for (created, cancelled) in [(3_600, 1), (3_601, 0)] {
            let (summary, _) = ends(|_, stripe, _| acts(stripe, "pi_old", action, created)).await;
            assert_eq!(
                (summary.cancelled, summary.reconciled),
                (cancelled, 1 - cancelled),
                "{action} {created}"
            );
        }
    }
}

/// Case: an order in a test environment whose data at Stripe was deleted was tried every 15 minutes, and alarmed.
#[tokio::test]
async fn a_payment_that_stripe_does_not_have_is_ended_for_good() {
    let (summary, status) = ends(|_, stripe, _| {
        stripe.missing.lock().unwrap().insert("pi_old".to_owned());
    })
    .await;
    assert_eq!((summary.cancelled, summary.failed), (1, 0));
    assert_eq!(status, "cancelled");
}

fn in_session_column(tables: &MemoryTables, key: &EntityKey, session: &str) {
    let session = CheckoutSessionId::parse(session).unwrap();
    edit_order(tables, key, |order| order.given.session = Some(session));
}

fn has_session(stripe: &MemoryStripe, session: &str, intent: &str, status: SessionStatus) {
    let mut sessions = stripe.sessions.lock().unwrap();
    sessions.insert(session.to_owned(), (intent.to_owned(), status));
}

#[tokio::test]
async fn the_session_in_the_column_is_expired_before_the_order_is_cancelled() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let key = failed(&tables, "old", 0);
    in_session_column(&tables, &key, "cs_page");
    // It gets its payment once the customer pays.
    has_session(&stripe, "cs_page", "", SessionStatus::Open);
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!(
        (summary.cancelled, status(&tables, &key)),
        (1, "cancelled".into())
    );
    assert_eq!(
        stripe.sessions.lock().unwrap()["cs_page"].1,
        SessionStatus::Expired
    );
    let calls = stripe.calls.lock().unwrap().clone();
    let calls: Vec<_> = calls
        .iter()
        .map(|(call, of, _)| (*call, of.as_str()))
        .collect();
    assert_eq!(
        calls,
        [
            ("status", "pi_old"),
            ("session", "cs_page"),
            ("sessions", "pi_old"),
            ("expire", "cs_page"),
            ("cancel", "pi_old"),
        ]
    );
    // Nothing to end.
    for gone in [None, Some(SessionStatus::Expired)] {
        let (summary, _) = ends(|tables, stripe, key| {
            in_session_column(tables, key, "cs_page");
            if let Some(gone) = &gone {
                has_session(stripe, "cs_page", "", gone.clone());
            }
        })
        .await;
        assert_eq!(summary.cancelled, 1, "{gone:?}");
    }
    // Paid, or being paid.
    for under_way in [
        SessionStatus::Complete,
        SessionStatus::Other("paused".to_owned()),
    ] {
        let (summary, status) = ends(|tables, stripe, key| {
            in_session_column(tables, key, "cs_page");
            has_session(stripe, "cs_page", "", under_way.clone());
        })
        .await;
        assert_eq!((summary.reconciled, summary.cancelled), (1, 0));
        assert_eq!(status, "payment_failed");
    }
}

/// An event named the session, and none says that it was completed or expired.
#[tokio::test]
async fn a_session_of_the_facts_is_expired_before_the_order_is_cancelled() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let mut debit = session_completed("evt_1", T, "cs_1", Some("pi_1"), json!({}), "unpaid");
    debit["type"] = json!("checkout.session.async_payment_failed");
    let key = order(&tables, "debit", &[debit]);
    has_session(&stripe, "cs_1", "pi_other", SessionStatus::Open);
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!(
        (summary.cancelled, status(&tables, &key)),
        (1, "cancelled".into())
    );
    assert_eq!(
        stripe.sessions.lock().unwrap()["cs_1"].1,
        SessionStatus::Expired
    );
}

/// A bank debit that failed: its session is complete, so Stripe neither cancels the payment nor takes money for it.
#[tokio::test]
async fn the_failed_debit_of_a_completed_session_does_not_hold_the_order_open() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let completed = session_completed("evt_1", T, "cs_1", Some("pi_1"), json!({}), "unpaid");
    let failed = intent_failed("evt_2", T + 60, "pi_1", json!({}), "ch_1");
    let key = order(&tables, "debit", &[completed, failed]);
    has_session(&stripe, "cs_1", "pi_1", SessionStatus::Complete);
    for scanned in [1, 0] {
        let summary = run(&tables, &stripe, "{}").await;
        assert_eq!((summary.scanned, summary.failed), (scanned, 0));
    }
    assert_eq!(status(&tables, &key), "cancelled");
}

#[tokio::test]
async fn a_session_in_a_state_that_billhook_does_not_know_keeps_the_order() {
    let (summary, status) = ends(|_, stripe, _| {
        let paused = SessionStatus::Other("paused".to_owned());
        has_session(stripe, "cs_1", "pi_old", paused);
    })
    .await;
    assert_eq!((summary.reconciled, summary.cancelled), (1, 0));
    assert_eq!(status, "payment_failed");
}

#[tokio::test]
async fn a_customer_who_is_faster_than_the_expiry_keeps_the_order() {
    let (tables, stripe) = (
        Arc::new(MemoryTables::default()),
        Arc::new(MemoryStripe::default()),
    );
    let key = failed(&tables, "old", 0);
    in_session_column(&tables, &key, "cs_page");
    has_session(&stripe, "cs_page", "", SessionStatus::Open);
    let mut calls = 0;
    stripe.hook.set({
        let stripe = stripe.clone();
        move || {
            calls += 1;
            // The expiry is the fourth.
            if calls == 4 {
                has_session(&stripe, "cs_page", "pi_new", SessionStatus::Complete);
            }
        }
    });
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!((summary.reconciled, summary.cancelled), (1, 0));
    assert_eq!(stripe.intent("pi_old"), IntentStatus::RequiresPaymentMethod);
}

fn tenant_of(tables: &MemoryTables, key: &EntityKey, account: &str) -> TenantId {
    let id = TenantId::parse(&format!("ten_{account}")).unwrap();
    edit_order(tables, key, |order| order.tenant = Some(id.clone()));
    let columns = json!({ "tenant_id": id, "stripe_connected_account_id": account });
    let tenant = EntityKey::Tenant(id.clone());
    let row = memory::entity_of(&tenant, columns);
    tables.entities.lock().unwrap().insert(tenant, row);
    id
}

/// A failed payment on a connected account.
fn failed_on(tables: &MemoryTables, id: &str, account: &str) -> EntityKey {
    let event = intent_failed(
        &format!("evt_{id}"),
        T,
        &format!("pi_{id}"),
        json!({}),
        &format!("ch_{id}"),
    );
    order(tables, id, &[from_account(event, account)])
}

/// The column names no account: the payment may be the platform's although the others are the tenant's.
#[tokio::test]
async fn a_payment_of_the_column_is_looked_for_on_every_account_of_the_order() {
    for place in ["acct_1", "acct_2", ""] {
        let (summary, _) = ends(|tables, stripe, key| {
            tenant_of(tables, key, "acct_2");
            let event = intent_failed("evt_2", T, "pi_1", json!({}), "ch_1");
            deliver(tables, key, &from_account(event, "acct_1"));
            let intent = PaymentIntentId::parse("pi_second").unwrap();
            edit_order(tables, key, |order| order.given.intent = Some(intent));
            stands(stripe, "pi_second", IntentStatus::Processing);
            let mut places = stripe.places.lock().unwrap();
            places.insert("pi_second".to_owned(), place.to_owned());
        })
        .await;
        assert_eq!((summary.reconciled, summary.cancelled), (1, 0), "{place}");
    }
}

type LogLines = Arc<Mutex<Vec<String>>>;

/// What this thread logs, as the function writes it.
fn log_lines() -> (LogLines, tracing::subscriber::DefaultGuard) {
    let lines = LogLines::default();
    let write = {
        let lines = lines.clone();
        move |line: &[u8]| {
            let line = String::from_utf8_lossy(line).into_owned();
            lines.lock().unwrap().push(line);
        }
    };
    let environment = MetricEnvironment::new("billhook", "test");
    let clock = FixedClock::at(at(0));
    let level = tracing::level_filters::LevelFilter::INFO;
    let subscriber = build_subscriber("cleanup", environment, level, clock, write);
    (lines, tracing::subscriber::set_default(subscriber))
}

async fn refusals(tables: &MemoryTables, stripe: &MemoryStripe) -> (usize, usize, bool) {
    let summary = run(tables, stripe, "{}").await;
    let job = cleanup_account_key(AccountId::parse("acct_1").ok().as_ref());
    let jobs = tables.jobs.lock().unwrap();
    let told_at = jobs.get(&job).and_then(Checkpoint::refusal_told_at);
    let is_told = told_at.is_some();
    (summary.refused, summary.failed, is_told)
}

#[tokio::test]
async fn an_account_that_refuses_us_is_skipped_and_told_once() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let keys = [
        failed_on(&tables, "a", "acct_1"),
        failed_on(&tables, "b", "acct_1"),
    ];
    let other = failed_on(&tables, "c", "acct_2");
    stripe.refused.lock().unwrap().insert("acct_1".to_owned());
    let (lines, _guard) = log_lines();
    let told = |count: usize| {
        let lines = lines.lock().unwrap();
        let told = lines
            .iter()
            .filter(|line| line.contains("account_refused acct_1"));
        assert_eq!(told.count(), count, "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("cleanup_failed")));
    };
    for _ in 0..3 {
        assert_eq!(refusals(&tables, &stripe).await, (2, 0, true));
        told(1);
    }
    assert_eq!(status(&tables, &other), "cancelled");
    assert!(
        keys.iter()
            .all(|key| status(&tables, key) == "payment_failed")
    );
    // Once it answers, its orders are done; and if it refuses again, that is told again.
    stripe.refused.lock().unwrap().clear();
    assert_eq!(refusals(&tables, &stripe).await, (0, 0, false));
    assert!(keys.iter().all(|key| status(&tables, key) == "cancelled"));
    failed_on(&tables, "d", "acct_1");
    stripe.refused.lock().unwrap().insert("acct_1".to_owned());
    assert_eq!(refusals(&tables, &stripe).await, (1, 0, true));
    told(2);
}

#[tokio::test]
async fn a_deauthorized_account_is_not_even_asked() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let key = failed_on(&tables, "a", "acct_1");
    let tenant = EntityKey::Tenant(tenant_of(&tables, &key, "acct_1"));
    let object = json!({ "id": "ca_1", "object": "application" });
    let event = stripe_event("evt_d", "account.application.deauthorized", T, object);
    let stated = StatedFacts::Account(account_facts(&from_account(event, "acct_1")));
    {
        let mut entities = tables.entities.lock().unwrap();
        let row = entities.get_mut(&tenant).unwrap();
        *row = row.apply_facts([stated], at(0)).next();
    }
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!((summary.refused, summary.cancelled), (1, 0));
    assert!(stripe.calls.lock().unwrap().is_empty());
    // What lives on the platform is no matter of that account.
    let other = failed(&tables, "platform", 0);
    let tenant = TenantId::parse("ten_acct_1").unwrap();
    edit_order(&tables, &other, |order| order.tenant = Some(tenant));
    let summary = run(&tables, &stripe, "{}").await;
    assert_eq!((summary.refused, summary.cancelled), (1, 1));
}

/// The key itself is wrong, or lacks a permission: that is somebody's to mend, and so it is alarmed, once a day.
#[tokio::test]
async fn a_key_that_is_refused_on_the_platform_is_told_once_a_day() {
    let (tables, stripe) = (MemoryTables::default(), MemoryStripe::default());
    let keys = [failed(&tables, "a", 0), failed(&tables, "b", 0)];
    let other = failed_on(&tables, "c", "acct_1");
    stripe.refused.lock().unwrap().insert(String::new());
    let environment = MetricEnvironment::new("billhook", "test");
    let mut alarms = Vec::new();
    for quarter in 0..200 {
        let cleanup = cleanup(&tables, &stripe);
        cleanup.clock.set(at(7_200 + quarter * 900));
        drop(drain_lines(&environment, at(0)));
        let deadline = at(9_000 + quarter * 900);
        let summary = cleanup.run(&CleanupInput::default(), deadline).await;
        let summary = summary.unwrap();
        assert_eq!((summary.refused, summary.failed), (2, 0));
        if drain_lines(&environment, at(0)).contains("\"CleanupFailed\":1") {
            alarms.push(quarter);
        }
    }
    assert_eq!(alarms, [0, 96, 192]);
    assert_eq!(status(&tables, &other), "cancelled");
    assert!(
        keys.iter()
            .all(|key| status(&tables, key) == "payment_failed")
    );
}

/// The customer opens an old page and pays, with a card or a voucher, before each call of a run.
#[tokio::test]
async fn an_old_page_that_is_paid_at_any_moment_keeps_the_order_or_takes_no_money() {
    let mut cancelled = Vec::new();
    for paid_at in 0..=8 {
        let (tables, stripe) = (
            Arc::new(MemoryTables::default()),
            Arc::new(MemoryStripe::default()),
        );
        let key = failed(&tables, "old", 0);
        in_session_column(&tables, &key, "cs_page");
        has_session(&stripe, "cs_page", "", SessionStatus::Open);
        let paid = Arc::new(Mutex::new((0, false)));
        let step = {
            let (stripe, paid) = (stripe.clone(), paid.clone());
            move || {
                let (call, is_paid) = &mut *paid.lock().unwrap();
                let is_open = stripe.sessions.lock().unwrap()["cs_page"].1 == SessionStatus::Open;
                if *call == paid_at && is_open {
                    *is_paid = true;
                    has_session(&stripe, "cs_page", "pi_page", SessionStatus::Complete);
                }
                *call += 1;
            }
        };
        tables.hook.set(step.clone());
        stripe.hook.set(step.clone());
        let summary = run(&tables, &stripe, "{}").await;
        let calls = paid.lock().unwrap().0;
        assert!((5..=10).contains(&calls), "{calls} calls");
        let is_paid = paid.lock().unwrap().1;
        // Stripe takes no money for what was ended.
        assert_eq!(summary.cancelled, usize::from(!is_paid), "{paid_at}");
        cancelled.push(summary.cancelled);
    }
    assert!(cancelled.is_sorted(), "{cancelled:?}");
    assert_eq!((cancelled.first(), cancelled.last()), (Some(&0), Some(&1)));
}
