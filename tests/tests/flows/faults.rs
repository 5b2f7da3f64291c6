//! Fault injection: poison messages, lost answers, killed functions, and the number of calls on the wire.

use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, TableNames};
use billhook_core::entity::EntityKey;
use billhook_core::entity::rules::RowRules;
use billhook_core::ids::{OrderId, ProviderId, StatementId};
use billhook_core::ports::Clock as _;
use billhook_core::worker::ports::{CommitError, CommitPart, EntityWrite, Ledger as _};

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

/// The messages of a batch, as the queue hands them to the worker.
fn batch(ids: &[String]) -> Value {
    let record = |id: &String| {
        json!({ "messageId": format!("m-{id}"), "receiptHandle": "r", "eventSource": "aws:sqs",
            "attributes": { "ApproximateReceiveCount": "1" }, "messageAttributes": {},
            "body": json!({ "event_id": id }).to_string() })
    };
    json!({ "Records": ids.iter().map(record).collect::<Vec<_>>() })
}

#[test]
fn a_batch_costs_the_worker_so_many_calls_and_no_more() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        // Their orders are not there yet, or do not have the payment yet: decided afresh below.
        let mut ids = BTreeMap::new();
        for (kind, count) in [("ten", 10), ("one", 10), ("unnamed", 10)] {
            for n in 0..count {
                let (id, intent) = (format!("evt_cost_{kind}{n}"), format!("pi_cost_{kind}{n}"));
                let metadata = match kind {
                    "ten" => named(&format!("ord_cost_ten{n}")),
                    "one" => named("ord_cost_one"),
                    _ => json!({}),
                };
                let body = intent_succeeded(&id, now, &intent, metadata, 4200);
                let of_a_tenant = kind == "one";
                let body = match of_a_tenant {
                    true => from_account(body, "acct_a"),
                    false => body,
                };
                world.stripe(&body, 1).await?;
                ids.entry(kind).or_insert_with(Vec::new).push(id);
            }
        }
        for (kind, ids) in &ids {
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let outcome = match *kind {
                "unnamed" => "processed",
                _ => "parked",
            };
            world.settled(STRIPE, outcome, &ids).await?;
        }
        for id in &ids["unnamed"] {
            let update = world.aws.dynamodb().update_item();
            let update = update.table_name(world.stack.output(STRIPE)?);
            let update = update.key("event_id", AttributeValue::S(id.clone()));
            let update = update.update_expression("SET #p = :p");
            let update = update.expression_attribute_names("#p", "processed");
            let not = AttributeValue::Bool(false);
            let update = update.expression_attribute_values(":p", not);
            update.send().await?;
        }
        world.drained().await?;
        order(world, "ord_cost_one", Some("ten_a")).await?;
        // Its first event finds the tenant, which is remembered for a minute.
        let first = ids["one"][0].clone();
        invoke(world, "StripeWorkerFunction", &batch(&[first])).await?;
        for n in 0..10 {
            order(world, &format!("ord_cost_ten{n}"), None).await?;
            let row = json!({ "id": format!("ord_cost_unnamed{n}"), "status": "pending", "amountTotal": 4200,
                "currency": "usd", "stripePaymentIntentId": format!("pi_cost_unnamed{n}") });
            world.put("OrdersTable", row).await?;
        }
        // Reads in batches, queries of indexes, transactions, single writes.
        for (kind, calls) in [
            ("ten", [2, 0, 1, 0]),
            ("one", [2, 0, 1, 0]),
            ("unnamed", [3, 20, 1, 0]),
        ] {
            let count = || {
                let all = stage.proxy.calls();
                ["BatchGetItem", "Query", "TransactWriteItems", "UpdateItem"]
                    .map(|operation| all.get(operation).copied().unwrap_or_default())
            };
            let before = count();
            let answer = invoke(world, "StripeWorkerFunction", &batch(&ids[kind])).await?;
            assert_eq!(answer, json!({ "batchItemFailures": [] }), "{kind}");
            let mut since = count();
            for (now, before) in since.iter_mut().zip(before) {
                *now -= before;
            }
            assert_eq!(since, calls, "{kind}");
            let ids: Vec<&str> = ids[kind].iter().map(String::as_str).collect();
            world.settled(STRIPE, "processed", &ids).await?;
        }
        Ok(())
    });
}

#[test]
fn an_edit_between_read_and_write_is_a_lost_race_whichever_column_it_is() {
    flow(false, async |stage| {
        let world = &stage.world;
        let output = |name: &str| world.stack.output(name).map(str::to_owned);
        let tables = TableNames {
            events: output(STRIPE)?,
            entities: output("EntitiesTable")?,
            rules: RowRules::default(),
            application_tables: [
                ("Orders", output("OrdersTable")?),
                ("Statements", output("StatementsTable")?),
            ]
            .into(),
        };
        let ledger = DynamoLedger::new(
            world.aws.dynamodb().clone(),
            tables,
            world.ledger_seals()?,
            SystemClock,
            |_| (),
        );
        let order = json!({ "id": "ord_race", "tenantId": "ten_a", "status": "pending", "paymentStatus": "unpaid",
            "requiresReview": false, "amountTotal": 4200, "currency": "usd", "userId": "user_1",
            "stripePaymentIntentId": "pi_race", "stripeCheckoutSessionId": "cs_race", "version": 3,
            "timeline": [] });
        let statement = json!({ "statement_id": "st_race", "tenant_id": "ten_a", "payment_status": "unpaid",
            "requires_review": false, "mail_status": "mailed", "needs_attention": false, "amount_due": 4200,
            "currency": "usd", "stripe_payment_intent_id": "pi_race", "lob_letter_id": "ltr_race",
            "version": 3, "timeline": [] });
        for (table, key, row) in [
            ("OrdersTable", "id", order),
            ("StatementsTable", "statement_id", statement),
        ] {
            let id = row[key].as_str().unwrap();
            let entity = match table {
                "OrdersTable" => EntityKey::Order(OrderId::parse(id)?),
                _ => EntityKey::Statement(StatementId::parse(id)?),
            };
            let columns = row.as_object().unwrap().keys();
            for column in columns.filter(|column| *column != key) {
                for edit in [Some(json!("edited")), None] {
                    world.put(table, row.clone()).await?;
                    let read = ledger.load_rows(&[entity.clone().into()].into()).await?;
                    let (loaded, memory) = &read.entities[&entity];
                    let now = SystemClock.now();
                    let next = loaded.apply_facts([], now);
                    let mut edited = row.clone();
                    match &edit {
                        Some(_) if column == "timeline" => {
                            edited[column] = json!([{ "type": "note", "at": "2026-01-01" }]);
                        }
                        Some(value) => edited[column] = value.clone(),
                        None => drop(edited.as_object_mut().unwrap().remove(column)),
                    }
                    world.put(table, edited).await?;
                    let part = CommitPart {
                        entities: vec![EntityWrite {
                            entity: loaded,
                            row: memory,
                            next,
                        }],
                        states: Vec::new(),
                        events: Vec::new(),
                        now,
                    };
                    let lost = ledger.commit(ProviderId::Stripe, &[&part]).await;
                    assert!(
                        matches!(lost, Err(CommitError::LostRace)),
                        "{id} {column} {edit:?}: {lost:?}"
                    );
                    world.put(table, row.clone()).await?;
                    ledger.commit(ProviderId::Stripe, &[&part]).await?;
                }
            }
        }
        Ok(())
    });
}
