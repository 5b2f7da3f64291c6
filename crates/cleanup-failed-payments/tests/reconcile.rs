//! Runs of the reconciliation over tables, queues and a Stripe in memory.
#![cfg(test)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use billhook_adapters::metrics::{MetricEnvironment, drain_lines};
use billhook_core::ids::{AccountId, EventId, ProviderId, TenantId};
use billhook_core::outcome::EventOutcome;
use billhook_core::provider::stripe::event_types::HANDLED_TYPES;
use billhook_core::tasks::checkpoint::{Checkpoint, reconcile_cursor_key};
use billhook_core::tasks::definitions::ReconcileInput;
use billhook_core::tasks::reconcile::event_type_sets;
use billhook_core::time::Timestamp;
use billhook_testkit::events::envelope;
use billhook_testkit::events::{from_account, stripe};
use billhook_testkit::memory::{Fault, FixedClock, MemoryQueue, MemoryStripe, MemoryTables};
use cleanup_failed_payments::ScheduledTask as _;
use cleanup_failed_payments::tasks::reconcile::{ReconcileSummary, ReconcileTask};
use serde_json::{Value, json};

const NOW: i64 = 1_781_000_000;
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_s(second).unwrap()
}

/// A cursor that asked for these types up to then.
fn through(second: i64, types: &[&str]) -> Checkpoint {
    Checkpoint::completed_through(second).of_types(types)
}

fn first_set() -> &'static [&'static str] {
    event_type_sets().next().unwrap()
}

fn account(id: &str) -> AccountId {
    AccountId::parse(id).unwrap()
}

#[derive(Default)]
struct World {
    tables: MemoryTables,
    queue: MemoryQueue,
    stripe: MemoryStripe,
}

type Task<'a> = ReconcileTask<
    &'a MemoryTables,
    &'a MemoryQueue,
    &'a MemoryTables,
    &'a MemoryStripe,
    &'a FixedClock,
>;

impl World {
    fn with_accounts(accounts: &[&str]) -> Self {
        let world = Self::default();
        for id in accounts {
            let tenant = TenantId::parse(&format!("ten_{id}")).unwrap();
            world
                .tables
                .tenants
                .lock()
                .unwrap()
                .push((account(id), tenant));
        }
        world.stripe.page.store(100, Ordering::SeqCst);
        world
    }

    /// Stripe lists an event; empty is the platform.
    fn lists(&self, account: &str, id: &str, kind: &str, created_s: i64) {
        let object = json!({ "id": "pi_1", "object": "payment_intent", "amount_received": 4200, "currency": "usd" });
        let event = stripe(id, kind, created_s, object);
        let mut events = self.stripe.events.lock().unwrap();
        events.entry(account.to_owned()).or_default().push(event);
    }

    /// All was read up to then.
    fn read_through(&self, account: Option<&AccountId>, second: i64) {
        for (set, types) in event_type_sets().enumerate() {
            let job = reconcile_cursor_key(account, set);
            let cursor = Checkpoint::completed_through(second).of_types(types);
            self.tables.jobs.lock().unwrap().insert(job, cursor);
        }
    }

    fn task<'a>(&'a self, clock: &'a FixedClock) -> Task<'a> {
        ReconcileTask {
            inbox: &self.tables,
            queue: &self.queue,
            jobs: &self.tables,
            stripe: Some(&self.stripe),
            clock,
        }
    }

    async fn run(&self, second: i64) -> ReconcileSummary {
        let clock = FixedClock::at(at(second));
        self.task(&clock)
            .run(&ReconcileInput {}, at(second + 900))
            .await
            .unwrap()
    }

    fn stored(&self) -> BTreeSet<String> {
        let events = self.tables.events.lock().unwrap();
        events.keys().map(ToString::to_string).collect()
    }

    fn asked(&self) -> Vec<String> {
        let mut calls = self.stripe.calls.lock().unwrap();
        calls.drain(..).map(|(.., account)| account).collect()
    }
}

