//! The worker: a batch of messages in, one report per message out.
//!
//! A batch is settled in rounds. Each round reads what is still open, decides, and commits one transaction per entity;
//! whoever loses a race, or learns that something changed, is simply open in the next round. Guarantees: a message is
//! reported done only if its event was seen done or made so; one bad record never keeps another from being tried.
//! It does not keep order: merging makes order irrelevant.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};

use crate::entity::{Entity, EntityKey, Facts};
use crate::ids::{AccountId, EventId, Provider, TenantId};
use crate::inbox::{Outcome, ParkReason, Stored, Verdict};
use crate::merge::Merge as _;
use crate::pointer::Message;
use crate::ports::{
    Clock, Commit, CommitError, Concluded, Kept, Ledger, Pause, Payload, PaymentKey, PaymentRow,
    PaymentWrite, Rows, Unavailable,
};
use crate::retry::chain;
use crate::route::{self, Claim};
use crate::time::Timestamp;

/// A message goes to the dead-letter queue after so many receives; `template.yaml` says the same.
pub const RECEIVES_MAX: u32 = 3;
/// A lost race is decided again at most so often within one receive.
const ROUNDS_MAX: u32 = 5;
/// Events of one entity in one transaction; the rest comes in the next round.
const EVENTS_PER_COMMIT_MAX: usize = 50;
/// Transactions under way at once: as many as there are connections to keep warm.
pub const COMMITS_AT_ONCE: usize = 4;
/// What a last transaction and the marking of failures may need.
const TIME_TO_FINISH: Duration = Duration::from_secs(2);

/// A message as the queue handed it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The queue's id for this message, reported back if it failed.
    pub message_id: String,
    /// The pointer.
    pub body: String,
    /// How often it was received, this time included.
    pub receive_count: u32,
}

/// What became of a message.
#[derive(Debug)]
pub struct Report {
    /// The queue's id.
    pub message_id: String,
    /// The event it names, if it could be read.
    pub event: Option<EventId>,
    /// What the row said when it was read, if it was.
    pub stored: Option<Stored>,
    /// The entity that its facts went into, and whose it is.
    pub entity: Option<EntityKey>,
    /// Done or not.
    pub result: Result<Done, Failure>,
}

/// A message that needs no further receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// This worker wrote the verdict.
    Concluded(Verdict),
    /// It was done before.
    Already(Outcome),
}

/// A message to be received again, or given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Not JSON, or without an event id.
    #[error("the message is no pointer to an event")]
    Unreadable,
    /// The row is not there (yet).
    #[error("the event is not stored")]
    NotStored,
    /// A bug met by this record.
    #[error("deciding it panicked")]
    Panicked,
    /// The store did not answer, or kept changing.
    #[error("{0}")]
    Infrastructure(String),
    /// Little time was left.
    #[error("no time was left in this invocation")]
    OutOfTime,
}

/// One provider's worker.
#[derive(Debug)]
pub struct Worker<L, C> {
    /// Whose events.
    pub provider: Provider,
    /// Whether the stage takes live events.
    pub live_mode: bool,
    /// The rows.
    pub ledger: L,
    /// Time.
    pub clock: C,
}

/// An event that is not settled yet.
struct Open {
    receive_count: u32,
    stored: Option<Stored>,
    failure: Failure,
}

/// An event read and ready to be decided.
#[derive(Clone)]
struct Candidate {
    stored: Stored,
    claim: Claim,
    tenant: Option<TenantId>,
    waited: bool,
}

impl Candidate {
    fn payment(&self) -> Option<PaymentKey> {
        let intent = self.claim.intent.clone()?;
        Some(PaymentKey {
            account: self.stored.account.clone(),
            intent,
        })
    }

    fn concluded(&self, verdict: Verdict) -> Concluded {
        Concluded {
            event: self.stored.id.clone(),
            tenant: self.tenant.clone(),
            verdict,
            waited: self.waited,
        }
    }
}

/// What a round found out about an event.
struct Finding {
    event: EventId,
    entity: Option<EntityKey>,
    result: Result<Done, Failure>,
}

