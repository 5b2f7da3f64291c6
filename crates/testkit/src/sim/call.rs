//! One call to the outside, and everything that may happen to it.

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

/// A usual answer.
const QUICK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(40));
/// One that takes its time.
const SLOW: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// As the clients give a call up: `adapters::aws`.
const GIVEN_UP: Duration = Duration::from_secs(7);
/// How long after its caller gave up a write may still land.
const LATE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(40));

/// Who is called.
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
    /// The place of `CloudFormation`'s answers.
    Stack,
}

/// A call, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Who is called.
    pub service: Service,
    /// What for.
    pub name: &'static str,
    /// Whether it changes something.
    pub writes: bool,
}

/// How often what goes wrong, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Calls in a thousand that do not simply work.
    pub per_mille: u64,
    /// Of a thousand such writes, how many land late.
    pub late: u64,
    /// Of a thousand others, how many end the process.
    pub crashes: u64,
    /// Nothing goes wrong from then on.
    pub until: Timestamp,
    /// A service that is out of reach for a while.
    pub outage: Option<(Service, Timestamp, Timestamp)>,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Works,
    /// The SDK repeats it by itself after its first answer was lost.
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

/// No answer came.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    /// It was turned away, and nothing happened.
    pub is_throttled: bool,
    call: Call,
    tells_secret: bool,
}

impl Lost {
    /// As the clients tell it.
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

/// Stands in every secret, and must stand nowhere else.
pub const SECRET_CANARY: &str = "CANARYsecret";

/// One running function's way to the outside.
#[derive(Clone, Debug)]
pub struct Port {
    /// The world.
    pub sim: Sim,
    /// The provider whose table is meant, where a port does not say so itself.
    pub provider: ProviderId,
    run: Arc<Run>,
}

#[derive(Debug)]
struct Run {
    name: String,
    /// The process is gone.
    crashed: Notify,
    faults: AtomicU64,
}

impl Port {
    /// Of a process that begins now.
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

    /// The same process, another table.
    #[must_use]
    pub fn of(&self, provider: ProviderId) -> Self {
        Self {
            provider,
            ..self.clone()
        }
    }

    /// Of the process, for the trace.
    pub fn name(&self) -> &str {
        &self.run.name
    }

    /// Returns if the process is ended from outside.
    pub async fn crashed(&self) {
        self.run.crashed.notified().await;
    }

    /// What went wrong for this process so far; a lost race counts.
    pub fn faults(&self) -> u64 {
        self.run.faults.load(Ordering::Relaxed)
    }

    /// Something went wrong for it.
    pub fn fault(&self) {
        self.run.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls. `effect` is what the other side does with it: at once, later, twice or never.
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
