//! When each provider's last delivery arrived, and for how long it has been quiet: the alarm `no-deliveries`.
//!
//! The sweep comes to every event by its arrival anyway, so it notes the newest. It measures for how long nothing came, and
//! not ingress, because an ingress that does not run measures nothing. Before the first delivery nothing is measured: an
//! environment that waits for its keys, or never uses the provider, raises no alarm. An event that `reconcile` fetched
//! counts as a delivery; `EventGap` says that Stripe did not deliver it.

use std::collections::BTreeMap;

use billhook_adapters::metrics;
use billhook_core::error::DependencyError;
use billhook_core::ids::ProviderId;
use billhook_core::tasks::checkpoint::{Checkpoint, last_delivery_key};
use billhook_core::tasks::ports::{ArrivedEvent, CheckpointStore};
use billhook_core::time::Timestamp;

const HOUR_S: u64 = 60 * 60;

/// The newest delivery of each provider that a run came to.
#[derive(Debug, Default)]
pub(super) struct LastDeliveries(BTreeMap<ProviderId, Timestamp>);

impl LastDeliveries {
    pub(super) fn add(&mut self, provider: ProviderId, arrived: &[ArrivedEvent]) {
        let newest = arrived.iter().filter_map(|event| event.delivered_at).max();
        let known = self.0.get(&provider).copied();
        if let Some(newest) = newest.max(known) {
            self.0.insert(provider, newest);
        }
    }

    /// Saves what is newer than what is known. If another run saves at the same time, one of both stays: at most a few
    /// minutes are lost.
    pub(super) async fn save(&self, jobs: &impl CheckpointStore) -> Result<(), DependencyError> {
        for (provider, at) in &self.0 {
            let job = last_delivery_key(*provider);
            let known = jobs.load_checkpoint(&job).await?;
            let next = Checkpoint::completed_through(at.unix_s());
            if known.done_through_s < next.done_through_s {
                jobs.save_checkpoint(&job, &known, &next).await?;
            }
        }
        Ok(())
    }
}

/// Records for how many hours nothing has come from each provider that has delivered before.
pub(super) async fn measure_quiet_hours(
    jobs: &impl CheckpointStore,
    now: Timestamp,
) -> Result<(), DependencyError> {
    for provider in ProviderId::ALL.iter().copied() {
        let known = jobs.load_checkpoint(&last_delivery_key(provider)).await?;
        let last = known.done_through_s.map(Timestamp::from_unix_s);
        if let Some(Ok(last)) = last {
            metrics::QUIET_HOURS.add(provider, last.until(now).as_secs() / HOUR_S);
        }
    }
    Ok(())
}
