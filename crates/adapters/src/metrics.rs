//! All metrics (name, unit, dimensions, meaning, alarms), their counters, and the writer of CloudWatch's embedded
//! metric format (EMF): a log line whose member `_aws` tells CloudWatch Logs which of its members are metrics.
//!
//! Metrics are counted in memory, per thread (a function has one), and written once per invocation: one document per
//! provider and set of labels. The first goes into the last log line if the labels agree
//! (`telemetry::write_final_line`); the rest get lines of their own (`telemetry::flush_metrics`). An invocation that
//! ends at its time-out loses its metrics. Only the dimensions named here exist: CloudWatch charges each combination of
//! values as a custom metric, so no id is one. `docs/runbook/metrics.md` mirrors the list, and a test compares it. Why
//! no crate: `docs/adr/0003`.
//! Source: `Specification: Embedded metric format`, read 2026-11.

use std::cell::RefCell;
use std::fmt::Write as _;

use billhook_core::ids::ProviderId;
use billhook_core::outcome::{BlockedOn, EventVerdict, IgnoreReason, ParkReason};
use billhook_core::provider::envelope::EventType;
use billhook_core::provider::stripe::event_types::HANDLED_TYPES;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{MessageReport, ProcessingSuccess};
use serde_json::json;

/// The format's limit for the values of one metric in one line.
const VALUES_MAX: usize = 100;
/// Every metric has these two dimensions.
const ENVIRONMENT: &str = "Environment";
const PROVIDER: &str = "Provider";

/// Decides how several values of one invocation are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricUnit {
    /// The values of one invocation are added up.
    Count,
    /// Each value is kept, so that CloudWatch can compute percentiles.
    Milliseconds,
    /// Each value is kept, as of milliseconds.
    Seconds,
}

/// The dimensions of a metric in addition to `Environment` and `Provider`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MetricDimensions {
    /// No other dimension.
    Provider,
    /// Published twice: without and with `Reason`. Alarms need both: one counts all refused signatures, another only
    /// events parked as `tampered`.
    Reason,
    /// Published only with `event_type` and `result`.
    TypeAndResult,
}

#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub unit: MetricUnit,
    pub dimensions: MetricDimensions,
    /// What one count or one value means; `docs/runbook/metrics.md` has the same text.
    pub meaning: &'static str,
    /// The alarms on this metric, without `${AppName}-${Env}-`, where `*` stands for each provider; a metric without
    /// alarms is on the dashboard.
    alarms: &'static [&'static str],
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $unit:ident, $dimensions:ident, [$($alarm:literal),*], $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub static $constant: Metric = Metric {
                name: $name,
                unit: MetricUnit::$unit,
                dimensions: MetricDimensions::$dimensions,
                meaning: $meaning,
                alarms: &[$($alarm),*],
            };
        )*
        pub static ALL: &[&Metric] = &[$(&$constant),*];
    };
}

