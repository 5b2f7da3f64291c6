//! Whose a payment's money is: what names an order, what may claim the money, and who hears of money that nothing claims.

use billhook_core::entity::payment::state::unclaimed_index_keys;
use billhook_core::provider::order_ids::OrderIdRules;
use billhook_core::tasks::ports::FindOpenStates as _;

use super::deadlines::{Reported, deliver_at, sweep_at, sweep_hourly};
use super::laws::run;
use super::*;

const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;

/// A session with a `client_reference_id`, as a Payment Link makes it.
fn referring(id: &str, session: &str, intent: &str, reference: &str) -> Value {
    let mut event = session_completed(id, T, session, Some(intent), json!({}), "paid");
    event["data"]["object"]["client_reference_id"] = json!(reference);
    event
}

fn add_row(tables: &MemoryTables, key: &EntityKey, columns: Value) {
    let mut row = json!({ "amountTotal": 4200, "amount_due": 4200, "currency": "usd" });
    for (column, value) in columns.as_object().unwrap() {
        row[column] = value.clone();
    }
    let row = memory::entity_of(key, row);
    tables.entities.lock().unwrap().insert(key.clone(), row);
}

fn completed() -> (String, String) {
    ("completed".into(), "paid".into())
}

fn untouched() -> (String, String) {
    Default::default()
}

/// The words of the review reasons.
fn reasons(tables: &MemoryTables, id: &str) -> Vec<String> {
    let reasons = payment(tables, &order(id)).review_reasons;
    reasons.into_iter().collect()
}

async fn unclaimed(tables: &MemoryTables) -> Vec<String> {
    let due = Timestamp::from_unix_s(T + 1_000 * DAY).unwrap();
    let mut found = Vec::new();
    for key in unclaimed_index_keys() {
        let payments = tables.open_payments(&key, due, 10).await.unwrap();
        found.extend(payments.iter().map(ToString::to_string));
    }
    found.sort();
    found
}

fn days(reported: &Reported) -> Vec<i64> {
    reported.iter().map(|(second, _)| second / DAY).collect()
}

#[tokio::test]
async fn a_payment_links_reference_names_the_order_or_statement_of_that_key() {
    let tables = tables();
    let of_order = referring("evt_1", "cs_1", "pi_1", "ord_1");
    let of_statement = from_account(referring("evt_2", "cs_2", "pi_2", "st_1"), "acct_a");
    deliver(&tables, ProviderId::Stripe, &[of_order, of_statement]).await;
    assert_eq!(status(&tables, "ord_1"), completed());
    let paid = entity(&tables, &statement("st_1")).columns().clone();
    assert_eq!(paid.payment_status.as_deref(), Some("paid"));
}

#[tokio::test]
async fn a_reference_that_is_a_user_or_another_tenants_order_names_nothing_and_is_not_parked() {
    let tables = tables();
    let user = referring("evt_1", "cs_1", "pi_1", "user_77");
    // `ord_a` is tenant A's.
    let others = from_account(referring("evt_2", "cs_2", "pi_2", "ord_a"), "acct_b");
    deliver(&tables, ProviderId::Stripe, &[user, others]).await;
    for id in ["evt_1", "evt_2"] {
        assert_eq!(outcome(&tables, id), processed(), "{id}");
    }
    assert_eq!(status(&tables, "ord_a"), untouched());
}

#[tokio::test]
async fn metadata_and_the_column_name_the_order_before_the_reference() {
    let tables = tables();
    add_row(
        &tables,
        &order("ord_c"),
        json!({ "stripePaymentIntentId": "pi_2" }),
    );
    let mut both = referring("evt_1", "cs_1", "pi_1", "ord_1");
    both["data"]["object"]["metadata"] = named("ord_2");
    let in_column = referring("evt_2", "cs_2", "pi_2", "ord_1");
    deliver(&tables, ProviderId::Stripe, &[both, in_column]).await;
    assert_eq!(status(&tables, "ord_1"), untouched());
    assert_eq!(status(&tables, "ord_2"), completed());
    assert_eq!(status(&tables, "ord_c"), completed());
}

