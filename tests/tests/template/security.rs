//! The security checklist for `template.yaml`, item by item.

use super::*;

/// Everything the stack may consist of: what could open it to others (policies of resources, function URLs, accounts of
/// people) is not among it.
#[test]
fn the_stack_consists_of_what_is_known() {
    check_kinds(&template());
}

pub(super) fn check_kinds(template: &Value) {
    let all = template["Resources"].as_object().unwrap().values();
    let kinds: BTreeSet<&str> = all
        .map(|resource| resource["Type"].as_str().unwrap())
        .collect();
    let expected = [
        "AWS::ApiGateway::Account",
        "AWS::ApiGateway::BasePathMapping",
        "AWS::ApiGateway::DomainName",
        "AWS::CloudWatch::Alarm",
        "AWS::CloudWatch::Dashboard",
        "AWS::DynamoDB::Table",
        "AWS::IAM::Role",
        "AWS::Logs::LogGroup",
        "AWS::SNS::Subscription",
        "AWS::SNS::Topic",
        "AWS::SQS::Queue",
        "AWS::SQS::QueuePolicy",
        "AWS::SecretsManager::Secret",
        "AWS::Serverless::Api",
        "AWS::Serverless::Function",
        "AWS::WAFv2::IPSet",
        "AWS::WAFv2::LoggingConfiguration",
        "AWS::WAFv2::WebACL",
        "AWS::WAFv2::WebACLAssociation",
        "Custom::SealKeys",
        "Custom::StripeWebhookEndpoint",
    ];
    assert_eq!(kinds, expected.into());
}

#[test]
fn secrets_are_born_empty_and_reach_functions_by_their_arn() {
    check_secrets(&template());
}

pub(super) fn check_secrets(template: &Value) {
    let secrets = resources(template, "AWS::SecretsManager::Secret");
    assert_eq!(secrets.len(), 7);
    for (name, secret) in secrets {
        match &*name {
            "StateSealSecret" => assert_eq!(secret["GenerateSecretString"]["PasswordLength"], 64),
            _ => assert_eq!(secret["SecretString"], "{}", "{name}"),
        }
        let own = json!({ "!GetAtt": format!("{name}.Id") });
        let parameter = format!("Existing{name}Arn");
        let arn = match template["Parameters"].get(&parameter) {
            Some(_) => json!({ "!If": [format!("Own{name}"), own, { "!Ref": parameter }] }),
            // Nobody brings a private key along: the public keys of the one before are enough.
            None => own,
        };
        let functions = resources(template, "AWS::Serverless::Function").into_values();
        let variables = functions.flat_map(|function| {
            let variables = function["Environment"]["Variables"].as_object().cloned();
            variables.unwrap()
        });
        for (variable, value) in
            variables.filter(|(_, value)| value.to_string().contains(&format!("\"{name}.Id\"")))
        {
            assert!(variable.ends_with("_ARN"), "{variable}: {value}");
            // An endpoint that is not kept has no secret to read.
            let kept = value["!If"].as_array().map(|either| &either[1]);
            assert!(
                value == arn || kept == Some(&arn),
                "{variable} is {value}, no ARN"
            );
        }
    }
    let text = template.to_string();
    for dangerous in ["{{resolve:", "sk_live_", "sk_test_", "whsec_"] {
        assert!(!text.contains(dangerous), "{dangerous}");
    }
}

#[test]
fn functions_are_built_run_and_bounded_as_agreed() {
    check_functions(&template());
}

pub(super) fn check_functions(template: &Value) {
    let globals = &template["Globals"]["Function"];
    assert_eq!(globals["Runtime"], "provided.al2023");
    assert_eq!(
        globals["Architectures"],
        json!([{ "!Ref": "Architecture" }])
    );
    assert_eq!(template["Parameters"]["Architecture"]["Default"], "arm64");
    for (name, function) in resources(template, "AWS::Serverless::Function") {
        for property in [
            "FunctionUrlConfig",
            "Policies",
            "ReservedConcurrentExecutions",
        ] {
            assert!(function.get(property).is_none(), "{name} has {property}");
        }
        let role = format!("{}Role.Arn", name.strip_suffix("Function").unwrap());
        assert_eq!(function["Role"], json!({ "!GetAtt": role }), "{name}");
        assert!(
            function["Timeout"].as_u64().unwrap() <= 900 && function.get("LoggingConfig").is_some(),
            "{name}"
        );
    }
}