#[tokio::test]
async fn a_missing_event_comes_in_as_if_it_had_been_delivered() {
    let world = World::with_accounts(&["acct_1"]);
    world.read_through(None, NOW - HOUR);
    world.read_through(Some(&account("acct_1")), NOW - HOUR);
    world.lists(
        "",
        "evt_platform",
        "payment_intent.succeeded",
        NOW - 30 * 60,
    );
    // The body of a connected account's list says nothing of the account, or something else.
    world.lists("acct_1", "evt_connect", "refund.created", NOW - 60);
    let lying = stripe(
        "evt_lying",
        "review.closed",
        NOW - 60,
        json!({ "id": "prv_1" }),
    );
    let lying = from_account(lying, "acct_2");
    world
        .stripe
        .events
        .lock()
        .unwrap()
        .get_mut("acct_1")
        .unwrap()
        .push(lying);
    let summary = world.run(NOW).await;
    assert_eq!(
        summary,
        ReconcileSummary {
            task: "reconcile",
            no_key: false,
            accounts: 2,
            events: 3,
            taken_in: 3,
            gaps: 1,
            refused: Vec::new(),
            failed: 0,
            lagging: 0,
            reconciled_through: Some(at(NOW)),
            completed: true,
        }
    );
    let events = world.tables.events.lock().unwrap();
    for (id, of) in [
        ("evt_platform", None),
        ("evt_connect", Some(account("acct_1"))),
        ("evt_lying", Some(account("acct_1"))),
    ] {
        let row = &events[&EventId::parse(id).unwrap()];
        assert_eq!(
            (&row.stored.account, row.stored.outcome),
            (&of, EventOutcome::Pending)
        );
        // The same group as a delivery's.
        let mut delivered: Value = serde_json::from_slice(&row.payload).unwrap();
        delivered["account"] = json!(of);
        let delivered = envelope(ProviderId::Stripe, delivered.to_string().as_bytes());
        assert_eq!(row.stored.group, delivered.group, "{id}");
    }
    let sent = world.queue.sent.lock().unwrap();
    assert_eq!(sent.len(), 3);
    for (_, _, deduplication_id, body) in sent.iter() {
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["source"], "reconcile");
        let id = body["event_id"].as_str().unwrap();
        assert!(
            deduplication_id.starts_with(&format!("{id}.r.")),
            "{deduplication_id}"
        );
    }
}

#[tokio::test]
async fn what_is_there_is_neither_written_nor_sent_again() {
    let world = World::with_accounts(&[]);
    world.read_through(None, NOW - HOUR);
    world.lists("", "evt_1", "payment_intent.succeeded", NOW - 60);
    assert_eq!(world.run(NOW).await.taken_in, 1);
    let again = world.run(NOW + 60).await;
    assert_eq!((again.events, again.taken_in, again.gaps), (1, 0, 0));
    assert_eq!(*world.queue.calls.lock().unwrap(), 1);
    assert_eq!(world.tables.calls.lock().unwrap()["record"], 1);
    // Out of what is read again, it is not even listed.
    assert_eq!(world.run(NOW + 3 * HOUR).await.events, 1);
    assert_eq!(world.run(NOW + 6 * HOUR).await.events, 0);
}

#[tokio::test]
async fn every_type_is_asked_for_and_each_set_has_its_cursor() {
    let world = World::with_accounts(&["acct_1"]);
    for (n, kind) in (0..).zip(HANDLED_TYPES) {
        world.lists("", &format!("evt_{n}"), kind, NOW - n);
    }
    world.lists("", "evt_other", "customer.created", NOW);
    assert_eq!(world.run(NOW).await.taken_in, HANDLED_TYPES.len());
    let jobs = world.tables.jobs.lock().unwrap();
    let names: Vec<&str> = jobs.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "reconcile#acct_1#0",
            "reconcile#acct_1#1",
            "reconcile#platform#0",
            "reconcile#platform#1"
        ]
    );
    for (set, types) in event_type_sets().enumerate() {
        for account in [None, Some(account("acct_1"))] {
            let cursor = &jobs[&reconcile_cursor_key(account.as_ref(), set)];
            assert_eq!(*cursor, through(NOW, types));
        }
    }
}

