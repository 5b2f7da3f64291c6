//! The sweep: automatic retries of unfinished events with exponential backoff, and when an event is given up. Pure: the
//! crate `cleanup-failed-payments` reads the events and sends them to their worker again.
//!
//! Guarantee: each retry age (10, 20, 40 minutes …) of each event falls into exactly one window between two completed
//! runs, however the runs fall. The sweep never marks an event as failed: only its worker does (`worker`).
//! `outcome::BlockedOn` says which parked events a retry can help.

use std::time::Duration;

use crate::outcome::{BlockedOn, EventOutcome, IgnoreReason, ParkReason};
use crate::tasks::ports::ArrivalSpan;
use crate::time::Timestamp;

const DAY: Duration = Duration::from_hours(24);

/// A younger event is still being processed: three receives of its message, 60 s apart, take about 3 minutes.
pub const FIRST_RETRY_AFTER: Duration = Duration::from_mins(10);

/// Retries happen at the ages 10 min × 2^k for k = 0 to 12: 10, 20, 40, 80 min … 14.2 and 28.4 days. The next age, 56.9
/// days, would be past [`UNKNOWN_WAIT_MAX`].
const BACKOFF_STEPS: u32 = 13;

/// How long an event waits for the row that it names (order, statement or letter). After that it is ignored as
/// `never_found`.
const UNKNOWN_WAIT_MAX: Duration = DAY.saturating_mul(30);

/// An event can be given up at 30, 60, … 390 days, not only at 30. Case: `tenants add` releases an event on day 40, its
/// order does not exist, and it is parked again. Its last age (30 days) had passed, so it stayed open for as long as
/// its row, and every run read it. Rows are kept for 400 days.
const GIVE_UP_ROUNDS: u32 = 13;

/// The ages at which the sweep reads all events by their arrival, to find those that are still pending. The second time
/// finds what the index did not have yet at the first.
pub const ARRIVAL_AGES: [Duration; 2] = [FIRST_RETRY_AFTER, DAY];

/// How far back the first pass of a stack looks, and the first one after the checkpoint was lost.
pub const FIRST_PASS_SPAN: Duration = Duration::from_hours(7 * 24);

/// A message is normally processed within minutes: an event that is pending for longer than this counts as stuck.
pub const STUCK_AFTER: Duration = Duration::from_hours(1);

/// The application normally writes the row that an event names within a day: an event that is parked for longer is logged
/// once as an error (`event_overdue`).
const OVERDUE_AFTER: Duration = DAY;

/// The time from the end of the last completed pass (exclusive) to the end of this one (inclusive). An event is due if
/// it reaches one of its ages within the window.
///
/// Example: an event received at 00:00, with the ages 10, 20, 40, 80, 160 minutes.
///
/// ```text
/// window            ages reached in it          sent
/// 00:05 to 00:15    10 min (00:10)              once
/// 00:15 to 00:25    20 min (00:20)              once
/// 00:25 to 03:00    40, 80 and 160 min          once: three ages together are one retry
/// ```
///
/// The last window is long because runs failed in between: a window begins where the last completed one ended, not
/// where the last run began. So windows neither overlap nor leave a gap, and each age is met exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepWindow {
    /// None before the first completed pass: then every age that has passed counts as reached now.
    pub after: Option<Timestamp>,
    pub until: Timestamp,
}

impl SweepWindow {
    /// Whether an event received at this time reaches any age in the window: a retry, overdue, or given up. A cheap
    /// first check on what the index returns; [`SweepCandidate::action`] decides from the row.
    pub fn includes(&self, received_at: Timestamp) -> bool {
        self.is_retry_due(received_at)
            || self.passes_age(received_at, OVERDUE_AFTER)
            || (1..=GIVE_UP_ROUNDS).any(|n| self.passes_age(received_at, UNKNOWN_WAIT_MAX * n))
    }

    /// Whether the event reaches the age in this window at which the sweep first looks at it, by its arrival.
    pub fn is_first_look_due(&self, received_at: Timestamp) -> bool {
        self.passes_age(received_at, FIRST_RETRY_AFTER)
    }

    /// When events arrived that reach an age in this window.
    pub fn arrivals_at(&self, age: Duration) -> ArrivalSpan {
        let after = self
            .after
            .unwrap_or_else(|| self.until.before(FIRST_PASS_SPAN));
        ArrivalSpan {
            after: after.before(age),
            until: self.until.before(age),
        }
    }

    fn is_retry_due(&self, received_at: Timestamp) -> bool {
        (0..BACKOFF_STEPS).any(|k| self.passes_age(received_at, FIRST_RETRY_AFTER * 2_u32.pow(k)))
    }

    fn passes_age(&self, received_at: Timestamp, age: Duration) -> bool {
        let at = received_at.after(age);
        at <= self.until && self.after.is_none_or(|after| after < at)
    }
}

/// What the sweep does with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepAction {
    /// Send it to its worker again.
    Send,
    /// Give it up: set it to ignored.
    Ignore(IgnoreReason),
    /// Nothing: no retry is due, it needs manual action, or it is done.
    Leave,
}

/// An unfinished event, as its row has it.
#[derive(Clone, Copy, Debug)]
pub struct SweepCandidate<'a> {
    pub outcome: EventOutcome,
    /// The row's `processing_error`.
    pub reason: Option<&'a str>,
    pub received_at: Timestamp,
}

