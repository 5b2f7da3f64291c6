//! `billhook doctor`: what a deployed stack is looked at for, one line each with what to do about it.

mod aws;
mod delivery;

use std::time::Duration;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::secrets::{FetchSecret as _, SecretVersion};
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use clap::Args;
use serde_json::{Value, json};

use crate::Stop;
use crate::endpoints;
use crate::filter::Filter;
use crate::output::Output;
use crate::session::Session;

/// An event that is open for longer is stuck: a worker needs seconds.
const STUCK: Duration = Duration::from_secs(60 * 60);
/// A signing secret is replaced at least once a year.
const SECRET_AGE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const DEPLOY: &str = "somebody changed it, and deploying the same template changes nothing: set it back, or execute a change set made with --use-previous-template --deployment-mode REVERT_DRIFT";

#[derive(Args, Debug)]
#[command(
    after_help = "A signed event of the type billhook.doctor is sent to each webhook; it is stored and ignored. \
    --read-only leaves that out.\nThe exit code is 4 if a check found something.\n\nExamples:\n  billhook doctor\n  \
    billhook doctor --read-only --output json"
)]
pub(crate) struct Doctor {
    /// Send no test events
    #[arg(long)]
    read_only: bool,
}

/// What a check found.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    check: String,
    is_good: bool,
    detail: String,
    fix: String,
}

impl Found {
    fn new(
        check: impl Into<String>,
        is_good: bool,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            check: check.into(),
            is_good,
            detail: detail.into(),
            fix: if is_good { String::new() } else { fix.into() },
        }
    }

    fn row(&self) -> Value {
        let result = if self.is_good { "ok" } else { "bad" };
        json!({ "check": self.check, "result": result, "detail": self.detail, "fix": self.fix })
    }
}

pub(crate) async fn run(doctor: Doctor, session: &Session, output: Output) -> Result<()> {
    let mut areas = aws::areas(session).await;
    areas.push(("secrets", secrets(session).await));
    areas.push(("endpoints at Stripe", at_stripe(session).await));
    areas.push(("events", events(session).await));
    areas.push(("API", delivery::health(session).await));
    if !doctor.read_only {
        for provider in [ProviderId::Stripe, ProviderId::Lob] {
            areas.push(("test event", delivery::test_event(session, provider).await));
        }
    }
    let found: Vec<Found> = areas
        .into_iter()
        .flat_map(|(area, looked)| looked.unwrap_or_else(|error| vec![unseen(area, &error)]))
        .collect();
    let rows: Vec<Value> = found.iter().map(Found::row).collect();
    output.list(&["result", "check", "detail", "fix"], &rows);
    let bad = found.iter().filter(|found| !found.is_good).count();
    if bad > 0 {
        return Err(Stop::No(format!("{bad} of {} checks found something", found.len())).into());
    }
    Ok(())
}

/// The other areas are looked at all the same.
fn unseen(area: &str, error: &anyhow::Error) -> Found {
    let fix =
        "mend what the detail names; an AccessDenied is about the credentials of this command";
    Found::new(
        format!("{area} can be looked at"),
        false,
        format!("{error:#}"),
        fix,
    )
}

async fn secrets(session: &Session) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for provider in [ProviderId::Stripe, ProviderId::Lob] {
        let secrets = session.signing_secrets(provider).await;
        let detail = secrets.as_ref().map_or_else(
            |error| format!("{error:#}"),
            |found| format!("{} set", found.len()),
        );
        let fix = match provider {
            ProviderId::Stripe => {
                "put stripe_secret_key into the App secret, then: billhook secrets rotate stripe --yes"
            }
            ProviderId::Lob => "billhook secrets put lob",
        };
        let check = format!("{provider} signing secret");
        found.push(Found::new(check, secrets.is_ok(), detail, fix));
    }
    let keys = endpoints::ENDPOINTS.map(|(_, secret)| secret);
    for key in keys.into_iter().chain(["AppSecretArn"]) {
        let arn = session.stack.output(key)?;
        let current = session.secrets.fetch(arn, SecretVersion::Current).await?;
        let Some(created_at) = current.and_then(|current| current.created_at) else {
            continue;
        };
        let age = created_at.until(SystemClock.now());
        found.push(Found::new(
            format!("{} is younger than a year", key.trim_end_matches("Arn")),
            age <= SECRET_AGE_MAX,
            format!("{} days", age.as_secs() / 86_400),
            "replace it: docs/runbook/rotate.md",
        ));
    }
    Ok(found)
}

async fn at_stripe(session: &Session) -> Result<Vec<Found>> {
    let rotate = "billhook secrets rotate stripe --yes";
    let (seen, strays) = endpoints::seen(session).await?;
    let mut found: Vec<Found> = seen
        .iter()
        .map(|seen| {
            let check = format!("{} at Stripe", seen.output.trim_end_matches("State"));
            let detail = match seen.drift.is_empty() {
                true => seen.id.clone(),
                false => format!("{}: {}", seen.id, seen.drift.join("; ")),
            };
            Found::new(check, seen.drift.is_empty(), detail, rotate)
        })
        .collect();
    found.push(Found::new(
        "no other endpoint of this stack at Stripe",
        strays.is_empty(),
        strays.join(", "),
        "if nothing is being deployed: stripe webhook_endpoints delete ID, then billhook reconcile run",
    ));
    Ok(found)
}

async fn events(session: &Session) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for provider in [ProviderId::Stripe, ProviderId::Lob] {
        let selection = Filter::stuck().select(Vec::new(), SystemClock.now().before(STUCK));
        let stuck = session
            .events(provider)?
            .list(&selection, usize::MAX)
            .await?;
        found.push(Found::new(
            format!("{provider} events"),
            stuck.is_empty(),
            format!("{} pending or failed for more than an hour", stuck.len()),
            "billhook events list --outcome pending --outcome failed, mend the cause, billhook replay",
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_at_is_a_finding_with_its_cause() {
        let error = anyhow::anyhow!("AccessDenied").context("cannot read the alarms");
        let found = unseen("alarms", &error);
        assert_eq!(found.detail, "cannot read the alarms: AccessDenied");
        assert_eq!(found.row()["result"], "bad");
    }
}
