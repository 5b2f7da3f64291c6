//! A story of money: what was due, who paid how, what was given back or disputed, and what people wrote into the row. It
//! makes the events that Stripe sends of it, in the form of an API version.

use billhook_testkit::events::{
    charge_refunded, dispute, intent_failed, intent_is, intent_succeeded, refund,
    session_completed, stripe,
};
use billhook_testkit::sim::rng::Rng;
use serde_json::{Value, json};

use super::T;

/// The time of an act: all acts of a story have different ones, so far apart that what billhook writes meanwhile is dated
/// before the next act.
pub(crate) fn second(act: i64) -> i64 {
    T + act * 100_000
}

#[derive(Clone, Debug)]
pub(crate) struct Story {
    pub(crate) due: i64,
    pub(crate) payments: Vec<StoryPayment>,
    /// In their order.
    pub(crate) edits: Vec<(i64, Edit)>,
}

#[derive(Clone, Debug)]
pub(crate) struct StoryPayment {
    pub(crate) n: usize,
    pub(crate) way: Way,
    pub(crate) at: i64,
    /// What the customer's card was charged; what was authorised may have been more.
    pub(crate) received: i64,
    pub(crate) is_foreign: bool,
    pub(crate) released: i64,
    /// Attempts that failed before it succeeded, each with a charge of its own.
    pub(crate) failed_attempts: u64,
    /// A voucher, bank debit or transfer: its session completes unpaid, and what became of it is told later.
    pub(crate) is_delayed: bool,
    /// The items of its session, if discount, tax and shipping made another total of them.
    pub(crate) items: Option<i64>,
    pub(crate) user: Option<&'static str>,
    pub(crate) refunds: Vec<StoryRefund>,
    pub(crate) disputes: Vec<StoryDispute>,
    api_version: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Intent,
    Session,
    /// Without a PaymentIntent: everything was free.
    FreeSession,
    /// Stripe's old Charges API.
    Charge,
    Failed,
    Processing,
    /// Authorised and released.
    Released,
}

#[derive(Clone, Debug)]
pub(crate) struct StoryRefund {
    pub(crate) at: i64,
    pub(crate) amount: i64,
    pub(crate) fails_at: Option<i64>,
}

