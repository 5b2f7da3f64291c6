//! Every request, failing at every step in every way, and repeated: over ports in memory that keep Stripe's rules for
//! idempotency keys. One more runs against the local Stripe through the real client.

#![cfg(test)]

use std::future::{pending, ready};
use std::ops::Deref;
use std::time::Duration;

use billhook_adapters::stripe::{NewEndpoint, StripeClient};
use billhook_core::endpoint::plan::{ENDPOINTS_MAX, QUIET_TYPE};
use billhook_core::error::error_chain;
use billhook_core::tasks::checkpoint::cursor_limit_after_delete_s;
use billhook_testkit::custom_resource::{
    EndpointPorts, RESPONSE_URL, SIGNING_SECRET_ARN, STACK_ID, START_S, StepFault, dependencies,
};
use billhook_testkit::stripe::{Config, Fault, LocalStripe, TEST_KEY};
use rstest::rstest;
use serde_json::{Value, json};
use webhook_secret::ports::*;
use webhook_secret::{KNOWN_AFTER, handle_request};

const ARN: &str = SIGNING_SECRET_ARN;
const URL: &str = RESPONSE_URL;
/// More than any request takes.
const STEPS: u32 = 18;

/// The ports, and what is asked of a run over them.
#[derive(Clone, Default)]
struct RequestPorts(EndpointPorts);

impl Deref for RequestPorts {
    type Target = EndpointPorts;
    fn deref(&self) -> &EndpointPorts {
        &self.0
    }
}

/// What a template says, at one revision.
fn properties(revision: &str) -> Value {
    let (url, token) = revision.split_once('/').unwrap();
    json!({"ServiceToken": "arn", "Url": format!("https://{url}"), "SecretArn": ARN, "RotationToken": token})
}

fn request(kind: &str, id: &str, physical_id: &str, old: &str, new: &str) -> Value {
    json!({
        "RequestType": kind,
        "ResponseURL": URL,
        "StackId": STACK_ID,
        "RequestId": id,
        "ResourceType": "Custom::StripeWebhookEndpoint",
        "LogicalResourceId": "Hook",
        "PhysicalResourceId": physical_id,
        "OldResourceProperties": properties(old),
        "ResourceProperties": properties(new),
    })
}

fn wanted_url(payload: &Value) -> String {
    let url = payload["ResourceProperties"]["Url"].as_str();
    url.unwrap_or_default().to_owned()
}

fn create() -> Value {
    request("Create", "r1", "", "a/1", "a/1")
}

fn update(id: &str, physical_id: &str, old: &str, new: &str) -> Value {
    request("Update", id, physical_id, old, new)
}

fn delete(physical_id: &str) -> Value {
    request("Delete", "r9", physical_id, "a/1", "a/1")
}

impl RequestPorts {
    /// The last answer's status and id, with everything said within the rules. CloudFormation has set the function's
    /// variables to what the request asks for.
    async fn run(&self, payload: &Value) -> Option<(String, String)> {
        self.run_with_variables(payload, &wanted_url(payload)).await
    }

    async fn run_with_variables(&self, payload: &Value, url: &str) -> Option<(String, String)> {
        {
            let mut world = self.world();
            world.steps = 0;
            world.cursor_s = START_S;
        }
        let hangs = matches!(
            self.world().fault,
            Some((_, StepFault::Hangs | StepFault::HangsAfter))
        );
        let before = self.world().answers.len();
        let mut deps = dependencies(self.0.clone(), self);
        deps.policy.url = url.to_owned();
        let handling = async {
            match hangs {
                true => handle_request(payload.clone(), ready(()), &deps).await,
                false => handle_request(payload.clone(), pending(), &deps).await,
            }
        };
        let handled = tokio::select! {
            handled = handling => Some(handled),
            () = self.died() => None,
        };
        let world = self.world();
        if let Some(handled) = handled {
            assert_eq!(
                handled.is_ok(),
                world.answers.len() > before,
                "answered, or an error so that it is repeated"
            );
        }
        for (begins_quietly, replaces) in &world.creations {
            assert_eq!(begins_quietly, replaces, "a replacement, and nothing else");
        }
        let answer = last_answer(&world.answers, before)?;
        let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap().to_owned();
        assert_eq!(
            (text("RequestId"), text("LogicalResourceId")),
            (
                payload["RequestId"].as_str().unwrap().to_owned(),
                "Hook".to_owned()
            )
        );
        assert_eq!(answer.get("Reason").is_some(), text("Status") == "FAILED");
        Some((text("Status"), text("PhysicalResourceId")))
    }

    async fn succeeds(&self, payload: &Value) -> String {
        let (status, id) = self.run(payload).await.unwrap();
        assert_eq!(status, "SUCCESS", "{:?}", self.world().answers.last());
        id
    }

    /// The id a repeat ends with; `None` where it fails as the first run did, after that had removed what it made.
    async fn repeated(&self, payload: &Value, first: Option<(String, String)>) -> Option<String> {
        let again = self.run(payload).await.unwrap();
        if again.0 == "FAILED" {
            assert_eq!(first, Some(again));
            return None;
        }
        Some(again.1)
    }

