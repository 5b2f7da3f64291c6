//! The custom resource's ports in memory: webhook endpoints by Stripe's rules for idempotency keys, secrets with their
//! versions, the cursors of reconcile, CloudFormation's answers, and a clock that only waiting moves.
//!
//! Each call to the outside is a step, and any step can fail in every way that a call can ([`StepFault`]).

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use billhook_adapters::secrets::{
    FetchSecret, PutSecret, SealKeyRequest, SealSecrets, SecretVersion, SecretsError, StoredSecret,
    load_document, make_seal_keys,
};
use billhook_adapters::stripe::{
    CreatedEndpoint, NewEndpoint, SecretText, StripeError, StripeRefusal, UpdateResult,
    WebhookEndpoint,
};
use billhook_core::endpoint::applied::AppliedProperties;
use billhook_core::endpoint::plan::QUIET_TYPE;
use billhook_core::endpoint::policy::{RequestPolicy, StackEndpoint};
use billhook_core::endpoint::secret::{SecretDocument, SecretKind};
use billhook_core::ports::{Clock, Pause};
use billhook_core::provider::stripe::types::API_VERSION;
use billhook_core::time::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Notify;
use uuid::Uuid;
use webhook_secret::KNOWN_AFTER;
use webhook_secret::ports::ResourceDependencies;
use webhook_secret::ports::{
    AdapterError, AppliedStore, ResetCursors, RespondToCloudFormation, StripeConnector,
    StripeEndpoints, WebhookSecretStore,
};
use webhook_secret::response_url::{ResponseHosts, ResponseUrl};

/// The stack whose endpoint it is.
pub const STACK_ID: &str = "arn:aws:cloudformation:eu-west-1:1:stack/one/1";
pub const LOGICAL_ID: &str = "Hook";
pub const WEBHOOK_URL: &str = "https://a/webhooks/stripe";
pub const SIGNING_SECRET_ARN: &str = "arn:aws:secretsmanager:eu-west-1:1:secret:hook";
/// Where CloudFormation wants its answer.
pub const RESPONSE_URL: &str = "https://cloudformation-custom-resource-response-euwest1.s3-eu-west-1.amazonaws.com/x?X-Amz-Signature=canary";

/// When the clock starts, in Unix seconds.
pub const START_S: i64 = 1_781_000_000;

/// How a step fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepFault {
    /// An error, and nothing happened.
    Before,
    /// It happened, and its answer is lost.
    After,
    Panics,
    /// No answer ever, and nothing happened.
    Hangs,
    HangsAfter,
    /// The process is gone, and nobody answers.
    Dies,
    DiesAfter,
}

/// What is outside.
#[derive(Default)]
pub struct EndpointWorld {
    pub waited: Duration,
    /// The least cursor of reconcile, in Unix seconds.
    pub cursor_s: i64,
    pub has_no_key: bool,
    /// Stripe refuses the key: every call to it fails, and changes nothing.
    pub refuses_key: bool,
    /// What each endpoint was last set to, by the resource's name.
    pub applied: HashMap<String, AppliedProperties>,
    pub endpoints: Vec<WebhookEndpoint>,
    /// Whether an answer that Stripe repeats for a key still holds the signing secret, which it does not document.
    pub replays_keep_secrets: bool,
    /// Of each secret, the oldest first.
    pub versions: HashMap<String, Vec<(String, Timestamp)>>,
    /// Bodies as CloudFormation got them, each with the URL it went to.
    pub answers: Vec<(String, String)>,
    /// Steps so far; whoever counts sets it to zero.
    pub steps: u32,
    /// Which step fails, and how.
    pub fault: Option<(u32, StepFault)>,
    /// Of each creation: whether it began with the quiet type only, and whether a secret was stored before.
    pub creations: Vec<(bool, bool)>,
    /// By idempotency key, the endpoint that was made under it.
    saved: HashMap<String, (String, String)>,
    /// Since when a signing secret can be read.
    known_since: HashMap<String, Timestamp>,
    created: u32,
}

