//! Migration of an older installation: its secrets as they are, its rows and events by the programs of
//! `docs/migrate.md`.

use billhook_testkit::local::{DeployOptions, deploy};
use billhook_testkit::sign::sign_lob;
use billhook_testkit::stripe::TEST_KEY;

use super::*;

const OLD_SIGNING: &str = "whsec_of_the_old_endpoint_0001";
const OLD_LOB: &str = "lob_webhook_secret_of_old";

/// The page's programs, in its order.
fn program(title: &str) -> String {
    let page = std::fs::read_to_string(repository().join("docs/migrate.md")).unwrap();
    let blocks = page.split("```python\n").skip(1);
    let mut programs = blocks.map(|block| block.split("```").next().unwrap());
    programs
        .find(|program| program.starts_with(title))
        .unwrap()
        .to_owned()
}

async fn python(stage: &'static Stage, title: &str, arguments: &[&str]) -> Result<String> {
    let mut python = Command::new(repository().join(".venv/bin/python"));
    python
        .args(["-c", &program(title)])
        .args(arguments)
        .env_clear()
        .envs(stage.aws.env())
        .env("SIGNING_SECRET", OLD_SIGNING);
    let output = tokio::task::spawn_blocking(move || python.output()).await??;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    Ok(String::from_utf8(output.stdout)?)
}

async fn secret(world: &World, name: &str, value: &Value) -> Result<String> {
    let create = world.aws.secrets_manager().create_secret().name(name);
    let made = create.secret_string(value.to_string()).send().await?;
    Ok(made.arn.unwrap())
}

async fn table(world: &World, name: &str, key: &str) -> Result<()> {
    use aws_sdk_dynamodb::types::{
        AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    };
    let attribute = AttributeDefinition::builder()
        .attribute_name(key)
        .attribute_type(ScalarAttributeType::S);
    let hash = KeySchemaElement::builder()
        .attribute_name(key)
        .key_type(KeyType::Hash);
    let create = world.aws.dynamodb().create_table().table_name(name);
    let create = create
        .attribute_definitions(attribute.build()?)
        .key_schema(hash.build()?)
        .billing_mode(BillingMode::PayPerRequest);
    create.send().await?;
    Ok(())
}

async fn put(world: &World, table: &str, row: Value) -> Result<()> {
    let put = world.aws.dynamodb().put_item().table_name(table);
    put.set_item(Some(serde_dynamo::to_item(row)?))
        .send()
        .await?;
    Ok(())
}

