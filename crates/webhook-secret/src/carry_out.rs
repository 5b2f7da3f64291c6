//! Carries the plan out, step by step. Each step may fail, and the whole may be repeated with the same request: a
//! repeat finds the endpoint that the first run made, by its tags and its idempotency key, and ends with the same id.

use billhook_adapters::stripe::{Endpoint, NewEndpoint, StripeError, Updated};
use billhook_core::endpoint::{
    BadProperties, EndpointSecret, PhysicalId, Plan, Properties, Request, SecretDocument, Tags,
    plan,
};
use secrecy::{ExposeSecret, SecretString};

use crate::Deps;
use crate::envelope::Envelope;
use crate::ports::{
    EdgeError, OpenStripe, RespondToCloudFormation, StripeEndpoints, Time, WebhookSecretStore,
};
use billhook_core::retry::chain;

/// A key whose saved answer names an endpoint that is gone is followed by the next: a run that failed and cleaned up,
/// and one that ran beside it, use up two.
const CREATIONS_MAX: u32 = 3;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The template is wrong.
    #[error(transparent)]
    Properties(#[from] BadProperties),
    /// There is an endpoint, and nothing to reach it with.
    #[error(
        "no stripe_secret_key is stored, and without it {endpoint_id} cannot be changed or removed: store the key and try again"
    )]
    NoKey {
        /// The endpoint.
        endpoint_id: String,
    },
    /// The key cannot be read, or does not fit the stage.
    #[error("cannot reach stripe with the stored key")]
    OpenStripe(#[source] EdgeError),
    /// A call failed.
    #[error(transparent)]
    Stripe(#[from] StripeError),
    /// The stored document cannot be read.
    #[error("cannot read the stored signing secret")]
    ReadSecret(#[source] EdgeError),
    /// The new secret cannot be stored.
    #[error(
        "cannot store the signing secret of the new endpoint {endpoint_id}; it is removed again"
    )]
    StoreSecret {
        /// The endpoint.
        endpoint_id: String,
        /// Why.
        #[source]
        source: EdgeError,
    },
    /// Creation went through and brought no usable secret.
    #[error("stripe returned no signing secret in {CREATIONS_MAX} creations")]
    NoSecret,
    /// The function is about to be stopped.
    #[error("out of time: the function is about to be stopped")]
    OutOfTime,
    /// A fault of ours.
    #[error("internal fault: the log says more")]
    Panicked,
}

/// The physical id to answer with.
pub(crate) async fn carry_out<S, W, R, T>(
    envelope: &Envelope,
    deps: &Deps<S, W, R, T>,
) -> Result<String, Failure>
where
    S: OpenStripe,
    W: WebhookSecretStore,
    R: RespondToCloudFormation,
    T: Time,
{
    let request = envelope.request()?;
    let plan = plan(&request);
    tracing::info!(
        request_id = envelope.request_id,
        "webhook_endpoint_planned {plan:?}"
    );
    if plan == Plan::Nothing {
        return Ok(envelope.physical_id().to_owned());
    }
    let stripe = deps.stripe.open().await.map_err(Failure::OpenStripe);
    let run = |stripe| Run {
        envelope,
        deps,
        stripe,
    };
    let no_key = |endpoint_id: &str| Failure::NoKey {
        endpoint_id: endpoint_id.to_owned(),
    };
    match (plan, request) {
        (Plan::Create, Request::Create { wanted } | Request::Update { wanted, .. }) => {
            match stripe? {
                Some(stripe) => run(stripe).make(&wanted, None).await,
                None => Ok(PhysicalId::unconfigured(&envelope.logical_resource_id)),
            }
        }
        (Plan::Replace { endpoint_id }, Request::Update { wanted, .. }) => {
            let stripe = stripe?.ok_or_else(|| no_key(&endpoint_id))?;
            run(stripe).make(&wanted, Some(&endpoint_id)).await
        }
        (Plan::UpdateInPlace { endpoint_id }, Request::Update { wanted, .. }) => {
            let stripe = stripe?.ok_or_else(|| no_key(&endpoint_id))?;
            run(stripe).update(endpoint_id, &wanted).await
        }
        (Plan::Remove { endpoint_id }, _) => {
            let stripe = stripe?.ok_or_else(|| no_key(&endpoint_id))?;
            run(stripe).remove(&endpoint_id).await?;
            Ok(endpoint_id)
        }
        (Plan::RemoveLeftovers { request_id }, _) => {
            // Whatever made the creation fail may make this fail too, and must not keep the stack from going.
            if let Ok(Some(stripe)) = stripe {
                run(stripe).remove_made_by(&request_id, None).await;
            }
            Ok(envelope.physical_id().to_owned())
        }
        (plan, request) => {
            // `plan` makes nothing else of them.
            tracing::error!("webhook_endpoint_plan_unexpected {plan:?} {request:?}");
            Err(Failure::Panicked)
        }
    }
}