#[tokio::test]
async fn the_order_of_a_reference_may_be_written_after_the_payment() {
    let tables = tables();
    deliver_at(&tables, 0, &referring("evt_1", "cs_1", "pi_1", "ord_late")).await;
    add_row(&tables, &order("ord_late"), json!({}));
    assert_eq!(sweep_at(&tables, HOUR).await, []);
    assert_eq!(status(&tables, "ord_late"), completed());
    // So may its next event.
    deliver_at(&tables, 0, &referring("evt_2", "cs_2", "pi_2", "ord_later")).await;
    add_row(&tables, &order("ord_later"), json!({}));
    let paid = intent_succeeded("evt_3", T, "pi_2", json!({}), 4200);
    deliver_at(&tables, 1, &paid).await;
    assert_eq!(status(&tables, "ord_later"), completed());
}

#[tokio::test]
async fn money_that_nothing_claims_for_a_day_is_reported_until_somebody_does() {
    let tables = tables();
    let paid = intent_succeeded("evt_1", T, "pi_1", json!({}), 4200);
    assert_eq!(deliver_at(&tables, 0, &paid).await, []);
    assert_eq!(sweep_hourly(&tables, 0, DAY - HOUR).await, []);
    assert_eq!(unclaimed(&tables).await, [""; 0]);
    let reported = sweep_hourly(&tables, DAY, 100 * DAY).await;
    let since = format!("unclaimed since {}", Timestamp::from_unix_s(T).unwrap());
    assert!(
        reported.iter().all(|(_, text)| *text == since),
        "{reported:?}"
    );
    // With twice the age each time, and at least once in 30 days.
    assert_eq!(days(&reported), [1, 2, 4, 8, 16, 32, 62, 92]);
    assert_eq!(unclaimed(&tables).await, ["payment#platform#pi_1"]);
    // What comes to it is reported at once.
    let refund = charge_refunded("evt_2", T + 100 * DAY, "ch_1", Some("pi_1"), 1000);
    assert_eq!(deliver_at(&tables, 100 * DAY, &refund).await.len(), 1);
    let named_at_last = session_completed(
        "evt_3",
        T + 101 * DAY,
        "cs_1",
        Some("pi_1"),
        named("ord_1"),
        "paid",
    );
    assert_eq!(deliver_at(&tables, 101 * DAY, &named_at_last).await, []);
    assert_eq!(status(&tables, "ord_1"), completed());
    assert_eq!(unclaimed(&tables).await, [""; 0]);
    assert_eq!(sweep_hourly(&tables, 101 * DAY, 200 * DAY).await, []);
}

#[tokio::test]
async fn each_kind_of_money_is_reported_and_what_is_none_is_not() {
    let nothing = json!({});
    let mut warning = stripe(
        "evt_1",
        "radar.early_fraud_warning.created",
        T,
        json!({ "id": "issfr_1", "object": "radar.early_fraud_warning", "charge": "ch_1" }),
    );
    warning["data"]["object"]["payment_intent"] = json!("pi_1");
    let of_charge = |mut event: Value| {
        event["data"]["object"]["payment_intent"] = json!(null);
        event
    };
    for (event, is_money) in [
        (
            intent_succeeded("evt_1", T, "pi_1", nothing.clone(), 4200),
            true,
        ),
        (charge_refunded("evt_1", T, "ch_1", Some("pi_1"), 100), true),
        (charge_refunded("evt_1", T, "ch_1", None, 100), true),
        (
            refund("evt_1", T, "re_1", ("pi_1", "ch_1"), 100, "succeeded"),
            true,
        ),
        (dispute("evt_1", T, "dp_1", "pi_1", "needs_response"), true),
        (of_charge(dispute("evt_1", T, "dp_1", "pi_1", "won")), true),
        (warning.clone(), true),
        (of_charge(warning), true),
        (
            intent_failed("evt_1", T, "pi_1", nothing.clone(), "ch_1"),
            false,
        ),
        (
            intent_is("evt_1", T, "pi_1", nothing.clone(), "processing"),
            false,
        ),
        (
            intent_is("evt_1", T, "pi_1", nothing.clone(), "canceled"),
            false,
        ),
        (
            session_completed("evt_1", T, "cs_1", Some("pi_1"), nothing, "unpaid"),
            false,
        ),
    ] {
        let tables = tables();
        deliver_at(&tables, 0, &event).await;
        let reported = sweep_hourly(&tables, 0, 2 * DAY).await;
        assert_eq!(!days(&reported).is_empty(), is_money, "{event}");
        assert_eq!(!unclaimed(&tables).await.is_empty(), is_money, "{event}");
    }
}

