//! One outside call and everything that may happen to it: success, failure before or after it took effect, a late
//! write, a repeat by the SDK, throttling, a hanging call, a crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use billhook_core::error::DependencyError;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Pause as _;
use billhook_core::retry::Disposition;
use billhook_core::time::Timestamp;
use tokio::sync::Notify;

use super::{Mutant, Sim, World};

/// The time of a usual answer.
const QUICK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(40));
/// The time of a slow answer.
const SLOW: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// The clients' time-out, as in `adapters::aws`.
const GIVEN_UP: Duration = Duration::from_secs(7);
/// How long after its caller gave up a write may still take effect.
const LATE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(40));

/// The service that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The tables.
    Tables,
    /// The queues.
    Queues,
    /// Secrets Manager.
    Secrets,
    /// Stripe's API.
    Stripe,
    /// Where CloudFormation receives answers.
    Stack,
}

#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The service that is called.
    pub service: Service,
    /// The operation and its object, for the trace.
    pub name: &'static str,
    /// Whether it changes something.
    pub writes: bool,
}

/// The fault rates of a profile.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Faults per 1,000 calls.
    pub per_mille: u64,
    /// Of 1,000 writes with a fault, how many take effect late.
    pub late: u64,
    /// Of 1,000 other faults, how many end the process.
    pub crashes: u64,
    /// When faults end.
    pub until: Timestamp,
    /// A service with an outage.
    pub outage: Option<(Service, Timestamp, Timestamp)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Works,
    /// The SDK repeats the call because the first answer was lost.
    Repeated,
    Throttled,
    FailsBefore,
    AnswerLost,
    LandsLate,
    Hangs,
    CrashesBefore,
    CrashesAfter,
}

impl Fate {
    fn name(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Repeated => "repeated by the sdk",
            Self::Throttled => "throttled",
            Self::FailsBefore => "error before",
            Self::AnswerLost => "answer lost",
            Self::LandsLate => "lands late",
            Self::Hangs => "hangs",
            Self::CrashesBefore => "crash before",
            Self::CrashesAfter => "crash after",
        }
    }
}

/// No answer: the outcome is unknown.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    /// The service refused the call and nothing happened.
    pub is_throttled: bool,
    call: Call,
    tells_secret: bool,
}

impl Lost {
    /// The error as the clients report it.
    pub fn told(self) -> String {
        let cause = if self.is_throttled {
            "throttled"
        } else {
            "no answer"
        };
        match self.tells_secret {
            true => format!("{}: {cause} ({SECRET_CANARY})", self.call.name),
            false => format!("{}: {cause}", self.call.name),
        }
    }
}

impl From<Lost> for DependencyError {
    fn from(lost: Lost) -> Self {
        Self {
            doing: lost.call.name.to_owned(),
            disposition: match lost.call.writes && !lost.is_throttled {
                true => Disposition::OutcomeUnknown,
                false => Disposition::RetryLater,
            },
            cause: lost.told().into(),
        }
    }
}

/// Part of every secret; it must appear nowhere else.
pub const SECRET_CANARY: &str = "CANARYsecret";

/// The outside calls of one simulated process.
#[derive(Clone, Debug)]
pub struct Port {
    pub sim: Sim,
    /// The provider whose table is used, if a port does not say so itself.
    pub provider: ProviderId,
    run: Arc<Run>,
}

#[derive(Debug)]
struct Run {
    name: String,
    /// The process has ended.
    crashed: Notify,
    faults: AtomicU64,
}

impl Port {
    /// A new process.
    pub fn new(sim: &Sim, provider: ProviderId, name: String) -> Self {
        Self {
            sim: sim.clone(),
            provider,
            run: Arc::new(Run {
                name,
                crashed: Notify::new(),
                faults: AtomicU64::new(0),
            }),
        }
    }

    /// The same process with another table.
    #[must_use]
    pub fn of(&self, provider: ProviderId) -> Self {
        Self {
            provider,
            ..self.clone()
        }
    }

