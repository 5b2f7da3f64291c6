//! The demonstration of `make run`: writes an application's rows, delivers events of both providers, and prints the
//! result. `world` does the deliveries.

use std::time::Duration;

use anyhow::{Result, ensure};
use billhook_core::time::Timestamp;
use billhook_testkit::events::{charge_refunded, from_account, intent_succeeded, letter};
use billhook_testkit::sign::sign_stripe;
use serde_json::{Value, json};

use crate::world::{Answer, World};

/// Ids contain the time, so that each run creates new rows and events.
pub async fn show(world: &World) -> Result<()> {
    let now = world.now_s();
    let id = |prefix: &str| format!("{prefix}_{now}");
    let (order, statement, letter_id) = (id("ord"), id("st"), id("ltr"));
    let (intent, charge) = (id("pi"), id("ch"));

    heading("The application writes its rows: a tenant, an order, a statement");
    let tenant = json!({ "tenant_id": "ten_demo", "name": "Demo", "stripe_connected_account_id": "acct_demo" });
    world.put("TenantsTable", tenant).await?;
    let row = json!({ "id": order, "tenantId": "ten_demo", "userId": "user_1", "status": "pending",
        "amountTotal": 4200, "currency": "usd" });
    world.put("OrdersTable", row).await?;
    let row = json!({ "statement_id": statement, "tenant_id": "ten_demo", "amount_due": 4200, "currency": "usd",
        "lob_letter_id": letter_id });
    world.put("StatementsTable", row).await?;
    println!("  tenant ten_demo (acct_demo), order {order} over 42.00 usd, statement {statement}");

    heading("Stripe and Lob deliver");
    let named = json!({ "order_id": order });
    let paid = from_account(
        intent_succeeded(&id("evt_paid"), now, &intent, named, 4200),
        "acct_demo",
    );
    tell("a payment", &world.stripe(&paid, 1).await?)?;
    world
        .settled("StripeEventsTable", "processed", &[&id("evt_paid")])
        .await?;
    tell("the same again", &world.stripe(&paid, 1).await?)?;
    let body = paid.to_string();
    let forged = sign_stripe(body.as_bytes(), "whsec_guessed", now);
    let forged = world
        .request(
            "POST",
            "/webhooks/stripe",
            &[("Stripe-Signature", &forged)],
            body.as_bytes(),
        )
        .await?;
    tell("a forged one", &[forged])?;
    let refund = charge_refunded(&id("evt_refund"), now + 60, &charge, Some(&intent), 1000);
    tell(
        "a refund of 10.00, which names only the payment",
        &world.stripe(&from_account(refund, "acct_demo"), 1).await?,
    )?;
    let stages = ["delivered", "in_transit", "mailed", "created"];
    for (n, stage) in stages.iter().enumerate() {
        let days = Duration::from_secs(24 * 60 * 60).saturating_mul(u32::try_from(n)?);
        let created = Timestamp::from_unix_s(now)?.before(days).to_string();
        let event = letter(&id(&format!("evt_{stage}")), &created, &letter_id, stage);
        tell(
            &format!("the letter was {stage}"),
            &[world.lob(&event).await?],
        )?;
    }
    let of_lob: Vec<String> = stages
        .iter()
        .map(|stage| id(&format!("evt_{stage}")))
        .collect();
    world
        .settled("StripeEventsTable", "processed", &[&id("evt_refund")])
        .await?;
    world
        .settled(
            "LobEventsTable",
            "processed",
            &of_lob.iter().map(String::as_str).collect::<Vec<_>>(),
        )
        .await?;
    world.drained().await?;

    heading("The order");
    let row = world.order(&order).await?;
    columns(
        &row,
        &[
            "id",
            "tenantId",
            "status",
            "paymentStatus",
            "amountTotal",
            "amountRefunded",
            "currency",
            "requiresReview",
            "stripePaymentIntentId",
            "version",
        ],
    );
    timeline(&row);
    heading("The statement");
    let row = world.statement(&statement).await?;
    columns(
        &row,
        &[
            "statement_id",
            "tenant_id",
            "mail_status",
            "mail_status_at",
            "expected_delivery_date",
            "needs_attention",
            "lob_letter_id",
            "version",
        ],
    );
    timeline(&row);
    heading("The events");
    println!(
        "  {:<28} {:<28} {:<10} {:<25} correlation",
        "event", "type", "outcome", "processed at"
    );
    let of_stripe = [id("evt_paid"), id("evt_refund")];
    let all = of_stripe.iter().map(|id| ("StripeEventsTable", id));
    for (table, id) in all.chain(of_lob.iter().map(|id| ("LobEventsTable", id))) {
        let row = world.event(table, id).await?.unwrap_or_default();
        let text = |name: &str| {
            row.get(name)
                .and_then(Value::as_str)
                .unwrap_or("-")
                .to_owned()
        };
        println!(
            "  {:<28} {:<28} {:<10} {:<25} {}",
            id,
            text("event_type"),
            text("processing_outcome"),
            text("processed_at"),
            text("correlation_id")
        );
    }
    Ok(())
}

fn heading(text: &str) {
    println!("\n{text}");
}

fn tell(what: &str, answers: &[Answer]) -> Result<()> {
    for answer in answers {
        println!("  {what:<48} {} {}", answer.status, answer.body);
        ensure!(answer.status < 500, "{what} was not taken");
    }
    Ok(())
}

fn columns(row: &Value, names: &[&str]) {
    for name in names {
        if let Some(value) = row.get(*name) {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            println!("  {name:<24} {text}");
        }
    }
}

fn timeline(row: &Value) {
    println!("  timeline");
    for entry in row
        .get("timeline")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let text = |name: &str| {
            entry
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or("-")
                .to_owned()
        };
        let meta = entry.get("meta").map(Value::to_string).unwrap_or_default();
        println!(
            "    {}  {:<20} {:<26} {meta}",
            text("at"),
            text("type"),
            text("eventId")
        );
    }
}
