//! `make bench`: measures what an event costs. It runs the release binaries against its own Lambda Runtime API
//! (`lambda`) and a stub of AWS (`aws`). Machines are noisy, so a function that only echoes (`echo.rs`) is measured in
//! every round.
//!
//! It prints tables and writes `bench.json` and `bench.svg` into the target directory. Options: `--only TEXT` (kinds
//! whose name contains it), `--rounds N`; or, instead, `--blocks N` (only CPU; the kinds take short turns) or
//! `--steady N` (memory of one process over N deliveries).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::float_arithmetic,
    reason = "a harness fails by panicking, and prints figures for people"
)]

mod aws;
mod certificate;
mod cost;
mod kinds;
mod lambda;
mod micro;
mod peers;
mod report;
mod units;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use billhook_adapters::clock::SystemClock;
use billhook_core::ports::Clock as _;

use aws::{Asked, Stub};
use kinds::{Kind, World};
use lambda::{Counter, Event, Process, Run};

/// The delay that is added to each call to simulate a region.
const DELAY: Duration = Duration::from_millis(3);
/// Deliveries before the measured ones, to warm up caches and allocators.
const WARM_UP: usize = 50;
const DELIVERIES: usize = 400;
/// Events of one kind before the next kind's turn.
const BLOCK: usize = 40;
/// Fewer, because under a CPU quota they take longer.
const LIMITED_DELIVERIES: usize = 100;
/// Few, because an emulated CPU is slow and counts the same each time.
const COUNTED_DELIVERIES: usize = 40;

/// The measurements of one kind; each list has one figure per event or process.
#[derive(Default)]
struct Figures {
    /// Plain HTTP, no delay, no quota: the function itself.
    wall_us: Vec<f64>,
    cpu_us: Vec<f64>,
    /// The threads that used CPU in warm events.
    threads: usize,
    /// Over all warm events.
    asked: Asked,
    log_bytes: u64,
    log_lines: usize,
    warm_events: usize,
    /// As in Lambda: TLS, delay, and after init the CPU share of the function's memory.
    init_ms: Vec<f64>,
    first_ms: Vec<f64>,
    cold_cpu_ms: Vec<f64>,
    limited_ms: Vec<f64>,
    peak_kib: u64,
    first_calls: usize,
    limited: bool,
    warm_kinstr: Option<f64>,
    cold_minstr: Option<f64>,
}

struct Bench {
    world: World,
    release: PathBuf,
    roots: String,
    log: PathBuf,
}

fn unix_ms() -> i64 {
    SystemClock.now().unix_ms()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(run());
}

async fn run() {
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .unwrap_or_else(|| panic!("{name} takes a value"));
        let known = ["--blocks", "--only", "--rounds", "--steady"].contains(&name.as_str());
        assert!(
            known,
            "{name} is none of --blocks, --only, --rounds, --steady"
        );
        options.insert(name, value);
    }
    let number = |name, default| {
        options
            .get(name)
            .map_or(default, |value| value.parse().expect("a number"))
    };
    // This program is target/release/examples/bench.
    let this = std::env::current_exe().unwrap();
    let release = this.parent().unwrap().parent().unwrap().to_owned();
    let out = release.parent().unwrap().join("bench");
    fs::create_dir_all(&out).unwrap();
    let bundle = out.join("roots.pem");
    let schemas = units::schemas(include_str!("../../../template.yaml"));
    let stub = Stub::start(schemas, &bundle).await;
    let bench = Bench {
        world: World::start(stub).await,
        release,
        roots: bundle.to_str().unwrap().to_owned(),
        log: out.join("log"),
    };
    let only = options.get("--only").map_or("", String::as_str);
    let chosen = |kind: &Kind| {
        let binary = bench.release.join(kind.binary());
        let is_built = match kind {
            Kind::Naive(_) => binary.exists(),
            Kind::Node(_) => binary.with_file_name("node_modules").exists(),
            _ => true,
        };
        is_built && (*kind == Kind::Echo || kind.name().contains(only))
    };
    let kinds: Vec<Kind> = kinds::ALL.into_iter().filter(chosen).collect();
    match (number("--steady", 0), number("--blocks", 0)) {
        (0, 0) => bench.measure(&kinds, number("--rounds", 5)).await,
        (0, blocks) => bench.by_turns(&kinds, blocks).await,
        (deliveries, _) => bench.steady(&kinds, deliveries).await,
    }
}

