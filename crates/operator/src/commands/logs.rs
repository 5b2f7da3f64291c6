//! `billhook logs`: the log lines of all functions in order of time; `--follow` polls for new ones.

use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::ports::{Clock as _, Pause as _};
use clap::Args;
use futures_util::FutureExt as _;
use serde_json::Value;

use crate::interrupt::wait_for_interrupt;
use crate::log_lines::{LogLine, read_log_lines};
use crate::output::OutputWriter;
use crate::session::StackSession;
use crate::time_argument::TimeArgument;

const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// CloudWatch ingests lines with a delay of some seconds and out of order, so each poll reads the last 20 s again and
/// shows only new lines.
const OVERLAP: Duration = Duration::from_secs(20);

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  billhook logs --since 1h\n  billhook logs --follow\n  \
    billhook logs --correlation 01936d3c-0000-7000-8000-000000000000 --output jsonl"
)]
pub(crate) struct LogsArgs {
    /// Only lines with this correlation id, or with any other text
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Show lines since then
    #[arg(long, default_value = "15m", value_parser = TimeArgument::parse)]
    since: TimeArgument,
    /// Keep showing new lines until Ctrl-C
    #[arg(long, short)]
    follow: bool,
}

pub(crate) async fn run_logs(
    args: LogsArgs,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let mut since = args.since.resolve(SystemClock.now());
    let mut shown = std::collections::BTreeSet::new();
    let mut stop = pin!(wait_for_interrupt().fuse());
    loop {
        let asked_at = SystemClock.now();
        let mut lines = Vec::new();
        for function in session.stack.functions()? {
            lines.extend(
                read_log_lines(session, function, since, args.correlation.as_deref()).await?,
            );
        }
        lines.sort_by(|one: &LogLine, other| one.key.cmp(&other.key));
        let fresh: Vec<Value> = lines
            .into_iter()
            .filter(|line| shown.insert(line.key.clone()))
            .map(|line| line.members)
            .collect();
        if !fresh.is_empty() || !args.follow {
            output.print_list(
                &["timestamp", "level", "function", "message", "event_id"],
                &fresh,
            );
        }
        let pause = pin!(SystemClock.pause(POLL_INTERVAL));
        if !args.follow
            || matches!(
                futures_util::future::select(pause, &mut stop).await,
                futures_util::future::Either::Right(_)
            )
        {
            return Ok(());
        }
        since = asked_at.before(OVERLAP);
        // The next poll cannot return older lines, so their keys are dropped: `--follow` may run for days.
        shown.retain(|(at, _)| *at >= since.unix_ms());
    }
}