    fn answer(&self, number: usize) -> Value {
        read_answer(&self.world().answers[number])
    }

    fn last_answer(&self) -> Value {
        read_answer(self.world().answers.last().unwrap())
    }

    fn fault(&self, fault: Option<(u32, StepFault)>) {
        self.world().fault = fault;
    }

    fn ids(&self) -> Vec<String> {
        self.world()
            .endpoints
            .iter()
            .map(|e| e.id.clone())
            .collect()
    }

    fn document(&self) -> Value {
        serde_json::from_str(self.world().secret(ARN)).unwrap()
    }

    /// The one endpoint, and its own secret stored as current.
    #[track_caller]
    fn is_settled_with(&self, id: &str) {
        assert_eq!(self.ids(), [id]);
        let document = self.document();
        assert_eq!(document["endpoint_id"], id);
        assert_eq!(document["signing_secret"], id.replace("we_", "whsec_"));
    }

    async fn created() -> Self {
        let ports = Self::default();
        assert_eq!(ports.succeeds(&create()).await, "we_1");
        ports
    }
}

/// The answer as CloudFormation reads it: of bounded size, and to its own address.
fn read_answer((url, body): &(String, String)) -> Value {
    assert_eq!(url, URL);
    let is_clean = !body.contains("whsec_") && !body.contains("canary");
    assert!(body.len() <= 4096 && is_clean, "{body}");
    serde_json::from_str(body).unwrap()
}

fn last_answer(answers: &[(String, String)], before: usize) -> Option<Value> {
    answers.get(before..)?.last().map(read_answer)
}

/// What a run leaves that ends by itself, its failure included.
fn answered_faults() -> impl Iterator<Item = (u32, StepFault)> {
    faults().filter(|(_, how)| matches!(how, StepFault::Before | StepFault::After))
}

fn faults() -> impl Iterator<Item = (u32, StepFault)> {
    let ways = [
        StepFault::Before,
        StepFault::After,
        StepFault::Panics,
        StepFault::Hangs,
        StepFault::HangsAfter,
        StepFault::Dies,
        StepFault::DiesAfter,
    ];
    (1..=STEPS).flat_map(move |step| ways.map(|how| (step, how)))
}

#[tokio::test]
async fn a_repeated_creation_ends_with_one_endpoint_wherever_the_first_failed() {
    for (fault, replays_keep_secrets) in faults().flat_map(|fault| [(fault, true), (fault, false)])
    {
        let ports = RequestPorts::default();
        ports.world().replays_keep_secrets = replays_keep_secrets;
        ports.fault(Some(fault));
        let first = ports.run(&create()).await;
        ports.fault(None);
        let Some(id) = ports.repeated(&create(), first).await else {
            assert!(ports.ids().is_empty(), "{fault:?}");
            continue;
        };
        assert_eq!(ports.succeeds(&create()).await, id, "{fault:?}");
        ports.is_settled_with(&id);
    }
}