impl Bench {
    async fn start(&self, kind: Kind, endpoint: &str, counter: Counter) -> (Process, Event) {
        let binary = self.release.join(kind.binary());
        let run = Run {
            binary: &binary,
            variables: self.world.variables(endpoint, &self.roots),
            log: &self.log,
            counter,
        };
        Process::start(run).await
    }

    async fn invoke(&self, process: &mut Process, kind: Kind, n: usize) -> Event {
        let input = kind.input(&self.world, n).await;
        self.send(process, kind, input).await
    }

    /// Sends an event and fails if the answer is not the expected one.
    async fn send(&self, process: &mut Process, kind: Kind, input: String) -> Event {
        let (event, answer) = process.invoke(input).await;
        let answer = String::from_utf8_lossy(&answer);
        let well = match kind {
            Kind::Echo => answer.contains("stripe-paid") || answer.contains("/webhooks/stripe"),
            Kind::Accepted(_) | Kind::Naive(_) | Kind::Node(_) | Kind::Pending => {
                answer.contains(r#"\"duplicate\":false"#)
            }
            Kind::Duplicate => answer.contains(r#"\"duplicate\":true"#),
            Kind::BadSignature | Kind::Stale => answer.contains("signature_invalid"),
            Kind::StripeBatch(_) | Kind::LobBatch => answer == r#"{"batchItemFailures":[]}"#,
            Kind::CleanupIdle => answer.contains(r#""scanned":0"#),
            Kind::Create => answer == "null",
        };
        assert!(
            well,
            "{}: {answer}\n{}",
            kind.name(),
            fs::read_to_string(&self.log).unwrap()
        );
        event
    }

    async fn measure(&self, kinds: &[Kind], rounds: usize) {
        let mut all: Vec<(Kind, Figures)> = kinds
            .iter()
            .map(|kind| (*kind, Figures::default()))
            .collect();
        for round in 0..rounds {
            for (kind, figures) in &mut all {
                eprintln!("round {} of {rounds}: {}", round + 1, kind.name());
                self.world.reset();
                self.plain(*kind, figures).await;
                self.world.reset();
                self.as_in_lambda(*kind, figures).await;
            }
        }
        let counter = Counter::find();
        if counter != Counter::Nothing {
            // Valgrind's figures are meaningless for code that Node compiles at run time.
            let is_counted =
                |kind: &Kind| counter == Counter::Perf || !matches!(kind, Kind::Node(_));
            for (kind, figures) in all.iter_mut().filter(|(kind, _)| is_counted(kind)) {
                eprintln!("instructions: {}", kind.name());
                self.count(*kind, figures, counter).await;
            }
        }
        report::write(&all, counter, &self.release, &micro::measure());
    }

    /// Measures the function itself.
    async fn plain(&self, kind: Kind, figures: &mut Figures) {
        let stub = &self.world.stub;
        let (mut process, _) = self.start(kind, &stub.http, Counter::Nothing).await;
        let warm_up = WARM_UP.div_ceil(kind.records());
        let events = DELIVERIES / kind.records();
        for n in 0..warm_up {
            self.invoke(&mut process, kind, n).await;
        }
        let log = fs::read(&self.log).unwrap().len();
        let threads: BTreeMap<_, _> = process.threads().collect();
        for n in warm_up..warm_up + events {
            let input = kind.input(&self.world, n).await;
            stub.taken();
            let event = self.send(&mut process, kind, input).await;
            figures.asked += stub.taken();
            figures.wall_us.push(event.wall.as_secs_f64() * 1e6);
            figures.cpu_us.push(event.cpu.as_secs_f64() * 1e6);
        }
        let ran = process
            .threads()
            .filter(|(thread, used)| threads.get(thread) != Some(used));
        figures.threads = ran.count();
        let log = &fs::read(&self.log).unwrap()[log..];
        figures.log_bytes += log.len() as u64;
        figures.log_lines += log.iter().filter(|byte| **byte == b'\n').count();
        figures.warm_events += events;
    }

    /// Measures as in Lambda: a new process, and after init the CPU share of its memory.
    async fn as_in_lambda(&self, kind: Kind, figures: &mut Figures) {
        let ms = |span: Duration| span.as_secs_f64() * 1e3;
        let stub = &self.world.stub;
        stub.set_delay(DELAY);
        let (mut process, init) = self.start(kind, &stub.https, Counter::Nothing).await;
        figures.limited = process.limit(kind.memory_mb());
        stub.set_delay(Duration::ZERO);
        let input = kind.input(&self.world, 0).await;
        stub.set_delay(DELAY);
        stub.taken();
        let first = self.send(&mut process, kind, input).await;
        figures.first_calls = stub.taken().calls.values().sum();
        figures.init_ms.push(ms(init.wall));
        figures.first_ms.push(ms(first.wall));
        figures.cold_cpu_ms.push(ms(init.cpu + first.cpu));
        for n in 1..LIMITED_DELIVERIES / kind.records() {
            stub.set_delay(Duration::ZERO);
            let input = kind.input(&self.world, n).await;
            stub.set_delay(DELAY);
            let event = self.send(&mut process, kind, input).await;
            figures.limited_ms.push(ms(event.wall));
        }
        stub.set_delay(Duration::ZERO);
        figures.peak_kib = figures.peak_kib.max(process.memory_kib("VmHWM"));
    }

    /// The difference between two processes that handle different numbers of events is the instructions of those
    /// events.
    async fn count(&self, kind: Kind, figures: &mut Figures, counter: Counter) {
        let mut taken = Vec::new();
        let (few, more) = (2, 2 + COUNTED_DELIVERIES / kind.records());
        for (events, endpoint) in [
            (1, &self.world.stub.https),
            (few, &self.world.stub.http),
            (more, &self.world.stub.http),
        ] {
            self.world.reset();
            let (mut process, _) = self.start(kind, endpoint, counter).await;
            for n in 0..events {
                self.invoke(&mut process, kind, n).await;
            }
            taken.push(process.end(counter) as f64);
        }
        figures.cold_minstr = Some(taken[0] / 1e6);
        figures.warm_kinstr = Some((taken[2] - taken[1]) / (more - few) as f64 / 1e3);
    }

    /// Measures the CPU of an event in short blocks, so that variations of the machine affect all kinds alike.
    async fn by_turns(&self, kinds: &[Kind], blocks: usize) {
        let mut all = Vec::new();
        for kind in kinds.iter().copied() {
            let endpoint = &self.world.stub.http;
            let (process, _) = self.start(kind, endpoint, Counter::Nothing).await;
            all.push((kind, process, Vec::new()));
        }
        // As many events as the others have in all, so that Node's compiler has finished its work.
        let warm_up = DELIVERIES / BLOCK;
        for block in 0..warm_up + blocks {
            for (kind, process, cpu_us) in &mut all {
                self.world.reset();
                let events = BLOCK.div_ceil(kind.records());
                let mut cpu = Duration::ZERO;
                for n in 0..events {
                    cpu += self.invoke(process, *kind, block * events + n).await.cpu;
                }
                if block >= warm_up {
                    cpu_us.push(cpu.as_secs_f64() * 1e6 / events as f64);
                }
            }
            // The log would fill the disk.
            fs::write(&self.log, "").unwrap();
        }
        println!(
            "CPU us of an event, in {blocks} blocks of {BLOCK} by turns: median, lowest tenth"
        );
        for (kind, _, cpu_us) in &mut all {
            cpu_us.sort_by(f64::total_cmp);
            let at = |tenths| cpu_us[cpu_us.len() * tenths / 10];
            println!("{:32} {:8.0} {:8.0}", kind.name(), at(5), at(1));
        }
    }

    /// Measures whether a process's memory grows with the number of events.
    async fn steady(&self, kinds: &[Kind], deliveries: usize) {
        println!("memory of one process over {deliveries} deliveries, MB resident");
        for kind in kinds.iter().copied() {
            self.world.reset();
            let (mut process, _) = self
                .start(kind, &self.world.stub.http, Counter::Nothing)
                .await;
            let marks = [1, 2, 5, 10, 20, 50, 100].map(|percent| deliveries * percent / 100);
            let mut line = String::new();
            let (mut n, mut delivered) = (0, 0);
            for mark in marks {
                while delivered < mark {
                    self.invoke(&mut process, kind, n).await;
                    (n, delivered) = (n + 1, delivered + kind.records());
                    if n.is_multiple_of(100) {
                        self.world.reset();
                        // The log would fill the disk.
                        fs::write(&self.log, "").unwrap();
                    }
                }
                line += &format!(
                    "  {mark}: {:.2}",
                    process.memory_kib("VmRSS") as f64 / 1024.0
                );
            }
            println!("{:32}{line}", kind.name());
        }
    }
}

impl std::ops::AddAssign for Asked {
    fn add_assign(&mut self, other: Self) {
        for (operation, calls) in other.calls {
            *self.calls.entry(operation).or_default() += calls;
        }
        for (table, units) in other.units {
            *self.units.entry(table).or_default() += units;
        }
        self.read_halves += other.read_halves;
        self.message_bytes += other.message_bytes;
    }
}