impl EndpointWorld {
    #[expect(clippy::expect_used, reason = "the start is a constant")]
    pub fn now(&self) -> Timestamp {
        let start = Timestamp::from_unix_s(START_S).expect("a timestamp");
        start.after(self.waited)
    }

    /// The current text of a secret; empty where it was never put.
    pub fn secret(&self, arn: &str) -> &str {
        let current = self.versions.get(arn).and_then(|versions| versions.last());
        current.map_or("", |(text, _)| text)
    }

    pub fn put_secret(&mut self, arn: &str, text: &str) {
        let now = self.now();
        let versions = self.versions.entry(arn.to_owned()).or_default();
        versions.push((text.to_owned(), now));
    }

    /// Another endpoint, with its signing secret: `we_1` and `whsec_1`, and so on.
    fn create(&mut self, new: &NewEndpoint<'_>) -> (String, String) {
        self.created += 1;
        let begins_quietly = new.enabled_events == [QUIET_TYPE];
        self.creations
            .push((begins_quietly, !self.versions.is_empty()));
        let (id, secret) = (
            format!("we_{}", self.created),
            format!("whsec_{}", self.created),
        );
        let metadata = new.metadata.iter();
        self.endpoints.push(WebhookEndpoint {
            id: id.clone(),
            url: new.url.to_owned(),
            enabled_events: new.enabled_events.to_vec(),
            status: "enabled".to_owned(),
            api_version: Some(new.api_version.to_owned()),
            metadata: metadata
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        });
        (id, secret)
    }
}

/// The ports; a clone shares the world.
#[derive(Clone, Default)]
pub struct EndpointPorts(Arc<Mutex<EndpointWorld>>, Arc<Notify>);

impl EndpointPorts {
    pub fn world(&self) -> MutexGuard<'_, EndpointWorld> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once a step made the process die.
    pub async fn died(&self) {
        self.1.notified().await;
    }

    /// One call to Stripe.
    async fn stripe_step<T>(
        &self,
        run: impl FnOnce(&mut EndpointWorld) -> T,
    ) -> Result<T, StripeError> {
        let refuses_key = self.world().refuses_key;
        match refuses_key {
            true => Err(refusal(401, "authentication_error")),
            false => self.step(run).await.map_err(|()| refusal(500, "api_error")),
        }
    }

    /// One call to the outside: carried out, or not, or half.
    #[expect(clippy::panic, reason = "one of the faults")]
    async fn step<T>(&self, run: impl FnOnce(&mut EndpointWorld) -> T) -> Result<T, ()> {
        let fault = {
            let mut world = self.world();
            world.steps += 1;
            let step = world.steps;
            let fault = world.fault.filter(|(at, _)| *at == step);
            fault.map(|(_, how)| how)
        };
        match fault {
            None => Ok(run(&mut self.world())),
            Some(StepFault::Before) => Err(()),
            Some(StepFault::After) => {
                run(&mut self.world());
                Err(())
            }
            Some(StepFault::Panics) => panic!("ordered by the test"),
            Some(StepFault::Hangs) => pending().await,
            Some(StepFault::HangsAfter) => {
                run(&mut self.world());
                pending().await
            }
            Some(StepFault::Dies) => {
                self.1.notify_one();
                pending().await
            }
            Some(StepFault::DiesAfter) => {
                run(&mut self.world());
                self.1.notify_one();
                pending().await
            }
        }
    }
}

/// A template with one endpoint, that of the platform.
pub fn policy(secret_arn: &str) -> RequestPolicy {
    RequestPolicy {
        stack_id: STACK_ID.to_owned(),
        url: WEBHOOK_URL.to_owned(),
        api_version: API_VERSION.to_owned(),
        endpoints: vec![StackEndpoint {
            logical_id: LOGICAL_ID,
            connect: false,
            secret_arn: secret_arn.to_owned(),
        }],
    }
}

