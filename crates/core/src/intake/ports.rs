//! The ports of intake: signing secrets, the event store, the queues. `adapters::secrets::cache`,
//! `adapters::dynamodb::events` and `adapters::sqs` implement them on AWS, `testkit` in memory.

use std::future::Future;

use crate::error::DependencyError;
use crate::ids::ProviderId;
use crate::intake::inbox::{NewEvent, RecordResult};
use crate::provider::signature::SigningKeys;

/// The signing secrets of one provider, read through a cache.
pub trait ReadSigningKeys: Send + Sync {
    /// The keys known now, read from the secret if the cached ones are too old. Never fails: a secret that cannot be
    /// read is named in the result, because the keys that can be read may still prove a delivery.
    fn signing_keys(&self) -> impl Future<Output = SigningKeys> + Send;
    /// Reads the keys again after a signature matched none. `None` if they were read less than 10 s ago, with the
    /// previous version where that counts: this rate limit keeps forged deliveries from causing a call to Secrets
    /// Manager each.
    fn refresh_after_mismatch(&self) -> impl Future<Output = Option<SigningKeys>> + Send;
    /// The keys that were read last, without any call.
    fn cached_keys(&self) -> impl Future<Output = SigningKeys> + Send;
}

/// Ingress and reconcile: stores an event once.
pub trait RecordEvent: Send + Sync {
    /// One write on condition that the event is new. If it is not, the failed condition returns the existing row, so
    /// that no second call is needed.
    fn record(
        &self,
        event: &NewEvent<'_>,
    ) -> impl Future<Output = Result<RecordResult, DependencyError>> + Send;
}

/// Ingress, sweep, reconcile and replay: puts a pointer on a provider's queue.
pub trait SendMessage: Send + Sync {
    /// `Ok` once the queue has the message, or has dropped it because it received its deduplication id within the last
    /// 5 minutes.
    fn send(
        &self,
        provider: ProviderId,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> impl Future<Output = Result<(), DependencyError>> + Send;
}
