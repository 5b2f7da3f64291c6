//! Secret rotation with a clock that the test moves: the real handlers, cache, plan and secret document of ingress and
//! the custom resource, over a local Stripe and in-memory versions of Secrets Manager.
#![cfg(test)]

use std::future::pending;
use std::time::Duration;

use billhook_adapters::config::{SecretLocation, SecretSource, SigningSource};
use billhook_adapters::secrets::{SigningKeyCache, revoke_replaced};
use billhook_adapters::stripe::StripeClient;
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::ids::{PerProvider, ProviderId};
use billhook_core::ports::Clock as _;
use billhook_core::provider::signature::KeyScope;
use billhook_core::time::Timestamp;
use billhook_testkit::custom_resource::{
    EndpointPorts, LOGICAL_ID, RESPONSE_URL, SIGNING_SECRET_ARN, STACK_ID, WEBHOOK_URL,
    dependencies,
};
use billhook_testkit::events::intent_succeeded;
use billhook_testkit::memory::{MemoryQueue, MemoryTables};
use billhook_testkit::sign::sign_stripe;
use billhook_testkit::stripe::{Config, LocalStripe, TEST_KEY};
use serde_json::{Value, json};
use webhook_ingress::WebhookIngress;
use webhook_secret::handle_request;
use webhook_secret::ports::{AdapterError, StripeConnector};

const ARN: &str = SIGNING_SECRET_ARN;

type Container = WebhookIngress<
    &'static MemoryTables,
    MemoryQueue,
    SigningKeyCache<EndpointPorts, EndpointPorts>,
    EndpointPorts,
>;

/// The way to the local Stripe.
struct LocalEndpoints(StripeClient);

impl StripeConnector for LocalEndpoints {
    type Endpoints = StripeClient;
    async fn open(&self) -> Result<Option<StripeClient>, AdapterError> {
        Ok(Some(self.0.clone()))
    }
}

fn properties(token: &str) -> Value {
    json!({ "Url": WEBHOOK_URL, "SecretArn": ARN, "RotationToken": token })
}

struct Scene {
    ports: EndpointPorts,
    client: StripeClient,
    stripe: LocalStripe,
    /// One that runs from the beginning, and asks Secrets Manager only when it has to.
    old_container: Container,
}

impl Scene {
    async fn begin() -> Self {
        let stripe = LocalStripe::start(Config::default()).await.unwrap();
        let before = Timestamp::from_unix_s(1_780_000_000).unwrap();
        let ports = EndpointPorts::default();
        let empty = ("{}".to_owned(), before);
        ports.world().versions.insert(ARN.to_owned(), vec![empty]);
        let client = StripeClient::new(&stripe.base_url(), TEST_KEY.into(), false).unwrap();
        Self {
            old_container: container(&ports),
            ports,
            client,
            stripe,
        }
    }

    /// The physical id that a request ends with.
    async fn request(&self, kind: &str, id: &str, at: &str, old: &str, new: &str) -> String {
        let request = json!({
            "RequestType": kind, "RequestId": id, "ResponseURL": RESPONSE_URL, "StackId": STACK_ID,
            "LogicalResourceId": LOGICAL_ID, "PhysicalResourceId": at,
            "OldResourceProperties": properties(old), "ResourceProperties": properties(new),
        });
        let deps = dependencies(LocalEndpoints(self.client.clone()), &self.ports);
        handle_request(request, pending(), &deps).await.unwrap();
        let answer = self.ports.world().answers.last().unwrap().1.clone();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["Status"], "SUCCESS", "{answer}");
        answer["PhysicalResourceId"].as_str().unwrap().to_owned()
    }

    fn pass(&self, span: Duration) {
        self.ports.world().waited += span;
    }

    /// What each endpoint that is sent payments gets for one: from the container that is old, then from a new one.
    async fn answers(&self) -> Vec<(String, [u16; 2])> {
        let state = self.stripe.state();
        let mut answers = Vec::new();
        for object in state["spaces"][0]["objects"].as_array().unwrap() {
            let kinds = object["enabled_events"].as_array().unwrap();
            if !kinds.contains(&json!("payment_intent.succeeded")) {
                continue;
            }
            let id = object["id"].as_str().unwrap();
            let secret = state["endpoints"][id]["secret"].as_str().unwrap();
            let new_container = container(&self.ports);
            let statuses = [
                self.answer(&self.old_container, secret).await,
                self.answer(&new_container, secret).await,
            ];
            answers.push((id.to_owned(), statuses));
        }
        answers
    }

    async fn answer(&self, container: &Container, secret: &str) -> u16 {
        let now_s = self.ports.now().unix_s();
        let body = intent_succeeded("evt_1", now_s, "pi_1", json!({}), 4200).to_string();
        let header = sign_stripe(body.as_bytes(), secret, now_s);
        let request = json!({
            "resource": "/webhooks/stripe", "httpMethod": "POST",
            "headers": { "Stripe-Signature": header }, "body": body, "isBase64Encoded": false,
        });
        let request = serde_json::from_value(request).unwrap();
        container.handle(request).await.status_code
    }
}

