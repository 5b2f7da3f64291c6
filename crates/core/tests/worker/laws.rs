//! Laws: whatever the history, its order, repetition and batching, one set of events leaves one row.

use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::merge::{FactSource, Merge as _};
use billhook_core::entity::payment::facts::{FailedAttempt, MoneyFacts, NewestFailures};
use billhook_core::ids::PaymentRef;
use billhook_testkit::events::{linked_facts, money_facts};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

const EVENTS: usize = 17;

/// Everything that can happen to an order with three payments, one of which nothing names but its session.
pub(super) fn history() -> Vec<Value> {
    vec![
        intent_failed("evt_01", T, "pi_1", named("ord_1"), "ch_1"),
        intent_failed("evt_02", T + 5, "pi_1", named("ord_1"), "ch_2"),
        // Two events for one attempt.
        intent_failed("evt_03", T + 5, "pi_1", named("ord_1"), "ch_2"),
        intent_succeeded("evt_04", T + 20, "pi_2", json!({}), 4200),
        session_completed(
            "evt_05",
            T + 21,
            "cs_1",
            Some("pi_2"),
            named("ord_1"),
            "paid",
        ),
        charge_refunded("evt_06", T + 40, "ch_3", Some("pi_2"), 1000),
        charge_refunded("evt_07", T + 50, "ch_3", Some("pi_2"), 4200),
        intent_succeeded("evt_08", T + 60, "pi_3", named("ord_1"), 4200),
        intent_is("evt_09", T + 10, "pi_2", json!({}), "processing"),
        intent_is("evt_10", T + 8, "pi_1", named("ord_1"), "canceled"),
        refund("evt_11", T + 39, "re_1", ("pi_2", "ch_3"), 1000, "pending"),
        refund(
            "evt_12",
            T + 45,
            "re_1",
            ("pi_2", "ch_3"),
            1000,
            "succeeded",
        ),
        // Told in the same second: the later state is believed.
        refund(
            "evt_13",
            T + 70,
            "re_2",
            ("pi_2", "ch_3"),
            3200,
            "succeeded",
        ),
        refund("evt_14", T + 70, "re_2", ("pi_2", "ch_3"), 3200, "failed"),
        dispute("evt_15", T + 80, "dp_1", "pi_3", "needs_response"),
        dispute("evt_16", T + 90, "dp_1", "pi_3", "won"),
        dispute("evt_17", T + 85, "dp_1", "pi_3", "under_review"),
    ]
}

/// Kind, payment, two choices, who is named, second.
pub(super) type Drawn = (usize, usize, usize, usize, usize, i64);

pub(super) fn drawn() -> impl Strategy<Value = Drawn> {
    (
        0..11_usize,
        0..3_usize,
        0..84_usize,
        0..84_usize,
        0..60_usize,
        0..6_i64,
    )
}

/// Any event about one of three payments, with two charges, three refunds and one dispute each, and now and then
/// another currency, amount or user than expected.
pub(super) fn generated(n: usize, (kind, payment, one, other, who, second): Drawn) -> Value {
    let (id, at) = (format!("evt_{n:02}"), T + second);
    let (intent, charge) = (
        format!("pi_{payment}"),
        format!("ch_{payment}_{}", other % 2),
    );
    let session = format!("cs_{payment}");
    let mut metadata = json!({});
    if who % 3 == 0 {
        metadata["order_id"] = json!("ord_1");
    }
    if who % 5 == 0 {
        metadata["user_id"] = json!(format!("user_{who}"));
    }
    let amount = if one % 7 == 0 { 4100 } else { 4200 };
    let session_is = |event_type: &str, status: &str| {
        let mut event =
            session_completed(&id, at, &session, Some(&intent), metadata.clone(), status);
        event["type"] = json!(event_type);
        event["data"]["object"]["client_reference_id"] = json!(format!("reference_{}", one % 3));
        event
    };
    let mut event = match kind {
        0 => intent_succeeded(&id, at, &intent, metadata.clone(), amount),
        1 => intent_failed(&id, at, &intent, metadata.clone(), &charge),
        2 => intent_is(
            &id,
            at,
            &intent,
            metadata.clone(),
            ["processing", "canceled"][other % 2],
        ),
        3 => session_is("checkout.session.completed", ["paid", "unpaid"][other % 2]),
        4 => session_is("checkout.session.async_payment_succeeded", "paid"),
        5 => session_is(
            [
                "checkout.session.async_payment_failed",
                "checkout.session.expired",
            ][other % 2],
            "unpaid",
        ),
        6 => charge_refunded(
            &id,
            at,
            &charge,
            Some(&intent),
            [4200, 1000, 3200, 0, 5000][one % 5],
        ),
        7 => {
            let states = [
                "pending",
                "requires_action",
                "succeeded",
                "canceled",
                "failed",
            ];
            let known = format!("re_{payment}_{}", one % 3);
            refund(
                &id,
                at,
                &known,
                (&intent, &charge),
                [1000, 2000, 4200][one % 3],
                states[other % 5],
            )
        }
        8 => {
            let states = [
                "warning_needs_response",
                "needs_response",
                "warning_closed",
                "prevented",
                "won",
                "lost",
            ];
            dispute(
                &id,
                at,
                &format!("dp_{payment}"),
                &intent,
                states[other % 6],
            )
        }
        9 => {
            let object = json!({ "id": format!("issfr_{payment}"), "payment_intent": intent });
            stripe(&id, "radar.early_fraud_warning.created", at, object)
        }
        _ => {
            let open = other % 2 == 0;
            let object =
                json!({ "id": format!("prv_{payment}"), "payment_intent": intent, "open": open });
            stripe(
                &id,
                if open {
                    "review.opened"
                } else {
                    "review.closed"
                },
                at,
                object,
            )
        }
    };
    if one % 11 == 0 && (6..8).contains(&kind) {
        event["data"]["object"]["currency"] = json!("eur");
    }
    event
}

pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

/// The same histories in each run, so that a test which passed on one machine does not fail on the next;
/// `PROPTEST_RNG_SEED` draws others.
pub(super) fn same_histories(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::with_cases(cases);
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        given @ RngSeed::Fixed(_) => given,
    };
    ProptestConfig {
        rng_seed,
        max_shrink_iters: 4000,
        ..config
    }
}

proptest! {
    #![proptest_config(same_histories(200))]

    #[test]
    fn any_order_multiplicity_and_batching_ends_in_the_same_row(
        present in prop::collection::vec(any::<bool>(), EVENTS),
        order_of_arrival in prop::collection::vec((0..EVENTS, 1_usize..11), EVENTS..60),
        naturally in Just(history()),
    ) {
        // The links must be among them, else some wait: that is its own test above.
        let links = |i: usize| ["evt_05", "evt_08"].contains(&naturally[i]["id"].as_str().unwrap());
        let set: Vec<usize> = (0..EVENTS).filter(|i| links(*i) || present[*i]).collect();
        let (expected, actual) = run(async {
            let expected = tables();
            for i in &set {
                deliver(&expected, ProviderId::Stripe, &[naturally[*i].clone()]).await;
            }
            let actual = tables();
            let mut arrivals: Vec<(usize, usize)> =
                order_of_arrival.into_iter().filter(|(i, _)| set.contains(i)).collect();
            arrivals.extend(set.iter().map(|i| (*i, 1)));
            let mut rest = arrivals.as_slice();
            while let Some((_, size)) = rest.first() {
                let (batch, later) = rest.split_at((*size).min(rest.len()));
                let bodies: Vec<Value> = batch.iter().map(|(i, _)| naturally[*i].clone()).collect();
                deliver(&actual, ProviderId::Stripe, &bodies).await;
                rest = later;
            }
            (expected, actual)
        });
        prop_assert_eq!(view(&expected, &order("ord_1")), view(&actual, &order("ord_1")));
        for i in set {
            let id = naturally[i]["id"].as_str().unwrap();
            prop_assert_eq!(outcome(&actual, id), processed(), "{}", id);
        }
    }

    #[test]
    fn any_order_and_multiplicity_of_letters_events_ends_in_the_same_statement(
        life in prop::collection::vec((0..MailStage::ALL.len(), 0..6_i64, 1..3), 1..14),
        order_of_arrival in prop::collection::vec(0..14_usize, 0..30),
    ) {
        let event = |n: usize| {
            let (stage, day, piece) = life[n];
            let at = format!("2026-11-{:02}T08:00:00.000Z", 10 + day);
            let mut event = letter(&format!("evt_{n:02}"), &at, &format!("ltr_{piece}"), MailStage::ALL[stage].as_str());
            // The statement has the first piece only; events of the other name it.
            event["body"]["metadata"] = json!({ "statement_id": "st_1", "template_version": format!("v{day}") });
            event["body"]["tracking_number"] = json!(format!("n{}", n % 3));
            event["body"]["tracking_events"] = json!([{ "id": format!("evnt_{}", n % 4), "name": format!("scan {}", n % 4) }]);
            event
        };
        let (expected, actual) = run(async {
            let (expected, actual) = (tables(), tables());
            let all: Vec<Value> = (0..life.len()).map(event).collect();
            deliver(&expected, ProviderId::Lob, &all).await;
            for n in order_of_arrival.iter().filter(|n| **n < life.len()) {
                deliver(&actual, ProviderId::Lob, &[event(*n)]).await;
            }
            for event in all.iter().rev() {
                deliver(&actual, ProviderId::Lob, std::slice::from_ref(event)).await;
            }
            (expected, actual)
        });
        prop_assert_eq!(view(&expected, &statement("st_1")), view(&actual, &statement("st_1")));
        let update = entity(&actual, &statement("st_1")).apply_facts([], now());
        let mail = update.mail().unwrap();
        let told: BTreeSet<_> = life.iter().map(|(stage, _, piece)| (*stage, *piece)).collect();
        prop_assert_eq!(mail.timeline.len(), told.len());
    }

    #[test]
    fn any_generated_history_ends_in_one_row(
        drawn in prop::collection::vec(drawn(), 1..18),
        arrivals in prop::collection::vec((any::<prop::sample::Index>(), 1_usize..9), 0..40),
    ) {
        let mut all: Vec<Value> = drawn.iter().enumerate().map(|(n, drawn)| generated(n, *drawn)).collect();
        // Each payment is linked by one of them, else its events wait: that is a test of its own.
        for intent in 0..3 {
            let (id, charge) = (format!("evt_9{intent}"), format!("ch_x{intent}"));
            all.push(intent_failed(&id, T, &format!("pi_{intent}"), named("ord_1"), &charge));
        }
        let (expected, actual) = (tables(), tables());
        run(async {
            for event in &all {
                deliver(&expected, ProviderId::Stripe, std::slice::from_ref(event)).await;
            }
            let mut arrivals: Vec<(Value, usize)> =
                arrivals.iter().map(|(which, size)| (which.get(&all).clone(), *size)).collect();
            arrivals.extend(all.iter().rev().map(|event| (event.clone(), 3)));
            let mut rest = arrivals.as_slice();
            while let Some((_, size)) = rest.first() {
                let (batch, later) = rest.split_at((*size).min(rest.len()));
                let bodies: Vec<Value> = batch.iter().map(|(event, _)| event.clone()).collect();
                deliver(&actual, ProviderId::Stripe, &bodies).await;
                rest = later;
            }
        });
        prop_assert_eq!(view(&expected, &order("ord_1")), view(&actual, &order("ord_1")));
        for event in &all {
            let id = event["id"].as_str().unwrap();
            prop_assert_eq!(outcome(&expected, id), processed(), "{}", id);
            prop_assert_eq!(outcome(&actual, id), processed(), "{}", id);
        }
        let [one, other] = [&expected, &actual]
            .map(|tables| memory::order_mut(&mut entity(tables, &order("ord_1"))).clone());
        prop_assert_eq!(&one.given, &other.given);

        // Money is conserved, and the timeline tells each fact once.
        let derived = one.apply_facts([], now()).derived;
        let facts = one.facts.merge_linked_facts();
        let captured: i64 = facts.payments.iter().map(|(id, payment)| {
            let of_charges = facts.charges.values()
                .filter(|charge| charge.intent.as_ref().is_some_and(|intent| intent.0.as_str() == id.as_str()))
                .filter_map(|charge| charge.captured.as_ref())
                .map(|money| money.0.amount);
            of_charges.sum::<i64>().max(payment.received.last().map_or(0, |money| money.amount))
        }).sum();
        prop_assert!(derived.amount_refunded >= 0);
        let is_refunded = derived.status.as_str() == "refunded";
        prop_assert!(!is_refunded || derived.amount_refunded <= captured);
        let told: BTreeSet<_> = derived.timeline.iter().map(|entry| (&entry.kind, &entry.fact)).collect();
        prop_assert_eq!(told.len(), derived.timeline.len());
        let full = derived.timeline.iter().filter(|entry| entry.kind == "refund_full").count();
        prop_assert_eq!(full, usize::from(is_refunded));
    }

    #[test]
    fn merging_commutes_is_associative_and_idempotent(drawn in prop::collection::vec(drawn(), 3)) {
        let facts: Vec<MoneyFacts> = drawn.iter().enumerate().map(|(n, drawn)| {
            money_facts(&generated(n, *drawn))
        }).collect();
        let merged = |parts: &[&MoneyFacts]| {
            let mut all = MoneyFacts::default();
            parts.iter().for_each(|part| all.merge((*part).clone()));
            all
        };
        let [a, b, c] = [&facts[0], &facts[1], &facts[2]];
        prop_assert_eq!(merged(&[a, b]), merged(&[b, a]));
        prop_assert_eq!(merged(&[&merged(&[a, b]), c]), merged(&[a, &merged(&[b, c])]));
        prop_assert_eq!(merged(&[a, a, b, a]), merged(&[a, b]));
    }

    /// In whatever order and batches they come, the newest 20 stay, each as its latest event states it.
    #[test]
    fn of_failed_attempts_the_newest_twenty_stay(
        told in prop::collection::vec((0_usize..40, 0_i64..60), 0..120),
        batch in 1_usize..20,
    ) {
        let failures = |told: &[(usize, i64)]| {
            let mut failures = NewestFailures::default();
            for (charge, second) in told {
                let at = Timestamp::from_unix_s(T + second).unwrap();
                let event = EventId::parse(&format!("evt_{charge}_{second}")).unwrap();
                let attempt = FailedAttempt {
                    stated: FactSource { at, event },
                    code: None,
                    decline_code: None,
                };
                let charge = PaymentRef::parse(&format!("ch_{charge:02}")).unwrap();
                failures.insert(charge, attempt);
            }
            failures
        };
        let mut batched = NewestFailures::default();
        for batch in told.chunks(batch).rev() {
            batched.merge(failures(batch));
        }
        prop_assert_eq!(&batched, &failures(&told));
        let mut latest: BTreeMap<usize, i64> = BTreeMap::new();
        for (charge, second) in &told {
            let known = latest.entry(*charge).or_insert(*second);
            *known = *second.max(known);
        }
        let mut newest: Vec<_> = latest.values().copied().collect();
        newest.sort_unstable();
        let newest = newest.split_off(newest.len().saturating_sub(20));
        let mut kept: Vec<_> = batched.iter().map(|(_, attempt)| attempt.stated.at).collect();
        kept.sort_unstable();
        let newest: Vec<_> = newest
            .into_iter()
            .map(|second| Timestamp::from_unix_s(T + second).unwrap())
            .collect();
        prop_assert_eq!(kept, newest);
    }

    #[test]
    fn no_money_appears_or_vanishes(refunds in prop::collection::vec((0_i64..6000, 0_usize..3), 1..12)) {
        let tables = tables();
        run(async {
            deliver(&tables, ProviderId::Stripe, &[intent_succeeded("evt_p", T, "pi_1", named("ord_1"), 4200)]).await;
            for (n, (amount, charge)) in refunds.iter().enumerate() {
                let refund = charge_refunded(&format!("evt_{n}"), T, &format!("ch_{charge}"), Some("pi_1"), *amount);
                deliver(&tables, ProviderId::Stripe, &[refund]).await;
            }
        });
        let derived = payment(&tables, &order("ord_1"));
        let greatest = |charge: usize| refunds.iter().filter(|r| r.1 == charge).map(|r| r.0.min(4200)).max().unwrap_or(0);
        prop_assert_eq!(derived.amount_refunded, greatest(0) + greatest(1) + greatest(2));
    }

    #[test]
    fn no_body_makes_the_reading_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        for provider in ProviderId::ALL {
            let _ = read_envelope(&verified(*provider, &body));
        }
    }
}

