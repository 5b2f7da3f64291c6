//! Metrics, alarms, dashboard and runbook must agree: the list in `billhook_adapters::metrics`, the alarms and the
//! dashboard of `template.yaml`, and the pages in `docs/runbook`.

use std::fs;
use std::path::PathBuf;

use billhook_adapters::metrics::{self, Metric};
use billhook_core::ids::ProviderId;
use billhook_core::intake::inbox::EVENT_RETENTION;
use billhook_core::outcome::ParkReason;

use super::*;

/// The commands of the operator's tool. An alarm's command has to be one of them.
const COMMANDS: [&str; 26] = [
    "cleanup run",
    "dlq list",
    "dlq purge",
    "dlq redrive",
    "dlq show",
    "doctor",
    "events annotate",
    "events list",
    "events park",
    "events release",
    "events show",
    "logs",
    "orders review list",
    "orders show",
    "payments unclaimed",
    "reconcile run",
    "replay",
    "secrets put",
    "secrets rollback",
    "secrets rotate",
    "secrets status",
    "sig explain",
    "sweep run",
    "tenants add",
    "tenants list",
    "trace",
];

/// The metrics of which nobody is told, each with the reason.
const NOBODY_IS_TOLD: [(&str, &str); 22] = [
    (
        "AmountMismatch",
        "it is a new reason for a review: RequiresReview counts it too",
    ),
    ("LivemodeIgnored", "test events are ignored on purpose"),
    (
        "NeedsAttention",
        "letters come back every day: `billhook statements attention` lists them",
    ),
    ("OrdersCancelled", "the cleanup does its work"),
    ("OrdersCompleted", "business as usual"),
    (
        "PaidAfterCancel",
        "it is a new reason for a review: RequiresReview counts it too",
    ),
    ("PaymentFailed", "cards are declined every day"),
    ("ProvenEntities", "how much the proof did"),
    ("RefundFull", "somebody refunded it"),
    ("SecretRefresh", "a forged delivery causes it"),
    (
        "TenantUnknown",
        "OverdueEvents counts it if no tenant comes",
    ),
    ("Unprovable", "events expire"),
    ("WebhookDuplicate", "providers deliver more than once"),
    (
        "WebhookEndToEndTime",
        "SQS measures the age of the oldest message, also if no worker runs",
    ),
    (
        "WebhookError",
        "anybody can cause it: WebhookSuccess counts what a secret of ours signed, SecretUnreadable our failed reads",
    ),
    (
        "WebhookInvalidSignature",
        "anybody can cause it: WebhookSuccess is 0 for what a secret of ours signed",
    ),
    (
        "WebhookLimited",
        "the limit does its work; EventGap tells what had to be fetched because of it",
    ),
    (
        "WebhookMuted",
        "somebody muted the tenant: `billhook doctor` lists who is muted",
    ),
    ("WebhookProcessed", "throughput"),
    (
        "WebhookProcessingTime",
        "API Gateway measures the latency, also if ingress does not run",
    ),
    (
        "WebhookSecretMissing",
        "an environment waits for its keys, or does not use the provider: `billhook doctor` says so",
    ),
    ("stripe_webhook_events_total", "traffic by type"),
];

/// Alarms that stay if the provider of their metric is not used: what they are about is not the provider's alone.
const OF_ALL_PROVIDERS: [&str; 7] = [
    "cleanup-failures",
    "endpoint-failures",
    "lob-row-trouble",
    "proof-differences",
    "requires-review",
    "stripe-index-fallback",
    "stripe-row-trouble",
];

const OWN: &str = "${AppName}/Webhooks";

pub(super) fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(path)
}

pub(super) fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn metric(name: &str) -> &'static Metric {
    let found = metrics::ALL.iter().find(|metric| metric.name == name);
    found.unwrap_or_else(|| panic!("{name} is not listed in metrics.rs"))
}

/// `!Sub text`, or a text that needs none.
fn sub(value: &Value) -> &str {
    value["!Sub"]
        .as_str()
        .or(value.as_str())
        .unwrap_or_else(|| panic!("no text: {value}"))
}

