//! The real functions over the ports of the simulated world, and what invokes them: the gateway, the queues, the
//! schedule.

use billhook_core::provider::interpret::InterpretRules;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billhook_adapters::batch::handle_batch;
use billhook_adapters::config::{SecretLocation, SecretSource, SigningSource};
use billhook_adapters::secrets::SigningKeyCache;
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::entity::key::PaymentKey;
use billhook_core::ids::{PaymentRef, PerProvider, ProviderId};
use billhook_core::ports::Clock as _;
use billhook_core::proof::prover::StateProver;
use billhook_core::provider::signature::KeyScope;
use billhook_core::tasks::definitions::{CleanupInput, ProofInput, ReconcileInput, SweepInput};
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{RECEIVES_MAX, RelinkError, Worker};
use billhook_testkit::sim::queue::Message;
use billhook_testkit::sim::{Mutant, Port, Sim};
use cleanup_failed_payments::ScheduledTask as _;
use cleanup_failed_payments::tasks::cleanup::CleanupTask;
use cleanup_failed_payments::tasks::proof::ProofTask;
use cleanup_failed_payments::tasks::reconcile::ReconcileTask;
use cleanup_failed_payments::tasks::sweep::SweepTask;
use futures_util::FutureExt as _;
use lambda_runtime::{Context, LambdaEvent};
use serde_json::{Value, json};
use webhook_ingress::WebhookIngress;

use crate::edges::{Edge, LOB_ARN, STRIPE_ARN};
use crate::senders::Answered;

/// As in `template.yaml`.
const INGRESS_MAX: Duration = Duration::from_secs(25);
const WORKER_MAX: Duration = Duration::from_secs(10);
const TASK_MAX: Duration = Duration::from_secs(900);
const TOLERANCE: Duration = Duration::from_secs(300);
const SECRETS_FRESH: Duration = Duration::from_secs(300);

/// What the checks look at, beside the world.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) answers: Vec<Answered>,
    pub(crate) batches: Vec<Batch>,
    pub(crate) panics: Vec<String>,
    /// The states that a run of the proof found different: the run, and each state.
    pub(crate) different: Vec<(String, String)>,
}

/// A batch that a worker was given.
pub(crate) struct Batch {
    /// What went wrong for this worker.
    pub(crate) faults: u64,
    /// Each message, and whether it was reported as failed.
    pub(crate) messages: Vec<(Message, bool)>,
}

/// How an invocation ended.
pub(crate) enum Ended<T> {
    Returned(T),
    Crashed,
    TimedOut,
    Panicked,
}

type Keys = SigningKeyCache<Edge, Sim>;

/// A warm container of ingress.
struct Container {
    port: Port,
    ingress: WebhookIngress<Port, Port, Keys, Sim>,
}

