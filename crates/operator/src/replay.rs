//! `billhook replay`: stored events decided again. A preview unless told otherwise, at a bounded rate, and a job that
//! can be cut and continued.
//!
//! What makes a repeat harmless: the deduplication id of a message is the event's and the job's, so that an event sent
//! twice by one job is one message for 5 minutes; and deciding the same event twice changes nothing.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::sqs::EventQueues;
use billhook_core::error::error_chain;
use billhook_core::ids::{CorrelationId, EventId, ProviderId};
use billhook_core::intake::message::EventPointer;
use billhook_core::intake::ports::SendMessage as _;
use billhook_core::ports::Clock as _;
use billhook_core::retry::Disposition;
use clap::Args;
use futures_util::FutureExt as _;
use futures_util::future::{join_all, select, select_all};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::audit::{self, By};
use crate::filter::{Filter, Selection};
use crate::job::{Job, Jobs, State};
use crate::output::Output;
use crate::session::Session;
use crate::store::{Change, Events, Listed};
use crate::{Stop, events, what_if};

/// Events sent between two looks at Ctrl-C, and two writes of the job's row.
const STEP: usize = 10;
/// Events a second: far below what workers and tables take.
const RATE: u32 = 20;
/// `--what-if` reads every entity: more than a person reads is cut.
const WHAT_IF_MAX: usize = 100;

#[derive(Args, Debug)]
#[command(
    after_help = "Without --yes it only says what it would do. Ctrl-C ends it after the step under way and prints \
    how to go on.\nEvents that are done need --force and --reason.\n\nExamples:\n  \
    billhook replay --outcome failed\n  \
    billhook replay --outcome parked --error order_unknown --since 2d --reason 'orders were late' --yes\n  \
    billhook replay evt_1 --force --reason 'row was restored' --what-if\n  \
    billhook replay --resume 01936d3c-0000-7000-8000-000000000000\n  \
    billhook replay --cancel 01936d3c-0000-7000-8000-000000000000"
)]
pub(crate) struct Replay {
    /// These events
    #[arg(value_parser = EventId::parse)]
    ids: Vec<EventId>,
    #[command(flatten)]
    filter: Filter,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Also events that are processed or ignored
    #[arg(long, requires = "reason")]
    force: bool,
    /// Why; it stands in each event's notes and message
    #[arg(long, value_parser = audit::reason)]
    reason: Option<String>,
    /// Events a second
    #[arg(long, default_value_t = RATE, value_parser = clap::value_parser!(u32).range(1..=300))]
    rate: u32,
    /// Show what would become of orders, statements and tenants, by the code that decides it; nothing is written
    #[arg(long, conflicts_with = "yes")]
    what_if: bool,
    /// Go on with a replay that was cut
    #[arg(long, value_name = "JOB", conflicts_with_all = ["ids", "yes", "force", "reason", "what_if"])]
    resume: Option<Uuid>,
    /// End a replay, wherever it runs
    #[arg(long, value_name = "JOB", conflicts_with_all = ["ids", "yes", "force", "reason", "what_if", "resume"])]
    cancel: Option<Uuid>,
}

/// What is left to send, in the order it is sent.
#[derive(Debug, Default)]
struct Plan {
    send: Vec<Listed>,
    /// Left out because they are done.
    done: usize,
}

fn plan(mut found: Vec<Listed>, cursor: Option<&str>, force: bool) -> Plan {
    found.sort_by_key(Listed::place);
    found.dedup_by_key(|listed| listed.place());
    if let Some(cursor) = cursor {
        found.retain(|listed| listed.place().as_str() > cursor);
    }
    let (send, done): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|listed| force || !listed.stored.processed);
    Plan {
        send,
        done: done.len(),
    }
}

