//! Tests of `template.yaml`: numbers that code and template share must agree, every queue has a dead-letter queue and
//! an alarm, and no policy allows more than its function needs.
//!
//! Each check takes the template as an argument, so that `mutations` can prove that it detects a broken one.
#![cfg(test)]

mod adoption;
mod alarms;
mod mutations;
mod permissions;
mod providers;
mod sam_local;
mod security;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use billhook_adapters::aws::OPERATION_MAX;
use billhook_adapters::config::{
    CleanupConfig, ConfigError, EnvLookup, IngressConfig, WebhookSecretConfig, WorkerConfig,
};
use billhook_core::endpoint::policy::{CONNECT_ENDPOINT, PLATFORM_ENDPOINT, SEAL_KEYS};
use billhook_core::entity::ENTITY_SCHEMAS;
use billhook_core::entity::columns::EntitySchema;
use billhook_core::entity::rules::VersionColumn;
use billhook_core::ids::{PerProvider, ProviderId};
use billhook_core::provider::stripe::event_types::HANDLED_TYPES;
use billhook_core::provider::stripe::types::API_VERSION;
use billhook_core::tasks::definitions::SCHEDULED_TASKS;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{RECEIVES_MAX, TIME_TO_FINISH};
use serde_json::{Value, json};
use serde_yaml_ng::Value as Yaml;

/// The template as JSON; `!Sub x` becomes `{"!Sub": x}`.
fn template() -> Value {
    fn plain(yaml: Yaml) -> Value {
        match yaml {
            Yaml::Null => Value::Null,
            Yaml::Bool(truth) => json!(truth),
            Yaml::Number(number) => match number.as_i64() {
                Some(whole) => json!(whole),
                None => json!(number.as_f64().unwrap()),
            },
            Yaml::String(text) => json!(text),
            Yaml::Sequence(items) => items.into_iter().map(plain).collect(),
            Yaml::Mapping(members) => members
                .into_iter()
                .map(|(key, value)| {
                    (
                        plain(key)
                            .as_str()
                            .map_or_else(|| "?".to_owned(), str::to_owned),
                        plain(value),
                    )
                })
                .collect(),
            Yaml::Tagged(tagged) => json!({ tagged.tag.to_string(): plain(tagged.value) }),
        }
    }
    plain(serde_yaml_ng::from_str(include_str!("../../../template.yaml")).unwrap())
}

fn resources(template: &Value, kind: &str) -> BTreeMap<String, Value> {
    let all = template["Resources"].as_object().unwrap();
    let wanted = all.iter().filter(|(_, resource)| resource["Type"] == kind);
    wanted
        .map(|(name, resource)| (name.clone(), resource["Properties"].clone()))
        .collect()
}

fn seconds(whole: i64) -> Duration {
    Duration::from_secs(whole.try_into().unwrap())
}

fn texts(list: &Value) -> BTreeSet<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect()
}

#[test]
fn endpoints_ask_for_the_types_and_the_version_that_the_code_knows() {
    check_endpoints(&template());
}

fn check_endpoints(template: &Value) {
    let endpoints = resources(template, "Custom::StripeWebhookEndpoint");
    let connect: BTreeMap<&str, &Value> = endpoints
        .iter()
        .map(|(name, endpoint)| (name.as_str(), &endpoint["Connect"]))
        .collect();
    let expected = [
        ("StripePlatformWebhookEndpoint", &json!("false")),
        ("StripeWebhookEndpoint", &json!("true")),
    ];
    assert_eq!(connect, BTreeMap::from(expected));
    for endpoint in endpoints.values() {
        assert_eq!(
            texts(&endpoint["EnabledEvents"]),
            HANDLED_TYPES.iter().copied().collect()
        );
    }
    // The function refuses what its variables do not say.
    assert_eq!(
        [PLATFORM_ENDPOINT, CONNECT_ENDPOINT],
        expected.map(|it| it.0)
    );
    let function = &resources(template, "AWS::Serverless::Function")["WebhookSecretFunction"];
    let variables = &function["Environment"]["Variables"];
    assert_eq!(
        variables["STACK_ID"],
        json!({ "!Ref": "AWS::StackId" }),
        "whose requests it obeys"
    );
    for (endpoint, secret) in [
        (PLATFORM_ENDPOINT, "STRIPE_PLATFORM_WEBHOOK_SECRET_ARN"),
        (CONNECT_ENDPOINT, "STRIPE_WEBHOOK_SECRET_ARN"),
    ] {
        for (property, variable) in [
            ("Url", "STRIPE_WEBHOOK_URL"),
            ("ApiVersion", "STRIPE_API_VERSION"),
            ("SecretArn", secret),
        ] {
            let asked = &endpoints[endpoint][property];
            assert_eq!(asked, &variables[variable], "{endpoint} {property}");
        }
    }
    assert_eq!(template["Resources"][SEAL_KEYS]["Type"], "Custom::SealKeys");
    // Stripe delivers as soon as it knows the URL, and the request for it must be repeatable.
    for name in expected.map(|(name, _)| name) {
        let before = [
            "Apiv1Stage",
            "WebhookIngressFunctionStripePermissionv1",
            "WebhookSecretFunctionEventInvokeConfig",
            "SealKeys",
        ];
        let resource = &template["Resources"][name];
        assert_eq!(resource["DependsOn"], json!(before), "{name}");
        let after = json!([
            { "!If": ["OwnDomain", { "!Ref": "ApiDomainMapping" }, ""] },
            { "!If": ["UseWaf", { "!Ref": "WebAclAssociation" }, ""] },
        ]);
        assert_eq!(resource["Properties"]["After"], after, "{name}");
    }
    assert_eq!(
        template["Parameters"]["StripeApiVersion"]["Default"],
        API_VERSION
    );
}

