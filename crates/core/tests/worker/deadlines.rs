//! Deadlines of payments: the sweep has the worker recheck each payment in time, and the worker reports what is near. A
//! dispute is reported when it opens, too.

use billhook_core::entity::payment::deadlines::PaymentDeadline;
use billhook_core::entity::payment::opened_disputes::OpenedDispute;
use billhook_core::entity::payment::state::open_index_keys;
use billhook_core::provider::interpret::InterpretRules;
use billhook_core::tasks::ports::FindOpenStates as _;
use billhook_core::worker::ports::NoticeSubject;
use proptest::prelude::*;

use super::laws::same_histories;
use super::*;

const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;
const PAYMENT: &str = "payment#platform#pi_1";

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_s(T + second).unwrap()
}

/// What was reported, as `kind object due`, with the second in which the worker did.
pub(super) type Reported = Vec<(i64, String)>;

fn reported(second: i64, text: &str, due: i64) -> (i64, String) {
    (second, format!("{text} {}", at(due)))
}

/// Processes messages in this second.
pub(super) async fn work_at(
    tables: &MemoryTables,
    second: i64,
    messages: &[ReceivedMessage],
) -> Reported {
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: tables,
        clock: FixedClock::at(at(second)),
    };
    let deadline = at(second + 10);
    let done = worker
        .process_batch(messages, deadline, std::future::pending())
        .await;
    let near = done.notices.into_iter();
    near.map(|notice| {
        let text = match notice.subject {
            NoticeSubject::Opened(OpenedDispute { kind, object, due }) => {
                let due = due.map_or_else(String::new, |due| due.to_string());
                format!("{} {object} opened {due}", kind.as_str())
            }
            NoticeSubject::NearDeadline(PaymentDeadline { due, object }) => {
                format!("{} {} {due}", object.kind(), object.id())
            }
            NoticeSubject::Unclaimed { since } => format!("unclaimed since {since}"),
        };
        (second, text)
    })
    .collect()
}

pub(super) async fn deliver_at(tables: &MemoryTables, second: i64, event: &Value) -> Reported {
    let message = keep(tables, ProviderId::Stripe, event).await;
    let reported = work_at(tables, second, &[message]).await;
    let id = event["id"].as_str().unwrap();
    assert_eq!(outcome(tables, id), processed(), "{id}");
    reported
}

fn recheck(payment: &PaymentKey) -> ReceivedMessage {
    ReceivedMessage {
        message_id: "m".to_owned(),
        body: json!({ "source": "recheck", "payment": payment }).to_string(),
        receive_count: 1,
        is_last_receive: false,
    }
}

/// What a run of the sweep sends to the worker.
pub(super) async fn sweep_at(tables: &MemoryTables, second: i64) -> Reported {
    let mut messages = Vec::new();
    for index_key in open_index_keys() {
        let due = tables.open_payments(&index_key, at(second), 10).await;
        messages.extend(due.unwrap().iter().map(recheck));
    }
    work_at(tables, second, &messages).await
}

/// Runs the sweep every hour, the last time in second `until`.
pub(super) async fn sweep_hourly(tables: &MemoryTables, from: i64, until: i64) -> Reported {
    let mut all = Vec::new();
    for hour in 0..=(until - from) / HOUR {
        all.extend(sweep_at(tables, from + hour * HOUR).await);
    }
    all
}

/// `charge.succeeded` of an authorised charge, which can be captured until `T + due`.
fn charge_authorized(id: &str, due: i64) -> Value {
    let object = json!({
        "id": "ch_1", "object": "charge", "payment_intent": "pi_1", "amount": 4200, "amount_captured": 0,
        "amount_refunded": 0, "captured": false, "currency": "usd", "metadata": {},
        "payment_method_details": { "card": { "capture_before": T + due } },
    });
    stripe(id, "charge.succeeded", T, object)
}

/// `pi_1` of `ord_1`, authorised until `T + due`.
fn authorization(due: i64) -> [Value; 2] {
    let object = json!({
        "id": "pi_1", "object": "payment_intent", "status": "requires_capture", "amount": 4200,
        "amount_received": 0, "currency": "usd", "metadata": named("ord_1"),
    });
    let event_type = "payment_intent.amount_capturable_updated";
    [
        stripe("evt_authorized", event_type, T, object),
        charge_authorized("evt_charge", due),
    ]
}

/// A dispute about `pi_1`; `due` says until when it has to be answered.
fn disputed(id: &str, created: i64, status: &str, due: Option<i64>) -> Value {
    let mut event = dispute(id, T + created, "dp_1", "pi_1", status);
    let due = due.map(|due| T + due);
    event["data"]["object"]["evidence_details"] = json!({ "due_by": due });
    event
}

