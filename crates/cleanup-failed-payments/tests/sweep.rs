//! Runs of the sweep over tables and queues in memory.
#![cfg(test)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use billhook_adapters::metrics::{MetricEnvironment, drain_lines};
use billhook_core::entity::key::PaymentKey;
use billhook_core::entity::payment::state::{OpenEntry, PaymentState};
use billhook_core::entity::projection::RowStanding;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::error::DependencyError;
use billhook_core::ids::{CorrelationId, EventId, PerProvider, ProviderId};
use billhook_core::intake::ports::{RecordEvent as _, SendMessage};
use billhook_core::outcome::EventOutcome;
use billhook_core::retry::Disposition;
use billhook_core::tasks::checkpoint::Checkpoint;
use billhook_core::tasks::definitions::SweepInput;
use billhook_core::tasks::ports::{CheckpointSaveResult, CheckpointStore};
use billhook_core::time::Timestamp;
use billhook_testkit::events::{intent_succeeded, letter, linked_facts, new_event};
use billhook_testkit::memory::{self, EventRow, Fault, FixedClock, MemoryQueue, MemoryTables};
use cleanup_failed_payments::ScheduledTask as _;
use cleanup_failed_payments::tasks::sweep::{SweepSummary, SweepTask};
use serde_json::{Value, json};

const T: i64 = 1_781_000_000;
const MINUTE: i64 = 60;
const DAY: i64 = 24 * 60 * MINUTE;

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_s(T + second).unwrap()
}

#[derive(Default)]
struct World {
    tables: PerProvider<MemoryTables>,
    queue: MemoryQueue,
}

impl World {
    /// Takes an event in at `second`, as ingress does, and parks it for a reason.
    async fn open(&self, provider: ProviderId, body: Value, second: i64, reason: Option<&str>) {
        let raw_body = body.to_string().into_bytes();
        let correlation_id = CorrelationId::parse("01930000-0000-7000-8000-000000000001").unwrap();
        let new = new_event(provider, &raw_body, correlation_id, at(second));
        let tables = self.tables.of(provider);
        (&tables).record(&new).await.unwrap();
        if reason.is_some() {
            let mut events = tables.events.lock().unwrap();
            let row = events.get_mut(&new.envelope.id).unwrap();
            row.stored.outcome = EventOutcome::Parked;
            row.open = Some(EventOutcome::Parked);
            row.error = reason.map(str::to_owned);
        }
    }

    async fn paid(&self, id: &str, second: i64, reason: Option<&str>) {
        let event = intent_succeeded(id, T, "pi_1", json!({ "order_id": "ord_1" }), 4200);
        self.open(ProviderId::Stripe, event, second, reason).await;
    }

    fn stripe(&self) -> &MemoryTables {
        self.tables.of(ProviderId::Stripe)
    }

    fn sweep<'a>(
        &'a self,
        clock: &'a FixedClock,
    ) -> SweepTask<&'a MemoryTables, &'a MemoryQueue, &'a MemoryTables, &'a FixedClock> {
        SweepTask {
            ledgers: PerProvider::new(|provider| self.tables.of(provider)),
            queue: &self.queue,
            jobs: self.stripe(),
            clock,
        }
    }

    async fn run(&self, second: i64) -> SweepSummary {
        let clock = FixedClock::at(at(second));
        self.sweep(&clock)
            .run(&SweepInput {}, at(second + 900))
            .await
            .unwrap()
    }

    /// Ids of the messages since the last look.
    fn sent(&self) -> BTreeSet<String> {
        let mut sent = self.queue.sent.lock().unwrap();
        let ids = sent.drain(..).map(|(_, _, _, body)| {
            let body: Value = serde_json::from_str(&body).unwrap();
            body["event_id"].as_str().unwrap().to_owned()
        });
        ids.collect()
    }
}

