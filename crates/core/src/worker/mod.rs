//! The worker: processes a batch of queue messages and returns one report per message (partial batch response), plus
//! one per event that waited for another message's event.
//!
//! It works in rounds with an optimistic lock instead of leases: each round reads every unfinished event and its
//! entity, decides, and writes on condition that nothing changed since the read. An event that loses a race is
//! unfinished in the next round. Guarantees: a message is reported as done only if its event was read as processed or
//! this worker wrote its outcome; one bad record never stops another. Not guaranteed: processing order (facts merge in
//! any order, `entity::merge`). Read next: `resolve` finds the entity of an event, `commit` writes it, `batch` has the
//! limits.

pub mod batch;
mod commit;
pub mod ports;
mod resolve;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt as _};

use crate::entity::EntityKey;
use crate::ids::{CorrelationId, EventId, TenantId};
use crate::intake::inbox::EventRecord;
use crate::intake::message::ReceivedPointer;
use crate::outcome::{EventVerdict, ParkReason};
use crate::ports::{Clock, Pause};
use crate::provider::interpret;
use crate::provider::interpret::EventFacts;
use crate::time::Timestamp;
use crate::worker::batch::{
    EventCandidate, EventDisposition, MessageReport, ProcessingFailure, ProcessingSuccess,
    RECEIVES_MAX, ReceivedMessage, RoundOutcome, TIME_TO_FINISH, Worker,
};
use crate::worker::ports::{EventUpdate, Ledger, PaymentKey, StoredEvent, StoredPayload};
use crate::worker::resolve::EntityMatch;

/// Rounds within one receive of a message. After the fifth the worker reports the message as failed, and the queue
/// delivers it again 60 s later: then the cause is more likely an outage than a race.
const ROUNDS_MAX: u32 = 5;

/// An event that needs another round, and why the last one did not finish it.
struct RoundEvent {
    receive_count: u32,
    stored: Option<EventRecord>,
    failure: ProcessingFailure,
}

