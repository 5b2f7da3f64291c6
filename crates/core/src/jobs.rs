//! Rows of the jobs table that more than one function knows: the cursors of `reconcile`, which `webhook-secret` sets
//! back before it deletes an endpoint, because Stripe then ends its retries to it.
//!
//! A cursor only says from where to read on, so a lower one costs calls and never an event. Whoever raises one does so
//! on condition that it stands where it was read.

use std::time::Duration;

use crate::ids::AccountId;
use crate::time::Timestamp;

/// The table's key.
pub const JOB_ID: &str = "job_id";
/// What the keys of all cursors begin with.
pub const RECONCILE_PREFIX: &str = "reconcile#";
/// N: the Unix second up to which everything was read.
pub const CREATED_S: &str = "created_s";

/// How far a deletion sets the cursors back: Stripe's retries go on for three days.
const SET_BACK: Duration = Duration::from_hours(72);

/// A cursor's key: `reconcile#acct_1#0`, `reconcile#platform#0`. `set` numbers the sets of types that are asked for.
pub fn reconcile_row(account: Option<&AccountId>, set: usize) -> String {
    let account = account.map_or("platform", AccountId::as_str);
    format!("{RECONCILE_PREFIX}{account}#{set}")
}

/// Where a cursor stands at most once an endpoint is deleted.
pub fn set_back_to_s(now: Timestamp) -> i64 {
    now.before(SET_BACK).unix_s()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_named_by_account_and_set_back_by_three_days() {
        let account = AccountId::parse("acct_1").unwrap();
        assert_eq!(reconcile_row(Some(&account), 0), "reconcile#acct_1#0");
        assert_eq!(reconcile_row(None, 1), "reconcile#platform#1");
        let now = Timestamp::from_unix_s(1_781_000_000).unwrap();
        assert_eq!(set_back_to_s(now), 1_781_000_000 - 259_200);
    }
}
