//! Which open events are looked at again, when, and what is done with them. Pure: `cleanup-failed-payments` reads and
//! sends.
//!
//! Each age is passed once, so that an event is looked at once per age however the runs of the sweep fall.

use std::time::Duration;

use crate::outcome::{BlockedOn, EventOutcome, IgnoreReason, ParkReason};
use crate::time::Timestamp;

const DAY: Duration = Duration::from_hours(24);

/// An event younger than this is on its way.
pub const FIRST_RETRY_AFTER: Duration = Duration::from_mins(10);

/// The ages at which an event is looked at: 10 min × 2^k, as long as it is looked at at all. The last is 28.4 days.
const BACKOFF_STEPS: u32 = 13;

/// What an event names may be written so late; then nobody will.
const UNKNOWN_RETENTION: Duration = DAY.saturating_mul(30);

/// How often an event may be given up: one that is released so late that it is parked again after 30 days would
/// otherwise stay open. 30, 60, … 390 days; rows are kept for 400.
const GIVE_UP_ROUNDS: u32 = 13;

/// Stripe's retries of whatever would link a payment end after 3 days.
const UNLINKED_RETENTION: Duration = DAY.saturating_mul(4);

/// A message that was sent is worked off in minutes: one that waits longer is stuck.
pub const STUCK_AFTER: Duration = Duration::from_hours(1);

/// What an event names is written soon after it, or somebody has to look.
const OVERDUE_AFTER: Duration = DAY;

/// The time between two runs of the sweep: what passes an age in it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepWindow {
    /// Exclusive: the end of the last completed window. Before the first, no age was passed.
    pub after: Option<Timestamp>,
    /// Inclusive.
    pub until: Timestamp,
}

impl SweepWindow {
    /// Whether an event received then passes an age at which anything may be done with it.
    pub fn includes(&self, received_at: Timestamp) -> bool {
        self.is_retry_due(received_at)
            || [OVERDUE_AFTER, UNLINKED_RETENTION]
                .iter()
                .any(|age| self.passes_age(received_at, *age))
            || (1..=GIVE_UP_ROUNDS).any(|n| self.passes_age(received_at, UNKNOWN_RETENTION * n))
    }

    fn is_retry_due(&self, received_at: Timestamp) -> bool {
        (0..BACKOFF_STEPS).any(|k| self.passes_age(received_at, FIRST_RETRY_AFTER * 2_u32.pow(k)))
    }

    fn passes_age(&self, received_at: Timestamp, age: Duration) -> bool {
        let at = received_at.after(age);
        at <= self.until && self.after.is_none_or(|after| after < at)
    }
}

/// What is done with an event that a window concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepAction {
    /// It goes to its worker again.
    Send,
    /// The same, if something bears its PaymentIntent by now: without that, it would only be parked again.
    SendIfBorne,
    /// Nobody waits for it any longer.
    Ignore(IgnoreReason),
    /// Nothing, now or ever: a person's, or done meanwhile.
    Leave,
}

/// An open event as its row has it.
#[derive(Clone, Copy, Debug)]
pub struct SweepCandidate<'a> {
    /// The row's outcome.
    pub outcome: EventOutcome,
    /// The row's `processing_error`.
    pub reason: Option<&'a str>,
    /// When it came.
    pub received_at: Timestamp,
}

