//! The cleanup: cancels orders whose last payment attempt failed longer ago than the grace period (60 minutes).
//!
//! Guarantee: it never cancels an order that has money, or a payment that may still bring money. It first asks Stripe
//! about every payment of the order and ends those that can still be paid; then it writes, on condition that the row is
//! as it was read before the questions (optimistic lock). If a payment arrives later all the same, the payment wins
//! (`paid_after_cancel`). Not guaranteed: that every failed order is cancelled by one run; the checkpoint resumes.
//! An account that refuses our key is left alone, and told once (`account_refused`) until it answers again: nobody can
//! do anything about an account that was disconnected, so its orders are no failures. If it is the platform itself, the
//! key is wrong or lacks a permission, and that is told, and alarmed, once a day.
//! `billhook_core::tasks::cleanup` decides what is due.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billhook_adapters::metrics;
use billhook_adapters::report::report_entity_commit;
use billhook_core::entity::account::{StripeStatus, derive_account};
use billhook_core::entity::key::StateKey;
use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::error::error_chain;
use billhook_core::ids::{AccountId, OrderId, ProviderId, TenantId};
use billhook_core::ports::Clock;
use billhook_core::provider::stripe::types::{IntentSnapshot, SessionStatus};
use billhook_core::tasks::checkpoint::{Checkpoint, cleanup_account_key};
use billhook_core::tasks::cleanup::{
    CancellablePayment, CancellableSession, CleanupDecision, PaymentEnd, PaymentsToEnd,
    cancellation_fact, cleanup_idempotency_key, decide_cleanup, must_tell_refusal,
};
use billhook_core::tasks::definitions::CleanupInput;
use billhook_core::tasks::ports::{
    CheckpointStore, FindFailedOrders, PaymentCallError, PaymentsAtStripe,
};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{CommitError, CommitPart, EntityWrite, Ledger, LoadedRows};
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;
use uuid::Uuid;

use crate::scheduled_task::{
    ScheduledTask, TaskFailed, fail_task, lacks_time_to_start, log_missing_key,
};

/// Orders read from the index, and then from the table, in one page.
const PAGE: usize = 50;
/// Orders in progress at the same time. At 200 ms per call, 16 orders make 80 calls per second, which is enough to use
/// the rate limit of 60.
const ORDERS_AT_ONCE: usize = 16;
/// How often one order is decided. A lost race is common here: our own cancel makes Stripe send
/// `payment_intent.canceled`, and the worker often writes it between our read and our write.
const ROUNDS_MAX: u32 = 3;

/// Accounts whose rows are looked up at the same time at the end of a run.
const ACCOUNTS_AT_ONCE: usize = 16;
/// Of the reserve, for these rows: the checkpoint is saved before.
const ACCOUNTS_TIME: Duration = Duration::from_secs(3);

/// The run stops everything this long before the deadline, so that it can save its checkpoint.
const CHECKPOINT_RESERVE: Duration = Duration::from_secs(5);

/// The result of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CleanupSummary {
    pub scanned: usize,
    /// In a dry run: the orders that would be cancelled.
    pub cancelled: usize,
    /// Unchanged, because Stripe says that a payment is paid, or is or may be under way. The payment's own event
    /// completes the order, or makes it fail.
    pub reconciled: usize,
    /// Unchanged, because the account of a payment refuses our key.
    pub refused: usize,
    /// Not due, or repaired, paid or cancelled meanwhile.
    pub skipped: usize,
    /// A call failed: a later run tries again.
    pub failed: usize,
    pub dry_run: bool,
    /// Unchanged, because no key for Stripe is stored: nobody could be asked.
    pub unasked: usize,
}

/// The task with its ports.
#[derive(Debug)]
pub struct CleanupTask<L, P, J, C> {
    pub ledger: L,
    /// None if no key is stored.
    pub payments: Option<P>,
    pub jobs: J,
    pub clock: C,
    /// How long the customer has to try again after a failed payment.
    pub grace: Duration,
}

enum OrderCleanup {
    Cancelled,
    HasMoney,
    Refused,
    Skipped,
    Failed(String),
    NoKey,
}

/// Why an order is not cancelled after all.
enum CancelObstacle {
    HasMoney,
    /// By the account; none is the platform.
    Refused(Option<AccountId>, String),
    Failed(String),
}

