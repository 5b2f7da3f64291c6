//! Reconciliation with Stripe: fetches events that Stripe lists and no delivery brought, and stores and queues them
//! through the same idempotent receiver as a delivery (`billhook_core::intake::accept`).
//!
//! Guarantees: every event of a handled type that Stripe lists for an account that our key can access is stored once,
//! from three days before the account's first run, and at most 30 days back; a cursor (high-water mark) rises only
//! after everything before it was stored and queued. An event that we fetch with our own key over TLS is as authentic
//! as one with a valid signature; its account is the one that we asked about.
//! The platform's own account in a tenant's row is skipped: its events are listed without an account already, and stored
//! with one they would belong to that tenant.
//! Each account gets its turn in every run, and what is left of the time goes to those that need more: an account with a
//! million events must not keep the accounts behind it from being asked. How far behind each account is, is measured in
//! every run, also of those that it did not come to.
//! Without a key there is nothing to ask, and that is a result and no failure: an environment waits for its key, or never
//! uses Stripe. A key that is gone is different: the platform falls behind, and that is measured and alarmed.
//! `billhook_core::tasks::reconcile` computes what to list, with an example of an interrupted pass.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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
use billhook_core::tasks::reconcile::{
    DoneTypes, LAG_MAX, REFUSAL_TOLD_AFTER, done_through_s, event_type_sets, is_event_gap,
    never_read_through_s, next_listing_span,
};
use billhook_core::time::Timestamp;
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;

use crate::scheduled_task::{
    PassEnd, ScheduledTask, TaskFailed, fail_task, lacks_time_to_start, log_missing_key,
};

/// Tenants in one page of the list of accounts.
const TENANTS_PER_PAGE: usize = 25;
/// Accounts in progress at the same time.
const ACCOUNTS_AT_ONCE: usize = 4;
/// Events of one account that are stored and queued at the same time.
const EVENTS_AT_ONCE: usize = 4;
/// Refused accounts that the summary names; the log names all, each once.
const NAMED_MAX: usize = 20;
/// Pages of 100 events that one cursor is read in one turn.
const PAGES_PER_TURN: usize = 10;
/// No page is asked for later in a turn than this. A call takes at most 31.5 s, so both cursors of 25 accounts, four at
/// once, take at most 770 s of the 900: even at a slow Stripe a page of tenants is done in one run.
const TURN_TIME: Duration = Duration::from_secs(30);
/// Cursors are read this long before the deadline at the latest: reading one takes no call to Stripe.
const SURVEY_RESERVE: Duration = Duration::from_secs(5);

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
    /// Accounts that refuse our key (401, 403), and the platform's own in a tenant's row, the first 20: skipped.
    pub refused: Vec<AccountId>,
    /// Accounts with a failed call, and events that could not be read: a later run tries again.
    pub failed: usize,
    /// Accounts that are more than 3 hours behind, also of those that the run did not come to.
    pub lagging: usize,
    /// The lowest cursor of all accounts that are not refused.
    pub reconciled_through: Option<Timestamp>,
    /// False if the deadline interrupted the run before every account had its turn: the next run resumes.
    pub completed: bool,
    /// No key for Stripe is stored: nothing was asked.
    pub no_key: bool,
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

/// What a run has done for one account, in all its turns.
#[derive(Default)]
struct AccountProgress {
    events: usize,
    taken_in: usize,
    gaps: usize,
    failed: usize,
    /// The lowest of the account's cursors, after its last turn.
    through_s: Option<i64>,
    /// The turn ended before the account's events did.
    needs_more: bool,
    /// The turn was cut by the deadline.
    was_interrupted: bool,
    error: Option<AccountError>,
    refusal: Option<RefusalReport>,
}

/// Whether the log has to tell that an account refuses our key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RefusalReport {
    /// It has refused for a day, and nobody was told yet.
    Due,
    /// It was told, or the account refuses for less than a day.
    NotDue,
}

