//! The worker over tables in memory: where events go, what they leave, and what failures do not change.
#![cfg(test)]

mod claim_cases;
mod claims;
mod deadlines;
mod late_links;
mod laws;
mod money;
mod money_stories;
mod proof;
#[path = "../stored_order/mod.rs"]
mod stored_order;
mod stories;
mod tenants;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::entity::kind::EntityState;
use billhook_core::entity::mail::facts::MailStage;
use billhook_core::entity::manual::DiscardedEdit;
use billhook_core::entity::order::OrderKind;
use billhook_core::entity::payment::derive::DerivedPayment;
use billhook_core::entity::payment::facts::MoneyFacts;
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::entity::schema::GuardedColumns;
use billhook_core::entity::{Entity, EntityChange, EntityKey};
use billhook_core::ids::{
    AccountId, CorrelationId, EventId, OrderId, PaymentIntentId, ProviderId, StatementId, TenantId,
};
use billhook_core::intake::ports::RecordEvent as _;
use billhook_core::outcome::{EventOutcome, EventVerdict};
use billhook_core::provider::interpret::InterpretRules;
use billhook_core::provider::read_envelope;
use billhook_core::tasks::cleanup::cancellation_fact;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{
    MessageReport, ProcessingFailure, ProcessingSuccess, RECEIVES_MAX, ReceivedMessage,
    RelinkError, Worker,
};
use billhook_core::worker::ports::EntityCommit;
use billhook_testkit::events::{
    charge_refunded, dispute, from_account, intent_failed, intent_is, intent_succeeded, letter,
    new_event, refund, session_completed, stripe, verified,
};
use billhook_testkit::memory::{self, Fault, FixedClock, MemoryTables, order_mut};
use futures_util::FutureExt as _;
use serde_json::{Value, json};

const T: i64 = 1_781_000_000;

fn now() -> Timestamp {
    Timestamp::from_unix_s(T + 1_000).unwrap()
}

fn order(id: &str) -> EntityKey {
    EntityKey::Order(OrderId::parse(id).unwrap())
}

fn statement(id: &str) -> EntityKey {
    EntityKey::Statement(StatementId::parse(id).unwrap())
}

fn tables() -> MemoryTables {
    let tables = MemoryTables::default();
    for (key, tenant) in [
        (order("ord_1"), None),
        (order("ord_2"), None),
        (order("ord_a"), Some("ten_a")),
        (statement("st_1"), Some("ten_a")),
    ] {
        let row = json!({ "amountTotal": 4200, "amount_due": 4200, "currency": "usd",
            "tenantId": tenant, "tenant_id": tenant, "lob_letter_id": "ltr_1" });
        let row = memory::entity_of(&key, row);
        tables.entities.lock().unwrap().insert(key, row);
    }
    for (account, tenant) in [
        ("acct_a", "ten_a"),
        ("acct_b", "ten_b"),
        ("acct_two", "ten_c"),
        ("acct_two", "ten_d"),
    ] {
        let pair = (
            AccountId::parse(account).unwrap(),
            TenantId::parse(tenant).unwrap(),
        );
        tables.tenants.lock().unwrap().push(pair);
    }
    tables
}

async fn keep(tables: &MemoryTables, provider: ProviderId, body: &Value) -> ReceivedMessage {
    let raw_body = body.to_string().into_bytes();
    let correlation_id = CorrelationId::parse("01930000-0000-7000-8000-000000000001").unwrap();
    let new = new_event(provider, &raw_body, correlation_id, now());
    let id = new.envelope.id.to_string();
    (&tables).record(&new).await.unwrap();
    ReceivedMessage {
        message_id: format!("m-{id}"),
        body: json!({ "event_id": id }).to_string(),
        receive_count: 1,
        is_last_receive: false,
    }
}

async fn work(
    tables: &MemoryTables,
    provider: ProviderId,
    messages: &[ReceivedMessage],
) -> BTreeMap<String, MessageReport> {
    let worker = Worker {
        provider,
        rules: InterpretRules::default(),
        ledger: tables,
        clock: FixedClock::at(now()),
    };
    let done = worker
        .process_batch(
            messages,
            now().after(Duration::from_secs(10)),
            std::future::pending(),
        )
        .await;
    done.messages
        .into_iter()
        .map(|report| {
            let message = report.message.as_ref().map(|m| m.message_id.clone());
            let event = report.event.as_ref().map(ToString::to_string);
            (
                message.unwrap_or_else(|| format!("released {}", event.unwrap())),
                report,
            )
        })
        .collect()
}

/// Keeps the events and works them off in one batch.
async fn deliver(
    tables: &MemoryTables,
    provider: ProviderId,
    bodies: &[Value],
) -> BTreeMap<String, MessageReport> {
    let mut messages = Vec::new();
    for body in bodies {
        messages.push(keep(tables, provider, body).await);
    }
    work(tables, provider, &messages).await
}

fn outcome(tables: &MemoryTables, id: &str) -> (EventOutcome, Option<String>) {
    let events = tables.events.lock().unwrap();
    let row = &events[&EventId::parse(id).unwrap()];
    (row.stored.outcome, row.error.clone())
}

fn parked(reason: &str) -> (EventOutcome, Option<String>) {
    (EventOutcome::Parked, Some(reason.to_owned()))
}

fn processed() -> (EventOutcome, Option<String>) {
    (EventOutcome::Processed, None)
}

fn entity(tables: &MemoryTables, key: &EntityKey) -> Entity {
    tables.entities.lock().unwrap()[key].clone()
}

fn status(tables: &MemoryTables, id: &str) -> (String, String) {
    let columns = entity(tables, &order(id)).columns().clone();
    (
        columns.status.unwrap_or_default(),
        columns.payment_status.unwrap_or_default(),
    )
}

/// Without the versions of copies: how often a payment was written is no fact.
fn without_versions(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.iter().filter(|(name, _)| *name != "version");
            members
                .map(|(name, value)| (name.clone(), without_versions(value)))
                .collect()
        }
        other => other.clone(),
    }
}

/// What a reader of the row sees: facts, columns and timeline.
fn view(tables: &MemoryTables, key: &EntityKey) -> (Value, GuardedColumns, Vec<String>) {
    let entity = entity(tables, key);
    let next = entity.apply_facts([], now());
    let mut timeline: Vec<String> = next.timeline().iter().map(|e| format!("{e:?}")).collect();
    timeline.sort();
    (
        without_versions(&json!(entity.to_row())["facts"]),
        entity.columns().clone(),
        timeline,
    )
}

/// Changes an order's row as the application or another worker does.
fn edit_order(tables: &MemoryTables, id: &str, edit: impl FnOnce(&mut EntityState<OrderKind>)) {
    let mut entities = tables.entities.lock().unwrap();
    edit(memory::order_mut(entities.get_mut(&order(id)).unwrap()));
}

/// What follows from an entity's payments.
fn payment(tables: &MemoryTables, key: &EntityKey) -> DerivedPayment {
    let update = entity(tables, key).apply_facts([], now());
    update.payment().unwrap().clone()
}

fn payment_state(tables: &MemoryTables, key: &str) -> PaymentState {
    tables.payments.lock().unwrap()[&PaymentKey::parse(key).unwrap()].clone()
}

/// The orders and statements that have a payment's newest facts.
fn copied_to(tables: &MemoryTables, key: &str) -> Vec<String> {
    let payment = payment_state(tables, key);
    let copied = payment.copied.iter();
    let newest = copied.filter(|(_, version)| **version == payment.facts_version);
    newest.map(|(entity, _)| entity.to_string()).collect()
}

fn named(order: &str) -> Value {
    json!({ "order_id": order })
}

#[tokio::test]
async fn a_payment_completes_its_order_and_a_refund_gives_it_back() {
    let tables = tables();
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200)],
    )
    .await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("completed".into(), "paid".into())
    );
    deliver(
        &tables,
        ProviderId::Stripe,
        &[charge_refunded("evt_2", T + 1, "ch_1", Some("pi_1"), 1000)],
    )
    .await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("completed".into(), "paid".into())
    );
    deliver(
        &tables,
        ProviderId::Stripe,
        &[charge_refunded("evt_3", T + 2, "ch_1", Some("pi_1"), 4200)],
    )
    .await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("refunded".into(), "refunded".into())
    );
}