impl CancelObstacle {
    fn of_call(account: Option<&AccountId>) -> impl Fn(PaymentCallError) -> Self {
        move |error| match error {
            PaymentCallError::Refused(cause) => Self::Refused(account.cloned(), cause),
            PaymentCallError::Failed(cause) => Self::Failed(cause),
        }
    }
}

/// What Stripe says can still be paid.
#[derive(Default)]
struct OpenPayments {
    sessions: BTreeSet<CancellableSession>,
    /// Each with whether it was made by Checkout.
    intents: Vec<(CancellablePayment, bool)>,
}

/// The parameters of one run, and what it learned about accounts.
struct CleanupRun {
    id: Uuid,
    grace: Duration,
    dry_run: bool,
    deadline: Timestamp,
    tenants: Mutex<BTreeMap<TenantId, Option<Entity>>>,
    /// The accounts that refused, with the cause; none is the platform.
    refused: Mutex<BTreeMap<Option<AccountId>, String>>,
    answered: Mutex<BTreeSet<Option<AccountId>>>,
}

impl CleanupRun {
    fn note_answer(&self, account: Option<&AccountId>) {
        lock(&self.answered).insert(account.cloned());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<L, P, J, C> ScheduledTask for CleanupTask<L, P, J, C>
where
    L: Ledger + FindFailedOrders,
    P: PaymentsAtStripe,
    J: CheckpointStore,
    C: Clock,
{
    type Input = CleanupInput;
    type Summary = CleanupSummary;

    /// One run. Fails if the orders or the checkpoint cannot be read or saved; what was done before stays done. An error
    /// with one order is counted and logged. Without a key of Stripe no order is cancelled, and that is a result.
    ///
    /// A run that its deadline or limit interrupts saves the last order that it handled, and the next run begins behind
    /// it. Example: orders a to e, limit 2, and none of them can be ended. Runs handle a b, c d, e, and then a b again.
    /// Without the checkpoint, every run would try only a and b. A dry run begins at the first order, asks Stripe as any
    /// run does, and neither ends nor saves anything.
    async fn run(
        &self,
        options: &CleanupInput,
        deadline: Timestamp,
    ) -> Result<CleanupSummary, TaskFailed> {
        let run = CleanupRun {
            id: self.clock.new_id(),
            grace: options.minutes.map_or(self.grace, |minutes| {
                Duration::from_secs(minutes.saturating_mul(60))
            }),
            dry_run: options.dry_run,
            deadline,
            tenants: Mutex::default(),
            refused: Mutex::default(),
            answered: Mutex::default(),
        };
        let mut summary = CleanupSummary {
            dry_run: options.dry_run,
            ..CleanupSummary::default()
        };
        let checkpoint = match options.dry_run {
            true => Checkpoint::default(),
            false => self
                .jobs
                .load_checkpoint(Self::NAME)
                .await
                .map_err(fail_task("load the checkpoint"))?,
        };
        let mut after = checkpoint
            .resume_at
            .as_ref()
            .map(|resume| resume.after.clone());
        // The deadline is checked before each order, but an order with several payments can take several times 31 s at
        // a slow Stripe. When Lambda ended such a run, its checkpoint was lost. Stopping in the middle is safe: every
        // call can be repeated.
        let time_left = self.clock.now().until(deadline);
        let pages = self.process_pages(&run, options.limit, &mut after, &mut summary);
        let ended = tokio::time::timeout(time_left.saturating_sub(CHECKPOINT_RESERVE), pages).await;
        let ended = ended.unwrap_or(Ok(()));
        // Save the checkpoint even after an error: otherwise the next run would meet the same orders first again.
        if !options.dry_run {
            let next = match &after {
                Some(order) => checkpoint.interrupted_at(self.clock.now().unix_s(), order.clone()),
                None => Checkpoint::default(),
            };
            if next.resume_at.is_some() || checkpoint.resume_at.is_some() {
                let saved = self
                    .jobs
                    .save_checkpoint(Self::NAME, &checkpoint, &next)
                    .await;
                saved.map_err(fail_task("save the checkpoint"))?;
            }
            // Without it the next run remembers.
            let remembering = self.remember_accounts(&run);
            tokio::time::timeout(ACCOUNTS_TIME, remembering).await.ok();
        } else {
            for (account, cause) in lock(&run.refused).iter() {
                let account = account.as_ref().map_or("platform", AccountId::as_str);
                tracing::info!(account, cause, "refuses {account}: {cause}");
            }
        }
        if summary.unasked > 0 {
            log_missing_key();
        }
        ended.map(|()| summary)
    }
}

impl<L, P, J, C> CleanupTask<L, P, J, C>
where
    L: Ledger + FindFailedOrders,
    P: PaymentsAtStripe,
    J: CheckpointStore,
    C: Clock,
{
    /// Handles the orders page by page. `after` is the last order that was handled; none once all were.
    async fn process_pages(
        &self,
        run: &CleanupRun,
        limit: Option<usize>,
        after: &mut Option<String>,
        summary: &mut CleanupSummary,
    ) -> Result<(), TaskFailed> {
        loop {
            let left = limit.map_or(PAGE, |limit| {
                limit.saturating_sub(summary.scanned).min(PAGE)
            });
            if left == 0 || lacks_time_to_start(&self.clock, run.deadline) {
                return Ok(());
            }
            let page = self
                .ledger
                .failed_orders(after.as_deref(), left)
                .await
                .map_err(fail_task("find failed orders"))?;
            let keys = page.orders.iter().cloned().map(EntityKey::Order);
            let rows = self
                .ledger
                .load_rows(&keys.map(StateKey::Entity).collect())
                .await
                .map_err(fail_task("read failed orders"))?;
            // `buffered` keeps the order of the page. Results are counted up to the first order that was not started,
            // so that the checkpoint is one place: everything before it was handled.
            let findings: Vec<(&OrderId, Option<OrderCleanup>)> = stream::iter(&page.orders)
                .map(async |id| (id, self.process_order(id, &rows, run).await))
                .buffered(ORDERS_AT_ONCE)
                .collect()
                .await;
            for (id, finding) in findings {
                let Some(finding) = finding else {
                    return Ok(());
                };
                match finding {
                    OrderCleanup::NoKey => summary.unasked += 1,
                    OrderCleanup::Refused => summary.refused += 1,
                    OrderCleanup::Cancelled => summary.cancelled += 1,
                    OrderCleanup::HasMoney => summary.reconciled += 1,
                    OrderCleanup::Skipped => summary.skipped += 1,
                    OrderCleanup::Failed(cause) => {
                        summary.failed += 1;
                        metrics::CLEANUP_FAILED.count(ProviderId::Stripe);
                        tracing::error!(order = %id, cause, "cleanup_failed {id}: {cause}");
                    }
                }
                summary.scanned += 1;
                *after = Some(id.to_string());
            }
            *after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Handles one order; `None` if there is no time left to start.
    async fn process_order(
        &self,
        id: &OrderId,
        rows: &LoadedRows<L::Row>,
        run: &CleanupRun,
    ) -> Option<OrderCleanup> {
        if lacks_time_to_start(&self.clock, run.deadline) {
            return None;
        }
        let key = EntityKey::Order(id.clone());
        let finding = match self.try_order(&key, rows, run).await {
            Ok(Some(finding)) => Ok(finding),
            Ok(None) => self.retry_order(&key, run).await,
            Err(cause) => Err(cause),
        };
        Some(finding.unwrap_or_else(OrderCleanup::Failed))
    }

    /// After a lost race: reads the row again and decides again, from Stripe's status too.
    async fn retry_order(&self, key: &EntityKey, run: &CleanupRun) -> Result<OrderCleanup, String> {
        for _ in 1..ROUNDS_MAX {
            let rows = self.read_again(key).await?;
            if let Some(finding) = self.try_order(key, &rows, run).await? {
                return Ok(finding);
            }
        }
        // Another writer won every round; the next run tries again.
        Ok(OrderCleanup::Skipped)
    }

    async fn read_again(&self, key: &EntityKey) -> Result<LoadedRows<L::Row>, String> {
        let keys = [key.clone().into()].into();
        let rows = self.ledger.load_rows(&keys).await;
        rows.map_err(|error| error_chain(&error))
    }

    /// Decides about one order as read, and cancels it; `None` if the write lost a race.
    ///
    /// Stripe comes first, because only Stripe can stop the customer from paying: an order that we cancelled in our
    /// table alone could still be paid on an open payment page. The race with the customer, who pays `pi_1` of an order
    /// at version 4:
    ///
    /// ```text
    /// the customer pays …                what happens
    /// before we ask for the status       succeeded: counted as reconciled, nothing is written
    /// after that, before our cancel      Stripe refuses the cancel, the status is succeeded: the same
    /// after our cancel                   Stripe refuses the payment; we write cancelled, version 4 → 5
    /// in another payment, which no       its event makes the row version 5: our write on version 4 loses, we read
    ///   event or column has named yet    again, and the order is completed: skipped
    /// the same, after our write          its event makes the order completed and flags paid_after_cancel
    /// ```
    async fn try_order(
        &self,
        key: &EntityKey,
        rows: &LoadedRows<L::Row>,
        run: &CleanupRun,
    ) -> Result<Option<OrderCleanup>, String> {
        if let Some(reason) = rows.unreadable.get(&StateKey::Entity(key.clone())) {
            return Err(format!("the row cannot be read: {reason}"));
        }
        let Some((order, row)) = rows.entities.get(key) else {
            return Ok(Some(OrderCleanup::Skipped));
        };
        let payments = match decide_cleanup(order, run.grace, self.clock.now()) {
            CleanupDecision::Cancel(payments) => payments,
            CleanupDecision::NotFailed | CleanupDecision::TooYoung => {
                return Ok(Some(OrderCleanup::Skipped));
            }
            CleanupDecision::WrongStatus if run.dry_run => {
                return Ok(Some(OrderCleanup::Skipped));
            }
            CleanupDecision::WrongStatus => {
                let is_written = self.write_order(order, row, None).await?;
                return Ok(is_written.then_some(OrderCleanup::Skipped));
            }
        };
        let Some(stripe) = &self.payments else {
            return Ok(Some(OrderCleanup::NoKey));
        };
        let ended = match self.ask_about(stripe, order, &payments, run).await {
            Ok(_) if run.dry_run => return Ok(Some(OrderCleanup::Cancelled)),
            Ok(open) => self.end_payments(stripe, order, &open, run).await,
            Err(obstacle) => Err(obstacle),
        };
        match ended {
            Ok(()) => {}
            Err(CancelObstacle::HasMoney) => return Ok(Some(OrderCleanup::HasMoney)),
            Err(CancelObstacle::Refused(account, cause)) => {
                lock(&run.refused).entry(account).or_insert(cause);
                return Ok(Some(OrderCleanup::Refused));
            }
            Err(CancelObstacle::Failed(cause)) => return Err(cause),
        }
        let cancelled = cancellation_fact(self.clock.now());
        if !self.write_order(order, row, Some(cancelled)).await? {
            return Ok(None);
        }
        tracing::info!(order = %order.key(), "order_cancelled {}", order.key());
        Ok(Some(OrderCleanup::Cancelled))
    }

    /// Writes what follows from the facts of the order and this one; false if another writer was first.
    async fn write_order(
        &self,
        order: &Entity,
        row: &L::Row,
        stated: Option<StatedFacts>,
    ) -> Result<bool, String> {
        let now = self.clock.now();
        let next = order.apply_facts(stated, now);
        let part = CommitPart {
            entities: vec![EntityWrite {
                entity: order,
                row,
                next: next.clone(),
            }],
            states: Vec::new(),
            events: Vec::new(),
            now,
        };
        if let Err(error) = self.ledger.commit(ProviderId::Stripe, &[&part]).await {
            // Outcome unknown: the write may have happened and its answer been lost. Then the SDK's own second attempt
            // fails the condition and looks like a lost race. The row decides: if it has the next version and exactly
            // our facts, our write happened.
            let key = order.key();
            let rows = self.read_again(&key).await?;
            let is_written = rows.entities.get(&key).is_some_and(|(found, _)| {
                found.version() == next.version()
                    && found.linked_payment_facts() == next.linked_payment_facts()
            });
            match error {
                _ if is_written => {}
                CommitError::LostRace => return Ok(false),
                error => return Err(error_chain(&error)),
            }
        } else {
            for changed in part.entity_commits() {
                report_entity_commit(ProviderId::Stripe, &changed);
            }
        }
        Ok(true)
    }

    /// Asks about everything before ending anything. Case: `pi_1` is open and `pi_2` is processing. Before this rule,
    /// `pi_1` was cancelled, the order stayed because of `pi_2`, and when that failed later, the customer had no `pi_1`
    /// left to try.
    async fn ask_about(
        &self,
        stripe: &P,
        order: &Entity,
        payments: &PaymentsToEnd,
        run: &CleanupRun,
    ) -> Result<OpenPayments, CancelObstacle> {
        let tenant = self.load_tenant(order, run).await?;
        let tenants = tenant.as_ref().and_then(Entity::connected_account);
        let accounts = payments.accounts(tenants);
        for account in accounts.iter().flatten() {
            if is_deauthorized(tenant.as_ref(), account) {
                let cause = "its tenant's row says that it is deauthorized".to_owned();
                return Err(CancelObstacle::Refused(Some(account.clone()), cause));
            }
        }
        let mut open = OpenPayments::default();
        let mut may_be_paid: Vec<CancellablePayment> = Vec::new();
        for payment in &payments.intents {
            let found = self.read_intent(stripe, payment, run).await?;
            if self.is_open_intent(found.as_ref(), run)? {
                may_be_paid.push(payment.clone());
            }
        }
        if let Some(intent) = &payments.unplaced_intent {
            for account in &accounts {
                let payment = CancellablePayment {
                    intent: intent.clone(),
                    account: account.clone(),
                };
                let found = self.read_intent(stripe, &payment, run).await?;
                let is_here = found.is_some();
                if self.is_open_intent(found.as_ref(), run)? {
                    may_be_paid.push(payment);
                }
                if is_here {
                    break;
                }
            }
        }
        for session in &payments.sessions {
            let found = self.read_session(stripe, session, run).await?;
            if is_open_session(found.as_ref())? {
                open.sessions.insert(session.clone());
            }
        }
        if let Some(session) = &payments.unplaced_session {
            for account in &accounts {
                let session = CancellableSession {
                    session: session.clone(),
                    account: account.clone(),
                };
                let found = self.read_session(stripe, &session, run).await?;
                if is_open_session(found.as_ref())? {
                    open.sessions.insert(session);
                }
                if found.is_some() {
                    break;
                }
            }
        }
        for payment in may_be_paid {
            let account = payment.account.clone();
            let listed = stripe.list_sessions(&payment).await;
            let listed = listed.map_err(CancelObstacle::of_call(account.as_ref()))?;
            open.intents.push((payment, !listed.is_empty()));
            for (session, status) in listed {
                match status {
                    SessionStatus::Open => {
                        open.sessions.insert(CancellableSession {
                            session,
                            account: account.clone(),
                        });
                    }
                    // The payment itself was asked: what its completed session paid for failed since.
                    SessionStatus::Complete | SessionStatus::Expired => {}
                    SessionStatus::Other(_) => return Err(CancelObstacle::HasMoney),
                }
            }
        }
        Ok(open)
    }

    /// Ends the sessions first: Stripe refuses to cancel the PaymentIntent of a session, and expiring a session ends its
    /// PaymentIntent too.
    async fn end_payments(
        &self,
        stripe: &P,
        order: &Entity,
        open: &OpenPayments,
        run: &CleanupRun,
    ) -> Result<(), CancelObstacle> {
        for session in &open.sessions {
            let id = session.session.as_str();
            let key = cleanup_idempotency_key(order, id, run.id);
            let ended = stripe.expire_session(session, &key).await;
            let ended = ended.map_err(CancelObstacle::of_call(session.account.as_ref()))?;
            if is_open_session(ended.as_ref())? {
                return Err(CancelObstacle::Failed(format!(
                    "{id} was not expired by Stripe"
                )));
            }
        }
        for (payment, is_by_checkout) in &open.intents {
            let id = payment.intent.as_str();
            if *is_by_checkout {
                let found = self.read_intent(stripe, payment, run).await?;
                if !self.is_open_intent(found.as_ref(), run)? {
                    continue;
                }
            }
            let key = cleanup_idempotency_key(order, id, run.id);
            let ended = stripe.cancel_payment(payment, &key).await;
            let ended = ended.map_err(CancelObstacle::of_call(payment.account.as_ref()))?;
            // The payment of a session that was completed, and whose debit failed since, can neither be cancelled nor
            // paid: it has no page any more.
            if self.is_open_intent(ended.as_ref(), run)? && !is_by_checkout {
                return Err(CancelObstacle::Failed(format!(
                    "{id} was not ended by Stripe"
                )));
            }
        }
        Ok(())
    }

    async fn read_intent(
        &self,
        stripe: &P,
        payment: &CancellablePayment,
        run: &CleanupRun,
    ) -> Result<Option<IntentSnapshot>, CancelObstacle> {
        let account = payment.account.as_ref();
        let found = stripe.read_intent(payment).await;
        let found = found.map_err(CancelObstacle::of_call(account))?;
        run.note_answer(account);
        Ok(found)
    }

    async fn read_session(
        &self,
        stripe: &P,
        session: &CancellableSession,
        run: &CleanupRun,
    ) -> Result<Option<SessionStatus>, CancelObstacle> {
        let account = session.account.as_ref();
        let found = stripe.read_session(session).await;
        let found = found.map_err(CancelObstacle::of_call(account))?;
        run.note_answer(account);
        Ok(found)
    }

    fn is_open_intent(
        &self,
        found: Option<&IntentSnapshot>,
        run: &CleanupRun,
    ) -> Result<bool, CancelObstacle> {
        is_open(PaymentEnd::of_intent(found, run.grace, self.clock.now()))
    }

    /// The order's tenant, read once in a run: it says which account is the order's, and whether we may act for it.
    async fn load_tenant(
        &self,
        order: &Entity,
        run: &CleanupRun,
    ) -> Result<Option<Entity>, CancelObstacle> {
        let Some(id) = order.tenant() else {
            return Ok(None);
        };
        if let Some(known) = lock(&run.tenants).get(id) {
            return Ok(known.clone());
        }
        let key = EntityKey::Tenant(id.clone());
        let mut rows = self
            .read_again(&key)
            .await
            .map_err(CancelObstacle::Failed)?;
        let tenant = rows.entities.remove(&key).map(|(tenant, _)| tenant);
        lock(&run.tenants).insert(id.clone(), tenant.clone());
        Ok(tenant)
    }

    /// Tells of each account that refuses, once; one that answers is told again when it refuses again.
    async fn remember_accounts(&self, run: &CleanupRun) {
        let refused = std::mem::take(&mut *lock(&run.refused));
        let mut answered = std::mem::take(&mut *lock(&run.answered));
        answered.retain(|account| !refused.contains_key(account));
        let answered = answered.into_iter().map(|account| (account, None));
        let refused = refused
            .into_iter()
            .map(|(account, cause)| (account, Some(cause)));
        stream::iter(refused.chain(answered))
            .for_each_concurrent(ACCOUNTS_AT_ONCE, async |(account, cause)| {
                self.remember_account(account.as_ref(), cause).await;
            })
            .await;
    }

    async fn remember_account(&self, account: Option<&AccountId>, refused: Option<String>) {
        let (job, now) = (cleanup_account_key(account), self.clock.now());
        // A row that cannot be read or written costs a repeated line in the log.
        let known = self.jobs.load_checkpoint(&job).await.unwrap_or_default();
        let next = match &refused {
            Some(cause) if must_tell_refusal(account, known.refusal_told_at(), now) => {
                report_refusal(account, cause);
                known.refused_at(now).with_refusal_told(now)
            }
            Some(_) => known.clone(),
            None => Checkpoint::default(),
        };
        if next != known {
            self.jobs.save_checkpoint(&job, &known, &next).await.ok();
        }
    }
}

fn report_refusal(account: Option<&AccountId>, cause: &str) {
    let Some(account) = account else {
        metrics::CLEANUP_FAILED.count(ProviderId::Stripe);
        tracing::error!(
            cause,
            "key_refused: Stripe refuses the key for the platform's own payments: {cause}"
        );
        return;
    };
    tracing::warn!(
        account = account.as_str(),
        cause,
        "account_refused {account}: {cause}; its orders are left alone until it answers again"
    );
}

fn is_deauthorized(tenant: Option<&Entity>, account: &AccountId) -> bool {
    let facts = tenant.and_then(Entity::account_facts);
    facts.is_some_and(|facts| {
        derive_account(facts, Some(account)).status == StripeStatus::Deauthorized
    })
}

fn is_open_session(found: Option<&SessionStatus>) -> Result<bool, CancelObstacle> {
    is_open(PaymentEnd::of_session(found))
}

fn is_open(end: PaymentEnd) -> Result<bool, CancelObstacle> {
    match end {
        PaymentEnd::NotYet => Ok(true),
        PaymentEnd::ForGood => Ok(false),
        PaymentEnd::PaidOrUnderWay => Err(CancelObstacle::HasMoney),
    }
}
