//! Wires the custom resource: variables, clients, deadline.

use std::process::ExitCode;
use std::time::Duration;

use billhook_adapters::aws::Aws;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{SecretSource, WebhookSecretConfig};
use billhook_adapters::lambda::{run, serve};
use billhook_adapters::secrets::{SecretsManager, stripe_key};
use billhook_adapters::stripe::Stripe;
use billhook_core::ports::Clock;
use billhook_core::time::Timestamp;
use lambda_runtime::LambdaEvent;
use secrecy::SecretString;
use serde_json::Value;
use webhook_secret::http::Answers;
use webhook_secret::ports::{EdgeError, OpenStripe, Time, WebhookSecretStore};
use webhook_secret::{ANSWER_RESERVE, Deps, handle};

fn main() -> ExitCode {
    run("webhook-secret", WebhookSecretConfig::from_env, start)
}

async fn start(config: WebhookSecretConfig, aws: Aws) -> Result<(), lambda_runtime::Error> {
    let secrets = SecretsManager::new(aws.secrets_manager().clone());
    let deps = &Deps {
        stripe: StoredKey {
            secrets: secrets.clone(),
            source: config.stripe_key(),
            base: config.stripe_api_base,
            live: config.stage.live,
        },
        secrets: Secrets(secrets),
        cloudformation: Answers::new()?,
        time: Real,
        app_name: config.stage.app_name,
        env: config.stage.env,
    };
    serve(async |event: LambdaEvent<Value>| {
        let end = i64::try_from(event.context.deadline)
            .ok()
            .and_then(|ms| Timestamp::from_unix_ms(ms).ok())
            .unwrap_or(deps.time.now());
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
    async fn get(&self, arn: &str) -> Result<Option<SecretString>, EdgeError> {
        Ok(self.0.get(arn).await?)
    }

    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), EdgeError> {
        Ok(self.0.put(arn, value).await?)
    }
}

struct Real;

impl Time for Real {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }
}
