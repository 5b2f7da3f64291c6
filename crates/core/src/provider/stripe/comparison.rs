//! Compares what is stored about a payment with what Stripe's API says about it now (`objects`): the proof that no event
//! was lost and none was misread.
//!
//! It compares the meaning and not the sources or times: whether the payment succeeded, with which amounts, whether it
//! was canceled, the latest state of each refund and dispute, what was refunded of each charge, and how each session
//! ended. It works in both directions: Stripe has something that is not stored, or something is stored that Stripe
//! denies.
//!
//! Not compared: failed attempts, `processing`, fraud warnings, reviews, users and links, because Stripe's objects do not
//! say them, or only until the next change. Read the stored facts first and Stripe second; otherwise an event that
//! arrives between the two looks like a fact that Stripe denies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use crate::entity::merge::{FactSource, Merge, SeenInterval, latest_state};
use crate::entity::payment::facts::{ChargeFacts, DisputeState, MoneyFacts, RefundState};
use crate::entity::payment::refunds::derive_charge_refunded;
use crate::ids::PaymentRef;
use crate::money::Currency;
use crate::time::Timestamp;

/// How long the event of a new object may be on its way: Stripe retries a failed delivery for longer, but then the
/// difference is worth seeing.
const EVENT_IN_TRANSIT_MAX: Duration = Duration::from_hours(1);

const NOT_STORED: &str = "not stored";
const NOT_AT_STRIPE: &str = "not at stripe";

/// Something that is stored otherwise than Stripe says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeDifference {
    /// Such as `payment pi_1`, `session cs_1`, `charge ch_1`, `refund re_1` or `dispute du_1`.
    pub object: String,
    /// `succeeded`, `received`, `canceled`, `completed`, `expired`, `amount_refunded`, `state` or `amount`.
    pub field: &'static str,
    pub stored: String,
    pub at_stripe: String,
}

/// Compares two sets of facts of one payment, field by field.
///
/// What Stripe has dated within the last hour is no difference if it is not stored yet, because its event may be on its
/// way. The API does not say when a refund, dispute or session changed its state, so a change within the last hour to an
/// older object is reported; compare again an hour later.
pub fn compare_with_stripe(
    stored: &MoneyFacts,
    at_stripe: &MoneyFacts,
    now: Timestamp,
) -> Vec<StripeDifference> {
    let mut comparison = StripeComparison {
        now,
        differences: Vec::new(),
    };
    comparison.compare_payments(stored, at_stripe);
    comparison.compare_sessions(stored, at_stripe);
    comparison.compare_charges(stored, at_stripe);
    comparison.compare_refunds(stored, at_stripe);
    comparison.compare_disputes(stored, at_stripe);
    comparison.differences
}

struct StripeComparison {
    now: Timestamp,
    differences: Vec<StripeDifference>,
}

impl StripeComparison {
    fn compare_payments(&mut self, stored: &MoneyFacts, at_stripe: &MoneyFacts) {
        for id in keys_of_both(&stored.payments, &at_stripe.payments) {
            let object = format!("payment {id}");
            let (ours, theirs) = (stored.payments.get(id), at_stripe.payments.get(id));
            let success = [ours, theirs].map(|facts| facts.and_then(|f| f.succeeded.as_ref()));
            let is_known = [stored, at_stripe].map(|facts| knows_payment(facts, id));
            self.compare_step(&object, "succeeded", is_known, success);
            // Stripe's object of a charge does not say that its authorisation ended.
            if !matches!(id, PaymentRef::Charge(_)) {
                let canceled = [ours, theirs].map(|facts| facts.and_then(|f| f.canceled.as_ref()));
                self.compare_step(&object, "canceled", is_known, canceled);
            }
            // If only one side knows the success, the amount follows from it and is no further difference.
            if let [Some(_), Some(succeeded)] = success
                && !self.may_be_in_transit(succeeded.at)
            {
                let [ours, theirs] = [stored, at_stripe].map(|facts| facts.received_amounts(id));
                if ours != theirs {
                    self.add(&object, "received", [&ours, &theirs].map(list_of));
                }
            }
        }
    }

    fn compare_sessions(&mut self, stored: &MoneyFacts, at_stripe: &MoneyFacts) {
        for id in keys_of_both(&stored.sessions, &at_stripe.sessions) {
            let object = format!("session {id}");
            let both = [stored.sessions.get(id), at_stripe.sessions.get(id)];
            let is_known = both.map(|facts| facts.is_some());
            let completed = both.map(|facts| facts.and_then(|f| f.completed.as_ref()));
            self.compare_step(&object, "completed", is_known, completed);
            let expired = both.map(|facts| facts.and_then(|f| f.expired.as_ref()));
            self.compare_step(&object, "expired", is_known, expired);
        }
    }

