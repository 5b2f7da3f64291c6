//! Reconciliation with Stripe: fetches events that Stripe lists and no delivery brought, and stores and queues them
//! through the same idempotent receiver as a delivery (`billhook_core::intake::accept`).
//!
//! Guarantees: every event of a handled type that Stripe lists for an account that our key can access is stored once,
//! from three days before the account's first run, and at most 30 days back; a cursor (high-water mark) rises only
//! after everything before it was stored and queued. An event that we fetch with our own key over TLS is as authentic
//! as one with a valid signature; its account is the one that we asked about.
//! The platform's own account in a tenant's row is skipped: its events are listed without an account already, and stored
//! with one they would belong to that tenant.
//! `billhook_core::tasks::reconcile` computes what to list, with an example of an interrupted pass.

use std::collections::{BTreeMap, BTreeSet};

use billhook_adapters::metrics;
use billhook_core::error::{DependencyError, error_chain};
use billhook_core::ids::{AccountId, CorrelationId, EventId, ProviderId};
use billhook_core::intake::accept::accept_event;
use billhook_core::intake::inbox::{EventSource, NewEvent};
use billhook_core::intake::ports::{RecordEvent, SendMessage};
use billhook_core::ports::Clock;
use billhook_core::provider::envelope::EventEnvelope;
use billhook_core::provider::read_envelope;
use billhook_core::provider::signature::{FetchedEvent, Verified};
use billhook_core::tasks::checkpoint::{Checkpoint, reconcile_cursor_key};
use billhook_core::tasks::definitions::ReconcileInput;
use billhook_core::tasks::ports::{
    CheckpointSaveResult, CheckpointStore, FindKnownEvents, ListAccounts, ListEvents,
    ListEventsError,
};
use billhook_core::tasks::reconcile::{event_type_sets, is_event_gap, next_listing_span};
use billhook_core::time::Timestamp;
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;

use crate::scheduled_task::{PassEnd, ScheduledTask, TaskFailed, fail_task, lacks_time_to_start};

/// Tenants in one page of the list of accounts.
const TENANTS_PER_PAGE: usize = 25;
/// Accounts in progress at the same time.
const ACCOUNTS_AT_ONCE: usize = 4;
/// Events of one account that are stored and queued at the same time.
const EVENTS_AT_ONCE: usize = 4;
/// Refused accounts that the summary names; the log names all.
const NAMED_MAX: usize = 20;

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReconcileSummary {
    /// Always `reconcile`.
    pub task: &'static str,
    /// Including the platform.
    pub accounts: usize,
    /// Events that Stripe listed.
    pub events: usize,
    /// Of these, the missing ones that are now stored and queued.
    pub taken_in: usize,
    /// Of these, the ones whose delivery should have arrived long before.
    pub gaps: usize,
    /// Accounts for which Stripe answered 401 or 403, and the platform's own in a tenant's row, the first 20: skipped.
    pub refused: Vec<AccountId>,
    /// Accounts with a failed call, and events that could not be read: a later run tries again.
    pub failed: usize,
    /// The lowest cursor of all accounts that were not refused.
    pub reconciled_through: Option<Timestamp>,
    /// False if the deadline interrupted the run: the next run resumes.
    pub completed: bool,
}

/// The task with its ports.
#[derive(Debug)]
pub struct ReconcileTask<I, Q, J, S, C> {
    pub inbox: I,
    pub queue: Q,
    /// The checkpoints, and the tenants' accounts.
    pub jobs: J,
    /// None if no key is stored.
    pub stripe: Option<S>,
    pub clock: C,
}

/// What a run has done for one account.
#[derive(Default)]
struct AccountProgress {
    events: usize,
    taken_in: usize,
    gaps: usize,
    failed: usize,
    /// The lowest of the account's cursors.
    through_s: Option<i64>,
    was_interrupted: bool,
}

/// Whether a missing event should have arrived long before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MissingEvent {
    /// It should have arrived long ago.
    Gap,
    /// Its delivery may be on its way, or it is older than this environment.
    NotAGap,
}

enum AccountError {
    Refused(String),
    Failed(String),
}

impl From<DependencyError> for AccountError {
    fn from(error: DependencyError) -> Self {
        Self::Failed(error_chain(&error))
    }
}