#[tokio::test]
async fn an_event_is_reported_with_everything_that_took_its_facts() {
    let tables = tables();
    let of_a = |event| from_account(event, "acct_a");
    let refund = of_a(charge_refunded("evt_1", T, "ch_1", Some("pi_1"), 1000));
    let paid = of_a(intent_succeeded("evt_2", T, "pi_1", named("ord_a"), 4200));
    for (event, entities) in [
        (refund, "payment#acct_a#pi_1"),
        (paid, "order#ord_a payment#acct_a#pi_1"),
    ] {
        let reports = deliver(&tables, ProviderId::Stripe, &[event]).await;
        let (_, report) = reports.first_key_value().unwrap();
        let expected = Ok(ProcessingSuccess::Decided(EventVerdict::Processed));
        assert_eq!(report.result, expected);
        let keys: Vec<String> = report.entities.iter().map(ToString::to_string).collect();
        assert_eq!(keys.join(" "), entities);
        let tenant = report.tenant.as_ref().map(TenantId::as_str);
        assert_eq!(tenant, Some("ten_a"));
        assert!(report.stored.is_some() && report.correlation_id.is_some());
    }
}

#[tokio::test]
async fn a_replay_is_followed_by_its_own_correlation_id() {
    let tables = tables();
    let paid = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
    let first = keep(&tables, ProviderId::Stripe, &paid).await;
    let (of_row, of_replay) = (
        "01930000-0000-7000-8000-000000000001",
        "01930000-0000-7000-8000-000000000002",
    );
    let of = |message_id: &str, correlation_id: Option<&str>| ReceivedMessage {
        message_id: message_id.into(),
        body: json!({ "event_id": "evt_1", "correlation_id": correlation_id }).to_string(),
        ..first.clone()
    };
    let messages = [
        of("m-silent", None),
        of("m-replay", Some(of_replay)),
        of("m-nonsense", Some("c-1")),
    ];
    let reports = work(&tables, ProviderId::Stripe, &messages).await;
    for (message, expected) in [
        ("m-silent", of_row),
        ("m-replay", of_replay),
        ("m-nonsense", of_row),
    ] {
        let told = reports[message].correlation_id.map(|id| id.to_string());
        assert_eq!(told.as_deref(), Some(expected), "{message}");
    }
}