#[tokio::test]
async fn the_first_reading_goes_back_three_days_and_counts_no_gap() {
    let world = World::with_accounts(&[]);
    world.lists("", "evt_old", "payment_intent.succeeded", NOW - 4 * DAY);
    world.lists("", "evt_new", "payment_intent.succeeded", NOW - 2 * DAY);
    let summary = world.run(NOW).await;
    assert_eq!((summary.taken_in, summary.gaps), (1, 0));
    assert_eq!(world.stored(), ["evt_new".to_owned()].into());
}

#[tokio::test]
async fn a_cursor_that_was_set_back_or_left_for_long_is_followed_as_far_as_stripe_lists() {
    let world = World::with_accounts(&[]);
    world.lists(
        "",
        "evt_too_old",
        "payment_intent.succeeded",
        NOW - 31 * DAY,
    );
    world.lists("", "evt_old", "payment_intent.succeeded", NOW - 29 * DAY);
    world.read_through(None, NOW - 60 * DAY);
    let summary = world.run(NOW).await;
    assert_eq!((summary.taken_in, summary.gaps), (1, 1));
    assert_eq!(world.stored(), ["evt_old".to_owned()].into());
}

#[tokio::test]
async fn a_refused_account_is_named_and_skipped_and_a_failing_one_is_tried_again() {
    let world = World::with_accounts(&["acct_1", "acct_2", "acct_3"]);
    for id in ["acct_1", "acct_2", "acct_3"] {
        world.lists(
            id,
            &format!("evt_{id}"),
            "payment_intent.succeeded",
            NOW - 60,
        );
        world.read_through(Some(&account(id)), NOW - HOUR);
    }
    world
        .stripe
        .refused
        .lock()
        .unwrap()
        .insert("acct_2".to_owned());
    // Two questions about the platform, then the first about one of the accounts.
    world.stripe.plan.then([None, None, Some(Fault::Before)]);
    let summary = world.run(NOW).await;
    assert_eq!(summary.refused, [account("acct_2")]);
    assert_eq!((summary.failed, summary.taken_in), (1, 1));
    assert!(summary.completed);
    assert_eq!(summary.reconciled_through, Some(at(NOW - HOUR)));
    let summary = world.run(NOW + 60).await;
    assert_eq!((summary.failed, summary.taken_in), (0, 1));
    assert_eq!(summary.reconciled_through, Some(at(NOW + 60)));
    assert_eq!(
        world.stored(),
        ["evt_acct_1".to_owned(), "evt_acct_3".to_owned()].into()
    );
}

#[tokio::test]
async fn a_key_that_stripe_refuses_fails_the_run_after_one_call() {
    let world = World::with_accounts(&["acct_1"]);
    world.stripe.refused.lock().unwrap().insert(String::new());
    let clock = FixedClock::at(at(NOW));
    let refused = world
        .task(&clock)
        .run(&ReconcileInput {}, at(NOW + 900))
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "could not list the platform's events: 403"
    );
    assert_eq!(world.asked().len(), 1);
    // How far behind it is, is measured all the same.
    world.read_through(None, NOW - 4 * HOUR);
    drained();
    let task = world.task(&clock);
    let refused = task.run(&ReconcileInput {}, at(NOW + 900)).await;
    refused.unwrap_err();
    assert_eq!(lags(&drained()), [4 * 3_600]);
}

#[tokio::test]
async fn a_key_that_was_never_stored_is_a_result_and_one_that_is_gone_falls_behind() {
    let world = World::with_accounts(&["acct_1"]);
    let clock = FixedClock::at(at(NOW));
    let run = async || {
        drained();
        let without = ReconcileTask {
            stripe: None,
            ..world.task(&clock)
        };
        let summary = without.run(&ReconcileInput {}, at(NOW + 900)).await;
        (summary.unwrap(), drained())
    };
    let nothing = ReconcileSummary {
        task: "reconcile",
        no_key: true,
        completed: true,
        ..ReconcileSummary::default()
    };
    assert_eq!(run().await, (nothing.clone(), String::new()));
    assert!(world.asked().is_empty());
    world.read_through(None, NOW - 4 * HOUR);
    let (summary, metrics) = run().await;
    let behind = ReconcileSummary {
        lagging: 1,
        reconciled_through: Some(at(NOW - 4 * HOUR)),
        ..nothing
    };
    assert_eq!(summary, behind);
    assert_eq!(lags(&metrics), [4 * 3_600]);
}