#[tokio::test]
async fn a_day_begins_with_the_money_and_not_with_the_payment() {
    let tables = tables();
    let failed = intent_failed("evt_1", T, "pi_1", json!({}), "ch_1");
    deliver_at(&tables, 0, &failed).await;
    assert_eq!(sweep_hourly(&tables, 0, 5 * DAY).await, []);
    let paid = intent_succeeded("evt_2", T, "pi_1", json!({}), 4200);
    assert_eq!(deliver_at(&tables, 5 * DAY, &paid).await, []);
    let reported = sweep_hourly(&tables, 5 * DAY, 7 * DAY - HOUR).await;
    assert_eq!(days(&reported), [6]);
}

#[tokio::test]
async fn on_a_connected_account_only_money_that_names_an_order_is_ours() {
    let tables = tables();
    let of_a = |event: Value| from_account(event, "acct_a");
    let silent = of_a(intent_succeeded("evt_1", T, "pi_1", json!({}), 4200));
    let other_shop = of_a(intent_succeeded(
        "evt_2",
        T,
        "pi_2",
        named("Order 1001"),
        4200,
    ));
    let ours = of_a(intent_succeeded(
        "evt_3",
        T,
        "pi_3",
        named("ord_gone"),
        4200,
    ));
    // The money of nobody's account is nobody's either, but something named an order.
    let unknown = intent_succeeded("evt_4", T, "pi_4", named("ord_1"), 4200);
    let unknown = from_account(unknown, "acct_new");
    let mut messages = Vec::new();
    for event in [silent, other_shop, ours, unknown] {
        messages.push(keep(&tables, ProviderId::Stripe, &event).await);
    }
    super::deadlines::work_at(&tables, 0, &messages).await;
    assert_eq!(outcome(&tables, "evt_2"), processed());
    assert_eq!(outcome(&tables, "evt_3"), parked("order_unknown"));
    assert_eq!(sweep_hourly(&tables, 0, 3 * DAY).await.len(), 4);
    assert_eq!(
        unclaimed(&tables).await,
        ["payment#acct_a#pi_3", "payment#acct_new#pi_4"]
    );
}

/// A foreign shop's number is nobody's order: neither is its event parked, nor is its payment looked for in vain.
#[tokio::test]
async fn an_id_that_we_do_not_issue_falls_back_to_the_payment_intent() {
    let rules = InterpretRules {
        order_ids: OrderIdRules::default()
            .with_keys("OrderID,order_id")
            .unwrap()
            .with_pattern("ord_.+")
            .unwrap(),
        ..InterpretRules::default()
    };
    let tables = tables();
    add_row(&tables, &order("1001"), json!({}));
    add_row(
        &tables,
        &order("ord_c"),
        json!({ "stripePaymentIntentId": "pi_2" }),
    );
    let mut messages = Vec::new();
    for (id, intent, metadata) in [
        ("evt_1", "pi_1", named("1001")),
        ("evt_2", "pi_2", named("Order 1001")),
        (
            "evt_3",
            "pi_3",
            json!({ "OrderID": "\u{a0}ord_1 ", "order_id": "ord_2" }),
        ),
    ] {
        let event = intent_succeeded(id, T, intent, metadata, 4200);
        messages.push(keep(&tables, ProviderId::Stripe, &event).await);
    }
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules,
        ledger: &tables,
        clock: FixedClock::at(now()),
    };
    let deadline = now().after(Duration::from_secs(10));
    worker
        .process_batch(&messages, deadline, std::future::pending())
        .await;
    for id in ["evt_1", "evt_2", "evt_3"] {
        assert_eq!(outcome(&tables, id), processed(), "{id}");
    }
    assert_eq!(status(&tables, "1001"), untouched());
    assert_eq!(status(&tables, "ord_c"), completed());
    assert_eq!(status(&tables, "ord_1"), completed());
    assert_eq!(status(&tables, "ord_2"), untouched());
}

