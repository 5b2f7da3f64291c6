//! `CloudFormation`'s requests to `webhook-secret`, over a Stripe and a secret in memory.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use billhook_adapters::stripe::{
    CreatedEndpoint, NewEndpoint, SecretText, StripeError, UpdateResult, WebhookEndpoint,
};
use billhook_core::endpoint::secret::{SecretDocument, SecretKind};
use billhook_core::ports::{Clock, Pause};
use billhook_core::time::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use uuid::Uuid;
use webhook_secret::ports::{
    EdgeError, OpenStripe, ResetCursors, RespondToCloudFormation, StripeEndpoints,
    WebhookSecretStore,
};
use webhook_secret::{ResourceDependencies, ResourceRequest, handle_request};

use super::{NOW_S, check_secrets, watched};

/// As CloudFormation says.
const REASON_BYTES_MAX: usize = 4096;

#[derive(Default)]
struct World {
    endpoints: Vec<WebhookEndpoint>,
    stored: BTreeMap<String, String>,
    answers: Vec<String>,
    waited: Duration,
}

#[derive(Clone, Default)]
struct Ports(Arc<Mutex<World>>);

impl Ports {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

impl OpenStripe for Ports {
    type Endpoints = Self;
    async fn open(&self) -> Result<Option<Self>, EdgeError> {
        Ok(Some(self.clone()))
    }
}

impl StripeEndpoints for Ports {
    async fn create(&self, new: &NewEndpoint<'_>, _: &str) -> Result<CreatedEndpoint, StripeError> {
        let mut world = self.world();
        let id = format!("we_{}", world.endpoints.len());
        let metadata = new.metadata.iter();
        world.endpoints.push(WebhookEndpoint {
            id: id.clone(),
            url: new.url.to_owned(),
            enabled_events: new.enabled_events.to_vec(),
            status: "enabled".to_owned(),
            api_version: Some(new.api_version.to_owned()),
            metadata: metadata
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        });
        let secret = format!("whsec_{id}");
        let secret = Some(SecretText::from(secret));
        Ok(CreatedEndpoint { id, secret })
    }

    async fn update(
        &self,
        id: &str,
        url: &str,
        events: &[String],
        _: &str,
    ) -> Result<UpdateResult, StripeError> {
        let mut world = self.world();
        let Some(endpoint) = world.endpoints.iter_mut().find(|its| its.id == id) else {
            return Ok(UpdateResult::Gone);
        };
        endpoint.url = url.to_owned();
        endpoint.enabled_events = events.to_vec();
        Ok(UpdateResult::Done)
    }

    async fn delete(&self, id: &str) -> Result<(), StripeError> {
        self.world().endpoints.retain(|its| its.id != id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<WebhookEndpoint>, StripeError> {
        Ok(self.world().endpoints.clone())
    }
}

impl WebhookSecretStore for Ports {
    async fn read(&self, arn: &str, _: Timestamp) -> Result<SecretDocument, EdgeError> {
        let text = self.world().stored.get(arn).cloned().unwrap_or_default();
        Ok(SecretDocument::parse(&text, SecretKind::StripeSigning))
    }

    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), EdgeError> {
        let text = value.expose_secret().to_owned();
        self.world().stored.insert(arn.to_owned(), text);
        Ok(())
    }
}

impl ResetCursors for Ports {
    async fn set_back(&self, _: i64) -> Result<(), EdgeError> {
        Ok(())
    }
}

impl RespondToCloudFormation for Ports {
    async fn put(&self, _: &SecretString, body: String) -> Result<(), EdgeError> {
        self.world().answers.push(body);
        Ok(())
    }
}

impl Clock for Ports {
    fn now(&self) -> Timestamp {
        let started = Timestamp::from_unix_s(NOW_S).unwrap();
        started.after(self.world().waited)
    }
    fn new_id(&self) -> Uuid {
        Uuid::nil()
    }
}

impl Pause for Ports {
    async fn pause(&self, span: Duration) {
        self.world().waited += span;
    }
}

/// The input is a request. It comes twice, as CloudFormation repeats one whose answer it has not seen.
pub(super) fn custom_resource(input: &[u8]) -> bool {
    let Ok(payload) = serde_json::from_slice::<Value>(input) else {
        return false;
    };
    let ports = Ports::default();
    let deps = ResourceDependencies {
        stripe: ports.clone(),
        secrets: ports.clone(),
        cursors: ports.clone(),
        cloudformation: ports.clone(),
        time: ports.clone(),
        app_name: "app".to_owned(),
        env: "test".to_owned(),
    };
    let run = || watched(handle_request(payload.clone(), pending(), &deps)).is_ok();
    let (first, again) = (run(), run());
    let is_request = serde_json::from_value::<ResourceRequest>(payload.clone()).is_ok();
    assert_eq!((first, again), (is_request, is_request));
    let world = ports.world();
    assert_eq!(world.answers.len(), if is_request { 2 } else { 0 });
    let answers: Vec<Value> = world
        .answers
        .iter()
        .map(|answer| {
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
