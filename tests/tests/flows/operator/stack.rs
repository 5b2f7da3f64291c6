//! The stack itself: its secrets, its functions, its checks, its lines.

use std::io::{BufRead as _, BufReader};

use super::*;

#[test]
fn scheduled_tasks_are_run_by_an_operator() {
    flow(true, async |stage| {
        let counted = run_billhook(stage, "cleanup run --dry-run --output json")
            .await?
            .json();
        assert_eq!(counted["dry_run"], true);
        let refused = run_billhook(stage, "cleanup run --minutes 0").await?;
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        for task in [
            "sweep run --reason late --yes",
            "reconcile run --reason late --yes",
            "proof run",
        ] {
            let done = run_billhook(stage, &format!("{task} --output json")).await?;
            assert!(
                done.code == 0 && done.json().is_object(),
                "{task}: {}{}",
                done.stdout,
                done.stderr
            );
        }
        Ok(())
    });
}

#[test]
fn secrets_show_their_ages_and_are_rotated() {
    flow(true, async |stage| {
        let world = &stage.world;
        let before = signing_secret(world, "StripeWebhookSecretArn").await?;
        let status = run_billhook(stage, "secrets status --output json").await?;
        assert!(!status.stdout.contains(&before) && !status.stdout.contains("sk_test"));
        let is_current = |row: &&Value| row["stage"] == "AWSCURRENT";
        let status = status.json();
        let current: Vec<&Value> = status
            .as_array()
            .unwrap()
            .iter()
            .filter(is_current)
            .collect();
        let secrets = [
            "AppSecret",
            "InboundSecret",
            "SealPublicSecret",
            "StateSealSecret",
            "StripeWebhookSecret",
            "StripePlatformWebhookSecret",
        ];
        for (row, secret) in current.iter().zip(secrets) {
            let drift = match secret {
                "StripeWebhookSecret" | "StripePlatformWebhookSecret" => &json!("none"),
                _ => &Value::Null,
            };
            assert_eq!(
                (&row["secret"], &row["drift"]),
                (&json!(secret), drift),
                "{status}"
            );
        }
        let preview = run_billhook(stage, "secrets rotate stripe").await?;
        preview.assert_exit(4, "secrets rotate stripe --reason … --yes");
        assert_eq!(
            signing_secret(world, "StripeWebhookSecretArn").await?,
            before
        );
        let old = stage.endpoints();
        let rotated = run_billhook(
            stage,
            "secrets rotate stripe --revoke --reason yearly --yes",
        )
        .await?;
        rotated.assert_exit(0, "done: the endpoints at Stripe are replaced: we_");
        let arn = world.stack.output("StripeWebhookSecretArn")?;
        for stage in ["AWSCURRENT", "AWSPREVIOUS"] {
            let get = world.aws.secrets_manager().get_secret_value();
            let get = get.secret_id(arn).version_stage(stage).send().await?;
            let text = get.secret_string.unwrap();
            assert!(!text.contains(&before), "{stage} has the revoked secret");
        }
        assert_ne!(
            signing_secret(world, "StripeWebhookSecretArn").await?,
            before
        );
        let new = stage.endpoints();
        assert!(
            new.len() == 2 && new.keys().all(|id| !old.contains_key(id)),
            "{old:?} {new:?}"
        );

        // `secrets status` and `doctor` both report the drift.
        let (id, url) = (
            new.keys().next().unwrap(),
            "https://elsewhere.example/hooks",
        );
        let moved = json!({ "object": "webhook_endpoint", "id": id, "url": url, "enabled_events": ["*"],
            "status": "disabled", "api_version": null, "metadata": {} });
        let stood = find_stripe_object(stage, id);
        stage.stripe.put(None, moved);
        let status = run_billhook(stage, "secrets status").await?;
        let drift =
            format!("it is disabled; it sends to {url}; it sends API version (account default)");
        assert!(status.stdout.contains(&drift), "{}", status.stdout);
        let looked = run_billhook(stage, "doctor --read-only").await?;
        assert!(
            looked.code == 4 && looked.stdout.contains(&drift),
            "{}",
            looked.stdout
        );
        stage.stripe.put(None, stood);
        Ok(())
    });
}

fn find_stripe_object(stage: &Stage, id: &str) -> Value {
    let state = stage.stripe.state();
    let spaces = state["spaces"].as_array().unwrap().iter();
    let mut objects = spaces.flat_map(|space| space["objects"].as_array().unwrap());
    objects.find(|object| object["id"] == id).unwrap().clone()
}

