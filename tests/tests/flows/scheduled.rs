//! Flows of the scheduled tasks: cleanup of failed payments, sweep (automatic retries), reconciliation with Stripe.

use billhook_core::ids::EventId;
use billhook_core::intake::index_keys::slot_of;

use super::bounds::move_facts_to_page;
use super::*;

/// What the schedule of a task sends, as the template has it.
pub(super) fn scheduled(task: &str) -> Value {
    let template = std::fs::read_to_string(repository().join("template.yaml")).unwrap();
    let inputs = template.lines().filter_map(|line| {
        let input = line.trim().strip_prefix("Input: '")?.strip_suffix('\'')?;
        serde_json::from_str::<Value>(input).ok()
    });
    let of_task = inputs.filter(|input| input["task"] == task);
    let [input] = of_task.collect::<Vec<_>>().try_into().unwrap();
    input
}

pub(super) async fn run_task(world: &World, input: &Value) -> Result<Value> {
    invoke(world, "CleanupFailedPaymentsFunction", input).await
}

pub(super) async fn delete_row(world: &World, table: &str, key: &str, id: &str) -> Result<()> {
    let delete = world
        .aws
        .dynamodb()
        .delete_item()
        .table_name(world.stack.output(table)?)
        .key(key, AttributeValue::S(id.to_owned()));
    delete.send().await?;
    Ok(())
}

async fn delay(world: &World, seconds: &str) -> Result<()> {
    let set = world
        .aws
        .sqs()
        .set_queue_attributes()
        .queue_url(world.stack.output("StripeEventsQueueUrl")?)
        .attributes(QueueAttributeName::DelaySeconds, seconds);
    set.send().await?;
    Ok(())
}

/// As if Stripe's event had come so long ago.
pub(super) async fn age(world: &World, id: &str, seconds: i64) -> Result<()> {
    age_event(world, STRIPE, id, seconds).await
}

async fn age_event(world: &World, table: &str, id: &str, seconds: i64) -> Result<()> {
    let received_at = Timestamp::from_unix_s(world.now_s() - seconds)?;
    let slot = slot_of(received_at, &EventId::parse(id)?);
    let update = world
        .aws
        .dynamodb()
        .update_item()
        .table_name(world.stack.output(table)?)
        .key("event_id", AttributeValue::S(id.to_owned()))
        .update_expression("SET received_at = :at, slot = :slot")
        .expression_attribute_values(":slot", AttributeValue::S(slot))
        .expression_attribute_values(":at", AttributeValue::S(received_at.to_string()));
    update.send().await?;
    Ok(())
}

