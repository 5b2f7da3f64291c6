//! Attacks from inside the account, each with the attacker's rights alone. What is attacked is compared byte by byte.

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::Item;
use billhook_core::ids::EventId;
use billhook_core::intake::index_keys::slot_of;
use billhook_core::ports::Clock as _;
use billhook_tests::attacker::Attacker;
use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

use super::operator::run_billhook;
use super::*;

/// Who may write to the events of Stripe, and to their queue.
async fn writer_of_events(world: &World, name: &str) -> Result<Attacker> {
    let table = world.stack.output(STRIPE)?;
    let queue = world.stack.output("StripeEventsQueueUrl")?;
    let queue = queue.rsplit('/').next().unwrap_or_default();
    let statements = [
        json!({ "Effect": "Allow", "Action": ["dynamodb:PutItem", "dynamodb:GetItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem"],
            "Resource": format!("arn:aws:dynamodb:*:*:table/{table}") }),
        json!({ "Effect": "Allow", "Action": "sqs:SendMessage", "Resource": format!("arn:aws:sqs:*:*:{queue}") }),
    ];
    world.attacker(name, &statements).await
}

/// The row as ingress would have written it, but for the seal, which needs the private key.
fn invented(id: &str, payload: &Value, account: Option<&str>) -> Result<Item> {
    let now = SystemClock.now();
    let payload = payload.to_string();
    let mut row = json!({ "event_id": id, "stripe_event_id": id, "event_type": "payment_intent.succeeded", "source": "stripe",
        "group": "attack", "correlation_id": "01936d3c-0000-7000-8000-000000000000", "received_at": now.to_string(),
        "slot": slot_of(now, &EventId::parse(id)?), "processed": false, "processing_outcome": "pending", "attempts": 0,
        "expires_at": now.unix_s() + 1_000_000, "livemode": false, "api_version": "2026-10-28.endive",
        "payload_sha256": HEXLOWER.encode(digest(&SHA256, payload.as_bytes()).as_ref()), "payload": payload });
    if let Some(account) = account {
        row["connected_account_id"] = json!(account);
    }
    Ok(serde_dynamo::to_item(row)?)
}

async fn send_pointer(world: &World, attacker: &Attacker, id: &str, unique: &str) -> Result<()> {
    let send = attacker.aws.sqs().send_message();
    let send = send.queue_url(world.stack.output("StripeEventsQueueUrl")?);
    let send = send.message_body(json!({ "source": "stripe", "event_id": id }).to_string());
    let send = send
        .message_group_id(unique)
        .message_deduplication_id(unique);
    send.send().await?;
    Ok(())
}

async fn put(world: &World, attacker: &Attacker, row: Item) -> Result<()> {
    let put = attacker.aws.dynamodb().put_item();
    let put = put.table_name(world.stack.output(STRIPE)?);
    put.set_item(Some(row)).send().await?;
    Ok(())
}