/// Beside an own domain the execute-api address is closed, unless somebody still needs it.
#[test]
fn beside_an_own_domain_there_is_no_second_address() {
    let deployed = |parameters: &[&str]| {
        let template = permissions::expanded(parameters);
        let all = template["Resources"].as_object().unwrap();
        let api = &all["Api"]["Properties"]["Body"]["servers"];
        let expected = json!([{ "x-amazon-apigateway-endpoint-configuration":
            { "disableExecuteApiEndpoint": { "Fn::If": ["OnlyOwnDomain", true, false] } } }]);
        assert_eq!(*api, expected);
        assert_eq!(
            template["Conditions"]["OnlyOwnDomain"],
            json!({ "Fn::And": [{ "Condition": "OwnDomain" },
                { "Fn::Equals": [{ "Ref": "ExecuteApiEndpoint" }, "closed"] }] })
        );
        let mut names = all.keys();
        let deployment = names.find(|name| name.starts_with("ApiDeployment"));
        deployment.unwrap().clone()
    };
    assert_eq!(
        template()["Parameters"]["ExecuteApiEndpoint"]["Default"],
        "closed"
    );
    // API Gateway takes it over only with a new deployment.
    let domain = "DomainName=hooks.example.com";
    let deployments = BTreeSet::from([
        deployed(&[]),
        deployed(&[domain, "ExecuteApiEndpoint=open"]),
        deployed(&[domain]),
    ]);
    assert_eq!(deployments.len(), 3);
    assert!(deployments.contains(&deployed(&["RotationToken=7"])));
}

#[test]
fn a_live_environment_gives_its_key_to_stripe_alone() {
    let template = template();
    let refused = |live, base| {
        let given = [
            ("LiveMode", live),
            ("StripeApiBase", base),
            ("Alarms", "all"),
        ];
        adoption::refusals(&template, &given)
    };
    assert!(refused("true", "https://api.stripe.com").is_empty());
    assert!(refused("false", "http://127.0.0.1:1").is_empty());
    assert_eq!(refused("true", "https://stripe.example"), ["LiveStripe"]);
    let default = &template["Parameters"]["StripeApiBase"]["Default"];
    assert_eq!(default, "https://api.stripe.com");
}

#[test]
fn the_api_takes_what_the_contract_names_and_tells_no_more() {
    check_api(&template());
}

