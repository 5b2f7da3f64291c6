//! The stack's resources as AWS has them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::types::{
    GlobalSecondaryIndexDescription, IndexStatus, PointInTimeRecoveryStatus, TableDescription,
};
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use roxmltree::Document;
use serde_json::{Value, json};

use super::{DEPLOY, Found};
use crate::session::Session;
use crate::signed::{APIGATEWAY, CLOUDWATCH, SNS, WAF};
use crate::xml;

const QUEUES: [&str; 4] = [
    "StripeEventsQueueUrl",
    "LobEventsQueueUrl",
    "StripeEventsDlqUrl",
    "LobEventsDlqUrl",
];
/// Each with the indexes that functions and this tool read.
const TABLES: [(&str, &[&str]); 7] = [
    ("StripeEventsTable", &["OpenIndex", "DayIndex"]),
    ("LobEventsTable", &["OpenIndex", "DayIndex"]),
    ("OrdersTable", &["PaymentIntentIndex", "StatusIndex"]),
    ("StatementsTable", &["LobLetterIndex", "PaymentIntentIndex"]),
    ("TenantsTable", &["stripe_connected_account_id"]),
    ("PaymentsTable", &[]),
    ("JobsTable", &[]),
];
/// As the template has it.
const STAGE: &str = "v1";
/// `CloudWatch` takes no more names at once.
const ALARMS_MAX: usize = 100;
/// How long Stripe's list is waited for.
const PUBLISHED_MAX: Duration = Duration::from_secs(10);
/// Where Stripe publishes the addresses it delivers from, one a line.
const STRIPE_ADDRESSES: &str = "https://stripe.com/files/ips/ips_webhooks.txt";

pub(super) async fn areas(session: &Session) -> Vec<(&'static str, Result<Vec<Found>>)> {
    let mut areas = Vec::new();
    for queue in QUEUES {
        areas.push(("queues", queue_checks(session, queue).await));
    }
    for (table, indexes) in TABLES {
        areas.push(("tables", table_checks(session, table, indexes).await));
    }
    areas.push(("alarms", alarms(session).await));
    areas.push(("alarm topic", subscribers(session).await));
    areas.push(("API stage", throttles(session).await));
    areas.push(("firewall", firewall(session).await));
    areas.push(("Stripe's addresses", addresses(session).await));
    areas
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
    let mut found = vec![Found::new(
        format!("{name} encrypted"),
        is_encrypted,
        "",
        DEPLOY,
    )];
    if name.ends_with("Dlq") {
        let depth = text(Attribute::ApproximateNumberOfMessages);
        let fix = match name {
            "LobEventsDlq" => "billhook dlq list --queue lob",
            _ => "billhook dlq list --queue stripe",
        };
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
            DEPLOY,
        ));
    }
    Ok(found)
}

async fn table_checks(session: &Session, key: &str, indexes: &[&str]) -> Result<Vec<Found>> {
    let table = session.stack.output(key)?;
    let described = session
        .dynamodb
        .describe_table()
        .table_name(table)
        .send()
        .await?;
    let described = described.table.as_ref();
    let there = described.map(TableDescription::global_secondary_indexes);
    let inactive = inactive(there, indexes);
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
        DEPLOY,
    ));
    Ok(found)
}

/// Those of the wanted indexes that are missing or not yet filled.
fn inactive(there: Option<&[GlobalSecondaryIndexDescription]>, wanted: &[&str]) -> Vec<String> {
    let is_active = |name: &&&str| {
        there.unwrap_or_default().iter().any(|index| {
            // The local AWS does not tell the status of every index.
            index.index_name() == Some(name)
                && index
                    .index_status
                    .as_ref()
                    .is_none_or(|it| *it == IndexStatus::Active)
        })
    };
    let missing = wanted.iter().filter(|name| !is_active(name));
    missing.map(|name| (*name).to_owned()).collect()
}

/// The stack's alarms are there and act, and each that rings is named with its page of the runbook.
async fn alarms(session: &Session) -> Result<Vec<Found>> {
    let names = session
        .stack
        .resources(&session.caller, "AWS::CloudWatch::Alarm")
        .await?;
    let mut answers = Vec::new();
    for names in names.chunks(ALARMS_MAX) {
        let keys: Vec<String> = (1..=names.len())
            .map(|number| format!("AlarmNames.member.{number}"))
            .collect();
        let mut form = vec![("Action", "DescribeAlarms"), ("MaxRecords", "100")];
        form.extend(
            keys.iter()
                .map(String::as_str)
                .zip(names.iter().map(String::as_str)),
        );
        let answer = session.caller.query(CLOUDWATCH, "2010-08-01", &form).await;
        answers.push(answer.context("cannot read the alarms")?);
    }
    told_of_alarms(&names, &answers)
}