#[test]
fn news_is_what_a_write_says_that_the_row_did_not() {
    let facts = |events: &[Value]| linked_facts(events);
    let letter = |stage: &str| {
        let event = letter("evt_9", "2026-06-09T10:13:20.000Z", "ltr_1", stage);
        let event =
            billhook_core::provider::lob::event::LobEvent::parse(event.to_string().as_bytes())
                .unwrap();
        let mail = billhook_core::provider::lob::mail::read_mail_facts(&event)
            .unwrap()
            .unwrap();
        vec![StatedFacts::Mail(mail)]
    };
    let success = || intent_succeeded("evt_1", T, "pi_1", json!({}), 4200);
    let failure = || intent_failed("evt_2", T, "pi_1", json!({}), "ch_1");
    let failed = facts(&[failure()]);
    let paid_after_failure = facts(&[failure(), success()]);
    let less = || intent_succeeded("evt_3", T, "pi_1", json!({}), 4100);
    let demanded = dispute("evt_5", T, "dp_1", "pi_1", "needs_response");
    let refund = charge_refunded("evt_4", T, "ch_1", Some("pi_1"), 4200);
    let back = facts(&[success(), refund]);
    let paid = || facts(&[success()]);
    let given_up = || vec![cancellation_fact(now())];
    type Steps = Vec<Vec<StatedFacts>>;
    let cases: [(&str, Steps, &[EntityChange]); 9] = [
        ("ord_1", vec![paid()], &[EntityChange::Completed]),
        (
            "ord_1",
            vec![failed, paid_after_failure],
            &[EntityChange::PaymentFailed, EntityChange::Completed],
        ),
        (
            "ord_1",
            vec![paid(), back],
            &[EntityChange::Completed, EntityChange::RefundedInFull],
        ),
        (
            "ord_1",
            vec![facts(&[less()])],
            &[EntityChange::RequiresReview, EntityChange::AmountMismatch],
        ),
        // In review already, and now for another reason.
        (
            "ord_1",
            vec![facts(&[less()]), facts(&[less(), demanded])],
            &[
                EntityChange::RequiresReview,
                EntityChange::AmountMismatch,
                EntityChange::RequiresReview,
            ],
        ),
        (
            "ord_1",
            vec![given_up(), paid(), paid()],
            &[
                EntityChange::Cancelled,
                EntityChange::Completed,
                EntityChange::RequiresReview,
                EntityChange::PaidAfterCancel,
            ],
        ),
        ("st_1", vec![letter("mailed")], &[]),
        (
            "st_1",
            vec![letter("returned_to_sender")],
            &[EntityChange::NeedsAttention],
        ),
        ("st_1", vec![paid(), paid()], &[]),
    ];
    for (id, steps, expected) in cases {
        let key = if id == "st_1" {
            statement(id)
        } else {
            order(id)
        };
        let mut row = entity(&tables(), &key);
        let mut news = Vec::new();
        for step in steps {
            let next = row.apply_facts(step, now());
            news.extend(next.changes(&row));
            row = next.with_row_written();
        }
        assert_eq!(news, expected, "{id}");
    }
    // What a person did is not news of ours.
    let mut row = entity(&tables(), &order("ord_1"));
    memory::order_mut(&mut row).columns.status = Some("cancelled".into());
    assert_eq!(row.apply_facts([], now()).changes(&row), []);
}
