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

/// What a statement becomes by these events, whichever comes first; `row` is as the application wrote it.
fn statement_ends(row: &Value, events: &[Value]) -> (Value, DerivedPayment) {
    let mut found: Option<(Value, DerivedPayment)> = None;
    for arrival in orders_of_arrival(events.len()) {
        let tables = MemoryTables::default();
        let key = statement("st_1");
        let entity = memory::entity_of(&key, row.clone());
        tables.entities.lock().unwrap().insert(key.clone(), entity);
        for number in &arrival {
            let event = events[*number].clone();
            run(deliver(&tables, ProviderId::Stripe, &[event]));
        }
        let derived = payment(&tables, &key);
        let columns = entity_columns(&tables, &key);
        match &found {
            Some(found) => assert_eq!(*found, (columns, derived), "in the order {arrival:?}"),
            None => found = Some((columns, derived)),
        }
    }
    found.unwrap()
}

/// What billhook writes into the row of an entity.
fn entity_columns(tables: &MemoryTables, key: &EntityKey) -> Value {
    let update = entity(tables, key).apply_facts([], now());
    let mut columns = json!({});
    for (name, value) in update.write_columns() {
        columns[name] = value.map_or(Value::Null, crate::stored_order::json_of);
    }
    columns
}

fn of_statement() -> Value {
    json!({ "statement_id": "st_1" })
}

fn expired_session(names: Value) -> Value {
    let object = json!({ "id": "cs_9", "object": "checkout.session", "status": "expired",
        "payment_status": "unpaid", "metadata": names });
    stripe("evt_e", "checkout.session.expired", T + 50, object)
}

/// Paid by check: the application wrote it before Stripe said anything.
#[test]
fn a_statement_paid_by_check_stays_paid() {
    let row = json!({ "amount_due": 4200, "currency": "usd", "payment_status": "paid", "amount_paid": 4150,
        "paid_at": "in May" });
    // A session that nobody paid states nothing about the payment.
    let (columns, _) = statement_ends(&row, &[expired_session(of_statement())]);
    assert_eq!(columns["payment_status"], Value::Null);
    let declined = intent_failed("evt_1", T, "pi_1", of_statement(), "ch_1");
    let (columns, derived) = statement_ends(&row, &[declined, expired_session(of_statement())]);
    assert_eq!(columns["payment_status"], "paid");
    assert_eq!(derived.received, None);
    for column in ["amount_paid", "paid_at"] {
        assert!(columns.get(column).is_none(), "{column}");
    }
}

/// Declined, then paid in cash and set to `completed`; a later attempt is told, and never a status.
#[test]
fn an_order_paid_in_cash_after_a_decline_stays_completed() {
    let mut order = crate::stored_order::StoredOrder::new();
    let declined = |id: &str, at: i64| intent_failed(id, at, "pi_1", json!({}), id);
    let mut events = vec![declined("evt_1", T)];
    order.take(&events);
    assert_eq!(order.column("status"), "payment_failed");
    order.set("status", json!("completed"));
    order.take(&events);
    events.push(declined("evt_2", T + 100_000));
    let next = order.take(&events);
    assert_eq!(order.column("status"), "completed");
    assert_eq!(order.column("paymentStatus"), "paid");
    let reasons = next.payment().unwrap().review_reasons.iter();
    let words: Vec<&str> = reasons
        .map(|reason| reason.split(':').next().unwrap())
        .collect();
    assert_eq!(words, ["failed_after_paid", "paid_unproven"]);
    events.push(expired_session(json!({})));
    order.take(&events);
    assert_eq!(order.column("status"), "completed");
}

#[test]
fn a_completed_order_stays_completed_at_its_first_partial_refund() {
    let row = [("amountTotal", json!(4200)), ("status", json!("completed"))];
    let mut back = given_back("re_1", T, 1000);
    back["data"]["object"]["metadata"] = named("ord_1");
    let derived = ends_of(&row, &[back]);
    assert_eq!(derived.status.as_str(), "completed");
    assert_eq!(
        (derived.payment_status.as_str(), derived.amount_refunded),
        ("paid", 1000)
    );
}

