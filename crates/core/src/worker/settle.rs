//! The entities' part of a round: each one's events are decided together, and all are committed in one transaction.
//! Where that fails, whatever the reason, each entity is tried by itself, so that none fails for another's sake.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt as _};

use super::find::is_owners;
use super::{
    BYTES_PER_COMMIT_MAX, BYTES_TOGETHER_MAX, CALLS_AT_ONCE, Candidate, Done,
    EVENTS_PER_COMMIT_MAX, Failure, Finding, Found, ROWS_PER_COMMIT_MAX, TOGETHER_MAX, Worker,
};
use crate::entity::{Entity, EntityKey, Facts, Next};
use crate::ids::{EventId, Provider};
use crate::inbox::{Outcome, ParkReason, Verdict};
use crate::merge::Merge as _;
use crate::ports::{
    Clock, Commit, CommitError, Concluded, Ledger, Pause, PaymentKey, PaymentRow, PaymentWrite,
    Rows, Unavailable,
};
use crate::retry::chain;
use crate::time::Timestamp;

/// What one entity's transaction is made of.
struct Plan<'a, R> {
    entity: &'a Entity,
    row: &'a R,
    /// The batch's own events, then those that waited for its payments.
    group: Vec<Candidate>,
    /// How many are the batch's own.
    own: usize,
    links: Vec<(PaymentKey, PaymentRow)>,
}

