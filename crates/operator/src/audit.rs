//! Audit trail: who did what, when and why, in the audit log, as a note on the row that was changed and in the message that
//! was sent.
//!
//! The audit log is a log group of CloudWatch, to which lines can only be added: a note can be changed by whoever may write
//! to its table. A command gets its `AuditContext` only by writing there what it is about to do, so that no command can change
//! something without a line (fail closed); the session writes the second line when the command ends.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::string_value;
use billhook_core::intake::message::ReplayedBy;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::aws_request::{LOGS, SignedAwsClient};
use crate::exit::CommandExit;

/// The reason is copied into every message and row of a replay, so its length times 5,000 events is stored and sent.
const REASON_CHARS_MAX: usize = 200;
/// CloudWatch refuses a line of more than 256 KB, and JSON may need six bytes for a character.
const COMMAND_CHARS_MAX: usize = 40_000;
const JSON: (&str, &str) = ("content-type", "application/x-amz-json-1.1");
/// How keys and signing secrets begin that somebody could have pasted into a reason.
const SECRET_PREFIXES: [&str; 5] = ["sk_live_", "sk_test_", "rk_live_", "rk_test_", "whsec_"];

/// Who changes something, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangeAuthor {
    pub(crate) actor: String,
    pub(crate) reason: String,
}

/// What a command is about to do, for the audit log.
#[derive(Debug)]
pub(crate) struct PlannedChange<'a> {
    /// The command line, as it was typed.
    pub(crate) command: String,
    /// What the person was asked about, or shown.
    pub(crate) what: &'a str,
    /// How many rows or messages it is about, where that is known before.
    pub(crate) rows: Option<usize>,
}

/// A change that is in the audit log. Only `AuditLog::start_change` makes one.
#[derive(Clone, Debug)]
pub(crate) struct AuditContext {
    pub(crate) author: ChangeAuthor,
    /// The `change_id` of its lines, and the correlation id of what it sends.
    pub(crate) id: Uuid,
    command: String,
}

impl AuditContext {
    pub(crate) fn for_message(&self) -> ReplayedBy<'_> {
        ReplayedBy {
            actor: &self.author.actor,
            reason: &self.author.reason,
        }
    }

    /// Builds an entry of a row's `notes`.
    pub(crate) fn build_note(
        &self,
        action: &str,
        now: Timestamp,
        correlation_id: Option<&str>,
    ) -> AttributeValue {
        let ChangeAuthor { actor, reason } = &self.author;
        let mut note = HashMap::from([
            ("at".to_owned(), string_value(now.to_string())),
            ("actor".to_owned(), string_value(actor)),
            ("action".to_owned(), string_value(action)),
            ("reason".to_owned(), string_value(reason)),
        ]);
        if let Some(id) = correlation_id {
            note.insert("correlation_id".to_owned(), string_value(id));
        }
        AttributeValue::M(note)
    }
}

/// The log group of a stack that has a line for each change that was begun, and one for its end.
#[derive(Debug)]
pub(crate) struct AuditLog<'a> {
    pub(crate) aws: &'a SignedAwsClient,
    pub(crate) group: &'a str,
}

