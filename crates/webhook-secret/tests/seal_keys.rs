//! Requests for the keys that seal stored events.

#![cfg(test)]

use std::future::pending;

use billhook_core::seal::{EventSealer, SealKeys as _, SealPublicKeys};
use billhook_testkit::custom_resource::{
    EndpointPorts, RESPONSE_URL, STACK_ID, StepFault, dependencies,
};
use serde_json::{Value, json};
use webhook_secret::handle_request;

fn request(kind: &str, old: &str, new: &str) -> Value {
    json!({
        "RequestType": kind,
        "ResponseURL": RESPONSE_URL,
        "StackId": STACK_ID,
        "RequestId": "r1",
        "ResourceType": "Custom::SealKeys",
        "LogicalResourceId": "SealKeys",
        "PhysicalResourceId": if kind == "Create" { "" } else { "seal-keys" },
        "OldResourceProperties": { "ServiceToken": "arn", "RotationToken": old },
        "ResourceProperties": { "ServiceToken": "arn", "RotationToken": new },
    })
}

/// The answer's status and id, the public key of the private one, and all public keys.
async fn handle(
    ports: &EndpointPorts,
    request: Value,
) -> (String, Option<[u8; 32]>, SealPublicKeys) {
    let deps = dependencies(ports.clone(), ports);
    handle_request(request, pending(), &deps).await.unwrap();
    let world = ports.world();
    let answer: Value = serde_json::from_str(&world.answers.last().unwrap().1).unwrap();
    let sealer = EventSealer::parse(&world.secret("arn:seal").into()).unwrap();
    let keys = SealPublicKeys::parse(world.secret("arn:seal-public")).unwrap();
    let told = format!("{} {}", answer["Status"], answer["PhysicalResourceId"]);
    (told, sealer.map(|sealer| sealer.public_key()), keys)
}

#[tokio::test]
async fn keys_are_made_kept_replaced_and_left() {
    let ports = EndpointPorts::default();
    let done = r#""SUCCESS" "seal-keys""#;
    let (told, first, keys) = handle(&ports, request("Create", "", "1")).await;
    assert_eq!((told.as_str(), keys.len()), (done, 1));
    assert!(keys.contains(&first.unwrap()));
    // Lambda repeats a request.
    for again in [
        request("Create", "", "1"),
        request("Update", "1", "1"),
        request("Delete", "1", "1"),
    ] {
        assert_eq!(
            handle(&ports, again).await,
            (done.to_owned(), first, keys.clone())
        );
    }
    let (told, second, keys) = handle(&ports, request("Update", "1", "2")).await;
    assert_eq!((told.as_str(), keys.len()), (done, 2));
    assert!(second != first && keys.contains(&first.unwrap()) && keys.contains(&second.unwrap()));
}

#[tokio::test]
async fn keys_that_cannot_be_made_fail_the_deployment() {
    let ports = EndpointPorts::default();
    ports.world().fault = Some((1, StepFault::Before));
    let (told, key, keys) = handle(&ports, request("Create", "", "1")).await;
    assert!(told.starts_with(r#""FAILED""#), "{told}");
    assert_eq!((key, keys.len()), (None, 0));
}

#[tokio::test]
async fn keys_are_not_replaced_for_another_stack_or_resource() {
    let ports = EndpointPorts::default();
    handle(&ports, request("Create", "", "1")).await;
    let before = ports.world().versions.clone();
    for (name, value) in [
        ("StackId", "arn:aws:cloudformation:eu-west-1:1:stack/two/2"),
        ("LogicalResourceId", "Hook"),
    ] {
        let mut forged = request("Update", "1", "2");
        forged[name] = json!(value);
        let (told, ..) = handle(&ports, forged).await;
        assert!(told.starts_with(r#""FAILED""#), "{told}");
        assert_eq!(ports.world().versions, before);
    }
}
