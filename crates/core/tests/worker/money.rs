//! Stories of money, each told by its events in every order, twice.

use super::laws::run;
use super::*;

/// What an order of 42.00 usd becomes by these events, whichever comes first.
fn ends(events: &[Value]) -> DerivedPayment {
    ends_of(&[("amountTotal", json!(4200))], events)
}

fn ends_of(columns: &[(&str, Value)], events: &[Value]) -> DerivedPayment {
    let mut found: Option<DerivedPayment> = None;
    for arrival in orders_of_arrival(events.len()) {
        let tables = MemoryTables::default();
        let mut row = json!({ "currency": "usd" });
        for (column, value) in columns {
            row[*column] = value.clone();
        }
        let key = order("ord_1");
        let entity = memory::entity_of(&key, row);
        tables.entities.lock().unwrap().insert(key.clone(), entity);
        for number in arrival.iter().chain(&arrival) {
            run(deliver(
                &tables,
                ProviderId::Stripe,
                &[events[*number].clone()],
            ));
        }
        let derived = payment(&tables, &key);
        match &found {
            Some(found) => assert_eq!(*found, derived, "in the order {arrival:?}"),
            None => found = Some(derived),
        }
    }
    found.unwrap()
}

/// All permutations of the first numbers.
fn orders_of_arrival(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else {
        return vec![Vec::new()];
    };
    let shorter = orders_of_arrival(last).into_iter();
    shorter
        .flat_map(|order| {
            (0..count).map(move |place| {
                let mut longer = order.clone();
                longer.insert(place, last);
                longer
            })
        })
        .collect()
}

#[track_caller]
fn check(derived: &DerivedPayment, status: &str, payment: &str, refunded: i64, reasons: &[&str]) {
    let found = (
        derived.status.as_str(),
        derived.payment_status.as_str(),
        derived.amount_refunded,
        derived
            .review_reasons
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    );
    assert_eq!(found, (status, payment, refunded, reasons.to_vec()));
}

const BASIL: &str = "2026-10-28.endive";
const BEFORE_BASIL: &str = "2024-06-20";

/// In the form of an API version.
fn in_form_of(version: &str, mut event: Value) -> Value {
    event["api_version"] = json!(version);
    event
}

/// An authorisation of 42.00, of which something was captured and something is in `amount_refunded`.
fn charge_is(id: &str, at: i64, captured: i64, refunded: i64) -> Value {
    let mut event = charge_refunded(id, at, "ch_1", Some("pi_1"), refunded);
    let charge = &mut event["data"]["object"];
    charge["captured"] = json!(captured > 0);
    charge["amount_captured"] = json!(captured);
    charge["refunded"] = json!(refunded == 4200);
    charge["metadata"] = named("ord_1");
    event
}

fn paid(captured: i64) -> Value {
    intent_succeeded("evt_paid", T, "pi_1", named("ord_1"), captured)
}

fn given_back(id: &str, at: i64, amount: i64) -> Value {
    refund(
        &format!("evt_{id}"),
        at,
        id,
        ("pi_1", "ch_1"),
        amount,
        "succeeded",
    )
}

/// Of no order of 42.00 was anything given back that was only authorised.
#[test]
fn a_released_authorisation_is_no_refund() {
    let canceled = intent_is("evt_1", T + 1, "pi_1", named("ord_1"), "canceled");
    // Before basil the captured amount is null.
    let mut released = charge_is("evt_2", T + 1, 0, 4200);
    for captured in [json!(0), json!(null)] {
        released["data"]["object"]["amount_captured"] = captured;
        let refund = given_back("re_1", T + 1, 4200);
        for version in [BASIL, BEFORE_BASIL] {
            let events =
                [&canceled, &released, &refund].map(|event| in_form_of(version, event.clone()));
            check(&ends(&events), "pending", "unpaid", 0, &[]);
        }
    }
}

#[test]
fn the_rest_of_a_partial_capture_is_no_refund() {
    let due = [("amountTotal", json!(1700))];
    let old = |events: &[Value]| {
        let events: Vec<Value> = events
            .iter()
            .map(|event| in_form_of(BEFORE_BASIL, event.clone()))
            .collect();
        ends_of(&due, &events)
    };
    let rest = given_back("re_rest", T, 2500);
    check(
        &old(&[paid(1700), charge_is("evt_1", T, 1700, 2500)]),
        "completed",
        "paid",
        0,
        &[],
    );
    let part = [
        paid(1700),
        charge_is("evt_1", T, 1700, 2500),
        rest.clone(),
        given_back("re_1", T + 2, 500),
    ];
    check(&old(&part), "completed", "paid", 500, &[]);
    let figure = charge_is("evt_2", T + 2, 1700, 3000);
    check(
        &old(&[paid(1700), figure.clone()]),
        "completed",
        "paid",
        500,
        &[],
    );
    check(
        &old(&[
            paid(1700),
            figure,
            rest.clone(),
            given_back("re_1", T + 2, 500),
        ]),
        "completed",
        "paid",
        500,
        &[],
    );
    let all = [paid(1700), charge_is("evt_3", T + 3, 1700, 4200), rest];
    check(&old(&all), "refunded", "refunded", 1700, &[]);
}

