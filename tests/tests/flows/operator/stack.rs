//! The stack itself: its secrets, its functions, its checks, its lines.

use std::io::{BufRead as _, BufReader};

use super::*;

#[test]
fn the_scheduled_tasks_are_run_by_hand() {
    flow(true, async |stage| {
        let counted = billhook(stage, "cleanup run --dry-run --output json")
            .await?
            .json();
        assert_eq!(counted["dry_run"], true);
        let refused = billhook(stage, "cleanup run --minutes 0").await?;
        assert_eq!(refused.code, 2, "{}", refused.told);
        for task in ["sweep", "reconcile"] {
            let done = billhook(stage, &format!("{task} run --output json")).await?;
            assert!(
                done.code == 0 && done.json().is_object(),
                "{task}: {}{}",
                done.out,
                done.told
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
        let status = billhook(stage, "secrets status --output json").await?;
        assert!(!status.out.contains(&before) && !status.out.contains("sk_test"));
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
            "StripeWebhookSecret",
            "StripePlatformWebhookSecret",
        ];
        for (row, secret) in current.iter().zip(secrets) {
            let drift = match secret {
                "AppSecret" => &Value::Null,
                _ => &json!("none"),
            };
            assert_eq!(
                (&row["secret"], &row["drift"]),
                (&json!(secret), drift),
                "{status}"
            );
        }
        let preview = billhook(stage, "secrets rotate stripe").await?;
        preview.says(0, "Nothing was done");
        assert_eq!(
            signing_secret(world, "StripeWebhookSecretArn").await?,
            before
        );
        let old = stage.endpoints();
        let rotated = billhook(stage, "secrets rotate stripe --yes").await?;
        rotated.says(0, "endpoints of Stripe are replaced");
        assert_ne!(
            signing_secret(world, "StripeWebhookSecretArn").await?,
            before
        );
        let new = stage.endpoints();
        assert!(
            new.len() == 2 && new.keys().all(|id| !old.contains_key(id)),
            "{old:?} {new:?}"
        );

        // What somebody changed at Stripe is seen, by the checks as well.
        let (id, url) = (
            new.keys().next().unwrap(),
            "https://elsewhere.example/hooks",
        );
        let moved = json!({ "object": "webhook_endpoint", "id": id, "url": url, "enabled_events": ["*"],
            "status": "disabled", "api_version": null, "metadata": {} });
        let stood = at_stripe(stage, id);
        stage.stripe.put(None, moved);
        let status = billhook(stage, "secrets status").await?;
        let drift = format!("it is disabled; it sends to {url}; it sends version of the account");
        assert!(status.out.contains(&drift), "{}", status.out);
        let looked = billhook(stage, "doctor --read-only").await?;
        assert!(
            looked.code == 4 && looked.out.contains(&drift),
            "{}",
            looked.out
        );
        stage.stripe.put(None, stood);
        Ok(())
    });
}

fn at_stripe(stage: &Stage, id: &str) -> Value {
    let state = stage.stripe.state();
    let spaces = state["spaces"].as_array().unwrap().iter();
    let mut objects = spaces.flat_map(|space| space["objects"].as_array().unwrap());
    objects.find(|object| object["id"] == id).unwrap().clone()
}

#[test]
fn keys_are_put_from_standard_input_and_a_wrong_one_is_refused() {
    flow(true, async |stage| {
        let world = &stage.world;
        let put = "secrets put stripe-key";
        told(stage, put, TEST_KEY)
            .await?
            .says(0, "have the endpoints made with it");
        let live = told(stage, put, "sk_live_notofthisstage").await?;
        live.says(1, "the Stripe key is a live one");
        assert!(!live.told.contains("notofthisstage"), "{}", live.told);
        told(stage, put, "whsec_1")
            .await?
            .says(1, "does not begin with sk_ or rk_");
        told(stage, put, "")
            .await?
            .says(1, "no secret came on standard input");
        let (put, back) = ("secrets put lob", "secrets rollback lob --yes");
        told(stage, put, "local_lob_webhook_secret_2001")
            .await?
            .says(0, "another 24 hours");
        billhook(stage, back)
            .await?
            .says(0, "both are taken for another 24 hours");
        told(stage, "secrets put stripe-key", TEST_KEY)
            .await?
            .says(0, "put;");
        billhook(stage, back)
            .await?
            .says(1, "the version before has the same lob_webhook_secret");
        let put = "secrets put lob --revoke";
        told(stage, put, LOB_SECRET)
            .await?
            .says(0, "refused within 15 minutes");
        let arn = world.stack.output("AppSecretArn")?;
        let read = world
            .aws
            .secrets_manager()
            .get_secret_value()
            .secret_id(arn);
        let stands: Value = serde_json::from_str(read.send().await?.secret_string().unwrap())?;
        let stands = (&stands["stripe_secret_key"], &stands["lob_webhook_secret"]);
        assert_eq!(stands, (&json!(TEST_KEY), &json!(LOB_SECRET)));
        Ok(())
    });
}

#[test]
fn a_stack_is_looked_over_and_its_events_counted() {
    flow(true, async |stage| {
        let world = &stage.world;
        let looked = billhook(stage, "doctor --output json").await?;
        let found: Vec<Value> = serde_json::from_str(&looked.out)?;
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
            "StripeWebhookEndpoint at Stripe",
            "StripePlatformWebhookEndpoint at Stripe",
            "no other endpoint of this stack at Stripe",
            "alarms are there and act",
            "API ThrottleRate",
            "API ThrottleBurst",
            "API has its firewall",
            "API answers",
            "stripe test event is taken",
            "stripe test event comes through",
            "lob test event is taken",
            "lob test event comes through",
        ] {
            assert_eq!(result(check), Some(json!("ok")), "{check}: {}", looked.out);
        }
        // The local AWS does not turn on what the template asks for here.
        let recovery = result("OrdersTable recovers to a point in time");
        assert_eq!(recovery, Some(json!("bad")), "{}", looked.out);
        // Nobody gave an address.
        let hears = result("somebody hears the alarms");
        assert_eq!(hears, Some(json!("bad")), "{}", looked.out);
        world
            .send("LobEventsDlqUrl", "op_doctor", "op_doctor", "nonsense")
            .await?;
        let looked = billhook(stage, "doctor").await?;
        assert!(
            looked.code == 4 && looked.out.contains("bad     LobEventsDlq empty"),
            "{}",
            looked.out
        );
        let purge = "dlq purge --queue lob --reason 'a test' --yes";
        assert_eq!(billhook(stage, purge).await?.code, 0);

        let paid = intent_succeeded(
            "evt_op_counted",
            world.now_s(),
            "pi_op_counted",
            named("ord_op_nowhere"),
            4200,
        );
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "parked", &["evt_op_counted"]).await?;
        let counted = billhook(stage, "metrics export --since 1h").await?;
        assert!(counted.out.contains("stripe_webhook_events_total{event_type=\"payment_intent.succeeded\",result=\"accepted\"}"), "{}", counted.out);
        Ok(())
    });
}

#[test]
fn the_functions_lines_are_found_by_their_correlation_id() {
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
        let told = world
            .until(async || {
                lines = billhook(stage, &asked).await?.json();
                Ok(["stripe_webhook_received", "event_processed"]
                    .iter()
                    .all(|name| lines.to_string().contains(name)))
            })
            .await?;
        assert!(told, "{lines}");
        // One may be about a secret that was read again, and so about no event.
        let is_of_story = |line: &Value| line.get("event_id").is_none_or(|id| id == "evt_op_logs");
        assert!(lines.as_array().unwrap().iter().all(is_of_story), "{lines}");

        // Followed, lines come as they are written, until Ctrl-C.
        let mut following = begun(stage, "logs --since 1s --follow --output jsonl")?;
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
        assert_eq!(interrupted(following).await?.code, 0);
        Ok(())
    });
}
