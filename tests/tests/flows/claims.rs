//! Flows of money and its owner: a Payment Link's reference, a destination charge, another shop's payment that nothing
//! claims until a person does.

use super::operator::run_billhook;
use super::scheduled::{run_task, scheduled};
use super::*;

#[test]
fn a_payment_links_reference_completes_the_order_of_that_key() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_plink", Some("ten_a")).await?;
        let metadata = json!({});
        let mut linked = session_completed(
            "evt_plink",
            world.now_s(),
            "cs_plink",
            Some("pi_plink"),
            metadata,
            "paid",
        );
        linked["data"]["object"]["client_reference_id"] = json!("ord_plink");
        world.stripe(&from_account(linked, "acct_a"), 1).await?;
        world.settled(STRIPE, "processed", &["evt_plink"]).await?;
        assert_eq!(world.order("ord_plink").await?["status"], "completed");
        Ok(())
    });
}

#[test]
fn a_destination_charge_for_another_tenant_is_parked_and_told() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_dest", Some("ten_a")).await?;
        let before = world.order("ord_dest").await?;
        let paid = |id: &str, intent: &str, account: &str| {
            let named = named("ord_dest");
            let mut paid = intent_succeeded(id, world.now_s(), intent, named, 4200);
            paid["data"]["object"]["transfer_data"] = json!({ "destination": account });
            paid
        };
        world
            .stripe(&paid("evt_dest_b", "pi_dest_b", "acct_b"), 1)
            .await?;
        world.settled(STRIPE, "parked", &["evt_dest_b"]).await?;
        let parked = event(world, STRIPE, "evt_dest_b").await?;
        assert_eq!(parked["processing_error"], "cross_tenant");
        assert_eq!(world.order("ord_dest").await?, before);
        world
            .stripe(&paid("evt_dest_a", "pi_dest_a", "acct_a"), 1)
            .await?;
        world.settled(STRIPE, "processed", &["evt_dest_a"]).await?;
        let row = world.order("ord_dest").await?;
        assert_eq!(
            (&row["status"], &row["requiresReview"]),
            (&json!("completed"), &json!(false))
        );
        Ok(())
    });
}

/// As if the payment had been without a link for so long.
async fn age_payment(world: &World, payment: &str, seconds: i64) -> Result<()> {
    let since = Timestamp::from_unix_s(world.now_s() - seconds)?.to_string();
    let row = world.row("EntitiesTable", "entity", payment).await?;
    let mut row = row.unwrap();
    row["open_since"] = json!(since);
    row["open_at"] = json!(since);
    world.put_state(row).await
}

#[test]
fn money_that_nothing_claims_is_reported_and_listed_until_a_person_links_it() {
    flow(true, async |stage| {
        let world = &stage.world;
        let other = json!({ "order_id": "Order 1001", "site_url": "https://other.example" });
        let paid = intent_succeeded("evt_unclaimed", world.now_s(), "pi_unclaimed", other, 4200);
        world.stripe(&paid, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_unclaimed"])
            .await?;
        let listed = async || {
            let list = run_billhook(stage, "payments unclaimed --output json").await?;
            let rows = list.json();
            let rows = rows.as_array().cloned().unwrap_or_default();
            let mut its = rows
                .into_iter()
                .filter(|row| row["payment"] == "pi_unclaimed");
            anyhow::Ok(its.next())
        };
        assert_eq!(listed().await?, None, "not for a day");

        let payment = "payment#platform#pi_unclaimed";
        age_payment(world, payment, 2 * 24 * 60 * 60).await?;
        run_task(world, &scheduled("sweep")).await?;
        for text in [
            "money_unclaimed payment#platform#pi_unclaimed since",
            "\"UnclaimedMoney\":1",
        ] {
            let is_logged = world
                .until(async || {
                    let lines = world.logged("StripeWorkerFunction", text).await?;
                    Ok(!lines.is_empty())
                })
                .await?;
            assert!(is_logged, "{text}");
        }
        let row = listed().await?.unwrap();
        assert_eq!(
            (
                &row["account"],
                &row["money"],
                &row["names"],
                &row["events"]
            ),
            (
                &json!("platform"),
                &json!("received 4200 usd"),
                &json!([]),
                &json!(["evt_unclaimed"])
            )
        );

        order(world, "ord_claims", None).await?;
        let link = "payments relink pi_unclaimed --order ord_claims --reason 'the number was theirs' --yes";
        run_billhook(stage, link).await?.assert_exit(0, "");
        let row = world.order("ord_claims").await?;
        assert_eq!(
            (&row["status"], &row["requiresReview"]),
            (&json!("completed"), &json!(false))
        );
        assert_eq!(listed().await?, None, "it is claimed");
        Ok(())
    });
}