#[test]
fn a_dispute_or_refund_that_knows_only_its_charge_finds_its_payment() {
    let mut paid = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
    paid["data"]["object"]["latest_charge"] = json!("ch_1");
    let charge_only = |mut event: Value| {
        event["data"]["object"]["payment_intent"] = json!(null);
        event
    };
    let disputed = charge_only(dispute("evt_2", T + 1, "dp_1", "pi_1", "needs_response"));
    let refunded = refund("evt_3", T + 2, "re_1", ("pi_1", "ch_1"), 4200, "succeeded");
    let refunded = charge_only(refunded);
    let events = [paid, disputed, refunded];
    for arrival in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let tables = tables();
        for number in arrival {
            run(deliver(
                &tables,
                ProviderId::Stripe,
                &[events[number].clone()],
            ));
        }
        let expected = ("refunded".into(), "refunded".into());
        assert_eq!(status(&tables, "ord_1"), expected, "{arrival:?}");
        assert_eq!(reasons(&tables, "ord_1"), ["dispute_open:dp_1"]);
    }
}

/// A platform's PaymentIntent whose money goes to a connected account.
fn destined(id: &str, intent: &str, order: &str, member: &str, account: &str) -> Value {
    let mut event = intent_succeeded(id, T, intent, named(order), 4200);
    event["data"]["object"][member] = match member {
        "transfer_data" => json!({ "destination": account }),
        _ => json!(account),
    };
    event
}

#[tokio::test]
async fn a_destination_charge_completes_only_an_order_of_the_recipients_tenant() {
    for member in ["transfer_data", "on_behalf_of"] {
        let tables = tables();
        let batch = [
            destined("evt_own", "pi_1", "ord_a", member, "acct_a"),
            destined("evt_other", "pi_2", "ord_a", member, "acct_b"),
            // Of no tenant.
            destined("evt_none", "pi_3", "ord_1", member, "acct_a"),
            destined("evt_unknown", "pi_4", "ord_a", member, "acct_new"),
            destined("evt_two", "pi_5", "ord_a", member, "acct_two"),
        ];
        deliver(&tables, ProviderId::Stripe, &batch).await;
        assert_eq!(outcome(&tables, "evt_own"), processed());
        assert_eq!(outcome(&tables, "evt_other"), parked("cross_tenant"));
        assert_eq!(outcome(&tables, "evt_none"), parked("cross_tenant"));
        assert_eq!(outcome(&tables, "evt_unknown"), parked("tenant_unknown"));
        assert_eq!(outcome(&tables, "evt_two"), parked("tenant_ambiguous"));
        assert_eq!(status(&tables, "ord_a"), completed(), "{member}");
        assert_eq!(reasons(&tables, "ord_a"), [""; 0], "{member}");
        assert_eq!(status(&tables, "ord_1"), untouched(), "{member}");
    }
}

#[test]
fn an_order_loses_the_money_that_turns_out_to_be_another_tenants() {
    let session = session_completed("evt_1", T, "cs_1", Some("pi_1"), named("ord_a"), "paid");
    let mut intent = destined("evt_2", "pi_1", "ord_a", "transfer_data", "acct_b");
    intent["data"]["object"]["metadata"] = json!({});
    let refund = charge_refunded("evt_3", T + 1, "ch_1", Some("pi_1"), 1000);
    let events = [session, intent, refund];
    for arrival in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let tables = tables();
        for number in arrival {
            run(deliver(
                &tables,
                ProviderId::Stripe,
                &[events[number].clone()],
            ));
        }
        let derived = payment(&tables, &order("ord_a"));
        let found = (derived.status.as_str(), derived.payment_status.as_str());
        assert_eq!(found, ("pending", "unpaid"), "{arrival:?}");
        assert_eq!(derived.amount_refunded, 0, "{arrival:?}");
        // Nothing claims it: a person has to find out.
        let reported = run(sweep_hourly(&tables, 0, 2 * DAY));
        assert!(!reported.is_empty(), "{arrival:?}");
    }
}

#[tokio::test]
async fn the_connected_side_of_a_destination_charge_is_no_second_payment() {
    let tables = tables();
    let paid = destined("evt_1", "pi_1", "ord_a", "transfer_data", "acct_a");
    let object = json!({ "id": "py_1", "object": "charge", "payment_intent": null, "status": "succeeded",
        "captured": true, "amount": 4200, "amount_captured": 4200, "amount_refunded": 0, "refunded": false,
        "currency": "usd", "source_transfer": "tr_1", "metadata": named("ord_a") });
    let arrived = from_account(
        stripe("evt_2", "charge.succeeded", T, object.clone()),
        "acct_a",
    );
    let reversed = from_account(stripe("evt_3", "charge.refunded", T, object), "acct_a");
    deliver(&tables, ProviderId::Stripe, &[paid, arrived, reversed]).await;
    for id in ["evt_2", "evt_3"] {
        let ignored = (EventOutcome::Ignored, Some("transfer".into()));
        assert_eq!(outcome(&tables, id), ignored, "{id}");
    }
    assert_eq!(status(&tables, "ord_a"), completed());
    assert_eq!(reasons(&tables, "ord_a"), [""; 0]);
}