fn paid_by(intent: &str, at: i64, names: Value, amount: i64) -> Value {
    intent_succeeded(&format!("evt_{intent}"), at, intent, names, amount)
}

#[test]
fn two_payments_of_the_half_pay_the_whole() {
    let first = paid_by("pi_1", T, named("ord_1"), 2100);
    let derived = ends(std::slice::from_ref(&first));
    check(
        &derived,
        "pending",
        "partially_paid",
        0,
        &["amount_mismatch:pi_1"],
    );
    assert_eq!(derived.received.unwrap().amount, 2100);
    let second = paid_by("pi_2", T + 9, named("ord_1"), 2100);
    let derived = ends(&[first.clone(), second]);
    check(&derived, "completed", "paid", 0, &[]);
    let received = derived.received.unwrap();
    assert_eq!(
        (received.amount, received.paid_at),
        (4200, Timestamp::from_unix_s(T + 9).ok())
    );
    // More than what is due is paid, and told.
    let too_much = paid_by("pi_2", T + 9, named("ord_1"), 2500);
    check(
        &ends(&[first, too_much]),
        "completed",
        "paid",
        0,
        &["overpaid:pi_2"],
    );
    let whole = |intent: &str, at| paid_by(intent, at, named("ord_1"), 4200);
    let twice = [whole("pi_1", T), whole("pi_2", T + 9)];
    check(&ends(&twice), "completed", "paid", 0, &["paid_twice:pi_2"]);
}

#[test]
fn an_instalment_of_a_statement_needs_no_review() {
    let row = json!({ "amount_due": 4200, "currency": "usd" });
    let first = paid_by("pi_1", T, of_statement(), 2100);
    let (columns, _) = statement_ends(&row, std::slice::from_ref(&first));
    assert_eq!(columns["payment_status"], "partially_paid");
    assert_eq!(columns["amount_paid"], 2100);
    assert_eq!(columns["paid_at"], Value::Null);
    assert_eq!(columns["requires_review"], false);
    let (columns, _) = statement_ends(&row, &[first, paid_by("pi_2", T + 9, of_statement(), 2100)]);
    assert_eq!(
        (&columns["payment_status"], &columns["amount_paid"]),
        (&json!("paid"), &json!(4200))
    );
    let mut foreign = paid_by("pi_1", T, of_statement(), 4200);
    foreign["data"]["object"]["currency"] = json!("eur");
    let (columns, _) = statement_ends(&row, &[foreign]);
    assert_eq!(columns["review_reasons"], json!(["amount_mismatch:pi_1"]));
}

/// A dispute, with its amount and due date.
fn disputed(id: &str, at: i64, intent: &str, status: &str, amount: i64) -> Value {
    let mut event = dispute(id, at, &format!("dp_{intent}"), intent, status);
    let object = &mut event["data"]["object"];
    object["amount"] = json!(amount);
    object["reason"] = json!("fraudulent");
    object["evidence_details"] = json!({ "due_by": T + 700_000 });
    event
}

#[test]
fn a_lost_dispute_of_one_payment_leaves_the_other_standing() {
    let whole = |intent: &str, at| paid_by(intent, at, named("ord_1"), 4200);
    let lost = disputed("evt_3", T + 20, "pi_1", "lost", 4200);
    let events = [whole("pi_1", T), whole("pi_2", T + 9), lost.clone()];
    check(
        &ends(&events),
        "completed",
        "paid",
        0,
        &["dispute_lost:dp_pi_1"],
    );
    let alone = [whole("pi_1", T), lost];
    check(
        &ends(&alone),
        "completed",
        "charged_back",
        0,
        &["dispute_lost:dp_pi_1"],
    );
}

