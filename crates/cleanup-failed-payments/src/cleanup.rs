//! Orders whose payment failed long ago are given up.
//!
//! Guarantees: no order is cancelled that has money, or a payment that could still bring some: Stripe is asked about,
//! and ends, every payment of the order first, and the write is conditional on the row as it was then read.

use std::time::Duration;

use billhook_adapters::metrics;
use billhook_core::cleanup::{Due, Ended, OpenPayment, cancelled, due, idempotency_key};
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::{OrderId, Provider};
use billhook_core::jobs::{CLEANUP, Progress};
use billhook_core::ports::{
    Clock, Commit, CommitError, FindFailedOrders, KeepProgress, Ledger, PaymentsAtStripe, Rows,
};
use billhook_core::retry::chain;
use billhook_core::time::Timestamp;
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;
use uuid::Uuid;

use crate::{Failed, is_late, unavailable};

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
pub struct Options {
    /// Count what would be tried, and do nothing: Stripe is not asked either.
    pub dry_run: bool,
    /// Instead of the configured grace.
    pub minutes: Option<u64>,
    /// Instead of as many orders as there is time for.
    pub limit: Option<usize>,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
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
pub struct Cleanup<L, P, J, C> {
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

enum Finding {
    Cancelled,
    HasMoney,
    Skipped,
    Failed(String),
    NoKey,
}

/// What one run does the same with every order.
struct Run {
    id: Uuid,
    grace: Duration,
    dry_run: bool,
    deadline: Timestamp,
}

impl<L, P, J, C> Cleanup<L, P, J, C>
where
    L: Ledger + FindFailedOrders,
    P: PaymentsAtStripe,
    J: KeepProgress,
    C: Clock,
{
    /// One run. Fails only if nothing can be done at all; what one order meets is counted. A run that is cut, by its
    /// deadline or its limit, keeps the last order it came to, and the next begins behind it: orders that fail again and
    /// again never keep others from their turn. A dry run begins at the beginning and keeps nothing.
    pub async fn run(&self, options: &Options, deadline: Timestamp) -> Result<Summary, Failed> {
        let run = Run {
            id: self.clock.new_id(),
            grace: options.minutes.map_or(self.grace, |minutes| {
                Duration::from_secs(minutes.saturating_mul(60))
            }),
            dry_run: options.dry_run,
            deadline,
        };
        let mut summary = Summary {
            dry_run: options.dry_run,
            ..Summary::default()
        };
        let progress = match options.dry_run {
            true => Progress::default(),
            false => self
                .jobs
                .progress(CLEANUP)
                .await
                .map_err(unavailable("read how far the last run came"))?,
        };
        let mut after = progress.cut.as_ref().map(|cut| cut.after.clone());
        // An order of several payments, each slow to be ended, would go on beyond the deadline: what was done stands.
        let time_left = self.clock.now().until(deadline);
        let pages = self.pages(&run, options.limit, &mut after, &mut summary);
        let ended = tokio::time::timeout(time_left.saturating_sub(TIME_TO_KEEP), pages).await;
        let ended = ended.unwrap_or(Ok(()));
        // What was done is kept in any case: it must not be in the way of what was not.
        if !options.dry_run {
            let next = match &after {
                Some(order) => progress.cut(self.clock.now().unix_s(), order.clone()),
                None => Progress::default(),
            };
            if next.cut.is_some() || progress.cut.is_some() {
                let kept = self.jobs.keep(CLEANUP, &progress, &next).await;
                kept.map_err(unavailable("keep how far this run came"))?;
            }
        }
        ended.map(|()| summary)
    }

    /// Goes through the orders; `after` is the last that was done, none once all were.
    async fn pages(
        &self,
        run: &Run,
        limit: Option<usize>,
        after: &mut Option<String>,
        summary: &mut Summary,
    ) -> Result<(), Failed> {
        loop {
            let left = limit.map_or(PAGE, |limit| {
                limit.saturating_sub(summary.scanned).min(PAGE)
            });
            if left == 0 || is_late(&self.clock, run.deadline) {
                return Ok(());
            }
            let page = self
                .ledger
                .failed_orders(after.as_deref(), left)
                .await
                .map_err(unavailable("find failed orders"))?;
            let keys = page.orders.iter().cloned().map(EntityKey::Order).collect();
            let rows = self
                .ledger
                .rows(&keys, &[].into())
                .await
                .map_err(unavailable("read failed orders"))?;
            // One that is late is not begun, and neither are those behind it: where the run was cut must be one place.
            let findings: Vec<(&OrderId, Option<Finding>)> = stream::iter(&page.orders)
                .map(async |id| (id, self.order(id, &rows, run).await))
                .buffered(ORDERS_AT_ONCE)
                .collect()
                .await;
            for (id, finding) in findings {
                let Some(finding) = finding else {
                    return Ok(());
                };
                match finding {
                    Finding::NoKey => return Err(Failed::no_key()),
                    Finding::Cancelled => summary.cancelled += 1,
                    Finding::HasMoney => summary.reconciled += 1,
                    Finding::Skipped => summary.skipped += 1,
                    Finding::Failed(cause) => {
                        summary.failed += 1;
                        metrics::CLEANUP_FAILED.count(Provider::Stripe);
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
    async fn order(&self, id: &OrderId, rows: &Rows<L::Row>, run: &Run) -> Option<Finding> {
        if is_late(&self.clock, run.deadline) {
            return None;
        }
        let key = EntityKey::Order(id.clone());
        let finding = match self.round(&key, rows, run).await {
            Ok(Some(finding)) => Ok(finding),
            Ok(None) => self.again(&key, run).await,
            Err(cause) => Err(cause),
        };
        Some(finding.unwrap_or_else(Finding::Failed))
    }

    /// Somebody wrote meanwhile: the row is read again and decided again.
    async fn again(&self, key: &EntityKey, run: &Run) -> Result<Finding, String> {
        for _ in 1..ROUNDS_MAX {
            let rows = self.read_again(key).await?;
            if let Some(finding) = self.round(key, &rows, run).await? {
                return Ok(finding);
            }
        }
        // Not ours to win; the next run looks again.
        Ok(Finding::Skipped)
    }

    async fn read_again(&self, key: &EntityKey) -> Result<Rows<L::Row>, String> {
        let rows = self.ledger.rows(&[key.clone()].into(), &[].into()).await;
        rows.map_err(|error| chain(&error))
    }

    /// Decides about one order as read, and does it; `None` if it lost a race.
    async fn round(
        &self,
        key: &EntityKey,
        rows: &Rows<L::Row>,
        run: &Run,
    ) -> Result<Option<Finding>, String> {
        if let Some(reason) = rows.unreadable.get(key) {
            return Err(format!("the row cannot be read: {reason}"));
        }
        let Some((order, row)) = rows.entities.get(key) else {
            return Ok(Some(Finding::Skipped));
        };
        let payments = match due(order, run.grace, self.clock.now()) {
            Due::Cancel(payments) => payments,
            Due::NotFailed | Due::TooYoung => return Ok(Some(Finding::Skipped)),
        };
        if run.dry_run {
            return Ok(Some(Finding::Cancelled));
        }
        let Some(stripe) = &self.payments else {
            return Ok(Some(Finding::NoKey));
        };
        // All are asked about before one is ended: money on one of them leaves the others to the customer.
        let mut open = Vec::new();
        for payment in &payments {
            let status = stripe.status(payment).await;
            match Ended::from(status.map_err(|error| chain(&error))?) {
                Ended::ForGood => {}
                Ended::PaidOrProcessing => return Ok(Some(Finding::HasMoney)),
                Ended::NotYet => open.push(payment),
            }
        }
        for payment in open {
            let key = idempotency_key(order, payment, run.id);
            let ended = end(stripe, payment, &key).await;
            match ended.map_err(|error| chain(&error))? {
                Ended::ForGood => {}
                Ended::PaidOrProcessing => return Ok(Some(Finding::HasMoney)),
                Ended::NotYet => return Err(format!("{} was not ended by Stripe", payment.intent)),
            }
        }
        self.cancel(order, row).await
    }

    async fn cancel(&self, order: &Entity, row: &L::Row) -> Result<Option<Finding>, String> {
        let now = self.clock.now();
        let next = order.with(cancelled(now), now);
        let commit = Commit {
            entity: Some((order, row, &next)),
            events: Vec::new(),
            payments: Vec::new(),
            now,
        };
        if let Err(error) = self.ledger.commit(Provider::Stripe, &[commit]).await {
            // The answer of a write that happened may have been lost, and its repetition by the SDK refused: the row
            // tells.
            let rows = self.read_again(&order.key).await?;
            let is_written = rows.entities.get(&order.key).is_some_and(|(found, _)| {
                found.version == order.version.saturating_add(1) && found.facts == next.facts
            });
            match error {
                _ if is_written => {}
                CommitError::LostRace => return Ok(None),
                error => return Err(chain(&error)),
            }
        }
        tracing::info!(order = %order.key, "order_cancelled {}", order.key);
        Ok(Some(Finding::Cancelled))
    }
}

/// Ends an open payment at Stripe: by its Checkout Session where it has one.
async fn end<P: PaymentsAtStripe>(
    stripe: &P,
    payment: &OpenPayment,
    idempotency_key: &str,
) -> Result<Ended, P::Error> {
    // Stripe refuses to cancel the intent of an open session; the session's end is the intent's.
    Ok(match stripe.open_session(payment).await? {
        Some(session) => stripe
            .expire(payment, &session, idempotency_key)
            .await?
            .into(),
        None => stripe.cancel(payment, idempotency_key).await?.into(),
    })
}
