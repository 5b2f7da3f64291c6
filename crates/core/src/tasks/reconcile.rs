//! Reconciliation with Stripe: which events to list to find deliveries that never arrived, and what counts as a gap.
//! Pure: the crate `cleanup-failed-payments` lists the events and stores the missing ones through `intake::accept`.
//!
//! Each account has one cursor (high-water mark) per set of event types, in `checkpoint`. A pass overlaps the one
//! before by two hours; storing an event twice changes nothing (deduplication), so the overlap only costs calls.

use std::time::Duration;

use crate::provider::stripe::event_types::HANDLED_TYPES;
use crate::tasks::checkpoint::Checkpoint;
use crate::time::Timestamp;

/// Stripe accepts at most 20 event types in one list call.
const TYPES_MAX: usize = 20;

/// Stripe lists events of the last 30 days only.
const LISTING_RETENTION: Duration = Duration::from_hours(30 * 24);

/// Overlap of two passes. An event may appear in the list later than its `created` says: if an event created at
/// 10:59:58 appears only after a pass up to 11:00 was complete, a pass that began at 11:00 would never see it.
const READ_AGAIN: Duration = Duration::from_hours(2);

/// Where the first run begins: Stripe's own retries of a delivery go back three days.
const FIRST_LISTING_SPAN: Duration = Duration::from_hours(3 * 24);

/// A younger event may still be on its way to ingress, so it is stored but does not count as a gap.
const GAP_AFTER: Duration = Duration::from_mins(15);

/// The handled event types, in sets that fit one list call. The position of a set is part of the cursor's key.
pub fn event_type_sets() -> impl Iterator<Item = &'static [&'static str]> {
    HANDLED_TYPES.chunks(TYPES_MAX)
}

/// The events to list, by `created` in Unix seconds, both ends included. Stripe lists the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListingSpan {
    pub from_s: i64,
    pub until_s: i64,
    /// Resume behind this event, which means with older ones.
    pub after: Option<String>,
}

/// What to list now: the rest of an interrupted pass, or a new pass.
///
/// Example, with a cursor at 10:00:
///
/// ```text
/// run at 11:00   lists 08:00 to 11:00, newest first; is interrupted behind evt_9, created 09:30
///                cursor stays 10:00, resume_at: until 11:00, after evt_9
/// run at 12:00   lists 08:00 to 11:00 behind evt_9, to the end: cursor 11:00
/// run at 13:00   lists 09:00 to 13:00: also what was created while the first pass was being completed
/// ```
///
/// An interrupted pass keeps its end (11:00), because only the part behind `evt_9` is missing up to there. If the
/// cursor rose to 12:00 instead, the events created from 11:00 to 12:00 would be listed only if they fell into the
/// overlap.
pub fn next_listing_span(checkpoint: &Checkpoint, now: Timestamp) -> ListingSpan {
    let read_again_s = i64::try_from(READ_AGAIN.as_secs()).unwrap_or(0);
    let from_s = match checkpoint.done_through_s {
        Some(done_through_s) => done_through_s.saturating_sub(read_again_s),
        None => now.before(FIRST_LISTING_SPAN).unix_s(),
    };
    ListingSpan {
        from_s: from_s.max(now.before(LISTING_RETENTION).unix_s()),
        until_s: checkpoint
            .resume_at
            .as_ref()
            .map_or(now.unix_s(), |resume| resume.until_s),
        after: checkpoint
            .resume_at
            .as_ref()
            .map(|resume| resume.after.clone()),
    }
}

/// Whether a missing event counts as a gap: a delivery that should have arrived. Not in the first pass of an account:
/// its events may be older than this environment's endpoint.
pub fn is_event_gap(checkpoint: &Checkpoint, created: Option<Timestamp>, now: Timestamp) -> bool {
    checkpoint.done_through_s.is_some()
        && created.is_none_or(|created| created.after(GAP_AFTER) < now)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NOW: i64 = 1_781_000_000;
    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_unix_s(second).unwrap()
    }

    #[test]
    fn every_type_is_asked_for_in_one_set_of_at_most_twenty() {
        let sets: Vec<_> = event_type_sets().collect();
        assert!(sets.iter().all(|set| (1..=20).contains(&set.len())));
        let asked: Vec<&str> = sets.concat();
        assert_eq!(asked, HANDLED_TYPES);
        assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), asked.len());
    }

    /// A type that moves into another set comes under another cursor, and what that cursor has passed is never asked for.
    #[test]
    fn a_new_type_moves_no_other_into_another_set() {
        let ends: Vec<_> = HANDLED_TYPES
            .chunks_exact(TYPES_MAX)
            .map(|set| set.last())
            .collect();
        assert_eq!(
            ends,
            [Some(&"review.opened")],
            "new types go to the end of the catalogue"
        );
    }

    #[test]
    fn what_is_read_begins_two_hours_back_and_never_beyond_thirty_days() {
        let old = Checkpoint::completed_through(NOW - 40 * DAY);
        let cut = Checkpoint::completed_through(NOW - 5 * HOUR)
            .interrupted_at(NOW - HOUR, "evt_9".to_owned());
        let first_cut = Checkpoint::default().interrupted_at(NOW - HOUR, "evt_9".to_owned());
        for (progress, from_s, until_s, after) in [
            (Checkpoint::default(), NOW - 3 * DAY, NOW, None),
            (
                Checkpoint::completed_through(NOW - HOUR),
                NOW - 3 * HOUR,
                NOW,
                None,
            ),
            (
                Checkpoint::completed_through(NOW),
                NOW - 2 * HOUR,
                NOW,
                None,
            ),
            (old, NOW - 30 * DAY, NOW, None),
            (cut, NOW - 7 * HOUR, NOW - HOUR, Some("evt_9")),
            (first_cut, NOW - 3 * DAY, NOW - HOUR, Some("evt_9")),
        ] {
            let expected = ListingSpan {
                from_s,
                until_s,
                after: after.map(str::to_owned),
            };
            assert_eq!(
                next_listing_span(&progress, at(NOW)),
                expected,
                "{progress:?}"
            );
        }
    }

    #[test]
    fn only_what_should_have_come_is_a_gap() {
        let known = Checkpoint::completed_through(NOW - HOUR);
        for (progress, created, gap) in [
            (&known, Some(NOW - 16 * 60), true),
            (&known, Some(NOW - 15 * 60), false),
            (&known, Some(NOW), false),
            (&known, None, true),
            (&Checkpoint::default(), Some(NOW - DAY), false),
        ] {
            let created = created.map(at);
            assert_eq!(is_event_gap(progress, created, at(NOW)), gap, "{created:?}");
        }
    }
}
