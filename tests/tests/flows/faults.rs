//! Poison, calls counted at the wire, lost answers and killed functions.

use super::*;

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
