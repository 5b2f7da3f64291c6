//! Links that come late, and accounts that change: lost PaymentIntents in bulk, payments that are nobody's, and a tenant with
//! another account.

use super::*;

/// An order whose column was lost, and whose timeline still names PaymentIntents.
async fn order_that_lost(world: &World, id: &str, tenant: &str, intents: &[&str]) -> Result<()> {
    let entries = intents.iter().map(|intent| {
        json!({ "type": "checkout_started", "at": "2026-04-01T00:00:00.000Z", "actor": "application",
            "meta": { "paymentIntentId": intent } })
    });
    let row = json!({ "id": id, "tenantId": tenant, "status": "pending", "amountTotal": 4200, "currency": "usd",
        "createdAt": "2026-04-01T00:00:00Z", "timeline": entries.collect::<Vec<_>>() });
    world.put("OrdersTable", row).await
}

/// As if the sweep had rechecked it for 30 days and given up.
async fn give_up(world: &World, payment: &str) -> Result<()> {
    let row = world.row("EntitiesTable", "entity", payment).await?;
    let mut row = row.unwrap();
    row["open_since"] = json!("2026-01-01T00:00:00.000Z");
    for name in ["open", "open_at"] {
        row.as_object_mut().unwrap().remove(name);
    }
    world.put_state(row).await
}

#[test]
fn lost_payment_intents_are_taken_from_the_timelines_of_many_orders() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        let added = run_billhook(
            stage,
            "tenants add ten_bulk --account acct_bulk --reason new --yes",
        )
        .await?;
        assert_eq!(added.code, 0, "{}", added.stderr);
        let paid = |event: &str, intent: &str| {
            let paid = intent_succeeded(event, now, intent, json!({}), 4200);
            from_account(paid, "acct_bulk")
        };
        for (order, intents) in [
            ("ord_bulk_1", &["pi_bulk_1"][..]),
            ("ord_bulk_2", &["pi_bulk_2a", "pi_bulk_2b"]),
            ("ord_bulk_3", &["pi_bulk_3"]),
            ("ord_bulk_4", &["pi_bulk_none"]),
        ] {
            order_that_lost(world, order, "ten_bulk", intents).await?;
        }
        let other = json!({ "id": "ord_bulk_other", "tenantId": "ten_bulk", "status": "pending", "amountTotal": 4200,
            "currency": "usd", "stripePaymentIntentId": "pi_bulk_3" });
        world.put("OrdersTable", other).await?;
        world.stripe(&paid("evt_bulk_1", "pi_bulk_1"), 1).await?;
        world.stripe(&paid("evt_bulk_3", "pi_bulk_3"), 1).await?;
        let events = ["evt_bulk_1", "evt_bulk_3"];
        world.settled(STRIPE, "processed", &events).await?;
        give_up(world, "payment#acct_bulk#pi_bulk_1").await?;

        let backfill = "orders backfill-payment-intent --from-timelines --tenant ten_bulk --since 2026-04-01 \
            --until 2026-04-02 --reason 'lost by a release'";
        let preview = run_billhook(stage, &format!("{backfill} --output json")).await?;
        let preview = preview.json();
        let does: Vec<_> = preview.as_array().unwrap().iter().collect();
        assert_eq!(does.len(), 4, "{preview}");
        assert_eq!(
            [&does[0]["do"], &does[0]["payment"]],
            ["backfill", "payment#acct_bulk#pi_bulk_1"]
        );
        assert_eq!(
            does[1]["do"],
            "refuse: its timeline names pi_bulk_2a and pi_bulk_2b"
        );
        assert_eq!(does[2]["borne_by"], "order#ord_bulk_other");
        assert_eq!(does[3]["do"], "backfill");
        assert_eq!(world.order("ord_bulk_1").await?["status"], "pending");

        let done = run_billhook(stage, &format!("{backfill} --yes")).await?;
        done.assert_exit(4, "2 backfilled, 2 refused, 0 failed");
        let found = world.order("ord_bulk_1").await?;
        assert_eq!(found["status"], "completed", "{found}");
        assert_eq!(found["stripePaymentIntentId"], "pi_bulk_1");
        let waiting = world.order("ord_bulk_4").await?;
        assert_eq!(waiting["stripePaymentIntentId"], "pi_bulk_none");
        // The payment that comes later finds its order.
        world.stripe(&paid("evt_bulk_4", "pi_bulk_none"), 1).await?;
        world.settled(STRIPE, "processed", &["evt_bulk_4"]).await?;
        assert_eq!(world.order("ord_bulk_4").await?["status"], "completed");
        let again = run_billhook(stage, &format!("{backfill} --yes")).await?;
        again.assert_exit(4, "0 backfilled, 2 refused, 0 failed");

        // One at a time, what another order bears is refused and named, and a person may take it.
        let take =
            "orders backfill-payment-intent ord_bulk_3 pi_bulk_3 --reason 'asked the shop' --yes";
        run_billhook(stage, take)
            .await?
            .assert_exit(4, "order#ord_bulk_other has pi_bulk_3");
        let forced = run_billhook(stage, &format!("{take} --force")).await?;
        assert_eq!(forced.code, 0, "{}", forced.stderr);
        assert_eq!(world.order("ord_bulk_3").await?["status"], "completed");
        let lost = world.order("ord_bulk_other").await?;
        assert_eq!(lost["status"], "pending", "{lost}");
        assert!(
            lost["timeline"].to_string().contains("asked the shop"),
            "{lost}"
        );

        // And it may be nobody's.
        let none = "payments relink pi_bulk_1 pi_bulk_none --account acct_bulk --none --reason 'another shop' --yes";
        let relinked = run_billhook(stage, none).await?;
        assert_eq!(relinked.code, 0, "{}", relinked.stderr);
        for id in ["ord_bulk_1", "ord_bulk_4"] {
            let lost = world.order(id).await?;
            assert_eq!(lost["paymentStatus"], "unpaid", "{lost}");
            assert!(
                lost["timeline"].to_string().contains("another shop"),
                "{lost}"
            );
        }
        let key = "payment#acct_bulk#pi_bulk_1";
        let payment = world.row("EntitiesTable", "entity", key).await?.unwrap();
        assert_eq!(
            (payment.get("open"), payment.get("open_since")),
            (None, None)
        );
        Ok(())
    });
}