#[test]
fn the_cleanup_scans_while_its_index_is_not_there() {
    flow(true, async |stage| {
        let world = &stage.world;
        let long_ago = world.now_s() - 2 * 60 * 60;
        order(world, "ord_unindexed", None).await?;
        let intent = json!({ "id": "pi_unindexed", "object": "payment_intent", "status": "requires_payment_method",
            "amount": 4200, "currency": "usd", "metadata": {} });
        stage.stripe.put(None, intent);
        let failed = intent_failed(
            "evt_unindexed",
            long_ago,
            "pi_unindexed",
            named("ord_unindexed"),
            "ch_unindexed",
        );
        world.stripe(&failed, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_unindexed"])
            .await?;
        remove_index(world, "OrdersTable", "StatusIndex").await?;
        let done = run_task(world, &scheduled("cleanup")).await;
        restore_index(world, "OrdersTable", "StatusIndex", "status").await?;
        assert!(done?["cancelled"].as_u64() >= Some(1));
        assert_eq!(world.order("ord_unindexed").await?["status"], "cancelled");
        Ok(())
    });
}

#[test]
fn an_event_whose_message_was_purged_comes_back_by_the_sweep() {
    flow(true, async |stage| {
        let world = &stage.world;
        order(world, "ord_purged", None).await?;
        delay(world, "900").await?;
        let paid = intent_succeeded(
            "evt_purged",
            world.now_s(),
            "pi_purged",
            named("ord_purged"),
            4200,
        );
        world.stripe(&paid, 1).await?;
        let purge = world.aws.sqs().purge_queue();
        let url = world.stack.output("StripeEventsQueueUrl")?;
        purge.queue_url(url).send().await?;
        delay(world, "0").await?;
        world.drained().await?;
        // Young, it is on its way for all the sweep knows.
        delete_row(world, "JobsTable", "job_id", "sweep").await?;
        let young = run_task(world, &json!({ "task": "sweep" })).await?;
        assert_eq!(
            (&young["stuck"], &young["completed"]),
            (&json!(0), &json!(true))
        );
        assert_eq!(
            event(world, STRIPE, "evt_purged").await?["processing_outcome"],
            "pending"
        );
        age(world, "evt_purged", 2 * 60 * 60).await?;
        // The application put an older copy of an order back, and no event of the order comes any more.
        order(world, "ord_swept", None).await?;
        let paid = intent_succeeded(
            "evt_swept",
            world.now_s(),
            "pi_swept",
            named("ord_swept"),
            4200,
        );
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_swept"]).await?;
        let copy = world.order("ord_swept").await?;
        let now = world.now_s();
        let refund = charge_refunded("evt_swept_r", now, "ch_swept", Some("pi_swept"), 1000);
        world.stripe(&refund, 1).await?;
        world.settled(STRIPE, "processed", &["evt_swept_r"]).await?;
        world.put("OrdersTable", copy).await?;
        move_facts_to_page(world, "order#ord_swept").await?;
        age(world, "evt_swept_r", 11 * 60).await?;
        for job in ["sweep", "sweep-rows"] {
            delete_row(world, "JobsTable", "job_id", job).await?;
        }
        let swept = run_task(world, &scheduled("sweep")).await?;
        // Beside those that other tests left parked, which it looked at both times. It counts as stuck what an earlier run
        // found.
        let mut expected = young.clone();
        for counted in ["looked_at", "sent"] {
            expected[counted] = json!(young[counted].as_u64().unwrap() + 1);
        }
        assert!(swept["restored"].as_u64() >= Some(1), "{swept}");
        expected["restored"] = swept["restored"].clone();
        // Payments of other tests come due.
        expected["payments"] = swept["payments"].clone();
        assert_eq!(swept, expected);
        let measured = world
            .logged("CleanupFailedPaymentsFunction", "QuietHours")
            .await?;
        let is_now = |line: &String| {
            line.contains(r#""Provider":"stripe""#) && line.contains(r#""QuietHours":0"#)
        };
        assert!(measured.iter().any(is_now), "{measured:?}");
        assert_eq!(world.order("ord_swept").await?["amountRefunded"], 1000);
        world.settled(STRIPE, "processed", &["evt_purged"]).await?;
        assert_eq!(world.order("ord_purged").await?["status"], "completed");
        // The ages that it passed are passed.
        let again = run_task(world, &scheduled("sweep")).await?;
        assert_eq!(
            (&again["looked_at"], &again["stuck"]),
            (&json!(0), &json!(0)),
            "{again}"
        );
        Ok(())
    });
}

#[test]
fn parked_events_are_released_or_given_up_by_the_sweep() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        let early = intent_succeeded("evt_early", now, "pi_early", named("ord_early"), 4200);
        let never = intent_succeeded("evt_never", now, "pi_never", named("ord_never"), 4200);
        let refund = charge_refunded("evt_loose", now, "ch_loose", Some("pi_loose"), 100);
        let linked = charge_refunded("evt_linked", now, "ch_linked", Some("pi_linked"), 100);
        for event in [&early, &never, &refund, &linked] {
            world.stripe(event, 1).await?;
        }
        let ids = ["evt_early", "evt_never"];
        world.settled(STRIPE, "parked", &ids).await?;
        let ids = ["evt_loose", "evt_linked"];
        world.settled(STRIPE, "processed", &ids).await?;
        let letters = [("evt_early_l", "ltr_early"), ("evt_never_l", "ltr_never")];
        for (id, its) in letters {
            let mailed = letter(id, "2026-11-20T08:00:00.000Z", its, "mailed");
            world.lob(&mailed).await?;
            world.settled(LOB, "parked", &[id]).await?;
        }
        let row = json!({ "statement_id": "st_early", "lob_letter_id": "ltr_early" });
        world.put("StatementsTable", row).await?;
        order(world, "ord_early", None).await?;
        // The application writes the payment into its column, and no event names the order.
        order(world, "ord_linked", None).await?;
        let row = world.order("ord_linked").await?;
        let mut row = row.as_object().unwrap().clone();
        row.insert("stripePaymentIntentId".to_owned(), json!("pi_linked"));
        world.put("OrdersTable", Value::Object(row)).await?;
        // What other tests left parked is sent as well, both times.
        delete_row(world, "JobsTable", "job_id", "sweep").await?;
        let before = run_task(world, &scheduled("sweep")).await?;
        age(world, "evt_early", 11 * 60).await?;
        age(world, "evt_never", 31 * 24 * 60 * 60).await?;
        age_event(world, LOB, "evt_early_l", 11 * 60).await?;
        age_event(world, LOB, "evt_never_l", 31 * 24 * 60 * 60).await?;
        let payment = "payment#platform#pi_linked";
        let mut open = world
            .row("EntitiesTable", "entity", payment)
            .await?
            .unwrap();
        open["open_at"] = json!("2026-01-01T00:00:00.000Z");
        world.put_state(open).await?;
        for job in ["sweep", "sweep-rows"] {
            delete_row(world, "JobsTable", "job_id", job).await?;
        }
        let swept = run_task(world, &scheduled("sweep")).await?;
        let more =
            |counted: &str| swept[counted].as_u64().unwrap() - before[counted].as_u64().unwrap();
        assert_eq!(
            ["sent", "ignored", "overdue"].map(more),
            [2, 2, 2],
            "{before} {swept}"
        );
        // Payments of other tests come due once, before or now.
        assert!(swept["payments"].as_u64() >= Some(1), "{swept}");
        world.settled(STRIPE, "processed", &["evt_early"]).await?;
        world.settled(LOB, "processed", &["evt_early_l"]).await?;
        world.settled(LOB, "ignored", &["evt_never_l"]).await?;
        world.drained().await?;
        assert_eq!(world.order("ord_linked").await?["amountRefunded"], 100);
        let row = event(world, STRIPE, "evt_never").await?;
        assert_eq!(
            (&row["processing_outcome"], &row["processing_error"]),
            (&json!("ignored"), &json!("never_found"))
        );
        // With a link that comes later, the order gets what is known.
        order(world, "ord_loose", None).await?;
        let paid = intent_succeeded("evt_linking", now, "pi_loose", named("ord_loose"), 4200);
        world.stripe(&paid, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_linking", "evt_loose"])
            .await?;
        assert_eq!(world.order("ord_loose").await?["amountRefunded"], 100);
        Ok(())
    });
}

