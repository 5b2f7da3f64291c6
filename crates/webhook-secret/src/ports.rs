//! The ports of the custom resource: Stripe's endpoints, the stored signing secrets, the jobs table, and the answer to
//! CloudFormation. `main` connects them to `billhook_adapters`; the tests inject a failure at each call.

use std::future::Future;

use billhook_adapters::secrets::SealKeyRequest;
use billhook_adapters::stripe::{
    CreatedEndpoint, NewEndpoint, StripeClient, StripeError, UpdateResult, WebhookEndpoint,
};
use billhook_core::endpoint::applied::AppliedProperties;
use billhook_core::endpoint::policy::RequestPolicy;
use billhook_core::endpoint::secret::SecretDocument;
use billhook_core::time::Timestamp;
use secrecy::SecretString;

use crate::response_url::{ResponseHosts, ResponseUrl};

/// An adapter's error; its text contains no secret.
pub type AdapterError = Box<dyn std::error::Error + Send + Sync>;

/// Stripe, with the key that is stored now.
pub trait StripeConnector: Send + Sync {
    type Endpoints: StripeEndpoints;
    /// `None` if no key is stored.
    fn open(&self) -> impl Future<Output = Result<Option<Self::Endpoints>, AdapterError>> + Send;
}

/// Webhook endpoints at Stripe.
pub trait StripeEndpoints: Send + Sync {
    /// Idempotent: within 24 hours the same key returns the endpoint that the first call created, even if it was
    /// deleted since.
    fn create(
        &self,
        new: &NewEndpoint<'_>,
        idempotency_key: &str,
    ) -> impl Future<Output = Result<CreatedEndpoint, StripeError>> + Send;
    /// Sets URL and events, and enables the endpoint if somebody disabled it.
    fn update(
        &self,
        id: &str,
        url: &str,
        enabled_events: &[String],
        idempotency_key: &str,
    ) -> impl Future<Output = Result<UpdateResult, StripeError>> + Send;
    /// Idempotent: an endpoint that is already gone is a success.
    fn delete(&self, id: &str) -> impl Future<Output = Result<(), StripeError>> + Send;
    /// All endpoints of the account in the key's mode.
    fn list(&self) -> impl Future<Output = Result<Vec<WebhookEndpoint>, StripeError>> + Send;
}

impl StripeEndpoints for StripeClient {
    async fn create(
        &self,
        new: &NewEndpoint<'_>,
        idempotency_key: &str,
    ) -> Result<CreatedEndpoint, StripeError> {
        self.create_webhook_endpoint(new, idempotency_key).await
    }

    async fn update(
        &self,
        id: &str,
        url: &str,
        enabled_events: &[String],
        idempotency_key: &str,
    ) -> Result<UpdateResult, StripeError> {
        self.update_webhook_endpoint(id, url, enabled_events, idempotency_key)
            .await
    }

    async fn delete(&self, id: &str) -> Result<(), StripeError> {
        self.delete_webhook_endpoint(id).await
    }

    async fn list(&self) -> Result<Vec<WebhookEndpoint>, StripeError> {
        self.list_webhook_endpoints().await
    }
}

/// The stored secrets.
pub trait WebhookSecretStore: Send + Sync {
    /// The stored document, including the secret of `AWSPREVIOUS` if it is still valid at `now`. Empty if nothing is
    /// stored yet.
    fn read(
        &self,
        arn: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<SecretDocument, AdapterError>> + Send;
    /// Stores `value` as a new version.
    fn put(
        &self,
        arn: &str,
        value: &SecretString,
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;
    /// Makes the keys that seal stored events.
    fn make_seal_keys(
        &self,
        request: SealKeyRequest,
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;
}

/// The answer to CloudFormation.
pub trait RespondToCloudFormation: Send + Sync {
    /// One attempt.
    fn put(
        &self,
        response_url: &ResponseUrl,
        body: String,
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;
}

/// The cursors of `reconcile`.
pub trait ResetCursors: Send + Sync {
    /// Lowers every cursor that is above `to_s`, a Unix second. Raises and creates none, so a repeat is harmless.
    fn set_back(&self, to_s: i64) -> impl Future<Output = Result<(), AdapterError>> + Send;
}

/// What each endpoint was last set to, by the resource's name in the template.
pub trait AppliedStore: Send + Sync {
    fn load_applied(
        &self,
        logical_id: &str,
    ) -> impl Future<Output = Result<Option<AppliedProperties>, AdapterError>> + Send;
    /// `read` is what `load_applied` returned; the note is lost if `applied` is `None`.
    fn save_applied(
        &self,
        logical_id: &str,
        read: Option<&AppliedProperties>,
        applied: Option<&AppliedProperties>,
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;
}

/// The ports of the custom resource, and the names in the endpoint's description.
pub struct ResourceDependencies<S, W, J, R, T> {
    pub stripe: S,
    pub secrets: W,
    /// The jobs table: the cursors of `reconcile`, and what each endpoint was last set to.
    pub jobs: J,
    pub cloudformation: R,
    pub time: T,
    /// Which requests are obeyed.
    pub policy: RequestPolicy,
    /// Where answers may go.
    pub response_hosts: ResponseHosts,
    pub app_name: String,
    pub env: String,
}