fn told_of_alarms(names: &[String], answers: &[String]) -> Result<Vec<Found>> {
    let (mut mute, mut ringing) = (names.to_vec(), Vec::new());
    for answer in answers {
        let document = Document::parse(answer).context("CloudWatch's answer")?;
        for alarm in xml::members(&document, "MetricAlarms") {
            let of = |name| xml::text(alarm, name).unwrap_or_default();
            let name = of("AlarmName");
            // The local AWS does not tell them.
            let acts = xml::text(alarm, "AlarmActions").is_none()
                || xml::children(alarm, "AlarmActions").next().is_some();
            if of("ActionsEnabled") != "false" && acts {
                mute.retain(|mute| mute != name);
            }
            if of("StateValue") == "ALARM" {
                let (told, fix) = of("AlarmDescription")
                    .split_once(" Runbook: ")
                    .unwrap_or((of("AlarmDescription"), "docs/runbook"));
                let check = format!("alarm {name} is quiet");
                ringing.push(Found::new(check, false, told, fix));
            }
        }
    }
    let mut found = vec![Found::new(
        "alarms are there and act",
        mute.is_empty() && !names.is_empty(),
        match mute.is_empty() {
            true => format!("{} alarms", names.len()),
            false => format!("not {}", mute.join(", ")),
        },
        DEPLOY,
    )];
    found.append(&mut ringing);
    Ok(found)
}

async fn subscribers(session: &Session) -> Result<Vec<Found>> {
    let topic = session.stack.output("AlarmTopicArn")?;
    let form = [("Action", "ListSubscriptionsByTopic"), ("TopicArn", topic)];
    let answer = session.caller.query(SNS, "2010-03-31", &form).await?;
    let document = Document::parse(&answer).context("SNS's answer")?;
    let confirmed = xml::members(&document, "Subscriptions")
        .filter_map(|member| xml::text(member, "SubscriptionArn"))
        .filter(|arn| arn.starts_with("arn:"))
        .count();
    Ok(vec![Found::new(
        "somebody hears the alarms",
        confirmed > 0,
        format!("{confirmed} confirmed subscriptions"),
        "deploy with AlarmEmail and confirm the mail, or subscribe to the topic AlarmTopicArn",
    )])
}

/// Requests a second and at once, as the stack's parameters have them.
async fn throttles(session: &Session) -> Result<Vec<Found>> {
    let path = format!(
        "/restapis/{}/stages/{STAGE}",
        session.stack.output("ApiId")?
    );
    let stage = session.caller.get(APIGATEWAY, &path).await?;
    let stage: Value = serde_json::from_str(&stage).context("API Gateway's answer")?;
    let settings = stage.pointer("/methodSettings/*~1*");
    let number = |name| settings.and_then(|settings| settings.get(name)?.as_f64());
    let found = [
        ("throttlingRateLimit", "ThrottleRate"),
        ("throttlingBurstLimit", "ThrottleBurst"),
    ];
    let found = found.map(|(setting, parameter)| {
        let wanted = session.stack.parameter(parameter);
        let is = number(setting).map_or("not set".to_owned(), |number| number.to_string());
        let detail = format!("{is}, and {wanted} by the parameter");
        Found::new(format!("API {parameter}"), is == wanted, detail, DEPLOY)
    });
    Ok(found.into())
}

