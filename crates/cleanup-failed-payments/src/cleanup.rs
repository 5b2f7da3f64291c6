//! Orders whose payment failed long ago are given up.
//!
//! Guarantees: no order is cancelled that has money, or a payment that could still bring some: Stripe is asked about,
//! and ends, every payment of the order first, and the write is conditional on the row as it was then read.

use std::time::Duration;

use billhook_adapters::metrics;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::error::error_chain;
use billhook_core::ids::{OrderId, ProviderId};
use billhook_core::ports::Clock;
use billhook_core::tasks::checkpoint::{CLEANUP_JOB, Checkpoint};
use billhook_core::tasks::cleanup::{
    CancellablePayment, CleanupDecision, PaymentEnd, cancellation_fact, cleanup_idempotency_key,
    decide_cleanup,
};
use billhook_core::tasks::ports::{CheckpointStore, FindFailedOrders, PaymentsAtStripe};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{CommitError, CommitPart, Ledger, LoadedRows};
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;
use uuid::Uuid;

use crate::{TaskFailed, fail_task, is_past_deadline};

/// Orders read from the index, and from the table, at once.
const PAGE: usize = 50;
/// Orders being ended at once: enough for Stripe's pace at its usual answers of 200 ms.
const ORDERS_AT_ONCE: usize = 16;
/// A lost race is decided again at most so often; the webhook of our own cancel is one that often comes between.
const ROUNDS_MAX: u32 = 3;

/// So much before the deadline everything is let go, to keep how far it came.
const TIME_TO_KEEP: Duration = Duration::from_secs(5);

/// What a person may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CleanupOptions {
    /// Count what would be tried, and do nothing: Stripe is not asked either.
    pub dry_run: bool,
    /// Instead of the configured grace.
    pub minutes: Option<u64>,
    /// Instead of as many orders as there is time for.
    pub limit: Option<usize>,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CleanupSummary {
    /// Orders looked at.
    pub scanned: usize,
    /// Given up; in a dry run, those that would be tried.
    pub cancelled: usize,
    /// Kept because Stripe knows of money.
    pub reconciled: usize,
    /// Not due.
    pub skipped: usize,
    /// Could not be decided or written; a later run tries again.
    pub failed: usize,
    /// Nothing was done.
    pub dry_run: bool,
}

/// Everything the task needs.
#[derive(Debug)]
pub struct CleanupTask<L, P, J, C> {
    /// The orders.
    pub ledger: L,
    /// Stripe; none while no key is set.
    pub payments: Option<P>,
    /// How far earlier runs came.
    pub jobs: J,
    /// Time.
    pub clock: C,
    /// How long a failed payment may still be repeated by its customer.
    pub grace: Duration,
}

enum CleanupResult {
    Cancelled,
    HasMoney,
    Skipped,
    Failed(String),
    NoKey,
}

/// What one run does the same with every order.
struct CleanupRun {
    id: Uuid,
    grace: Duration,
    dry_run: bool,
    deadline: Timestamp,
}

