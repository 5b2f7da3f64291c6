//! Commits the units of a round: writes events, payments and entities of a unit in one transaction, each row on condition
//! that it is as it was read (optimistic lock). `plan` says what they contain.
//!
//! All units of a batch share one transaction (docs/adr/0005). If that fails, for whatever reason, each unit gets its own
//! transaction at once, so that no tenant's event fails because of another tenant's row. If the store refuses a unit's
//! transaction as too large, its events are halved. Guarantee: an event becomes `processed` only in the transaction that
//! writes its facts. The conditions are listed at the function `commit` below.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt as _};

use crate::ids::EventId;
use crate::outcome::{EventVerdict, ParkReason};
use crate::ports::{Clock, Pause};
use crate::time::Timestamp;
use crate::worker::batch::{
    BYTES_PER_COMMIT_MAX, CALLS_AT_ONCE, COMMON_COMMIT_WAIT_MAX, ProcessingFailure,
    ROWS_PER_COMMIT_MAX, ROWS_PER_ENTITY, TimeLeft, Worker,
};
use crate::worker::plan::{CommitUnit, plan_unit};
use crate::worker::ports::{
    CommitError, CommitPart, EntityCommit, EventUpdate, Ledger, LoadedRows, PaymentNotice,
};
use crate::worker::resolve::AccountTenants;
use crate::worker::step::{BatchProgress, EventStep, catch_panic, fail_each};

/// The transaction of one unit.
pub(super) struct CommitPlan<'a, R> {
    unit: CommitUnit,
    part: CommitPart<'a, R>,
}

impl<R> CommitPlan<'_, R> {
    fn row_count(&self) -> usize {
        let CommitPart {
            entities,
            states,
            events,
            ..
        } = &self.part;
        ROWS_PER_ENTITY * entities.len() + states.len() + events.len()
    }

    fn byte_count(&self, row_bytes: impl Fn(&R) -> usize) -> usize {
        let entities = self.part.entities.iter().map(|write| write.row);
        let states = self.part.states.iter().filter_map(|write| write.row);
        let rows: usize = entities.chain(states).map(row_bytes).sum();
        let events = self.unit.events.iter().map(|event| event.row_bytes);
        rows + events.sum::<usize>()
    }

    fn written_steps(&self) -> impl Iterator<Item = EventStep<()>> {
        self.part.events.iter().cloned().map(EventStep::written)
    }
}

fn event_ids(unit: &CommitUnit) -> Vec<EventId> {
    let ids = unit.events.iter().map(|event| event.stored.id.clone());
    ids.collect()
}

fn too_many_events() -> ProcessingFailure {
    let cause = "the events of one unit do not fit into one transaction".to_owned();
    ProcessingFailure::Infrastructure(cause)
}

/// What the transaction of one unit changed, and what somebody has to hear of.
#[derive(Default)]
pub(super) struct UnitCommit {
    pub(super) commits: Vec<EntityCommit>,
    pub(super) notices: Vec<PaymentNotice>,
}

/// How the transaction of all units of a batch ended.
enum CommonCommit {
    Written(Vec<EntityCommit>),
    /// No verdict on any unit: they may not fit together, one row may have changed, the call may have failed, or it may
    /// still take effect after the wait.
    NotWritten,
}

/// What the planning of a round rests on.
pub(super) struct RoundRows<'a, R> {
    pub(super) rows: &'a LoadedRows<R>,
    pub(super) tenants: &'a AccountTenants,
    pub(super) now: Timestamp,
}