#[test]
fn a_dispute_about_a_part_is_a_reason_of_its_own() {
    let paid = paid_by("pi_1", T, named("ord_1"), 4200);
    for (status, word) in [
        ("needs_response", "partial_dispute_open"),
        ("lost", "partial_dispute_lost"),
    ] {
        let part = disputed("evt_2", T + 9, "pi_1", status, 1000);
        let reason = format!("{word}:dp_pi_1");
        check(
            &ends(&[paid.clone(), part]),
            "completed",
            "paid",
            0,
            &[&reason],
        );
    }
    // What is left of it after a refund is the whole.
    let part = disputed("evt_2", T + 9, "pi_1", "needs_response", 1000);
    let events = [paid, part, given_back("re_1", T + 3, 3200)];
    check(
        &ends(&events),
        "completed",
        "disputed",
        3200,
        &["dispute_open:dp_pi_1"],
    );
}

#[test]
fn a_dispute_says_until_when_it_has_to_be_answered() {
    let paid = paid_by("pi_1", T, named("ord_1"), 4200);
    let open = disputed("evt_2", T + 9, "pi_1", "needs_response", 4200);
    let derived = ends(&[paid.clone(), open.clone()]);
    assert_eq!(
        derived.dispute_due_by,
        Timestamp::from_unix_s(T + 700_000).ok()
    );
    let opened = derived
        .timeline
        .iter()
        .find(|entry| entry.kind == "dispute_opened");
    let meta = &opened.unwrap().meta;
    let told = ["amount", "reason", "dueBy"].map(|member| meta[member].clone());
    let due = Timestamp::from_unix_s(T + 700_000).unwrap().to_string();
    assert_eq!(told, [json!(4200), json!("fraudulent"), json!(due)]);
    let answered = disputed("evt_3", T + 19, "pi_1", "under_review", 4200);
    assert_eq!(ends(&[paid, open, answered]).dispute_due_by, None);
}

/// Cleared after the first loss; an appeal and a second loss are other facts.
#[test]
fn an_appeal_and_a_second_loss_flag_again() {
    let mut order = crate::stored_order::StoredOrder::new();
    let at = |second: i64| Timestamp::from_unix_s(T + second).unwrap();
    let mut events = vec![paid_by("pi_1", T, json!({}), 4200)];
    let mut flagged = Vec::new();
    for (second, status) in [
        (10, "needs_response"),
        (20, "lost"),
        (30, "appeal_under_review"),
        (40, "lost"),
    ] {
        events.push(disputed(
            &format!("evt_{second}"),
            T + second,
            "pi_1",
            status,
            4200,
        ));
        order.take(&events);
        flagged.push(order.column("reviewReasons")[0].clone());
        order.set("requiresReview", json!(false));
        order.take(&events);
        assert_eq!(order.column("requiresReview"), false);
    }
    let expected = [
        "dispute_open:dp_pi_1".to_owned(),
        "dispute_lost:dp_pi_1".to_owned(),
        format!("dispute_open:dp_pi_1@{}", at(20)),
        format!("dispute_lost:dp_pi_1@{}", at(30)),
    ];
    assert_eq!(flagged, expected);
}

#[test]
fn an_amount_that_is_lowered_after_it_was_paid_is_no_unpaid_order() {
    for due in [3000, 5000] {
        let mut order = crate::stored_order::StoredOrder::new();
        let events = [paid_by("pi_1", T, json!({}), 4200)];
        order.take(&events);
        order.set("amountTotal", json!(due));
        let next = order.take(&events);
        assert_eq!(
            (order.column("status"), order.column("paymentStatus")),
            (json!("completed"), json!("paid"))
        );
        let reasons = next.payment().unwrap().review_reasons.iter();
        let words: Vec<&str> = reasons
            .map(|reason| reason.split(':').next().unwrap())
            .collect();
        assert_eq!(words, ["due_changed"], "{due}");
        // It ends with its cause.
        order.set("amountTotal", json!(4200));
        order.take(&events);
        assert_eq!(order.column("requiresReview"), false);
    }
}

