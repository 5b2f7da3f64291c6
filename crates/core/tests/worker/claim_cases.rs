//! Hard cases of whose a payment's money is: links that are refused or come late, tenants that go, states that are rebuilt, and
//! drawn events in every order of arrival.

use billhook_core::entity::payment::state::unclaimed_index_keys;
use billhook_core::proof::prover::EventsByState;
use billhook_core::proof::repair::{ReprocessEvent, repair_state};
use billhook_core::tasks::ports::FindOpenStates as _;

use super::deadlines::{deliver_at, sweep_hourly, work_at};
use super::laws::run;
use super::proof::{ReprocessInMemory, differences, prover, worker_of};
use super::*;

const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;

fn add_row(tables: &MemoryTables, key: &EntityKey, columns: Value) {
    let mut row = json!({ "amountTotal": 4200, "amount_due": 4200, "currency": "usd" });
    for (column, value) in columns.as_object().unwrap() {
        row[column] = value.clone();
    }
    let row = memory::entity_of(key, row);
    tables.entities.lock().unwrap().insert(key.clone(), row);
}

/// As `tables`, with an order of tenant B.
fn with_b() -> MemoryTables {
    let tables = tables();
    add_row(&tables, &order("ord_b"), json!({ "tenantId": "ten_b" }));
    tables
}

fn one(tables: &MemoryTables, event: &Value) {
    run(deliver(
        tables,
        ProviderId::Stripe,
        std::slice::from_ref(event),
    ));
}

fn session(id: &str, intent: Option<&str>, metadata: Value, reference: Value) -> Value {
    let mut event = session_completed(id, T, "cs_1", intent, metadata, "paid");
    event["data"]["object"]["client_reference_id"] = reference;
    event
}

fn destined(id: &str, intent: &str, metadata: Value, account: &str) -> Value {
    let mut event = intent_succeeded(id, T, intent, metadata, 4200);
    event["data"]["object"]["transfer_data"] = json!({ "destination": account });
    event
}

fn reasons(tables: &MemoryTables, id: &str) -> Vec<String> {
    payment(tables, &order(id))
        .review_reasons
        .into_iter()
        .collect()
}

fn paid() -> (String, String) {
    ("completed".into(), "paid".into())
}

fn pending(tables: &MemoryTables, id: &str) -> bool {
    let found = payment(tables, &order(id));
    (found.status.as_str(), found.payment_status.as_str()) == ("pending", "unpaid")
}

fn relink(tables: &MemoryTables, payment: &str, to: &str) {
    let payment = PaymentKey::parse(payment).unwrap();
    let worker = worker_of(tables);
    let to = order(to);
    run(worker.relink_payment(&payment, Some(&to), "pat", "asked")).unwrap();
}

fn lose(tables: &MemoryTables, name: &str) -> StateKey {
    let key = PaymentKey::parse(name).unwrap();
    tables.payments.lock().unwrap().remove(&key).unwrap();
    StateKey::Payment(key)
}

