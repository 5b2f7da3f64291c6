//! Replay of stored events: sends their pointers to the queues again, rate limited, as a job with checkpoints that
//! Ctrl-C interrupts and `--resume` continues.
//!
//! Two things make a repeated send harmless. The deduplication id of a message consists of the event's and the job's
//! ids, so an event that one job sends twice within 5 minutes is one message to the FIFO queue. And workers are
//! idempotent: they apply an event once, however many pointers to it arrive.

use std::future::Future;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::sqs::EventQueues;
use billhook_core::error::error_chain;
use billhook_core::ids::{CorrelationId, PerProvider};
use billhook_core::intake::message::EventPointer;
use billhook_core::intake::ports::SendMessage as _;
use billhook_core::ports::{Clock as _, Pause as _};
use billhook_core::retry::Disposition;
use futures_util::FutureExt as _;
use futures_util::future::{join_all, select};
use uuid::Uuid;

use crate::audit::AuditContext;
use crate::confirm::quote_word;
use crate::event_filter::EventSelection;
use crate::event_lookup::load_selected_events;
use crate::events_table::{EventChange, EventChangeResult, EventSummary, EventsTable};
use crate::exit::CommandExit;
use crate::interrupt::wait_for_interrupt;
use crate::output::print_notice;
use crate::replay_job::{JobSaveResult, ReplayJob, ReplayJobState, ReplayJobsTable};
use crate::session::StackSession;

/// Events per step. Ctrl-C ends the replay after a step, and each step is one write to the jobs table: at the default
/// rate Ctrl-C takes effect within half a second.
const STEP_EVENTS: usize = 10;
/// Events per second. Far below what the workers and the tables take, so that a replay does not delay new deliveries.
pub(crate) const DEFAULT_RATE: u32 = 20;

/// What is left to send, in the order in which it is sent.
#[derive(Debug, Default)]
pub(crate) struct ReplayPlan {
    pub(crate) to_send: Vec<EventSummary>,
    /// How many were left out because they are processed or ignored.
    pub(crate) already_done: usize,
}

pub(crate) fn plan_replay(
    mut found: Vec<EventSummary>,
    cursor: Option<&str>,
    force: bool,
) -> ReplayPlan {
    found.sort_by_key(EventSummary::sort_key);
    found.dedup_by_key(|event| event.sort_key());
    if let Some(cursor) = cursor {
        found.retain(|event| event.sort_key().as_str() > cursor);
    }
    let (to_send, done): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|event| force || !event.record.processed);
    ReplayPlan {
        to_send,
        already_done: done.len(),
    }
}

/// Replays the selected events that are not done, if there are any.
pub(crate) async fn replay_open_events(
    session: &StackSession,
    selection: EventSelection,
    audit: &AuditContext,
) -> Result<()> {
    let plan = plan_replay(
        load_selected_events(session, &selection).await?,
        None,
        false,
    );
    if plan.to_send.is_empty() {
        return Ok(());
    }
    let id = SystemClock.new_id();
    start_replay_job(session, id, selection, plan, false, audit, DEFAULT_RATE).await
}

pub(crate) async fn start_replay_job(
    session: &StackSession,
    id: Uuid,
    selection: EventSelection,
    plan: ReplayPlan,
    force: bool,
    audit: &AuditContext,
    rate: u32,
) -> Result<()> {
    let jobs = session.replay_jobs()?;
    let total = u64::try_from(plan.to_send.len())?;
    let (author, now) = (audit.author.clone(), SystemClock.now());
    let job = ReplayJob::new(id, selection, force, author, total, now);
    jobs.put_job(&job).await?;
    run_replay_job(session, &jobs, job, plan, audit, rate, wait_for_interrupt()).await
}