fn checkout(subtotal: i64, discount: i64, tax: i64, shipping: i64, intent: Option<&str>) -> Value {
    let paid = if intent.is_some() {
        "paid"
    } else {
        "no_payment_required"
    };
    let mut event = session_completed("evt_s", T, "cs_1", intent, named("ord_1"), paid);
    let object = &mut event["data"]["object"];
    object["amount_subtotal"] = json!(subtotal);
    object["amount_total"] = json!(subtotal - discount + tax + shipping);
    object["total_details"] =
        json!({ "amount_discount": discount, "amount_tax": tax, "amount_shipping": shipping });
    event
}

#[test]
fn checkouts_own_discount_tax_and_shipping_fit() {
    for (discount, tax, shipping) in [(1000, 0, 0), (0, 405, 500), (500, 300, 0)] {
        let total = 4200 - discount + tax + shipping;
        let events = [
            checkout(4200, discount, tax, shipping, Some("pi_1")),
            paid_by("pi_1", T, named("ord_1"), total),
        ];
        let derived = ends(&events);
        check(&derived, "completed", "paid", 0, &[]);
        assert_eq!(derived.received.unwrap().amount, total);
        let paid = derived
            .timeline
            .iter()
            .find(|entry| entry.kind == "payment_succeeded");
        assert_eq!(paid.unwrap().meta["subtotal"], 4200);
    }
    // A code of 100 %.
    check(
        &ends(&[checkout(4200, 4200, 0, 0, None)]),
        "completed",
        "paid",
        0,
        &[],
    );
    // A tip, or items that are not what is due.
    let mut tip = checkout(4200, 0, 0, 0, Some("pi_1"));
    tip["data"]["object"]["amount_total"] = json!(4700);
    check(&ends(&[tip]), "completed", "paid", 0, &["overpaid:pi_1"]);
    let less = checkout(4000, 0, 0, 0, Some("pi_1"));
    check(
        &ends(&[less]),
        "pending",
        "partially_paid",
        0,
        &["amount_mismatch:pi_1"],
    );
}

/// The parameter `AcceptCheckoutAdjustments=false`.
#[test]
fn checkouts_adjustments_need_review_where_they_are_refused() {
    let mut order = crate::stored_order::StoredOrder::new();
    order.rules.refuses_adjustments = true;
    order.take(&[checkout(4200, 1000, 0, 0, Some("pi_1"))]);
    assert_eq!(order.column("paymentStatus"), "partially_paid");
    assert_eq!(
        order.column("reviewReasons"),
        json!(["amount_mismatch:pi_1"])
    );
}

#[test]
fn a_sessions_total_is_no_second_amount_of_its_payment() {
    // Of 42.00 only 40.00 were captured.
    let events = [
        checkout(4200, 0, 0, 0, Some("pi_1")),
        paid_by("pi_1", T, named("ord_1"), 4000),
    ];
    let derived = ends(&events);
    check(
        &derived,
        "pending",
        "partially_paid",
        0,
        &["amount_mismatch:pi_1"],
    );
    assert_eq!(derived.received.unwrap().amount, 4000);
}

#[test]
fn nothing_is_to_be_done_about_a_payment_that_went_back() {
    let whole = |intent: &str, at| paid_by(intent, at, named("ord_1"), 4200);
    let back =
        |intent: &str, charge: &str| charge_refunded("evt_b", T + 30, charge, Some(intent), 4200);
    let twice = [whole("pi_1", T), whole("pi_2", T + 9), back("pi_2", "ch_2")];
    check(&ends(&twice), "completed", "paid", 4200, &[]);
    let first = [whole("pi_1", T), whole("pi_2", T + 9), back("pi_1", "ch_1")];
    check(&ends(&first), "completed", "paid", 4200, &[]);
    let cancelled = [("amountTotal", json!(4200)), ("status", json!("cancelled"))];
    let derived = ends_of(&cancelled, &[whole("pi_1", T)]);
    check(
        &derived,
        "completed",
        "paid",
        0,
        &["paid_after_cancel:pi_1"],
    );
    let derived = ends_of(&cancelled, &[whole("pi_1", T), back("pi_1", "ch_1")]);
    check(&derived, "refunded", "refunded", 4200, &[]);
}

