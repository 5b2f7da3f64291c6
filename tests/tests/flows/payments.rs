//! Flows of Stripe's events: orders, statements and tenants, out-of-order delivery, duplicates, and the row that each
//! sample event leaves.

use super::*;

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

/// As an ORM does that saves whole objects.
#[test]
fn an_order_that_the_application_writes_over_keeps_its_payment() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        order(world, "ord_orm", None).await?;
        let created = world.order("ord_orm").await?;
        let paid = intent_succeeded("evt_orm", now, "pi_orm", named("ord_orm"), 4200);
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_orm"]).await?;
        let paid = world.order("ord_orm").await?;
        assert_eq!(
            (&paid["status"], &paid["stripe"]),
            (&json!("completed"), &Value::Null)
        );

        world.put("OrdersTable", created).await?;
        let refund = charge_refunded("evt_orm_r", now + 1, "ch_orm", Some("pi_orm"), 1000);
        world.stripe(&refund, 1).await?;
        world.settled(STRIPE, "processed", &["evt_orm_r"]).await?;
        let row = world.order("ord_orm").await?;
        assert_eq!(
            (
                &row["status"],
                &row["paymentStatus"],
                &row["amountRefunded"]
            ),
            (&json!("completed"), &json!("paid"), &json!(1000))
        );
        assert_eq!(types(&row), ["note", "payment_succeeded", "refund_partial"]);
        let kept = event(world, STRIPE, "evt_orm_r").await?;
        assert_eq!(
            kept["entities"],
            json!(["order#ord_orm", "payment#platform#pi_orm"])
        );
        Ok(())
    });
}

/// Rows as ORMs write them: NULL for what they do not know, an old copy, nothing at all.
#[test]
fn rows_that_an_application_writes_as_a_whole_end_right() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        let paid = async |order: &str| {
            let (event, intent) = (format!("evt_{order}"), format!("pi_{order}"));
            let paid = intent_succeeded(&event, now, &intent, named(order), 4200);
            world.stripe(&paid, 1).await?;
            world.settled(STRIPE, "processed", &[&event]).await
        };
        let refunded = async |order: &str, cents: i64| {
            let (event, intent) = (format!("evt_{order}{cents}"), format!("pi_{order}"));
            let charge = format!("ch_{order}");
            let refund = charge_refunded(&event, now + cents, &charge, Some(&intent), cents);
            world.stripe(&refund, 1).await?;
            world.settled(STRIPE, "processed", &[&event]).await
        };

        let nulls = json!({ "id": "ord_nulls", "amountTotal": 4200, "currency": "USD", "status": "pending",
            "timeline": null, "tenantId": null, "requiresReview": null, "paymentStatus": null, "version": null,
            "reviewReasons": null, "createdAt": null });
        world.put("OrdersTable", nulls).await?;
        paid("ord_nulls").await?;
        assert_eq!(world.order("ord_nulls").await?["status"], "completed");

        order(world, "ord_old_copy", None).await?;
        paid("ord_old_copy").await?;
        let copy = world.order("ord_old_copy").await?;
        refunded("ord_old_copy", 1000).await?;
        let mut edited = copy.clone();
        edited["status"] = json!("cancelled");
        world.put("OrdersTable", edited).await?;
        refunded("ord_old_copy", 1100).await?;
        let row = world.order("ord_old_copy").await?;
        assert_eq!(
            (
                &row["status"],
                &row["amountRefunded"],
                &row["requiresReview"]
            ),
            (&json!("completed"), &json!(1100), &json!(true))
        );
        let conflict = row["timeline"]
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["type"] == "review_flagged");
        let edits = json!([{ "column": "status", "found": "cancelled", "written": "completed" }]);
        assert_eq!(conflict.unwrap()["meta"]["edits"], edits);
        let is_logged = async || {
            let restored = world.logged("StripeWorkerFunction", "row_restored").await?;
            Ok(restored
                .iter()
                .any(|line| line.contains("order#ord_old_copy")))
        };
        assert!(world.until(is_logged).await?);

        order(world, "ord_deleted", None).await?;
        paid("ord_deleted").await?;
        let row = world.order("ord_deleted").await?;
        let delete = world.aws.dynamodb().delete_item();
        let delete = delete.table_name(world.stack.output("OrdersTable")?);
        delete
            .key("id", AttributeValue::S("ord_deleted".to_owned()))
            .send()
            .await?;
        refunded("ord_deleted", 1000).await?;
        let state = world
            .row("EntitiesTable", "entity", "order#ord_deleted")
            .await?;
        let open = state.unwrap_or_default()["open"].to_string();
        assert!(open.starts_with("\"missing#"), "{open}");
        world.put("OrdersTable", row).await?;
        refunded("ord_deleted", 1100).await?;
        let row = world.order("ord_deleted").await?;
        assert_eq!(
            (&row["status"], &row["amountRefunded"]),
            (&json!("completed"), &json!(1100))
        );
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
            .settled(STRIPE, "processed", &["evt_late_r", "evt_late_s"])
            .await?;
        let payment = "payment#acct_a#pi_late";
        let unlinked = world
            .row("EntitiesTable", "entity", payment)
            .await?
            .unwrap();
        let open = unlinked["open"].as_str().unwrap();
        assert!(open.starts_with("unlinked#"), "{unlinked}");
        assert_eq!(unlinked["event_ids"].as_array().unwrap().len(), 2);
        assert_eq!(world.order("ord_late").await?["status"], "pending");

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
                "payment_processing",
                "refund_partial"
            ]
        );
        assert_eq!(row["stripeCheckoutSessionId"], "cs_late");
        let linked = world
            .row("EntitiesTable", "entity", payment)
            .await?
            .unwrap();
        assert_eq!(
            (&linked["copied"], &linked["open"]),
            (
                &json!({ "order#ord_late": linked["facts_version"] }),
                &Value::Null
            )
        );
        // Its other names lead to it.
        for alias in ["payment#acct_a#ch_late", "payment#acct_a#cs_late"] {
            let row = world.row("EntitiesTable", "entity", alias).await?.unwrap();
            assert_eq!(row["alias_of"], payment, "{alias}");
        }
        assert_eq!(
            event(world, STRIPE, "evt_late_r").await?["tenant_id"],
            "ten_a"
        );
        Ok(())
    });
}

