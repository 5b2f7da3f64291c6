//! Proofs over tables in memory: whatever the history, its states prove equal; whatever is missing, nothing is different;
//! whatever is changed, it is named and mended.

use billhook_core::entity::payment::linked::LinkState;
use billhook_core::entity::payment::state::{LinkSource, PaymentFacts};
use billhook_core::entity::rules::RowRules;
use billhook_core::ids::{CheckoutSessionId, PerProvider, PieceId, RefundId};
use billhook_core::proof::prover::{EventsByState, StateProver};
use billhook_core::proof::repair::{ReprocessEvent, repair_state};
use billhook_core::proof::{DifferenceSource, ProofResult, StateDifference, StateProof};
use billhook_core::provider::interpret::InterpretRules;
use billhook_core::tasks::ports::ArrivedEvent;
use billhook_testkit::memory::JsonRow;
use proptest::prelude::*;

use super::laws::{Drawn, drawn, generated, history, run, same_histories};
use super::*;

pub(super) fn prover(tables: &MemoryTables) -> StateProver<&MemoryTables> {
    StateProver {
        states: tables,
        events: PerProvider::new(|_| tables),
        rules: InterpretRules::default(),
    }
}

fn all_keys(tables: &MemoryTables) -> BTreeSet<StateKey> {
    let entities = tables.entities.lock().unwrap();
    let payments = tables.payments.lock().unwrap();
    let invoices = tables.invoices.lock().unwrap();
    let entities = entities.keys().cloned().map(StateKey::Entity);
    let payments = payments.keys().cloned().map(StateKey::Payment);
    let invoices = invoices.keys().cloned().map(StateKey::Invoice);
    entities.chain(payments).chain(invoices).collect()
}

fn prove_all(tables: &MemoryTables) -> Vec<StateProof> {
    let keys = all_keys(tables);
    let none = EventsByState::new();
    run(prover(tables).prove(&keys, &none, now())).unwrap()
}

fn results(tables: &MemoryTables) -> BTreeMap<String, ProofResult> {
    let proofs = prove_all(tables).into_iter();
    proofs
        .map(|proof| (proof.key.to_string(), proof.result()))
        .collect()
}

pub(super) fn differences(tables: &MemoryTables) -> Vec<String> {
    let proofs = prove_all(tables);
    let shown = proofs.iter().flat_map(|proof| {
        let differences = proof.differences.iter();
        differences.map(move |difference| {
            format!(
                "{} {} {}: {:?}, expected {:?}",
                proof.key,
                difference.source.as_str(),
                difference.place,
                difference.stored,
                difference.expected
            )
        })
    });
    shown.collect()
}

/// Opens the event again and has it processed, as the operator's tool does.
pub(super) struct ReprocessInMemory<'t>(pub(super) &'t MemoryTables);

impl ReprocessEvent for ReprocessInMemory<'_> {
    async fn reprocess(
        &self,
        provider: ProviderId,
        event: &EventId,
    ) -> Result<(), ProcessingFailure> {
        {
            let mut events = self.0.events.lock().unwrap();
            let row = events.get_mut(event).unwrap();
            row.stored.processed = false;
            row.stored.outcome = EventOutcome::Pending;
        }
        let message = ReceivedMessage {
            message_id: event.to_string(),
            body: json!({ "event_id": event }).to_string(),
            receive_count: 1,
            is_last_receive: false,
        };
        work(self.0, provider, &[message]).await;
        Ok(())
    }
}

pub(super) fn worker_of(tables: &MemoryTables) -> Worker<&MemoryTables, FixedClock> {
    Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: tables,
        clock: FixedClock::at(now()),
    }
}

fn repair(tables: &MemoryTables, key: &StateKey) -> StateProof {
    let worker = worker_of(tables);
    let (prover, events) = (prover(tables), ReprocessInMemory(tables));
    let none = EventsByState::new();
    match run(repair_state(&prover, &worker, &events, key, &none)) {
        Ok(repaired) => repaired,
        Err(failure) => panic!("{failure}: {:#?}", differences(tables)),
    }
}

fn repair_all(tables: &MemoryTables) {
    for key in all_keys(tables) {
        repair(tables, &key);
    }
}

fn payment(tables: &MemoryTables, name: &str) -> PaymentState {
    let payments = tables.payments.lock().unwrap();
    payments[&PaymentKey::parse(name).unwrap()].clone()
}

fn change_payment(tables: &MemoryTables, name: &str, change: impl FnOnce(&mut PaymentState)) {
    let mut payments = tables.payments.lock().unwrap();
    change(payments.get_mut(&PaymentKey::parse(name).unwrap()).unwrap());
}

fn forget_events(tables: &MemoryTables, ids: &[&str]) {
    let mut events = tables.events.lock().unwrap();
    events.retain(|id, _| !ids.contains(&id.as_str()));
}

/// An order with two events of its payment, and all that can be compared.
fn paid_and_refunded() -> MemoryTables {
    let tables = tables();
    let metadata = json!({ "order_id": "ord_1" });
    let paid = intent_succeeded("evt_1", T, "pi_1", metadata, 4200);
    let refunded = refund("evt_2", T + 5, "re_1", ("pi_1", "ch_1"), 1000, "succeeded");
    run(deliver(&tables, ProviderId::Stripe, &[paid, refunded]));
    tables
}

const PAYMENT: &str = "payment#platform#pi_1";

#[test]
fn what_its_events_say_is_equal() {
    let tables = paid_and_refunded();
    assert_eq!(differences(&tables), [""; 0]);
    let results = results(&tables);
    assert_eq!(results["order#ord_1"], ProofResult::Equal);
    assert_eq!(results[PAYMENT], ProofResult::Equal);
}

#[test]
fn without_its_events_a_state_is_unprovable_and_nothing_is_repaired() {
    let tables = paid_and_refunded();
    let before = payment(&tables, PAYMENT);
    forget_events(&tables, &["evt_1", "evt_2"]);
    assert_eq!(differences(&tables), [""; 0]);
    assert_eq!(results(&tables)[PAYMENT], ProofResult::Unprovable);
    repair_all(&tables);
    assert_eq!(payment(&tables, PAYMENT), before);
}

/// A kind of damage: what it does, and one thing that must be named.
type Damage = (&'static str, fn(&MemoryTables), &'static str);

const DAMAGES: &[Damage] = &[
    (
        "a fact is dropped",
        |tables| {
            change_payment(tables, PAYMENT, |payment| {
                payment.facts.money.refunds.clear()
            })
        },
        "payment#platform#pi_1 events facts.money.refunds",
    ),
    (
        "an amount was read wrongly, everywhere",
        |tables| {
            let wrong = |facts: &mut MoneyFacts| {
                for payment in facts.payments.values_mut() {
                    let read = payment.received.clone();
                    payment.received.extend(read.into_iter().map(|mut money| {
                        money.amount /= 100;
                        money
                    }));
                }
            };
            change_payment(tables, PAYMENT, |payment| wrong(&mut payment.facts.money));
            let mut entities = tables.entities.lock().unwrap();
            let order = order_mut(entities.get_mut(&order("ord_1")).unwrap());
            for copy in order.facts.payments.values_mut() {
                wrong(&mut copy.facts);
            }
            let next = order.apply_facts([], now()).next;
            *order = EntityState {
                version: order.version,
                row: order.row.clone(),
                history: order.history.clone(),
                ..next
            };
            let version = order.version;
            let columns = order.columns.clone();
            order.history.record_write(version, columns);
        },
        "payment#platform#pi_1 events facts.money.payments.pi_1.received",
    ),
    (
        "the state of the payment is gone",
        |tables| tables.payments.lock().unwrap().clear(),
        "order#ord_1 states facts.payments.payment#platform#pi_1",
    ),
    (
        "the copy is altered",
        |tables| {
            let mut entities = tables.entities.lock().unwrap();
            let order = order_mut(entities.get_mut(&order("ord_1")).unwrap());
            for copy in order.facts.payments.values_mut() {
                copy.facts.refunds.clear();
            }
        },
        "order#ord_1 states facts.payments.payment#platform#pi_1.facts.refunds",
    ),
    (
        "the link points elsewhere",
        |tables| {
            change_payment(tables, PAYMENT, |payment| {
                let sources = payment.facts.links.remove(&order("ord_1")).unwrap();
                payment.facts.links.insert(order("ord_2"), sources);
            });
        },
        "payment#platform#pi_1 events facts.links.order#ord_1",
    ),
    (
        "the outcome of an event is altered",
        |tables| {
            let mut events = tables.events.lock().unwrap();
            let row = events.get_mut(&EventId::parse("evt_2").unwrap()).unwrap();
            row.stored.outcome = EventOutcome::Ignored;
        },
        "payment#platform#pi_1 events event evt_2",
    ),
    (
        "the payment is there twice",
        |tables| {
            let twin = PaymentState {
                key: PaymentKey::parse("payment#platform#ch_1").unwrap(),
                ..payment(tables, PAYMENT)
            };
            tables
                .payments
                .lock()
                .unwrap()
                .insert(twin.key.clone(), twin);
        },
        "payment#platform#ch_1 states alias_of",
    ),
    (
        "a column of the state is altered",
        |tables| {
            let mut entities = tables.entities.lock().unwrap();
            let order = order_mut(entities.get_mut(&order("ord_1")).unwrap());
            order.last_derived.columns.payment_status = Some("unpaid".to_owned());
        },
        "order#ord_1 states derived.paymentStatus",
    ),
];

