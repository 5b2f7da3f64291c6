//! Which events are meant. Pure: what to read of the indexes, and which of the rows read are wanted.

use std::time::Duration;

use billhook_core::ids::{AccountId, EventId, ProviderId};
use billhook_core::outcome::{EventOutcome, ParkReason};
use billhook_core::time::Timestamp;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::moment::Moment;

/// Without `--since` a listing by day looks back so far.
const SPAN: Duration = Duration::from_hours(7 * 24);

/// The filters of the command line.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only this provider's
    #[arg(long, value_parser = ["stripe", "lob"])]
    provider: Option<String>,
    /// Only this type; a trailing * stands for any ending, as `charge.*`
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only with this outcome
    #[arg(long, value_parser = ["pending", "processed", "ignored", "parked", "failed"])]
    outcome: Vec<String>,
    /// Only with this reason in `processing_error`, as `order_unknown`
    #[arg(long, value_name = "REASON")]
    error: Option<String>,
    /// Only of this connected account; `platform` for the platform's own
    #[arg(long)]
    account: Option<String>,
    /// Only of this tenant, known or hinted
    #[arg(long)]
    tenant: Option<String>,
    /// Only about this object, as `pi_…` or `ltr_…`
    #[arg(long)]
    object: Option<String>,
    /// Received from then on: 30m, 12h, 7d, a day, or RFC 3339. Seven days unless only open outcomes are asked for
    #[arg(long, value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Received until then
    #[arg(long, value_parser = Moment::parse)]
    until: Option<Moment>,
}

/// The same, resolved to moments, as a job keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Selection {
    pub(crate) ids: Vec<EventId>,
    provider: Option<String>,
    types: Vec<String>,
    outcome: Vec<String>,
    error: Option<String>,
    account: Option<String>,
    tenant: Option<String>,
    object: Option<String>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Timestamp,
}

/// What of a table to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Partition {
    /// `OpenIndex`: one outcome that is not done.
    Open(String),
    /// `DayIndex`: one day.
    Day(String),
}

impl Filter {
    /// Whether anything narrows it down.
    pub(crate) fn is_empty(&self) -> bool {
        self.provider.is_none()
            && self.types.is_empty()
            && self.outcome.is_empty()
            && self.error.is_none()
            && self.account.is_none()
            && self.tenant.is_none()
            && self.object.is_none()
            && self.since.is_none()
            && self.until.is_none()
    }

    /// All that came since then.
    pub(crate) fn since(since: Moment) -> Self {
        Self {
            since: Some(since),
            ..Self::default()
        }
    }

    /// What should be done by now: of parked events a person knows, and the sweep.
    pub(crate) fn stuck() -> Self {
        Self {
            outcome: [EventOutcome::Pending, EventOutcome::Failed]
                .map(|outcome| outcome.to_string())
                .into(),
            ..Self::default()
        }
    }

    /// All about one object.
    pub(crate) fn about(object: &str, since: Moment) -> Self {
        Self {
            object: Some(object.to_owned()),
            ..Self::since(since)
        }
    }

    /// All that came within a minute of a moment.
    pub(crate) fn around(at: Timestamp) -> Selection {
        let minute = Duration::from_secs(60);
        let filter = Self::since(Moment::At(at.before(minute)));
        filter.select(Vec::new(), at.after(minute))
    }

    pub(crate) fn select(self, ids: Vec<EventId>, now: Timestamp) -> Selection {
        Selection {
            ids,
            provider: self.provider,
            types: self.types,
            outcome: self.outcome,
            error: self.error,
            account: self.account,
            tenant: self.tenant,
            object: self.object,
            since: self.since.map(|since| since.from(now)),
            until: self.until.map_or(now, |until| until.from(now)),
        }
    }
}

impl Selection {
    /// All that is parked for a reason, of an account.
    pub(crate) fn parked(account: &AccountId, reason: ParkReason, now: Timestamp) -> Self {
        let filter = Filter {
            provider: Some(ProviderId::Stripe.to_string()),
            outcome: vec![EventOutcome::Parked.to_string()],
            error: Some(reason.as_str().to_owned()),
            account: Some(account.to_string()),
            ..Filter::default()
        };
        filter.select(Vec::new(), now)
    }

    pub(crate) fn providers(&self) -> Vec<ProviderId> {
        [ProviderId::Stripe, ProviderId::Lob]
            .into_iter()
            .filter(|provider| {
                self.provider
                    .as_deref()
                    .is_none_or(|p| p == provider.as_str())
            })
            .collect()
    }

