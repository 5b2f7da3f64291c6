//! Generated stories of payments, orders and invoices: what names what, in any order, with rows that come late, names of
//! other tenants, two orders for one payment, and people who decide. An oracle that knows only the story says how every
//! order must end.

use billhook_core::provider::interpret::InterpretRules;
use proptest::prelude::*;

use super::laws::same_histories;
use super::*;

/// The amount due of each order, and of each payment.
const DUE: i64 = 4200;

/// One payment of tenant A, and everything that says whose it is.
#[derive(Clone, Debug)]
struct PaymentStory {
    /// Orders that metadata of its events names, by number: 0 to 2 are tenant A's, 3 is tenant B's, 4 never exists.
    named: Vec<usize>,
    /// The order whose session made the invoice that the payment pays.
    by_invoice: Option<usize>,
    /// The order that has it in its column.
    in_column: Option<usize>,
    is_paid: bool,
    /// What was given back, and whether that failed afterwards.
    refunds: Vec<(i64, bool)>,
    /// By an event that knows only the charge.
    is_disputed: bool,
    relinked: Option<usize>,
}

impl PaymentStory {
    fn refunded(&self) -> i64 {
        let made = self.refunds.iter().filter(|(_, fails)| !fails);
        made.map(|(amount, _)| amount).sum()
    }
}

fn payment() -> impl Strategy<Value = PaymentStory> {
    let order = || prop::option::weighted(0.3, 0_usize..3);
    (
        prop::collection::vec(0_usize..5, 0..3),
        order(),
        order(),
        any::<bool>(),
        prop_oneof![
            prop::collection::vec((Just(1000), any::<bool>()), 0..4),
            prop::collection::vec((Just(DUE), any::<bool>()), 1),
        ],
        prop::bool::weighted(0.3),
        prop::option::weighted(0.2, 0_usize..3),
    )
        .prop_map(
            |(named, by_invoice, in_column, is_paid, refunds, is_disputed, relinked)| {
                PaymentStory {
                    named,
                    by_invoice,
                    in_column,
                    is_paid,
                    refunds,
                    is_disputed,
                    relinked,
                }
            },
        )
}

fn order_id(n: usize) -> String {
    format!("ord_s{n}")
}

/// Something that happens, once or several times, in any order.
#[derive(Clone, Debug)]
enum StoryStep {
    Event(Value),
    /// The application writes the row, with this payment in its column.
    Row(usize, Option<usize>),
    Relink(usize, usize),
}

/// Everything that happens in a story.
fn steps(payments: &[PaymentStory]) -> Vec<StoryStep> {
    let mut steps = Vec::new();
    for order in 0..4 {
        let in_column = payments.iter().position(|of| of.in_column == Some(order));
        steps.push(StoryStep::Row(order, in_column));
    }
    let mut event = |value: Value| {
        let id = format!("evt_{:03}", steps.len());
        let mut value = from_account(value, "acct_a");
        value["id"] = json!(id);
        steps.push(StoryStep::Event(value));
    };
    for (n, payment) in payments.iter().enumerate() {
        let (intent, charge) = (format!("pi_{n}"), format!("ch_{n}"));
        let at = T + i64::try_from(n).unwrap();
        for order in &payment.named {
            let named = json!({ "order_id": order_id(*order) });
            event(intent_is("", at, &intent, named, "processing"));
        }
        if let Some(order) = payment.by_invoice {
            // A session of a subscription names the order and the invoice, and no payment.
            let named = json!({ "order_id": order_id(order) });
            let session = format!("cs_{n}");
            let mut value = session_completed("", at, &session, None, named, "unpaid");
            value["data"]["object"]["invoice"] = json!(format!("in_{n}"));
            event(value);
        }
        if payment.is_paid {
            let mut value = intent_succeeded("", at, &intent, json!({}), DUE);
            value["data"]["object"]["latest_charge"] = json!(charge);
            event(value);
        }
        for (which, (amount, fails)) in payment.refunds.iter().enumerate() {
            let (id, of) = (format!("re_{n}_{which}"), (&*intent, &*charge));
            event(refund("", at + 4, &id, of, *amount, "succeeded"));
            if *fails {
                event(refund("", at + 600, &id, of, *amount, "failed"));
            }
        }
        // What names its invoice, and what was refunded before anything failed.
        let figure = payment.refunds.iter().map(|(amount, _)| amount).sum();
        let mut value = charge_refunded("", at + 5, &charge, Some(&intent), figure);
        if payment.by_invoice.is_some() {
            value["data"]["object"]["invoice"] = json!(format!("in_{n}"));
        }
        event(value);
        if payment.is_disputed {
            let id = format!("dp_{n}");
            let mut value = dispute("", at + 9, &id, &intent, "needs_response");
            value["data"]["object"]["payment_intent"] = Value::Null;
            value["data"]["object"]["charge"] = json!(charge);
            event(value);
        }
    }
    // What is told again afterwards does not undo it.
    for (n, payment) in payments.iter().enumerate() {
        steps.extend(payment.relinked.map(|order| StoryStep::Relink(n, order)));
    }
    steps
}

