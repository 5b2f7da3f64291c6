//! Rate limiter for the deliveries of one connected account (a token bucket for each), so that one account that floods does
//! not take the workers' and the tables' capacity from the others.
//!
//! Best effort: each running instance counts for itself, so an account gets the limit times the number of instances.
//! It is asked only once the signature is verified, because only then the account in the body is the sender's: otherwise a
//! forged body could use up another account's budget. Nothing is lost: the provider repeats what is answered 429 for days,
//! and `reconcile` fetches what it has given up.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use billhook_core::ids::AccountId;
use billhook_core::time::Timestamp;

/// What an account may save up: the deliveries of a minute.
const WINDOW: Duration = Duration::from_secs(60);
/// Accounts with less than a full bucket. Of more nobody is limited: an instance handles one request at a time, so many
/// accounts at once are no flood of one of them.
const ACCOUNTS_MAX: usize = 1_000;

/// Off unless it has a limit.
#[derive(Debug, Default)]
pub struct AccountLimiter {
    /// The time that one delivery takes from the window; zero if the limiter is off.
    interval: Duration,
    /// When the bucket of each account is full again. An account that is not here has a full one.
    full_at: Mutex<HashMap<AccountId, Timestamp>>,
}

impl AccountLimiter {
    /// `per_minute` is the parameter `AccountRateLimit`; 0 for no limit.
    pub fn new(per_minute: u32) -> Self {
        Self {
            interval: WINDOW.checked_div(per_minute).unwrap_or_default(),
            full_at: Mutex::default(),
        }
    }

    /// Takes a token from the account's bucket. `false` if there is none left.
    pub fn admits(&self, account: &AccountId, now: Timestamp) -> bool {
        if self.interval.is_zero() {
            return true;
        }
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let known = full_at.get(account).copied();
        let next = known.map_or(now, |at| at.max(now)).after(self.interval);
        if now.after(WINDOW) < next {
            return false;
        }
        if known.is_none() && full_at.len() >= ACCOUNTS_MAX {
            full_at.retain(|_, at| now < *at);
        }
        if known.is_some() || full_at.len() < ACCOUNTS_MAX {
            full_at.insert(account.clone(), next);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str) -> AccountId {
        AccountId::parse(id).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000 + seconds).unwrap()
    }

    fn admitted(limiter: &AccountLimiter, id: &str, seconds: i64, asked: u32) -> usize {
        let id = account(id);
        let answers = (0..asked).map(|_| limiter.admits(&id, at(seconds)));
        answers.filter(|admits| *admits).count()
    }

    #[test]
    fn each_account_has_the_deliveries_of_a_minute_and_gets_them_back_evenly() {
        let limiter = AccountLimiter::new(60);
        assert_eq!(admitted(&limiter, "acct_1", 0, 100), 60);
        assert_eq!(admitted(&limiter, "acct_2", 0, 10), 10);
        assert_eq!(admitted(&limiter, "acct_1", 10, 100), 10);
        assert_eq!(admitted(&limiter, "acct_1", 3600, 100), 60);
        // A clock that goes back gives nothing away.
        assert_eq!(admitted(&limiter, "acct_1", 3599, 100), 0);
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        assert_eq!(admitted(&AccountLimiter::new(0), "acct_1", 0, 5_000), 5_000);
    }

    #[test]
    fn the_memory_is_bounded_and_a_flood_of_accounts_hides_no_other() {
        let limiter = AccountLimiter::new(1);
        assert_eq!(admitted(&limiter, "acct_flood", 0, 9), 1);
        for n in 0..5_000 {
            assert_eq!(admitted(&limiter, &format!("acct_{n}"), 0, 1), 1);
        }
        let known = || limiter.full_at.lock().unwrap().len();
        assert_eq!(known(), ACCOUNTS_MAX);
        assert_eq!(admitted(&limiter, "acct_flood", 30, 9), 0);
        // Whose bucket is full again is forgotten.
        assert_eq!(admitted(&limiter, "acct_new", 61, 1), 1);
        assert_eq!(known(), 1);
    }
}