    /// The newest first. The index of what is open needs no span; the one by day does.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let is_open =
            |word: &String| EventOutcome::parse(word).is_some_and(|outcome| !outcome.is_done());
        if !self.outcome.is_empty() && self.outcome.iter().all(is_open) {
            return self.outcome.iter().cloned().map(Partition::Open).collect();
        }
        let since = self.from();
        let mut days = Vec::new();
        let mut at = self.until;
        while at.day() >= since.day() {
            days.push(Partition::Day(at.day()));
            at = at.before(Duration::from_hours(24));
        }
        days
    }

    /// The earliest arrival that is looked at.
    pub(crate) fn from(&self) -> Timestamp {
        self.since.unwrap_or_else(|| self.until.before(SPAN))
    }

    /// What an index's entry alone can tell: type and account.
    pub(crate) fn may_match(&self, entry: &Value) -> bool {
        let account = text(entry, "connected_account_id").unwrap_or("platform");
        let event_type = text(entry, "event_type").unwrap_or_default();
        self.account
            .as_deref()
            .is_none_or(|wanted| wanted == account)
            && (self.types.is_empty() || self.types.iter().any(|wanted| fits(wanted, event_type)))
    }

    /// Whether a row is wanted.
    pub(crate) fn matches(&self, row: &Value) -> bool {
        let is = |name: &str, wanted: &Option<String>| {
            wanted
                .as_deref()
                .is_none_or(|wanted| text(row, name) == Some(wanted))
        };
        let outcome = text(row, "processing_outcome").unwrap_or_default();
        self.may_match(row)
            && (self.outcome.is_empty() || self.outcome.iter().any(|wanted| wanted == outcome))
            && is("processing_error", &self.error)
            && (is("tenant_id", &self.tenant) || is("tenant_hint", &self.tenant))
            && is("object_id", &self.object)
    }
}

/// A member's text.
pub(crate) fn text<'a>(row: &'a Value, name: &str) -> Option<&'a str> {
    row.get(name)?.as_str()
}

fn fits(wanted: &str, event_type: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(beginning) => event_type.starts_with(beginning),
        None => event_type == wanted,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn selection(line: &[&str]) -> Selection {
        let now = Timestamp::parse("2026-11-21T08:00:00Z").unwrap();
        let line = Line::try_parse_from([&["x"], line].concat()).unwrap();
        line.filter.select(Vec::new(), now)
    }

    #[test]
    fn open_outcomes_are_read_from_their_index_and_all_else_by_day() {
        let open = |word: &str| Partition::Open(word.to_owned());
        let day = |day: &str| Partition::Day(day.to_owned());
        assert_eq!(
            selection(&["--outcome", "failed", "--outcome", "parked"]).partitions(),
            [open("failed"), open("parked")]
        );
        assert_eq!(
            selection(&[
                "--outcome",
                "failed",
                "--outcome",
                "processed",
                "--since",
                "12h"
            ])
            .partitions(),
            [day("2026-11-21"), day("2026-11-20")]
        );
        assert_eq!(selection(&[]).partitions().len(), 8);
        assert_eq!(
            selection(&["--since", "2026-11-19", "--until", "2026-11-20T23:00:00Z"]).partitions(),
            [day("2026-11-20"), day("2026-11-19")]
        );
        assert_eq!(selection(&["--since", "2026-11-22"]).partitions(), []);
    }

    #[test]
    fn every_filter_leaves_out_what_it_does_not_name() {
        let row = json!({ "event_type": "charge.refunded", "processing_outcome": "parked",
            "processing_error": "unlinked", "connected_account_id": "acct_1", "tenant_id": "ten_1",
            "object_id": "ch_1" });
        for (option, fitting, other) in [
            ("--type", "charge.refunded", "charge.failed"),
            ("--type", "charge.*", "payment_intent.*"),
            ("--outcome", "parked", "failed"),
            ("--error", "unlinked", "order_unknown"),
            ("--account", "acct_1", "platform"),
            ("--tenant", "ten_1", "ten_2"),
            ("--object", "ch_1", "ch_2"),
        ] {
            assert!(
                selection(&[option, fitting]).matches(&row),
                "{option} {fitting}"
            );
            assert!(
                !selection(&[option, other]).matches(&row),
                "{option} {other}"
            );
        }
        let platforms = json!({ "event_type": "x", "tenant_hint": "ten_1" });
        assert!(selection(&["--account", "platform", "--tenant", "ten_1"]).matches(&platforms));
    }

    #[test]
    fn a_selection_is_kept_and_read_back() {
        let selection = selection(&["--type", "charge.*", "--since", "2d"]);
        let text = serde_json::to_string(&selection).unwrap();
        assert_eq!(serde_json::from_str::<Selection>(&text).unwrap(), selection);
    }
}