#[tokio::test]
async fn what_comes_before_its_link_is_known_to_the_payment_and_copied_with_the_link() {
    let tables = tables();
    deliver(
        &tables,
        ProviderId::Stripe,
        &[charge_refunded("evt_r", T + 9, "ch_1", Some("pi_1"), 4200)],
    )
    .await;
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_succeeded("evt_s", T, "pi_1", json!({}), 4200)],
    )
    .await;
    assert_eq!(outcome(&tables, "evt_r"), processed());
    assert_eq!(outcome(&tables, "evt_s"), processed());
    let open = payment_state(&tables, "payment#platform#pi_1")
        .open
        .unwrap();
    assert!(open.index_key.starts_with("unlinked#"), "{open:?}");
    assert_eq!(open.due, now().after(Duration::from_mins(10)));
    deliver(
        &tables,
        ProviderId::Stripe,
        &[session_completed(
            "evt_c",
            T + 1,
            "cs_1",
            Some("pi_1"),
            named("ord_1"),
            "unpaid",
        )],
    )
    .await;
    for id in ["evt_r", "evt_s", "evt_c"] {
        assert_eq!(outcome(&tables, id), processed(), "{id}");
    }
    assert_eq!(
        status(&tables, "ord_1"),
        ("refunded".into(), "refunded".into())
    );
    let payment = "payment#platform#pi_1";
    assert_eq!(copied_to(&tables, payment), ["order#ord_1"]);
    assert_eq!(payment_state(&tables, payment).open, None);
}

#[tokio::test]
async fn what_comes_in_one_batch_with_its_link_is_written_with_it() {
    let tables = tables();
    let batch = [
        charge_refunded("evt_r", T + 9, "ch_1", Some("pi_1"), 1000),
        session_completed("evt_c", T + 1, "cs_1", Some("pi_1"), named("ord_1"), "paid"),
    ];
    deliver(&tables, ProviderId::Stripe, &batch).await;
    assert_eq!(
        (outcome(&tables, "evt_r"), outcome(&tables, "evt_c")),
        (processed(), processed())
    );
    assert_eq!(entity(&tables, &order("ord_1")).version(), 1);
    assert_eq!(tables.calls.lock().unwrap()["commit"], 1);
    // One that names another tenant's order is parked, and its payment takes the facts.
    let batch = [
        from_account(
            charge_refunded("evt_r2", T, "ch_2", Some("pi_2"), 1000),
            "acct_a",
        ),
        from_account(
            intent_succeeded("evt_f", T, "pi_2", named("ord_2"), 4200),
            "acct_a",
        ),
    ];
    deliver(&tables, ProviderId::Stripe, &batch).await;
    assert_eq!(outcome(&tables, "evt_r2"), processed());
    assert_eq!(outcome(&tables, "evt_f"), parked("cross_tenant"));
    let payment = payment_state(&tables, "payment#acct_a#pi_2");
    assert!(payment.facts.links.is_empty());
    assert_eq!(payment.facts.money.charges.len(), 1);
    assert_eq!(payment.facts.money.payments.len(), 1);
    assert_eq!(entity(&tables, &order("ord_2")).version(), 0);
}

#[tokio::test]
async fn a_row_that_has_the_payment_in_its_column_is_linked_once_it_is_rechecked() {
    let tables = tables();
    let refund = charge_refunded("evt_r", T, "ch_1", Some("pi_1"), 1000);
    deliver(&tables, ProviderId::Stripe, std::slice::from_ref(&refund)).await;
    let payment = "payment#platform#pi_1";
    let recheck = || ReceivedMessage {
        message_id: "m".into(),
        body: json!({ "source": "recheck", "payment": payment }).to_string(),
        receive_count: 1,
        is_last_receive: false,
    };
    // Nothing has it yet: the next recheck is later.
    let reports = work(&tables, ProviderId::Stripe, &[recheck()]).await;
    assert_eq!(reports["m"].result, Ok(ProcessingSuccess::Rechecked));
    assert!(payment_state(&tables, payment).open.is_some());
    // The application notes the payment itself.
    let intent = PaymentIntentId::parse("pi_1").unwrap();
    edit_order(&tables, "ord_1", |order| order.given.intent = Some(intent));
    let reports = work(&tables, ProviderId::Stripe, &[recheck(), recheck()]).await;
    assert_eq!(reports["m"].result, Ok(ProcessingSuccess::Rechecked));
    assert_eq!(copied_to(&tables, payment), ["order#ord_1"]);
    assert_eq!(payment_state(&tables, payment).open, None);
    assert_eq!(
        self::payment(&tables, &order("ord_1")).amount_refunded,
        1000
    );
    // The refund was processed before, so it does not lead the sweep to the row.
    assert_eq!(entity(&tables, &order("ord_1")).recent(), Some(now()));
}

#[tokio::test]
async fn a_row_that_no_arrival_leads_the_sweep_to_is_in_the_index() {
    let minutes = |minutes| now().before(Duration::from_mins(minutes));
    for (received_at, is_led) in [(now(), true), (minutes(8), true), (minutes(9), false)] {
        let tables = tables();
        let event = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
        let message = keep(&tables, ProviderId::Stripe, &event).await;
        for row in tables.events.lock().unwrap().values_mut() {
            row.stored.received_at = Some(received_at);
        }
        work(&tables, ProviderId::Stripe, &[message]).await;
        let recent = entity(&tables, &order("ord_1")).recent();
        assert_eq!(recent, (!is_led).then(now), "{received_at}");
    }
}

#[tokio::test]
async fn all_events_of_one_payment_are_written_in_one_transaction() {
    let tables = tables();
    let batch: Vec<Value> = (0..10)
        .map(|n| charge_refunded(&format!("evt_{n}"), T, "ch_1", Some("pi_1"), n))
        .collect();
    let reports = deliver(&tables, ProviderId::Stripe, &batch).await;
    assert!(reports.values().all(|report| report.result.is_ok()));
    assert_eq!(tables.calls.lock().unwrap()["commit"], 1);
    let payment = payment_state(&tables, "payment#platform#pi_1");
    assert_eq!(payment.history.event_ids.len(), 10);
}

#[tokio::test]
async fn what_a_lagging_index_names_is_not_believed_against_the_row() {
    let tables = tables();
    let stale = [("pi_1", order("ord_1")), ("ltr_old", statement("st_1"))];
    *tables.stale.lock().unwrap() = stale.map(|(id, key)| (id.to_owned(), key)).into();
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_succeeded("evt_1", T, "pi_1", json!({}), 4200)],
    )
    .await;
    let at = "2026-11-20T08:00:00Z";
    deliver(
        &tables,
        ProviderId::Lob,
        &[letter("evt_2", at, "ltr_old", "mailed")],
    )
    .await;
    assert_eq!(outcome(&tables, "evt_1"), processed());
    let payment = payment_state(&tables, "payment#platform#pi_1");
    assert!(payment.facts.links.is_empty());
    assert_eq!(outcome(&tables, "evt_2"), parked("letter_unknown"));
    assert_eq!(entity(&tables, &order("ord_1")).version(), 0);
    assert_eq!(entity(&tables, &statement("st_1")).version(), 0);
}

#[tokio::test]
async fn what_a_lagging_index_names_and_is_gone_does_not_keep_an_event_from_its_link() {
    let tables = tables();
    let gone = ("pi_1".to_owned(), order("ord_gone"));
    tables.stale.lock().unwrap().extend([gone]);
    let back = charge_refunded("evt_r", T, "ch_1", Some("pi_1"), 1000);
    deliver(&tables, ProviderId::Stripe, &[back]).await;
    assert_eq!(outcome(&tables, "evt_r"), processed());
    let paid = intent_succeeded("evt_p", T, "pi_1", named("ord_1"), 4200);
    deliver(&tables, ProviderId::Stripe, &[paid]).await;
    assert_eq!(copied_to(&tables, "payment#platform#pi_1"), ["order#ord_1"]);
}

