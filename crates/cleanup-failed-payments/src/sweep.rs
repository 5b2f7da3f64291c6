//! Open events are looked at again, each at every age that `billhook_core::sweep` names.
//!
//! Guarantees: an age that an event passes between two completed runs is acted upon at least once, and once if nothing
//! fails; a message sent twice changes nothing. It never marks an event failed.

use std::collections::{BTreeMap, BTreeSet};

use billhook_adapters::metrics;
use billhook_core::ids::{EventId, Provider};
use billhook_core::inbox::{IgnoreReason, Outcome, Stored, Verdict};
use billhook_core::jobs::{Progress, SWEEP};
use billhook_core::pointer::{Pointer, Source};
use billhook_core::ports::{
    Clock, Commit, CommitError, Concluded, FindOpenEvents, KeepProgress, Kept, Ledger, OpenEvent,
    Payload, PaymentKey, SendMessage, Unavailable,
};
use billhook_core::retry::{Disposition, chain};
use billhook_core::route;
use billhook_core::sweep::{FIRST_LOOK, Open, STUCK, Step, Window};
use billhook_core::time::Timestamp;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use crate::{Failed, is_late, unavailable};

/// Events read from the index at once; those that a run concerns are then read from the table.
const PAGE: usize = 100;
/// Payloads in memory at once, each of 1 MiB at most.
const PAYLOADS: usize = 10;
/// Messages and updates under way at once.
const STEPS_AT_ONCE: usize = 8;
/// The rest of the pass that was cut, and one up to now.
const PASSES_MAX: u32 = 2;
/// What is gone through, in this order.
const LANES: [(Provider, Outcome); 4] = [
    (Provider::Stripe, Outcome::Pending),
    (Provider::Stripe, Outcome::Parked),
    (Provider::Lob, Outcome::Pending),
    (Provider::Lob, Outcome::Parked),
];

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// `sweep`.
    pub task: &'static str,
    /// Open events whose time had come.
    pub looked_at: usize,
    /// Sent to their worker again.
    pub sent: usize,
    /// What no queue takes: their rows are spoilt.
    pub refused: usize,
    /// `unlinked` ones that nothing bears yet.
    pub waiting: usize,
    /// Given up on.
    pub ignored: usize,
    /// Events that are pending for more than an hour.
    pub stuck: usize,
    /// Events that have now waited a day for a tenant, an order, a statement or a letter.
    pub overdue: usize,
    /// Whether the run came to the end; else the next goes on.
    pub completed: bool,
}

/// Everything the task needs.
#[derive(Debug)]
pub struct Sweep<L, Q, J, C> {
    /// Stripe's events and what they concern.
    pub stripe: L,
    /// Lob's.
    pub lob: L,
    /// Where pointers go.
    pub queue: Q,
    /// How far earlier runs came.
    pub jobs: J,
    /// Time and identifiers.
    pub clock: C,
    /// The stage's mode.
    pub live_mode: bool,
}

/// Where a pass stands: in a lane, after an event of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    lane: (Provider, Outcome),
    after: Option<OpenEvent>,
}

impl Place {
    const FIRST: Self = Self {
        lane: LANES[0],
        after: None,
    };

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '#');
        let (provider, outcome) = (parts.next()?, parts.next()?);
        let lane = LANES
            .into_iter()
            .find(|lane| (lane.0.as_str(), lane.1.as_str()) == (provider, outcome))?;
        let after = match (parts.next(), parts.next()) {
            (Some(received_at), Some(id)) => Some(OpenEvent {
                id: EventId::parse(id).ok()?,
                received_at: Timestamp::parse(received_at).ok()?,
            }),
            _ => None,
        };
        Some(Self { lane, after })
    }

    fn text(&self) -> String {
        let lane = format!("{}#{}", self.lane.0, self.lane.1);
        match &self.after {
            Some(event) => format!("{lane}#{}#{}", event.received_at, event.id),
            None => lane,
        }
    }
}

