//! The orders of which the others are clones: each is made the real way, by signed deliveries and the worker.

use billhook_testkit::events::refund;

use super::super::*;
use super::clones::{Item, OrderRows};

/// The connected account of some orders, and its tenant.
pub(super) const ACCOUNT: &str = "acct_proof";
pub(super) const TENANT: &str = "ten_proof";

/// The amounts that a release reads from the events of an order.
struct TemplateAmounts {
    paid: i64,
    refunded: i64,
}

const AMOUNTS: TemplateAmounts = TemplateAmounts {
    paid: 4200,
    refunded: 1000,
};

/// An order, and what it was like earlier or with another release.
pub(super) struct TemplateOrder {
    pub(super) rows: OrderRows,
    /// The application's row after the first event.
    pub(super) older: Item,
}

pub(super) struct TemplateOrders {
    /// Of these each is cloned as often.
    pub(super) kinds: Vec<TemplateOrder>,
    /// As a release would have written the first one that reads a hundredth of the amount paid.
    pub(super) misread: OrderRows,
    /// The same, of one that does not read the refund.
    pub(super) dropped: OrderRows,
    /// The same, of one that reads a tenth of the refund.
    pub(super) altered: OrderRows,
}

/// Length of a token.
pub(super) fn token(kind: char, number: usize) -> String {
    format!("{kind}{number:07}")
}

impl TemplateOrders {
    pub(super) async fn make(world: &World) -> Result<Self> {
        // Stripe's objects are as old, so that no event can be on its way.
        let at = world.now_s() - 3 * 24 * 3600;
        let mut kinds = Vec::new();
        for (kind, events, account) in [
            ('A', checkout(&token('A', 0), at, &AMOUNTS), None),
            ('B', tenants(&token('B', 0), at), Some(TENANT)),
            ('C', by_column(&token('C', 0), at), None),
            ('D', samples(&token('D', 0)), None),
        ] {
            kinds.push(make_order(world, kind, &events, account).await?);
        }
        let as_read = async |kind: char, amounts: TemplateAmounts| -> Result<OrderRows> {
            let mut events = checkout(&token(kind, 0), at, &amounts);
            if amounts.refunded == 0 {
                // Something that states nothing new.
                let last = events.pop().unwrap();
                let mut again = events[0].clone();
                again["id"] = last["id"].clone();
                again["created"] = last["created"].clone();
                events.push(again);
            }
            Ok(make_order(world, kind, &events, None).await?.rows)
        };
        Ok(Self {
            kinds,
            misread: as_read(
                'M',
                TemplateAmounts {
                    paid: AMOUNTS.paid / 100,
                    ..AMOUNTS
                },
            )
            .await?,
            dropped: as_read(
                'N',
                TemplateAmounts {
                    refunded: 0,
                    ..AMOUNTS
                },
            )
            .await?,
            altered: as_read(
                'R',
                TemplateAmounts {
                    refunded: AMOUNTS.refunded / 10,
                    ..AMOUNTS
                },
            )
            .await?,
        })
    }
}

async fn make_order(
    world: &World,
    kind: char,
    events: &[Value],
    tenant: Option<&str>,
) -> Result<TemplateOrder> {
    let token = token(kind, 0);
    let id = format!("ord_{token}");
    let mut row = json!({ "id": id, "userId": format!("user_{token}"), "status": "pending", "amountTotal": 4200,
        "currency": "usd", "createdAt": "2026-06-01T08:00:00.000Z", "lines": [{ "sku": "A-1", "price": 42 }],
        "timeline": [{ "type": "note", "at": "2026-06-01T08:00:00.000Z", "actor": "application" }] });
    if let Some(tenant) = tenant {
        row["tenantId"] = json!(tenant);
    }
    if kind == 'C' {
        row["stripePaymentIntentId"] = json!(format!("pi_{token}"));
    }
    world.put("OrdersTable", row).await?;
    let mut older = None;
    for event in events {
        for answer in world.stripe(event, 1).await? {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let id = event["id"].as_str().unwrap();
        world.settled(STRIPE, "processed", &[id]).await?;
        if older.is_none() {
            older = Some(OrderRows::read(world, &token).await?.order);
        }
    }
    Ok(TemplateOrder {
        rows: OrderRows::read(world, &token).await?,
        older: older.unwrap(),
    })
}

/// Paid through Checkout, and a part of it refunded.
fn checkout(token: &str, at: i64, amounts: &TemplateAmounts) -> Vec<Value> {
    let order = format!("ord_{token}");
    let (intent, charge) = (format!("pi_{token}"), format!("ch_{token}"));
    let event = |number: u8| format!("evt_{token}{number}");
    let mut paid = intent_succeeded(&event(2), at + 1, &intent, named(&order), amounts.paid);
    paid["data"]["object"]["latest_charge"] = json!(charge);
    let session = format!("cs_{token}");
    let mut session = session_completed(
        &event(1),
        at,
        &session,
        Some(&intent),
        named(&order),
        "paid",
    );
    // Its own amount, which no release reads otherwise here.
    session["data"]["object"]["amount_total"] = json!(AMOUNTS.paid);
    let of = (&*intent, &*charge);
    let refund = format!("re_{token}");
    vec![
        session,
        paid,
        refund_event(&event(3), at + 2, &refund, of, amounts.refunded),
    ]
}

fn refund_event(id: &str, at: i64, name: &str, of: (&str, &str), amount: i64) -> Value {
    refund(id, at, name, of, amount, "succeeded")
}

/// Of a tenant's connected account: failed, paid, and a part of it refunded.
fn tenants(token: &str, at: i64) -> Vec<Value> {
    let order = format!("ord_{token}");
    let (intent, charge) = (format!("pi_{token}"), format!("ch_{token}"));
    let event = |number: u8| format!("evt_{token}{number}");
    let failed_charge = format!("ch_{token}f");
    let events = [
        intent_failed(&event(1), at, &intent, named(&order), &failed_charge),
        intent_succeeded(&event(2), at + 1, &intent, named(&order), 4200),
        charge_refunded(&event(3), at + 2, &charge, Some(&intent), 1000),
    ];
    events.map(|event| from_account(event, ACCOUNT)).into()
}

/// Nothing names the order, but its row has the payment: paid, disputed, and all of it refunded.
fn by_column(token: &str, at: i64) -> Vec<Value> {
    let (intent, charge) = (format!("pi_{token}"), format!("ch_{token}"));
    let event = |number: u8| format!("evt_{token}{number}");
    let (disputed, refunded) = (format!("du_{token}"), format!("re_{token}"));
    let mut dispute =
        billhook_testkit::events::dispute(&event(2), at + 1, &disputed, &intent, "won");
    dispute["data"]["object"]["charge"] = json!(charge);
    vec![
        intent_succeeded(&event(1), at, &intent, json!({}), 4200),
        dispute,
        refund_event(&event(3), at + 2, &refunded, (&intent, &charge), 4200),
    ]
}

/// In their full shape, so that their payloads are compressed.
fn samples(token: &str) -> Vec<Value> {
    let names = [
        "payment_intent_succeeded",
        "checkout_session_completed_paid",
        "charge_refunded_partial",
    ];
    names.map(|name| sample("stripe", name, token)).into()
}
