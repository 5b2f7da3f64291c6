//! Every flow, end to end: the real template and the real function binaries on the local AWS with enforced policies,
//! real HTTP, a Stripe that signs, and a proxy at the wire that counts and breaks the functions' calls.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};

use anyhow::Result;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::types::QueueAttributeName;
use billhook_testkit::events::{
    charge_refunded, from_account, intent_failed, intent_succeeded, letter, session_completed,
    stripe,
};
use billhook_testkit::local::{LocalAws, Options, delete, repository};
use billhook_testkit::proxy::{Fault, Proxy};
use billhook_testkit::sign::sign_stripe;
use billhook_testkit::stripe::{Config, LocalStripe};
use billhook_tests::world::World;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::RwLock;

const STRIPE: &str = "StripeEventsTable";
const LOB: &str = "LobEventsTable";

/// One stage for all tests of this file; it ends with the process.
struct Stage {
    world: World,
    proxy: Proxy,
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
    let proxy = Proxy::start().await?;
    let stripe = LocalStripe::start(Config::default()).await?;
    let mut options = Options::temporary("flows");
    options.functions_endpoint = Some(proxy.endpoint());
    let starting = tokio::task::spawn_blocking(move || LocalAws::start(&options));
    let aws = Arc::new(starting.await??);
    proxy.set_upstream(&aws.endpoint());
    let base = stripe.base_url();
    let name = format!("{app}-test");
    let world = World::deploy(&aws, &name, &[("AppName", &app), ("Env", "test")], &base).await?;
    // Three receives at 60 s each would be most of the run; that the template says 60 is tested on the template.
    for queue in ["StripeEventsQueueUrl", "LobEventsQueueUrl"] {
        let set = world
            .aws
            .sqs()
            .set_queue_attributes()
            .queue_url(world.stack.output(queue)?);
        set.attributes(QueueAttributeName::VisibilityTimeout, "1")
            .send()
            .await?;
    }
    for (tenant, account) in [("ten_a", "acct_a"), ("ten_b", "acct_b")] {
        let row = json!({ "tenant_id": tenant, "stripe_connected_account_id": account });
        world.put("TenantsTable", row).await?;
    }
    Ok(Stage {
        world,
        proxy,
        name,
        stripe,
        alone: RwLock::new(()),
        aws,
    })
}

/// Runs a flow beside others, or alone, and then looks whether anything is left in a queue.
fn flow(alone: bool, run: impl AsyncFnOnce(&'static Stage) -> Result<()>) {
    let stage = &*STAGE;
    RUNTIME
        .block_on(async {
            if alone {
                let _held = stage.alone.write().await;
                run(stage).await?;
                stage.world.drained().await
            } else {
                let _held = stage.alone.read().await;
                run(stage).await?;
                stage.world.drained().await
            }
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

#[test]
fn a_payment_its_duplicate_and_its_refund() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        order(world, "ord_plain", None).await?;
        let paid = intent_succeeded("evt_plain", now, "pi_plain", named("ord_plain"), 4200);
        let answers = world.stripe(&paid, 1).await?;
        assert_eq!(
            (answers[0].status, &answers[0].body["duplicate"]),
            (200, &json!(false))
        );
        assert_eq!(answers[0].body["event_id"], "evt_plain");
        world.settled(STRIPE, "processed", &["evt_plain"]).await?;
        let again = world.stripe(&paid, 1).await?;
        assert_eq!(
            (again[0].status, &again[0].body["duplicate"]),
            (200, &json!(true))
        );
        world
            .stripe(
                &charge_refunded("evt_plain_r", now + 1, "ch_plain", Some("pi_plain"), 4200),
                1,
            )
            .await?;
        world.settled(STRIPE, "processed", &["evt_plain_r"]).await?;

        let row = world.order("ord_plain").await?;
        assert_eq!(
            (&row["status"], &row["paymentStatus"]),
            (&json!("refunded"), &json!("refunded"))
        );
        assert_eq!(
            (&row["amountRefunded"], &row["version"]),
            (&json!(4200), &json!(2))
        );
        assert_eq!(
            (&row["stripePaymentIntentId"], &row["requiresReview"]),
            (&json!("pi_plain"), &json!(false))
        );
        assert_eq!(types(&row), ["note", "payment_succeeded", "refund_full"]);
        assert_eq!(row["timeline"][1]["eventId"], "evt_plain");
        // What the application wrote is as it was.
        assert_eq!(
            (&row["userId"], &row["amountTotal"]),
            (&json!("user_1"), &json!(4200))
        );
        let kept = event(world, STRIPE, "evt_plain").await?;
        assert_eq!(
            (&kept["processed"], &kept["attempts"], &kept["open"]),
            (&json!(true), &json!(1), &Value::Null)
        );
        assert_eq!(kept["correlation_id"], answers[0].body["correlation_id"]);
        Ok(())
    });
}

#[test]
fn fifty_deliveries_of_one_event_at_once_have_one_effect() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_fifty", None).await?;
        let paid = intent_succeeded(
            "evt_fifty",
            world.now_s(),
            "pi_fifty",
            named("ord_fifty"),
            4200,
        );
        let answers = world.stripe(&paid, 50).await?;
        assert_eq!(answers.len(), 50);
        assert!(
            answers.iter().all(|answer| answer.status == 200),
            "{answers:?}"
        );
        world.settled(STRIPE, "processed", &["evt_fifty"]).await?;
        world.drained().await?;
        let row = world.order("ord_fifty").await?;
        assert_eq!(
            (&row["status"], &row["version"]),
            (&json!("completed"), &json!(1))
        );
        assert_eq!(types(&row), ["note", "payment_succeeded"]);
        Ok(())
    });
}

