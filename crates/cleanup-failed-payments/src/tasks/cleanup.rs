//! The cleanup: cancels orders whose last payment attempt failed longer ago than the grace period (60 minutes).
//!
//! Guarantee: it never cancels an order that has money, or a payment that may still bring money. It first asks Stripe
//! about every payment of the order and ends those that can still be paid; then it writes, on condition that the row is
//! as it was read before the questions (optimistic lock). If a payment arrives later all the same, the payment wins
//! (`paid_after_cancel`). Not guaranteed: that every failed order is cancelled by one run; the checkpoint resumes.
//! `billhook_core::tasks::cleanup` decides what is due.

use std::time::Duration;

use billhook_adapters::metrics;
use billhook_adapters::report::report_entity_commit;
use billhook_core::entity::key::StateKey;
use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::error::error_chain;
use billhook_core::ids::{OrderId, ProviderId};
use billhook_core::ports::Clock;
use billhook_core::tasks::checkpoint::Checkpoint;
use billhook_core::tasks::cleanup::{
    CancellablePayment, CleanupDecision, PaymentEnd, cancellation_fact, cleanup_idempotency_key,
    decide_cleanup,
};
use billhook_core::tasks::definitions::CleanupInput;
use billhook_core::tasks::ports::{CheckpointStore, FindFailedOrders, PaymentsAtStripe};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{CommitError, CommitPart, EntityWrite, Ledger, LoadedRows};
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;
use uuid::Uuid;

use crate::scheduled_task::{ScheduledTask, TaskFailed, fail_task, lacks_time_to_start};

/// Orders read from the index, and then from the table, in one page.
const PAGE: usize = 50;
/// Orders in progress at the same time. At 200 ms per call, 16 orders make 80 calls per second, which is enough to use
/// the rate limit of 60.
const ORDERS_AT_ONCE: usize = 16;
/// How often one order is decided. A lost race is common here: our own cancel makes Stripe send
/// `payment_intent.canceled`, and the worker often writes it between our read and our write.
const ROUNDS_MAX: u32 = 3;

/// The run stops everything this long before the deadline, so that it can save its checkpoint.
const CHECKPOINT_RESERVE: Duration = Duration::from_secs(5);

/// The result of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CleanupSummary {
    pub scanned: usize,
    /// In a dry run: the orders that would be tried.
    pub cancelled: usize,
    /// Unchanged, because Stripe says that a payment is paid or may be in progress. The payment's own event completes
    /// the order.
    pub reconciled: usize,
    /// Not due, or repaired, paid or cancelled meanwhile.
    pub skipped: usize,
    /// A call failed: a later run tries again.
    pub failed: usize,
    pub dry_run: bool,
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
    Skipped,
    Failed(String),
    NoKey,
}

/// The parameters of one run.
struct CleanupRun {
    id: Uuid,
    grace: Duration,
    dry_run: bool,
    deadline: Timestamp,
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

    /// One run. Fails if the orders or the checkpoint cannot be read or saved, or if no key of Stripe is stored; what
    /// was done before stays done. An error with one order is counted and logged.
    ///
    /// A run that its deadline or limit interrupts saves the last order that it handled, and the next run begins behind
    /// it. Example: orders a to e, limit 2, and none of them can be ended. Runs handle a b, c d, e, and then a b again.
    /// Without the checkpoint, every run would try only a and b. A dry run begins at the first order and saves nothing.
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
                    OrderCleanup::NoKey => return Err(TaskFailed::no_key()),
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
        if run.dry_run {
            return Ok(Some(OrderCleanup::Cancelled));
        }
        let Some(stripe) = &self.payments else {
            return Ok(Some(OrderCleanup::NoKey));
        };
        // Ask about all payments before ending one. Case: pi_1 is open and pi_2 is processing. Before this rule, pi_1
        // was cancelled, the order stayed because of pi_2, and when pi_2 failed later, the customer had no pi_1 left to
        // try.
        let mut open = Vec::new();
        for payment in &payments {
            let status = stripe.read_payment_status(payment).await;
            match PaymentEnd::from(status.map_err(|error| error_chain(&error))?) {
                PaymentEnd::ForGood => {}
                PaymentEnd::PaidOrProcessing => return Ok(Some(OrderCleanup::HasMoney)),
                PaymentEnd::NotYet => open.push(payment),
            }
        }
        for payment in open {
            let key = cleanup_idempotency_key(order, payment, run.id);
            let ended = end_payment(stripe, payment, &key).await;
            match ended.map_err(|error| error_chain(&error))? {
                PaymentEnd::ForGood => {}
                PaymentEnd::PaidOrProcessing => return Ok(Some(OrderCleanup::HasMoney)),
                PaymentEnd::NotYet => {
                    return Err(format!("{} was not ended by Stripe", payment.intent));
                }
            }
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
}

/// Ends a payment at Stripe: by expiring its Checkout Session if it has an open one, else by cancelling it.
async fn end_payment<P: PaymentsAtStripe>(
    stripe: &P,
    payment: &CancellablePayment,
    idempotency_key: &str,
) -> Result<PaymentEnd, P::Error> {
    // Stripe refuses to cancel the PaymentIntent of an open session. Expiring the session ends its PaymentIntent too.
    Ok(match stripe.find_open_session(payment).await? {
        Some(session) => stripe
            .expire_session(payment, &session, idempotency_key)
            .await?
            .into(),
        None => stripe
            .cancel_payment(payment, idempotency_key)
            .await?
            .into(),
    })
}