#[test]
fn no_try_of_an_endpoints_request_outlasts_what_cloudformation_waits() {
    let template = template();
    let function = &resources(&template, "AWS::Serverless::Function")["WebhookSecretFunction"];
    let repeated = &function["EventInvokeConfig"];
    assert_eq!(repeated["MaximumRetryAttempts"], 1);
    let begins_s = repeated["MaximumEventAgeInSeconds"].as_i64().unwrap();
    let runs_s = function["Timeout"].as_i64().unwrap();
    for endpoint in resources(&template, "Custom::StripeWebhookEndpoint").values() {
        assert!(begins_s + runs_s <= endpoint["ServiceTimeout"].as_i64().unwrap());
    }
    // Lambda repeats after a minute: the first try must have room to die late.
    assert!(begins_s >= 60 + runs_s);
}

/// Concurrent executions of a new AWS account.
/// Source: `Lambda quotas`, read 2026-11: new accounts have reduced quotas, which AWS raises with their use.
const NEW_ACCOUNT_CONCURRENCY: u64 = 10;

#[test]
fn every_queue_has_its_dead_letter_queue_its_alarm_and_the_numbers_of_the_code() {
    check_queues(&template());
}

fn check_queues(template: &Value) {
    let queues = resources(template, "AWS::SQS::Queue");
    let alarms = resources(template, "AWS::CloudWatch::Alarm");
    // Two for each provider, and the one of the schedules.
    assert_eq!(queues.len(), 2 * ProviderId::ALL.len() + 1);
    for (name, queue) in &queues {
        // Neither EventBridge nor Lambda takes a FIFO queue for what fails.
        let is_fifo = queue.get("FifoQueue") == Some(&json!(true));
        assert_eq!(is_fifo, name != "ScheduleDlq", "{name}");
        assert_eq!(queue["SqsManagedSseEnabled"], true, "{name}");
        assert_eq!(queue["MessageRetentionPeriod"], 14 * 24 * 60 * 60, "{name}");
        assert_eq!(queue["ReceiveMessageWaitTimeSeconds"], 20, "{name}");
        if name.ends_with("Dlq") {
            // By name, since the queue names this one; what a schedule gave up goes back to no queue.
            let source = queue["QueueName"]["!Sub"].as_str().unwrap();
            let source = source.replace("-dlq.fifo", ".fifo");
            let arn = format!(
                "arn:${{AWS::Partition}}:sqs:${{AWS::Region}}:${{AWS::AccountId}}:{source}"
            );
            let expected = if is_fifo {
                json!({ "redrivePermission": "byQueue", "sourceQueueArns": [{ "!Sub": arn }] })
            } else {
                json!({ "redrivePermission": "denyAll" })
            };
            assert_eq!(queue["RedriveAllowPolicy"], expected, "{name}");
            let watching = alarms
                .values()
                .filter(|alarm| alarm["Dimensions"][0]["Value"] == queue["QueueName"]);
            let watching: Vec<_> = watching.collect();
            assert_eq!(watching.len(), 1, "{name}");
            assert_eq!(
                (
                    &watching[0]["Threshold"],
                    &watching[0]["ComparisonOperator"]
                ),
                (&json!(1), &json!("GreaterThanOrEqualToThreshold"))
            );
            continue;
        }
        let dead_letters = name.replace("Queue", "Dlq");
        assert!(queues.contains_key(&dead_letters), "{name}");
        assert_eq!(
            queue["RedrivePolicy"],
            json!({
                "deadLetterTargetArn": { "!GetAtt": format!("{dead_letters}.Arn") },
                "maxReceiveCount": { "!Ref": "MaxReceives" },
            }),
            "{name}"
        );
        assert_eq!(queue["VisibilityTimeout"], 60, "{name}");
        assert_eq!(queue["DeduplicationScope"], "messageGroup", "{name}");
        assert_eq!(queue["FifoThroughputLimit"], "perMessageGroupId", "{name}");
    }
    let parameter = |name: &str, member: &str| {
        let value = &template["Parameters"][name][member];
        value.as_u64().unwrap_or_else(|| panic!("{name} {member}"))
    };
    assert_eq!(parameter("MaxReceives", "Default"), u64::from(RECEIVES_MAX));
    // AWS takes no fewer than two, and a poller that Lambda throttles uses up receives: a new account has 10 executions at
    // once, for the workers and for everything else.
    assert_eq!(parameter("WorkerConcurrency", "MinValue"), 2);
    let workers = ProviderId::ALL
        .iter()
        .map(|_| parameter("WorkerConcurrency", "Default"));
    assert!(workers.sum::<u64>() <= NEW_ACCOUNT_CONCURRENCY);
    let functions = resources(template, "AWS::Serverless::Function");
    for provider in ProviderId::ALL {
        let worker = format!("{}WorkerFunction", provider.title());
        let worker = worker.as_str();
        let source = &functions[worker]["Events"]["Queue"]["Properties"];
        assert_eq!(source["BatchSize"], 10, "{worker}");
        assert_eq!(
            source["FunctionResponseTypes"],
            json!(["ReportBatchItemFailures"]),
            "{worker}"
        );
        assert_eq!(
            source["ScalingConfig"]["MaximumConcurrency"],
            json!({ "!Ref": "WorkerConcurrency" }),
            "{worker}"
        );
        let variables = &functions[worker]["Environment"]["Variables"];
        assert_eq!(variables["MAX_RECEIVES"], json!({ "!Ref": "MaxReceives" }));
        // AWS refuses a visibility below six times the function's time-out to be safe.
        let timeout_s = functions[worker]["Timeout"].as_i64().unwrap();
        assert!(timeout_s * 6 <= 60, "{worker}");
        let call_max = OPERATION_MAX + TIME_TO_FINISH;
        assert!(
            seconds(timeout_s) > call_max,
            "{worker}: a call is told, not cut off"
        );
        assert!(
            functions[worker]
                .get("ReservedConcurrentExecutions")
                .is_none(),
            "it would burn receives"
        );
    }
    let ingress_s = functions["WebhookIngressFunction"]["Timeout"].as_i64();
    let ingress = seconds(ingress_s.unwrap());
    assert!(ingress < seconds(29), "the gateway waits 29 s");
    assert!(
        ingress > OPERATION_MAX * 4,
        "a secret, its version before, put and send, each told"
    );
}