/// CloudFormation's, in the region of [`STACK_ID`].
pub fn response_hosts() -> ResponseHosts {
    ResponseHosts::new(STACK_ID, "amazonaws.com", None)
}

/// What the custom resource works with: these ports, and a way to Stripe that may be another.
pub fn dependencies<S: StripeConnector>(
    stripe: S,
    ports: &EndpointPorts,
) -> ResourceDependencies<S, EndpointPorts, EndpointPorts, EndpointPorts, EndpointPorts> {
    ResourceDependencies {
        stripe,
        secrets: ports.clone(),
        jobs: ports.clone(),
        cloudformation: ports.clone(),
        time: ports.clone(),
        policy: policy(SIGNING_SECRET_ARN),
        response_hosts: response_hosts(),
        app_name: "billhook".to_owned(),
        env: "test".to_owned(),
    }
}

fn edge_error(_: ()) -> AdapterError {
    "out of reach".into()
}

fn refusal(status: u16, code: &str) -> StripeError {
    StripeError::Refused(Box::new(StripeRefusal {
        doing: "speak to stripe".to_owned(),
        status,
        code: code.to_owned(),
        request_id: "req_1".to_owned(),
        message: String::new(),
        mutates: true,
    }))
}

impl StripeConnector for EndpointPorts {
    type Endpoints = Self;
    async fn open(&self) -> Result<Option<Self>, AdapterError> {
        let has_no_key = self.step(|world| world.has_no_key);
        let has_no_key = has_no_key.await.map_err(edge_error)?;
        Ok((!has_no_key).then(|| self.clone()))
    }
}

impl StripeEndpoints for EndpointPorts {
    async fn create(
        &self,
        new: &NewEndpoint<'_>,
        idempotency_key: &str,
    ) -> Result<CreatedEndpoint, StripeError> {
        let create = |world: &mut EndpointWorld| {
            if let Some((id, secret)) = world.saved.get(idempotency_key) {
                let keeps = world.replays_keep_secrets;
                return (id.clone(), keeps.then(|| secret.clone()));
            }
            let (id, secret) = world.create(new);
            let saved = (id.clone(), secret.clone());
            world.saved.insert(idempotency_key.to_owned(), saved);
            (id, Some(secret))
        };
        let (id, secret) = self.stripe_step(create).await?;
        let secret = secret.map(|text| SecretText(text.into()));
        Ok(CreatedEndpoint { id, secret })
    }

    async fn update(
        &self,
        id: &str,
        url: &str,
        enabled_events: &[String],
        _: &str,
    ) -> Result<UpdateResult, StripeError> {
        let update = |world: &mut EndpointWorld| {
            let now = world.now();
            let Some(endpoint) = world.endpoints.iter_mut().find(|known| known.id == id) else {
                return UpdateResult::Gone;
            };
            // Real events only once every ingress can know the secret.
            if endpoint.enabled_events == [QUIET_TYPE] && enabled_events != [QUIET_TYPE] {
                let since = world.known_since.get(&id.replace("we_", "whsec_"));
                let known_for = since.map(|since| since.until(now));
                assert!(known_for.is_some_and(|known_for| known_for >= KNOWN_AFTER));
            }
            endpoint.url = url.to_owned();
            endpoint.enabled_events = enabled_events.to_vec();
            UpdateResult::Done
        };
        self.stripe_step(update).await
    }

    async fn delete(&self, id: &str) -> Result<(), StripeError> {
        let delete = |world: &mut EndpointWorld| world.endpoints.retain(|known| known.id != id);
        self.stripe_step(delete).await
    }

    async fn list(&self) -> Result<Vec<WebhookEndpoint>, StripeError> {
        self.stripe_step(|world| world.endpoints.clone()).await
    }
}

