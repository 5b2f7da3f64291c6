//! Reconciliation with Stripe: which events to list to find deliveries that never arrived, and what counts as a gap.
//! Pure: the crate `cleanup-failed-payments` lists the events and stores the missing ones through `intake::accept`.
//!
//! Each account has one cursor (high-water mark) per set of event types, in `checkpoint`. A pass overlaps the one
//! before by two hours; storing an event twice changes nothing (deduplication), so the overlap only costs calls.
//! A cursor remembers the types that it is about, so the catalogue may change in any way: a type that is new is asked
//! for the last three days, one that moves into another set from where its old cursor was.

use std::collections::{BTreeMap, BTreeSet};
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

/// An account that is further behind is worth an alarm: runs come every hour, so it was left out twice.
pub const LAG_MAX: Duration = Duration::from_hours(3);

/// How long an account has to refuse our key before it is told: who disconnects an account by mistake connects it again.
pub const REFUSAL_TOLD_AFTER: Duration = Duration::from_hours(24);

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
///
/// `done` are the types that the account's cursors are about. Example: a release adds a type to the set, and the cursor is
/// at 10:00. The run at 11:00 lists the last three days for all types of the set, and the cursor is about the new type too.
pub fn next_listing_span(
    checkpoint: &Checkpoint,
    types: &[&str],
    done: &DoneTypes,
    now: Timestamp,
) -> ListingSpan {
    let read_again_s = i64::try_from(READ_AGAIN.as_secs()).unwrap_or(0);
    let first_s = now.before(FIRST_LISTING_SPAN).unix_s();
    let from_s = types
        .iter()
        .map(|event_type| match done.0.get(*event_type) {
            Some(done_through_s) => done_through_s.saturating_sub(read_again_s),
            None => first_s,
        });
    let from_s = from_s.min().unwrap_or(first_s);
    let is_same = |asked: &BTreeSet<String>| {
        types.len() == asked.len() && types.iter().all(|event_type| asked.contains(*event_type))
    };
    // Of a pass that asked for other types, the new ones are missing before the place where it was interrupted too.
    let resume = checkpoint.resume_at.as_ref();
    let resume = resume.filter(|resume| is_same(&resume.event_types));
    ListingSpan {
        from_s: from_s.max(now.before(LISTING_RETENTION).unix_s()),
        until_s: resume.map_or(now.unix_s(), |resume| resume.until_s),
        after: resume.map(|resume| resume.after.clone()),
    }
}

/// Up to which Unix second an account's cursors have asked for each event type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoneTypes(BTreeMap<String, i64>);

impl DoneTypes {
    /// By all cursors of an account. Of a type that is in two, because it moved, the higher counts: each is true.
    pub fn of_cursors(cursors: &[Checkpoint]) -> Self {
        let mut done: BTreeMap<String, i64> = BTreeMap::new();
        for cursor in cursors {
            for event_type in &cursor.event_types {
                let Some(through_s) = cursor.done_through_s else {
                    continue;
                };
                let known = done.entry(event_type.clone()).or_insert(through_s);
                *known = through_s.max(*known);
            }
        }
        Self(done)
    }
}

/// Up to which Unix second everything was asked for, by all cursors of an account. A cursor whose first pass is not
/// complete counts as from when that pass began: what is older was delivered or not before billhook knew the account.
/// None for an account that was never asked.
pub fn done_through_s(cursors: &[Checkpoint]) -> Option<i64> {
    let marks = cursors.iter().map(|cursor| {
        let resume = cursor.resume_at.as_ref();
        cursor
            .done_through_s
            .or(resume.map(|resume| resume.until_s))
    });
    marks.collect::<Option<Vec<i64>>>()?.into_iter().min()
}

/// How far an account counts as read that fails and was never read: its events of three days are missing.
pub fn never_read_through_s(now: Timestamp) -> i64 {
    now.before(FIRST_LISTING_SPAN).unix_s()
}

