//! Commits the entities of a round: merges the facts of each entity's events, derives its columns (projection), and
//! writes entity, events and payments rows in one transaction, each row on condition that it is as it was read
//! (optimistic lock).
//!
//! All entities of a batch share one transaction (docs/adr/0005). If that fails, for whatever reason, each entity gets
//! its own transaction at once, so that no tenant's event fails because of another tenant's row. If the store refuses
//! an entity's transaction as too large, its events are halved. Guarantee: an event becomes `processed` only in the
//! transaction that writes its facts. The conditions are listed at the function `commit` below.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt as _};

use crate::entity::{Entity, EntityKey, EntityUpdate};
use crate::error::DependencyError;
use crate::ids::EventId;
use crate::outcome::{EventOutcome, EventVerdict, ParkReason};
use crate::ports::{Clock, Pause};
use crate::time::Timestamp;
use crate::worker::batch::{
    BYTES_PER_COMMIT_MAX, CALLS_AT_ONCE, COMMON_COMMIT_WAIT_MAX, EVENTS_PER_COMMIT_MAX,
    ProcessingFailure, ROWS_PER_COMMIT_MAX, ROWS_PER_ENTITY, TimeLeft, Worker,
};
use crate::worker::ports::{
    CommitError, CommitPart, EntityCommit, EventUpdate, Ledger, LoadedRows, PaymentKey, PaymentRow,
    PaymentWrite,
};
use crate::worker::step::{BatchProgress, EventCandidate, EventStep, catch_panic, fail_each};

/// The contents of one entity's transaction.
struct CommitPlan<'a, R> {
    entity: &'a Entity,
    row: &'a R,
    /// The batch's own events first, then the events that waited for its payments.
    group: Vec<EventCandidate>,
    /// How many of `group` are the batch's own.
    own: usize,
    /// The payments that this transaction links to the entity.
    links: Vec<(PaymentKey, PaymentRow)>,
}

impl<R> CommitPlan<'_, R> {
    fn row_count(&self) -> usize {
        ROWS_PER_ENTITY + self.group.len() + self.links.len()
    }

    fn event_bytes(&self) -> usize {
        self.group.iter().map(|candidate| candidate.row_bytes).sum()
    }

    fn derive_update(&self, now: Timestamp) -> EntityUpdate {
        let facts = self.group.iter().map(|event| event.event.facts.clone());
        let mut update = self.entity.apply_facts(facts, now);
        let events = self.group.iter();
        update.record_events(events.map(|event| (&event.stored.id, event.event.created_at)));
        update
    }

    fn build_part<'b>(&'b self, next: &'b EntityUpdate, now: Timestamp) -> CommitPart<'b, R> {
        let link = |(payment, row): &(PaymentKey, PaymentRow)| {
            let link = PaymentWrite::Link {
                entity: self.entity.key(),
                version: row.version,
            };
            (payment.clone(), link)
        };
        let update = |candidate: &EventCandidate| candidate.event_update(EventVerdict::Processed);
        CommitPart {
            entity: Some((self.entity, self.row, next)),
            events: self.group.iter().map(update).collect(),
            payments: self.links.iter().map(link).collect(),
            now,
        }
    }

    fn event_ids(&self) -> Vec<EventId> {
        event_ids(&self.group)
    }

    fn processed_steps(&self) -> impl Iterator<Item = EventStep<()>> {
        let (key, events) = (self.entity.key(), self.group.iter());
        events.map(move |candidate| candidate.processed(&key))
    }
}