#[tokio::test]
async fn deleting_a_failed_creation_leaves_nothing_wherever_it_failed() {
    for fault in faults() {
        let ports = RequestPorts::default();
        ports.fault(Some(fault));
        let answer = ports.run(&create()).await;
        ports.fault(None);
        if let Some((_, id)) = answer {
            assert_eq!(ports.succeeds(&delete(&id)).await, id);
            assert!(ports.ids().is_empty(), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_replacement_is_repeated_rolled_back_and_cleaned_up_wherever_it_failed() {
    for fault in faults() {
        // Repeated: both endpoints live until the old one is deleted, and both secrets are known.
        let ports = RequestPorts::created().await;
        let replace = update("r2", "we_1", "a/1", "b/2");
        ports.fault(Some(fault));
        let first = ports.run(&replace).await;
        ports.fault(None);
        if let Some(id) = ports.repeated(&replace, first).await {
            assert_ne!(id, "we_1");
            assert_eq!(ports.ids(), ["we_1", &id], "{fault:?}");
            let previous = &ports.document()["previous"];
            assert!(
                previous
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|entry| entry["endpoint_id"] == "we_1"),
                "{fault:?}"
            );
            ports.succeeds(&delete("we_1")).await;
            ports.is_settled_with(&id);
        } else {
            ports.is_settled_with("we_1");
        }

        // Rolled back, before or after the function's variables are; without an answer CloudFormation knows of nothing but
        // the old one.
        for variables in ["https://a", "https://b"] {
            let ports = RequestPorts::created().await;
            ports.fault(Some(fault));
            let answer = ports.run(&replace).await;
            ports.fault(None);
            let there = answer.map_or("we_1".to_owned(), |(_, id)| id);
            let back = update("r3", &there, "b/2", "a/1");
            let back = ports.run_with_variables(&back, variables).await;
            let expected = ("SUCCESS".to_owned(), "we_1".to_owned());
            assert_eq!(back, Some(expected), "{fault:?} {variables}");
            if there != "we_1" {
                ports.succeeds(&delete(&there)).await;
            }
            ports.is_settled_with("we_1");
            assert_eq!(ports.world().endpoints[0].url, "https://a");
        }

        // Rolled back while nobody can tell CloudFormation so, and deployed again.
        let ports = RequestPorts::created().await;
        ports.fault(Some(fault));
        ports.run(&replace).await;
        ports.fault(None);
        let id = ports.succeeds(&update("r3", "we_1", "a/1", "c/3")).await;
        ports.succeeds(&delete("we_1")).await;
        ports.is_settled_with(&id);
        assert_eq!(ports.world().endpoints[0].url, "https://c");
    }
}

#[tokio::test]
async fn a_creation_that_nobody_answered_is_made_good_by_the_next() {
    for fault in faults() {
        let ports = RequestPorts::default();
        ports.fault(Some(fault));
        let answer = ports.run(&create()).await;
        ports.fault(None);
        let unknown = answer.map_or("stack-Hook-1ABC".to_owned(), |(_, id)| id);
        ports.succeeds(&delete(&unknown)).await;
        ports.world().versions.clear();
        let id = ports
            .succeeds(&request("Create", "r2", "", "a/1", "a/1"))
            .await;
        ports.is_settled_with(&id);
    }
}

#[tokio::test]
async fn a_replacement_begins_quietly_and_ends_with_every_type() {
    let ports = RequestPorts::created().await;
    assert_eq!(
        ports.world().waited,
        Duration::ZERO,
        "the first waits for nothing"
    );
    ports.succeeds(&update("r2", "we_1", "a/1", "a/2")).await;
    let world = ports.world();
    assert_eq!(world.waited, KNOWN_AFTER);
    let events = |at: usize| world.endpoints[at].enabled_events.clone();
    assert_eq!(events(1), events(0));
    assert!(!events(0).contains(&QUIET_TYPE.to_owned()));
}

#[tokio::test]
async fn deleting_an_endpoint_first_sets_the_cursors_back_wherever_it_failed() {
    for fault in faults() {
        let ports = RequestPorts::created().await;
        ports.fault(Some(fault));
        ports.run(&delete("we_1")).await;
        if ports.ids().is_empty() {
            let world = ports.world();
            assert!(
                world.cursor_s <= cursor_limit_after_delete_s(world.now()),
                "{fault:?}"
            );
        }
    }
}

#[tokio::test]
async fn deleting_the_current_one_makes_the_other_live_one_current_wherever_it_failed() {
    for fault in faults() {
        let ports = RequestPorts::created().await;
        let there = ports.succeeds(&update("r2", "we_1", "a/1", "b/2")).await;
        ports.fault(Some(fault));
        ports.run(&delete(&there)).await;
        let current = ports.document()["endpoint_id"].as_str().unwrap().to_owned();
        assert!(ports.ids().contains(&current), "{fault:?}");
        ports.fault(None);
        ports.succeeds(&delete(&there)).await;
        ports.is_settled_with("we_1");
    }
}

#[tokio::test]
async fn a_rollback_takes_the_old_endpoint_again_even_after_its_secret_ran_out() {
    let ports = RequestPorts::created().await;
    let there = ports.succeeds(&update("r2", "we_1", "a/1", "b/2")).await;
    ports.world().waited += Duration::from_hours(25);
    let back = update("r3", &there, "b/2", "a/1");
    assert_eq!(ports.succeeds(&back).await, "we_1");
    ports.succeeds(&delete(&there)).await;
    ports.is_settled_with("we_1");
}

#[tokio::test]
async fn a_failure_leaves_no_new_endpoint_and_no_dead_one_as_current() {
    for fault in answered_faults() {
        let ports = RequestPorts::default();
        ports.fault(Some(fault));
        if ports.run(&create()).await.unwrap().0 == "FAILED" {
            assert!(ports.ids().is_empty(), "{fault:?}");
        }

        let ports = RequestPorts::created().await;
        ports.fault(Some(fault));
        if ports
            .run(&update("r2", "we_1", "a/1", "b/2"))
            .await
            .unwrap()
            .0
            == "FAILED"
        {
            assert_eq!(ports.ids(), ["we_1"], "{fault:?}");
        }
        let current = ports.document()["endpoint_id"].as_str().unwrap().to_owned();
        assert!(ports.ids().contains(&current), "{fault:?}");
    }
}

#[tokio::test]
async fn deleting_a_failed_creation_does_not_touch_a_later_success() {
    for fault in faults() {
        let ports = RequestPorts::default();
        ports.fault(Some(fault));
        let Some((_, failed)) = ports.run(&create()).await else {
            continue;
        };
        ports.fault(None);
        if !failed.starts_with("create-failed:") {
            continue;
        }
        let id = ports
            .succeeds(&request("Create", "r2", "", "a/1", "a/1"))
            .await;
        ports.succeeds(&delete(&failed)).await;
        ports.is_settled_with(&id);
    }
}

#[tokio::test]
async fn the_rollback_itself_may_fail_and_be_repeated() {
    for fault in faults() {
        let ports = RequestPorts::created().await;
        let there = ports.succeeds(&update("r2", "we_1", "a/1", "b/2")).await;
        let back = update("r3", &there, "b/2", "a/1");
        ports.fault(Some(fault));
        ports.run(&back).await;
        ports.fault(None);
        assert_eq!(ports.succeeds(&back).await, "we_1", "{fault:?}");
        ports.succeeds(&delete(&there)).await;
        ports.is_settled_with("we_1");
    }
}

#[tokio::test]
async fn an_update_in_place_keeps_id_and_secret_wherever_it_failed() {
    for fault in faults() {
        let ports = RequestPorts::created().await;
        let change = update("r2", "we_1", "a/1", "b/1");
        ports.fault(Some(fault));
        if let Some((_, id)) = ports.run(&change).await {
            assert_eq!(id, "we_1");
        }
        ports.fault(None);
        assert_eq!(ports.succeeds(&change).await, "we_1");
        ports.is_settled_with("we_1");
        assert_eq!(ports.world().endpoints[0].url, "https://b");
    }
}

#[tokio::test]
async fn a_deletion_is_repeated_wherever_it_failed() {
    for fault in faults() {
        let ports = RequestPorts::created().await;
        ports.fault(Some(fault));
        ports.run(&delete("we_1")).await;
        ports.fault(None);
        ports.succeeds(&delete("we_1")).await;
        assert!(ports.ids().is_empty());
    }
}

#[tokio::test]
async fn a_deletion_outlasts_a_short_failure_because_cloudformation_asks_once() {
    // The first three steps read and write the note, and read the key.
    for fault in answered_faults().filter(|(step, _)| *step > 3) {
        let ports = RequestPorts::created().await;
        let there = ports.succeeds(&update("r2", "we_1", "a/1", "b/2")).await;
        ports.fault(Some(fault));
        ports.succeeds(&delete("we_1")).await;
        ports.is_settled_with(&there);
    }
}

#[tokio::test]
async fn an_endpoint_deleted_by_hand_is_made_anew() {
    let ports = RequestPorts::created().await;
    ports.world().endpoints.clear();
    let id = ports.succeeds(&update("r2", "we_1", "a/1", "b/1")).await;
    assert_eq!(id, "we_2");
    ports.succeeds(&delete("we_1")).await;
    ports.is_settled_with("we_2");
}

#[tokio::test]
async fn an_endpoint_that_is_not_ours_is_left_alone() {
    let ports = RequestPorts::created().await;
    for change in [
        ("billhook_stack", "another"),
        ("billhook_logical_id", "Other"),
    ] {
        ports.world().endpoints[0]
            .metadata
            .insert(change.0.to_owned(), change.1.to_owned());
        ports.succeeds(&delete("we_1")).await;
        assert_eq!(ports.ids(), ["we_1"]);
        ports.world().endpoints[0].metadata.clear();
        ports.succeeds(&delete("we_1")).await;
        assert_eq!(ports.ids(), ["we_1"]);
    }
    assert_eq!(ports.succeeds(&delete("we_unknown")).await, "we_unknown");
    assert_eq!(
        ports.succeeds(&delete("something else")).await,
        "something else"
    );
}

#[tokio::test]
async fn without_a_key_the_first_deploy_goes_through_and_a_rotation_makes_the_endpoint() {
    let ports = RequestPorts::default();
    ports.world().has_no_key = true;
    assert_eq!(ports.succeeds(&create()).await, "unconfigured:Hook");
    let state = ports.answer(0)["Data"]["State"].clone();
    let state = state.as_str().unwrap();
    assert!(state.contains("give RotationToken a new value"), "{state}");
    assert_eq!(
        ports
            .succeeds(&update("r2", "unconfigured:Hook", "a/1", "a/2"))
            .await,
        "unconfigured:Hook"
    );
    ports.world().has_no_key = false;
    assert_eq!(
        ports
            .succeeds(&update("r3", "unconfigured:Hook", "a/2", "a/3"))
            .await,
        "we_1"
    );
    ports.succeeds(&delete("unconfigured:Hook")).await;
    ports.is_settled_with("we_1");

    ports.world().has_no_key = true;
    for change in [
        update("r4", "we_1", "a/3", "a/4"),
        update("r5", "we_1", "a/3", "b/3"),
    ] {
        assert_eq!(
            ports.run(&change).await.unwrap(),
            ("FAILED".to_owned(), "we_1".to_owned())
        );
    }
}

#[rstest]
#[case(json!({"Url": "https://a", "SecretArn": ARN, "Rotation": "2"}), "properties: Rotation is unknown")]
#[case(json!({}), "properties: Url is missing; SecretArn is missing")]
#[tokio::test]
async fn a_wrong_template_fails_by_name_and_can_be_deleted(
    #[case] properties: Value,
    #[case] reason: &str,
) {
    let ports = RequestPorts::default();
    let mut wrong = create();
    wrong["ResourceProperties"] = properties;
    let (status, id) = ports.run(&wrong).await.unwrap();
    assert_eq!(
        (status.as_str(), id.as_str()),
        ("FAILED", "create-failed:Hook:r1")
    );
    assert_eq!(ports.answer(0)["Reason"], reason);
    wrong["RequestType"] = json!("Delete");
    wrong["PhysicalResourceId"] = json!(id);
    ports.succeeds(&wrong).await;
}

#[tokio::test]
async fn a_reason_of_any_size_fits_the_answer() {
    let ports = RequestPorts::default();
    let mut wrong = create();
    wrong["ResourceProperties"][format!("\u{1}é{}", "x\u{2}".repeat(5_000))] = json!("");
    assert_eq!(ports.run(&wrong).await.unwrap().0, "FAILED");
}

#[tokio::test]
async fn what_is_no_request_is_an_error_that_names_no_url() {
    let ports = RequestPorts::default();
    let payload = json!({"ResponseURL": URL, "RequestType": "Create"});
    let error = handle_request(payload, pending(), &dependencies(ports.0.clone(), &ports))
        .await
        .unwrap_err();
    assert!(!error_chain(&error).contains("canary"));
}

#[tokio::test]
async fn a_full_account_is_told_with_the_limit_and_the_fallback() {
    let local = LocalStripe::start(Config::default()).await.unwrap();
    let stripe = StripeClient::new(&local.base_url(), TEST_KEY.into(), false).unwrap();
    for number in 0..ENDPOINTS_MAX {
        let new = NewEndpoint {
            url: "https://other",
            connect: false,
            enabled_events: &["charge.refunded".to_owned()],
            api_version: "2026-10-28.endive",
            description: "",
            metadata: &[],
        };
        let key = number.to_string();
        stripe.create_webhook_endpoint(&new, &key).await.unwrap();
    }
    let ports = RequestPorts::default();
    let mut deps = dependencies(StripeOverHttp(stripe), &ports);
    deps.policy.url = wanted_url(&create());
    handle_request(create(), pending(), &deps).await.unwrap();
    let answer = ports.answer(0).clone();
    assert_eq!(answer["Status"], "FAILED");
    let reason = answer["Reason"].as_str().unwrap();
    assert!(
        reason.starts_with("the stripe account has 16 of at most 16 webhook endpoints")
            && reason.contains("stripe webhook_endpoints delete"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_stripe_that_fails_or_drops_the_connection_leaves_the_old_endpoint_at_work() {
    for (after, status, carried_out) in
        (0..4).flat_map(|after| [(after, Some(500), false), (after, None, true)])
    {
        let local = LocalStripe::start(Config::default()).await.unwrap();
        let stripe = StripeClient::new(&local.base_url(), TEST_KEY.into(), false).unwrap();
        let ports = RequestPorts::default();
        let run = async |payload: Value| {
            let mut deps = dependencies(StripeOverHttp(stripe.clone()), &ports);
            deps.policy.url = wanted_url(&payload);
            handle_request(payload, pending(), &deps).await.unwrap();
            let answer = ports.last_answer();
            answer["PhysicalResourceId"].as_str().unwrap().to_owned()
        };
        let first = run(create()).await;
        // All tries of one call.
        for fault in 0..3 {
            local.fault(Fault {
                status,
                carried_out,
                after: if fault == 0 { after } else { 0 },
                ..Fault::default()
            });
        }
        let there = run(update("r2", &first, "a/1", "b/2")).await;
        let back = run(update("r3", &there, "b/2", "a/1")).await;
        assert_eq!(back, first, "{after} {status:?}");
        if there != first {
            run(delete(&there)).await;
        }
        let endpoints = local.state()["endpoints"].clone();
        let ids: Vec<&String> = endpoints.as_object().unwrap().keys().collect();
        assert_eq!(ids, [&first], "{after} {status:?}");
        assert_eq!(ports.document()["endpoint_id"], json!(first));
    }
}

struct StripeOverHttp(StripeClient);

impl StripeConnector for StripeOverHttp {
    type Endpoints = StripeClient;
    async fn open(&self) -> Result<Option<StripeClient>, AdapterError> {
        Ok(Some(self.0.clone()))
    }
}

#[tokio::test]
async fn it_works_against_the_local_stripe() {
    let local = LocalStripe::start(Config::default()).await.unwrap();
    let ports = RequestPorts::default();
    let stripe = StripeClient::new(&local.base_url(), TEST_KEY.into(), false).unwrap();
    let run = async |payload: Value| {
        let mut deps = dependencies(StripeOverHttp(stripe.clone()), &ports);
        deps.policy.url = wanted_url(&payload);
        handle_request(payload, pending(), &deps).await.unwrap();
        let answer = ports.last_answer();
        assert_eq!(answer["Status"], "SUCCESS", "{answer}");
        answer["PhysicalResourceId"].as_str().unwrap().to_owned()
    };
    let first = run(create()).await;
    assert_eq!(run(create()).await, first);
    let second = run(update("r2", &first, "a/1", "b/2")).await;
    assert_ne!(first, second);
    run(delete(&first)).await;
    let endpoints = local.state()["endpoints"].clone();
    assert_eq!(endpoints.as_object().unwrap().len(), 1);
    assert_eq!(
        endpoints[&second]["secret"],
        ports.document()["signing_secret"]
    );
    run(delete(&second)).await;
    assert_eq!(local.state()["endpoints"], json!({}));
}

/// Lambda repeats what ended in an error: also where the answer was taken and only that was not learnt.
#[tokio::test]
async fn a_repeat_that_fails_takes_nothing_away_from_the_run_that_was_believed() {
    for fault in faults() {
        let ports = RequestPorts::default();
        assert_eq!(ports.succeeds(&create()).await, "we_1");
        ports.fault(Some(fault));
        ports.run(&create()).await;
        ports.is_settled_with("we_1");

        let ports = RequestPorts::created().await;
        let replace = update("r2", "we_1", "a/1", "b/2");
        let there = ports.succeeds(&replace).await;
        ports.fault(Some(fault));
        ports.run(&replace).await;
        ports.fault(None);
        ports.succeeds(&delete("we_1")).await;
        ports.is_settled_with(&there);
    }
}

#[tokio::test]
async fn deleting_a_creation_that_nobody_answered_leaves_nothing_wherever_it_ended() {
    for fault in faults() {
        let ports = RequestPorts::default();
        ports.fault(Some(fault));
        let answer = ports.run(&create()).await;
        ports.fault(None);
        if answer.is_none() {
            ports.succeeds(&delete("stack-Hook-1ABC")).await;
            assert!(ports.ids().is_empty(), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_repeat_that_comes_after_the_rollback_makes_nothing() {
    let ports = RequestPorts::created().await;
    let replace = update("r2", "we_1", "a/1", "b/2");
    let there = ports.succeeds(&replace).await;
    let back = update("r3", &there, "b/2", "a/1");
    assert_eq!(ports.succeeds(&back).await, "we_1");
    ports.succeeds(&delete(&there)).await;
    ports.run(&replace).await;
    ports.is_settled_with("we_1");
}

#[tokio::test]
async fn a_repeat_that_later_requests_have_overtaken_leaves_their_endpoint_alone() {
    let ports = RequestPorts::created().await;
    let replace = update("r2", "we_1", "a/1", "b/2");
    let second = ports.succeeds(&replace).await;
    let overtaken = |answer: Option<(String, String)>| {
        assert_eq!(answer.unwrap().0, "FAILED");
        let reason = ports.last_answer()["Reason"].to_string();
        assert!(
            reason.contains("is in use and was made by a later request"),
            "{reason}"
        );
    };
    ports.succeeds(&delete("we_1")).await;

    let third = ports.succeeds(&update("r4", &second, "b/2", "c/3")).await;
    let back = update("r5", &third, "c/3", "b/2");
    assert_eq!(ports.succeeds(&back).await, second);
    ports.succeeds(&delete(&third)).await;
    let fourth = ports.succeeds(&update("r7", &second, "b/2", "d/4")).await;
    ports.succeeds(&delete(&second)).await;
    // Neither made an endpoint that still lives: one replaced, the other only went back.
    for request in [&replace, &back] {
        overtaken(ports.run(request).await);
        ports.is_settled_with(&fourth);
    }
}

#[tokio::test]
async fn a_replacement_begins_quietly_even_where_a_person_spoilt_the_secret() {
    let ports = RequestPorts::created().await;
    let spoilt = r#"{"signing_secret":"whsec_1""#.to_owned();
    ports.world().put_secret(ARN, &spoilt);
    let there = ports.succeeds(&update("r2", "we_1", "a/1", "a/2")).await;
    assert_eq!(ports.world().waited, KNOWN_AFTER);
    ports.succeeds(&delete("we_1")).await;
    ports.is_settled_with(&there);
}

#[rstest]
#[case::rotation("a/2")]
#[case::in_place("b/1")]
#[tokio::test]
async fn a_key_that_stripe_refuses_leaves_the_rollback_and_the_deletion_open(#[case] wanted: &str) {
    for has_no_key in [false, true] {
        let ports = RequestPorts::created().await;
        ports.world().refuses_key = !has_no_key;
        ports.world().has_no_key = has_no_key;
        let failed = ports.run(&update("r2", "we_1", "a/1", wanted)).await;
        assert_eq!(failed, Some(("FAILED".to_owned(), "we_1".to_owned())));
        assert_eq!(
            ports.succeeds(&update("r3", "we_1", wanted, "a/1")).await,
            "we_1"
        );
        ports.is_settled_with("we_1");
        assert_eq!(ports.succeeds(&delete("we_1")).await, "we_1");
        assert_eq!(ports.ids(), ["we_1"], "left at Stripe, and reported");
    }
}

#[tokio::test]
async fn a_first_key_that_stripe_refuses_leaves_the_rollback_open() {
    let ports = RequestPorts::default();
    ports.world().has_no_key = true;
    let nothing = ports.succeeds(&create()).await;
    ports.world().has_no_key = false;
    ports.world().refuses_key = true;
    let failed = ports.run(&update("r2", &nothing, "a/1", "a/2")).await;
    assert_eq!(failed, Some(("FAILED".to_owned(), nothing.clone())));
    let back = update("r3", &nothing, "a/2", "a/1");
    assert_eq!(ports.succeeds(&back).await, nothing);
    // And with a key that works, the rollback still makes no endpoint.
    ports.world().refuses_key = false;
    assert_eq!(ports.succeeds(&back).await, nothing);
    assert!(ports.ids().is_empty());
    let made = ports.succeeds(&update("r4", &nothing, "a/1", "a/2")).await;
    ports.is_settled_with(&made);
}

#[tokio::test]
async fn another_resources_failure_is_rolled_back_without_stripe_within_the_hour() {
    let replaced = async || {
        let ports = RequestPorts::created().await;
        let there = ports.succeeds(&update("r2", "we_1", "a/1", "b/2")).await;
        ports.world().refuses_key = true;
        (ports, update("r3", &there, "b/2", "a/1"), there)
    };
    let (ports, back, there) = replaced().await;
    assert_eq!(ports.succeeds(&back).await, "we_1");
    assert_eq!(ports.document()["endpoint_id"], "we_1", "without Stripe");
    ports.succeeds(&delete(&there)).await;
    assert_eq!(
        ports.ids(),
        ["we_1", &there],
        "left at Stripe, and reported"
    );
    // The next change that Stripe takes also takes what was left.
    ports.world().refuses_key = false;
    let next = ports.succeeds(&update("r4", "we_1", "a/1", "c/3")).await;
    ports.succeeds(&delete("we_1")).await;
    ports.is_settled_with(&next);

    // Later it is a change that somebody wants.
    let (ports, back, there) = replaced().await;
    ports.world().waited += Duration::from_secs(2 * 60 * 60);
    assert_eq!(ports.run(&back).await, Some(("FAILED".to_owned(), there)));
}

#[tokio::test]
async fn a_revert_without_an_endpoint_makes_one_once_there_is_a_key() {
    let ports = RequestPorts::default();
    ports.world().has_no_key = true;
    let nothing = ports.succeeds(&create()).await;
    let change = update("r2", &nothing, "a/1", "a/2");
    assert_eq!(ports.succeeds(&change).await, nothing);
    ports.world().has_no_key = false;
    let made = ports.succeeds(&update("r3", &nothing, "a/2", "a/1")).await;
    ports.is_settled_with(&made);
}

/// The jobs table is kept when the stack is deleted, and so are the notes in it.
#[tokio::test]
async fn a_deleted_stacks_note_leads_the_next_stack_nowhere() {
    let ports = RequestPorts::created().await;
    ports.succeeds(&delete("we_1")).await;
    assert!(ports.world().applied.is_empty());
    // Even if it could not be removed.
    let ports = RequestPorts::created().await;
    let left = ports.world().applied.clone();
    ports.succeeds(&delete("we_1")).await;
    ports.world().applied = left;
    let again = request("Create", "r5", "", "b/2", "b/2");
    let there = ports.succeeds(&again).await;
    ports.world().refuses_key = true;
    let change = update("r6", &there, "b/2", "a/1");
    assert_eq!(
        ports.run(&change).await,
        Some(("FAILED".to_owned(), there.clone()))
    );
    ports.is_settled_with(&there);
}

/// The time of the first run was up after it had stored the new secret, and that of the rollback at every step.
#[tokio::test]
async fn a_rollback_that_runs_out_of_time_has_the_standing_secret_current() {
    let mut tried = 0;
    for step in 6..=STEPS {
        for back_step in 5..=STEPS {
            let ports = RequestPorts::created().await;
            ports.fault(Some((step, StepFault::HangsAfter)));
            let failed = ports.run(&update("r2", "we_1", "a/1", "b/2")).await;
            ports.fault(None);
            if failed.is_none_or(|(status, _)| status == "SUCCESS") {
                continue;
            }
            tried += 1;
            ports.fault(Some((back_step, StepFault::Hangs)));
            let back = ports.run(&update("r3", "we_1", "b/2", "a/1")).await;
            assert_eq!(
                back,
                Some(("SUCCESS".to_owned(), "we_1".to_owned())),
                "{step} {back_step}"
            );
            assert_eq!(
                ports.document()["endpoint_id"],
                "we_1",
                "{step} {back_step}"
            );
        }
    }
    assert!(tried > 0);
}

/// What an attacker could change: the endpoints at Stripe, the secrets, the notes in the jobs table and its cursors.
fn outside(ports: &RequestPorts) -> String {
    let world = ports.world();
    let (secrets, notes) = (&world.versions, &world.applied);
    format!(
        "{:?} {secrets:?} {notes:?} {}",
        world.endpoints, world.cursor_s
    )
}

/// A request of whoever may invoke the function, whose variables are those of the template at `a`.
async fn forge(ports: &RequestPorts, mut request: Value, changes: &Value) -> Value {
    for (name, change) in changes.as_object().unwrap() {
        match change.as_object() {
            None => request[name] = change.clone(),
            Some(properties) => {
                let given = request[name].as_object_mut().unwrap();
                given.extend(properties.clone());
            }
        }
    }
    let answered = ports.run_with_variables(&request, "https://a").await;
    assert!(answered.is_some());
    ports.last_answer()
}

#[rstest]
#[case::stack(json!({"StackId": "arn:aws:cloudformation:eu-west-1:1:stack/two/2"}))]
#[case::url(json!({"ResourceProperties": {"Url": "https://attacker.example/webhooks/stripe"}}))]
#[case::events(json!({"ResourceProperties": {"EnabledEvents": ["*"]}}))]
#[case::secret(json!({"ResourceProperties": {"SecretArn": "arn:aws:secretsmanager:eu-west-1:1:secret:other"}}))]
#[case::connect(json!({"ResourceProperties": {"Connect": "true"}}))]
#[case::api_version(json!({"ResourceProperties": {"ApiVersion": "2020-08-27"}}))]
#[case::create(json!({"RequestType": "Create", "ResourceProperties": {"Url": "https://attacker.example"}}))]
#[case::no_endpoint(json!({"PhysicalResourceId": "unconfigured:Hook", "ResourceProperties": {"Url": "https://attacker.example"}}))]
#[tokio::test]
async fn a_request_that_the_template_does_not_make_changes_nothing(#[case] changes: Value) {
    for token in ["a/1", "a/2"] {
        let ports = RequestPorts::created().await;
        let before = outside(&ports);
        let request = update("r2", "we_1", "b/1", token);
        let answer = forge(&ports, request, &changes).await;
        assert_eq!(outside(&ports), before);
        assert_eq!(answer["Status"], "FAILED");
        let reason = answer["Reason"].as_str().unwrap();
        assert!(
            reason.starts_with("refused, and nothing was changed: "),
            "{reason}"
        );
    }
}

/// The note of what was applied allows a rollback. A request that changes nothing is answered well, but must not get into
/// it.
#[tokio::test]
async fn a_forged_request_that_changes_nothing_prepares_no_other() {
    let ports = RequestPorts::created().await;
    let before = outside(&ports);
    let nothing = update("r2", "we_1", "evil/1", "evil/1");
    let answer = forge(&ports, nothing, &json!({})).await;
    assert_eq!(answer["Status"], "SUCCESS");
    let change = update("r3", "we_1", "a/1", "evil/1");
    let answer = forge(&ports, change, &json!({})).await;
    assert_eq!(answer["Status"], "FAILED");
    assert_eq!(outside(&ports), before);
}

#[rstest]
#[case::stack("we_1", json!({"StackId": "arn:aws:cloudformation:eu-west-1:1:stack/two/2"}))]
#[case::leftovers("made-up", json!({"StackId": "arn:aws:cloudformation:eu-west-1:1:stack/two/2"}))]
#[case::not_tagged("we_2", json!({}))]
#[tokio::test]
async fn a_deletion_of_what_is_not_ours_is_done_by_doing_nothing(
    #[case] physical_id: &str,
    #[case] changes: Value,
) {
    let ports = RequestPorts::created().await;
    add_endpoint_of_others(&ports);
    let before = outside(&ports);
    let answer = forge(&ports, delete(physical_id), &changes).await;
    assert_eq!(answer["Status"], "SUCCESS");
    assert_eq!(outside(&ports), before);
}

/// `we_2`, of another stack in the same Stripe account.
fn add_endpoint_of_others(ports: &RequestPorts) {
    let mut world = ports.world();
    let mut other = world.endpoints[0].clone();
    other.id = "we_2".to_owned();
    other.url = "https://other".to_owned();
    let stack = other.metadata.get_mut("billhook_stack").unwrap();
    *stack = "arn:aws:cloudformation:eu-west-1:1:stack/two/2".to_owned();
    world.endpoints.push(other);
}

#[tokio::test]
async fn an_update_of_another_stacks_endpoint_leaves_it_and_ours_alone() {
    for wanted in ["a/1", "a/2"] {
        let ports = RequestPorts::created().await;
        add_endpoint_of_others(&ports);
        let before = outside(&ports);
        let request = update("r2", "we_2", "b/1", wanted);
        let answer = forge(&ports, request, &json!({})).await;
        assert_eq!(answer["Status"], "FAILED", "{answer}");
        assert_eq!(outside(&ports), before);
    }
}

#[tokio::test]
async fn no_host_but_cloudformations_is_answered_and_nothing_is_done_for_it() {
    for (kind, url) in [
        ("Update", "http://attacker.example/?X-Amz-Signature=canary"),
        ("Update", "https://attacker.example/?X-Amz-Signature=canary"),
        ("Delete", "https://attacker.example/?X-Amz-Signature=canary"),
        ("Create", "not a URL, canary"),
    ] {
        let ports = RequestPorts::created().await;
        let before = outside(&ports);
        let answers = ports.world().answers.len();
        let mut request = request(kind, "r2", "we_1", "a/1", "a/2");
        request["ResponseURL"] = json!(url);
        let mut deps = dependencies(ports.0.clone(), &ports);
        deps.policy.url = wanted_url(&request);
        let handled = handle_request(request, pending(), &deps).await;
        let told = error_chain(&handled.unwrap_err());
        assert!(told.contains("ResponseURL is not") && !told.contains("canary"));
        assert_eq!(ports.world().answers.len(), answers);
        assert_eq!(outside(&ports), before);
    }
}