/// A metric that an alarm or the dashboard reads.
#[derive(Debug)]
struct Read {
    namespace: String,
    name: String,
    unit: Option<String>,
    dimensions: BTreeMap<String, String>,
}

fn dimensions(of: &Value) -> BTreeMap<String, String> {
    let all = of["Dimensions"].as_array().unwrap().iter();
    all.map(|dimension| {
        let value = &dimension["Value"];
        let text = match value["!Ref"].as_str() {
            Some(parameter) => format!("${{{parameter}}}"),
            None => sub(value).to_owned(),
        };
        (dimension["Name"].as_str().unwrap().to_owned(), text)
    })
    .collect()
}

/// The metric of an alarm. One, because the local AWS knows no expressions.
fn read_by(alarm: &Value) -> Read {
    Read {
        namespace: sub(&alarm["Namespace"]).to_owned(),
        name: alarm["MetricName"].as_str().unwrap().to_owned(),
        unit: alarm["Unit"].as_str().map(str::to_owned),
        dimensions: dimensions(alarm),
    }
}

/// That somebody publishes the metric under these dimensions.
fn check_published(read: &Read, template: &Value) {
    let names = |kind: &str, property: &str| -> BTreeSet<String> {
        let all = resources(template, kind);
        all.values()
            .map(|resource| sub(&resource[property]).to_owned())
            .collect()
    };
    let is = |dimension: &str, values: BTreeSet<String>| {
        assert!(
            values.contains(&read.dimensions[dimension]),
            "{read:?}, of {values:?}"
        );
    };
    let keys: Vec<&str> = read.dimensions.keys().map(String::as_str).collect();
    match (read.namespace.as_str(), keys.as_slice()) {
        (OWN, _) => {
            let metric = metric(&read.name);
            let sets = metric.dimensions.sets().iter();
            let mut sets = sets.map(|set| set.iter().copied().collect::<BTreeSet<_>>());
            assert!(
                sets.any(|set| set == keys.iter().copied().collect()),
                "{read:?}"
            );
            assert!(
                read.unit
                    .as_deref()
                    .is_none_or(|unit| unit == metric.unit.as_str()),
                "{read:?}"
            );
            assert_eq!(read.dimensions["Environment"], "${Env}");
            assert!(
                ProviderId::words().contains(&read.dimensions["Provider"].as_str()),
                "{read:?}"
            );
            if let Some(reason) = read.dimensions.get("Reason") {
                let words = [ParkReason::Tampered, ParkReason::LiveEventOnTestStage]
                    .map(ParkReason::as_str);
                assert!(words.contains(&reason.as_str()), "{read:?}");
            }
        }
        ("AWS/SQS", ["QueueName"]) => is("QueueName", names("AWS::SQS::Queue", "QueueName")),
        ("AWS/Lambda", ["FunctionName"]) => is(
            "FunctionName",
            names("AWS::Serverless::Function", "FunctionName"),
        ),
        ("AWS/WAFV2", ["LabelName", "LabelNamespace", "Region", "WebACL"]) => {
            is("WebACL", names("AWS::WAFv2::WebACL", "Name"));
            assert_eq!(read.dimensions["Region"], "${AWS::Region}");
            // A rule's own label stands in the namespace of its web ACL.
            let (namespace, label) = ("LabelNamespace", "LabelName");
            let own = read.dimensions[namespace]
                .strip_prefix("awswaf:${AWS::AccountId}:webacl:${AppName}-${Env}:")
                .unwrap();
            let own = format!("{own}:{}", read.dimensions[label]);
            let acls = resources(template, "AWS::WAFv2::WebACL");
            let rules = acls["WebAcl"]["Rules"].as_array().unwrap();
            let mut labels = rules.iter().map(|rule| &rule["RuleLabels"][0]["Name"]);
            assert!(labels.any(|label| *label == own), "no rule adds {own}");
        }
        ("AWS/ApiGateway", ["ApiName", "Stage"]) => {
            is("ApiName", names("AWS::Serverless::Api", "Name"));
            is("Stage", names("AWS::Serverless::Api", "StageName"));
        }
        other => panic!("nobody publishes {other:?}"),
    }
}