pub(super) async fn stored_stripe_key(world: &World) -> Result<String> {
    let arn = world.stack.output("AppSecretArn")?;
    let secrets = world.aws.secrets_manager();
    let read = secrets.get_secret_value().secret_id(arn).send().await?;
    let document: Value = serde_json::from_str(read.secret_string().unwrap_or_default())?;
    Ok(document["stripe_secret_key"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

#[test]
fn keys_are_put_from_standard_input_and_a_wrong_one_is_refused() {
    flow(true, async |stage| {
        let world = &stage.world;
        let put = "secrets put stripe-key --reason new --yes";
        run_with_input(stage, put, TEST_KEY).await?.assert_exit(
            0,
            "if the stack has no endpoints at Stripe yet, create them",
        );
        let live = run_with_input(stage, put, "sk_live_notofthisstage").await?;
        live.assert_exit(1, "the Stripe key is a live one");
        assert!(!live.stderr.contains("notofthisstage"), "{}", live.stderr);
        run_with_input(stage, put, "whsec_1")
            .await?
            .assert_exit(1, "does not begin with sk_ or rk_");
        run_with_input(stage, put, "sk_test_nobodyknowsthis")
            .await?
            .assert_exit(1, "the key was tried and nothing was stored");
        let mut allowed = vec![
            ("webhook_endpoints", true),
            ("payment_intents", true),
            ("checkout", false),
        ];
        let restricted = "rk_test_local0123456789";
        stage.stripe.admit_key(restricted, Some(&allowed));
        run_with_input(stage, put, restricted).await?.assert_exit(
            1,
            "nothing was stored: Events: Read (reconcile), Checkout Sessions: Write (cleanup)",
        );
        assert_eq!(stored_stripe_key(world).await?, TEST_KEY);
        allowed.extend([("events", false), ("checkout", true)]);
        stage.stripe.admit_key(restricted, Some(&allowed));
        let stored = run_with_input(stage, put, restricted).await?;
        stored.assert_exit(
            0,
            "the key lacks Charges and Refunds: Read (billhook prove --with-stripe), Disputes: Read",
        );
        assert_eq!(stored_stripe_key(world).await?, restricted);
        stage.stripe.revoke_key(restricted);
        run_with_input(stage, put, "")
            .await?
            .assert_exit(1, "standard input has no secret");
        let (put, back) = (
            "secrets put lob --reason new --yes",
            "secrets rollback lob --reason wrong --yes",
        );
        run_with_input(stage, put, "local_lob_webhook_secret_2001")
            .await?
            .assert_exit(0, "stays valid for 24 hours");
        run_billhook(stage, back)
            .await?
            .assert_exit(0, "both secrets stay valid for 24 hours");
        run_with_input(stage, "secrets put stripe-key --reason new --yes", TEST_KEY)
            .await?
            .assert_exit(0, "stored;");
        run_with_input(stage, put, LOB_SECRET)
            .await?
            .assert_exit(0, "stored;");
        run_billhook(stage, back)
            .await?
            .assert_exit(1, "the previous version has the same lob_webhook_secret");
        let put = "secrets put lob --revoke --reason leaked --yes";
        run_with_input(stage, put, LOB_SECRET)
            .await?
            .assert_exit(0, "refused within 15 minutes");
        let read = async |output: &str| -> Result<Value> {
            let read = world.aws.secrets_manager().get_secret_value();
            let read = read.secret_id(world.stack.output(output)?).send().await?;
            Ok(serde_json::from_str(read.secret_string().unwrap())?)
        };
        let keys = json!({ "stripe_secret_key": TEST_KEY });
        let inbound = json!({ "lob_webhook_secret": LOB_SECRET, "previous": [] });
        assert_eq!(read("AppSecretArn").await?, keys);
        assert_eq!(read("InboundSecretArn").await?, inbound);

        // Both in one, as an older release had it.
        let both = json!({ "stripe_secret_key": TEST_KEY, "lob_webhook_secret": LOB_SECRET });
        for (output, text) in [
            ("AppSecretArn", both.to_string()),
            ("InboundSecretArn", "{}".to_owned()),
        ] {
            let put = world.aws.secrets_manager().put_secret_value();
            let put = put.secret_id(world.stack.output(output)?);
            put.secret_string(text).send().await?;
        }
        let looked = run_billhook(stage, "doctor --read-only").await?;
        assert!(
            looked.stdout.contains("it also has lob_webhook_secret"),
            "{}",
            looked.stdout
        );
        run_billhook(stage, "secrets split")
            .await?
            .assert_exit(4, "secrets split --reason … --yes");
        assert_eq!(read("AppSecretArn").await?, both);
        run_billhook(stage, "secrets split --reason moved --yes")
            .await?
            .assert_exit(0, "lob_webhook_secret is now in arn:");
        assert_eq!(read("AppSecretArn").await?, keys);
        assert_eq!(read("InboundSecretArn").await?, inbound);
        run_billhook(stage, "secrets split --reason moved --yes")
            .await?
            .assert_exit(0, "nothing that belongs elsewhere");
        Ok(())
    });
}

#[test]
fn doctor_checks_a_stack_and_metrics_counts_its_events() {
    flow(true, async |stage| {
        let world = &stage.world;
        let looked = run_billhook(stage, "doctor --output json").await?;
        let found: Vec<Value> = serde_json::from_str(&looked.stdout)?;
        let result = |check: &str| {
            found
                .iter()
                .find(|found| found["check"] == check)
                .map(|found| found["result"].clone())
        };
        for check in [
            "StripeEventsDlq empty",
            "LobEventsQueue has a dead-letter queue",
            "StripeEventsTable indexes ACTIVE",
            "stripe signing secret",
            "lob signing secret",
            "StripeWebhookSecret is younger than a year",
            "Stripe key is stored and of the right mode",
            "StripeWebhookEndpoint at Stripe",
            "StripePlatformWebhookEndpoint at Stripe",
            "no other endpoint of this stack at Stripe",
            "each connected account has one tenant",
            "no tenant has the platform's own account",
            "alarms exist and have actions",
            "API ThrottleRate",
            "API ThrottleBurst",
            "API has a firewall",
            "API responds",
            "stripe test event is accepted",
            "stripe test event is processed",
            "lob test event is accepted",
            "lob test event is processed",
        ] {
            assert_eq!(
                result(check),
                Some(json!("ok")),
                "{check}: {}",
                looked.stdout
            );
        }
        // The local AWS does not turn on what the template asks for here.
        let recovery = result("OrdersTable recovers to a point in time");
        assert_eq!(recovery, Some(json!("bad")), "{}", looked.stdout);
        // Nobody gave an address.
        let hears = result("the alarm topic has a subscriber");
        assert_eq!(hears, Some(json!("bad")), "{}", looked.stdout);
        world
            .send("LobEventsDlqUrl", "op_doctor", "op_doctor", "nonsense")
            .await?;
        let looked = run_billhook(stage, "doctor").await?;
        assert!(
            looked.code == 4 && looked.stdout.contains("bad     LobEventsDlq empty"),
            "{}",
            looked.stdout
        );
        let purge = "dlq purge --queue lob --reason 'a test' --yes";
        assert_eq!(run_billhook(stage, purge).await?.code, 0);

        let paid = intent_succeeded(
            "evt_op_counted",
            world.now_s(),
            "pi_op_counted",
            named("ord_op_nowhere"),
            4200,
        );
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "parked", &["evt_op_counted"]).await?;
        let counted = run_billhook(stage, "metrics export --since 1h").await?;
        assert!(counted.stdout.contains("stripe_webhook_events_total{event_type=\"payment_intent.succeeded\",result=\"accepted\"}"), "{}", counted.stdout);
        Ok(())
    });
}

#[test]
fn log_lines_are_found_by_correlation_id() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_op_logs", None).await?;
        let paid = intent_succeeded(
            "evt_op_logs",
            world.now_s(),
            "pi_op_logs",
            named("ord_op_logs"),
            4200,
        );
        let answers = world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_op_logs"]).await?;
        let correlation = answers[0].body["correlation_id"].as_str().unwrap();
        let asked = format!("logs --correlation {correlation} --output json");
        let mut lines = Value::Null;
        let are_found = world
            .until(async || {
                lines = run_billhook(stage, &asked).await?.json();
                Ok(["stripe_webhook_received", "event_processed"]
                    .iter()
                    .all(|name| lines.to_string().contains(name)))
            })
            .await?;
        assert!(are_found, "{lines}");
        // One may be about a secret that was read again, and so about no event.
        let is_of_story = |line: &Value| line.get("event_id").is_none_or(|id| id == "evt_op_logs");
        assert!(lines.as_array().unwrap().iter().all(is_of_story), "{lines}");

        // Followed, lines come as they are written, until Ctrl-C.
        let mut following = start_billhook(stage, "logs --since 1s --follow --output jsonl")?;
        let mut followed = BufReader::new(following.stdout.take().unwrap()).lines();
        let later = intent_succeeded(
            "evt_op_later",
            world.now_s(),
            "pi_op_later",
            named("ord_op_logs"),
            4200,
        );
        world.stripe(&later, 1).await?;
        tokio::task::spawn_blocking(move || {
            followed.find(|line| {
                line.as_ref()
                    .is_ok_and(|line| line.contains("evt_op_later"))
            })
        })
        .await?
        .unwrap()?;
        assert_eq!(interrupt_billhook(following).await?.code, 0);
        Ok(())
    });
}
