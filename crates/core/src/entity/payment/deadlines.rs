//! Deadlines of a payment: until when somebody has to capture an authorised amount, or answer a dispute. Pure.
//!
//! Stripe says both times in advance, and tells nothing when they come near. So the payment is rechecked ahead of each
//! (`state` gives it a place in the index of open payments), and every write or recheck in the lead time reports it
//! (`worker::ports::NearDeadline`). Nothing is stored about what was reported: the facts and the clock decide.

use std::time::Duration;

use crate::entity::merge::{MaxRegister, MinRegister, latest_state};
use crate::entity::payment::facts::{ChargeFacts, DisputeFacts, DisputeState, MoneyFacts};
use crate::ids::{ChargeId, ObjectId, PaymentRef};
use crate::time::Timestamp;

/// A capture is one call, or one click at Stripe.
const AUTHORIZATION_LEAD: Duration = Duration::from_hours(24);
/// A reminder: it was told when it opened (`opened_disputes`), mostly one to three weeks before.
const DISPUTE_LEAD: Duration = Duration::from_hours(48);

/// What is lost when the deadline passes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeadlineObject {
    /// The authorised amount of this charge, which nobody captured.
    Authorization(ChargeId),
    /// This dispute or inquiry, which nobody answered.
    Dispute(ObjectId),
}

impl DeadlineObject {
    /// The word in the log.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Authorization(_) => "authorization",
            Self::Dispute(_) => "dispute",
        }
    }

    /// The object's id at Stripe.
    pub fn id(&self) -> &str {
        match self {
            Self::Authorization(charge) => charge.as_str(),
            Self::Dispute(dispute) => dispute.as_str(),
        }
    }

    /// How long before the deadline it is reported.
    fn lead(&self) -> Duration {
        match self {
            Self::Authorization(_) => AUTHORIZATION_LEAD,
            Self::Dispute(_) => DISPUTE_LEAD,
        }
    }
}

/// Until when somebody has to act; the earliest is the least.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PaymentDeadline {
    pub due: Timestamp,
    pub object: DeadlineObject,
}

impl PaymentDeadline {
    /// When it is reported first.
    pub fn report_at(&self) -> Timestamp {
        self.due.before(self.object.lead())
    }

    /// Whether it has to be reported now. Once it has passed, nobody can do anything about it any more.
    pub fn is_near(&self, now: Timestamp) -> bool {
        self.report_at() <= now && now < self.due
    }
}

/// The deadlines that somebody still has to meet, whether or not they have passed; the earliest first.
pub fn list_deadlines(facts: &MoneyFacts) -> Vec<PaymentDeadline> {
    let charges = facts.charges.iter();
    let authorizations = charges.filter_map(|(id, charge)| {
        let MaxRegister(due) = charge.capture_before.as_ref()?;
        is_waiting_for_capture(facts, id, charge).then(|| PaymentDeadline {
            due: *due,
            object: DeadlineObject::Authorization(id.clone()),
        })
    });
    let disputes = facts.disputes.iter().filter_map(|(id, dispute)| {
        Some(PaymentDeadline {
            due: find_answer_due(dispute)?,
            object: DeadlineObject::Dispute(id.clone()),
        })
    });
    let mut deadlines: Vec<_> = authorizations.chain(disputes).collect();
    deadlines.sort();
    deadlines
}

/// Whether the charge's payment is authorised, and neither captured, nor failed or canceled since.
fn is_waiting_for_capture(facts: &MoneyFacts, id: &ChargeId, charge: &ChargeFacts) -> bool {
    let payment = match &charge.intent {
        Some(MinRegister(intent)) => PaymentRef::Intent(intent.clone()),
        None => PaymentRef::Charge(id.clone()),
    };
    let payment = facts.payments.get(&payment);
    let is_open = payment.is_some_and(|payment| payment.is_authorized());
    // `charge.captured` may come before `payment_intent.succeeded`. A part is not the end: with multicapture the rest can
    // be captured until the same time.
    let is_captured = charge.amount.is_some() && charge.captured >= charge.amount;
    is_open && !is_captured
}