async fn read(world: &World, attacker: &Attacker, id: &str) -> Result<Item> {
    let get = attacker.aws.dynamodb().get_item();
    let get = get.table_name(world.stack.output(STRIPE)?);
    let got = get
        .key("event_id", AttributeValue::S(id.to_owned()))
        .send()
        .await?;
    Ok(got.item.unwrap_or_default())
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

#[test]
fn an_event_that_a_writer_of_the_table_invents_or_changes_pays_nothing() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        for id in ["ord_victim", "ord_bought"] {
            order(world, id, None).await?;
        }
        let bought = intent_succeeded("evt_bought", now, "pi_bought", named("ord_bought"), 4200);
        world.stripe(&bought, 1).await?;
        world.settled(STRIPE, "processed", &["evt_bought"]).await?;
        let rows = async || -> Result<Vec<Option<Value>>> {
            let mut rows = Vec::new();
            for (table, key, id) in [
                ("OrdersTable", "id", "ord_victim"),
                ("OrdersTable", "id", "ord_bought"),
                ("EntitiesTable", "entity", "order#ord_victim"),
                ("EntitiesTable", "entity", "order#ord_bought"),
                ("EntitiesTable", "entity", "payment#platform#pi_bought"),
                ("EntitiesTable", "entity", "payment#platform#pi_forged"),
            ] {
                rows.push(world.row(table, key, id).await?);
            }
            Ok(rows)
        };
        let before = rows().await?;
        let attacker = writer_of_events(world, "events").await?;
        let genuine = read(world, &attacker, "evt_bought").await?;

        let forged = intent_succeeded("evt_forged", now, "pi_forged", named("ord_victim"), 4200);
        put(world, &attacker, invented("evt_forged", &forged, None)?).await?;
        // With the seal of a genuine event.
        let mut with_seal = invented("evt_forged_s", &forged, None)?;
        with_seal.insert("seal".to_owned(), genuine["seal"].clone());
        put(world, &attacker, with_seal).await?;
        // With one made by a key of the attacker's own.
        let mut own_key = invented("evt_forged_k", &forged, None)?;
        let own = billhook_core::seal::EventSealer::from_seed(&[66; 32]);
        billhook_tests::world::seal_row(
            billhook_core::ids::ProviderId::Stripe,
            &mut own_key,
            forged.to_string().as_bytes(),
            &own,
        )?;
        put(world, &attacker, own_key).await?;
        // A genuine event once more, under another id.
        let mut again = genuine.clone();
        again.insert("event_id".to_owned(), text("evt_forged_c"));
        again.insert("processed".to_owned(), AttributeValue::Bool(false));
        put(world, &attacker, again).await?;
        // A genuine one, as an event of a connected account.
        let mut moved = genuine.clone();
        moved.insert("connected_account_id".to_owned(), text("acct_a"));
        moved.insert("processed".to_owned(), AttributeValue::Bool(false));
        moved.insert("processing_outcome".to_owned(), text("pending"));
        put(world, &attacker, moved).await?;

        let forgeries = [
            "evt_forged",
            "evt_forged_s",
            "evt_forged_k",
            "evt_forged_c",
            "evt_bought",
        ];
        for id in forgeries {
            send_pointer(world, &attacker, id, &format!("attack_{id}")).await?;
        }
        world.settled(STRIPE, "parked", &forgeries).await?;
        for id in forgeries {
            assert_eq!(
                event(world, STRIPE, id).await?["processing_error"],
                "tampered",
                "{id}"
            );
        }
        assert_eq!(rows().await?, before);
        // No page of a person's says that the order is paid, and the proof of both orders holds.
        world.drained().await?;
        let looked = run_billhook(stage, "events list --error tampered").await?;
        for id in forgeries {
            assert!(looked.stdout.contains(id), "{}", looked.stdout);
        }
        // Back as it was, for the flows that read every event.
        put(world, &attacker, genuine).await?;
        for id in &forgeries[..4] {
            delete_event(world, &attacker, id).await?;
        }
        Ok(())
    });
}

async fn delete_event(world: &World, attacker: &Attacker, id: &str) -> Result<()> {
    let delete = attacker.aws.dynamodb().delete_item();
    let delete = delete.table_name(world.stack.output(STRIPE)?);
    delete.key("event_id", text(id)).send().await?;
    Ok(())
}

#[test]
fn a_state_that_a_writer_of_the_table_changes_moves_no_order() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        for id in ["ord_state", "ord_swapped", "ord_older"] {
            order(world, id, None).await?;
            let of = &id["ord_".len()..];
            let (event, intent) = (format!("evt_{of}"), format!("pi_{of}"));
            let failed = intent_failed(&event, now, &intent, named(id), &format!("ch_{of}_1"));
            world.stripe(&failed, 1).await?;
            world.settled(STRIPE, "processed", &[&event]).await?;
        }
        let older = state(world, "order#ord_older").await?;
        let paid = intent_succeeded("evt_older_p", now, "pi_older", named("ord_older"), 4200);
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_older_p"]).await?;
        let orders = async || -> Result<Vec<Value>> {
            let mut rows = Vec::new();
            for id in ["ord_state", "ord_swapped", "ord_older"] {
                rows.push(world.order(id).await?);
            }
            Ok(rows)
        };
        let before = orders().await?;
        let table = world.stack.output("EntitiesTable")?;
        let attacker = world
            .attacker(
                "states",
                &[json!({ "Effect": "Allow", "Action": "dynamodb:PutItem",
                    "Resource": format!("arn:aws:dynamodb:*:*:table/{table}") })],
            )
            .await?;
        let put = async |row: Item| -> Result<()> {
            let put = attacker.aws.dynamodb().put_item().table_name(table);
            put.set_item(Some(row)).send().await?;
            Ok(())
        };
        // What a paid order's state says, in the state of one that is not; with its own key, and with its own seal.
        let mut bought = state(world, "payment#platform#pi_older").await?;
        let unpaid = state(world, "payment#platform#pi_state").await?;
        bought.insert("entity".to_owned(), text("payment#platform#pi_state"));
        bought.insert("version".to_owned(), unpaid["version"].clone());
        bought.insert("seal".to_owned(), unpaid["seal"].clone());
        put(bought).await?;
        let mut swapped = state(world, "order#ord_older").await?;
        swapped.insert("entity".to_owned(), text("order#ord_swapped"));
        put(swapped).await?;
        // An older copy is genuine, but its row is ahead of it.
        put(older).await?;

        let mut events = Vec::new();
        for of in ["state", "swapped", "older"] {
            let (event, intent) = (format!("evt_{of}_n"), format!("pi_{of}"));
            let order = named(&format!("ord_{of}"));
            let next = intent_failed(&event, now + 1, &intent, order, &format!("ch_{of}_2"));
            world.stripe(&next, 1).await?;
            events.push(event);
        }
        for (id, reason) in events.iter().zip(["tampered", "tampered", "state_behind"]) {
            world.settled(STRIPE, "parked", &[id]).await?;
            let row = event(world, STRIPE, id).await?;
            assert_eq!(row["processing_error"], reason, "{id}");
        }
        assert_eq!(orders().await?, before);
        // docs/runbook/tampered.md: without its state the entity is made of its events again.
        for (key, of) in [
            ("payment#platform#pi_state", "state"),
            ("order#ord_swapped", "swapped"),
            ("order#ord_older", "older"),
        ] {
            scheduled::delete_row(world, "EntitiesTable", "entity", key).await?;
            let rebuilt =
                run_billhook(stage, &format!("rebuild ord_{of} --yes --reason tampered")).await?;
            assert_eq!(rebuilt.code, 0, "{}{}", rebuilt.stdout, rebuilt.stderr);
            let released = run_billhook(
                stage,
                &format!("events release evt_{of}_n --reason tampered --yes"),
            )
            .await?;
            assert_eq!(released.code, 0, "{}", released.stderr);
            world
                .settled(STRIPE, "processed", &[&format!("evt_{of}_n")])
                .await?;
        }
        Ok(())
    });
}

