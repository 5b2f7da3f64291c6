//! What Stripe is asked for to find events that never came, and what counts as a gap. Pure: `cleanup-failed-payments`
//! asks and takes in.

use std::time::Duration;

use crate::provider::stripe::types::HANDLED_TYPES;
use crate::tasks::checkpoint::Checkpoint;
use crate::time::Timestamp;

/// Stripe takes so many types in one question.
const TYPES_MAX: usize = 20;

/// Stripe lists no older events.
const LISTED: Duration = Duration::from_hours(30 * 24);

/// What each run reads again: an event may be listed later than it says that it was made.
const READ_AGAIN: Duration = Duration::from_hours(2);

/// Where the first run begins: as far back as Stripe's own retries go.
const FIRST_RUN: Duration = Duration::from_hours(3 * 24);

/// A younger event may still be on its way to ingress.
const GAP: Duration = Duration::from_mins(15);

/// The types that mean something, in sets that fit a question. Their order numbers the cursors.
pub fn event_type_sets() -> impl Iterator<Item = &'static [&'static str]> {
    HANDLED_TYPES.chunks(TYPES_MAX)
}

/// Which events are asked for, both seconds included. Stripe answers the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListingSpan {
    /// The oldest.
    pub from_s: i64,
    /// The newest.
    pub until_s: i64,
    /// The event that a pass which was cut came to.
    pub after: Option<String>,
}

/// What is to be read now: the rest of the pass that was cut, or a new one.
pub fn next_listing_span(progress: &Checkpoint, now: Timestamp) -> ListingSpan {
    let read_again_s = i64::try_from(READ_AGAIN.as_secs()).unwrap_or(0);
    let from_s = match progress.done_through_s {
        Some(created_s) => created_s.saturating_sub(read_again_s),
        None => now.before(FIRST_RUN).unix_s(),
    };
    ListingSpan {
        from_s: from_s.max(now.before(LISTED).unix_s()),
        until_s: progress
            .resume_at
            .as_ref()
            .map_or(now.unix_s(), |cut| cut.until_s),
        after: progress.resume_at.as_ref().map(|cut| cut.after.clone()),
    }
}

/// Whether an event that is not there should have been. What the first pass finds may be older than this stage.
pub fn is_event_gap(progress: &Checkpoint, created: Option<Timestamp>, now: Timestamp) -> bool {
    progress.done_through_s.is_some() && created.is_none_or(|created| created.after(GAP) < now)
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
