//! The local AWS: an emulator with enforced IAM policies, and the real template deployed to it.
//!
//! Guarantees: everything listens on 127.0.0.1 only; each [`LocalAws`] has its own port, state and files, so several
//! can run at the same time; a temporary one ends with the process that started it, even if that process is killed.
//! `docs/local.md` lists what the emulator does not have. `deploy` deploys the template to it, `invoke` runs functions in
//! containers beside it. Needs `make setup` (the `.venv` of the repository) and built function binaries; blocking calls
//! on `std` only.

mod containers;
mod deploy;
mod invoke;
mod relay;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

pub use containers::ContainerEngine;
pub use deploy::{
    DeployOptions, Stack, binaries_dir, delete, deploy, function_binaries, host_architecture, stage,
};
pub use invoke::SamInvoker;
pub use relay::run_with_relay;

/// The emulator starts in about a second; a loaded CI machine needs more.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Another process may take the free port after we found it and before the emulator binds it.
const START_TRIES_MAX: u32 = 3;

pub const REGION: &str = "eu-west-1";
/// The deployer's key id. The emulator takes twelve digits for an account, whose root user may do everything.
pub const ACCESS_KEY_ID: &str = "000000000000";
/// The emulator knows key ids but checks no signatures, so any value does.
pub const SECRET_ACCESS_KEY: &str = "local";

#[derive(Debug, Clone)]
pub struct Options {
    /// The folder for logs, temporary files and the pid.
    pub dir: PathBuf,
    /// Keeps it running for later commands (`make run`) instead of ending it with this process and removing `dir`.
    pub keep_running: bool,
    /// The endpoint that the functions get, if it is not the emulator itself but a proxy that injects failures.
    pub functions_endpoint: Option<String>,
    /// A file for the requests that reach the emulator from anyone but the test itself (`tests/tools/emulator.py`).
    pub request_log: Option<PathBuf>,
}

impl Options {
    #[must_use]
    pub fn temporary(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("billhook-{}-{name}", std::process::id()));
        Self {
            dir,
            keep_running: false,
            functions_endpoint: None,
            request_log: None,
        }
    }

    /// The instance that `make run` keeps in `.local/`.
    #[must_use]
    pub fn kept() -> Self {
        Self {
            dir: repository().join(".local/aws"),
            keep_running: true,
            functions_endpoint: None,
            request_log: None,
        }
    }
}

/// A running local AWS.
#[derive(Debug)]
pub struct LocalAws {
    port: u16,
    dir: PathBuf,
    /// Only for a temporary instance: ends it when its standard input closes.
    watchdog: Option<Child>,
}

impl LocalAws {
    /// Starts the emulator on a free port and waits until it answers.
    ///
    /// # Errors
    /// If the tools are not set up, or it does not answer in time; the text ends with the emulator's own last lines.
    pub fn start(options: &Options) -> Result<Self> {
        let mut tries = 1;
        loop {
            match Self::try_start(options) {
                Err(error)
                    if tries < START_TRIES_MAX && error.to_string().contains("already in use") =>
                {
                    tries += 1
                }
                done => return done,
            }
        }
    }

    fn try_start(options: &Options) -> Result<Self> {
        let (program, script) = match options.request_log {
            Some(_) => ("python", Some(repository().join("tests/tools/emulator.py"))),
            None => ("ministack", None),
        };
        let program = tool(program)?;
        let dir = &options.dir;
        let tmp = dir.join("tmp");
        fs::create_dir_all(&tmp).with_context(|| format!("create {}", tmp.display()))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let log = dir.join("ministack.log");
        let out = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut emulator = clean_command(&program, dir)
            .args(script)
            .envs(options.request_log.iter().map(|log| ("REQUEST_LOG", log)))
            .env("TMPDIR", &tmp)
            .env("GATEWAY_PORT", port.to_string())
            .env("BIND_HOST", "127.0.0.1")
            .env("MINISTACK_HOST", "127.0.0.1")
            .env("MINISTACK_REGION", REGION)
            .env("AUTH", "true")
            .env("LAMBDA_EXECUTOR", "local")
            .env("SFTP_ENABLED", "0")
            .env("IOT_MTLS_ENABLED", "0")
            // This is the endpoint that the functions get.
            .env(
                "AWS_ENDPOINT_URL",
                options
                    .functions_endpoint
                    .clone()
                    .unwrap_or_else(|| endpoint(port)),
            )
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0) // the emulator and its functions are ended together
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let pid = emulator.id();
        let mut aws = Self {
            port,
            dir: dir.clone(),
            watchdog: None,
        };
        if options.keep_running {
            fs::write(dir.join("pid"), format!("{pid} {port}"))?;
        } else {
            aws.watchdog = Some(watchdog(pid, dir)?);
        }
        let deadline = Instant::now() + START_TIMEOUT;
        while !aws.is_healthy() {
            if let Some(status) = emulator.try_wait()? {
                bail!(
                    "the local AWS ended at its start ({status}):\n{}",
                    tail(&log)
                );
            }
            if Instant::now() > deadline {
                kill_group(pid)?;
                bail!(
                    "the local AWS did not answer within {START_TIMEOUT:?}:\n{}",
                    tail(&log)
                );
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        // Reaps it, so that no zombie stays for the life of a test process.
        std::thread::spawn(move || emulator.wait());
        Ok(aws)
    }

    /// The instance that an earlier command started in `dir`, if it still answers.
    #[must_use]
    pub fn running(dir: &Path) -> Option<Self> {
        let (_, port) = recorded(dir)?;
        let aws = Self {
            port,
            dir: dir.to_owned(),
            watchdog: None,
        };
        aws.is_healthy().then_some(aws)
    }

    /// Ends the instance that an earlier command started in `dir`; returns whether there was one.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub fn stop(dir: &Path) -> Result<bool> {
        let Some((pid, _)) = recorded(dir) else {
            return Ok(false);
        };
        kill_group(pid)?;
        fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
        Ok(true)
    }

