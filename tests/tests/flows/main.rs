//! End-to-end tests: the real template and the real function binaries on the local AWS with enforced IAM policies, real
//! HTTP, a local Stripe that signs, and a proxy that counts the functions' calls and makes them fail.
//! `billhook_tests::world` is the harness.
#![cfg(test)]
#![expect(
    clippy::disallowed_methods,
    reason = "what is deployed lives in real time"
)]

mod adoption;
mod attacks;
mod bounds;
mod chaos;
mod claims;
mod deploy;
mod faults;
mod forged_requests;
mod http;
mod letters;
mod migrate;
mod observability;
mod operator;
mod payments;
mod proof;
mod rotation;
mod scheduled;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};

use anyhow::Result;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, CreateGlobalSecondaryIndexAction,
    DeleteGlobalSecondaryIndexAction, GlobalSecondaryIndexUpdate, IndexStatus, KeySchemaElement,
    KeyType, Projection, ProjectionType, ScalarAttributeType,
};
use aws_sdk_sqs::types::QueueAttributeName;
use billhook_core::tasks::checkpoint::JOB_ID;
use billhook_core::time::Timestamp;
use billhook_testkit::events::{
    charge_refunded, from_account, intent_failed, intent_succeeded, letter, session_completed,
    stripe,
};
use billhook_testkit::local::{LocalAws, Options, delete, repository};
use billhook_testkit::proxy::{Fault, Proxy, kill};
use billhook_testkit::sign::{sign_lob, sign_stripe};
use billhook_testkit::stripe::{Config, LocalStripe, PayerAction, PayerStep, TEST_KEY};
use billhook_tests::world::{LOB_SECRET, World};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::RwLock;

const STRIPE: &str = "StripeEventsTable";
const LOB: &str = "LobEventsTable";

/// One stage for all tests of this file; it ends with the process.
struct Stage {
    world: World,
    proxy: Proxy,
    /// The operator's tool has a proxy of its own: no fault is planned there, and nobody counts.
    tool_proxy: Proxy,
    name: String,
    stripe: LocalStripe,
    /// Tests that count calls, plan faults or fill a dead-letter queue have the stage to themselves.
    alone: RwLock<()>,
    aws: Arc<LocalAws>,
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
});

static STAGE: LazyLock<Stage> = LazyLock::new(|| RUNTIME.block_on(stage()).unwrap());

async fn stage() -> Result<Stage> {
    // No other process on the machine may have functions of this name: one test kills by it.
    let app = format!("flows{}", std::process::id());
    let stripe = LocalStripe::start(Config::default()).await?;
    let (aws, proxy) = start_recorded_aws("flows").await?;
    let tool_proxy = start_tool_proxy("flows", &aws).await?;
    let base = stripe.base_url();
    let name = format!("{app}-test");
    let world = World::deploy(&aws, &name, &[("AppName", &app), ("Env", "test")], &base).await?;
    // Three receives at 60 s each would be most of the run; that the template says 60 is tested on the template.
    set_visibility_timeout(&world, 1).await?;
    for (tenant, account) in [("ten_a", "acct_a"), ("ten_b", "acct_b")] {
        let row = json!({ "tenant_id": tenant, "stripe_connected_account_id": account });
        world.put("TenantsTable", row).await?;
    }
    Ok(Stage {
        world,
        proxy,
        tool_proxy,
        name,
        stripe,
        alone: RwLock::new(()),
        aws,
    })
}

/// A local AWS and the proxy of its functions. Both write down the functions' requests, for `tests/tools/wire_gate.py` and
/// `iam_gate.py`.
async fn start_recorded_aws(label: &str) -> Result<(Arc<LocalAws>, Proxy)> {
    let proxy = Proxy::start().await?;
    proxy.record(&wire_folder(), &format!("functions-{label}"))?;
    let mut options = Options::temporary(label);
    options.functions_endpoint = Some(proxy.endpoint());
    options.request_log = Some(wire_folder().join(format!("{label}.log")));
    let starting = tokio::task::spawn_blocking(move || LocalAws::start(&options));
    let aws = Arc::new(starting.await??);
    proxy.set_upstream(&aws.endpoint());
    Ok((aws, proxy))
}

/// The proxy of the operator's tool.
async fn start_tool_proxy(label: &str, aws: &LocalAws) -> Result<Proxy> {
    let proxy = Proxy::start().await?;
    proxy.record(&wire_folder(), &format!("tool-{label}"))?;
    proxy.set_upstream(&aws.endpoint());
    Ok(proxy)
}

fn wire_folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("wire")
}

async fn set_visibility_timeout(world: &World, seconds: u32) -> Result<()> {
    for queue in ["StripeEventsQueueUrl", "LobEventsQueueUrl"] {
        let set = world.aws.sqs().set_queue_attributes();
        let set = set.queue_url(world.stack.output(queue)?);
        set.attributes(QueueAttributeName::VisibilityTimeout, seconds.to_string())
            .send()
            .await?;
    }
    Ok(())
}