metrics! {
    WEBHOOK_SUCCESS = "WebhookSuccess", Count, Provider,
        ["*-refused", "*-none-accepted"],
        "of each delivery that a secret of ours signed: 1 if it was answered 200, duplicates included, else 0";
    WEBHOOK_DUPLICATE = "WebhookDuplicate", Count, Provider, [],
        "a delivery of an event that was processed or ignored before";
    WEBHOOK_INVALID_SIGNATURE = "WebhookInvalidSignature", Count, Reason, [],
        "a delivery answered 400 `signature_invalid`, for any other reason than `secret_missing`";
    WEBHOOK_SECRET_MISSING = "WebhookSecretMissing", Count, Provider, [],
        "a delivery answered 400 `signature_invalid` because nobody has stored the provider's signing secret";
    WEBHOOK_ERROR = "WebhookError", Count, Provider, [],
        "any other delivery that was refused: its body is too large or not an event, or billhook could not accept it";
    WEBHOOK_LIMITED = "WebhookLimited", Count, Provider, [],
        "a genuine delivery answered 429 because its connected account is over `AccountRateLimit`";
    WEBHOOK_PROCESSING_TIME = "WebhookProcessingTime", Milliseconds, Provider, [],
        "from a delivery's arrival in `webhook-ingress` to its answer";
    STRIPE_WEBHOOK_EVENTS_TOTAL = "stripe_webhook_events_total", Count, TypeAndResult, [],
        "a Stripe delivery with a valid signature: `accepted`, `duplicate`, or `failed` (could not be stored and queued)";
    WEBHOOK_PROCESSED = "WebhookProcessed", Count, Provider, [],
        "an event that a worker set to processed or ignored";
    WEBHOOK_PARKED = "WebhookParked", Count, Reason,
        ["*-tampered", "live-event-on-test-stage"],
        "an event that a worker parked, counted each time";
    WEBHOOK_PARKED_FOR_PERSON = "WebhookParkedForPerson", Count, Provider, ["*-parked"],
        "an event that a worker parked for a reason that only manual action removes, counted each time";
    WEBHOOK_FAILED = "WebhookFailed", Count, Provider, ["*-worker-failures"],
        "a message that a worker could not process: SQS delivers it again or moves it to the dead-letter queue";
    WEBHOOK_END_TO_END_TIME = "WebhookEndToEndTime", Milliseconds, Provider, [],
        "from an event's first arrival until it is processed";
    REQUIRES_REVIEW = "RequiresReview", Count, Provider, ["requires-review"],
        "an order or statement that requires a review for a reason that it did not have before, whichever worker found it";
    REFUND_FULL = "RefundFull", Count, Provider, [],
        "an order or statement whose payment was refunded in full";
    PAYMENT_FAILED = "PaymentFailed", Count, Provider, [],
        "an order or statement whose last payment attempt failed";
    AMOUNT_MISMATCH = "AmountMismatch", Count, Provider, [],
        "a payment whose amount or currency is not what was due";
    PAID_AFTER_CANCEL = "PaidAfterCancel", Count, Provider, [],
        "a payment for a cancelled order";
    ORDERS_COMPLETED = "OrdersCompleted", Count, Provider, [],
        "an order paid in full";
    ORDERS_CANCELLED = "OrdersCancelled", Count, Provider, [],
        "an order that the cleanup cancelled";
    NEEDS_ATTENTION = "NeedsAttention", Count, Provider, [],
        "a statement whose mail needs attention";
    DEADLINE_NEAR = "DeadlineNear", Count, Provider, ["deadline-near"],
        "a write or recheck of a payment whose authorisation expires within a day, or whose dispute has to be answered within 48 hours";
    DISPUTE_OPENED = "DisputeOpened", Count, Provider, ["dispute-opened"],
        "a dispute, an inquiry or an early fraud warning that a payment did not have before, whatever it is linked to";
    UNCLAIMED_MONEY = "UnclaimedMoney", Count, Provider, ["unclaimed-money"],
        "a write or recheck of a payment that has money and to which no order or statement has been linked for a day";
    ROW_TROUBLE = "RowTrouble", Count, Reason, ["*-row-trouble"],
        "an application's row that an older copy replaced (`row_restored`), that has a foreign value in a column of billhook (`column_foreign`), that is gone (`projection_missing`), or that the sweep may not write (`row_not_restored`)";
    CROSS_TENANT = "CrossTenant", Count, Provider, ["cross-tenant"],
        "an event that names an entity of another tenant, or of none, or a payment whose money goes to another tenant; nothing was linked";
    TENANT_UNKNOWN = "TenantUnknown", Count, Provider, [],
        "an event of an account that belongs to no tenant";
    LIVEMODE_IGNORED = "LivemodeIgnored", Count, Provider, [],
        "a test event in a live environment";
    WEBHOOK_MUTED = "WebhookMuted", Count, Provider, [],
        "an event of a muted tenant, which was stored and ignored";
    STUCK_EVENTS = "StuckEvents", Count, Provider, ["*-stuck-events"],
        "events pending for more than an hour, at each sweep";
    QUIET_HOURS = "QuietHours", Count, Provider, ["*-no-deliveries"],
        "hours since the last event arrived, at each sweep; nothing before the first";
    OVERDUE_EVENTS = "OverdueEvents", Count, Provider, ["*-overdue"],
        "an event that has been parked for 24 hours because its order, statement, letter or tenant does not exist";
    EVENT_GAP = "EventGap", Count, Provider, ["event-gap"],
        "an event that Stripe lists, that is older than 15 minutes and that was never delivered";
    RECONCILED_THROUGH = "ReconciledThrough", Seconds, Provider, ["reconcile-behind"],
        "how far the reconciliation with Stripe is behind at the end of a run, of each account";
    ACCOUNT_REFUSED = "AccountRefused", Count, Provider, ["account-refused"],
        "a connected account that has refused billhook's key for a day, counted once";
    CLEANUP_FAILED = "CleanupFailed", Count, Provider, ["cleanup-failures"],
        "an order that the cleanup could not check or could not write";
    PROVEN_ENTITIES = "ProvenEntities", Count, Provider, [],
        "a state (of an order, statement, tenant, payment or invoice, whatever its provider) that the nightly proof compared with its stored events";
    PROOF_DIFFERENCES = "ProofDifferences", Count, Provider, ["proof-differences"],
        "a proven state that is not what its stored events, the other states or its row say";
    UNPROVABLE = "Unprovable", Count, Provider, [],
        "a proven state of which events are gone; what is left agrees";
    INDEX_FALLBACK_SCAN = "IndexFallbackScan", Count, Provider, ["*-index-fallback"],
        "a scan of a whole table because an index of it is not active";
    ENDPOINT_FAILED = "EndpointFailed", Count, Provider, ["endpoint-failures"],
        "a failed CloudFormation request about an endpoint at Stripe";
    SECRET_UNREADABLE = "SecretUnreadable", Count, Provider, ["*-secret-unreadable"],
        "a read of a signing secret that failed while no value of it was cached, or whose text cannot be used";
    SECRET_REFRESH = "SecretRefresh", Count, Provider, [],
        "the secrets were read again because a delivery matched no known secret";
}