fn ids(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[tokio::test]
async fn a_lost_message_is_sent_again_as_another_one_in_its_group() {
    let world = World::default();
    world.paid("evt_1", 0, None).await;
    world.paid("evt_young", 5 * MINUTE, None).await;
    let summary = world.run(11 * MINUTE).await;
    assert_eq!(
        summary,
        SweepSummary {
            task: "sweep",
            looked_at: 1,
            sent: 1,
            completed: true,
            ..SweepSummary::default()
        }
    );
    let stored = world.stripe().events.lock().unwrap()[&EventId::parse("evt_1").unwrap()]
        .stored
        .clone();
    let sent = world.queue.sent.lock().unwrap().clone();
    let (provider, group, deduplication_id, body) = &sent[0];
    assert_eq!((*provider, group), (ProviderId::Stripe, &stored.group));
    assert!(
        deduplication_id.starts_with("evt_1.r."),
        "{deduplication_id}"
    );
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (&body["source"], &body["event_id"]),
        (&json!("sweep"), &json!("evt_1"))
    );
    assert_eq!(
        stored.outcome,
        EventOutcome::Pending,
        "only its worker says what it is"
    );
}

#[tokio::test]
async fn a_row_that_was_overwritten_after_its_last_write_is_restored_and_then_left_alone() {
    let ages = [11 * MINUTE, DAY + MINUTE];
    for (age, has_event) in ages.into_iter().flat_map(|age| [(age, true), (age, false)]) {
        let world = World::default();
        if has_event {
            world.paid("evt_1", 0, None).await;
        }
        let key = EntityKey::parse("order#ord_1").unwrap();
        let event = intent_succeeded("evt_1", T, "pi_1", json!({}), 4200);
        let mut paid = memory::entity(&key).apply_facts(linked_facts([&event]), at(1));
        if has_event {
            paid.note_arrival();
        }
        let mut stale = paid.with_row_written();
        let order = memory::order_mut(&mut stale);
        order.row.version = None;
        order.columns.status = Some("pending".to_owned());
        order.columns.requires_review = None;
        {
            let tables = world.stripe();
            tables.entities.lock().unwrap().insert(key.clone(), stale);
            for row in tables.events.lock().unwrap().values_mut() {
                row.stored.processed = true;
                row.stored.outcome = EventOutcome::Processed;
                row.entities.insert(key.clone().into());
            }
        }
        let done = Checkpoint::completed_through(T + age - 600);
        let jobs = &world.stripe().jobs;
        for job in ["sweep", "sweep-rows"] {
            jobs.lock().unwrap().insert(job.to_owned(), done.clone());
        }
        let swept = world.run(age).await;
        let figures = (swept.restored, swept.sent, swept.completed);
        assert_eq!(figures, (1, 0, true), "{age} {has_event}");
        let row = world.stripe().entities.lock().unwrap()[&key].clone();
        assert_eq!(row.standing(), RowStanding::Current);
        assert_eq!(row.columns().status.as_deref(), Some("completed"));
        jobs.lock().unwrap().clear();
        assert_eq!(world.run(age + MINUTE).await.restored, 0);
    }
}

/// An order that was paid, as billhook wrote it last.
fn paid_order(key: &EntityKey) -> Entity {
    let event = intent_succeeded("evt_1", T, "pi_1", json!({}), 4200);
    let mut paid = memory::entity(key).apply_facts(linked_facts([&event]), at(1));
    paid.note_arrival();
    paid.with_row_written()
}

#[tokio::test]
async fn rows_that_cannot_be_read_keep_no_event_waiting_and_are_come_to_later() {
    let world = World::default();
    let key = EntityKey::parse("order#ord_1").unwrap();
    let mut stale = paid_order(&key);
    let order = memory::order_mut(&mut stale);
    order.row.version = None;
    order.columns.status = Some("pending".to_owned());
    order.history.recent = Some(at(0));
    let tables = world.stripe();
    tables.entities.lock().unwrap().insert(key.clone(), stale);
    world.paid("evt_lost", 0, None).await;
    tables.rows_fail.store(true, Ordering::SeqCst);
    let clock = FixedClock::at(at(11 * MINUTE));
    let ran = world.sweep(&clock).run(&SweepInput {}, at(DAY)).await;
    assert_eq!(
        ran.unwrap_err().to_string(),
        "could not restore rows: rows: planned failure"
    );
    assert_eq!(world.sent(), ids(&["evt_lost"]));
    tables.rows_fail.store(false, Ordering::SeqCst);
    assert_eq!(world.run(12 * MINUTE).await.restored, 1);
}