#[test]
fn lambda_lets_our_lines_pass_and_tells_only_of_failures() {
    let logging = &template()["Globals"]["Function"]["LoggingConfig"];
    let levels = ["LogFormat", "ApplicationLogLevel", "SystemLogLevel"].map(|name| &logging[name]);
    assert_eq!(levels, ["JSON", "TRACE", "WARN"]);
}

#[test]
fn every_scheduled_task_has_one_rule_with_its_input_retries_and_dead_letter_queue() {
    check_schedules(&template());
}

fn check_schedules(template: &Value) {
    let function =
        &resources(template, "AWS::Serverless::Function")["CleanupFailedPaymentsFunction"];
    let dlq = json!({ "!GetAtt": "ScheduleDlq.Arn" });
    let mut rules: Vec<(&str, Value)> = function["Events"]
        .as_object()
        .unwrap()
        .values()
        .map(|rule| {
            assert_eq!(rule["Type"], "Schedule");
            let rule = &rule["Properties"];
            assert_eq!(rule["DeadLetterConfig"]["Arn"], dlq);
            assert!(rule["RetryPolicy"]["MaximumRetryAttempts"].as_i64() >= Some(1));
            (rule["Schedule"].as_str().unwrap(), rule["Input"].clone())
        })
        .collect();
    let tasks = SCHEDULED_TASKS.iter();
    let mut expected: Vec<(&str, Value)> = tasks
        .map(|task| {
            let input = json!({ "task": task.name });
            (task.schedule, input.to_string().into())
        })
        .collect();
    rules.sort_by_key(|(_, input)| input.to_string());
    expected.sort_by_key(|(_, input)| input.to_string());
    assert_eq!(rules, expected);
    assert_eq!(function["DeadLetterQueue"]["TargetArn"], dlq);
    assert_eq!(
        function["EventInvokeConfig"]["MaximumRetryAttempts"], 1,
        "the next run makes up for it"
    );
    // The one policy of a resource that there is.
    let policies = resources(template, "AWS::SQS::QueuePolicy");
    let rules = "arn:${AWS::Partition}:events:${AWS::Region}:${AWS::AccountId}:rule/*";
    let expected = json!([{
        "Effect": "Allow",
        "Principal": { "Service": "events.amazonaws.com" },
        "Action": "sqs:SendMessage",
        "Resource": dlq,
        "Condition": { "ArnLike": { "aws:SourceArn": { "!Sub": rules } } },
    }]);
    let found: Vec<_> = policies.iter().collect();
    let [(name, policy)] = found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(name, "ScheduleDlqPolicy");
    assert_eq!(policy["PolicyDocument"]["Statement"], expected);
}

