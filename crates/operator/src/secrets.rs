//! `billhook secrets`: which versions there are and how old they are, never a value; and the rotation of Stripe's.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{SecretLocation, SecretSource};
use billhook_adapters::secrets::{
    change_members, read_stripe_key, revoke_replaced, roll_back_secret,
};
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::endpoints::{self, ENDPOINTS, Seen};
use crate::input;
use crate::output::Output;
use crate::session::Session;
use crate::stack::Stack;

/// Two endpoints are made, awaited and removed within minutes.
const UPDATE_MAX: Duration = Duration::from_secs(15 * 60);
const POLL_INTERVAL: Duration = Duration::from_secs(2);

const SECRETS: [&str; 3] = [
    "AppSecretArn",
    "StripeWebhookSecretArn",
    "StripePlatformWebhookSecretArn",
];

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show each secret's versions and their ages, never a value, and whether the endpoints at Stripe are as deployed
    #[command(after_help = "Example:\n  billhook secrets status")]
    Status,
    /// Replace Stripe's endpoints, and with them their signing secrets
    #[command(
        after_help = "Updates the stack with a new RotationToken and waits for it. Deliveries signed with the \
        replaced secrets are taken for another 24 hours.\nWithout --yes it only says what it would do.\n\n\
        Example:\n  billhook secrets rotate stripe --yes"
    )]
    Rotate(Rotate),
    /// Put the secret that Lob shows in its dashboard, or the key to Stripe's API
    #[command(
        after_help = "The value is the first line of standard input, or is asked for; it is never shown.\n\
        A replaced secret of Lob is taken for another 24 hours; a replaced key is ended at Stripe.\n\n\
        Examples:\n  billhook secrets put lob\n  pass show lob/webhook | billhook secrets put lob --revoke\n  \
        billhook secrets put stripe-key"
    )]
    Put(Put),
    /// Put back Lob's secret as it was before, as a new version
    #[command(
        after_help = "Both are taken for 24 hours. Stripe's go with their endpoints: rotate those.\n\nExample:\n  billhook secrets rollback lob --yes"
    )]
    Rollback(Rollback),
}

#[derive(Args, Debug)]
pub(crate) struct Put {
    /// Which: lob's signing secret, or the key to Stripe's API
    #[arg(value_parser = ["lob", "stripe-key"])]
    secret: String,
    /// It leaked: Lob's replaced one is refused within 15 minutes
    #[arg(long)]
    revoke: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Rollback {
    /// Whose
    #[arg(value_parser = ["lob"])]
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
            for key in SECRETS {
                rows.extend(versions(session, key).await?);
            }
            let (seen, strays) = match endpoints::seen(session).await {
                Ok(seen) => seen,
                Err(error) => {
                    Output::tell(&format!(
                        "the endpoints at Stripe cannot be looked at: {error:#}"
                    ));
                    Default::default()
                }
            };
            for row in &mut rows {
                endpoint(row, &seen);
            }
            output.list(
                &[
                    "secret",
                    "stage",
                    "created_at",
                    "age_days",
                    "version",
                    "endpoint",
                    "drift",
                ],
                &rows,
            );
            if !strays.is_empty() {
                let strays = strays.join(", ");
                Output::tell(&format!(
                    "at Stripe there are other endpoints of this stack: {strays}"
                ));
            }
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
        Command::Put(given) => put(&given, session).await?,
        Command::Rollback(rollback) => {
            if !rollback.yes {
                Output::tell(
                    "Lob's secret would be put as it was before. Nothing was done: repeat with --yes",
                );
                return Ok(());
            }
            let (arn, now) = (session.stack.output("AppSecretArn")?, SystemClock.now());
            roll_back_secret(&session.secrets, arn, SecretKind::LobSigning, now).await?;
            Output::tell("put; both are taken for another 24 hours");
        }
    }
    Ok(())
}

async fn put(put: &Put, session: &Session) -> Result<()> {
    let (arn, now) = (session.stack.output("AppSecretArn")?, SystemClock.now());
    // One document holds both: whichever is changed, what Lob's replaced secret still proves stays in it.
    let of = SecretKind::LobSigning;
    if put.secret == "stripe-key" {
        if put.revoke {
            bail!(
                "a key that leaked is ended at Stripe (Developers, API keys, Roll key): put the new one without --revoke"
            );
        }
        let source = SecretSource {
            variable: "the key",
            at: SecretLocation::Here(input::secret("the key to Stripe's API, sk_… or rk_…")?),
        };
        let key = read_stripe_key(&session.secrets, &source, session.stack.is_live()).await?;
        let members = [(SecretKind::StripeKey.member(), key.context("no key came")?)];
        let put = change_members(&session.secrets, arn, of, &members, now).await;
        put.context("the App secret has to be a JSON object before a key can be put into it")?;
        Output::tell("put; have the endpoints made with it: billhook secrets rotate stripe --yes");
        return Ok(());
    }
    let members = [(
        of.member(),
        input::secret("the secret that Lob's dashboard shows")?,
    )];
    if put.revoke {
        revoke_replaced(&session.secrets, arn, of, &members, now).await?;
        Output::tell("put; the replaced secret is refused within 15 minutes");
    } else {
        change_members(&session.secrets, arn, of, &members, now).await?;
        Output::tell("put; the replaced secret is taken for another 24 hours");
    }
    Ok(())
}

/// Names beside a current signing secret the endpoint that it is of, and what is wrong with that at Stripe.
fn endpoint(row: &mut Value, seen: &[Seen]) {
    let of = |name: &str| row.get(name).and_then(Value::as_str);
    let is_of = |seen: &&Seen| {
        ENDPOINTS.iter().any(|(output, secret)| {
            *output == seen.output && of("secret") == Some(secret.trim_end_matches("Arn"))
        })
    };
    let seen = seen
        .iter()
        .find(is_of)
        .filter(|_| of("stage") == Some("AWSCURRENT"));
    if let (Some(seen), Some(row)) = (seen, row.as_object_mut()) {
        let drift = match seen.drift.is_empty() {
            true => "none".to_owned(),
            false => seen.drift.join("; "),
        };
        row.insert("endpoint".to_owned(), json!(seen.id));
        row.insert("drift".to_owned(), json!(drift));
    }
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