/// Of each kind the application puts an older copy of a row back, and deletes another row.
#[test]
fn the_sweep_restores_rows_of_every_kind_and_notes_those_that_are_gone() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        order(world, "ord_gone", None).await?;
        for id in ["st_stale", "st_gone"] {
            let row = json!({ "statement_id": id, "amount_due": 4200, "currency": "usd" });
            world.put("StatementsTable", row).await?;
        }
        for own in ["stale", "gone"] {
            let row = json!({ "tenant_id": format!("ten_{own}"), "stripe_connected_account_id": format!("acct_{own}") });
            world.put("TenantsTable", row).await?;
        }
        let paid = |id: &str, metadata| {
            intent_succeeded(
                &format!("evt_{id}"),
                now,
                &format!("pi_{id}"),
                metadata,
                4200,
            )
        };
        let of = |id: &str| json!({ "statement_id": id });
        let updated = |id: &str, own: &str, at: i64, charges: bool| {
            let account = json!({ "id": format!("acct_{own}"), "charges_enabled": charges, "payouts_enabled": true });
            from_account(
                stripe(id, "account.updated", now + at, account),
                &format!("acct_{own}"),
            )
        };
        let first = [
            paid("ord_gone", named("ord_gone")),
            paid("st_stale", of("st_stale")),
            paid("st_gone", of("st_gone")),
            updated("evt_ten_stale", "stale", 0, false),
            updated("evt_ten_gone", "gone", 0, true),
        ];
        for event in &first {
            world.stripe(event, 1).await?;
        }
        let ids = [
            "evt_ord_gone",
            "evt_st_stale",
            "evt_st_gone",
            "evt_ten_stale",
            "evt_ten_gone",
        ];
        world.settled(STRIPE, "processed", &ids).await?;
        let statement = world.statement("st_stale").await?;
        let tenant = world.row("TenantsTable", "tenant_id", "ten_stale").await?;
        let refund = charge_refunded(
            "evt_st_stale_r",
            now,
            "ch_st_stale",
            Some("pi_st_stale"),
            1000,
        );
        world.stripe(&refund, 1).await?;
        world
            .stripe(&updated("evt_ten_stale_2", "stale", 1, true), 1)
            .await?;
        let ids = ["evt_st_stale_r", "evt_ten_stale_2"];
        world.settled(STRIPE, "processed", &ids).await?;

        world.put("StatementsTable", statement).await?;
        world.put("TenantsTable", tenant.unwrap()).await?;
        delete_row(world, "OrdersTable", "id", "ord_gone").await?;
        delete_row(world, "StatementsTable", "statement_id", "st_gone").await?;
        delete_row(world, "TenantsTable", "tenant_id", "ten_gone").await?;
        for id in [
            "evt_st_stale_r",
            "evt_ten_stale_2",
            "evt_ord_gone",
            "evt_st_gone",
            "evt_ten_gone",
        ] {
            age(world, id, 11 * 60).await?;
        }
        for job in ["sweep", "sweep-rows"] {
            delete_row(world, "JobsTable", "job_id", job).await?;
        }
        let swept = run_task(world, &scheduled("sweep")).await?;
        assert!(swept["restored"].as_u64() >= Some(2), "{swept}");
        assert_eq!(world.statement("st_stale").await?["amount_refunded"], 1000);
        let tenant = world.row("TenantsTable", "tenant_id", "ten_stale").await?;
        assert_eq!(tenant.unwrap()["charges_enabled"], true);
        for state in ["order#ord_gone", "statement#st_gone", "tenant#ten_gone"] {
            let row = world.row("EntitiesTable", "entity", state).await?;
            let open = row.unwrap_or_default()["open"].to_string();
            assert!(open.starts_with("\"missing#"), "{state}: {open}");
            // Other tests count what is missing.
            delete_row(world, "EntitiesTable", "entity", state).await?;
        }
        Ok(())
    });
}

