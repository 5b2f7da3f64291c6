//! What operators see of the deployed functions: log lines, metrics, traces; and what must never be visible: secrets.

use billhook_testkit::emf;
use billhook_testkit::stripe::TEST_KEY;
use billhook_tests::world::{Answer, LOB_SECRET};

use super::*;

const FUNCTIONS: [&str; 5] = [
    "WebhookIngressFunction",
    "StripeWorkerFunction",
    "LobWorkerFunction",
    "CleanupFailedPaymentsFunction",
    "WebhookSecretFunction",
];

fn correlation_id(answer: &Answer) -> String {
    answer.body["correlation_id"].as_str().unwrap().to_owned()
}

/// Waits for the function's line of this name that a saved query on the text would find.
async fn line(world: &World, function: &str, name: &str, correlation_id: &str) -> Result<Value> {
    let text = format!("{name} correlation_id={correlation_id}");
    let mut found = Value::Null;
    let is_there = world
        .until(async || {
            let lines = world.logs(function).await?;
            let line = lines.iter().find(|line| line.contains(&text));
            found = line.map_or(Value::Null, |line| serde_json::from_str(line).unwrap());
            Ok(!found.is_null())
        })
        .await?;
    assert!(is_there, "{function} has no line {text:?}");
    Ok(found)
}