#[test]
fn since_basil_a_refund_may_be_as_great_as_what_was_released() {
    let due = [("amountTotal", json!(1700))];
    let events = [
        paid(1700),
        charge_is("evt_1", T, 1700, 500),
        given_back("re_1", T + 1, 500),
    ];
    let events = events.map(|event| in_form_of(BASIL, event));
    check(&ends_of(&due, &events), "completed", "paid", 500, &[]);
    let due = [("amountTotal", json!(2100))];
    let events = [
        paid(2100),
        charge_is("evt_1", T, 2100, 2100),
        given_back("re_1", T + 1, 2100),
    ];
    let events = events.map(|event| in_form_of(BASIL, event));
    check(&ends_of(&due, &events), "refunded", "refunded", 2100, &[]);
}

/// Of the old Charges API: the payment is the charge itself, and says so with its metadata.
fn own_charge(id: &str, event_type: &str, at: i64, captured: i64) -> Value {
    let mut event = charge_refunded(id, at, "ch_1", None, 0);
    event["type"] = json!(event_type);
    let charge = &mut event["data"]["object"];
    charge["captured"] = json!(captured > 0);
    charge["amount_captured"] = json!(captured);
    charge["metadata"] = named("ord_1");
    charge["payment_method_details"] = json!({ "card": { "capture_before": T + 600_000 } });
    event
}

#[test]
fn a_charge_without_a_payment_intent_pays() {
    let paid = own_charge("evt_1", "charge.succeeded", T, 4200);
    check(
        &ends(std::slice::from_ref(&paid)),
        "completed",
        "paid",
        0,
        &[],
    );
    let back = charge_refunded("evt_2", T + 5, "ch_1", None, 4200);
    check(&ends(&[paid, back]), "refunded", "refunded", 4200, &[]);
    let mut failed = own_charge("evt_3", "charge.failed", T, 0);
    failed["data"]["object"]["failure_code"] = json!("card_declined");
    check(&ends(&[failed]), "payment_failed", "failed", 0, &[]);
}

#[test]
fn a_charge_that_is_only_authorised_is_not_paid_until_it_is_captured() {
    let authorised = own_charge("evt_1", "charge.succeeded", T, 0);
    let derived = ends(std::slice::from_ref(&authorised));
    check(&derived, "pending", "authorized", 0, &[]);
    assert_eq!(
        derived.authorized_until,
        Timestamp::from_unix_s(T + 600_000).ok()
    );
    let captured = own_charge("evt_2", "charge.captured", T + 9, 4200);
    let derived = ends(&[authorised.clone(), captured]);
    check(&derived, "completed", "paid", 0, &[]);
    assert_eq!(derived.authorized_until, None);
    let expired = own_charge("evt_3", "charge.expired", T + 9, 0);
    check(&ends(&[authorised, expired]), "pending", "unpaid", 0, &[]);
}

#[test]
fn an_authorised_payment_intent_is_neither_paid_nor_failed() {
    let mut authorised = intent_is("evt_1", T + 1, "pi_1", named("ord_1"), "requires_capture");
    authorised["type"] = json!("payment_intent.amount_capturable_updated");
    let declined = intent_failed("evt_2", T, "pi_1", named("ord_1"), "ch_0");
    let mut charge = charge_is("evt_3", T + 1, 0, 0);
    charge["type"] = json!("charge.succeeded");
    charge["data"]["object"]["payment_method_details"] =
        json!({ "card": { "capture_before": T + 600_000 } });
    let derived = ends(&[authorised.clone(), declined.clone(), charge.clone()]);
    check(&derived, "pending", "authorized", 0, &[]);
    assert_eq!(
        derived.authorized_until,
        Timestamp::from_unix_s(T + 600_000).ok()
    );
    let canceled = intent_is("evt_4", T + 2, "pi_1", named("ord_1"), "canceled");
    check(
        &ends(&[authorised.clone(), charge.clone(), canceled]),
        "pending",
        "unpaid",
        0,
        &[],
    );
    let mut captured = charge_is("evt_5", T + 3, 4200, 0);
    captured["type"] = json!("charge.captured");
    check(
        &ends(&[authorised, charge, captured, paid(4200)]),
        "completed",
        "paid",
        0,
        &[],
    );
}

/// A card that is tried a thousand times leaves no row for each try.
#[test]
fn the_charge_of_a_failed_attempt_is_no_name_of_its_payment() {
    let tables = tables();
    let mut failed = charge_is("evt_1", T, 0, 0);
    failed["type"] = json!("charge.failed");
    failed["data"]["object"]["status"] = json!("failed");
    run(deliver(&tables, ProviderId::Stripe, &[failed]));
    let payments = tables.payments.lock().unwrap();
    let keys: Vec<String> = payments.keys().map(ToString::to_string).collect();
    assert_eq!(keys, ["payment#platform#pi_1"]);
}

#[test]
fn a_failed_3d_secure_check_after_a_decline_keeps_both_codes() {
    let declined = intent_failed("evt_1", T, "pi_1", named("ord_1"), "ch_0");
    let mut unauthenticated = intent_failed("evt_2", T + 60, "pi_1", named("ord_1"), "ch_0");
    unauthenticated["data"]["object"]["last_payment_error"] =
        json!({ "code": "payment_intent_authentication_failure" });
    unauthenticated["data"]["object"]["latest_charge"] = json!("ch_0");
    let derived = ends(&[declined, unauthenticated]);
    check(&derived, "payment_failed", "failed", 0, &[]);
    let entries = derived.timeline.iter();
    let codes: BTreeSet<&str> = entries
        .filter_map(|entry| entry.meta["code"].as_str())
        .collect();
    let expected = ["card_declined", "payment_intent_authentication_failure"];
    assert_eq!(codes, BTreeSet::from(expected));
}