/// How the transaction of all entities of a batch ended.
enum CommonCommit {
    Written(Vec<EntityCommit>),
    /// No verdict on any entity: they may not fit together, one row may have changed, the call may have failed, or it
    /// may still take effect after the wait.
    NotWritten,
}

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    /// Commits these events: each to its entity, or to the payments row in which it waits if it has none.
    pub(super) async fn commit_events(
        &self,
        ready: Vec<EventCandidate>,
        rows: &LoadedRows<L::Row>,
        deadline: Timestamp,
        progress: &mut BatchProgress,
    ) {
        let mut groups: BTreeMap<EntityKey, Vec<EventCandidate>> = BTreeMap::new();
        let mut waits: BTreeMap<Option<PaymentKey>, Vec<EventCandidate>> = BTreeMap::new();
        for candidate in ready {
            match candidate.entity.clone() {
                Some(key) => groups.entry(key).or_default().push(candidate),
                None => waits
                    .entry(candidate.payment())
                    .or_default()
                    .push(candidate),
            }
        }
        for (payment, group) in waits {
            progress.pass(self.park_unlinked(payment, &group, rows).await);
        }
        self.commit_entities(groups, rows, deadline, progress).await;
    }

    /// Decides and commits the events of these entities.
    ///
    /// How a refused batch is split, with three orders of which the row of `ord_2` was edited after the read:
    ///
    /// ```text
    /// transaction 1         ord_1 + ord_2 + ord_3   the condition on ord_2 fails, so nothing is written
    /// transactions 2 to 4   ord_1 | ord_2 | ord_3   ord_1 and ord_3 are written, ord_2 loses its race
    /// next round            ord_2                   is read again and written
    /// ```
    ///
    /// Whatever made the shared transaction fail, each entity is then tried alone: a timeout or a lost answer does not
    /// say which row was the cause.
    async fn commit_entities(
        &self,
        groups: BTreeMap<EntityKey, Vec<EventCandidate>>,
        rows: &LoadedRows<L::Row>,
        deadline: Timestamp,
        progress: &mut BatchProgress,
    ) {
        let planning = groups.into_iter().map(|(key, group)| async move {
            let ids = event_ids(&group);
            let planned = catch_panic(self.plan_commit(&key, group, rows)).await;
            planned.unwrap_or_else(|| fail_each(ids, &ProcessingFailure::Panicked))
        });
        let plans: Vec<CommitPlan<'_, L::Row>> = progress.pass_each(planning).await;
        if let Some(CommonCommit::Written(commits)) =
            catch_panic(self.commit_together(&plans, deadline)).await
        {
            let done = plans.iter().flat_map(CommitPlan::processed_steps);
            progress.pass(done);
            progress.commits.extend(commits);
            return;
        }
        // If the shared transaction was written and only its answer was lost, each of these fails its conditions, and
        // the next round reads the events as processed.
        let committing = plans.into_iter().map(|plan| async move {
            let ids = plan.event_ids();
            let committed = catch_panic(self.commit_alone(plan, rows, deadline)).await;
            committed.unwrap_or_else(|| (fail_each(ids, &ProcessingFailure::Panicked), Vec::new()))
        });
        let mut committing = stream::iter(committing).buffer_unordered(CALLS_AT_ONCE);
        while let Some((steps, commits)) = committing.next().await {
            progress.pass(steps);
            progress.commits.extend(commits);
        }
    }

    /// Plans one entity's transaction: cuts the events to what fits, and adds the events that waited for its payments.
    async fn plan_commit<'a>(
        &self,
        key: &EntityKey,
        mut group: Vec<EventCandidate>,
        rows: &'a LoadedRows<L::Row>,
    ) -> Vec<EventStep<CommitPlan<'a, L::Row>>> {
        let Some((entity, row)) = rows.entities.get(key) else {
            // `resolve` passes on only events whose entity was read.
            let missing = ProcessingFailure::Infrastructure(format!("{key} was not read"));
            return fail_each(event_ids(&group), &missing);
        };
        // What does not fit stays unfinished for the next round.
        let over = group.split_off(count_fitting(&group, L::row_bytes(row)));
        let mut steps = fail_each(event_ids(&over), &too_many_events());
        let links = find_new_links(entity, &group, rows);
        let own = group.len();
        match self.load_waiting_events(entity, &group, &links).await {
            Ok(waiting) => {
                group.extend(waiting);
                group.truncate(count_fitting(&group, L::row_bytes(row)).max(own));
                steps.push(EventStep::Ready(CommitPlan {
                    entity,
                    row,
                    group,
                    own,
                    links,
                }));
            }
            Err(error) => steps.extend(fail_each(event_ids(&group), &error.into())),
        }
        steps
    }

    /// Tries to write all plans in one transaction.
    async fn commit_together(
        &self,
        plans: &[CommitPlan<'_, L::Row>],
        deadline: Timestamp,
    ) -> CommonCommit {
        let rows: usize = plans.iter().map(CommitPlan::row_count).sum();
        let bytes: usize = plans
            .iter()
            .map(|plan| L::row_bytes(plan.row) + plan.event_bytes())
            .sum();
        let fit = rows <= ROWS_PER_COMMIT_MAX && bytes <= BYTES_PER_COMMIT_MAX;
        if plans.len() < 2 || !fit || self.time_left(deadline) == TimeLeft::TooLittle {
            return CommonCommit::NotWritten;
        }
        let committing = std::pin::pin!(self.commit(plans));
        let waiting = std::pin::pin!(self.clock.pause(COMMON_COMMIT_WAIT_MAX));
        match select(committing, waiting).await {
            Either::Left((Ok(commits), _)) => CommonCommit::Written(commits),
            Either::Left((Err(_), _)) | Either::Right(_) => CommonCommit::NotWritten,
        }
    }

    /// Commits the events of one entity: all of them, or as many as the store accepts.
    ///
    /// `Refused` does not say which event makes the row too large (the entity would pass 300 KiB, or DynamoDB rejects
    /// the item), so the events are halved. Example: e1 to e10, of which e3 alone is too large, and w1 waited:
    ///
    /// ```text
    /// e1 … e10, w1   refused   drop w1: the sweep sends it later
    /// e1 … e10       refused   e6 … e10 wait for the next round
    /// e1 … e5        refused   e3 e4 e5 wait for the next round
    /// e1 e2          written
    /// round 2 does the same with e3 … e10: … e3 alone is refused and parked as entity_too_large
    /// round 3        the other seven are written
    /// ```
    ///
    /// Without the halving one large event would park all ten.
    async fn commit_alone(
        &self,
        mut plan: CommitPlan<'_, L::Row>,
        rows: &LoadedRows<L::Row>,
        deadline: Timestamp,
    ) -> (Vec<EventStep<()>>, Vec<EntityCommit>) {
        if self.time_left(deadline) == TimeLeft::TooLittle {
            let late = fail_each(plan.event_ids(), &ProcessingFailure::OutOfTime);
            return (late, Vec::new());
        }
        let mut committed = self.commit(slice::from_ref(&plan)).await;
        if plan.group.len() > plan.own && matches!(committed, Err(CommitError::Refused(_))) {
            // First drop the events that waited: they came from other batches, and the sweep sends them again.
            plan.group.truncate(plan.own);
            committed = self.commit(slice::from_ref(&plan)).await;
        }
        let mut steps = Vec::new();
        // Halve until the transaction is accepted or one event is left, which is then the one that is too large.
        while plan.group.len() > 1 && matches!(committed, Err(CommitError::Refused(_))) {
            let rest = plan.group.split_off(plan.group.len() / 2);
            steps.extend(fail_each(event_ids(&rest), &too_many_events()));
            // Fewer events may link fewer payments: a payment is linked only together with an event that proves it.
            plan.links = find_new_links(plan.entity, &plan.group, rows);
            committed = self.commit(slice::from_ref(&plan)).await;
        }
        let mut commits = Vec::new();
        match committed {
            Ok(written) => {
                steps.extend(plan.processed_steps());
                commits = written;
            }
            Err(CommitError::Refused(_)) => {
                // Written at once, and not with the round's other verdicts: another entity's call may hang until the
                // time is up.
                for event in &plan.group {
                    let verdict = EventVerdict::Parked(ParkReason::EntityTooLarge);
                    steps.extend(self.write_outcome(event.event_update(verdict)).await);
                }
            }
            Err(error) => steps.extend(fail_each(plan.event_ids(), &error.into())),
        }
        (steps, commits)
    }

    /// Writes these plans in one transaction. Each row has its own condition, so it does not matter for safety which
    /// rows share a transaction:
    ///
    /// - state: its `version` is as read. Protects from another worker's or the cleanup's write.
    /// - application's row: its key, tenant, `version`, guarded columns and number of timeline entries are as read.
    ///   Protects from a manual edit (guarded columns: status, amount due …), an entry that the application appended
    ///   (timeline), a copy that the application put back (`version`), and a row that was deleted or moved to another
    ///   tenant.
    /// - event: `processed` is false. Protects from applying it twice when two workers have the same message.
    /// - event that waited: the outcome is not `processed`. The sweep may meanwhile have set it to `ignored` as
    ///   `never_linked`, and the link that now exists is worth more than that.
    /// - payments row: `version` is as read and no entity is linked. Protects from two orders that claim one payment,
    ///   and from an event that adds itself to `waiting` just as the payment is linked: the link would not release that
    ///   event, which would then wait for the sweep.
    async fn commit(
        &self,
        plans: &[CommitPlan<'_, L::Row>],
    ) -> Result<Vec<EntityCommit>, CommitError> {
        let now = self.clock.now();
        let nexts: Vec<EntityUpdate> = plans.iter().map(|plan| plan.derive_update(now)).collect();
        let parts = plans.iter().zip(&nexts);
        let parts: Vec<_> = parts
            .map(|(plan, next)| plan.build_part(next, now))
            .collect();
        self.ledger.commit(self.provider, &parts).await?;
        Ok(parts.iter().filter_map(CommitPart::entity_commit).collect())
    }

    /// Loads the events that waited for these payments, to commit them as if they had arrived in this batch: at most
    /// 50. The rest, and events that cannot be read, stay parked until the sweep sends them.
    ///
    /// Example: `charge.refunded` of `pi_1` arrives before the event that names `ord_1`. It is parked as `unlinked`,
    /// and its id goes into `waiting` of the payments row. The `payment_intent.succeeded` that names `ord_1` then
    /// commits both.
    async fn load_waiting_events(
        &self,
        entity: &Entity,
        group: &[EventCandidate],
        links: &[(PaymentKey, PaymentRow)],
    ) -> Result<Vec<EventCandidate>, DependencyError> {
        let mut waiting: BTreeSet<EventId> = links
            .iter()
            .flat_map(|(_, row)| row.waiting.iter().cloned())
            .collect();
        // An event that waited and was delivered again is in the batch itself; DynamoDB rejects a transaction that has
        // one row twice.
        for own in group {
            waiting.remove(&own.stored.id);
        }
        if waiting.is_empty() {
            return Ok(Vec::new());
        }
        let ids = waiting.into_iter().take(EVENTS_PER_COMMIT_MAX).collect();
        let loaded = self.ledger.load_events(self.provider, &ids).await?;
        let waiting = loaded
            .into_iter()
            .filter(|loaded| loaded.stored.outcome != EventOutcome::Processed)
            .filter_map(|loaded| self.interpret_event(loaded).into_ready().ok()?)
            .map(|event| EventCandidate {
                // The payments row's key contains the account, so the events that wait for it have the linking event's
                // account, and that event's tenant was checked to be the entity's (tenant isolation).
                tenant: event.stored.account.as_ref().and(entity.tenant().cloned()),
                waited: true,
                ..event
            });
        Ok(waiting.collect())
    }

    /// Parks events as `unlinked` and adds their ids to `waiting` of the payments row, where the event that links the
    /// payment finds them. Both in one transaction: if only the event's row were written and the other write failed,
    /// the link would not release the event, and it would wait for the sweep.
    async fn park_unlinked(
        &self,
        payment: Option<PaymentKey>,
        group: &[EventCandidate],
        rows: &LoadedRows<L::Row>,
    ) -> Vec<EventStep<()>> {
        let parked = |candidate: &EventCandidate| {
            candidate.event_update(EventVerdict::Parked(ParkReason::Unlinked))
        };
        let events: Vec<EventUpdate> = group.iter().map(parked).collect();
        let payments = payment.map(|payment| {
            let version = rows.payments.get(&payment).map_or(0, |row| row.version);
            let wait = PaymentWrite::Wait {
                events: event_ids(group).into_iter().collect(),
                version,
            };
            (payment, wait)
        });
        self.commit_updates(events, payments.into_iter().collect())
            .await
    }

    /// Writes the outcome of one event that changes no row but its own. This is a single update: a transaction costs
    /// twice.
    pub(super) async fn write_outcome(&self, update: EventUpdate) -> Vec<EventStep<()>> {
        self.commit_updates(vec![update], Vec::new()).await
    }

    async fn commit_updates(
        &self,
        events: Vec<EventUpdate>,
        payments: Vec<(PaymentKey, PaymentWrite)>,
    ) -> Vec<EventStep<()>> {
        let part = CommitPart {
            entity: None,
            events,
            payments,
            now: self.clock.now(),
        };
        let committed = self
            .ledger
            .commit(self.provider, slice::from_ref(&part))
            .await;
        let updates = part.events.into_iter();
        match committed {
            Ok(()) => updates.map(EventStep::written).collect(),
            Err(error) => fail_each(updates.map(|update| update.event), &error.into()),
        }
    }
}

/// How many of the first events fit into one transaction with an entity's rows. At least one, so that an event over the
/// limit is tried alone instead of never.
fn count_fitting(group: &[EventCandidate], entity_bytes: usize) -> usize {
    let mut bytes = entity_bytes;
    let fit = group.iter().take(EVENTS_PER_COMMIT_MAX).take_while(|next| {
        bytes = bytes.saturating_add(next.row_bytes);
        bytes <= BYTES_PER_COMMIT_MAX
    });
    fit.count().max(1).min(group.len())
}

fn too_many_events() -> ProcessingFailure {
    ProcessingFailure::Infrastructure("more events of one entity than fit a transaction".to_owned())
}

fn event_ids(group: &[EventCandidate]) -> Vec<EventId> {
    let ids = group.iter().map(|candidate| candidate.stored.id.clone());
    ids.collect()
}

/// The payments that this group links to the entity for the first time, with their rows as read. A payment that the
/// entity's facts already contain was linked by an earlier transaction, so its row is not written again.
fn find_new_links<R>(
    entity: &Entity,
    group: &[EventCandidate],
    rows: &LoadedRows<R>,
) -> Vec<(PaymentKey, PaymentRow)> {
    let payments: BTreeSet<PaymentKey> = group.iter().filter_map(EventCandidate::payment).collect();
    payments
        .into_iter()
        .filter(|key| {
            let known = entity.payment_facts();
            !known.is_some_and(|facts| facts.payments.contains_key(&key.payment))
        })
        .map(|payment| {
            let row = rows.payments.get(&payment).cloned().unwrap_or_default();
            (payment, row)
        })
        .filter(|(_, row)| row.entity.is_none())
        .collect()
}