/// Reprocesses single events right after a repair that they waited for. No job: a few events need no checkpoint.
pub(crate) async fn release_events(
    session: &StackSession,
    events: &[EventSummary],
    audit: &AuditContext,
) -> Result<()> {
    let (id, queues) = (audit.id, session.queues()?);
    for event in events {
        let result = if event.record.processed {
            ResendResult::Skipped
        } else {
            let store = session.events_table(event.provider)?;
            resend_event(&store, &queues, event, id, audit).await?
        };
        if result == ResendResult::Sent {
            print_notice(&format!(
                "queued {} for its worker; correlation id {id}",
                event.record.id
            ));
        } else {
            let event_id = &event.record.id;
            bail!(
                "{event_id} is already processed or ignored; to reprocess it, run: billhook replay {event_id} --force --reason … --yes"
            );
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResendResult {
    Sent,
    /// The event is done, or its row is damaged.
    Skipped,
}

/// Sends what is left of a job. After each step it waits until the rate allows the next one, then writes a checkpoint.
pub(crate) async fn run_replay_job(
    session: &StackSession,
    jobs: &ReplayJobsTable,
    mut job: ReplayJob,
    plan: ReplayPlan,
    audit: &AuditContext,
    rate: u32,
    interrupted: impl Future<Output = ()>,
) -> Result<()> {
    let (id, queues) = (job.id()?, session.queues()?);
    let stores = PerProvider::try_new(|provider| session.events_table(provider))?;
    let resume_command = format!(
        "billhook --stack {} replay --resume {id} --reason {}",
        session.stack.name,
        quote_word(&job.author.reason)
    );
    let mut interrupted = pin!(interrupted.fuse());
    let started_at = SystemClock.now();
    let mut due = Duration::ZERO;
    print_notice(&format!(
        "replay {id}: {} events, of which {} were sent before",
        job.total, job.sent
    ));
    let steps = plan.to_send.len().div_ceil(STEP_EVENTS);
    for (step, number) in plan.to_send.chunks(STEP_EVENTS).zip(1..) {
        let sending = step
            .iter()
            .map(|event| resend_event(stores.of(event.provider), &queues, event, id, audit));
        for sent in join_all(sending).await {
            match sent
                .with_context(|| format!("the replay stopped; continue with: {resume_command}"))?
            {
                ResendResult::Sent => job.sent += 1,
                ResendResult::Skipped => job.skipped += 1,
            }
        }
        job.cursor = step.last().map(EventSummary::sort_key);
        due += Duration::from_secs(u64::try_from(step.len())?) / rate;
        let ahead = due.saturating_sub(started_at.until(SystemClock.now()));
        let pause = pin!(SystemClock.pause(ahead));
        let is_interrupted = match (&mut interrupted).now_or_never() {
            Some(()) => true,
            None => matches!(
                select(pause, &mut interrupted).await,
                futures_util::future::Either::Right(_)
            ),
        };
        let is_last = number == steps;
        job.state = match (is_last, is_interrupted) {
            (true, _) => ReplayJobState::Done,
            (false, true) => ReplayJobState::Interrupted,
            (false, false) => ReplayJobState::Running,
        };
        if jobs.save_progress(&job).await? == JobSaveResult::LostToOtherRun {
            bail!("the replay {id} was cancelled, or resumed elsewhere: this run stops");
        }
        print_progress(&job);
        if job.state == ReplayJobState::Interrupted {
            let (sent, total) = (job.sent, job.total);
            return Err(CommandExit::Interrupted(format!(
                "interrupted after {sent} of {total} events; continue with: {resume_command}"
            ))
            .into());
        }
    }
    job.state = ReplayJobState::Done;
    jobs.save_progress(&job).await?;
    let seconds = started_at.until(SystemClock.now()).as_secs();
    print_notice(&format!(
        "done: sent {} events, skipped {} (processed meanwhile, or the row is damaged) in {seconds} s; see the result with: billhook trace {id}",
        job.sent, job.skipped
    ));
    Ok(())
}

/// Writes the note, then sends the pointer. In this order a crash in between leaves a note without a message, which the
/// resumed job repeats; the other order could send a message that no note explains.
async fn resend_event(
    store: &EventsTable,
    queues: &EventQueues,
    event: &EventSummary,
    job: Uuid,
    audit: &AuditContext,
) -> Result<ResendResult> {
    let stored = &event.record;
    let change = if stored.processed {
        EventChange::Reopen
    } else {
        EventChange::Resend
    };
    let note = audit.build_note("replay", SystemClock.now(), Some(&job.to_string()));
    if store.apply_change(&stored.id, change, note).await? == EventChangeResult::NotAllowed {
        return Ok(ResendResult::Skipped);
    }
    let body = EventPointer::replay_message(stored, CorrelationId(job), audit.for_message());
    let deduplication_id = stored.fresh_deduplication_id(job);
    let sent = queues.send(event.provider, &stored.group, &deduplication_id, &body);
    match sent.await {
        Ok(()) => Ok(ResendResult::Sent),
        // A damaged row must not stop the replay of the other events.
        Err(error) if error.disposition == Disposition::Permanent => {
            print_notice(&format!("skipped {}: {}", stored.id, error_chain(&error)));
            Ok(ResendResult::Skipped)
        }
        Err(error) => Err(error.into()),
    }
}

fn print_progress(job: &ReplayJob) {
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

#[cfg(test)]
mod tests {
    use billhook_adapters::dynamodb::attributes::{Item, string_value};
    use billhook_core::ids::EventId;
    use proptest::prelude::*;

    use super::*;

    fn event(second: u32, id: u32, processed: bool) -> EventSummary {
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
        EventSummary::from_item(billhook_core::ids::ProviderId::Stripe, &item).unwrap()
    }

    #[test]
    fn a_plan_leaves_out_done_events_unless_forced() {
        let found = || vec![event(1, 1, false), event(0, 2, true)];
        let plan_of = |force| plan_replay(found(), None, force);
        assert_eq!(
            (plan_of(false).to_send.len(), plan_of(false).already_done),
            (1, 1)
        );
        let forced: Vec<_> = plan_of(true)
            .to_send
            .iter()
            .map(|l| l.record.id.to_string())
            .collect();
        assert_eq!(forced, ["evt_2", "evt_1"]);
    }

    proptest! {
        /// However often a job is interrupted, it sends each event once and in the same order.
        #[test]
        fn an_interrupted_and_resumed_job_sends_each_event_once(
            seconds in prop::collection::vec(0_u32..5, 1..40),
            cuts in prop::collection::vec(1_usize..7, 0..40),
            shuffled in any::<bool>(),
        ) {
            let mut all: Vec<EventSummary> = seconds.iter().zip(0..).map(|(at, id)| event(*at, id, false)).collect();
            if shuffled {
                all.reverse();
            }
            let mut sent = Vec::new();
            let mut cursor: Option<String> = None;
            for cut in cuts.into_iter().chain([usize::MAX]) {
                // Whether the sent events are processed by now makes no difference.
                let left = plan_replay(all.clone(), cursor.as_deref(), false);
                for event in left.to_send.iter().take(cut) {
                    sent.push(event.record.id.clone());
                    cursor = Some(event.sort_key());
                }
            }
            let mut expected: Vec<EventId> = all.iter().map(|event| event.record.id.clone()).collect();
            expected.sort();
            sent.sort();
            prop_assert_eq!(sent, expected);
        }
    }
}