#[tokio::test]
async fn an_index_that_does_not_answer_fails_only_those_that_need_it() {
    let tables = tables();
    let batch = [
        charge_refunded("evt_1", T, "ch_1", Some("pi_1"), 1000),
        intent_succeeded("evt_2", T, "pi_2", named("ord_1"), 4200),
    ];
    // Events and rows are read; the index fails in each of the five rounds.
    let round = [None, None, Some(Fault::Before)];
    tables.reads.then(round.into_iter().cycle().take(15));
    let reports = deliver(&tables, ProviderId::Stripe, &batch).await;
    assert!(matches!(
        reports["m-evt_1"].result,
        Err(ProcessingFailure::Infrastructure(_))
    ));
    assert_eq!(outcome(&tables, "evt_2"), processed());
}

#[tokio::test]
async fn attempts_that_no_charge_tells_apart_count_by_the_last() {
    let tables = tables();
    let failed = |id: &str, at: i64| {
        let mut event = intent_failed(id, at, "pi_1", named("ord_1"), "ch_1");
        event["data"]["object"]["last_payment_error"]["charge"] = Value::Null;
        event["data"]["object"]["latest_charge"] = Value::Null;
        event
    };
    let events = [
        failed("evt_1", T),
        intent_is("evt_2", T + 5, "pi_1", named("ord_1"), "processing"),
        failed("evt_3", T + 90),
    ];
    deliver(&tables, ProviderId::Stripe, &events).await;
    let derived = payment(&tables, &order("ord_1"));
    assert_eq!(derived.status.as_str(), "payment_failed");
    assert_eq!(
        derived.payment_failed_at,
        Timestamp::from_unix_s(T + 90).ok()
    );
}

#[tokio::test]
async fn a_session_that_only_saves_a_card_pays_nothing() {
    let tables = tables();
    let mut session = session_completed(
        "evt_1",
        T,
        "cs_1",
        None,
        named("ord_1"),
        "no_payment_required",
    );
    session["data"]["object"]["amount_total"] = Value::Null;
    deliver(&tables, ProviderId::Stripe, &[session]).await;
    assert_eq!(outcome(&tables, "evt_1"), processed());
    assert_eq!(
        status(&tables, "ord_1"),
        ("pending".into(), "unpaid".into())
    );
}

#[tokio::test]
async fn another_tenants_order_is_never_touched() {
    let tables = tables();
    let forged = from_account(
        intent_succeeded("evt_f", T, "pi_9", named("ord_a"), 4200),
        "acct_b",
    );
    let unknown = from_account(
        intent_succeeded("evt_u", T, "pi_8", named("ord_a"), 4200),
        "acct_unknown",
    );
    let ambiguous = from_account(
        intent_succeeded("evt_2", T, "pi_7", named("ord_a"), 4200),
        "acct_two",
    );
    let platforms = from_account(
        intent_succeeded("evt_p", T, "pi_6", named("ord_1"), 4200),
        "acct_a",
    );
    deliver(
        &tables,
        ProviderId::Stripe,
        &[forged, unknown, ambiguous, platforms],
    )
    .await;
    assert_eq!(outcome(&tables, "evt_f"), parked("cross_tenant"));
    assert_eq!(outcome(&tables, "evt_u"), parked("tenant_unknown"));
    assert_eq!(outcome(&tables, "evt_2"), parked("tenant_ambiguous"));
    assert_eq!(outcome(&tables, "evt_p"), parked("cross_tenant"));
    assert_eq!(entity(&tables, &order("ord_a")).version(), 0);
    assert_eq!(entity(&tables, &order("ord_1")).version(), 0);
    let own = from_account(
        intent_succeeded("evt_o", T, "pi_5", named("ord_a"), 4200),
        "acct_a",
    );
    deliver(&tables, ProviderId::Stripe, &[own]).await;
    assert_eq!(outcome(&tables, "evt_o"), processed());
    assert_eq!(status(&tables, "ord_a").0, "completed");
}

#[tokio::test]
async fn each_event_that_means_nothing_or_cannot_be_placed_says_why() {
    let tables = tables();
    let mut live = intent_succeeded("evt_live", T, "pi_1", named("ord_1"), 4200);
    live["livemode"] = json!(true);
    let mut undated = intent_succeeded("evt_undated", T, "pi_1", named("ord_1"), 4200);
    undated["created"] = json!("2026-11-21");
    let mut negative = intent_succeeded("evt_negative", T, "pi_1", named("ord_1"), -1);
    negative["data"]["object"]["amount_received"] = json!(-1);
    let mut huge = intent_succeeded("evt_huge", T, "pi_1", named("ord_1"), 4200);
    huge["data"]["object"]["amount_received"] = json!(9_007_199_254_740_993_i64);
    let long_name = intent_succeeded("evt_long", T, "pi_1", named(&"x".repeat(10_000)), 4200);
    let refund_of_nothing = |id: &str, metadata: Value| {
        let object = json!({ "id": "re_1", "object": "refund", "amount": 1, "currency": "usd",
            "status": "succeeded", "metadata": metadata });
        stripe(id, "refund.created", T, object)
    };
    let nameless = refund_of_nothing("evt_nameless", json!({}));
    let unpaid = refund_of_nothing("evt_unpaid", named("ord_1"));
    let mut hollow = intent_succeeded("evt_hollow", T, "pi_1", named("ord_1"), 4200);
    hollow["data"] = json!({});
    let mut flat = intent_succeeded("evt_flat", T, "pi_1", named("ord_1"), 4200);
    flat["data"]["object"] = json!("REDACTED");
    let mut thin = stripe("evt_thin", "v2.core.account.updated", T, json!(null));
    thin["object"] = json!("v2.core.event");
    let cases = [
        (live, parked("live_event_on_test_stage")),
        (undated, parked("field_malformed")),
        (hollow, parked("field_malformed")),
        (flat, parked("field_malformed")),
        (negative, parked("amount_malformed")),
        (huge, parked("amount_malformed")),
        // No order of ours can have such an id.
        (long_name, processed()),
        (
            intent_succeeded("evt_gone", T, "pi_1", named("ord_gone"), 4200),
            parked("order_unknown"),
        ),
        (
            intent_succeeded(
                "evt_nost",
                T,
                "pi_1",
                json!({ "statement_id": "st_gone" }),
                4200,
            ),
            parked("statement_unknown"),
        ),
        (
            stripe("evt_type", "customer.created", T, json!({})),
            (EventOutcome::Ignored, Some("unhandled_type".into())),
        ),
        (thin, (EventOutcome::Ignored, Some("thin_event".into()))),
        (
            nameless,
            (EventOutcome::Ignored, Some("nothing_named".into())),
        ),
        (unpaid, parked("field_malformed")),
    ];
    let bodies: Vec<Value> = cases.iter().map(|(body, _)| body.clone()).collect();
    let reports = deliver(&tables, ProviderId::Stripe, &bodies).await;
    assert!(
        reports.values().all(|report| report.result.is_ok()),
        "{reports:?}"
    );
    for (body, expected) in cases {
        let id = body["id"].as_str().unwrap();
        assert_eq!(outcome(&tables, id), expected, "{id}");
    }
    assert_eq!(entity(&tables, &order("ord_1")).version(), 0);
}

#[tokio::test]
async fn of_two_orders_that_are_named_equally_well_none_gets_the_money_and_both_need_a_person() {
    let tables = tables();
    let failed = intent_failed("evt_1", T, "pi_1", named("ord_1"), "ch_1");
    deliver(&tables, ProviderId::Stripe, &[failed]).await;
    assert_eq!(status(&tables, "ord_1").0, "payment_failed");
    let paid = intent_succeeded("evt_2", T + 1, "pi_1", named("ord_2"), 4200);
    deliver(&tables, ProviderId::Stripe, &[paid]).await;
    assert_eq!(outcome(&tables, "evt_2"), processed());
    for id in ["ord_1", "ord_2"] {
        assert_eq!(
            status(&tables, id),
            ("pending".into(), "unpaid".into()),
            "{id}"
        );
        let reasons = payment(&tables, &order(id)).review_reasons;
        assert_eq!(reasons, ["link_conflict:pi_1".to_owned()].into(), "{id}");
    }
    assert_eq!(payment_state(&tables, "payment#platform#pi_1").open, None);
}