/// All functions.
#[derive(Clone)]
pub(crate) struct Functions {
    pub(crate) sim: Sim,
    pub(crate) seen: Arc<Mutex<Seen>>,
    idle: Arc<Mutex<Vec<Container>>>,
    runs: Arc<Mutex<u64>>,
    grace: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Functions {
    pub(crate) fn new(sim: &Sim, grace: Duration) -> Self {
        Self {
            sim: sim.clone(),
            seen: Arc::default(),
            idle: Arc::default(),
            runs: Arc::default(),
            grace,
        }
    }

    pub(crate) fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    pub(crate) fn port(&self, function: &str, provider: ProviderId) -> Port {
        let mut runs = lock(&self.runs);
        *runs += 1;
        Port::new(&self.sim, provider, format!("{function}#{runs}"))
    }

    /// Lets an invocation run until it returns, its process ends, or its time is up.
    pub(crate) async fn run<T>(
        &self,
        port: &Port,
        most: Duration,
        work: impl Future<Output = T>,
    ) -> Ended<T> {
        let work = AssertUnwindSafe(work).catch_unwind();
        let ended = tokio::select! {
            biased;
            () = port.crashed() => Ended::Crashed,
            returned = work => returned.map_or(Ended::Panicked, Ended::Returned),
            () = tokio::time::sleep(most) => Ended::TimedOut,
        };
        let how = match &ended {
            Ended::Returned(_) => return ended,
            Ended::Crashed => "crashed",
            Ended::TimedOut => "timed out",
            Ended::Panicked => "panicked",
        };
        let mut world = self.sim.world();
        world.tell(|| format!("{:<14} {how}", port.name()));
        if let Ended::TimedOut = ended {
            world.sometimes("function timed out");
        }
        if let Ended::Panicked = ended {
            self.seen().panics.push(port.name().to_owned());
        }
        ended
    }

    fn container(&self) -> Container {
        let idle = lock(&self.idle).pop();
        if let Some(container) = idle {
            return container;
        }
        let port = self.port("ingress", ProviderId::Stripe);
        let keys = |wanted, arn: &str| {
            let location = SecretLocation::Arn(arn.to_owned());
            let secret = SecretSource {
                variable: "SECRET_ARN".to_owned(),
                location,
            };
            let scope = KeyScope::AllEvents;
            let source = SigningSource { secret, scope };
            let edge = Edge(port.clone());
            SigningKeyCache::new(
                wanted,
                vec![source],
                SECRETS_FRESH,
                false,
                edge,
                self.sim.clone(),
            )
        };
        let endless = self.sim.world().mutant == Some(Mutant::EndlessTolerance);
        let ingress = WebhookIngress {
            inbox: port.clone(),
            queue: port.clone(),
            keys: PerProvider::new(|provider| {
                let arn = match provider {
                    ProviderId::Stripe => STRIPE_ARN,
                    _ => LOB_ARN,
                };
                keys(SecretKind::signing_of(provider), arn)
            }),
            clock: self.sim.clone(),
            tolerance: if endless { Duration::MAX } else { TOLERANCE },
            counts_types: true,
            account_limiter: webhook_ingress::account_limiter::AccountLimiter::default(),
        };
        Container { port, ingress }
    }

    /// One request: the status and body of its answer, none where the gateway got none, who answered, and what went
    /// wrong for that container so far.
    pub(crate) async fn request(&self, request: Value) -> (Option<(u16, String)>, String, u64) {
        let container = self.container();
        let request = serde_json::from_value(request).unwrap();
        let answering = container.ingress.handle(request);
        let ended = self.run(&container.port, INGRESS_MAX, answering).await;
        let (name, faults) = (container.port.name().to_owned(), container.port.faults());
        match ended {
            Ended::Returned(response) => {
                // Some containers are not needed again.
                if !self.sim.world().rng.chance(20) {
                    lock(&self.idle).push(container);
                }
                (Some((response.status_code, response.body)), name, faults)
            }
            Ended::Crashed | Ended::TimedOut | Ended::Panicked => (None, name, faults.max(1)),
        }
    }

    /// Hands a provider's messages to workers, for ever.
    pub(crate) async fn poll(self, provider: ProviderId) {
        let arrived = self.sim.world().queue(provider).arrived.clone();
        loop {
            let batch = self.sim.world().receive(provider);
            if !batch.is_empty() {
                tokio::task::spawn_local(self.clone().process_batch(provider, batch));
            }
            let now = self.sim.now();
            let next = self.sim.world().queue(provider).next_visible();
            let next = next.unwrap_or(now.after(Duration::from_hours(24)));
            tokio::select! {
                biased;
                () = arrived.notified() => {}
                () = tokio::time::sleep(now.until(next)) => {}
            }
            // What comes meanwhile is handed over together.
            self.sim
                .wait(Duration::from_millis(1), Duration::from_millis(400))
                .await;
        }
    }

    /// A person who decides about payments, each time until the command says that it is done.
    pub(crate) async fn relink(self, until: Timestamp) {
        while self.sim.now() < until {
            self.sim
                .wait(Duration::from_secs(30), Duration::from_mins(15))
                .await;
            let picked = {
                let mut world = self.sim.world();
                let payments = world.stripe.intents.iter();
                let payments: Vec<_> = payments
                    .map(|(id, payment)| (id.clone(), payment.clone()))
                    .collect();
                (!payments.is_empty()).then(|| {
                    let (id, payment) = world.rng.pick(&payments);
                    let to = match (payment.rival, world.rng.chance(500)) {
                        (Some(rival), true) => rival,
                        _ => payment.pays,
                    };
                    (id, payment.account, to)
                })
            };
            let Some((id, account, to)) = picked else {
                continue;
            };
            let key = PaymentKey {
                account,
                payment: PaymentRef::parse(&id).unwrap(),
            };
            loop {
                let port = self.port("relink", ProviderId::Stripe);
                let worker = Worker {
                    provider: ProviderId::Stripe,
                    rules: InterpretRules::default(),
                    ledger: port.clone(),
                    clock: self.sim.clone(),
                };
                let linking = worker.relink_payment(&key, Some(&to), "pat", "asked");
                match self.run(&port, WORKER_MAX, linking).await {
                    Ended::Returned(Ok(_)) => {
                        let mut world = self.sim.world();
                        world.tell(|| format!("operator       links {id} to {to}"));
                        world.stripe.relinked.insert(id, to);
                        world.sometimes("relinked");
                        break;
                    }
                    // The payment, the order or the tenant is not there yet.
                    Ended::Returned(Err(
                        RelinkError::PaymentUnknown
                        | RelinkError::TargetUnknown
                        | RelinkError::OtherTenant
                        | RelinkError::Alias(_),
                    )) => break,
                    _ => {
                        self.sim
                            .wait(Duration::from_secs(5), Duration::from_secs(30))
                            .await
                    }
                }
            }
        }
    }

    async fn process_batch(self, provider: ProviderId, batch: Vec<Message>) {
        let port = self.port(&format!("{}-worker", provider.as_str()), provider);
        let worker = Worker {
            provider,
            rules: InterpretRules {
                live_mode: self.sim.world().mutant == Some(Mutant::LiveTaken),
                ..InterpretRules::default()
            },
            ledger: port.clone(),
            clock: self.sim.clone(),
        };
        let record = |message: &Message| {
            json!({
                "messageId": message.id, "body": message.body, "messageAttributes": {},
                "attributes": { "ApproximateReceiveCount": message.receives.to_string() },
            })
        };
        let records: Vec<Value> = batch.iter().map(record).collect();
        let payload = serde_json::from_value(json!({ "Records": records })).unwrap();
        let mut context = Context::default();
        let deadline = self.sim.now().after(WORKER_MAX);
        context.deadline = u64::try_from(deadline.unix_ms()).unwrap();
        let settling = handle_batch(&worker, RECEIVES_MAX, LambdaEvent { payload, context });
        let ended = self.run(&port, WORKER_MAX, settling).await;
        let failed: BTreeSet<String> = match ended {
            Ended::Returned(Ok(response)) => {
                let failures = response.batch_item_failures.into_iter();
                failures.map(|failure| failure.item_identifier).collect()
            }
            _ => batch.iter().map(|message| message.id.clone()).collect(),
        };
        let mut world = self.sim.world();
        let all_fail = world.mutant == Some(Mutant::BatchFails) && !failed.is_empty();
        let is_lost = !all_fail && world.now() < world.faults.until && world.rng.chance(5);
        if is_lost {
            world.sometimes("batch answer lost");
        }
        let is_failed = |message: &Message| all_fail || failed.contains(&message.id);
        for message in &batch {
            if !is_failed(message) && !is_lost {
                world.delete(provider, message);
            }
        }
        let messages = batch
            .iter()
            .map(|message| (message.clone(), is_failed(message)));
        let batch = Batch {
            faults: port.faults() + u64::from(is_lost),
            messages: messages.collect(),
        };
        drop(world);
        self.seen().batches.push(batch);
    }

    /// Runs a task again and again, sometimes twice at once.
    pub(crate) async fn schedule(self, task: Task, every: Duration) {
        let start = self.sim.world().rng.span(Duration::ZERO, every);
        tokio::time::sleep(start).await;
        loop {
            tokio::task::spawn_local(self.clone().task(task));
            if self.sim.world().rng.chance(50) {
                tokio::task::spawn_local(self.clone().task(task));
            }
            tokio::time::sleep(every).await;
        }
    }

    /// One run of a task.
    pub(crate) async fn task(self, task: Task) {
        let port = self.port(task.name(), ProviderId::Stripe);
        let deadline = self.sim.now().after(TASK_MAX);
        let ran = self
            .run(&port, TASK_MAX, self.execute_plan(task, &port, deadline))
            .await;
        if let Ended::Returned(Err(failed)) = ran {
            self.sim
                .world()
                .tell(|| format!("{:<14} {failed}", port.name()));
        }
    }

    async fn execute_plan(
        &self,
        task: Task,
        port: &Port,
        deadline: Timestamp,
    ) -> Result<(), String> {
        let clock = self.sim.clone();
        let ran = match task {
            Task::Cleanup => {
                let cleanup = CleanupTask {
                    ledger: port.clone(),
                    payments: Some(port.clone()),
                    jobs: port.clone(),
                    clock,
                    grace: self.grace,
                };
                cleanup
                    .run(&CleanupInput::default(), deadline)
                    .await
                    .map(drop)
            }
            Task::Sweep => {
                let sweep = SweepTask {
                    ledgers: PerProvider::new(|provider| port.of(provider)),
                    queue: port.clone(),
                    jobs: port.clone(),
                    clock,
                };
                sweep.run(&SweepInput {}, deadline).await.map(drop)
            }
            Task::Reconcile => {
                let reconcile = ReconcileTask {
                    inbox: port.clone(),
                    queue: port.clone(),
                    jobs: port.clone(),
                    stripe: Some(port.clone()),
                    clock,
                };
                reconcile.run(&ReconcileInput {}, deadline).await.map(drop)
            }
            Task::Proof => {
                let proof = ProofTask {
                    prover: StateProver {
                        states: port.clone(),
                        events: PerProvider::new(|provider| port.of(provider)),
                        rules: InterpretRules::default(),
                    },
                    jobs: port.clone(),
                    clock,
                    // Half, so that some of the states on which a proof rests are read after it and not together with it.
                    sample_percent: 50,
                };
                let ran = proof.run(&ProofInput {}, deadline).await;
                ran.map(|summary| {
                    let name = port.name();
                    let different = summary.different_states.into_iter();
                    let different = different.map(|state| (name.to_owned(), state));
                    self.seen().different.extend(different);
                })
            }
        };
        ran.map_err(|failed| failed.to_string())
    }
}

/// What is done by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Cleanup,
    Sweep,
    Reconcile,
    Proof,
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Self::Cleanup => "cleanup",
            Self::Sweep => "sweep",
            Self::Reconcile => "reconcile",
            Self::Proof => "proof",
        }
    }
}