impl Finding {
    fn failed(event: &EventId, failure: Failure) -> Self {
        Self {
            event: event.clone(),
            entity: None,
            result: Err(failure),
        }
    }
}

/// Where a candidate's facts go.
enum Target {
    Entity(EntityKey),
    Nowhere(Verdict),
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        Self::Infrastructure(chain(&error))
    }
}

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    /// Settles a batch. Nothing new is started once `deadline` is near.
    pub async fn work(&self, messages: &[Received], deadline: Timestamp) -> Vec<Report> {
        let mut named: BTreeMap<EventId, Vec<&Received>> = BTreeMap::new();
        let mut reports = Vec::new();
        for message in messages {
            match Message::parse(&message.body) {
                Ok(pointer) => named.entry(pointer.event_id).or_default().push(message),
                Err(_) => reports.push(Report {
                    message_id: message.message_id.clone(),
                    event: None,
                    stored: None,
                    entity: None,
                    result: Err(Failure::Unreadable),
                }),
            }
        }
        let mut open: BTreeMap<EventId, Open> = named
            .iter()
            .map(|(id, messages)| {
                let receive_count = messages.iter().map(|m| m.receive_count).max().unwrap_or(1);
                (
                    id.clone(),
                    Open {
                        receive_count,
                        stored: None,
                        failure: Failure::OutOfTime,
                    },
                )
            })
            .collect();
        let mut settled: BTreeMap<EventId, (Option<Stored>, Option<EntityKey>, Done)> =
            BTreeMap::new();
        for round in 0..ROUNDS_MAX {
            if open.is_empty() || self.is_late(deadline) {
                break;
            }
            if round > 0 {
                // 50, 100, 200, 400 ms: losers of one race do not meet again at once.
                self.clock.pause(Duration::from_millis(25 << round)).await;
            }
            for finding in self.round(&mut open, deadline).await {
                match finding.result {
                    Ok(done) => {
                        let stored = open.remove(&finding.event).and_then(|open| open.stored);
                        settled.insert(finding.event, (stored, finding.entity, done));
                    }
                    Err(failure) => {
                        if let Some(open) = open.get_mut(&finding.event) {
                            open.failure = failure;
                        }
                    }
                }
            }
        }
        self.mark_failed(&open).await;
        for (id, messages) in named {
            for message in messages {
                let (stored, entity, result) = match (settled.get(&id), open.get(&id)) {
                    (Some((stored, entity, done)), _) => {
                        (stored.clone(), entity.clone(), Ok(done.clone()))
                    }
                    (None, Some(open)) => (open.stored.clone(), None, Err(open.failure.clone())),
                    (None, None) => (None, None, Err(Failure::NotStored)),
                };
                reports.push(Report {
                    message_id: message.message_id.clone(),
                    event: Some(id.clone()),
                    stored,
                    entity,
                    result,
                });
            }
        }
        reports
    }

    fn is_late(&self, deadline: Timestamp) -> bool {
        self.clock.now().after(TIME_TO_FINISH) > deadline
    }

    async fn round(&self, open: &mut BTreeMap<EventId, Open>, deadline: Timestamp) -> Vec<Finding> {
        let ids: BTreeSet<EventId> = open.keys().cloned().collect();
        let all_failed = |ids: &BTreeSet<EventId>, failure: &Failure| {
            ids.iter()
                .map(|id| Finding::failed(id, failure.clone()))
                .collect::<Vec<_>>()
        };
        let kept = match self.ledger.events(self.provider, &ids).await {
            Ok(kept) => kept,
            Err(error) => return all_failed(&ids, &error.into()),
        };
        for (id, open) in open.iter_mut() {
            open.stored = kept
                .iter()
                .find(|kept| kept.stored.id == *id)
                .map(|kept| kept.stored.clone());
        }
        let mut findings = all_failed(
            &ids.into_iter()
                .filter(|id| !kept.iter().any(|kept| kept.stored.id == *id))
                .collect(),
            &Failure::NotStored,
        );

        let mut candidates = Vec::new();
        let mut verdicts = Vec::new();
        for kept in kept {
            let id = kept.stored.id.clone();
            if kept.stored.processed {
                let done = Done::Already(kept.stored.outcome);
                findings.push(Finding {
                    event: id,
                    entity: None,
                    result: Ok(done),
                });
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| self.read(&kept))) {
                Ok(Ok(claim)) => {
                    candidates.push(Candidate {
                        stored: kept.stored,
                        claim,
                        tenant: None,
                        waited: false,
                    });
                }
                Ok(Err(verdict)) => verdicts.push(Concluded {
                    event: id,
                    tenant: None,
                    verdict,
                    waited: false,
                }),
                Err(_) => findings.push(Finding::failed(&id, Failure::Panicked)),
            }
        }
        let candidates = self
            .with_tenants(candidates, &mut verdicts, &mut findings)
            .await;
        match self.targets(&candidates).await {
            Ok((targets, rows)) => {
                let mut groups: BTreeMap<EntityKey, Vec<Candidate>> = BTreeMap::new();
                for (candidate, target) in candidates.into_iter().zip(targets) {
                    match target {
                        Target::Entity(key) => groups.entry(key).or_default().push(candidate),
                        Target::Nowhere(Verdict::Parked(ParkReason::Unlinked)) => {
                            findings.push(self.wait(&candidate, &rows).await);
                        }
                        Target::Nowhere(verdict) => verdicts.push(candidate.concluded(verdict)),
                    }
                }
                let settling: Vec<_> = stream::iter(groups)
                    .map(|(key, group)| self.settle_isolated(key, group, &rows, deadline))
                    .buffer_unordered(COMMITS_AT_ONCE)
                    .collect()
                    .await;
                findings.extend(settling.into_iter().flatten());
            }
            Err(error) => {
                let ids = candidates
                    .into_iter()
                    .map(|candidate| candidate.stored.id)
                    .collect();
                findings.extend(all_failed(&ids, &error.into()));
            }
        }
        let concluding = verdicts
            .into_iter()
            .map(|concluded| self.conclude(concluded));
        findings.extend(
            stream::iter(concluding)
                .buffer_unordered(COMMITS_AT_ONCE)
                .collect::<Vec<_>>()
                .await,
        );
        findings
    }

    fn read(&self, kept: &Kept) -> Result<Claim, Verdict> {
        match &kept.payload {
            Payload::Intact(payload) => route::read(
                self.provider,
                self.live_mode,
                kept.stored.account.as_ref(),
                payload,
            ),
            Payload::Tampered => Err(Verdict::Parked(ParkReason::Tampered)),
            Payload::Unreadable => Err(Verdict::Parked(ParkReason::PayloadUnreadable)),
        }
    }

    /// Gives each candidate its account's tenant; parks those whose account has none, or several.
    async fn with_tenants(
        &self,
        candidates: Vec<Candidate>,
        verdicts: &mut Vec<Concluded>,
        findings: &mut Vec<Finding>,
    ) -> Vec<Candidate> {
        let accounts: BTreeSet<&AccountId> = candidates
            .iter()
            .filter_map(|c| c.stored.account.as_ref())
            .collect();
        let mut tenants = BTreeMap::new();
        for account in accounts {
            tenants.insert(account.clone(), self.ledger.tenants_of(account).await);
        }
        let mut known = Vec::new();
        for mut candidate in candidates {
            let Some(found) = candidate
                .stored
                .account
                .as_ref()
                .and_then(|account| tenants.get(account))
            else {
                known.push(candidate);
                continue;
            };
            match found.as_deref() {
                Ok([tenant]) => {
                    candidate.tenant = Some(tenant.clone());
                    known.push(candidate);
                }
                Ok([]) => {
                    verdicts.push(candidate.concluded(Verdict::Parked(ParkReason::TenantUnknown)))
                }
                Ok(_) => {
                    verdicts.push(candidate.concluded(Verdict::Parked(ParkReason::TenantAmbiguous)))
                }
                Err(error) => {
                    let failure = Failure::Infrastructure(chain(error));
                    findings.push(Finding::failed(&candidate.stored.id, failure));
                }
            }
        }
        known
    }

    /// Finds each candidate's entity, and reads all rows that the decision needs: what is named in one read, what is
    /// found through it in another.
    async fn targets(
        &self,
        candidates: &[Candidate],
    ) -> Result<(Vec<Target>, Rows<L::Row>), Unavailable> {
        let named = candidates
            .iter()
            .filter(|c| c.claim.piece.is_none())
            .filter_map(|c| c.claim.names.clone());
        let payments: BTreeSet<PaymentKey> =
            candidates.iter().filter_map(Candidate::payment).collect();
        let mut rows = self.rows(named.collect(), &payments).await?;
        let mut targets = Vec::new();
        for candidate in candidates {
            targets.push(self.target(candidate, &rows).await?);
        }
        let found = targets.iter().filter_map(|target| match target {
            Target::Entity(key) if !rows.entities.contains_key(key) => Some(key.clone()),
            Target::Entity(_) | Target::Nowhere(_) => None,
        });
        let more = self.rows(found.collect(), &BTreeSet::new()).await?;
        rows.entities.extend(more.entities);
        rows.unreadable.extend(more.unreadable);
        Ok((targets, rows))
    }

    async fn rows(
        &self,
        entities: BTreeSet<EntityKey>,
        payments: &BTreeSet<PaymentKey>,
    ) -> Result<Rows<L::Row>, Unavailable> {
        if entities.is_empty() && payments.is_empty() {
            return Ok(Rows {
                entities: BTreeMap::new(),
                unreadable: BTreeMap::new(),
                payments: BTreeMap::new(),
            });
        }
        self.ledger.rows(&entities, payments).await
    }

    async fn target(
        &self,
        candidate: &Candidate,
        rows: &Rows<L::Row>,
    ) -> Result<Target, Unavailable> {
        let parked = |reason| Ok(Target::Nowhere(Verdict::Parked(reason)));
        if let Some(piece) = &candidate.claim.piece {
            let bearing = self.ledger.bearing_piece(piece).await?;
            return match (bearing.as_slice(), &candidate.claim.names) {
                ([key], _) | ([], Some(key)) => Ok(Target::Entity(key.clone())),
                ([], None) => parked(ParkReason::LetterUnknown),
                _ => parked(ParkReason::EntityAmbiguous),
            };
        }
        let linked = candidate
            .payment()
            .and_then(|payment| rows.payments.get(&payment))
            .and_then(|row| row.entity.as_ref());
        match (&candidate.claim.names, linked, &candidate.claim.intent) {
            (Some(named), Some(linked), _) if named != linked => parked(ParkReason::LinkConflict),
            (Some(key), ..) | (None, Some(key), _) => Ok(Target::Entity(key.clone())),
            (None, None, Some(intent)) => {
                match self.ledger.bearing_intent(intent).await?.as_slice() {
                    [key] => Ok(Target::Entity(key.clone())),
                    [] => parked(ParkReason::Unlinked),
                    _ => parked(ParkReason::EntityAmbiguous),
                }
            }
            (None, None, None) => Ok(Target::Nowhere(Verdict::Ignored(
                crate::inbox::IgnoreReason::NothingNamed,
            ))),
        }
    }

    async fn settle_isolated(
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
            return group
                .iter()
                .map(|c| Finding::failed(&c.stored.id, Failure::OutOfTime))
                .collect();
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
        let over = group.split_off(group.len().min(EVENTS_PER_COMMIT_MAX));
        let busy =
            Failure::Infrastructure("more events of one entity than fit a transaction".to_owned());
        findings.extend(
            over.iter()
                .map(|c| Finding::failed(&c.stored.id, busy.clone())),
        );
        if group.is_empty() {
            return findings;
        }

        let links = new_links(entity, &group, rows);
        let own = group.len();
        match self.released(entity, &links).await {
            Ok(waiting) => group.extend(waiting.into_iter().take(EVENTS_PER_COMMIT_MAX - own)),
            Err(error) => {
                let failure = Failure::from(error);
                findings.extend(
                    group
                        .iter()
                        .map(|c| Finding::failed(&c.stored.id, failure.clone())),
                );
                return findings;
            }
        }
        let mut facts = Facts::default();
        for candidate in &group {
            facts.merge(candidate.claim.facts.clone());
        }
        let now = self.clock.now();
        let next = entity.with(facts, now);
        let commit = Commit {
            entity: Some((entity, row, &next)),
            events: group
                .iter()
                .map(|candidate| candidate.concluded(Verdict::Processed))
                .collect(),
            payments: links
                .into_iter()
                .map(|(payment, row)| {
                    let link = PaymentWrite::Link {
                        entity: key.clone(),
                        version: row.version,
                    };
                    (payment, link)
                })
                .collect(),
            now,
        };
        group.truncate(own);
        match self.ledger.commit(self.provider, commit).await {
            Ok(()) => findings.extend(group.iter().map(|candidate| Finding {
                event: candidate.stored.id.clone(),
                entity: Some(key.clone()),
                result: Ok(Done::Concluded(Verdict::Processed)),
            })),
            Err(CommitError::Refused(_)) => {
                findings.extend(self.conclude_each(group, ParkReason::EntityTooLarge).await);
            }
            Err(error) => {
                let failure = Failure::Infrastructure(chain(&error));
                findings.extend(
                    group
                        .iter()
                        .map(|c| Finding::failed(&c.stored.id, failure.clone())),
                );
            }
        }
        findings
    }

    /// The events that waited for these links, as if they had come in the same batch. One that can no longer be read,
    /// or is another tenant's, is left to the sweep.
    async fn released(
        &self,
        entity: &Entity,
        links: &[(PaymentKey, PaymentRow)],
    ) -> Result<Vec<Candidate>, Unavailable> {
        let waiting: BTreeSet<EventId> = links
            .iter()
            .flat_map(|(_, row)| row.waiting.iter().cloned())
            .collect();
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
    async fn conclude(&self, concluded: Concluded) -> Finding {
        let commit = Commit {
            entity: None,
            events: vec![concluded.clone()],
            payments: Vec::new(),
            now: self.clock.now(),
        };
        self.finding(concluded, commit).await
    }

    /// Parks an event until something links its payment, and leaves its id where that will be found.
    async fn wait(&self, candidate: &Candidate, rows: &Rows<L::Row>) -> Finding {
        let concluded = candidate.concluded(Verdict::Parked(ParkReason::Unlinked));
        let payments = candidate.payment().map(|payment| {
            let version = rows.payments.get(&payment).map_or(0, |row| row.version);
            (
                payment,
                PaymentWrite::Wait {
                    event: candidate.stored.id.clone(),
                    version,
                },
            )
        });
        let commit = Commit {
            entity: None,
            events: vec![concluded.clone()],
            payments: payments.into_iter().collect(),
            now: self.clock.now(),
        };
        self.finding(concluded, commit).await
    }

    async fn finding(&self, concluded: Concluded, commit: Commit<'_, L::Row>) -> Finding {
        let result = match self.ledger.commit(self.provider, commit).await {
            Ok(()) => Ok(Done::Concluded(concluded.verdict)),
            Err(error) => Err(Failure::Infrastructure(chain(&error))),
        };
        Finding {
            event: concluded.event,
            entity: None,
            result,
        }
    }

    /// On its last receive a message leaves for the dead-letter queue: then its event says why. If even that cannot be
    /// written, the event stays pending and the sweep finds it.
    async fn mark_failed(&self, open: &BTreeMap<EventId, Open>) {
        for (id, open) in open {
            if open.receive_count < RECEIVES_MAX || open.stored.is_none() {
                continue;
            }
            let verdict = Verdict::Failed(open.failure.to_string());
            self.conclude(Concluded {
                event: id.clone(),
                tenant: None,
                verdict,
                waited: false,
            })
            .await;
        }
    }
}

/// A connected account's event concerns its own tenant's entities only; the platform's may concern any.
fn is_owners(entity: &Entity, candidate: &Candidate) -> bool {
    candidate.stored.account.is_none()
        || (candidate.tenant.is_some() && candidate.tenant == entity.tenant)
}

fn unknown(provider: Provider, key: &EntityKey) -> ParkReason {
    match (provider, key) {
        (Provider::Lob, _) => ParkReason::LetterUnknown,
        (Provider::Stripe, EntityKey::Order(_)) => ParkReason::OrderUnknown,
        (Provider::Stripe, EntityKey::Statement(_)) => ParkReason::StatementUnknown,
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