#[tokio::test]
async fn a_row_that_is_deleted_after_its_last_event_is_found_and_one_that_comes_back_too() {
    let world = World::default();
    let key = EntityKey::parse("order#ord_1").unwrap();
    let paid = paid_order(&key);
    let mut deleted = paid.clone();
    {
        let order = memory::order_mut(&mut deleted);
        order.row.is_missing = true;
        order.history.recent = Some(at(0));
    }
    let entities = &world.stripe().entities;
    entities.lock().unwrap().insert(key.clone(), deleted);
    world.run(11 * MINUTE).await;
    let found = || entities.lock().unwrap()[&key].clone();
    assert_eq!(found().trouble_since(), Some(at(11 * MINUTE)));
    // The row comes back, as it was.
    {
        let mut entities = entities.lock().unwrap();
        let order = memory::order_mut(entities.get_mut(&key).unwrap());
        order.row.is_missing = false;
    }
    world.run(21 * MINUTE).await;
    assert_eq!(found().trouble_since(), None);
    // Somebody uses the column for something else.
    {
        let mut entities = entities.lock().unwrap();
        let order = memory::order_mut(entities.get_mut(&key).unwrap());
        order.row.foreign = ["status"].into();
        order.columns.status = Some("shipped".to_owned());
    }
    world.run(32 * MINUTE).await;
    assert_eq!(found().trouble_since(), Some(at(32 * MINUTE)));
}

#[tokio::test]
async fn each_age_is_acted_upon_once_however_the_runs_fall() {
    let world = World::default();
    world.paid("evt_1", 0, Some("order_unknown")).await;
    let mut sent_at = Vec::new();
    // Every ten minutes for a day, then not for a week, then twice in a minute.
    let runs = (1..=144).map(|run| run * 10 * MINUTE);
    for second in runs.chain([8 * DAY, 8 * DAY + 1, 20 * DAY]) {
        world.run(second).await;
        if !world.sent().is_empty() {
            sent_at.push(second / MINUTE);
        }
    }
    assert_eq!(
        sent_at,
        [10, 20, 40, 80, 160, 320, 640, 1_280, 11_520, 28_800]
    );
}

#[tokio::test]
async fn what_can_come_right_is_sent_and_what_a_person_has_to_mend_is_left() {
    let world = World::default();
    for (id, reason) in [
        ("evt_order", "order_unknown"),
        ("evt_statement", "statement_unknown"),
        ("evt_tenant", "tenant_unknown"),
        ("evt_cross", "cross_tenant"),
        ("evt_tampered", "tampered"),
    ] {
        world.paid(id, 0, Some(reason)).await;
    }
    let delivered = letter(
        "evt_letter",
        "2026-06-09T10:13:20.000Z",
        "ltr_1",
        "delivered",
    );
    world
        .open(ProviderId::Lob, delivered, 0, Some("letter_unknown"))
        .await;
    let summary = world.run(10 * MINUTE).await;
    assert_eq!((summary.looked_at, summary.sent), (4, 4));
    assert_eq!(
        world.sent(),
        ids(&["evt_order", "evt_statement", "evt_tenant", "evt_letter"])
    );
    // After a day they alarm, once; after 30 days those that name what is not there are given up.
    assert_eq!(world.run(DAY - 1).await.overdue, 0);
    assert_eq!(world.run(DAY).await.overdue, 4);
    assert_eq!(world.run(DAY + 1).await.overdue, 0);
    let summary = world.run(30 * DAY).await;
    assert_eq!(summary.ignored, 3);
    for (id, provider, outcome, error) in [
        (
            "evt_order",
            ProviderId::Stripe,
            EventOutcome::Ignored,
            "never_found",
        ),
        (
            "evt_letter",
            ProviderId::Lob,
            EventOutcome::Ignored,
            "never_found",
        ),
        (
            "evt_tenant",
            ProviderId::Stripe,
            EventOutcome::Parked,
            "tenant_unknown",
        ),
        (
            "evt_cross",
            ProviderId::Stripe,
            EventOutcome::Parked,
            "cross_tenant",
        ),
    ] {
        let events = world.tables.of(provider).events.lock().unwrap();
        let row = &events[&EventId::parse(id).unwrap()];
        assert_eq!(
            (row.stored.outcome, row.error.as_deref()),
            (outcome, Some(error)),
            "{id}"
        );
    }
}

