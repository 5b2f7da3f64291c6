//! `billhook doctor`: health checks of a deployed stack, one line each with the command that fixes it. It writes
//! nothing but two test events.

mod accounts;
mod aws;
mod delivery;
mod existing_tables;
mod finding;
mod row_rules;
mod row_sample;
mod row_trouble;

use std::time::Duration;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::secrets::{FetchSecret as _, SecretVersion};
use billhook_core::entity::ENTITY_SCHEMAS;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use clap::Args;
use serde_json::Value;

use self::finding::{CheckFinding, signing_secret_fix};
use crate::event_filter::EventFilter;
use crate::exit::CommandExit;
use crate::misplaced_secrets::list_misplaced_secrets;
use crate::output::OutputWriter;
use crate::session::StackSession;
use crate::stripe_endpoints::{STACK_ENDPOINTS, compare_endpoints, read_key};

/// A worker needs seconds, and the sweep runs every 10 minutes: an event that is open for longer is stuck.
const STUCK_AGE: Duration = Duration::from_secs(60 * 60);
/// Secrets should be rotated at least once a year.
const SECRET_AGE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
#[derive(Args, Debug)]
#[command(
    after_help = "The command sends a signed test event of the type billhook.doctor to each webhook; it is stored and ignored. \
    --read-only sends none.\nThe exit code is 4 if a check fails.\n\nExamples:\n  billhook doctor\n  \
    billhook doctor --read-only --output json"
)]
pub(crate) struct DoctorArgs {
    /// Send no test events
    #[arg(long)]
    read_only: bool,
}

pub(crate) async fn run_doctor(
    args: DoctorArgs,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let mut areas = aws::check_aws_resources(session).await;
    let rules = session.stack.row_rules();
    let checked = row_rules::check_row_rules(&rules, SystemClock.now());
    areas.push(("parameters", Ok(vec![checked])));
    let rules = rules.ok();
    for schema in ENTITY_SCHEMAS {
        if session.stack.existing_table(schema).is_some() {
            let checked =
                existing_tables::check_existing_table(session, schema, rules.as_ref()).await;
            areas.push(("existing tables", checked));
        }
    }
    areas.push(("rows", row_trouble::check_row_trouble(session).await));
    areas.push(("secrets", check_secrets(session).await));
    let key = find_stripe_key(session).await;
    areas.push(("Stripe key", report_stripe_key(session, &key)));
    // Without a key nobody can ask.
    let can_ask = !matches!(key, Ok(StripeKeyState::Missing));
    if can_ask {
        areas.push(("endpoints at Stripe", check_endpoints(session).await));
    }
    areas.push(("accounts", accounts::check_accounts(session, can_ask).await));
    areas.push(("events", check_events(session).await));
    areas.push(("API", delivery::check_health(session).await));
    if !args.read_only {
        let used = ProviderId::ALL.iter();
        for provider in used.filter(|provider| session.stack.why_unused(**provider).is_none()) {
            areas.push((
                "test event",
                delivery::check_test_event(session, *provider).await,
            ));
        }
    }
    let findings: Vec<CheckFinding> = areas
        .into_iter()
        .flat_map(|(area, findings)| {
            findings.unwrap_or_else(|error| vec![report_unreadable_area(area, &error)])
        })
        .collect();
    let rows: Vec<Value> = findings.iter().map(CheckFinding::render).collect();
    output.print_list(&["result", "check", "detail", "fix"], &rows);
    let bad = findings.iter().filter(|findings| !findings.is_good).count();
    if bad > 0 {
        return Err(
            CommandExit::Refused(format!("{bad} of {} checks failed", findings.len())).into(),
        );
    }
    Ok(())
}

/// A check that fails to run is a finding like any other, so that one missing permission does not hide the other
/// checks.
fn report_unreadable_area(area: &str, error: &anyhow::Error) -> CheckFinding {
    let fix = "fix the cause in the detail; AccessDenied means that the credentials of this command lack a permission";
    CheckFinding::problem(format!("{area} can be checked"), format!("{error:#}"), fix)
}

