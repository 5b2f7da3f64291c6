//! `billhook secrets`: status, rotation, replacement and rollback of secrets. No value is ever printed or logged.
//!
//! A replaced secret stays valid for 24 hours, because the provider still retries deliveries that it signed with it;
//! after a leak `--revoke` ends that.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{SecretLocation, SecretSource};
use billhook_adapters::secrets::{
    SecretMove, change_members, move_secret, read_stripe_key, revoke_replaced, roll_back_secret,
};
use billhook_adapters::stripe::StripeClient;
use billhook_adapters::stripe::permissions::KeyPermission;
use billhook_core::endpoint::secret::{SecretHolder, SecretKind};
use billhook_core::ids::ProviderId;
use billhook_core::ports::{Clock as _, Pause as _};
use billhook_core::time::Timestamp;
use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::confirm::ChangeArgs;
use crate::misplaced_secrets::list_misplaced_secrets;
use crate::output::{OutputWriter, print_notice};
use crate::provider_argument::{provider_parser, provider_with_secret_in, words_with_secret_in};
use crate::secret_input::read_secret;
use crate::session::StackSession;
use crate::stack::DeployedStack;
use crate::stripe_endpoints::{EndpointStatus, STACK_ENDPOINTS, compare_endpoints};

/// The update creates two endpoints, waits for every ingress to know the new secrets, and removes the old ones.
const UPDATE_MAX: Duration = Duration::from_secs(15 * 60);
const POLL_INTERVAL: Duration = Duration::from_secs(2);

const SECRETS: [&str; 6] = [
    "AppSecretArn",
    "InboundSecretArn",
    "SealPublicSecretArn",
    "StateSealSecretArn",
    "StripeWebhookSecretArn",
    "StripePlatformWebhookSecretArn",
];

#[derive(Debug, Subcommand)]
pub(crate) enum SecretsCommand {
    /// Show versions and ages of the secrets, and drift of the webhook endpoints at Stripe; never shows a value
    #[command(after_help = "Example:\n  billhook secrets status")]
    Status,
    /// Replace the webhook endpoints at Stripe and their signing secrets
    #[command(
        after_help = "Updates the stack with a new RotationToken and waits until the stack names other endpoints. Replaced secrets stay \
        valid for 24 hours; with --revoke they are refused within 15 minutes.\n\n\
        Examples:\n  billhook secrets rotate stripe\n  billhook secrets rotate stripe --revoke"
    )]
    Rotate(SecretsRotateArgs),
    /// Refuse the replaced signing secrets of a provider within 15 minutes; the current ones stay
    #[command(
        after_help = "For a secret that was replaced in the last 24 hours and has leaked. One that is still current is replaced and revoked by \
        `rotate stripe --revoke` or `put lob --revoke`.\n\n\
        Example:\n  billhook secrets revoke stripe"
    )]
    Revoke(SecretsRevokeArgs),
    /// Store a new Lob signing secret or a new Stripe API key
    #[command(
        after_help = "The command reads the value from the first line of standard input, or asks for it; it never shows it.\n\
        A Stripe key is tried first: one that Stripe refuses, or that lacks a permission, is not stored.\n\
        A replaced Lob secret stays valid for 24 hours. Revoke a replaced Stripe key in Stripe's dashboard.\n\n\
        Examples:\n  billhook secrets put lob\n  \
        pass show lob/webhook | billhook secrets put lob --revoke --reason 'it leaked' --yes\n  \
        billhook secrets put stripe-key"
    )]
    Put(SecretsPutArgs),
    /// Restore the previous Lob secret as a new version
    #[command(
        after_help = "Both secrets stay valid for 24 hours. Stripe secrets belong to their endpoints and cannot be rolled back: rotate them.\n\nExample:\n  billhook secrets rollback lob"
    )]
    Rollback(SecretsRollbackArgs),
    /// Move what other functions read out of the App secret, into the secrets of those functions
    #[command(
        after_help = "Older releases kept Lob's signing secret in the App secret, beside the key of Stripe's API.\n\n\
        Example:\n  billhook secrets split"
    )]
    Split(SecretsSplitArgs),
}

/// The key for Stripe's API, as an argument.
const STRIPE_KEY: &str = "stripe-key";