/// The alarms by their names, without `${AppName}-${Env}-`.
fn alarms(template: &Value) -> BTreeMap<String, Value> {
    let all = resources(template, "AWS::CloudWatch::Alarm").into_values();
    all.map(|alarm| {
        let name = sub(&alarm["AlarmName"])
            .strip_prefix("${AppName}-${Env}-")
            .unwrap();
        (name.to_owned(), alarm)
    })
    .collect()
}

#[test]
fn there_is_an_alarm_for_everything_that_a_person_has_to_hear_of() {
    let of_each = [
        "dlq-depth",
        "index-fallback",
        "message-age",
        "no-deliveries",
        "none-accepted",
        "overdue",
        "parked",
        "refused",
        "row-trouble",
        "secret-unreadable",
        "stuck-events",
        "tampered",
        "waf-blocked",
        "worker-errors",
        "worker-failures",
        "worker-throttles",
    ];
    let mut expected: BTreeSet<String> = of_each
        .iter()
        .flat_map(|name| ProviderId::ALL.iter().map(move |of| format!("{of}-{name}")))
        .collect();
    expected.extend(
        [
            "account-refused",
            "cleanup-errors",
            "cleanup-failures",
            "cleanup-throttles",
            "cross-tenant",
            "deadline-near",
            "dispute-opened",
            "requires-review",
            "unclaimed-money",
            "endpoint-errors",
            "endpoint-failures",
            "endpoint-throttles",
            "event-gap",
            "ingress-errors",
            "ingress-latency",
            "ingress-throttles",
            "live-event-on-test-stage",
            "proof-differences",
            "reconcile-behind",
            "schedule-dlq-depth",
        ]
        .map(str::to_owned),
    );
    let template = template();
    assert_eq!(
        alarms(&template).into_keys().collect::<BTreeSet<_>>(),
        expected
    );
}

#[test]
fn every_alarm_reads_a_metric_that_is_published_and_listed_as_read_by_it() {
    check_alarms(&template());
}

pub(super) fn check_alarms(template: &Value) {
    let mut readers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, alarm) in alarms(template) {
        let read = read_by(&alarm);
        check_published(&read, template);
        if read.namespace == OWN {
            assert!(read.unit.is_some(), "{name}: {read:?}");
            readers.entry(read.name).or_default().insert(name.clone());
        }
        for property in [
            "ComparisonOperator",
            "EvaluationPeriods",
            "Threshold",
            "TreatMissingData",
        ] {
            assert!(alarm.get(property).is_some(), "{name} has no {property}");
        }
        for property in ["AlarmActions", "OKActions"] {
            assert_eq!(alarm[property], json!([{ "!Ref": "AlarmTopic" }]), "{name}");
        }
    }
    for metric in metrics::ALL {
        let listed: BTreeSet<String> = metric.alarm_names().into_iter().collect();
        assert_eq!(
            readers.remove(metric.name).unwrap_or_default(),
            listed,
            "{}",
            metric.name
        );
    }
}

#[test]
fn every_metric_has_an_alarm_or_a_reason_why_nobody_is_told() {
    let silent = metrics::ALL.iter();
    let silent = silent.filter(|metric| metric.alarm_names().is_empty());
    let silent: BTreeSet<&str> = silent.map(|metric| metric.name).collect();
    let reasons: BTreeMap<&str, &str> = NOBODY_IS_TOLD.into();
    assert_eq!(silent, reasons.keys().copied().collect());
    assert!(reasons.values().all(|reason| reason.len() >= 10));
}

/// A stack without a key, without a delivery or with a broken metric must not page.
#[test]
fn no_alarm_fires_because_nothing_is_measured() {
    for (name, alarm) in alarms(&template()) {
        let missing = alarm["TreatMissingData"].as_str().unwrap();
        // The sweep measures it once there was a delivery; then what was last measured stands.
        let expected = match name.ends_with("no-deliveries") {
            true => "ignore",
            false => "notBreaching",
        };
        assert_eq!(missing, expected, "{name}");
    }
}

