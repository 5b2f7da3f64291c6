//! Measures a cleanup of hundreds of orders: the function's real binary against the local AWS and a local Stripe with
//! the rate limit of a test account. `make measure` prints the figures. A live environment calls only https, so the
//! rate of a live account is measured in `crates/cleanup-failed-payments/tests/measure.rs`.
#![cfg(test)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, Select, WriteRequest};
use billhook_testkit::events::intent_failed;
use billhook_testkit::function::Function;
use billhook_testkit::local::{LocalAws, Options, binaries_dir};
use billhook_testkit::stripe::{Config, LocalStripe};
use billhook_tests::world::World;
use serde_json::{Value, json};

/// A stage whose cleanup function is run by hand.
struct Stage {
    world: World,
    local: Arc<LocalAws>,
    stripe: LocalStripe,
}

impl Stage {
    async fn deploy(name: &str) -> Result<Self> {
        let stripe = LocalStripe::start(Config {
            requests_per_second: Some(25),
            ..Config::default()
        })
        .await?;
        let options = Options::temporary(name);
        let starting = tokio::task::spawn_blocking(move || LocalAws::start(&options));
        let local = Arc::new(starting.await??);
        let parameters = [("AppName", name), ("Env", "test")];
        let world = World::deploy(&local, name, &parameters, &stripe.base_url()).await?;
        Ok(Self {
            world,
            local,
            stripe,
        })
    }

    /// Makes stale failed orders as the worker leaves one, and their open payments at Stripe.
    async fn fill(&self, orders: usize) -> Result<()> {
        let world = &self.world;
        let row = json!({ "id": "ord_stale", "status": "pending", "amountTotal": 4200, "currency": "usd" });
        world.put("OrdersTable", row).await?;
        let long_ago = world.now_s() - 2 * 60 * 60;
        let named = json!({ "order_id": "ord_stale" });
        let failed = intent_failed("evt_stale", long_ago, "pi_stale", named, "ch_stale");
        world.stripe(&failed, 1).await?;
        world
            .settled("StripeEventsTable", "processed", &["evt_stale"])
            .await?;
        let one = world.order("ord_stale").await?.to_string();
        let table = world.stack.output("OrdersTable")?;
        let ids: Vec<String> = (1..orders).map(|n| format!("{n}")).collect();
        for ids in ids.chunks(25) {
            let mut writes = Vec::new();
            for id in ids {
                let row: Value = serde_json::from_str(&one.replace("_stale", &format!("_{id}")))?;
                let put = PutRequest::builder().set_item(Some(serde_dynamo::to_item(row)?));
                writes.push(WriteRequest::builder().put_request(put.build()?).build());
            }
            let write = world.aws.dynamodb().batch_write_item();
            write.request_items(table, writes).send().await?;
        }
        for id in ids.iter().map(String::as_str).chain(["stale"]) {
            let intent = json!({ "id": format!("pi_{id}"), "object": "payment_intent", "livemode": false,
                "status": "requires_payment_method", "amount": 4200, "currency": "usd", "metadata": {} });
            self.stripe.put(None, intent);
        }
        Ok(())
    }

    async fn function(&self) -> Result<Function> {
        let mut variables: Vec<(&str, String)> = self.local.env().into_iter().collect();
        variables.extend([
            ("APP_NAME", "measure".to_owned()),
            ("ENV", "test".to_owned()),
            ("LIVE_MODE", "false".to_owned()),
            ("LOG_LEVEL", "warn".to_owned()),
            ("CLEANUP_FAILED_PAYMENT_MINUTES", "60".to_owned()),
            ("STRIPE_API_BASE", self.stripe.base_url()),
        ]);
        for (variable, output) in [
            ("STRIPE_EVENTS_TABLE", "StripeEventsTable"),
            ("LOB_EVENTS_TABLE", "LobEventsTable"),
            ("ORDERS_TABLE", "OrdersTable"),
            ("ENTITIES_TABLE", "EntitiesTable"),
            ("STATEMENTS_TABLE", "StatementsTable"),
            ("TENANTS_TABLE", "TenantsTable"),
            ("JOBS_TABLE", "JobsTable"),
            ("STRIPE_EVENTS_QUEUE_URL", "StripeEventsQueueUrl"),
            ("LOB_EVENTS_QUEUE_URL", "LobEventsQueueUrl"),
            ("APP_SECRETS_ARN", "AppSecretArn"),
            ("SEAL_PUBLIC_ARN", "SealPublicSecretArn"),
            ("STATE_SEAL_ARN", "StateSealSecretArn"),
            // Only `reconcile` seals.
            ("SEAL_ARN", "SealPublicSecretArn"),
        ] {
            variables.push((variable, self.world.stack.output(output)?.to_owned()));
        }
        Function::start(&binaries_dir()?.join("cleanup-failed-payments"), &variables).await
    }

    fn calls(&self) -> usize {
        self.stripe.state()["calls"].as_array().unwrap().len()
    }

    async fn cancelled(&self) -> Result<usize> {
        let query = self.world.aws.dynamodb().query();
        let query = query
            .table_name(self.world.stack.output("OrdersTable")?)
            .index_name("StatusIndex")
            .key_condition_expression("#s = :s")
            .expression_attribute_names("#s", "status")
            .expression_attribute_values(":s", AttributeValue::S("cancelled".to_owned()))
            .select(Select::Count);
        let mut count = 0;
        let mut pages = query.into_paginator().send();
        while let Some(page) = pages.next().await {
            count += usize::try_from(page?.count)?;
        }
        Ok(count)
    }
}

/// Cleans up in runs with this much time left each, and prints what they took.
async fn measure(stage: &Stage, orders: usize, runs: &[u64]) -> Result<()> {
    stage.fill(orders).await?;
    let mut function = stage.function().await?;
    let calls_before = stage.calls();
    let mut cancelled = 0;
    for (n, seconds) in runs.iter().enumerate() {
        let (begun, calls) = (Instant::now(), stage.calls());
        let input = json!({ "task": "cleanup" });
        let answer = function
            .invoke(&input, Duration::from_secs(*seconds))
            .await?;
        let (took, calls) = (begun.elapsed(), stage.calls() - calls);
        println!(
            "{orders} orders, run {n} with {seconds} s: {} ms, {calls} calls to Stripe, {} KiB at most, {answer}",
            took.as_millis(),
            function.peak_rss_kib()?,
        );
        assert!(took < Duration::from_secs(*seconds), "{answer}");
        assert_eq!(
            (&answer["failed"], &answer["skipped"]),
            (&json!(0), &json!(0))
        );
        cancelled += answer["cancelled"].as_u64().unwrap();
    }
    assert_eq!(cancelled, u64::try_from(orders)?);
    assert_eq!(stage.cancelled().await?, orders);
    assert_eq!(
        stage.calls() - calls_before,
        3 * orders,
        "no call is in vain"
    );
    Ok(())
}

fn run(work: impl Future<Output = Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(work).unwrap();
}

#[test]
#[ignore = "takes two minutes"]
fn five_hundred_orders_in_test_mode() {
    run(async {
        let stage = Stage::deploy("measure").await?;
        measure(&stage, 500, &[75, 900]).await
    });
}