impl<'a, R> RoundRows<'a, R> {
    /// `None` if it panicked: a bug that one record triggers must not fail the other records of the batch.
    fn plan(&self, unit: CommitUnit) -> Result<CommitPlan<'a, R>, CommitUnit> {
        let part = catch_unwind(AssertUnwindSafe(|| {
            plan_unit(&unit, self.rows, self.tenants, self.now)
        }));
        match part {
            Ok(part) => Ok(CommitPlan { unit, part }),
            Err(_) => Err(unit),
        }
    }
}

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    /// Plans and commits these units.
    ///
    /// How a refused batch is split, with three orders of which the row of `ord_2` was edited after the read:
    ///
    /// ```text
    /// transaction 1         ord_1 + ord_2 + ord_3   the condition on ord_2 fails, so nothing is written
    /// transactions 2 to 4   ord_1 | ord_2 | ord_3   ord_1 and ord_3 are written, ord_2 loses its race
    /// next round            ord_2                   is read again and written
    /// ```
    ///
    /// Whatever made the shared transaction fail, each unit is then tried alone: a timeout or a lost answer does not
    /// say which row was the cause.
    pub(super) async fn commit_units(
        &self,
        units: Vec<CommitUnit>,
        round: &RoundRows<'_, L::Row>,
        deadline: Timestamp,
        progress: &mut BatchProgress,
    ) {
        let mut plans = Vec::new();
        for unit in units {
            match round.plan(unit) {
                Ok(plan) => {
                    // Before the write: if its answer is lost, the next round reads the events as processed, and nobody
                    // would report what they wrote.
                    progress.notices.extend(plan.part.notices());
                    plans.push(plan);
                }
                Err(unit) => {
                    let failed = fail_each(event_ids(&unit), &ProcessingFailure::Panicked);
                    progress.pass::<()>(failed);
                }
            }
        }
        if let Some(CommonCommit::Written(commits)) =
            catch_panic(self.commit_together(&plans, deadline)).await
        {
            progress.pass(plans.iter().flat_map(CommitPlan::written_steps));
            progress.commits.extend(commits);
            return;
        }
        // If the shared transaction was written and only its answer was lost, each of these fails its conditions, and
        // the next round reads the events as processed.
        let committing = plans.into_iter().map(|plan| async move {
            let ids = event_ids(&plan.unit);
            let committed = catch_panic(self.commit_alone(plan, round, deadline)).await;
            committed.unwrap_or_else(|| (fail_each(ids, &ProcessingFailure::Panicked), Vec::new()))
        });
        let mut committing = stream::iter(committing).buffer_unordered(CALLS_AT_ONCE);
        while let Some((steps, commits)) = committing.next().await {
            progress.pass(steps);
            progress.commits.extend(commits);
        }
    }

    /// Tries to write all plans in one transaction.
    async fn commit_together(
        &self,
        plans: &[CommitPlan<'_, L::Row>],
        deadline: Timestamp,
    ) -> CommonCommit {
        let rows: usize = plans.iter().map(CommitPlan::row_count).sum();
        let bytes: usize = plans.iter().map(|plan| plan.byte_count(L::row_bytes)).sum();
        let fit = rows <= ROWS_PER_COMMIT_MAX && bytes <= BYTES_PER_COMMIT_MAX;
        if plans.len() < 2 || !fit || self.time_left(deadline) == TimeLeft::TooLittle {
            return CommonCommit::NotWritten;
        }
        let committing = std::pin::pin!(self.commit(plans.iter().map(|plan| &plan.part)));
        let waiting = std::pin::pin!(self.clock.pause(COMMON_COMMIT_WAIT_MAX));
        match select(committing, waiting).await {
            Either::Left((Ok(commits), _)) => CommonCommit::Written(commits),
            Either::Left((Err(_), _)) | Either::Right(_) => CommonCommit::NotWritten,
        }
    }

    /// Commits the events of one unit: all of them, or as many as the store accepts.
    ///
    /// `Refused` does not say which event makes the rows too large (a row would pass 300 KiB, or DynamoDB rejects the
    /// item), so the events are halved. Example: e1 to e10, of which e3 alone is too large:
    ///
    /// ```text
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
        round: &RoundRows<'_, L::Row>,
        deadline: Timestamp,
    ) -> (Vec<EventStep<()>>, Vec<EntityCommit>) {
        let mut steps = Vec::new();
        loop {
            if self.time_left(deadline) == TimeLeft::TooLittle {
                steps.extend(fail_each(
                    event_ids(&plan.unit),
                    &ProcessingFailure::OutOfTime,
                ));
                return (steps, Vec::new());
            }
            match self.commit_if_it_fits(&plan).await {
                Ok(commits) => {
                    steps.extend(plan.written_steps());
                    return (steps, commits);
                }
                Err(CommitError::Refused(_)) => {}
                Err(error) => {
                    steps.extend(fail_each(event_ids(&plan.unit), &error.into()));
                    return (steps, Vec::new());
                }
            }
            // Halve until the transaction is accepted or one event is left, which is then the one that is too large.
            let mut unit = plan.unit;
            if unit.events.len() < 2 {
                // Written at once, and not with the round's other verdicts: another unit's call may hang until the
                // time is up.
                for event in &unit.events {
                    let verdict = EventVerdict::Parked(ParkReason::EntityTooLarge);
                    steps.extend(self.write_outcome(event.event_update(verdict)).await);
                }
                return (steps, Vec::new());
            }
            let rest = unit.events.split_off(unit.events.len() / 2);
            let rest = rest.into_iter().map(|event| event.stored.id);
            steps.extend(fail_each(rest, &too_many_events()));
            plan = match round.plan(unit) {
                Ok(plan) => plan,
                Err(unit) => {
                    steps.extend(fail_each(event_ids(&unit), &ProcessingFailure::Panicked));
                    return (steps, Vec::new());
                }
            };
        }
    }

    async fn commit_if_it_fits(
        &self,
        plan: &CommitPlan<'_, L::Row>,
    ) -> Result<Vec<EntityCommit>, CommitError> {
        let (rows, bytes) = (plan.row_count(), plan.byte_count(L::row_bytes));
        // One event alone is tried in any case: the limit leaves room below DynamoDB's own.
        if plan.unit.events.len() > 1
            && (rows > ROWS_PER_COMMIT_MAX || bytes > BYTES_PER_COMMIT_MAX)
        {
            return Err(CommitError::Refused(format!(
                "{rows} rows of {bytes} bytes"
            )));
        }
        self.commit(slice::from_ref(&plan.part).iter()).await
    }

    /// Writes these parts in one transaction. Each row has its own condition, so it does not matter for safety which
    /// rows share a transaction:
    ///
    /// - state of an entity, payment or invoice: its `version` is as read. Protects from another worker's or the
    ///   cleanup's write, from two workers that learn a name of one payment at once, and from an event that is written
    ///   under a name just as that name becomes an alias.
    /// - application's row: its key, tenant, `version`, guarded columns and number of timeline entries are as read.
    ///   Protects from a manual edit (guarded columns: status, amount due …), an entry that the application appended
    ///   (timeline), a copy that the application put back (`version`), and a row that was deleted or moved to another
    ///   tenant.
    /// - event: `processed` is false. Protects from applying it twice when two workers have the same message.
    async fn commit<'p, 'a: 'p>(
        &self,
        parts: impl Iterator<Item = &'p CommitPart<'a, L::Row>>,
    ) -> Result<Vec<EntityCommit>, CommitError>
    where
        L::Row: 'p + 'a,
    {
        let parts: Vec<&CommitPart<'a, L::Row>> = parts.collect();
        self.ledger.commit(self.provider, &parts).await?;
        Ok(parts
            .iter()
            .flat_map(|part| part.entity_commits())
            .collect())
    }

    /// Writes the outcome of one event that changes no row but its own. This is a single update: a transaction costs
    /// twice.
    pub(super) async fn write_outcome(&self, update: EventUpdate) -> Vec<EventStep<()>> {
        let part = CommitPart {
            entities: Vec::new(),
            states: Vec::new(),
            events: vec![update],
            now: self.clock.now(),
        };
        let committed = self.ledger.commit(self.provider, &[&part]).await;
        let updates = part.events.into_iter();
        match committed {
            Ok(()) => updates.map(EventStep::written).collect(),
            Err(error) => fail_each(updates.map(|update| update.event), &error.into()),
        }
    }

    /// Plans and commits one unit, all of it or nothing.
    pub(super) async fn commit_unit(
        &self,
        unit: CommitUnit,
        round: &RoundRows<'_, L::Row>,
    ) -> Result<UnitCommit, ProcessingFailure> {
        let plan = round.plan(unit).map_err(|_| ProcessingFailure::Panicked)?;
        if plan.row_count() == 0 {
            return Ok(UnitCommit::default());
        }
        let commits = self.commit(slice::from_ref(&plan.part).iter()).await?;
        Ok(UnitCommit {
            commits,
            notices: plan.part.notices().collect(),
        })
    }
}
