//! Runs one function's binary against the harness's own Lambda Runtime API, and measures its time, CPU, instructions
//! and memory.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};

/// A longer answer is a defect of the function or the harness.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// With this many MB of memory a Lambda function has one whole CPU.
const MB_OF_ONE_CPU: u64 = 1769;
const PERIOD_US: u64 = 20_000;

pub(crate) struct Run<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) variables: Vec<(&'static str, String)>,
    /// The file for its log.
    pub(crate) log: &'a Path,
    pub(crate) counter: Counter,
}

/// The instruction counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    Nothing,
    /// The CPU's own counter, read with `perf`; counts user and kernel.
    Perf,
    /// An emulated CPU (valgrind) without SHA instructions; counts user only.
    Valgrind,
}

/// The measurements of one event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

pub(crate) struct Process {
    child: Child,
    pid: u32,
    begun: Instant,
    invocations: mpsc::UnboundedSender<String>,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    counted: Option<PathBuf>,
    cgroup: Option<PathBuf>,
}

enum Arrival {
    /// The process asks for the next invocation.
    Idle(Instant),
    Answer(Instant, Bytes),
}

struct Runtime {
    invocations: Mutex<mpsc::UnboundedReceiver<String>>,
    arrivals: mpsc::UnboundedSender<Arrival>,
}

impl Counter {
    /// The best counter of this machine.
    pub(crate) fn find() -> Self {
        let works = |command: &mut Command| {
            let output = command
                .output()
                .ok()
                .filter(|output| output.status.success());
            output.is_some_and(|output| !String::from_utf8_lossy(&output.stderr).contains("<not"))
        };
        if works(Command::new("perf").args(["stat", "-x,", "-e", "instructions", "true"])) {
            return Self::Perf;
        }
        match works(Command::new("valgrind").arg("--version")) {
            true => Self::Valgrind,
            false => Self::Nothing,
        }
    }

    fn command(self, binary: &Path, counted: &Path) -> Command {
        match self {
            Self::Nothing => Command::new(binary),
            Self::Perf => {
                let mut command = Command::new("perf");
                command.args(["stat", "-x,", "-e", "instructions", "-o"]);
                command.arg(counted).arg("--").arg(binary);
                command
            }
            Self::Valgrind => {
                let mut command = Command::new("valgrind");
                command.args([
                    "--tool=cachegrind",
                    "--cache-sim=no",
                    "--cachegrind-out-file=/dev/null",
                ]);
                command
                    .arg(format!("--log-file={}", counted.display()))
                    .arg(binary);
                command
            }
        }
    }

    fn read(self, counted: &Path) -> u64 {
        let text = fs::read_to_string(counted).unwrap();
        let number = match self {
            Self::Nothing => return 0,
            Self::Perf => text
                .lines()
                .find_map(|line| Some(line.split_once(",,instructions")?.0)),
            Self::Valgrind => text
                .lines()
                .find_map(|line| Some(line.split_once("I   refs:")?.1)),
        };
        let digits = number.unwrap_or_else(|| panic!("nothing was counted: {text}"));
        digits.trim().replace(',', "").parse().unwrap()
    }
}