    /// Starts another program beside a kept instance; both end together.
    ///
    /// # Errors
    /// If the instance or the program cannot be found.
    pub fn accompany(&self, program: &Path, arguments: &[&str]) -> Result<()> {
        let (pid, _) = recorded(&self.dir).context("find the running local AWS")?;
        let name = arguments.first().unwrap_or(&"companion");
        let out = fs::File::create(self.dir.join(format!("{name}.log")))?;
        clean_command(program, &self.dir)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(i32::try_from(pid)?)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(())
    }

    /// Base URL of every AWS API.
    #[must_use]
    pub fn endpoint(&self) -> String {
        endpoint(self.port)
    }

    /// The folder with its files: `ministack.log`, `deploy-*.log`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The environment variables that a client of this AWS needs.
    #[must_use]
    pub fn env(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_DEFAULT_REGION", REGION.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY.to_owned()),
        ]
    }

    fn is_healthy(&self) -> bool {
        let probe = || -> std::io::Result<bool> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(
                b"GET /_ministack/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
            )?;
            let mut status = [0; 12];
            stream.read_exact(&mut status)?;
            Ok(&status == b"HTTP/1.1 200")
        };
        probe().unwrap_or(false)
    }
}

impl Drop for LocalAws {
    fn drop(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            let _ = watchdog.wait();
        }
    }
}

#[must_use]
pub fn repository() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).unwrap_or(crate_dir).to_owned()
}

/// A program of the repository's `.venv`.
fn tool(name: &str) -> Result<PathBuf> {
    let path = repository().join(".venv/bin").join(name);
    if path.exists() {
        Ok(path)
    } else {
        Err(anyhow!("{} is missing: run `make setup`", path.display()))
    }
}

/// A command without the caller's environment, so that nothing of it reaches the functions and no call reaches a real
/// AWS account.
fn clean_command(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("LANG", "C.UTF-8")
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
        .env("AWS_DEFAULT_REGION", REGION)
        .env("AWS_REGION", REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Pid and port in `dir/pid`, if that process is still our emulator: the system may have given the pid to another
/// program.
fn recorded(dir: &Path) -> Option<(u32, u16)> {
    let text = fs::read_to_string(dir.join("pid")).ok()?;
    let (pid, port) = text.split_once(' ')?;
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let ours = format!("HOME={}", dir.display());
    environ
        .split(|byte| *byte == 0)
        .any(|entry| entry == ours.as_bytes())
        .then_some(())?;
    Some((pid.parse().ok()?, port.parse().ok()?))
}

/// Kills the process group: the emulator has nothing to save.
fn kill_group(pid: u32) -> Result<()> {
    let status = Command::new("/bin/sh")
        .args(["-c", &format!("kill -KILL -{pid}")])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(anyhow!("cannot end process group {pid}: {status}"))
    }
}

/// Ends the process group and removes `dir` when its pipe closes. The kernel closes the pipe even if this process is
/// killed.
fn watchdog(pid: u32, dir: &Path) -> Result<Child> {
    Command::new("/bin/sh")
        .args([
            "-c",
            "read -r _; kill -KILL -\"$1\"; rm -rf \"$2\"",
            "watchdog",
            &pid.to_string(),
        ])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // so that Ctrl-C leaves it its work
        .spawn()
        .context("start the watchdog of the local AWS")
}

/// The last lines of a log, for error texts, and before them the lines that say what failed.
fn tail(log: &Path) -> String {
    const LINES: usize = 40;
    let text = fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let (before, last) = lines.split_at(lines.len().saturating_sub(LINES));
    let failed = before.iter().filter(|line| line.contains("_FAILED"));
    let shown: Vec<&str> = failed.chain(last).copied().collect();
    format!("{}\n(all of it: {})", shown.join("\n"), log.display())
}
