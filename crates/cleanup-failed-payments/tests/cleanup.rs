//! Runs of the cleanup over tables and a Stripe in memory, and payments that come at every moment of one.
#![cfg(test)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use billhook_core::entity::EntityKey;
use billhook_core::entity::kind::EntityState;
use billhook_core::entity::order::OrderKind;
use billhook_core::error::DependencyError;
use billhook_core::ids::{CheckoutSessionId, OrderId, PaymentIntentId};
use billhook_core::ports::Clock;
use billhook_core::provider::stripe::types::{IntentStatus, SessionStatus};
use billhook_core::tasks::checkpoint::Checkpoint;
use billhook_core::tasks::cleanup::CancellablePayment;
use billhook_core::tasks::definitions::{CleanupInput, TaskInvocation};
use billhook_core::tasks::ports::PaymentsAtStripe;
use billhook_core::time::Timestamp;
use billhook_testkit::events::{intent_failed, intent_is, intent_succeeded};
use billhook_testkit::events::{linked_facts, linked_facts_after};
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
            ("open_session", "pi_old"),
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
    assert_eq!(stripe.calls.lock().unwrap().last().unwrap().0, "expire");
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
    assert_eq!(seen, (78, 6, 12));
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
    stands(&stripe, "pi_1", IntentStatus::RequiresAction);
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
async fn without_a_key_a_run_with_something_to_do_is_refused_once() {
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
    let refused = without()
        .run(&CleanupInput::default(), at(9_000))
        .await
        .unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("no stripe_secret_key") && text.contains("billhook secrets put stripe-key"),
        "{text}"
    );
    let preview = CleanupInput {
        dry_run: true,
        ..CleanupInput::default()
    };
    let preview = without().run(&preview, at(9_000)).await.unwrap();
    assert_eq!(preview.cancelled, 2);
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
    assert!(stripe.calls.lock().unwrap().is_empty());
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
    type Error = DependencyError;

    async fn read_payment_status(
        &self,
        payment: &CancellablePayment,
    ) -> Result<IntentStatus, DependencyError> {
        tokio::time::sleep(SLOW).await;
        self.0.read_payment_status(payment).await
    }

    async fn find_open_session(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Option<CheckoutSessionId>, DependencyError> {
        tokio::time::sleep(SLOW).await;
        self.0.find_open_session(payment).await
    }

    async fn expire_session(
        &self,
        payment: &CancellablePayment,
        session: &CheckoutSessionId,
        key: &str,
    ) -> Result<SessionStatus, DependencyError> {
        tokio::time::sleep(SLOW).await;
        self.0.expire_session(payment, session, key).await
    }

    async fn cancel_payment(
        &self,
        payment: &CancellablePayment,
        key: &str,
    ) -> Result<IntentStatus, DependencyError> {
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
