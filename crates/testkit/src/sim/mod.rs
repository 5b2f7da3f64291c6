//! A small AWS and a small Stripe on one thread and one clock that only waiting moves, all by one seed. Every call from
//! a function to the outside goes through [`Port::call`], where the seed decides whether it works, fails, loses its
//! answer, lands late, hangs, or ends the process.
//!
//! Read on in `call` (what may happen to a call), `store` (tables), `queue`, `stripe`. The functions, their senders, the
//! oracle and the checks are in `tests/tests/simulation`. It needs a current-thread runtime of Tokio whose time is
//! paused; then the same seed does the same.

mod call;
mod jobs;
pub mod queue;
mod rng;
pub mod store;
pub mod stripe;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use billhook_core::ids::ProviderId;
use billhook_core::ports::{Clock, Pause};
use billhook_core::time::Timestamp;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

pub use self::call::{Call, Faults, Lost, Port, SECRET_CANARY, Service};
use self::queue::Queue;
pub use self::rng::Rng;
use self::store::Store;
use self::stripe::Stripe;

/// When every simulation begins: any moment will do.
const EPOCH_S: i64 = 1_781_000_000;

/// A deliberate defect, one for each invariant and named by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// 1: the queue says that it has a message, and does not.
    SendForgets,
    /// 2: signatures count at any age.
    EndlessTolerance,
    /// 3: a transaction has no conditions.
    Unconditional,
    /// 4: an entity is loaded without the facts it had.
    FactsForgotten,
    /// 5: a refund is told under another id by each event.
    RefundsRenamed,
    /// 6: a success that was told is not loaded again.
    SuccessForgotten,
    /// 7: the account's tenant is whoever the index names first.
    AnyTenant,
    /// 8: the worker takes live events at a test stage.
    LiveTaken,
    /// 9: a transaction is two writes.
    TornCommit,
    /// 10: what went back is added up instead of derived.
    RefundsAdded,
    /// 11: Stripe's word of a payment under way is not heard.
    ProcessingUnheard,
    /// 12: what was not deleted stays invisible for a day.
    InvisibleForADay,
    /// 13: one failure fails its whole batch.
    BatchFails,
    /// 14: another message bears the first one's deduplication id.
    RetrySwallowed,
    /// 15: an event's row is kept for ten seconds.
    EventsExpire,
    /// 16: Secrets Manager answers with what was current before.
    SecretsLag,
    /// 17: a secret is always said to be unreadable.
    SecretUnreadable,
    /// 18: a character beyond ASCII ends the function.
    PanicsOnUnicode,
    /// 19: a failed call tells the secret.
    SecretTold,
    /// 20: Stripe's deletion of an endpoint does nothing.
    EndpointStays,
}

/// The whole of it.
pub struct World {
    /// What is left to chance.
    pub rng: Rng,
    /// How often calls fail.
    pub faults: Faults,
    /// The defect, if there is one.
    pub mutant: Option<Mutant>,
    /// The tables.
    pub store: Store,
    /// The queues.
    pub queues: BTreeMap<&'static str, Queue>,
    /// Stripe.
    pub stripe: Stripe,
    /// Every version that each secret had, and since when.
    pub secrets: BTreeMap<String, Vec<(String, Timestamp)>>,
    /// What `CloudFormation` was answered.
    pub stack_answers: Vec<Value>,
    /// How often each remarkable thing happened.
    pub sometimes: BTreeMap<&'static str, u64>,
    /// What happened, in the order in which it did; kept if asked for.
    trace: Option<Vec<String>>,
    started: Instant,
    ids: u128,
}

impl World {
    /// The moment.
    pub fn now(&self) -> Timestamp {
        let epoch = Timestamp::from_unix_s(EPOCH_S).unwrap_or_else(|_| unreachable!());
        epoch.after(self.started.elapsed())
    }

    /// Counts something remarkable.
    pub fn sometimes(&mut self, what: &'static str) {
        *self.sometimes.entry(what).or_default() += 1;
    }

    /// Adds a line to the trace.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        let at = self.started.elapsed();
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3}  {}", at.as_secs_f64(), line()));
        }
    }

    /// The queue of a provider's events.
    ///
    /// # Panics
    /// Never: both are there from the beginning.
    #[expect(clippy::expect_used, reason = "both are there from the beginning")]
    pub fn queue(&mut self, provider: ProviderId) -> &mut Queue {
        self.queues.get_mut(provider.as_str()).expect("two queues")
    }

    fn new_id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + self.ids)
    }
}

/// The world, shared by everything that goes on in it.
#[derive(Clone)]
pub struct Sim(Arc<Mutex<World>>);

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sim")
    }
}

impl Sim {
    /// A world in which nothing has happened yet.
    pub fn new(seed: u64, faults: Faults, mutant: Option<Mutant>, traced: bool) -> Self {
        let queues = [ProviderId::Stripe, ProviderId::Lob].map(|p| (p.as_str(), Queue::default()));
        Self(Arc::new(Mutex::new(World {
            rng: Rng::new(seed),
            faults,
            mutant,
            store: Store::default(),
            queues: BTreeMap::from(queues),
            stripe: Stripe::default(),
            secrets: BTreeMap::new(),
            stack_answers: Vec::new(),
            sometimes: BTreeMap::new(),
            trace: traced.then(Vec::new),
            started: Instant::now(),
            ids: 0,
        })))
    }

    /// The world as it is.
    ///
    /// # Panics
    /// If whoever asks holds it already: all is on one thread, and would wait for ever.
    #[track_caller]
    pub fn world(&self) -> MutexGuard<'_, World> {
        match self.0.try_lock() {
            Ok(world) => world,
            Err(TryLockError::Poisoned(world)) => world.into_inner(),
            Err(TryLockError::WouldBlock) => {
                unreachable!("held already at {}", std::panic::Location::caller())
            }
        }
    }

    /// What happened so far, if it was kept.
    pub fn trace(&self) -> Vec<String> {
        self.world().trace.clone().unwrap_or_default()
    }

    /// Waits for a time between the two.
    pub async fn wait(&self, least: Duration, most: Duration) {
        let span = self.world().rng.span(least, most);
        self.pause(span).await;
    }
}

impl Clock for Sim {
    fn now(&self) -> Timestamp {
        self.world().now()
    }

    fn new_id(&self) -> Uuid {
        self.world().new_id()
    }
}

impl Pause for Sim {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the simulation waits"
    )]
    async fn pause(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }
}
