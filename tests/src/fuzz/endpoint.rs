//! Fuzz target `custom_resource`: CloudFormation's requests to `webhook-secret`, over an in-memory Stripe and secret.

use std::future::pending;

use billhook_core::endpoint::policy::{
    CONNECT_ENDPOINT, PLATFORM_ENDPOINT, RequestPolicy, StackEndpoint,
};
use billhook_core::provider::stripe::types::API_VERSION;
use billhook_testkit::custom_resource::{EndpointPorts, dependencies};
use serde_json::Value;
use webhook_secret::response_url::ResponseHosts;
use webhook_secret::{ResourceRequest, handle_request};

use super::{check_secrets, watched};

/// As CloudFormation says.
const REASON_BYTES_MAX: usize = 4096;

/// The stack of the samples.
fn samples_policy() -> RequestPolicy {
    let secret = "arn:aws:secretsmanager:us-east-1:111122223333:secret:billhook/dev";
    let endpoint = |logical_id, connect, name: &str| StackEndpoint {
        logical_id,
        connect,
        secret_arn: format!("{secret}/{name}-AbCdEf"),
    };
    RequestPolicy {
        stack_id: "arn:aws:cloudformation:us-east-1:111122223333:stack/billhook-dev/16580499-7622-4a9c-b32f-4eba35da93da".to_owned(),
        url: "https://a1b2c3d4e5.execute-api.us-east-1.amazonaws.com/v1/webhooks/stripe".to_owned(),
        api_version: API_VERSION.to_owned(),
        endpoints: vec![
            endpoint(CONNECT_ENDPOINT, true, "StripeWebhook"),
            endpoint(PLATFORM_ENDPOINT, false, "StripePlatformWebhook"),
        ],
    }
}

/// The input is a request. It comes twice, as CloudFormation repeats one whose answer it has not seen.
pub(super) fn custom_resource(input: &[u8]) -> bool {
    let Ok(payload) = serde_json::from_slice::<Value>(input) else {
        return false;
    };
    let ports = EndpointPorts::default();
    let mut deps = dependencies(ports.clone(), &ports);
    deps.policy = samples_policy();
    deps.response_hosts = ResponseHosts::new(&deps.policy.stack_id, "amazonaws.com", None);
    let run = || watched(handle_request(payload.clone(), pending(), &deps)).is_ok();
    let (first, again) = (run(), run());
    let url = payload["ResponseURL"].as_str().unwrap_or_default();
    let url = deps.response_hosts.check(&url.to_owned().into());
    let is_request =
        serde_json::from_value::<ResourceRequest>(payload.clone()).is_ok() && url.is_ok();
    assert_eq!((first, again), (is_request, is_request));
    let world = ports.world();
    for endpoint in &world.endpoints {
        assert_eq!(endpoint.url, deps.policy.url, "no other URL is ever set");
    }
    let mut secrets = world.versions.keys();
    let endpoints = &deps.policy.endpoints;
    assert!(secrets.all(|arn| endpoints.iter().any(|endpoint| endpoint.secret_arn == *arn)));
    assert_eq!(world.answers.len(), if is_request { 2 } else { 0 });
    let answers: Vec<Value> = world
        .answers
        .iter()
        .map(|(_, answer)| {
            check_secrets(answer);
            serde_json::from_str(answer).unwrap()
        })
        .collect();
    for answer in &answers {
        let reason = answer["Reason"].as_str().unwrap_or_default();
        assert!(reason.len() <= REASON_BYTES_MAX, "{answer}");
        let own = serde_json::to_string(&reason).unwrap().len();
        assert!(own <= REASON_BYTES_MAX, "{own} bytes as JSON: {answer}");
        for id in ["StackId", "RequestId", "LogicalResourceId"] {
            assert_eq!(answer[id], payload[id], "{answer}");
        }
    }
    if let [first, again] = &answers[..] {
        assert_eq!(first, again, "the same outcome");
        assert!(world.endpoints.len() <= 1, "one endpoint at most");
    }
    answers.iter().any(|answer| answer["Status"] == "SUCCESS")
}
