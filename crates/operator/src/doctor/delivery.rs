//! That deliveries are taken in: the API answers, clocks agree, a signed test event comes through.

use std::time::Duration;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::error::error_chain;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;

use super::Found;
use crate::filter::text;
use crate::send;
use crate::session::Session;
use crate::store::Listed;

/// Signatures are believed for 300 s on either side.
const SKEW_MAX_S: i64 = 60;
/// From an accepted event to its end: a cold worker needs a second or two.
const THROUGH_MAX: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// What no worker handles, so that the event ends as `ignored`.
const TEST_TYPE: &str = "billhook.doctor";

/// The API answers, and by the clock that AWS has ours is right.
pub(super) async fn health(session: &Session) -> Result<Vec<Found>> {
    let url = session.stack.output("HealthUrl")?;
    billhook_adapters::stripe::install_tls();
    let http = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .build()?;
    let now = SystemClock.now();
    let answer = match http.get(url).send().await {
        Ok(answer) => answer,
        Err(error) => {
            return Ok(vec![Found::new(
                "API answers",
                false,
                error_chain(&error),
                "look at the API's stage, and at DNS",
            )]);
        }
    };
    let status = answer.status().as_u16();
    let mut found = vec![Found::new(
        "API answers",
        status == 200,
        format!("{status}"),
        "look at the log of webhook-ingress",
    )];
    let date = answer
        .headers()
        .get("date")
        .and_then(|date| date.to_str().ok());
    if let Some(theirs_s) = date.and_then(http_date_s) {
        let skew = (theirs_s - now.unix_s()).abs();
        let fix = "set this machine's clock: what it signs is refused beyond 300 s";
        found.push(Found::new(
            "clock",
            skew <= SKEW_MAX_S,
            format!("{skew} s apart"),
            fix,
        ));
    }
    Ok(found)
}

/// `Sat, 21 Nov 2026 08:00:00 GMT` in Unix seconds.
fn http_date_s(date: &str) -> Option<i64> {
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

/// A signed event is taken, stored, queued, and ended by its worker.
pub(super) async fn test_event(session: &Session, provider: ProviderId) -> Result<Vec<Found>> {
    let secrets = session.signing_secrets(provider).await?;
    let (id, body) = send::test_event(provider, TEST_TYPE)?;
    let url = session.stack.output(send::webhook_url(provider))?;
    let (status, said) = send::deliver(provider, url, &secrets, body).await?;
    let fix = "billhook logs --since 5m, and docs/runbook/none-accepted.md";
    let check = format!("{provider} test event is taken");
    let mut found = vec![Found::new(
        check,
        status == 200,
        format!("{status} {said}"),
        fix,
    )];
    if status == 200 {
        let outcome = ended(session, provider, &EventId::parse(&id)?).await?;
        found.push(Found::new(
            format!("{provider} test event comes through"),
            outcome == "ignored",
            format!("{id} is {outcome}"),
            format!("billhook trace {id}, and docs/runbook/message-age.md"),
        ));
    }
    Ok(found)
}

async fn ended(session: &Session, provider: ProviderId, id: &EventId) -> Result<String> {
    let begun = SystemClock.now();
    loop {
        let item = session.events(provider)?.item(id).await?;
        let listed = item.as_ref().and_then(|item| Listed::read(provider, item));
        let outcome = listed
            .and_then(|listed| Some(text(&listed.row, "processing_outcome")?.to_owned()))
            .unwrap_or_else(|| "not stored".to_owned());
        if outcome != "pending" || begun.until(SystemClock.now()) > THROUGH_MAX {
            return Ok(outcome);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_date_is_read() {
        assert_eq!(
            http_date_s("Tue, 09 Jun 2026 10:13:20 GMT"),
            Some(1_781_000_000)
        );
        assert_eq!(http_date_s("yesterday"), None);
    }
}