#[test]
fn an_older_installation_moves_in_without_losing_a_delivery() {
    flow(false, async |stage| {
        let app = format!("move{}", std::process::id());
        let (old_orders, old_events) = (format!("{app}-old-orders"), format!("{app}-old-events"));
        let here = &stage.world;
        let now = here.now_s();

        // Secrets in the shapes of others, before the first deploy.
        let keys = json!({ "secretKey": TEST_KEY, "webhookSecret": OLD_LOB });
        // Its name is one that docs/policies allows a person to read and write.
        let keys = secret(here, &format!("{app}/test/App"), &keys).await?;
        let signing = json!({ "webhookSecret": OLD_SIGNING });
        let signing = secret(here, &format!("{app}/old/signing"), &signing).await?;
        // A Stripe of its own: the stage's sends to every endpoint it has.
        let stripe = LocalStripe::start(Config::default()).await?;
        let base = stripe.base_url();
        let options = DeployOptions::new(
            &format!("{app}-test"),
            &[
                ("AppName", &app),
                ("Env", "test"),
                ("OrdersTableName", &app),
                ("StripeEndpoints", "platform"),
                ("ExistingAppSecretArn", &keys),
                ("ExistingStripePlatformWebhookSecretArn", &signing),
                ("StripeApiBase", &base),
                ("ApiGatewayLogRole", "existing"),
            ],
        );
        let aws = Arc::clone(&stage.aws);
        let stack = tokio::task::spawn_blocking(move || deploy(&aws, &options)).await??;
        let world = World::around(&stage.aws, stack, &base)?;
        assert_eq!(world.stack.output("AppSecretArn")?, keys);
        // Ingress cannot read the key, and so nothing else that is beside it.
        let split = deploy::billhook_on(
            stage,
            &format!("{app}-test"),
            "secrets split --reason moved --yes",
            "",
        )
        .await?;
        split.assert_exit(0, "lob_webhook_secret is now in");
        let url = world.stack.url("/webhooks/stripe");
        // billhook's own endpoint was made, its secret put beside the old one.
        assert_eq!(rotation::endpoints(&stripe, &url).len(), 1);
        let own = signing_secret(&world, "StripePlatformWebhookSecretArn").await?;
        assert_ne!(own, OLD_SIGNING);

        // Rows of another shape.
        table(&world, &old_orders, "orderId").await?;
        let old = json!({ "orderId": "ord_moved", "user_id": "user_7", "status": "paid", "total": "42.00",
            "currency": "USD", "shelf": "A3" });
        put(&world, &old_orders, old).await?;
        let copy = [old_orders.as_str(), app.as_str()];
        let told = python(stage, "\"\"\"Copies orders", &copy).await?;
        assert_eq!(told.trim(), "1 copied, 0 were there");
        let told = python(stage, "\"\"\"Copies orders", &copy).await?;
        assert_eq!(told.trim(), "0 copied, 1 were there");
        let row = world.order("ord_moved").await?;
        assert_eq!(row["amountTotal"], 4200);

        // What it went through, signed with the secret that the old endpoint had.
        table(&world, &old_events, "id").await?;
        let paid = intent_succeeded("evt_moved", now, "pi_moved", named("ord_moved"), 4200);
        let stored = json!({ "id": "evt_moved", "payload": paid.to_string() });
        put(&world, &old_events, stored).await?;
        let post = [old_events.as_str(), url.as_str()];
        for _ in 0..2 {
            let told = python(stage, "\"\"\"Posts stored events", &post).await?;
            assert_eq!(told.trim(), "1 posted");
        }
        world.settled(STRIPE, "processed", &["evt_moved"]).await?;

        // From then on events come from billhook's own endpoint, and what the old one owes is taken as well.
        let refund = charge_refunded("evt_moved_r", now + 1, "ch_moved", Some("pi_moved"), 1200);
        for (id, signed_with) in [("evt_moved_r", &*own), ("evt_moved_owed", OLD_SIGNING)] {
            let mut event = refund.clone();
            event["id"] = json!(id);
            let body = event.to_string();
            let header = sign_stripe(body.as_bytes(), signed_with, world.now_s());
            let headers = [("Stripe-Signature", &*header)];
            let answer = world
                .request("POST", "/webhooks/stripe", &headers, body.as_bytes())
                .await?;
            assert_eq!(answer.status, 200, "{id}: {answer:?}");
            world.settled(STRIPE, "processed", &[id]).await?;
        }
        let row = world.order("ord_moved").await?;
        let state = [
            "status",
            "paymentStatus",
            "amountRefunded",
            "userId",
            "shelf",
        ];
        let state = state.map(|column| &row[column]);
        let expected = [
            json!("completed"),
            json!("paid"),
            json!(1200),
            json!("user_7"),
            json!("A3"),
        ];
        assert_eq!(state, expected.each_ref(), "{row}");

        // What the page warns of: an order without its events is what the next one says.
        let bare = json!({ "id": "ord_bare", "status": "completed", "amountTotal": 4200, "currency": "usd",
            "stripePaymentIntentId": "pi_bare" });
        put(&world, &app, bare).await?;
        let body = charge_refunded("evt_bare", now, "ch_bare", Some("pi_bare"), 1200).to_string();
        let header = sign_stripe(body.as_bytes(), &own, world.now_s());
        let headers = [("Stripe-Signature", &*header)];
        world
            .request("POST", "/webhooks/stripe", &headers, body.as_bytes())
            .await?;
        world.settled(STRIPE, "processed", &["evt_bare"]).await?;
        let row = world.order("ord_bare").await?;
        let found = (
            &row["status"],
            &row["requiresReview"],
            &row["reviewReasons"],
        );
        let unproven = row["reviewReasons"].to_string().contains("paid_unproven");
        assert_eq!((found.0, found.1), (&json!("completed"), &json!(true)));
        assert!(unproven, "{row}");

        // Lob, with its secret in the old shape.
        let body = letter(
            "evt_moved_lob",
            "2026-01-01T00:00:00Z",
            "ltr_moved",
            "mailed",
        )
        .to_string();
        let timestamp = (world.now_s() * 1000).to_string();
        let signature = sign_lob(body.as_bytes(), OLD_LOB, &timestamp);
        let headers = [
            ("Lob-Signature", &*signature),
            ("Lob-Signature-Timestamp", &*timestamp),
        ];
        let answer = world
            .request("POST", "/webhooks/lob", &headers, body.as_bytes())
            .await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        world.settled(LOB, "parked", &["evt_moved_lob"]).await?;
        world.drained().await
    });
}
