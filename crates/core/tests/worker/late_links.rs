//! Links that a person makes: of a payment that nothing names, however old it is, and of one that is nobody's.

use billhook_testkit::events::refund;

use super::*;

const PAYMENT: &str = "payment#platform#pi_1";

fn payment() -> PaymentKey {
    PaymentKey::parse(PAYMENT).unwrap()
}

fn worker(tables: &MemoryTables) -> Worker<&MemoryTables, FixedClock> {
    Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: tables,
        clock: FixedClock::at(now()),
    }
}

#[tokio::test]
async fn a_payment_that_the_sweep_gave_up_is_linked_though_no_index_shows_the_column() {
    let tables = tables();
    let nameless = intent_succeeded("evt_1", T, "pi_1", json!({}), 4200);
    deliver(&tables, ProviderId::Stripe, &[nameless]).await;
    {
        let mut payments = tables.payments.lock().unwrap();
        let old = payments.get_mut(&payment()).unwrap();
        old.open_since = Some(now().before(Duration::from_hours(40 * 24)));
        old.open = None;
    }
    worker(&tables)
        .link_payment(&payment(), &order("ord_1"))
        .await
        .unwrap();
    assert_eq!(
        status(&tables, "ord_1"),
        ("completed".into(), "paid".into())
    );
    let linked = payment_state(&tables, PAYMENT);
    assert_eq!(linked.linked_entities(), [order("ord_1")].into());
    assert_eq!((linked.open_since, linked.open), (None, None));
    let intent = entity(&tables, &order("ord_1"))
        .last_derived()
        .intent
        .clone();
    assert_eq!(intent.unwrap().as_str(), "pi_1");
    // Again: nothing changes.
    let before = entity(&tables, &order("ord_1"));
    worker(&tables)
        .link_payment(&payment(), &order("ord_1"))
        .await
        .unwrap();
    assert_eq!(entity(&tables, &order("ord_1")).columns(), before.columns());
}

#[tokio::test]
async fn a_link_by_a_column_takes_no_payment_from_the_order_that_its_metadata_names() {
    let tables = tables();
    let paid = intent_succeeded("evt_1", T, "pi_1", named("ord_2"), 4200);
    deliver(&tables, ProviderId::Stripe, &[paid]).await;
    worker(&tables)
        .link_payment(&payment(), &order("ord_1"))
        .await
        .unwrap();
    assert_eq!(
        payment_state(&tables, PAYMENT).linked_entities(),
        [order("ord_2")].into()
    );
    assert_eq!(status(&tables, "ord_1").1, "");
    assert_eq!(status(&tables, "ord_2").1, "paid");
    let unknown = PaymentKey::parse("payment#platform#pi_9").unwrap();
    let refused = worker(&tables)
        .link_payment(&unknown, &order("ord_1"))
        .await;
    assert!(matches!(refused, Err(RelinkError::PaymentUnknown)));
    let of_a = worker(&tables)
        .link_payment(&payment(), &order("ord_gone"))
        .await;
    assert!(matches!(of_a, Err(RelinkError::TargetUnknown)));
}

#[tokio::test]
async fn a_payment_that_is_nobodys_is_settled_and_its_order_loses_it() {
    let tables = tables();
    let paid = intent_succeeded("evt_1", T, "pi_1", named("ord_1"), 4200);
    deliver(&tables, ProviderId::Stripe, &[paid]).await;
    assert_eq!(status(&tables, "ord_1").1, "paid");
    let decide = async |to: Option<&str>| {
        let to = to.map(order);
        let (worker, payment) = (worker(&tables), payment());
        let decided = worker.relink_payment(&payment, to.as_ref(), "pat", "another shop's");
        decided.await.unwrap();
    };
    decide(None).await;
    assert_eq!(
        status(&tables, "ord_1"),
        ("pending".into(), "unpaid".into())
    );
    let nobodys = payment_state(&tables, PAYMENT);
    assert!(nobodys.is_nobodys() && nobodys.linked_entities().is_empty());
    assert_eq!((nobodys.open_since, nobodys.open), (None, None));
    // Later events, whatever they name, keep the decision, and so does a recheck.
    let late = refund("evt_2", T + 60, "re_1", ("pi_1", "ch_1"), 4200, "succeeded");
    let again = intent_succeeded("evt_3", T, "pi_1", named("ord_2"), 4200);
    deliver(&tables, ProviderId::Stripe, &[late, again]).await;
    assert_eq!(outcome(&tables, "evt_2"), processed());
    assert_eq!(outcome(&tables, "evt_3"), processed());
    assert!(payment_state(&tables, PAYMENT).linked_entities().is_empty());
    assert_eq!(payment_state(&tables, PAYMENT).open, None);
    assert_eq!(status(&tables, "ord_1").1, "unpaid");
    assert_ne!(status(&tables, "ord_2").1, "refunded");
    // The next decision replaces it.
    decide(Some("ord_2")).await;
    assert_eq!(status(&tables, "ord_2").1, "refunded");
}

#[tokio::test]
async fn a_payment_that_never_had_an_order_is_settled_as_nobodys() {
    let tables = tables();
    let nameless = intent_succeeded("evt_1", T, "pi_1", json!({}), 4200);
    deliver(&tables, ProviderId::Stripe, &[nameless]).await;
    assert!(payment_state(&tables, PAYMENT).open.is_some());
    worker(&tables)
        .relink_payment(&payment(), None, "pat", "another shop's")
        .await
        .unwrap();
    assert_eq!(payment_state(&tables, PAYMENT).open, None);
}