/// A dispute that knows only the charge.
fn by_charge(id: &str) -> Value {
    let mut event = dispute(id, T + 5, "dp_1", "pi_1", "needs_response");
    event["data"]["object"]["payment_intent"] = Value::Null;
    event
}

/// The success that shows whose charge it is.
fn with_charge(id: &str) -> Value {
    let mut event = intent_succeeded(id, T, "pi_1", named("ord_1"), 4200);
    event["data"]["object"]["latest_charge"] = json!("ch_1");
    event
}

/// What another worker does before the commit.
type Rival = fn(&MemoryTables);

#[tokio::test]
async fn a_name_learned_by_one_worker_while_another_writes_under_it_loses_nothing() {
    let rivals: [(Value, Rival); 3] = [
        (by_charge("evt_own"), |tables| {
            let rival = [with_charge("evt_rival")];
            let worked = deliver(tables, ProviderId::Stripe, &rival).now_or_never();
            assert!(worked.is_some());
        }),
        (with_charge("evt_own"), |tables| {
            let rival = [by_charge("evt_rival")];
            let worked = deliver(tables, ProviderId::Stripe, &rival).now_or_never();
            assert!(worked.is_some());
        }),
        // Two that learn it at once.
        (with_charge("evt_own"), |tables| {
            let rival = [
                charge_refunded("evt_rival", T + 6, "ch_1", Some("pi_1"), 1000),
                by_charge("evt_dispute"),
            ];
            let worked = deliver(tables, ProviderId::Stripe, &rival).now_or_never();
            assert!(worked.is_some());
        }),
    ];
    for (n, (own, rival)) in rivals.into_iter().enumerate() {
        let tables = tables();
        tables.before_commit.lock().unwrap().push_back(rival);
        deliver(&tables, ProviderId::Stripe, &[own]).await;
        for id in ["evt_own", "evt_rival"] {
            assert_eq!(outcome(&tables, id), processed(), "{n} {id}");
        }
        let paid = ("completed".to_owned(), "disputed".to_owned());
        assert_eq!(status(&tables, "ord_1"), paid, "{n}");
        let alias = payment_state(&tables, "payment#platform#ch_1");
        let of = alias.alias_of.as_ref().map(ToString::to_string);
        assert_eq!(of.as_deref(), Some("payment#platform#pi_1"), "{n}");
        assert_eq!(alias.facts.money, MoneyFacts::default(), "{n}");
    }
}

#[tokio::test]
async fn a_row_that_moves_to_another_tenant_gets_no_copy_until_it_is_back() {
    let tables = tables();
    let of_a = |event: Value| from_account(event, "acct_a");
    let paid = of_a(intent_succeeded("evt_1", T, "pi_1", named("ord_a"), 4200));
    deliver(&tables, ProviderId::Stripe, &[paid]).await;
    let before = entity(&tables, &order("ord_a"));
    let tenant = |id: &str| TenantId::parse(id).ok();
    edit_order(&tables, "ord_a", |order| order.tenant = tenant("ten_b"));
    let refund = of_a(charge_refunded("evt_2", T + 1, "ch_1", Some("pi_1"), 1000));
    deliver(&tables, ProviderId::Stripe, &[refund]).await;
    assert_eq!(outcome(&tables, "evt_2"), parked("cross_tenant"));
    assert_eq!(entity(&tables, &order("ord_a")).version(), before.version());
    let payment = "payment#acct_a#pi_1";
    let open = payment_state(&tables, payment).open.unwrap();
    assert!(open.index_key.starts_with("outdated#"), "{open:?}");
    let recheck = || ReceivedMessage {
        message_id: "m".into(),
        body: json!({ "source": "recheck", "payment": payment }).to_string(),
        receive_count: 1,
        is_last_receive: false,
    };
    work(&tables, ProviderId::Stripe, &[recheck()]).await;
    assert_eq!(entity(&tables, &order("ord_a")).version(), before.version());
    edit_order(&tables, "ord_a", |order| order.tenant = tenant("ten_a"));
    work(&tables, ProviderId::Stripe, &[recheck()]).await;
    assert_eq!(
        self::payment(&tables, &order("ord_a")).amount_refunded,
        1000
    );
    assert_eq!(payment_state(&tables, payment).open, None);
}

#[tokio::test]
async fn a_payment_that_is_linked_to_sixty_orders_is_copied_to_all_of_them_in_time() {
    let tables = tables();
    let orders: Vec<String> = (0..60).map(|n| format!("ord_many{n}")).collect();
    for id in &orders {
        let row = memory::entity(&order(id));
        tables.entities.lock().unwrap().insert(order(id), row);
    }
    for (n, id) in orders.iter().enumerate() {
        let claim = intent_is(&format!("evt_{n}"), T, "pi_1", named(id), "processing");
        deliver(&tables, ProviderId::Stripe, &[claim]).await;
        assert_eq!(outcome(&tables, &format!("evt_{n}")), processed(), "{id}");
    }
    let payment = "payment#platform#pi_1";
    for _ in 0..6 {
        let recheck = ReceivedMessage {
            message_id: "m".into(),
            body: json!({ "source": "recheck", "payment": payment }).to_string(),
            receive_count: 1,
            is_last_receive: false,
        };
        work(&tables, ProviderId::Stripe, &[recheck]).await;
    }
    assert_eq!(copied_to(&tables, payment).len(), orders.len());
    assert_eq!(payment_state(&tables, payment).open, None);
}

#[tokio::test]
async fn an_order_that_bore_a_payment_by_a_decision_loses_it_by_the_next() {
    let tables = tables();
    let paid = intent_succeeded("evt_1", T, "pi_1", json!({}), 4200);
    deliver(&tables, ProviderId::Stripe, &[paid]).await;
    let payment = PaymentKey::parse("payment#platform#pi_1").unwrap();
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: &tables,
        clock: FixedClock::at(now()),
    };
    let relink = async |payment: &PaymentKey, to: &str| {
        let to = order(to);
        worker
            .relink_payment(payment, Some(&to), "pat", "asked")
            .await
    };
    for (to, other) in [("ord_1", "ord_2"), ("ord_2", "ord_1"), ("ord_1", "ord_2")] {
        relink(&payment, to).await.unwrap();
        assert_eq!(status(&tables, to), ("completed".into(), "paid".into()));
        let row = entity(&tables, &order(other));
        assert_ne!(
            row.columns().status.as_deref(),
            Some("completed"),
            "{other}"
        );
    }
    // The store does not answer whose the account is: nothing is decided.
    let of_a = from_account(
        intent_succeeded("evt_2", T, "pi_2", named("ord_a"), 4200),
        "acct_a",
    );
    deliver(&tables, ProviderId::Stripe, &[of_a]).await;
    let payment = PaymentKey::parse("payment#acct_a#pi_2").unwrap();
    let before = tables.payments.lock().unwrap()[&payment].clone();
    tables.reads.then([Some(Fault::Before)]);
    let failed = relink(&payment, "ord_a").await;
    assert!(matches!(failed, Err(RelinkError::Failed(_))));
    for (to, is_theirs) in [("ord_1", false), ("ord_gone", false), ("ord_a", true)] {
        assert_eq!(relink(&payment, to).await.is_ok(), is_theirs, "{to}");
    }
    let after = tables.payments.lock().unwrap()[&payment].clone();
    assert_eq!(after.version, before.version + 1);
    assert_eq!(after.copied, [(order("ord_a"), after.facts_version)].into());
}

