//! Deterministic simulation of AWS and Stripe: one thread, a simulated clock that moves only while somebody waits, and
//! one seed that decides everything. Every outside call of a function goes through [`Port::call`], where the seed
//! decides whether it works, fails, loses its answer, takes effect late, hangs, or ends the process (fault injection).
//!
//! Read `call` (what may happen to a call) first, then `store` (tables), `queue` and `stripe`. The functions, the
//! senders, the oracle and the checks are in `tests/tests/simulation`. The same seed does the same only on a
//! current-thread runtime of Tokio whose time is paused.

pub mod application;
mod call;
mod jobs;
pub mod queue;
pub mod rng;
pub mod store;
pub mod stripe;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use billhook_core::endpoint::applied::AppliedProperties;
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

/// When every simulation begins; any time would do.
const EPOCH_S: i64 = 1_781_000_000;

/// A deliberate defect (mutant), at least one for each invariant of `docs/reliability.md`, with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// 1: a send reports success but sends nothing.
    SendForgets,
    /// 1: the sweep does not see what arrived.
    ArrivedForgotten,
    /// 2: signatures of any age are accepted.
    EndlessTolerance,
    /// 3: transactions have no conditions.
    Unconditional,
    /// 4: stored facts are not loaded.
    FactsForgotten,
    /// 4: a person's decision about a payment is not loaded.
    RelinkForgotten,
    /// 4: of two orders that are linked to a payment only one is loaded.
    RivalForgotten,
    /// 4: aliases are not loaded.
    AliasForgotten,
    /// 4: the orders of an invoice are not loaded.
    InvoiceForgotten,
    /// 4: what people wrote into rows is not loaded.
    EditForgotten,
    /// 4: an older copy of a row counts as the last one, so that what it says counts as edited.
    CopyBelieved,
    /// 4: who gets the money of a platform's payment is not read.
    RecipientForgotten,
    /// 4: no open payment is rechecked.
    OpenForgotten,
    /// 4: what reconcile noted of the accounts that a tenant had before is not loaded.
    PreviousForgotten,
    /// 5: each event gives a refund another id.
    RefundsRenamed,
    /// 6: a stored success is not loaded.
    SuccessForgotten,
    /// 7: an account belongs to whichever tenant the index returns first.
    AnyTenant,
    /// 7: a tenant's row is read as an index may still show it.
    RowLags,
    /// 8: live events are processed in a test environment.
    LiveTaken,
    /// 9: a transaction is split into two writes.
    TornCommit,
    /// 10: refunds are added up instead of derived.
    RefundsAdded,
    /// 11: the cleanup ignores that a payment is being processed.
    ProcessingUnheard,
    /// 11: the cleanup ignores sessions that nobody completed or expired.
    SessionUnheard,
    /// 11: the cleanup takes a voucher for a page that was left long ago.
    ActionUnheard,
    /// 12: messages stay invisible for a day.
    InvisibleForADay,
    /// 13: one failure fails its whole batch.
    BatchFails,
    /// 14: the queue drops a message that is sent again as a duplicate.
    RetrySwallowed,
    /// 15: event rows are kept for 10 s only.
    EventsExpire,
    /// 16: Secrets Manager returns the previous version.
    SecretsLag,
    /// 17: a secret is always unreadable.
    SecretUnreadable,
    /// 18: a character beyond ASCII causes a panic.
    PanicsOnUnicode,
    /// 19: the error of a failed call contains the secret.
    SecretTold,
    /// 20: deleting an endpoint does nothing.
    EndpointStays,
    /// 21: the sweep does not see which rows the events have changed.
    RowsForgotten,
    /// 21: the sweep does not see which rows were written without an event.
    RecentForgotten,
    /// 22: the amounts of refunds and disputes are read with another digit.
    AmountMisread,
    /// 23: since when a payment has no link is not loaded.
    AgeForgotten,
}

pub struct World {
    /// The random choices.
    pub rng: Rng,
    /// How often calls fail.
    pub faults: Faults,
    pub mutant: Option<Mutant>,
    pub store: Store,
    pub queues: BTreeMap<&'static str, Queue>,
    pub stripe: Stripe,
    /// Every version of each secret, with the time from which it was current.
    pub secrets: BTreeMap<String, Vec<(String, Timestamp)>>,
    /// What each endpoint was last set to, by the resource's name.
    pub applied: BTreeMap<String, AppliedProperties>,
    /// The answers to CloudFormation.
    pub stack_answers: Vec<Value>,
    /// How often each situation happened that a run should cover (`SOMETIMES`).
    pub sometimes: BTreeMap<&'static str, u64>,
    /// The trace of everything that happened, if it was requested.
    trace: Option<Vec<String>>,
    started: Instant,
    ids: u128,
}

impl World {
    pub fn now(&self) -> Timestamp {
        let epoch = Timestamp::from_unix_s(EPOCH_S).unwrap_or_else(|_| unreachable!());
        epoch.after(self.started.elapsed())
    }

    /// Counts a situation that a run should cover.
    pub fn sometimes(&mut self, what: &'static str) {
        *self.sometimes.entry(what).or_default() += 1;
    }

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

/// The world, shared by all simulated functions, senders and checks.
#[derive(Clone)]
pub struct Sim(Arc<Mutex<World>>);

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sim")
    }
}

impl Sim {
    pub fn new(seed: u64, faults: Faults, mutant: Option<Mutant>, traced: bool) -> Self {
        let queues = ProviderId::ALL
            .iter()
            .map(|p| (p.as_str(), Queue::default()));
        Self(Arc::new(Mutex::new(World {
            rng: Rng::new(seed),
            faults,
            mutant,
            store: Store::default(),
            queues: queues.collect(),
            stripe: Stripe::default(),
            secrets: BTreeMap::new(),
            applied: BTreeMap::new(),
            stack_answers: Vec::new(),
            sometimes: BTreeMap::new(),
            trace: traced.then(Vec::new),
            started: Instant::now(),
            ids: 0,
        })))
    }

    ///
    /// # Panics
    /// If the caller already holds it: there is one thread only, so it would wait for ever.
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

    /// The trace so far, if it was requested.
    pub fn trace(&self) -> Vec<String> {
        self.world().trace.clone().unwrap_or_default()
    }

    /// Waits for a random time between the two.
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