#[test]
fn one_correlation_id_leads_from_the_answer_to_the_row_and_to_both_functions_lines() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_seen", Some("ten_a")).await?;
        let metadata = json!({ "order_id": "ord_seen", "tenant_id": "ten_hint" });
        let paid = intent_succeeded("evt_seen", world.now_s(), "pi_seen", metadata, 4200);
        let paid = from_account(paid, "acct_a");
        let answers = world.stripe(&paid, 1).await?;
        let id = correlation_id(&answers[0]);
        world.settled(STRIPE, "processed", &["evt_seen"]).await?;
        let row = event(world, STRIPE, "evt_seen").await?;
        assert_eq!(row["correlation_id"], json!(id));
        let received = line(
            world,
            "WebhookIngressFunction",
            "stripe_webhook_received",
            &id,
        )
        .await?;
        let processed = line(world, "StripeWorkerFunction", "event_processed", &id).await?;
        for (line, function) in [
            (&received, "webhook-ingress"),
            (&processed, "stripe-worker"),
        ] {
            for (field, value) in [
                ("function", function),
                ("level", "INFO"),
                ("correlation_id", &id),
                ("event_id", "evt_seen"),
                ("stripe_event_id", "evt_seen"),
                ("event_type", "payment_intent.succeeded"),
                ("tenant_hint", "ten_hint"),
            ] {
                assert_eq!(line[field], value, "{field} of {line}");
            }
        }
        assert_eq!(
            (&processed["tenant_id"], &processed["entity"]),
            (&json!("ten_a"), &json!("order#ord_seen"))
        );
        // The second delivery has a story of its own.
        let again = correlation_id(&world.stripe(&paid, 1).await?[0]);
        assert_ne!(again, id);
        line(world, "WebhookIngressFunction", "webhook_duplicate", &again).await?;

        // What CloudWatch would extract.
        for (function, expected) in [
            (
                "WebhookIngressFunction",
                [
                    "WebhookSuccess",
                    "WebhookProcessingTime",
                    "stripe_webhook_events_total",
                ],
            ),
            (
                "StripeWorkerFunction",
                ["WebhookProcessed", "WebhookEndToEndTime", "OrdersCompleted"],
            ),
        ] {
            let lines = world.logs(function).await?;
            let lines = lines.iter().filter(|line| line.contains("\"_aws\""));
            let mut published = std::collections::BTreeSet::new();
            for line in lines {
                for (namespace, name, ..) in emf::check(line)? {
                    assert!(namespace.ends_with("/Webhooks"), "{line}");
                    published.insert(name);
                }
            }
            assert!(
                expected.iter().all(|name| published.contains(*name)),
                "{published:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn no_secret_and_nothing_personal_is_ever_written() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        let person = json!({ "name": "Zaphod Canarybrox", "email": "zaphod@canary.example", "phone": "+15550147777",
            "address": { "line1": "42 Canary Lane", "city": "Canaryville", "postal_code": "CN4 2RY" } });
        let card = json!({ "card": { "last4": "0047", "fingerprint": "canaryfingerprint" } });
        order(world, "ord_person", None).await?;
        let mut answers = Vec::new();
        // Taken in and processed; parked; failed payment with what the bank said.
        let mut paid = intent_succeeded("evt_person1", now, "pi_person", named("ord_person"), 4200);
        let mut nowhere =
            intent_succeeded("evt_person2", now, "pi_nowhere", named("ord_nowhere"), 4200);
        let mut failed = intent_failed(
            "evt_person3",
            now,
            "pi_person3",
            named("ord_person"),
            "ch_person3",
        );
        failed["data"]["object"]["last_payment_error"]["message"] =
            json!("card of Zaphod Canarybrox declined");
        for event in [&mut paid, &mut nowhere, &mut failed] {
            let object = &mut event["data"]["object"];
            object["receipt_email"] = person["email"].clone();
            object["shipping"] = person.clone();
            object["billing_details"] = person.clone();
            object["payment_method_details"] = card.clone();
            object["metadata"]["note"] = json!("for Zaphod Canarybrox");
            answers.extend(world.stripe(event, 1).await?);
        }
        let mut piece = letter(
            "evt_person4",
            "2026-06-09T10:13:20.000Z",
            "ltr_person",
            "mailed",
        );
        piece["body"]["to"] = person.clone();
        answers.push(world.lob(&piece).await?);
        // Refused: forged, no JSON, a field of the wrong kind; each holds what it must not say.
        let secret = signing_secret(world, "StripePlatformWebhookSecretArn").await?;
        let mut refused = Vec::new();
        let no_json = format!("{{\"id\":\"evt_person5\",\"type\":{person}");
        let wrong_kind =
            json!({ "id": person["email"], "object": "event", "type": person, "data": person })
                .to_string();
        let mut signatures = Vec::new();
        for (body, secret) in [
            (paid.to_string(), "whsec_forged_canary"),
            (no_json, &*secret),
            (wrong_kind, &*secret),
        ] {
            let signature = sign_stripe(body.as_bytes(), secret, now);
            let headers = [
                ("Stripe-Signature", &*signature),
                ("X-Canary", "canaryheader"),
            ];
            refused.push(
                world
                    .request("POST", "/webhooks/stripe", &headers, body.as_bytes())
                    .await?,
            );
            signatures.push(signature.rsplit_once('=').unwrap().1.to_owned());
        }
        assert!(
            refused.iter().all(|answer| answer.status == 400),
            "{refused:?}"
        );
        world
            .send(
                "StripeEventsQueueUrl",
                "canary",
                "canary",
                &person.to_string(),
            )
            .await?;
        world
            .settled(STRIPE, "processed", &["evt_person1", "evt_person3"])
            .await?;
        world.settled(STRIPE, "parked", &["evt_person2"]).await?;
        world.settled(LOB, "parked", &["evt_person4"]).await?;
        assert!(
            world
                .until(async || Ok(world.depth("StripeEventsDlqUrl").await? == 1))
                .await?
        );
        let dead = world.stack.output("StripeEventsDlqUrl")?;
        world.aws.sqs().purge_queue().queue_url(dead).send().await?;
        invoke(
            world,
            "CleanupFailedPaymentsFunction",
            &json!({ "dry_run": true }),
        )
        .await?;

        for answer in &refused {
            line(
                world,
                "WebhookIngressFunction",
                "webhook_rejected",
                &correlation_id(answer),
            )
            .await?;
        }
        let mut written: Vec<String> = Vec::new();
        for function in FUNCTIONS {
            let lines = world.logs(function).await?;
            // A dry run has nothing to say.
            let is_silent = lines.is_empty() && function != "CleanupFailedPaymentsFunction";
            assert!(!is_silent, "{function} wrote nothing");
            written.extend(lines);
        }
        written.extend(
            answers
                .iter()
                .chain(&refused)
                .map(|answer| answer.body.to_string()),
        );
        let connect = signing_secret(world, "StripeWebhookSecretArn").await?;
        let mut forbidden: Vec<&str> = vec![
            "Canarybrox",
            "canary.example",
            "5550147777",
            "Canary Lane",
            "Canaryville",
            "CN4 2RY",
            "0047",
            "canaryfingerprint",
            "canaryheader",
            "whsec_",
            LOB_SECRET,
            TEST_KEY,
            &secret,
            &connect,
            "X-Amz-Signature",
        ];
        forbidden.extend(signatures.iter().map(String::as_str));
        // A word by itself: four digits may well be part of an id or of a moment.
        let is_inside =
            |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || "-.".contains(c));
        let told = |line: &str, word: &str| {
            line.match_indices(word).any(|(at, _)| {
                let (before, after) = (&line[..at], &line[at + word.len()..]);
                !is_inside(before.chars().next_back()) && !is_inside(after.chars().next())
            })
        };
        for line in &written {
            for word in &forbidden {
                let is_told = told(line, word) || word.len() > 4 && line.contains(word);
                assert!(!is_told, "{word} in {line}");
            }
        }
        Ok(())
    });
}