impl<L, Q, J, C> Sweep<L, Q, J, C>
where
    L: Ledger + FindOpenEvents,
    Q: SendMessage,
    J: KeepProgress,
    C: Clock,
{
    /// One run: the rest of the pass that was cut, if one was, and then a pass up to now.
    pub async fn run(&self, deadline: Timestamp) -> Result<Summary, Failed> {
        let mut summary = Summary {
            task: "sweep",
            ..Summary::default()
        };
        self.count_stuck(&mut summary).await?;
        let read = self.jobs.progress(SWEEP).await;
        let mut progress = read.map_err(unavailable("read how far the last run came"))?;
        for _ in 0..PASSES_MAX {
            let was_cut = progress.cut.is_some();
            let now_s = self.clock.now().unix_s();
            let cut = progress.cut.as_ref();
            let until_s = cut.map_or(now_s, |cut| cut.until_s);
            let mut place = cut
                .and_then(|cut| Place::parse(&cut.after))
                .unwrap_or(Place::FIRST);
            let passed = self
                .pass(&progress, until_s, &mut place, &mut summary, deadline)
                .await;
            let next = match &passed {
                Ok(true) => Progress::done(until_s),
                Ok(false) | Err(_) => progress.cut(until_s, place.text()),
            };
            let kept = self.jobs.keep(SWEEP, &progress, &next).await;
            let is_kept = kept.map_err(unavailable("keep how far this run came"))?;
            summary.completed = passed?;
            // Where another run was faster, the rest is its business.
            if !(summary.completed && was_cut && is_kept) {
                break;
            }
            progress = next;
        }
        Ok(summary)
    }

    async fn count_stuck(&self, summary: &mut Summary) -> Result<(), Failed> {
        let until = self.clock.now().before(STUCK);
        for provider in [Provider::Stripe, Provider::Lob] {
            let count = self.ledger(provider).count_open(Outcome::Pending, until);
            let count = count.await.map_err(unavailable("count stuck events"))?;
            if count > 0 {
                tracing::error!(
                    provider = %provider,
                    count,
                    "stuck_events {count} of {provider} are pending for more than an hour"
                );
            }
            summary.stuck += count;
            // Zero too: an alarm that hears nothing is not known to be well.
            metrics::STUCK_EVENTS.add(provider, u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Goes on from `place`, and says whether it came to the end. `place` is where everything before is done.
    async fn pass(
        &self,
        progress: &Progress,
        until_s: i64,
        place: &mut Place,
        summary: &mut Summary,
        deadline: Timestamp,
    ) -> Result<bool, Failed> {
        let moment = |second| Timestamp::from_unix_s(second).ok();
        let window = Window {
            after: progress.created_s.and_then(moment),
            until: moment(until_s).unwrap_or_else(|| self.clock.now()),
        };
        let first = place.lane;
        for lane in LANES.into_iter().skip_while(|lane| *lane != first) {
            if place.lane != lane {
                *place = Place { lane, after: None };
            }
            loop {
                if is_late(&self.clock, deadline) {
                    return Ok(false);
                }
                let until = window.until.before(FIRST_LOOK);
                let open =
                    self.ledger(lane.0)
                        .open_events(lane.1, until, place.after.as_ref(), PAGE);
                let page = open.await.map_err(unavailable("find open events"))?;
                let concerned = page.events.iter();
                let concerned = concerned
                    .filter(|event| window.concerns(event.received_at))
                    .map(|event| event.id.clone())
                    .collect();
                self.look_at(lane.0, concerned, window, summary)
                    .await
                    .map_err(unavailable("look at open events"))?;
                place.after = page.next;
                if place.after.is_none() {
                    break;
                }
            }
        }
        Ok(true)
    }

    fn ledger(&self, provider: Provider) -> &L {
        match provider {
            Provider::Stripe => &self.stripe,
            Provider::Lob => &self.lob,
        }
    }

    async fn look_at(
        &self,
        provider: Provider,
        ids: BTreeSet<EventId>,
        window: Window,
        summary: &mut Summary,
    ) -> Result<(), Unavailable> {
        if ids.is_empty() {
            return Ok(());
        }
        let (mut sending, mut asking, mut giving_up) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (stored, reason) in self.ledger(provider).reasons(&ids).await? {
            let Some(received_at) = stored.received_at.filter(|_| !stored.processed) else {
                continue;
            };
            let open = Open {
                outcome: stored.outcome,
                reason: reason.as_deref(),
                received_at,
            };
            if open.alarms(window) {
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
            match open.step(window) {
                Step::Leave => continue,
                Step::Send => sending.push(stored),
                Step::SendIfBorne => {
                    asking.insert(stored.id.clone(), stored);
                }
                Step::Ignore(reason) => giving_up.push((stored, reason)),
            }
            summary.looked_at += 1;
        }
        let asked = asking.len();
        let borne = self.borne(provider, asking).await?;
        summary.waiting += asked - borne.len();
        sending.extend(borne);
        let sent: Vec<bool> = stream::iter(sending)
            .map(|stored| self.send(provider, stored))
            .buffer_unordered(STEPS_AT_ONCE)
            .try_collect()
            .await?;
        let done = sent.iter().filter(|sent| **sent).count();
        summary.sent += done;
        summary.refused += sent.len() - done;
        let ignored: Vec<bool> = stream::iter(giving_up)
            .map(|(stored, reason)| self.ignore(provider, stored, reason))
            .buffer_unordered(STEPS_AT_ONCE)
            .try_collect()
            .await?;
        summary.ignored += ignored.into_iter().filter(|ignored| *ignored).count();
        Ok(())
    }

    /// Whether the queue took it. One that it never will must not keep the others from being sent.
    async fn send(&self, provider: Provider, stored: Stored) -> Result<bool, Unavailable> {
        let deduplication_id = stored.another_message(self.clock.new_id());
        let body = Pointer::to(&stored, Source::Sweep);
        let sent = self
            .queue
            .send(provider, &stored.group, &deduplication_id, &body);
        match sent.await {
            Ok(()) => {}
            Err(error) if error.disposition == Disposition::Permanent => {
                told(&stored, "event_not_sent", &chain(&error));
                return Ok(false);
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
        Ok(true)
    }

    /// Those whose PaymentIntent is borne by something now, and those of which that cannot be told: their worker says
    /// what is wrong with them.
    async fn borne(
        &self,
        provider: Provider,
        mut asking: BTreeMap<EventId, Stored>,
    ) -> Result<Vec<Stored>, Unavailable> {
        let ledger = self.ledger(provider);
        let mut by_payment: BTreeMap<PaymentKey, Vec<Stored>> = BTreeMap::new();
        let mut borne = Vec::new();
        let ids: Vec<EventId> = asking.keys().cloned().collect();
        for ids in ids.chunks(PAYLOADS) {
            let kept = ledger
                .events(provider, &ids.iter().cloned().collect())
                .await?;
            for kept in kept {
                let Some(stored) = asking.remove(&kept.stored.id) else {
                    continue;
                };
                match self.payment(provider, &kept) {
                    Some(payment) => by_payment.entry(payment).or_default().push(stored),
                    None => borne.push(stored),
                }
            }
        }
        let rows = ledger
            .rows(&[].into(), &by_payment.keys().cloned().collect())
            .await?;
        let is_linked = |payment: &PaymentKey| {
            let row = rows.payments.get(payment);
            row.is_some_and(|row| row.entity.is_some())
        };
        let found: Vec<Vec<Stored>> = stream::iter(by_payment)
            .map(async |(payment, events)| {
                let is_borne = is_linked(&payment)
                    || !ledger.bearing_intent(&payment.intent).await?.is_empty();
                Ok::<_, Unavailable>(if is_borne { events } else { Vec::new() })
            })
            .buffer_unordered(STEPS_AT_ONCE)
            .try_collect()
            .await?;
        borne.extend(found.into_iter().flatten());
        Ok(borne)
    }

    fn payment(&self, provider: Provider, kept: &Kept) -> Option<PaymentKey> {
        let Payload::Intact(payload) = &kept.payload else {
            return None;
        };
        let account = kept.stored.account.as_ref();
        let claim = route::read(provider, self.live_mode, account, payload).ok()?;
        Some(PaymentKey {
            account: account.cloned(),
            intent: claim.intent?,
        })
    }

    /// Whether it was still open.
    async fn ignore(
        &self,
        provider: Provider,
        stored: Stored,
        reason: IgnoreReason,
    ) -> Result<bool, Unavailable> {
        let commit = Commit {
            entity: None,
            events: vec![Concluded {
                event: stored.id.clone(),
                tenant: None,
                verdict: Verdict::Ignored(reason),
                waited: false,
            }],
            payments: Vec::new(),
            now: self.clock.now(),
        };
        match self.ledger(provider).commit(provider, &[commit]).await {
            Ok(()) => {
                let word = reason.as_str();
                tracing::info!(
                    event_id = %stored.id,
                    reason = word,
                    "event_ignored {}: {word}",
                    stored.id
                );
                Ok(true)
            }
            // A worker was faster.
            Err(CommitError::LostRace) => Ok(false),
            Err(CommitError::Unavailable(error)) => Err(error),
            // Its row is spoilt, which is no reason to leave others alone.
            Err(error @ CommitError::Refused(_)) => {
                told(&stored, "event_not_ignored", &chain(&error));
                Ok(false)
            }
            Err(error @ CommitError::Busy(_)) => Err(Unavailable {
                doing: format!("ignore {}", stored.id),
                disposition: Disposition::RetryLater,
                cause: chain(&error).into(),
            }),
        }
    }
}

fn told(stored: &Stored, what: &str, cause: &str) {
    let id = &stored.id;
    tracing::error!(event_id = %id, "{what} {id}: {cause}; look at its row: billhook events show {id}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_as_written() {
        for text in [
            "stripe#pending",
            "lob#parked#2026-06-09T10:13:20.000Z#evt_1#2",
        ] {
            assert_eq!(Place::parse(text).unwrap().text(), text);
        }
        assert_eq!(Place::parse("stripe#failed"), None);
    }
}
