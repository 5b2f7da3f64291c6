//! Checks what the stack's parameters say about the application's rows, `AdoptedBefore` and `VersionColumn`: once for the
//! stack, because every function that reads rows refuses to start with values that it cannot use.

use anyhow::Result;
use billhook_core::entity::rules::RowRules;
use billhook_core::time::Timestamp;

use super::finding::CheckFinding;

const CHECK: &str = "AdoptedBefore and VersionColumn can be used";

pub(super) fn check_row_rules(rules: &Result<RowRules>, now: Timestamp) -> CheckFinding {
    let before = match rules {
        Ok(rules) => rules.adopted_before,
        Err(error) => {
            let fix = "the functions that read rows do not start with these: deploy with values that they take";
            return CheckFinding::problem(CHECK, format!("{error:#}"), fix);
        }
    };
    match before {
        // A completed order that is made now, and that nobody paid, would be believed.
        Some(before) if before > now => CheckFinding::problem(
            CHECK,
            format!("AdoptedBefore is {before}, which is later than now"),
            "until then, what a new row says is believed without a payment: deploy with the time at which the \
            endpoints began to deliver (docs/adopt.md)",
        ),
        _ => CheckFinding::from_check(CHECK, true, "", ""),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use billhook_adapters::config::{EnvLookup, read_row_rules};

    use super::*;

    fn checked(adopted_before: &'static str) -> CheckFinding {
        let lookup =
            move |name: &str| (name == "ADOPTED_BEFORE").then(|| adopted_before.to_owned());
        let rules = read_row_rules(&EnvLookup(&lookup)).context("cannot read the parameters");
        let now = Timestamp::parse("2026-11-30T00:00:00Z").unwrap();
        check_row_rules(&rules, now)
    }

    #[test]
    fn the_time_of_the_adoption_is_a_time_and_has_passed() {
        for fine in ["", "2026-11-29T23:59:59Z", "2026-11-30T00:00:00Z"] {
            assert!(checked(fine).is_good, "{fine}");
        }
        let later = checked("2026-11-30T00:00:00.001Z");
        assert!(!later.is_good);
        assert_eq!(
            later.detail,
            "AdoptedBefore is 2026-11-30T00:00:00.001Z, which is later than now"
        );
        let no_day = checked("2026-02-29T00:00:00Z");
        assert!(!no_day.is_good);
        assert_eq!(
            no_day.detail,
            "cannot read the parameters: configuration refused: ADOPTED_BEFORE must be a time in RFC 3339, \
            such as 2026-11-30T00:00:00Z, got \"2026-02-29T00:00:00Z\""
        );
    }
}