#[test]
fn a_tenant_that_changed_its_account_keeps_what_comes_late_on_the_old_one() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        let added = run_billhook(
            stage,
            "tenants add ten_moved --account acct_moved_1 --reason new --yes",
        )
        .await?;
        assert_eq!(added.code, 0, "{}", added.stderr);
        for id in ["ord_moved_1", "ord_moved_2", "ord_moved_3"] {
            order(world, id, Some("ten_moved")).await?;
        }
        let paid = |event: &str, n: i64, account: &str| {
            let (intent, order) = (format!("pi_moved_{n}"), format!("ord_moved_{n}"));
            let paid = intent_succeeded(event, now + n, &intent, named(&order), 4200);
            from_account(paid, account)
        };
        world
            .stripe(&paid("evt_moved_1", 1, "acct_moved_1"), 1)
            .await?;
        world.settled(STRIPE, "processed", &["evt_moved_1"]).await?;

        let change = "tenants change-account ten_moved --account acct_moved_2 --reason 'a new account' --yes";
        let changed = run_billhook(stage, change).await?;
        changed.assert_exit(0, "late events of acct_moved_1 still belong to it");
        let refunded = charge_refunded(
            "evt_moved_r",
            now + 60,
            "ch_moved",
            Some("pi_moved_1"),
            1000,
        );
        let late = from_account(refunded, "acct_moved_1");
        world.stripe(&late, 1).await?;
        world
            .stripe(&paid("evt_moved_2", 2, "acct_moved_2"), 1)
            .await?;
        let events = ["evt_moved_r", "evt_moved_2"];
        world.settled(STRIPE, "processed", &events).await?;
        assert_eq!(world.order("ord_moved_1").await?["amountRefunded"], 1000);
        assert_eq!(world.order("ord_moved_2").await?["status"], "completed");

        // The application moves the account: from then on nothing of it is the first tenant's, whatever a worker remembers.
        let taken =
            json!({ "tenant_id": "ten_moved", "stripe_connected_account_id": "acct_moved_3" });
        world.put("TenantsTable", taken).await?;
        let moved =
            json!({ "tenant_id": "ten_moved_b", "stripe_connected_account_id": "acct_moved_2" });
        world.put("TenantsTable", moved).await?;
        world
            .stripe(&paid("evt_moved_3", 3, "acct_moved_2"), 1)
            .await?;
        world.settled(STRIPE, "parked", &["evt_moved_3"]).await?;
        assert_eq!(world.order("ord_moved_3").await?["status"], "pending");

        let theirs =
            "tenants change-account ten_moved --account acct_moved_2 --reason 'a try' --yes";
        run_billhook(stage, theirs)
            .await?
            .assert_exit(4, "acct_moved_2 already belongs to ten_moved_b");
        run_billhook(
            stage,
            "tenants add ten_moved_p --account acct_platform --reason new --yes",
        )
        .await?
        .assert_exit(4, "acct_platform is the platform's own account");
        Ok(())
    });
}
