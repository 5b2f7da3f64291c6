//! The sweep: retries unfinished events at the ages that `billhook_core::tasks::sweep` defines (exponential backoff),
//! gives up those that waited too long, and has the worker recheck open payments: those without a link, and those
//! with an outdated copy.
//!
//! Guarantees: if an event reaches a retry age between two completed runs, it is sent at least once, and once if
//! nothing fails. A message that is sent twice changes nothing (the worker is idempotent). The sweep never marks an
//! event as failed. Not its job: events that need manual action, and dead-letter messages (`billhook dlq`).

use std::collections::BTreeSet;
use std::time::Duration;

use billhook_adapters::metrics;
use billhook_core::entity::payment::state::open_index_keys;
use billhook_core::error::{DependencyError, error_chain};
use billhook_core::ids::{EventId, PerProvider, ProviderId};
use billhook_core::intake::inbox::{EventRecord, EventSource};
use billhook_core::intake::message::{EventPointer, PaymentPointer};
use billhook_core::intake::ports::SendMessage;
use billhook_core::outcome::{EventOutcome, EventVerdict, IgnoreReason};
use billhook_core::ports::Clock;
use billhook_core::retry::Disposition;
use billhook_core::tasks::checkpoint::Checkpoint;
use billhook_core::tasks::definitions::SweepInput;
use billhook_core::tasks::ports::{
    ArrivalSpan, CheckpointSaveResult, CheckpointStore, FindOpenStates, FindUnfinishedEvents,
    UnfinishedEvent,
};
use billhook_core::tasks::sweep::{
    ARRIVAL_AGES, FIRST_RETRY_AFTER, STUCK_AFTER, SweepAction, SweepCandidate, SweepWindow,
};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{CommitError, CommitPart, EventUpdate, Ledger};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use super::deliveries::{LastDeliveries, measure_quiet_hours};
use crate::scheduled_task::{PassEnd, ScheduledTask, TaskFailed, fail_task, lacks_time_to_start};

/// Events in one page of the index. The due ones are then read from the table.
const PAGE: usize = 100;
/// At most this many payments for each value of the index key in one run; the next run sends the rest.
const PAYMENTS_MAX: usize = 1_000;
/// Messages and updates in progress at the same time.
const ACTIONS_AT_ONCE: usize = 8;
/// Passes of one run: the rest of an interrupted one, then one up to now.
const PASSES_MAX: u32 = 2;
/// The outcomes that the sweep retries. `failed` is not one of them: such an event needs manual action.
const OUTCOMES: [EventOutcome; 2] = [EventOutcome::Pending, EventOutcome::Parked];

/// A part of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SweepLane {
    /// The events that arrived on this day and reach this age of `ARRIVAL_AGES` in the window.
    Arrived(ProviderId, usize, String),
    /// The events that are in `OpenIndex` with this outcome.
    Unfinished(ProviderId, EventOutcome),
}

/// Every lane, in the order of a pass.
fn sweep_lanes(window: SweepWindow) -> impl Iterator<Item = SweepLane> {
    let lanes = move |provider: &ProviderId| {
        let provider = *provider;
        let ages = ARRIVAL_AGES.iter().enumerate();
        let arrived = ages.flat_map(move |(number, age)| {
            let span = window.arrivals_at(*age);
            let days = days_of(span).into_iter();
            days.map(move |day| SweepLane::Arrived(provider, number, day))
        });
        let unfinished = OUTCOMES.map(|outcome| SweepLane::Unfinished(provider, outcome));
        arrived.chain(unfinished)
    };
    ProviderId::ALL.iter().flat_map(lanes)
}