    /// A fact that never ends once it is stated, such as a success.
    fn compare_step(
        &mut self,
        object: &str,
        field: &'static str,
        [is_stored, is_at_stripe]: [bool; 2],
        facts: [Option<&FactSource>; 2],
    ) {
        let (ours, theirs) = match facts {
            [Some(_), Some(_)] | [None, None] => return,
            [None, Some(fact)] if self.may_be_in_transit(fact.at) => return,
            [None, Some(_)] => (if is_stored { "no" } else { NOT_STORED }, "yes"),
            [Some(_), None] => ("yes", if is_at_stripe { "no" } else { NOT_AT_STRIPE }),
        };
        self.add(object, field, [ours.to_owned(), theirs.to_owned()]);
    }

    /// Compares what was refunded of each charge as `entity::payment::refunds` derives it, on both sides. The cumulative
    /// figures themselves may differ: the stored one is the greatest that was ever reported, and Stripe's may shrink when a
    /// refund fails later. Example: `re_1` of 10.00 and `re_2` of 5.00, stored 15.00; `re_1` failed, and Stripe says 5.00.
    /// Both mean 5.00. Nor is it a difference if the refunds by id say everything and only `charge.refunded` is missing.
    fn compare_charges(&mut self, stored: &MoneyFacts, at_stripe: &MoneyFacts) {
        let refunds = at_stripe.refunds.values();
        let seen = refunds.flat_map(|refund| refund.states.values());
        // A charge's figure moves with each refund of it.
        let is_moving = seen
            .map(|seen| seen.first.at)
            .any(|at| self.may_be_in_transit(at));
        let aligned = [stored, at_stripe].map(|facts| align_refunds(facts, stored, at_stripe));
        let [ours, theirs] = &aligned;
        for id in keys_of_both(&stored.charges, &at_stripe.charges) {
            let currencies =
                [stored, at_stripe].map(|facts| facts.charges.get(id).and_then(captured_currency));
            let Some(known) = currencies.into_iter().flatten().next_back() else {
                continue;
            };
            let [our_currency, their_currency] = currencies.map(|own| own.unwrap_or(known));
            let our_amount = derive_charge_refunded(ours, id, our_currency);
            let their_amount = derive_charge_refunded(theirs, id, their_currency);
            if our_amount != their_amount && !is_moving {
                let amounts = [our_amount.to_string(), their_amount.to_string()];
                self.add(&format!("charge {id}"), "amount_refunded", amounts);
            }
        }
    }

    fn compare_refunds(&mut self, stored: &MoneyFacts, at_stripe: &MoneyFacts) {
        for id in keys_of_both(&stored.refunds, &at_stripe.refunds) {
            let object = format!("refund {id}");
            let both = [stored.refunds.get(id), at_stripe.refunds.get(id)];
            let states = both.map(|refund| refund.map(|refund| &refund.states));
            self.compare_state(&object, states, refund_state_word);
            if let [Some(ours), Some(theirs)] = both
                && ours.amount != theirs.amount
                && !self.is_new(&theirs.states)
            {
                let amounts = [ours, theirs].map(|refund| refund.amount.0.to_string());
                self.add(&object, "amount", amounts);
            }
        }
    }

    fn compare_disputes(&mut self, stored: &MoneyFacts, at_stripe: &MoneyFacts) {
        for id in keys_of_both(&stored.disputes, &at_stripe.disputes) {
            let both = [stored.disputes.get(id), at_stripe.disputes.get(id)];
            let states = both.map(|dispute| dispute.map(|dispute| &dispute.states));
            self.compare_state(
                &format!("dispute {}", id.as_str()),
                states,
                dispute_state_word,
            );
        }
    }

    fn compare_state<S: Ord + Copy>(
        &mut self,
        object: &str,
        [stored, at_stripe]: [Option<&BTreeMap<S, SeenInterval>>; 2],
        word: fn(S) -> &'static str,
    ) {
        let [ours, theirs] = [stored, at_stripe].map(|states| states.and_then(latest_state));
        if ours == theirs || at_stripe.is_some_and(|states| self.is_new(states)) {
            return;
        }
        let texts = [
            ours.map_or(NOT_STORED, word).to_owned(),
            theirs.map_or(NOT_AT_STRIPE, word).to_owned(),
        ];
        self.add(object, "state", texts);
    }

    /// Whether Stripe created the object within the last hour.
    fn is_new<S: Ord>(&self, at_stripe: &BTreeMap<S, SeenInterval>) -> bool {
        let mut seen = at_stripe.values();
        seen.any(|seen| self.may_be_in_transit(seen.first.at))
    }

