//! End-to-end checks of the ingestion path: the API answers, the clocks agree, and a signed test event passes ingress,
//! queue and worker.

use std::time::Duration;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::error::error_chain;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::ports::{Clock as _, Pause as _};
use billhook_core::provider::envelope::DOCTOR_EVENT_TYPE;
use billhook_core::time::Timestamp;

use super::finding::{CheckFinding, signing_secret_fix};
use crate::events_table::EventSummary;
use crate::row_json::read_text;
use crate::sample_events::build_test_event;
use crate::session::StackSession;
use crate::webhook_delivery::{post_signed_event, read_webhook_url};

/// Signatures are valid for 300 s in either direction. A skew of 60 s is found before it breaks anything.
const SKEW_MAX_S: i64 = 60;
/// Ingress reads a secret again at most every 10 s, and the doctor often follows a rotation at once.
const ACCEPT_WAIT_MAX: Duration = Duration::from_secs(12);
/// The time that a worker has to process the test event. A cold start takes a second or two.
const OUTCOME_WAIT_MAX: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const ACCEPT_INTERVAL: Duration = Duration::from_secs(3);

pub(super) async fn check_health(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let url = session.stack.output("HealthUrl")?;
    billhook_adapters::stripe::install_tls();
    let http = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .build()?;
    let now = SystemClock.now();
    let answer = match http.get(url).send().await {
        Ok(answer) => answer,
        Err(error) => {
            return Ok(vec![CheckFinding::problem(
                "API responds",
                error_chain(&error),
                "check DNS and the stage of the API in API Gateway",
            )]);
        }
    };
    let status = answer.status().as_u16();
    let mut findings = vec![CheckFinding::from_check(
        "API responds",
        status == 200,
        format!("{status}"),
        "billhook logs --since 5m, and docs/runbook/ingress-5xx.md",
    )];
    let date = answer
        .headers()
        .get("date")
        .and_then(|date| date.to_str().ok());
    if let Some(theirs_s) = date.and_then(parse_http_date_s) {
        let skew = (theirs_s - now.unix_s()).abs();
        let fix = "correct the clock of this machine: ingress refuses signatures that are more than 300 s off";
        findings.push(CheckFinding::from_check(
            "clock",
            skew <= SKEW_MAX_S,
            format!("{skew} s off"),
            fix,
        ));
    }
    Ok(findings)
}

/// `Sat, 21 Nov 2026 08:00:00 GMT` in Unix seconds.
fn parse_http_date_s(date: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = date.split_once(", ")?.1.split(' ');
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let moment = format!("{year}-{month:02}-{day}T{time}Z");
    let moment = Timestamp::parse(&moment).ok()?;
    Some(moment.unix_s())
}

pub(super) async fn check_test_event(
    session: &StackSession,
    provider: ProviderId,
) -> Result<Vec<CheckFinding>> {
    let check = format!("{provider} test event is accepted");
    if provider == ProviderId::Stripe && session.stack.parameter("StripeAddressesOnly") == "true" {
        let detail = "not sent: the firewall lets only Stripe's addresses in";
        return Ok(vec![CheckFinding::from_check(check, true, detail, "")]);
    }
    let keys = match session.read_signing_keys(provider).await {
        Ok(keys) => keys,
        Err(error) => {
            let detail = format!("not sent: {error:#}");
            let fix = signing_secret_fix(provider);
            return Ok(vec![CheckFinding::problem(check, detail, fix)]);
        }
    };
    let (id, body) = build_test_event(provider, DOCTOR_EVENT_TYPE, &keys)?;
    let url = read_webhook_url(&session.stack, provider)?;
    let started_at = SystemClock.now();
    let answer = loop {
        let answer = post_signed_event(provider, url, &keys, body.clone()).await?;
        if answer.status == 200 || started_at.until(SystemClock.now()) > ACCEPT_WAIT_MAX {
            break answer;
        }
        SystemClock.pause(ACCEPT_INTERVAL).await;
    };
    let fix = "billhook logs --since 5m, and docs/runbook/none-accepted.md";
    let mut findings = vec![CheckFinding::from_check(
        check,
        answer.status == 200,
        format!("{} {}", answer.status, answer.body),
        fix,
    )];
    if answer.status == 200 {
        let outcome = wait_for_outcome(session, provider, &EventId::parse(&id)?).await?;
        findings.push(CheckFinding::from_check(
            format!("{provider} test event is processed"),
            outcome == "ignored",
            format!("{id} is {outcome}"),
            format!("billhook trace {id}, and docs/runbook/message-age.md"),
        ));
    }
    Ok(findings)
}

async fn wait_for_outcome(
    session: &StackSession,
    provider: ProviderId,
    id: &EventId,
) -> Result<String> {
    let started_at = SystemClock.now();
    loop {
        let item = session.events_table(provider)?.get_item(id).await?;
        let event = item
            .as_ref()
            .and_then(|item| EventSummary::from_item(provider, item));
        let outcome = event
            .and_then(|event| Some(read_text(&event.row, "processing_outcome")?.to_owned()))
            .unwrap_or_else(|| "not stored".to_owned());
        if outcome != "pending" || started_at.until(SystemClock.now()) > OUTCOME_WAIT_MAX {
            return Ok(outcome);
        }
        SystemClock.pause(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_date_is_parsed() {
        assert_eq!(
            parse_http_date_s("Tue, 09 Jun 2026 10:13:20 GMT"),
            Some(1_781_000_000)
        );
        assert_eq!(parse_http_date_s("yesterday"), None);
    }
}