/// The days of a span, the oldest first.
pub(super) fn days_of(span: ArrivalSpan) -> Vec<String> {
    let last = span.until.day();
    let mut days = Vec::new();
    let mut at = span.after;
    while at.day() < last {
        days.push(at.day());
        at = at.after(Duration::from_hours(24));
    }
    days.push(last);
    days
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SweepSummary {
    /// Always `sweep`.
    pub task: &'static str,
    /// Events that were due.
    pub looked_at: usize,
    /// Events sent to their worker again.
    pub sent: usize,
    /// Events that the queue rejects for good, because their rows are damaged.
    pub refused: usize,
    /// Open payments that were sent to the worker to be rechecked.
    pub payments: usize,
    /// Events that were given up.
    pub ignored: usize,
    /// Rows of the application that were written again, because an older copy was in their place.
    pub restored: usize,
    /// Events that are pending for more than an hour.
    pub stuck: usize,
    /// Events that have now waited a day for a tenant, an order, a statement or a letter.
    pub overdue: usize,
    /// False if the deadline interrupted the run: the next run resumes.
    pub completed: bool,
}

/// The task with its ports.
#[derive(Debug)]
pub struct SweepTask<L, Q, J, C> {
    /// Each over the events of its provider.
    pub ledgers: PerProvider<L>,
    pub queue: Q,
    pub jobs: J,
    pub clock: C,
}

/// The place of a pass: a lane, and the last event of it that was handled. Stored as text in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SweepPosition {
    lane: SweepLane,
    after: Option<UnfinishedEvent>,
}

