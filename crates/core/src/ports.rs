//! The two ports that everything uses: the clock, and waiting. The other ports are beside their consumer
//! (`intake::ports`, `worker::ports`, `tasks::ports`). `adapters` implements them on AWS; `testkit` has fakes of them
//! in memory, for tests.

use std::future::Future;
use std::time::Duration;

use uuid::Uuid;

use crate::time::Timestamp;

/// Time and unique ids: what a pure function cannot produce. Tests fix both.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
    /// A `UUIDv7`.
    fn new_id(&self) -> Uuid;
}

/// Waiting. Separate from [`Clock`], because most code must not wait.
pub trait Pause: Send + Sync {
    fn pause(&self, span: Duration) -> impl Future<Output = ()> + Send;
}
