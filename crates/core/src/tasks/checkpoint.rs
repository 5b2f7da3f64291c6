//! Checkpoints of the scheduled tasks: a high-water mark (`done_through_s`, everything up to this second is done) and,
//! if a pass was interrupted, the place where the next run resumes.
//!
//! Guarantee: the high-water mark rises only when a pass is complete, and only if it is still as it was read
//! (optimistic lock). A mark that is too low costs calls but loses no event, so lowering one is always safe:
//! `webhook-secret` lowers the cursors of `reconcile` before it deletes an endpoint, because Stripe stops its retries
//! to a deleted endpoint. Read next: `reconcile` and `sweep`, which compute what a pass covers.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::ids::{AccountId, ProviderId};
use crate::time::Timestamp;

/// How far a job has come. The job of a task has the task's name; `reconcile` stores in it how far it came in the list
/// of accounts, each of which has cursors of its own ([`reconcile_cursor_key`]). `cleanup` and `reconcile` use only
/// `resume_at.after`: they begin each pass at the first item. `proof` stores when its last pass began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// High-water mark: everything up to this Unix second is done. None until the first pass is complete.
    pub done_through_s: Option<i64>,
    /// What the mark is about: the event types that a cursor of `reconcile` has asked for up to then. A type that a
    /// release adds is in none, and so it is asked for the past too.
    pub event_types: BTreeSet<String>,
    /// Set if the last pass was interrupted.
    pub resume_at: Option<ResumeAt>,
    /// Set while the account refuses our key: in the row of `cleanup` for the account ([`cleanup_account_key`]), and in
    /// the first cursor that `reconcile` has of it.
    pub refusal: Option<AccountRefusal>,
}

/// Where to resume a pass that its deadline or its limit interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeAt {
    /// `done_through_s` once the pass is complete: the Unix second at which the pass began, not the one at which a
    /// later run completes it.
    pub until_s: i64,
    /// The last item that was done, in the task's own format.
    pub after: String,
    /// The event types that the pass asks for. If a release asks for others, the pass begins again.
    pub event_types: BTreeSet<String>,
}

/// That an account refuses our key, for example because it was disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountRefusal {
    /// Unix second of the first refusal since it last answered.
    pub since_s: i64,
    /// Unix second at which the log told it last.
    pub told_s: Option<i64>,
}

impl Checkpoint {
    /// The pass is complete.
    pub fn completed_through(until_s: i64) -> Self {
        Self {
            done_through_s: Some(until_s),
            ..Self::default()
        }
    }

    /// The pass was interrupted; the high-water mark stays.
    #[must_use]
    pub fn interrupted_at(&self, until_s: i64, after: String) -> Self {
        Self {
            resume_at: Some(ResumeAt {
                until_s,
                after,
                event_types: BTreeSet::new(),
            }),
            ..self.clone()
        }
    }

    /// The event types that the pass asked for, whether it is complete or was interrupted.
    #[must_use]
    pub fn of_types(mut self, event_types: &[&str]) -> Self {
        let event_types = event_types.iter().map(|&event_type| event_type.to_owned());
        match &mut self.resume_at {
            Some(resume) => resume.event_types = event_types.collect(),
            None => self.event_types = event_types.collect(),
        }
        self
    }

    /// The account refused our key, now or earlier.
    #[must_use]
    pub fn refused_at(&self, now: Timestamp) -> Self {
        let first = AccountRefusal {
            since_s: now.unix_s(),
            told_s: None,
        };
        Self {
            refusal: Some(self.refusal.unwrap_or(first)),
            ..self.clone()
        }
    }

    #[must_use]
    pub fn with_refusal_told(mut self, now: Timestamp) -> Self {
        if let Some(refusal) = &mut self.refusal {
            refusal.told_s = Some(now.unix_s());
        }
        self
    }

    /// When the log told last that the account refuses our key; none since it last answered.
    pub fn refusal_told_at(&self) -> Option<Timestamp> {
        Timestamp::from_unix_s(self.refusal?.told_s?).ok()
    }
}

/// The key of the jobs table.
pub const JOB_ID: &str = "job_id";

/// The keys of all cursors of reconcile begin with this.
pub const RECONCILE_PREFIX: &str = "reconcile#";

/// The column (N) of [`Checkpoint::done_through_s`].
pub const DONE_THROUGH_S: &str = "created_s";

/// How far the deletion of an endpoint sets the cursors back: Stripe retries a delivery for three days, so an event
/// that the endpoint still had to deliver is at most that old.
const CURSOR_SET_BACK: Duration = Duration::from_hours(72);

/// The key of a cursor: `reconcile#acct_1#0`, `reconcile#platform#0`. `set` is the number of the set of event types.
pub fn reconcile_cursor_key(account: Option<&AccountId>, set: usize) -> String {
    let account = account.map_or("platform", AccountId::as_str);
    format!("{RECONCILE_PREFIX}{account}#{set}")
}

/// The key of what the cleanup remembers of an account: `cleanup#acct_1`, `cleanup#platform`.
pub fn cleanup_account_key(account: Option<&AccountId>) -> String {
    let account = account.map_or("platform", AccountId::as_str);
    format!("cleanup#{account}")
}

/// The key of when the provider's last delivery arrived, which is the row's `done_through_s`: `deliveries#lob`.
pub fn last_delivery_key(provider: ProviderId) -> String {
    format!("deliveries#{provider}")
}

/// The highest value, in Unix seconds, that a cursor may have when an endpoint is deleted.
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
