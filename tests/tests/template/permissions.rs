//! Least privilege: compares the table in `docs/permissions.md` with the template as SAM expands it, because the source
//! does not show the permissions that SAM adds.

use std::process::Command;

use super::alarms::{read, repository};
use super::*;

/// The template as CloudFormation gets it from SAM.
pub(super) fn expanded(parameters: &[&str]) -> Value {
    let output = Command::new(repository(".venv/bin/python"))
        .arg(repository("tests/tools/expand.py"))
        .arg(repository("template.yaml"))
        .args(parameters)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A text or a list of them.
fn one_or_more(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one],
        list => texts(list).into_iter().collect(),
    }
}

/// The resource of a statement, by its logical id.
fn resource(value: &Value) -> String {
    if let Some(either) = value.get("Fn::If") {
        return resource(&either[1]);
    }
    if let Some(attribute) = value.get("Fn::GetAtt") {
        return attribute[0].as_str().unwrap().to_owned();
    }
    match value["Fn::Sub"].as_str().or(value.as_str()) {
        Some(text) => text.replace("${", "").replace(".Arn}", ""),
        None => panic!("no resource: {value}"),
    }
}

/// The statements of a role, each with its actions, its resource, and whether the resource is any.
fn statements(role: &Value) -> Vec<(Vec<&str>, &Value)> {
    let policies = role["Policies"].as_array().unwrap().iter();
    let statements = policies.flat_map(|policy| {
        let statements = policy["PolicyDocument"]["Statement"].as_array();
        statements.unwrap()
    });
    statements
        .map(|statement| {
            let mut members = statement.as_object().unwrap().keys();
            assert!(
                members.all(|name| ["Action", "Effect", "Resource"].contains(&name.as_str())),
                "{statement}"
            );
            assert_eq!(statement["Effect"], "Allow", "{statement}");
            (one_or_more(&statement["Action"]), &statement["Resource"])
        })
        .collect()
}

/// In the source and in the expanded template alike.
pub(super) fn check_policies(template: &Value) {
    let roles = resources(template, "AWS::IAM::Role");
    let names: BTreeSet<&str> = roles.keys().map(String::as_str).collect();
    let workers = PerProvider::new(|provider| format!("{}WorkerRole", provider.title()));
    let mut expected = BTreeSet::from([
        "ApiGatewayLogsRole",
        "CleanupFailedPaymentsRole",
        "WebhookIngressRole",
        "WebhookSecretRole",
    ]);
    expected.extend(workers.iter().map(|(_, role)| role.as_str()));
    assert_eq!(names, expected, "one role per function");
    for (name, role) in &roles {
        let service = if name == "ApiGatewayLogsRole" {
            "apigateway.amazonaws.com"
        } else {
            "lambda.amazonaws.com"
        };
        let trust = json!([{ "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": { "Service": service } }]);
        let trusted = &role["AssumeRolePolicyDocument"]["Statement"];
        assert_eq!(*trusted, trust, "{name}");
        if name == "ApiGatewayLogsRole" {
            assert!(role.get("Policies").is_none(), "{name}");
            continue;
        }
        assert!(role.get("ManagedPolicyArns").is_none(), "{name}");
        for (actions, resource) in statements(role) {
            for action in &actions {
                assert!(!action.contains('*'), "{name}: {action}");
                let writes_a_secret = *action == "secretsmanager:PutSecretValue";
                assert!(
                    !writes_a_secret || name == "WebhookSecretRole",
                    "{name} may write secrets"
                );
            }
            if resource == "*" {
                // X-Ray has no resources to name.
                let traces = ["xray:PutTelemetryRecords", "xray:PutTraceSegments"];
                assert_eq!(BTreeSet::from_iter(actions), traces.into(), "{name}");
            } else {
                assert!(
                    resource.is_object() && !resource.to_string().contains('*'),
                    "{name}: {resource}"
                );
            }
        }
    }
}

#[test]
fn policies_name_single_actions_on_single_resources() {
    check_policies(&template());
    check_policies(&expanded(&[]));
}

#[test]
fn sam_adds_no_permission_beyond_those_to_be_called() {
    let expanded = expanded(&[]);
    let all = expanded["Resources"].as_object().unwrap();
    let kinds: BTreeSet<&str> = all
        .values()
        .map(|resource| resource["Type"].as_str().unwrap())
        .filter(|kind| kind.starts_with("AWS::IAM::"))
        .collect();
    assert_eq!(kinds, ["AWS::IAM::Role"].into());
    for (name, permission) in resources(&expanded, "AWS::Lambda::Permission") {
        assert_eq!(permission["Action"], "lambda:InvokeFunction", "{name}");
        assert!(
            permission.get("SourceArn").is_some(),
            "{name}: any account's {} may call it",
            permission["Principal"]
        );
    }
}

#[test]
fn the_table_of_permissions_is_that_of_the_expanded_template() {
    let expanded = expanded(&[]);
    let roles = resources(&expanded, "AWS::IAM::Role");
    let mut table = "| function | on | may |\n|---|---|---|\n".to_owned();
    let mut taken = BTreeSet::new();
    for (id, function) in resources(&expanded, "AWS::Lambda::Function") {
        let role = function["Role"]["Fn::GetAtt"][0].as_str().unwrap();
        assert!(taken.insert(role.to_owned()), "{id} shares {role}");
        let mut allowed: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (actions, on) in statements(&roles[role]) {
            allowed.entry(resource(on)).or_default().extend(actions);
        }
        let function = id.strip_suffix("Function").unwrap();
        for (on, actions) in allowed {
            let actions: Vec<String> = actions.iter().map(|action| format!("`{action}`")).collect();
            table += &format!("| {function} | `{on}` | {} |\n", actions.join(", "));
        }
    }
    let page = read("docs/permissions.md");
    assert!(
        page.contains(&table),
        "docs/permissions.md has to hold\n{table}"
    );
}

/// The actions on log groups that a policy for people allows on the audit log, by what its resources say.
fn audit_actions(policy: &str) -> BTreeSet<String> {
    let policy: Value =
        serde_json::from_str(&read(&format!("docs/policies/{policy}.json"))).unwrap();
    let mut allowed = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        let on = one_or_more(&statement["Resource"]);
        let is_meant = |on: &&str| *on == "*" || on.contains(":log-group:/billhook/");
        if on.iter().any(is_meant) {
            let actions = one_or_more(&statement["Action"]);
            let actions = actions
                .into_iter()
                .filter(|it| it.starts_with("logs:") || *it == "*");
            allowed.extend(actions.map(str::to_owned));
        }
    }
    allowed
}

#[test]
fn lines_of_the_audit_log_are_added_by_the_repairer_and_removed_by_nobody_but_the_deployer() {
    assert_eq!(
        audit_actions("on-call"),
        ["logs:FilterLogEvents".to_owned()].into()
    );
    let adds = ["logs:CreateLogStream", "logs:PutLogEvents"].map(str::to_owned);
    assert_eq!(audit_actions("repairer"), adds.into());
    assert_eq!(audit_actions("application"), BTreeSet::new());
    // It deletes the group with the stack; neither a stream nor a line.
    let deployer = audit_actions("deployer");
    assert!(deployer.contains("logs:DeleteLogGroup"));
    for writes in ["*", "logs:*", "logs:DeleteLogStream", "logs:PutLogEvents"] {
        assert!(!deployer.contains(writes), "{writes}");
    }
    let functions = resources(&template(), "AWS::IAM::Role");
    for (name, role) in functions {
        assert!(!role.to_string().contains("AuditLog"), "{name}");
    }
}
