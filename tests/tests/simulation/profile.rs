//! The profiles: what a seed runs, how long, with which faults, and the quiet time after them in which everything must
//! finish.

use std::collections::BTreeMap;
use std::time::Duration;

use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use billhook_testkit::sim::stripe::Endpoint;
use billhook_testkit::sim::{Faults, Mutant, SECRET_CANARY, Service, Sim};
use serde_json::json;

use crate::application::write_rows;
use crate::check::{Found, Violation, at_the_end, drained, proofs, proofs_meanwhile};
use crate::customers::Customers;
use crate::edges::{LOB_ARN, STRIPE_ARN};
use crate::functions::{Functions, Task};
use crate::logs;
use crate::senders::lob_secret;
use crate::stack::deployed;

/// Longest of all ages between two looks of the sweep at what came in the active time, but for the one after a day.
const SETTLES: Duration = Duration::from_hours(3);
/// The sweep has come twice to every row that was written in the active time.
const ROWS_SETTLE: Duration = Duration::from_hours(26);

/// Not nightly, as in `template.yaml`, because customers are active for less than an hour.
const PROOF_EVERY: Duration = Duration::from_mins(5);

/// A way of running.
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    /// How long customers are active and things go wrong.
    active: Duration,
    faults: u64,
    late: u64,
    crashes: u64,
    has_outage: bool,
    /// The most between two steps of a payment.
    pace: Duration,
    orders: u64,
    statements: u64,
    payments: u64,
    cleanup_every: Duration,
    grace: Duration,
    is_adversarial: bool,
    /// Payments are linked by invoices, by the metadata of charges and to two orders, and people decide.
    is_entangled: bool,
    /// The stack makes and replaces its endpoint.
    rotates: bool,
    /// The application and its people write rows that billhook writes too.
    writes_rows: bool,
    /// Somebody purges the queues.
    purges: bool,
}

const ORDINARY: Profile = Profile {
    name: "ordinary",
    active: Duration::from_mins(40),
    faults: 15,
    late: 100,
    crashes: 200,
    has_outage: false,
    pace: Duration::from_mins(4),
    orders: 3,
    statements: 1,
    payments: 2,
    cleanup_every: Duration::from_mins(15),
    grace: Duration::from_mins(10),
    is_adversarial: false,
    is_entangled: false,
    rotates: false,
    writes_rows: false,
    purges: false,
};

pub(crate) const PROFILES: &[Profile] = &[
    ORDINARY,
    Profile {
        name: "heavy",
        faults: 150,
        has_outage: true,
        purges: true,
        ..ORDINARY
    },
    Profile {
        name: "contention",
        active: Duration::from_mins(15),
        faults: 60,
        late: 600,
        pace: Duration::from_secs(15),
        orders: 2,
        statements: 0,
        payments: 5,
        cleanup_every: Duration::from_secs(30),
        grace: Duration::from_secs(5),
        ..ORDINARY
    },
    // Customers whose card fails, who come back late, with a voucher or on an old page, or not at all.
    Profile {
        name: "abandoned",
        faults: 60,
        late: 300,
        pace: Duration::from_mins(2),
        orders: 6,
        statements: 0,
        payments: 1,
        cleanup_every: Duration::from_mins(1),
        grace: Duration::from_mins(2),
        ..ORDINARY
    },
    Profile {
        name: "rotation",
        faults: 60,
        orders: 2,
        rotates: true,
        ..ORDINARY
    },
    Profile {
        name: "entangled",
        faults: 60,
        orders: 8,
        payments: 1,
        is_entangled: true,
        ..ORDINARY
    },
    Profile {
        name: "overwritten",
        faults: 30,
        orders: 6,
        payments: 1,
        writes_rows: true,
        ..ORDINARY
    },
    Profile {
        name: "adversarial",
        faults: 30,
        is_adversarial: true,
        ..ORDINARY
    },
];

/// What a seed came to.
pub(crate) struct Outcome {
    pub(crate) violations: Vec<Violation>,
    pub(crate) sometimes: BTreeMap<&'static str, u64>,
    pub(crate) trace: Vec<String>,
}