pub(super) fn check_api(template: &Value) {
    let api = &resources(template, "AWS::Serverless::Api")["Api"];
    assert_eq!(api["BinaryMediaTypes"][0], "*/*");
    assert_eq!(api["SecurityPolicy"], "SecurityPolicy_TLS13_1_2_2021_06");
    let domain = &resources(template, "AWS::ApiGateway::DomainName")["ApiDomain"];
    assert_eq!(domain["SecurityPolicy"], api["SecurityPolicy"]);
    let expected = json!([{
        "HttpMethod": "*", "ResourcePath": "/*", "LoggingLevel": "OFF", "DataTraceEnabled": false,
        "ThrottlingRateLimit": { "!Ref": "ThrottleRate" }, "ThrottlingBurstLimit": { "!Ref": "ThrottleBurst" },
    }]);
    assert_eq!(api["MethodSettings"], expected);
    let limits =
        ["ThrottleRate", "ThrottleBurst"].map(|name| &template["Parameters"][name]["Default"]);
    assert_eq!(limits, [&json!(100), &json!(200)]);

    let paths = api["DefinitionBody"]["paths"].as_object().unwrap();
    let mut asked = BTreeMap::new();
    for (path, methods) in paths {
        let methods: BTreeSet<&str> = methods
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        asked.insert(path.as_str(), methods);
    }
    let every = ["delete", "get", "head", "options", "patch", "post", "put"];
    let expected = [
        ("/health", ["get"].into()),
        ("/webhooks/lob", every.into()),
        ("/webhooks/stripe", every.into()),
    ];
    assert_eq!(asked, expected.into());
    let ingress = "functions/${WebhookIngressFunction.Arn}/invocations";
    assert_eq!(
        api["DefinitionBody"].to_string().matches(ingress).count(),
        2 * every.len() + 1
    );

    let log = &api["AccessLogSetting"];
    assert_eq!(
        log["DestinationArn"],
        json!({ "!GetAtt": "ApiLogGroup.Arn" })
    );
    let line: BTreeMap<String, String> =
        serde_json::from_str(log["Format"].as_str().unwrap()).unwrap();
    assert_eq!(line["request_id"], "$context.requestId");
    for value in line.values() {
        assert!(value.starts_with("$context."), "{value}");
    }

    // Where the status is the gateway's own, none stands here.
    let expected = [
        ("DEFAULT_4XX", None, "bad_request"),
        ("DEFAULT_5XX", None, "unavailable"),
        ("MISSING_AUTHENTICATION_TOKEN", Some(404), "not_found"),
        ("REQUEST_TOO_LARGE", Some(413), "body_too_large"),
        ("RESOURCE_NOT_FOUND", Some(404), "not_found"),
        ("THROTTLED", Some(429), "unavailable"),
        ("WAF_FILTERED", None, "unavailable"),
    ];
    let answers = api["GatewayResponses"].as_object().unwrap();
    assert_eq!(answers.len(), expected.len());
    for (name, status, code) in expected {
        let answer = &answers[name];
        assert_eq!(answer["StatusCode"].as_u64(), status, "{name}");
        let headers = &answer["ResponseParameters"]["Headers"];
        assert_eq!(headers["X-Correlation-ID"], "context.requestId", "{name}");
        let body = answer["ResponseTemplates"]["application/json"]
            .as_str()
            .unwrap();
        // The gateway puts the quotes around this one.
        let body = body.replace("$context.error.messageString", "\"\"");
        let body: BTreeMap<String, String> = serde_json::from_str(&body).unwrap();
        let fields: Vec<&str> = body.keys().map(String::as_str).collect();
        assert_eq!(fields, ["correlation_id", "error", "message"], "{name}");
        assert_eq!(body["error"], code, "{name}");
        assert_eq!(body["correlation_id"], "$context.requestId", "{name}");
    }
}

#[test]
fn the_firewall_holds_back_neither_providers_nor_what_a_signature_proves() {
    check_waf(&template());
}

