//! Timestamps. Nothing here reads a clock: in `core`, `now` is always an argument (`ports::Clock` supplies it).
//!
//! Stripe's timestamps are whole seconds, Lob's have fractions; both become milliseconds in UTC.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A time, printed as RFC 3339 in UTC with exactly three decimals, in every column and timeline. With a fixed number of
/// decimals, texts sort like times; otherwise `10:00:00.500Z` would sort before `10:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

/// The text is not RFC 3339, or the time is out of jiff's range (the years -9999 to 9999).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a timestamp: expected RFC 3339 such as 2026-11-21T08:00:00.000Z")]
pub struct InvalidTimestamp;

impl Timestamp {
    /// The form of Stripe's `created`.
    pub fn from_unix_s(seconds: i64) -> Result<Self, InvalidTimestamp> {
        jiff::Timestamp::from_second(seconds)
            .map(Self)
            .map_err(|_| InvalidTimestamp)
    }

    pub fn from_unix_ms(milliseconds: i64) -> Result<Self, InvalidTimestamp> {
        jiff::Timestamp::from_millisecond(milliseconds)
            .map(Self)
            .map_err(|_| InvalidTimestamp)
    }

    /// Reads RFC 3339 with any offset; cuts off everything below milliseconds, so that a printed time reads back as
    /// equal.
    pub fn parse(text: &str) -> Result<Self, InvalidTimestamp> {
        let exact: jiff::Timestamp = text.parse().map_err(|_| InvalidTimestamp)?;
        Self::from_unix_ms(exact.as_millisecond())
    }

    /// Rounded down, also before 1970.
    pub fn unix_s(self) -> i64 {
        self.unix_ms().div_euclid(1000)
    }

    pub fn unix_ms(self) -> i64 {
        self.0.as_millisecond()
    }

    /// The day in UTC, such as `2026-11-21`: the partition key of the events table's day index.
    pub fn day(self) -> String {
        let mut text = self.to_string();
        text.truncate("2026-11-21".len());
        text
    }

    /// Saturates at the greatest timestamp, so that a hostile time cannot make a comparison panic.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span).unwrap_or(jiff::Timestamp::MAX))
    }

    /// Saturates at the smallest timestamp.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span).unwrap_or(jiff::Timestamp::MIN))
    }

    /// The time from here to `later`; zero if `later` is earlier, which happens when two clocks differ.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(u64::try_from(later.unix_ms() - self.unix_ms()).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_milliseconds_always_and_reads_its_own_print() {
        let moment = Timestamp::from_unix_s(1_781_000_000).unwrap();
        assert_eq!(moment.to_string(), "2026-06-09T10:13:20.000Z");
        assert_eq!(Timestamp::parse(&moment.to_string()), Ok(moment));
        assert_eq!(moment.day(), "2026-06-09");
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(Timestamp::parse("yesterday"), Err(InvalidTimestamp));
        assert_eq!(Timestamp::from_unix_s(i64::MAX), Err(InvalidTimestamp));
    }
}
