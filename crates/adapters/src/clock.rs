//! The wall clock, random ids (UUIDv7) and sleep: the production implementation of the ports `Clock` and `Pause`.
//!
//! It is the only place that reads the clock; all other code gets `now` as an argument, so that tests decide what time
//! it is. `clippy.toml` forbids other reads. Tests use the clocks of `billhook_testkit`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use billhook_core::ports::{Clock, Pause};
use billhook_core::time::Timestamp;
use uuid::Uuid;

#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::expect_used,
        reason = "a clock beyond the year 9999 is no state to go on in"
    )]
    fn now(&self) -> Timestamp {
        i64::try_from(read_clock_ms())
            .ok()
            .and_then(|ms| Timestamp::from_unix_ms(ms).ok())
            .expect("the clock shows a year before 10000")
    }

    #[expect(
        clippy::expect_used,
        reason = "identifiers that may repeat would be worse than no answer"
    )]
    fn new_id(&self) -> Uuid {
        let mut random = [0; 10];
        getrandom::fill(&mut random).expect("the system has a source of random bytes");
        uuid::Builder::from_unix_timestamp_millis(read_clock_ms(), &random).into_uuid()
    }
}

impl Pause for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that waits")]
    async fn pause(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the clock"
)]
fn read_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_version_7_of_this_moment_and_never_repeat() {
        let before = SystemClock.now();
        let (one, two) = (SystemClock.new_id(), SystemClock.new_id());
        assert_eq!(one.get_version_num(), 7);
        assert_ne!(one, two);
        let (seconds, _) = one.get_timestamp().unwrap().to_unix();
        assert!(i64::try_from(seconds).unwrap() >= before.unix_s());
    }
}