#[test]
fn a_refund_and_a_success_before_anything_names_their_order() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        order(world, "ord_late", Some("ten_a")).await?;
        let of_tenant = |event| from_account(event, "acct_a");
        let refund = of_tenant(charge_refunded(
            "evt_late_r",
            now + 2,
            "ch_late",
            Some("pi_late"),
            1000,
        ));
        let paid = of_tenant(intent_succeeded(
            "evt_late_s",
            now,
            "pi_late",
            json!({}),
            4200,
        ));
        world.stripe(&refund, 1).await?;
        world.stripe(&paid, 1).await?;
        world
            .settled(STRIPE, "parked", &["evt_late_r", "evt_late_s"])
            .await?;
        assert_eq!(
            event(world, STRIPE, "evt_late_r").await?["processing_error"],
            "unlinked"
        );
        let waiting = world
            .row("PaymentsTable", "payment_id", "acct_a#pi_late")
            .await?
            .unwrap();
        assert_eq!(waiting["waiting"].as_array().unwrap().len(), 2);

        let session = session_completed(
            "evt_late_c",
            now + 1,
            "cs_late",
            Some("pi_late"),
            named("ord_late"),
            "unpaid",
        );
        world.stripe(&of_tenant(session), 1).await?;
        world
            .settled(
                STRIPE,
                "processed",
                &["evt_late_c", "evt_late_r", "evt_late_s"],
            )
            .await?;
        let row = world.order("ord_late").await?;
        assert_eq!(
            (&row["status"], &row["amountRefunded"]),
            (&json!("completed"), &json!(1000))
        );
        assert_eq!(
            types(&row),
            [
                "note",
                "payment_succeeded",
                "checkout_completed",
                "refund_partial"
            ]
        );
        assert_eq!(row["stripeCheckoutSessionId"], "cs_late");
        let linked = world
            .row("PaymentsTable", "payment_id", "acct_a#pi_late")
            .await?
            .unwrap();
        assert_eq!(
            (&linked["entity"], &linked["waiting"]),
            (&json!("order#ord_late"), &Value::Null)
        );
        assert_eq!(
            event(world, STRIPE, "evt_late_r").await?["tenant_id"],
            "ten_a"
        );
        Ok(())
    });
}

#[test]
fn a_payment_is_found_by_the_orders_own_column() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_column", None).await?;
        let row = json!({ "id": "ord_column", "status": "pending", "amountTotal": 4200, "currency": "usd",
            "stripePaymentIntentId": "pi_column" });
        world.put("OrdersTable", row).await?;
        world
            .stripe(
                &intent_succeeded("evt_column", world.now_s(), "pi_column", json!({}), 4200),
                1,
            )
            .await?;
        world.settled(STRIPE, "processed", &["evt_column"]).await?;
        assert_eq!(world.order("ord_column").await?["status"], "completed");
        Ok(())
    });
}

#[test]
fn a_letters_life_in_reverse() {
    flow(false, async |stage| {
        let world = &stage.world;
        let row = json!({ "statement_id": "st_reverse", "tenant_id": "ten_a", "lob_letter_id": "ltr_reverse",
            "payment_status": "paid" });
        world.put("StatementsTable", row).await?;
        let stages = [
            "delivered",
            "processed_for_delivery",
            "in_local_area",
            "in_transit",
            "mailed",
            "rendered_pdf",
            "created",
        ];
        let mut ids = Vec::new();
        for (n, stage) in stages.iter().enumerate() {
            let id = format!("evt_reverse_{n}");
            let at = format!("2026-11-{:02}T08:00:00.000Z", 20 - n);
            assert_eq!(
                world
                    .lob(&letter(&id, &at, "ltr_reverse", stage))
                    .await?
                    .status,
                200
            );
            ids.push(id);
        }
        world
            .settled(
                LOB,
                "processed",
                &ids.iter().map(String::as_str).collect::<Vec<_>>(),
            )
            .await?;
        let row = world.statement("st_reverse").await?;
        assert_eq!(
            (&row["mail_status"], &row["mail_status_at"]),
            (&json!("delivered"), &json!("2026-11-20T08:00:00.000Z"))
        );
        assert_eq!(
            (&row["expected_delivery_date"], &row["needs_attention"]),
            (&json!("2026-11-27"), &json!(false))
        );
        let mut natural = stages.map(|stage| format!("mail_{stage}"));
        natural.reverse();
        assert_eq!(types(&row), natural);
        // Paid by other means than Stripe: not ours to write.
        assert_eq!(row["payment_status"], "paid");
        let unknown = letter(
            "evt_reverse_u",
            "2026-11-20T08:00:00.000Z",
            "ltr_nobodys",
            "mailed",
        );
        world.lob(&unknown).await?;
        world.settled(LOB, "parked", &["evt_reverse_u"]).await?;
        assert_eq!(
            event(world, LOB, "evt_reverse_u").await?["processing_error"],
            "letter_unknown"
        );
        Ok(())
    });
}

