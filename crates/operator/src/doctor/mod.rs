//! `billhook doctor`: what a deployed stack is looked at for, one line each with what to do about it.

use std::time::Duration;

use anyhow::Result;
use aws_sdk_dynamodb::types::{IndexStatus, PointInTimeRecoveryStatus, TableDescription};
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::Provider;
use billhook_core::ports::Clock as _;
use serde_json::{Value, json};

use crate::Stop;
use crate::filter::Filter;
use crate::output::Output;
use crate::session::Session;

/// An event that is open for longer is stuck: a worker needs seconds.
const STUCK: Duration = Duration::from_secs(60 * 60);
/// Signatures are believed for 300 s on either side.
const SKEW_MAX_S: i64 = 60;

/// What a check found.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    check: String,
    result: &'static str,
    detail: String,
    fix: &'static str,
}

impl Found {
    fn new(
        check: impl Into<String>,
        is_good: bool,
        detail: impl Into<String>,
        fix: &'static str,
    ) -> Self {
        Self {
            check: check.into(),
            result: if is_good { "ok" } else { "bad" },
            detail: detail.into(),
            fix: if is_good { "" } else { fix },
        }
    }
}

pub(crate) async fn run(session: &Session, output: Output) -> Result<()> {
    let mut found = Vec::new();
    for queue in [
        "StripeEventsQueueUrl",
        "LobEventsQueueUrl",
        "StripeEventsDlqUrl",
        "LobEventsDlqUrl",
    ] {
        found.extend(queue_checks(session, queue).await?);
    }
    for table in [
        "StripeEventsTable",
        "LobEventsTable",
        "OrdersTable",
        "StatementsTable",
        "TenantsTable",
        "PaymentsTable",
        "JobsTable",
    ] {
        found.extend(table_checks(session, table).await?);
    }
    for provider in [Provider::Stripe, Provider::Lob] {
        let secrets = session.signing_secrets(provider).await;
        let detail = secrets.as_ref().map_or_else(
            |error| format!("{error:#}"),
            |found| format!("{} set", found.len()),
        );
        let fix = match provider {
            Provider::Stripe => {
                "put stripe_secret_key into the App secret, then: billhook secrets rotate stripe --yes"
            }
            Provider::Lob => "put lob_webhook_secret into the App secret",
        };
        found.push(Found::new(
            format!("{provider} signing secret"),
            secrets.is_ok(),
            detail,
            fix,
        ));
        let stuck = stuck(session, provider).await?;
        let detail = format!("{stuck} pending or failed for more than an hour");
        let fix = "billhook events list --outcome pending --outcome failed, mend the cause, billhook replay";
        found.push(Found::new(
            format!("{provider} events"),
            stuck == 0,
            detail,
            fix,
        ));
    }
    found.extend(health(session).await?);
    let bad = found.iter().filter(|found| found.result == "bad").count();
    let rows: Vec<Value> = found
        .iter()
        .map(|found| json!({ "check": found.check, "result": found.result, "detail": found.detail, "fix": found.fix }))
        .collect();
    output.list(&["result", "check", "detail", "fix"], &rows);
    if bad > 0 {
        return Err(Stop::No(format!("{bad} of {} checks found something", found.len())).into());
    }
    Ok(())
}

async fn queue_checks(session: &Session, key: &str) -> Result<Vec<Found>> {
    let get = session
        .sqs
        .get_queue_attributes()
        .queue_url(session.stack.output(key)?);
    let got = get.attribute_names(Attribute::All).send().await?;
    let attributes = got.attributes.unwrap_or_default();
    let text = |name: Attribute| {
        attributes
            .get(&name)
            .map(String::as_str)
            .unwrap_or_default()
    };
    let name = key.trim_end_matches("Url");
    let is_encrypted = text(Attribute::SqsManagedSseEnabled) == "true"
        || !text(Attribute::KmsMasterKeyId).is_empty();
    let deploy = "somebody changed it: deploy template.yaml again";
    let mut found = vec![Found::new(
        format!("{name} encrypted"),
        is_encrypted,
        "",
        deploy,
    )];
    if name.ends_with("Dlq") {
        let depth = text(Attribute::ApproximateNumberOfMessages);
        let fix = "billhook dlq list --queue stripe|lob";
        found.push(Found::new(
            format!("{name} empty"),
            depth == "0" || depth.is_empty(),
            format!("{depth} letters"),
            fix,
        ));
    } else {
        let has = text(Attribute::RedrivePolicy).contains("deadLetterTargetArn");
        found.push(Found::new(
            format!("{name} has a dead-letter queue"),
            has,
            "",
            deploy,
        ));
    }
    Ok(found)
}

async fn table_checks(session: &Session, key: &str) -> Result<Vec<Found>> {
    let table = session.stack.output(key)?;
    let described = session
        .dynamodb
        .describe_table()
        .table_name(table)
        .send()
        .await?;
    let inactive = described.table.as_ref().map(inactive).unwrap_or_default();
    let wait = "wait until it is filled; if it is missing, deploy template.yaml again";
    let mut found = vec![Found::new(
        format!("{key} indexes ACTIVE"),
        inactive.is_empty(),
        inactive.join(", "),
        wait,
    )];
    let backups = session
        .dynamodb
        .describe_continuous_backups()
        .table_name(table)
        .send()
        .await?;
    let recovery = backups
        .continuous_backups_description
        .and_then(|backups| backups.point_in_time_recovery_description)
        .and_then(|recovery| recovery.point_in_time_recovery_status);
    found.push(Found::new(
        format!("{key} recovers to a point in time"),
        recovery == Some(PointInTimeRecoveryStatus::Enabled),
        "",
        "somebody turned it off: deploy template.yaml again",
    ));
    Ok(found)
}

fn inactive(table: &TableDescription) -> Vec<String> {
    table
        .global_secondary_indexes()
        .iter()
        .filter(|index| {
            // The local AWS does not tell it of every index.
            let status = index.index_status.as_ref();
            status.is_some_and(|status| *status != IndexStatus::Active)
        })
        .filter_map(|index| index.index_name.clone())
        .collect()
}

async fn stuck(session: &Session, provider: Provider) -> Result<usize> {
    let selection = Filter::stuck().select(Vec::new(), SystemClock.now().before(STUCK));
    Ok(session
        .events(provider)?
        .list(&selection, usize::MAX)
        .await?
        .len())
}

/// The API answers, and by the clock that AWS has ours is right.
async fn health(session: &Session) -> Result<Vec<Found>> {
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
                error.to_string(),
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
    let moment = billhook_core::time::Timestamp::parse(&moment).ok()?;
    Some(moment.unix_s())
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::GlobalSecondaryIndexDescription as Index;

    use super::*;

    #[test]
    fn an_index_that_is_being_filled_is_named() {
        let index = |name: &str, status| {
            Index::builder()
                .index_name(name)
                .index_status(status)
                .build()
        };
        let table = TableDescription::builder()
            .global_secondary_indexes(index("DayIndex", IndexStatus::Active))
            .global_secondary_indexes(index("OpenIndex", IndexStatus::Creating))
            .build();
        assert_eq!(inactive(&table), ["OpenIndex"]);
    }

    #[test]
    fn a_servers_date_is_read() {
        assert_eq!(
            http_date_s("Tue, 09 Jun 2026 10:13:20 GMT"),
            Some(1_781_000_000)
        );
        assert_eq!(http_date_s("yesterday"), None);
    }
}