    /// Stripe's clock may be ahead of ours, and an expired session may be dated with a time to come (`expires_at`).
    fn may_be_in_transit(&self, at: Timestamp) -> bool {
        at.until(self.now).max(self.now.until(at)) < EVENT_IN_TRANSIT_MAX
    }

    fn add(&mut self, object: &str, field: &'static str, [stored, at_stripe]: [String; 2]) {
        self.differences.push(StripeDifference {
            object: object.to_owned(),
            field,
            stored,
            at_stripe,
        });
    }
}

/// One side's charges and refunds, for a comparison of what was refunded of each charge: both sides must count a refund
/// to the same charge. Which one it is depends on what is known of the other charges (`refunds`), and an older event may
/// name no charge where Stripe names it now. So Stripe's word about each refund counts on both sides, and both sides know
/// of the same charges.
fn align_refunds(side: &MoneyFacts, stored: &MoneyFacts, at_stripe: &MoneyFacts) -> MoneyFacts {
    let mut aligned = MoneyFacts {
        charges: side.charges.clone(),
        refunds: side.refunds.clone(),
        ..MoneyFacts::default()
    };
    for (id, refund) in &mut aligned.refunds {
        if let Some(theirs) = at_stripe.refunds.get(id) {
            refund.of = theirs.of.clone();
            refund.intent = theirs.intent.clone();
        }
    }
    for (id, charge) in stored.charges.iter().chain(&at_stripe.charges) {
        let known = aligned.charges.entry(id.clone()).or_default();
        known.intent.merge(charge.intent.clone());
        // What was released follows from these.
        known.amount.merge(charge.amount.clone());
        known.before_basil.merge(charge.before_basil.clone());
    }
    aligned
}

/// A session without a PaymentIntent is a payment itself, but only once it is paid.
fn knows_payment(facts: &MoneyFacts, id: &PaymentRef) -> bool {
    let is_session =
        matches!(id, PaymentRef::Session(session) if facts.sessions.contains_key(session));
    is_session || facts.payments.contains_key(id)
}

fn captured_currency(charge: &ChargeFacts) -> Option<Currency> {
    charge.captured.as_ref().map(|money| money.0.currency)
}

fn keys_of_both<'f, K: Ord, V>(
    stored: &'f BTreeMap<K, V>,
    at_stripe: &'f BTreeMap<K, V>,
) -> BTreeSet<&'f K> {
    stored.keys().chain(at_stripe.keys()).collect()
}

fn list_of<T: Display>(values: &BTreeSet<T>) -> String {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// As Stripe writes it.
fn refund_state_word(state: RefundState) -> &'static str {
    match state {
        RefundState::Pending => "pending",
        RefundState::RequiresAction => "requires_action",
        RefundState::Succeeded => "succeeded",
        RefundState::Canceled => "canceled",
        RefundState::Failed => "failed",
    }
}