#[test]
fn another_tenants_order_is_parked_and_untouched() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_theirs", Some("ten_a")).await?;
        let before = world.order("ord_theirs").await?;
        let forged = intent_succeeded(
            "evt_theirs",
            world.now_s(),
            "pi_theirs",
            named("ord_theirs"),
            4200,
        );
        world
            .stripe(&from_account(forged.clone(), "acct_b"), 1)
            .await?;
        let mut unknown = from_account(forged, "acct_nobody");
        unknown["id"] = json!("evt_nobody");
        world.stripe(&unknown, 1).await?;
        world
            .settled(STRIPE, "parked", &["evt_theirs", "evt_nobody"])
            .await?;
        assert_eq!(
            event(world, STRIPE, "evt_theirs").await?["processing_error"],
            "cross_tenant"
        );
        assert_eq!(
            event(world, STRIPE, "evt_nobody").await?["processing_error"],
            "tenant_unknown"
        );
        assert_eq!(world.order("ord_theirs").await?, before);
        // Released by the tenant's row and another delivery: decided as if it had never waited.
        let row = json!({ "tenant_id": "ten_n", "stripe_connected_account_id": "acct_nobody" });
        world.put("TenantsTable", row).await?;
        world.stripe(&unknown, 1).await?;
        let decided = world
            .until(async || {
                Ok(event(world, STRIPE, "evt_nobody").await?["processing_error"] == "cross_tenant")
            })
            .await?;
        assert!(decided);
        Ok(())
    });
}

#[test]
fn a_poison_message_dies_alone_among_good_ones() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        for n in 0..4 {
            order(world, &format!("ord_poison{n}"), None).await?;
        }
        world
            .send(
                "StripeEventsQueueUrl",
                "poison",
                "poison-1",
                "this is no pointer",
            )
            .await?;
        world
            .send(
                "StripeEventsQueueUrl",
                "poison",
                "poison-2",
                r#"{"event_id":"evt_never_stored"}"#,
            )
            .await?;
        let ids = ["evt_poison0", "evt_poison1", "evt_poison2", "evt_poison3"];
        for (n, id) in ids.iter().enumerate() {
            let paid = intent_succeeded(
                id,
                now,
                &format!("pi_poison{n}"),
                named(&format!("ord_poison{n}")),
                4200,
            );
            world.stripe(&paid, 1).await?;
        }
        world.settled(STRIPE, "processed", &ids).await?;
        assert!(
            world
                .until(async || Ok(world.depth("StripeEventsDlqUrl").await? == 2))
                .await?,
            "both are dead letters"
        );
        assert!(
            world
                .until(async || Ok(world.depth("StripeEventsQueueUrl").await? == 0))
                .await?
        );
        let mut dead = Vec::new();
        while dead.len() < 2 {
            let url = world.stack.output("StripeEventsDlqUrl")?;
            let got = world
                .aws
                .sqs()
                .receive_message()
                .queue_url(url)
                .max_number_of_messages(10)
                .send()
                .await?;
            for message in got.messages() {
                dead.push(message.body().unwrap_or_default().to_owned());
                let receipt = message.receipt_handle().unwrap();
                world
                    .aws
                    .sqs()
                    .delete_message()
                    .queue_url(url)
                    .receipt_handle(receipt)
                    .send()
                    .await?;
            }
        }
        dead.sort();
        assert_eq!(
            dead,
            ["this is no pointer", r#"{"event_id":"evt_never_stored"}"#]
        );
        Ok(())
    });
}

