//! What a cleanup of thousands of orders costs at the pace of a live stage: rows in memory, and over HTTP a local
//! Stripe with the limit of a live account. Prints its figures; `make measure` runs it.
#![cfg(test)]

use std::time::{Duration, Instant};

use billhook_adapters::clock::SystemClock;
use billhook_adapters::stripe::StripeClient;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::OrderId;
use billhook_core::ports::Clock as _;
use billhook_core::tasks::definitions::CleanupInput;
use billhook_testkit::events::intent_failed;
use billhook_testkit::events::linked_facts;
use billhook_testkit::memory::{self, MemoryTables};
use billhook_testkit::stripe::{Config, LocalStripe};
use cleanup_failed_payments::ScheduledTask as _;
use cleanup_failed_payments::stripe::{StripePayments, stripe_calls_per_second};
use cleanup_failed_payments::tasks::cleanup::CleanupTask;
use serde_json::json;

const ORDERS: usize = 10_000;
const KEY: &str = "sk_test_local0123456789";

fn stale(id: &str) -> Entity {
    let hours_ago = SystemClock.now().before(Duration::from_secs(7_200));
    let named = json!({});
    let event = intent_failed(
        "evt_1",
        hours_ago.unix_s(),
        &format!("pi_{id}"),
        named,
        "ch_1",
    );
    let row = memory::entity(&EntityKey::Order(OrderId::parse(id).unwrap()));
    row.apply_facts(linked_facts([&event]), hours_ago).next()
}

/// The most that this process ever had resident: the tables and the local Stripe are in it too.
fn peak_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.trim().parse().unwrap()
}

#[tokio::test]
#[ignore = "takes nine minutes"]
async fn ten_thousand_orders_in_live_mode_with_a_run_that_is_cut() {
    let stripe = LocalStripe::start(Config {
        keys: vec![KEY.to_owned()],
        requests_per_second: Some(100),
        ..Config::default()
    });
    let stripe = stripe.await.unwrap();
    let tables = MemoryTables::default();
    for n in 0..ORDERS {
        let id = format!("ord_{n}");
        let row = stale(&id);
        tables.entities.lock().unwrap().insert(row.key(), row);
        let intent = json!({ "id": format!("pi_{id}"), "object": "payment_intent", "livemode": true,
            "status": "requires_payment_method", "amount": 4200, "currency": "usd", "metadata": {} });
        stripe.put(None, intent);
    }
    let client = StripeClient::new(&stripe.base_url(), KEY.into(), false).unwrap();
    let cleanup = CleanupTask {
        ledger: &tables,
        payments: Some(StripePayments(
            client.with_rate_limit(stripe_calls_per_second(true)),
        )),
        jobs: &tables,
        clock: SystemClock,
        grace: Duration::from_secs(3_600),
    };
    let calls = || stripe.state()["calls"].as_array().unwrap().len();
    println!("before: {} KiB at most", peak_rss_kib());
    let mut cancelled = 0;
    for seconds in [245, 900] {
        let (begun, before) = (Instant::now(), calls());
        let time_left = Duration::from_secs(seconds);
        let deadline = SystemClock.now().after(time_left);
        let done = cleanup
            .run(&CleanupInput::default(), deadline)
            .await
            .unwrap();
        let (took, calls) = (begun.elapsed(), calls() - before);
        println!(
            "{ORDERS} orders, a run with {seconds} s: {} ms, {calls} calls to Stripe, {} KiB at most, {done:?}",
            took.as_millis(),
            peak_rss_kib(),
        );
        assert!(took < time_left);
        assert_eq!((done.failed, done.skipped), (0, 0));
        cancelled += done.cancelled;
    }
    assert_eq!((cancelled, calls()), (ORDERS, 3 * ORDERS));
}