struct MetricSeries {
    metric: &'static Metric,
    provider: ProviderId,
    labels: Vec<&'static str>,
    values: Vec<u64>,
}

thread_local! {
    static RECORDED: RefCell<Vec<MetricSeries>> = const { RefCell::new(Vec::new()) };
}

impl MetricUnit {
    /// The unit's name in EMF, alarms and dashboard.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "Count",
            Self::Milliseconds => "Milliseconds",
            Self::Seconds => "Seconds",
        }
    }
}

impl MetricDimensions {
    fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Provider => &[],
            Self::Reason => &["Reason"],
            Self::TypeAndResult => &["event_type", "result"],
        }
    }

    /// The dimension sets under which a metric is published.
    pub fn sets(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Provider => &[&[ENVIRONMENT, PROVIDER]],
            Self::Reason => &[&[ENVIRONMENT, PROVIDER], &[ENVIRONMENT, PROVIDER, "Reason"]],
            Self::TypeAndResult => &[&[ENVIRONMENT, PROVIDER, "event_type", "result"]],
        }
    }
}

impl Metric {
    /// The names of its alarms, without `${AppName}-${Env}-`.
    pub fn alarm_names(&self) -> Vec<String> {
        let names = |alarm: &&'static str| match alarm.strip_prefix('*') {
            Some(rest) => {
                let providers = ProviderId::ALL.iter();
                providers
                    .map(|provider| format!("{provider}{rest}"))
                    .collect()
            }
            None => vec![(*alarm).to_owned()],
        };
        self.alarms.iter().flat_map(names).collect()
    }

    pub fn count(&'static self, provider: ProviderId) {
        self.record(provider, &[], 1);
    }

    /// Adds `value` to a count, or one measurement. A count of 0 is written too: `WebhookSuccess` = 0 for a refused
    /// delivery distinguishes "none accepted" from "none arrived".
    pub fn add(&'static self, provider: ProviderId, value: u64) {
        self.record(provider, &[], value);
    }

    pub(crate) fn record(&'static self, provider: ProviderId, labels: &[&'static str], value: u64) {
        RECORDED.with_borrow_mut(|recorded| {
            let known = recorded.iter_mut().find(|series| {
                std::ptr::eq(series.metric, self)
                    && series.provider == provider
                    && series.labels == labels
                    && series.values.len() < VALUES_MAX
            });
            match (known, self.unit) {
                (Some(series), MetricUnit::Count) => {
                    series.values.iter_mut().for_each(|sum| *sum += value);
                }
                (Some(series), MetricUnit::Milliseconds | MetricUnit::Seconds) => {
                    series.values.push(value)
                }
                (None, _) => recorded.push(MetricSeries {
                    metric: self,
                    provider,
                    labels: labels.to_vec(),
                    values: vec![value],
                }),
            }
        });
    }
}

/// A delivery that is answered 400 `signature_invalid`, unless its secret is missing.
pub fn count_invalid_signature(provider: ProviderId, reason: &'static str) {
    WEBHOOK_INVALID_SIGNATURE.record(provider, &[reason], 1);
}