/// Proves all states: the checkpoint says that a sample of all of them was interrupted at its beginning.
async fn prove_all(world: &World) -> Result<Value> {
    let interrupted = json!({ "job_id": "proof", "until_s": world.now_s(), "after": "0/1" });
    world.put("JobsTable", interrupted).await?;
    run_task(world, &scheduled("proof")).await
}

#[test]
fn the_proof_names_what_is_not_as_its_events_say_and_changes_nothing() {
    flow(true, async |stage| {
        let world = &stage.world;
        order(world, "ord_proof", None).await?;
        let now = world.now_s();
        let paid = intent_succeeded("evt_proof", now, "pi_proof", named("ord_proof"), 4200);
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_proof"]).await?;
        // What other tests left different is different both times.
        let before = prove_all(world).await?;
        assert_eq!(before["completed"], true, "{before}");
        assert_eq!(before["failed"], 0, "{before}");
        let key = "payment#platform#pi_proof";
        let sound = world.row("EntitiesTable", "entity", key).await?.unwrap();
        let mut damaged = sound.clone();
        let received = "/facts/money/payments/pi_proof/received/0/amount";
        *damaged.pointer_mut(received).unwrap() = json!(42);
        world.put_state(damaged.clone()).await?;
        let after = prove_all(world).await?;
        let different = |ran: &Value| ran["different"].as_u64().unwrap();
        // The payment, and the order whose copy is right.
        assert_eq!(different(&after), different(&before) + 2, "{after}");
        let left = world.row("EntitiesTable", "entity", key).await?;
        assert_eq!(left, Some(damaged));
        let checkpoint = world.row("JobsTable", "job_id", "proof").await?.unwrap();
        assert!(checkpoint["created_s"].as_i64() >= Some(now));
        assert_eq!(checkpoint.get("after"), None);
        world.put_state(sound).await?;
        let mended = prove_all(world).await?;
        assert_eq!(different(&mended), different(&before), "{mended}");
        Ok(())
    });
}

