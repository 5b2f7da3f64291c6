//! What no row would hold: thousands of facts of one payment or one order. No event is refused for its size, no state's
//! row is larger than 64 KiB, and every sum is exact.

use std::time::Instant;

use billhook_adapters::dynamodb::attributes;
use billhook_testkit::events::{dispute, refund};
use futures_util::future::try_join_all;

use super::*;

const STATE_BYTES_MAX: usize = 64 * 1024;
/// Events of each kind that are delivered before the queue has to be empty again.
const STEP: usize = 500;
/// Deliveries under way at once.
const SENDERS: usize = 8;

/// How many events of each kind.
struct EventCounts {
    failures: i64,
    refunds: i64,
    sessions: i64,
    disputes: i64,
    /// About a payment without a link.
    open: i64,
}

#[test]
fn facts_that_one_row_would_not_hold_are_handled_exactly() {
    let sizes = EventCounts {
        failures: 60,
        refunds: 400,
        sessions: 100,
        disputes: 20,
        open: 400,
    };
    flow(false, async |stage| {
        let pages = deliver_and_check(stage, "few", &sizes).await?;
        assert!(pages >= 2, "{pages} pages");
        Ok(())
    });
}

#[test]
fn facts_that_fit_their_row_again_leave_no_page() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        order(world, "ord_paged", None).await?;
        let paid = intent_succeeded("evt_paged", now, "pi_paged", named("ord_paged"), 4200);
        world.stripe(&paid, 1).await?;
        let row = json!({ "statement_id": "st_paged", "lob_letter_id": "ltr_paged" });
        world.put("StatementsTable", row).await?;
        let created = letter(
            "evt_paged_1",
            "2026-11-20T08:00:00.000Z",
            "ltr_paged",
            "created",
        );
        world.lob(&created).await?;
        world.settled(STRIPE, "processed", &["evt_paged"]).await?;
        world.settled(LOB, "processed", &["evt_paged_1"]).await?;
        let states = ["order#ord_paged", "statement#st_paged"];
        for state in states {
            move_facts_to_page(world, state).await?;
        }
        let refund = charge_refunded("evt_paged_r", now, "ch_paged", Some("pi_paged"), 1000);
        world.stripe(&refund, 1).await?;
        let mailed = letter(
            "evt_paged_2",
            "2026-11-20T09:00:00.000Z",
            "ltr_paged",
            "mailed",
        );
        world.lob(&mailed).await?;
        world.settled(STRIPE, "processed", &["evt_paged_r"]).await?;
        world.settled(LOB, "processed", &["evt_paged_2"]).await?;
        for state in states {
            let page = format!("page#0#{state}");
            assert_eq!(world.row("EntitiesTable", "entity", &page).await?, None);
        }
        assert_eq!(world.order("ord_paged").await?["amountRefunded"], 1000);
        let statement = world.statement("st_paged").await?;
        assert_eq!(types(&statement), ["mail_created", "mail_mailed"]);
        Ok(())
    });
}

/// Moves the facts of a state into a page, as if they had once been too large for its row.
pub(super) async fn move_facts_to_page(world: &World, state: &str) -> Result<()> {
    let table = world.stack.output("EntitiesTable")?;
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let client = world.aws.dynamodb();
    let get = client.get_item().table_name(table);
    let got = get.key("entity", text(state)).send().await?;
    let mut item = got.item.unwrap();
    let no_facts = AttributeValue::M(std::collections::HashMap::new());
    let facts = item.insert("facts".to_owned(), no_facts).unwrap();
    let pages = AttributeValue::Ss(vec!["0".to_owned()]);
    item.insert("pages".to_owned(), pages);
    let page = client.put_item().table_name(table);
    page.item("entity", text(&format!("page#0#{state}")))
        .item("facts", facts)
        .item("version", item["version"].clone())
        .send()
        .await?;
    let put = client.put_item().table_name(table);
    put.set_item(Some(item)).send().await?;
    Ok(())
}

#[test]
#[ignore = "takes most of an hour"]
fn thousands_of_facts_of_four_orders_are_handled_exactly() {
    deliver_thousands(&EventCounts {
        failures: 5_000,
        refunds: 5_000,
        sessions: 5_000,
        disputes: 5_000,
        open: 40,
    });
}