#[test]
fn calls_at_the_wire_are_two_for_an_accepted_delivery_and_none_for_a_forged_one() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        order(world, "ord_calls", None).await?;
        // Once before, so that secrets and connections stand.
        world
            .stripe(
                &intent_succeeded("evt_calls0", now, "pi_calls0", named("ord_calls"), 1),
                1,
            )
            .await?;
        world.settled(STRIPE, "processed", &["evt_calls0"]).await?;
        let count = || {
            let calls = stage.proxy.calls();
            let of = |operation: &str| calls.get(operation).copied().unwrap_or_default();
            (of("PutItem"), of("SendMessage"), of("GetSecretValue"))
        };
        let paid = intent_succeeded("evt_calls", now, "pi_calls", named("ord_calls"), 4200);
        let mut last = count();
        let mut since = || {
            let (before, now) = (last, count());
            last = now;
            (now.0 - before.0, now.1 - before.1, now.2 - before.2)
        };
        world.stripe(&paid, 1).await?;
        assert_eq!(since(), (1, 1, 0), "accepted");
        world.settled(STRIPE, "processed", &["evt_calls"]).await?;
        world.stripe(&paid, 1).await?;
        assert_eq!(since(), (1, 0, 0), "duplicate of a processed event");
        let table = world.stack.output(STRIPE)?;
        let pending = world
            .aws
            .dynamodb()
            .update_item()
            .table_name(table)
            .key("event_id", AttributeValue::S("evt_calls".into()));
        pending
            .update_expression("SET #processed = :no, processing_outcome = :pending")
            .expression_attribute_names("#processed", "processed")
            .expression_attribute_values(":no", AttributeValue::Bool(false))
            .expression_attribute_values(":pending", AttributeValue::S("pending".into()))
            .send()
            .await?;
        world.stripe(&paid, 1).await?;
        assert_eq!(since(), (1, 1, 0), "duplicate of a pending event");
        let body = paid.to_string();
        let old = sign_stripe(body.as_bytes(), "whsec_wrong", now - 301);
        let answer = world
            .request(
                "POST",
                "/webhooks/stripe",
                &[("Stripe-Signature", &old)],
                body.as_bytes(),
            )
            .await?;
        assert_eq!(
            (answer.status, answer.body["error"].as_str()),
            (400, Some("signature_invalid"))
        );
        // A mismatch may look for newer secrets, once in 10 s; the next one does not.
        since();
        world
            .request(
                "POST",
                "/webhooks/stripe",
                &[("Stripe-Signature", &old)],
                body.as_bytes(),
            )
            .await?;
        world
            .request("POST", "/webhooks/stripe", &[], body.as_bytes())
            .await?;
        let larger = vec![b'x'; 1024 * 1024 + 1];
        assert_eq!(
            world
                .request("POST", "/webhooks/stripe", &[], &larger)
                .await?
                .status,
            413
        );
        assert_eq!(since(), (0, 0, 0), "forged, unsigned, too large");
        Ok(())
    });
}

#[test]
fn an_ingress_killed_between_its_two_calls_is_healed_by_the_next_delivery() {
    flow(true, async |stage| {
        let world = &stage.world;
        order(world, "ord_killed", None).await?;
        let function = format!("{}-webhook-ingress", stage.name);
        stage.proxy.plan("SendMessage", [Fault::Kill { function }]);
        let paid = intent_succeeded(
            "evt_killed",
            world.now_s(),
            "pi_killed",
            named("ord_killed"),
            4200,
        );
        // Stripe repeats what was not answered 2xx.
        let answers = world.stripe(&paid, 1).await?;
        assert_eq!(
            (answers[0].status, &answers[0].body["duplicate"]),
            (200, &json!(false))
        );
        assert_eq!(stage.proxy.left(), 0, "the kill happened");
        world.settled(STRIPE, "processed", &["evt_killed"]).await?;
        let row = world.order("ord_killed").await?;
        assert_eq!(
            (&row["status"], &row["version"]),
            (&json!("completed"), &json!(1))
        );
        Ok(())
    });
}