#[tokio::test]
async fn what_a_statement_said_of_a_payment_goes_with_the_payment() {
    let tables = tables();
    let of_a = |event: Value| from_account(event, "acct_a");
    let paid = intent_succeeded("evt_1", T, "pi_1", json!({ "statement_id": "st_1" }), 4200);
    deliver(&tables, ProviderId::Stripe, &[of_a(paid)]).await;
    let payment_status = || {
        let statement = entity(&tables, &statement("st_1"));
        statement.columns().payment_status.clone()
    };
    assert_eq!(payment_status().as_deref(), Some("paid"));
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: &tables,
        clock: FixedClock::at(now()),
    };
    let payment = PaymentKey::parse("payment#acct_a#pi_1").unwrap();
    let to = order("ord_a");
    let relinked = worker
        .relink_payment(&payment, Some(&to), "pat", "asked")
        .await;
    relinked.unwrap();
    assert_eq!(status(&tables, "ord_a").0, "completed");
    assert_eq!(payment_status().as_deref(), Some("unpaid"));
}

#[tokio::test]
async fn the_metadata_of_a_charge_yields_to_that_of_its_payment() {
    let claim = |event: Value, order: &str| {
        let mut event = event;
        event["data"]["object"]["metadata"] = named(order);
        event
    };
    let paid = || intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
    let refund = charge_refunded("evt_2", T + 1, "ch_1", Some("pi_1"), 1000);
    let refund = || claim(refund.clone(), "ord_2");
    for events in [[paid(), refund()], [refund(), paid()]] {
        let tables = tables();
        for event in events {
            deliver(&tables, ProviderId::Stripe, &[event]).await;
        }
        assert_eq!(status(&tables, "ord_1").0, "completed");
        assert_eq!(payment(&tables, &order("ord_1")).amount_refunded, 1000);
        let other = entity(&tables, &order("ord_2"));
        assert_ne!(other.columns().requires_review, Some(true));
        assert_ne!(other.columns().status.as_deref(), Some("completed"));
    }
}

#[tokio::test]
async fn a_session_is_paid_once_though_the_payment_of_its_invoice_is_linked_to_another_order() {
    let session = || {
        let mut event = session_completed("evt_1", T, "cs_1", None, named("ord_1"), "paid");
        event["data"]["object"]["invoice"] = json!("in_1");
        event
    };
    let renewed = || {
        let mut event = intent_succeeded("evt_2", T + 1, "pi_1", named("ord_2"), 4200);
        event["data"]["object"]["invoice"] = json!("in_1");
        event
    };
    for events in [[session(), renewed()], [renewed(), session()]] {
        let tables = tables();
        for event in events {
            deliver(&tables, ProviderId::Stripe, &[event]).await;
        }
        assert_eq!(status(&tables, "ord_2").0, "completed");
        assert_ne!(status(&tables, "ord_1").0, "completed");
    }
}

#[tokio::test]
async fn amounts_that_do_not_fit_complete_nothing() {
    for (amount, currency, payment) in [
        (4199, "usd", "partially_paid"),
        (4200, "eur", "unpaid"),
        (0, "usd", "unpaid"),
    ] {
        let tables = tables();
        let mut paid = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), amount);
        paid["data"]["object"]["currency"] = json!(currency);
        deliver(&tables, ProviderId::Stripe, &[paid]).await;
        assert_eq!(
            status(&tables, "ord_1"),
            ("pending".into(), payment.into()),
            "{amount} {currency}"
        );
        assert_eq!(
            entity(&tables, &order("ord_1")).columns().requires_review,
            Some(true)
        );
    }
}

#[tokio::test]
async fn amounts_of_two_currencies_are_never_added() {
    let tables = tables();
    let paid = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
    let mut other = charge_refunded("evt_2", T + 1, "ch_2", Some("pi_1"), 4200);
    other["data"]["object"]["currency"] = json!("jpy");
    deliver(&tables, ProviderId::Stripe, &[paid, other]).await;
    let derived = payment(&tables, &order("ord_1"));
    assert_eq!(
        (derived.amount_refunded, derived.status.as_str()),
        (0, "completed")
    );
    assert!(
        derived
            .review_reasons
            .contains("refund_currency_mismatch:ch_2")
    );
}

#[tokio::test]
async fn a_poison_message_fails_alone_and_the_reports_are_exact() {
    let tables = tables();
    let mut messages = vec![
        keep(
            &tables,
            ProviderId::Stripe,
            &intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200),
        )
        .await,
        ReceivedMessage {
            message_id: "m-poison".into(),
            body: "not json".into(),
            receive_count: 3,
            is_last_receive: true,
        },
        ReceivedMessage {
            message_id: "m-lost".into(),
            body: r#"{"event_id":"evt_lost"}"#.into(),
            receive_count: 1,
            is_last_receive: false,
        },
        keep(
            &tables,
            ProviderId::Stripe,
            &intent_succeeded("evt_2", T, "pi_2", named("ord_2"), 4200),
        )
        .await,
    ];
    // The same event twice in one batch.
    messages.push(ReceivedMessage {
        message_id: "m-again".into(),
        ..messages[0].clone()
    });
    let reports = work(&tables, ProviderId::Stripe, &messages).await;
    assert_eq!(reports.len(), 5);
    assert_eq!(
        reports["m-poison"].result,
        Err(ProcessingFailure::Unreadable)
    );
    assert_eq!(reports["m-lost"].result, Err(ProcessingFailure::NotStored));
    for good in ["m-evt_1", "m-evt_2", "m-again"] {
        assert!(reports[good].result.is_ok(), "{good}");
    }
    assert_eq!(entity(&tables, &order("ord_1")).version(), 1);
    let again = work(&tables, ProviderId::Stripe, &messages[..1]).await;
    assert_eq!(
        again["m-evt_1"].result,
        Ok(ProcessingSuccess::AlreadyDone(EventOutcome::Processed))
    );
}

#[tokio::test]
async fn a_lost_race_reads_again_and_decides_again() {
    let tables = tables();
    let edit: fn(&MemoryTables) = |tables| {
        edit_order(tables, "ord_1", |order| order.version += 1);
    };
    tables.before_commit.lock().unwrap().extend([edit, edit]);
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200)],
    )
    .await;
    assert_eq!(outcome(&tables, "evt_1"), processed());
    assert_eq!(entity(&tables, &order("ord_1")).version(), 3);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_not_applied_twice() {
    let tables = tables();
    tables.writes.then([None, Some(Fault::AnswerLost)]);
    let reports = deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200)],
    )
    .await;
    assert_eq!(
        reports["m-evt_1"].result,
        Ok(ProcessingSuccess::AlreadyDone(EventOutcome::Processed))
    );
    assert_eq!(entity(&tables, &order("ord_1")).version(), 1);
}

#[tokio::test]
async fn an_outage_fails_the_message_and_marks_the_event_only_on_its_last_receive() {
    let tables = tables();
    let mut message = keep(
        &tables,
        ProviderId::Stripe,
        &intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200),
    )
    .await;
    for (receive_count, expected) in [
        (1, EventOutcome::Pending),
        (2, EventOutcome::Pending),
        (3, EventOutcome::Failed),
    ] {
        message.receive_count = receive_count;
        message.is_last_receive = receive_count == RECEIVES_MAX;
        tables.writes.then([Some(Fault::Before); 5]);
        let reports = work(&tables, ProviderId::Stripe, &[message.clone()]).await;
        assert!(matches!(
            reports["m-evt_1"].result,
            Err(ProcessingFailure::Infrastructure(_))
        ));
        assert_eq!(
            outcome(&tables, "evt_1").0,
            expected,
            "receive {receive_count}"
        );
    }
    // Redriven, it is decided afresh.
    message.receive_count = 1;
    message.is_last_receive = false;
    work(&tables, ProviderId::Stripe, &[message]).await;
    assert_eq!(outcome(&tables, "evt_1"), processed());
    assert_eq!(status(&tables, "ord_1").0, "completed");
}