#[test]
fn a_payment_that_may_still_have_money_is_not_all_back() {
    let whole = paid_by("pi_1", T, named("ord_1"), 4200);
    let back = charge_refunded("evt_b", T + 30, "ch_1", Some("pi_1"), 4200);
    let other = intent_is("evt_2", T + 9, "pi_2", named("ord_1"), "processing");
    let derived = ends(&[whole.clone(), back.clone(), other]);
    check(&derived, "pending", "processing", 4200, &[]);
    let mut open = disputed("evt_2", T + 9, "pi_2", "needs_response", 4200);
    open["data"]["object"]["metadata"] = named("ord_1");
    let derived = ends(&[whole, back, open]);
    check(
        &derived,
        "pending",
        "disputed",
        4200,
        &["dispute_open:dp_pi_2"],
    );
}

#[test]
fn a_failed_refund_that_was_made_good_needs_no_review() {
    let paid = paid_by("pi_1", T, named("ord_1"), 4200);
    let failed = refund("evt_2", T + 20, "re_1", ("pi_1", "ch_1"), 1000, "failed");
    let missing = [
        paid.clone(),
        given_back("re_1", T + 10, 1000),
        failed.clone(),
    ];
    check(
        &ends(&missing),
        "completed",
        "paid",
        0,
        &["refund_failed:re_1"],
    );
    let good = [paid, failed, given_back("re_2", T + 30, 1000)];
    check(&ends(&good), "completed", "paid", 1000, &[]);
}

#[test]
fn refunded_by_hand_can_be_taken_back_and_a_later_payment_is_told() {
    let mut order = crate::stored_order::StoredOrder::new();
    let mut events = vec![paid_by("pi_1", T, json!({}), 4200)];
    order.take(&events);
    order.set("status", json!("refunded"));
    order.take(&events);
    assert_eq!(order.column("paymentStatus"), "refunded");
    order.set("status", json!("completed"));
    order.take(&events);
    assert_eq!(order.column("paymentStatus"), "paid");
    assert_eq!(order.column("requiresReview"), false);
    order.set("status", json!("refunded"));
    events.push(paid_by("pi_2", T + 100_000, json!({}), 4200));
    order.take(&events);
    assert_eq!(order.column("status"), "refunded");
    let reasons = order.column("reviewReasons");
    assert_eq!(
        reasons,
        json!(["paid_after_refund:pi_2", "paid_twice:pi_2"])
    );
}

#[test]
fn the_user_is_the_one_who_paid() {
    let of = |user: &str| json!({ "order_id": "ord_1", "user_id": user });
    let victim = intent_succeeded("evt_1", T, "pi_1", of("victim"), 4200);
    let mut session = expired_session(named("ord_1"));
    session["data"]["object"]["client_reference_id"] = json!("attacker");
    let derived = ends(&[victim.clone(), session.clone()]);
    assert_eq!(derived.user.as_ref().unwrap().as_str(), "victim");
    check(&derived, "completed", "paid", 0, &["user_conflict:cs_9"]);
    // A failed attempt of somebody else, too.
    let attempt = intent_failed("evt_2", T + 5, "pi_0", of("another"), "ch_0");
    let derived = ends(&[victim, attempt]);
    assert_eq!(derived.user.as_ref().unwrap().as_str(), "victim");
    // While nothing is paid, any hint is one.
    assert_eq!(ends(&[session]).user.unwrap().as_str(), "attacker");
}