impl AuditLog<'_> {
    /// Writes that the change begins.
    ///
    /// # Errors
    /// If the line is not stored: then nothing may be changed.
    pub(crate) async fn start_change(
        &self,
        author: ChangeAuthor,
        planned: PlannedChange<'_>,
    ) -> Result<AuditContext> {
        let context = AuditContext {
            author,
            id: SystemClock.new_id(),
            command: planned.command,
        };
        let more = json!({ "what": mask_secrets(planned.what), "rows": planned.rows });
        let line = build_line(&context, "change_started", more, SystemClock.now());
        self.append_line(&line).await.with_context(|| {
            format!(
                "nothing was changed, because the audit log {} cannot be written (it takes logs:CreateLogStream and \
                 logs:PutLogEvents, see docs/policies/repairer.json)",
                self.group
            )
        })?;
        Ok(context)
    }

    /// Writes how the change ended.
    pub(crate) async fn end_change(
        &self,
        context: &AuditContext,
        result: &Result<()>,
    ) -> Result<()> {
        let (message, more) = match result {
            Ok(()) => ("change_done", json!({})),
            Err(error) => {
                let code = error.downcast_ref().map_or(1, CommandExit::exit_code);
                let error = mask_secrets(&format!("{error:#}"));
                (
                    "change_failed",
                    json!({ "exit_code": code, "error": error }),
                )
            }
        };
        let line = build_line(context, message, more, SystemClock.now());
        self.append_line(&line)
            .await
            .with_context(|| format!("the audit log {} does not say how it ended", self.group))
    }

    /// A stream has the lines of one day, and the first writer of the day creates it.
    async fn append_line(&self, line: &Value) -> Result<()> {
        let now = SystemClock.now();
        let day = now.to_string();
        let stream = day.split('T').next().unwrap_or_default().replace('-', "/");
        let names = json!({ "logGroupName": self.group, "logStreamName": stream });
        let mut put = names.clone();
        if let Some(members) = put.as_object_mut() {
            let events = json!([{ "timestamp": now.unix_ms(), "message": line.to_string() }]);
            members.insert("logEvents".to_owned(), events);
        }
        let answer = match self.put_event(&put).await {
            Ok(answer) => answer,
            Err(_) => {
                // If it exists by now, the second attempt succeeds, or says what else is wrong.
                let created = self.create_stream(&names).await;
                match (self.put_event(&put).await, created) {
                    (Ok(answer), _) => answer,
                    (Err(_), Err(error)) | (Err(error), Ok(_)) => return Err(error),
                }
            }
        };
        // CloudWatch answers 200 for a line that it drops because of its time.
        let answer: Value = serde_json::from_str(&answer)?;
        if let Some(rejected) = answer
            .get("rejectedLogEventsInfo")
            .filter(|rejected| !rejected.is_null())
        {
            bail!("CloudWatch dropped the line ({rejected}): is the clock of this machine right?");
        }
        Ok(())
    }

    async fn put_event(&self, body: &Value) -> Result<String> {
        let headers = [JSON, ("x-amz-target", "Logs_20140328.PutLogEvents")];
        self.aws
            .post_text(LOGS, "/", &headers, body.to_string())
            .await
    }

    async fn create_stream(&self, body: &Value) -> Result<String> {
        let headers = [JSON, ("x-amz-target", "Logs_20140328.CreateLogStream")];
        self.aws
            .post_text(LOGS, "/", &headers, body.to_string())
            .await
    }
}

fn build_line(context: &AuditContext, message: &str, more: Value, now: Timestamp) -> Value {
    let command: String = context.command.chars().take(COMMAND_CHARS_MAX).collect();
    let mut line = json!({
        "timestamp": now.to_string(),
        "message": message,
        "change_id": context.id.to_string(),
        "actor": context.author.actor,
        "command": mask_secrets(&command),
        "reason": mask_secrets(&context.author.reason),
    });
    if let (Some(members), Value::Object(more)) = (line.as_object_mut(), more) {
        members.extend(more);
    }
    line
}

/// Keeps what a key begins with, so that its kind can be seen.
fn mask_secrets(text: &str) -> String {
    let mut masked = String::new();
    let mut rest = text;
    let find = |rest: &str| {
        let starts = SECRET_PREFIXES.iter();
        let starts = starts.filter_map(|prefix| Some(rest.find(prefix)? + prefix.len()));
        starts.min()
    };
    while let Some((before, from)) = find(rest).and_then(|at| rest.split_at_checked(at)) {
        masked.push_str(before);
        let is_of_key = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
        rest = from.trim_start_matches(is_of_key);
        masked.push('…');
    }
    masked + rest
}

/// SQS refuses a message with control characters, so a reason with a line break would fail at the first send, after its
/// note was written.
pub(crate) fn parse_reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty()
        || text.chars().count() > REASON_CHARS_MAX
        || text.chars().any(char::is_control)
    {
        return Err(format!(
            "a reason must have 1 to {REASON_CHARS_MAX} characters and no line break"
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_short_line() {
        assert_eq!(
            parse_reason(" asked by support "),
            Ok("asked by support".to_owned())
        );
        for wrong in ["", "  ", "two\nlines", &"x".repeat(201)] {
            assert!(parse_reason(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_audit_line_fits_and_has_no_secret() {
        let context = AuditContext {
            author: ChangeAuthor {
                actor: "arn:aws:iam::1:user/pat".to_owned(),
                reason: "sk_live_51Ab/c= leaked, whsec_x too".to_owned(),
            },
            id: Uuid::nil(),
            command: format!("billhook replay {}", "\u{1}".repeat(50_000)),
        };
        let now = Timestamp::from_unix_ms(1_781_000_000_000).unwrap();
        let line = build_line(&context, "change_started", json!({ "rows": 2 }), now);
        assert_eq!(line["reason"], "sk_live_… leaked, whsec_… too");
        assert_eq!(
            (&line["rows"], &line["timestamp"]),
            (&json!(2), &json!("2026-06-09T10:13:20.000Z"))
        );
        assert!(line.to_string().len() < 256 * 1024);
    }
}
