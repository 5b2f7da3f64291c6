//! Reads the functions' log lines from CloudWatch Logs, with pagination: our JSON lines as they are, and what Lambda
//! itself writes (time-outs, crashes) as warnings.

use anyhow::{Context as _, Result};
use billhook_core::time::Timestamp;
use serde_json::{Value, json};

use crate::aws_request::LOGS;
use crate::row_json::read_text;
use crate::session::StackSession;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogLine {
    /// The time in milliseconds, then CloudWatch's id: the sort order, and the key by which `--follow` shows a line
    /// once.
    pub(crate) key: (i64, String),
    pub(crate) members: Value,
}

/// Reads all lines of a function since a time, only those that contain `pattern` if one is given.
pub(crate) async fn read_log_lines(
    session: &StackSession,
    function: &str,
    since: Timestamp,
    pattern: Option<&str>,
) -> Result<Vec<LogLine>> {
    let group = format!("/aws/lambda/{function}");
    let events = read_log_events(session, &group, since, pattern).await?;
    let lines = events.iter();
    Ok(lines
        .filter_map(|event| parse_log_line(function, event))
        .collect())
}

/// Reads the events of a log group since a time, as CloudWatch returns them.
pub(crate) async fn read_log_events(
    session: &StackSession,
    group: &str,
    since: Timestamp,
    pattern: Option<&str>,
) -> Result<Vec<Value>> {
    let mut events = Vec::new();
    let mut next_token = Value::Null;
    // FilterLogEvents may return an empty page with a token: only a missing token is the end.
    loop {
        let mut question = json!({ "logGroupName": group, "startTime": since.unix_ms() });
        if let Some(members) = question.as_object_mut() {
            if let Some(pattern) = pattern {
                members.insert("filterPattern".to_owned(), json!(format!("\"{pattern}\"")));
            }
            if !next_token.is_null() {
                members.insert("nextToken".to_owned(), next_token);
            }
        }
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", "Logs_20140328.FilterLogEvents"),
        ];
        let answer = session
            .aws
            .post_text(LOGS, "/", &headers, question.to_string())
            .await;
        let answer = answer.with_context(|| format!("cannot read {group}"))?;
        let answer: Value = serde_json::from_str(&answer)?;
        let page = answer.get("events").and_then(Value::as_array);
        events.extend(page.into_iter().flatten().cloned());
        next_token = answer.get("nextToken").cloned().unwrap_or(Value::Null);
        if next_token.is_null() {
            return Ok(events);
        }
    }
}

fn parse_log_line(function: &str, event: &Value) -> Option<LogLine> {
    let at = event.get("timestamp")?.as_i64()?;
    let message = read_text(event, "message")?.trim_end();
    let id = read_text(event, "eventId").unwrap_or(message);
    let lambdas = |message: &str| {
        let timestamp = Timestamp::from_unix_ms(at).ok().map(|at| at.to_string());
        json!({ "timestamp": timestamp, "level": "WARN", "function": function, "message": message })
    };
    let line = match serde_json::from_str(message) {
        Ok(line @ Value::Object(_)) => match read_text(&line, "type") {
            // Lambda logs a time-out or a crash as a `platform.*` object; `record` says which of them.
            Some(kind) if kind.starts_with("platform.") => {
                let of = |name: &str| {
                    line.get("record")
                        .and_then(|record| read_text(record, name))
                };
                let told = [Some(kind), of("status"), of("errorType")];
                lambdas(&told.into_iter().flatten().collect::<Vec<_>>().join(" "))
            }
            _ => line,
        },
        _ => lambdas(message),
    };
    Some(LogLine {
        key: (at, id.to_owned()),
        members: line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_are_parsed_and_lambda_lines_become_warnings() {
        let ours = json!({ "timestamp": 1_781_000_000_000_i64, "eventId": "7",
            "message": "{\"level\":\"info\",\"message\":\"event_processed\"}\n" });
        assert_eq!(
            parse_log_line("f", &ours).unwrap(),
            LogLine {
                key: (1_781_000_000_000, "7".to_owned()),
                members: json!({ "level": "info", "message": "event_processed" })
            }
        );
        let lambdas =
            json!({ "timestamp": 1_781_000_000_000_i64, "message": "START RequestId: 1\n" });
        let shown = parse_log_line("f", &lambdas).unwrap().members;
        assert_eq!(
            shown,
            json!({ "timestamp": "2026-06-09T10:13:20.000Z", "level": "WARN", "function": "f", "message": "START RequestId: 1" })
        );
        let cut = json!({ "time": "2026-06-09T10:13:20.000Z", "type": "platform.report",
            "record": { "requestId": "1", "status": "timeout", "metrics": { "durationMs": 10_000 } } });
        let cut = json!({ "timestamp": 1_781_000_000_000_i64, "message": cut.to_string() });
        assert_eq!(
            parse_log_line("f", &cut).unwrap().members["message"],
            "platform.report timeout"
        );
    }
}
