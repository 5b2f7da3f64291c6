//! The local Stripe, held to Stripe by Stripe's own tools: the command line and the Python library drive it and read
//! its answers, and the library believes what it signs.
//!
//! What they cannot show: that real Stripe refuses the same things. Those rules are from its reference (`stripe`).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use billhook_testkit::stripe::{Config, Delivery, LocalStripe, TEST_KEY};
use serde_json::{Value, json};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const DRIVE: &str = include_str!("official_stripe.py");

fn tool(variable: &str, default: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os(variable)
        .map_or_else(|| Path::new(REPOSITORY).join(default), PathBuf::from);
    ensure!(
        path.exists(),
        "{} is not there: run make setup",
        path.display()
    );
    Ok(path)
}

/// Runs a tool apart from the runtime that serves it, and returns what it prints.
async fn run(mut command: Command) -> anyhow::Result<String> {
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let printed = String::from_utf8(output.stdout)?;
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}\n{printed}\n{complained}",
        output.status
    );
    Ok(printed)
}

#[tokio::test]
async fn the_official_library_drives_the_local_stripe_and_believes_its_signatures()
-> anyhow::Result<()> {
    let stripe = LocalStripe::start(Config::default()).await?;
    let mut command = Command::new(tool("BILLHOOK_TOOLS_PYTHON", ".venv/bin/python")?);
    command.args(["-c", DRIVE, &stripe.base_url(), TEST_KEY]);
    assert_eq!(run(command).await?.trim(), "all believed");
    Ok(())
}

struct Cli {
    path: PathBuf,
    stripe: LocalStripe,
}

impl Cli {
    async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.path);
        command
            .args(arguments)
            .args(["--api-base", &self.stripe.base_url()])
            .env("STRIPE_API_KEY", TEST_KEY)
            .env("STRIPE_CLI_TELEMETRY_OPTOUT", "1")
            .env(
                "HOME",
                concat!(env!("CARGO_TARGET_TMPDIR"), "/stripe-cli-home"),
            )
            .env_remove("XDG_CONFIG_HOME");
        let printed = run(command).await.with_context(|| arguments.join(" "))?;
        // Before what it deletes it says in which mode.
        let (_, object) = printed.split_once('{').context("no JSON")?;
        serde_json::from_str(&format!("{{{object}")).with_context(|| printed.clone())
    }
}

fn id(object: &Value) -> anyhow::Result<&str> {
    match object.get("id").and_then(Value::as_str) {
        Some(id) => Ok(id),
        None => bail!("no id in {object}"),
    }
}

#[tokio::test]
async fn the_official_command_line_drives_the_local_stripe() -> anyhow::Result<()> {
    let cli = Cli {
        path: tool(
            "BILLHOOK_STRIPE_CLI",
            "tests/tools/node_modules/.bin/stripe",
        )?,
        stripe: LocalStripe::start(Config::default()).await?,
    };

    let made = cli
        .json(&[
            "webhook_endpoints",
            "create",
            "--url=http://127.0.0.1:1/webhooks/stripe",
            "--enabled-events=charge.refunded",
            "--connect=true",
            "-d",
            "metadata[stack]=one",
        ])
        .await?;
    let endpoint = id(&made)?;
    assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));
    assert_eq!(made["metadata"], json!({"stack": "one"}));

    let changed = cli
        .json(&["webhook_endpoints", "update", endpoint, "--disabled=true"])
        .await?;
    assert_eq!(changed["status"], "disabled");
    let list = cli.json(&["webhook_endpoints", "list"]).await?;
    assert_eq!(list["data"][0]["id"], endpoint);
    assert_eq!(list["data"][0].get("secret"), None);
    let gone = cli
        .json(&["webhook_endpoints", "delete", endpoint, "--confirm"])
        .await?;
    assert_eq!(gone["deleted"], true);

    let intent = cli
        .json(&[
            "payment_intents",
            "create",
            "--amount=1000",
            "--currency=usd",
        ])
        .await?;
    let intent = id(&intent)?;
    let canceled = cli.json(&["payment_intents", "cancel", intent]).await?;
    assert_eq!(canceled["status"], "canceled");
    let again = cli.json(&["payment_intents", "cancel", intent]).await?;
    assert_eq!(again["error"]["code"], "payment_intent_unexpected_state");

    let session = cli
        .json(&["post", "/v1/checkout/sessions", "-d", "mode=payment"])
        .await?;
    let expired = cli
        .json(&["checkout", "sessions", "expire", id(&session)?])
        .await?;
    assert_eq!(expired["status"], "expired");

    let event = json!({"id": "evt_cli1", "object": "event", "created": 1, "type": "charge.refunded", "livemode": false});
    cli.stripe.deliver(Delivery::of(event)).await;
    let events = cli.json(&["events", "list", "--limit=5"]).await?;
    assert_eq!(events["data"][0]["id"], "evt_cli1");
    Ok(())
}
