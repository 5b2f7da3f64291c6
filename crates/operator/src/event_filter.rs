//! Filters over events: which index partitions to read, and which of the rows to keep. No I/O.
//!
//! An `EventFilter` is what was typed; an `EventSelection` has its times resolved, so that a replay that is resumed
//! tomorrow still means the same `--since 2d`.

use std::time::Duration;

use billhook_core::ids::{AccountId, EventId, ProviderId};
use billhook_core::intake::index_keys::{open_keys, slots_of_day};
use billhook_core::outcome::{EventOutcome, IgnoreReason, ParkReason};
use billhook_core::time::Timestamp;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::provider_argument::provider_parser;
use crate::row_json::read_text;
use crate::time_argument::TimeArgument;

/// The span of a listing by day without `--since`: 32 queries for each day and provider.
const DEFAULT_SPAN: Duration = Duration::from_hours(7 * 24);

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct EventFilter {
    /// Only events of this provider
    #[arg(long, value_parser = provider_parser())]
    provider: Option<ProviderId>,
    /// Only events of this type; a trailing * matches any ending, for example `charge.*`; may be repeated
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only events with this outcome; may be repeated
    #[arg(long, value_parser = ["pending", "processed", "ignored", "parked", "failed"])]
    outcome: Vec<String>,
    /// Only events with this `processing_error`, for example `order_unknown`
    #[arg(long, value_name = "REASON")]
    error: Option<String>,
    /// Only events of this connected account; `platform` for the platform account
    #[arg(long)]
    account: Option<String>,
    /// Only events of this tenant, whether confirmed or only named in metadata
    #[arg(long)]
    tenant: Option<String>,
    /// Only events about this object, for example `pi_…` or `ltr_…`
    #[arg(long)]
    object: Option<String>,
    /// Only events received since then: 30m, 12h or 7d ago, a day, or an RFC 3339 time. The default is 7 days, or no
    /// limit if every `--outcome` is pending, parked or failed
    #[arg(long, value_parser = TimeArgument::parse)]
    since: Option<TimeArgument>,
    /// Only events received until then
    #[arg(long, value_parser = TimeArgument::parse)]
    until: Option<TimeArgument>,
}

/// A filter with its times resolved. Jobs store it: fields may be added, not renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventSelection {
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

/// A part of an index that is read together; an index has several keys for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IndexPartition {
    /// Of `OpenIndex`: one outcome that is not done.
    Open(EventOutcome),
    /// Of `SlotIndex`: the events that arrived on one day.
    Day(String),
}

impl IndexPartition {
    pub(crate) fn keys(&self) -> Vec<String> {
        match self {
            Self::Open(outcome) => open_keys(*outcome).collect(),
            Self::Day(day) => slots_of_day(day).collect(),
        }
    }
}

impl EventFilter {
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

    /// Without `--outcome`: those that wait for somebody.
    pub(crate) fn or_parked(mut self) -> Self {
        if self.outcome.is_empty() {
            self.outcome = vec![EventOutcome::Parked.to_string()];
        }
        self
    }

    /// The options that select the same events after they were closed.
    pub(crate) fn options_once_closed(&self) -> String {
        let option = |name: &str, value: &Option<String>| {
            let value = value.as_ref();
            value.map(|value| format!(" --{name} '{value}'"))
        };
        let provider = self.provider.map(|provider| provider.to_string());
        let types = self.types.iter().map(|of| format!(" --type '{of}'"));
        let others = [
            option("provider", &provider),
            option("account", &self.account),
            option("tenant", &self.tenant),
            option("object", &self.object),
        ];
        types.chain(others.into_iter().flatten()).collect()
    }

    pub(crate) fn has_more_than_since(&self) -> bool {
        let others = Self {
            since: None,
            ..self.clone()
        };
        !others.is_empty()
    }

    pub(crate) fn has_more_than_account_and_since(&self) -> bool {
        let others = Self {
            account: None,
            ..self.clone()
        };
        others.has_more_than_since()
    }