#[tokio::test]
async fn what_a_newer_release_wrote_is_left_to_it_and_costs_no_dead_letter() {
    for newer in [
        "order#ord_1",
        "payment#platform#pi_1",
        "payment#platform#ch_1",
        "invoice#platform#in_1",
    ] {
        let tables = tables();
        let mut paid = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
        paid["data"]["object"]["latest_charge"] = json!("ch_1");
        paid["data"]["object"]["invoice"] = json!("in_1");
        let mut message = keep(&tables, ProviderId::Stripe, &paid).await;
        let key = StateKey::parse(newer).unwrap();
        tables.newer.lock().unwrap().insert(key);
        for receive_count in 1..=3 {
            message.receive_count = receive_count;
            message.is_last_receive = receive_count == RECEIVES_MAX;
            let reports = work(&tables, ProviderId::Stripe, &[message.clone()]).await;
            let result = &reports["m-evt_1"].result;
            let is_last = receive_count == 3;
            assert_eq!(result.is_ok(), is_last, "{newer}: {result:?}");
        }
        assert_eq!(outcome(&tables, "evt_1"), parked("newer_schema"), "{newer}");
        assert_eq!(entity(&tables, &order("ord_1")).version(), 0);
        assert!(tables.payments.lock().unwrap().is_empty());
        tables.newer.lock().unwrap().clear();
        work(&tables, ProviderId::Stripe, &[message]).await;
        assert_eq!(outcome(&tables, "evt_1"), processed(), "{newer}");
    }
}

#[tokio::test]
async fn nothing_is_started_when_the_time_is_nearly_up() {
    let tables = tables();
    let message = keep(
        &tables,
        ProviderId::Stripe,
        &intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200),
    )
    .await;
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: &tables,
        clock: FixedClock::at(now()),
    };
    let done = worker
        .process_batch(
            &[message],
            now().after(Duration::from_secs(1)),
            std::future::pending(),
        )
        .await;
    assert_eq!(done.messages[0].result, Err(ProcessingFailure::OutOfTime));
    assert_eq!(outcome(&tables, "evt_1").0, EventOutcome::Pending);
}

#[tokio::test]
async fn a_call_that_hangs_costs_only_its_own_message_a_receive() {
    let tables = tables();
    let good = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
    let mut messages = vec![keep(&tables, ProviderId::Stripe, &good).await];
    messages.push(ReceivedMessage {
        message_id: "m-poison".into(),
        body: "not json".into(),
        receive_count: 1,
        is_last_receive: false,
    });
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: &tables,
        clock: FixedClock::at(now()),
    };
    // The round hangs: it is late before anything is known.
    tables
        .hangs
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let deadline = now().after(Duration::from_secs(10));
    let done = worker
        .process_batch(&messages, deadline, std::future::ready(()))
        .await;
    let messages = done.messages.into_iter();
    let results: Vec<_> = messages.map(|report| report.result).collect();
    assert_eq!(
        results,
        [
            Err(ProcessingFailure::Unreadable),
            Err(ProcessingFailure::OutOfTime)
        ]
    );
}

#[tokio::test]
async fn a_batch_for_one_order_is_two_reads_and_one_transaction() {
    let tables = tables();
    let bodies: Vec<Value> = (0..10)
        .map(|i| {
            intent_failed(
                &format!("evt_{i}"),
                T + i,
                "pi_1",
                named("ord_1"),
                &format!("ch_{i}"),
            )
        })
        .collect();
    deliver(&tables, ProviderId::Stripe, &bodies).await;
    let calls = tables.calls.lock().unwrap();
    assert_eq!((calls["events"], calls["rows"], calls["commit"]), (1, 1, 1));
    assert_eq!(calls.get("bearing_intent"), None);
}

const THREE: [&str; 3] = ["ord_1", "ord_2", "ord_a"];

fn payments_of_three_orders() -> [Value; 3] {
    let paid = |n: usize| {
        let (event, payment) = (format!("evt_{n}"), format!("pi_{n}"));
        intent_succeeded(&event, T, &payment, named(THREE[n]), 4200)
    };
    [0, 1, 2].map(paid)
}

fn commits(tables: &MemoryTables) -> usize {
    tables.calls.lock().unwrap()["commit"]
}

#[tokio::test]
async fn a_batch_for_several_entities_is_two_reads_and_one_transaction() {
    let tables = tables();
    deliver(&tables, ProviderId::Stripe, &payments_of_three_orders()).await;
    for id in THREE {
        assert_eq!(status(&tables, id), ("completed".into(), "paid".into()));
    }
    let calls = tables.calls.lock().unwrap();
    assert_eq!((calls["events"], calls["rows"], calls["commit"]), (1, 1, 1));
}

#[tokio::test]
async fn an_edited_row_keeps_no_other_entity_from_its_transaction() {
    let tables = tables();
    tables.before_commit.lock().unwrap().push_back(|tables| {
        edit_order(tables, "ord_2", |order| order.version += 1);
    });
    deliver(&tables, ProviderId::Stripe, &payments_of_three_orders()).await;
    let versions = THREE.map(|id| entity(&tables, &order(id)).version());
    // All three together, each alone, and the edited one as it stands now.
    assert_eq!((versions, commits(&tables)), ([1, 2, 1], 1 + 3 + 1));
}

#[tokio::test]
async fn a_row_that_is_too_large_keeps_no_other_entity_from_its_transaction() {
    let tables = tables();
    let failed = |n: i64| {
        let (event, charge) = (format!("evt_f{n}"), format!("ch_{n}"));
        intent_failed(&event, T + n, "pi_f", named("ord_2"), &charge)
    };
    deliver(&tables, ProviderId::Stripe, &[1, 2, 3, 4, 5].map(failed)).await;
    let facts = serde_json::to_string(&entity(&tables, &order("ord_2")).to_row()).unwrap();
    *tables.facts_bytes_max.lock().unwrap() = Some(facts.len());
    deliver(&tables, ProviderId::Stripe, &payments_of_three_orders()).await;
    let outcomes = ["evt_0", "evt_1", "evt_2"].map(|id| outcome(&tables, id));
    let large = parked("entity_too_large");
    assert_eq!(outcomes, [processed(), large, processed()]);
}

#[tokio::test]
async fn a_row_that_does_not_answer_takes_back_nothing_that_was_committed() {
    let tables = tables();
    *tables.stuck.lock().unwrap() = Some(order("ord_2"));
    let mut messages = Vec::new();
    for event in payments_of_three_orders() {
        messages.push(keep(&tables, ProviderId::Stripe, &event).await);
    }
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: &tables,
        clock: FixedClock::at(now()),
    };
    // It is late as soon as nothing but the stuck row is left to wait for.
    let deadline = now().after(Duration::from_secs(10));
    let late = std::future::ready(());
    let done = worker.process_batch(&messages, deadline, late).await;
    let messages = done.messages.into_iter();
    let results: Vec<_> = messages.map(|report| report.result).collect();
    let written = || Ok(ProcessingSuccess::Decided(EventVerdict::Processed));
    let stuck = Err(ProcessingFailure::OutOfTime);
    assert_eq!(results, [written(), stuck, written()]);
    let commits = done.commits.iter().map(|commit| &commit.entity);
    assert_eq!(
        commits.collect::<Vec<_>>(),
        [&order("ord_1"), &order("ord_a")]
    );
}

#[tokio::test]
async fn two_orders_that_are_linked_to_one_payment_in_one_batch_both_need_a_person() {
    let tables = tables();
    let claims = ["ord_1", "ord_2"].map(|id| {
        let event = format!("evt_{id}");
        intent_succeeded(&event, T, "pi_1", named(id), 4200)
    });
    deliver(&tables, ProviderId::Stripe, &claims).await;
    assert_eq!(tables.calls.lock().unwrap()["commit"], 1);
    for id in ["ord_1", "ord_2"] {
        assert_eq!(outcome(&tables, &format!("evt_{id}")), processed());
        assert_eq!(status(&tables, id).0, "pending");
        let columns = entity(&tables, &order(id)).columns().clone();
        assert_eq!(columns.requires_review, Some(true), "{id}");
    }
}

