//! `billhook-local`: the local AWS and the local Stripe behind `make run` and `make stop`.
//!
//! `run` starts both or finds them running, deploys what changed, delivers events and shows the result; `stop` ends
//! both. `sam-local` invokes the samples of `events/` in containers. `smoke` tries the smoke test of AWS. `catalogue` writes the lists of the code into the
//! files that repeat them. The variables for your own tools are in `.local/env`, ready for `source`.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use billhook_testkit::local::{
    LocalAws, Options, Stack, binaries_dir, function_binaries, repository, run_with_relay,
};
use billhook_testkit::stripe;
use billhook_tests::catalogue::find_outdated;
use billhook_tests::demo;
use billhook_tests::sam_local::run_samples;
use billhook_tests::smoke::try_smoke_test;
use billhook_tests::world::World;

const STACK_NAME: &str = "billhook-dev";
const USAGE: &str = "usage: billhook-local run | stop | catalogue | sam-local [WORD...] | smoke";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["run"] => run().await,
        ["stop"] => stop(),
        ["catalogue"] => write_catalogue(),
        ["sam-local", words @ ..] => match run_samples(words).await {
            Ok(false) => Err(anyhow!("not every answer is the expected one")),
            done => done.map(drop),
        },
        ["smoke"] => try_smoke_test().await,
        // In a container of `sam local invoke`.
        ["relay", program] => run_with_relay(Path::new(program)),
        // The local Stripe itself, started by `run`.
        ["stripe", port] => match port.parse() {
            Ok(port) => stripe::serve(port).await,
            Err(_) => Err(anyhow!("not a port: {port}")),
        },
        _ => Err(anyhow!(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write_catalogue() -> Result<()> {
    let root = repository();
    for (name, text) in find_outdated(&root)? {
        fs::write(root.join(&name), text)?;
        println!("written: {name}");
    }
    Ok(())
}

async fn run() -> Result<()> {
    let began = Instant::now();
    let options = Options::kept();
    let deployed_file = options.dir.join("deployed");
    let inputs = inputs()?;
    let known = fs::read_to_string(&deployed_file).ok();
    let known = known
        .as_deref()
        .and_then(|text| text.split_once('\n'))
        .filter(|(_, known)| *known == inputs);
    let running = LocalAws::running(&options.dir).zip(known);
    let world = match running {
        Some((local, (stripe_base, _))) if answers(stripe_base).await => {
            progress(began, "already running, nothing has changed");
            World::around(&local, Stack::read(&local, STACK_NAME)?, stripe_base)?
        }
        _ => {
            stop_quietly()?;
            progress(began, "starting the local AWS and the local Stripe");
            let local = Arc::new(LocalAws::start(&options)?);
            let stripe_base = start_stripe(&local)?;
            progress(
                began,
                &format!(
                    "deploying template.yaml to {} as {STACK_NAME} (logs: {})",
                    local.endpoint(),
                    local.dir().display()
                ),
            );
            let world = World::deploy(&local, STACK_NAME, &[("Env", "dev")], &stripe_base).await?;
            fs::write(repository().join(".local/env"), env_text(&local, &world)?)?;
            fs::write(&deployed_file, format!("{stripe_base}\n{inputs}"))?;
            world
        }
    };
    progress(began, "sending deliveries");
    demo::show(&world).await?;
    println!(
        "\nIt stays up. Try next:\n  \
         source .local/env; curl -i \"$HEALTH_URL\"\n  \
         billhook events list                            then: billhook trace <an id of the list>\n  \
         curl -i -X POST \"$WEBHOOK_URL_STRIPE\" -d '{{}}'      a delivery that nobody signed\n  \
         make run                                        another story; seconds, once it is up\n  \
         make stop                                       end it"
    );
    progress(began, "done");
    Ok(())
}

fn progress(began: Instant, text: &str) {
    eprintln!("[{:>3} s] {text}", began.elapsed().as_secs());
}

/// Starts the local Stripe as a separate process on a free port; it ends with the local AWS.
fn start_stripe(local: &LocalAws) -> Result<String> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port();
    local.accompany(&std::env::current_exe()?, &["stripe", &port.to_string()])?;
    Ok(format!("http://127.0.0.1:{port}"))
}

async fn answers(stripe_base: &str) -> bool {
    stripe::install_tls();
    reqwest::get(format!("{stripe_base}/_local/state"))
        .await
        .is_ok()
}

fn stop_quietly() -> Result<bool> {
    let options = Options::kept();
    let stopped = LocalAws::stop(&options.dir)?;
    // The state is only in memory, so files of an earlier run are worthless.
    for gone in [
        fs::remove_dir_all(&options.dir),
        fs::remove_file(repository().join(".local/env")),
    ] {
        if let Err(error) = gone
            && error.kind() != std::io::ErrorKind::NotFound
        {
            bail!("clear .local: {error}");
        }
    }
    Ok(stopped)
}

fn stop() -> Result<()> {
    let stopped = stop_quietly()?;
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

/// Size and time of the template and of every binary: a cheap way to see whether a deployment is needed.
fn inputs() -> Result<String> {
    let binaries_dir = binaries_dir()?;
    let mut text = String::new();
    let binaries = function_binaries()?.into_iter();
    let binaries: Vec<_> = binaries
        .map(|function| binaries_dir.join(function))
        .collect();
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

/// Shell assignments; single quotes are enough for all values.
fn env_text(local: &LocalAws, world: &World) -> Result<String> {
    let mut text = String::new();
    let urls = [
        ("STACK_NAME", world.stack.name.clone()),
        ("BILLHOOK_STACK", world.stack.name.clone()),
        ("WEBHOOK_URL_STRIPE", world.stack.url("/webhooks/stripe")),
        ("WEBHOOK_URL_LOB", world.stack.url("/webhooks/lob")),
        ("HEALTH_URL", world.stack.url("/health")),
        ("STRIPE_API_BASE", world.stripe_base.clone()),
    ];
    for (key, value) in local.env().into_iter().chain(urls) {
        if value.contains('\'') {
            bail!("{key} holds a quote: {value}");
        }
        writeln!(text, "export {key}='{value}'")?;
    }
    // The operator's tool is built beside this program.
    let program = std::env::current_exe()?;
    if let Some(folder) = program.parent() {
        writeln!(text, "export PATH='{}':\"$PATH\"", folder.display())?;
    }
    Ok(text)
}