/// Runs a seed. The same seed does the same.
pub(crate) fn run(profile: &Profile, seed: u64, mutant: Option<Mutant>, traced: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, play(profile, seed, mutant, traced))
}

async fn play(profile: &Profile, seed: u64, mutant: Option<Mutant>, traced: bool) -> Outcome {
    let faults = Faults {
        per_mille: profile.faults,
        late: profile.late,
        crashes: profile.crashes,
        until: Timestamp::from_unix_s(0).unwrap(),
        outage: None,
    };
    let sim = Sim::new(seed, faults, mutant, traced);
    let until = sim.now().after(profile.active);
    {
        let mut world = sim.world();
        let now = world.now();
        world.faults.until = until;
        if profile.has_outage {
            let services = [
                Service::Tables,
                Service::Queues,
                Service::Secrets,
                Service::Stripe,
            ];
            let service = world.rng.pick(&services);
            let from = now.after(world.rng.span(Duration::ZERO, profile.active));
            world.faults.outage = Some((service, from, from.after(Duration::from_mins(1))));
        }
        let long_ago = now.before(Duration::from_hours(1000));
        let document = json!({ "lob_webhook_secret": lob_secret() }).to_string();
        world
            .secrets
            .insert(LOB_ARN.to_owned(), vec![(document, long_ago)]);
        if !profile.rotates {
            let secret = format!("whsec_{SECRET_CANARY}_0");
            let document = json!({ "endpoint_id": "we_0", "signing_secret": secret }).to_string();
            world
                .secrets
                .insert(STRIPE_ARN.to_owned(), vec![(document, long_ago)]);
            world.stripe.endpoints.push(Endpoint {
                id: "we_0".to_owned(),
                url: String::new(),
                types: vec!["*".to_owned()],
                metadata: BTreeMap::new(),
                secret,
                deleted_at: None,
            });
        }
    }
    let functions = Functions::new(&sim, profile.grace);
    logs::told();
    logs::refreshes();
    logs::unclaimed();
    start(profile, &functions, until);
    let stack = match profile.rotates {
        true => Some(tokio::task::spawn_local(deployed(functions.clone(), until))),
        false => None,
    };
    tokio::time::sleep(profile.active).await;

    let mut found = Found::default();
    tokio::time::sleep(Duration::from_mins(15)).await;
    drained(&functions, until, &mut found);
    redrive(&functions);
    let settles = if profile.writes_rows || profile.is_adversarial {
        ROWS_SETTLE
    } else {
        SETTLES
    };
    tokio::time::sleep(settles).await;
    if let Some(stack) = stack {
        stack.await.unwrap().check(&mut found).await;
    }
    at_the_end(&functions, &mut found);
    proofs(&functions, &mut found).await;
    if !profile.writes_rows {
        proofs_meanwhile(&functions, &mut found);
    }
    let trace = sim.trace();
    let mut sometimes = sim.world().sometimes.clone();
    if let refreshes @ 1.. = logs::refreshes() {
        sometimes.insert("refresh on a mismatch", refreshes);
    }
    Outcome {
        violations: found.0.into_iter().collect(),
        sometimes,
        trace,
    }
}