/// docs/runbook/rollback.md: a newer release has written, the older one waits, the newer one finishes.
#[test]
fn an_older_release_leaves_what_a_newer_one_wrote_and_the_sweep_finishes_it() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        order(world, "ord_roll", None).await?;
        let paid = intent_succeeded("evt_roll", now, "pi_roll", named("ord_roll"), 4200);
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_roll"]).await?;
        // What the newer release writes: another number, and a fact that this one does not know.
        let key = "payment#platform#pi_roll";
        let mut newer = world.row("EntitiesTable", "entity", key).await?.unwrap();
        let schema = newer["schema"].clone();
        newer["schema"] = json!(99);
        newer["facts"]["mandates"] = json!({ "mandate_1": "active" });
        world.put_state(newer.clone()).await?;
        let before = world.order("ord_roll").await?;

        let refund = charge_refunded("evt_roll_r", now + 1, "ch_roll", Some("pi_roll"), 1000);
        world.stripe(&refund, 1).await?;
        world.settled(STRIPE, "parked", &["evt_roll_r"]).await?;
        let row = event(world, STRIPE, "evt_roll_r").await?;
        assert_eq!(row["processing_error"], "newer_schema");
        world.drained().await?;
        assert_eq!(world.order("ord_roll").await?, before);
        let left = world.row("EntitiesTable", "entity", key).await?.unwrap();
        assert_eq!(left, newer);

        // The newer release is back: to it the number is its own.
        newer["schema"] = schema;
        world.put_state(newer).await?;
        age(world, "evt_roll_r", 11 * 60).await?;
        delete_row(world, "JobsTable", "job_id", "sweep").await?;
        run_task(world, &scheduled("sweep")).await?;
        world.settled(STRIPE, "processed", &["evt_roll_r"]).await?;
        assert_eq!(world.order("ord_roll").await?["amountRefunded"], 1000);
        let kept = world.row("EntitiesTable", "entity", key).await?.unwrap();
        assert_eq!(kept["facts"]["mandates"]["mandate_1"], "active");
        Ok(())
    });
}

