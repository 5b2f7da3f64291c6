//! The two ports that everything uses: the clock and waiting. Other ports stand beside their consumer (`intake`,
//! `worker`, `tasks`); `adapters` implements them on AWS, `testkit` in memory.

use std::future::Future;
use std::time::Duration;

use uuid::Uuid;

use crate::time::Timestamp;

/// The two things a pure function cannot make: the moment, and an identifier nobody else has.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// A `UUIDv7` of this moment.
    fn new_id(&self) -> Uuid;
}

/// Waiting, apart from the clock, because few need it.
pub trait Pause: Send + Sync {
    /// Returns after `span`.
    fn pause(&self, span: Duration) -> impl Future<Output = ()> + Send;
}