#[test]
fn every_damage_is_named_mended_and_then_gone() {
    for (what, damage, named) in DAMAGES {
        let tables = paid_and_refunded();
        let whole = tables.entities.lock().unwrap()[&order("ord_1")].clone();
        damage(&tables);
        let found = differences(&tables);
        assert!(
            found.iter().any(|found| found.starts_with(named)),
            "{what}: {found:#?}"
        );
        repair_all(&tables);
        repair_all(&tables);
        assert_eq!(differences(&tables), [""; 0], "{what}");
        let mended = tables.entities.lock().unwrap()[&order("ord_1")].clone();
        assert_eq!(mended.columns(), whole.columns(), "{what}");
        assert_eq!(
            mended.last_derived().review_reasons,
            whole.last_derived().review_reasons,
            "{what}"
        );
        let facts: fn(&PaymentState) -> PaymentFacts = |payment| payment.facts.clone();
        let expected = facts(&payment(&paid_and_refunded(), PAYMENT));
        assert_eq!(facts(&payment(&tables, PAYMENT)), expected, "{what}");
    }
}

/// An order whose row has the payment, which no event's metadata names.
fn paid_by_column() -> MemoryTables {
    let tables = tables();
    let row = json!({ "amountTotal": 4200, "currency": "usd", "stripePaymentIntentId": "pi_1" });
    let row = memory::entity_of(&order("ord_1"), row);
    tables.entities.lock().unwrap().insert(order("ord_1"), row);
    let paid = intent_succeeded("evt_1", T, "pi_1", json!({}), 4200);
    run(deliver(&tables, ProviderId::Stripe, &[paid]));
    tables
}

/// Two events name the order.
fn paid_and_completed() -> MemoryTables {
    let tables = tables();
    let metadata = || json!({ "order_id": "ord_1" });
    let paid = intent_succeeded("evt_1", T, "pi_1", metadata(), 4200);
    let session = session_completed("evt_2", T + 1, "cs_1", Some("pi_1"), metadata(), "paid");
    run(deliver(&tables, ProviderId::Stripe, &[paid, session]));
    tables
}

#[test]
fn a_link_that_was_altered_and_that_no_event_states_is_known_by_the_copies() {
    type History = (fn() -> MemoryTables, &'static [&'static str]);
    let histories: [History; 5] = [
        (paid_and_completed, &["evt_1"]),
        (paid_by_column, &[]),
        (paid_by_column, &["evt_1"]),
        (paid_and_refunded, &["evt_1", "evt_2"]),
        (paid_and_refunded, &["evt_1"]),
    ];
    for (make, missing) in histories {
        let tables = make();
        let before = payment(&tables, PAYMENT);
        change_payment(&tables, PAYMENT, |payment| {
            let sources = payment.facts.links.remove(&order("ord_1")).unwrap();
            payment.facts.links.insert(order("ord_2"), sources);
        });
        forget_events(&tables, missing);
        let found = differences(&tables);
        let named = "payment#platform#pi_1 events facts.links.order#ord_1";
        assert!(
            found.iter().any(|found| found.starts_with(named)),
            "{missing:?}: {found:#?}"
        );
        repair_all(&tables);
        assert_eq!(differences(&tables), [""; 0], "{missing:?}");
        assert_eq!(payment(&tables, PAYMENT).facts, before.facts, "{missing:?}");
    }
}

/// As if the row of the order's state had been deleted; the application's row stays.
fn lose_state(tables: &MemoryTables, key: &EntityKey) {
    let mut entities = tables.entities.lock().unwrap();
    let order = order_mut(entities.get_mut(key).unwrap());
    order.row.version = Some(order.version);
    order.row.is_without_entries = false;
    order.version = 0;
    order.facts = Default::default();
    order.history = Default::default();
    order.last_derived = Default::default();
}

fn paid_at_account() -> MemoryTables {
    let tables = tables();
    let tenant = EntityKey::Tenant(TenantId::parse("ten_a").unwrap());
    let row = json!({ "tenant_id": "ten_a", "stripe_connected_account_id": "acct_a" });
    let row = memory::entity_of(&tenant, row);
    tables.entities.lock().unwrap().insert(tenant, row);
    let metadata = json!({ "order_id": "ord_a" });
    let paid = intent_succeeded("evt_1", T, "pi_1", metadata, 4200);
    let paid = from_account(paid, "acct_a");
    run(deliver(&tables, ProviderId::Stripe, &[paid]));
    tables
}

#[test]
fn the_state_of_an_order_that_was_lost_is_known_by_its_payment() {
    type History = (fn() -> MemoryTables, &'static str, &'static str);
    let histories: [History; 2] = [
        (paid_and_refunded, "ord_1", PAYMENT),
        (paid_at_account, "ord_a", "payment#acct_a#pi_1"),
    ];
    for (make, id, payment) in histories {
        for missing in [&[][..], &["evt_1"], &["evt_1", "evt_2"]] {
            // The payment leads to the order, or the order to its payment.
            for first in [payment, &format!("order#{id}")] {
                let tables = make();
                let whole = tables.entities.lock().unwrap()[&order(id)].clone();
                lose_state(&tables, &order(id));
                forget_events(&tables, missing);
                assert_eq!(results(&tables)[first], ProofResult::Different);
                repair(&tables, &StateKey::parse(first).unwrap());
                assert_eq!(differences(&tables), [""; 0], "{first} without {missing:?}");
                let mended = tables.entities.lock().unwrap()[&order(id)].clone();
                assert_eq!(
                    mended.columns(),
                    whole.columns(),
                    "{first} without {missing:?}"
                );
                let copies = mended.linked_payment_facts().unwrap().payments.values();
                assert_eq!(copies.count(), 1, "{first} without {missing:?}");
            }
        }
    }
}