fn paid(id: &str, created: i64, metadata: Value) -> Value {
    intent_succeeded(id, T + created, "pi_1", metadata, 4200)
}

/// The word in the index's key, and when the payment is rechecked, in seconds after `T`.
fn open(tables: &MemoryTables) -> Option<(String, i64)> {
    let open = payment_state(tables, PAYMENT).open?;
    let (word, _) = open.index_key.split_once('#').unwrap();
    Some((word.to_owned(), open.due.unix_s() - T))
}

#[tokio::test]
async fn an_authorisation_is_reported_once_a_day_before_it_expires() {
    let tables = tables();
    for event in authorization(2 * DAY) {
        assert_eq!(deliver_at(&tables, 0, &event).await, []);
    }
    assert_eq!(open(&tables), Some(("deadline".to_owned(), DAY)));
    assert_eq!(payment_state(&tables, PAYMENT).open_since, None);
    let all = sweep_hourly(&tables, 0, 3 * DAY).await;
    assert_eq!(all, [reported(DAY, "authorization ch_1", 2 * DAY)]);
    assert_eq!(open(&tables), None);
    // A copy that is already right is not written again.
    let copied = payment_state(&tables, PAYMENT).facts_version;
    assert!(copied < payment_state(&tables, PAYMENT).version);
}

#[tokio::test]
async fn an_authorisation_that_is_captured_canceled_or_failed_is_not_reported() {
    let captured = paid("evt_end", HOUR, json!({}));
    let canceled = intent_is("evt_end", T + HOUR, "pi_1", json!({}), "canceled");
    let failed = intent_failed("evt_end", T + HOUR, "pi_1", json!({}), "ch_1");
    for end in [captured, canceled, failed] {
        let tables = tables();
        for event in authorization(2 * DAY) {
            deliver_at(&tables, 0, &event).await;
        }
        assert_eq!(deliver_at(&tables, HOUR, &end).await, []);
        assert_eq!(open(&tables), None, "{end}");
        assert_eq!(sweep_hourly(&tables, HOUR, 3 * DAY).await, [], "{end}");
    }
}

#[tokio::test]
async fn a_dispute_is_reported_when_it_opens_and_48_hours_before_it_has_to_be_answered() {
    for (status, kind) in [
        ("needs_response", "dispute"),
        ("warning_needs_response", "inquiry"),
    ] {
        let tables = tables();
        deliver_at(&tables, 0, &paid("evt_paid", 0, named("ord_1"))).await;
        assert_eq!(open(&tables), None);
        let event = disputed("evt_opened", 1, status, Some(10 * DAY));
        let opened = reported(1, &format!("{kind} dp_1 opened"), 10 * DAY);
        assert_eq!(deliver_at(&tables, 1, &event).await, [opened]);
        // Another event of it opens nothing.
        let again = disputed("evt_again", 2, status, Some(10 * DAY));
        assert_eq!(deliver_at(&tables, 2, &again).await, []);
        assert_eq!(open(&tables), Some(("deadline".to_owned(), 8 * DAY)));
        let all = sweep_hourly(&tables, 0, 11 * DAY).await;
        let expected = [reported(8 * DAY, "dispute dp_1", 10 * DAY)];
        assert_eq!(all, expected, "{status}");
    }
}

/// `radar.early_fraud_warning.created` about `pi_1`.
fn warned(id: &str) -> Value {
    let object = json!({
        "id": "issfr_1", "object": "radar.early_fraud_warning", "actionable": true, "charge": "ch_1",
        "payment_intent": "pi_1", "fraud_type": "made_with_stolen_card",
    });
    stripe(id, "radar.early_fraud_warning.created", T, object)
}

#[tokio::test]
async fn a_fraud_warning_is_reported_once_whatever_the_payment_is_linked_to() {
    for metadata in [named("ord_1"), json!({})] {
        let tables = tables();
        deliver_at(&tables, 0, &paid("evt_paid", 0, metadata)).await;
        let reported = deliver_at(&tables, 1, &warned("evt_warned")).await;
        assert_eq!(reported, [(1, "fraud_warning issfr_1 opened ".to_owned())]);
        assert_eq!(deliver_at(&tables, 2, &warned("evt_again")).await, []);
    }
}

#[tokio::test]
async fn a_dispute_opens_again_if_it_becomes_another_and_not_if_it_is_over() {
    let tables = tables();
    deliver_at(&tables, 0, &paid("evt_paid", 0, named("ord_1"))).await;
    let mut opened = Vec::new();
    for (second, status) in [
        (1, "warning_needs_response"),
        (2, "needs_response"),
        (3, "under_review"),
        (4, "lost"),
        (5, "needs_response"),
        (6, "won"),
    ] {
        let event = disputed(&format!("evt_{second}"), second, status, None);
        opened.extend(deliver_at(&tables, second, &event).await);
    }
    let expected = [(1, "inquiry"), (2, "dispute"), (5, "dispute")];
    assert_eq!(
        opened,
        expected.map(|(second, kind)| (second, format!("{kind} dp_1 opened ")))
    );
    // One of which the end is heard of first.
    let tables = super::tables();
    let lost = disputed("evt_lost", 2, "lost", None);
    assert_eq!(deliver_at(&tables, 0, &lost).await, []);
    let late = disputed("evt_late", 1, "needs_response", Some(10 * DAY));
    assert_eq!(deliver_at(&tables, 1, &late).await, []);
}