/// The row of the order, and then the events of `pi_theirs` and of the application's own `pi_ours`.
fn unexpected(columns: Value, events: &[Value]) -> (String, Vec<String>) {
    let mut found = None;
    for arrival in [events.to_vec(), events.iter().rev().cloned().collect()] {
        let tables = MemoryTables::default();
        add_row(&tables, &order("ord_1"), columns.clone());
        for event in &arrival {
            run(deliver(
                &tables,
                ProviderId::Stripe,
                std::slice::from_ref(event),
            ));
        }
        let (_, payment_status) = status(&tables, "ord_1");
        let now = (payment_status, reasons(&tables, "ord_1"));
        assert!(found.as_ref().is_none_or(|found| *found == now), "{now:?}");
        found = Some(now);
    }
    found.unwrap()
}

#[test]
fn an_order_that_another_payment_completes_is_reviewed_while_its_own_may_still_be_paid() {
    let ours = json!({ "stripePaymentIntentId": "pi_ours" });
    let theirs = || intent_succeeded("evt_1", T, "pi_theirs", named("ord_1"), 4200);
    let own = |status: &str| intent_is("evt_2", T, "pi_ours", named("ord_1"), status);
    let flagged = ["unexpected_payment:pi_theirs".to_owned()];
    let none: [String; 0] = [];
    for (columns, events, expected) in [
        (ours.clone(), vec![theirs()], &flagged[..]),
        (ours.clone(), vec![theirs(), own("processing")], &flagged),
        (ours.clone(), vec![theirs(), own("canceled")], &none),
        (
            ours.clone(),
            vec![
                theirs(),
                intent_failed("evt_2", T, "pi_ours", named("ord_1"), "ch_1"),
            ],
            &none,
        ),
        (json!({}), vec![theirs()], &none),
        (
            json!({ "stripePaymentIntentId": "pi_theirs" }),
            vec![theirs()],
            &none,
        ),
        // Its own session made the payment.
        (
            json!({ "stripePaymentIntentId": "pi_ours", "stripeCheckoutSessionId": "cs_1" }),
            vec![
                session_completed(
                    "evt_1",
                    T,
                    "cs_1",
                    Some("pi_theirs"),
                    named("ord_1"),
                    "paid",
                ),
                intent_succeeded("evt_2", T, "pi_theirs", json!({}), 4200),
            ],
            &none,
        ),
        // All of it went back.
        (
            ours.clone(),
            vec![
                theirs(),
                charge_refunded("evt_2", T + 1, "ch_1", Some("pi_theirs"), 4200),
            ],
            &none,
        ),
    ] {
        let (payment_status, reasons) = unexpected(columns.clone(), &events);
        assert_eq!(reasons, expected, "{columns} {events:?}");
        let paid = ["paid", "refunded"].contains(&payment_status.as_str());
        assert!(paid, "{payment_status}");
    }
    let both = [
        theirs(),
        intent_succeeded("evt_2", T + 1, "pi_ours", named("ord_1"), 4200),
    ];
    let (_, reasons) = unexpected(ours, &both);
    assert_eq!(reasons, ["paid_twice:pi_ours"]);
}

#[tokio::test]
async fn a_person_who_links_a_payment_expects_it() {
    let tables = tables();
    add_row(
        &tables,
        &order("ord_1"),
        json!({ "stripePaymentIntentId": "pi_ours" }),
    );
    let paid = intent_succeeded("evt_1", T, "pi_theirs", json!({}), 4200);
    deliver(&tables, ProviderId::Stripe, &[paid]).await;
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: &tables,
        clock: FixedClock::at(now()),
    };
    let payment = PaymentKey::parse("payment#platform#pi_theirs").unwrap();
    let linked = worker
        .relink_payment(&payment, Some(&order("ord_1")), "pat", "asked")
        .await;
    linked.unwrap();
    assert_eq!(status(&tables, "ord_1"), completed());
    assert_eq!(reasons(&tables, "ord_1"), [""; 0]);
}
