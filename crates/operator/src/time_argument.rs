//! Points in time on the command line: a timestamp, a day, or a span before now.

use std::time::Duration;

use billhook_core::time::Timestamp;

/// `2026-11-21T08:00:00Z`, `2026-11-21`, or `30m`, `12h`, `7d` before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeArgument {
    At(Timestamp),
    Ago(Duration),
}

impl TimeArgument {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some(span) = parse_time_span(text) {
            return Ok(Self::Ago(span));
        }
        Timestamp::parse(text)
            .or_else(|_| Timestamp::parse(&format!("{text}T00:00:00Z")))
            .map(Self::At)
            .map_err(|_| {
                "expected a span before now (30m, 12h, 7d), a day (2026-11-21) or a time (2026-11-21T08:00:00Z)"
                    .to_owned()
            })
    }

    pub(crate) fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(span) => now.before(span),
        }
    }
}

fn parse_time_span(text: &str) -> Option<Duration> {
    let (number, seconds) = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)))?;
    let number: u64 = number.parse().ok()?;
    number.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_days_and_spans_are_parsed() {
        let now = Timestamp::parse("2026-11-21T08:00:00Z").unwrap();
        for (text, expected) in [
            ("30m", "2026-11-21T07:30:00.000Z"),
            ("7d", "2026-11-14T08:00:00.000Z"),
            ("2026-11-20", "2026-11-20T00:00:00.000Z"),
            ("2026-11-20T01:02:03.004Z", "2026-11-20T01:02:03.004Z"),
        ] {
            assert_eq!(
                TimeArgument::parse(text).unwrap().resolve(now).to_string(),
                expected
            );
        }
        for wrong in [
            "",
            "d",
            "yesterday",
            "-1d",
            "7 days",
            "99999999999999999999d",
        ] {
            assert!(TimeArgument::parse(wrong).is_err(), "{wrong}");
        }
    }
}
