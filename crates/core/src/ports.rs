//! What the pure half needs from the world, named for the need. `adapters` implements these on AWS, `testkit` in
//! memory.

use std::future::Future;

use uuid::Uuid;

use crate::signature::SigningKeys;
use crate::time::Timestamp;

/// The two things a pure function cannot make: the moment, and an identifier nobody else has.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// A `UUIDv7` of this moment.
    fn new_id(&self) -> Uuid;
}

/// The signing secrets of one provider, read through a cache.
pub trait ReadSigningKeys: Send + Sync {
    /// What is known now; fetched where nothing fresh enough is held. Never fails: what could not be read, and why, is
    /// part of the answer, because the keys that could be read may still prove a delivery.
    fn signing_keys(&self) -> impl Future<Output = SigningKeys> + Send;
    /// After a mismatch: the current values again, unless they were fetched less than 10 s ago (then `None`).
    fn refreshed(&self) -> impl Future<Output = Option<SigningKeys>> + Send;
}