/// A delivery with a valid signature. `result` is `accepted`, `duplicate` or `failed`. A type that we do not handle
/// counts as `other`: the sender chooses the type, and each new one would become another custom metric.
pub fn count_genuine_delivery(provider: ProviderId, event_type: &EventType, result: &'static str) {
    if provider == ProviderId::Stripe {
        let event_type = HANDLED_TYPES
            .iter()
            .find(|handled| **handled == event_type.as_str());
        let labels = [event_type.copied().unwrap_or("other"), result];
        STRIPE_WEBHOOK_EVENTS_TOTAL.record(provider, &labels, 1);
    }
}

/// Counts the result of one message.
pub fn count_report(provider: ProviderId, report: &MessageReport, now: Timestamp) {
    let verdict = match &report.result {
        Ok(ProcessingSuccess::AlreadyDone(_) | ProcessingSuccess::Rechecked) => return,
        // Not counted: an open payment stays in `OpenIndex`, and the sweep sends it again.
        Ok(ProcessingSuccess::LeftToSweep(_)) => return,
        Ok(ProcessingSuccess::Decided(verdict)) => verdict,
        Err(_) => return WEBHOOK_FAILED.count(provider),
    };
    match verdict {
        EventVerdict::Processed => {
            WEBHOOK_PROCESSED.count(provider);
            if let Some(received_at) = report.stored.as_ref().and_then(|s| s.received_at) {
                let taken = received_at.until(now).as_millis();
                WEBHOOK_END_TO_END_TIME.add(provider, u64::try_from(taken).unwrap_or(u64::MAX));
            }
        }
        EventVerdict::Ignored(reason) => {
            WEBHOOK_PROCESSED.count(provider);
            match reason {
                IgnoreReason::TestEventOnLiveStage => LIVEMODE_IGNORED.count(provider),
                IgnoreReason::Muted => WEBHOOK_MUTED.count(provider),
                _ => {}
            }
        }
        EventVerdict::Parked(reason) => {
            WEBHOOK_PARKED.record(provider, &[reason.as_str()], 1);
            if reason.blocked_on() == BlockedOn::ManualAction {
                WEBHOOK_PARKED_FOR_PERSON.count(provider);
            }
            match reason {
                ParkReason::CrossTenant => CROSS_TENANT.count(provider),
                ParkReason::TenantUnknown => TENANT_UNKNOWN.count(provider),
                _ => {}
            }
        }
        EventVerdict::Failed(_) => WEBHOOK_FAILED.count(provider),
    }
}

/// The content of one line: series of one provider whose labels agree, and no metric twice. A JSON object has one
/// `Reason` only, so two parked events with different reasons need two lines.
struct MetricDocument {
    provider: ProviderId,
    labels: Vec<(&'static str, &'static str)>,
    series: Vec<MetricSeries>,
}

impl MetricDocument {
    fn takes(&self, series: &MetricSeries) -> bool {
        let agrees = |(name, value): (&str, &str)| {
            let known = self.labels.iter().find(|(known, _)| *known == name);
            known.is_none_or(|(_, known)| *known == value)
        };
        self.provider == series.provider
            && series.labels().all(agrees)
            && !self
                .series
                .iter()
                .any(|known| std::ptr::eq(known.metric, series.metric))
    }

    fn put(&mut self, series: MetricSeries) {
        for label in series.labels() {
            if !self.labels.contains(&label) {
                self.labels.push(label);
            }
        }
        self.series.push(series);
    }
}

impl MetricSeries {
    fn labels(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let names = self.metric.dimensions.labels().iter().copied();
        names.zip(self.labels.iter().copied())
    }
}

/// The namespace `${AppName}/Webhooks` and the dimension `Environment`, both already as JSON.
#[derive(Clone, Debug)]
pub struct MetricEnvironment {
    namespace: String,
    env: String,
}

impl MetricEnvironment {
    pub fn new(app_name: &str, env: &str) -> Self {
        Self {
            namespace: json!(format!("{app_name}/Webhooks")).to_string(),
            env: json!(env).to_string(),
        }
    }
}

fn drain_documents() -> Vec<MetricDocument> {
    let mut documents: Vec<MetricDocument> = Vec::new();
    for series in RECORDED.take() {
        match documents.iter_mut().find(|known| known.takes(&series)) {
            Some(document) => document.put(series),
            None => {
                let mut document = MetricDocument {
                    provider: series.provider,
                    labels: Vec::new(),
                    series: Vec::new(),
                };
                document.put(series);
                documents.push(document);
            }
        }
    }
    documents
}

/// Returns what was recorded since the last call as EMF lines, and forgets it.
pub fn drain_lines(environment: &MetricEnvironment, now: Timestamp) -> String {
    let mut lines = String::new();
    for document in drain_documents() {
        lines.push('{');
        document.write(&mut lines, environment, now);
        lines.push_str("}\n");
    }
    lines
}