impl From<ListEventsError> for AccountError {
    fn from(error: ListEventsError) -> Self {
        match error {
            ListEventsError::Refused(cause) => Self::Refused(cause),
            ListEventsError::UnknownStartingEvent(_) | ListEventsError::Failed(_) => {
                Self::Failed(error_chain(&error))
            }
        }
    }
}

impl<I, Q, J, S, C> ScheduledTask for ReconcileTask<I, Q, J, S, C>
where
    I: RecordEvent + FindKnownEvents,
    Q: SendMessage,
    J: CheckpointStore + ListAccounts,
    S: ListEvents,
    C: Clock,
{
    type Input = ReconcileInput;
    type Summary = ReconcileSummary;

    /// One run: the platform's own account first, in every run, then the connected accounts. If the last run was
    /// interrupted, it begins with the page of 25 tenants that was not completed, else with the first.
    ///
    /// Two checkpoints work together. The row `reconcile` says which page of tenants is next; each account's own cursor
    /// says how far its events were read. Example: 60 accounts; the run is interrupted in the second page, at
    /// `acct_30`. The next run reads the platform and `acct_25` to `acct_59`; `acct_25` to `acct_29` have fresh cursors
    /// and cost two calls each, one per set of types.
    async fn run(
        &self,
        ReconcileInput {}: &ReconcileInput,
        deadline: Timestamp,
    ) -> Result<ReconcileSummary, TaskFailed> {
        let stripe = self.stripe.as_ref().ok_or_else(TaskFailed::no_key)?;
        let mut summary = ReconcileSummary {
            task: Self::NAME,
            ..ReconcileSummary::default()
        };
        let platform = self.read_account(stripe, None, deadline).await;
        if let (Err(AccountError::Refused(cause)), _) = platform {
            // The key itself is wrong: Stripe would refuse every account.
            return Err(TaskFailed {
                doing: "list the platform's events",
                cause,
            });
        }
        summary.add(None, platform.0.err(), &platform.1);
        let read = self.jobs.load_checkpoint(Self::NAME).await;
        let checkpoint = read.map_err(fail_task("load the checkpoint"))?;
        let resume_at = checkpoint.resume_at.as_ref();
        let mut after = resume_at.map(|resume| resume.after.clone());
        let end = self
            .read_accounts(stripe, &mut after, &mut summary, deadline)
            .await?;
        summary.completed = end == PassEnd::Completed;
        let next = match &after {
            Some(tenant) => checkpoint.interrupted_at(self.clock.now().unix_s(), tenant.clone()),
            None => Checkpoint::default(),
        };
        if next != checkpoint {
            let saved = self
                .jobs
                .save_checkpoint(Self::NAME, &checkpoint, &next)
                .await;
            saved.map_err(fail_task("save the checkpoint"))?;
        }
        metrics::EVENT_GAP.add(
            ProviderId::Stripe,
            u64::try_from(summary.gaps).unwrap_or(u64::MAX),
        );
        if let Some(through) = summary.reconciled_through {
            let behind = through.until(self.clock.now()).as_secs();
            metrics::RECONCILED_THROUGH.add(ProviderId::Stripe, behind);
        }
        tracing::info!(
            gaps = summary.gaps,
            taken_in = summary.taken_in,
            "reconciled {} accounts",
            summary.accounts
        );
        Ok(summary)
    }
}