#[tokio::test]
async fn a_transaction_of_several_whose_answer_was_lost_is_not_applied_twice() {
    let tables = tables();
    tables
        .writes
        .then([None, None, None, Some(Fault::AnswerLost)]);
    let reports = deliver(&tables, ProviderId::Stripe, &payments_of_three_orders()).await;
    let done = Ok(ProcessingSuccess::AlreadyDone(EventOutcome::Processed));
    assert!(reports.values().all(|report| report.result == done));
    let versions = THREE.map(|id| entity(&tables, &order(id)).version());
    assert_eq!(versions, [1, 1, 1]);
}

#[tokio::test]
async fn entities_that_do_not_fit_one_transaction_together_get_one_each() {
    let tables = tables();
    let large = |n: usize| {
        let mut event = payments_of_three_orders()[n % 2].clone();
        event["id"] = json!(format!("evt_{n}"));
        event["data"]["object"]["description"] = json!("x".repeat(400_000));
        event
    };
    deliver(
        &tables,
        ProviderId::Stripe,
        &[0, 1, 2, 3, 4, 5, 6, 7].map(large),
    )
    .await;
    let versions = THREE.map(|id| entity(&tables, &order(id)).version());
    assert_eq!((versions, commits(&tables)), ([1, 1, 0], 2));
}

#[tokio::test]
async fn what_does_not_fit_one_transaction_goes_into_the_next() {
    let tables = tables();
    let batch: Vec<Value> = (0..10)
        .map(|n| {
            let mut event = charge_refunded(
                &format!("evt_{n}"),
                T + n,
                &format!("ch_{n}"),
                Some("pi_1"),
                100,
            );
            event["data"]["object"]["metadata"] =
                json!({ "order_id": "ord_1", "ballast": "x".repeat(400_000) });
            event
        })
        .collect();
    let reports = deliver(&tables, ProviderId::Stripe, &batch).await;
    assert!(reports.values().all(|report| report.result.is_ok()));
    // 10 rows of 400 kB do not fit 3 MB: half of them is written, the rest in the second round.
    assert_eq!(tables.calls.lock().unwrap()["commit"], 2);
    let derived = payment(&tables, &order("ord_1"));
    assert_eq!(derived.amount_refunded, 1000);
}

#[tokio::test]
async fn an_event_that_is_too_large_for_its_row_is_parked_alone() {
    for large in 0..10 {
        let tables = tables();
        *tables.facts_bytes_max.lock().unwrap() = Some(50_000);
        let event = |n: usize| {
            let stage = MailStage::ALL[n].as_str();
            let id = format!("evt_{n}");
            let mut event = letter(&id, "2026-11-10T08:00:00.000Z", "ltr_1", stage);
            let scans = if n == large { 100 } else { 1 };
            let scan = |k| json!({ "id": format!("evnt_{k}"), "location": "x".repeat(1_000) });
            event["body"]["tracking_events"] = (0..scans).map(scan).collect();
            event
        };
        let all: Vec<Value> = (0..10).map(event).collect();
        let reports = deliver(&tables, ProviderId::Lob, &all).await;
        assert!(reports.values().all(|report| report.result.is_ok()));
        for n in 0..10 {
            let expected = match n == large {
                true => parked("entity_too_large"),
                false => processed(),
            };
            assert_eq!(outcome(&tables, &format!("evt_{n}")), expected, "{large}");
        }
    }
}

#[tokio::test]
async fn a_persons_repair_stands() {
    let tables = tables();
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 1)],
    )
    .await;
    let edit = |change: fn(&mut GuardedColumns)| {
        edit_order(&tables, "ord_1", |order| change(&mut order.columns));
    };
    edit(|columns| columns.requires_review = Some(false));
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_failed("evt_2", T, "pi_2", named("ord_1"), "ch_2")],
    )
    .await;
    assert_eq!(
        entity(&tables, &order("ord_1")).columns().requires_review,
        Some(false)
    );
    edit(|columns| columns.status = Some("refunded".to_owned()));
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_failed("evt_3", T, "pi_2", named("ord_1"), "ch_3")],
    )
    .await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("refunded".into(), "refunded".into())
    );
    // A new reason flags again.
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_succeeded("evt_4", T, "pi_4", named("ord_1"), 2)],
    )
    .await;
    assert_eq!(
        entity(&tables, &order("ord_1")).columns().requires_review,
        Some(true)
    );
}

#[tokio::test]
async fn a_letters_life_in_reverse_ends_delivered() {
    let tables = tables();
    let stages = [
        "delivered",
        "processed_for_delivery",
        "in_transit",
        "mailed",
        "rendered_pdf",
        "created",
    ];
    for (i, stage) in stages.iter().enumerate() {
        let at = format!("2026-11-{:02}T08:00:00.000Z", 20 - i);
        deliver(
            &tables,
            ProviderId::Lob,
            &[letter(&format!("evt_{i}"), &at, "ltr_1", stage)],
        )
        .await;
    }
    let statement = entity(&tables, &statement("st_1"));
    let columns = statement.columns();
    assert_eq!(columns.mail_status.as_deref(), Some("delivered"));
    assert_eq!(columns.needs_attention, Some(false));
    let next = statement.apply_facts([], now());
    let mail = next.mail().unwrap();
    assert_eq!(mail.timeline.len(), stages.len());
    assert_eq!(mail.expected_delivery_date.as_deref(), Some("2026-11-27"));
    deliver(
        &tables,
        ProviderId::Lob,
        &[letter(
            "evt_x",
            "2026-11-01T00:00:00Z",
            "ltr_unknown",
            "mailed",
        )],
    )
    .await;
    assert_eq!(outcome(&tables, "evt_x"), parked("letter_unknown"));
}

#[tokio::test]
async fn of_several_states_the_one_told_last_is_believed() {
    let paid = intent_succeeded("evt_0", T, "pi_1", named("ord_1"), 4200);
    let story = [
        ("needs_response", "disputed", true),
        ("lost", "charged_back", true),
        ("appeal_under_review", "disputed", true),
        ("won", "paid", false),
    ];
    for known in 1..=story.len() {
        let tables = tables();
        deliver(&tables, ProviderId::Stripe, std::slice::from_ref(&paid)).await;
        // Told in the wrong order; the provider's clock decides.
        for (n, (state, ..)) in story.iter().enumerate().take(known).rev() {
            let at = T + i64::try_from(n).unwrap();
            let event = dispute(&format!("evt_{}", n + 1), at, "dp_1", "pi_1", state);
            deliver(&tables, ProviderId::Stripe, &[event]).await;
        }
        let (state, payment_status, review) = story[known - 1];
        let row = entity(&tables, &order("ord_1"));
        let columns = row.columns();
        assert_eq!(columns.status.as_deref(), Some("completed"), "{state}");
        assert_eq!(
            columns.payment_status.as_deref(),
            Some(payment_status),
            "{state}"
        );
        assert_eq!(columns.requires_review, Some(review), "{state}");
    }
}

#[tokio::test]
async fn a_refund_that_fails_days_later_no_longer_counts() {
    let tables = tables();
    let of = ("pi_1", "ch_1");
    let events = [
        intent_succeeded("evt_0", T, "pi_1", named("ord_1"), 4200),
        refund("evt_1", T + 1, "re_1", of, 4200, "succeeded"),
        refund("evt_2", T + 9, "re_1", of, 4200, "failed"),
    ];
    deliver(&tables, ProviderId::Stripe, &events[..2]).await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("refunded".into(), "refunded".into())
    );
    deliver(&tables, ProviderId::Stripe, &events[2..]).await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("completed".into(), "paid".into())
    );
    assert_eq!(
        entity(&tables, &order("ord_1")).columns().requires_review,
        Some(true)
    );
}