/// Appends one document to a log line whose JSON object is still open at its end; the other documents stay recorded.
/// It appends nothing if a label has another value in the line. Case: an event of type `evt.new` has
/// `"event_type":"evt.new"` in its log line, but its metric's label is `other`.
pub fn drain_into_line(line: &mut String, environment: &MetricEnvironment, now: Timestamp) {
    let mut documents = drain_documents().into_iter();
    if let Some(mut document) = documents.next() {
        // Quotes inside values are escaped (`\"`), so this text search finds only members, not values.
        let has = |text: String| line.contains(&text);
        let labels = document.labels.iter();
        let agrees = |(name, value): &(&str, &str)| {
            !has(format!(",\"{name}\":")) || has(format!(",\"{name}\":\"{value}\""))
        };
        if labels.copied().all(|label| agrees(&label)) {
            let is_new = |(name, _): &(&str, &str)| !has(format!(",\"{name}\":"));
            document.labels.retain(is_new);
            line.push(',');
            document.write(line, environment, now);
        } else {
            RECORDED.with_borrow_mut(|recorded| recorded.extend(document.series));
        }
    }
    let rest = documents.flat_map(|document| document.series);
    RECORDED.with_borrow_mut(|recorded| recorded.extend(rest));
}

impl MetricDocument {
    /// Written as text, not with `serde_json`: no name and no label needs an escape, and a tree of JSON values cost
    /// each delivery 72,000 instructions instead of 9,100.
    fn write(
        &self,
        line: &mut String,
        MetricEnvironment { namespace, env }: &MetricEnvironment,
        now: Timestamp,
    ) {
        // Writing to a `String` cannot fail.
        let _ = write!(
            line,
            r#""_aws":{{"Timestamp":{},"CloudWatchMetrics":["#,
            now.unix_ms()
        );
        let mut between = "";
        for by in [
            MetricDimensions::Provider,
            MetricDimensions::Reason,
            MetricDimensions::TypeAndResult,
        ] {
            let metrics = self.series.iter().map(|series| series.metric);
            let mut metrics = metrics.filter(|metric| metric.dimensions == by).peekable();
            if metrics.peek().is_none() {
                continue;
            }
            push_all(
                line,
                [between, r#"{"Namespace":"#, namespace, r#","Dimensions":["#],
            );
            for (n, set) in by.sets().iter().enumerate() {
                line.push_str(if n == 0 { "[" } else { ",[" });
                for (n, name) in set.iter().enumerate() {
                    let comma = if n == 0 { "" } else { "," };
                    push_all(line, [comma, "\"", name, "\""]);
                }
                line.push(']');
            }
            line.push_str(r#"],"Metrics":["#);
            for (n, metric) in metrics.enumerate() {
                let comma = if n == 0 { "" } else { "," };
                push_all(line, [comma, r#"{"Name":""#, metric.name, r#"","Unit":""#]);
                push_all(line, [metric.unit.as_str(), r#""}"#]);
            }
            line.push_str("]}");
            between = ",";
        }
        push_all(line, [r#"]},"Environment":"#, env]);
        push_all(line, [r#","Provider":""#, self.provider.as_str(), "\""]);
        for (name, value) in &self.labels {
            push_all(line, [",\"", name, "\":\"", value, "\""]);
        }
        for series in &self.series {
            push_all(line, [",\"", series.metric.name, "\":"]);
            let _ = match series.values.as_slice() {
                [one] => write!(line, "{one}"),
                several => write!(line, "{several:?}"),
            };
        }
    }
}

fn push_all<const N: usize>(line: &mut String, texts: [&str; N]) {
    for text in texts {
        line.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn lines() -> Vec<Value> {
        let now = Timestamp::from_unix_ms(1_781_000_000_042).unwrap();
        drain_lines(&MetricEnvironment::new("billhook", "test"), now)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn one_invocation_is_one_line_unless_labels_differ() {
        let handled = EventType::try_from("charge.refunded".to_owned()).unwrap();
        let foreign = EventType::try_from("evt_secret.acct_1".to_owned()).unwrap();
        WEBHOOK_SUCCESS.count(ProviderId::Stripe);
        WEBHOOK_SUCCESS.count(ProviderId::Stripe);
        count_genuine_delivery(ProviderId::Stripe, &handled, "accepted");
        count_genuine_delivery(ProviderId::Stripe, &foreign, "accepted");
        count_genuine_delivery(ProviderId::Lob, &handled, "accepted");
        count_invalid_signature(ProviderId::Stripe, "no_match");
        WEBHOOK_PROCESSING_TIME.add(ProviderId::Stripe, 7);
        WEBHOOK_PROCESSING_TIME.add(ProviderId::Stripe, 9);
        STUCK_EVENTS.add(ProviderId::Lob, 0);
        let provider = ["Environment", "Provider"];
        let base = json!([provider]);
        let directive = |dimensions: Value, names: &[(&str, &str)]| {
            let metrics: Vec<_> = names
                .iter()
                .map(|(name, unit)| json!({ "Name": name, "Unit": unit }))
                .collect();
            json!({ "Namespace": "billhook/Webhooks", "Dimensions": dimensions, "Metrics": metrics })
        };
        let by_type = json!([["Environment", "Provider", "event_type", "result"]]);
        let total = [("stripe_webhook_events_total", "Count")];
        let aws = |directives: &[Value]| json!({ "Timestamp": 1_781_000_000_042_i64, "CloudWatchMetrics": directives });
        assert_eq!(
            lines(),
            [
                json!({
                    "_aws": aws(&[
                        directive(base.clone(), &[("WebhookSuccess", "Count"), ("WebhookProcessingTime", "Milliseconds")]),
                        directive(
                            json!([provider, ["Environment", "Provider", "Reason"]]),
                            &[("WebhookInvalidSignature", "Count")],
                        ),
                        directive(by_type.clone(), &total),
                    ]),
                    "Environment": "test", "Provider": "stripe", "Reason": "no_match",
                    "event_type": "charge.refunded", "result": "accepted",
                    "WebhookSuccess": 2, "WebhookProcessingTime": [7, 9], "WebhookInvalidSignature": 1,
                    "stripe_webhook_events_total": 1,
                }),
                json!({
                    "_aws": aws(&[directive(by_type, &total)]),
                    "Environment": "test", "Provider": "stripe", "event_type": "other", "result": "accepted",
                    "stripe_webhook_events_total": 1,
                }),
                json!({
                    "_aws": aws(&[directive(base, &[("StuckEvents", "Count")])]),
                    "Environment": "test", "Provider": "lob", "StuckEvents": 0,
                }),
            ]
        );
        assert!(lines().is_empty(), "taken once");
    }

    #[test]
    fn a_line_takes_what_agrees_with_it_and_leaves_the_rest() {
        let stage = MetricEnvironment::new("billhook", "test");
        let now = Timestamp::from_unix_ms(1_781_000_000_042).unwrap();
        let taken = |line: &str| {
            let mut line = line.to_owned();
            drain_into_line(&mut line, &stage, now);
            line + "}"
        };
        let handled = EventType::try_from("charge.refunded".to_owned()).unwrap();
        let line = r#"{"message":"a,\"event_type\":\"b","event_type":"charge.refunded""#;
        assert_eq!(taken(line), format!("{line}}}"), "nothing was counted");

        count_genuine_delivery(ProviderId::Stripe, &handled, "accepted");
        WEBHOOK_SUCCESS.count(ProviderId::Stripe);
        WEBHOOK_SUCCESS.count(ProviderId::Lob);
        let merged = taken(line);
        assert_eq!(
            merged.matches(r#""event_type":"charge.refunded""#).count(),
            1
        );
        let merged: Value = serde_json::from_str(&merged).unwrap();
        assert_eq!(merged["stripe_webhook_events_total"], 1);
        assert_eq!(
            (&merged["WebhookSuccess"], &merged["result"]),
            (&json!(1), &json!("accepted"))
        );
        let left = lines();
        assert_eq!((left.len(), &left[0]["Provider"]), (1, &json!("lob")));

        count_genuine_delivery(
            ProviderId::Stripe,
            &EventType::try_from("evt.new".to_owned()).unwrap(),
            "accepted",
        );
        let line = r#"{"message":"","event_type":"evt.new""#;
        assert_eq!(taken(line), format!("{line}}}"), "its label is `other`");
        assert_eq!(lines()[0]["event_type"], "other");
    }

    #[test]
    fn more_values_than_a_line_takes_go_into_the_next() {
        for value in 0..150 {
            WEBHOOK_END_TO_END_TIME.add(ProviderId::Lob, value);
        }
        let counts: Vec<usize> = lines()
            .iter()
            .map(|line| line["WebhookEndToEndTime"].as_array().unwrap().len())
            .collect();
        assert_eq!(counts, [100, 50]);
    }
}
