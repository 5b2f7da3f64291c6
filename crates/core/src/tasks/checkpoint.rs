//! What the scheduled tasks remember between their runs. The cursors of `reconcile` are known to another function too:
//! `webhook-secret` sets them back before it deletes an endpoint, because Stripe then ends its retries to it.
//!
//! A cursor only says from where to read on, so a lower one costs calls and never an event. Whoever raises one does so
//! on condition that it stands where it was read.

use std::time::Duration;

use crate::ids::AccountId;
use crate::time::Timestamp;

/// The cleanup's row.
pub const CLEANUP_JOB: &str = "cleanup";

/// The sweep's row.
pub const SWEEP_JOB: &str = "sweep";

/// The row of reconcile's way through the accounts.
pub const RECONCILE_JOB: &str = "reconcile";

/// How far a job came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The Unix second up to which everything is done; none before the first pass came to its end.
    pub done_through_s: Option<i64>,
    /// The pass that was cut, if one was.
    pub resume_at: Option<ResumeAt>,
}

/// Where a pass goes on that was cut by its time or its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeAt {
    /// The second that it is to bring `created_s` to.
    pub until_s: i64,
    /// What it came to, in the task's own words.
    pub after: String,
}

impl Checkpoint {
    /// The pass has come to its end.
    pub fn completed_through(until_s: i64) -> Self {
        Self {
            done_through_s: Some(until_s),
            resume_at: None,
        }
    }

    /// The same, with the pass cut here.
    #[must_use]
    pub fn interrupted_at(&self, until_s: i64, after: String) -> Self {
        Self {
            done_through_s: self.done_through_s,
            resume_at: Some(ResumeAt { until_s, after }),
        }
    }
}

/// The table's key.
pub const JOB_ID: &str = "job_id";

/// What the keys of all cursors begin with.
pub const RECONCILE_PREFIX: &str = "reconcile#";

/// N: the Unix second up to which everything was read.
pub const DONE_THROUGH_S: &str = "created_s";

/// How far a deletion sets the cursors back: Stripe's retries go on for three days.
const CURSOR_SET_BACK: Duration = Duration::from_hours(72);

/// A cursor's key: `reconcile#acct_1#0`, `reconcile#platform#0`. `set` numbers the sets of types that are asked for.
pub fn reconcile_cursor_key(account: Option<&AccountId>, set: usize) -> String {
    let account = account.map_or("platform", AccountId::as_str);
    format!("{RECONCILE_PREFIX}{account}#{set}")
}

/// Where a cursor stands at most once an endpoint is deleted.
pub fn cursor_limit_after_delete_s(now: Timestamp) -> i64 {
    now.before(CURSOR_SET_BACK).unix_s()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_named_by_account_and_set_back_by_three_days() {
        let account = AccountId::parse("acct_1").unwrap();
        assert_eq!(
            reconcile_cursor_key(Some(&account), 0),
            "reconcile#acct_1#0"
        );
        assert_eq!(reconcile_cursor_key(None, 1), "reconcile#platform#1");
        let now = Timestamp::from_unix_s(1_781_000_000).unwrap();
        assert_eq!(cursor_limit_after_delete_s(now), 1_781_000_000 - 259_200);
    }
}