    /// The connected account that was named.
    pub(crate) fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }

    pub(crate) fn received_since(since: TimeArgument) -> Self {
        Self {
            since: Some(since),
            ..Self::default()
        }
    }

    /// Events that should be done by now. Parked ones are not among them: they wait for another event or for manual
    /// action.
    pub(crate) fn pending_or_failed() -> Self {
        Self {
            outcome: [EventOutcome::Pending, EventOutcome::Failed]
                .map(|outcome| outcome.to_string())
                .into(),
            ..Self::default()
        }
    }

    pub(crate) fn about_object(object: &str, since: TimeArgument) -> Self {
        Self {
            object: Some(object.to_owned()),
            ..Self::received_since(since)
        }
    }

    /// Everything received within a minute of `at`: a correlation id has the time of the delivery, and the row's may
    /// differ by seconds.
    pub(crate) fn select_around(at: Timestamp) -> EventSelection {
        let minute = Duration::from_secs(60);
        let filter = Self::received_since(TimeArgument::At(at.before(minute)));
        filter.resolve(Vec::new(), at.after(minute))
    }

    pub(crate) fn resolve(self, ids: Vec<EventId>, now: Timestamp) -> EventSelection {
        EventSelection {
            ids,
            provider: self.provider.map(|provider| provider.to_string()),
            types: self.types,
            outcome: self.outcome,
            error: self.error,
            account: self.account,
            tenant: self.tenant,
            object: self.object,
            since: self.since.map(|since| since.resolve(now)),
            until: self.until.map_or(now, |until| until.resolve(now)),
        }
    }
}

impl EventSelection {
    pub(crate) fn parked_for(account: &AccountId, reason: ParkReason, now: Timestamp) -> Self {
        let filter = EventFilter {
            provider: Some(ProviderId::Stripe),
            outcome: vec![EventOutcome::Parked.to_string()],
            error: Some(reason.as_str().to_owned()),
            account: Some(account.to_string()),
            ..EventFilter::default()
        };
        filter.resolve(Vec::new(), now)
    }

    /// The events of an account that are ignored because its tenant was muted.
    pub(crate) fn muted_of(account: &AccountId, since: Timestamp, now: Timestamp) -> Self {
        let filter = EventFilter {
            provider: Some(ProviderId::Stripe),
            outcome: vec![EventOutcome::Ignored.to_string()],
            error: Some(IgnoreReason::Muted.as_str().to_owned()),
            account: Some(account.to_string()),
            ..EventFilter::received_since(TimeArgument::At(since))
        };
        filter.resolve(Vec::new(), now)
    }

    pub(crate) fn providers(&self) -> Vec<ProviderId> {
        ProviderId::ALL
            .iter()
            .copied()
            .filter(|provider| {
                self.provider
                    .as_deref()
                    .is_none_or(|p| p == provider.as_str())
            })
            .collect()
    }

    /// The partitions to read, the newest first. What is not done is read from its own index, which is small and needs
    /// no span; anything else has to be read day by day. A pending event is in that index only once the sweep found it
    /// overdue, so the last day is read too.
    pub(crate) fn partitions(&self) -> Vec<IndexPartition> {
        let open = |word: &String| EventOutcome::parse(word).filter(|outcome| !outcome.is_done());
        let open: Option<Vec<EventOutcome>> = self.outcome.iter().map(open).collect();
        let Some(open) = open.filter(|open| !open.is_empty()) else {
            return self.days_since(self.earliest_arrival());
        };
        let is_pending = open.contains(&EventOutcome::Pending);
        let mut partitions: Vec<_> = open.into_iter().map(IndexPartition::Open).collect();
        if is_pending {
            let last_day = self.until.before(Duration::from_hours(24));
            let since = self.since.map_or(last_day, |since| since.max(last_day));
            partitions.extend(self.days_since(since));
        }
        partitions
    }

