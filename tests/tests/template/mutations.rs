//! Mutation tests of the template checks: misconfigurations, put one at a time into the real template; the checks must
//! detect each of them.

use std::panic::catch_unwind;

use super::adoption::check_adoption;
use super::alarms::{check_alarms, check_logs};
use super::permissions::check_policies;
use super::security::{
    check_api, check_functions, check_kinds, check_parameters, check_secrets, check_waf,
};
use super::*;

const CHECKS: [fn(&Value); 18] = [
    check_account,
    check_adoption,
    check_alarms,
    check_api,
    check_endpoints,
    check_functions,
    check_kinds,
    check_logs,
    check_outputs,
    check_parameters,
    check_policies,
    check_queues,
    check_schedules,
    check_secrets,
    check_tables,
    check_transform,
    check_variables,
    check_waf,
];

const RESOURCES: &str = "/Resources/";

/// What is wrong, the place below `Resources`, and what stands there instead; nothing is a removal.
#[rustfmt::skip]
const SEEDED: [(&str, &str, &str); 61] = [
    ("any action", "StripeWorkerRole/Properties/Policies/0/PolicyDocument/Statement/5/Action", r#""dynamodb:*""#),
    ("any resource", "StripeWorkerRole/Properties/Policies/0/PolicyDocument/Statement/5/Resource", r#""*""#),
    ("any index", "LobWorkerRole/Properties/Policies/0/PolicyDocument/Statement/7/Resource", r#"{"!Sub":"${StatementsTable.Arn}/index/*"}"#),
    ("everything but", "LobWorkerRole/Properties/Policies/0/PolicyDocument/Statement/7", r#"{"Effect":"Allow","NotAction":"iam:PassRole","Resource":{"!GetAtt":"StatementsTable.Arn"}}"#),
    ("an administrator", "WebhookIngressRole/Properties/ManagedPolicyArns", r#"["arn:aws:iam::aws:policy/AdministratorAccess"]"#),
    ("a role for everybody", "WebhookIngressRole/Properties/AssumeRolePolicyDocument/Statement/0/Principal", r#""*""#),
    ("ingress writes secrets", "WebhookIngressRole/Properties/Policies/0/PolicyDocument/Statement/6/Action", r#""secretsmanager:PutSecretValue""#),
    ("a shared role", "LobWorkerFunction/Properties/Role", r#"{"!GetAtt":"StripeWorkerRole.Arn"}"#),
    ("a policy of SAM beside the role", "LobWorkerFunction/Properties/Policies", r#"["AmazonDynamoDBFullAccess"]"#),
    ("an open function", "LobWorkerFunction/Properties/FunctionUrlConfig", r#"{"AuthType":"NONE"}"#),
    ("reserved concurrency", "StripeWorkerFunction/Properties/ReservedConcurrentExecutions", "1"),
    ("a worker slower than its queue expects", "LobWorkerFunction/Properties/Timeout", "30"),
    ("a batch of 100", "StripeWorkerFunction/Properties/Events/Queue/Properties/BatchSize", "100"),
    ("a batch fails as a whole", "LobWorkerFunction/Properties/Events/Queue/Properties/FunctionResponseTypes", ""),
    ("no cap on workers", "StripeWorkerFunction/Properties/Events/Queue/Properties/ScalingConfig", r#"{"MaximumConcurrency":1}"#),
    ("ingress outlives the gateway", "WebhookIngressFunction/Properties/Timeout", "30"),
    ("visibility below the time-out", "StripeEventsQueue/Properties/VisibilityTimeout", "5"),
    ("no dead-letter queue", "LobEventsDlq", ""),
    ("nothing goes to the dead-letter queue", "LobEventsQueue/Properties/RedrivePolicy", ""),
    ("to the other's dead-letter queue", "LobEventsQueue/Properties/RedrivePolicy/deadLetterTargetArn", r#"{"!GetAtt":"StripeEventsDlq.Arn"}"#),
    ("one receive", "StripeEventsQueue/Properties/RedrivePolicy/maxReceiveCount", "1"),
    ("any queue's dead letters", "StripeEventsDlq/Properties/RedriveAllowPolicy", r#"{"redrivePermission":"allowAll"}"#),
    ("messages kept for a day", "StripeEventsDlq/Properties/MessageRetentionPeriod", "86400"),
    ("messages in the clear", "LobEventsQueue/Properties/SqsManagedSseEnabled", "false"),
    ("low throughput", "LobEventsQueue/Properties/FifoThroughputLimit", r#""perQueue""#),
    ("a queue for everybody", "OpenQueue", r#"{"Type":"AWS::SQS::QueuePolicy","Properties":{}}"#),
    ("dead letters from any account", "ScheduleDlqPolicy/Properties/PolicyDocument/Statement/0/Condition", ""),
    ("a task without a schedule", "CleanupFailedPaymentsFunction/Properties/Events/Sweep", ""),
    ("a task at another rate", "CleanupFailedPaymentsFunction/Properties/Events/Cleanup/Properties/Schedule", r#""rate(1 day)""#),
    ("a public secret", "OpenSecret", r#"{"Type":"AWS::SecretsManager::ResourcePolicy","Properties":{"ResourcePolicy":{"Statement":[{"Effect":"Allow","Principal":"*","Action":"secretsmanager:GetSecretValue","Resource":"*"}]}}}"#),
    ("a secret in the template", "AppSecret/Properties/SecretString", r#""{\"stripe_secret_key\":\"sk_live_1\"}""#),
    ("a secret in a variable", "WebhookIngressFunction/Properties/Environment/Variables/STRIPE_WEBHOOK_SECRET", r#""{{resolve:secretsmanager:x}}""#),
    ("a variable missing", "StripeWorkerFunction/Properties/Environment/Variables/TENANTS_TABLE", ""),
    ("no recovery of a table", "OrdersTable/Properties/PointInTimeRecoverySpecification/PointInTimeRecoveryEnabled", "false"),
    ("a table in the clear", "OrdersTable/Properties/SSESpecification/SSEEnabled", "false"),
    ("a table without protection", "EntitiesTable/Properties/DeletionProtectionEnabled", ""),
    ("a table that goes with its stack", "TenantsTable/DeletionPolicy", r#""Delete""#),
    ("a second orders table", "OrdersTable/Condition", ""),
    ("a table that may not be there", "StripeWorkerFunction/Properties/Environment/Variables/ORDERS_TABLE", r#"{"!Ref":"OrdersTable"}"#),
    ("another table adopted", "LobWorkerFunction/Properties/Environment/Variables/STATEMENTS_TABLE", r#"{"!If":["OwnStatementsTable",{"!Ref":"StatementsTable"},{"!Ref":"ExistingOrdersTableName"}]}"#),
    ("every table adopted", "LobWorkerRole/Properties/Policies/0/PolicyDocument/Statement/7/Resource/!If/2", r#"{"!Sub":"arn:aws:dynamodb:us-east-1:1:table/${ExistingTenantsTableName}"}"#),
    ("events for ever", "StripeEventsTable/Properties/TimeToLiveSpecification", ""),
    ("old TLS", "Api/Properties/SecurityPolicy", r#""TLS_1_0""#),
    ("bodies in a log", "Api/Properties/MethodSettings/0/DataTraceEnabled", "true"),
    ("no throttle", "Api/Properties/MethodSettings/0/ThrottlingRateLimit", ""),
    ("bodies as text", "Api/Properties/BinaryMediaTypes", "[]"),
    ("no access log", "Api/Properties/AccessLogSetting", ""),
    ("another path", "Api/Properties/DefinitionBody/paths/~1admin", r#"{"get":{}}"#),
    ("an answer of its own shape", "Api/Properties/GatewayResponses/THROTTLED/ResponseTemplates/application~1json", r#""slow down""#),
    ("Stripe throttled", "WebAcl/Properties/Rules/3/Statement/RateBasedStatement/ScopeDownStatement/AndStatement/Statements/1", ""),
    ("bodies judged by a list", "WebAcl/Properties/Rules/6/Statement/ManagedRuleGroupStatement/ScopeDownStatement/AndStatement/Statements/0", ""),
    ("only Stripe's addresses for everybody", "WebAcl/Properties/Rules/2/!If/0", r#""UseWaf""#),
    ("an endpoint before its API", "StripeWebhookEndpoint/DependsOn/0", ""),
    ("an endpoint that its function refuses", "WebhookSecretFunction/Properties/Environment/Variables/STRIPE_WEBHOOK_URL", r#"{"!Sub":"https://${DomainName}"}"#),
    ("a function that obeys any stack", "WebhookSecretFunction/Properties/Environment/Variables/STACK_ID", r#""*""#),
    ("an endpoint before its firewall", "StripePlatformWebhookEndpoint/Properties/After", ""),
    ("the account's setting in every stack", "ApiGatewayAccount/Condition", ""),
    ("short polls", "StripeEventsDlq/Properties/ReceiveMessageWaitTimeSeconds", "0"),
    ("an alarm that tells nobody", "StripeDlqDepthAlarm/Properties/AlarmActions", "[]"),
    ("logs for ever", "LobWorkerLogGroup/Properties/RetentionInDays", ""),
    ("an audit log of a week", "AuditLogGroup/Properties/RetentionInDays", "7"),
];

fn broken(sound: &Value, place: &str, instead: &str) -> Value {
    let mut template = sound.clone();
    let pointer = format!("{RESOURCES}{place}");
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let name = name.replace("~1", "/");
    let parent = template
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("{place}"));
    match (parent, instead) {
        (Value::Object(members), "") => drop(members.remove(&name).unwrap()),
        (Value::Object(members), value) => {
            members.insert(name, serde_json::from_str(value).unwrap());
        }
        (Value::Array(items), "") => drop(items.remove(name.parse().unwrap())),
        (Value::Array(items), value) => {
            items[name.parse::<usize>().unwrap()] = serde_json::from_str(value).unwrap();
        }
        (other, _) => panic!("{place} is below {other}"),
    }
    assert_ne!(template, *sound, "{place}");
    template
}

#[test]
fn every_misconfiguration_is_noticed() {
    let sound = template();
    for check in CHECKS {
        check(&sound);
    }
    for (what, place, instead) in SEEDED {
        let template = broken(&sound, place, instead);
        let noticed = CHECKS
            .iter()
            .any(|check| catch_unwind(|| check(&template)).is_err());
        assert!(noticed, "{what} goes unnoticed");
    }
}
