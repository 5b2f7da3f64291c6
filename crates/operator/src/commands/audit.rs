//! `billhook audit`: who changed what with this tool, from the audit log.

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::log_lines::read_log_events;
use crate::output::OutputWriter;
use crate::row_json::read_text;
use crate::session::StackSession;
use crate::time_argument::TimeArgument;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// List the changes that were made with `billhook`, each with its beginning and its end
    #[command(
        after_help = "A change has a line before it and one after it, with the same change_id: change_started, then change_done or \
        change_failed. If the second is missing, the command was killed or could not write it. ingested_at is CloudWatch's clock, \
        all else is what the tool said.\n\nExamples:\n  billhook audit list --since 7d\n  \
        billhook audit list --since 24h --actor pat --output jsonl"
    )]
    List(AuditListArgs),
}

#[derive(Args, Debug)]
pub(crate) struct AuditListArgs {
    /// Show changes since then
    #[arg(long, default_value = "24h", value_parser = TimeArgument::parse)]
    since: TimeArgument,
    /// Only of actors whose ARN contains this text
    #[arg(long, value_name = "TEXT")]
    actor: Option<String>,
}

pub(crate) async fn run_audit(
    command: AuditCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let AuditCommand::List(args) = command;
    let since = args.since.resolve(SystemClock.now());
    let group = session.audit_log()?.group;
    let mut events = read_log_events(session, group, since, None).await?;
    events.sort_by_key(|event| event.get("timestamp").and_then(Value::as_i64));
    let lines: Vec<Value> = events
        .iter()
        .map(parse_audit_line)
        .filter(|line| is_of_actor(line, args.actor.as_deref()))
        .collect();
    output.print_list(
        &[
            "timestamp",
            "message",
            "actor",
            "command",
            "reason",
            "rows",
            "error",
        ],
        &lines,
    );
    Ok(())
}

/// What is no line of this tool is shown as well: somebody wrote it there.
fn parse_audit_line(event: &Value) -> Value {
    let message = read_text(event, "message").unwrap_or_default();
    let mut line = match serde_json::from_str(message) {
        Ok(line @ Value::Object(_)) => line,
        _ => json!({ "message": message }),
    };
    let ingested_at = event
        .get("ingestionTime")
        .and_then(Value::as_i64)
        .and_then(|at| Timestamp::from_unix_ms(at).ok());
    if let Some(members) = line.as_object_mut() {
        members.insert(
            "ingested_at".to_owned(),
            json!(ingested_at.map(|at| at.to_string())),
        );
    }
    line
}

fn is_of_actor(line: &Value, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| read_text(line, "actor").is_some_and(|actor| actor.contains(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_with_the_clock_of_cloudwatch_and_foreign_ones_too() {
        let of = |message: &str| {
            let event = json!({ "message": message, "ingestionTime": 1_781_000_000_000_i64 });
            parse_audit_line(&event)
        };
        let ours = of(r#"{"message":"change_done","actor":"arn:aws:iam::1:user/pat"}"#);
        assert_eq!(
            ours,
            json!({ "message": "change_done", "actor": "arn:aws:iam::1:user/pat",
                "ingested_at": "2026-06-09T10:13:20.000Z" })
        );
        let foreign = of("nothing to see");
        assert_eq!(foreign["message"], "nothing to see");
        for (line, actor, is_shown) in [
            (&ours, None, true),
            (&ours, Some("user/pat"), true),
            (&ours, Some("user/kim"), false),
            (&foreign, Some("user/pat"), false),
            (&foreign, None, true),
        ] {
            assert_eq!(is_of_actor(line, actor), is_shown, "{line} {actor:?}");
        }
    }
}