/// Whose a payment is.
#[derive(Debug, PartialEq, Eq)]
enum PaymentOwner {
    Nobody,
    One(usize),
    Several(Vec<usize>),
}

fn owner(payment: &PaymentStory) -> PaymentOwner {
    if let Some(order) = payment.relinked {
        return PaymentOwner::One(order);
    }
    let own = |order: &usize| *order < 3;
    let named: BTreeSet<usize> = payment.named.iter().copied().filter(own).collect();
    let best = if !named.is_empty() {
        named
    } else if payment.by_invoice.is_some() {
        payment.by_invoice.into_iter().collect()
    } else {
        payment.in_column.into_iter().collect()
    };
    match Vec::from_iter(best).as_slice() {
        [] => PaymentOwner::Nobody,
        [order] => PaymentOwner::One(*order),
        several => PaymentOwner::Several(several.to_vec()),
    }
}

/// Status, payment status, amount refunded and review reasons of an order.
type Ending = (String, String, i64, BTreeSet<String>);

fn ending_of(order: usize, payments: &[PaymentStory]) -> Ending {
    let own: Vec<(usize, &PaymentStory)> = payments
        .iter()
        .enumerate()
        .filter(|(_, payment)| owner(payment) == PaymentOwner::One(order))
        .collect();
    let mut reasons = BTreeSet::new();
    let paid: Vec<usize> = own
        .iter()
        .filter(|(_, of)| of.is_paid)
        .map(|(n, _)| *n)
        .collect();
    // What went back is no second payment.
    let is_back = |n: &usize| payments[*n].refunded() == DUE;
    let standing: Vec<usize> = paid.iter().copied().filter(|n| !is_back(n)).collect();
    for second in standing.iter().skip(1) {
        reasons.insert(format!("paid_twice:pi_{second}"));
    }
    for (n, payment) in &own {
        if payment.is_disputed {
            reasons.insert(format!("dispute_open:dp_{n}"));
        }
        for (which, _) in payment.refunds.iter().enumerate().filter(|(_, of)| of.1) {
            reasons.insert(format!("refund_failed:re_{n}_{which}"));
        }
    }
    for (n, payment) in payments.iter().enumerate() {
        if matches!(owner(payment), PaymentOwner::Several(orders) if orders.contains(&order)) {
            reasons.insert(format!("link_conflict:pi_{n}"));
        }
    }
    // A payment of its own is over, because its charge says that it was captured.
    let in_column = payments.iter().position(|of| of.in_column == Some(order));
    let is_waiting = in_column.is_some_and(|n| owner(&payments[n]) != PaymentOwner::One(order));
    for n in standing.iter().filter(|_| is_waiting) {
        if payments[*n].relinked.is_none() {
            reasons.insert(format!("unexpected_payment:pi_{n}"));
        }
    }
    // A session that completed unpaid, until a payment of its invoice says how it went.
    let has_unpaid_session = payments
        .iter()
        .any(|of| of.by_invoice == Some(order) && !of.is_paid);
    // Every charge says that it was captured.
    let is_all_back =
        !own.is_empty() && !has_unpaid_session && own.iter().all(|(_, of)| of.refunded() == DUE);
    let is_named = |of: &PaymentStory| !of.named.is_empty() && !of.is_paid;
    let is_processing = has_unpaid_session || own.iter().any(|(_, of)| is_named(of));
    let is_undisputed = |n: &usize| !payments[*n].is_disputed;
    let is_disputed = own.iter().any(|(_, of)| of.is_disputed);
    let payment_status = if is_all_back {
        "refunded"
    } else if is_disputed && !standing.iter().any(is_undisputed) {
        "disputed"
    } else if !standing.is_empty() {
        "paid"
    } else if is_processing {
        "processing"
    } else {
        "unpaid"
    };
    let status = match (is_all_back, standing.is_empty()) {
        (true, _) => "refunded",
        (false, false) => "completed",
        (false, true) => "pending",
    };
    let refunded = own.iter().map(|(_, of)| of.refunded()).sum();
    (
        status.to_owned(),
        payment_status.to_owned(),
        refunded,
        reasons,
    )
}

fn ending(tables: &MemoryTables, order: usize) -> Ending {
    let row = entity(tables, &self::order(&order_id(order)));
    let derived = row.apply_facts([], now()).payment().unwrap().clone();
    let columns = row.columns();
    // Of a row that no write has reached, the columns are the application's.
    let word = |column: &Option<String>, initial: &str| {
        column.clone().unwrap_or_else(|| initial.to_owned())
    };
    (
        word(&columns.status, "pending"),
        word(&columns.payment_status, "unpaid"),
        derived.amount_refunded,
        row.last_derived().review_reasons.iter().cloned().collect(),
    )
}