pub(crate) async fn run(replay: Replay, session: &Session, output: Output) -> Result<()> {
    let jobs = jobs(session)?;
    if let Some(id) = replay.cancel {
        jobs.cancel(id, SystemClock.new_id()).await?;
        Output::tell(&format!("cancelled {id}"));
        return Ok(());
    }
    if let Some(id) = replay.resume {
        let mut job = jobs.read(id).await?;
        jobs.take_over(&mut job, SystemClock.new_id()).await?;
        let plan = plan(
            found(session, &job.selection).await?,
            job.cursor.as_deref(),
            job.force,
        );
        return carry_out(session, &jobs, job, plan, replay.rate, interrupted()).await;
    }
    if replay.ids.is_empty() && replay.filter.is_empty() {
        bail!("name events, or filters as --outcome failed: replaying everything is never meant");
    }
    let selection = replay.filter.select(replay.ids, SystemClock.now());
    let plan = plan(found(session, &selection).await?, None, replay.force);
    if replay.what_if {
        let rows =
            what_if::differences(session, plan.send.iter().take(WHAT_IF_MAX), replay.force).await?;
        output.list(&what_if::COLUMNS, &rows);
        if plan.send.len() > WHAT_IF_MAX {
            let all = plan.send.len();
            Output::tell(&format!(
                "the first {WHAT_IF_MAX} of {all} events were looked at"
            ));
        }
        return Ok(());
    }
    if !replay.yes {
        output.list(
            &["provider", "event_type", "outcome", "error", "events"],
            &counted(&plan.send),
        );
        let (send, done) = (plan.send.len(), plan.done);
        Output::tell(&format!(
            "{send} events would be sent again; {done} that are done would not{}. Nothing was sent: repeat with --yes",
            if done > 0 {
                " (--force --reason includes them)"
            } else {
                ""
            }
        ));
        return Ok(());
    }
    let by = By {
        actor: session.actor().await?,
        reason: replay
            .reason
            .unwrap_or_else(|| "replayed by hand".to_owned()),
    };
    start(session, selection, plan, replay.force, by, replay.rate).await
}

/// Sends again what was selected and is not done.
pub(crate) async fn begin(session: &Session, selection: Selection, by: By) -> Result<()> {
    let plan = plan(found(session, &selection).await?, None, false);
    if plan.send.is_empty() {
        return Ok(());
    }
    start(session, selection, plan, false, by, RATE).await
}

async fn start(
    session: &Session,
    selection: Selection,
    plan: Plan,
    force: bool,
    by: By,
    rate: u32,
) -> Result<()> {
    let jobs = jobs(session)?;
    let (id, total) = (SystemClock.new_id(), u64::try_from(plan.send.len())?);
    let job = Job::new(id, selection, force, by, total, SystemClock.now());
    jobs.create(&job).await?;
    carry_out(session, &jobs, job, plan, rate, interrupted()).await
}

fn jobs(session: &Session) -> Result<Jobs> {
    Ok(Jobs {
        client: session.dynamodb.clone(),
        table: session.stack.output("JobsTable")?.to_owned(),
    })
}

/// Sends single events again at once: what waits for a person's repair.
pub(crate) async fn release(session: &Session, events: &[Listed], reason: String) -> Result<()> {
    let by = By {
        actor: session.actor().await?,
        reason,
    };
    let (id, queues) = (SystemClock.new_id(), session.queues()?);
    for listed in events {
        let is_open = !listed.stored.processed;
        if is_open && send(&session.events(listed.provider)?, &queues, listed, id, &by).await? {
            Output::tell(&format!(
                "sent {} again, correlation id {id}",
                listed.stored.id
            ));
        } else {
            let event = &listed.stored.id;
            bail!(
                "{event} is done already; to decide it again: billhook replay {event} --force --reason … --yes"
            );
        }
    }
    Ok(())
}

async fn found(session: &Session, selection: &Selection) -> Result<Vec<Listed>> {
    let mut found = Vec::new();
    if selection.ids.is_empty() {
        for provider in selection.providers() {
            found.extend(
                session
                    .events(provider)?
                    .list(selection, usize::MAX)
                    .await?,
            );
        }
        return Ok(found);
    }
    for provider in [ProviderId::Stripe, ProviderId::Lob] {
        found.extend(session.events(provider)?.rows(&selection.ids).await?);
    }
    for id in &selection.ids {
        if !found.iter().any(|listed| listed.stored.id == *id) {
            // Says what to do about it.
            events::find(session, id).await?;
        }
    }
    Ok(found)
}