impl<R> Plan<'_, R> {
    fn rows(&self) -> usize {
        1 + self.group.len() + self.links.len()
    }

    fn bytes(&self) -> usize {
        self.group.iter().map(|candidate| candidate.row_bytes).sum()
    }

    fn next(&self, now: Timestamp) -> Next {
        let mut facts = Facts::default();
        for candidate in &self.group {
            facts.merge(candidate.claim.facts.clone());
        }
        self.entity.with(facts, now)
    }

    fn commit<'b>(&'b self, next: &'b Next, now: Timestamp) -> Commit<'b, R> {
        let link = |(payment, row): &(PaymentKey, PaymentRow)| {
            let link = PaymentWrite::Link {
                entity: self.entity.key.clone(),
                version: row.version,
            };
            (payment.clone(), link)
        };
        let concluded = |candidate: &Candidate| candidate.concluded(Verdict::Processed);
        Commit {
            entity: Some((self.entity, self.row, next)),
            events: self.group.iter().map(concluded).collect(),
            payments: self.links.iter().map(link).collect(),
            now,
        }
    }

    fn processed(&self) -> impl Iterator<Item = Finding> {
        self.group
            .iter()
            .map(|candidate| candidate.processed_into(&self.entity.key))
    }
}

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    /// Decides and commits the events of these entities. Returns what ends without touching one.
    pub(super) async fn settle(
        &self,
        groups: BTreeMap<EntityKey, Vec<Candidate>>,
        rows: &Rows<L::Row>,
        deadline: Timestamp,
        found: &Found,
    ) -> Vec<Concluded> {
        let planning = groups.into_iter().map(|(key, group)| async move {
            let ids = ids(&group);
            let mut verdicts = Vec::new();
            let planned = caught(self.plan(key, group, rows, &mut verdicts, found)).await;
            (planned.ok_or_else(|| panicked(&ids)), verdicts)
        });
        let mut planning = stream::iter(planning).buffer_unordered(CALLS_AT_ONCE);
        let (mut plans, mut all_verdicts) = (Vec::new(), Vec::new());
        while let Some((planned, verdicts)) = planning.next().await {
            all_verdicts.extend(verdicts);
            match planned {
                Ok(plan) => plans.extend(plan),
                Err(panicked) => found.add(panicked),
            }
        }
        if caught(self.is_committed_together(&plans, deadline)).await == Some(true) {
            found.add(plans.iter().flat_map(Plan::processed));
            return all_verdicts;
        }
        let settling = plans.into_iter().map(|plan| async move {
            let ids = ids(&plan.group);
            let settled = caught(self.settle_alone(plan, rows, deadline)).await;
            settled.unwrap_or_else(|| panicked(&ids))
        });
        found.add_each(stream::iter(settling)).await;
        all_verdicts
    }

    /// What is to be committed for one entity, if anything is.
    async fn plan<'a>(
        &self,
        key: EntityKey,
        mut group: Vec<Candidate>,
        rows: &'a Rows<L::Row>,
        verdicts: &mut Vec<Concluded>,
        found: &Found,
    ) -> Option<Plan<'a, L::Row>> {
        let parked = |reason| move |event: Candidate| event.concluded(Verdict::Parked(reason));
        let Some((entity, row)) = rows.entities.get(&key) else {
            let reason = if rows.unreadable.contains_key(&key) {
                ParkReason::EntityUnreadable
            } else {
                unknown(self.provider, &key)
            };
            verdicts.extend(group.into_iter().map(parked(reason)));
            return None;
        };
        let foreign = group.extract_if(.., |candidate| !is_owners(entity, candidate));
        verdicts.extend(foreign.map(parked(ParkReason::CrossTenant)));
        // What does not fit stays open for the next round.
        let over = group.split_off(fitting(&group));
        found.add(failed(&over, &too_many()));
        if group.is_empty() {
            return None;
        }
        let links = new_links(entity, &group, rows);
        let own = group.len();
        match self.released(entity, &group, &links).await {
            Ok(waiting) => {
                group.extend(waiting);
                group.truncate(fitting(&group).max(own));
            }
            Err(error) => {
                found.add(failed(&group, &error.into()));
                return None;
            }
        }
        Some(Plan {
            entity,
            row,
            group,
            own,
            links,
        })
    }

    async fn is_committed_together(&self, plans: &[Plan<'_, L::Row>], deadline: Timestamp) -> bool {
        let rows: usize = plans.iter().map(Plan::rows).sum();
        let bytes: usize = plans.iter().map(Plan::bytes).sum();
        let fit = rows <= ROWS_PER_COMMIT_MAX && bytes <= BYTES_TOGETHER_MAX;
        if plans.len() < 2 || !fit || self.is_late(deadline) {
            return false;
        }
        let committing = std::pin::pin!(self.commit(plans));
        let waiting = std::pin::pin!(self.clock.pause(TOGETHER_MAX));
        matches!(select(committing, waiting).await, Either::Left((Ok(()), _)))
    }

    /// Commits the events of one entity: all of them, or as many as the store takes.
    async fn settle_alone(
        &self,
        mut plan: Plan<'_, L::Row>,
        rows: &Rows<L::Row>,
        deadline: Timestamp,
    ) -> Vec<Finding> {
        if self.is_late(deadline) {
            return failed(&plan.group, &Failure::OutOfTime).collect();
        }
        let mut findings = Vec::new();
        let mut committed = self.commit(slice::from_ref(&plan)).await;
        if plan.group.len() > plan.own && matches!(committed, Err(CommitError::Refused(_))) {
            // What waited may have made it too large: then it is left to the sweep.
            plan.group.truncate(plan.own);
            committed = self.commit(slice::from_ref(&plan)).await;
        }
        // Too large together: half of them, until the one that is too large stands alone.
        while plan.group.len() > 1 && matches!(committed, Err(CommitError::Refused(_))) {
            let rest = plan.group.split_off(plan.group.len() / 2);
            findings.extend(failed(&rest, &too_many()));
            plan.links = new_links(plan.entity, &plan.group, rows);
            committed = self.commit(slice::from_ref(&plan)).await;
        }
        match committed {
            Ok(()) => findings.extend(plan.processed()),
            Err(CommitError::Refused(_)) => {
                let reason = ParkReason::EntityTooLarge;
                findings.extend(self.conclude_each(plan.group, reason).await);
            }
            Err(error) => {
                let failure = Failure::Infrastructure(chain(&error));
                findings.extend(failed(&plan.group, &failure));
            }
        }
        findings
    }

    async fn commit(&self, plans: &[Plan<'_, L::Row>]) -> Result<(), CommitError> {
        let now = self.clock.now();
        let nexts: Vec<Next> = plans.iter().map(|plan| plan.next(now)).collect();
        let commits = plans.iter().zip(&nexts);
        let commits: Vec<_> = commits.map(|(plan, next)| plan.commit(next, now)).collect();
        self.ledger.commit(self.provider, &commits).await
    }

    /// The events that waited for these links, as if they had come in the same batch. One that can no longer be read,
    /// or is another tenant's, is left to the sweep.
    async fn released(
        &self,
        entity: &Entity,
        group: &[Candidate],
        links: &[(PaymentKey, PaymentRow)],
    ) -> Result<Vec<Candidate>, Unavailable> {
        let mut waiting: BTreeSet<EventId> = links
            .iter()
            .flat_map(|(_, row)| row.waiting.iter().cloned())
            .collect();
        // One that came again, and is in the batch itself, would stand twice in the transaction.
        for own in group {
            waiting.remove(&own.stored.id);
        }
        if waiting.is_empty() {
            return Ok(Vec::new());
        }
        let ids = waiting.into_iter().take(EVENTS_PER_COMMIT_MAX).collect();
        let kept = self.ledger.events(self.provider, &ids).await?;
        Ok(kept
            .into_iter()
            .filter(|kept| kept.stored.outcome != Outcome::Processed)
            .filter_map(|kept| {
                let claim = catch_unwind(AssertUnwindSafe(|| self.read(&kept)))
                    .ok()?
                    .ok()?;
                // All that wait for a payment come from its account, and so have the owner's tenant.
                let tenant = kept.stored.account.as_ref().and(entity.tenant.clone());
                Some(Candidate {
                    stored: kept.stored,
                    claim,
                    tenant,
                    waited: true,
                    row_bytes: kept.row_bytes,
                })
            })
            .collect())
    }

    async fn conclude_each(&self, group: Vec<Candidate>, reason: ParkReason) -> Vec<Finding> {
        let mut findings = Vec::new();
        for candidate in group {
            findings.push(
                self.conclude(candidate.concluded(Verdict::Parked(reason)))
                    .await,
            );
        }
        findings
    }

    /// Ends one event without touching anything else.
    pub(super) async fn conclude(&self, concluded: Concluded) -> Finding {
        let commit = Commit {
            entity: None,
            events: vec![concluded.clone()],
            payments: Vec::new(),
            now: self.clock.now(),
        };
        self.finding(concluded, commit).await
    }

    /// Parks events until something links their payment, and leaves their ids where that will be found.
    pub(super) async fn wait(
        &self,
        payment: Option<PaymentKey>,
        group: Vec<Candidate>,
        rows: &Rows<L::Row>,
    ) -> Vec<Finding> {
        let parked =
            |candidate: &Candidate| candidate.concluded(Verdict::Parked(ParkReason::Unlinked));
        let events: Vec<Concluded> = group.iter().map(parked).collect();
        let payments = payment.map(|payment| {
            let version = rows.payments.get(&payment).map_or(0, |row| row.version);
            let ids = events.iter().map(|concluded| concluded.event.clone());
            let wait = PaymentWrite::Wait {
                events: ids.collect(),
                version,
            };
            (payment, wait)
        });
        let commit = Commit {
            entity: None,
            events: events.clone(),
            payments: payments.into_iter().collect(),
            now: self.clock.now(),
        };
        let committed = self.ledger.commit(self.provider, &[commit]).await;
        let failed = committed
            .err()
            .map(|error| Failure::Infrastructure(chain(&error)));
        let finding = |concluded: Concluded| match &failed {
            None => ended(concluded),
            Some(failure) => Finding::failed(&concluded.event, failure.clone()),
        };
        events.into_iter().map(finding).collect()
    }

    async fn finding(&self, concluded: Concluded, commit: Commit<'_, L::Row>) -> Finding {
        match self.ledger.commit(self.provider, &[commit]).await {
            Ok(()) => ended(concluded),
            Err(error) => {
                let failure = Failure::Infrastructure(chain(&error));
                Finding::failed(&concluded.event, failure)
            }
        }
    }
}

/// How many of the first events fit one transaction; a single one always does.
fn fitting(group: &[Candidate]) -> usize {
    let mut bytes = 0_usize;
    let fit = group.iter().take(EVENTS_PER_COMMIT_MAX).take_while(|next| {
        bytes = bytes.saturating_add(next.row_bytes);
        bytes <= BYTES_PER_COMMIT_MAX
    });
    fit.count().max(1).min(group.len())
}

fn failed(group: &[Candidate], failure: &Failure) -> impl Iterator<Item = Finding> {
    group
        .iter()
        .map(|candidate| Finding::failed(&candidate.stored.id, failure.clone()))
}

fn too_many() -> Failure {
    Failure::Infrastructure("more events of one entity than fit a transaction".to_owned())
}

fn ids(group: &[Candidate]) -> Vec<EventId> {
    let ids = group.iter().map(|candidate| candidate.stored.id.clone());
    ids.collect()
}

fn panicked(ids: &[EventId]) -> Vec<Finding> {
    let failed = |id| Finding::failed(id, Failure::Panicked);
    ids.iter().map(failed).collect()
}

/// Nothing where it panicked: what one record does must not end the others.
async fn caught<T>(future: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(future).catch_unwind().await.ok()
}

fn ended(concluded: Concluded) -> Finding {
    Finding {
        tenant: concluded.tenant,
        ..Finding::of(&concluded.event, Ok(Done::Concluded(concluded.verdict)))
    }
}

fn unknown(provider: Provider, key: &EntityKey) -> ParkReason {
    match (provider, key) {
        (Provider::Lob, _) => ParkReason::LetterUnknown,
        (Provider::Stripe, EntityKey::Order(_)) => ParkReason::OrderUnknown,
        (Provider::Stripe, EntityKey::Statement(_)) => ParkReason::StatementUnknown,
        // Its index still named it: the row is gone since.
        (Provider::Stripe, EntityKey::Tenant(_)) => ParkReason::TenantUnknown,
    }
}

/// The payments that this group links to the entity for the first time, with their rows as read.
fn new_links<R>(
    entity: &Entity,
    group: &[Candidate],
    rows: &Rows<R>,
) -> Vec<(PaymentKey, PaymentRow)> {
    let payments: BTreeSet<PaymentKey> = group.iter().filter_map(Candidate::payment).collect();
    payments
        .into_iter()
        .filter(|payment| !entity.facts.payment.bears(&payment.intent))
        .map(|payment| {
            let row = rows.payments.get(&payment).cloned().unwrap_or_default();
            (payment, row)
        })
        .filter(|(_, row)| row.entity.is_none())
        .collect()
}
