//! Fuzz target `custom_resource`: CloudFormation's requests to `webhook-secret`, over an in-memory Stripe and secret.

use std::future::pending;

use billhook_testkit::custom_resource::{EndpointPorts, dependencies};
use serde_json::Value;
use webhook_secret::{ResourceRequest, handle_request};

use super::{check_secrets, watched};

/// As CloudFormation says.
const REASON_BYTES_MAX: usize = 4096;

/// The input is a request. It comes twice, as CloudFormation repeats one whose answer it has not seen.
pub(super) fn custom_resource(input: &[u8]) -> bool {
    let Ok(payload) = serde_json::from_slice::<Value>(input) else {
        return false;
    };
    let ports = EndpointPorts::default();
    let deps = dependencies(ports.clone(), &ports);
    let run = || watched(handle_request(payload.clone(), pending(), &deps)).is_ok();
    let (first, again) = (run(), run());
    let is_request = serde_json::from_value::<ResourceRequest>(payload.clone()).is_ok();
    assert_eq!((first, again), (is_request, is_request));
    let world = ports.world();
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
