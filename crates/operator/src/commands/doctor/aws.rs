//! Checks of AWS resources against the template: queues, tables, alarms, throttling and firewall. They find
//! configuration drift that a deployment of an unchanged template would not repair.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::types::{
    GlobalSecondaryIndexDescription, IndexStatus, PointInTimeRecoveryStatus, TableDescription,
};
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use billhook_core::entity::ENTITY_SCHEMAS;
use billhook_core::ids::ProviderId;
use roxmltree::Document;
use serde_json::{Value, json};

use super::finding::{CheckFinding, REVERT_DRIFT_FIX};
use crate::aws_request::{APIGATEWAY, CLOUDWATCH, LAMBDA, SNS, WAF};
use crate::aws_xml::{find_child_members, find_list_members, read_child_text};
use crate::session::StackSession;
use crate::stack::DeployedStack;

/// The two queues of each provider.
#[derive(Clone, Copy, PartialEq, Eq)]
enum QueueRole {
    Events,
    DeadLetters,
}

/// The stage of the API, as named in the template.
const API_STAGE: &str = "v1";
/// `DescribeAlarms` takes at most 100 names.
const ALARM_NAMES_MAX: usize = 100;
/// A web server that does not answer must not hold up the other checks.
const DOWNLOAD_MAX: Duration = Duration::from_secs(10);
/// Stripe publishes here the IP addresses that deliver webhooks, one per line, and changes them with a week's notice.
const STRIPE_ADDRESSES: &str = "https://stripe.com/files/ips/ips_webhooks.txt";

pub(super) async fn check_aws_resources(
    session: &StackSession,
) -> Vec<(&'static str, Result<Vec<CheckFinding>>)> {
    let mut areas = Vec::new();
    for role in [QueueRole::Events, QueueRole::DeadLetters] {
        for provider in ProviderId::ALL {
            areas.push(("queues", check_queue(session, *provider, role).await));
        }
    }
    for (table, indexes) in list_tables(&session.stack) {
        areas.push(("tables", check_table(session, &table, &indexes).await));
    }
    areas.push(("alarms", check_alarms(session).await));
    areas.push(("alarm topic", check_alarm_subscribers(session).await));
    areas.push(("API stage", check_throttles(session).await));
    areas.push(("API logs", check_log_role(session).await));
    areas.push(("concurrency", check_concurrency(session).await));
    areas.push(("firewall", check_firewall(session).await));
    areas.push(("Stripe's addresses", check_stripe_addresses(session).await));
    areas
}

/// The outputs of the tables, with the indexes that the functions and this tool query.
fn list_tables(stack: &DeployedStack) -> Vec<(String, Vec<&'static str>)> {
    let events = ProviderId::ALL.iter().map(|provider| {
        let table = format!("{}EventsTable", provider.title());
        (table, vec!["OpenIndex", "SlotIndex"])
    });
    // An existing table is not the template's: `existing_tables` checks it.
    let own = ENTITY_SCHEMAS
        .iter()
        .filter(|schema| stack.existing_table(schema).is_none());
    let entities = own.map(|schema| {
        let indexes = schema.indexes.iter().map(|index| index.name);
        (format!("{}Table", schema.table), indexes.collect())
    });
    let others = [
        ("EntitiesTable", vec!["OpenIndex"]),
        ("JobsTable", Vec::new()),
    ];
    let others = others.map(|(table, indexes)| (table.to_owned(), indexes));
    events.chain(entities).chain(others).collect()
}

async fn check_queue(
    session: &StackSession,
    provider: ProviderId,
    role: QueueRole,
) -> Result<Vec<CheckFinding>> {
    let name = match role {
        QueueRole::Events => format!("{}EventsQueue", provider.title()),
        QueueRole::DeadLetters => format!("{}EventsDlq", provider.title()),
    };
    let url = session.stack.output(&format!("{name}Url"))?;
    let get = session.sqs.get_queue_attributes().queue_url(url);
    let got = get.attribute_names(Attribute::All).send().await?;
    let attributes = got.attributes.unwrap_or_default();
    let text = |name: Attribute| {
        attributes
            .get(&name)
            .map(String::as_str)
            .unwrap_or_default()
    };
    let is_encrypted = text(Attribute::SqsManagedSseEnabled) == "true"
        || !text(Attribute::KmsMasterKeyId).is_empty();
    let mut findings = vec![CheckFinding::from_check(
        format!("{name} encrypted"),
        is_encrypted,
        "",
        REVERT_DRIFT_FIX,
    )];
    if role == QueueRole::DeadLetters {
        let depth = text(Attribute::ApproximateNumberOfMessages);
        findings.push(CheckFinding::from_check(
            format!("{name} empty"),
            depth == "0" || depth.is_empty(),
            format!("{depth} messages"),
            format!("billhook dlq list --queue {provider}"),
        ));
    } else {
        let has = text(Attribute::RedrivePolicy).contains("deadLetterTargetArn");
        findings.push(CheckFinding::from_check(
            format!("{name} has a dead-letter queue"),
            has,
            "",
            REVERT_DRIFT_FIX,
        ));
    }
    Ok(findings)
}

