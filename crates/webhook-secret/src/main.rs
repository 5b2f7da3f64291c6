//! Connects the custom resource to AWS and Stripe: configuration, clients, deadline. No decisions; `lib` handles
//! requests.

use std::process::ExitCode;

use billhook_adapters::aws::AwsClients;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{SecretSource, WebhookSecretConfig};
use billhook_adapters::dynamodb::jobs::{AppliedEndpoints, ReconcileCursors};
use billhook_adapters::lambda::{invocation_deadline, run_function, serve_events};
use billhook_adapters::secrets::{
    PutSecret as _, SealKeyRequest, SealSecrets, SecretsManager, load_document, make_seal_keys,
    read_stripe_key,
};
use billhook_adapters::stripe::StripeClient;
use billhook_core::endpoint::applied::AppliedProperties;
use billhook_core::endpoint::secret::{SecretDocument, SecretKind};
use billhook_core::ports::{Clock as _, Pause as _};
use billhook_core::time::Timestamp;
use lambda_runtime::LambdaEvent;
use secrecy::SecretString;
use serde_json::Value;
use webhook_secret::http::ResponseSender;
use webhook_secret::ports::ResourceDependencies;
use webhook_secret::ports::{
    AdapterError, AppliedStore, ResetCursors, StripeConnector, WebhookSecretStore,
};
use webhook_secret::response_url::ResponseHosts;
use webhook_secret::{ANSWER_RESERVE, handle_request};

fn main() -> ExitCode {
    run_function(
        "webhook-secret",
        WebhookSecretConfig::from_env,
        start_function,
    )
}

async fn start_function(
    config: WebhookSecretConfig,
    aws: AwsClients,
) -> Result<(), lambda_runtime::Error> {
    let secrets = SecretsManager::new(&aws);
    let deps = &ResourceDependencies {
        response_hosts: ResponseHosts::of_config(&config),
        policy: config.policy.clone(),
        stripe: StoredStripeKey {
            secrets: secrets.clone(),
            source: config.stripe_key(),
            base: config.stripe_api_base,
            live: config.environment.live,
        },
        secrets: SecretStore {
            secrets,
            seal_arn: config.seal_arn,
            seal_public_arn: config.seal_public_arn,
        },
        jobs: JobsStore {
            cursors: ReconcileCursors::new(aws.dynamodb().clone(), config.jobs_table.clone()),
            applied: AppliedEndpoints::new(aws.dynamodb().clone(), config.jobs_table),
        },
        cloudformation: ResponseSender::new()?,
        time: SystemClock,
        app_name: config.environment.app_name,
        env: config.environment.env,
    };
    serve_events(async |event: LambdaEvent<Value>| {
        let end = invocation_deadline(&event.context);
        let time_left = deps.time.now().until(end).saturating_sub(ANSWER_RESERVE);
        // Boxed, because the compiler cannot lay out the SDK's futures nested this deep.
        Box::pin(handle_request(
            event.payload,
            SystemClock.pause(time_left),
            deps,
        ))
        .await
    })
    .await
}

/// Reads Stripe's key again for each request: requests are rare, and the operator may have just stored the key.
struct StoredStripeKey {
    secrets: SecretsManager,
    source: SecretSource,
    base: String,
    live: bool,
}

impl StripeConnector for StoredStripeKey {
    type Endpoints = StripeClient;

    async fn open(&self) -> Result<Option<StripeClient>, AdapterError> {
        let Some(key) = read_stripe_key(&self.secrets, &self.source, self.live).await? else {
            return Ok(None);
        };
        Ok(Some(StripeClient::new(&self.base, key, self.live)?))
    }
}

struct SecretStore {
    secrets: SecretsManager,
    seal_arn: String,
    seal_public_arn: String,
}

impl WebhookSecretStore for SecretStore {
    async fn read(&self, arn: &str, now: Timestamp) -> Result<SecretDocument, AdapterError> {
        Ok(load_document(&self.secrets, arn, SecretKind::StripeSigning, now).await?)
    }

    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), AdapterError> {
        Ok(self.secrets.put(arn, value).await?)
    }

    async fn make_seal_keys(&self, request: SealKeyRequest) -> Result<(), AdapterError> {
        let names = SealSecrets {
            private_arn: &self.seal_arn,
            public_arn: &self.seal_public_arn,
        };
        Ok(make_seal_keys(&self.secrets, names, request).await?)
    }
}

struct JobsStore {
    cursors: ReconcileCursors,
    applied: AppliedEndpoints,
}

impl ResetCursors for JobsStore {
    async fn set_back(&self, to_s: i64) -> Result<(), AdapterError> {
        Ok(self.cursors.set_back(to_s).await?)
    }
}

impl AppliedStore for JobsStore {
    async fn load_applied(
        &self,
        logical_id: &str,
    ) -> Result<Option<AppliedProperties>, AdapterError> {
        Ok(self.applied.load(logical_id).await?)
    }

    async fn save_applied(
        &self,
        logical_id: &str,
        read: Option<&AppliedProperties>,
        applied: Option<&AppliedProperties>,
    ) -> Result<(), AdapterError> {
        Ok(self.applied.save(logical_id, read, applied).await?)
    }
}