#[tokio::test]
async fn money_on_its_way_is_neither_failed_nor_paid() {
    let tables = tables();
    let named = || named("ord_1");
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_failed("evt_1", T, "pi_1", named(), "ch_1")],
    )
    .await;
    let processing = intent_is("evt_2", T + 1, "pi_1", named(), "processing");
    deliver(&tables, ProviderId::Stripe, &[processing]).await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("pending".into(), "processing".into())
    );
    deliver(
        &tables,
        ProviderId::Stripe,
        &[intent_failed("evt_3", T + 2, "pi_1", named(), "ch_2")],
    )
    .await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("payment_failed".into(), "failed".into())
    );
    let canceled = intent_is("evt_4", T + 3, "pi_1", named(), "canceled");
    deliver(&tables, ProviderId::Stripe, &[canceled]).await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("payment_failed".into(), "failed".into())
    );
}

/// Stripe's times are whole seconds, so nothing says which of two updates is the later.
#[tokio::test]
async fn of_two_account_updates_in_one_second_the_more_restrictive_is_believed() {
    let key = EntityKey::Tenant(TenantId::parse("ten_a").unwrap());
    let update = |id: &str, kind: &str, at: i64, charges: bool, payouts: bool| {
        let account =
            json!({ "id": "acct_a", "charges_enabled": charges, "payouts_enabled": payouts });
        from_account(stripe(id, kind, T + at, account), "acct_a")
    };
    let updates = [
        update("evt_1", "account.updated", 1, true, false),
        update("evt_2", "account.updated", 1, false, true),
        update("evt_3", "account.updated", 0, true, true),
    ];
    for arrival in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [2, 0, 1]] {
        let tables = tables();
        let row = json!({ "tenant_id": "ten_a", "stripe_connected_account_id": "acct_a" });
        let row = memory::entity_of(&key, row);
        tables.entities.lock().unwrap().insert(key.clone(), row);
        let capabilities = |tables: &MemoryTables| {
            let Entity::Tenant(row) = entity(tables, &key) else {
                panic!("{key} is no tenant");
            };
            let able = row.apply_facts([], now()).derived.capabilities.unwrap();
            (able.charges_enabled, able.payouts_enabled)
        };
        for number in arrival {
            deliver(&tables, ProviderId::Stripe, &[updates[number].clone()]).await;
        }
        assert_eq!(capabilities(&tables), (false, false));
        let able = update("evt_4", "account.updated", 2, true, true);
        deliver(&tables, ProviderId::Stripe, &[able]).await;
        assert_eq!(capabilities(&tables), (true, true));
        let gone = update("evt_5", "account.application.deauthorized", 3, true, true);
        deliver(&tables, ProviderId::Stripe, &[gone]).await;
        assert_eq!(capabilities(&tables), (false, false), "it is disconnected");
    }
}

#[tokio::test]
async fn an_accounts_own_events_keep_its_tenants_row() {
    let key = EntityKey::Tenant(TenantId::parse("ten_a").unwrap());
    let about = |id: &str, at: i64, kind: &str, charges: bool| {
        let account = json!({ "id": "acct_a", "object": "account", "charges_enabled": charges,
            "payouts_enabled": true, "metadata": { "order_id": "ord_a" } });
        from_account(stripe(id, kind, T + at, account), "acct_a")
    };
    let story = [
        about("evt_1", 0, "account.application.authorized", true),
        about("evt_2", 1, "account.updated", false),
        about("evt_3", 2, "account.updated", true),
        about("evt_4", 3, "account.application.deauthorized", true),
        about("evt_5", 9, "account.application.authorized", true),
    ];
    let statuses = [
        "connected",
        "restricted",
        "connected",
        "deauthorized",
        "connected",
    ];
    for (known, status) in (1..).zip(statuses) {
        let tables = tables();
        let of_account = |account: &str| {
            let row = json!({ "tenant_id": "ten_a", "stripe_connected_account_id": account });
            memory::entity_of(&key, row)
        };
        let row = of_account("acct_a");
        tables.entities.lock().unwrap().insert(key.clone(), row);
        for event in story[..known].iter().rev() {
            deliver(&tables, ProviderId::Stripe, std::slice::from_ref(event)).await;
        }
        let Entity::Tenant(mut row) = entity(&tables, &key) else {
            panic!("{key} is no tenant");
        };
        let derived = row.apply_facts([], now()).derived;
        assert_eq!(derived.status.as_str(), status);
        // Another account in the row begins anew.
        row.given.account = AccountId::parse("acct_b").ok();
        let derived = row.apply_facts([], now()).derived;
        assert_eq!(
            (derived.status.as_str(), derived.capabilities),
            ("connected", None)
        );
        assert_eq!(
            entity(&tables, &order("ord_a")).version(),
            0,
            "its metadata names nothing"
        );
    }
    // The platform's own account is no tenant's.
    let tables = tables();
    let own = stripe("evt_own", "account.updated", T, json!({ "id": "acct_p" }));
    deliver(&tables, ProviderId::Stripe, &[own]).await;
    assert_eq!(
        outcome(&tables, "evt_own"),
        (EventOutcome::Ignored, Some("nothing_named".into()))
    );
}

#[tokio::test]
async fn each_transaction_is_reported_once_with_what_it_changed() {
    let tables = tables();
    {
        let mut entities = tables.entities.lock().unwrap();
        let edited = order_mut(entities.get_mut(&order("ord_2")).unwrap());
        edited.columns.status = Some("draft".to_owned());
    }
    let mut messages = Vec::new();
    for (n, id) in ["ord_1", "ord_2"].into_iter().enumerate() {
        let paid = intent_succeeded(&format!("evt_{n}"), T, &format!("pi_{n}"), named(id), 4200);
        messages.push(keep(&tables, ProviderId::Stripe, &paid).await);
    }
    // The same event in two messages, and a type that changes no entity.
    messages.push(ReceivedMessage {
        message_id: "m-again".into(),
        ..messages[0].clone()
    });
    let nothing = stripe("evt_type", "customer.created", T, json!({}));
    messages.push(keep(&tables, ProviderId::Stripe, &nothing).await);
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: &tables,
        clock: FixedClock::at(now()),
    };
    let deadline = now().after(Duration::from_secs(10));
    let done = worker
        .process_batch(&messages, deadline, std::future::pending())
        .await;
    assert_eq!(done.messages.len(), 4);
    let commit = |n: usize, id: &str, discarded_edits| EntityCommit {
        entity: order(id),
        event: EventId::parse(&format!("evt_{n}")).ok(),
        changes: vec![EntityChange::Completed],
        discarded_edits,
        row_findings: Vec::new(),
    };
    let edit = DiscardedEdit {
        column: "status",
        found: "draft".to_owned(),
        written: "completed".to_owned(),
    };
    let expected = [
        commit(0, "ord_1", Vec::new()),
        commit(1, "ord_2", vec![edit]),
    ];
    assert_eq!(done.commits, expected);
    // A second time nothing is committed.
    let again = worker
        .process_batch(&messages, deadline, std::future::pending())
        .await;
    assert_eq!(again.commits, []);
}

/// As people paste them, with a blank or a no-break space, and as templates leave them empty.
#[tokio::test]
async fn an_id_in_the_metadata_is_read_without_what_is_around_it() {
    let statement = statement("st_1");
    for (names, key) in [
        (json!({ "order_id": "ord_1 " }), order("ord_1")),
        (json!({ "orderId": "\u{a0}ord_1\n" }), order("ord_1")),
        (
            json!({ "orderId": " ", "order_id": "ord_1" }),
            order("ord_1"),
        ),
        (
            json!({ "orderId": "", "statementId": "st_1" }),
            statement.clone(),
        ),
        (
            json!({ "statementId": "", "statement_id": "st_1" }),
            statement,
        ),
    ] {
        let tables = tables();
        let mut paid = intent_succeeded("evt_1", T, "pi_1", names.clone(), 4200);
        if key.order().is_none() {
            paid = from_account(paid, "acct_a");
        }
        deliver(&tables, ProviderId::Stripe, &[paid]).await;
        let state = payment(&tables, &key);
        assert_eq!(state.payment_status.as_str(), "paid", "{names}");
    }
}
