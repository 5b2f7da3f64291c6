//! Carries the plan out, step by step. Each step may fail, and the whole may be repeated with the same request: a
//! repeat finds the endpoint that the first run made, by its tags and its idempotency key, and ends with the same id.

use std::time::Duration;

use billhook_adapters::stripe::{NewEndpoint, StripeError, UpdateResult, WebhookEndpoint};
use billhook_core::endpoint::plan::{
    ENDPOINTS_MAX, EndpointPlan, EndpointProperties, EndpointRequest, EndpointTags,
    InvalidProperties, PhysicalId, QUIET_TYPE, plan_endpoint,
};
use billhook_core::endpoint::secret::{EndpointSecret, SecretDocument};
use billhook_core::error::error_chain;
use billhook_core::ports::{Clock, Pause};
use billhook_core::tasks::checkpoint::cursor_limit_after_delete_s;

use crate::ResourceDependencies;
use crate::envelope::ResourceRequest;
use crate::ports::{
    EdgeError, OpenStripe, ResetCursors, RespondToCloudFormation, StripeEndpoints,
    WebhookSecretStore,
};

/// A saved answer without its secret takes a key of its own.
const CREATIONS_MAX: u32 = 2;
/// Tries to remove an endpoint, and the wait between: `CloudFormation` cleans up after an update only once, and what it
/// could not delete then would stay.
const REMOVALS_MAX: u32 = 5;
const REMOVAL_DELAY: Duration = Duration::from_secs(10);
/// From storing a new secret until its endpoint is sent real events: longer than the 10 s in which ingress may be
/// forbidden to ask again.
pub const KNOWN_AFTER: Duration = Duration::from_secs(15);

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum EndpointFailure {
    /// The template is wrong.
    #[error(transparent)]
    Properties(#[from] InvalidProperties),
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
    /// The account is full.
    #[error(
        "the stripe account has {live} of at most {ENDPOINTS_MAX} webhook endpoints and takes no other, while a \
         replacement needs one more until the old one is deleted: delete one that is not used (`stripe \
         webhook_endpoints list`, `stripe webhook_endpoints delete we_…`), then deploy again"
    )]
    NoRoom {
        /// How many there are.
        live: usize,
        /// What Stripe said.
        #[source]
        source: StripeError,
    },
    /// It was deleted while it was being set up, or this request was over before.
    #[error("the new endpoint {endpoint_id} is gone from stripe again: deploy again")]
    Gone {
        /// The endpoint.
        endpoint_id: String,
    },
    /// A repeat that came after `CloudFormation` had gone on to later requests.
    #[error(
        "{endpoint_id} is in use and was made by a later request, so nothing is changed: if no other deployment is \
         running, delete it (`stripe webhook_endpoints delete {endpoint_id}`) and deploy again"
    )]
    Overtaken {
        /// The endpoint that is in use.
        endpoint_id: String,
    },
    /// Without that, what Stripe still owed the endpoint would be lost with it.
    #[error("cannot set the cursors of reconcile back, so {endpoint_id} is not deleted")]
    SetCursorsBack {
        /// The endpoint.
        endpoint_id: String,
        /// Why.
        #[source]
        source: EdgeError,
    },
    /// The stored document cannot be read.
    #[error("cannot read the stored signing secret")]
    ReadSecret(#[source] EdgeError),
    /// The secret that is to be current cannot be stored; a new endpoint is removed again.
    #[error("cannot store the signing secret of {endpoint_id}")]
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
pub(crate) async fn execute_plan<S, W, J, R, T>(
    envelope: &ResourceRequest,
    deps: &ResourceDependencies<S, W, J, R, T>,
) -> Result<String, EndpointFailure>
where
    S: OpenStripe,
    W: WebhookSecretStore,
    J: ResetCursors,
    R: RespondToCloudFormation,
    T: Clock + Pause,
{
    let request = envelope.request()?;
    let plan = plan_endpoint(&request);
    tracing::info!(
        request_id = envelope.request_id,
        "webhook_endpoint_planned {plan:?}"
    );
    if plan == EndpointPlan::Nothing {
        return Ok(envelope.physical_id().to_owned());
    }
    let stripe = deps
        .stripe
        .open()
        .await
        .map_err(EndpointFailure::OpenStripe);
    let run = |stripe| EndpointRun {
        envelope,
        deps,
        stripe,
    };
    let no_key = |endpoint_id: &str| EndpointFailure::NoKey {
        endpoint_id: endpoint_id.to_owned(),
    };
    match (plan, request) {
        (
            EndpointPlan::Create,
            EndpointRequest::Create { wanted } | EndpointRequest::Update { wanted, .. },
        ) => match stripe? {
            Some(stripe) => run(stripe).make(&wanted, None).await,
            None => Ok(PhysicalId::unconfigured(&envelope.logical_resource_id)),
        },
        (EndpointPlan::Replace { endpoint_id }, EndpointRequest::Update { wanted, .. }) => {
            let stripe = stripe?.ok_or_else(|| no_key(&endpoint_id))?;
            run(stripe).make(&wanted, Some(&endpoint_id)).await
        }
        (EndpointPlan::UpdateInPlace { endpoint_id }, EndpointRequest::Update { wanted, .. }) => {
            let stripe = stripe?.ok_or_else(|| no_key(&endpoint_id))?;
            run(stripe).update(endpoint_id, &wanted).await
        }
        (EndpointPlan::Remove { endpoint_id }, _) => {
            let stripe = stripe?.ok_or_else(|| no_key(&endpoint_id))?;
            run(stripe).remove(&endpoint_id).await?;
            Ok(endpoint_id)
        }
        (EndpointPlan::RemoveLeftovers { request_id }, _) => {
            // Whatever made the creation fail may make this fail too, and must not keep the stack from going.
            if let Ok(Some(stripe)) = stripe {
                run(stripe).remove_made_by(request_id.as_deref()).await;
            }
            Ok(envelope.physical_id().to_owned())
        }
        (plan, request) => {
            // `plan_endpoint` makes nothing else of them.
            tracing::error!("webhook_endpoint_plan_unexpected {plan:?} {request:?}");
            Err(EndpointFailure::Panicked)
        }
    }
}

struct EndpointRun<'a, S: OpenStripe, W, J, R, T> {
    envelope: &'a ResourceRequest,
    deps: &'a ResourceDependencies<S, W, J, R, T>,
    stripe: S::Endpoints,
}