impl SweepPosition {
    /// `stripe#arrived#0#2026-06-09`, `lob#parked` or `lob#parked#2026-06-09T10:13:20.000Z#evt_1`.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '#');
        let (provider, word) = (parts.next()?, parts.next()?);
        let provider = *ProviderId::ALL.iter().find(|of| of.as_str() == provider)?;
        if word == "arrived" {
            let (number, day) = (parts.next()?.parse().ok()?, parts.next()?);
            let lane = SweepLane::Arrived(provider, number, day.to_owned());
            return Some(Self { lane, after: None });
        }
        let outcome = OUTCOMES
            .into_iter()
            .find(|outcome| outcome.as_str() == word)?;
        let after = match (parts.next(), parts.next()) {
            (Some(received_at), Some(id)) => Some(UnfinishedEvent {
                id: EventId::parse(id).ok()?,
                received_at: Timestamp::parse(received_at).ok()?,
            }),
            _ => None,
        };
        let lane = SweepLane::Unfinished(provider, outcome);
        Some(Self { lane, after })
    }

    fn encode(&self) -> String {
        let lane = match &self.lane {
            SweepLane::Arrived(provider, number, day) => {
                return format!("{provider}#arrived#{number}#{day}");
            }
            SweepLane::Unfinished(provider, outcome) => format!("{provider}#{outcome}"),
        };
        match &self.after {
            Some(event) => format!("{lane}#{}#{}", event.received_at, event.id),
            None => lane,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SendResult {
    Sent,
    /// The queue will never accept it: its row is damaged.
    Refused,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum IgnoreResult {
    Ignored,
    /// A worker finished it meanwhile, or its row is damaged.
    Left,
}

impl<L, Q, J, C> ScheduledTask for SweepTask<L, Q, J, C>
where
    L: Ledger + FindUnfinishedEvents + FindOpenStates,
    Q: SendMessage,
    J: CheckpointStore,
    C: Clock,
{
    type Input = SweepInput;
    type Summary = SweepSummary;

    async fn run(
        &self,
        SweepInput {}: &SweepInput,
        deadline: Timestamp,
    ) -> Result<SweepSummary, TaskFailed> {
        let mut summary = SweepSummary {
            task: Self::NAME,
            ..SweepSummary::default()
        };
        self.count_stuck(&mut summary).await?;
        self.send_open_payments(&mut summary, deadline).await?;
        // Events first: a row that cannot be read must keep no event waiting.
        let retried = self.retry_events(&mut summary, deadline).await;
        let restored = self.restore_rows(&mut summary, deadline).await;
        let ends = [retried?, restored?];
        // What an interrupted pass did not come to may be newer.
        if ends[0] == PassEnd::Completed {
            let measured = measure_quiet_hours(&self.jobs, self.clock.now()).await;
            measured.map_err(fail_task("measure the quiet hours"))?;
        }
        summary.completed = ends == [PassEnd::Completed; 2];
        Ok(summary)
    }
}

impl<L, Q, J, C> SweepTask<L, Q, J, C>
where
    L: Ledger + FindUnfinishedEvents + FindOpenStates,
    Q: SendMessage,
    J: CheckpointStore,
    C: Clock,
{
    /// The rest of an interrupted pass, if there is one, then a pass up to now.
    ///
    /// An interrupted pass keeps its window when it is resumed. Example: a pass for 10:00 to 10:10 is interrupted in
    /// lane `stripe#parked`. The next run, at 10:20, first completes the window 10:00 to 10:10 behind that place, then
    /// does 10:10 to 10:20. If it used one window 10:00 to 10:20 instead, the events before the place that reach an age
    /// between 10:10 and 10:20 would be missed.
    async fn retry_events(
        &self,
        summary: &mut SweepSummary,
        deadline: Timestamp,
    ) -> Result<PassEnd, TaskFailed> {
        let read = self.jobs.load_checkpoint(Self::NAME).await;
        let mut checkpoint = read.map_err(fail_task("load the checkpoint"))?;
        let mut last = PassEnd::Interrupted;
        for _ in 0..PASSES_MAX {
            let was_interrupted = checkpoint.resume_at.is_some();
            let now_s = self.clock.now().unix_s();
            let resume_at = checkpoint.resume_at.as_ref();
            let until_s = resume_at.map_or(now_s, |resume| resume.until_s);
            let mut place = resume_at.and_then(|resume| SweepPosition::parse(&resume.after));
            let mut deliveries = LastDeliveries::default();
            let passed = self
                .run_pass(
                    &checkpoint,
                    until_s,
                    &mut place,
                    summary,
                    &mut deliveries,
                    deadline,
                )
                .await;
            // Before the checkpoint: the next run does not come to these arrivals again.
            let noted = deliveries.save(&self.jobs).await;
            noted.map_err(fail_task("note the last deliveries"))?;
            let next = match &passed {
                Ok(PassEnd::Completed) => Checkpoint::completed_through(until_s),
                Ok(PassEnd::Interrupted) | Err(_) => {
                    let place = place.as_ref().map(SweepPosition::encode);
                    checkpoint.interrupted_at(until_s, place.unwrap_or_default())
                }
            };
            let saved = self
                .jobs
                .save_checkpoint(Self::NAME, &checkpoint, &next)
                .await;
            let saved = saved.map_err(fail_task("save the checkpoint"))?;
            last = passed?;
            // Not saved: another run has completed a pass meanwhile, so it also does the rest.
            if !(last == PassEnd::Completed
                && was_interrupted
                && saved == CheckpointSaveResult::Saved)
            {
                break;
            }
            checkpoint = next;
        }
        Ok(last)
    }

    async fn count_stuck(&self, summary: &mut SweepSummary) -> Result<(), TaskFailed> {
        let until = self.clock.now().before(STUCK_AFTER);
        for (provider, ledger) in self.ledgers.iter() {
            let count = ledger.count_unfinished(EventOutcome::Pending, until);
            let count = count.await.map_err(fail_task("count stuck events"))?;
            if count > 0 {
                tracing::error!(
                    provider = %provider,
                    count,
                    "stuck_events {count} of {provider} are pending for more than an hour"
                );
            }
            summary.stuck += count;
            // Also report 0; otherwise the alarm could not distinguish "nothing is stuck" from "the sweep does not
            // run".
            metrics::STUCK_EVENTS.add(provider, u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Sends each open payment that is due to be rechecked to the worker, which sets the time of the next recheck. So no
    /// checkpoint is needed: what this run does not send is still due in the next.
    async fn send_open_payments(
        &self,
        summary: &mut SweepSummary,
        deadline: Timestamp,
    ) -> Result<(), TaskFailed> {
        let ledger = self.ledgers.of(ProviderId::Stripe);
        for index_key in open_index_keys() {
            if lacks_time_to_start(&self.clock, deadline) {
                return Ok(());
            }
            let due = ledger.open_payments(&index_key, self.clock.now(), PAYMENTS_MAX);
            let due = due.await.map_err(fail_task("find open payments"))?;
            let sent: Vec<()> = stream::iter(due)
                .map(async |payment| {
                    let body = PaymentPointer::message_for(&payment);
                    let deduplication_id = self.clock.new_id().hyphenated().to_string();
                    let group = PaymentPointer::group(&payment);
                    self.queue
                        .send(ProviderId::Stripe, &group, &deduplication_id, &body)
                        .await
                })
                .buffer_unordered(ACTIONS_AT_ONCE)
                .try_collect()
                .await
                .map_err(fail_task("send open payments"))?;
            summary.payments += sent.len();
        }
        Ok(())
    }

    /// Continues a pass at `place`, or begins it. `place` moves on only after everything before
    /// it is done, so after an error or a crash the checkpoint is never too far.
    async fn run_pass(
        &self,
        checkpoint: &Checkpoint,
        until_s: i64,
        place: &mut Option<SweepPosition>,
        summary: &mut SweepSummary,
        deliveries: &mut LastDeliveries,
        deadline: Timestamp,
    ) -> Result<PassEnd, TaskFailed> {
        let moment = |second| Timestamp::from_unix_s(second).ok();
        let window = SweepWindow {
            after: checkpoint.done_through_s.and_then(moment),
            until: moment(until_s).unwrap_or_else(|| self.clock.now()),
        };
        let mut lanes: Vec<SweepLane> = sweep_lanes(window).collect();
        let first = place.as_ref().map(|place| &place.lane);
        let done = lanes.iter().position(|lane| Some(lane) == first);
        lanes.drain(..done.unwrap_or_default());
        for lane in lanes {
            let known = place.take().filter(|place| place.lane == lane);
            let after = known.and_then(|place| place.after);
            let place = place.insert(SweepPosition { lane, after });
            if lacks_time_to_start(&self.clock, deadline) {
                return Ok(PassEnd::Interrupted);
            }
            match place.lane.clone() {
                SweepLane::Arrived(provider, number, day) => {
                    let age = ARRIVAL_AGES.get(number).copied().unwrap_or_default();
                    let span = window.arrivals_at(age);
                    let sent = self.find_forgotten(provider, &day, span, age, summary, deliveries);
                    sent.await.map_err(fail_task("find forgotten events"))?;
                }
                SweepLane::Unfinished(provider, outcome) => {
                    let end = self.retry_lane(provider, outcome, window, place, summary, deadline);
                    if end.await? == PassEnd::Interrupted {
                        return Ok(PassEnd::Interrupted);
                    }
                }
            }
        }
        Ok(PassEnd::Completed)
    }

    /// Reads everything that arrived in a span, and sends what is still pending: its message was lost, or has not been
    /// received for that long. From then on the event is in `OpenIndex`, and is sent again at its later ages.
    async fn find_forgotten(
        &self,
        provider: ProviderId,
        day: &str,
        span: ArrivalSpan,
        age: Duration,
        summary: &mut SweepSummary,
        deliveries: &mut LastDeliveries,
    ) -> Result<(), DependencyError> {
        let ledger = self.ledgers.of(provider);
        let arrived = ledger.arrived_events(day, span).await?;
        deliveries.add(provider, &arrived);
        let pending = arrived.into_iter();
        let pending = pending.filter(|event| event.outcome == EventOutcome::Pending);
        let pending: Vec<EventId> = pending.map(|event| event.id).collect();
        let mark = async |id: EventId| Ok((ledger.mark_open(&id).await?, id));
        let marked: Vec<(bool, EventId)> = stream::iter(pending)
            .map(mark)
            .buffer_unordered(ACTIONS_AT_ONCE)
            .try_collect()
            .await?;
        let is_first_look = age == FIRST_RETRY_AFTER;
        // Later, one that is in `OpenIndex` already is sent at its ages.
        let found = marked
            .into_iter()
            .filter(|(is_new, _)| is_first_look || *is_new);
        let found: BTreeSet<EventId> = found.map(|(_, id)| id).collect();
        for id in found.iter().filter(|_| !is_first_look) {
            tracing::error!(event_id = %id, "event_found_late {id} is pending for a day");
        }
        self.send_pending(provider, found, summary).await
    }

    /// Sends those of these events that are pending by their rows, too.
    async fn send_pending(
        &self,
        provider: ProviderId,
        ids: BTreeSet<EventId>,
        summary: &mut SweepSummary,
    ) -> Result<(), DependencyError> {
        if ids.is_empty() {
            return Ok(());
        }
        let rows = self.ledgers.of(provider).load_with_reasons(&ids).await?;
        let pending = rows.into_iter().map(|(stored, _)| stored);
        let pending = pending
            .filter(|stored| !stored.processed && stored.outcome == EventOutcome::Pending)
            .collect();
        self.send_all(provider, pending, summary).await
    }

    async fn send_all(
        &self,
        provider: ProviderId,
        events: Vec<EventRecord>,
        summary: &mut SweepSummary,
    ) -> Result<(), DependencyError> {
        summary.looked_at += events.len();
        let sent: Vec<SendResult> = stream::iter(events)
            .map(|stored| self.send(provider, stored))
            .buffer_unordered(ACTIONS_AT_ONCE)
            .try_collect()
            .await?;
        let accepted = |result: &&SendResult| **result == SendResult::Sent;
        let done = sent.iter().filter(accepted).count();
        summary.sent += done;
        summary.refused += sent.len() - done;
        Ok(())
    }

    /// Retries the events of one outcome that are due, page by page.
    async fn retry_lane(
        &self,
        provider: ProviderId,
        outcome: EventOutcome,
        window: SweepWindow,
        place: &mut SweepPosition,
        summary: &mut SweepSummary,
        deadline: Timestamp,
    ) -> Result<PassEnd, TaskFailed> {
        let ledger = self.ledgers.of(provider);
        // What is pending and reaches its first age was found by its arrival.
        let is_pending = outcome == EventOutcome::Pending;
        let is_due = |event: &&UnfinishedEvent| {
            let is_found = is_pending && window.is_first_look_due(event.received_at);
            window.includes(event.received_at) && !is_found
        };
        loop {
            if lacks_time_to_start(&self.clock, deadline) {
                return Ok(PassEnd::Interrupted);
            }
            let until = window.until.before(FIRST_RETRY_AFTER);
            let open = ledger.unfinished_events(outcome, until, place.after.as_ref(), PAGE);
            let page = open.await.map_err(fail_task("find unfinished events"))?;
            let due = page.events.iter().filter(is_due);
            let due = due.map(|event| event.id.clone()).collect();
            self.retry_or_give_up(provider, due, window, summary)
                .await
                .map_err(fail_task("retry unfinished events"))?;
            place.after = page.next;
            if place.after.is_none() {
                return Ok(PassEnd::Completed);
            }
        }
    }

    /// Decides about the events that the index listed and does it. The index is only a hint: the rows are read again,
    /// consistently.
    async fn retry_or_give_up(
        &self,
        provider: ProviderId,
        ids: BTreeSet<EventId>,
        window: SweepWindow,
        summary: &mut SweepSummary,
    ) -> Result<(), DependencyError> {
        if ids.is_empty() {
            return Ok(());
        }
        let (mut sending, mut giving_up) = (Vec::new(), Vec::new());
        for (stored, reason) in self.ledgers.of(provider).load_with_reasons(&ids).await? {
            let Some(received_at) = stored.received_at.filter(|_| !stored.processed) else {
                continue;
            };
            let open = SweepCandidate {
                outcome: stored.outcome,
                reason: reason.as_deref(),
                received_at,
            };
            if open.is_overdue(window) {
                summary.overdue += 1;
                metrics::OVERDUE_EVENTS.count(provider);
                tracing::error!(
                    event_id = %stored.id,
                    reason,
                    "event_overdue {}: {}",
                    stored.id,
                    reason.as_deref().unwrap_or_default()
                );
            }
            match open.action(window) {
                SweepAction::Leave => continue,
                SweepAction::Send => sending.push(stored),
                SweepAction::Ignore(reason) => giving_up.push((stored, reason)),
            }
        }
        self.send_all(provider, sending, summary).await?;
        summary.looked_at += giving_up.len();
        let ignored: Vec<IgnoreResult> = stream::iter(giving_up)
            .map(|(stored, reason)| self.ignore(provider, stored, reason))
            .buffer_unordered(ACTIONS_AT_ONCE)
            .try_collect()
            .await?;
        let ignored = ignored.into_iter();
        summary.ignored += ignored
            .filter(|result| *result == IgnoreResult::Ignored)
            .count();
        Ok(())
    }

    /// Sends one event. A permanent error is logged and counted instead of
    /// failing the run: when one damaged row failed the run, no event behind it was ever sent.
    async fn send(
        &self,
        provider: ProviderId,
        stored: EventRecord,
    ) -> Result<SendResult, DependencyError> {
        let deduplication_id = stored.fresh_deduplication_id(self.clock.new_id());
        let body = EventPointer::message_for(&stored, EventSource::Sweep);
        let sent = self
            .queue
            .send(provider, &stored.group, &deduplication_id, &body);
        match sent.await {
            Ok(()) => {}
            Err(error) if error.disposition == Disposition::Permanent => {
                log_event_error(&stored, "event_not_sent", &error_chain(&error));
                return Ok(SendResult::Refused);
            }
            Err(error) => return Err(error),
        }
        tracing::info!(
            event_id = %stored.id,
            event_type = %stored.event_type,
            outcome = %stored.outcome,
            "event_sent_again {}",
            stored.id
        );
        Ok(SendResult::Sent)
    }

    /// Gives an event up.
    async fn ignore(
        &self,
        provider: ProviderId,
        stored: EventRecord,
        reason: IgnoreReason,
    ) -> Result<IgnoreResult, DependencyError> {
        let commit = CommitPart {
            entities: Vec::new(),
            states: Vec::new(),
            events: vec![EventUpdate {
                entities: BTreeSet::new(),
                event: stored.id.clone(),
                tenant: None,
                verdict: EventVerdict::Ignored(reason),
            }],
            now: self.clock.now(),
        };
        match self.ledgers.of(provider).commit(provider, &[&commit]).await {
            Ok(()) => {
                let word = reason.as_str();
                tracing::info!(
                    event_id = %stored.id,
                    reason = word,
                    "event_ignored {}: {word}",
                    stored.id
                );
                Ok(IgnoreResult::Ignored)
            }
            // A worker processed it meanwhile.
            Err(CommitError::LostRace) => Ok(IgnoreResult::Left),
            Err(CommitError::Unavailable(error)) => Err(error),
            // The row is damaged: log it and continue with the other events.
            Err(error @ CommitError::Refused(_)) => {
                log_event_error(&stored, "event_not_ignored", &error_chain(&error));
                Ok(IgnoreResult::Left)
            }
            Err(error @ CommitError::Busy(_)) => Err(DependencyError {
                doing: format!("ignore {}", stored.id),
                disposition: Disposition::RetryLater,
                cause: error_chain(&error).into(),
            }),
        }
    }
}

fn log_event_error(stored: &EventRecord, what: &str, cause: &str) {
    let id = &stored.id;
    tracing::error!(event_id = %id, "{what} {id}: {cause}; look at its row: billhook events show {id}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_as_written() {
        for text in [
            "stripe#arrived#1#2026-06-09",
            "stripe#pending",
            "lob#parked#2026-06-09T10:13:20.000Z#evt_1#2",
        ] {
            assert_eq!(SweepPosition::parse(text).unwrap().encode(), text);
        }
        for text in [
            "",
            "stripe",
            "stripe#failed",
            "stripe#arrived#0",
            "none#pending",
        ] {
            assert_eq!(SweepPosition::parse(text), None, "{text}");
        }
    }
}