/// Whether the alarm fires, with these values in its periods, the newest last.
fn fires(alarm: &Value, values: &[Option<u32>]) -> bool {
    assert_eq!(alarm["ComparisonOperator"], "LessThanThreshold");
    assert_eq!(alarm["TreatMissingData"], "notBreaching");
    let number = |property: &str| alarm[property].as_u64().unwrap();
    let periods = usize::try_from(number("EvaluationPeriods")).unwrap();
    let recent = values.iter().rev().take(periods).flatten();
    let breaching = recent.filter(|value| u64::from(**value) < number("Threshold"));
    let needed = usize::try_from(number("DatapointsToAlarm")).unwrap();
    breaching.count() >= needed
}

/// No alarm reads what anybody can send. The metrics that forged requests do count are in
/// `crates/webhook-ingress/tests/forged.rs`: none of them has an alarm. Of AWS's own metrics these count what strangers send;
/// the reasons why an alarm may read them stand in docs/runbook/invalid-signatures.md.
#[test]
fn no_alarm_counts_what_a_stranger_is_answered() {
    let of_strangers = [
        "ingress-latency",
        "ingress-throttles",
        "lob-waf-blocked",
        "stripe-waf-blocked",
    ];
    let mut found = BTreeSet::new();
    for (name, alarm) in alarms(&template()) {
        let read = read_by(&alarm);
        let is_of_ingress = read
            .dimensions
            .values()
            .any(|of| of.ends_with("-webhook-ingress"));
        match (read.namespace.as_str(), read.name.as_str()) {
            ("AWS/ApiGateway" | "AWS/WAFV2", _) => found.insert(name),
            // Ingress answers a stranger; it does not fail.
            ("AWS/Lambda", "Errors") => true,
            ("AWS/Lambda", _) if is_of_ingress => found.insert(name),
            _ => true,
        };
    }
    assert_eq!(found, of_strangers.map(str::to_owned).into());
}

#[test]
fn a_share_of_refused_deliveries_needs_signed_ones_and_forged_ones_do_not_dilute_it() {
    let alarms = alarms(&template());
    for provider in ProviderId::ALL {
        let alarm = &alarms[&format!("{provider}-refused")];
        assert_eq!(alarm["MetricName"], "WebhookSuccess");
        assert_eq!(
            (&alarm["Statistic"], &alarm["Threshold"]),
            (&json!("Average"), &json!(0.95))
        );
        assert_eq!(alarm["ComparisonOperator"], "LessThanOrEqualToThreshold");
    }
}

#[test]
fn one_refused_delivery_pages_nobody_and_a_replaced_secret_does_within_a_day() {
    let alarms = alarms(&template());
    for provider in ProviderId::ALL {
        let alarm = &alarms[&format!("{provider}-none-accepted")];
        // However many come in one hour, they are one value.
        assert_eq!(
            (&alarm["Period"], &alarm["Statistic"]),
            (&json!(3600), &json!("Maximum"))
        );
        let quiet = [None; 23];
        assert!(!fires(alarm, &[&quiet[..], &[Some(0)]].concat()));
        // One delivery that the sender repeats five times, in other hours.
        assert!(!fires(
            alarm,
            &[[Some(0); 5].as_slice(), &quiet[..19]].concat()
        ));
        let refused_every_third_hour = [Some(0), None, None].repeat(8);
        assert!(fires(alarm, &refused_every_third_hour));
        // Some are accepted, and hours without a delivery lie in between.
        assert!(!fires(alarm, &[Some(1), None, Some(0)].repeat(2)));
    }
}

#[test]
fn the_hours_of_quiet_are_the_parameters() {
    let alarms = alarms(&template());
    for provider in ProviderId::ALL {
        let alarm = &alarms[&format!("{provider}-no-deliveries")];
        let hours = json!({ "!Ref": format!("{}QuietHours", provider.title()) });
        assert_eq!(alarm["Threshold"], hours);
        assert_eq!(alarm["ComparisonOperator"], "GreaterThanOrEqualToThreshold");
    }
}