impl SweepCandidate<'_> {
    /// None if the event is not parked.
    fn blocked_on(&self) -> Option<BlockedOn> {
        let reason = self
            .reason
            .filter(|_| self.outcome == EventOutcome::Parked)?;
        Some(ParkReason::parse(reason)?.blocked_on())
    }

    /// Decides what to do. Giving up depends only on the event's age, not on a retry age in this window: an event that
    /// was released and parked again after 30 days is given up by the first window that includes it.
    pub fn action(&self, window: SweepWindow) -> SweepAction {
        let is_older_than = |age| self.received_at.after(age) <= window.until;
        let step = match (self.outcome, self.blocked_on()) {
            (EventOutcome::Pending, _)
            | (_, Some(BlockedOn::Tenant | BlockedOn::NewerDeployment)) => SweepAction::Send,
            (_, Some(BlockedOn::Row)) if is_older_than(UNKNOWN_WAIT_MAX) => {
                return SweepAction::Ignore(IgnoreReason::NeverFound);
            }
            (_, Some(BlockedOn::Row)) => SweepAction::Send,
            (_, Some(BlockedOn::Person | BlockedOn::ManualAction) | None) => SweepAction::Leave,
        };
        match window.is_retry_due(self.received_at) {
            true => step,
            false => SweepAction::Leave,
        }
    }

    /// Whether in this window the event completes a day of waiting for a tenant or a row that the application must
    /// write, or for a release. True in exactly one window, so the error is logged once.
    pub fn is_overdue(&self, window: SweepWindow) -> bool {
        let waits = matches!(
            self.blocked_on(),
            Some(BlockedOn::Tenant | BlockedOn::Row | BlockedOn::NewerDeployment)
        );
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
        assert!(FIRST_RETRY_AFTER * 2_u32.pow(BACKOFF_STEPS - 1) <= UNKNOWN_WAIT_MAX);
        assert!(FIRST_RETRY_AFTER * 2_u32.pow(BACKOFF_STEPS) > UNKNOWN_WAIT_MAX);
    }

    #[test]
    fn what_is_done_is_read_from_outcome_reason_and_age() {
        use ParkReason::*;
        let never_found = SweepAction::Ignore(IgnoreReason::NeverFound);
        // At 10 minutes, at 30 minutes (no retry age), at 4 days, at 30 days.
        let parked = |reason| (EventOutcome::Parked, Some(reason));
        let (send, leave) = (SweepAction::Send, SweepAction::Leave);
        let mut table = vec![
            ((EventOutcome::Pending, None), [send, leave, leave, leave]),
            (parked(OrderUnknown), [send, leave, leave, never_found]),
            (parked(StatementUnknown), [send, leave, leave, never_found]),
            (parked(LetterUnknown), [send, leave, leave, never_found]),
            (parked(TenantUnknown), [send, leave, leave, leave]),
            (parked(NewerSchema), [send, leave, leave, leave]),
            (parked(ByHand), [leave; 4]),
            ((EventOutcome::Failed, Some(OrderUnknown)), [leave; 4]),
            ((EventOutcome::Processed, None), [leave; 4]),
            ((EventOutcome::Ignored, None), [leave; 4]),
        ];
        let persons = [
            TenantAmbiguous,
            CrossTenant,
            EntityAmbiguous,
            LiveEventOnTestStage,
            Tampered,
            PayloadUnreadable,
            FieldMalformed,
            AmountMalformed,
            EntityTooLarge,
            EntityUnreadable,
            StateBehind,
        ];
        assert_eq!(ParkReason::ALL.len(), persons.len() + 6);
        for persons in persons {
            assert_eq!(persons.blocked_on(), BlockedOn::ManualAction);
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
            let owed = [
                OrderUnknown,
                StatementUnknown,
                LetterUnknown,
                TenantUnknown,
                NewerSchema,
            ];
            let is_owed =
                outcome == EventOutcome::Parked && reason.is_some_and(|r| owed.contains(&r));
            assert_eq!(alarms, is_owed, "{outcome} {reason:?}");
            assert!(!open.is_overdue(window(Some(A_DAY), A_DAY + 1)));
        }
    }

    #[test]
    fn what_is_parked_after_its_last_age_is_given_up_too() {
        // `tenants add` released it on day 40, and then its order does not exist.
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
        /// However the runs fall, their windows join without a gap, and each age lies in exactly one of them.
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
                // Split into two anywhere, the window contains the same ages, each once.
                let middle = after + gap / 2;
                for age in (0..BACKOFF_STEPS).map(|k| FIRST_RETRY_AFTER * 2_u32.pow(k)) {
                    let parts = [self::window(Some(after), middle), self::window(Some(middle), after + gap)];
                    let in_parts = parts.iter().filter(|part| part.passes_age(at(received), age)).count();
                    prop_assert_eq!(in_parts, usize::from(window.passes_age(at(received), age)));
                }
                after += gap;
            }
            let passed = (0..BACKOFF_STEPS).filter(|k| at(received).after(FIRST_RETRY_AFTER * 2_u32.pow(*k)) <= at(after)).count();
            // Several ages in one window are one retry.
            prop_assert!(looks <= passed);
            prop_assert!(passed == 0 || looks > 0);
            prop_assert!(concerned >= looks && concerned <= passed + 14);
        }
    }
}
