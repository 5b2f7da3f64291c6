//! The sweep's second half: it comes to the rows of the application 10 minutes and a day after each write of their states,
//! and writes them again if they no longer are what their states say.
//!
//! It has a checkpoint of its own, and one pass covers at most an hour: rows that cannot be read keep no event waiting,
//! and what an outage left is done hour by hour, in bounded memory. A pass that fails is repeated from its beginning,
//! which costs reads and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use billhook_adapters::report::{report_entity_commit, report_row_not_restored};
use billhook_core::entity::key::StateKey;
use billhook_core::entity::projection::RowStanding;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::error::{DependencyError, error_chain};
use billhook_core::ids::ProviderId;
use billhook_core::intake::ports::SendMessage;
use billhook_core::ports::Clock;
use billhook_core::tasks::checkpoint::Checkpoint;
use billhook_core::tasks::ports::{
    CheckpointSaveResult, CheckpointStore, FindOpenStates, FindUnfinishedEvents,
};
use billhook_core::tasks::sweep::{ARRIVAL_AGES, FIRST_PASS_SPAN, SweepWindow};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{CommitError, CommitPart, EntityWrite, Ledger};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::scheduled_task::{PassEnd, TaskFailed, fail_task, lacks_time_to_start};
use crate::tasks::sweep::{SweepSummary, SweepTask, days_of};

/// The key of the checkpoint.
const JOB: &str = "sweep-rows";
/// What one pass covers at most, but for the first.
const PASS_MAX: Duration = Duration::from_hours(1);
/// Entities that are read together, each with its state and its row.
const ENTITIES_AT_ONCE: usize = 50;
const READS_AT_ONCE: usize = 4;
/// Rounds for a row that somebody else writes at the same time.
const ROUNDS_MAX: usize = 3;

/// What became of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowEnd {
    /// It is what its state says, or must not be written.
    Left,
    /// An older copy was in its place.
    Restored,
    /// It was written for another reason: an edit became a fact, or was overruled.
    Written,
    /// Somebody else wrote it between our read and our write.
    LostRace,
}