impl Process {
    /// Starts the process and waits until it asks for its first event; returns how long that took.
    pub(crate) async fn start(run: Run<'_>) -> (Self, Event) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (invocations, pending) = mpsc::unbounded_channel();
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let runtime = Arc::new(Runtime {
            invocations: Mutex::new(pending),
            arrivals: arrived,
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let runtime = Arc::clone(&runtime);
                let service = service_fn(move |request| Arc::clone(&runtime).respond(request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { connection.await.ok() });
            }
        });
        let counted = run.log.with_extension("counted");
        let begun = Instant::now();
        let child = run
            .counter
            .command(run.binary, &counted)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("AWS_LAMBDA_RUNTIME_API", address)
            .env("AWS_LAMBDA_FUNCTION_NAME", "bench")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .envs(run.variables)
            .stdout(fs::File::create(run.log).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", run.binary.display()));
        let mut process = Self {
            pid: child.id(),
            child,
            begun,
            invocations,
            arrivals,
            counted: (run.counter != Counter::Nothing).then_some(counted),
            cgroup: None,
        };
        let asked_at = process.idle().await;
        let init = Event {
            wall: asked_at - process.begun,
            cpu: process.cpu(),
        };
        (process, init)
    }

    async fn next(&mut self) -> Arrival {
        let arrival = tokio::time::timeout(ANSWER_MAX, self.arrivals.recv()).await;
        arrival
            .expect("the function hangs")
            .expect("the function is gone")
    }

    async fn idle(&mut self) -> Instant {
        match self.next().await {
            Arrival::Idle(at) => at,
            Arrival::Answer(_, answer) => panic!("an answer to nothing: {answer:?}"),
        }
    }

    /// Sends an event and waits until the process asks for the next one.
    pub(crate) async fn invoke(&mut self, input: String) -> (Event, Bytes) {
        let cpu = self.cpu();
        let sent_at = Instant::now();
        self.invocations.send(input).unwrap();
        let Arrival::Answer(at, answer) = self.next().await else {
            panic!("it asked for more without an answer");
        };
        self.idle().await;
        let event = Event {
            wall: at - sent_at,
            cpu: self.cpu() - cpu,
        };
        (event, answer)
    }

    /// Limits the CPU to the share that this much memory has in Lambda; false if the machine does not allow it.
    pub(crate) fn limit(&mut self, memory_mb: u64) -> bool {
        let name = format!("billhook-bench-{}", self.pid);
        let quota_us = PERIOD_US * memory_mb / MB_OF_ONE_CPU;
        let v1 = Path::new("/sys/fs/cgroup/cpu").join(&name);
        let v2 = Path::new("/sys/fs/cgroup").join(&name);
        let limited = |dir: &Path, files: &[(&str, String)]| {
            fs::create_dir(dir).is_ok()
                && files
                    .iter()
                    .all(|(file, text)| fs::write(dir.join(file), text).is_ok())
        };
        let procs = ("cgroup.procs", self.pid.to_string());
        let period = ("cpu.cfs_period_us", PERIOD_US.to_string());
        let quota = ("cpu.cfs_quota_us", quota_us.to_string());
        let both = ("cpu.max", format!("{quota_us} {PERIOD_US}"));
        for (dir, files) in [
            (v1, vec![period, quota, procs.clone()]),
            (v2, vec![both, procs]),
        ] {
            if limited(&dir, &files) {
                self.cgroup = Some(dir);
                return true;
            }
            fs::remove_dir(&dir).ok();
        }
        false
    }

    /// The CPU time of all threads.
    fn cpu(&self) -> Duration {
        self.threads().map(|(_, used)| used).sum()
    }

    /// The id and the CPU time of each thread.
    pub(crate) fn threads(&self) -> impl Iterator<Item = (String, Duration)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        tasks.filter_map(|task| {
            let task = task.ok()?;
            let used = fs::read_to_string(task.path().join("schedstat")).ok()?;
            let used = Duration::from_nanos(used.split_whitespace().next()?.parse().ok()?);
            Some((task.file_name().into_string().ok()?, used))
        })
    }

    /// In KiB: `VmHWM` (peak) or `VmRSS` (now).
    pub(crate) fn memory_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim_matches([':', ' ', '\t', 'k', 'B'])
            .parse()
            .unwrap()
    }

    /// Ends the process; returns the instructions from start to end, if they were counted.
    pub(crate) fn end(mut self, counter: Counter) -> u64 {
        let signal = match counter {
            Counter::Nothing => "-KILL",
            Counter::Perf => "-INT",
            Counter::Valgrind => "-TERM",
        };
        let mut kill = Command::new("kill");
        kill.arg(signal).arg(self.pid.to_string()).status().unwrap();
        self.child.wait().unwrap();
        self.counted
            .take()
            .map_or(0, |counted| counter.read(&counted))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if let Some(cgroup) = &self.cgroup {
            fs::remove_dir(cgroup).ok();
        }
    }
}

impl Runtime {
    async fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        if request.uri().path().ends_with("/invocation/next") {
            self.arrivals.send(Arrival::Idle(Instant::now())).ok();
            let Some(input) = self.invocations.lock().await.recv().await else {
                // The harness has ended the process.
                return std::future::pending().await;
            };
            let deadline_ms = crate::unix_ms() + 600_000;
            return Ok(Response::builder()
                .header("lambda-runtime-aws-request-id", "bench")
                .header("lambda-runtime-deadline-ms", deadline_ms)
                .header("lambda-runtime-invoked-function-arn", "arn:bench")
                .header(
                    "lambda-runtime-trace-id",
                    "Root=1-67890abc-0123456789abcdef01234567;Parent=0123456789abcdef;Sampled=1",
                )
                .body(Full::from(input))
                .unwrap());
        }
        let body = request.into_body().collect().await?.to_bytes();
        self.arrivals
            .send(Arrival::Answer(Instant::now(), body))
            .ok();
        Ok(Response::builder()
            .status(202)
            .body(Full::default())
            .unwrap())
    }
}