/// Without live data a team may have only the alarms of events that are not processed and of functions that fail.
#[test]
fn few_alarms_are_those_of_what_does_not_work() {
    let template = template();
    let conditions = &template["Conditions"];
    let every = json!({ "!Equals": [{ "!Ref": "Alarms" }, "all"] });
    assert_eq!(conditions["EveryAlarm"], every);
    let mut few = BTreeSet::new();
    for (name, resource) in template["Resources"].as_object().unwrap() {
        if resource["Type"] != "AWS::CloudWatch::Alarm" {
            continue;
        }
        let condition = resource["Condition"].as_str().unwrap_or("");
        let also = conditions[condition]["!And"].as_array();
        let is_every = condition == "EveryAlarm"
            || also.is_some_and(|also| {
                let of_every = ["EveryAlarm", "EveryFirewallAlarm"];
                let of_every = of_every.map(|every| json!({ "Condition": every }));
                of_every.iter().any(|every| also.contains(every))
            });
        // Their own parameters turn them on and off.
        if !is_every && !name.ends_with("NoDeliveriesAlarm") {
            few.insert(name.as_str());
        }
    }
    let expected = [
        "CleanupErrorsAlarm",
        "EndpointFailuresAlarm",
        "IngressErrorsAlarm",
        "LobDlqDepthAlarm",
        "LobParkedAlarm",
        "LobRefusedAlarm",
        "LobSecretUnreadableAlarm",
        "LobStuckEventsAlarm",
        "LobWorkerErrorsAlarm",
        "ProofDifferencesAlarm",
        "ScheduleDlqDepthAlarm",
        "StripeDlqDepthAlarm",
        "StripeParkedAlarm",
        "StripeRefusedAlarm",
        "StripeSecretUnreadableAlarm",
        "StripeStuckEventsAlarm",
        "StripeWorkerErrorsAlarm",
    ];
    assert_eq!(few, expected.into());
    // The subscriber of AlarmEmail is told of each alarm and of its end, and not that a new alarm is quiet.
    let subscription = &resources(&template, "AWS::SNS::Subscription")["AlarmEmailSubscription"];
    assert_eq!(subscription["FilterPolicyScope"], "MessageBody");
    assert_eq!(
        subscription["FilterPolicy"],
        json!({ "$or": [{ "NewStateValue": ["ALARM"] }, { "OldStateValue": ["ALARM"] }] })
    );
}

#[test]
fn what_is_about_a_provider_that_is_not_used_has_no_alarm() {
    let template = template();
    let conditions = &template["Conditions"];
    for (name, resource) in template["Resources"].as_object().unwrap() {
        if resource["Type"] != "AWS::CloudWatch::Alarm" {
            continue;
        }
        let alarm = sub(&resource["Properties"]["AlarmName"]);
        let alarm = alarm.strip_prefix("${AppName}-${Env}-").unwrap();
        let read = read_by(&resource["Properties"]);
        let about = ProviderId::ALL.iter().find(|provider| {
            alarm.starts_with(&format!("{provider}-"))
                || read.dimensions.get("Provider").map(String::as_str) == Some(provider.as_str())
        });
        let Some(about) = about.filter(|_| !alarm.ends_with("waf-blocked")) else {
            continue;
        };
        let is_of_all = OF_ALL_PROVIDERS.contains(&alarm);
        let used = format!("Use{}", about.title());
        let condition = match resource["Condition"].as_str() {
            None | Some("EveryAlarm") => None,
            Some(condition) if condition == used => Some(condition),
            // A parameter turns it off as well.
            Some(condition) => {
                let all = conditions[condition]["!And"].as_array().unwrap();
                let used = json!({ "Condition": used });
                all.contains(&used).then_some(condition)
            }
        };
        assert_eq!(condition.is_none(), is_of_all, "{name}");
    }
    let stripe = json!({ "!Not": [{ "!Equals": [{ "!Ref": "StripeEndpoints" }, "none"] }] });
    assert_eq!(conditions["UseStripe"], stripe);
    let lob = json!({ "!Equals": [{ "!Ref": "Lob" }, "on"] });
    assert_eq!(conditions["UseLob"], lob);
    for (condition, value) in [
        ("ConnectEndpoint", "connect"),
        ("PlatformEndpoint", "platform"),
    ] {
        let is = |value: &str| json!({ "!Equals": [{ "!Ref": "StripeEndpoints" }, value] });
        assert_eq!(
            conditions[condition],
            json!({ "!Or": [is("both"), is(value)] })
        );
    }
}