/// They all have one id, and the second is another event.
#[test]
fn a_test_event_of_the_dashboard_hides_no_other() {
    let tables = tables();
    let mut back = charge_refunded("evt_00000000000000", T, "ch_00000000000000", None, 4200);
    back["data"]["object"]["metadata"] = json!([]);
    let paid = intent_succeeded("evt_00000000000000", T, "pi_1", named("ord_1"), 4200);
    for event in [&back, &paid, &back] {
        run(deliver(
            &tables,
            ProviderId::Stripe,
            std::slice::from_ref(event),
        ));
    }
    assert_eq!(
        payment(&tables, &order("ord_1")).status.as_str(),
        "completed"
    );
    let events = tables.events.lock().unwrap();
    let ids: Vec<&str> = events.keys().map(EventId::as_str).collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    assert!(
        ids.iter().all(|id| id.starts_with("evt_00000000000000_")),
        "{ids:?}"
    );
}

#[test]
fn a_charge_that_does_not_say_whether_it_was_captured_leaves_its_intent_alone() {
    let mut charge = charge_is("evt_1", T, 4200, 0);
    charge["type"] = json!("charge.succeeded");
    charge["data"]["object"]["captured"] = Value::Null;
    check(&ends(&[charge, paid(4200)]), "completed", "paid", 0, &[]);
}

/// A session in mode `subscription` and the payments of the invoice that it made are one payment.
#[test]
fn a_subscriptions_discount_and_user_are_those_of_its_session() {
    let session = |discount: i64| {
        let mut event = checkout(4200, discount, 0, 0, None);
        let object = &mut event["data"]["object"];
        object["payment_status"] = json!("paid");
        object["client_reference_id"] = json!("user_7");
        object["invoice"] = json!("in_1");
        event
    };
    let of_invoice = |intent: &str, amount: i64| {
        let mut event = paid_by(intent, T + 3, json!({}), amount);
        event["data"]["object"]["invoice"] = json!("in_1");
        event
    };
    let derived = ends(&[session(1000), of_invoice("pi_1", 3200)]);
    check(&derived, "completed", "paid", 0, &[]);
    assert_eq!(derived.user.unwrap().as_str(), "user_7");
    assert_eq!(derived.received.unwrap().amount, 3200);
    // Paid in parts.
    let parts = [
        session(0),
        of_invoice("pi_1", 2200),
        of_invoice("pi_2", 2000),
    ];
    let derived = ends(&parts);
    check(&derived, "completed", "paid", 0, &[]);
    assert_eq!(derived.received.unwrap().amount, 4200);
}

#[test]
fn the_whole_after_a_half_and_then_back_leaves_too_little() {
    let events = [
        paid_by("pi_1", T, named("ord_1"), 2100),
        paid_by("pi_2", T + 9, named("ord_1"), 4200),
        charge_refunded("evt_b", T + 30, "ch_2", Some("pi_2"), 4200),
    ];
    check(
        &ends(&events),
        "completed",
        "paid",
        4200,
        &["amount_mismatch:pi_1"],
    );
}

#[test]
fn a_payment_in_another_currency_may_go_back_too() {
    let mut foreign = paid_by("pi_1", T, named("ord_1"), 3900);
    foreign["data"]["object"]["currency"] = json!("eur");
    let mut back = charge_refunded("evt_b", T + 30, "ch_1", Some("pi_1"), 3900);
    for (member, value) in [
        ("currency", json!("eur")),
        ("amount", json!(3900)),
        ("amount_captured", json!(3900)),
    ] {
        back["data"]["object"][member] = value;
    }
    let alone = [foreign.clone(), back.clone()];
    check(&ends(&alone), "refunded", "refunded", 0, &[]);
    let then = [foreign, back, paid_by("pi_2", T + 40, named("ord_1"), 4200)];
    check(&ends(&then), "completed", "paid", 0, &[]);
}

#[test]
fn what_was_free_stands_when_a_payment_beside_it_went_back() {
    let events = [
        checkout(4200, 4200, 0, 0, None),
        paid_by("pi_1", T + 9, named("ord_1"), 4200),
        charge_refunded("evt_b", T + 30, "ch_1", Some("pi_1"), 4200),
    ];
    check(&ends(&events), "completed", "paid", 4200, &[]);
}