#[test]
#[ignore = "takes most of an hour"]
fn thousands_of_facts_of_a_payment_without_a_link_are_handled_exactly() {
    deliver_thousands(&EventCounts {
        failures: 20,
        refunds: 20,
        sessions: 20,
        disputes: 20,
        open: 20_000,
    });
}

fn deliver_thousands(sizes: &EventCounts) {
    flow(true, async |stage| {
        set_visibility_timeout(&stage.world, 60).await?;
        let pages = deliver_and_check(stage, "all", sizes).await?;
        assert!(pages >= 20, "{pages} pages");
        Ok(())
    });
}

/// Delivers everything, checks what the rows say, and returns the number of pages.
async fn deliver_and_check(stage: &Stage, own: &str, sizes: &EventCounts) -> Result<usize> {
    let world = &stage.world;
    let now = world.now_s();
    let of = |kind: &str| format!("{own}_{kind}");
    // More than what goes back, a cent at a time.
    let price = |kind: &str| match kind {
        "open" => 4200 + sizes.open / 4,
        _ => 4200 + sizes.refunds,
    };
    for kind in ["failures", "refunds", "sessions", "disputes"] {
        priced_order(world, &of(kind), price(kind)).await?;
    }
    let paid = |kind: &str, at: i64| {
        let (event, intent) = (format!("evt_{own}_{kind}_paid"), format!("pi_{own}_{kind}"));
        let order = named(&of(kind));
        intent_succeeded(&event, at, &intent, order, price(kind))
    };
    let failures =
        (0..sizes.failures).map(|n| failure(own, "failures", now + n, n, named(&of("failures"))));
    let refunds = (0..sizes.refunds).map(|n| refunded(own, "refunds", now + n, n, "succeeded"));
    let sessions = (0..sizes.sessions).map(|n| {
        let session = json!({ "id": format!("cs_{own}{n}"), "object": "checkout.session", "status": "expired",
            "payment_status": "unpaid", "payment_intent": null, "metadata": named(&of("sessions")) });
        let event = format!("evt_{own}_sessions{n}");
        stripe(&event, "checkout.session.expired", now + n, session)
    });
    let disputes =
        (0..sizes.disputes).map(|n| disputed(own, "disputes", now + n, n, "under_review"));
    // Attempts, refunds that are asked for and then made, and a dispute.
    let open = (0..sizes.open).map(|n| match n % 4 {
        0 => failure(own, "open", now + n, n, json!({})),
        1 => refunded(own, "open", now + n, n, "pending"),
        2 => refunded(own, "open", now + n, n - 1, "succeeded"),
        _ => disputed(own, "open", now + n, n, "under_review"),
    });
    let kinds: [Vec<Value>; 5] = [
        failures
            .chain([paid("failures", now + sizes.failures)])
            .collect(),
        [paid("refunds", now)].into_iter().chain(refunds).collect(),
        sessions
            .chain([paid("sessions", now + sizes.sessions)])
            .collect(),
        [paid("disputes", now)]
            .into_iter()
            .chain(disputes)
            .collect(),
        open.collect(),
    ];
    let begun = Instant::now();
    let events = kinds.iter().map(Vec::len).sum::<usize>();
    // Each kind in its own order, and all kinds side by side. In steps, because the local AWS is slow with a long queue.
    let steps = kinds.iter().map(|events| events.len().div_ceil(STEP)).max();
    for step in 0..steps.unwrap_or_default() {
        let of_step = |events: &'_ Vec<Value>| {
            let end = events.len().min((step + 1) * STEP);
            events.get(step * STEP..end).unwrap_or_default().to_vec()
        };
        let of_step: Vec<Vec<Value>> = kinds.iter().map(of_step).collect();
        try_join_all(of_step.iter().map(|events| deliver(world, events))).await?;
        wait_until_drained(world).await?;
    }
    println!("{events} events were processed after {:?}", begun.elapsed());

    let sum = sizes.refunds;
    for (kind, status, refunded) in [
        ("failures", "completed", 0),
        ("refunds", "completed", sum),
        ("sessions", "completed", 0),
        ("disputes", "completed", 0),
    ] {
        let row = world.order(&of(kind)).await?;
        assert_eq!(
            (&row["status"], &row["amountRefunded"]),
            (&json!(status), &json!(refunded)),
            "{kind}"
        );
    }
    // At last the payment is linked to an order, which gets all facts that came before.
    priced_order(world, &of("open"), price("open")).await?;
    deliver(world, &[paid("open", now + sizes.open)]).await?;
    wait_until_drained(world).await?;
    let row = world.order(&of("open")).await?;
    assert_eq!(
        (&row["status"], &row["amountRefunded"]),
        (&json!("completed"), &json!(sizes.open / 4))
    );

    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let ours = format!("evt_{own}_");
    for row in world.rows(STRIPE).await? {
        if row["event_id"]
            .as_str()
            .is_some_and(|id| id.starts_with(&ours))
        {
            *ends
                .entry(row["processing_outcome"].to_string())
                .or_default() += 1;
        }
    }
    assert_eq!(ends, [("\"processed\"".to_owned(), events + 1)].into());
    sizes_of_states(world, own).await
}

