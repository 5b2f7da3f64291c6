//! Wires the custom resource: variables, clients, deadline.

use std::process::ExitCode;

use billhook_adapters::aws::Aws;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{SecretSource, WebhookSecretConfig};
use billhook_adapters::dynamodb::cursors::Cursors;
use billhook_adapters::lambda::{deadline, run, serve};
use billhook_adapters::secrets::{PutSecret as _, SecretsManager, document, stripe_key};
use billhook_adapters::stripe::Stripe;
use billhook_core::ports::Clock as _;
use billhook_core::secret::{Document, Wanted};
use billhook_core::time::Timestamp;
use lambda_runtime::LambdaEvent;
use secrecy::SecretString;
use serde_json::Value;
use webhook_secret::http::Answers;
use webhook_secret::ports::{EdgeError, OpenStripe, SetCursorsBack, WebhookSecretStore};
use webhook_secret::{ANSWER_RESERVE, Deps, handle};

fn main() -> ExitCode {
    run("webhook-secret", WebhookSecretConfig::from_env, start)
}

async fn start(config: WebhookSecretConfig, aws: Aws) -> Result<(), lambda_runtime::Error> {
    let secrets = SecretsManager::new(&aws);
    let deps = &Deps {
        stripe: StoredKey {
            secrets: secrets.clone(),
            source: config.stripe_key(),
            base: config.stripe_api_base,
            live: config.stage.live,
        },
        secrets: Secrets(secrets),
        cursors: Jobs(Cursors::new(aws.dynamodb().clone(), config.jobs_table)),
        cloudformation: Answers::new()?,
        time: SystemClock,
        app_name: config.stage.app_name,
        env: config.stage.env,
    };
    serve(async |event: LambdaEvent<Value>| {
        let end = deadline(&event.context);
        let time_left = deps.time.now().until(end).saturating_sub(ANSWER_RESERVE);
        // Boxed, because the compiler gives up on the layout of the SDK's futures this deep.
        Box::pin(handle(event.payload, tokio::time::sleep(time_left), deps)).await
    })
    .await
}

/// Stripe, opened for each request with the key as it is stored then: requests are rare, and the key may just have
/// been put.
struct StoredKey {
    secrets: SecretsManager,
    source: SecretSource,
    base: String,
    live: bool,
}

impl OpenStripe for StoredKey {
    type Endpoints = Stripe;

    async fn open(&self) -> Result<Option<Stripe>, EdgeError> {
        let Some(key) = stripe_key(&self.secrets, &self.source, self.live).await? else {
            return Ok(None);
        };
        Ok(Some(Stripe::new(&self.base, key, self.live)?))
    }
}

struct Secrets(SecretsManager);

impl WebhookSecretStore for Secrets {
    async fn read(&self, arn: &str, now: Timestamp) -> Result<Document, EdgeError> {
        Ok(document(&self.0, arn, Wanted::StripeSigning, now).await?)
    }

    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), EdgeError> {
        Ok(self.0.put(arn, value).await?)
    }
}

struct Jobs(Cursors);

impl SetCursorsBack for Jobs {
    async fn set_back(&self, to_s: i64) -> Result<(), EdgeError> {
        Ok(self.0.set_back(to_s).await?)
    }
}