impl<I, Q, J, S, C> ReconcileTask<I, Q, J, S, C>
where
    I: RecordEvent + FindKnownEvents,
    Q: SendMessage,
    J: CheckpointStore + ListAccounts,
    S: ListEvents,
    C: Clock,
{
    /// Reads the accounts page by page. `after` is the last tenant of the
    /// last complete page.
    async fn read_accounts(
        &self,
        stripe: &S,
        after: &mut Option<String>,
        summary: &mut ReconcileSummary,
        deadline: Timestamp,
    ) -> Result<PassEnd, TaskFailed> {
        loop {
            if lacks_time_to_start(&self.clock, deadline) {
                return Ok(PassEnd::Interrupted);
            }
            let page = self.jobs.accounts(after.as_deref(), TENANTS_PER_PAGE).await;
            let page = page.map_err(fail_task("list the tenants' accounts"))?;
            let noted = self.jobs.note_previous_accounts(&page.previous).await;
            noted.map_err(fail_task("note the accounts that tenants had before"))?;
            // Refunds and disputes of old payments still come on them.
            let previous = page.previous.into_iter().map(|(account, _)| account);
            let accounts: BTreeSet<AccountId> = page.accounts.into_iter().chain(previous).collect();
            let asked: Vec<_> = stream::iter(&accounts)
                .map(async |account| {
                    let answer = self.read_account(stripe, Some(account), deadline).await;
                    (account, answer)
                })
                .buffer_unordered(ACCOUNTS_AT_ONCE)
                .collect()
                .await;
            let mut was_interrupted = false;
            for (account, (answer, did)) in asked {
                was_interrupted |= did.was_interrupted;
                summary.add(Some(account), answer.err(), &did);
            }
            if was_interrupted {
                return Ok(PassEnd::Interrupted);
            }
            *after = page.next;
            if after.is_none() {
                return Ok(PassEnd::Completed);
            }
        }
    }

    /// Reads all cursors of one account. Also returns what was done before an error.
    async fn read_account(
        &self,
        stripe: &S,
        account: Option<&AccountId>,
        deadline: Timestamp,
    ) -> (Result<(), AccountError>, AccountProgress) {
        let mut did = AccountProgress::default();
        for (set, types) in event_type_sets().enumerate() {
            let job = reconcile_cursor_key(account, set);
            let done = self.read_cursor(stripe, account, &job, types, deadline, &mut did);
            if let Err(error) = done.await {
                return (Err(error), did);
            }
        }
        (Ok(()), did)
    }

    /// Reads one cursor's events: from two hours before it up to now, or the rest of an interrupted pass.
    ///
    /// The cursor rises only if the pass completes. If the deadline or an error interrupts it, the cursor stays, and
    /// the place behind the last event that was stored is saved. The save is conditional: if `webhook-secret` set the
    /// cursor back during this run (it deleted an endpoint), the lower value stays, and the next run reads from there.
    async fn read_cursor(
        &self,
        stripe: &S,
        account: Option<&AccountId>,
        job: &str,
        types: &[&str],
        deadline: Timestamp,
        did: &mut AccountProgress,
    ) -> Result<(), AccountError> {
        let checkpoint = self.jobs.load_checkpoint(job).await?;
        let mut span = next_listing_span(&checkpoint, self.clock.now());
        let mut may_begin_again = span.after.is_some();
        let passed = loop {
            if lacks_time_to_start(&self.clock, deadline) {
                did.was_interrupted = true;
                break Ok(PassEnd::Interrupted);
            }
            let page = match stripe.list_events(account, types, &span).await {
                Ok(page) => page,
                // The pass was interrupted so long ago that Stripe no longer lists the event: start the pass again.
                // Only once: when each refusal started it again, a run asked for the same two pages until its deadline.
                Err(ListEventsError::UnknownStartingEvent(_)) if may_begin_again => {
                    may_begin_again = false;
                    span.after = None;
                    continue;
                }
                Err(error) => break Err(error.into()),
            };
            did.events += page.events.len();
            match self
                .accept_page(stripe, account, &checkpoint, &page.events, did)
                .await
            {
                Ok(Some(last)) => span.after = Some(last.to_string()),
                Ok(None) if page.has_more => {
                    break Err(AccountError::Failed(
                        "stripe's page has no event to go on after".to_owned(),
                    ));
                }
                Ok(None) => {}
                Err(error) => break Err(error),
            }
            if !page.has_more {
                break Ok(PassEnd::Completed);
            }
        };
        let next = match (&passed, span.after) {
            (Ok(PassEnd::Completed), _) => Checkpoint::completed_through(span.until_s),
            (Ok(PassEnd::Interrupted) | Err(_), Some(after)) => {
                checkpoint.interrupted_at(span.until_s, after)
            }
            (Ok(PassEnd::Interrupted) | Err(_), None) => checkpoint.clone(),
        };
        // Not saved: the cursor was set back, or another run raised it. The next run begins there.
        let saved = match next == checkpoint {
            true => CheckpointSaveResult::Saved,
            false => self.jobs.save_checkpoint(job, &checkpoint, &next).await?,
        };
        let through_s = match saved {
            CheckpointSaveResult::Saved => next.done_through_s,
            CheckpointSaveResult::Superseded => checkpoint.done_through_s,
        };
        did.through_s = match (did.through_s, through_s) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        passed.map(|_| ())
    }

    /// Stores and queues the missing events of a page. Returns the last event of the page that could be read.
    async fn accept_page(
        &self,
        stripe: &S,
        account: Option<&AccountId>,
        checkpoint: &Checkpoint,
        events: &[FetchedEvent],
        did: &mut AccountProgress,
    ) -> Result<Option<EventId>, AccountError> {
        let mut last = None;
        let mut listed: BTreeMap<EventId, (Verified<'_>, EventEnvelope)> = BTreeMap::new();
        for event in events {
            match read_envelope(&event.verified()) {
                Ok(envelope) => {
                    last = Some(envelope.id.clone());
                    listed.insert(envelope.id.clone(), (event.verified(), envelope));
                }
                Err(error) => {
                    did.failed += 1;
                    tracing::error!(
                        account = account_name(account),
                        "event_unreadable of {}: {error}",
                        account_name(account)
                    );
                }
            }
        }
        let ids: BTreeSet<EventId> = listed.keys().cloned().collect();
        if ids.is_empty() {
            return Ok(last);
        }
        let known = self.inbox.known_events(&ids).await?;
        listed.retain(|id, _| !known.contains(id));
        // Who the platform is, Stripe does not tell to every key; whose an event is, it does. An account that has nothing
        // missing costs no call.
        if let (Some(_), Some(missing)) = (account, listed.keys().next())
            && stripe
                .is_event_of_platform(missing)
                .await
                .map_err(AccountError::from)?
        {
            return Err(AccountError::Refused(
                "it is the platform's own account, whose events have no account: take it out of the tenants table".to_owned(),
            ));
        }
        let taken: Vec<Result<MissingEvent, DependencyError>> = stream::iter(listed.into_values())
            .map(|(body, envelope)| self.accept_missing(account, checkpoint, body, envelope))
            .buffer_unordered(EVENTS_AT_ONCE)
            .collect()
            .await;
        for taken in taken {
            did.gaps += usize::from(taken? == MissingEvent::Gap);
            did.taken_in += 1;
        }
        Ok(last)
    }

    /// Stores and queues one missing event.
    async fn accept_missing(
        &self,
        account: Option<&AccountId>,
        checkpoint: &Checkpoint,
        body: Verified<'_>,
        envelope: EventEnvelope,
    ) -> Result<MissingEvent, DependencyError> {
        let now = self.clock.now();
        let new = NewEvent {
            source: EventSource::Reconcile,
            envelope,
            body,
            correlation_id: CorrelationId(self.clock.new_id()),
            received_at: now,
        };
        accept_event(&self.inbox, &self.queue, &self.clock, &new).await?;
        let is_gap = is_event_gap(checkpoint, new.envelope.created_at, now);
        tracing::warn!(
            correlation_id = %new.correlation_id,
            event_id = %new.envelope.id,
            event_type = %new.envelope.event_type,
            account = account_name(account),
            is_gap,
            "event_reconciled {} of {} correlation_id={}",
            new.envelope.id,
            account_name(account),
            new.correlation_id
        );
        Ok(match is_gap {
            true => MissingEvent::Gap,
            false => MissingEvent::NotAGap,
        })
    }
}

fn account_name(account: Option<&AccountId>) -> &str {
    account.map_or("platform", AccountId::as_str)
}

impl ReconcileSummary {
    fn add(
        &mut self,
        account: Option<&AccountId>,
        error: Option<AccountError>,
        did: &AccountProgress,
    ) {
        self.accounts += 1;
        self.events += did.events;
        self.taken_in += did.taken_in;
        self.gaps += did.gaps;
        self.failed += did.failed;
        let through = did
            .through_s
            .and_then(|second| Timestamp::from_unix_s(second).ok());
        match error {
            Some(AccountError::Refused(cause)) => {
                tracing::warn!(
                    account = account_name(account),
                    cause,
                    "account_refused {}: {cause}",
                    account_name(account)
                );
                self.refused
                    .extend(account.filter(|_| self.refused.len() < NAMED_MAX).cloned());
                return;
            }
            Some(AccountError::Failed(cause)) => {
                self.failed += 1;
                tracing::error!(
                    account = account_name(account),
                    cause,
                    "reconcile_failed {}: {cause}",
                    account_name(account)
                );
            }
            None => tracing::info!(
                account = account_name(account),
                through = through.map(tracing::field::display),
                "reconciled {}",
                account_name(account)
            ),
        }
        self.reconciled_through = match (self.reconciled_through, through) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}