fn open_payment(key: &str, index_key: &str, due: i64) -> PaymentState {
    PaymentState {
        open: Some(OpenEntry {
            index_key: index_key.to_owned(),
            due: at(due),
        }),
        ..PaymentState::new(PaymentKey::parse(key).unwrap())
    }
}

#[tokio::test]
async fn open_payments_are_sent_to_the_worker_when_they_are_due() {
    let world = World::default();
    for (key, index_key, due) in [
        ("payment#acct_1#pi_1", "unlinked#0", 10 * MINUTE),
        ("payment#platform#pi_2", "outdated#3", 20 * MINUTE),
        ("payment#platform#pi_3", "deadline#2", 20 * MINUTE),
    ] {
        let payment = open_payment(key, index_key, due);
        let mut payments = world.stripe().payments.lock().unwrap();
        payments.insert(payment.key.clone(), payment);
    }
    let mut sent = Vec::new();
    for minute in [9, 10, 20] {
        let summary = world.run(minute * MINUTE).await;
        let messages: Vec<_> = world.queue.sent.lock().unwrap().drain(..).collect();
        assert_eq!(summary.payments, messages.len());
        for (provider, group, _, body) in messages {
            assert_eq!((provider, group.len()), (ProviderId::Stripe, 64));
            sent.push((minute, body));
        }
    }
    let message = |key: &str| format!(r#"{{"source":"recheck","payment":"{key}"}}"#);
    let first = message("payment#acct_1#pi_1");
    let second = message("payment#platform#pi_2");
    let third = message("payment#platform#pi_3");
    // No worker moves them on here, so the first is sent again.
    let expected = [(10, first.clone()), (20, second), (20, first), (20, third)];
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn a_queue_that_does_not_take_a_payment_fails_the_run_and_the_next_sends_it() {
    let world = World::default();
    let payment = open_payment("payment#platform#pi_1", "unlinked#1", 0);
    {
        let mut payments = world.stripe().payments.lock().unwrap();
        payments.insert(payment.key.clone(), payment);
    }
    world.queue.plan.then([Some(Fault::Before)]);
    let clock = FixedClock::at(at(MINUTE));
    let failed = world.sweep(&clock).run(&SweepInput {}, at(900)).await;
    assert!(failed.is_err());
    assert_eq!(world.run(2 * MINUTE).await.payments, 1);
}

#[tokio::test]
async fn events_pending_for_more_than_an_hour_are_counted_by_every_run() {
    let world = World::default();
    world.paid("evt_1", 0, None).await;
    world.paid("evt_2", 0, Some("order_unknown")).await;
    let lob = letter("evt_3", "2026-06-09T10:13:20.000Z", "ltr_1", "mailed");
    world.open(ProviderId::Lob, lob, 0, None).await;
    let mut stuck = Vec::new();
    for minute in [59, 61, 62] {
        stuck.push(world.run(minute * MINUTE).await.stuck);
    }
    assert_eq!(stuck, [0, 2, 2]);
}

#[tokio::test]
async fn a_run_that_is_cut_is_continued_and_nothing_is_looked_at_twice_or_missed() {
    let world = World::default();
    let all: Vec<String> = (0..350).map(|n| format!("evt_{n:03}")).collect();
    for (n, id) in (0..).zip(&all) {
        world
            .paid(id, n, (n % 2 == 0).then_some("order_unknown"))
            .await;
    }
    let (mut seen, mut messages) = (BTreeSet::new(), Vec::new());
    // Each run has time for two pages, the last for all.
    for run in 0..6 {
        let begun = DAY + run * 60;
        let clock = Arc::new(FixedClock::at(at(begun)));
        let mut calls = 0;
        world.stripe().hook.set({
            let clock = clock.clone();
            move || {
                calls += 1;
                if calls > 6 && run < 5 {
                    clock.set(at(begun + 890));
                }
            }
        });
        let summary = world
            .sweep(&clock)
            .run(&SweepInput {}, at(begun + 900))
            .await
            .unwrap();
        messages.push(summary.sent);
        seen.extend(world.sent());
        assert_eq!(summary.completed, run == 5);
        let progress = world.stripe().jobs.lock().unwrap()["sweep"].clone();
        assert_eq!(progress.resume_at.is_none(), run == 5);
    }
    assert!(messages[0] < 350, "it was never cut");
    assert_eq!(messages.iter().sum::<usize>(), 350, "{messages:?}");
    assert_eq!(seen, all.into_iter().collect());
}

#[tokio::test]
async fn what_could_not_be_sent_is_sent_by_the_next_run() {
    let world = World::default();
    world.paid("evt_1", 0, None).await;
    world.queue.plan.then([Some(Fault::Before)]);
    let clock = FixedClock::at(at(10 * MINUTE));
    let refused = world
        .sweep(&clock)
        .run(&SweepInput {}, at(900 + 10 * MINUTE))
        .await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("find forgotten events")
    );
    // At 15 minutes no age is passed, but the one that failed still stands.
    assert_eq!(world.run(15 * MINUTE).await.sent, 1);
    assert_eq!(world.run(16 * MINUTE).await.sent, 0);
}

/// A queue that never takes one group.
struct Picky<'a>(&'a MemoryQueue, &'static str);

impl SendMessage for Picky<'_> {
    async fn send(
        &self,
        provider: ProviderId,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), DependencyError> {
        if group != self.1 {
            return self.0.send(provider, group, deduplication_id, body).await;
        }
        Err(DependencyError {
            doing: "send".to_owned(),
            disposition: Disposition::Permanent,
            cause: "InvalidParameterValue".into(),
        })
    }
}

