//! What intake needs from the world: signing secrets, the event store, the queues.

use std::future::Future;

use crate::error::DependencyError;
use crate::ids::ProviderId;
use crate::intake::inbox::{NewEvent, RecordResult};
use crate::provider::signature::SigningKeys;

/// The signing secrets of one provider, read through a cache.
pub trait ReadSigningKeys: Send + Sync {
    /// What is known now; fetched where nothing fresh enough is held. Never fails: what could not be read, and why, is
    /// part of the answer, because the keys that could be read may still prove a delivery.
    fn signing_keys(&self) -> impl Future<Output = SigningKeys> + Send;
    /// After a mismatch: the current values again, unless they were fetched less than 10 s ago (then `None`).
    fn refresh_after_mismatch(&self) -> impl Future<Output = Option<SigningKeys>> + Send;
    /// What was read last, without asking anybody.
    fn cached_keys(&self) -> impl Future<Output = SigningKeys> + Send;
}

/// Ingress and reconcile: keeps an event, once.
pub trait RecordEvent: Send + Sync {
    /// One conditional write. The failed condition brings back the row that is there.
    fn record(
        &self,
        event: &NewEvent<'_>,
    ) -> impl Future<Output = Result<RecordResult, DependencyError>> + Send;
}

/// Ingress, sweep, reconcile and replay: puts a pointer on a provider's queue.
pub trait SendMessage: Send + Sync {
    /// Returns once the queue has it, or knows its deduplication id from the last 5 minutes.
    fn send(
        &self,
        provider: ProviderId,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> impl Future<Output = Result<(), DependencyError>> + Send;
}
