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