#[tokio::test]
async fn a_message_that_no_queue_takes_holds_up_no_other() {
    let world = World::default();
    for id in ["evt_1", "evt_2"] {
        world.paid(id, 0, None).await;
    }
    let spoilt = EventId::parse("evt_1").unwrap();
    let bad = "a group with spaces";
    let set = |row: &mut EventRow| row.stored.group = bad.to_owned();
    world
        .stripe()
        .events
        .lock()
        .unwrap()
        .entry(spoilt)
        .and_modify(set);
    let clock = FixedClock::at(at(10 * MINUTE));
    let sweep = SweepTask {
        ledgers: PerProvider::new(|provider| world.tables.of(provider)),
        queue: Picky(&world.queue, bad),
        jobs: world.stripe(),
        clock: &clock,
    };
    let summary = sweep
        .run(&SweepInput {}, at(900 + 10 * MINUTE))
        .await
        .unwrap();
    assert_eq!((summary.sent, summary.refused), (1, 1));
    assert!(summary.completed);
    assert_eq!(world.sent(), ids(&["evt_2"]));
}

#[tokio::test]
async fn a_run_that_another_one_overtook_keeps_nothing() {
    let world = World::default();
    world.paid("evt_1", 0, None).await;
    let tables = world.stripe();
    let overtaken = Checkpoint::completed_through(T + 11 * MINUTE);
    // Between this run's reading and its keeping.
    let faster: fn(&MemoryTables, &Checkpoint) = |tables, done| {
        tables
            .jobs
            .lock()
            .unwrap()
            .insert("sweep".to_owned(), done.clone());
    };
    let clock = FixedClock::at(at(10 * MINUTE));
    let jobs = MemoryTables::default();
    let jobs = Arc::new(jobs);
    jobs.hook.set({
        let (jobs, overtaken) = (jobs.clone(), overtaken.clone());
        let mut calls = 0;
        move || {
            calls += 1;
            if calls == 2 {
                faster(&jobs, &overtaken);
            }
        }
    });
    let sweep = SweepTask {
        ledgers: PerProvider::new(|provider| match provider {
            ProviderId::Stripe => tables,
            other => world.tables.of(other),
        }),
        queue: &world.queue,
        jobs: &*jobs,
        clock: &clock,
    };
    sweep
        .run(&SweepInput {}, at(900 + 10 * MINUTE))
        .await
        .unwrap();
    assert_eq!(jobs.jobs.lock().unwrap()["sweep"], overtaken);
}