#[tokio::test]
async fn a_dispute_that_was_answered_or_ended_is_not_reported() {
    for status in ["under_review", "warning_under_review", "won", "lost"] {
        let tables = tables();
        deliver_at(&tables, 0, &paid("evt_paid", 0, named("ord_1"))).await;
        let opened = disputed("evt_opened", 1, "needs_response", Some(10 * DAY));
        deliver_at(&tables, 1, &opened).await;
        // Stripe leaves the due date where it is.
        let answered = disputed("evt_answered", DAY, status, Some(10 * DAY));
        assert_eq!(deliver_at(&tables, DAY, &answered).await, []);
        assert_eq!(open(&tables), None, "{status}");
        assert_eq!(sweep_hourly(&tables, DAY, 11 * DAY).await, [], "{status}");
    }
}

#[tokio::test]
async fn every_write_in_the_lead_time_reports_and_none_after_it() {
    let tables = tables();
    deliver_at(&tables, 0, &paid("evt_paid", 0, named("ord_1"))).await;
    // It comes late: nobody was there to recheck the payment before.
    let opened = disputed("evt_opened", 1, "needs_response", Some(10 * DAY));
    let near = |second| [reported(second, "dispute dp_1", 10 * DAY)];
    let first = 8 * DAY + HOUR;
    let is_new = [reported(first, "dispute dp_1 opened", 10 * DAY)];
    assert_eq!(
        deliver_at(&tables, first, &opened).await,
        [is_new, near(first)].concat()
    );
    assert_eq!(sweep_hourly(&tables, first, 9 * DAY - 1).await, []);
    let refund = charge_refunded("evt_refund", T + 2, "ch_1", Some("pi_1"), 100);
    let later = 9 * DAY - 1;
    assert_eq!(deliver_at(&tables, later, &refund).await, near(later));
    // A recheck that changes nothing reports too: its message may be received again because the worker did not finish.
    let again = [recheck(&PaymentKey::parse(PAYMENT).unwrap())];
    assert_eq!(work_at(&tables, 9 * DAY, &again).await, near(9 * DAY));
    assert_eq!(work_at(&tables, 10 * DAY, &again).await, []);
    let late = disputed("evt_late", 3, "needs_response", Some(10 * DAY));
    assert_eq!(deliver_at(&tables, 10 * DAY, &late).await, []);
    assert_eq!(open(&tables), None);
}

#[tokio::test]
async fn a_deadline_that_passed_while_the_sweep_did_not_run_leaves_the_index_without_a_report() {
    let tables = tables();
    for event in authorization(2 * DAY) {
        deliver_at(&tables, 0, &event).await;
    }
    assert_eq!(sweep_at(&tables, 2 * DAY).await, []);
    assert_eq!(open(&tables), None);
}

#[tokio::test]
async fn of_several_deadlines_each_is_reported_in_its_time() {
    let tables = tables();
    for event in authorization(6 * DAY + 12 * HOUR) {
        deliver_at(&tables, 0, &event).await;
    }
    let inquiry = disputed("evt_asked", 1, "warning_needs_response", Some(7 * DAY));
    deliver_at(&tables, 1, &inquiry).await;
    assert_eq!(open(&tables), Some(("deadline".to_owned(), 5 * DAY)));
    let all = sweep_hourly(&tables, 0, 8 * DAY).await;
    let expected = [
        reported(5 * DAY, "dispute dp_1", 7 * DAY),
        // That recheck is in the lead time of both.
        reported(
            5 * DAY + 12 * HOUR,
            "authorization ch_1",
            6 * DAY + 12 * HOUR,
        ),
        reported(5 * DAY + 12 * HOUR, "dispute dp_1", 7 * DAY),
    ];
    assert_eq!(all, expected);
}