/// Whether a missing event counts as a gap: a delivery that should have arrived. Not of a type that is asked for the first
/// time, as in the first pass of an account: its events may be older than this environment's endpoint, or than its
/// subscription to the type.
pub fn is_event_gap(
    done: &DoneTypes,
    event_type: &str,
    created: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    done.0.contains_key(event_type) && created.is_none_or(|created| created.after(GAP_AFTER) < now)
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

    const SET: &[&str] = &["a", "b"];

    fn asked(through_s: i64, types: &[&str]) -> Checkpoint {
        Checkpoint::completed_through(through_s).of_types(types)
    }

    fn span(cursors: &[Checkpoint], types: &[&str]) -> ListingSpan {
        let done = DoneTypes::of_cursors(cursors);
        next_listing_span(&cursors[0], types, &done, at(NOW))
    }

    #[test]
    fn what_is_read_begins_two_hours_back_and_never_beyond_thirty_days() {
        let old = asked(NOW - 40 * DAY, SET);
        let cut = asked(NOW - 5 * HOUR, SET)
            .interrupted_at(NOW - HOUR, "evt_9".to_owned())
            .of_types(SET);
        let first_cut = Checkpoint::default()
            .interrupted_at(NOW - HOUR, "evt_9".to_owned())
            .of_types(SET);
        for (progress, from_s, until_s, after) in [
            (Checkpoint::default(), NOW - 3 * DAY, NOW, None),
            (asked(NOW - HOUR, SET), NOW - 3 * HOUR, NOW, None),
            (asked(NOW, SET), NOW - 2 * HOUR, NOW, None),
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
                span(std::slice::from_ref(&progress), SET),
                expected,
                "{progress:?}"
            );
        }
    }

    #[test]
    fn a_type_that_is_new_is_asked_for_the_last_three_days() {
        let before = asked(NOW - HOUR, &["a"]);
        assert_eq!(
            span(std::slice::from_ref(&before), &["a"]).from_s,
            NOW - 3 * HOUR
        );
        assert_eq!(span(&[before], SET).from_s, NOW - 3 * DAY);
        // A cursor of before the types were remembered is about none.
        let of_old = Checkpoint::completed_through(NOW - HOUR);
        assert_eq!(span(&[of_old], SET).from_s, NOW - 3 * DAY);
        // Further behind than that is further behind.
        assert_eq!(
            span(&[asked(NOW - 9 * DAY, &["a"])], SET).from_s,
            NOW - 9 * DAY - 2 * HOUR
        );
        // A pass that was cut and asked for other types is no pass of these.
        let cut = asked(NOW - 5 * HOUR, &["a"])
            .interrupted_at(NOW - HOUR, "evt_9".to_owned())
            .of_types(&["a"]);
        let begun_again = span(&[cut], SET);
        assert_eq!((begun_again.until_s, begun_again.after), (NOW, None));
    }

    #[test]
    fn a_type_that_moves_into_another_set_goes_on_where_its_old_cursor_was() {
        let (first, second) = (asked(NOW - HOUR, &["a"]), asked(NOW - 5 * DAY, &["b"]));
        assert_eq!(span(&[first, second], SET).from_s, NOW - 5 * DAY - 2 * HOUR);
        let (first, second) = (asked(NOW - HOUR, SET), asked(NOW - 5 * DAY, &["b"]));
        assert_eq!(span(&[first, second], SET).from_s, NOW - 3 * HOUR);
    }

    #[test]
    fn the_lag_is_that_of_the_last_cursor() {
        let cut = Checkpoint::default().interrupted_at(NOW - HOUR, "evt_9".to_owned());
        for (cursors, through_s) in [
            (
                vec![asked(NOW, SET), asked(NOW - DAY, SET)],
                Some(NOW - DAY),
            ),
            (vec![asked(NOW, SET), cut], Some(NOW - HOUR)),
            (vec![asked(NOW, SET), Checkpoint::default()], None),
        ] {
            assert_eq!(done_through_s(&cursors), through_s);
        }
    }

    #[test]
    fn only_what_should_have_come_is_a_gap() {
        let known = DoneTypes::of_cursors(&[asked(NOW - HOUR, SET)]);
        for (done, event_type, created, gap) in [
            (&known, "a", Some(NOW - 16 * 60), true),
            (&known, "a", Some(NOW - 15 * 60), false),
            (&known, "a", Some(NOW), false),
            (&known, "a", None, true),
            (&known, "new", Some(NOW - DAY), false),
            (&DoneTypes::default(), "a", Some(NOW - DAY), false),
        ] {
            let created = created.map(at);
            assert_eq!(
                is_event_gap(done, event_type, created, at(NOW)),
                gap,
                "{event_type} {created:?}"
            );
        }
    }
}
