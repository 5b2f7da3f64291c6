//! One entity's part of a round: its events decided together, committed in one transaction.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt as _;

use super::find::is_owners;
use super::{
    BYTES_PER_COMMIT_MAX, Candidate, Done, EVENTS_PER_COMMIT_MAX, Failure, Finding, Worker,
};
use crate::entity::{Entity, EntityKey, Facts};
use crate::ids::{EventId, Provider};
use crate::inbox::{Outcome, ParkReason, Verdict};
use crate::merge::Merge as _;
use crate::ports::{
    Clock, Commit, CommitError, Concluded, Ledger, Pause, PaymentKey, PaymentRow, PaymentWrite,
    Rows, Unavailable,
};
use crate::retry::chain;
use crate::time::Timestamp;

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    pub(super) async fn settle_isolated(
        &self,
        key: EntityKey,
        group: Vec<Candidate>,
        rows: &Rows<L::Row>,
        deadline: Timestamp,
    ) -> Vec<Finding> {
        let ids: Vec<EventId> = group
            .iter()
            .map(|candidate| candidate.stored.id.clone())
            .collect();
        let settling = AssertUnwindSafe(self.settle(key, group, rows, deadline)).catch_unwind();
        match settling.await {
            Ok(findings) => findings,
            Err(_) => ids
                .iter()
                .map(|id| Finding::failed(id, Failure::Panicked))
                .collect(),
        }
    }

    /// Decides the events of one entity together and commits them in one transaction.
    async fn settle(
        &self,
        key: EntityKey,
        mut group: Vec<Candidate>,
        rows: &Rows<L::Row>,
        deadline: Timestamp,
    ) -> Vec<Finding> {
        if self.is_late(deadline) {
            return failed(&group, &Failure::OutOfTime).collect();
        }
        let Some((entity, row)) = rows.entities.get(&key) else {
            let reason = if rows.unreadable.contains_key(&key) {
                ParkReason::EntityUnreadable
            } else {
                unknown(self.provider, &key)
            };
            return self.conclude_each(group, reason).await;
        };
        let (mut group, foreign): (Vec<_>, Vec<_>) = group
            .drain(..)
            .partition(|candidate| is_owners(entity, candidate));
        let mut findings = self.conclude_each(foreign, ParkReason::CrossTenant).await;
        // What does not fit stays open for the next round.
        let over = group.split_off(fitting(&group));
        let busy =
            Failure::Infrastructure("more events of one entity than fit a transaction".to_owned());
        findings.extend(failed(&over, &busy));
        if group.is_empty() {
            return findings;
        }

        let links = new_links(entity, &group, rows);
        let own = group.len();
        match self.released(entity, &group, &links).await {
            Ok(waiting) => {
                group.extend(waiting);
                group.truncate(fitting(&group).max(own));
            }
            Err(error) => {
                findings.extend(failed(&group, &error.into()));
                return findings;
            }
        }
        let mut committed = self.commit(entity, row, &group, &links).await;
        let mut released = group.split_off(own);
        if !released.is_empty() && matches!(committed, Err(CommitError::Refused(_))) {
            // What waited may have made it too large: then it is left to the sweep.
            released.clear();
            committed = self.commit(entity, row, &group, &links).await;
        }
        // Too large together: half of them, until the one that is too large stands alone.
        while group.len() > 1 && matches!(committed, Err(CommitError::Refused(_))) {
            let rest = group.split_off(group.len() / 2);
            findings.extend(failed(&rest, &busy));
            let links = new_links(entity, &group, rows);
            committed = self.commit(entity, row, &group, &links).await;
        }
        match committed {
            Ok(()) => findings.extend(
                group
                    .iter()
                    .chain(&released)
                    .map(|candidate| candidate.processed_into(&key)),
            ),
            Err(CommitError::Refused(_)) => {
                findings.extend(self.conclude_each(group, ParkReason::EntityTooLarge).await);
            }
            Err(error) => {
                let failure = Failure::Infrastructure(chain(&error));
                findings.extend(failed(&group, &failure));
            }
        }
        findings
    }

    async fn commit(
        &self,
        entity: &Entity,
        row: &L::Row,
        group: &[Candidate],
        links: &[(PaymentKey, PaymentRow)],
    ) -> Result<(), CommitError> {
        let mut facts = Facts::default();
        for candidate in group {
            facts.merge(candidate.claim.facts.clone());
        }
        let now = self.clock.now();
        let next = entity.with(facts, now);
        let link = |(payment, row): &(PaymentKey, PaymentRow)| {
            let link = PaymentWrite::Link {
                entity: entity.key.clone(),
                version: row.version,
            };
            (payment.clone(), link)
        };
        let concluded = |candidate: &Candidate| candidate.concluded(Verdict::Processed);
        let commit = Commit {
            entity: Some((entity, row, &next)),
            events: group.iter().map(concluded).collect(),
            payments: links.iter().map(link).collect(),
            now,
        };
        self.ledger.commit(self.provider, commit).await
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
        let committed = self.ledger.commit(self.provider, commit).await;
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
        match self.ledger.commit(self.provider, commit).await {
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
