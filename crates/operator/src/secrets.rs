//! `billhook secrets`: which versions there are and how old they are, never a value; and the rotation of Stripe's.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::secrets::{change, revoke, roll_back};
use billhook_core::ports::Clock as _;
use billhook_core::secret::Wanted;
use billhook_core::time::Timestamp;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::input;
use crate::output::Output;
use crate::session::Session;
use crate::stack::Stack;

/// Two endpoints are made, awaited and removed within minutes.
const UPDATE_MAX: Duration = Duration::from_secs(15 * 60);
const POLL_INTERVAL: Duration = Duration::from_secs(2);

const OF_LOB: [&str; 1] = ["AppSecretArn"];
const OF_STRIPE: [&str; 2] = ["StripeWebhookSecretArn", "StripePlatformWebhookSecretArn"];

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show each secret's versions and their ages, never a value
    #[command(after_help = "Example:\n  billhook secrets status")]
    Status,
    /// Replace Stripe's endpoints, and with them their signing secrets
    #[command(
        after_help = "Updates the stack with a new RotationToken and waits for it. Deliveries signed with the \
        replaced secrets are taken for another 24 hours.\nWithout --yes it only says what it would do.\n\n\
        Example:\n  billhook secrets rotate stripe --yes"
    )]
    Rotate(Rotate),
    /// Put the secret that Lob shows in its dashboard; the replaced one is taken for another 24 hours
    #[command(
        after_help = "The value is the first line of standard input, or is asked for; it is never shown.\n\n\
        Examples:\n  billhook secrets put lob\n  pass show lob/webhook | billhook secrets put lob --revoke"
    )]
    Put(Put),
    /// Put back what a secret was before, as a new version
    #[command(
        after_help = "Both are taken for 24 hours. Stripe's is better rotated.\n\nExample:\n  billhook secrets rollback lob --yes"
    )]
    Rollback(Rollback),
}

#[derive(Args, Debug)]
pub(crate) struct Put {
    /// Whose
    #[arg(value_parser = ["lob"])]
    provider: String,
    /// It leaked: the replaced one is refused within 15 minutes
    #[arg(long)]
    revoke: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Rollback {
    /// Whose
    #[arg(default_value = "lob", value_parser = ["stripe", "lob"])]
    provider: String,
    /// Do it
    #[arg(long)]
    yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Rotate {
    /// Whose
    #[arg(value_parser = ["stripe"])]
    provider: String,
    /// Do it
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(command: Command, session: &Session, output: Output) -> Result<()> {
    match command {
        Command::Status => {
            let mut rows = Vec::new();
            for key in OF_LOB.iter().chain(&OF_STRIPE) {
                rows.extend(versions(session, key).await?);
            }
            output.list(
                &["secret", "stage", "created_at", "age_days", "version"],
                &rows,
            );
        }
        Command::Rotate(rotate) => {
            let name = &session.stack.name;
            if !rotate.yes {
                Output::tell(&format!(
                    "{name} would be updated with a new RotationToken: new endpoints at Stripe, then new secrets, then \
                     the old endpoints removed. Nothing was done: repeat with --yes"
                ));
                return Ok(());
            }
            let token = SystemClock.new_id().to_string();
            session
                .stack
                .update(&session.caller, &[("RotationToken", &token)])
                .await?;
            Output::tell(&format!("{name} is being updated"));
            updated(session).await?;
            Output::tell("done: the endpoints of Stripe are replaced");
        }
        Command::Put(put) => {
            let (arn, now) = (session.stack.output("AppSecretArn")?, SystemClock.now());
            let value = input::secret("the secret that Lob's dashboard shows")?;
            let members = [(Wanted::LobSigning.member(), value)];
            if put.revoke {
                revoke(&session.secrets, arn, Wanted::LobSigning, &members, now).await?;
                Output::tell("put; the replaced secret is refused within 15 minutes");
            } else {
                change(&session.secrets, arn, Wanted::LobSigning, &members, now).await?;
                Output::tell("put; the replaced secret is taken for another 24 hours");
            }
        }
        Command::Rollback(rollback) => {
            let (keys, wanted): (&[&str], _) = match rollback.provider.as_str() {
                "stripe" => (&OF_STRIPE, Wanted::StripeSigning),
                _ => (&OF_LOB, Wanted::LobSigning),
            };
            for key in keys {
                let secret = key.trim_end_matches("Arn");
                if !rollback.yes {
                    Output::tell(&format!(
                        "{secret} would be put as it was before. Nothing was done: repeat with --yes"
                    ));
                    continue;
                }
                roll_back(
                    &session.secrets,
                    session.stack.output(key)?,
                    wanted,
                    SystemClock.now(),
                )
                .await?;
                Output::tell(&format!("{secret} is as it was before"));
            }
        }
    }
    Ok(())
}

async fn versions(session: &Session, key: &str) -> Result<Vec<Value>> {
    let arn = session.stack.output(key)?;
    let listed = session
        .secrets_manager
        .list_secret_version_ids()
        .secret_id(arn)
        .send()
        .await;
    let listed = listed.with_context(|| format!("cannot read the versions of {arn}"))?;
    let now = SystemClock.now();
    let mut rows = Vec::new();
    for version in listed.versions() {
        let created = version
            .created_date
            .and_then(|at| Timestamp::from_unix_s(at.secs()).ok());
        for stage in version.version_stages() {
            rows.push(json!({ "secret": key.trim_end_matches("Arn"), "stage": stage, "version": version.version_id,
                "created_at": created.map(|at| at.to_string()),
                "age_days": created.map(|at| at.until(now).as_secs() / 86_400) }));
        }
    }
    if rows.is_empty() {
        rows.push(json!({ "secret": key.trim_end_matches("Arn"), "stage": "(not set)" }));
    }
    rows.sort_by_key(|row| row.get("stage").map(Value::to_string));
    Ok(rows)
}

async fn updated(session: &Session) -> Result<()> {
    let begun = SystemClock.now();
    loop {
        let stack = Stack::read(&session.caller, &session.stack.name).await?;
        match stack.status.as_str() {
            "UPDATE_COMPLETE" => return Ok(()),
            "UPDATE_IN_PROGRESS" | "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS" => {}
            status => bail!(
                "{} is {status}: see its events with `aws cloudformation describe-stack-events --stack-name {}`",
                stack.name,
                stack.name
            ),
        }
        if begun.until(SystemClock.now()) > UPDATE_MAX {
            bail!(
                "{} is still being updated after {UPDATE_MAX:?}: look again later",
                stack.name
            );
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
