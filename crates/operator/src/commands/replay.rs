//! `billhook replay`: reprocesses stored events. Without `--yes` it only shows a preview; `--what-if` is a dry run that
//! shows each column that would change.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::EventId;
use billhook_core::ports::Clock as _;
use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::confirm::{ChangeArgs, announce_preview};
use crate::dry_run;
use crate::event_filter::EventFilter;
use crate::event_lookup::load_selected_events;
use crate::events_table::EventSummary;
use crate::interrupt::wait_for_interrupt;
use crate::output::{OutputWriter, print_notice};
use crate::replay_run::{DEFAULT_RATE, plan_replay, run_replay_job, start_replay_job};
use crate::row_json::read_text;
use crate::session::StackSession;

/// `--what-if` reads every entity, at several calls to DynamoDB each, and nobody reads more than a few screens.
const WHAT_IF_MAX: usize = 100;

#[derive(Args, Debug)]
#[command(
    after_help = "Without --yes the command only shows what it would do; --resume and --cancel ask. \
    Ctrl-C stops it after the current step and prints how to continue.\nProcessed and ignored events need --force.\n\nExamples:\n  \
    billhook replay --outcome failed\n  \
    billhook replay --outcome parked --error order_unknown --since 2d --reason 'orders were late' --yes\n  \
    billhook replay evt_1 --force --reason 'row was restored' --what-if\n  \
    billhook replay --resume 01936d3c-0000-7000-8000-000000000000\n  \
    billhook replay --cancel 01936d3c-0000-7000-8000-000000000000"
)]
pub(crate) struct ReplayArgs {
    /// Replay these events
    #[arg(value_parser = EventId::parse)]
    ids: Vec<EventId>,
    #[command(flatten)]
    filter: EventFilter,
    /// Also replay events that are processed or ignored
    #[arg(long, requires = "reason")]
    force: bool,
    #[command(flatten)]
    change: ChangeArgs,
    /// Events per second
    #[arg(long, default_value_t = DEFAULT_RATE, value_parser = clap::value_parser!(u32).range(1..=300))]
    rate: u32,
    /// Dry run: show each column of orders, statements and tenants that would change; writes nothing
    #[arg(long, conflicts_with = "yes")]
    what_if: bool,
    /// Resume an interrupted replay
    #[arg(long, value_name = "JOB", conflicts_with_all = ["ids", "force", "what_if"])]
    resume: Option<Uuid>,
    /// Cancel a replay, wherever it runs
    #[arg(long, value_name = "JOB", conflicts_with_all = ["ids", "force", "what_if", "resume"])]
    cancel: Option<Uuid>,
}

pub(crate) async fn run_replay(
    args: ReplayArgs,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let jobs = session.replay_jobs()?;
    if let Some(id) = args.cancel {
        let what = format!("the replay {id} would be cancelled");
        args.change.confirm(session, &what, Some(1)).await?;
        jobs.cancel_job(id, SystemClock.new_id()).await?;
        print_notice(&format!("cancelled the replay {id}"));
        return Ok(());
    }
    if let Some(id) = args.resume {
        let mut job = jobs.read_job(id).await?;
        let what = format!(
            "the rest of the {} events of the replay {id} would be sent",
            job.total
        );
        let rows = usize::try_from(job.total)?;
        let audit = args.change.confirm(session, &what, Some(rows)).await?;
        jobs.take_over_job(&mut job, SystemClock.new_id()).await?;
        let plan = plan_replay(
            load_selected_events(session, &job.selection).await?,
            job.cursor.as_deref(),
            job.force,
        );
        let stop = wait_for_interrupt();
        return run_replay_job(session, &jobs, job, plan, &audit, args.rate, stop).await;
    }
    if args.ids.is_empty() && args.filter.is_empty() {
        bail!(
            "pass event ids, or filters such as --outcome failed: the command does not replay everything"
        );
    }
    let selection = args.filter.resolve(args.ids, SystemClock.now());
    let plan = plan_replay(
        load_selected_events(session, &selection).await?,
        None,
        args.force,
    );
    if args.what_if {
        let rows =
            dry_run::preview_events(session, plan.to_send.iter().take(WHAT_IF_MAX), args.force)
                .await?;
        output.print_list(&dry_run::COLUMNS, &rows);
        if plan.to_send.len() > WHAT_IF_MAX {
            let all = plan.to_send.len();
            print_notice(&format!(
                "showing the first {WHAT_IF_MAX} of {all} events only"
            ));
        }
        return Ok(());
    }
    let (send, done) = (plan.to_send.len(), plan.already_done);
    let what = format!(
        "{send} events would be reprocessed; {done} events that are processed or ignored would not{}",
        if done > 0 {
            " (--force includes them)"
        } else {
            ""
        }
    );
    if !args.change.is_confirmed() {
        output.print_list(
            &["provider", "event_type", "outcome", "error", "events"],
            &count_by_outcome(&plan.to_send),
        );
        announce_preview(session, &what, &args.change);
        return Ok(());
    }
    let audit = args.change.start_audit(session, &what, Some(send)).await?;
    let id = audit.id;
    start_replay_job(session, id, selection, plan, args.force, &audit, args.rate).await
}

fn count_by_outcome(send: &[EventSummary]) -> Vec<Value> {
    let mut counts: BTreeMap<[String; 4], u64> = BTreeMap::new();
    for event in send {
        let text = |name: &str| read_text(&event.row, name).unwrap_or("-").to_owned();
        let kind = [
            event.provider.to_string(),
            text("event_type"),
            text("processing_outcome"),
            text("processing_error"),
        ];
        *counts.entry(kind).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|([provider, event_type, outcome, error], events)| {
            json!({ "provider": provider, "event_type": event_type, "outcome": outcome, "error": error, "events": events })
        })
        .collect()
}