/// Until when a dispute or inquiry has to be answered; none if it ended, or if its newest event says that it was answered.
fn find_answer_due(dispute: &DisputeFacts) -> Option<Timestamp> {
    match latest_state(&dispute.states)? {
        DisputeState::Open | DisputeState::Inquiry => {
            let MaxRegister((_, due)) = dispute.respond_by.as_ref()?;
            *due
        }
        DisputeState::InquiryClosed
        | DisputeState::Prevented
        | DisputeState::Won
        | DisputeState::Lost => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::entity::merge::{FactSource, SeenInterval};
    use crate::entity::payment::facts::{FailedAttempt, IntentFacts};
    use crate::ids::{EventId, PaymentIntentId};
    use crate::money::{Currency, Money};

    const DAY: u64 = 24 * 60 * 60;

    fn at(second: u64) -> Timestamp {
        let first = Timestamp::from_unix_s(1_781_000_000).unwrap();
        first.after(Duration::from_secs(second))
    }

    fn stated(second: u64) -> FactSource {
        FactSource {
            at: at(second),
            event: EventId::parse("evt_1").unwrap(),
        }
    }

    fn usd(amount: i64) -> Option<MaxRegister<Money>> {
        let currency = Currency::parse("usd").unwrap();
        Some(MaxRegister(Money { amount, currency }))
    }

    /// `ch_1` of `pi_1`, authorised in second 10 until two days later.
    fn authorized() -> (IntentFacts, ChargeFacts) {
        let payment = IntentFacts {
            authorized: Some(SeenInterval::once(stated(10))),
            ..IntentFacts::default()
        };
        let charge = ChargeFacts {
            intent: Some(MinRegister(PaymentIntentId::parse("pi_1").unwrap())),
            amount: usd(4200),
            captured: usd(0),
            capture_before: Some(MaxRegister(at(2 * DAY))),
            ..ChargeFacts::default()
        };
        (payment, charge)
    }

    fn charged(payment: &str, (of, charge): (IntentFacts, ChargeFacts)) -> MoneyFacts {
        MoneyFacts {
            payments: [(PaymentRef::parse(payment).unwrap(), of)].into(),
            charges: [(ChargeId::parse("ch_1").unwrap(), charge)].into(),
            ..MoneyFacts::default()
        }
    }

    fn listed(facts: &MoneyFacts) -> Vec<(&'static str, String, Timestamp)> {
        let deadlines = list_deadlines(facts).into_iter();
        deadlines
            .map(|deadline| {
                let object = &deadline.object;
                (object.kind(), object.id().to_owned(), deadline.due)
            })
            .collect()
    }

    #[test]
    fn an_authorisation_has_a_deadline_until_it_is_captured_or_ends() {
        let waits = vec![("authorization", "ch_1".to_owned(), at(2 * DAY))];
        #[track_caller]
        fn check(
            change: impl FnOnce(&mut IntentFacts, &mut ChargeFacts),
            expected: &[(&'static str, String, Timestamp)],
        ) {
            let (mut payment, mut charge) = authorized();
            change(&mut payment, &mut charge);
            assert_eq!(listed(&charged("pi_1", (payment, charge))), expected);
        }
        let failure = |second| {
            let attempt = FailedAttempt {
                stated: stated(second),
                code: None,
                decline_code: None,
            };
            (PaymentRef::parse("ch_0").unwrap(), attempt)
        };
        check(|_, _| {}, &waits);
        check(|payment, _| payment.authorized = None, &[]);
        check(|payment, _| payment.succeeded = Some(stated(20)), &[]);
        check(|payment, _| payment.canceled = Some(stated(20)), &[]);
        let failed = |second| {
            move |payment: &mut IntentFacts, _: &mut ChargeFacts| {
                let (of, attempt) = failure(second);
                payment.failures.insert(of, attempt);
            }
        };
        check(failed(20), &[]);
        check(failed(5), &waits);
        check(|_, charge| charge.captured = usd(4200), &[]);
        check(|_, charge| charge.captured = usd(1000), &waits);
        check(|_, charge| charge.captured = None, &waits);
        let unknown = |_: &mut IntentFacts, charge: &mut ChargeFacts| {
            charge.captured = None;
            charge.amount = None;
        };
        check(unknown, &waits);
        check(|_, charge| charge.capture_before = None, &[]);
        // Another payment's charge.
        let other = PaymentIntentId::parse("pi_2").unwrap();
        check(|_, charge| charge.intent = Some(MinRegister(other)), &[]);
        // Of Stripe's old Charges API.
        let (payment, mut charge) = authorized();
        charge.intent = None;
        assert_eq!(listed(&charged("ch_1", (payment, charge))), waits);
    }

    #[test]
    fn a_dispute_has_a_deadline_while_it_waits_for_an_answer() {
        let facts = |states: &[(DisputeState, u64)], respond_by: Option<(u64, Option<u64>)>| {
            let states = states.iter();
            let states =
                states.map(|(state, second)| (*state, SeenInterval::once(stated(*second))));
            let respond_by = respond_by.map(|(second, due)| MaxRegister((at(second), due.map(at))));
            let dispute = DisputeFacts {
                states: states.collect::<BTreeMap<_, _>>(),
                amount: None,
                reason: None,
                respond_by,
            };
            MoneyFacts {
                disputes: [(ObjectId::parse("dp_1").unwrap(), dispute)].into(),
                ..MoneyFacts::default()
            }
        };
        let waits = [("dispute", "dp_1".to_owned(), at(10 * DAY))];
        let due = Some((1, Some(10 * DAY)));
        use DisputeState::{Inquiry, InquiryClosed, Lost, Open, Prevented, Won};
        for state in [Open, Inquiry] {
            assert_eq!(listed(&facts(&[(state, 1)], due)), waits, "{state:?}");
        }
        for state in [InquiryClosed, Prevented, Won, Lost] {
            let ended = facts(&[(Open, 1), (state, 2)], due);
            assert_eq!(listed(&ended), [], "{state:?}");
            // It lost, and an appeal waits for an answer.
            let again = facts(&[(state, 1), (Open, 2)], due);
            assert_eq!(listed(&again), waits, "{state:?}");
        }
        assert_eq!(listed(&facts(&[(Open, 1)], Some((2, None)))), []);
        assert_eq!(listed(&facts(&[(Open, 1)], None)), []);
    }

    #[test]
    fn the_earliest_comes_first_and_each_is_near_from_its_lead_time_until_it_passes() {
        let mut facts = charged("pi_1", authorized());
        let dispute = DisputeFacts {
            states: [(DisputeState::Open, SeenInterval::once(stated(1)))].into(),
            amount: None,
            reason: None,
            respond_by: Some(MaxRegister((at(1), Some(at(DAY))))),
        };
        facts
            .disputes
            .insert(ObjectId::parse("dp_1").unwrap(), dispute);
        let deadlines = list_deadlines(&facts);
        let kinds = deadlines.iter().map(|deadline| deadline.object.kind());
        assert_eq!(kinds.collect::<Vec<_>>(), ["dispute", "authorization"]);
        for (deadline, lead) in deadlines.iter().zip([2 * DAY, DAY]) {
            let due = deadline.due;
            let first = due.before(Duration::from_secs(lead));
            assert_eq!(deadline.report_at(), first);
            let instant = Duration::from_millis(1);
            for (now, is_near) in [
                (first.before(instant), false),
                (first, true),
                (due.before(instant), true),
                (due, false),
            ] {
                assert_eq!(deadline.is_near(now), is_near, "{deadline:?} at {now}");
            }
        }
    }
}
