//! `cleanup-failed-payments`: gives up orders whose payment failed long ago.
//!
//! Guarantees: no order is cancelled that has money, or a payment that could still bring some: Stripe is asked about,
//! and ends, every payment of the order first, and the write is conditional on the row as it was then read. A run that
//! is cut loses nothing: what it did stands, the rest is found again by the next. Which orders are due is decided in
//! `billhook_core::cleanup`.

use std::time::Duration;

use billhook_adapters::metrics;
use billhook_core::cleanup::{Due, OpenPayment, cancelled, due};
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::Provider;
use billhook_core::ports::{
    Clock, Commit, CommitError, EndPayment, Ended, FindFailedOrders, Ledger,
};
use billhook_core::retry::chain;
use billhook_core::time::Timestamp;
use serde::{Deserialize, Serialize};

pub mod stripe;

/// Orders read from the index, and from the table, at once.
const PAGE: usize = 25;
/// A run looks at no more orders than this unless its input says so.
const LIMIT: usize = 1_000;
/// No order is begun with less left than this: a few calls to Stripe of 10 s each, and a write. One that needs longer
/// is cut, and found again by the next run.
const TIME_TO_FINISH: Duration = Duration::from_secs(45);

/// What the schedule or a person asks for. Everything may be left out; what is not known is refused, because a
/// misspelt `dry_run` would cancel orders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    /// `cleanup`.
    pub task: Task,
    /// Count what would be done, and do nothing.
    pub dry_run: bool,
    /// Instead of the configured grace.
    pub minutes: Option<u64>,
    /// Instead of 1,000 orders at most.
    pub limit: Option<usize>,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Give up stale failed orders.
    #[default]
    Cleanup,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Orders looked at.
    pub scanned: usize,
    /// Given up; in a dry run, those that would be.
    pub cancelled: usize,
    /// Kept because Stripe knows of money.
    pub reconciled: usize,
    /// Not due.
    pub skipped: usize,
    /// Could not be decided or written; the next run tries again.
    pub failed: usize,
    /// Nothing was done.
    pub dry_run: bool,
}

/// A run that could not look at any order.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing}: {cause}")]
pub struct Failed {
    doing: &'static str,
    cause: String,
}

impl Failed {
    /// With the whole chain of causes, because whoever ran it by hand sees nothing else.
    pub fn because(doing: &'static str, cause: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            doing,
            cause: chain(cause),
        }
    }
}

/// Everything the function needs.
#[derive(Debug)]
pub struct Cleanup<L, P, C> {
    /// The orders.
    pub ledger: L,
    /// Stripe; none while no key is set.
    pub payments: P,
    /// Time.
    pub clock: C,
    /// How long a failed payment may still be repeated by its customer.
    pub grace: Duration,
}

enum Finding {
    Cancelled,
    HasMoney,
    Skipped,
}

impl<L: Ledger + FindFailedOrders, P: EndPayment, C: Clock> Cleanup<L, P, C> {
    /// One run. Fails only if the orders cannot be found at all; what one order meets is counted.
    pub async fn run(&self, input: &Input, deadline: Timestamp) -> Result<Summary, Failed> {
        let grace = input.minutes.map_or(self.grace, |minutes| {
            Duration::from_secs(minutes.saturating_mul(60))
        });
        let limit = input.limit.unwrap_or(LIMIT);
        let mut summary = Summary {
            dry_run: input.dry_run,
            ..Summary::default()
        };
        let mut after = None;
        loop {
            let left = limit.saturating_sub(summary.scanned).min(PAGE);
            if left == 0 {
                break;
            }
            let page = self
                .ledger
                .failed_orders(after.as_ref(), left)
                .await
                .map_err(|error| Failed::because("find failed orders", &error))?;
            for key in page.orders {
                if self.clock.now().after(TIME_TO_FINISH) > deadline {
                    return Ok(summary);
                }
                summary.scanned += 1;
                match self.order(&key, grace, input.dry_run).await {
                    Ok(Finding::Cancelled) => summary.cancelled += 1,
                    Ok(Finding::HasMoney) => summary.reconciled += 1,
                    Ok(Finding::Skipped) => summary.skipped += 1,
                    Err(cause) => {
                        summary.failed += 1;
                        metrics::CLEANUP_FAILED.count(Provider::Stripe);
                        tracing::error!(order = %key, cause, "cleanup_failed {key}: {cause}");
                    }
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(summary)
    }

    async fn order(
        &self,
        key: &EntityKey,
        grace: Duration,
        dry_run: bool,
    ) -> Result<Finding, String> {
        let rows = self
            .ledger
            .rows(&[key.clone()].into(), &[].into())
            .await
            .map_err(|error| chain(&error))?;
        if let Some(reason) = rows.unreadable.get(key) {
            return Err(format!("the row cannot be read: {reason}"));
        }
        let Some((order, row)) = rows.entities.get(key) else {
            return Ok(Finding::Skipped);
        };
        let payments = match due(order, grace, self.clock.now()) {
            Due::Cancel(payments) => payments,
            Due::NotFailed | Due::TooYoung => return Ok(Finding::Skipped),
        };
        if dry_run {
            return Ok(Finding::Cancelled);
        }
        for payment in &payments {
            match self
                .payments
                .end(payment, &idempotency_key(order, payment))
                .await
            {
                Ok(Ended::ForGood) => {}
                Ok(Ended::PaidOrProcessing) => return Ok(Finding::HasMoney),
                Err(error) => return Err(chain(&error)),
            }
        }
        self.cancel(order, row).await
    }

    async fn cancel(&self, order: &Entity, row: &L::Row) -> Result<Finding, String> {
        let now = self.clock.now();
        let next = order.with(cancelled(now), now);
        let commit = Commit {
            entity: Some((order, row, &next)),
            events: Vec::new(),
            payments: Vec::new(),
            now,
        };
        match self.ledger.commit(Provider::Stripe, commit).await {
            Ok(()) => {
                tracing::info!(order = %order.key, "order_cancelled {}", order.key);
                Ok(Finding::Cancelled)
            }
            // Somebody wrote meanwhile, perhaps a payment: the next run looks again.
            Err(CommitError::LostRace) => Ok(Finding::Skipped),
            Err(error) => Err(chain(&error)),
        }
    }
}

/// The same for every try at this state of the order, another once the order has changed: Stripe repeats a saved answer,
/// a failure too, for 24 h.
fn idempotency_key(order: &Entity, payment: &OpenPayment) -> String {
    format!(
        "billhook-cleanup-{}-{}-{}",
        order.key, order.version, payment.intent
    )
}