/// Starts a function's configuration on what the template sets, and looks which variables it asked for.
fn check_variables_of<C>(
    template: &Value,
    function: &str,
    read: impl FnOnce(&EnvLookup<'_>) -> Result<C, ConfigError>,
    optional: &[&str],
) {
    let of = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    let mut set = of(&template["Globals"]["Function"]["Environment"]["Variables"]);
    set.extend(of(
        &resources(template, "AWS::Serverless::Function")[function]["Environment"]["Variables"]
    ));
    // `AwsClients` reads it, and takes an empty value as not set.
    let endpoint = &template["Globals"]["Function"]["Environment"]["Variables"]["AWS_ENDPOINT_URL"];
    assert_eq!(endpoint, "", "a deployed function calls AWS");
    set.remove("AWS_ENDPOINT_URL");
    set.remove("AWS_USE_FIPS_ENDPOINT"); // read with the credentials
    let asked = RefCell::new(BTreeSet::new());
    let read = read(&EnvLookup(&|name| {
        asked.borrow_mut().insert(name.to_owned());
        let value = match name {
            "LIVE_MODE" | "ENABLE_BILLING_STREAM" => "false",
            "LOG_LEVEL" => "info",
            "STRIPE_API_BASE" => "https://api.stripe.com",
            "CLEANUP_FAILED_PAYMENT_MINUTES" => "60",
            "PROOF_SAMPLE_PERCENT" => "1",
            "ACCOUNT_RATE_LIMIT" => "0",
            "MAX_RECEIVES" => "3",
            "TYPE_METRICS" => "true",
            "ADOPTED_BEFORE" => "2026-11-30T00:00:00Z",
            "VERSION_COLUMN" => "version",
            "ACCEPT_CHECKOUT_ADJUSTMENTS" => "true",
            "ORDER_ID_PATTERN" => "ord_.+",
            "SECRETS_TTL_SECONDS" | "SIGNATURE_TOLERANCE_SECONDS" => "300",
            url if url.ends_with("_QUEUE_URL") => "https://sqs.example.com/1/q.fifo",
            arn if arn.ends_with("_ARN") => {
                "arn:aws:secretsmanager:eu-west-1:111122223333:secret:x"
            }
            _ => "x",
        };
        set.contains(name).then(|| value.to_owned())
    }));
    if let Err(refused) = read {
        panic!("{function} would refuse its start: {refused}");
    }
    let asked: BTreeSet<String> = asked
        .into_inner()
        .into_iter()
        .filter(|name| !optional.contains(&name.as_str()) && name != "AWS_ENDPOINT_URL")
        .collect();
    assert_eq!(
        set, asked,
        "{function}: set in the template, and read by the code"
    );
}

#[test]
fn each_function_gets_the_variables_it_reads_and_no_others() {
    check_variables(&template());
}

fn check_variables(template: &Value) {
    let local = PerProvider::new(|provider| provider.variable("WEBHOOK_SECRET"));
    let local = local.iter().map(|(_, name)| name.as_str());
    let local: Vec<&str> = local.chain(["SEAL_PRIVATE_KEY"]).collect();
    let read = IngressConfig::from_env;
    check_variables_of(template, "WebhookIngressFunction", read, &local);
    for provider in ProviderId::ALL {
        let read = |lookup: &EnvLookup<'_>| WorkerConfig::from_env(*provider, lookup);
        let function = format!("{}WorkerFunction", provider.title());
        let local = ["SEAL_PUBLIC_KEYS", "STATE_SEAL_KEYS"];
        check_variables_of(template, &function, read, &local);
    }
    let (read, local) = (
        CleanupConfig::from_env,
        [
            "STRIPE_SECRET_KEY",
            "SEAL_PRIVATE_KEY",
            "SEAL_PUBLIC_KEYS",
            "STATE_SEAL_KEYS",
        ],
    );
    check_variables_of(template, "CleanupFailedPaymentsFunction", read, &local);
    let read = WebhookSecretConfig::from_env;
    check_variables_of(template, "WebhookSecretFunction", read, &[]);
}

#[test]
fn tables_have_the_keys_and_indexes_of_the_contract() {
    check_tables(&template());
}

fn check_tables(template: &Value) {
    let tables = resources(template, "AWS::DynamoDB::Table");
    let events = "event_id | OpenIndex(open,received_at) SlotIndex(slot,received_at)";
    let expected = BTreeMap::from([
        ("StripeEventsTable", events),
        ("LobEventsTable", events),
        (
            "OrdersTable",
            "id | PaymentIntentIndex(stripePaymentIntentId) SellerIndex(sellerId) StatusIndex(status) UserIndex(userId)",
        ),
        (
            "StatementsTable",
            "statement_id | LobLetterIndex(lob_letter_id) PaymentIntentIndex(stripe_payment_intent_id) TenantIndex(tenant_id)",
        ),
        (
            "TenantsTable",
            "tenant_id | stripe_connected_account_id(stripe_connected_account_id)",
        ),
        ("EntitiesTable", "entity | OpenIndex(open,open_at)"),
        ("JobsTable", "job_id | "),
    ]);
    // The kinds that are not named above have no names to keep: their own schema says what their tables need.
    let kinds: BTreeMap<String, &EntitySchema> = ENTITY_SCHEMAS
        .iter()
        .map(|schema| (format!("{}Table", schema.table), schema))
        .collect();
    let names = expected.keys().map(|&name| name.to_owned());
    assert_eq!(
        tables.keys().cloned().collect::<BTreeSet<_>>(),
        names.chain(kinds.keys().cloned()).collect()
    );
    let keys = |schema: &Value| {
        let names = schema
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["AttributeName"].as_str().unwrap());
        names.collect::<Vec<_>>().join(",")
    };
    for (name, table) in &tables {
        let mut indexes: Vec<String> = table
            .get("GlobalSecondaryIndexes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|index| {
                format!(
                    "{}({})",
                    index["IndexName"].as_str().unwrap(),
                    keys(&index["KeySchema"])
                )
            })
            .collect();
        indexes.sort();
        let found = format!("{} | {}", keys(&table["KeySchema"]), indexes.join(" "));
        match expected.get(name.as_str()) {
            Some(expected) => assert_eq!(found, *expected, "{name}"),
            None => assert_eq!(keys(&table["KeySchema"]), kinds[name].key, "{name}"),
        }
        for queried in kinds.get(name).into_iter().flat_map(|kind| kind.indexes) {
            let queried = format!("{}({})", queried.name, queried.key);
            assert!(found.contains(&queried), "{name} has no {queried}");
        }
        assert_eq!(table["BillingMode"], "PAY_PER_REQUEST", "{name}");
        assert_eq!(table["SSESpecification"]["SSEEnabled"], true, "{name}");
        assert_eq!(
            table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], true,
            "{name}"
        );
        assert_eq!(
            table["DeletionProtectionEnabled"],
            json!({ "!If": ["ProtectData", true, false] }),
            "{name}"
        );
        // What a first deploy made before it failed would stand in the way of the second.
        let resource = &template["Resources"][name];
        assert_eq!(resource["DeletionPolicy"], "RetainExceptOnCreate", "{name}");
        assert_eq!(resource["UpdateReplacePolicy"], "Retain", "{name}");
    }
    for table in ["StripeEventsTable", "LobEventsTable", "JobsTable"] {
        assert_eq!(
            tables[table]["TimeToLiveSpecification"],
            json!({ "AttributeName": "expires_at", "Enabled": true }),
            "{table}"
        );
    }
}