impl<L, Q, J, C> SweepTask<L, Q, J, C>
where
    L: Ledger + FindUnfinishedEvents + FindOpenStates,
    Q: SendMessage,
    J: CheckpointStore,
    C: Clock,
{
    /// Comes to all rows whose states were written up to now, hour by hour.
    pub(super) async fn restore_rows(
        &self,
        summary: &mut SweepSummary,
        deadline: Timestamp,
    ) -> Result<PassEnd, TaskFailed> {
        let read = self.jobs.load_checkpoint(JOB).await;
        let mut checkpoint = read.map_err(fail_task("load the checkpoint of rows"))?;
        loop {
            if lacks_time_to_start(&self.clock, deadline) {
                return Ok(PassEnd::Interrupted);
            }
            let now = self.clock.now();
            let done_through = checkpoint.done_through_s;
            let done_through = done_through.and_then(|second| Timestamp::from_unix_s(second).ok());
            let (after, until) = match done_through {
                Some(after) => (after, after.after(PASS_MAX).min(now)),
                // The days of a stack's first pass have hardly anything, and hour by hour they take thousands of queries.
                None => (now.before(FIRST_PASS_SPAN), now),
            };
            let window = SweepWindow {
                after: Some(after),
                until,
            };
            let end = self.restore_window(window, summary, deadline).await;
            if end.map_err(fail_task("restore rows"))? == PassEnd::Interrupted {
                return Ok(PassEnd::Interrupted);
            }
            let next = Checkpoint::completed_through(until.unix_s());
            let saved = self.jobs.save_checkpoint(JOB, &checkpoint, &next).await;
            let saved = saved.map_err(fail_task("save the checkpoint of rows"))?;
            // Superseded: another run does the rest.
            if saved == CheckpointSaveResult::Superseded || until == now {
                return Ok(PassEnd::Completed);
            }
            checkpoint = next;
        }
    }

    async fn restore_window(
        &self,
        window: SweepWindow,
        summary: &mut SweepSummary,
        deadline: Timestamp,
    ) -> Result<PassEnd, DependencyError> {
        let due = self.find_rows(window).await?;
        let due: Vec<(EntityKey, ProviderId)> = due.into_iter().collect();
        let mut reading = stream::iter(due.chunks(ENTITIES_AT_ONCE))
            .map(
                async |rows| match lacks_time_to_start(&self.clock, deadline) {
                    true => Ok(None),
                    false => self.restore_all(rows).await.map(Some),
                },
            )
            .buffer_unordered(READS_AT_ONCE);
        let mut pass = PassEnd::Completed;
        while let Some(ends) = reading.try_next().await? {
            match ends {
                Some(ends) => {
                    let restored = ends.iter().filter(|end| **end == RowEnd::Restored);
                    summary.restored += restored.count();
                }
                None => pass = PassEnd::Interrupted,
            }
        }
        Ok(pass)
    }

    /// The rows to come to in this window, each with the provider whose metrics count it.
    async fn find_rows(
        &self,
        window: SweepWindow,
    ) -> Result<BTreeMap<EntityKey, ProviderId>, DependencyError> {
        // One table has the states of all providers.
        let states = self.ledgers.of(ProviderId::Stripe);
        let mut found = BTreeMap::new();
        for (entity, since) in states.troubled_entities().await? {
            if window.includes(since) {
                found.insert(entity, ProviderId::Stripe);
            }
        }
        for age in ARRIVAL_AGES {
            let span = window.arrivals_at(age);
            for entity in states.recent_entities(span).await? {
                found.insert(entity, ProviderId::Stripe);
            }
            for (provider, ledger) in self.ledgers.iter() {
                for day in days_of(span) {
                    let arrived = ledger.arrived_events(&day, span).await?;
                    let entities = arrived.into_iter().flat_map(|event| event.entities);
                    let entities = entities.filter_map(StateKey::into_entity);
                    found.extend(entities.map(|entity| (entity, provider)));
                }
            }
        }
        Ok(found)
    }

    async fn restore_all(
        &self,
        rows: &[(EntityKey, ProviderId)],
    ) -> Result<Vec<RowEnd>, DependencyError> {
        let mut left: BTreeMap<EntityKey, ProviderId> = rows.iter().cloned().collect();
        let mut ends = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let keys: BTreeSet<StateKey> = left.keys().cloned().map(StateKey::Entity).collect();
            let loaded = self.ledgers.of(ProviderId::Stripe).load_rows(&keys).await?;
            let mut lost = BTreeMap::new();
            for (entity, row) in loaded.entities.values() {
                let key = entity.key();
                let provider = left.get(&key).copied().unwrap_or(ProviderId::Stripe);
                match self.restore_row(provider, entity, row).await? {
                    RowEnd::LostRace => drop(lost.insert(key, provider)),
                    end => ends.push(end),
                }
            }
            left = lost;
            if left.is_empty() {
                return Ok(ends);
            }
        }
        // One row must not keep the others waiting.
        for (key, provider) in left {
            report_row_not_restored(provider, &key, "others wrote it in every round");
        }
        Ok(ends)
    }

    async fn restore_row(
        &self,
        provider: ProviderId,
        entity: &Entity,
        row: &L::Row,
    ) -> Result<RowEnd, DependencyError> {
        let now = self.clock.now();
        if let Some(reason) = entity.write_refusal() {
            report_row_not_restored(provider, &entity.key(), reason.as_str());
            return Ok(RowEnd::Left);
        }
        let next = entity.apply_facts([], now);
        if !L::changes_row(entity, row, &next, now) && !next.changes_trouble(entity) {
            return Ok(RowEnd::Left);
        }
        let end = match next.standing() {
            RowStanding::Stale { .. } => RowEnd::Restored,
            _ => RowEnd::Written,
        };
        let part = CommitPart {
            entities: vec![EntityWrite { entity, row, next }],
            states: Vec::new(),
            events: Vec::new(),
            now,
        };
        match self.ledgers.of(provider).commit(provider, &[&part]).await {
            Ok(()) => {
                for commit in part.entity_commits() {
                    report_entity_commit(provider, &commit);
                }
                Ok(end)
            }
            Err(CommitError::LostRace | CommitError::Busy(_)) => Ok(RowEnd::LostRace),
            Err(CommitError::Unavailable(error)) => Err(error),
            // One row must not keep the others waiting.
            Err(error @ CommitError::Refused(_)) => {
                report_row_not_restored(provider, &entity.key(), &error_chain(&error));
                Ok(RowEnd::Left)
            }
        }
    }
}