async fn priced_order(world: &World, id: &str, amount: i64) -> Result<()> {
    let row = json!({ "id": id, "userId": "user_1", "status": "pending", "amountTotal": amount, "currency": "usd" });
    world.put("OrdersTable", row).await
}

fn failure(own: &str, kind: &str, at: i64, n: i64, metadata: Value) -> Value {
    let (id, charge) = (format!("evt_{own}_{kind}{n}"), format!("ch_{own}{n}"));
    intent_failed(&id, at, &format!("pi_{own}_{kind}"), metadata, &charge)
}

fn refunded(own: &str, kind: &str, at: i64, n: i64, status: &str) -> Value {
    let (id, re) = (
        format!("evt_{own}_{kind}{n}_{status}"),
        format!("re_{own}_{kind}{n}"),
    );
    let (intent, charge) = (format!("pi_{own}_{kind}"), format!("ch_{own}_{kind}"));
    refund(&id, at, &re, (&intent, &charge), 1, status)
}

fn disputed(own: &str, kind: &str, at: i64, n: i64, status: &str) -> Value {
    let id = format!("evt_{own}_{kind}{n}");
    let (of, intent) = (format!("dp_{own}_{kind}"), format!("pi_{own}_{kind}"));
    dispute(&id, at, &of, &intent, status)
}

async fn deliver(world: &World, events: &[Value]) -> Result<()> {
    for events in events.chunks(SENDERS) {
        let answers = try_join_all(events.iter().map(|event| world.stripe(event, 1))).await?;
        for answer in answers.concat() {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    Ok(())
}

/// Waits until the queue is empty, for as long as it gets shorter: at least once in so many waits, because on a busy
/// machine a batch may run out of time, and its messages then come back only after their visibility timeout.
async fn wait_until_drained(world: &World) -> Result<()> {
    const WAITS: u32 = 5;
    let (mut left, mut waits) = (u64::MAX, 0);
    while left > 0 {
        let before = left;
        let fewer = async || {
            let depth = world.depth("StripeEventsQueueUrl").await;
            left = depth.unwrap_or(before);
            Ok(left < before)
        };
        waits = if world.until(fewer).await? {
            0
        } else {
            waits + 1
        };
        assert!(waits < WAITS, "{left} messages stay in the queue");
    }
    Ok(())
}

/// Checks every row that states what we delivered, and returns the number of pages.
async fn sizes_of_states(world: &World, own: &str) -> Result<usize> {
    let table = world.stack.output("EntitiesTable")?;
    let scan = world.aws.dynamodb().scan().table_name(table);
    let mut states = scan.into_paginator().items().send();
    let (mut rows, mut pages, mut largest) = (0, 0, (0, String::new()));
    while let Some(state) = states.next().await {
        let state = state?;
        let key = attributes::read_text(&state, "entity")
            .unwrap_or_default()
            .to_owned();
        if key.contains(own) {
            rows += 1;
            pages += usize::from(key.starts_with("page#"));
            largest = largest.max((attributes::item_size(&state), key));
        }
    }
    println!("{rows} rows of states, {pages} of them pages; the largest: {largest:?} bytes");
    assert!(largest.0 <= STATE_BYTES_MAX, "{largest:?}");
    Ok(pages)
}