async fn check_secrets(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let mut findings = Vec::new();
    for provider in ProviderId::ALL {
        let check = format!("{provider} signing secret");
        if let Some(parameter) = session.stack.why_unused(*provider) {
            let detail = format!("not needed: {parameter}");
            findings.push(CheckFinding::from_check(check, true, detail, ""));
            continue;
        }
        let secrets = session.read_signing_keys(*provider).await;
        let detail = secrets.as_ref().map_or_else(
            |error| format!("{error:#}"),
            |findings| format!("{} secrets", findings.len()),
        );
        let fix = signing_secret_fix(*provider);
        findings.push(CheckFinding::from_check(
            check,
            secrets.is_ok(),
            detail,
            fix,
        ));
    }
    let misplaced = list_misplaced_secrets(session).await?;
    let members: Vec<_> = misplaced.iter().map(|(_, of)| of.member()).collect();
    findings.push(CheckFinding::from_check(
        "the App secret has only what its functions need",
        members.is_empty(),
        match members.is_empty() {
            true => "nothing else".to_owned(),
            false => format!("it also has {}", members.join(", ")),
        },
        "billhook secrets split",
    ));
    let keys = STACK_ENDPOINTS.map(|(_, secret)| secret);
    for key in keys
        .into_iter()
        .chain(["AppSecretArn", "InboundSecretArn", "SealPublicSecretArn"])
    {
        let arn = session.stack.output(key)?;
        let current = session.secrets.fetch(arn, SecretVersion::Current).await?;
        let Some(created_at) = current.and_then(|current| current.created_at) else {
            continue;
        };
        let age = created_at.until(SystemClock.now());
        findings.push(CheckFinding::from_check(
            format!("{} is younger than a year", key.trim_end_matches("Arn")),
            age <= SECRET_AGE_MAX,
            format!("{} days", age.as_secs() / 86_400),
            "replace it, see docs/runbook/rotate.md",
        ));
    }
    Ok(findings)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StripeKeyState {
    Stored,
    Missing,
}

async fn find_stripe_key(session: &StackSession) -> Result<StripeKeyState> {
    Ok(match read_key(session).await? {
        Some(_) => StripeKeyState::Stored,
        None => StripeKeyState::Missing,
    })
}

/// Without a key `reconcile` and the cleanup ask nobody, which raises no alarm.
fn report_stripe_key(
    session: &StackSession,
    key: &Result<StripeKeyState>,
) -> Result<Vec<CheckFinding>> {
    let unused = session.stack.why_unused(ProviderId::Stripe);
    let (is_good, detail) = match (key, unused) {
        (Ok(StripeKeyState::Stored), _) => (true, String::new()),
        (Ok(StripeKeyState::Missing), Some(parameter)) => {
            (true, format!("not needed: {parameter}"))
        }
        (Ok(StripeKeyState::Missing), None) => (
            false,
            "the App secret has no stripe_secret_key: reconcile asks nothing, and the cleanup cancels nothing".to_owned(),
        ),
        (Err(error), _) => (false, format!("{error:#}")),
    };
    let fix =
        "billhook secrets put stripe-key; if Stripe is not used, deploy with StripeEndpoints=none";
    let check = "Stripe key is stored and of the right mode";
    Ok(vec![CheckFinding::from_check(check, is_good, detail, fix)])
}

async fn check_endpoints(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let rotate = "billhook secrets rotate stripe";
    let comparison = compare_endpoints(session).await?;
    let mut findings: Vec<CheckFinding> = comparison
        .endpoints
        .iter()
        .map(|endpoint| {
            let check = format!("{} at Stripe", endpoint.output.trim_end_matches("State"));
            let detail = match endpoint.drift.is_empty() {
                true => endpoint.id.clone(),
                false => format!("{}: {}", endpoint.id, endpoint.drift.join("; ")),
            };
            CheckFinding::from_check(check, endpoint.drift.is_empty(), detail, rotate)
        })
        .collect();
    findings.push(CheckFinding::from_check(
        "no other endpoint of this stack at Stripe",
        comparison.strays.is_empty(),
        comparison.strays.join(", "),
        "if no deployment is running: stripe webhook_endpoints delete ID, then billhook reconcile run",
    ));
    Ok(findings)
}

async fn check_events(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let mut findings = Vec::new();
    for provider in ProviderId::ALL {
        let selection = EventFilter::pending_or_failed()
            .resolve(Vec::new(), SystemClock.now().before(STUCK_AGE));
        let stuck = session
            .events_table(*provider)?
            .list(&selection, usize::MAX)
            .await?;
        findings.push(CheckFinding::from_check(
            format!("{provider} events"),
            stuck.is_empty(),
            format!("{} pending or failed for more than an hour", stuck.len()),
            "billhook events list --outcome pending --outcome failed; fix the cause; billhook replay --outcome pending --outcome failed",
        ));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_that_cannot_be_checked_is_a_finding_with_its_cause() {
        let error = anyhow::anyhow!("AccessDenied").context("cannot read the alarms");
        let findings = report_unreadable_area("alarms", &error);
        assert_eq!(findings.detail, "cannot read the alarms: AccessDenied");
        assert_eq!(findings.render()["result"], "bad");
    }
}