fn container(ports: &EndpointPorts) -> Container {
    let keys = |wanted, location| {
        let secret = SecretSource {
            variable: "STRIPE".to_owned(),
            location,
        };
        let scope = KeyScope::AllEvents;
        let source = SigningSource { secret, scope };
        let ttl = Duration::from_secs(300);
        SigningKeyCache::new(
            wanted,
            vec![source],
            ttl,
            false,
            ports.clone(),
            ports.clone(),
        )
    };
    WebhookIngress {
        inbox: Box::leak(Box::default()),
        queue: MemoryQueue::default(),
        keys: PerProvider::new(|provider| {
            let location = match provider {
                ProviderId::Stripe => SecretLocation::Arn(ARN.to_owned()),
                _ => SecretLocation::Here("lob".into()),
            };
            keys(SecretKind::signing_of(provider), location)
        }),
        clock: ports.clone(),
        tolerance: Duration::from_secs(300),
        counts_types: true,
        account_limiter: webhook_ingress::account_limiter::AccountLimiter::default(),
    }
}

fn all(ids: &[&str]) -> Vec<(String, [u16; 2])> {
    ids.iter().map(|id| ((*id).to_owned(), [200; 2])).collect()
}

#[tokio::test]
async fn a_rotation_and_its_rollback_reject_nothing_then_and_25_h_later() {
    let scene = Scene::begin().await;
    let first = scene.request("Create", "r1", "", "1", "1").await;
    assert_eq!(scene.answers().await, all(&[&first]));
    scene.pass(Duration::from_hours(100));
    assert_eq!(scene.answers().await, all(&[&first]));

    // Whoever guesses just before the secret is stored has used up the leave to look again.
    assert_eq!(scene.answer(&scene.old_container, "guessed").await, 400);
    let second = scene.request("Update", "r2", &first, "1", "2").await;
    assert_eq!(scene.answers().await, all(&[&first, &second]));
    // Something else of the stack fails: CloudFormation asks for what was there, and deletes what is too many.
    assert_eq!(
        scene.request("Update", "r3", &second, "2", "1").await,
        first
    );
    assert_eq!(scene.answers().await, all(&[&first, &second]));
    scene.request("Delete", "r4", &second, "2", "2").await;
    assert_eq!(scene.answers().await, all(&[&first]));
    scene.pass(Duration::from_hours(25));
    assert_eq!(scene.answers().await, all(&[&first]));
}

#[tokio::test]
async fn a_rotation_that_is_kept_refuses_the_old_secret_after_24_h() {
    let scene = Scene::begin().await;
    let first = scene.request("Create", "r1", "", "1", "1").await;
    let state = scene.stripe.state();
    let secret = state["endpoints"][&first]["secret"].as_str().unwrap();
    let second = scene.request("Update", "r2", &first, "1", "2").await;
    scene.request("Delete", "r3", &first, "1", "1").await;
    scene.pass(Duration::from_hours(23));
    assert_eq!(scene.answer(&scene.old_container, secret).await, 200);
    assert_eq!(scene.answers().await, all(&[&second]));
    scene.pass(Duration::from_hours(2));
    assert_eq!(scene.answer(&scene.old_container, secret).await, 400);
    assert_eq!(scene.answers().await, all(&[&second]));
}

/// Only with genuine deliveries: no unknown signature makes a container read the secrets again.
#[tokio::test]
async fn a_revoked_secret_is_refused_by_a_running_container_within_15_minutes() {
    let scene = Scene::begin().await;
    let first = scene.request("Create", "r1", "", "1", "1").await;
    let state = scene.stripe.state();
    let old = state["endpoints"][&first]["secret"].as_str().unwrap();
    let second = scene.request("Update", "r2", &first, "1", "2").await;
    scene.request("Delete", "r3", &first, "1", "1").await;
    scene.pass(Duration::from_hours(1));
    assert_eq!(scene.answer(&scene.old_container, old).await, 200);
    revoke_replaced(
        &scene.ports,
        ARN,
        SecretKind::StripeSigning,
        &[],
        scene.ports.now(),
    )
    .await
    .unwrap();
    let mut minutes = 0;
    while scene.answer(&scene.old_container, old).await == 200 {
        scene.pass(Duration::from_mins(1));
        minutes += 1;
        assert!(minutes <= 15);
    }
    assert!(minutes > 0, "its cache was fresh");
    assert_eq!(scene.answer(&container(&scene.ports), old).await, 400);
    assert_eq!(scene.answers().await, all(&[&second]));
    scene.pass(Duration::from_hours(25));
    assert_eq!(scene.answers().await, all(&[&second]));
}

#[tokio::test]
async fn a_rollback_25_h_late_makes_the_old_endpoint_work_again() {
    let scene = Scene::begin().await;
    let first = scene.request("Create", "r1", "", "1", "1").await;
    let second = scene.request("Update", "r2", &first, "1", "2").await;
    scene.pass(Duration::from_hours(25));
    // Both get every event: the old one's copies are refused, the new one's are taken.
    let refused = (first.clone(), [400; 2]);
    let taken = (second.clone(), [200; 2]);
    assert_eq!(scene.answers().await, [refused, taken]);
    scene.pass(Duration::from_secs(10));
    assert_eq!(
        scene.request("Update", "r3", &second, "2", "1").await,
        first
    );
    assert_eq!(scene.answers().await, all(&[&first, &second]));
    scene.request("Delete", "r4", &second, "2", "2").await;
    scene.pass(Duration::from_hours(25));
    assert_eq!(scene.answers().await, all(&[&first]));
}