#[test]
fn what_stripe_has_and_we_have_not_comes_in_by_reconcile() {
    flow(true, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        order(world, "ord_gone", None).await?;
        order(world, "ord_gap", Some("ten_a")).await?;
        let paid = intent_succeeded("evt_gone", now - 60, "pi_gone", named("ord_gone"), 4200);
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_gone"]).await?;
        // So that what comes below counts as a gap; other flows' events are in by now.
        run_task(world, &json!({ "task": "reconcile" })).await?;
        world.drained().await?;
        let before = world.order("ord_gone").await?;
        delete_row(world, STRIPE, "event_id", "evt_gone").await?;
        // Never delivered at all; and more than a page of them.
        let gap = intent_succeeded("evt_gap", now - 20 * 60, "pi_gap", named("ord_gap"), 4200);
        stage.stripe.put(Some("acct_a"), gap);
        for n in 0..120 {
            let id = format!("evt_page{n}");
            let object = json!({ "id": format!("prv_page{n}"), "object": "review", "open": false });
            stage
                .stripe
                .put(None, stripe(&id, "review.closed", now - n, object));
        }
        let done = run_task(world, &scheduled("reconcile")).await?;
        assert_eq!(
            (
                &done["task"],
                &done["taken_in"],
                &done["gaps"],
                &done["failed"]
            ),
            (&json!("reconcile"), &json!(122), &json!(1), &json!(0)),
            "{done}"
        );
        assert_eq!(
            (&done["refused"], &done["completed"]),
            (&json!([]), &json!(true)),
            "{done}"
        );
        assert!(
            done["reconciled_through"].as_str() >= Some("2026"),
            "{done}"
        );
        world
            .settled(STRIPE, "processed", &["evt_gone", "evt_gap"])
            .await?;
        world
            .settled(STRIPE, "ignored", &["evt_page0", "evt_page119"])
            .await?;
        let row = event(world, STRIPE, "evt_gone").await?;
        assert_eq!(row["source"], "reconcile");
        let row = event(world, STRIPE, "evt_gap").await?;
        assert_eq!(
            (
                &row["source"],
                &row["connected_account_id"],
                &row["tenant_id"]
            ),
            (&json!("reconcile"), &json!("acct_a"), &json!("ten_a"))
        );
        assert_eq!(world.order("ord_gap").await?["status"], "completed");
        let after = world.order("ord_gone").await?;
        for column in ["status", "paymentStatus", "timeline", "stripe"] {
            assert_eq!(after[column], before[column], "{column}");
        }
        let again = run_task(world, &scheduled("reconcile")).await?;
        assert_eq!(again["taken_in"], 0, "{again}");
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
            ("ord_paying_too", "pi_paying_too", "processing"),
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
        let preview = run_task(world, &json!({ "dry_run": true })).await?;
        assert_eq!(preview["dry_run"], true);
        assert_eq!(world.order("ord_stale").await?["status"], "payment_failed");
        let done = run_task(world, &scheduled("cleanup")).await?;
        // Other tests leave stale orders too, of payments that the local Stripe does not have.
        assert!(done["cancelled"].as_u64() >= Some(1), "{done}");
        assert!(done["reconciled"].as_u64() >= Some(1), "{done}");
        assert_eq!(world.order("ord_stale").await?["status"], "cancelled");
        assert_eq!(world.order("ord_paying").await?["status"], "payment_failed");
        // A run that its limit cuts keeps its place, and one that comes to the end clears it.
        run_task(world, &json!({ "limit": 1 })).await?;
        let place = world.row("JobsTable", "job_id", "cleanup").await?;
        assert!(place.is_some_and(|row| row["after"].is_string()));
        run_task(world, &json!({})).await?;
        let place = world.row("JobsTable", "job_id", "cleanup").await?;
        assert!(place.is_none_or(|row| row.get("after").is_none()));
        // By hand with nothing at all: the same task, with nothing left that it can do.
        let by_hand = run_task(world, &json!({})).await?;
        assert_eq!(
            (&by_hand["cancelled"], &by_hand["dry_run"]),
            (&json!(0), &json!(false))
        );
        for (wrong, told) in [
            (
                json!({ "dryrun": true }),
                "unknown field `dryrun`, expected one of",
            ),
            (
                json!({ "task": "tidy" }),
                "unknown variant `tidy`, expected one of `cleanup`, `sweep`, `reconcile`",
            ),
            (
                json!({ "task": "sweep", "limit": 1 }),
                "task `sweep` takes no field `limit`",
            ),
        ] {
            let refused = run_task(world, &wrong).await?;
            let message = refused["errorMessage"].as_str().unwrap();
            assert!(message.contains(told), "{refused}");
        }
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

/// Customers with a voucher, a bank debit and an old page; a payment that Stripe does not have; an account that refuses.
#[test]
fn the_cleanup_ends_nothing_that_is_under_way_and_skips_an_account_that_refuses() {
    flow(true, async |stage| {
        let (world, local) = (&stage.world, &stage.stripe);
        let long_ago = world.now_s() - 2 * 60 * 60;
        let intent = |id: &str| {
            json!({ "id": id, "object": "payment_intent", "status": "requires_payment_method", "amount": 4200,
                "currency": "usd", "metadata": {}, "created": long_ago })
        };
        let session = |id: &str, intent: Option<&str>| {
            json!({ "id": id, "object": "checkout.session", "status": "open", "payment_status": "unpaid",
                "payment_intent": intent, "amount_total": 4200, "currency": "usd", "metadata": {} })
        };
        let cases = [
            ("voucher", None),
            ("debit", None),
            ("left", None),
            ("page", None),
            ("gone", None),
            ("cut", Some("acct_b")),
        ];
        let mut failed = Vec::new();
        for (name, account) in cases {
            let (id, own) = (format!("ord_uw_{name}"), format!("pi_uw_{name}"));
            order(world, &id, account.map(|_| "ten_b")).await?;
            if name != "gone" {
                local.put(account, intent(&own));
            }
            let event = format!("evt_uw_{name}");
            let charge = format!("ch_uw_{name}");
            let mut event = intent_failed(&event, long_ago, &own, named(&id), &charge);
            if let Some(account) = account {
                event = from_account(event, account);
            }
            world.stripe(&event, 1).await?;
            failed.push(event["id"].as_str().unwrap().to_owned());
        }
        let failed: Vec<&str> = failed.iter().map(String::as_str).collect();
        world.settled(STRIPE, "processed", &failed).await?;
        // Of the old page only the application's column tells.
        local.put(None, session("cs_uw_page", None));
        let mut row = world.order("ord_uw_page").await?;
        row["stripeCheckoutSessionId"] = json!("cs_uw_page");
        world.put("OrdersTable", row).await?;
        local.put(None, session("cs_uw_debit", Some("pi_uw_debit")));
        for (of, does) in [
            ("pi_uw_voucher", PayerStep::Oxxo),
            ("cs_uw_debit", PayerStep::Debit),
            ("pi_uw_left", PayerStep::Redirect),
        ] {
            local.act(&PayerAction {
                account: None,
                livemode: false,
                of: of.to_owned(),
                does,
            })?;
        }
        // The debit completed its session, and the event says so.
        let now = world.now_s();
        let completed = session_completed(
            "evt_uw_completed",
            now,
            "cs_uw_debit",
            Some("pi_uw_debit"),
            named("ord_uw_debit"),
            "unpaid",
        );
        world.stripe(&completed, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_uw_completed"])
            .await?;
        let debit = world.order("ord_uw_debit").await?;
        assert_eq!(
            (&debit["status"], &debit["paymentStatus"]),
            (&json!("pending"), &json!("processing"))
        );
        // Other tests may leave orders of their own.
        let before = run_task(world, &json!({ "dry_run": true })).await?;
        assert_eq!(before["refused"], 0, "{before}");
        local.refuse("acct_b", true);
        let preview = run_task(world, &json!({ "dry_run": true })).await?;
        assert!(preview["cancelled"].as_u64() >= Some(3), "{preview}");
        assert!(preview["refused"].as_u64() >= Some(1), "{preview}");
        assert_eq!(
            world.order("ord_uw_gone").await?["status"],
            "payment_failed"
        );
        for _ in 0..2 {
            let done = run_task(world, &scheduled("cleanup")).await?;
            assert_eq!(
                (&done["refused"], &done["failed"]),
                (&preview["refused"], &before["failed"]),
                "{done}"
            );
        }
        for (name, status) in [
            ("voucher", "payment_failed"),
            ("debit", "pending"),
            ("left", "cancelled"),
            ("page", "cancelled"),
            ("gone", "cancelled"),
            ("cut", "payment_failed"),
        ] {
            let row = world.order(&format!("ord_uw_{name}")).await?;
            assert_eq!(row["status"], status, "{name}");
        }
        let told = world.row("JobsTable", "job_id", "cleanup#acct_b").await?;
        assert!(told.unwrap()["refusal_told_s"].is_i64());
        let spaces = local.state()["spaces"].clone();
        let objects = spaces.as_array().unwrap().iter();
        let objects = objects.flat_map(|space| space["objects"].as_array().unwrap());
        let objects: BTreeMap<&str, &str> = objects
            .filter_map(|object| Some((object["id"].as_str()?, object["status"].as_str()?)))
            .collect();
        assert_eq!(objects["pi_uw_voucher"], "requires_action");
        assert_eq!(objects["cs_uw_page"], "expired");
        // Its events are not fetched either; once it is connected again, everything is done.
        let reconciled = run_task(world, &scheduled("reconcile")).await?;
        assert_eq!(reconciled["refused"], json!(["acct_b"]), "{reconciled}");
        assert_eq!(reconciled["failed"], 0, "{reconciled}");
        local.refuse("acct_b", false);
        let reconciled = run_task(world, &scheduled("reconcile")).await?;
        assert_eq!(reconciled["refused"], json!([]), "{reconciled}");
        let done = run_task(world, &scheduled("cleanup")).await?;
        assert_eq!(done["refused"], 0, "{done}");
        assert_eq!(world.order("ord_uw_cut").await?["status"], "cancelled");
        // The voucher is paid the next day.
        let paid = intent_succeeded(
            "evt_uw_paid",
            world.now_s(),
            "pi_uw_voucher",
            named("ord_uw_voucher"),
            4200,
        );
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_uw_paid"]).await?;
        let row = world.order("ord_uw_voucher").await?;
        assert_eq!(
            (&row["status"], &row["requiresReview"]),
            (&json!("completed"), &json!(false))
        );
        Ok(())
    });
}
