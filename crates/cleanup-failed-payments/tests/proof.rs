//! Runs of the nightly proof over tables in memory.
#![cfg(test)]

use billhook_core::provider::interpret::InterpretRules;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use billhook_adapters::metrics::{MetricEnvironment, drain_lines};
use billhook_adapters::telemetry::build_subscriber;
use billhook_core::entity::EntityKey;
use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::entity::payment::facts::MoneyFacts;
use billhook_core::ids::{CorrelationId, PerProvider, ProviderId};
use billhook_core::intake::ports::RecordEvent as _;
use billhook_core::proof::prover::StateProver;
use billhook_core::tasks::checkpoint::Checkpoint;
use billhook_core::tasks::definitions::ProofInput;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{ReceivedMessage, Worker};
use billhook_testkit::events::{charge_refunded, intent_succeeded, new_event};
use billhook_testkit::memory::{self, Fault, FixedClock, MemoryTables};
use cleanup_failed_payments::tasks::proof::{ProofSummary, ProofTask};
use cleanup_failed_payments::{ScheduledTask as _, TaskFailed};
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;

const T: i64 = 1_781_000_000;
const DAY: i64 = 24 * 60 * 60;
/// The order and its payment.
const STATES_PER_ORDER: usize = 2;

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_s(T + second).unwrap()
}

/// Takes events in and has the worker process them.
async fn deliver(tables: &MemoryTables, events: &[Value]) {
    let mut messages = Vec::new();
    for event in events {
        let raw_body = event.to_string().into_bytes();
        let correlation_id = CorrelationId::parse("01930000-0000-7000-8000-000000000001").unwrap();
        let new = new_event(ProviderId::Stripe, &raw_body, correlation_id, at(0));
        let tables = &tables;
        tables.record(&new).await.unwrap();
        messages.push(ReceivedMessage {
            message_id: new.envelope.id.to_string(),
            body: json!({ "event_id": new.envelope.id }).to_string(),
            receive_count: 1,
            is_last_receive: false,
        });
    }
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: tables,
        clock: FixedClock::at(at(0)),
    };
    for batch in messages.chunks(10) {
        let deadline = at(0).after(Duration::from_secs(10));
        let done = worker.process_batch(batch, deadline, std::future::pending());
        let reports = done.await.messages;
        assert!(reports.iter().all(|report| report.result.is_ok()));
    }
}

/// Orders that are paid: `ord_000` by `pi_000`, and so on.
async fn paid_orders(count: usize) -> Arc<MemoryTables> {
    let tables = Arc::new(MemoryTables::default());
    let mut events = Vec::new();
    for number in 0..count {
        let key = EntityKey::parse(&format!("order#ord_{number:03}")).unwrap();
        let row = memory::entity(&key);
        tables.entities.lock().unwrap().insert(key, row);
        events.push(intent_succeeded(
            &format!("evt_{number:03}"),
            T,
            &format!("pi_{number:03}"),
            json!({ "order_id": format!("ord_{number:03}") }),
            4200,
        ));
    }
    deliver(&tables, &events).await;
    tables
}

fn task<'a>(
    tables: &'a MemoryTables,
    clock: &'a FixedClock,
    sample_percent: u32,
) -> ProofTask<&'a MemoryTables, &'a MemoryTables, &'a FixedClock> {
    ProofTask {
        prover: StateProver {
            states: tables,
            events: PerProvider::new(|_| tables),
            rules: InterpretRules::default(),
        },
        jobs: tables,
        clock,
        sample_percent,
    }
}

async fn run_at(
    tables: &MemoryTables,
    percent: u32,
    second: i64,
) -> Result<ProofSummary, TaskFailed> {
    let clock = FixedClock::at(at(second));
    let task = task(tables, &clock, percent);
    task.run(&ProofInput {}, at(second + 900)).await
}

async fn run(tables: &MemoryTables, percent: u32, second: i64) -> ProofSummary {
    run_at(tables, percent, second).await.unwrap()
}

fn payment_key(number: usize) -> PaymentKey {
    PaymentKey::parse(&format!("payment#platform#pi_{number:03}")).unwrap()
}

fn lose_facts(tables: &MemoryTables, number: usize) {
    let mut payments = tables.payments.lock().unwrap();
    let payment = payments.get_mut(&payment_key(number)).unwrap();
    payment.facts.money = MoneyFacts::default();
}

fn calls(tables: &MemoryTables, call: &str) -> usize {
    let calls = tables.calls.lock().unwrap();
    calls.get(call).copied().unwrap_or_default()
}

fn checkpoint(tables: &MemoryTables) -> Checkpoint {
    let jobs = tables.jobs.lock().unwrap();
    jobs.get("proof").cloned().unwrap_or_default()
}