#[test]
fn rows_are_found_while_their_indexes_are_not_active() {
    flow(true, async |stage| {
        let world = &stage.world;
        let indexes = [
            ("OrdersTable", "PaymentIntentIndex", "stripePaymentIntentId"),
            (
                "StatementsTable",
                "PaymentIntentIndex",
                "stripe_payment_intent_id",
            ),
            ("StatementsTable", "LobLetterIndex", "lob_letter_id"),
            (
                "TenantsTable",
                "stripe_connected_account_id",
                "stripe_connected_account_id",
            ),
        ];
        for (table, index, _) in indexes {
            remove_index(world, table, index).await?;
        }
        let row = json!({ "id": "ord_scan", "status": "pending", "amountTotal": 4200, "currency": "usd",
            "stripePaymentIntentId": "pi_scan" });
        world.put("OrdersTable", row).await?;
        let now = world.now_s();
        let paid = intent_succeeded("evt_scan", now, "pi_scan", json!({}), 4200);
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_scan"]).await?;
        assert_eq!(world.order("ord_scan").await?["status"], "completed");
        assert!(
            stage.proxy.calls().contains_key("Scan"),
            "the whole table is read"
        );

        let row = json!({ "statement_id": "st_scan", "lob_letter_id": "ltr_scan" });
        world.put("StatementsTable", row).await?;
        let mailed = letter(
            "evt_scan_l",
            "2026-11-20T08:00:00.000Z",
            "ltr_scan",
            "mailed",
        );
        world.lob(&mailed).await?;
        world.settled(LOB, "processed", &["evt_scan_l"]).await?;
        let row = json!({ "tenant_id": "ten_scan", "stripe_connected_account_id": "acct_scan" });
        world.put("TenantsTable", row).await?;
        let account =
            json!({ "id": "acct_scan", "charges_enabled": true, "payouts_enabled": true });
        let updated = stripe("evt_scan_t", "account.updated", now, account);
        world.stripe(&from_account(updated, "acct_scan"), 1).await?;
        world.settled(STRIPE, "processed", &["evt_scan_t"]).await?;

        for (table, index, column) in indexes {
            restore_index(world, table, index, column).await?;
        }
        let scans = stage.proxy.calls().get("Scan").copied();
        // Found by the index again.
        let row = json!({ "id": "ord_index", "status": "pending", "amountTotal": 4200, "currency": "usd",
            "stripePaymentIntentId": "pi_index" });
        world.put("OrdersTable", row).await?;
        let paid = intent_succeeded("evt_index", now, "pi_index", json!({}), 4200);
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_index"]).await?;
        assert_eq!(stage.proxy.calls().get("Scan").copied(), scans);
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
                false,
                "deauthorized",
            ),
            (
                "evt_acct_4",
                "account.application.authorized",
                3,
                true,
                "connected",
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
        // An older event changes nothing, whenever it comes.
        let account =
            json!({ "id": "acct_own", "charges_enabled": false, "payouts_enabled": true });
        let late = stripe("evt_acct_0", "account.updated", world.now_s() - 60, account);
        world.stripe(&from_account(late, "acct_own"), 1).await?;
        world.settled(STRIPE, "processed", &["evt_acct_0"]).await?;
        let row = world.row("TenantsTable", "tenant_id", "ten_acct").await?;
        assert_eq!(row.unwrap()["charges_enabled"], true);
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
        // What comes while the row is gone is in it once it is back.
        scheduled::delete_row(world, "StatementsTable", "statement_id", "st_both").await?;
        let refund = |id: &str, cents: i64| {
            charge_refunded(id, world.now_s(), "ch_both", Some("pi_both"), cents)
        };
        world.stripe(&refund("evt_both_r1", 1000), 1).await?;
        world.settled(STRIPE, "processed", &["evt_both_r1"]).await?;
        world.put("StatementsTable", row).await?;
        world.stripe(&refund("evt_both_r2", 1100), 1).await?;
        world.settled(STRIPE, "processed", &["evt_both_r2"]).await?;
        assert_eq!(world.statement("st_both").await?["amount_refunded"], 1100);
        Ok(())
    });
}

#[test]
fn every_sample_of_stripe_leaves_the_row_of_this_table() {
    // Sample, and of its order: status, paymentStatus, requiresReview, amountRefunded, timeline.
    const ROWS: [(&str, &str); 25] = [
        (
            "checkout_session_completed_paid",
            "completed paid false 0 checkout_completed,payment_succeeded",
        ),
        (
            "checkout_session_completed_unpaid_delayed_method",
            "pending processing false 0 checkout_completed,payment_processing",
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
            "payment_intent_amount_capturable_updated",
            "pending authorized false 0 payment_authorized",
        ),
        // With a PaymentIntent these only name its charge.
        ("charge_succeeded", "pending unpaid false 0 "),
        ("charge_captured", "pending unpaid false 0 "),
        ("charge_failed", "pending unpaid false 0 "),
        ("charge_expired", "pending unpaid false 0 "),
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