fn story_tables() -> MemoryTables {
    let tables = MemoryTables::default();
    for (account, tenant) in [("acct_a", "ten_a"), ("acct_b", "ten_b")] {
        let pair = (
            AccountId::parse(account).unwrap(),
            TenantId::parse(tenant).unwrap(),
        );
        tables.tenants.lock().unwrap().push(pair);
    }
    tables
}

fn write_row(tables: &MemoryTables, order: usize, in_column: Option<usize>) {
    let tenant = match order {
        3 => "ten_b",
        _ => "ten_a",
    };
    let intent = in_column.map(|n| format!("pi_{n}"));
    let row = json!({ "amountTotal": DUE, "currency": "usd", "tenantId": tenant, "stripePaymentIntentId": intent });
    let key = self::order(&order_id(order));
    let mut entities = tables.entities.lock().unwrap();
    let row = memory::entity_of(&key, row);
    entities.entry(key).or_insert(row);
}

fn message(body: String) -> ReceivedMessage {
    ReceivedMessage {
        message_id: format!("m {body}"),
        body,
        receive_count: 1,
        is_last_receive: false,
    }
}

/// What the sweep does in the end: everything unfinished and every open payment once more.
async fn run_sweeps(tables: &MemoryTables) {
    for _ in 0..3 {
        let events: Vec<String> = {
            let events = tables.events.lock().unwrap();
            let unfinished = events.values().filter(|row| !row.stored.processed);
            unfinished.map(|row| row.stored.id.to_string()).collect()
        };
        let events = events
            .iter()
            .map(|id| json!({ "event_id": id }).to_string());
        let open: Vec<PaymentKey> = {
            let payments = tables.payments.lock().unwrap();
            let open = payments.values().filter(|payment| payment.open.is_some());
            open.map(|payment| payment.key.clone()).collect()
        };
        let rechecks = open
            .iter()
            .map(|key| json!({ "source": "recheck", "payment": key }).to_string());
        let messages: Vec<_> = events.chain(rechecks).map(message).collect();
        work(tables, ProviderId::Stripe, &messages).await;
    }
}

async fn relink(tables: &MemoryTables, payment: usize, order: usize) -> bool {
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: InterpretRules::default(),
        ledger: tables,
        clock: FixedClock::at(now()),
    };
    let payment = PaymentKey::parse(&format!("payment#acct_a#pi_{payment}")).unwrap();
    let to = self::order(&order_id(order));
    worker
        .relink_payment(&payment, Some(&to), "pat", "asked")
        .await
        .is_ok()
}

async fn play(
    tables: &MemoryTables,
    steps: &[StoryStep],
    order: &[prop::sample::Index],
    batch: usize,
) {
    let mut relinks = Vec::new();
    let mut messages = Vec::new();
    for step in order.iter().map(|index| index.get(steps)).chain(steps) {
        match step {
            StoryStep::Row(order, in_column) => write_row(tables, *order, *in_column),
            StoryStep::Relink(payment, order) => relinks.push((*payment, *order)),
            StoryStep::Event(body) => {
                messages.push(keep(tables, ProviderId::Stripe, body).await);
                if messages.len() >= batch {
                    work(tables, ProviderId::Stripe, &std::mem::take(&mut messages)).await;
                }
            }
        }
        // A person can only decide about what is there.
        let mut waiting = Vec::new();
        for (payment, order) in std::mem::take(&mut relinks) {
            if !relink(tables, payment, order).await {
                waiting.push((payment, order));
            }
        }
        relinks = waiting;
    }
    work(tables, ProviderId::Stripe, &messages).await;
    run_sweeps(tables).await;
    for (payment, order) in relinks {
        assert!(relink(tables, payment, order).await);
    }
    run_sweeps(tables).await;
}

proptest! {
    #![proptest_config(same_histories(400))]

    #[test]
    fn every_story_ends_as_it_says_whatever_comes_first(
        payments in prop::collection::vec(payment(), 1..4),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
        batch in 1_usize..6,
    ) {
        // A row has one column.
        let mut payments = payments;
        let mut taken = BTreeSet::new();
        for payment in &mut payments {
            payment.in_column.take_if(|order| !taken.insert(*order));
        }
        let steps = steps(&payments);
        let tables = story_tables();
        laws::run(play(&tables, &steps, &order, batch));
        for order in 0..3 {
            prop_assert_eq!(ending(&tables, order), ending_of(order, &payments), "order {}", order);
        }
        prop_assert_eq!(entity(&tables, &self::order(&order_id(3))).version(), 0, "tenant B's");
        // Only payments without a link are open, and every linked order or statement has the newest copy.
        for (n, payment) in payments.iter().enumerate() {
            let state = payment_state(&tables, &format!("payment#acct_a#pi_{n}"));
            prop_assert_eq!(state.open.is_some(), owner(payment) == PaymentOwner::Nobody, "payment {}", n);
        }
    }
}
