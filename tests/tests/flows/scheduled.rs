//! The scheduled function's tasks.

use super::*;

#[test]
fn the_cleanup_ends_the_payment_at_stripe_and_then_cancels_the_order() {
    flow(true, async |stage| {
        let world = &stage.world;
        let long_ago = world.now_s() - 2 * 60 * 60;
        for (order_id, intent, status) in [
            ("ord_stale", "pi_stale", "requires_payment_method"),
            ("ord_paying", "pi_paying", "processing"),
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
        let preview = invoke(
            world,
            "CleanupFailedPaymentsFunction",
            &json!({ "dry_run": true }),
        )
        .await?;
        assert_eq!(preview["dry_run"], true);
        assert_eq!(world.order("ord_stale").await?["status"], "payment_failed");
        let done = invoke(world, "CleanupFailedPaymentsFunction", &json!({})).await?;
        // Other tests leave stale orders too, of payments that the local Stripe does not know.
        assert!(done["cancelled"].as_u64() >= Some(1), "{done}");
        assert!(done["reconciled"].as_u64() >= Some(1), "{done}");
        assert_eq!(world.order("ord_stale").await?["status"], "cancelled");
        assert_eq!(world.order("ord_paying").await?["status"], "payment_failed");
        let refused = invoke(
            world,
            "CleanupFailedPaymentsFunction",
            &json!({ "dryrun": true }),
        )
        .await?;
        assert!(
            refused["errorMessage"]
                .as_str()
                .unwrap()
                .contains("unknown field `dryrun`"),
            "{refused}"
        );
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