impl<S, W, J, R, T> EndpointRun<'_, S, W, J, R, T>
where
    S: OpenStripe,
    W: WebhookSecretStore,
    J: ResetCursors,
    R: RespondToCloudFormation,
    T: Clock + Pause,
{
    /// Ends with one endpoint as wanted and its secret stored as current, or with nothing new.
    async fn make(
        &self,
        wanted: &EndpointProperties,
        replaced: Option<&str>,
    ) -> Result<String, EndpointFailure> {
        let document = self
            .document(&wanted.secret_arn)
            .await?
            .with_endpoint_id(replaced);
        let live = self.stripe.list().await?;
        let tags = self.tags(wanted);
        let ours = |endpoint: &WebhookEndpoint| {
            EndpointTags::from_metadata(&endpoint.metadata)
                .filter(|its| its.is_same_resource(&tags))
        };

        // A repeated request, or the way back from a replacement: what fits and whose secret is known is taken again.
        let fitting = live.iter().find(|endpoint| {
            document.find_secret(&endpoint.id).is_some()
                && ours(endpoint).is_some_and(|its| {
                    its.digest == tags.digest
                        && (replaced.is_some() || its.request_id == tags.request_id)
                })
        });
        // `CloudFormation` sends one request after the other, so beside what it knows, what fits and what this very
        // request made, anything tagged as this resource was left by a run that was cut short.
        let leftovers: Vec<&WebhookEndpoint> = live
            .iter()
            .filter(|endpoint| {
                ours(endpoint).is_some_and(|its| its.request_id != tags.request_id)
                    && replaced != Some(endpoint.id.as_str())
                    && fitting != Some(endpoint)
            })
            .collect();
        // What an update names is deleted only after `CloudFormation` has gone on: then the one in use is no leftover.
        let is_gone = |id: &str| live.iter().all(|endpoint| endpoint.id != id);
        let in_use = leftovers.iter().find(|it| document.is_current(&it.id));
        if let Some(endpoint) = in_use
            && replaced.is_some_and(is_gone)
        {
            return Err(EndpointFailure::Overtaken {
                endpoint_id: endpoint.id.clone(),
            });
        }
        if let Some(endpoint) = fitting {
            self.take_again(endpoint, wanted, document, &live).await?;
            self.delete_all(&leftovers).await?;
            return Ok(endpoint.id.clone());
        }
        self.delete_all(&leftovers).await?;
        let live_count = live.len().saturating_sub(leftovers.len());
        // A replaced endpoint's secret is in use, even where it stands elsewhere or a person spoilt the document.
        let begins_quietly = replaced.is_some() || document.current.is_some();
        let made = self
            .make_new(wanted, &tags, document, &live, live_count, begins_quietly)
            .await;
        // What an earlier run of the request made stays: `CloudFormation` may have taken that run's answer, and if not,
        // it asks for the way back.
        let is_repeat = live
            .iter()
            .any(|endpoint| ours(endpoint).is_some_and(|its| its.request_id == tags.request_id));
        if made.is_err() && !is_repeat {
            self.remove_made_by(Some(&tags.request_id)).await;
        }
        made
    }

    async fn take_again(
        &self,
        endpoint: &WebhookEndpoint,
        wanted: &EndpointProperties,
        document: SecretDocument,
        live: &[WebhookEndpoint],
    ) -> Result<(), EndpointFailure> {
        if let Some(secret) = document.find_secret(&endpoint.id).cloned()
            && !document.is_current(&endpoint.id)
        {
            let again = EndpointSecret {
                endpoint_id: Some(endpoint.id.clone()),
                secret,
            };
            self.store(&wanted.secret_arn, document, again, live)
                .await?;
        }
        if endpoint.url != wanted.url || endpoint.enabled_events != wanted.enabled_events {
            // Still quiet: the run that stored its secret may have ended at that very moment.
            if endpoint.enabled_events == [QUIET_TYPE] {
                self.deps.time.pause(KNOWN_AFTER).await;
            }
            self.set(&endpoint.id, wanted).await?;
        }
        Ok(())
    }

    /// Where another secret is in use, the endpoint begins quietly: it is sent real events once every ingress can know
    /// its secret.
    async fn make_new(
        &self,
        wanted: &EndpointProperties,
        tags: &EndpointTags,
        document: SecretDocument,
        live: &[WebhookEndpoint],
        live_count: usize,
        begins_quietly: bool,
    ) -> Result<String, EndpointFailure> {
        let quiet = [QUIET_TYPE.to_owned()];
        let at_first = match begins_quietly {
            true => &quiet[..],
            false => &wanted.enabled_events,
        };
        let created = self.create(wanted, tags, at_first).await;
        let new = created.map_err(|failure| match failure {
            EndpointFailure::Stripe(source) if live_count >= ENDPOINTS_MAX => {
                EndpointFailure::NoRoom {
                    live: live_count,
                    source,
                }
            }
            other => other,
        })?;
        let endpoint_id = new.endpoint_id.clone().unwrap_or_default();
        self.store(&wanted.secret_arn, document, new, live).await?;
        if begins_quietly {
            self.deps.time.pause(KNOWN_AFTER).await;
            self.set(&endpoint_id, wanted).await?;
        }
        Ok(endpoint_id)
    }

    /// A live endpoint with its secret. Stripe answers a repeated key with what it made before, even if that was
    /// deleted since: then an earlier run of this request came to its end, and `CloudFormation` may be past it, so that
    /// another endpoint would be nobody's. Whether such an answer still holds the secret is not documented.
    async fn create(
        &self,
        wanted: &EndpointProperties,
        tags: &EndpointTags,
        enabled_events: &[String],
    ) -> Result<EndpointSecret, EndpointFailure> {
        let description = format!("billhook {} {}", self.deps.app_name, self.deps.env);
        let new = NewEndpoint {
            url: &wanted.url,
            connect: wanted.connect,
            enabled_events,
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
                (None, true) => self.delete(&created.id).await?,
                (_, false) => {
                    return Err(EndpointFailure::Gone {
                        endpoint_id: created.id,
                    });
                }
            }
        }
        Err(EndpointFailure::NoSecret)
    }

    async fn store(
        &self,
        secret_arn: &str,
        document: SecretDocument,
        new: EndpointSecret,
        live: &[WebhookEndpoint],
    ) -> Result<(), EndpointFailure> {
        let endpoint_id = new.endpoint_id.clone().unwrap_or_default();
        let live: Vec<&str> = live.iter().map(|endpoint| endpoint.id.as_str()).collect();
        let document = document.with_replacement(new, &live, self.deps.time.now());
        let Err(source) = self.deps.secrets.put(secret_arn, &document.encode()).await else {
            return Ok(());
        };
        // The write may have happened and only its answer be lost.
        match self.document(secret_arn).await {
            Ok(stored) if stored.is_current(&endpoint_id) => Ok(()),
            _ => Err(EndpointFailure::StoreSecret {
                endpoint_id,
                source,
            }),
        }
    }

    async fn update(
        &self,
        endpoint_id: String,
        wanted: &EndpointProperties,
    ) -> Result<String, EndpointFailure> {
        match self.set(&endpoint_id, wanted).await {
            Ok(()) => Ok(endpoint_id),
            // Somebody deleted it by hand.
            Err(EndpointFailure::Gone { .. }) => self.make(wanted, Some(&endpoint_id)).await,
            Err(failure) => Err(failure),
        }
    }

    async fn set(
        &self,
        endpoint_id: &str,
        wanted: &EndpointProperties,
    ) -> Result<(), EndpointFailure> {
        let key = self.key(&format!("set:{endpoint_id}"));
        let updated = self
            .stripe
            .update(endpoint_id, &wanted.url, &wanted.enabled_events, &key)
            .await?;
        match updated {
            UpdateResult::Done => Ok(()),
            UpdateResult::Gone => Err(EndpointFailure::Gone {
                endpoint_id: endpoint_id.to_owned(),
            }),
        }
    }

    async fn remove(&self, endpoint_id: &str) -> Result<(), EndpointFailure> {
        let mut tries = 1;
        loop {
            let Err(failure) = self.remove_once(endpoint_id).await else {
                return Ok(());
            };
            if tries == REMOVALS_MAX {
                return Err(failure);
            }
            tracing::warn!(
                endpoint_id,
                "webhook_endpoint_stays {}",
                error_chain(&failure)
            );
            tries += 1;
            self.deps.time.pause(REMOVAL_DELAY).await;
        }
    }

    async fn remove_once(&self, endpoint_id: &str) -> Result<(), EndpointFailure> {
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
        self.hand_over(endpoint_id, &live).await?;
        self.delete(endpoint_id).await
    }

    /// Where the secret of an endpoint about to go is the current one, and another of ours lives whose secret is known,
    /// makes that one current: nobody else will.
    async fn hand_over(
        &self,
        endpoint_id: &str,
        live: &[WebhookEndpoint],
    ) -> Result<(), EndpointFailure> {
        let others = live
            .iter()
            .filter(|other| other.id != endpoint_id && self.is_ours(other));
        let others: Vec<&WebhookEndpoint> = others.collect();
        let Some(secret_arn) = self.envelope.secret_arn().filter(|_| !others.is_empty()) else {
            return Ok(());
        };
        let document = self.document(secret_arn).await?;
        let heir = others.iter().find_map(|other| {
            let secret = document.find_secret(&other.id)?.clone();
            let endpoint_id = Some(other.id.clone());
            Some(EndpointSecret {
                endpoint_id,
                secret,
            })
        });
        match heir.filter(|_| document.is_current(endpoint_id)) {
            Some(heir) => self.store(secret_arn, document, heir, live).await,
            None => Ok(()),
        }
    }

    /// Removes what one request made, or any, as far as that goes; what stays is named in the log.
    async fn remove_made_by(&self, request_id: Option<&str>) {
        let failed = |endpoint_id: &str, failure: &EndpointFailure| {
            tracing::warn!(
                endpoint_id,
                "webhook_endpoint_cleanup_failed {}",
                error_chain(failure)
            );
        };
        let live = match self.stripe.list().await {
            Ok(live) => live,
            Err(error) => return failed("", &error.into()),
        };
        let made_by = |endpoint: &&WebhookEndpoint| {
            let its =
                EndpointTags::from_metadata(&endpoint.metadata).filter(|_| self.is_ours(endpoint));
            its.is_some_and(|its| request_id.is_none_or(|id| its.request_id == id))
        };
        for WebhookEndpoint { id, .. } in live.iter().filter(made_by) {
            // Each as far as it goes: an endpoint left behind would be worse than what the others prevent.
            if let Err(failure) = self.hand_over(id, &live).await {
                failed(id, &failure);
            }
            if let Err(failure) = self.set_cursors_back(id).await {
                failed(id, &failure);
            }
            if let Err(error) = self.stripe.delete(id).await {
                failed(id, &error.into());
            }
        }
    }

    async fn delete_all(&self, endpoints: &[&WebhookEndpoint]) -> Result<(), EndpointFailure> {
        for endpoint in endpoints {
            self.delete(&endpoint.id).await?;
        }
        Ok(())
    }

    /// Deleting an endpoint ends Stripe's retries to it: what it still owed is fetched by `reconcile`.
    async fn delete(&self, endpoint_id: &str) -> Result<(), EndpointFailure> {
        self.set_cursors_back(endpoint_id).await?;
        Ok(self.stripe.delete(endpoint_id).await?)
    }

    async fn set_cursors_back(&self, endpoint_id: &str) -> Result<(), EndpointFailure> {
        let to_s = cursor_limit_after_delete_s(self.deps.time.now());
        let set = self.deps.cursors.set_back(to_s).await;
        set.map_err(|source| EndpointFailure::SetCursorsBack {
            endpoint_id: endpoint_id.to_owned(),
            source,
        })
    }

    async fn document(&self, secret_arn: &str) -> Result<SecretDocument, EndpointFailure> {
        let now = self.deps.time.now();
        let read = self.deps.secrets.read(secret_arn, now).await;
        read.map_err(EndpointFailure::ReadSecret)
    }

    fn tags(&self, wanted: &EndpointProperties) -> EndpointTags {
        EndpointTags {
            stack: self.envelope.stack_id.clone(),
            logical_id: self.envelope.logical_resource_id.clone(),
            digest: wanted.digest(),
            request_id: self.envelope.request_id.clone(),
        }
    }

    fn is_ours(&self, endpoint: &WebhookEndpoint) -> bool {
        EndpointTags::from_metadata(&endpoint.metadata).is_some_and(|its| {
            its.stack == self.envelope.stack_id
                && its.logical_id == self.envelope.logical_resource_id
        })
    }

    /// The same for every run of the request.
    fn key(&self, step: &str) -> String {
        format!("billhook:{}:{step}", self.envelope.request_id)
    }
}