/// As it is stored; several statuses of Stripe's mean one state.
fn dispute_state_word(state: DisputeState) -> &'static str {
    match state {
        DisputeState::Inquiry => "inquiry",
        DisputeState::Open => "open",
        DisputeState::InquiryClosed => "inquiry_closed",
        DisputeState::Prevented => "prevented",
        DisputeState::Won => "won",
        DisputeState::Lost => "lost",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::provider::stripe::event::StripeEvent;
    use crate::provider::stripe::event_types::{StripeFacts, read_facts};
    use crate::provider::stripe::objects::{PaymentAtStripe, read_payment_at_stripe};

    const NOW_S: i64 = 1_781_000_000;
    /// When objects are created, if a test does not say it: long ago.
    const LONG_AGO_S: i64 = NOW_S - 100_000;

    fn now() -> Timestamp {
        Timestamp::from_unix_s(NOW_S).unwrap()
    }

    fn object(kind: &str, id: &str, members: Value) -> Value {
        let mut object =
            json!({ "id": id, "object": kind, "created": LONG_AGO_S, "currency": "usd" });
        let members = members.as_object().unwrap().clone();
        object.as_object_mut().unwrap().extend(members);
        object
    }

    /// With another member.
    fn with(mut object: Value, member: &str, value: Value) -> Value {
        object[member] = value;
        object
    }

    fn aged(object: Value, age_s: i64) -> Value {
        with(object, "created", json!(NOW_S - age_s))
    }

    fn intent(status: &str) -> Value {
        let received = if status == "succeeded" { 4200 } else { 0 };
        let members = json!({ "status": status, "amount_received": received });
        object("payment_intent", "pi_1", members)
    }

    fn session(status: &str, payment_status: &str) -> Value {
        let members = json!({ "status": status, "payment_status": payment_status, "amount_total": 4200,
            "payment_intent": "pi_1" });
        object("checkout.session", "cs_1", members)
    }

    /// A subscription's session: no PaymentIntent.
    fn subscription(status: &str, payment_status: &str) -> Value {
        with(
            session(status, payment_status),
            "payment_intent",
            json!(null),
        )
    }

    fn charge(amount_refunded: i64) -> Value {
        let members = json!({ "amount_captured": 4200, "amount_refunded": amount_refunded, "payment_intent": "pi_1" });
        object("charge", "ch_1", members)
    }

    fn refund(id: &str, status: &str, amount: i64) -> Value {
        let members = json!({ "status": status, "amount": amount, "charge": "ch_1", "payment_intent": "pi_1" });
        object("refund", id, members)
    }

    /// A refund that names no charge.
    fn loose(refund: Value) -> Value {
        with(refund, "charge", json!(null))
    }

    fn dispute(status: &str) -> Value {
        let members = json!({ "status": status, "amount": 4200, "payment_intent": "pi_1" });
        object("dispute", "du_1", members)
    }

    /// The facts of all objects together. Each is read by itself, so several states of one object are a history.
    fn facts_of(objects: &[Value]) -> MoneyFacts {
        let mut facts = MoneyFacts::default();
        for object in objects {
            let raw = vec![RawValue::from_string(object.to_string()).unwrap()];
            let mut payment = PaymentAtStripe::default();
            match object["object"].as_str().unwrap() {
                "payment_intent" => payment.intents = raw,
                "checkout.session" => payment.sessions = raw,
                "charge" => payment.charges = raw,
                "refund" => payment.refunds = raw,
                _ => payment.disputes = raw,
            }
            facts.merge(read_payment_at_stripe(&payment).unwrap());
        }
        facts
    }

    fn compare(stored: &[Value], at_stripe: &[Value]) -> Vec<String> {
        let differences = compare_with_stripe(&facts_of(stored), &facts_of(at_stripe), now());
        let text = |d: StripeDifference| {
            format!("{} {}: {} / {}", d.object, d.field, d.stored, d.at_stripe)
        };
        differences.into_iter().map(text).collect()
    }

    #[track_caller]
    fn check(stored: &[Value], at_stripe: &[Value], expected: &[&str]) {
        assert_eq!(
            compare(stored, at_stripe),
            expected,
            "{stored:?}\n{at_stripe:?}"
        );
    }

    #[test]
    fn payments_are_compared_in_both_directions() {
        let paid = || intent("succeeded");
        let other = |amount: i64, currency: &str| {
            with(
                with(paid(), "amount_received", json!(amount)),
                "currency",
                json!(currency),
            )
        };
        let open = || intent("requires_payment_method");
        for (stored, at_stripe, expected) in [
            (vec![], vec![], vec![]),
            (vec![paid()], vec![paid()], vec![]),
            (vec![open()], vec![open()], vec![]),
            (vec![], vec![open()], vec![]),
            (vec![open()], vec![], vec![]),
            (
                vec![],
                vec![paid()],
                vec!["payment pi_1 succeeded: not stored / yes"],
            ),
            (
                vec![open()],
                vec![paid()],
                vec!["payment pi_1 succeeded: no / yes"],
            ),
            (
                vec![paid()],
                vec![open()],
                vec!["payment pi_1 succeeded: yes / no"],
            ),
            (
                vec![paid()],
                vec![],
                vec!["payment pi_1 succeeded: yes / not at stripe"],
            ),
            (
                vec![paid()],
                vec![intent("processing")],
                vec!["payment pi_1 succeeded: yes / no"],
            ),
            (vec![intent("processing")], vec![open()], vec![]),
            (vec![], vec![intent("processing")], vec![]),
            (vec![intent("processing"), paid()], vec![paid()], vec![]),
            (
                vec![paid()],
                vec![other(4000, "usd")],
                vec!["payment pi_1 received: 4200 usd / 4000 usd"],
            ),
            (
                vec![paid()],
                vec![other(4200, "eur")],
                vec!["payment pi_1 received: 4200 usd / 4200 eur"],
            ),
            (
                vec![paid(), other(1, "usd")],
                vec![paid()],
                vec!["payment pi_1 received: 1 usd, 4200 usd / 4200 usd"],
            ),
            (
                vec![],
                vec![intent("canceled")],
                vec!["payment pi_1 canceled: not stored / yes"],
            ),
            (
                vec![open()],
                vec![intent("canceled")],
                vec!["payment pi_1 canceled: no / yes"],
            ),
            (
                vec![intent("canceled")],
                vec![open()],
                vec!["payment pi_1 canceled: yes / no"],
            ),
            (
                vec![intent("canceled")],
                vec![],
                vec!["payment pi_1 canceled: yes / not at stripe"],
            ),
            (vec![intent("canceled")], vec![intent("canceled")], vec![]),
            (
                vec![intent("canceled")],
                vec![paid()],
                vec![
                    "payment pi_1 succeeded: no / yes",
                    "payment pi_1 canceled: yes / no",
                ],
            ),
            // The same success, by the session and by the PaymentIntent.
            (
                vec![session("complete", "paid")],
                vec![paid(), session("complete", "paid")],
                vec![],
            ),
        ] {
            check(&stored, &at_stripe, &expected);
        }
    }

    #[test]
    fn a_payment_without_a_payment_intent_is_compared_by_its_session_or_charge() {
        let paid = || subscription("complete", "paid");
        let later = |object| with(object, "payment_intent", json!(null));
        for (stored, at_stripe, expected) in [
            (vec![paid()], vec![paid()], vec![]),
            (
                vec![],
                vec![paid()],
                vec![
                    "payment cs_1 succeeded: not stored / yes",
                    "session cs_1 completed: not stored / yes",
                ],
            ),
            (
                vec![paid()],
                vec![subscription("complete", "unpaid")],
                vec!["payment cs_1 succeeded: yes / no"],
            ),
            (
                vec![paid()],
                vec![with(paid(), "amount_total", json!(1))],
                vec!["payment cs_1 received: 4200 usd / 1 usd"],
            ),
            (
                vec![later(charge(1000))],
                vec![later(charge(1500))],
                vec!["charge ch_1 amount_refunded: 1000 usd / 1500 usd"],
            ),
            // The charge names its PaymentIntent by now, which the row of the charge does not have.
            (vec![later(charge(1000))], vec![charge(1000)], vec![]),
        ] {
            check(&stored, &at_stripe, &expected);
        }
    }

    #[test]
    fn sessions_are_compared_in_both_directions() {
        let unpaid = || session("complete", "unpaid");
        let open = || session("open", "unpaid");
        let expired = || session("expired", "unpaid");
        for (stored, at_stripe, expected) in [
            (vec![unpaid()], vec![unpaid()], vec![]),
            (vec![expired()], vec![expired()], vec![]),
            (vec![], vec![open()], vec![]),
            (vec![open()], vec![], vec![]),
            (
                vec![],
                vec![unpaid()],
                vec!["session cs_1 completed: not stored / yes"],
            ),
            (
                vec![open()],
                vec![unpaid()],
                vec!["session cs_1 completed: no / yes"],
            ),
            (
                vec![unpaid()],
                vec![open()],
                vec!["session cs_1 completed: yes / no"],
            ),
            (
                vec![unpaid()],
                vec![],
                vec!["session cs_1 completed: yes / not at stripe"],
            ),
            (
                vec![],
                vec![expired()],
                vec!["session cs_1 expired: not stored / yes"],
            ),
            (
                vec![open()],
                vec![expired()],
                vec!["session cs_1 expired: no / yes"],
            ),
            (
                vec![expired()],
                vec![open()],
                vec!["session cs_1 expired: yes / no"],
            ),
            (
                vec![expired()],
                vec![],
                vec!["session cs_1 expired: yes / not at stripe"],
            ),
            (
                vec![expired()],
                vec![unpaid()],
                vec![
                    "session cs_1 completed: no / yes",
                    "session cs_1 expired: yes / no",
                ],
            ),
            // It completed with a delayed method and was paid later.
            (
                vec![unpaid(), session("complete", "paid")],
                vec![session("complete", "paid")],
                vec![],
            ),
        ] {
            check(&stored, &at_stripe, &expected);
        }
    }

    #[test]
    fn refunds_are_compared_in_both_directions() {
        let one = |status: &str| refund("re_1", status, 1000);
        for (stored, at_stripe, expected) in [
            (vec![one("succeeded")], vec![one("succeeded")], vec![]),
            // The history of a refund is not compared, only where it is now.
            (
                vec![one("pending"), one("succeeded")],
                vec![one("succeeded")],
                vec![],
            ),
            (
                vec![],
                vec![one("pending")],
                vec!["refund re_1 state: not stored / pending"],
            ),
            (
                vec![one("succeeded")],
                vec![],
                vec!["refund re_1 state: succeeded / not at stripe"],
            ),
            (
                vec![one("pending")],
                vec![one("succeeded")],
                vec!["refund re_1 state: pending / succeeded"],
            ),
            (
                vec![one("succeeded")],
                vec![one("failed")],
                vec!["refund re_1 state: succeeded / failed"],
            ),
            (
                vec![one("canceled")],
                vec![one("requires_action")],
                vec!["refund re_1 state: canceled / requires_action"],
            ),
            (
                vec![one("succeeded")],
                vec![refund("re_1", "succeeded", 900)],
                vec!["refund re_1 amount: 1000 usd / 900 usd"],
            ),
            (
                vec![one("succeeded")],
                vec![with(one("succeeded"), "currency", json!("eur"))],
                vec!["refund re_1 amount: 1000 usd / 1000 eur"],
            ),
            (
                vec![one("pending")],
                vec![one("pending"), refund("re_2", "pending", 1)],
                vec!["refund re_2 state: not stored / pending"],
            ),
        ] {
            check(&stored, &at_stripe, &expected);
        }
    }

    #[test]
    fn what_was_refunded_of_a_charge_is_compared_and_not_the_cumulative_figures() {
        let re_1 = |status: &str| refund("re_1", status, 1000);
        let re_2 = || refund("re_2", "succeeded", 500);
        let ch_2 = || with(charge(300), "id", json!("ch_2"));
        for (stored, at_stripe, expected) in [
            (vec![charge(1500)], vec![charge(1500)], vec![]),
            // A charge is stored only once money was refunded.
            (vec![], vec![charge(0)], vec![]),
            (
                vec![],
                vec![charge(1500)],
                vec!["charge ch_1 amount_refunded: 0 usd / 1500 usd"],
            ),
            (
                vec![charge(1000)],
                vec![charge(1500)],
                vec!["charge ch_1 amount_refunded: 1000 usd / 1500 usd"],
            ),
            (
                vec![charge(1500)],
                vec![charge(1000)],
                vec!["charge ch_1 amount_refunded: 1500 usd / 1000 usd"],
            ),
            (
                vec![charge(1500)],
                vec![charge(0)],
                vec!["charge ch_1 amount_refunded: 1500 usd / 0 usd"],
            ),
            (
                vec![charge(1500)],
                vec![],
                vec!["charge ch_1 amount_refunded: 1500 usd / 0 usd"],
            ),
            (
                vec![charge(1500)],
                vec![with(charge(1500), "currency", json!("eur"))],
                vec!["charge ch_1 amount_refunded: 1500 usd / 1500 eur"],
            ),
            // Only `charge.refunded` is missing: the refunds by id say everything.
            (
                vec![re_1("succeeded"), re_2()],
                vec![charge(1500), re_1("succeeded"), re_2()],
                vec![],
            ),
            (
                vec![charge(1000), re_1("succeeded"), re_2()],
                vec![charge(1500), re_1("succeeded"), re_2()],
                vec![],
            ),
            // re_1 failed later: the stored figure stays, whether or not Stripe's still contains it.
            (
                vec![charge(1500), re_1("failed"), re_2()],
                vec![charge(500), re_1("failed"), re_2()],
                vec![],
            ),
            (
                vec![charge(1500), re_1("failed"), re_2()],
                vec![charge(1500), re_1("failed"), re_2()],
                vec![],
            ),
            (
                vec![charge(1000), re_1("failed")],
                vec![charge(0), re_1("failed")],
                vec![],
            ),
            (
                vec![charge(1000), re_1("canceled")],
                vec![charge(0), re_1("canceled")],
                vec![],
            ),
            // Its failure is missing.
            (
                vec![charge(1500), re_1("succeeded"), re_2()],
                vec![charge(500), re_1("failed"), re_2()],
                vec![
                    "charge ch_1 amount_refunded: 1500 usd / 500 usd",
                    "refund re_1 state: succeeded / failed",
                ],
            ),
            // A stored refund that Stripe does not have.
            (
                vec![charge(1500), re_1("succeeded"), re_2()],
                vec![charge(500), re_2()],
                vec![
                    "charge ch_1 amount_refunded: 1500 usd / 500 usd",
                    "refund re_1 state: succeeded / not at stripe",
                ],
            ),
            // The refund names no charge: on one side, on the other, on both.
            (
                vec![loose(re_1("succeeded"))],
                vec![charge(1000), re_1("succeeded")],
                vec![],
            ),
            (
                vec![loose(re_1("succeeded"))],
                vec![charge(1000), loose(re_1("succeeded"))],
                vec![],
            ),
            (
                vec![charge(1000), re_1("succeeded")],
                vec![charge(1000), loose(re_1("succeeded"))],
                vec![],
            ),
            (
                vec![charge(1000), re_1("failed")],
                vec![loose(re_1("failed"))],
                vec![],
            ),
            // Of two charges of the payment, only Stripe says which one it is of.
            (
                vec![charge(1000), ch_2(), loose(re_1("failed"))],
                vec![charge(0), ch_2(), re_1("failed")],
                vec![],
            ),
        ] {
            check(&stored, &at_stripe, &expected);
        }
    }

    #[test]
    fn disputes_are_compared_in_both_directions() {
        let old = |status: &str| aged(dispute(status), 200_000);
        for (stored, at_stripe, expected) in [
            (vec![dispute("lost")], vec![dispute("lost")], vec![]),
            (
                vec![old("needs_response"), dispute("won")],
                vec![old("won")],
                vec![],
            ),
            // Two statuses of one meaning.
            (
                vec![dispute("needs_response")],
                vec![dispute("under_review")],
                vec![],
            ),
            (
                vec![],
                vec![dispute("needs_response")],
                vec!["dispute du_1 state: not stored / open"],
            ),
            (
                vec![dispute("won")],
                vec![],
                vec!["dispute du_1 state: won / not at stripe"],
            ),
            (
                vec![dispute("needs_response")],
                vec![dispute("lost")],
                vec!["dispute du_1 state: open / lost"],
            ),
            // An appeal: lost, and open again.
            (
                vec![old("lost")],
                vec![old("appeal_under_review")],
                vec!["dispute du_1 state: lost / open"],
            ),
            (
                vec![old("lost"), dispute("appeal_under_review")],
                vec![old("appeal_under_review")],
                vec![],
            ),
            (
                vec![dispute("warning_closed")],
                vec![dispute("warning_under_review")],
                vec!["dispute du_1 state: inquiry_closed / inquiry"],
            ),
            (
                vec![dispute("prevented")],
                vec![dispute("prevented")],
                vec![],
            ),
        ] {
            check(&stored, &at_stripe, &expected);
        }
    }

    #[test]
    fn what_stripe_dates_within_the_last_hour_may_be_on_its_way() {
        // Stripe's objects with their age, and the differences of their own, older than an hour.
        let canceled = |age_s: i64| with(intent("canceled"), "canceled_at", json!(NOW_S - age_s));
        let expired = |age_s: i64| {
            with(
                session("expired", "unpaid"),
                "expires_at",
                json!(NOW_S - age_s),
            )
        };
        type Aged<'a> = &'a dyn Fn(i64) -> Value;
        let table: [(&str, Vec<Value>, Aged<'_>); 10] = [
            ("success", vec![], &|age| aged(intent("succeeded"), age)),
            (
                "amount",
                vec![with(intent("succeeded"), "amount_received", json!(1))],
                &|age| aged(intent("succeeded"), age),
            ),
            ("cancellation", vec![], &canceled),
            ("completion", vec![], &|age| {
                aged(session("complete", "unpaid"), age)
            }),
            ("expiry", vec![], &expired),
            ("refund", vec![], &|age| {
                aged(refund("re_1", "pending", 1000), age)
            }),
            ("state", vec![refund("re_1", "pending", 1000)], &|age| {
                aged(refund("re_1", "succeeded", 1000), age)
            }),
            (
                "amount of a refund",
                vec![refund("re_1", "pending", 1)],
                &|age| aged(refund("re_1", "pending", 1000), age),
            ),
            ("dispute", vec![], &|age| {
                aged(dispute("needs_response"), age)
            }),
            (
                "state of a dispute",
                vec![dispute("needs_response")],
                &|age| aged(dispute("lost"), age),
            ),
        ];
        for (name, stored, at_stripe) in table {
            // Stripe's clock may be ahead; a day ahead is no clock but a session that expired before its time.
            for (age_s, expected) in [(-100, 0), (0, 0), (3599, 0), (3600, 1), (100_000, 1)] {
                let found = compare(&stored, &[at_stripe(age_s)]);
                assert_eq!(found.len(), expected, "{name} {age_s}: {found:?}");
            }
        }
        assert_eq!(compare(&[], &[expired(-40_000)]).len(), 1);

        // A fresh refund moves its charge too.
        let fresh = aged(refund("re_1", "pending", 1000), 60);
        check(&[], &[charge(1000), fresh.clone()], &[]);
        check(
            &[charge(1000), aged(fresh, 7_200)],
            &[charge(1000)],
            &["refund re_1 state: pending / not at stripe"],
        );
        // A fresh object excuses nothing that is stored and that Stripe denies.
        check(
            &[intent("succeeded")],
            &[aged(intent("requires_payment_method"), 60)],
            &["payment pi_1 succeeded: yes / no"],
        );
        check(
            &[intent("canceled")],
            &[aged(intent("requires_payment_method"), 60)],
            &["payment pi_1 canceled: yes / no"],
        );
    }

    #[test]
    fn a_success_is_dated_by_its_charge() {
        let payment = |charged_s: i64| {
            let raw = |object: Value| vec![RawValue::from_string(object.to_string()).unwrap()];
            let payment = PaymentAtStripe {
                intents: raw(intent("succeeded")),
                charges: raw(aged(charge(0), charged_s)),
                sessions: raw(session("complete", "paid")),
                ..PaymentAtStripe::default()
            };
            read_payment_at_stripe(&payment).unwrap()
        };
        let stored = MoneyFacts::default();
        assert_eq!(compare_with_stripe(&stored, &payment(60), now()), []);
        assert_eq!(
            compare_with_stripe(&stored, &payment(7_200), now()).len(),
            2
        );
    }

    #[test]
    fn the_events_of_a_payment_and_its_objects_have_one_meaning() {
        let event = |kind: &str, object: Value| {
            let event = json!({ "id": "evt_1", "object": "event", "type": kind, "created": LONG_AGO_S + 5,
                "livemode": false, "data": { "object": object } });
            let event = StripeEvent::parse(event.to_string().as_bytes()).unwrap();
            match read_facts(&event) {
                Some(StripeFacts::Payment(Ok(facts))) => facts,
                other => panic!("{kind}: {other:?}"),
            }
        };
        let events = [
            (
                "payment_intent.payment_failed",
                intent("requires_payment_method"),
            ),
            ("payment_intent.processing", intent("processing")),
            ("payment_intent.succeeded", intent("succeeded")),
            ("checkout.session.completed", session("complete", "paid")),
            ("refund.created", refund("re_1", "pending", 1000)),
            ("charge.refunded", charge(1000)),
            ("refund.created", refund("re_2", "succeeded", 500)),
            ("charge.refunded", charge(1500)),
            ("refund.failed", refund("re_1", "failed", 1000)),
            ("charge.dispute.created", dispute("needs_response")),
            ("charge.dispute.closed", dispute("won")),
        ];
        let mut stored = MoneyFacts::default();
        for (kind, object) in events.clone() {
            stored.merge(event(kind, object));
        }
        let at_stripe = [
            intent("succeeded"),
            session("complete", "paid"),
            charge(500),
            refund("re_1", "failed", 1000),
            refund("re_2", "succeeded", 500),
            dispute("won"),
        ];
        let at_stripe = facts_of(&at_stripe);
        assert_eq!(compare_with_stripe(&stored, &at_stripe, now()), []);
        // Without any one of the events that nothing else repeats, there is a difference.
        for missing in [3, 6, 8, 10] {
            let mut stored = MoneyFacts::default();
            for (n, (kind, object)) in events.iter().cloned().enumerate() {
                if n != missing {
                    stored.merge(event(kind, object));
                }
            }
            let differences = compare_with_stripe(&stored, &at_stripe, now());
            assert_ne!(differences, [], "without {}", events[missing].0);
        }
    }

    #[test]
    fn a_charge_of_the_old_charges_api_is_a_payment_on_both_sides() {
        let charge = |status: &str, captured: i64| {
            let members = json!({ "status": status, "captured": captured > 0, "amount": 4200,
                "amount_captured": captured, "amount_refunded": 0 });
            object("charge", "ch_1", members)
        };
        let stated = |kind: &str, object: Value| {
            let event = json!({ "id": "evt_1", "object": "event", "type": kind, "created": LONG_AGO_S + 5,
                "livemode": false, "data": { "object": object } });
            let event = StripeEvent::parse(event.to_string().as_bytes()).unwrap();
            match read_facts(&event) {
                Some(StripeFacts::Payment(Ok(facts))) => facts,
                other => panic!("{kind}: {other:?}"),
            }
        };
        for (kind, charge) in [
            ("charge.succeeded", charge("succeeded", 4200)),
            ("charge.succeeded", charge("succeeded", 0)),
            ("charge.captured", charge("succeeded", 4200)),
            ("charge.failed", charge("failed", 0)),
            ("charge.expired", charge("succeeded", 0)),
        ] {
            let stored = stated(kind, charge.clone());
            let at_stripe = facts_of(std::slice::from_ref(&charge));
            assert_eq!(
                compare_with_stripe(&stored, &at_stripe, now()),
                [],
                "{kind}"
            );
        }
        let lost = compare(&[], &[charge("succeeded", 4200)]);
        assert_eq!(lost, ["payment ch_1 succeeded: not stored / yes"]);
    }
}