#[test]
fn a_released_authorisation_keeps_nothing_from_being_refunded() {
    let mut released = charge_is("evt_2", T + 1, 0, 4200);
    let object = &mut released["data"]["object"];
    (object["id"], object["payment_intent"]) = (json!("ch_0"), json!("pi_0"));
    let release = refund("evt_r", T + 1, "re_0", ("pi_0", "ch_0"), 4200, "succeeded");
    let events = [
        released,
        release,
        paid(4200),
        charge_refunded("evt_b", T + 30, "ch_1", Some("pi_1"), 4200),
    ];
    let events = events.map(|event| in_form_of(BEFORE_BASIL, event));
    check(&ends(&events), "refunded", "refunded", 4200, &[]);
}

#[test]
fn a_row_without_an_amount_due_shows_a_dispute() {
    let mut open = disputed("evt_2", T + 9, "pi_1", "needs_response", 4200);
    open["data"]["object"]["metadata"] = named("ord_1");
    let derived = ends_of(&[], &[open]);
    check(
        &derived,
        "pending",
        "disputed",
        0,
        &["dispute_open:dp_pi_1"],
    );
}

#[test]
fn a_half_by_card_and_the_rest_in_cash_is_not_too_much() {
    let mut order = crate::stored_order::StoredOrder::new();
    let half = paid_by("pi_1", T, json!({}), 2100);
    order.take(std::slice::from_ref(&half));
    let entry =
        json!([{ "type": "payment_recorded", "at": "2026-06-10T10:00:00Z", "actor": "shop" }]);
    order.set("timeline", entry);
    order.take(std::slice::from_ref(&half));
    assert_eq!(
        (
            order.column("paymentStatus"),
            order.column("requiresReview")
        ),
        (json!("paid"), json!(false))
    );
    let more = paid_by("pi_2", T + 900_000, json!({}), 2100);
    order.take(&[half, more]);
    assert_eq!(order.column("reviewReasons"), json!(["overpaid:pi_2"]));
}

/// An edit that is found together with the event of a payment was made before it.
#[test]
fn a_payment_that_comes_with_the_word_refunded_is_told() {
    let mut order = crate::stored_order::StoredOrder::new();
    order.now = 100_000;
    let tried = vec![intent_failed("evt_0", T, "pi_1", json!({}), "ch_0")];
    order.take(&tried);
    order.set("status", json!("refunded"));
    order.take(&[tried, vec![paid_by("pi_1", T + 50_000, json!({}), 4200)]].concat());
    assert_eq!(order.column("status"), "refunded");
    assert_eq!(
        order.column("reviewReasons"),
        json!(["paid_after_refund:pi_1"])
    );
}

#[test]
fn each_change_of_an_amount_that_was_paid_is_told() {
    let mut order = crate::stored_order::StoredOrder::new();
    let events = [paid_by("pi_1", T, json!({}), 4200)];
    order.take(&events);
    for due in [5000, 9000, 3000] {
        order.set("amountTotal", json!(due));
        order.take(&events);
        assert_eq!(
            order.column("reviewReasons"),
            json!([format!("due_changed:{due}_usd")])
        );
        order.set("requiresReview", json!(false));
        order.take(&events);
        assert_eq!(
            (order.column("status"), order.column("requiresReview")),
            (json!("completed"), json!(false))
        );
    }
    // It covers no payment that was made after the change.
    order.set("amountTotal", json!(5000));
    let back = charge_refunded("evt_b", T + 30, "ch_1", Some("pi_1"), 4200);
    let again = paid_by("pi_2", T + 900_000, json!({}), 4200);
    order.take(&[events.to_vec(), vec![back, again]].concat());
    assert_eq!(order.column("paymentStatus"), "partially_paid");
    assert_eq!(
        order.column("reviewReasons"),
        json!(["amount_mismatch:pi_2"])
    );
}