    fn days_since(&self, since: Timestamp) -> Vec<IndexPartition> {
        let mut days = Vec::new();
        let mut at = self.until;
        while at.day() >= since.day() {
            days.push(IndexPartition::Day(at.day()));
            at = at.before(Duration::from_hours(24));
        }
        days
    }

    pub(crate) fn earliest_arrival(&self) -> Timestamp {
        self.since
            .unwrap_or_else(|| self.until.before(DEFAULT_SPAN))
    }

    /// Decides by what an index projects, type and account, whether reading the row is worth it.
    pub(crate) fn may_match(&self, entry: &Value) -> bool {
        let account = read_text(entry, "connected_account_id").unwrap_or("platform");
        let event_type = read_text(entry, "event_type").unwrap_or_default();
        self.account
            .as_deref()
            .is_none_or(|wanted| wanted == account)
            && (self.types.is_empty()
                || self
                    .types
                    .iter()
                    .any(|wanted| matches_event_type(wanted, event_type)))
    }

    pub(crate) fn matches(&self, row: &Value) -> bool {
        let is = |name: &str, wanted: &Option<String>| {
            wanted
                .as_deref()
                .is_none_or(|wanted| read_text(row, name) == Some(wanted))
        };
        let outcome = read_text(row, "processing_outcome").unwrap_or_default();
        self.may_match(row)
            && (self.outcome.is_empty() || self.outcome.iter().any(|wanted| wanted == outcome))
            && is("processing_error", &self.error)
            && (is("tenant_id", &self.tenant) || is("tenant_hint", &self.tenant))
            && is("object_id", &self.object)
    }
}

fn matches_event_type(wanted: &str, event_type: &str) -> bool {
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
    struct FilterLine {
        #[command(flatten)]
        filter: EventFilter,
    }

    fn selection(line: &[&str]) -> EventSelection {
        let now = Timestamp::parse("2026-11-21T08:00:00Z").unwrap();
        let line = FilterLine::try_parse_from([&["x"], line].concat()).unwrap();
        line.filter.resolve(Vec::new(), now)
    }

    #[test]
    fn open_outcomes_use_the_open_index_and_others_the_day_index() {
        let open = IndexPartition::Open;
        let day = |day: &str| IndexPartition::Day(day.to_owned());
        assert_eq!(
            selection(&["--outcome", "failed", "--outcome", "parked"]).partitions(),
            [open(EventOutcome::Failed), open(EventOutcome::Parked)]
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
        assert_eq!(
            selection(&["--outcome", "pending"]).partitions(),
            [
                open(EventOutcome::Pending),
                day("2026-11-21"),
                day("2026-11-20")
            ]
        );
        assert_eq!(selection(&[]).partitions().len(), 8);
        assert_eq!(
            selection(&["--since", "2026-11-19", "--until", "2026-11-20T23:00:00Z"]).partitions(),
            [day("2026-11-20"), day("2026-11-19")]
        );
        assert_eq!(selection(&["--since", "2026-11-22"]).partitions(), []);
    }

    #[test]
    fn every_filter_excludes_events_that_do_not_match() {
        let row = json!({ "event_type": "charge.refunded", "processing_outcome": "parked",
            "processing_error": "order_unknown", "connected_account_id": "acct_1", "tenant_id": "ten_1",
            "object_id": "ch_1" });
        for (option, fitting, other) in [
            ("--type", "charge.refunded", "charge.failed"),
            ("--type", "charge.*", "payment_intent.*"),
            ("--outcome", "parked", "failed"),
            ("--error", "order_unknown", "nothing_named"),
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
    fn a_stored_selection_is_read_back_unchanged() {
        let selection = selection(&["--type", "charge.*", "--since", "2d"]);
        let text = serde_json::to_string(&selection).unwrap();
        assert_eq!(
            serde_json::from_str::<EventSelection>(&text).unwrap(),
            selection
        );
    }
}