#[test]
fn outputs_are_those_that_tools_rely_on() {
    check_outputs(&template());
}

fn check_outputs(template: &Value) {
    let outputs = template["Outputs"].as_object().unwrap();
    for name in [
        "WebhookUrlStripe",
        "WebhookUrlLob",
        "HealthUrl",
        "StripeEventsTable",
        "LobEventsTable",
        "OrdersTable",
        "StatementsTable",
        "TenantsTable",
        "EntitiesTable",
        "JobsTable",
        "StripeEventsQueueUrl",
        "LobEventsQueueUrl",
        "StripeEventsDlqUrl",
        "LobEventsDlqUrl",
        "AppSecretArn",
        "InboundSecretArn",
        "SealPublicSecretArn",
        "StateSealSecretArn",
        "StripeWebhookSecretArn",
        "StripePlatformWebhookSecretArn",
        "WebhookIngressFunction",
        "StripeWorkerFunction",
        "LobWorkerFunction",
        "CleanupFailedPaymentsFunction",
        "WebhookSecretFunction",
    ] {
        assert!(outputs.contains_key(name), "{name}");
    }
    // `billhook logs` reads the functions that the outputs name.
    for function in resources(template, "AWS::Serverless::Function").keys() {
        assert!(outputs.contains_key(function), "{function}");
    }
    let text = outputs.values().map(Value::to_string).collect::<String>();
    assert!(
        !text.contains("resolve:secretsmanager"),
        "outputs hold ARNs, never secrets"
    );
}