#[test]
fn a_denied_link_hides_the_reference_in_one_order_of_arrival() {
    let events = [
        session("evt_1", Some("pi_1"), named("ord_a"), json!("ord_b")),
        destined("evt_2", "pi_1", json!({}), "acct_b"),
    ];
    let mut found = BTreeSet::new();
    for arrival in [[0, 1], [1, 0]] {
        let tables = with_b();
        for n in arrival {
            one(&tables, &events[n]);
        }
        run(sweep_hourly(&tables, 0, 3 * HOUR));
        found.insert((status(&tables, "ord_b"), pending(&tables, "ord_a")));
    }
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn a_denied_link_hides_the_column_in_one_order_of_arrival() {
    let events = [
        session("evt_1", Some("pi_1"), named("ord_a"), json!(null)),
        destined("evt_2", "pi_1", json!({}), "acct_b"),
    ];
    let mut found = BTreeSet::new();
    for arrival in [[0, 1], [1, 0]] {
        let tables = with_b();
        let columns = json!({ "tenantId": "ten_b", "stripePaymentIntentId": "pi_1" });
        add_row(&tables, &order("ord_b"), columns);
        for n in arrival {
            one(&tables, &events[n]);
        }
        run(sweep_hourly(&tables, 0, 3 * HOUR));
        found.insert((status(&tables, "ord_b"), pending(&tables, "ord_a")));
    }
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn the_reference_takes_the_money_while_the_named_order_is_not_written_yet() {
    let tables = tables();
    one(
        &tables,
        &session("evt_1", Some("pi_1"), named("ord_late"), json!("ord_1")),
    );
    assert_eq!(outcome(&tables, "evt_1"), parked("order_unknown"));
    run(sweep_hourly(&tables, 0, 2 * HOUR));
    assert!(pending(&tables, "ord_1"), "{:?}", status(&tables, "ord_1"));
}

#[test]
fn an_event_without_a_name_takes_the_reference_although_another_event_names_an_order() {
    let tables = tables();
    one(
        &tables,
        &session("evt_1", Some("pi_1"), named("ord_late"), json!("ord_1")),
    );
    one(
        &tables,
        &intent_succeeded("evt_2", T, "pi_1", json!({}), 4200),
    );
    assert!(pending(&tables, "ord_1"), "{:?}", status(&tables, "ord_1"));
}

#[test]
fn an_order_and_a_statement_of_one_key() {
    let tables = tables();
    add_row(&tables, &order("1001"), json!({}));
    add_row(&tables, &statement("1001"), json!({ "tenant_id": "ten_a" }));
    one(
        &tables,
        &session("evt_1", Some("pi_1"), json!({}), json!("1001")),
    );
    assert_eq!(reasons(&tables, "1001"), [""; 0]);
    assert_eq!(status(&tables, "1001"), paid());
}

#[test]
fn the_column_is_better_than_the_reference_whenever_it_is_written() {
    let tables = tables();
    one(
        &tables,
        &session("evt_1", Some("pi_1"), json!({}), json!("ord_1")),
    );
    add_row(
        &tables,
        &order("ord_2"),
        json!({ "stripePaymentIntentId": "pi_1" }),
    );
    one(
        &tables,
        &intent_succeeded("evt_2", T, "pi_1", json!({}), 4200),
    );
    run(sweep_hourly(&tables, 0, 3 * HOUR));
    assert_eq!(status(&tables, "ord_2"), paid());
    assert!(pending(&tables, "ord_1"));
}

#[test]
fn a_decided_payment_is_not_parked_again() {
    let tables = with_b();
    one(
        &tables,
        &destined("evt_1", "pi_1", named("ord_a"), "acct_b"),
    );
    assert_eq!(outcome(&tables, "evt_1"), parked("cross_tenant"));
    relink(&tables, "payment#platform#pi_1", "ord_a");
    assert_eq!(status(&tables, "ord_a"), paid());
    one(
        &tables,
        &charge_refunded("evt_2", T + 1, "ch_1", Some("pi_1"), 4200),
    );
    assert_eq!(
        status(&tables, "ord_a"),
        ("refunded".into(), "refunded".into())
    );
    assert_eq!(outcome(&tables, "evt_2"), processed());
}

#[test]
fn a_paid_order_keeps_its_money_when_the_index_does_not_return_the_tenant() {
    let tables = with_b();
    one(
        &tables,
        &destined("evt_1", "pi_1", named("ord_a"), "acct_a"),
    );
    assert_eq!(status(&tables, "ord_a"), paid());
    tables
        .tenants
        .lock()
        .unwrap()
        .retain(|(account, _)| account.as_str() != "acct_a");
    one(
        &tables,
        &charge_refunded("evt_2", T + 1, "ch_1", Some("pi_1"), 100),
    );
    assert_eq!(
        status(&tables, "ord_a"),
        paid(),
        "{:?}",
        outcome(&tables, "evt_2")
    );
}

#[test]
fn a_paid_order_keeps_its_money_when_a_second_tenant_claims_the_account() {
    let tables = with_b();
    one(
        &tables,
        &destined("evt_1", "pi_1", named("ord_a"), "acct_a"),
    );
    let pair = (
        AccountId::parse("acct_a").unwrap(),
        TenantId::parse("ten_x").unwrap(),
    );
    tables.tenants.lock().unwrap().push(pair);
    one(
        &tables,
        &charge_refunded("evt_2", T + 1, "ch_1", Some("pi_1"), 100),
    );
    assert_eq!(
        status(&tables, "ord_a"),
        paid(),
        "{:?}",
        outcome(&tables, "evt_2")
    );
}

#[test]
fn a_destination_that_cannot_be_read_opens_no_door() {
    for (member, value) in [
        ("transfer_data", json!({ "destination": 7 })),
        ("transfer_data", json!("acct_b")),
        ("transfer_data", json!({ "destination": "acct b" })),
        (
            "on_behalf_of",
            json!({ "id": "acct_b", "object": "account" }),
        ),
        ("on_behalf_of", json!(["acct_b"])),
    ] {
        let tables = with_b();
        let mut event = intent_succeeded("evt_1", T, "pi_1", named("ord_a"), 4200);
        event["data"]["object"][member] = value.clone();
        one(&tables, &event);
        let (outcome, _) = outcome(&tables, "evt_1");
        assert_eq!(outcome, EventOutcome::Parked, "{member} {value}");
    }
}

#[test]
fn a_payment_with_a_denied_link_and_an_allowed_one_is_proven() {
    for arrival in [[0, 1], [1, 0]] {
        let tables = with_b();
        let events = [
            session("evt_1", Some("pi_1"), named("ord_a"), json!(null)),
            destined("evt_2", "pi_1", named("ord_b"), "acct_b"),
        ];
        for n in arrival {
            one(&tables, &events[n]);
        }
        assert_eq!(status(&tables, "ord_b"), paid());
        assert_eq!(differences(&tables), [""; 0], "{arrival:?}");
    }
}

#[test]
fn a_lost_state_is_rebuilt_without_what_was_denied() {
    for arrival in [[0, 1], [1, 0]] {
        let tables = with_b();
        let events = [
            session("evt_1", Some("pi_1"), named("ord_a"), json!(null)),
            destined("evt_2", "pi_1", json!({}), "acct_b"),
        ];
        for n in arrival {
            one(&tables, &events[n]);
        }
        assert!(pending(&tables, "ord_a"));
        let key = lose(&tables, "payment#platform#pi_1");
        let named = EventsByState::from([(
            key.clone(),
            ["evt_1", "evt_2"]
                .iter()
                .map(|id| EventId::parse(id).unwrap())
                .collect(),
        )]);
        let worker = worker_of(&tables);
        let reprocess = ReprocessInMemory(&tables);
        let prover = prover(&tables);
        run(repair_state(&prover, &worker, &reprocess, &key, &named)).unwrap();
        assert!(
            pending(&tables, "ord_a"),
            "{arrival:?}: {:?}",
            status(&tables, "ord_a")
        );
    }
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

#[test]
fn nothing_paid_is_no_money() {
    let tables = tables();
    let mut event = session_completed("evt_1", T, "cs_1", None, json!({}), "no_payment_required");
    event["data"]["object"]["amount_total"] = json!(0);
    run(deliver_at(&tables, 0, &event));
    assert_eq!(run(sweep_hourly(&tables, 0, 2 * DAY)), []);
}

#[test]
fn a_released_authorisation_is_no_money() {
    let tables = tables();
    let mut event = charge_refunded("evt_1", T, "ch_1", Some("pi_1"), 4200);
    event["data"]["object"]["captured"] = json!(false);
    event["data"]["object"]["amount_captured"] = json!(0);
    event["data"]["object"]["refunded"] = json!(true);
    run(deliver_at(&tables, 0, &event));
    assert_eq!(run(sweep_hourly(&tables, 0, 2 * DAY)), []);
}

#[test]
fn unclaimed_money_stays_listed_when_its_charge_gets_a_payment() {
    let tables = tables();
    let mut disputed = dispute("evt_1", T, "dp_1", "pi_1", "won");
    disputed["data"]["object"]["payment_intent"] = json!(null);
    run(deliver_at(&tables, 0, &disputed));
    run(sweep_hourly(&tables, 0, 5 * DAY));
    assert_eq!(run(unclaimed(&tables)).len(), 1);
    let mut paid = intent_succeeded("evt_2", T, "pi_1", json!({}), 4200);
    let charge = &disputed["data"]["object"]["charge"];
    paid["data"]["object"]["latest_charge"] = charge.clone();
    run(deliver_at(&tables, 5 * DAY, &paid));
    assert_eq!(run(unclaimed(&tables)), ["payment#platform#pi_1"]);
}

#[test]
fn a_day_begins_when_the_money_becomes_ours() {
    let tables = tables();
    let charge = from_account(
        charge_refunded("evt_1", T, "ch_1", Some("pi_1"), 100),
        "acct_a",
    );
    run(deliver_at(&tables, 0, &charge));
    run(sweep_hourly(&tables, 0, 5 * DAY));
    let mut paid = from_account(
        intent_succeeded("evt_2", T + 5 * DAY, "pi_1", named("ord_late"), 4200),
        "acct_a",
    );
    paid["data"]["object"]["latest_charge"] = json!("ch_1");
    let message = run(keep(&tables, ProviderId::Stripe, &paid));
    assert_eq!(run(work_at(&tables, 5 * DAY, &[message])), []);
}

fn ours() -> Value {
    json!({ "stripePaymentIntentId": "pi_ours" })
}

fn theirs() -> Value {
    intent_succeeded("evt_t", T, "pi_theirs", named("ord_1"), 4200)
}

#[test]
fn an_attempt_that_failed_does_not_end_a_payment_intent() {
    // Stripe: it is `requires_payment_method` again, and the customer may try another card.
    let tables = tables();
    add_row(&tables, &order("ord_1"), ours());
    let mut failed = intent_failed("evt_1", T, "pi_ours", named("ord_1"), "ch_1");
    failed["data"]["object"]["status"] = json!("requires_payment_method");
    one(&tables, &failed);
    one(
        &tables,
        &intent_is("evt_2", T + 1, "pi_ours", named("ord_1"), "processing"),
    );
    one(&tables, &theirs());
    assert_eq!(reasons(&tables, "ord_1"), ["unexpected_payment:pi_theirs"]);
}

#[test]
fn a_session_of_an_invoice_that_the_expected_payment_pays() {
    let tables = tables();
    let columns = json!({ "stripePaymentIntentId": "pi_9" });
    add_row(&tables, &order("ord_1"), columns);
    let mut s = session_completed("evt_1", T, "cs_1", None, named("ord_1"), "paid");
    s["data"]["object"]["mode"] = json!("subscription");
    s["data"]["object"]["invoice"] = json!("in_1");
    one(&tables, &s);
    let mut other = intent_succeeded("evt_0", T, "pi_1", json!({}), 1000);
    other["data"]["object"]["invoice"] = json!("in_1");
    one(&tables, &other);
    let mut i = intent_succeeded("evt_2", T + 1, "pi_9", json!({}), 3200);
    i["data"]["object"]["invoice"] = json!("in_1");
    one(&tables, &i);
    let found = reasons(&tables, "ord_1");
    assert!(
        !found.iter().any(|r| r.starts_with("unexpected")),
        "{found:?}"
    );
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    use billhook_core::provider::read_envelope;
    let body = intent_succeeded("evt_1", T, "pi_1", json!({ "order_id": "X" }), 4200).to_string();
    let body = body.replace(
        r#"{"order_id":"X"}"#,
        r#"{"order_id":"ord_2","order_id":"ord_1"}"#,
    );
    let read = read_envelope(&verified(ProviderId::Stripe, body.as_bytes()));
    assert!(read.is_err());
}

#[test]
fn a_reference_that_named_the_wrong_order_is_no_user_of_the_right_one() {
    let tables = tables();
    one(
        &tables,
        &session("evt_1", Some("pi_1"), json!({}), json!("ord_1")),
    );
    assert_eq!(payment(&tables, &order("ord_1")).user, None);
    relink(&tables, "payment#platform#pi_1", "ord_2");
    assert_eq!(payment(&tables, &order("ord_2")).user, None);
}

#[test]
fn a_reference_to_another_tenants_order_parks_no_destination_charge() {
    let tables = with_b();
    one(&tables, &destined("evt_1", "pi_1", json!({}), "acct_b"));
    one(
        &tables,
        &session("evt_2", Some("pi_1"), json!({}), json!("ord_a")),
    );
    assert_eq!(outcome(&tables, "evt_2"), processed());
    assert_eq!(status(&tables, "ord_a"), Default::default());
}

#[test]
fn an_event_that_was_parked_is_processed_once_a_person_decided() {
    let tables = with_b();
    one(
        &tables,
        &destined("evt_1", "pi_1", named("ord_a"), "acct_b"),
    );
    relink(&tables, "payment#platform#pi_1", "ord_a");
    let again = ReprocessInMemory(&tables);
    run(again.reprocess(ProviderId::Stripe, &EventId::parse("evt_1").unwrap())).unwrap();
    assert_eq!(outcome(&tables, "evt_1"), processed());
}

#[test]
fn many_keys_do_not_make_a_trimmed_payload_too_large() {
    use billhook_core::provider::trim_payload;
    let metadata: serde_json::Map<_, _> = (0..2_000)
        .map(|n| (format!("{n}{}", "k".repeat(400)), json!("x")))
        .collect();
    let event = intent_succeeded("evt_1", T, "pi_1", json!(metadata), 4200);
    let trimmed = trim_payload(ProviderId::Stripe, event.to_string().as_bytes()).unwrap();
    assert!(trimmed.len() < 300_000, "{}", trimmed.len());
}

#[test]
fn a_wrong_link_of_a_rebuild_stays() {
    let tables = with_b();
    one(
        &tables,
        &session("evt_1", Some("pi_1"), named("ord_a"), json!(null)),
    );
    one(&tables, &destined("evt_2", "pi_1", json!({}), "acct_b"));
    let key = lose(&tables, "payment#platform#pi_1");
    let events = ["evt_1", "evt_2"]
        .iter()
        .map(|id| EventId::parse(id).unwrap())
        .collect();
    let by_state = EventsByState::from([(key.clone(), events)]);
    let worker = worker_of(&tables);
    run(repair_state(
        &prover(&tables),
        &worker,
        &ReprocessInMemory(&tables),
        &key,
        &by_state,
    ))
    .unwrap();
    run(sweep_hourly(&tables, 0, 9 * DAY));
    assert!(pending(&tables, "ord_a"));
}

#[test]
fn a_paid_order_keeps_its_money_when_the_account_moves_to_another_tenant() {
    let tables = with_b();
    one(
        &tables,
        &destined("evt_1", "pi_1", named("ord_a"), "acct_a"),
    );
    for (account, tenant) in tables.tenants.lock().unwrap().iter_mut() {
        if account.as_str() == "acct_a" {
            *tenant = TenantId::parse("ten_x").unwrap();
        }
    }
    one(
        &tables,
        &charge_refunded("evt_2", T + 1, "ch_1", Some("pi_1"), 100),
    );
    assert_eq!(
        status(&tables, "ord_a"),
        paid(),
        "{:?}",
        outcome(&tables, "evt_2")
    );
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![vec![]];
    }
    let mut all = vec![];
    for p in permutations(n - 1) {
        for at in 0..n {
            let mut q = p.clone();
            q.insert(at, n - 1);
            all.push(q);
        }
    }
    all
}

#[test]
fn drawn_events_give_one_result_in_every_order_and_are_proven() {
    let md = [json!({}), named("ord_a"), named("ord_b"), named("ord_1")];
    let rf = [json!(null), json!("ord_a"), json!("ord_b"), json!("user")];
    let mut pool: Vec<(String, Value)> = vec![];
    for (m, meta) in md.iter().enumerate() {
        for (r, refer) in rf.iter().enumerate() {
            for i in [None, Some("pi_1")] {
                pool.push((
                    format!("session m{m} r{r} {i:?}"),
                    session("evt_0", i, meta.clone(), refer.clone()),
                ));
            }
        }
        for acct in ["", "acct_a", "acct_b"] {
            let mut e = destined("evt_0", "pi_1", meta.clone(), acct);
            if acct.is_empty() {
                e["data"]["object"]["transfer_data"] = json!(null);
            }
            e["data"]["object"]["latest_charge"] = json!("ch_1");
            pool.push((format!("intent m{m} {acct}"), e));
        }
        let mut c = charge_refunded("evt_0", T + 1, "ch_1", Some("pi_1"), 1000);
        c["data"]["object"]["metadata"] = meta.clone();
        pool.push((format!("charge m{m}"), c));
    }
    let mut d = dispute("evt_0", T + 2, "dp_1", "pi_1", "needs_response");
    d["data"]["object"]["payment_intent"] = json!(null);
    d["data"]["object"]["charge"] = json!("ch_1");
    pool.push(("dispute by charge".into(), d));
    let mut rng: u64 = 12345;
    let mut next = |n: usize| {
        rng = rng
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        usize::try_from(rng >> 33).unwrap() % n
    };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..100 {
        let n = 2 + next(3);
        let mut picked: Vec<usize> = vec![];
        let mut has_session = false;
        while picked.len() < n {
            let p = next(pool.len());
            let is_session = pool[p].0.starts_with("session");
            if picked.contains(&p) || (is_session && has_session) {
                continue;
            }
            // One intent event at most says where the money goes and what it is for.
            if pool[p].0.starts_with("intent")
                && picked.iter().any(|q| pool[*q].0.starts_with("intent"))
            {
                continue;
            }
            has_session |= is_session;
            picked.push(p);
        }
        let column = next(4) == 0;
        let names: Vec<&str> = picked.iter().map(|p| pool[*p].0.as_str()).collect();
        let events: Vec<Value> = picked
            .iter()
            .enumerate()
            .map(|(k, p)| {
                let mut e = pool[*p].1.clone();
                e["id"] = json!(format!("evt_{k}"));
                e
            })
            .collect();
        let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut proof: Option<String> = None;
        for arrival in permutations(n) {
            let tables = with_b();
            if column {
                add_row(
                    &tables,
                    &order("ord_b"),
                    json!({ "tenantId": "ten_b", "stripePaymentIntentId": "pi_1" }),
                );
            }
            for k in &arrival {
                one(&tables, &events[*k]);
            }
            let told = run(sweep_hourly(&tables, 0, 26 * HOUR))
                .iter()
                .filter(|(_, t)| t.starts_with("uncl"))
                .count()
                .min(1);
            let of = |id: &str| {
                let p = payment(&tables, &order(id));
                format!(
                    "{:?} {:?} {} {:?} {:?}",
                    p.status, p.payment_status, p.amount_refunded, p.review_reasons, p.user
                )
            };
            let state = format!(
                "a {} | b {} | 1 {} | {told}",
                of("ord_a"),
                of("ord_b"),
                of("ord_1")
            );
            found.entry(state).or_insert(arrival.clone());
            let d = differences(&tables);
            if let Some(d) = d.first() {
                proof.get_or_insert(format!("{arrival:?} {d}"));
            }
        }
        if found.len() > 1 {
            let k = format!("DIVERGE col={column} {names:?}");
            if seen.insert(k.clone(), 1).is_none() && n <= 4 {
                println!("{k}\n   {found:?}");
            }
        }
        if let Some(p) = proof {
            let k = format!("PROOF col={column} {names:?}");
            if seen.insert(k.clone(), 1).is_none() && n <= 4 {
                println!("{k}\n   {p}");
            }
        }
    }
    assert!(seen.is_empty(), "{:#?}", seen.keys());
}