fn counted(send: &[Listed]) -> Vec<Value> {
    let mut counts: BTreeMap<[String; 4], u64> = BTreeMap::new();
    for listed in send {
        let text = |name: &str| {
            crate::filter::text(&listed.row, name)
                .unwrap_or("-")
                .to_owned()
        };
        let kind = [
            listed.provider.to_string(),
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

/// Sends what is left of a job, step by step.
async fn carry_out(
    session: &Session,
    jobs: &Jobs,
    mut job: Job,
    plan: Plan,
    rate: u32,
    interrupted: impl Future<Output = ()>,
) -> Result<()> {
    let (id, queues) = (job.id()?, session.queues()?);
    let stores = [
        session.events(ProviderId::Stripe)?,
        session.events(ProviderId::Lob)?,
    ];
    let again = format!(
        "billhook --stack {} replay --resume {id}",
        session.stack.name
    );
    let mut interrupted = pin!(interrupted.fuse());
    let begun = SystemClock.now();
    let mut due = Duration::ZERO;
    Output::tell(&format!(
        "replay {id}: {} events, {} sent before",
        job.total, job.sent
    ));
    let steps = plan.send.len().div_ceil(STEP);
    for (step, number) in plan.send.chunks(STEP).zip(1..) {
        let sending = step.iter().map(|listed| {
            let [stripe, lob] = &stores;
            let store = match listed.provider {
                ProviderId::Stripe => stripe,
                ProviderId::Lob => lob,
            };
            send(store, &queues, listed, id, &job.by)
        });
        for sent in join_all(sending).await {
            match sent.with_context(|| format!("cut; go on with: {again}"))? {
                true => job.sent += 1,
                false => job.skipped += 1,
            }
        }
        job.cursor = step.last().map(Listed::place);
        due += Duration::from_secs(u64::try_from(step.len())?) / rate;
        let ahead = due.saturating_sub(begun.until(SystemClock.now()));
        let pause = pin!(tokio::time::sleep(ahead));
        let is_interrupted = match (&mut interrupted).now_or_never() {
            Some(()) => true,
            None => matches!(
                select(pause, &mut interrupted).await,
                futures_util::future::Either::Right(_)
            ),
        };
        let is_last = number == steps;
        job.state = match (is_last, is_interrupted) {
            (true, _) => State::Done,
            (false, true) => State::Cut,
            (false, false) => State::Running,
        };
        if !jobs.keep(&job).await? {
            bail!("the replay {id} was cancelled or is run by another: it stops here");
        }
        progress(&job);
        if job.state == State::Cut {
            let (sent, total) = (job.sent, job.total);
            return Err(Stop::Interrupted(format!(
                "cut after {sent} of {total} events; go on with: {again}"
            ))
            .into());
        }
    }
    job.state = State::Done;
    jobs.keep(&job).await?;
    let seconds = begun.until(SystemClock.now()).as_secs();
    Output::tell(&format!(
        "done: {} sent, {} were done meanwhile or left out, {seconds} s; follow it with: billhook trace {id}",
        job.sent, job.skipped
    ));
    Ok(())
}

/// Notes it on the event, then puts its pointer on the queue; false where the event is done.
async fn send(
    store: &Events,
    queues: &EventQueues,
    listed: &Listed,
    job: Uuid,
    by: &By,
) -> Result<bool> {
    let stored = &listed.stored;
    let change = if stored.processed {
        Change::Reopen
    } else {
        Change::Send
    };
    let note = by.note("replay", SystemClock.now(), Some(&job.to_string()));
    if !store.change(&stored.id, change, note).await? {
        return Ok(false);
    }
    let body = EventPointer::replay_message(stored, CorrelationId(job), by.in_message());
    let deduplication_id = stored.fresh_deduplication_id(job);
    let sent = queues.send(listed.provider, &stored.group, &deduplication_id, &body);
    match sent.await {
        Ok(()) => Ok(true),
        // Its row is spoilt, which is no reason to leave the others alone.
        Err(error) if error.disposition == Disposition::Permanent => {
            Output::tell(&format!(
                "{} is left out: {}",
                stored.id,
                error_chain(&error)
            ));
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

fn progress(job: &Job) {
    if std::io::stderr().is_terminal() {
        let done = job.sent + job.skipped;
        let filled = usize::try_from(done.saturating_mul(30) / job.total.max(1))
            .unwrap_or(0)
            .min(30);
        let (bar, rest) = ("#".repeat(filled), " ".repeat(30 - filled));
        eprint!(
            "\r[{bar}{rest}] {done}/{}{}",
            job.total,
            if done >= job.total { "\n" } else { "" }
        );
    }
}

/// Ctrl-C, or the end that a process manager asks for; noticed from this call on, not from the first poll.
pub(crate) fn interrupted() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let asked = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    async {
        let mut asked: Vec<_> = asked.into_iter().flatten().collect();
        if asked.is_empty() {
            std::future::pending().await
        }
        select_all(asked.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
    }
}

#[cfg(test)]
mod tests {
    use billhook_adapters::dynamodb::attributes::{Item, string_value};
    use proptest::prelude::*;

    use super::*;

    fn listed(second: u32, id: u32, processed: bool) -> Listed {
        let item = Item::from([
            ("event_id".to_owned(), string_value(format!("evt_{id}"))),
            ("event_type".to_owned(), string_value("charge.refunded")),
            ("group".to_owned(), string_value("g")),
            (
                "received_at".to_owned(),
                string_value(format!("2026-11-21T08:00:{second:02}.000Z")),
            ),
            (
                "processed".to_owned(),
                aws_sdk_dynamodb::types::AttributeValue::Bool(processed),
            ),
            (
                "processing_outcome".to_owned(),
                string_value(if processed { "processed" } else { "failed" }),
            ),
        ]);
        Listed::read(ProviderId::Stripe, &item).unwrap()
    }

    #[test]
    fn what_is_done_is_left_out_unless_forced() {
        let found = || vec![listed(1, 1, false), listed(0, 2, true)];
        let plan_of = |force| plan(found(), None, force);
        assert_eq!((plan_of(false).send.len(), plan_of(false).done), (1, 1));
        let forced: Vec<_> = plan_of(true)
            .send
            .iter()
            .map(|l| l.stored.id.to_string())
            .collect();
        assert_eq!(forced, ["evt_2", "evt_1"]);
    }

    proptest! {
        /// However often a job is cut, and whatever was done meanwhile: each event is planned once, in one order.
        #[test]
        fn a_job_that_is_cut_and_continued_sends_each_event_once(
            seconds in prop::collection::vec(0_u32..5, 1..40),
            cuts in prop::collection::vec(1_usize..7, 0..40),
            shuffled in any::<bool>(),
        ) {
            let mut all: Vec<Listed> = seconds.iter().zip(0..).map(|(at, id)| listed(*at, id, false)).collect();
            if shuffled {
                all.reverse();
            }
            let mut sent = Vec::new();
            let mut cursor: Option<String> = None;
            for cut in cuts.into_iter().chain([usize::MAX]) {
                // What was sent is processed meanwhile, or not: neither makes it come again.
                let left = plan(all.clone(), cursor.as_deref(), false);
                for listed in left.send.iter().take(cut) {
                    sent.push(listed.stored.id.clone());
                    cursor = Some(listed.place());
                }
            }
            let mut expected: Vec<EventId> = all.iter().map(|listed| listed.stored.id.clone()).collect();
            expected.sort();
            sent.sort();
            prop_assert_eq!(sent, expected);
        }
    }
}