/// There is one of these in an account and region, whatever stacks there are: a second stack must be able to leave it alone,
/// and a deleted one must not take it along.
#[test]
fn what_belongs_to_the_account_is_made_once_and_kept() {
    check_account(&template());
}

fn check_account(template: &Value) {
    const ACCOUNT_WIDE: [&str; 4] = [
        "AWS::ApiGateway::Account",
        "AWS::Logs::AccountPolicy",
        "AWS::Logs::ResourcePolicy",
        "AWS::XRay::ResourcePolicy",
    ];
    let mut found = Vec::new();
    for (name, resource) in template["Resources"].as_object().unwrap() {
        if ACCOUNT_WIDE.contains(&resource["Type"].as_str().unwrap()) {
            found.push(name.as_str());
            assert_eq!(resource["Condition"], "CreateLogRole", "{name}");
            assert_eq!(resource["DeletionPolicy"], "RetainExceptOnCreate", "{name}");
        }
    }
    assert_eq!(found, ["ApiGatewayAccount"]);
    let condition = json!({ "!Equals": [{ "!Ref": "ApiGatewayLogRole" }, "create"] });
    assert_eq!(template["Conditions"]["CreateLogRole"], condition);
}

/// `billhook secrets rotate` updates a stack with `UsePreviousTemplate`, and with this transform CloudFormation would keep
/// the old value of every parameter.
#[test]
fn the_template_has_no_transform_that_keeps_old_parameters() {
    check_transform(&template());
}

fn check_transform(template: &Value) {
    assert_eq!(template["Transform"], "AWS::Serverless-2016-10-31");
}

#[test]
fn every_stage_of_samconfig_sets_parameters_that_are_there() {
    let template = template();
    let mut stages = Vec::new();
    let lines = include_str!("../../../samconfig.toml").lines();
    for line in lines.filter(|line| line.starts_with("parameter_overrides")) {
        let given = line.split('"').skip(1).step_by(2);
        let given: BTreeMap<&str, &str> =
            given.map(|given| given.split_once('=').unwrap()).collect();
        for (name, value) in &given {
            let parameter = &template["Parameters"][name];
            assert!(parameter.is_object(), "{name}");
            let allowed = parameter["AllowedValues"].as_array();
            let fits = |allowed: &Value| match allowed.as_i64() {
                Some(number) => value.parse() == Ok(number),
                None => allowed == value,
            };
            assert!(
                allowed.is_none_or(|all| all.iter().any(fits)),
                "{name}={value}"
            );
        }
        stages.push((given["Env"], given["LiveMode"]));
    }
    assert_eq!(
        stages,
        [("dev", "false"), ("staging", "false"), ("prod", "true")]
    );
}