#[derive(Clone, Debug)]
pub(crate) struct StoryDispute {
    pub(crate) amount: i64,
    pub(crate) due_by: i64,
    /// When it became what, in order.
    pub(crate) states: Vec<(i64, &'static str)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    Due(i64),
    Status(&'static str),
    /// The same by the other column.
    PaymentStatus(&'static str),
    /// A column that is billhook's, or the application's own: it says nothing about money.
    Other(&'static str),
    /// The PaymentIntent that the application expects, of which nothing is known.
    Intent,
    /// A payment outside Stripe, as an entry of the application in the timeline.
    Recorded,
    Cleared,
}

impl StoryPayment {
    pub(crate) fn id(&self) -> String {
        let prefix = match self.way {
            Way::Charge => "ch",
            Way::FreeSession => "cs",
            _ => "pi",
        };
        format!("{prefix}_{}", self.n)
    }

    pub(crate) fn succeeds(&self) -> bool {
        !matches!(self.way, Way::Failed | Way::Processing | Way::Released)
    }
}

const OTHERS: [&str; 7] = [
    "amountRefunded",
    "amountPaid",
    "paymentFailedAt",
    "authorizedUntil",
    "disputeDueBy",
    "userId",
    "sellerId",
];

/// Draws a story.
pub(crate) fn draw(rng: &mut Rng) -> Story {
    let due = rng.pick(&[4200, 4200, 5000]);
    let mut acts: Vec<i64> = (1..60).collect();
    // A time that no other act has, later than this one.
    let mut after = |rng: &mut Rng, least: i64| {
        let later: Vec<i64> = acts
            .iter()
            .copied()
            .filter(|act| *act > least)
            .take(6)
            .collect();
        let act = rng.pick(&later);
        acts.retain(|other| *other != act);
        act
    };
    let mut payments = Vec::new();
    for n in 0..usize::try_from(1 + rng.below(3)).unwrap() {
        let way = rng.pick(&[
            Way::Intent,
            Way::Intent,
            Way::Session,
            Way::Session,
            Way::FreeSession,
            Way::Charge,
            Way::Failed,
            Way::Processing,
            Way::Released,
        ]);
        let at = after(rng, 0);
        let amounts = [due, due, due / 2, due / 2, due - 100, due + 300];
        let mut received = rng.pick(&amounts);
        let is_adjusted = way == Way::FreeSession || (way == Way::Session && rng.chance(400));
        if way == Way::FreeSession {
            received = 0;
        }
        let items = is_adjusted.then(|| rng.pick(&[due, due, due / 2]));
        let released = match way {
            Way::Intent if rng.chance(300) => 777,
            Way::Released => received,
            _ => 0,
        };
        let mut payment = StoryPayment {
            n,
            way,
            at,
            received,
            is_foreign: way == Way::Intent && rng.chance(80),
            released,
            failed_attempts: rng.below(3),
            is_delayed: matches!(way, Way::Session | Way::Failed | Way::Processing)
                && rng.chance(400),
            items,
            user: rng.pick(&[None, Some("user_a"), Some("user_b")]),
            refunds: Vec::new(),
            disputes: Vec::new(),
            api_version: rng.pick(&["2024-06-20", "2025-03-31.basil", "2026-10-28.endive"]),
        };
        if payment.succeeds() && received > 0 && !payment.is_foreign {
            follow_up(rng, &mut payment, &mut after);
        }
        payments.push(payment);
    }
    let mut edits = Vec::new();
    for _ in 0..rng.below(5) {
        let edit = match rng.below(11) {
            0 | 1 => Edit::Due(rng.pick(&[4200, 5000, 2500, due / 2])),
            2 => Edit::Status("completed"),
            3 => Edit::Status("refunded"),
            4 => Edit::Status("cancelled"),
            5 => Edit::Recorded,
            6 => Edit::PaymentStatus(rng.pick(&["paid", "refunded"])),
            7 => Edit::Other(rng.pick(&OTHERS)),
            8 => Edit::Intent,
            _ => Edit::Cleared,
        };
        let least = edits.last().map_or(0, |(at, _)| *at);
        edits.push((after(rng, least), edit));
    }
    Story {
        due,
        payments,
        edits,
    }
}

/// What goes back, comes back and is asked for.
fn follow_up(
    rng: &mut Rng,
    payment: &mut StoryPayment,
    after: &mut impl FnMut(&mut Rng, i64) -> i64,
) {
    let (mut left, mut least) = (payment.received, payment.at);
    for _ in 0..rng.below(3) {
        let amount = if rng.chance(500) {
            left
        } else {
            left.min(1000)
        };
        let at = after(rng, least);
        let fails_at = rng.chance(250).then(|| after(rng, at));
        match fails_at {
            // Until then Stripe gives it back to nobody else.
            Some(failed) => least = failed,
            None => left -= amount,
        }
        if amount > 0 {
            payment.refunds.push(StoryRefund {
                at,
                amount,
                fails_at,
            });
        }
    }
    if rng.chance(300) {
        let mut states = vec![(after(rng, payment.at), "needs_response")];
        for _ in 0..rng.below(4) {
            let last = states.last().map_or(payment.at, |(at, _)| *at);
            let next = rng.pick(&["under_review", "won", "lost", "appeal_under_review"]);
            states.push((after(rng, last), next));
        }
        payment.disputes.push(StoryDispute {
            amount: rng.pick(&[payment.received, payment.received, 700]),
            due_by: second(90),
            states,
        });
    }
}

/// The events about a payment, each with the time of its act.
pub(crate) fn events_of(payment: &StoryPayment) -> Vec<(i64, Value)> {
    let (id, n) = (payment.id(), payment.n);
    let charge = format!("ch_{n}");
    let is_intent = id.starts_with("pi_");
    let metadata = match payment.user {
        Some(user) => json!({ "user_id": user }),
        None => json!({}),
    };
    let at = second(payment.at);
    let mut events: Vec<(i64, Value)> = Vec::new();
    let of_session = || {
        let intent = is_intent.then_some(id.as_str());
        let session = format!("cs_{n}");
        let paid = if is_intent {
            "paid"
        } else {
            "no_payment_required"
        };
        let mut event = session_completed("", at, &session, intent, metadata.clone(), paid);
        let object = &mut event["data"]["object"];
        object["amount_total"] = json!(payment.received);
        let items = payment.items.unwrap_or(payment.received);
        object["amount_subtotal"] = json!(items);
        object["total_details"] = json!({
            "amount_discount": (items - payment.received).max(0),
            "amount_tax": (payment.received - items).max(0), "amount_shipping": 0,
        });
        event
    };
    let of_delayed_session = |at: i64, event_type: &str, paid: &str| {
        let mut event = of_session();
        event["type"] = json!(event_type);
        event["created"] = json!(at);
        event["data"]["object"]["payment_status"] = json!(paid);
        event
    };
    let of_charge = |captured: i64, refunded: i64| {
        let intent = is_intent.then_some(id.as_str());
        let mut event = charge_refunded("", at, &charge, intent, refunded);
        let object = &mut event["data"]["object"];
        object["amount"] = json!(captured + payment.released);
        object["captured"] = json!(captured > 0);
        object["amount_captured"] = json!(captured);
        object["refunded"] = json!(captured > 0 && refunded >= captured + payment.released);
        object["metadata"] = metadata.clone();
        event
    };
    let is_before_basil = payment.api_version < "2025-03-31";
    if matches!(payment.way, Way::Intent | Way::Session) {
        for attempt in 0..payment.failed_attempts {
            let earlier = at - 60 - i64::try_from(attempt).unwrap();
            let charge = format!("ch_{n}_{attempt}");
            let event = intent_failed("", earlier, &id, metadata.clone(), &charge);
            events.push((payment.at, event));
        }
    }
    let completed = |at: i64| of_delayed_session(at, "checkout.session.completed", "unpaid");
    if payment.is_delayed && payment.way != Way::Processing {
        events.push((payment.at, completed(at - 30)));
    }
    match payment.way {
        Way::Intent => {
            let mut event = intent_succeeded("", at, &id, metadata.clone(), payment.received);
            if payment.is_foreign {
                event["data"]["object"]["currency"] = json!("eur");
            }
            events.push((payment.at, event));
            if payment.released > 0 {
                // Before basil the rest is told as a refund.
                let figure = if is_before_basil { payment.released } else { 0 };
                let mut event = of_charge(payment.received, figure);
                event["type"] = json!("charge.captured");
                if payment.is_foreign {
                    event["data"]["object"]["currency"] = json!("eur");
                }
                events.push((payment.at, event));
            }
        }
        Way::Session => {
            let event = match payment.is_delayed {
                true => of_delayed_session(at, "checkout.session.async_payment_succeeded", "paid"),
                false => of_session(),
            };
            events.push((payment.at, event));
            let event = intent_succeeded("", at, &id, metadata.clone(), payment.received);
            events.push((payment.at, event));
        }
        Way::FreeSession => events.push((payment.at, of_session())),
        Way::Charge => {
            let mut event = of_charge(payment.received, 0);
            event["type"] = json!("charge.succeeded");
            events.push((payment.at, event));
        }
        Way::Failed => {
            let event = intent_failed("", at, &id, metadata.clone(), &charge);
            events.push((payment.at, event));
            if payment.is_delayed {
                let event =
                    of_delayed_session(at, "checkout.session.async_payment_failed", "unpaid");
                events.push((payment.at, event));
            }
        }
        Way::Processing => {
            let event = match payment.is_delayed {
                true => completed(at),
                false => intent_is("", at, &id, metadata.clone(), "processing"),
            };
            events.push((payment.at, event));
        }
        Way::Released => {
            let event = intent_is("", at, &id, metadata.clone(), "canceled");
            events.push((payment.at, event));
            let figure = if is_before_basil { payment.released } else { 0 };
            let mut event = of_charge(0, figure);
            event["data"]["object"]["metadata"] = json!({});
            events.push((payment.at, event));
            if is_before_basil {
                let of = (id.as_str(), charge.as_str());
                let release = format!("re_{n}_release");
                let event = refund("", at, &release, of, payment.released, "succeeded");
                events.push((payment.at, event));
            }
        }
    }
    for (which, given) in payment.refunds.iter().enumerate() {
        let (id_of_refund, of) = (format!("re_{n}_{which}"), (id.as_str(), charge.as_str()));
        let told = |act: i64, status: &str| {
            let mut event = refund("", second(act), &id_of_refund, of, given.amount, status);
            if !is_intent {
                event["data"]["object"]["payment_intent"] = Value::Null;
            }
            (act, event)
        };
        events.push(told(given.at, "succeeded"));
        events.extend(given.fails_at.map(|at| told(at, "failed")));
    }
    for (which, disputed) in payment.disputes.iter().enumerate() {
        for (act, status) in &disputed.states {
            let id_of_dispute = format!("dp_{n}_{which}");
            let mut event = dispute("", second(*act), &id_of_dispute, &id, status);
            let object = &mut event["data"]["object"];
            object["amount"] = json!(disputed.amount);
            object["charge"] = json!(charge);
            object["evidence_details"] = json!({ "due_by": disputed.due_by });
            if !is_intent {
                object["payment_intent"] = Value::Null;
            }
            events.push((*act, event));
        }
    }
    for (number, (_, event)) in events.iter_mut().enumerate() {
        event["id"] = json!(format!("evt_{n}_{number}"));
        event["api_version"] = json!(payment.api_version);
    }
    events
}

/// A session that nobody paid, of somebody else.
pub(crate) fn abandoned(user: &str, at: i64) -> Value {
    let object = json!({ "id": "cs_x", "object": "checkout.session", "status": "expired",
        "payment_status": "unpaid", "client_reference_id": user });
    stripe("evt_x", "checkout.session.expired", second(at), object)
}