impl FetchSecret for EndpointPorts {
    async fn fetch(
        &self,
        arn: &str,
        version: SecretVersion,
    ) -> Result<Option<StoredSecret>, SecretsError> {
        let back = match version {
            SecretVersion::Current => 0,
            SecretVersion::Previous => 1,
        };
        let world = self.world();
        let versions = world.versions.get(arn);
        let found = versions.and_then(|versions| versions.iter().rev().nth(back));
        Ok(found.map(|(text, created_at)| StoredSecret {
            text: text.as_str().into(),
            created_at: Some(*created_at),
        }))
    }
}

impl PutSecret for EndpointPorts {
    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), SecretsError> {
        self.world().put_secret(arn, value.expose_secret());
        Ok(())
    }
}

impl WebhookSecretStore for EndpointPorts {
    async fn read(&self, arn: &str, now: Timestamp) -> Result<SecretDocument, AdapterError> {
        self.step(|_| ()).await.map_err(edge_error)?;
        Ok(load_document(self, arn, SecretKind::StripeSigning, now).await?)
    }

    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), AdapterError> {
        let put = |world: &mut EndpointWorld| {
            let document = SecretDocument::parse(value.expose_secret(), SecretKind::StripeSigning);
            let now = world.now();
            if let Some(current) = document.current {
                let secret = current.secret.expose_secret().to_owned();
                world.known_since.entry(secret).or_insert(now);
            }
            world.put_secret(arn, value.expose_secret());
        };
        self.step(put).await.map_err(edge_error)
    }

    async fn make_seal_keys(&self, request: SealKeyRequest) -> Result<(), AdapterError> {
        self.step(|_| ()).await.map_err(edge_error)?;
        let names = SealSecrets {
            private_arn: "arn:seal",
            public_arn: "arn:seal-public",
        };
        Ok(make_seal_keys(self, names, request).await?)
    }
}

impl ResetCursors for EndpointPorts {
    async fn set_back(&self, to_s: i64) -> Result<(), AdapterError> {
        let set = |world: &mut EndpointWorld| world.cursor_s = world.cursor_s.min(to_s);
        self.step(set).await.map_err(edge_error)
    }
}

impl AppliedStore for EndpointPorts {
    async fn load_applied(
        &self,
        logical_id: &str,
    ) -> Result<Option<AppliedProperties>, AdapterError> {
        let load = |world: &mut EndpointWorld| world.applied.get(logical_id).cloned();
        self.step(load).await.map_err(edge_error)
    }

    async fn save_applied(
        &self,
        logical_id: &str,
        read: Option<&AppliedProperties>,
        applied: Option<&AppliedProperties>,
    ) -> Result<(), AdapterError> {
        let save = |world: &mut EndpointWorld| {
            if world.applied.get(logical_id) != read {
                return Err("somebody else wrote it");
            }
            match applied {
                Some(applied) => world.applied.insert(logical_id.to_owned(), applied.clone()),
                None => world.applied.remove(logical_id),
            };
            Ok(())
        };
        self.step(save)
            .await
            .map_err(edge_error)?
            .map_err(Into::into)
    }
}

impl RespondToCloudFormation for EndpointPorts {
    async fn put(&self, response_url: &ResponseUrl, body: String) -> Result<(), AdapterError> {
        // A panic or a hang while answering ends the invocation as an error: Lambda's part, not ours.
        if let Some((_, how)) = &mut self.world().fault
            && *how != StepFault::After
        {
            *how = StepFault::Before;
        }
        let url = response_url.expose().to_owned();
        let answer = |world: &mut EndpointWorld| world.answers.push((url, body));
        self.step(answer).await.map_err(edge_error)
    }
}

impl Clock for EndpointPorts {
    fn now(&self) -> Timestamp {
        self.world().now()
    }
    fn new_id(&self) -> Uuid {
        Uuid::nil()
    }
}

impl Pause for EndpointPorts {
    async fn pause(&self, span: Duration) {
        self.world().waited += span;
    }
}
