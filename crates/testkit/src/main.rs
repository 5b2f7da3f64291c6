//! `billhook-local`: the local AWS behind `make run` and `make stop`.
//!
//! `up` starts it, or finds it running, and deploys what changed; `stop` ends it.
//! The environment of its clients is left in `.local/env`, ready for `source`.

use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use billhook_testkit::local::{
    DeployOptions, FUNCTIONS, LocalAws, Options, Stack, binaries_dir, deploy, repository,
};

const STACK_NAME: &str = "billhook-dev";
const USAGE: &str = "usage: billhook-local up | stop";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["up"] => up(),
        ["stop"] => stop(),
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up() -> Result<()> {
    let options = Options::kept();
    let env_file = repository().join(".local/env");
    let deployed_file = options.dir.join("deployed");
    let aws = match LocalAws::running(&options.dir) {
        Some(aws) => aws,
        None => {
            LocalAws::stop(&options.dir)?; // one that runs but does not answer
            let _ = fs::remove_dir_all(&options.dir); // state is in memory only, so files of an earlier one say nothing
            eprintln!("starting the local AWS");
            LocalAws::start(&options)?
        }
    };
    let inputs = inputs()?;
    if fs::read_to_string(&deployed_file).is_ok_and(|deployed| deployed == inputs)
        && env_file.exists()
    {
        eprintln!("already running, nothing has changed");
    } else {
        eprintln!(
            "deploying {STACK_NAME} to {} (log: {})",
            aws.endpoint(),
            aws.dir().display()
        );
        let stack = deploy(&aws, &DeployOptions::new(STACK_NAME, &[("Env", "dev")])).context(
            "deploy failed; where an update is refused, `make stop run` starts from nothing",
        )?;
        fs::write(&env_file, env_text(&aws, &stack)?)?;
        fs::write(&deployed_file, inputs)?;
    }
    print!("{}", fs::read_to_string(&env_file)?);
    eprintln!("source .local/env; end it with `make stop`");
    Ok(())
}

fn stop() -> Result<()> {
    let stopped = LocalAws::stop(&Options::kept().dir)?;
    let _ = fs::remove_file(repository().join(".local/env"));
    eprintln!(
        "{}",
        if stopped {
            "stopped"
        } else {
            "was not running"
        }
    );
    Ok(())
}

/// What a deploy depends on, cheap to compare: size and time of the template and of every binary.
fn inputs() -> Result<String> {
    let binaries = binaries_dir()?;
    let mut text = String::new();
    let binaries = FUNCTIONS.map(|function| binaries.join(function));
    for file in binaries.iter().chain([&repository().join("template.yaml")]) {
        let metadata = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?;
        writeln!(
            text,
            "{} {} {:?}",
            file.display(),
            metadata.len(),
            metadata.modified()?
        )?;
    }
    Ok(text)
}

/// Assignments for a shell; no value needs quoting beyond the single quotes.
fn env_text(aws: &LocalAws, stack: &Stack) -> Result<String> {
    let mut text = String::new();
    let urls = [
        ("WEBHOOK_URL_STRIPE", stack.url("/webhooks/stripe")),
        ("WEBHOOK_URL_LOB", stack.url("/webhooks/lob")),
        ("HEALTH_URL", stack.url("/health")),
    ];
    for (key, value) in aws
        .env()
        .into_iter()
        .chain([("STACK_NAME", stack.name.clone())])
        .chain(urls)
    {
        if value.contains('\'') {
            bail!("{key} holds a quote: {value}");
        }
        writeln!(text, "export {key}='{value}'")?;
    }
    Ok(text)
}