struct Run<'a, S: OpenStripe, W, R, T> {
    envelope: &'a Envelope,
    deps: &'a Deps<S, W, R, T>,
    stripe: S::Endpoints,
}

impl<S, W, R, T> Run<'_, S, W, R, T>
where
    S: OpenStripe,
    W: WebhookSecretStore,
    R: RespondToCloudFormation,
    T: Time,
{
    /// Ends with one endpoint as wanted and its secret stored as current, or with nothing new.
    async fn make(&self, wanted: &Properties, replaced: Option<&str>) -> Result<String, Failure> {
        let made = self.made(wanted, replaced).await;
        if made.is_err() {
            self.remove_made_by(&self.envelope.request_id, replaced)
                .await;
        }
        made
    }

    async fn made(&self, wanted: &Properties, replaced: Option<&str>) -> Result<String, Failure> {
        let document = self.document(wanted).await?;
        let live = self.stripe.list().await?;
        let tags = self.tags(wanted);
        let ours = |endpoint: &Endpoint| {
            Tags::read(&endpoint.metadata).filter(|its| its.same_resource(&tags))
        };

        // A repeated request, or the way back from a replacement: what fits and whose secret is known is taken again.
        let fitting = live.iter().find(|endpoint| {
            document.secret_of(&endpoint.id).is_some()
                && ours(endpoint).is_some_and(|its| {
                    its.digest == tags.digest
                        && (replaced.is_some() || its.request_id == tags.request_id)
                })
        });
        // `CloudFormation` sends one request after the other, so beside what it knows, what fits and what this very
        // request made, anything tagged as this resource was left by a run that was cut short.
        for endpoint in &live {
            let is_leftover = ours(endpoint).is_some_and(|its| its.request_id != tags.request_id)
                && replaced != Some(endpoint.id.as_str())
                && fitting != Some(endpoint);
            if is_leftover {
                self.stripe.delete(&endpoint.id).await?;
            }
        }
        if let Some(endpoint) = fitting {
            return self
                .take_again(endpoint, wanted, document, replaced, &live)
                .await;
        }
        let new = self.create(wanted, &tags).await?;
        let endpoint_id = new.endpoint_id.clone().unwrap_or_default();
        self.store(wanted, document, new, replaced, &live).await?;
        Ok(endpoint_id)
    }

    async fn take_again(
        &self,
        endpoint: &Endpoint,
        wanted: &Properties,
        document: SecretDocument,
        replaced: Option<&str>,
        live: &[Endpoint],
    ) -> Result<String, Failure> {
        if let Some(secret) = document.secret_of(&endpoint.id).cloned()
            && !document.is_current(&endpoint.id)
        {
            let again = EndpointSecret {
                endpoint_id: Some(endpoint.id.clone()),
                secret,
            };
            self.store(wanted, document, again, replaced, live).await?;
        }
        if endpoint.url != wanted.url || endpoint.enabled_events != wanted.enabled_events {
            let key = self.key("update");
            self.stripe
                .update(&endpoint.id, &wanted.url, &wanted.enabled_events, &key)
                .await?;
        }
        Ok(endpoint.id.clone())
    }

    /// A live endpoint with its secret. Stripe answers a repeated key with what it made before, even if that was
    /// deleted since; whether that answer still holds the secret is not documented. So both are looked at.
    async fn create(&self, wanted: &Properties, tags: &Tags) -> Result<EndpointSecret, Failure> {
        let description = format!("billhook {} {}", self.deps.app_name, self.deps.env);
        let new = NewEndpoint {
            url: &wanted.url,
            connect: wanted.connect,
            enabled_events: &wanted.enabled_events,
            api_version: &wanted.api_version,
            description: &description,
            metadata: &tags.metadata(),
        };
        for number in 0..CREATIONS_MAX {
            let created = self
                .stripe
                .create(&new, &self.key(&number.to_string()))
                .await?;
            let lives = self
                .stripe
                .list()
                .await?
                .iter()
                .any(|endpoint| endpoint.id == created.id);
            match (created.secret, lives) {
                (Some(secret), true) => {
                    return Ok(EndpointSecret {
                        endpoint_id: Some(created.id),
                        secret: secret.0,
                    });
                }
                (None, true) => self.stripe.delete(&created.id).await?,
                (_, false) => {}
            }
        }
        Err(Failure::NoSecret)
    }

    async fn store(
        &self,
        wanted: &Properties,
        document: SecretDocument,
        new: EndpointSecret,
        replaced: Option<&str>,
        live: &[Endpoint],
    ) -> Result<(), Failure> {
        let endpoint_id = new.endpoint_id.clone().unwrap_or_default();
        let live: Vec<&str> = live.iter().map(|endpoint| endpoint.id.as_str()).collect();
        let document = document.replaced_by(new, replaced, &live, self.deps.time.now());
        let Err(source) = self
            .deps
            .secrets
            .put(&wanted.secret_arn, &document.print())
            .await
        else {
            return Ok(());
        };
        // The write may have happened and only its answer be lost.
        match self.document(wanted).await {
            Ok(stored) if stored.is_current(&endpoint_id) => Ok(()),
            _ => Err(Failure::StoreSecret {
                endpoint_id,
                source,
            }),
        }
    }

    async fn update(&self, endpoint_id: String, wanted: &Properties) -> Result<String, Failure> {
        let key = self.key("update");
        let updated = self
            .stripe
            .update(&endpoint_id, &wanted.url, &wanted.enabled_events, &key)
            .await?;
        match updated {
            Updated::Done => Ok(endpoint_id),
            // Somebody deleted it by hand.
            Updated::Gone => self.make(wanted, Some(&endpoint_id)).await,
        }
    }

    async fn remove(&self, endpoint_id: &str) -> Result<(), Failure> {
        let live = self.stripe.list().await?;
        let Some(endpoint) = live.iter().find(|endpoint| endpoint.id == endpoint_id) else {
            return Ok(());
        };
        if !self.is_ours(endpoint) {
            tracing::warn!(
                endpoint_id,
                "webhook_endpoint_left_alone endpoint_id={endpoint_id}: not tagged as ours"
            );
            return Ok(());
        }
        Ok(self.stripe.delete(endpoint_id).await?)
    }

    /// Removes what one request made, as far as that goes; what stays is named in the log.
    async fn remove_made_by(&self, request_id: &str, except: Option<&str>) {
        let live = match self.stripe.list().await {
            Ok(live) => live,
            Err(error) => {
                tracing::warn!("webhook_endpoint_cleanup_failed {}", chain(&error));
                return;
            }
        };
        let made_by = |endpoint: &&Endpoint| {
            self.is_ours(endpoint)
                && Tags::read(&endpoint.metadata).is_some_and(|its| its.request_id == request_id)
                && except != Some(endpoint.id.as_str())
        };
        for endpoint in live.iter().filter(made_by) {
            if let Err(error) = self.stripe.delete(&endpoint.id).await {
                tracing::warn!(
                    endpoint_id = endpoint.id,
                    "webhook_endpoint_cleanup_failed {}",
                    chain(&error)
                );
            }
        }
    }

    async fn document(&self, wanted: &Properties) -> Result<SecretDocument, Failure> {
        let stored = self
            .deps
            .secrets
            .get(&wanted.secret_arn)
            .await
            .map_err(Failure::ReadSecret)?;
        Ok(SecretDocument::parse(
            stored.as_ref().map_or("", SecretString::expose_secret),
        ))
    }

    fn tags(&self, wanted: &Properties) -> Tags {
        Tags {
            stack: self.envelope.stack_id.clone(),
            logical_id: self.envelope.logical_resource_id.clone(),
            digest: wanted.digest(),
            request_id: self.envelope.request_id.clone(),
        }
    }

    fn is_ours(&self, endpoint: &Endpoint) -> bool {
        Tags::read(&endpoint.metadata).is_some_and(|its| {
            its.stack == self.envelope.stack_id
                && its.logical_id == self.envelope.logical_resource_id
        })
    }

    /// The same for every run of the request.
    fn key(&self, step: &str) -> String {
        format!("billhook:{}:{step}", self.envelope.request_id)
    }
}