#[test]
fn a_session_that_was_abandoned_before_the_payment_is_no_other_user() {
    let of = |user: &str| json!({ "order_id": "ord_1", "user_id": user });
    let attempt = intent_failed("evt_2", T - 5, "pi_0", of("cart_9"), "ch_0");
    let paid = intent_succeeded("evt_1", T, "pi_1", of("user_1"), 4200);
    let derived = ends(&[attempt, paid]);
    check(&derived, "completed", "paid", 0, &[]);
    assert_eq!(derived.user.unwrap().as_str(), "user_1");
}

#[test]
fn a_refund_of_everything_leaves_the_time_at_which_a_statement_was_paid() {
    let row = json!({ "amount_due": 4200, "currency": "usd" });
    let paid = paid_by("pi_1", T, of_statement(), 4200);
    let back = charge_refunded("evt_b", T + 30, "ch_1", Some("pi_1"), 4200);
    let (columns, _) = statement_ends(&row, &[paid, back]);
    let at = Timestamp::from_unix_s(T).unwrap();
    assert_eq!(columns["payment_status"], "refunded");
    assert_eq!(
        (&columns["amount_paid"], &columns["paid_at"]),
        (&json!(4200), &json!(at))
    );
}

/// A declined card, and then a voucher in the same session.
#[test]
fn a_voucher_after_a_declined_card_is_no_failed_order() {
    let named = || json!({ "order_id": "ord_1" });
    let declined = intent_failed("evt_1", T, "pi_1", named(), "ch_1");
    let voucher = session_completed("evt_2", T + 60, "cs_1", Some("pi_1"), named(), "unpaid");
    let derived = ends(&[declined.clone(), voucher.clone()]);
    check(&derived, "pending", "processing", 0, &[]);
    let told = |event_type: &str, paid: &str| {
        let mut event = session_completed("evt_3", T + 86_400, "cs_1", Some("pi_1"), named(), paid);
        event["type"] = json!(event_type);
        event
    };
    let paid = told("checkout.session.async_payment_succeeded", "paid");
    let derived = ends(&[declined.clone(), voucher.clone(), paid]);
    check(&derived, "completed", "paid", 0, &[]);
    let ends_it = [
        told("checkout.session.async_payment_failed", "unpaid"),
        intent_failed("evt_3", T + 86_400, "pi_1", named(), "ch_2"),
        intent_is("evt_3", T + 86_400, "pi_1", named(), "canceled"),
    ];
    for end in ends_it {
        let derived = ends(&[declined.clone(), voucher.clone(), end]);
        check(&derived, "payment_failed", "failed", 0, &[]);
    }
    // Without a PaymentIntent it is the session's own.
    let alone = session_completed("evt_2", T + 60, "cs_1", None, named(), "unpaid");
    check(&ends(&[alone]), "pending", "processing", 0, &[]);
}

/// A subscription's session says only that its invoice is being paid; the invoice's payment says how it went.
#[test]
fn an_unpaid_session_of_a_subscription_waits_for_its_invoice() {
    let mut session = session_completed(
        "evt_1",
        T,
        "cs_1",
        None,
        json!({ "order_id": "ord_1" }),
        "unpaid",
    );
    session["data"]["object"]["invoice"] = json!("in_1");
    check(&ends(&[session.clone()]), "pending", "processing", 0, &[]);
    let of_invoice = |mut event: Value| {
        event["data"]["object"]["invoice"] = json!("in_1");
        event
    };
    let failed = |at| of_invoice(intent_failed("evt_2", at, "pi_1", json!({}), "ch_1"));
    let derived = ends(&[session.clone(), failed(T + 60)]);
    check(&derived, "payment_failed", "failed", 0, &[]);
    // An attempt before the customer chose the debit.
    let derived = ends(&[session.clone(), failed(T - 60)]);
    check(&derived, "pending", "processing", 0, &[]);
    let paid = of_invoice(intent_succeeded("evt_2", T + 60, "pi_1", json!({}), 4200));
    check(&ends(&[session, paid]), "completed", "paid", 0, &[]);
}