impl AccountProgress {
    /// Adds what a further turn did.
    fn add_turn(&mut self, turn: Self) {
        self.events += turn.events;
        self.taken_in += turn.taken_in;
        self.gaps += turn.gaps;
        self.failed += turn.failed;
        self.through_s = turn.through_s;
        self.needs_more = turn.needs_more;
        self.was_interrupted = turn.was_interrupted;
        self.error = turn.error;
        self.refusal = turn.refusal;
    }

    fn is_refused(&self) -> bool {
        matches!(self.error, Some(AccountError::Refused(_)))
    }
}

/// By account; none is the platform.
type ProgressByAccount = BTreeMap<Option<AccountId>, AccountProgress>;

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
    /// interrupted, it begins with the page of 25 tenants that was not completed, else with the first. Each account gets
    /// one turn of at most `PAGES_PER_TURN` pages per cursor and `TURN_TIME`; those that need more get further turns, one after
    /// another, for as long as there is time.
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
        let Some(stripe) = &self.stripe else {
            return self.report_missing_key().await;
        };
        let mut progress = ProgressByAccount::new();
        let platform = self.read_account(stripe, None, deadline).await;
        if let Some(AccountError::Refused(cause)) = platform.error {
            // The key itself is wrong: Stripe would refuse every account.
            ReconcileSummary::default().add_lag(None, platform.through_s, self.clock.now());
            return Err(TaskFailed {
                doing: "list the platform's events",
                cause,
            });
        }
        progress.insert(None, platform);
        let read = self.jobs.load_checkpoint(Self::NAME).await;
        let checkpoint = read.map_err(fail_task("load the checkpoint"))?;
        let resume_at = checkpoint.resume_at.as_ref();
        let mut after = resume_at.map(|resume| resume.after.clone());
        let is_whole_list = after.is_none();
        let end = self
            .read_accounts(stripe, &mut after, &mut progress, deadline)
            .await?;
        if end == PassEnd::Completed {
            self.read_rest(stripe, &mut progress, deadline).await;
        }
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
        let mut summary = ReconcileSummary {
            task: Self::NAME,
            completed: end == PassEnd::Completed,
            ..ReconcileSummary::default()
        };
        let now = self.clock.now();
        for (account, did) in progress.iter() {
            summary.add(account.as_ref(), did, now);
        }
        if !(is_whole_list && summary.completed) {
            self.survey(&progress, &mut summary, deadline).await?;
        }
        metrics::EVENT_GAP.add(
            ProviderId::Stripe,
            u64::try_from(summary.gaps).unwrap_or(u64::MAX),
        );
        tracing::info!(
            gaps = summary.gaps,
            taken_in = summary.taken_in,
            lagging = summary.lagging,
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
    /// The result of a run without a key. If the platform was read before, its key was taken away, by mistake or not: it
    /// falls behind, and the alarm tells it after three hours.
    async fn report_missing_key(&self) -> Result<ReconcileSummary, TaskFailed> {
        log_missing_key();
        let mut summary = ReconcileSummary {
            task: Self::NAME,
            no_key: true,
            completed: true,
            ..ReconcileSummary::default()
        };
        let cursors = self.load_cursors(None).await;
        let through_s = done_through_s(&cursors.map_err(fail_task("load a cursor"))?);
        summary.add_lag(None, through_s, self.clock.now());
        Ok(summary)
    }

    /// Gives each account its first turn, page by page. `after` is the last tenant of the last page in which every
    /// account had its turn. Before accounts had turns, one with a long list kept all behind it from being asked, in
    /// every run.
    async fn read_accounts(
        &self,
        stripe: &S,
        after: &mut Option<String>,
        progress: &mut ProgressByAccount,
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
            // Two tenants may have one account.
            let accounts = accounts.into_iter().map(Some);
            let accounts = accounts.filter(|account| !progress.contains_key(account));
            let accounts: Vec<Option<AccountId>> = accounts.collect();
            let was_interrupted = self.read_turns(stripe, accounts, progress, deadline).await;
            if was_interrupted {
                return Ok(PassEnd::Interrupted);
            }
            *after = page.next;
            if after.is_none() {
                return Ok(PassEnd::Completed);
            }
        }
    }

    /// Further turns for the accounts that need more, until none does or the time is up.
    async fn read_rest(&self, stripe: &S, progress: &mut ProgressByAccount, deadline: Timestamp) {
        loop {
            let unfinished = progress.iter().filter(|(_, did)| did.needs_more);
            let unfinished: Vec<Option<AccountId>> =
                unfinished.map(|(account, _)| account.clone()).collect();
            if unfinished.is_empty() || lacks_time_to_start(&self.clock, deadline) {
                return;
            }
            let was_interrupted = self
                .read_turns(stripe, unfinished, progress, deadline)
                .await;
            if was_interrupted {
                return;
            }
        }
    }

    /// One turn of each of these accounts; whether the deadline cut one.
    async fn read_turns(
        &self,
        stripe: &S,
        accounts: Vec<Option<AccountId>>,
        progress: &mut ProgressByAccount,
        deadline: Timestamp,
    ) -> bool {
        let turns: Vec<(Option<AccountId>, AccountProgress)> = stream::iter(accounts)
            .map(async |account| {
                let turn = self.read_account(stripe, account.as_ref(), deadline).await;
                (account, turn)
            })
            .buffer_unordered(ACCOUNTS_AT_ONCE)
            .collect()
            .await;
        let was_interrupted = turns.iter().any(|(_, turn)| turn.was_interrupted);
        for (account, turn) in turns {
            progress.entry(account).or_default().add_turn(turn);
        }
        was_interrupted
    }

    /// Measures how far behind the accounts are that this run did not come to: an account that is left out is the one to
    /// be alarmed about.
    async fn survey(
        &self,
        progress: &ProgressByAccount,
        summary: &mut ReconcileSummary,
        deadline: Timestamp,
    ) -> Result<(), TaskFailed> {
        let mut after: Option<String> = None;
        loop {
            let page = self.jobs.accounts(after.as_deref(), TENANTS_PER_PAGE).await;
            let page = page.map_err(fail_task("list the tenants' accounts"))?;
            for account in page.accounts {
                if self.clock.now().after(SURVEY_RESERVE) > deadline {
                    tracing::warn!("reconcile_survey_cut: not every account's lag was measured");
                    return Ok(());
                }
                let account = Some(account);
                if progress.contains_key(&account) {
                    continue;
                }
                let cursors = self.load_cursors(account.as_ref()).await;
                let cursors = cursors.map_err(fail_task("load a cursor"))?;
                let is_refused = cursors.iter().any(|cursor| cursor.refusal.is_some());
                if !is_refused {
                    let through_s = done_through_s(&cursors);
                    summary.add_lag(account.as_ref(), through_s, self.clock.now());
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn load_cursors(
        &self,
        account: Option<&AccountId>,
    ) -> Result<Vec<Checkpoint>, DependencyError> {
        let mut cursors = Vec::new();
        for (set, _) in event_type_sets().enumerate() {
            let job = reconcile_cursor_key(account, set);
            cursors.push(self.jobs.load_checkpoint(&job).await?);
        }
        Ok(cursors)
    }

    /// One turn: reads all cursors of one account.
    async fn read_account(
        &self,
        stripe: &S,
        account: Option<&AccountId>,
        deadline: Timestamp,
    ) -> AccountProgress {
        let mut did = AccountProgress::default();
        let mut cursors = match self.load_cursors(account).await {
            Ok(cursors) => cursors,
            Err(error) => {
                did.error = Some(error.into());
                return did;
            }
        };
        let done = DoneTypes::of_cursors(&cursors);
        for ((set, types), cursor) in event_type_sets().enumerate().zip(&mut cursors) {
            let job = reconcile_cursor_key(account, set);
            let reading = CursorReading {
                account,
                job: &job,
                types,
                done: &done,
                deadline,
            };
            let read = self.read_cursor(stripe, &reading, cursor, &mut did).await;
            if let Err(error) = read {
                did.error = Some(error);
                break;
            }
        }
        did.through_s = done_through_s(&cursors);
        if did.is_refused() {
            did.refusal = Some(self.note_refusal(account, cursors).await);
        }
        did
    }

    /// Notes in the account's first cursor that it refuses our key. It is told after a day, once: who disconnects an
    /// account by mistake connects it again, and nobody can do anything about the others.
    async fn note_refusal(
        &self,
        account: Option<&AccountId>,
        cursors: Vec<Checkpoint>,
    ) -> RefusalReport {
        let Some(known) = cursors.into_iter().next() else {
            return RefusalReport::NotDue;
        };
        let now = self.clock.now();
        let mut next = known.refused_at(now);
        let since = next
            .refusal
            .and_then(|refusal| Timestamp::from_unix_s(refusal.since_s).ok());
        let is_old = since.is_some_and(|since| since.after(REFUSAL_TOLD_AFTER) <= now);
        let is_due = is_old && next.refusal_told_at().is_none();
        if is_due {
            next = next.with_refusal_told(now);
        }
        if next != known {
            let job = reconcile_cursor_key(account, 0);
            let saved = self.jobs.save_checkpoint(&job, &known, &next).await;
            // Told again rather than never: the next run finds that nobody was told.
            if let Err(error) = saved {
                tracing::warn!("refusal_not_saved {job}: {}", error_chain(&error));
            }
        }
        match is_due {
            true => RefusalReport::Due,
            false => RefusalReport::NotDue,
        }
    }

    /// Reads one cursor's events: from two hours before it up to now, or the rest of an interrupted pass.
    ///
    /// The cursor rises only if the pass completes. If the deadline, the end of the turn or an error interrupts it, the
    /// cursor stays, and the place behind the last event that was stored is saved. The save is conditional: if
    /// `webhook-secret` set the cursor back during this run (it deleted an endpoint), the lower value stays, and the next
    /// run reads from there.
    async fn read_cursor(
        &self,
        stripe: &S,
        reading: &CursorReading<'_>,
        checkpoint: &mut Checkpoint,
        did: &mut AccountProgress,
    ) -> Result<(), AccountError> {
        let CursorReading { account, types, .. } = reading;
        let mut span = next_listing_span(checkpoint, types, reading.done, self.clock.now());
        let mut may_begin_again = span.after.is_some();
        let turn_ends = self.clock.now().after(TURN_TIME);
        let mut pages = 0_usize;
        let mut has_answered = false;
        let passed = loop {
            if lacks_time_to_start(&self.clock, reading.deadline) {
                did.was_interrupted = true;
                break Ok(PassEnd::Interrupted);
            }
            if pages == PAGES_PER_TURN || (pages > 0 && self.clock.now() >= turn_ends) {
                did.needs_more = true;
                break Ok(PassEnd::Interrupted);
            }
            pages += 1;
            let page = match stripe.list_events(*account, types, &span).await {
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
            has_answered = true;
            did.events += page.events.len();
            match self.accept_page(stripe, reading, &page.events, did).await {
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
        let mut next = match (&passed, span.after) {
            (Ok(PassEnd::Completed), _) => {
                Checkpoint::completed_through(span.until_s).of_types(types)
            }
            (Ok(PassEnd::Interrupted) | Err(_), Some(after)) => checkpoint
                .interrupted_at(span.until_s, after)
                .of_types(types),
            (Ok(PassEnd::Interrupted) | Err(_), None) => checkpoint.clone(),
        };
        if has_answered {
            next.refusal = None;
        }
        // Not saved: the cursor was set back, or another run raised it. The next run begins there.
        let saved = match next == *checkpoint {
            true => CheckpointSaveResult::Saved,
            false => {
                let saved = self.jobs.save_checkpoint(reading.job, checkpoint, &next);
                saved.await?
            }
        };
        if saved == CheckpointSaveResult::Saved {
            *checkpoint = next;
        }
        passed.map(|_| ())
    }

    /// Stores and queues the missing events of a page. Returns the last event of the page that could be read.
    async fn accept_page(
        &self,
        stripe: &S,
        reading: &CursorReading<'_>,
        events: &[FetchedEvent],
        did: &mut AccountProgress,
    ) -> Result<Option<EventId>, AccountError> {
        let account = reading.account;
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
            .map(|(body, envelope)| self.accept_missing(account, reading.done, body, envelope))
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
        done: &DoneTypes,
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
        let event_type = new.envelope.event_type.as_str();
        let is_gap = is_event_gap(done, event_type, new.envelope.created_at, now);
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

/// One cursor, and what is known when its turn begins.
struct CursorReading<'a> {
    account: Option<&'a AccountId>,
    job: &'a str,
    types: &'a [&'a str],
    /// By all cursors of the account.
    done: &'a DoneTypes,
    deadline: Timestamp,
}

fn account_name(account: Option<&AccountId>) -> &str {
    account.map_or("platform", AccountId::as_str)
}

impl ReconcileSummary {
    fn add(&mut self, account: Option<&AccountId>, did: &AccountProgress, now: Timestamp) {
        self.accounts += 1;
        self.events += did.events;
        self.taken_in += did.taken_in;
        self.gaps += did.gaps;
        self.failed += did.failed;
        let is_failed = matches!(did.error, Some(AccountError::Failed(_)));
        let never_read = is_failed.then(|| never_read_through_s(now));
        let through_s = did.through_s.or(never_read);
        let through = read_second(through_s);
        let behind_s = through.map(|through| through.until(now).as_secs());
        let name = account_name(account);
        match &did.error {
            Some(AccountError::Refused(cause)) => {
                if did.refusal == Some(RefusalReport::Due) {
                    metrics::ACCOUNT_REFUSED.count(ProviderId::Stripe);
                    tracing::warn!(
                        account = name,
                        cause,
                        "account_refused {name} has refused billhook's key for a day: {cause}; see docs/runbook/reconcile.md"
                    );
                }
                self.refused
                    .extend(account.filter(|_| self.refused.len() < NAMED_MAX).cloned());
                return;
            }
            Some(AccountError::Failed(cause)) => {
                self.failed += 1;
                tracing::error!(
                    account = name,
                    behind_s,
                    cause,
                    "reconcile_failed {name}: {cause}"
                );
            }
            None => tracing::info!(
                account = name,
                through = through.map(tracing::field::display),
                behind_s,
                "reconciled {name}"
            ),
        }
        self.add_lag(account, through_s, now);
    }

    /// Each account is one measurement: the alarm looks at the greatest, so that none hides behind another.
    fn add_lag(&mut self, account: Option<&AccountId>, through_s: Option<i64>, now: Timestamp) {
        let Some(through) = read_second(through_s) else {
            return;
        };
        let behind = through.until(now);
        metrics::RECONCILED_THROUGH.add(ProviderId::Stripe, behind.as_secs());
        if behind > LAG_MAX {
            self.lagging += 1;
            let name = account_name(account);
            tracing::warn!(
                account = name,
                behind_s = behind.as_secs(),
                "reconcile_behind {name} through {through}; see docs/runbook/reconcile.md"
            );
        }
        self.reconciled_through = match self.reconciled_through {
            Some(lowest) => Some(lowest.min(through)),
            None => Some(through),
        };
    }
}

fn read_second(second: Option<i64>) -> Option<Timestamp> {
    Timestamp::from_unix_s(second?).ok()
}