#[test]
fn a_payment_that_lost_its_state_and_the_events_of_its_names_has_them_again() {
    type History = (fn() -> MemoryTables, &'static str);
    let histories: [History; 2] = [
        (paid_and_refunded, "payment#platform#ch_1"),
        (paid_and_completed, "payment#platform#cs_1"),
    ];
    for (make, alias) in histories {
        for missing in [&[][..], &["evt_1"], &["evt_2"], &["evt_1", "evt_2"]] {
            let tables = make();
            let names = payment(&tables, PAYMENT).facts.names;
            assert!(payment(&tables, alias).alias_of.is_some());
            let key = PaymentKey::parse(PAYMENT).unwrap();
            tables.payments.lock().unwrap().remove(&key);
            forget_events(&tables, missing);
            repair_all(&tables);
            assert_eq!(payment(&tables, PAYMENT).facts.names, names, "{missing:?}");
            assert_eq!(differences(&tables), [""; 0], "{missing:?}");
        }
    }
}

#[test]
fn a_payment_that_lost_its_state_is_linked_again_to_the_order_whose_row_has_it() {
    for missing in [&[][..], &["evt_1"]] {
        for first in [PAYMENT, "order#ord_1"] {
            let tables = paid_by_column();
            let before = payment(&tables, PAYMENT);
            let whole = tables.entities.lock().unwrap()[&order("ord_1")].clone();
            tables.payments.lock().unwrap().clear();
            forget_events(&tables, missing);
            let worker = Worker {
                provider: ProviderId::Stripe,
                rules: InterpretRules::default(),
                ledger: &tables,
                clock: FixedClock::at(now()),
            };
            // The index of the events names the payment.
            let events = BTreeSet::from([EventId::parse("evt_1").unwrap()]);
            let named = EventsByState::from([(StateKey::parse(PAYMENT).unwrap(), events)]);
            let first = StateKey::parse(first).unwrap();
            let (prover, events) = (prover(&tables), ReprocessInMemory(&tables));
            run(repair_state(&prover, &worker, &events, &first, &named)).unwrap();
            repair_all(&tables);
            assert_eq!(
                payment(&tables, PAYMENT).facts,
                before.facts,
                "{first} {missing:?}"
            );
            assert_eq!(differences(&tables), [""; 0], "{first} {missing:?}");
            let mended = tables.entities.lock().unwrap()[&order("ord_1")].clone();
            assert_eq!(mended.columns(), whole.columns(), "{first} {missing:?}");
        }
    }
}

#[test]
fn a_payment_that_is_there_twice_is_one_again_with_and_without_its_events() {
    for missing in [&[][..], &["evt_1"], &["evt_1", "evt_2"]] {
        let tables = paid_and_refunded();
        let alias = payment(&tables, "payment#platform#ch_1");
        let whole = payment(&tables, PAYMENT);
        let twin = PaymentState {
            key: alias.key.clone(),
            ..whole.clone()
        };
        let mut payments = tables.payments.lock().unwrap();
        payments.insert(twin.key.clone(), twin);
        drop(payments);
        forget_events(&tables, missing);
        let found = differences(&tables);
        let named = |found: &String| {
            found.starts_with("payment#platform#ch_1") && found.contains(" alias_of: ")
        };
        assert!(found.iter().any(named), "{missing:?}: {found:#?}");
        repair_all(&tables);
        repair_all(&tables);
        assert_eq!(differences(&tables), [""; 0], "{missing:?}");
        assert_eq!(payment(&tables, PAYMENT).facts, whole.facts, "{missing:?}");
        let mended = payment(&tables, "payment#platform#ch_1");
        assert_eq!(mended.alias_of, alias.alias_of, "{missing:?}");
        assert_eq!(mended.facts.money, alias.facts.money, "{missing:?}");
        assert_eq!(mended.copied, alias.copied, "{missing:?}");
    }
}

#[test]
fn a_state_that_was_lost_with_all_that_it_rested_on_is_a_persons() {
    let tables = paid_and_refunded();
    lose_state(&tables, &order("ord_1"));
    tables.payments.lock().unwrap().clear();
    forget_events(&tables, &["evt_1", "evt_2"]);
    let before = tables.entities.lock().unwrap()[&order("ord_1")].clone();
    let repaired = repair(&tables, &order("ord_1").into());
    assert_eq!(repaired.differences.len(), 1);
    assert!(repaired.differences[0].decision.is_some());
    let after = tables.entities.lock().unwrap()[&order("ord_1")].clone();
    assert_eq!(after, before);
}

#[test]
fn a_payment_and_a_copy_that_differ_are_a_persons_if_no_event_says_which_is_right() {
    let alter = |payment: &mut PaymentState| {
        for refund in payment.facts.money.refunds.values_mut() {
            refund.amount.0.amount = 700;
        }
    };
    let undecided = |tables: &MemoryTables| {
        let proofs = prove_all(tables).into_iter();
        let mut differences = proofs.flat_map(|proof| proof.differences);
        differences.any(|difference| difference.decision.is_some())
    };
    for (missing, is_undecided) in [
        (&["evt_1", "evt_2"][..], true),
        // What can be read says which is right.
        (&["evt_1"], false),
        (&[], false),
    ] {
        let tables = paid_and_refunded();
        let right = payment(&tables, PAYMENT);
        change_payment(&tables, PAYMENT, alter);
        let altered = payment(&tables, PAYMENT);
        forget_events(&tables, missing);
        assert_eq!(undecided(&tables), is_undecided, "{missing:?}");
        let whole = tables.entities.lock().unwrap()[&order("ord_1")].clone();
        repair_all(&tables);
        assert_eq!(undecided(&tables), is_undecided, "{missing:?}");
        let expected = if is_undecided { altered } else { right };
        assert_eq!(
            payment(&tables, PAYMENT).facts,
            expected.facts,
            "{missing:?}"
        );
        let entity = tables.entities.lock().unwrap()[&order("ord_1")].clone();
        assert_eq!(entity.columns(), whole.columns(), "{missing:?}");
    }
}

#[test]
fn an_amount_that_no_readable_event_states_beside_others_was_misread() {
    for missing in ["evt_1", "evt_2"] {
        let tables = tables();
        // The same success under two ids.
        let paid = |id| intent_succeeded(id, T, "pi_1", json!({ "order_id": "ord_1" }), 4200);
        let events = [paid("evt_1"), paid("evt_2")];
        run(deliver(&tables, ProviderId::Stripe, &events));
        let right = payment(&tables, PAYMENT).facts;
        change_payment(&tables, PAYMENT, |payment| {
            let payments = payment.facts.money.payments.values_mut();
            for received in payments.map(|payment| &mut payment.received) {
                let misread = received.iter().cloned().map(|mut money| {
                    money.amount /= 100;
                    money
                });
                *received = misread.collect();
            }
        });
        forget_events(&tables, &[missing]);
        repair_all(&tables);
        assert_eq!(payment(&tables, PAYMENT).facts, right, "{missing}");
        assert_eq!(differences(&tables), [""; 0], "{missing}");
    }
}

#[test]
fn a_payment_that_lost_its_state_and_its_events_is_known_by_its_copy() {
    let tables = paid_and_refunded();
    let before = payment(&tables, PAYMENT);
    tables.payments.lock().unwrap().clear();
    forget_events(&tables, &["evt_1", "evt_2"]);
    let order = StateKey::Entity(order("ord_1"));
    assert_eq!(results(&tables)[&order.to_string()], ProofResult::Different);
    let repaired = repair(&tables, &order);
    assert_eq!(repaired.differences, []);
    let after = payment(&tables, PAYMENT);
    assert_eq!(after.facts.money, before.facts.money);
    assert_eq!(
        after.facts.links.values().next().unwrap().keys().next(),
        Some(&LinkSource::Metadata)
    );
}

#[test]
fn a_fact_whose_own_event_does_not_state_it_is_taken_away_although_others_are_missing() {
    let tables = paid_and_refunded();
    change_payment(&tables, PAYMENT, |payment| {
        let refund = payment.facts.money.refunds.values().next().unwrap().clone();
        let invented = RefundId::parse("re_invented").unwrap();
        payment.facts.money.refunds.insert(invented, refund);
    });
    forget_events(&tables, &["evt_1"]);
    let found = differences(&tables);
    assert!(
        found[1].starts_with("payment#platform#pi_1 events facts.money.refunds.re_invented"),
        "{found:#?}"
    );
    repair_all(&tables);
    let facts = payment(&tables, PAYMENT).facts.money;
    assert_eq!(facts.refunds.len(), 1);
    assert_eq!(facts.payments.len(), 1, "what evt_1 stated stays");
}

/// What the index of arrivals says of all events.
fn arrived(tables: &MemoryTables) -> Vec<ArrivedEvent> {
    let events = tables.events.lock().unwrap();
    let arrived = events.values().map(|row| ArrivedEvent {
        id: row.stored.id.clone(),
        outcome: row.stored.outcome,
        entities: row.entities.clone(),
        delivered_at: row.stored.received_at,
    });
    arrived.collect()
}

fn repair_named(tables: &MemoryTables, key: &StateKey, named: &EventsByState) -> StateProof {
    let worker = worker_of(tables);
    let events = ReprocessInMemory(tables);
    run(repair_state(&prover(tables), &worker, &events, key, named)).unwrap()
}

#[test]
fn states_of_an_older_backup_take_what_came_since_from_the_events_and_the_row() {
    let tables = tables();
    let metadata = json!({ "order_id": "ord_1" });
    let paid = intent_succeeded("evt_1", T, "pi_1", metadata, 4200);
    run(deliver(&tables, ProviderId::Stripe, &[paid]));
    let old_payment = payment(&tables, PAYMENT);
    let old_order = tables.entities.lock().unwrap()[&order("ord_1")].clone();
    let refunded = refund("evt_2", T + 5, "re_1", ("pi_1", "ch_1"), 4200, "succeeded");
    run(deliver(&tables, ProviderId::Stripe, &[refunded]));
    let whole = tables.entities.lock().unwrap()[&order("ord_1")].clone();
    assert_eq!(whole.columns().status.as_deref(), Some("refunded"));

    // The table of the states is restored, and the application's row is not. It has an entry of billhook's.
    change_payment(&tables, PAYMENT, |payment| *payment = old_payment);
    {
        let mut entities = tables.entities.lock().unwrap();
        let mut old_order = old_order;
        let (behind, row) = (
            order_mut(&mut old_order),
            order_mut(&mut whole.clone()).clone(),
        );
        behind.columns = row.columns;
        behind.row = row.row;
        entities.insert(order("ord_1"), old_order);
    }
    let found = differences(&tables);
    assert!(
        found[0].starts_with("order#ord_1 row version"),
        "{found:#?}"
    );

    let lost = run(prover(&tables).find_lost_events(ProviderId::Stripe, &arrived(&tables)));
    let lost = lost.unwrap();
    let payment_key = StateKey::parse(PAYMENT).unwrap();
    assert_eq!(
        lost[&payment_key],
        [EventId::parse("evt_2").unwrap()].into()
    );
    for key in [&payment_key, &StateKey::Entity(order("ord_1"))] {
        assert_eq!(repair_named(&tables, key, &lost).differences, []);
    }
    assert_eq!(differences(&tables), [""; 0]);
    let mended = tables.entities.lock().unwrap()[&order("ord_1")].clone();
    assert_eq!(mended.columns(), whole.columns());
    assert!(mended.last_derived().review_reasons.is_empty());
    assert!(mended.version() > whole.version());
    let now_lost = run(prover(&tables).find_lost_events(ProviderId::Stripe, &arrived(&tables)));
    assert_eq!(now_lost.unwrap(), EventsByState::new());
}

#[test]
fn an_event_that_is_processed_and_that_nothing_took_is_found() {
    let tables = paid_and_refunded();
    let later = refund("evt_3", T + 9, "re_2", ("pi_1", "ch_1"), 500, "succeeded");
    run(keep(&tables, ProviderId::Stripe, &later));
    {
        let mut events = tables.events.lock().unwrap();
        let row = events.get_mut(&EventId::parse("evt_3").unwrap()).unwrap();
        row.stored.outcome = EventOutcome::Processed;
        row.stored.processed = true;
    }
    let lost = run(prover(&tables).find_lost_events(ProviderId::Stripe, &arrived(&tables)));
    let lost = lost.unwrap();
    let payment_key = StateKey::parse(PAYMENT).unwrap();
    assert_eq!(lost.keys().collect::<Vec<_>>(), [&payment_key]);
    assert_eq!(repair_named(&tables, &payment_key, &lost).differences, []);
    assert_eq!(payment(&tables, PAYMENT).facts.money.refunds.len(), 2);
}

proptest! {
    #![proptest_config(same_histories(128))]

    #[test]
    fn any_history_proves_equal(drawn in prop::collection::vec(drawn(), 1..30), batch in 1..10_usize) {
        let tables = tables();
        let events: Vec<Value> = drawn.into_iter().enumerate().map(|(n, drawn)| generated(n, drawn)).collect();
        for batch in events.chunks(batch) {
            run(deliver(&tables, ProviderId::Stripe, batch));
        }
        prop_assert_eq!(differences(&tables), Vec::<String>::new());
        let is_equal = |result: &ProofResult| *result == ProofResult::Equal;
        prop_assert!(results(&tables).values().all(is_equal));
    }

    #[test]
    fn whatever_events_are_missing_nothing_is_different(
        drawn in prop::collection::vec(drawn(), 1..30),
        missing in prop::collection::vec(any::<bool>(), 30),
    ) {
        let tables = tables();
        let events: Vec<Value> = drawn.into_iter().enumerate().map(|(n, drawn)| generated(n, drawn)).collect();
        run(deliver(&tables, ProviderId::Stripe, &events));
        let ids: Vec<String> = (0..30).filter(|n| missing[*n]).map(|n| format!("evt_{n:02}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        forget_events(&tables, &ids);
        prop_assert_eq!(differences(&tables), Vec::<String>::new());
        let before = tables.payments.lock().unwrap().clone();
        repair_all(&tables);
        prop_assert_eq!(&*tables.payments.lock().unwrap(), &before);
    }
}

/// A statement of a tenant with two letters, and the tenant's own account.
fn mailed() -> MemoryTables {
    let tables = tables();
    let mut tenant = json!({ "stripe_account_id": "acct_a" });
    tenant["tenant_id"] = json!("ten_a");
    let key = EntityKey::Tenant(TenantId::parse("ten_a").unwrap());
    let row = memory::entity_of(&key, tenant);
    tables.entities.lock().unwrap().insert(key, row);
    let mailed = letter("evt_l1", "2026-11-10T08:00:00.000Z", "ltr_1", "mailed");
    let mut delivered = letter("evt_l2", "2026-11-12T08:00:00.000Z", "ltr_1", "delivered");
    delivered["body"]["tracking_number"] = json!("n1");
    run(deliver(&tables, ProviderId::Lob, &[mailed, delivered]));
    let account = json!({ "id": "acct_a", "charges_enabled": true, "payouts_enabled": false });
    let updated = from_account(stripe("evt_a1", "account.updated", T, account), "acct_a");
    run(deliver(&tables, ProviderId::Stripe, &[updated]));
    tables
}

#[test]
fn a_letters_later_number_stays_though_only_the_earlier_events_can_be_read() {
    let tables = tables();
    let events = [("evt_l1", 10, "n0"), ("evt_l2", 14, "n1")].map(|(id, day, number)| {
        let at = format!("2026-11-{day}T08:00:00.000Z");
        let mut event = letter(id, &at, "ltr_1", "mailed");
        event["body"]["tracking_number"] = json!(number);
        event
    });
    run(deliver(&tables, ProviderId::Lob, &events));
    forget_events(&tables, &["evt_l2"]);
    assert_eq!(differences(&tables), [""; 0]);
    assert_eq!(results(&tables)["statement#st_1"], ProofResult::Unprovable);
}

#[test]
fn letters_and_accounts_are_proven_by_their_own_events() {
    let tables = mailed();
    let events = tables
        .events
        .lock()
        .unwrap()
        .values()
        .map(|row| row.stored.outcome)
        .collect::<Vec<_>>();
    assert_eq!(events, [EventOutcome::Processed; 3]);
    assert_eq!(differences(&tables), [""; 0]);
    assert_eq!(results(&tables)["statement#st_1"], ProofResult::Equal);
    assert_eq!(results(&tables)["tenant#ten_a"], ProofResult::Equal);

    let whole = tables.entities.lock().unwrap().clone();
    {
        let mut entities = tables.entities.lock().unwrap();
        for entity in entities.values_mut() {
            match entity {
                Entity::Statement(statement) => {
                    let pieces = statement.facts.mail.pieces.values_mut();
                    pieces.for_each(|piece| drop(piece.stages.remove(&MailStage::Delivered)));
                }
                Entity::Tenant(tenant) => {
                    let accounts = tenant.facts.accounts.values_mut();
                    accounts.for_each(|account| account.capabilities = None);
                }
                Entity::Order(_) => {}
            }
        }
    }
    let found = differences(&tables);
    let places: Vec<&str> = found
        .iter()
        .map(|found| found.split(':').next().unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "statement#st_1 events facts.mail.pieces.ltr_1.stages.delivered",
            "tenant#ten_a events facts.accounts.acct_a.capabilities",
        ]
    );
    repair_all(&tables);
    assert_eq!(differences(&tables), [""; 0]);
    for (key, entity) in tables.entities.lock().unwrap().iter() {
        assert_eq!(entity.columns(), whole[key].columns(), "{key}");
    }

    // Without their events nothing is taken away.
    forget_events(&tables, &["evt_l1", "evt_a1"]);
    assert_eq!(differences(&tables), [""; 0]);
    assert_eq!(results(&tables)["statement#st_1"], ProofResult::Unprovable);
    assert_eq!(results(&tables)["tenant#ten_a"], ProofResult::Unprovable);
}

#[test]
fn a_row_of_another_tenant_is_told_and_left_to_people() {
    let tables = tables();
    let metadata = json!({ "order_id": "ord_a" });
    let paid = from_account(
        intent_succeeded("evt_1", T, "pi_1", metadata, 4200),
        "acct_a",
    );
    run(deliver(&tables, ProviderId::Stripe, &[paid]));
    assert_eq!(differences(&tables), [""; 0]);
    let set_tenant = |of_row: &str, of_state: &str| {
        let mut entities = tables.entities.lock().unwrap();
        let order = order_mut(entities.get_mut(&order("ord_a")).unwrap());
        order.tenant = Some(TenantId::parse(of_row).unwrap());
        order.history.tenant = Some(TenantId::parse(of_state).unwrap());
    };
    for (of_row, of_state) in [("ten_b", "ten_a"), ("ten_a", "ten_b"), ("ten_b", "ten_b")] {
        set_tenant(of_row, of_state);
        let found = prove_all(&tables);
        let found = found
            .iter()
            .find(|proof| !proof.differences.is_empty())
            .unwrap();
        assert_eq!(found.differences[0].place, "tenant", "{of_row} {of_state}");
        assert!(found.differences[0].decision.is_some());
        assert!(found.correction.is_none());
    }
    set_tenant("ten_a", "ten_a");
    assert_eq!(differences(&tables), [""; 0]);
}

#[test]
fn what_a_worker_wrote_between_two_reads_is_not_different() {
    let tables = std::sync::Arc::new(paid_and_refunded());
    let whole = payment(&tables, PAYMENT);
    change_payment(&tables, PAYMENT, |payment| {
        payment.facts.money.refunds.clear()
    });
    let (of_hook, mut calls) = (std::sync::Arc::downgrade(&tables), 0);
    tables.hook.set(move || {
        calls += 1;
        // The first reads of states and events are done.
        if let (4, Some(tables)) = (calls, of_hook.upgrade()) {
            change_payment(&tables, PAYMENT, |payment| *payment = whole.clone());
        }
    });
    assert_eq!(differences(&tables), [""; 0]);
}

#[test]
fn an_edit_is_told_apart_from_damage() {
    let tables = paid_and_refunded();
    {
        let mut entities = tables.entities.lock().unwrap();
        let order = order_mut(entities.get_mut(&order("ord_1")).unwrap());
        order.columns.status = Some("cancelled".to_owned());
    }
    let results = results(&tables);
    assert_eq!(results["order#ord_1"], ProofResult::Edited);
    assert_eq!(
        differences(&tables),
        [
            "order#ord_1 edit row.status: Some(\"\\\"cancelled\\\"\"), expected Some(\"\\\"completed\\\"\")"
        ]
    );
    repair_all(&tables);
    assert_eq!(differences(&tables), [""; 0], "the edit is a fact now");
}

#[test]
fn the_history_with_every_kind_of_event_proves_equal() {
    let tables = tables();
    run(deliver(&tables, ProviderId::Stripe, &history()[..9]));
    run(deliver(&tables, ProviderId::Stripe, &history()[9..]));
    assert_eq!(differences(&tables), [""; 0]);
}

fn is_none_different(tables: &MemoryTables) {
    let proofs = prove_all(tables).into_iter();
    let different: Vec<_> = proofs
        .filter(|proof| proof.result() == ProofResult::Different)
        .map(|proof| (proof.key, proof.differences))
        .collect();
    assert_eq!(different, []);
}

#[test]
fn what_the_application_writes_into_columns_of_both_is_an_edit() {
    type Edit = fn(&mut EntityState<OrderKind>);
    let edits: [Edit; 6] = [
        |order| order.given.intent = Some(PaymentIntentId::parse("pi_own").unwrap()),
        |order| order.given.intent = None,
        |order| order.given.session = Some(CheckoutSessionId::parse("cs_own").unwrap()),
        |order| order.given.session = None,
        |order| order.given.user = Some("Pat Sample".to_owned()),
        |order| order.given.user = None,
    ];
    for edit in edits {
        let tables = tables();
        let mut metadata = named("ord_1");
        metadata["user_id"] = json!("user_1");
        let paid = session_completed("evt_1", T, "cs_1", Some("pi_1"), metadata, "paid");
        run(deliver(&tables, ProviderId::Stripe, &[paid]));
        edit_order(&tables, "ord_1", edit);
        is_none_different(&tables);
        // It is no excuse for anything else.
        edit_order(&tables, "ord_1", |order| {
            order.last_derived.columns.payment_status = Some("unpaid".to_owned());
        });
        let found = differences(&tables);
        let named = "order#ord_1 states derived.paymentStatus";
        assert!(
            found.iter().any(|found| found.starts_with(named)),
            "{found:#?}"
        );
    }
}

#[test]
fn a_statement_whose_letter_is_another_one_is_edited() {
    let tables = mailed();
    let mut second = letter("evt_l3", "2026-11-20T08:00:00.000Z", "ltr_2", "mailed");
    second["body"]["metadata"] = json!({ "statement_id": "st_1" });
    run(deliver(&tables, ProviderId::Lob, &[second]));
    assert_eq!(differences(&tables), [""; 0]);
    {
        let mut entities = tables.entities.lock().unwrap();
        if let Some(Entity::Statement(statement)) = entities.get_mut(&statement("st_1")) {
            statement.given.piece = Some(PieceId::parse("ltr_2").unwrap());
        }
    }
    is_none_different(&tables);
    assert_eq!(results(&tables)["statement#st_1"], ProofResult::Edited);
    repair_all(&tables);
    assert_eq!(differences(&tables), [""; 0]);
}

#[test]
fn an_event_that_waits_to_be_processed_again_is_no_difference() {
    let waiting = [
        (EventOutcome::Processed, false),
        (EventOutcome::Pending, false),
        (EventOutcome::Failed, false),
        (EventOutcome::Parked, false),
    ];
    for (outcome, processed) in waiting {
        let (paid, letters) = (paid_and_refunded(), mailed());
        for (tables, event) in [(&paid, "evt_2"), (&letters, "evt_l1"), (&letters, "evt_a1")] {
            let mut events = tables.events.lock().unwrap();
            let row = events.get_mut(&EventId::parse(event).unwrap()).unwrap();
            row.stored.outcome = outcome;
            row.stored.processed = processed;
            drop(events);
            assert_eq!(differences(tables), [""; 0], "{event} {outcome:?}");
        }
    }
}

#[test]
fn a_row_that_took_the_place_of_another_and_is_written_anew_is_edited() {
    let tables = dated_tables();
    let paid = |id: &str, intent: &str| intent_succeeded(id, T, intent, named("ord_1"), 4200);
    run(deliver(
        &tables,
        ProviderId::Stripe,
        &[paid("evt_1", "pi_1")],
    ));
    let write_anew = |status: Option<&str>| {
        let mut entities = tables.entities.lock().unwrap();
        let entity = entities.get_mut(&order("ord_1")).unwrap();
        let row = JsonRow(
            json!({ "amountTotal": 4200, "currency": "usd", "status": status,
            "createdAt": "2027-01-01T00:00:00Z" }),
        );
        let (key, state) = (entity.key(), json!(entity.to_row()));
        *entity = key
            .read(&RowRules::default(), Some(&row), Some(&state))
            .unwrap();
    };
    write_anew(None);
    is_none_different(&tables);
    run(deliver(
        &tables,
        ProviderId::Stripe,
        &[paid("evt_2", "pi_2")],
    ));
    is_none_different(&tables);
    write_anew(Some("pending"));
    is_none_different(&tables);
}

fn with_invoice(mut event: Value, invoice: &str) -> Value {
    event["data"]["object"]["invoice"] = json!(invoice);
    event
}

#[test]
fn a_parked_session_has_not_told_its_invoice_of_the_order() {
    let tables = tables();
    let session = |id: &str| session_completed(id, T, "cs_1", None, named("ord_9"), "paid");
    let parked = with_invoice(session("evt_1"), "in_1");
    run(deliver(&tables, ProviderId::Stripe, &[parked]));
    assert_eq!(outcome(&tables, "evt_1"), super::parked("order_unknown"));
    let ord_9 = order("ord_9");
    let row = memory::entity(&ord_9);
    tables.entities.lock().unwrap().insert(ord_9, row);
    let mut expired = session("evt_2");
    expired["type"] = json!("checkout.session.expired");
    run(deliver(&tables, ProviderId::Stripe, &[expired]));
    assert_eq!(differences(&tables), [""; 0]);
}

/// After a rollback: the newer release wrote some of the rows.
#[test]
fn what_only_a_newer_release_can_read_makes_nothing_else_different() {
    for newer in [
        "payment#platform#pi_1",
        "order#ord_1",
        "payment#platform#ch_1",
        "invoice#platform#in_1",
    ] {
        let tables = tables();
        let mut paid = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
        paid["data"]["object"]["invoice"] = json!("in_1");
        let back = charge_refunded("evt_2", T + 1, "ch_1", Some("pi_1"), 1000);
        run(deliver(&tables, ProviderId::Stripe, &[paid, back]));
        let newer = StateKey::parse(newer).unwrap();
        tables.newer.lock().unwrap().insert(newer.clone());
        let proofs = prove_all(&tables);
        let different: Vec<&StateProof> = proofs
            .iter()
            .filter(|proof| proof.result() == ProofResult::Different)
            .collect();
        assert_eq!(
            different.iter().map(|proof| &proof.key).collect::<Vec<_>>(),
            [&newer]
        );
        assert!(different[0].correction.is_none());
    }
}

/// It was lost with its table: nothing but the index knows that the state took it.
#[test]
fn an_event_that_a_tenant_gets_back_is_remembered() {
    let tables = dated_tables();
    let updated = |id: &str, at: i64, charges: bool| {
        let account =
            json!({ "id": "acct_a", "charges_enabled": charges, "payouts_enabled": true });
        from_account(stripe(id, "account.updated", at, account), "acct_a")
    };
    run(deliver(
        &tables,
        ProviderId::Stripe,
        &[updated("evt_1", T, false)],
    ));
    let key = EntityKey::Tenant(TenantId::parse("ten_a").unwrap());
    let before = tables.entities.lock().unwrap()[&key].clone();
    run(deliver(
        &tables,
        ProviderId::Stripe,
        &[updated("evt_2", T + 1, true)],
    ));
    let facts = |tables: &MemoryTables| json!(entity(tables, &key).to_row())["facts"].clone();
    let whole = facts(&tables);
    tables.entities.lock().unwrap().insert(key.clone(), before);
    assert_eq!(repair_as_operator(&tables), Ok(()));
    assert_eq!(facts(&tables), whole);
    // By what it remembers alone, as every night.
    assert_eq!(differences(&tables), [""; 0]);
    repair_all(&tables);
    assert_eq!(facts(&tables), whole);
}

/// Nothing is left of a payment but the copies of the orders that share it, and only one of these is looked at.
#[test]
fn a_repair_decides_no_conflict() {
    let tables = tables();
    for (n, id) in ["ord_1", "ord_2"].into_iter().enumerate() {
        let paid = session_completed(&format!("evt_{n}"), T, "cs_1", None, named(id), "paid");
        run(deliver(&tables, ProviderId::Stripe, &[paid]));
    }
    let links = |tables: &MemoryTables| {
        ["ord_1", "ord_2"].map(|id| {
            let entity = entity(tables, &order(id));
            let payments = &entity.linked_payment_facts().unwrap().payments;
            payments.values().next().unwrap().link
        })
    };
    let before = links(&tables);
    assert!(matches!(
        before,
        [LinkState::Conflict(_), LinkState::Conflict(_)]
    ));
    tables.payments.lock().unwrap().clear();
    forget_events(&tables, &["evt_0", "evt_1"]);
    for id in ["ord_1", "ord_2"] {
        repair(&tables, &order(id).into());
    }
    assert_eq!(links(&tables), before);
    assert!(tables.payments.lock().unwrap().is_empty());
}

/// The copies have the decision: neither the payment's row nor an index does any more.
#[test]
fn a_relink_of_a_session_is_known_by_its_copies() {
    let tables = tables();
    let mut paid = session_completed("evt_1", T, "cs_1", None, named("ord_1"), "paid");
    paid["data"]["object"]["amount_total"] = json!(4200);
    run(deliver(&tables, ProviderId::Stripe, &[paid]));
    relink(&tables, "payment#platform#cs_1", "ord_2");
    tables.payments.lock().unwrap().clear();
    repair_all(&tables);
    assert_eq!(differences(&tables), [""; 0]);
    let relinked = payment(&tables, "payment#platform#cs_1")
        .facts
        .relink
        .unwrap();
    assert_eq!(relinked.0.reason, "asked");
    assert_eq!(status(&tables, "ord_1").1, "unpaid");
    assert_eq!(status(&tables, "ord_2").1, "paid");
}

fn relink(tables: &MemoryTables, payment: &str, to: &str) {
    let payment = PaymentKey::parse(payment).unwrap();
    let (worker, to) = (worker_of(tables), order(to));
    // Refused where a person would be.
    drop(run(worker.relink_payment(
        &payment,
        Some(&to),
        "arn:pat",
        "asked",
    )));
}

#[test]
fn a_relink_outlives_the_state_that_had_it() {
    type Loss = fn(&MemoryTables);
    let losses: [Loss; 2] = [
        |tables| tables.payments.lock().unwrap().clear(),
        |tables| change_payment(tables, PAYMENT, |payment| payment.facts.relink = None),
    ];
    for loss in losses {
        let tables = paid_and_refunded();
        relink(&tables, PAYMENT, "ord_2");
        assert_eq!(status(&tables, "ord_2").1, "paid");
        assert_eq!(differences(&tables), [""; 0]);
        loss(&tables);
        assert_ne!(differences(&tables), [""; 0]);
        repair_all(&tables);
        repair_all(&tables);
        assert_eq!(differences(&tables), [""; 0]);
        assert_eq!(status(&tables, "ord_1").1, "unpaid");
        assert_eq!(status(&tables, "ord_2").1, "paid");
        // And what comes later goes where the person said.
        let back = refund("evt_3", T + 9, "re_2", ("pi_1", "ch_1"), 3200, "succeeded");
        run(deliver(&tables, ProviderId::Stripe, &[back]));
        assert_eq!(status(&tables, "ord_2").1, "refunded");
    }
}

#[test]
fn a_payment_that_is_nobodys_is_proven_and_stays_so_when_its_state_is_lost() {
    let tables = paid_and_refunded();
    let payment = PaymentKey::parse(PAYMENT).unwrap();
    let worker = worker_of(&tables);
    run(worker.relink_payment(&payment, None, "arn:pat", "another shop's")).unwrap();
    assert_eq!(differences(&tables), [""; 0]);
    tables.payments.lock().unwrap().clear();
    assert_ne!(differences(&tables), [""; 0]);
    // Its events are found by when they arrived.
    let key = StateKey::Payment(payment);
    let events = ["evt_1", "evt_2"].map(|id| EventId::parse(id).unwrap());
    let named = EventsByState::from([(key.clone(), events.into())]);
    let (prover, reprocess) = (prover(&tables), ReprocessInMemory(&tables));
    run(repair_state(&prover, &worker, &reprocess, &key, &named)).unwrap();
    assert_eq!(differences(&tables), [""; 0]);
    let rebuilt = super::payment_state(&tables, PAYMENT);
    assert!(rebuilt.is_nobodys(), "{:?}", rebuilt.facts.relink);
    assert_eq!(status(&tables, "ord_1").1, "unpaid");
}

#[test]
fn a_name_that_was_lost_with_its_event_takes_no_facts_along() {
    let tables = tables();
    let early = charge_refunded("evt_1", T, "ch_1", None, 1000);
    let paid = intent_succeeded("evt_2", T, "pi_1", named("ord_1"), 4200);
    let naming = charge_refunded("evt_3", T + 1, "ch_1", Some("pi_1"), 1000);
    for event in [early, paid, naming] {
        run(deliver(&tables, ProviderId::Stripe, &[event]));
    }
    let before = payment(&tables, PAYMENT).facts.money;
    forget_events(&tables, &["evt_3"]);
    change_payment(&tables, PAYMENT, |payment| payment.facts.names.clear());
    repair_all(&tables);
    assert_eq!(payment(&tables, PAYMENT).facts.money, before);
}

/// Two events state one refunded charge, and the facts name only the first.
#[test]
fn a_state_made_again_from_a_copy_keeps_what_events_state_that_nothing_names() {
    type Loss = fn(&MemoryTables);
    let losses: [Loss; 2] = [
        |tables| tables.payments.lock().unwrap().clear(),
        |tables| change_payment(tables, PAYMENT, |payment| payment.history.event_ids.clear()),
    ];
    for loss in losses {
        let tables = tables();
        let events = [
            charge_refunded("evt_1", T + 1, "ch_1", Some("pi_1"), 1000),
            charge_refunded("evt_2", T + 2, "ch_1", Some("pi_1"), 4200),
            intent_succeeded("evt_3", T, "pi_1", named("ord_1"), 4200),
        ];
        for event in events {
            run(deliver(&tables, ProviderId::Stripe, &[event]));
        }
        let before = payment(&tables, PAYMENT).facts.money;
        loss(&tables);
        for _ in 0..3 {
            repair_all(&tables);
        }
        assert_eq!(payment(&tables, PAYMENT).facts.money, before);
        assert_eq!(status(&tables, "ord_1").0, "refunded");
    }
}

/// What may happen: its kind, and choices.
type DrawnStep = (usize, Drawn, [usize; 4]);

fn drawn_step() -> impl Strategy<Value = DrawnStep> {
    let choices = [0..60_usize, 0..60, 0..60, 0..60];
    (0..40_usize, drawn(), choices)
}

/// An event about a payment, under any of its names, by any account, naming any order.
fn any_event(n: usize, drawn: Drawn, [who, account, name, invoice]: [usize; 4]) -> Value {
    let mut event = generated(n, drawn);
    let (payment, other) = (drawn.1, drawn.3);
    let object = &mut event["data"]["object"];
    let kind = object["object"].as_str().unwrap_or_default().to_owned();
    let charge = format!("ch_{payment}_{}", other % 2);
    match kind.as_str() {
        "charge" | "refund" | "dispute" => {
            if kind != "charge" {
                object["charge"] = json!(charge);
            }
            if name % 3 == 0 {
                object["payment_intent"] = json!(null);
            }
        }
        "checkout.session" => {
            if name % 3 == 0 {
                object["payment_intent"] = json!(null);
            }
            if invoice % 3 == 0 {
                object["invoice"] = json!(format!("in_{}", invoice % 2));
            }
        }
        "payment_intent" => {
            if object["status"] == json!("succeeded") && name % 2 == 0 {
                object["latest_charge"] = json!(charge);
            }
            if invoice % 3 == 0 {
                object["invoice"] = json!(format!("in_{}", invoice % 2));
            }
        }
        _ => {}
    }
    let order = ["ord_1", "ord_2", "ord_9", "ord_a"].get(who % 12);
    match order {
        Some(order) => object["metadata"] = named(order),
        None if who % 12 == 4 => object["metadata"] = json!({ "statement_id": "st_1" }),
        None if who % 12 == 5 => {}
        None => object["metadata"] = json!({}),
    }
    let accounts = ["acct_a", "acct_b", "acct_x", "acct_two", "acct_a"];
    let Some(account) = accounts.get(account % 10) else {
        return event;
    };
    // An id of Stripe's is in one account only.
    let mut text = event.to_string();
    for kind in ["pi", "ch", "cs", "re", "dp", "in"] {
        let own = format!("\"{kind}_{}", &account[5..]);
        text = text.replace(&format!("\"{kind}_"), &own);
    }
    from_account(serde_json::from_str(&text).unwrap(), account)
}

fn provider_of(id: &str) -> ProviderId {
    match id.starts_with("evt_l") {
        true => ProviderId::Lob,
        false => ProviderId::Stripe,
    }
}

fn process_again(tables: &MemoryTables, ids: &[EventId]) {
    for id in ids {
        let message = ReceivedMessage {
            message_id: id.to_string(),
            body: json!({ "event_id": id }).to_string(),
            receive_count: 1,
            is_last_receive: false,
        };
        run(work(tables, provider_of(id.as_str()), &[message]));
    }
}

fn events_that(tables: &MemoryTables, is: impl Fn(&memory::EventRow) -> bool) -> Vec<EventId> {
    let events = tables.events.lock().unwrap();
    let chosen = events.iter().filter(|(_, row)| is(row));
    chosen.map(|(id, _)| id.clone()).collect()
}

fn nth<T: Clone>(all: &[T], n: usize) -> Option<T> {
    all.get(n.checked_rem(all.len())?).cloned()
}

fn set_tenant(tables: &MemoryTables, account: &str, tenant: Option<&str>) {
    let account = AccountId::parse(account).unwrap();
    let mut tenants = tables.tenants.lock().unwrap();
    tenants.retain(|(known, _)| *known != account);
    tenants.extend(tenant.map(|tenant| (account, TenantId::parse(tenant).unwrap())));
}

/// With rows that say when they were made.
fn dated_tables() -> MemoryTables {
    let tables = tables();
    let mut entities = tables.entities.lock().unwrap();
    for (key, entity) in entities.iter_mut() {
        let tenant = entity.tenant();
        let made = "2026-01-01T00:00:00Z";
        let row = json!({ "amountTotal": 4200, "amount_due": 4200, "currency": "usd", "tenantId": tenant,
            "tenant_id": tenant, "lob_letter_id": "ltr_1", "createdAt": made, "created_at": made });
        *entity = memory::entity_of(key, row);
    }
    let key = EntityKey::Tenant(TenantId::parse("ten_a").unwrap());
    let tenant = json!({ "tenant_id": "ten_a", "stripe_connected_account_id": "acct_a" });
    entities.insert(key.clone(), memory::entity_of(&key, tenant));
    drop(entities);
    tables
}

/// Does one step. In a wild history, events expire too, and people and the application edit.
fn take_step(tables: &MemoryTables, n: usize, (kind, drawn, choices): DrawnStep, is_wild: bool) {
    let [a, b, c, _] = choices;
    let chosen_order = ["ord_1", "ord_2", "ord_a", "ord_9"][a % 4];
    match kind {
        0..22 => {
            let event = any_event(n, drawn, choices);
            run(deliver(tables, ProviderId::Stripe, &[event]));
        }
        22 => {
            let at = format!("2026-11-{:02}T08:00:00.000Z", 10 + a % 9);
            let stage = ["mailed", "in_transit", "delivered", "returned_to_sender"][b % 4];
            let mut event = letter(
                &format!("evt_l{n}"),
                &at,
                &format!("ltr_{}", 1 + c % 2),
                stage,
            );
            event["body"]["metadata"] = json!({ "statement_id": "st_1" });
            event["body"]["tracking_number"] = json!(format!("n{}", a % 3));
            run(deliver(tables, ProviderId::Lob, &[event]));
        }
        23 => {
            let object =
                json!({ "id": "acct_a", "charges_enabled": b % 2 == 0, "payouts_enabled": true });
            let event = stripe(
                &format!("evt_{n:02}"),
                "account.updated",
                T + drawn.5,
                object,
            );
            run(deliver(
                tables,
                ProviderId::Stripe,
                &[from_account(event, "acct_a")],
            ));
        }
        24..27 => {
            let payments: Vec<PaymentKey> =
                tables.payments.lock().unwrap().keys().cloned().collect();
            if let Some(payment) = nth(&payments, b) {
                relink(tables, &payment.to_string(), chosen_order);
            }
        }
        27 => {
            let payments: Vec<PaymentKey> =
                tables.payments.lock().unwrap().keys().cloned().collect();
            if let Some(payment) = nth(&payments, b) {
                let message = ReceivedMessage {
                    message_id: "recheck".to_owned(),
                    body: json!({ "source": "recheck", "payment": payment }).to_string(),
                    receive_count: 1,
                    is_last_receive: false,
                };
                run(work(tables, ProviderId::Stripe, &[message]));
            }
        }
        28 => {
            let ord_9 = order("ord_9");
            let row = memory::entity(&ord_9);
            tables.entities.lock().unwrap().entry(ord_9).or_insert(row);
        }
        // The sweep.
        29 | 30 => {
            let parked = events_that(tables, |row| !row.stored.processed);
            process_again(tables, &parked);
        }
        // A replay of one that is processed: it is open for a while.
        31 | 32 => {
            let done = events_that(tables, |row| row.stored.processed);
            if let Some(id) = nth(&done, b) {
                let mut events = tables.events.lock().unwrap();
                let row = events.get_mut(&id).unwrap();
                row.stored.processed = false;
                row.stored.outcome = EventOutcome::Pending;
                drop(events);
                if c % 2 == 0 {
                    process_again(tables, &[id]);
                }
            }
        }
        33 if is_wild => {
            set_tenant(
                tables,
                "acct_a",
                [None, Some("ten_a"), Some("ten_a")][a % 3],
            );
        }
        34 | 35 if is_wild => {
            let all = events_that(tables, |row| row.stored.processed);
            if let Some(id) = nth(&all, b) {
                tables.events.lock().unwrap().remove(&id);
            }
        }
        36 | 37 if is_wild => {
            let mut entities = tables.entities.lock().unwrap();
            if let Some(Entity::Order(order)) = entities.get_mut(&order(chosen_order)) {
                match b % 9 {
                    0 => order.columns.status = Some("cancelled".to_owned()),
                    1 => order.columns.status = Some("refunded".to_owned()),
                    2 => order.columns.payment_status = Some("paid".to_owned()),
                    3 => {
                        order.columns.requires_review = order.columns.requires_review.map(|is| !is)
                    }
                    4 => {
                        order.given.due = order.given.due.map(|mut due| {
                            due.amount += 1;
                            due
                        })
                    }
                    5 => order.given.user = Some(format!("user {c}")),
                    6 => order.given.intent = PaymentIntentId::parse(&format!("pi_{}", c % 4)).ok(),
                    7 => {
                        order.given.session =
                            CheckoutSessionId::parse(&format!("cs_{}", c % 4)).ok()
                    }
                    _ => order.columns.status = None,
                }
            }
        }
        38 if is_wild => {
            let mut entities = tables.entities.lock().unwrap();
            if let Some(Entity::Statement(statement)) = entities.get_mut(&statement("st_1")) {
                statement.given.piece = PieceId::parse(&format!("ltr_{}", a % 3)).ok();
            }
        }
        // The application deletes a row, or makes another one in its place.
        39 if is_wild => {
            let key = order(chosen_order);
            let mut entities = tables.entities.lock().unwrap();
            if let Some(entity) = entities.get_mut(&key) {
                let state = json!(entity.to_row());
                let row = JsonRow(
                    json!({ "amountTotal": 4200, "currency": "usd", "status": "pending",
                    "createdAt": "2027-01-01T00:00:00Z", "tenantId": entity.tenant() }),
                );
                let row = (b % 2 == 0).then_some(row);
                let state = (entity.version() > 0).then_some(state);
                if state.is_some() {
                    *entity = key
                        .read(&RowRules::default(), row.as_ref(), state.as_ref())
                        .unwrap();
                }
            }
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(same_histories(96))]

    #[test]
    fn whatever_happens_nothing_is_different(steps in prop::collection::vec(drawn_step(), 1..40)) {
        let tables = dated_tables();
        for (n, step) in steps.iter().enumerate() {
            take_step(&tables, n, *step, true);
            let proofs = prove_all(&tables).into_iter();
            // Of a row that lacks columns of billhook's it is told that they are missing.
            let is_of_row = |of: &StateDifference| {
                matches!(of.source, DifferenceSource::Row | DifferenceSource::Edit)
            };
            let different: Vec<_> = proofs
                .filter(|proof| !proof.differences.iter().all(is_of_row))
                .collect();
            prop_assert!(different.is_empty(), "after {n}: {different:#?}");
        }
    }

    #[test]
    fn a_repair_at_any_moment_changes_nothing(
        steps in prop::collection::vec(drawn_step(), 1..40),
        repairs in prop::collection::vec(any::<bool>(), 40),
    ) {
        let (plain, repaired) = (dated_tables(), dated_tables());
        for (n, step) in steps.iter().enumerate() {
            take_step(&plain, n, *step, false);
            take_step(&repaired, n, *step, false);
            if repairs[n] {
                repair_all(&repaired);
            }
        }
        let all: Vec<EntityKey> = plain.entities.lock().unwrap().keys().cloned().collect();
        for key in all {
            prop_assert_eq!(view(&plain, &key), view(&repaired, &key));
        }
        let facts = |tables: &MemoryTables| {
            let payments = tables.payments.lock().unwrap();
            payments.iter().map(|(key, state)| (key.clone(), state.facts.clone())).collect::<Vec<_>>()
        };
        prop_assert_eq!(facts(&plain), facts(&repaired));
    }
}

const DAMAGE_KINDS: usize = 16;

/// Damages one state. Whether it did.
fn damage_state(tables: &MemoryTables, kind: usize, which: usize) -> bool {
    let keys: Vec<PaymentKey> = tables.payments.lock().unwrap().keys().cloned().collect();
    let Some(key) = nth(&keys, which) else {
        return false;
    };
    let change = |change: &dyn Fn(&mut PaymentState)| {
        change_payment(tables, &key.to_string(), |payment| change(payment));
    };
    match kind {
        0 => drop(tables.payments.lock().unwrap().remove(&key)),
        1 => change(&|payment| payment.facts.money.refunds.clear()),
        2 => change(&|payment| payment.facts.money = MoneyFacts::default()),
        3 => change(&|payment| payment.facts.links.clear()),
        4 => change(&|payment| payment.facts.relink = None),
        5 => change(&|payment| payment.facts.names.clear()),
        6 => change(&|payment| payment.copied.clear()),
        7 => tables.invoices.lock().unwrap().clear(),
        8 | 9 => {
            let key = order(["ord_1", "ord_2", "ord_a"][which % 3]);
            let mut entities = tables.entities.lock().unwrap();
            let order = order_mut(entities.get_mut(&key).unwrap());
            for copy in order.facts.payments.values_mut() {
                match kind {
                    8 => copy.facts = MoneyFacts::default(),
                    _ => copy.link = LinkState::Elsewhere,
                }
            }
        }
        10 => {
            let done = events_that(tables, |row| {
                row.stored.outcome == EventOutcome::Processed && row.stored.processed
            });
            if let Some(id) = nth(&done, which) {
                let mut events = tables.events.lock().unwrap();
                events.get_mut(&id).unwrap().stored.outcome = EventOutcome::Ignored;
            }
        }
        11 => {
            let mut entities = tables.entities.lock().unwrap();
            if let Some(Entity::Statement(statement)) = entities.get_mut(&statement("st_1")) {
                statement.facts.mail.pieces.clear();
            }
        }
        12 => change(&|payment| payment.facts.invoices.clear()),
        13 => change(&|payment| payment.history.event_ids.clear()),
        14 => {
            let key = order(["ord_1", "ord_2", "ord_a"][which % 3]);
            let mut entities = tables.entities.lock().unwrap();
            let order = order_mut(entities.get_mut(&key).unwrap());
            order.facts.payments.clear();
        }
        _ => change(&|payment| payment.facts.money.payments.clear()),
    }
    true
}

/// As the operator's tool does: payments first, with the events that an index names.
fn repair_as_operator(tables: &MemoryTables) -> Result<(), String> {
    let mut lost = EventsByState::new();
    for provider in [ProviderId::Stripe, ProviderId::Lob] {
        let arrived = arrived(tables);
        let of_provider = arrived
            .iter()
            .filter(|event| provider_of(event.id.as_str()) == provider);
        let of_provider: Vec<ArrivedEvent> = of_provider.cloned().collect();
        lost.extend(run(prover(tables).find_lost_events(provider, &of_provider)).unwrap());
    }
    let mut keys: Vec<StateKey> = all_keys(tables)
        .into_iter()
        .chain(lost.keys().cloned())
        .collect();
    keys.sort_by_key(|key| (!matches!(key, StateKey::Payment(_)), key.to_string()));
    keys.dedup();
    let (worker, events) = (worker_of(tables), ReprocessInMemory(tables));
    for key in keys {
        let repaired = run(repair_state(&prover(tables), &worker, &events, &key, &lost));
        repaired.map_err(|failure| format!("{key}: {failure}"))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(same_histories(96))]

    #[test]
    fn any_damage_is_mended_while_the_events_are_there(
        steps in prop::collection::vec(drawn_step(), 1..30),
        damage in 0..DAMAGE_KINDS,
        which in 0..60_usize,
    ) {
        let (whole, tables) = (dated_tables(), dated_tables());
        for (n, step) in steps.iter().enumerate() {
            take_step(&whole, n, *step, false);
            take_step(&tables, n, *step, false);
        }
        for tables in [&whole, &tables] {
            let open = events_that(tables, |row| !row.stored.processed);
            process_again(tables, &open);
        }
        damage_state(&tables, damage, which);
        for _ in 0..2 {
            let mended = repair_as_operator(&tables);
            prop_assert!(mended.is_ok(), "{mended:?}");
        }
        prop_assert_eq!(differences(&tables), Vec::<String>::new());
        let all: Vec<EntityKey> = whole.entities.lock().unwrap().keys().cloned().collect();
        for key in all {
            let columns = |tables: &MemoryTables| {
                let entity = entity(tables, &key);
                let derived = entity.apply_facts([], now());
                (entity.columns().clone(), derived.payment().cloned(), derived.mail().cloned())
            };
            prop_assert_eq!(columns(&whole), columns(&tables), "{}", key);
        }
    }
}

/// Its payment has taken the facts of an event that names no order of ours; then a person closes the event, or mutes the
/// tenant.
#[test]
fn an_event_that_a_person_had_ignored_is_no_difference() {
    for reason in ["closed", "muted"] {
        let tables = tables();
        let paid = intent_succeeded("evt_1", T, "pi_1", named("ord_nobody"), 4200);
        run(deliver(&tables, ProviderId::Stripe, &[paid]));
        assert_eq!(outcome(&tables, "evt_1"), super::parked("order_unknown"));
        let set = |error: &str| {
            let mut events = tables.events.lock().unwrap();
            let row = events.get_mut(&EventId::parse("evt_1").unwrap()).unwrap();
            (row.stored.processed, row.stored.outcome) = (true, EventOutcome::Ignored);
            row.error = Some(error.to_owned());
        };
        set("nothing_named");
        assert_eq!(differences(&tables).len(), 1);
        set(reason);
        assert_eq!(differences(&tables), [""; 0], "{reason}");
    }
}