#[tokio::test]
async fn what_is_as_its_events_say_is_counted_and_changes_nothing() {
    let tables = paid_orders(3).await;
    {
        let mut entities = tables.entities.lock().unwrap();
        let edited = entities.get_mut(&EntityKey::parse("order#ord_000").unwrap());
        memory::order_mut(edited.unwrap()).columns.status = Some("draft".to_owned());
        let mut events = tables.events.lock().unwrap();
        events.retain(|id, _| id.as_str() != "evt_001");
    }
    let commits = calls(&tables, "commit");
    let summary = run(&tables, 100, 0).await;
    assert_eq!(
        summary,
        ProofSummary {
            task: "proof",
            sample_percent: 100,
            proven: 3 * STATES_PER_ORDER,
            equal: 3 * STATES_PER_ORDER - 2,
            edited: 1,
            unprovable: 1,
            completed: true,
            ..ProofSummary::default()
        }
    );
    assert_eq!(calls(&tables, "commit"), commits);
    assert_eq!(checkpoint(&tables), Checkpoint::completed_through(T));
}

#[tokio::test]
async fn a_damaged_state_is_counted_named_and_logged_with_its_command() {
    let tables = paid_orders(2).await;
    lose_facts(&tables, 1);
    let environment = MetricEnvironment::new("billhook", "test");
    let logged: Arc<Mutex<Vec<u8>>> = Arc::default();
    let written = Arc::clone(&logged);
    let write = move |line: &[u8]| written.lock().unwrap().extend_from_slice(line);
    let clock = FixedClock::at(at(0));
    let lines = build_subscriber("f", environment.clone(), LevelFilter::INFO, clock, write);
    drain_lines(&environment, at(0));
    let guard = tracing::subscriber::set_default(lines);
    let summary = run(&tables, 100, 0).await;
    drop(guard);
    let named = ["order#ord_001", "payment#platform#pi_001"];
    assert_eq!(summary.different_states, named);
    assert_eq!((summary.different, summary.equal), (2, 2));
    let logged = String::from_utf8(logged.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = logged
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let texts: Vec<&str> = lines
        .iter()
        .map(|line| line["message"].as_str().unwrap())
        .collect();
    let payment = "state_different payment#platform#pi_001: events facts.money.payments;";
    assert!(texts[1].starts_with(payment), "{texts:#?}");
    assert!(texts[1].ends_with("billhook prove payment#platform#pi_001"));
    assert_eq!(lines[1]["entity"], named[1]);
    assert_eq!(lines[1]["level"], "ERROR");
    let last =
        "proved 4 states: 2 equal, 0 edited, 0 unprovable, 2 different; 0 could not be loaded";
    assert_eq!((texts.len(), texts[2]), (3, last));
    let counted: Value = serde_json::from_str(&drain_lines(&environment, at(0))).unwrap();
    for (metric, value) in [("ProvenEntities", 4), ("ProofDifferences", 2)] {
        assert_eq!(counted[metric], value, "{metric}");
    }
}

#[tokio::test]
async fn with_no_sample_nothing_is_read_and_written() {
    let tables = paid_orders(1).await;
    lose_facts(&tables, 0);
    let before = tables.calls.lock().unwrap().clone();
    let summary = run(&tables, 0, 0).await;
    assert_eq!(
        summary,
        ProofSummary {
            task: "proof",
            completed: true,
            ..ProofSummary::default()
        }
    );
    assert_eq!(*tables.calls.lock().unwrap(), before);
    assert_eq!(checkpoint(&tables), Checkpoint::default());
}

#[tokio::test]
async fn each_night_has_another_sample_until_every_state_was_in_one() {
    let tables = paid_orders(40).await;
    let mut proven = Vec::new();
    for night in 0..5 {
        let summary = run(&tables, 20, night * DAY).await;
        assert!(summary.completed && summary.missed_nights == 0);
        proven.push(summary.proven);
    }
    assert_eq!(proven.iter().sum::<usize>(), 40 * STATES_PER_ORDER);
    assert!(proven.iter().all(|of_night| *of_night > 5), "{proven:?}");
    // On the same day the same sample comes again.
    let again = run(&tables, 20, 4 * DAY + 60).await;
    assert_eq!(again.proven, proven[4]);
    let later = run(&tables, 20, 7 * DAY).await;
    assert_eq!((later.missed_nights, later.completed), (2, true));
}

/// A run in which time is up after this many calls.
async fn run_for(
    tables: &Arc<MemoryTables>,
    percent: u32,
    second: i64,
    calls: u32,
) -> ProofSummary {
    let clock = Arc::new(FixedClock::at(at(second)));
    let mut seen = 0;
    tables.hook.set({
        let clock = clock.clone();
        move || {
            seen += 1;
            if seen > calls {
                clock.set(at(second + 890));
            }
        }
    });
    let task = task(tables, &clock, percent);
    let summary = task.run(&ProofInput {}, at(second + 900)).await.unwrap();
    tables.hook.set(|| {});
    summary
}

#[tokio::test]
async fn a_night_that_is_cut_is_finished_before_the_next_one_begins() {
    let tables = paid_orders(60).await;
    // The first page is proven, and the second is not.
    let cut = run_for(&tables, 100, 0, 9).await;
    assert!(!cut.completed);
    assert!((1..120).contains(&cut.proven), "{}", cut.proven);
    let resume_at = checkpoint(&tables).resume_at.unwrap();
    assert_eq!(resume_at.until_s, T);
    assert!(resume_at.after.starts_with("0/1#"), "{}", resume_at.after);
    // On the same day only the rest is left.
    let rest = run(&tables, 100, 3600).await;
    let all = 60 * STATES_PER_ORDER;
    assert!(rest.completed && rest.proven < all, "{}", rest.proven);
    assert!(cut.proven + rest.proven >= all);
    assert_eq!(checkpoint(&tables), Checkpoint::completed_through(T));

    let cut = run_for(&tables, 100, DAY, 9).await;
    assert!(!cut.completed);
    // The next night does the rest, and then its own.
    let both = run(&tables, 100, 2 * DAY).await;
    assert_eq!((both.proven, both.completed), (rest.proven + all, true));
    let done = Checkpoint::completed_through(T + 2 * DAY);
    assert_eq!(checkpoint(&tables), done);
}

#[tokio::test]
async fn what_could_not_be_read_is_proven_by_the_next_run() {
    let tables = paid_orders(60).await;
    // The checkpoint, a page, and the states of its first half.
    let reads_of_rows = [None, None, Some(Fault::Before)];
    tables.reads.then(reads_of_rows);
    let failed = run_at(&tables, 100, 0).await.unwrap_err().to_string();
    assert_eq!(failed, "could not prove states: rows: planned failure");
    let resume_at = checkpoint(&tables).resume_at.unwrap();
    assert_eq!((resume_at.until_s, resume_at.after.as_str()), (T, "0/1"));
    let summary = run(&tables, 100, 60).await;
    assert_eq!(summary.equal, 60 * STATES_PER_ORDER);
}

#[tokio::test]
async fn a_state_that_cannot_be_loaded_fails_alone() {
    let tables = paid_orders(4).await;
    let refused = StateKey::Payment(payment_key(1));
    tables.refused.lock().unwrap().insert(refused);
    // The proof of its order rests on it.
    let summary = run(&tables, 100, 0).await;
    assert_eq!((summary.equal, summary.failed), (6, 2));
    assert_eq!((summary.proven, summary.completed), (6, true));
    // If none can be loaded, it is not the states' fault.
    let all: BTreeSet<StateKey> = {
        let (entities, payments) = (
            tables.entities.lock().unwrap(),
            tables.payments.lock().unwrap(),
        );
        let entities = entities.keys().cloned().map(StateKey::Entity);
        entities
            .chain(payments.keys().cloned().map(StateKey::Payment))
            .collect()
    };
    *tables.refused.lock().unwrap() = all;
    let failed = run_at(&tables, 100, DAY).await.unwrap_err().to_string();
    assert!(
        failed.starts_with("could not prove states: read "),
        "{failed}"
    );
}

#[tokio::test]
async fn a_state_that_a_worker_writes_while_it_is_proven_is_not_different() {
    // So many that the orders are read first, and then the payments on which their proofs rest.
    let later = paid_orders(50).await;
    let refund = charge_refunded("evt_r", T + 5, "ch_pi_000", Some("pi_000"), 1000);
    deliver(&later, &[refund]).await;
    // From some call on everything is as the refund leaves it: after the checkpoint, a page, and the first rows.
    for call in 3..9 {
        let tables = paid_orders(50).await;
        let mut seen = 0;
        tables.hook.set({
            let (tables, later) = (tables.clone(), later.clone());
            move || {
                seen += 1;
                if seen == call {
                    *tables.entities.lock().unwrap() = later.entities.lock().unwrap().clone();
                    *tables.payments.lock().unwrap() = later.payments.lock().unwrap().clone();
                    *tables.events.lock().unwrap() = later.events.lock().unwrap().clone();
                }
            }
        });
        let summary = run(&tables, 100, 0).await;
        assert_eq!((summary.equal, summary.completed), (100, true), "{call}");
    }
}
