//! `make smoke-local`: runs the smoke test of AWS (`tests/tools/smoke_aws.py`) on a local AWS and a local Stripe of its
//! own: to its end, interrupted, and without a key in too little time. Each run must leave nothing behind, and neither
//! the report nor the log may contain a key.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use billhook_testkit::local::{
    LocalAws, Options, binaries_dir, host_architecture, repository, stage,
};
use billhook_testkit::stripe::{Config, LocalStripe, TEST_KEY};
use serde_json::Value;

/// What a run of the script is given, and how it must end.
struct SmokeRun {
    minutes: &'static str,
    stripe_key: &'static str,
    /// The step at whose start the script is interrupted.
    interrupted_at: Option<&'static str>,
    exit_code: i32,
    /// The head of the report.
    ending: &'static str,
}

const RUNS: [SmokeRun; 3] = [
    SmokeRun {
        minutes: "20",
        stripe_key: TEST_KEY,
        interrupted_at: None,
        exit_code: 0,
        ending: "passed",
    },
    SmokeRun {
        minutes: "20",
        stripe_key: TEST_KEY,
        // CloudFormation is updating the stack then, and Stripe has old endpoints and new ones.
        interrupted_at: Some("rotate: replace the endpoints"),
        exit_code: 130,
        ending: "interrupted",
    },
    SmokeRun {
        // Enough for some steps, and not for all.
        minutes: "1",
        stripe_key: "",
        interrupted_at: None,
        exit_code: 1,
        ending: "out of time",
    },
];

pub async fn try_smoke_test() -> Result<()> {
    let stripe = LocalStripe::start(Config::default()).await?;
    let base = stripe.base_url();
    let aws = tokio::task::spawn_blocking(|| LocalAws::start(&Options::temporary("smoke")));
    let aws = Arc::new(aws.await??);
    let staged = stage(&aws.dir().join("staged"))?;
    for run in &RUNS {
        println!("---- a run that must end: {}", run.ending);
        let (aws, base, staged) = (Arc::clone(&aws), base.clone(), staged.clone());
        let ran = move || {
            run.check(&aws, &base, &staged)?;
            list_left(&aws)
        };
        // The local Stripe answers on this thread meanwhile.
        let left = tokio::task::spawn_blocking(ran).await??;
        ensure!(left.is_empty(), "the run left behind: {left}");
        let state = stripe.state();
        let spaces = state.get("spaces").and_then(Value::as_array);
        for space in spaces.context("the local Stripe says nothing of its objects")? {
            let is_left = space.to_string().contains("webhook_endpoint\"");
            ensure!(!is_left, "endpoints are left at Stripe: {space}");
        }
    }
    println!("every run ended as it must, and left nothing behind");
    Ok(())
}

impl SmokeRun {
    fn check(&self, aws: &LocalAws, stripe_base: &str, staged: &Path) -> Result<()> {
        let mut script = self.start(aws, stripe_base, staged)?;
        let output = script.stdout.take().context("its standard output")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            println!("{line}");
            let is_there = |step: &str| line.ends_with(&format!("{step} …"));
            if self.interrupted_at.is_some_and(is_there) {
                interrupt(&script)?;
            }
        }
        let status = script.wait()?;
        if status.code() != Some(self.exit_code) {
            bail!("the script ended with {status}");
        }
        let read = |name: &str| fs::read_to_string(repository().join("target").join(name));
        let report = read("smoke-aws.md")?;
        let head = format!("# Smoke test on the local AWS: {}", self.ending);
        ensure!(report.starts_with(&head), "the report says: {report}");
        for secret in [TEST_KEY, "whsec_"] {
            let is_told = report.contains(secret) || read("smoke-aws.log")?.contains(secret);
            ensure!(!is_told, "report or log contains {secret}");
        }
        Ok(())
    }

    fn start(&self, aws: &LocalAws, stripe_base: &str, staged: &Path) -> Result<Child> {
        Command::new(repository().join(".venv/bin/python"))
            .arg(repository().join("tests/tools/smoke_aws.py"))
            .args(["--minutes", self.minutes])
            .arg("--tool")
            .arg(binaries_dir()?.join("billhook"))
            .arg("--staged")
            .arg(staged)
            .arg(format!("Architecture={}", host_architecture()))
            .envs(aws.env())
            // No account of this machine's user, and no look of SAM for newer versions of itself.
            .env_remove("AWS_PROFILE")
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("HTTPS_PROXY", "http://127.0.0.1:1")
            .env("STRIPE_API_BASE", stripe_base)
            .env("STRIPE_KEY", self.stripe_key)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the script")
    }
}

/// As Ctrl-C does.
fn interrupt(script: &Child) -> Result<()> {
    // So that the step, which takes half a minute, is under way.
    std::thread::sleep(Duration::from_secs(5));
    let kill = format!("kill -INT {}", script.id());
    ensure!(
        Command::new("/bin/sh")
            .args(["-c", &kill])
            .status()?
            .success()
    );
    Ok(())
}

/// What has the name of such a stack, without the account's role.
fn list_left(aws: &LocalAws) -> Result<String> {
    let output = Command::new(repository().join(".venv/bin/python"))
        .arg(repository().join("tests/tools/inventory.py"))
        .arg("bhsmoke")
        .envs(aws.env())
        .output()?;
    ensure!(output.status.success(), "inventory.py failed");
    let lines = String::from_utf8(output.stdout)?;
    let left = lines
        .lines()
        .filter(|line| !line.contains("ApiGatewayLogsRole"));
    Ok(left.collect::<Vec<_>>().join("\n"))
}