/// `QuietHours` of this thread, by provider.
fn quiet_hours() -> Vec<(String, u64)> {
    let lines = drain_lines(&MetricEnvironment::new("billhook", "test"), at(0));
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let quiet = lines.filter_map(|line: Value| {
        let hours = line["QuietHours"].as_u64()?;
        Some((line["Provider"].as_str()?.to_owned(), hours))
    });
    quiet.collect()
}

#[tokio::test]
async fn quiet_hours_count_from_the_last_delivery_and_not_before_the_first() {
    const HOUR: i64 = 60 * MINUTE;
    let world = World::default();
    let quiet = async |second: i64| {
        quiet_hours();
        world.run(second).await;
        quiet_hours()
    };
    let of = |provider: &str, hours| (provider.to_owned(), hours);
    assert_eq!(quiet(0).await, []);
    // What `billhook doctor` sends is no delivery of the provider.
    let test = json!({ "id": "evt_test", "object": "event", "type": "billhook.doctor", "created": T,
        "data": { "object": {} } });
    world.open(ProviderId::Stripe, test, HOUR, None).await;
    assert_eq!(quiet(2 * HOUR).await, []);

    world.paid("evt_1", 3 * HOUR, None).await;
    assert_eq!(quiet(3 * HOUR + 9 * MINUTE).await, [], "not looked at yet");
    assert_eq!(quiet(3 * HOUR + 10 * MINUTE).await, [of("stripe", 0)]);
    assert_eq!(quiet(27 * HOUR - 1).await, [of("stripe", 23)]);
    let mailed = letter("evt_2", "2026-06-09T10:13:20.000Z", "ltr_1", "mailed");
    world.open(ProviderId::Lob, mailed, 27 * HOUR, None).await;
    let both = [of("stripe", 26), of("lob", 2)];
    assert_eq!(quiet(29 * HOUR).await, both);
    // One that is come to a second time, a day later, is not the last.
    world.paid("evt_3", 30 * HOUR, None).await;
    quiet(31 * HOUR).await;
    let both = [of("stripe", 22), of("lob", 25)];
    assert_eq!(quiet(52 * HOUR).await, both);
}

/// Jobs that cannot save the last deliveries.
struct FailingDeliveryNotes<'a>(&'a MemoryTables);

impl CheckpointStore for FailingDeliveryNotes<'_> {
    async fn load_checkpoint(&self, job: &str) -> Result<Checkpoint, DependencyError> {
        self.0.load_checkpoint(job).await
    }

    async fn save_checkpoint(
        &self,
        job: &str,
        read: &Checkpoint,
        next: &Checkpoint,
    ) -> Result<CheckpointSaveResult, DependencyError> {
        if !job.starts_with("deliveries#") {
            return self.0.save_checkpoint(job, read, next).await;
        }
        Err(DependencyError {
            doing: "save".to_owned(),
            disposition: Disposition::RetryLater,
            cause: "throttled".into(),
        })
    }
}

#[tokio::test]
async fn a_delivery_that_could_not_be_noted_is_noted_by_the_next_run() {
    let world = World::default();
    world.paid("evt_1", 0, None).await;
    let clock = FixedClock::at(at(10 * MINUTE));
    let sweep = SweepTask {
        ledgers: PerProvider::new(|provider| world.tables.of(provider)),
        queue: &world.queue,
        jobs: FailingDeliveryNotes(world.stripe()),
        clock: &clock,
    };
    let failed = sweep.run(&SweepInput {}, at(900 + 10 * MINUTE)).await;
    let failed = failed.unwrap_err().to_string();
    assert!(failed.contains("note the last deliveries"), "{failed}");
    quiet_hours();
    world.run(15 * MINUTE).await;
    assert_eq!(quiet_hours(), [("stripe".to_owned(), 0)]);
}