async fn firewall(session: &Session) -> Result<Vec<Found>> {
    let check = "API has its firewall";
    if session.stack.parameter("Waf") != "true" {
        let detail = "not wanted: the parameter Waf is false";
        let fix = "deploy with Waf=true";
        let is_good = !session.stack.is_live();
        return Ok(vec![Found::new(check, is_good, detail, fix)]);
    }
    // Of the same partition and region as any other of the stack's.
    let topic: Vec<&str> = session.stack.output("AlarmTopicArn")?.split(':').collect();
    let (partition, region) = (topic.get(1).unwrap_or(&"aws"), topic.get(3).unwrap_or(&""));
    let api = session.stack.output("ApiId")?;
    let arn = format!("arn:{partition}:apigateway:{region}::/restapis/{api}/stages/{STAGE}");
    let headers = [
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", "AWSWAF_20190729.GetWebACLForResource"),
    ];
    let question = json!({ "ResourceArn": arn }).to_string();
    let answer = session.caller.post(WAF, "/", &headers, question).await?;
    let answer: Value = serde_json::from_str(&answer).context("WAF's answer")?;
    let name = answer.pointer("/WebACL/Name").and_then(Value::as_str);
    Ok(vec![Found::new(
        check,
        name.is_some(),
        name.unwrap_or_default(),
        DEPLOY,
    )])
}

/// The firewall's list of Stripe's addresses against the one that Stripe publishes.
async fn addresses(session: &Session) -> Result<Vec<Found>> {
    let listed = session.stack.parameter("StripeAddresses");
    if session.stack.parameter("Waf") != "true" || listed.is_empty() {
        return Ok(Vec::new());
    }
    let http = reqwest::Client::builder().timeout(PUBLISHED_MAX).build()?;
    let published = http.get(STRIPE_ADDRESSES).send().await?;
    let published = published.error_for_status()?.text().await?;
    let missing = missing(listed, &published);
    Ok(vec![Found::new(
        "StripeAddresses has all that Stripe publishes",
        missing.is_empty(),
        missing.join(", "),
        "add them to the parameter StripeAddresses as ADDRESS/32 and deploy",
    )])
}

/// Published addresses that the parameter has not, which are held to the rate of anybody.
fn missing<'a>(listed: &str, published: &'a str) -> Vec<&'a str> {
    let is_listed = |address: &&str| {
        let mut all = listed.split(',').map(str::trim);
        !all.any(|listed| listed.trim_end_matches("/32") == *address)
    };
    published
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .filter(is_listed)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_being_filled_or_missing_is_named() {
        let index = |name: &str, status| {
            GlobalSecondaryIndexDescription::builder()
                .index_name(name)
                .index_status(status)
                .build()
        };
        let there = [
            index("DayIndex", IndexStatus::Active),
            index("OpenIndex", IndexStatus::Creating),
        ];
        let wanted = ["DayIndex", "OpenIndex", "StatusIndex"];
        assert_eq!(
            inactive(Some(&there), &wanted),
            ["OpenIndex", "StatusIndex"]
        );
    }

    #[test]
    fn an_alarm_that_rings_or_is_mute_or_gone_is_named() {
        let member = |name: &str, acts: &str, state: &str| {
            format!(
                "<member><AlarmName>{name}</AlarmName><ActionsEnabled>{acts}</ActionsEnabled><StateValue>{state}</StateValue><AlarmActions><member>arn</member></AlarmActions>\
                 <AlarmDescription>It rings. Runbook: docs/runbook/a.md. Command: billhook doctor</AlarmDescription></member>"
            )
        };
        let answer = |members: &str| {
            format!(
                "<R><DescribeAlarmsResult><MetricAlarms>{members}</MetricAlarms></DescribeAlarmsResult></R>"
            )
        };
        let names = ["a", "b", "c"].map(str::to_owned);
        let good = ["a", "b", "c"]
            .map(|name| member(name, "true", "OK"))
            .concat();
        let found = told_of_alarms(&names, &[answer(&good)]).unwrap();
        assert_eq!(
            found,
            [Found::new("alarms are there and act", true, "3 alarms", "")]
        );

        let some = [member("a", "true", "ALARM"), member("b", "false", "OK")].concat();
        let found = told_of_alarms(&names, &[answer(&some)]).unwrap();
        let fix = "docs/runbook/a.md. Command: billhook doctor";
        assert_eq!(
            found,
            [
                Found::new("alarms are there and act", false, "not b, c", DEPLOY),
                Found::new("alarm a is quiet", false, "It rings.", fix),
            ]
        );
    }

    #[test]
    fn an_address_that_is_published_and_not_listed_is_named() {
        let listed = "192.0.2.1/32,192.0.2.2/32";
        assert_eq!(missing(listed, "192.0.2.2\n192.0.2.3\r\n\n"), ["192.0.2.3"]);
        assert!(missing(listed, "192.0.2.1\n192.0.2.2\n").is_empty());
    }
}
