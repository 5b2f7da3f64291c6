//! One connected account floods: who it is, closing what it left, muting its tenant and bringing its money back. The attacker
//! has only an account; the victim's rows stay as they are, byte by byte.

use super::*;

async fn rows_of_victim(world: &World) -> Result<Vec<Option<Value>>> {
    let mut rows = Vec::new();
    for (table, key, id) in [
        ("OrdersTable", "id", "ord_calm"),
        ("TenantsTable", "tenant_id", "ten_calm"),
        ("EntitiesTable", "entity", "order#ord_calm"),
        ("EntitiesTable", "entity", "payment#acct_calm#pi_calm"),
    ] {
        rows.push(world.row(table, key, id).await?);
    }
    rows.push(world.event(STRIPE, "evt_calm").await?);
    Ok(rows)
}

#[test]
fn one_account_floods_is_found_closed_muted_and_brought_back() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        for (tenant, account) in [("ten_flood", "acct_flood"), ("ten_calm", "acct_calm")] {
            let add = format!("tenants add {tenant} --account {account} --reason new --yes");
            assert_eq!(run_billhook(stage, &add).await?.code, 0);
        }
        order(world, "ord_calm", Some("ten_calm")).await?;
        order(world, "ord_flood", Some("ten_flood")).await?;
        let paid = |id: &str, payment: &str, order: &str, account: &str| {
            let paid = intent_succeeded(id, now, payment, named(order), 4200);
            from_account(paid, account)
        };
        world
            .stripe(&paid("evt_calm", "pi_calm", "ord_calm", "acct_calm"), 1)
            .await?;
        world.settled(STRIPE, "processed", &["evt_calm"]).await?;
        let before = rows_of_victim(world).await?;

        // Junk of its own, and a try at the victim's order.
        let junk: Vec<String> = (0..6).map(|n| format!("evt_flood_{n}")).collect();
        for (n, id) in junk.iter().enumerate() {
            let order = ["ord_flood_none", "ord_calm"][n % 2];
            let event = paid(id, &format!("pi_flood_{n}"), order, "acct_flood");
            assert_eq!(world.stripe(&event, 1).await?[0].status, 200);
        }
        let ids: Vec<&str> = junk.iter().map(String::as_str).collect();
        world.settled(STRIPE, "parked", &ids).await?;

        let top = run_billhook(stage, "accounts top --since 1h --limit 500 --output json").await?;
        let top = top.json();
        assert_eq!(top["is_cut"], false, "{top}");
        let mut ranked = top["top"].as_array().unwrap().iter();
        let flood = ranked.find(|row| row["account"] == "acct_flood").unwrap();
        assert_eq!(
            (&flood["events"], &flood["parked"], &flood["tenant"]),
            (&json!(6), &json!(6), &json!("ten_flood"))
        );
        let cut = run_billhook(stage, "accounts top --since 1h --most 1").await?;
        assert!(
            cut.stderr.contains("only the newest are counted"),
            "{}",
            cut.stderr
        );

        // Closed by filter: out of the index of open events, with who and why, and a new delivery opens nothing.
        let close = "events close --account acct_flood --since 1h --reason 'a loop of theirs'";
        let all = run_billhook(stage, "events close --reason 'a loop of theirs'").await?;
        all.assert_exit(1, "does not close everything");
        let preview = run_billhook(stage, close).await?;
        preview.assert_exit(0, "6 events would be closed. Nothing was changed");
        assert!(preview.stdout.contains("acct_flood"), "{}", preview.stdout);
        assert_eq!(
            event(world, STRIPE, ids[0]).await?["processing_outcome"],
            "parked"
        );
        let closed = run_billhook(stage, &format!("{close} --yes")).await?;
        closed.assert_exit(0, "closed 6 events");
        closed.assert_exit(0, "--outcome ignored --error closed --account 'acct_flood'");
        let row = event(world, STRIPE, ids[0]).await?;
        assert_eq!(
            (
                &row["processing_outcome"],
                &row["processing_error"],
                &row["processed"]
            ),
            (&json!("ignored"), &json!("closed"), &json!(true))
        );
        assert!(
            row.get("open").is_none() && row["processed_at"].is_string(),
            "{row}"
        );
        let note = &row["notes"][0];
        assert_eq!(
            (&note["action"], &note["reason"]),
            (&json!("close"), &json!("a loop of theirs"))
        );
        assert!(note["actor"].is_string(), "{row}");
        let again = paid(ids[0], "pi_flood_0", "ord_flood_none", "acct_flood");
        let again = world.stripe(&again, 1).await?;
        assert_eq!(again[0].body["duplicate"], true);
        let done = run_billhook(stage, &format!("events close {} --reason x", ids[0])).await?;
        done.assert_exit(1, "only parked and failed events can be closed");
        // Undone.
        let replay = format!("replay {} --force --reason undone --yes", ids[0]);
        assert_eq!(run_billhook(stage, &replay).await?.code, 0);
        world.settled(STRIPE, "parked", &ids[..1]).await?;
        let closed = run_billhook(
            stage,
            &format!("events close {} --reason junk --yes", ids[0]),
        )
        .await?;
        closed.assert_exit(0, "closed 1 events");

        // Muted: stored, ignored, quiet; the victim's events count.
        let mute = "tenants mute ten_flood --reason 'a loop of theirs'";
        run_billhook(stage, mute)
            .await?
            .assert_exit(4, "nothing was changed");
        run_billhook(stage, &format!("{mute} --yes"))
            .await?
            .assert_exit(0, "muted ten_flood");
        run_billhook(stage, &format!("{mute} --yes"))
            .await?
            .assert_exit(0, "has been muted since");
        let money = paid("evt_flood_paid", "pi_flood_paid", "ord_flood", "acct_flood");
        world.stripe(&money, 1).await?;
        let mut malformed = paid("evt_flood_bad", "pi_flood_bad", "ord_flood", "acct_flood");
        malformed["data"]["object"]["amount_received"] = json!(-1);
        world.stripe(&malformed, 1).await?;
        let muted = ["evt_flood_paid", "evt_flood_bad"];
        world.settled(STRIPE, "ignored", &muted).await?;
        for id in muted {
            let row = event(world, STRIPE, id).await?;
            assert_eq!(
                (&row["processing_error"], &row["tenant_id"]),
                (&json!("muted"), &json!("ten_flood"))
            );
            let lines = world.logged("StripeWorkerFunction", id).await?;
            assert!(
                lines.iter().all(|line| line.contains(r#""level":"INFO""#)),
                "{lines:?}"
            );
        }
        assert_eq!(world.order("ord_flood").await?["status"], "pending");
        assert_eq!(rows_of_victim(world).await?, before);
        let refund = charge_refunded("evt_calm_2", now + 1, "ch_calm", Some("pi_calm"), 100);
        world.stripe(&from_account(refund, "acct_calm"), 1).await?;
        world.settled(STRIPE, "processed", &["evt_calm_2"]).await?;
        let note = world
            .row("EntitiesTable", "entity", "account#acct_flood")
            .await?;
        let note = note.unwrap()["notes"][0].clone();
        assert_eq!(
            (&note["action"], &note["reason"]),
            (&json!("mute"), &json!("a loop of theirs"))
        );

        // One command brings the money back.
        let unmute = "tenants unmute ten_flood --replay --reason 'they mended it'";
        run_billhook(stage, unmute)
            .await?
            .assert_exit(4, "2 events that were ignored");
        let back = run_billhook(stage, &format!("{unmute} --yes")).await?;
        back.assert_exit(0, "ten_flood is not muted any more");
        world
            .settled(STRIPE, "processed", &["evt_flood_paid"])
            .await?;
        world.settled(STRIPE, "parked", &["evt_flood_bad"]).await?;
        assert_eq!(world.order("ord_flood").await?["status"], "completed");
        let tenant = world
            .row("TenantsTable", "tenant_id", "ten_flood")
            .await?
            .unwrap();
        assert!(tenant.get("billhook_muted_at").is_none(), "{tenant}");
        run_billhook(stage, unmute)
            .await?
            .assert_exit(1, "is not muted");
        Ok(())
    });
}