#[test]
fn lost_answers_leave_what_one_good_call_leaves() {
    flow(true, async |stage| {
        let world = &stage.world;
        for (operation, id) in [
            ("PutItem", "put"),
            ("SendMessage", "send"),
            ("TransactWriteItems", "commit"),
            ("BatchGetItem", "read"),
        ] {
            for (fault, kind) in [(Fault::AnswerLost, "lost"), (Fault::Before, "before")] {
                let (order_id, event_id) = (format!("ord_{id}_{kind}"), format!("evt_{id}_{kind}"));
                order(world, &order_id, None).await?;
                stage.proxy.plan(operation, [fault.clone()]);
                let paid = intent_succeeded(
                    &event_id,
                    world.now_s(),
                    &format!("pi_{id}_{kind}"),
                    named(&order_id),
                    4200,
                );
                let answers = world.stripe(&paid, 1).await?;
                // The SDK repeats the call; a conditional write then meets its own row, which is no duplicate.
                assert_eq!(
                    (answers[0].status, &answers[0].body["duplicate"]),
                    (200, &json!(false)),
                    "{operation} {kind}"
                );
                world.settled(STRIPE, "processed", &[&event_id]).await?;
                assert_eq!(stage.proxy.left(), 0, "{operation} {kind}");
                let row = world.order(&order_id).await?;
                assert_eq!(
                    (&row["status"], &row["version"]),
                    (&json!("completed"), &json!(1)),
                    "{operation} {kind}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn a_worker_killed_in_the_middle_leaves_one_effect() {
    flow(true, async |stage| {
        let world = &stage.world;
        order(world, "ord_wkilled", None).await?;
        let function = format!("{}-stripe-worker", stage.name);
        stage
            .proxy
            .plan("TransactWriteItems", [Fault::Kill { function }]);
        world
            .stripe(
                &intent_succeeded(
                    "evt_wkilled",
                    world.now_s(),
                    "pi_wkilled",
                    named("ord_wkilled"),
                    4200,
                ),
                1,
            )
            .await?;
        world.settled(STRIPE, "processed", &["evt_wkilled"]).await?;
        assert_eq!(stage.proxy.left(), 0, "the kill happened");
        assert_eq!(world.order("ord_wkilled").await?["version"], 1);
        Ok(())
    });
}

#[test]
fn bad_requests_are_answered_as_promised_through_the_gateway() {
    flow(false, async |stage| {
        let world = &stage.world;
        let health = world.request("GET", "/health", &[], b"").await?;
        assert_eq!((health.status, &health.body["status"]), (200, &json!("ok")));
        for path in ["/webhooks/stripe", "/webhooks/lob"] {
            let get = world.request("GET", path, &[], b"").await?;
            assert_eq!(
                (get.status, get.body["error"].as_str()),
                (405, Some("method_not_allowed")),
                "{path}"
            );
            let unsigned = world.request("POST", path, &[], b"{}").await?;
            assert_eq!(
                (unsigned.status, unsigned.body["error"].as_str()),
                (400, Some("signature_invalid")),
                "{path}"
            );
        }
        // Bytes that no text survives: the gateway hands them over as they are, or the signature would not fit.
        let secret = signing_secret(world, "StripeWebhookSecretArn").await?;
        for body in [
            &b"\xff\xfe\x00 not json"[..],
            b"{\"id\":\"evt_\xf0\x9f\x98\x80\"}",
            b"\r\n{}\n",
        ] {
            let header = sign_stripe(body, &secret, world.now_s());
            let headers = [
                ("Stripe-Signature", &*header),
                ("Content-Type", "application/json"),
            ];
            let answer = world
                .request("POST", "/webhooks/stripe", &headers, body)
                .await?;
            assert_eq!(
                (answer.status, answer.body["error"].as_str()),
                (400, Some("body_malformed")),
                "{answer:?}"
            );
        }
        Ok(())
    });
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

#[test]
fn what_the_official_library_signs_is_accepted() {
    flow(false, async |stage| {
        let world = &stage.world;
        let secret = signing_secret(world, "StripePlatformWebhookSecretArn").await?;
        order(world, "ord_official", None).await?;
        let body = intent_succeeded(
            "evt_official",
            world.now_s(),
            "pi_official",
            named("ord_official"),
            4200,
        )
        .to_string();
        let program = "import sys, time, stripe; body = sys.stdin.read(); \
            print(stripe.WebhookSignature.generate_signature_header(payload=body, secret=sys.argv[1]))";
        let mut python = Command::new(repository().join(".venv/bin/python"))
            .args(["-c", program, &secret])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        std::io::Write::write_all(&mut python.stdin.take().unwrap(), body.as_bytes())?;
        let header = String::from_utf8(python.wait_with_output()?.stdout)?;
        let headers = [("Stripe-Signature", header.trim())];
        let answer = world
            .request("POST", "/webhooks/stripe", &headers, body.as_bytes())
            .await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        world
            .settled(STRIPE, "processed", &["evt_official"])
            .await?;
        Ok(())
    });
}

#[test]
fn a_body_near_the_limit_is_taken_and_processed() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_large", None).await?;
        let mut paid = intent_succeeded(
            "evt_large",
            world.now_s(),
            "pi_large",
            named("ord_large"),
            4200,
        );
        // Random enough that compression does not help: only the fields we read are kept.
        let mut state = 7_u64;
        let noise: String = (0..110_000)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                format!("{:08x}", state >> 32)
            })
            .collect();
        paid["data"]["object"]["description"] = json!(noise);
        let answers = world.stripe(&paid, 1).await?;
        assert_eq!(answers[0].status, 200, "{answers:?}");
        world.settled(STRIPE, "processed", &["evt_large"]).await?;
        assert_eq!(
            event(world, STRIPE, "evt_large").await?["payload_truncated"],
            true
        );
        assert_eq!(world.order("ord_large").await?["status"], "completed");
        Ok(())
    });
}

#[test]
fn the_cleanup_ends_the_payment_at_stripe_and_then_cancels_the_order() {
    flow(true, async |stage| {
        let world = &stage.world;
        let long_ago = world.now_s() - 2 * 60 * 60;
        for (order_id, intent, status) in [
            ("ord_stale", "pi_stale", "requires_payment_method"),
            ("ord_paying", "pi_paying", "processing"),
        ] {
            order(world, order_id, None).await?;
            let id = format!("evt_{intent}");
            stage.stripe.put(
                None,
                json!({ "id": intent, "object": "payment_intent", "status": status, "amount": 4200,
                "currency": "usd", "metadata": {} }),
            );
            world
                .stripe(
                    &intent_failed(
                        &id,
                        long_ago,
                        intent,
                        named(order_id),
                        &format!("ch_{intent}"),
                    ),
                    1,
                )
                .await?;
            world.settled(STRIPE, "processed", &[&id]).await?;
            assert_eq!(world.order(order_id).await?["status"], "payment_failed");
        }
        let preview = invoke(
            world,
            "CleanupFailedPaymentsFunction",
            &json!({ "dry_run": true }),
        )
        .await?;
        assert_eq!(preview["dry_run"], true);
        assert_eq!(world.order("ord_stale").await?["status"], "payment_failed");
        let done = invoke(world, "CleanupFailedPaymentsFunction", &json!({})).await?;
        // Other tests leave stale orders too, of payments that the local Stripe does not know.
        assert!(done["cancelled"].as_u64() >= Some(1), "{done}");
        assert!(done["reconciled"].as_u64() >= Some(1), "{done}");
        assert_eq!(world.order("ord_stale").await?["status"], "cancelled");
        assert_eq!(world.order("ord_paying").await?["status"], "payment_failed");
        let refused = invoke(
            world,
            "CleanupFailedPaymentsFunction",
            &json!({ "dryrun": true }),
        )
        .await?;
        assert!(
            refused["errorMessage"]
                .as_str()
                .unwrap()
                .contains("unknown field `dryrun`"),
            "{refused}"
        );
        // The money came nevertheless: it wins, and a person looks.
        let paid = intent_succeeded(
            "evt_stale_paid",
            world.now_s(),
            "pi_stale",
            named("ord_stale"),
            4200,
        );
        world.stripe(&paid, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_stale_paid"])
            .await?;
        let row = world.order("ord_stale").await?;
        assert_eq!(
            (&row["status"], &row["requiresReview"]),
            (&json!("completed"), &json!(true))
        );
        assert_eq!(row["reviewReasons"], json!(["paid_after_cancel:pi_stale"]));
        Ok(())
    });
}

#[test]
fn an_accounts_own_events_keep_its_tenants_row() {
    flow(false, async |stage| {
        let world = &stage.world;
        let tenant = json!({ "tenant_id": "ten_acct", "name": "Acct", "stripe_connected_account_id": "acct_own" });
        world.put("TenantsTable", tenant).await?;
        for (id, kind, at, charges, status) in [
            ("evt_acct_1", "account.updated", 0, false, "restricted"),
            ("evt_acct_2", "account.updated", 1, true, "connected"),
            (
                "evt_acct_3",
                "account.application.deauthorized",
                2,
                true,
                "deauthorized",
            ),
        ] {
            let account =
                json!({ "id": "acct_own", "charges_enabled": charges, "payouts_enabled": true });
            let event = stripe(id, kind, world.now_s() + at, account);
            world.stripe(&from_account(event, "acct_own"), 1).await?;
            world.settled(STRIPE, "processed", &[id]).await?;
            let row = world
                .row("TenantsTable", "tenant_id", "ten_acct")
                .await?
                .unwrap();
            assert_eq!(
                (&row["stripe_status"], &row["charges_enabled"]),
                (&json!(status), &json!(charges))
            );
            assert_eq!(row["name"], "Acct");
        }
        Ok(())
    });
}

#[test]
fn a_statement_paid_through_stripe_has_both_its_halves() {
    flow(false, async |stage| {
        let world = &stage.world;
        let row = json!({ "statement_id": "st_both", "amount_due": 4200, "currency": "usd", "lob_letter_id": "ltr_both" });
        world.put("StatementsTable", row).await?;
        let metadata = json!({ "statement_id": "st_both" });
        world
            .stripe(
                &intent_succeeded("evt_both_p", world.now_s(), "pi_both", metadata, 4200),
                1,
            )
            .await?;
        world
            .lob(&letter(
                "evt_both_l",
                "2026-11-20T08:00:00.000Z",
                "ltr_both",
                "mailed",
            ))
            .await?;
        world.settled(STRIPE, "processed", &["evt_both_p"]).await?;
        world.settled(LOB, "processed", &["evt_both_l"]).await?;
        let row = world.statement("st_both").await?;
        assert_eq!(
            (&row["payment_status"], &row["amount_paid"]),
            (&json!("paid"), &json!(4200))
        );
        assert_eq!(
            (&row["mail_status"], &row["version"]),
            (&json!("mailed"), &json!(2))
        );
        assert_eq!(row["stripe_payment_intent_id"], "pi_both");
        assert_eq!(types(&row), ["mail_mailed", "payment_succeeded"]);
        Ok(())
    });
}

/// A provider's sample, with ids of its own so that no two samples meet.
fn sample(provider: &str, name: &str, own: &str) -> Value {
    let path = repository().join(format!("events/payloads/{provider}/{name}.json"));
    let text = std::fs::read_to_string(path).unwrap();
    let text = text
        .replace("SAMPLE", own)
        .replace("ord_2041", &format!("ord_{own}"));
    serde_json::from_str(&text.replace("4a1b2c3d4e5f6071", own)).unwrap()
}

#[test]
fn every_sample_of_stripe_leaves_the_row_of_this_table() {
    // Sample, and of its order: status, paymentStatus, requiresReview, amountRefunded, timeline.
    const ROWS: [(&str, &str); 20] = [
        (
            "checkout_session_completed_paid",
            "completed paid false 0 checkout_completed,payment_succeeded",
        ),
        (
            "checkout_session_completed_unpaid_delayed_method",
            "pending unpaid false 0 checkout_completed",
        ),
        (
            "checkout_session_completed_subscription",
            "completed paid false 0 checkout_completed,payment_succeeded",
        ),
        (
            "checkout_session_async_payment_succeeded",
            "completed paid false 0 payment_succeeded",
        ),
        (
            "checkout_session_async_payment_failed",
            "payment_failed failed false 0 payment_failed",
        ),
        (
            "checkout_session_expired",
            "pending unpaid false 0 checkout_expired",
        ),
        (
            "payment_intent_processing",
            "pending processing false 0 payment_processing",
        ),
        (
            "payment_intent_succeeded",
            "completed paid false 0 payment_succeeded",
        ),
        (
            "payment_intent_payment_failed",
            "payment_failed failed false 0 payment_failed",
        ),
        ("payment_intent_canceled", "pending unpaid false 0 "),
        (
            "connect_payment_intent_succeeded_direct_charge",
            "completed paid false 0 payment_succeeded",
        ),
        (
            "charge_refunded_partial",
            "pending unpaid false 1500 refund_partial",
        ),
        (
            "charge_refunded_full",
            "refunded refunded false 4200 refund_full",
        ),
        ("refund_created", "pending unpaid false 4200 refund_partial"),
        ("refund_updated", "pending unpaid false 4200 refund_partial"),
        (
            "refund_failed",
            "pending unpaid true 0 refund_failed,review_flagged",
        ),
        (
            "charge_dispute_created",
            "pending disputed true 0 dispute_opened,review_flagged",
        ),
        (
            "charge_dispute_funds_withdrawn",
            "pending disputed true 0 dispute_opened,review_flagged",
        ),
        (
            "charge_dispute_funds_reinstated",
            "pending unpaid false 0 dispute_opened,dispute_won",
        ),
        (
            "charge_dispute_closed_lost",
            "pending charged_back true 0 dispute_lost,dispute_opened,review_flagged",
        ),
    ];
    flow(false, async |stage| {
        let world = &stage.world;
        let mut found = Vec::new();
        for (n, (name, _)) in ROWS.iter().enumerate() {
            let own = format!("S{n:02}");
            let mut event = sample("stripe", name, &own);
            event["livemode"] = json!(false);
            let mut row = json!({ "id": format!("ord_{own}"), "status": "pending", "amountTotal": 4200, "currency": "usd" });
            // A dispute names its payment only.
            let object = &event["data"]["object"];
            if let Some(intent) = object["payment_intent"].as_str() {
                row["stripePaymentIntentId"] = json!(intent);
            }
            if let Some(account) = event["account"].as_str() {
                row["tenantId"] = json!(own);
                let tenant = json!({ "tenant_id": own, "stripe_connected_account_id": account });
                world.put("TenantsTable", tenant).await?;
            }
            world.put("OrdersTable", row).await?;
            world.stripe(&event, 1).await?;
            world
                .settled(STRIPE, "processed", &[event["id"].as_str().unwrap()])
                .await?;
            let row = world.order(&format!("ord_{own}")).await?;
            found.push(format!(
                "{} {} {} {} {}",
                row["status"].as_str().unwrap(),
                row["paymentStatus"].as_str().unwrap(),
                row["requiresReview"],
                row["amountRefunded"],
                types(&row).join(",")
            ));
        }
        for ((name, expected), found) in ROWS.iter().zip(&found) {
            assert_eq!(found, expected, "{name}");
        }
        Ok(())
    });
}

#[test]
fn every_sample_of_lob_leaves_the_row_of_this_table() {
    // Sample, and of its statement: mail_status, attention_reason, expected_delivery_date, tracking_number, timeline.
    const ROWS: [(&str, &str); 20] = [
        ("letter_created", "created - 2026-06-17 - mail_created"),
        (
            "letter_rendered_pdf",
            "rendered_pdf - 2026-06-17 - mail_rendered_pdf",
        ),
        (
            "letter_rendered_thumbnails",
            "rendered_thumbnails - 2026-06-17 - mail_rendered_thumbnails",
        ),
        ("letter_mailed", "mailed - 2026-06-17 - mail_mailed"),
        (
            "letter_in_transit",
            "in_transit - 2026-06-17 - mail_in_transit",
        ),
        (
            "letter_in_local_area",
            "in_local_area - 2026-06-17 - mail_in_local_area",
        ),
        (
            "letter_processed_for_delivery",
            "processed_for_delivery - 2026-06-17 - mail_processed_for_delivery",
        ),
        (
            "letter_processed_for_delivery_redacted",
            "processed_for_delivery - 2026-06-17 - mail_processed_for_delivery",
        ),
        (
            "letter_delivered",
            "delivered - 2026-06-17 - mail_delivered",
        ),
        (
            "letter_returned_to_sender",
            "returned_to_sender returned_to_sender 2026-06-17 - mail_returned_to_sender",
        ),
        ("letter_re-routed", "- - 2026-06-17 - mail_re_routed"),
        ("letter_failed", "failed failed 2026-06-17 - mail_failed"),
        ("letter_deleted", "deleted - - - mail_deleted"),
        ("letter_viewed", "- - 2026-06-17 - mail_viewed"),
        (
            "letter_certified_delivered",
            "delivered - 2026-06-17 92071902358909000011275538 mail_delivered",
        ),
        (
            "letter_certified_issue",
            "- issue 2026-06-17 92071902358909000011275538 mail_issue",
        ),
        ("postcard_created", "created - 2026-06-17 - mail_created"),
        (
            "postcard_delivered",
            "delivered - 2026-06-17 - mail_delivered",
        ),
        (
            "self_mailer_returned_to_sender",
            "returned_to_sender returned_to_sender 2026-06-24 - mail_returned_to_sender",
        ),
        ("check_mailed", "mailed - 2026-06-17 - mail_mailed"),
    ];
    flow(false, async |stage| {
        let world = &stage.world;
        let mut found = Vec::new();
        for (n, (name, _)) in ROWS.iter().enumerate() {
            let own = format!("{n:016x}");
            let mut event = sample("lob", name, &own);
            event["id"] = json!(format!("evt_sample_{n}"));
            let statement = format!("st_{own}");
            let row = json!({ "statement_id": statement, "lob_letter_id": event["reference_id"] });
            world.put("StatementsTable", row).await?;
            assert_eq!(world.lob(&event).await?.status, 200, "{name}");
            world
                .settled(LOB, "processed", &[event["id"].as_str().unwrap()])
                .await?;
            let row = world.statement(&statement).await?;
            let text = |column: &str| row[column].as_str().unwrap_or("-").to_owned();
            found.push(format!(
                "{} {} {} {} {}",
                text("mail_status"),
                text("attention_reason"),
                text("expected_delivery_date"),
                text("tracking_number"),
                types(&row).join(",")
            ));
            // The next sample of the same piece is another statement's.
            world
                .put("StatementsTable", json!({ "statement_id": statement }))
                .await?;
        }
        for ((name, expected), found) in ROWS.iter().zip(&found) {
            assert_eq!(found, expected, "{name}");
        }
        Ok(())
    });
}

/// Invokes a function by hand, as the console's test button does.
async fn invoke(world: &World, output: &str, input: &Value) -> Result<Value> {
    world.invoke(world.stack.output(output)?, input).await
}

/// The endpoints that Stripe holds for a URL, by id, with whether they are for connected accounts.
fn endpoints(stage: &Stage, url: &str) -> BTreeMap<String, bool> {
    let state = stage.stripe.state();
    let spaces = state["spaces"].as_array().unwrap().iter();
    let objects = spaces.flat_map(|space| space["objects"].as_array().unwrap());
    objects
        .filter(|object| object["object"] == "webhook_endpoint" && object["url"] == url)
        .map(|endpoint| {
            let id = endpoint["id"].as_str().unwrap();
            (id.to_owned(), state["endpoints"][id]["connect"] == true)
        })
        .collect()
}

#[test]
fn a_stacks_endpoints_are_made_replaced_and_removed_with_it() {
    flow(false, async |stage| {
        let app = format!("life{}", std::process::id());
        let name = format!("{app}-test");
        let parameters = [
            ("AppName", app.as_str()),
            ("Env", "test"),
            ("OrdersTableName", app.as_str()),
        ];
        let world = World::deploy(&stage.aws, &name, &parameters, &stage.stripe.base_url()).await?;
        let url = world.stack.url("/webhooks/stripe");
        let made = endpoints(stage, &url);
        assert_eq!(made.len(), 2);
        assert_eq!(
            made.values().filter(|connect| **connect).count(),
            1,
            "{made:?}"
        );
        let first = signing_secret(&world, "StripeWebhookSecretArn").await?;

        let rotated = [parameters.as_slice(), &[("RotationToken", "3")]].concat();
        world.update(&stage.aws, &rotated).await?;
        let replaced = endpoints(stage, &url);
        assert_eq!(replaced.len(), 2);
        assert!(
            replaced.keys().all(|id| !made.contains_key(id)),
            "{made:?} became {replaced:?}"
        );
        let second = signing_secret(&world, "StripeWebhookSecretArn").await?;
        assert_ne!(first, second);
        // What was signed before the replacement arrives after it.
        let now = world.now_s();
        for (id, secret) in [("evt_life_old", &first), ("evt_life_new", &second)] {
            let body = intent_succeeded(id, now, "pi_life", json!({}), 4200).to_string();
            let header = sign_stripe(body.as_bytes(), secret, now);
            let headers = [("Stripe-Signature", &*header)];
            let answer = world
                .request("POST", "/webhooks/stripe", &headers, body.as_bytes())
                .await?;
            assert_eq!(answer.status, 200, "{id}: {answer:?}");
        }
        world
            .settled(STRIPE, "parked", &["evt_life_old", "evt_life_new"])
            .await?;

        let (aws, stack) = (Arc::clone(&stage.aws), name.clone());
        tokio::task::spawn_blocking(move || delete(&aws, &stack)).await??;
        assert_eq!(endpoints(stage, &url).len(), 0);
        Ok(())
    });
}