async fn check_table(
    session: &StackSession,
    key: &str,
    indexes: &[&str],
) -> Result<Vec<CheckFinding>> {
    let table = session.stack.output(key)?;
    let described = session
        .dynamodb
        .describe_table()
        .table_name(table)
        .send()
        .await?;
    let described = described.table.as_ref();
    let there = described.map(TableDescription::global_secondary_indexes);
    let inactive = find_inactive_indexes(there, indexes);
    let wait = "if an index is being filled, wait; if it is missing, deploy template.yaml again";
    let mut findings = vec![CheckFinding::from_check(
        format!("{key} indexes ACTIVE"),
        inactive.is_empty(),
        inactive.join(", "),
        wait,
    )];
    let recovers = recovers_to_point_in_time(session, table).await?;
    let check = format!("{key} recovers to a point in time");
    findings.push(CheckFinding::from_check(
        check,
        recovers,
        "",
        REVERT_DRIFT_FIX,
    ));
    Ok(findings)
}

pub(super) async fn recovers_to_point_in_time(session: &StackSession, table: &str) -> Result<bool> {
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
    Ok(recovery == Some(PointInTimeRecoveryStatus::Enabled))
}

/// Indexes that are missing or still being filled. Queries on them fail.
fn find_inactive_indexes(
    there: Option<&[GlobalSecondaryIndexDescription]>,
    wanted: &[&str],
) -> Vec<String> {
    let is_active = |name: &&&str| {
        there.unwrap_or_default().iter().any(|index| {
            // The local AWS does not report the status of every index.
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

/// Alarms exist and have actions; each one in state ALARM is a finding of its own, with its runbook page.
async fn check_alarms(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let names = session
        .stack
        .list_resources(&session.aws, "AWS::CloudWatch::Alarm")
        .await?;
    let mut answers = Vec::new();
    for names in names.chunks(ALARM_NAMES_MAX) {
        let keys: Vec<String> = (1..=names.len())
            .map(|number| format!("AlarmNames.member.{number}"))
            .collect();
        let mut form = vec![("Action", "DescribeAlarms"), ("MaxRecords", "100")];
        form.extend(
            keys.iter()
                .map(String::as_str)
                .zip(names.iter().map(String::as_str)),
        );
        let answer = session.aws.query_xml(CLOUDWATCH, "2010-08-01", &form).await;
        answers.push(answer.context("cannot read the alarms")?);
    }
    report_alarms(&names, &answers)
}

fn report_alarms(names: &[String], answers: &[String]) -> Result<Vec<CheckFinding>> {
    let (mut mute, mut ringing) = (names.to_vec(), Vec::new());
    for answer in answers {
        let document =
            Document::parse(answer).context("cannot parse the response of CloudWatch")?;
        for alarm in find_list_members(&document, "MetricAlarms") {
            let of = |name| read_child_text(alarm, name).unwrap_or_default();
            let name = of("AlarmName");
            // The local AWS does not report the actions.
            let acts = read_child_text(alarm, "AlarmActions").is_none()
                || find_child_members(alarm, "AlarmActions").next().is_some();
            if of("ActionsEnabled") != "false" && acts {
                mute.retain(|mute| mute != name);
            }
            if of("StateValue") == "ALARM" {
                let (meaning, fix) = of("AlarmDescription")
                    .split_once(" Runbook: ")
                    .unwrap_or((of("AlarmDescription"), "docs/runbook"));
                let check = format!("alarm {name} is not firing");
                ringing.push(CheckFinding::problem(check, meaning, fix));
            }
        }
    }
    let mut findings = vec![CheckFinding::from_check(
        "alarms exist and have actions",
        mute.is_empty() && !names.is_empty(),
        match mute.is_empty() {
            true => format!("{} alarms", names.len()),
            false => format!("missing or without actions: {}", mute.join(", ")),
        },
        REVERT_DRIFT_FIX,
    )];
    findings.append(&mut ringing);
    Ok(findings)
}

async fn check_alarm_subscribers(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let topic = session.stack.output("AlarmTopicArn")?;
    let form = [("Action", "ListSubscriptionsByTopic"), ("TopicArn", topic)];
    let answer = session.aws.query_xml(SNS, "2010-03-31", &form).await?;
    let document = Document::parse(&answer).context("cannot parse the response of SNS")?;
    let confirmed = find_list_members(&document, "Subscriptions")
        .filter_map(|member| read_child_text(member, "SubscriptionArn"))
        .filter(|arn| arn.starts_with("arn:"))
        .count();
    Ok(vec![CheckFinding::from_check(
        "the alarm topic has a subscriber",
        confirmed > 0,
        format!("{confirmed} confirmed subscriptions"),
        "deploy with the parameter AlarmEmail and confirm the mail, or subscribe to the topic in the output AlarmTopicArn",
    )])
}

async fn check_throttles(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let path = format!(
        "/restapis/{}/stages/{API_STAGE}",
        session.stack.output("ApiId")?
    );
    let stage = session.aws.get_text(APIGATEWAY, &path).await?;
    let stage: Value =
        serde_json::from_str(&stage).context("cannot parse the response of API Gateway")?;
    let settings = stage.pointer("/methodSettings/*~1*");
    let number = |name| settings.and_then(|settings| settings.get(name)?.as_f64());
    let findings = [
        ("throttlingRateLimit", "ThrottleRate"),
        ("throttlingBurstLimit", "ThrottleBurst"),
    ];
    let findings = findings.map(|(setting, parameter)| {
        let wanted = session.stack.parameter(parameter);
        let is = number(setting).map_or("not set".to_owned(), |number| number.to_string());
        let detail = format!("{is}; the parameter is {wanted}");
        CheckFinding::from_check(
            format!("API {parameter}"),
            is == wanted,
            detail,
            REVERT_DRIFT_FIX,
        )
    });
    Ok(findings.into())
}

/// Without the role in the settings of the account and region, API Gateway writes no access log.
async fn check_log_role(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let account = session.aws.get_text(APIGATEWAY, "/account").await?;
    let account: Value =
        serde_json::from_str(&account).context("cannot parse the response of API Gateway")?;
    let role = account.get("cloudwatchRoleArn").and_then(Value::as_str);
    Ok(vec![CheckFinding::from_check(
        "API Gateway may write logs",
        role.is_some(),
        role.unwrap_or("this account and region has no role for it"),
        "deploy with ApiGatewayLogRole=create",
    )])
}

/// What the workers leave of the account's concurrent executions. A poller that Lambda throttles uses up receives.
async fn check_concurrency(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let settings = session
        .aws
        .get_text(LAMBDA, "/2016-08-19/account-settings/");
    let settings: Value =
        serde_json::from_str(&settings.await?).context("cannot parse the response of Lambda")?;
    let free = settings
        .pointer("/AccountLimit/UnreservedConcurrentExecutions")
        .and_then(Value::as_u64)
        .context("Lambda did not say the account's limit")?;
    // A stack of an older release has no such parameter.
    let each = session.stack.parameter("WorkerConcurrency").parse::<u64>();
    let each = each.unwrap_or(20);
    let workers = each * ProviderId::ALL.iter().map(|_| 1).sum::<u64>();
    Ok(vec![report_concurrency(free, workers)])
}

/// Executions that deliveries and scheduled tasks need besides the workers.
const EXECUTIONS_FOR_OTHERS: u64 = 5;

fn report_concurrency(free: u64, workers: u64) -> CheckFinding {
    let left = free.saturating_sub(workers);
    CheckFinding::from_check(
        "concurrent executions",
        left >= EXECUTIONS_FOR_OTHERS,
        format!(
            "the account has {free}, the workers take up to {workers}, {left} are left for deliveries and everything else"
        ),
        "ask AWS for more (Service Quotas, AWS Lambda, Concurrent executions), or deploy with a lower WorkerConcurrency",
    )
}

async fn check_firewall(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let check = "API has a firewall";
    if session.stack.parameter("Waf") != "true" {
        let detail = "turned off: the parameter Waf is false";
        let fix = "deploy with Waf=true";
        let is_good = !session.stack.is_live();
        return Ok(vec![CheckFinding::from_check(check, is_good, detail, fix)]);
    }
    // No output has the API's ARN; partition and region are taken from the topic's.
    let topic: Vec<&str> = session.stack.output("AlarmTopicArn")?.split(':').collect();
    let (partition, region) = (topic.get(1).unwrap_or(&"aws"), topic.get(3).unwrap_or(&""));
    let api = session.stack.output("ApiId")?;
    let arn = format!("arn:{partition}:apigateway:{region}::/restapis/{api}/stages/{API_STAGE}");
    let headers = [
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", "AWSWAF_20190729.GetWebACLForResource"),
    ];
    let question = json!({ "ResourceArn": arn }).to_string();
    let answer = session.aws.post_text(WAF, "/", &headers, question).await?;
    let answer: Value =
        serde_json::from_str(&answer).context("cannot parse the response of WAF")?;
    let name = answer.pointer("/WebACL/Name").and_then(Value::as_str);
    Ok(vec![CheckFinding::from_check(
        check,
        name.is_some(),
        name.unwrap_or_default(),
        REVERT_DRIFT_FIX,
    )])
}

async fn check_stripe_addresses(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let listed = session.stack.parameter("StripeAddresses");
    if session.stack.parameter("Waf") != "true" || listed.is_empty() {
        return Ok(Vec::new());
    }
    let http = reqwest::Client::builder().timeout(DOWNLOAD_MAX).build()?;
    let published = http.get(STRIPE_ADDRESSES).send().await?;
    let published = published.error_for_status()?.text().await?;
    let missing = find_missing_addresses(listed, &published);
    Ok(vec![CheckFinding::from_check(
        "StripeAddresses has all addresses that Stripe publishes",
        missing.is_empty(),
        missing.join(", "),
        "add each as ADDRESS/32 to the parameter StripeAddresses and deploy",
    )])
}

/// Published addresses that the parameter lacks. The rate limit applies to them: Stripe delivers in bursts from few
/// addresses, and the firewall would block those.
fn find_missing_addresses<'a>(listed: &str, published: &'a str) -> Vec<&'a str> {
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
    fn indexes_that_are_missing_or_being_filled_are_found() {
        let index = |name: &str, status| {
            GlobalSecondaryIndexDescription::builder()
                .index_name(name)
                .index_status(status)
                .build()
        };
        let there = [
            index("SlotIndex", IndexStatus::Active),
            index("OpenIndex", IndexStatus::Creating),
        ];
        let wanted = ["SlotIndex", "OpenIndex", "StatusIndex"];
        assert_eq!(
            find_inactive_indexes(Some(&there), &wanted),
            ["OpenIndex", "StatusIndex"]
        );
    }

    #[test]
    fn a_new_account_has_too_few_executions() {
        let finding = report_concurrency(10, 10);
        assert!(
            !finding.is_good && finding.detail.contains("0 are left"),
            "{finding:?}"
        );
        assert!(report_concurrency(1_000, 10).is_good);
        assert!(report_concurrency(10, 4).is_good);
    }

    #[test]
    fn firing_muted_and_missing_alarms_are_findings() {
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
        let findings = report_alarms(&names, &[answer(&good)]).unwrap();
        assert_eq!(
            findings,
            [CheckFinding::from_check(
                "alarms exist and have actions",
                true,
                "3 alarms",
                ""
            )]
        );

        let some = [member("a", "true", "ALARM"), member("b", "false", "OK")].concat();
        let findings = report_alarms(&names, &[answer(&some)]).unwrap();
        let fix = "docs/runbook/a.md. Command: billhook doctor";
        assert_eq!(
            findings,
            [
                CheckFinding::from_check(
                    "alarms exist and have actions",
                    false,
                    "missing or without actions: b, c",
                    REVERT_DRIFT_FIX
                ),
                CheckFinding::problem("alarm a is not firing", "It rings.", fix),
            ]
        );
    }

    #[test]
    fn published_addresses_that_are_not_listed_are_found() {
        let listed = "192.0.2.1/32,192.0.2.2/32";
        assert_eq!(
            find_missing_addresses(listed, "192.0.2.2\n192.0.2.3\r\n\n"),
            ["192.0.2.3"]
        );
        assert!(find_missing_addresses(listed, "192.0.2.1\n192.0.2.2\n").is_empty());
    }
}