#[tokio::test]
async fn what_cannot_be_stored_or_sent_holds_the_cursor() {
    for (at_store, fault) in [
        (true, Fault::Before),
        (true, Fault::AnswerLost),
        (false, Fault::Before),
        (false, Fault::AnswerLost),
    ] {
        let world = World::with_accounts(&[]);
        world.read_through(None, NOW - HOUR);
        world.lists("", "evt_1", "payment_intent.succeeded", NOW - 60);
        let plan = if at_store {
            &world.tables.writes
        } else {
            &world.queue.plan
        };
        plan.then([Some(fault)]);
        let summary = world.run(NOW).await;
        assert_eq!((summary.failed, summary.taken_in), (1, 0), "{fault:?}");
        let job = reconcile_cursor_key(None, 0);
        let stands = world.tables.jobs.lock().unwrap()[&job].clone();
        assert_eq!(stands, through(NOW - HOUR, first_set()), "{fault:?}");
        world.run(NOW + 60).await;
        assert_eq!(world.stored().len(), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_pass_that_is_cut_is_continued_behind_the_event_it_came_to() {
    let world = Arc::new(World::with_accounts(&["acct_1"]));
    world.stripe.page.store(2, Ordering::SeqCst);
    world.read_through(None, NOW - HOUR);
    world.read_through(Some(&account("acct_1")), NOW - HOUR);
    for n in 0..10 {
        world.lists("", &format!("evt_{n}"), "payment_intent.succeeded", NOW - n);
    }
    let mut listed = Vec::new();
    for run in 0..4 {
        let clock = Arc::new(FixedClock::at(at(NOW)));
        let mut calls = 0;
        // Each run has time for two pages.
        world.stripe.hook.set({
            let clock = clock.clone();
            move || {
                calls += 1;
                if calls == 2 && run < 2 {
                    clock.set(at(NOW + 890));
                }
            }
        });
        let summary = world
            .task(&clock)
            .run(&ReconcileInput {}, at(NOW + 900))
            .await
            .unwrap();
        listed.push(summary.events);
        if run < 2 {
            assert!(!summary.completed);
            assert_eq!(summary.reconciled_through, Some(at(NOW - HOUR)));
        }
    }
    // The third ends the pass and turns to the account; the fourth reads the last two hours again.
    assert_eq!(listed, [4, 4, 2, 10]);
    assert_eq!(world.stored().len(), 10);
    // The event to go on after is forgotten: the pass begins again.
    let job = reconcile_cursor_key(None, 0);
    let cut = through(NOW - HOUR, first_set())
        .interrupted_at(NOW, "evt_gone".to_owned())
        .of_types(first_set());
    world.tables.jobs.lock().unwrap().insert(job.clone(), cut);
    assert_eq!(world.run(NOW + 60).await.failed, 0);
    assert_eq!(
        world.tables.jobs.lock().unwrap()[&job],
        through(NOW, first_set())
    );
}

#[tokio::test]
async fn a_cursor_set_back_during_a_run_stays_where_it_was_put() {
    let world = Arc::new(World::with_accounts(&[]));
    world.read_through(None, NOW - HOUR);
    let job = reconcile_cursor_key(None, 0);
    let set_back = Checkpoint::completed_through(NOW - 3 * DAY);
    world.stripe.hook.set({
        let (world, job, set_back) = (world.clone(), job.clone(), set_back.clone());
        move || {
            world
                .tables
                .jobs
                .lock()
                .unwrap()
                .insert(job.clone(), set_back.clone());
        }
    });
    world.run(NOW).await;
    assert_eq!(world.tables.jobs.lock().unwrap()[&job], set_back);
}

#[tokio::test]
async fn a_run_cut_among_the_accounts_is_continued_there() {
    let accounts: Vec<String> = (0..60).map(|n| format!("acct_{n:02}")).collect();
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    let world = World::with_accounts(&accounts);
    let clock = Arc::new(FixedClock::at(at(NOW)));
    let mut calls = 0;
    world.stripe.hook.set({
        let clock = clock.clone();
        move || {
            calls += 1;
            // In the second page of 25 tenants.
            if calls == 2 + 2 * 30 {
                clock.set(at(NOW + 890));
            }
        }
    });
    let first = world
        .task(&clock)
        .run(&ReconcileInput {}, at(NOW + 900))
        .await
        .unwrap();
    assert!(!first.completed);
    assert!(
        world.tables.jobs.lock().unwrap()["reconcile"]
            .resume_at
            .is_some()
    );
    world.asked();
    world.stripe.hook.set(|| {});
    let second = world.run(NOW + 900).await;
    assert!(second.completed);
    let asked: BTreeSet<String> = world.asked().into_iter().collect();
    assert_eq!(asked.len(), 1 + 35, "{asked:?}");
    assert!(asked.contains("") && asked.contains("acct_25") && !asked.contains("acct_24"));
    assert_eq!(world.run(NOW + HOUR).await.accounts, 61);
}

#[tokio::test]
async fn a_page_that_stripe_refuses_again_ends_the_pass_instead_of_the_time() {
    let world = World::with_accounts(&["acct_1"]);
    world.stripe.page.store(2, Ordering::SeqCst);
    world.read_through(None, NOW - HOUR);
    for n in 0..4 {
        world.lists("", &format!("evt_{n}"), "payment_intent.succeeded", NOW - n);
    }
    let world = Arc::new(world);
    let mut calls = 0;
    world.stripe.hook.set({
        let world = world.clone();
        move || {
            calls += 1;
            assert!(calls < 20, "asked without end");
            // What the first page ended with is forgotten before the second is asked for.
            let mut events = world.stripe.events.lock().unwrap();
            if let Some(of_platform) = events.get_mut("") {
                for (n, event) in of_platform.iter_mut().enumerate() {
                    event["id"] = json!(format!("evt_{calls}_{n}"));
                }
            }
        }
    });
    let summary = world.run(NOW).await;
    assert_eq!((summary.failed, summary.completed), (1, true));
    assert_eq!(summary.reconciled_through, Some(at(NOW - HOUR)));
}

/// The run lists the platform's events first; this event is created right after that, so only the list that asks for the
/// account by name has it.
#[tokio::test]
async fn the_platforms_own_account_in_a_tenants_row_stores_no_event_as_a_tenants() {
    let world = World::with_accounts(&["acct_platform", "acct_1"]);
    world.lists("", "evt_own", "charge.refunded", NOW + 1);
    for (of, id) in [("acct_platform", "evt_own"), ("acct_1", "evt_theirs")] {
        world.lists(of, id, "charge.refunded", NOW - 60);
    }
    let summary = world.run(NOW).await;
    assert_eq!(summary.refused, [account("acct_platform")]);
    assert_eq!(world.stored(), ["evt_theirs".to_owned()].into());
    // Later it comes as the platform's own.
    world.run(NOW + HOUR).await;
    let events = world.tables.events.lock().unwrap();
    let of = |id: &str| events[&EventId::parse(id).unwrap()].stored.account.clone();
    assert_eq!(of("evt_own"), None);
    assert_eq!(of("evt_theirs"), Some(account("acct_1")));
}

#[tokio::test]
async fn an_account_that_has_nothing_missing_is_not_asked_whose_it_is() {
    let world = World::with_accounts(&["acct_1"]);
    world.lists("acct_1", "evt_1", "charge.refunded", NOW - 60);
    let asked = || {
        let mut calls = world.stripe.calls.lock().unwrap();
        let asked = calls.iter().filter(|(call, ..)| *call == "event").count();
        calls.clear();
        asked
    };
    world.run(NOW).await;
    assert_eq!(asked(), 1);
    world.run(NOW + 60).await;
    assert_eq!(asked(), 0);
}

#[tokio::test]
async fn an_account_that_a_tenant_had_before_is_asked_too_and_noted_for_the_worker() {
    let world = World::with_accounts(&["acct_new"]);
    let had = (
        account("acct_old"),
        TenantId::parse("ten_acct_new").unwrap(),
    );
    let previous = &world.tables.previous_accounts;
    previous.lock().unwrap().insert(had.clone());
    world.lists("acct_old", "evt_late", "charge.refunded", NOW - 60);
    let summary = world.run(NOW).await;
    assert_eq!((summary.accounts, summary.taken_in), (3, 1));
    assert_eq!(*world.tables.account_notes.lock().unwrap(), [had].into());
    let events = world.tables.events.lock().unwrap();
    let late = &events[&EventId::parse("evt_late").unwrap()];
    assert_eq!(late.stored.account, Some(account("acct_old")));
}

/// Case: an account with a long list took the time of every run, and no account behind it was ever asked.
#[tokio::test]
async fn the_accounts_behind_one_with_a_long_list_are_asked_in_every_run() {
    let accounts: Vec<String> = (0..60).map(|n| format!("acct_{n:02}")).collect();
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    let world = Arc::new(World::with_accounts(&accounts));
    world.stripe.page.store(1, Ordering::SeqCst);
    for id in ["", "acct_03"] {
        for n in 0..1_000 {
            let event = format!("evt_{id}_{n}");
            world.lists(id, &event, "payment_intent.succeeded", NOW - n);
        }
    }
    for run in 0..2 {
        let now = NOW + run * HOUR;
        let last = format!("evt_last_{run}");
        world.lists("acct_59", &last, "payment_intent.succeeded", now - 60);
        let clock = Arc::new(FixedClock::at(at(now)));
        let mut calls = 0;
        world.stripe.hook.set({
            let clock = clock.clone();
            move || {
                calls += 1;
                // Each call takes a second.
                clock.set(at(now + calls));
            }
        });
        let task = world.task(&clock);
        let summary = task.run(&ReconcileInput {}, at(now + 900)).await.unwrap();
        assert!(summary.completed, "{summary:?}");
        assert_eq!((summary.accounts, summary.failed), (61, 0));
        assert!(world.stored().contains(&last), "run {run}");
        // What is left of the time goes to the two.
        assert!(calls_of(&world, "acct_03") > 200);
        assert!(calls_of(&world, "") > 200);
        world.asked();
    }
}

fn calls_of(world: &World, account: &str) -> usize {
    let calls = world.stripe.calls.lock().unwrap();
    calls.iter().filter(|(.., of)| of == account).count()
}

#[tokio::test]
async fn the_lag_of_an_account_that_a_run_does_not_come_to_is_measured() {
    let accounts: Vec<String> = (0..60).map(|n| format!("acct_{n:02}")).collect();
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    let world = World::with_accounts(&accounts);
    for id in &accounts {
        world.read_through(Some(&account(id)), NOW - HOUR);
    }
    world.read_through(Some(&account("acct_55")), NOW - 4 * HOUR);
    world.read_through(Some(&account("acct_02")), NOW - 5 * HOUR);
    // Refused, and so nobody expects anything of it.
    let refused = through(NOW - 9 * HOUR, first_set()).refused_at(at(NOW));
    let job = reconcile_cursor_key(Some(&account("acct_56")), 0);
    world.tables.jobs.lock().unwrap().insert(job, refused);
    // It resumes behind the first page, and has no time for the last.
    let clock = Arc::new(FixedClock::at(at(NOW)));
    let resume = Checkpoint::default().interrupted_at(NOW - HOUR, "ten_acct_24".to_owned());
    let job = "reconcile".to_owned();
    world.tables.jobs.lock().unwrap().insert(job, resume);
    let mut calls = 0;
    world.stripe.hook.set({
        let clock = clock.clone();
        move || {
            calls += 1;
            if calls == 30 {
                clock.set(at(NOW + 890));
            }
        }
    });
    drop(drained());
    let summary = world
        .task(&clock)
        .run(&ReconcileInput {}, at(NOW + 900))
        .await
        .unwrap();
    assert_eq!((summary.completed, summary.lagging), (false, 2));
    assert_eq!(summary.reconciled_through, Some(at(NOW - 5 * HOUR)));
    let lags = lags(&drained());
    // All but the refused one, and the platform.
    assert_eq!(lags.len(), 60);
    assert_eq!(lags.iter().filter(|lag| **lag > 3 * 3_600).count(), 2);
}

/// The metrics of this thread.
fn drained() -> String {
    drain_lines(&MetricEnvironment::new("billhook", "test"), at(NOW))
}

fn lags(lines: &str) -> Vec<u64> {
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let values = lines.filter_map(|line| line.get("ReconciledThrough").cloned());
    values
        .flat_map(|value| match value {
            Value::Array(values) => values,
            one => vec![one],
        })
        .map(|value| value.as_u64().unwrap())
        .collect()
}

#[tokio::test]
async fn an_account_that_refuses_us_for_a_day_is_told_once() {
    let world = World::with_accounts(&["acct_1", "acct_2"]);
    let key = account("acct_1");
    world.read_through(Some(&key), NOW - HOUR);
    let refuses = |refuses: bool| {
        let mut refused = world.stripe.refused.lock().unwrap();
        match refuses {
            true => refused.insert("acct_1".to_owned()),
            false => refused.remove("acct_1"),
        }
    };
    let told = async |from: i64, hours: i64| {
        let mut told = Vec::new();
        for hour in 0..hours {
            drop(drained());
            let now = from + hour * HOUR;
            let summary = world.run(now).await;
            assert_eq!((summary.failed, summary.accounts), (0, 3));
            if drained().contains("\"AccountRefused\":1") {
                told.push(hour);
            }
        }
        told
    };
    refuses(true);
    assert_eq!(told(NOW, 60).await, [24]);
    // Its cursor stays where it was.
    let job = reconcile_cursor_key(Some(&key), 0);
    let cursor = world.tables.jobs.lock().unwrap()[&job].clone();
    assert_eq!(cursor.done_through_s, Some(NOW - HOUR));
    // It is connected again: everything is asked for from there, and a second time is told too.
    refuses(false);
    let missed = NOW + 2 * HOUR;
    world.lists("acct_1", "evt_missed", "payment_intent.succeeded", missed);
    assert!(told(NOW + 60 * HOUR, 1).await.is_empty());
    assert!(world.stored().contains("evt_missed"));
    let cursor = world.tables.jobs.lock().unwrap()[&job].clone();
    assert_eq!(cursor.refusal, None);
    refuses(true);
    assert_eq!(told(NOW + 61 * HOUR, 30).await, [24]);
}

/// A release adds a type anywhere in the catalogue: what Stripe lists of it was never asked for.
#[tokio::test]
async fn a_type_that_a_release_adds_is_asked_for_the_past() {
    let world = World::with_accounts(&[]);
    let added = "payment_intent.succeeded";
    for (set, types) in event_type_sets().enumerate() {
        let before: Vec<&str> = types.iter().copied().filter(|it| *it != added).collect();
        let job = reconcile_cursor_key(None, set);
        let cursor = through(NOW - HOUR, &before);
        world.tables.jobs.lock().unwrap().insert(job, cursor);
    }
    world.lists("", "evt_past", added, NOW - 2 * DAY);
    world.lists("", "evt_old", added, NOW - 4 * DAY);
    world.lists("", "evt_known", "payment_intent.processing", NOW - 2 * DAY);
    let summary = world.run(NOW).await;
    // The endpoint was not subscribed to it, so none of it is a gap.
    assert_eq!((summary.taken_in, summary.gaps), (2, 1));
    assert_eq!(
        world.stored(),
        ["evt_past".to_owned(), "evt_known".to_owned()].into()
    );
    assert_eq!(world.run(NOW + HOUR).await.events, 0);
}

/// Stripe answers slowly, each page after 6 s. Every account has its turn in one run all the same.
#[tokio::test]
async fn a_slow_stripe_keeps_no_account_of_a_page_from_its_turn() {
    let accounts: Vec<String> = (0..15).map(|n| format!("acct_{n:02}")).collect();
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    let world = World::with_accounts(&accounts);
    world.stripe.page.store(1, Ordering::SeqCst);
    for id in &accounts {
        for n in 0..20 {
            let event = format!("evt_{id}_{n}");
            world.lists(id, &event, "payment_intent.succeeded", NOW - n);
        }
    }
    let clock = Arc::new(FixedClock::at(at(NOW)));
    let mut calls = 0;
    world.stripe.hook.set({
        let clock = clock.clone();
        move || {
            calls += 1;
            clock.set(at(NOW + calls * 6));
        }
    });
    let task = world.task(&clock);
    let summary = task.run(&ReconcileInput {}, at(NOW + 900)).await.unwrap();
    assert!(summary.completed, "{summary:?}");
    assert_eq!((summary.accounts, summary.failed), (16, 0));
}