pub(super) fn check_waf(template: &Value) {
    let acl = &resources(template, "AWS::WAFv2::WebACL")["WebAcl"];
    assert_eq!(acl["DefaultAction"], json!({ "Allow": {} }));
    let rules = acl["Rules"].as_array().unwrap();
    let set = |name: &str| json!({ "IPSetReferenceStatement": { "Arn": { "!GetAtt": format!("{name}.Arn") } } });
    let not = |statement: Value| json!({ "NotStatement": { "Statement": statement } });
    let all = |statements: Value| json!({ "AndStatement": { "Statements": statements } });
    let ends = |path: &str| {
        json!({ "ByteMatchStatement": {
            "FieldToMatch": { "UriPath": {} }, "PositionalConstraint": "ENDS_WITH", "SearchString": path,
            "TextTransformations": [{ "Priority": 0, "Type": "NONE" }],
        } })
    };
    let path = |provider: &str| json!({ "LabelMatchStatement": { "Scope": "LABEL", "Key": format!("path:{provider}") } });
    let rate = |scope: Value| {
        json!({ "RateBasedStatement": {
            "Limit": 100, "EvaluationWindowSec": 300, "AggregateKeyType": "IP", "ScopeDownStatement": scope,
        } })
    };
    // A managed group judges no provider's path: AWS may add a blocking rule to it at any time.
    let group = |name: &str| {
        let scope = all(json!([not(path("stripe")), not(path("lob"))]));
        json!({ "ManagedRuleGroupStatement": { "VendorName": "AWS", "Name": name, "ScopeDownStatement": scope } })
    };
    let (count, block) = (json!({ "Count": {} }), json!({ "Block": {} }));
    let block_if = |listed: &str| json!({ "!If": [listed, { "Block": {} }, { "Count": {} }] });
    let (none, null) = (json!({ "None": {} }), Value::Null);
    let only = all(json!([path("stripe"), not(set("StripeAddressSet"))]));
    // The design's order: providers are known before anything can refuse them.
    let expected = [
        ("stripe-path", ends("/webhooks/stripe"), &count, &null),
        ("lob-path", ends("/webhooks/lob"), &count, &null),
        ("stripe-addresses-only", only, &block, &null),
        (
            "rate",
            rate(all(json!([not(path("lob")), not(set("StripeAddressSet"))]))),
            &block_if("StripeIsListed"),
            &null,
        ),
        (
            "rate-lob",
            rate(all(json!([path("lob"), not(set("LobAddressSet"))]))),
            &block_if("LobIsListed"),
            &null,
        ),
        (
            "ip-reputation",
            group("AWSManagedRulesAmazonIpReputationList"),
            &null,
            &none,
        ),
        (
            "known-bad-inputs",
            group("AWSManagedRulesKnownBadInputsRuleSet"),
            &null,
            &none,
        ),
        (
            "common",
            group("AWSManagedRulesCommonRuleSet"),
            &null,
            &none,
        ),
    ];
    assert_eq!(rules.len(), expected.len());
    for (place, (rule, (name, statement, action, override_action))) in
        rules.iter().zip(expected).enumerate()
    {
        let rule = match (name, &rule["!If"]) {
            ("stripe-addresses-only", Value::Array(choice)) => {
                assert_eq!(choice[0], "OnlyStripesAddresses");
                assert_eq!(choice[2], json!({ "!Ref": "AWS::NoValue" }));
                &choice[1]
            }
            _ => rule,
        };
        assert_eq!(
            (&rule["Name"], &rule["Priority"]),
            (&json!(name), &json!(place))
        );
        assert_eq!(rule["Statement"], statement, "{name}");
        assert_eq!(
            (&rule["Action"], &rule["OverrideAction"]),
            (action, override_action),
            "{name}"
        );
    }
    let sets = resources(template, "AWS::WAFv2::IPSet");
    let parameters = &template["Parameters"];
    for provider in ["Stripe", "Lob"] {
        let (listed, addresses) = (
            format!("{provider}IsListed"),
            format!("{provider}Addresses"),
        );
        let expected = json!({ "!If": [listed, { "!Ref": addresses }, []] });
        assert_eq!(
            sets[&format!("{provider}AddressSet")]["Addresses"],
            expected
        );
    }
    let listed: BTreeSet<std::net::Ipv4Addr> = parameters["StripeAddresses"]["Default"]
        .as_str()
        .unwrap()
        .split(',')
        .map(|address| address.strip_suffix("/32").unwrap().parse().unwrap())
        .collect();
    assert_eq!(listed.len(), 15);
    assert_eq!(
        (
            &parameters["Waf"]["Default"],
            &parameters["LobAddresses"]["Default"]
        ),
        (&json!("true"), &json!(""))
    );
    // Signatures stand in no log.
    let logging = &resources(template, "AWS::WAFv2::LoggingConfiguration")["WafLogging"];
    let redacted: BTreeSet<&str> = logging["RedactedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| field["SingleHeader"]["Name"].as_str().unwrap())
        .collect();
    assert_eq!(redacted, ["lob-signature", "stripe-signature"].into());
    let associations = resources(template, "AWS::WAFv2::WebACLAssociation");
    let stage = "arn:${AWS::Partition}:apigateway:${AWS::Region}::/restapis/${Api}/stages/v1";
    assert_eq!(
        associations["WebAclAssociation"]["ResourceArn"],
        json!({ "!Sub": stage })
    );
    for kind in ["WebACL", "WebACLAssociation", "LoggingConfiguration"] {
        for name in resources(template, &format!("AWS::WAFv2::{kind}")).keys() {
            assert_eq!(template["Resources"][name]["Condition"], "UseWaf", "{name}");
        }
    }
}

#[test]
fn parameters_explain_themselves_and_only_the_environment_needs_an_answer() {
    check_parameters(&template());
}

pub(super) fn check_parameters(template: &Value) {
    let parameters = template["Parameters"].as_object().unwrap();
    let expected = [
        "AcceptCheckoutAdjustments",
        "AccountRateLimit",
        "AdoptedBefore",
        "AlarmEmail",
        "Alarms",
        "ApiGatewayLogRole",
        "AppName",
        "Architecture",
        "CertificateArn",
        "CleanupFailedPaymentMinutes",
        "DomainName",
        "EnableBillingStream",
        "Env",
        "ExecuteApiEndpoint",
        "ExistingAppSecretArn",
        "ExistingInboundSecretArn",
        "ExistingOrdersTableName",
        "ExistingSealPublicSecretArn",
        "ExistingStateSealSecretArn",
        "ExistingStatementsTableName",
        "ExistingStripePlatformWebhookSecretArn",
        "ExistingStripeWebhookSecretArn",
        "ExistingTenantsTableName",
        "FipsEndpoints",
        "LiveMode",
        "Lob",
        "LobAddresses",
        "LobQuietHours",
        "LogLevel",
        "LogRetentionDays",
        "MaxReceives",
        "OrderIdKeys",
        "OrderIdPattern",
        "OrdersTableName",
        "ProofSamplePercent",
        "RotationToken",
        "SealRotationToken",
        "StripeAddresses",
        "StripeAddressesOnly",
        "StripeApiBase",
        "StripeApiVersion",
        "StripeEndpoints",
        "StripeQuietHours",
        "ThrottleBurst",
        "ThrottleRate",
        "TypeMetrics",
        "VersionColumn",
        "Waf",
        "WebhookBaseUrl",
        "WorkerConcurrency",
    ];
    let names: BTreeSet<&str> = parameters.keys().map(String::as_str).collect();
    assert_eq!(names, expected.into());
    for (name, parameter) in parameters {
        let has = |property: &str| parameter.get(property).is_some();
        // With a default, an override on the command line would make another environment of a stack.
        let is_asked = ["Env", "LiveMode"].contains(&name.as_str());
        assert_eq!(has("Default"), !is_asked, "{name}");
        assert!(has("Description"), "{name}");
        assert!(
            has("AllowedValues") || has("MinValue") || has("AllowedPattern"),
            "{name} takes anything"
        );
        assert!(
            !has("AllowedPattern") || has("ConstraintDescription"),
            "{name}"
        );
    }
    // It becomes part of policies, where a star would be any secret.
    for name in names.iter().filter(|name| name.starts_with("Existing")) {
        let pattern = parameters[*name]["AllowedPattern"].as_str().unwrap();
        let allowed = match name.ends_with("TableName") {
            true => "([A-Za-z0-9_.-]{3,255})?",
            false => ":secret:[A-Za-z0-9/_+=.@-]+)?",
        };
        assert!(pattern.ends_with(allowed), "{name}: {pattern}");
    }
}

#[test]
fn what_linters_are_told_to_skip_has_its_reason() {
    let template = template();
    let skips = template["Metadata"]["checkov"]["skip"].as_array().unwrap();
    assert!(skips.len() <= 10, "short");
    for skip in skips {
        let (check, reason) = (
            skip["id"].as_str().unwrap(),
            skip["comment"].as_str().unwrap(),
        );
        assert!(check.starts_with("CKV_") && reason.len() > 30, "{check}");
    }
}