/// Runs a flow beside others, or alone, and then looks whether anything is left in a queue and whether any secret was
/// told.
fn flow(alone: bool, run: impl AsyncFnOnce(&'static Stage) -> Result<()>) {
    let stage = &*STAGE;
    RUNTIME
        .block_on(async {
            if alone {
                let _held = stage.alone.write().await;
                // An update of the stack, in the flow before, sets it to what the template says.
                set_visibility_timeout(&stage.world, 1).await?;
                run(stage).await?;
                stage.world.drained().await?;
            } else {
                let _held = stage.alone.read().await;
                set_visibility_timeout(&stage.world, 1).await?;
                run(stage).await?;
                stage.world.drained().await?;
            }
            stage.world.keeps_its_secrets().await
        })
        .unwrap();
}

async fn order(world: &World, id: &str, tenant: Option<&str>) -> Result<()> {
    let mut row = json!({ "id": id, "userId": "user_1", "status": "pending", "amountTotal": 4200, "currency": "usd",
        "timeline": [{ "type": "note", "at": "2026-01-01T00:00:00.000Z", "actor": "application" }] });
    if let Some(tenant) = tenant {
        row["tenantId"] = json!(tenant);
    }
    world.put("OrdersTable", row).await
}

fn named(order: &str) -> Value {
    json!({ "order_id": order })
}

async fn event(world: &World, table: &str, id: &str) -> Result<Value> {
    Ok(world.event(table, id).await?.unwrap_or_default())
}

fn types(row: &Value) -> Vec<&str> {
    row["timeline"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["type"].as_str().unwrap())
        .collect()
}

async fn signing_secret(world: &World, output: &str) -> Result<String> {
    let get = world
        .aws
        .secrets_manager()
        .get_secret_value()
        .secret_id(world.stack.output(output)?);
    let text = get.send().await?.secret_string.unwrap_or_default();
    Ok(serde_json::from_str::<Value>(&text)?["signing_secret"]
        .as_str()
        .unwrap()
        .to_owned())
}

fn sample(provider: &str, name: &str, own: &str) -> Value {
    let path = repository().join(format!("events/payloads/{provider}/{name}.json"));
    let text = std::fs::read_to_string(path).unwrap();
    let text = text
        .replace("SAMPLE", own)
        .replace("SampleSession", own)
        .replace("ord_2041", &format!("ord_{own}"));
    serde_json::from_str(&text.replace("4a1b2c3d4e5f6071", own)).unwrap()
}

/// Invokes a function by hand, as the console's test button does.
async fn invoke(world: &World, output: &str, input: &Value) -> Result<Value> {
    world.invoke(world.stack.output(output)?, input).await
}

async fn is_indexed(world: &World, table: &str, name: &str, active: bool) -> Result<bool> {
    let table = world.stack.output(table)?;
    world
        .until(async || {
            let described = world.aws.dynamodb().describe_table().table_name(table);
            let table = described.send().await?.table.unwrap();
            let mut indexes = table.global_secondary_indexes().iter();
            let index = indexes.find(|index| index.index_name() == Some(name));
            let status = index.and_then(|index| index.index_status());
            Ok(active == (status == Some(&IndexStatus::Active)))
        })
        .await
}

/// Takes an index away, as a change of the table does for a while.
async fn remove_index(world: &World, table: &str, name: &str) -> Result<()> {
    let removal = DeleteGlobalSecondaryIndexAction::builder().index_name(name);
    let removal = GlobalSecondaryIndexUpdate::builder().delete(removal.build()?);
    let update = world.aws.dynamodb().update_table();
    update
        .table_name(world.stack.output(table)?)
        .global_secondary_index_updates(removal.build())
        .send()
        .await?;
    assert!(is_indexed(world, table, name, false).await?);
    Ok(())
}

async fn restore_index(world: &World, table: &str, name: &str, column: &str) -> Result<()> {
    let key = KeySchemaElement::builder()
        .attribute_name(column)
        .key_type(KeyType::Hash);
    let all = Projection::builder().projection_type(ProjectionType::All);
    let index = CreateGlobalSecondaryIndexAction::builder()
        .index_name(name)
        .key_schema(key.build()?)
        .projection(all.build());
    let column = AttributeDefinition::builder()
        .attribute_name(column)
        .attribute_type(ScalarAttributeType::S);
    let creation = GlobalSecondaryIndexUpdate::builder().create(index.build()?);
    let update = world.aws.dynamodb().update_table();
    update
        .table_name(world.stack.output(table)?)
        .attribute_definitions(column.build()?)
        .global_secondary_index_updates(creation.build())
        .send()
        .await?;
    assert!(is_indexed(world, table, name, true).await?);
    Ok(())
}
