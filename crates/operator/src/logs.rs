//! `billhook logs`: the functions' log groups as one, followed if asked to.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use clap::Args;
use futures_util::FutureExt as _;
use serde_json::{Value, json};

use crate::filter::text;
use crate::moment::Moment;
use crate::output::Output;
use crate::replay::interrupted;
use crate::session::Session;
use crate::signed::LOGS;

const FUNCTIONS: [&str; 5] = [
    "WebhookIngressFunction",
    "StripeWorkerFunction",
    "LobWorkerFunction",
    "CleanupFailedPaymentsFunction",
    "WebhookSecretFunction",
];
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Lines come to CloudWatch with a delay; what is asked for again is shown once.
const OVERLAP: Duration = Duration::from_secs(20);

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  billhook logs --since 1h\n  billhook logs --follow\n  \
    billhook logs --correlation 01936d3c-0000-7000-8000-000000000000 --output jsonl"
)]
pub(crate) struct Logs {
    /// Only of this story: a correlation id, or any other text that the line has
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// From when on
    #[arg(long, default_value = "15m", value_parser = Moment::parse)]
    since: Moment,
    /// Go on until Ctrl-C
    #[arg(long, short)]
    follow: bool,
}

pub(crate) async fn run(logs: Logs, session: &Session, output: Output) -> Result<()> {
    let mut since = logs.since.from(SystemClock.now());
    let mut shown = std::collections::BTreeSet::new();
    let mut stop = pin!(interrupted().fuse());
    loop {
        let asked_at = SystemClock.now();
        let mut lines = Vec::new();
        for key in FUNCTIONS {
            let function = session.stack.output(key)?;
            lines.extend(events(session, function, since, logs.correlation.as_deref()).await?);
        }
        lines.sort_by(|(one, _), (other, _)| one.cmp(other));
        let fresh: Vec<Value> = lines
            .into_iter()
            .filter(|(id, _)| shown.insert(id.clone()))
            .map(|(_, line)| line)
            .collect();
        if !fresh.is_empty() || !logs.follow {
            output.list(
                &["timestamp", "level", "function", "message", "event_id"],
                &fresh,
            );
        }
        let pause = pin!(tokio::time::sleep(POLL_INTERVAL));
        if !logs.follow
            || matches!(
                futures_util::future::select(pause, &mut stop).await,
                futures_util::future::Either::Right(_)
            )
        {
            return Ok(());
        }
        since = asked_at.before(OVERLAP);
        // Older ones are not asked for again.
        shown.retain(|(at, _)| *at >= since.unix_ms());
    }
}

/// A function's lines, each with what tells it from all others: its moment first.
pub(crate) async fn events(
    session: &Session,
    function: &str,
    since: Timestamp,
    wanted: Option<&str>,
) -> Result<Vec<((i64, String), Value)>> {
    let group = format!("/aws/lambda/{function}");
    let mut lines = Vec::new();
    let mut next = Value::Null;
    loop {
        let mut question = json!({ "logGroupName": group, "startTime": since.unix_ms() });
        if let Some(members) = question.as_object_mut() {
            if let Some(wanted) = wanted {
                members.insert("filterPattern".to_owned(), json!(format!("\"{wanted}\"")));
            }
            if !next.is_null() {
                members.insert("nextToken".to_owned(), next);
            }
        }
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", "Logs_20140328.FilterLogEvents"),
        ];
        let answer = session
            .caller
            .post(LOGS, "/", &headers, question.to_string())
            .await;
        let answer = answer.with_context(|| format!("cannot read {group}"))?;
        let answer: Value = serde_json::from_str(&answer)?;
        for event in answer
            .get("events")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            lines.extend(line(function, event));
        }
        next = answer.get("nextToken").cloned().unwrap_or(Value::Null);
        if next.is_null() {
            return Ok(lines);
        }
    }
}

fn line(function: &str, event: &Value) -> Option<((i64, String), Value)> {
    let at = event.get("timestamp")?.as_i64()?;
    let message = text(event, "message")?.trim_end();
    let id = text(event, "eventId").unwrap_or(message);
    let lambdas = |message: &str| {
        let timestamp = Timestamp::from_unix_ms(at).ok().map(|at| at.to_string());
        json!({ "timestamp": timestamp, "level": "WARN", "function": function, "message": message })
    };
    let line = match serde_json::from_str(message) {
        Ok(line @ Value::Object(_)) => match text(&line, "type") {
            // A time-out or a crash: `record` says which.
            Some(kind) if kind.starts_with("platform.") => {
                let of = |name: &str| line.get("record").and_then(|record| text(record, name));
                let told = [Some(kind), of("status"), of("errorType")];
                lambdas(&told.into_iter().flatten().collect::<Vec<_>>().join(" "))
            }
            _ => line,
        },
        _ => lambdas(message),
    };
    Some(((at, id.to_owned()), line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_lines_are_taken_apart_and_lambdas_own_are_kept() {
        let ours = json!({ "timestamp": 1_781_000_000_000_i64, "eventId": "7",
            "message": "{\"level\":\"info\",\"message\":\"event_processed\"}\n" });
        assert_eq!(
            line("f", &ours).unwrap(),
            (
                (1_781_000_000_000, "7".to_owned()),
                json!({ "level": "info", "message": "event_processed" })
            )
        );
        let lambdas =
            json!({ "timestamp": 1_781_000_000_000_i64, "message": "START RequestId: 1\n" });
        let (_, shown) = line("f", &lambdas).unwrap();
        assert_eq!(
            shown,
            json!({ "timestamp": "2026-06-09T10:13:20.000Z", "level": "WARN", "function": "f", "message": "START RequestId: 1" })
        );
        let cut = json!({ "time": "2026-06-09T10:13:20.000Z", "type": "platform.report",
            "record": { "requestId": "1", "status": "timeout", "metrics": { "durationMs": 10_000 } } });
        let cut = json!({ "timestamp": 1_781_000_000_000_i64, "message": cut.to_string() });
        assert_eq!(
            line("f", &cut).unwrap().1["message"],
            "platform.report timeout"
        );
    }
}