async fn state(world: &World, key: &str) -> Result<Item> {
    let get = world.aws.dynamodb().get_item();
    let get = get.table_name(world.stack.output("EntitiesTable")?);
    let got = get.key("entity", text(key)).send().await?;
    Ok(got.item.unwrap_or_default())
}

/// Whoever has the application's role, by the ready policy, makes no order paid.
#[test]
fn the_application_writes_no_column_of_billhooks() {
    flow(true, async |stage| {
        let world = &stage.world;
        let orders = world.stack.output("OrdersTable")?;
        let policy = std::fs::read_to_string(repository().join("docs/policies/application.json"))?;
        let policy = policy
            .replace("<Region>:<Account>", "*:*")
            .replace("<OrdersTable>", orders)
            .replace("<StatementsTable>", world.stack.output("StatementsTable")?)
            .replace("<TenantsTable>", world.stack.output("TenantsTable")?)
            .replace("<VersionColumn>", "version");
        let policy: Value = serde_json::from_str(&policy)?;
        let application = world
            .attacker("application", policy["Statement"].as_array().unwrap())
            .await?;
        let update = |id: &str, sets: &str, value: AttributeValue| {
            let update = application.aws.dynamodb().update_item();
            let update = update.table_name(orders).key("id", text(id));
            let update = update.update_expression(sets);
            update.expression_attribute_values(":value", value).send()
        };
        // It makes a row without a status, and changes what is its own.
        let due = AttributeValue::N("4200".to_owned());
        update("ord_app", "SET amountTotal = :value", due).await?;
        update("ord_app", "SET currency = :value", text("usd")).await?;
        update("ord_app", "SET note = :value", text("by the shop")).await?;
        let before = world.order("ord_app").await?;
        for (sets, value) in [
            ("SET status = :value", text("completed")),
            ("SET paymentStatus = :value", text("paid")),
            ("SET note = :value REMOVE requiresReview", text("x")),
            ("SET version = :value", AttributeValue::N("99".to_owned())),
        ] {
            let refused = update("ord_app", sets, value).await.unwrap_err();
            assert!(
                format!("{refused:?}").contains("AccessDenied"),
                "{sets}: {refused:?}"
            );
        }
        let aliased = application.aws.dynamodb().update_item();
        let aliased = aliased.table_name(orders).key("id", text("ord_app"));
        let aliased = aliased.update_expression("SET #s = :value");
        let aliased = aliased.expression_attribute_names("#s", "status");
        let aliased = aliased.expression_attribute_values(":value", text("completed"));
        assert!(aliased.send().await.is_err());
        let put = application.aws.dynamodb().put_item().table_name(orders);
        let put = put
            .item("id", text("ord_app"))
            .item("status", text("completed"));
        assert!(put.send().await.is_err());
        let delete = application.aws.dynamodb().delete_item().table_name(orders);
        assert!(delete.key("id", text("ord_app")).send().await.is_err());
        assert_eq!(world.order("ord_app").await?, before);
        // The row that it made is as good as one with a status.
        let paid = intent_succeeded("evt_app", world.now_s(), "pi_app", named("ord_app"), 4200);
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_app"]).await?;
        let row = world.order("ord_app").await?;
        assert_eq!(
            (&row["status"], &row["requiresReview"]),
            (&json!("completed"), &json!(false))
        );
        Ok(())
    });
}