#[test]
fn every_alarm_says_what_it_means_where_to_read_on_and_what_to_type() {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, alarm) in alarms(&template()) {
        let description = alarm["AlarmDescription"].as_str().unwrap();
        let told = description.split_once(" Runbook: docs/runbook/");
        let told = told
            .and_then(|(meaning, rest)| Some((meaning, rest.split_once(". Command: billhook ")?)));
        let (meaning, (page, command)) = told.unwrap_or_else(|| panic!("{name}: {description}"));
        assert!(
            meaning.ends_with('.') && !meaning.contains(". ") && description.len() <= 1024,
            "{name}"
        );
        assert!(is_command(command), "{name}: {command}");
        named.entry(page.to_owned()).or_default().insert(name);
    }
    // Pages without an alarm are about something else.
    for (page, text) in pages() {
        let told = text
            .lines()
            .find(|line| line.starts_with("Alarm: ") || line.starts_with("Alarms: "));
        let told = told.into_iter().flat_map(|line| line.split('`'));
        let told: BTreeSet<String> = told
            .filter_map(|word| word.strip_prefix("${AppName}-${Env}-"))
            .map(str::to_owned)
            .collect();
        assert_eq!(named.remove(&page).unwrap_or_default(), told, "{page}");
        let mut headings = text.lines().filter(|line| line.starts_with("## "));
        if !told.is_empty() {
            let expected = ["## What it means", "## Look at", "## Do", "## Undo"];
            assert!(headings.by_ref().eq(expected), "{page}");
        }
    }
    assert!(named.is_empty(), "pages that are not there: {named:?}");
}

/// The runbook, by file name.
fn pages() -> Vec<(String, String)> {
    let entries = fs::read_dir(repository("docs/runbook")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .map(|name| {
            let text = read(&format!("docs/runbook/{name}"));
            (name, text)
        })
        .collect()
}

fn is_command(text: &str) -> bool {
    COMMANDS.iter().any(|known| {
        let rest = text.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    })
}

#[test]
fn every_metric_is_recorded_somewhere() {
    let mut sources = Vec::new();
    let mut folders = vec![repository("crates")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_source = path.extension().is_some_and(|kind| kind == "rs")
                && path.iter().any(|part| part == "src");
            if path.is_dir() {
                folders.push(path);
            } else if is_source {
                let text = fs::read_to_string(path).unwrap();
                sources.push(text.split("#[cfg(test)]").next().unwrap().to_owned());
            }
        }
    }
    let silent = metrics::ALL.iter().filter(|metric| {
        let mut constant = String::new();
        for character in metric.name.chars() {
            if character.is_uppercase() && !constant.is_empty() {
                constant.push('_');
            }
            constant.push(character.to_ascii_uppercase());
        }
        let recorded =
            [".count(", ".add(", ".record(", ",\n"].map(|call| format!("{constant}{call}"));
        let records = |source: &&String| recorded.iter().any(|call| source.contains(call));
        !sources.iter().any(|source| records(&source))
    });
    let silent: BTreeSet<&str> = silent.map(|metric| metric.name).collect();
    assert_eq!(silent, BTreeSet::new());
}

#[test]
fn the_names_of_the_contract_are_there() {
    let names: BTreeSet<&str> = metrics::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), metrics::ALL.len());
    for name in [
        "WebhookProcessed",
        "WebhookSuccess",
        "WebhookError",
        "WebhookInvalidSignature",
        "WebhookDuplicate",
        "WebhookParked",
        "WebhookProcessingTime",
        "WebhookEndToEndTime",
        "stripe_webhook_events_total",
        "RequiresReview",
        "RefundFull",
        "PaymentFailed",
        "OrdersCancelled",
        "EventGap",
        "ReconciledThrough",
        "StuckEvents",
        "CrossTenant",
        "TenantUnknown",
        "LivemodeIgnored",
        "AmountMismatch",
        "PaidAfterCancel",
        "NeedsAttention",
        "SecretRefresh",
    ] {
        assert!(names.contains(name), "{name}");
    }
}

