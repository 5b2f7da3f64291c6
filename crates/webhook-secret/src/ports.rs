//! What the custom resource needs from the world.

use std::future::Future;

use billhook_adapters::stripe::{
    CreatedEndpoint, NewEndpoint, StripeClient, StripeError, UpdateResult, WebhookEndpoint,
};
use billhook_core::endpoint::secret::SecretDocument;
use billhook_core::time::Timestamp;
use secrecy::SecretString;

/// An edge's own error; its text holds no secret.
pub type EdgeError = Box<dyn std::error::Error + Send + Sync>;

/// The way to Stripe, with the key as it is now.
pub trait OpenStripe: Send + Sync {
    /// Stripe's endpoints.
    type Endpoints: StripeEndpoints;
    /// `None` while there is no key.
    fn open(&self) -> impl Future<Output = Result<Option<Self::Endpoints>, EdgeError>> + Send;
}

/// Webhook endpoints at Stripe.
pub trait StripeEndpoints: Send + Sync {
    /// Makes one; the same key answers for the same one.
    fn create(
        &self,
        new: &NewEndpoint<'_>,
        idempotency_key: &str,
    ) -> impl Future<Output = Result<CreatedEndpoint, StripeError>> + Send;
    /// Sets url and events.
    fn update(
        &self,
        id: &str,
        url: &str,
        enabled_events: &[String],
        idempotency_key: &str,
    ) -> impl Future<Output = Result<UpdateResult, StripeError>> + Send;
    /// Deletes one; gone already is a success.
    fn delete(&self, id: &str) -> impl Future<Output = Result<(), StripeError>> + Send;
    /// All of the account.
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

/// Where signing secrets are kept.
pub trait WebhookSecretStore: Send + Sync {
    /// What is stored, with what the version before still proves; an empty document where there is no value yet.
    fn read(
        &self,
        arn: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<SecretDocument, EdgeError>> + Send;
    /// Makes `value` the current one.
    fn put(
        &self,
        arn: &str,
        value: &SecretString,
    ) -> impl Future<Output = Result<(), EdgeError>> + Send;
}

/// Who waits for the answer.
pub trait RespondToCloudFormation: Send + Sync {
    /// One try. The URL is a credential.
    fn put(
        &self,
        response_url: &SecretString,
        body: String,
    ) -> impl Future<Output = Result<(), EdgeError>> + Send;
}

/// The cursors of `reconcile`.
pub trait ResetCursors: Send + Sync {
    /// Lowers each that is above `to_s`, a Unix second; none is raised or made.
    fn set_back(&self, to_s: i64) -> impl Future<Output = Result<(), EdgeError>> + Send;
}