fn start(profile: &Profile, functions: &Functions, until: Timestamp) {
    let sim = &functions.sim;
    for provider in ProviderId::ALL.iter().copied() {
        tokio::task::spawn_local(functions.clone().poll(provider));
    }
    tokio::task::spawn_local(functions.clone().deliver());
    tokio::task::spawn_local(functions.clone().forge(until));
    let tasks = [
        (Task::Cleanup, profile.cleanup_every),
        (Task::Sweep, Duration::from_mins(10)),
        (Task::Reconcile, Duration::from_hours(1)),
    ];
    for (task, every) in tasks {
        let every_then = every.max(Duration::from_mins(10));
        let functions = functions.clone();
        tokio::task::spawn_local(async move {
            let active = functions.clone().schedule(task, every);
            let left = functions.sim.now().until(until);
            tokio::time::timeout(left, active).await.ok();
            functions.schedule(task, every_then).await;
        });
    }
    // At rest everything is proven anyway.
    let proofs = functions.clone().schedule(Task::Proof, PROOF_EVERY);
    tokio::task::spawn_local(tokio::time::timeout(profile.active, proofs));
    tokio::task::spawn_local(operator(functions.clone(), until));
    if profile.writes_rows {
        tokio::task::spawn_local(write_rows(sim.clone(), until));
    }
    if profile.purges {
        tokio::task::spawn_local(purge(functions.clone(), profile.active));
    }
    let customers = Customers {
        sim: sim.clone(),
        until,
        pace: profile.pace,
        is_entangled: profile.is_entangled,
    };
    if profile.is_entangled {
        tokio::task::spawn_local(functions.clone().relink(until));
    }
    customers.add_tenant("a");
    customers.add_tenant("b");
    let late = customers.clone();
    tokio::task::spawn_local(async move {
        late.sim.wait(Duration::ZERO, Duration::from_mins(15)).await;
        late.add_tenant("c");
    });
    let (moving, active) = (customers.clone(), profile.active);
    tokio::task::spawn_local(async move {
        moving.sim.wait(Duration::ZERO, active).await;
        moving.change_account("a");
    });
    let owners = [None, Some("a"), Some("b"), Some("c")];
    for number in 0..profile.orders {
        // Rivals have one tenant.
        let owner = match profile.is_entangled {
            true => owners[usize::try_from(number % 4).unwrap()],
            false => sim.world().rng.pick(&owners),
        };
        let order = customers
            .clone()
            .order(number.to_string(), owner, profile.payments);
        tokio::task::spawn_local(order);
    }
    for number in 0..profile.statements {
        let owner = sim.world().rng.pick(&owners);
        let statement = customers.clone().statement(number.to_string(), owner, 1);
        tokio::task::spawn_local(statement);
    }
    if profile.is_adversarial {
        tokio::task::spawn_local(customers.clone().moving_account());
        tokio::task::spawn_local(customers.oddities());
    }
}

/// A person who replays events, and puts messages on the queue by hand that are none.
async fn operator(functions: Functions, until: Timestamp) {
    while functions.sim.now() < until {
        functions
            .sim
            .wait(Duration::from_mins(1), Duration::from_mins(8))
            .await;
        let mut world = functions.sim.world();
        let now = world.now();
        let provider = world.rng.pick(ProviderId::ALL);
        let rows: Vec<_> = world
            .store
            .events_of(provider)
            .map(|row| row.stored.clone())
            .collect();
        let unique = world.rng.below(u64::MAX);
        if world.rng.chance(300) || rows.is_empty() {
            let body = world.rng.pick(&["poison", "{\"event_id\":\"evt_poison\"}"]);
            let group = rows.first().map_or("by hand", |row| row.group.as_str());
            world
                .queue(provider)
                .send(now, "operator", group, &unique.to_string(), body);
            world.sometimes("poison message");
        } else {
            let row = world.rng.pick(&rows);
            let body = json!({ "event_id": row.id.as_str() }).to_string();
            let id = format!("{}.r.{unique}", row.id);
            world
                .queue(provider)
                .send(now, "operator", &row.group, &id, &body);
            world.sometimes(if row.processed {
                "replay of a done event"
            } else {
                "replay of an open event"
            });
        }
    }
}

/// Somebody purges the queues once, by mistake.
async fn purge(functions: Functions, active: Duration) {
    functions.sim.wait(Duration::ZERO, active).await;
    let mut world = functions.sim.world();
    for provider in ProviderId::ALL.iter().copied() {
        if !world.queue(provider).messages.is_empty() {
            world.sometimes("purged message");
        }
        world.tell(|| format!("operator       purges the queue of {provider}"));
        world.queue(provider).messages.clear();
    }
}

/// What a person does with dead letters once everything is well again.
fn redrive(functions: &Functions) {
    let mut world = functions.sim.world();
    let now = world.now();
    for provider in ProviderId::ALL.iter().copied() {
        let dead = std::mem::take(&mut world.queue(provider).dead);
        for message in dead {
            if message.body.contains("poison") {
                continue;
            }
            let id = format!("{}.redriven", message.id);
            world
                .queue(provider)
                .send(now, "operator", &message.group, &id, &message.body);
            world.sometimes("redrive");
        }
    }
}