struct FinishedEvent {
    stored: Option<EventRecord>,
    tenant: Option<TenantId>,
    entity: Option<EntityKey>,
    done: ProcessingSuccess,
}

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    /// Processes a batch in at most 5 rounds. Starts no round and no transaction within [`TIME_TO_FINISH`] of
    /// `deadline`; only failures are still marked.
    ///
    /// When `late` completes, the calls in progress are abandoned and their messages reported as failed. Without that,
    /// one call that hangs would run into Lambda's timeout, and all ten messages of the batch would be received again.
    pub async fn process_batch(
        &self,
        messages: &[ReceivedMessage],
        deadline: Timestamp,
        late: impl Future<Output = ()>,
    ) -> Vec<MessageReport> {
        let mut late = std::pin::pin!(late);
        let mut is_late = false;
        let mut named: BTreeMap<EventId, Vec<(&ReceivedMessage, Option<CorrelationId>)>> =
            BTreeMap::new();
        let mut reports = Vec::new();
        for message in messages {
            match ReceivedPointer::parse(self.provider, &message.body) {
                Some(pointer) => {
                    let from_message = pointer.correlation_id.as_deref();
                    let from_message = from_message.and_then(CorrelationId::parse);
                    named
                        .entry(pointer.event_id)
                        .or_default()
                        .push((message, from_message));
                }
                None => reports.push(MessageReport {
                    message: Some(message.clone()),
                    event: None,
                    correlation_id: None,
                    stored: None,
                    tenant: None,
                    entity: None,
                    result: Err(ProcessingFailure::Unreadable),
                }),
            }
        }
        let mut open: BTreeMap<EventId, RoundEvent> = named
            .iter()
            .map(|(id, messages)| {
                let receive_count = messages
                    .iter()
                    .map(|(m, _)| m.receive_count)
                    .max()
                    .unwrap_or(1);
                (
                    id.clone(),
                    RoundEvent {
                        receive_count,
                        stored: None,
                        failure: ProcessingFailure::OutOfTime,
                    },
                )
            })
            .collect();
        let mut finished: BTreeMap<EventId, FinishedEvent> = BTreeMap::new();
        for round in 0..ROUNDS_MAX {
            if open.is_empty() || self.lacks_time_to_start(deadline) {
                break;
            }
            if round > 0 {
                // Exponential backoff: 50, 100, 200, 400 ms, so that the other writer can finish.
                self.clock.pause(Duration::from_millis(25 << round)).await;
            }
            let found = RoundOutcome::default();
            {
                let round = std::pin::pin!(self.run_round(&mut open, deadline, &found));
                is_late = matches!(select(round, late.as_mut()).await, Either::Right(_));
            }
            for finding in found.into_all() {
                match finding.result {
                    Ok(done) => {
                        let stored = open.remove(&finding.event).and_then(|open| open.stored);
                        let end = FinishedEvent {
                            stored: stored.or(finding.released),
                            tenant: finding.tenant,
                            entity: finding.entity,
                            done,
                        };
                        finished.insert(finding.event, end);
                    }
                    Err(failure) => {
                        if let Some(open) = open.get_mut(&finding.event) {
                            open.failure = failure;
                        }
                    }
                }
            }
            if is_late {
                break;
            }
        }
        // If it is late, there is no time for this write: the events stay pending, and the sweep retries them.
        if !is_late {
            self.mark_failed(&open).await;
        }
        for (id, messages) in named {
            let end = finished.remove(&id);
            for (message, correlation_id) in messages {
                reports.push(MessageReport {
                    message: Some(message.clone()),
                    ..build_report(id.clone(), correlation_id, end.as_ref(), open.get(&id))
                });
            }
        }
        // What remains had no message in this batch: events that waited for a payment which the batch linked.
        for (id, end) in &finished {
            reports.push(build_report(id.clone(), None, Some(end), None));
        }
        reports
    }

    fn lacks_time_to_start(&self, deadline: Timestamp) -> bool {
        self.clock.now().after(TIME_TO_FINISH) > deadline
    }

    /// One round: read, decide, write. It never returns an error: it adds what it learns about each event to `found`,
    /// and an event without a final outcome is unfinished in the next round.
    ///
    /// 1. Read the unfinished events, consistently. A missing row fails its message (`NotStored`); a row that is
    ///    already processed is done (a redelivered message, or a worker that was faster).
    /// 2. Interpret each payload into facts. A panic on one event fails only that event.
    /// 3. Find the tenant of each account, then the entity of each event (`resolve`): two reads of rows, and one query
    ///    per payment or piece that the rows do not place.
    /// 4. Park events whose payment no entity has yet, and leave their ids in the payments row for the later link.
    /// 5. Merge, derive and commit the entities (`commit`).
    /// 6. Write the outcome of every event that changes no entity.
    ///
    /// Why rounds: between read and write another worker, the cleanup or a person may change the row. Then the
    /// decision is based on old facts, so the worker must not repeat the write but read and decide again. Example: two
    /// payments of one order have different message groups, so two workers can get them at the same moment.
    ///
    /// ```text
    ///  ms   worker A (evt_a of pi_1)              worker B (evt_b of pi_2)
    ///   0   reads ord_1: version 7
    ///   2                                         reads ord_1: version 7
    ///  10   writes version 7 → 8, evt_a processed
    ///  12                                         writes 7 → 8: condition fails, nothing is written (LostRace)
    ///  62                                         round 2, after 50 ms: reads ord_1: version 8, with facts of evt_a
    ///  70                                         writes version 8 → 9, evt_b processed: the row has both facts
    /// ```
    ///
    /// If A and B have the same event, the condition on the event fails instead, and in round 2 B reads it as
    /// processed. If B wrote and only lost the answer, round 2 finds the same: nothing is applied twice.
    async fn run_round(
        &self,
        open: &mut BTreeMap<EventId, RoundEvent>,
        deadline: Timestamp,
        found: &RoundOutcome,
    ) {
        let ids: BTreeSet<EventId> = open.keys().cloned().collect();
        let all_failed = |ids: &BTreeSet<EventId>, failure: &ProcessingFailure| {
            ids.iter()
                .map(|id| EventDisposition::failed(id, failure.clone()))
                .collect::<Vec<_>>()
        };
        let loaded = match self.ledger.load_events(self.provider, &ids).await {
            Ok(loaded) => loaded,
            Err(error) => return found.add(all_failed(&ids, &error.into())),
        };
        for (id, open) in open.iter_mut() {
            open.stored = loaded
                .iter()
                .find(|loaded| loaded.stored.id == *id)
                .map(|loaded| loaded.stored.clone());
        }
        found.add(all_failed(
            &ids.into_iter()
                .filter(|id| !loaded.iter().any(|loaded| loaded.stored.id == *id))
                .collect(),
            &ProcessingFailure::NotStored,
        ));

        let mut candidates = Vec::new();
        let mut verdicts = Vec::new();
        for loaded in loaded {
            let id = loaded.stored.id.clone();
            if loaded.stored.processed {
                let done = ProcessingSuccess::AlreadyDone(loaded.stored.outcome);
                found.add([EventDisposition::new(&id, Ok(done))]);
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| self.interpret_stored(&loaded))) {
                Ok(Ok(event)) => {
                    candidates.push(EventCandidate {
                        stored: loaded.stored,
                        event,
                        tenant: None,
                        waited: false,
                        row_bytes: loaded.row_bytes,
                    });
                }
                Ok(Err(verdict)) => verdicts.push(EventUpdate {
                    event: id,
                    tenant: None,
                    verdict,
                    waited: false,
                }),
                Err(_) => found.add([EventDisposition::failed(&id, ProcessingFailure::Panicked)]),
            }
        }
        let candidates = self.assign_tenants(candidates, &mut verdicts, found).await;
        match self.resolve_batch(&candidates).await {
            Ok((targets, rows)) => {
                let mut groups: BTreeMap<EntityKey, Vec<EventCandidate>> = BTreeMap::new();
                let mut waits: BTreeMap<Option<PaymentKey>, Vec<EventCandidate>> = BTreeMap::new();
                for (candidate, target) in candidates.into_iter().zip(targets) {
                    match target {
                        EntityMatch::Entity(key) => groups.entry(key).or_default().push(candidate),
                        EntityMatch::NoEntity(EventVerdict::Parked(ParkReason::Unlinked)) => {
                            waits
                                .entry(candidate.payment())
                                .or_default()
                                .push(candidate);
                        }
                        EntityMatch::LookupFailed(cause) => {
                            let failure = ProcessingFailure::Infrastructure(cause);
                            found.add([EventDisposition::failed(&candidate.stored.id, failure)]);
                        }
                        EntityMatch::NoEntity(verdict) => {
                            verdicts.push(candidate.event_update(verdict))
                        }
                    }
                }
                for (payment, group) in waits {
                    found.add(self.park_unlinked(payment, group, &rows).await);
                }
                verdicts.extend(self.commit_entities(groups, &rows, deadline, found).await);
            }
            Err(error) => {
                let ids = candidates
                    .into_iter()
                    .map(|candidate| candidate.stored.id)
                    .collect();
                found.add(all_failed(&ids, &error.into()));
            }
        }
        let updating = verdicts
            .into_iter()
            .map(|update| self.commit_event_update(update));
        found
            .add_each(stream::iter(updating).map(|ending| async { [ending.await] }))
            .await;
    }

    fn interpret_stored(&self, loaded: &StoredEvent) -> Result<EventFacts, EventVerdict> {
        match &loaded.payload {
            StoredPayload::Intact(payload) => interpret(
                self.provider,
                self.live_mode,
                loaded.stored.account.as_ref(),
                payload,
            ),
            StoredPayload::Tampered => Err(EventVerdict::Parked(ParkReason::Tampered)),
            StoredPayload::Unreadable => Err(EventVerdict::Parked(ParkReason::PayloadUnreadable)),
        }
    }

    /// Marks events as `failed` on the last receive of their message, before the queue moves it to the dead-letter
    /// queue; on earlier receives the event stays as it is, because the queue delivers the message again. If this write
    /// fails too, the event stays pending and the sweep retries it.
    async fn mark_failed(&self, open: &BTreeMap<EventId, RoundEvent>) {
        for (id, open) in open {
            if open.receive_count < RECEIVES_MAX || open.stored.is_none() {
                continue;
            }
            let verdict = EventVerdict::Failed(open.failure.to_string());
            self.commit_event_update(EventUpdate {
                event: id.clone(),
                tenant: None,
                verdict,
                waited: false,
            })
            .await;
        }
    }
}

fn build_report(
    event: EventId,
    from_message: Option<CorrelationId>,
    finished: Option<&FinishedEvent>,
    open: Option<&RoundEvent>,
) -> MessageReport {
    let stored = match (finished, open) {
        (Some(end), _) => end.stored.clone(),
        (None, open) => open.and_then(|open| open.stored.clone()),
    };
    let first = stored.as_ref().and_then(|stored| stored.correlation_id);
    MessageReport {
        message: None,
        event: Some(event),
        correlation_id: from_message.or(first),
        tenant: finished.and_then(|end| end.tenant.clone()),
        entity: finished.and_then(|end| end.entity.clone()),
        result: match (finished, open) {
            (Some(end), _) => Ok(end.done.clone()),
            (None, Some(open)) => Err(open.failure.clone()),
            (None, None) => Err(ProcessingFailure::NotStored),
        },
        stored,
    }
}