#[test]
fn the_dashboard_is_json_and_shows_every_metric() {
    let template = template();
    let dashboards = resources(&template, "AWS::CloudWatch::Dashboard");
    let body = sub(&dashboards["Dashboard"]["DashboardBody"]);
    let rendered = body
        .replace("${AppName}", "billhook")
        .replace("${Env}", "prod")
        .replace("${AWS::Region}", "eu-west-1");
    assert!(
        !rendered.contains("${"),
        "a value that the template does not have"
    );
    serde_json::from_str::<Value>(&rendered).unwrap();
    // Checked as it stands, so that the names are those of the template.
    let body: Value = serde_json::from_str(body).unwrap();
    let mut shown = BTreeSet::new();
    let mut places = BTreeSet::new();
    for widget in body["widgets"].as_array().unwrap() {
        let properties = &widget["properties"];
        let title = properties["title"].as_str().unwrap();
        let side = |name: &str| widget[name].as_u64().unwrap();
        assert!(side("x") + side("width") <= 24, "{title} does not fit");
        assert!(
            places.insert((side("x"), side("y"))),
            "{title} covers another"
        );
        assert_eq!(properties["region"], "${AWS::Region}");
        for row in properties["metrics"].as_array().unwrap() {
            let row = row.as_array().unwrap();
            if let Some(expression) = row[0]["expression"].as_str() {
                let name = expression.split("MetricName=\"").nth(1).unwrap();
                let name = name.split('"').next().unwrap();
                let sets = metric(name).dimensions.sets();
                let searched = sets
                    .iter()
                    .any(|set| expression.contains(&format!("{{\"{OWN}\",{}}}", set.join(","))));
                assert!(searched, "{title}: {expression}");
                shown.insert(name.to_owned());
                continue;
            }
            let texts: Vec<&str> = row.iter().filter_map(Value::as_str).collect();
            let pairs = texts[2..]
                .chunks(2)
                .map(|pair| (pair[0].to_owned(), pair[1].to_owned()));
            let read = Read {
                namespace: texts[0].to_owned(),
                name: texts[1].to_owned(),
                unit: None,
                dimensions: pairs.collect(),
            };
            check_published(&read, &template);
            shown.insert(read.name);
        }
    }
    for metric in metrics::ALL {
        assert!(shown.contains(metric.name), "{} is not shown", metric.name);
    }
}

#[test]
fn what_is_written_and_traced_belongs_to_the_stack() {
    check_logs(&template());
}

pub(super) fn check_logs(template: &Value) {
    assert_eq!(template["Globals"]["Function"]["Tracing"], "Active");
    let api = &resources(template, "AWS::Serverless::Api")["Api"];
    assert_eq!(api["TracingEnabled"], true);
    let groups = resources(template, "AWS::Logs::LogGroup");
    let roles = resources(template, "AWS::IAM::Role");
    for (name, group) in &groups {
        let days = match name.as_str() {
            // Who changed an event is known as long as the event is.
            "AuditLogGroup" => json!(EVENT_RETENTION.as_secs() / 86_400),
            _ => json!({ "!Ref": "LogRetentionDays" }),
        };
        assert_eq!(group["RetentionInDays"], days, "{name}");
    }
    for (name, function) in resources(template, "AWS::Serverless::Function") {
        let group = function["LoggingConfig"]["LogGroup"]["!Ref"]
            .as_str()
            .unwrap();
        let of_function = format!("/aws/lambda/{}", sub(&function["FunctionName"]));
        assert_eq!(sub(&groups[group]["LogGroupName"]), of_function, "{name}");
        let role = function["Role"]["!GetAtt"]
            .as_str()
            .unwrap()
            .strip_suffix(".Arn")
            .unwrap();
        assert!(
            roles[role].to_string().contains("xray:PutTraceSegments"),
            "{name}"
        );
    }
    // Those of the functions, the gateway and the firewall, and the audit log.
    assert_eq!(groups.len(), 8);
}
