//! Which states a nightly proof takes: a sample of about the configured percentage, another one each night. Pure: the
//! crate `cleanup-failed-payments` reads and proves them (`proof::prover`).
//!
//! Guarantee: a sample that a run did not finish is finished before another one is begun, also if the percentage was
//! changed meanwhile, because the checkpoint names the segment itself. A night whose run never began is not made up for:
//! its sample comes again after `100 / percent` nights, and [`count_missed_nights`] says so.

use crate::proof::listing::ScanSegment;
use crate::tasks::checkpoint::Checkpoint;
use crate::time::Timestamp;

const DAY_S: i64 = 24 * 60 * 60;

/// How far a pass came in its segment. Stored as text in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofPosition {
    pub segment: ScanSegment,
    /// Where the next page begins, as the last page said; `None` at the beginning of the segment.
    pub after: Option<String>,
}

impl ProofPosition {
    /// `3/100`, or `3/100#payment#acct_1#pi_1`.
    fn parse(text: &str) -> Option<Self> {
        let (segment, after) = match text.split_once('#') {
            Some((segment, after)) => (segment, Some(after.to_owned())),
            None => (text, None),
        };
        let (number, total) = segment.split_once('/')?;
        let (number, total) = (number.parse().ok()?, total.parse().ok()?);
        let segment = ScanSegment { number, total };
        (number < total).then_some(Self { segment, after })
    }

    pub fn encode(&self) -> String {
        let ScanSegment { number, total } = self.segment;
        match &self.after {
            Some(after) => format!("{number}/{total}#{after}"),
            None => format!("{number}/{total}"),
        }
    }
}

/// A pass over the sample of one night.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofPass {
    /// The Unix second at which it began, in an earlier run if that was interrupted.
    pub began_s: i64,
    pub position: ProofPosition,
}

impl ProofPass {
    /// Whether it is about the night of `now`, and not about an earlier one.
    pub fn is_of_night(&self, now: Timestamp) -> bool {
        day_of(self.began_s) == day_of(now.unix_s())
    }
}

/// The rest of an interrupted pass, or else the sample of this night. `percent` is from 1 to 100.
pub fn next_proof_pass(checkpoint: &Checkpoint, percent: u32, now: Timestamp) -> ProofPass {
    let sample_at = |began_s: i64| {
        let at = Timestamp::from_unix_s(began_s).unwrap_or(now);
        ProofPosition {
            segment: ScanSegment::sample_of(percent, at),
            after: None,
        }
    };
    match &checkpoint.resume_at {
        Some(resume) => ProofPass {
            began_s: resume.until_s,
            position: ProofPosition::parse(&resume.after)
                .unwrap_or_else(|| sample_at(resume.until_s)),
        },
        None => ProofPass {
            began_s: now.unix_s(),
            position: sample_at(now.unix_s()),
        },
    }
}

/// The nights before this one in which no pass began: the function did not run, or an earlier sample took all the time.
/// Example: the checkpoint is of Monday and it is Thursday, so the samples of Tuesday and Wednesday are not proven.
pub fn count_missed_nights(checkpoint: &Checkpoint, now: Timestamp) -> i64 {
    let interrupted = checkpoint.resume_at.as_ref();
    let last_s = interrupted
        .map(|resume| resume.until_s)
        .or(checkpoint.done_through_s);
    let missed = last_s.map(|last_s| day_of(now.unix_s()) - day_of(last_s) - 1);
    missed.unwrap_or_default().max(0)
}

fn day_of(unix_s: i64) -> i64 {
    unix_s.div_euclid(DAY_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 00:00 UTC.
    const MIDNIGHT: i64 = 20_613 * DAY_S;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_unix_s(second).unwrap()
    }

    #[test]
    fn a_position_reads_back_as_written() {
        for text in ["0/1", "3/100", "3/100#payment#acct_1#pi_1", "3/100#page 2"] {
            assert_eq!(ProofPosition::parse(text).unwrap().encode(), text);
        }
        for text in ["", "3", "3/", "100/100", "0/0", "-1/4", "order#ord_1"] {
            assert_eq!(ProofPosition::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_was_interrupted_goes_on_in_its_own_segment_and_the_rest_is_of_this_night() {
        let (night, later) = (at(MIDNIGHT + 60), at(MIDNIGHT + DAY_S + 60));
        let done = Checkpoint::completed_through(MIDNIGHT - DAY_S);
        let own = next_proof_pass(&done, 1, night);
        let position = ProofPosition {
            segment: ScanSegment::sample_of(1, night),
            after: None,
        };
        assert_eq!((own.began_s, own.position), (MIDNIGHT + 60, position));
        // The percentage was changed before the next night.
        let cut = done.interrupted_at(MIDNIGHT + 60, "13/100#order#ord_1".to_owned());
        let rest = next_proof_pass(&cut, 50, later);
        assert_eq!(rest.position.encode(), "13/100#order#ord_1");
        assert!(!rest.is_of_night(later) && rest.is_of_night(night));
        let damaged = done.interrupted_at(MIDNIGHT + 60, "?".to_owned());
        let again = next_proof_pass(&damaged, 1, later);
        assert_eq!(again.position.segment, ScanSegment::sample_of(1, night));
    }

    #[test]
    fn nights_without_a_pass_are_counted() {
        let done = Checkpoint::completed_through(MIDNIGHT + 60);
        let cut = done.interrupted_at(MIDNIGHT + DAY_S + 60, String::new());
        for (checkpoint, days, missed) in [
            (Checkpoint::default(), 5, 0),
            (done.clone(), 0, 0),
            (done.clone(), 1, 0),
            (done, 3, 2),
            (cut.clone(), 2, 0),
            (cut, 4, 2),
        ] {
            let now = at(MIDNIGHT + days * DAY_S + 50);
            assert_eq!(count_missed_nights(&checkpoint, now), missed, "{days}");
        }
    }
}