impl SweepCandidate<'_> {
    /// None for what is not parked.
    fn blocked_on(&self) -> Option<BlockedOn> {
        let reason = self
            .reason
            .filter(|_| self.outcome == EventOutcome::Parked)?;
        Some(ParkReason::parse(reason)?.blocked_on())
    }

    /// Decides about it. Never that it failed: that is its worker's to say.
    pub fn action(&self, window: SweepWindow) -> SweepAction {
        let is_older_than = |age| self.received_at.after(age) <= window.until;
        let step = match (self.outcome, self.blocked_on()) {
            (EventOutcome::Pending, _) | (_, Some(BlockedOn::Tenant)) => SweepAction::Send,
            (_, Some(BlockedOn::Row)) if is_older_than(UNKNOWN_RETENTION) => {
                return SweepAction::Ignore(IgnoreReason::NeverFound);
            }
            (_, Some(BlockedOn::Row)) => SweepAction::Send,
            (_, Some(BlockedOn::Link)) if is_older_than(UNLINKED_RETENTION) => {
                return SweepAction::Ignore(IgnoreReason::NeverLinked);
            }
            (_, Some(BlockedOn::Link)) => SweepAction::SendIfBorne,
            (_, Some(BlockedOn::Release | BlockedOn::Person) | None) => SweepAction::Leave,
        };
        match window.is_retry_due(self.received_at) {
            true => step,
            false => SweepAction::Leave,
        }
    }

    /// Whether it has now waited a day for a row that the application owes.
    pub fn is_overdue(&self, window: SweepWindow) -> bool {
        let waits = matches!(self.blocked_on(), Some(BlockedOn::Tenant | BlockedOn::Row));
        waits && window.passes_age(self.received_at, OVERDUE_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_unix_s(second).unwrap()
    }

    fn window(after: Option<i64>, until: i64) -> SweepWindow {
        SweepWindow {
            after: after.map(at),
            until: at(until),
        }
    }

    const MINUTE: i64 = 60;
    const A_DAY: i64 = 24 * 60 * MINUTE;

    #[test]
    fn an_event_is_looked_at_at_ten_minutes_and_each_time_its_age_has_doubled() {
        let ages: Vec<i64> = (0..60 * A_DAY / MINUTE)
            .filter(|minute| {
                window(Some((minute - 1) * MINUTE), minute * MINUTE).is_retry_due(at(0))
            })
            .collect();
        assert_eq!(
            ages,
            [
                10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 5_120, 10_240, 20_480, 40_960
            ]
        );
        assert!(FIRST_RETRY_AFTER * 2_u32.pow(BACKOFF_STEPS - 1) <= UNKNOWN_RETENTION);
        assert!(FIRST_RETRY_AFTER * 2_u32.pow(BACKOFF_STEPS) > UNKNOWN_RETENTION);
    }

    #[test]
    fn what_is_done_is_read_from_outcome_reason_and_age() {
        use ParkReason::*;
        let never_found = SweepAction::Ignore(IgnoreReason::NeverFound);
        let never_linked = SweepAction::Ignore(IgnoreReason::NeverLinked);
        // After ten minutes, after an age at which nothing is looked at, after 4 days, after 30.
        let parked = |reason| (EventOutcome::Parked, Some(reason));
        let (send, ask, leave) = (
            SweepAction::Send,
            SweepAction::SendIfBorne,
            SweepAction::Leave,
        );
        let mut table = vec![
            ((EventOutcome::Pending, None), [send, leave, leave, leave]),
            (parked(OrderUnknown), [send, leave, leave, never_found]),
            (parked(StatementUnknown), [send, leave, leave, never_found]),
            (parked(LetterUnknown), [send, leave, leave, never_found]),
            (parked(TenantUnknown), [send, leave, leave, leave]),
            (parked(Unlinked), [ask, leave, never_linked, never_linked]),
            (parked(ByHand), [leave; 4]),
            ((EventOutcome::Failed, Some(Unlinked)), [leave; 4]),
            ((EventOutcome::Processed, None), [leave; 4]),
            ((EventOutcome::Ignored, None), [leave; 4]),
        ];
        let persons = [
            TenantAmbiguous,
            CrossTenant,
            EntityAmbiguous,
            LinkConflict,
            LiveEventOnTestStage,
            Tampered,
            PayloadUnreadable,
            FieldMalformed,
            AmountMalformed,
            EntityTooLarge,
            EntityUnreadable,
        ];
        assert_eq!(ParkReason::ALL.len(), persons.len() + 6);
        for persons in persons {
            assert_eq!(persons.blocked_on(), BlockedOn::Person);
            table.push((parked(persons), [leave; 4]));
        }
        for ((outcome, reason), expected) in table {
            let open = SweepCandidate {
                outcome,
                reason: reason.map(ParkReason::as_str),
                received_at: at(0),
            };
            let steps = [10 * MINUTE, 30 * MINUTE, 4 * A_DAY, 30 * A_DAY]
                .map(|age| open.action(window(Some(age - 1), age)));
            assert_eq!(steps, expected, "{outcome} {reason:?}");
            let alarms = open.is_overdue(window(Some(A_DAY - 1), A_DAY));
            let owed = [OrderUnknown, StatementUnknown, LetterUnknown, TenantUnknown];
            let is_owed =
                outcome == EventOutcome::Parked && reason.is_some_and(|r| owed.contains(&r));
            assert_eq!(alarms, is_owed, "{outcome} {reason:?}");
            assert!(!open.is_overdue(window(Some(A_DAY), A_DAY + 1)));
        }
    }

    #[test]
    fn what_is_parked_after_its_last_age_is_given_up_too() {
        // Released by `tenants add` on the fortieth day, and then its order is not there.
        let open = SweepCandidate {
            outcome: EventOutcome::Parked,
            reason: Some(ParkReason::OrderUnknown.as_str()),
            received_at: at(0),
        };
        let mut steps = (40..400).map(|day| window(Some((day - 1) * A_DAY), day * A_DAY));
        let given_up = steps.find(|window| {
            window.includes(at(0))
                && open.action(*window) == SweepAction::Ignore(IgnoreReason::NeverFound)
        });
        assert!(given_up.is_some(), "open for ever, and nobody looks");
    }

    #[test]
    fn the_first_window_takes_everything_that_is_no_longer_on_its_way() {
        for (age, concerned) in [(9 * MINUTE, false), (11 * MINUTE, true), (90 * A_DAY, true)] {
            assert_eq!(window(None, age).includes(at(0)), concerned, "{age}");
        }
    }

    proptest! {
        /// Whenever the runs fall, the windows between them meet, and each age lies in one of them.
        #[test]
        fn every_age_is_met_once(received in 0..40 * A_DAY, gaps in prop::collection::vec(1..9 * A_DAY, 1..60)) {
            let open = SweepCandidate { outcome: EventOutcome::Pending, reason: None, received_at: at(received) };
            let mut after = -A_DAY;
            let (mut looks, mut concerned) = (0, 0);
            for gap in gaps {
                let window = window(Some(after), after + gap);
                if open.action(window) == SweepAction::Send {
                    looks += 1;
                    prop_assert!(window.includes(at(received)));
                }
                if window.includes(at(received)) {
                    concerned += 1;
                }
                // Cut into two anywhere, the window holds the same ages, each once.
                let middle = after + gap / 2;
                for age in (0..BACKOFF_STEPS).map(|k| FIRST_RETRY_AFTER * 2_u32.pow(k)) {
                    let parts = [self::window(Some(after), middle), self::window(Some(middle), after + gap)];
                    let in_parts = parts.iter().filter(|part| part.passes_age(at(received), age)).count();
                    prop_assert_eq!(in_parts, usize::from(window.passes_age(at(received), age)));
                }
                after += gap;
            }
            let passed = (0..BACKOFF_STEPS).filter(|k| at(received).after(FIRST_RETRY_AFTER * 2_u32.pow(*k)) <= at(after)).count();
            // Ages that one window holds together are one look.
            prop_assert!(looks <= passed);
            prop_assert!(passed == 0 || looks > 0);
            prop_assert!(concerned >= looks && concerned <= passed + 15);
        }
    }
}