    /// The name of the process in the trace.
    pub fn name(&self) -> &str {
        &self.run.name
    }

    /// Returns when the process is killed.
    pub async fn crashed(&self) {
        self.run.crashed.notified().await;
    }

    /// The number of faults of this process so far; a lost race counts.
    pub fn faults(&self) -> u64 {
        self.run.faults.load(Ordering::Relaxed)
    }

    /// Counts a fault.
    pub fn fault(&self) {
        self.run.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes a call. `effect` is what the service does: at once, later, twice or never.
    pub async fn call<T>(
        &self,
        call: Call,
        of: &str,
        mut effect: impl FnMut(&mut World) -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let fate = {
            let mut world = self.sim.world();
            let fate = world.fate(call);
            world.tell(|| format!("{:<14} {} {of}: {}", self.name(), call.name, fate.name()));
            if fate != Fate::Works {
                world.sometimes(fate.name());
            }
            fate
        };
        if fate != Fate::Works {
            self.fault();
        }
        let lost = Lost {
            is_throttled: fate == Fate::Throttled,
            call,
            tells_secret: self.sim.world().mutant == Some(Mutant::SecretTold),
        };
        self.takes(QUICK).await;
        match fate {
            Fate::Works => {
                let slow = self.sim.world().rng.chance(30);
                if slow {
                    self.takes(SLOW).await;
                }
                let answer = effect(&mut self.sim.world());
                self.takes(QUICK).await;
                Ok(answer)
            }
            Fate::Repeated => {
                effect(&mut self.sim.world());
                self.takes(SLOW).await;
                Ok(effect(&mut self.sim.world()))
            }
            Fate::Throttled | Fate::FailsBefore => Err(lost),
            Fate::AnswerLost => {
                effect(&mut self.sim.world());
                self.takes(SLOW).await;
                Err(lost)
            }
            Fate::LandsLate => {
                let sim = self.sim.clone();
                let name = self.name().to_owned();
                let of = of.to_owned();
                tokio::spawn(async move {
                    sim.pause(GIVEN_UP).await;
                    sim.wait(LATE.0, LATE.1).await;
                    let mut world = sim.world();
                    world.tell(|| format!("{name:<14} {} {of}: has landed", call.name));
                    effect(&mut world);
                });
                self.sim.pause(GIVEN_UP).await;
                Err(lost)
            }
            Fate::Hangs => {
                self.sim.pause(GIVEN_UP).await;
                Err(lost)
            }
            Fate::CrashesBefore => self.crash().await,
            Fate::CrashesAfter => {
                effect(&mut self.sim.world());
                self.crash().await
            }
        }
    }

    async fn takes(&self, (least, most): (Duration, Duration)) {
        self.sim.wait(least, most).await;
    }

    async fn crash<T>(&self) -> T {
        self.run.crashed.notify_one();
        std::future::pending().await
    }
}

impl World {
    fn fate(&mut self, call: Call) -> Fate {
        let (now, faults) = (self.now(), self.faults);
        if let Some((service, from, until)) = faults.outage
            && service == call.service
            && (from..until).contains(&now)
        {
            return self
                .rng
                .pick(&[Fate::FailsBefore, Fate::Hangs, Fate::Throttled]);
        }
        if now >= faults.until || !self.rng.chance(faults.per_mille) {
            return Fate::Works;
        }
        if call.writes && self.rng.chance(faults.late) {
            return Fate::LandsLate;
        }
        if self.rng.chance(faults.crashes) {
            return self.rng.pick(&[Fate::CrashesBefore, Fate::CrashesAfter]);
        }
        match call.writes {
            true => self.rng.pick(&[
                Fate::Repeated,
                Fate::Throttled,
                Fate::FailsBefore,
                Fate::AnswerLost,
                Fate::Hangs,
            ]),
            false => self
                .rng
                .pick(&[Fate::Throttled, Fate::FailsBefore, Fate::Hangs]),
        }
    }
}