#[derive(Args, Debug)]
pub(crate) struct SecretsPutArgs {
    /// `lob` for Lob's signing secret, `stripe-key` for the Stripe API key
    #[arg(value_parser = [&words_with_secret_in(SecretHolder::InboundSecret)[..], &[STRIPE_KEY]].concat())]
    secret: String,
    /// The old Lob secret leaked: refuse it within 15 minutes
    #[arg(long)]
    revoke: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct SecretsRollbackArgs {
    /// The provider
    #[arg(value_parser = provider_with_secret_in(SecretHolder::InboundSecret))]
    provider: ProviderId,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct SecretsSplitArgs {
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct SecretsRotateArgs {
    /// The provider
    #[arg(value_parser = provider_with_secret_in(SecretHolder::EndpointSecrets))]
    provider: ProviderId,
    /// The old secrets leaked: refuse them within 15 minutes
    #[arg(long)]
    revoke: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct SecretsRevokeArgs {
    /// The provider
    #[arg(value_parser = provider_parser())]
    provider: ProviderId,
    #[command(flatten)]
    change: ChangeArgs,
}

pub(crate) async fn run_secrets(
    command: SecretsCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    match command {
        SecretsCommand::Status => {
            let mut rows = Vec::new();
            for key in SECRETS {
                rows.extend(list_secret_versions(session, key).await?);
            }
            let comparison = match compare_endpoints(session).await {
                Ok(comparison) => comparison,
                Err(error) => {
                    print_notice(&format!("cannot read the endpoints at Stripe: {error:#}"));
                    Default::default()
                }
            };
            for row in &mut rows {
                add_endpoint_columns(row, &comparison.endpoints);
            }
            output.print_list(
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
            if !comparison.strays.is_empty() {
                let strays = comparison.strays.join(", ");
                print_notice(&format!(
                    "Stripe has other endpoints with the tag of this stack: {strays}; run `billhook doctor`"
                ));
            }
        }
        SecretsCommand::Rotate(rotate) => {
            let name = &session.stack.name;
            if let Some(parameter) = session.stack.why_unused(rotate.provider) {
                bail!(
                    "{name} keeps no endpoints at Stripe, because of {parameter}: deploy with another value, such as both"
                );
            }
            let what = format!(
                "an update would create new endpoints at Stripe, store their secrets, and remove the old endpoints; the old secrets would be refused {}",
                match rotate.revoke {
                    true => "within 15 minutes",
                    false => "after 24 hours",
                }
            );
            rotate.change.confirm(session, &what, None).await?;
            rotate_endpoints(session).await?;
            if rotate.revoke {
                revoke_secrets(session, rotate.provider).await?;
            }
        }
        SecretsCommand::Revoke(revoke) => {
            let what = format!(
                "the replaced signing secrets of {} would be refused within 15 minutes",
                revoke.provider.title()
            );
            revoke.change.confirm(session, &what, None).await?;
            revoke_secrets(session, revoke.provider).await?;
        }
        SecretsCommand::Put(args) => put_secret(args, session).await?,
        SecretsCommand::Rollback(rollback) => {
            let what = format!(
                "the previous {} secret would become current",
                rollback.provider.title()
            );
            rollback.change.confirm(session, &what, None).await?;
            let (arn, now) = (session.stack.output("InboundSecretArn")?, SystemClock.now());
            let of = SecretKind::signing_of(rollback.provider);
            roll_back_secret(&session.secrets, arn, of, now).await?;
            print_notice("stored; both secrets stay valid for 24 hours");
        }
        SecretsCommand::Split(split) => split_secrets(&split.change, session).await?,
    }
    Ok(())
}

async fn split_secrets(change: &ChangeArgs, session: &StackSession) -> Result<()> {
    let misplaced = list_misplaced_secrets(session).await?;
    if misplaced.is_empty() {
        print_notice("the App secret has nothing that belongs elsewhere");
        return Ok(());
    }
    let (from, to) = (
        session.stack.output("AppSecretArn")?,
        session.stack.output("InboundSecretArn")?,
    );
    let named = misplaced
        .iter()
        .map(|(provider, of)| format!("{} ({})", of.member(), provider.title()));
    let named = named.collect::<Vec<_>>().join(", ");
    let what = format!("{named} would move from {from} to {to}");
    change.confirm(session, &what, None).await?;
    for (_, of) in misplaced {
        let member = of.member();
        let moved = move_secret(&session.secrets, of, from, to, SystemClock.now()).await?;
        print_notice(&match moved {
            SecretMove::Moved => format!("{member} is now in {to}"),
            SecretMove::Removed => {
                format!("{to} had a {member} already, which stays; that of {from} was removed")
            }
            SecretMove::NothingToMove => format!("{from} has no {member}"),
        });
    }
    Ok(())
}

async fn put_secret(args: SecretsPutArgs, session: &StackSession) -> Result<()> {
    if args.revoke && args.secret == STRIPE_KEY {
        bail!(
            "--revoke is for Lob only: revoke a leaked key at Stripe (Developers, API keys, Roll key), then put the new one without --revoke"
        );
    }
    let what = match args.revoke {
        true => format!(
            "{} would be replaced, and the old secret refused",
            args.secret
        ),
        false => format!("{} would be replaced", args.secret),
    };
    args.change.confirm(session, &what, None).await?;
    let now = SystemClock.now();
    if args.secret == STRIPE_KEY {
        let source = SecretSource {
            variable: "the key".to_owned(),
            location: SecretLocation::Here(read_secret("the Stripe API key, sk_… or rk_…")?),
        };
        let key = read_stripe_key(&session.secrets, &source, session.stack.is_live()).await?;
        let key = key.context("standard input has no key")?;
        try_key(session, &key).await?;
        let (arn, of) = (session.stack.output("AppSecretArn")?, SecretKind::StripeKey);
        let members = [(of.member(), key)];
        let put = change_members(&session.secrets, arn, of, &members, now).await;
        put.context("cannot put a key into the App secret: it must be a JSON object")?;
        print_notice(
            "stored; if the stack has no endpoints at Stripe yet, create them: billhook secrets rotate stripe",
        );
        return Ok(());
    }
    let provider: ProviderId = args.secret.parse()?;
    let arn = session.stack.output("InboundSecretArn")?;
    let of = SecretKind::signing_of(provider);
    let what = format!("the signing secret from {}'s dashboard", provider.title());
    let members = [(of.member(), read_secret(&what)?)];
    if args.revoke {
        revoke_replaced(&session.secrets, arn, of, &members, now).await?;
        print_notice("stored; the old secret is refused within 15 minutes");
    } else {
        change_members(&session.secrets, arn, of, &members, now).await?;
        print_notice("stored; the old secret stays valid for 24 hours");
    }
    if let Some(parameter) = session.stack.why_unused(provider) {
        print_notice(&format!(
            "ingress does not read it yet, because of {parameter}: deploy with {}=on",
            provider.title()
        ));
    }
    Ok(())
}

/// Fails if Stripe refuses the key, or if the key lacks a permission that the functions need.
async fn try_key(session: &StackSession, key: &SecretString) -> Result<()> {
    let (base, live) = (
        session.stack.parameter("StripeApiBase"),
        session.stack.is_live(),
    );
    let stripe = StripeClient::new(base, key.clone(), live)?;
    let missing = stripe.find_missing_permissions().await;
    let missing = missing.context("the key was tried and nothing was stored")?;
    let (required, others): (Vec<_>, Vec<_>) = missing
        .into_iter()
        .partition(|permission| permission.is_required);
    let list = |permissions: &[KeyPermission]| {
        let named = permissions
            .iter()
            .map(|it| format!("{it} ({})", it.needed_by));
        named.collect::<Vec<_>>().join(", ")
    };
    if !required.is_empty() {
        bail!(
            "the key lacks permissions, so nothing was stored: {}. Add them to the key in Stripe's dashboard, also under Connect, and try again",
            list(&required)
        );
    }
    if !others.is_empty() {
        print_notice(&format!("the key lacks {}", list(&others)));
    }
    Ok(())
}

/// Adds the endpoint of a current signing secret and its drift.
fn add_endpoint_columns(row: &mut Value, endpoints: &[EndpointStatus]) {
    let of = |name: &str| row.get(name).and_then(Value::as_str);
    let is_of = |status: &&EndpointStatus| {
        STACK_ENDPOINTS.iter().any(|(output, secret)| {
            *output == status.output && of("secret") == Some(secret.trim_end_matches("Arn"))
        })
    };
    let status = endpoints
        .iter()
        .find(is_of)
        .filter(|_| of("stage") == Some("AWSCURRENT"));
    if let (Some(status), Some(row)) = (status, row.as_object_mut()) {
        let drift = match status.drift.is_empty() {
            true => "none".to_owned(),
            false => status.drift.join("; "),
        };
        row.insert("endpoint".to_owned(), json!(status.id));
        row.insert("drift".to_owned(), json!(drift));
    }
}

async fn list_secret_versions(session: &StackSession, key: &str) -> Result<Vec<Value>> {
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

/// Ends the replaced signing secrets; the current ones stay.
async fn revoke_secrets(session: &StackSession, provider: ProviderId) -> Result<()> {
    let stack = DeployedStack::describe(&session.aws, &session.stack.name).await?;
    // `webhook-secret` may be writing the same secrets; and a rollback makes the secret of the old endpoint current again.
    if stack.status.ends_with("_IN_PROGRESS") {
        bail!(
            "{} is {}, which may still need the replaced secrets: repeat the command when it has ended",
            stack.name,
            stack.status
        );
    }
    let (of, now) = (SecretKind::signing_of(provider), SystemClock.now());
    for (output, _) in session.signing_secrets(provider) {
        let arn = session.stack.output(&output)?;
        revoke_replaced(&session.secrets, arn, of, &[], now).await?;
    }
    print_notice(
        "every replaced secret is refused within 15 minutes; what was still to be delivered with one comes with the next reconciliation, or at once with: billhook reconcile run",
    );
    Ok(())
}

/// Replaces the endpoints, and believes it only when the stack names other ones.
async fn rotate_endpoints(session: &StackSession) -> Result<()> {
    let name = &session.stack.name;
    let before = DeployedStack::describe(&session.aws, name).await?;
    let endpoints = |stack: &DeployedStack| {
        let outputs = STACK_ENDPOINTS.iter();
        let states = outputs.filter_map(|(output, _)| Some((*output, stack.output(output).ok()?)));
        states
            .map(|(output, state)| (output, state.to_owned()))
            .collect::<BTreeMap<_, _>>()
    };
    let old = endpoints(&before);
    if old.is_empty() {
        bail!("{name} keeps no endpoints at Stripe: its parameter StripeEndpoints is none");
    }
    let token = SystemClock.new_id().to_string();
    let changes = [("RotationToken", token.as_str())];
    before.update_parameters(&session.aws, &changes).await?;
    print_notice(&format!("updating {name}"));
    let after = wait_for_stack_update(session, &before).await?;
    let new = endpoints(&after);
    for (output, id) in &new {
        if !id.starts_with("we_") {
            bail!("{name} was updated, and {output} is: {id}");
        }
        if old.get(output) == Some(id) {
            bail!(
                "{name} was updated, but {output} is still {id}: nothing was rotated. Deploy with a new RotationToken instead: make deploy PARAMS=RotationToken={}",
                SystemClock.new_id()
            );
        }
    }
    let replaced: Vec<String> = new
        .iter()
        .map(
            |(output, id)| match old.get(output).filter(|old| old.starts_with("we_")) {
                Some(old) => format!("{old} by {id}"),
                None => format!("nothing by {id}"),
            },
        )
        .collect();
    print_notice(&format!(
        "done: the endpoints at Stripe are replaced: {}",
        replaced.join(", ")
    ));
    Ok(())
}

async fn wait_for_stack_update(
    session: &StackSession,
    before: &DeployedStack,
) -> Result<DeployedStack> {
    let started_at = SystemClock.now();
    loop {
        let stack = DeployedStack::describe(&session.aws, &before.name).await?;
        if stack.has_been_updated_since(before)? {
            return Ok(stack);
        }
        if started_at.until(SystemClock.now()) > UPDATE_MAX {
            bail!(
                "the update of {} is not complete after {UPDATE_MAX:?}: check again later with `billhook secrets status`",
                stack.name
            );
        }
        SystemClock.pause(POLL_INTERVAL).await;
    }
}