#[tokio::test]
async fn a_payment_without_a_link_stays_listed_as_such_and_misses_no_deadline() {
    let tables = tables();
    let opened = disputed("evt_opened", 1, "needs_response", Some(60 * DAY));
    deliver_at(&tables, 0, &opened).await;
    let since = payment_state(&tables, PAYMENT).open_since;
    assert_eq!(since, Some(at(0)));
    assert_eq!(open(&tables), Some(("unlinked".to_owned(), 600)));
    // The backoff comes after 32 days and then every 30, and begins nothing new.
    sweep_hourly(&tables, 0, 45 * DAY).await;
    assert_eq!(payment_state(&tables, PAYMENT).open_since, since);
    assert_eq!(open(&tables), Some(("unclaimed".to_owned(), 58 * DAY)));
    let mut all = sweep_hourly(&tables, 45 * DAY, 61 * DAY).await;
    all.retain(|(_, text)| !text.starts_with("unclaimed"));
    assert_eq!(all, [reported(58 * DAY, "dispute dp_1", 60 * DAY)]);
    assert_eq!(payment_state(&tables, PAYMENT).open_since, since);
    assert_eq!(open(&tables), Some(("unclaimed".to_owned(), 88 * DAY)));
}

#[tokio::test]
async fn a_report_is_not_lost_with_the_answer_of_the_write() {
    let tables = tables();
    let opened = disputed("evt_opened", 1, "needs_response", Some(DAY));
    let message = keep(&tables, ProviderId::Stripe, &opened).await;
    tables.writes.then([Some(Fault::AnswerLost)]);
    let near = work_at(&tables, 1, &[message]).await;
    let expected = [
        reported(1, "dispute dp_1 opened", DAY),
        reported(1, "dispute dp_1", DAY),
    ];
    assert_eq!(near, expected);
    assert_eq!(outcome(&tables, "evt_opened"), processed());
    assert_eq!(payment_state(&tables, PAYMENT).version, 1);
}

#[tokio::test]
async fn a_command_leaves_what_is_near_to_the_next_recheck() {
    let tables = tables();
    deliver_at(&tables, 0, &paid("evt_paid", 0, named("ord_1"))).await;
    let opened = disputed("evt_opened", 1, "needs_response", Some(10 * DAY));
    deliver_at(&tables, 1, &opened).await;
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: &tables,
        clock: FixedClock::at(at(8 * DAY + 1)),
    };
    let payment = PaymentKey::parse(PAYMENT).unwrap();
    let to = order("ord_2");
    let linked = worker
        .relink_payment(&payment, Some(&to), "pat", "asked")
        .await;
    linked.unwrap();
    assert_eq!(open(&tables), Some(("deadline".to_owned(), 8 * DAY)));
    let all = sweep_hourly(&tables, 8 * DAY + 2, 11 * DAY).await;
    assert_eq!(all, [reported(8 * DAY + 2, "dispute dp_1", 10 * DAY)]);
}

proptest! {
    #![proptest_config(same_histories(100))]

    /// The place in the index is that of the earlier of the backoff and the deadlines, whatever else is known.
    #[test]
    fn a_payment_is_rechecked_at_the_earliest_of_all_times(
        is_linked: bool,
        age in 0..40 * DAY,
        capture_before in proptest::option::of(0..60 * DAY),
        respond_by in proptest::option::of(0..60 * DAY),
    ) {
        let tables = tables();
        let metadata = if is_linked { named("ord_1") } else { json!({}) };
        let [mut authorized, _] = authorization(0);
        authorized["data"]["object"]["metadata"] = metadata;
        let mut events = vec![authorized];
        events.extend(capture_before.map(|due| charge_authorized("evt_charge", due)));
        let dispute = |due| disputed("evt_opened", 1, "needs_response", Some(due));
        events.extend(respond_by.map(dispute));
        let last = intent_is("evt_last", T - 1, "pi_1", json!({}), "processing");
        let delivered = async {
            for event in &events {
                deliver_at(&tables, 0, event).await;
            }
            deliver_at(&tables, age, &last).await
        };
        delivered.now_or_never().unwrap();
        // The first lead time begins a day before an authorisation expires, and two before a dispute is due.
        let reports = [capture_before.map(|due| due - DAY), respond_by.map(|due| due - 2 * DAY)];
        let report = reports.into_iter().flatten().filter(|report| *report > age).min();
        // A dispute is about money; an authorisation is none yet.
        let has_money = respond_by.is_some();
        let retry = match (is_linked, has_money) {
            (true, _) => None,
            (false, true) if age < DAY => Some((age + age.max(600)).min(DAY)),
            (false, true) => Some(age + age.min(30 * DAY)),
            (false, false) => (age < 30 * DAY).then(|| age + age.max(600)),
        };
        let word = match (is_linked, has_money && age >= DAY) {
            (true, _) => "deadline",
            (false, true) => "unclaimed",
            (false, false) => "unlinked",
        };
        let due = report.into_iter().chain(retry).min();
        prop_assert_eq!(open(&tables), due.map(|due| (word.to_owned(), due)));
        let since = payment_state(&tables, PAYMENT).open_since;
        prop_assert_eq!(since.is_some(), !is_linked);
    }
}