impl<L, P, J, C> CleanupTask<L, P, J, C>
where
    L: Ledger + FindFailedOrders,
    P: PaymentsAtStripe,
    J: CheckpointStore,
    C: Clock,
{
    /// One run. Fails only if nothing can be done at all; what one order meets is counted. A run that is cut, by its
    /// deadline or its limit, keeps the last order it came to, and the next begins behind it: orders that fail again and
    /// again never keep others from their turn. A dry run begins at the beginning and keeps nothing.
    pub async fn run(
        &self,
        options: &CleanupOptions,
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
        let progress = match options.dry_run {
            true => Checkpoint::default(),
            false => self
                .jobs
                .load_checkpoint(CLEANUP_JOB)
                .await
                .map_err(fail_task("read how far the last run came"))?,
        };
        let mut after = progress.resume_at.as_ref().map(|cut| cut.after.clone());
        // An order of several payments, each slow to be ended, would go on beyond the deadline: what was done stands.
        let time_left = self.clock.now().until(deadline);
        let pages = self.process_pages(&run, options.limit, &mut after, &mut summary);
        let ended = tokio::time::timeout(time_left.saturating_sub(TIME_TO_KEEP), pages).await;
        let ended = ended.unwrap_or(Ok(()));
        // What was done is kept in any case: it must not be in the way of what was not.
        if !options.dry_run {
            let next = match &after {
                Some(order) => progress.interrupted_at(self.clock.now().unix_s(), order.clone()),
                None => Checkpoint::default(),
            };
            if next.resume_at.is_some() || progress.resume_at.is_some() {
                let kept = self
                    .jobs
                    .save_checkpoint(CLEANUP_JOB, &progress, &next)
                    .await;
                kept.map_err(fail_task("keep how far this run came"))?;
            }
        }
        ended.map(|()| summary)
    }

    /// Goes through the orders; `after` is the last that was done, none once all were.
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
            if left == 0 || is_past_deadline(&self.clock, run.deadline) {
                return Ok(());
            }
            let page = self
                .ledger
                .failed_orders(after.as_deref(), left)
                .await
                .map_err(fail_task("find failed orders"))?;
            let keys = page.orders.iter().cloned().map(EntityKey::Order).collect();
            let rows = self
                .ledger
                .load_rows(&keys, &[].into())
                .await
                .map_err(fail_task("read failed orders"))?;
            // One that is late is not begun, and neither are those behind it: where the run was cut must be one place.
            let findings: Vec<(&OrderId, Option<CleanupResult>)> = stream::iter(&page.orders)
                .map(async |id| (id, self.process_order(id, &rows, run).await))
                .buffered(ORDERS_AT_ONCE)
                .collect()
                .await;
            for (id, finding) in findings {
                let Some(finding) = finding else {
                    return Ok(());
                };
                match finding {
                    CleanupResult::NoKey => return Err(TaskFailed::no_key()),
                    CleanupResult::Cancelled => summary.cancelled += 1,
                    CleanupResult::HasMoney => summary.reconciled += 1,
                    CleanupResult::Skipped => summary.skipped += 1,
                    CleanupResult::Failed(cause) => {
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

    /// One order; `None` if there is no time left for it.
    async fn process_order(
        &self,
        id: &OrderId,
        rows: &LoadedRows<L::Row>,
        run: &CleanupRun,
    ) -> Option<CleanupResult> {
        if is_past_deadline(&self.clock, run.deadline) {
            return None;
        }
        let key = EntityKey::Order(id.clone());
        let finding = match self.try_order(&key, rows, run).await {
            Ok(Some(finding)) => Ok(finding),
            Ok(None) => self.retry_order(&key, run).await,
            Err(cause) => Err(cause),
        };
        Some(finding.unwrap_or_else(CleanupResult::Failed))
    }

    /// Somebody wrote meanwhile: the row is read again and decided again.
    async fn retry_order(
        &self,
        key: &EntityKey,
        run: &CleanupRun,
    ) -> Result<CleanupResult, String> {
        for _ in 1..ROUNDS_MAX {
            let rows = self.read_again(key).await?;
            if let Some(finding) = self.try_order(key, &rows, run).await? {
                return Ok(finding);
            }
        }
        // Not ours to win; the next run looks again.
        Ok(CleanupResult::Skipped)
    }

    async fn read_again(&self, key: &EntityKey) -> Result<LoadedRows<L::Row>, String> {
        let rows = self
            .ledger
            .load_rows(&[key.clone()].into(), &[].into())
            .await;
        rows.map_err(|error| error_chain(&error))
    }

    /// Decides about one order as read, and does it; `None` if it lost a race.
    async fn try_order(
        &self,
        key: &EntityKey,
        rows: &LoadedRows<L::Row>,
        run: &CleanupRun,
    ) -> Result<Option<CleanupResult>, String> {
        if let Some(reason) = rows.unreadable.get(key) {
            return Err(format!("the row cannot be read: {reason}"));
        }
        let Some((order, row)) = rows.entities.get(key) else {
            return Ok(Some(CleanupResult::Skipped));
        };
        let payments = match decide_cleanup(order, run.grace, self.clock.now()) {
            CleanupDecision::Cancel(payments) => payments,
            CleanupDecision::NotFailed | CleanupDecision::TooYoung => {
                return Ok(Some(CleanupResult::Skipped));
            }
        };
        if run.dry_run {
            return Ok(Some(CleanupResult::Cancelled));
        }
        let Some(stripe) = &self.payments else {
            return Ok(Some(CleanupResult::NoKey));
        };
        // All are asked about before one is ended: money on one of them leaves the others to the customer.
        let mut open = Vec::new();
        for payment in &payments {
            let status = stripe.status(payment).await;
            match PaymentEnd::from(status.map_err(|error| error_chain(&error))?) {
                PaymentEnd::ForGood => {}
                PaymentEnd::PaidOrProcessing => return Ok(Some(CleanupResult::HasMoney)),
                PaymentEnd::NotYet => open.push(payment),
            }
        }
        for payment in open {
            let key = cleanup_idempotency_key(order, payment, run.id);
            let ended = end_payment(stripe, payment, &key).await;
            match ended.map_err(|error| error_chain(&error))? {
                PaymentEnd::ForGood => {}
                PaymentEnd::PaidOrProcessing => return Ok(Some(CleanupResult::HasMoney)),
                PaymentEnd::NotYet => {
                    return Err(format!("{} was not ended by Stripe", payment.intent));
                }
            }
        }
        self.cancel_order(order, row).await
    }

    async fn cancel_order(
        &self,
        order: &Entity,
        row: &L::Row,
    ) -> Result<Option<CleanupResult>, String> {
        let now = self.clock.now();
        let next = order.apply_facts(cancellation_fact(now), now);
        let commit = CommitPart {
            entity: Some((order, row, &next)),
            events: Vec::new(),
            payments: Vec::new(),
            now,
        };
        if let Err(error) = self.ledger.commit(ProviderId::Stripe, &[commit]).await {
            // The answer of a write that happened may have been lost, and its repetition by the SDK refused: the row
            // tells.
            let rows = self.read_again(&order.key).await?;
            let is_written = rows.entities.get(&order.key).is_some_and(|(found, _)| {
                found.version == order.version.saturating_add(1) && found.facts == next.facts
            });
            match error {
                _ if is_written => {}
                CommitError::LostRace => return Ok(None),
                error => return Err(error_chain(&error)),
            }
        }
        tracing::info!(order = %order.key, "order_cancelled {}", order.key);
        Ok(Some(CleanupResult::Cancelled))
    }
}

/// Ends an open payment at Stripe: by its Checkout Session where it has one.
async fn end_payment<P: PaymentsAtStripe>(
    stripe: &P,
    payment: &CancellablePayment,
    idempotency_key: &str,
) -> Result<PaymentEnd, P::Error> {
    // Stripe refuses to cancel the intent of an open session; the session's end is the intent's.
    Ok(match stripe.open_session(payment).await? {
        Some(session) => stripe
            .expire(payment, &session, idempotency_key)
            .await?
            .into(),
        None => stripe.cancel(payment, idempotency_key).await?.into(),
    })
}
