//! Executes the plan for an endpoint at Stripe, step by step. Every step may fail, its answer may be lost, and Lambda
//! may run the whole request again, so each step is idempotent: a repeat finds the endpoint that the first run created,
//! by its tags and its idempotency key, and ends with the same id.
//!
//! Order of a replacement (rotation): create the new endpoint quietly, store its secret, wait until every ingress can
//! know the secret, then let Stripe send real events to it. Stripe never signs with a secret that ingress refuses. The
//! tests fail every single call, before and after it takes effect, and repeat, roll back or delete. Not covered: a
//! repeat that Lambda runs after later requests were answered (docs/reliability.md, Limits).

use std::time::Duration;

use billhook_adapters::stripe::{NewEndpoint, StripeError, UpdateResult, WebhookEndpoint};
use billhook_core::endpoint::plan::{
    ENDPOINTS_MAX, EndpointPlan, EndpointProperties, EndpointRequest, EndpointTags,
    InvalidProperties, PhysicalId, QUIET_TYPE, plan_endpoint,
};
use billhook_core::endpoint::policy::{RefusedRequest, StackEndpoint};
use billhook_core::endpoint::secret::{EndpointSecret, SecretDocument};
use billhook_core::error::error_chain;
use billhook_core::ports::{Clock, Pause};
use billhook_core::tasks::checkpoint::cursor_limit_after_delete_s;

use crate::envelope::ResourceRequest;
use crate::ports::{
    AdapterError, ResetCursors, ResourceDependencies, RespondToCloudFormation, StripeConnector,
    StripeEndpoints, WebhookSecretStore,
};

/// A second creation under a new idempotency key, if Stripe's saved answer for the first key no longer contains the
/// secret.
const CREATIONS_MAX: u32 = 2;
/// Attempts to remove an endpoint, and the wait between them. After an update CloudFormation asks for the deletion of
/// the old endpoint only once and ignores a failure: the endpoint would stay at Stripe for good.
const REMOVALS_MAX: u32 = 5;
const REMOVAL_DELAY: Duration = Duration::from_secs(10);
/// Wait between storing a new secret and sending real events to its endpoint. Ingress reads the secrets again after a
/// mismatch, but at most once in 10 s (rate limit): an instance that read just before the new secret was stored can
/// read it at the latest 10 s later.
pub const KNOWN_AFTER: Duration = Duration::from_secs(15);

/// Why a request failed. The text, with its causes, is the reason that CloudFormation shows.
#[derive(Debug, thiserror::Error)]
pub enum EndpointFailure {
    #[error(transparent)]
    Properties(#[from] InvalidProperties),
    #[error(transparent)]
    Refused(#[from] RefusedRequest),
    /// A request that CloudFormation sends names the endpoint that we answered, and that bears our tags.
    #[error(
        "{endpoint_id} is not tagged as the endpoint of this resource, so nothing is changed: a new RotationToken replaces it"
    )]
    NotOurs { endpoint_id: String },
    /// An endpoint exists, but there is no key to change or remove it with.
    #[error(
        "no stripe_secret_key is stored, and without it {endpoint_id} cannot be changed or removed: store the key and try again"
    )]
    NoKey { endpoint_id: String },
    #[error("cannot make the keys that seal stored events")]
    MakeSealKeys(#[source] AdapterError),
    /// The key cannot be read, or has the wrong mode (live or test) for the environment.
    #[error("cannot reach stripe with the stored key")]
    OpenStripe(#[source] AdapterError),
    #[error(transparent)]
    Stripe(#[from] StripeError),
    #[error(
        "the stripe account has {live} of at most {ENDPOINTS_MAX} webhook endpoints and accepts no more, but a \
         replacement needs one more until the old one is deleted: delete one that is not in use (`stripe \
         webhook_endpoints list`, `stripe webhook_endpoints delete we_…`), then deploy again"
    )]
    NoRoom {
        live: usize,
        #[source]
        source: StripeError,
    },
    /// Somebody deleted the endpoint while this run was setting it up; or an earlier run of this request failed and
    /// removed it, and Stripe's saved answer still names it.
    #[error("the new endpoint {endpoint_id} no longer exists at stripe: deploy again")]
    Gone { endpoint_id: String },
    /// This is a repeat that Lambda ran after CloudFormation had gone on to later requests.
    #[error(
        "{endpoint_id} is in use and was made by a later request, so nothing is changed: if no other deployment is \
         running, delete it (`stripe webhook_endpoints delete {endpoint_id}`) and deploy again"
    )]
    Overtaken {
        /// The endpoint that is in use.
        endpoint_id: String,
    },
    /// Without the lower cursors, events that Stripe had not yet delivered to the endpoint would be lost with it.
    #[error("cannot set the cursors of reconcile back, so {endpoint_id} is not deleted")]
    SetCursorsBack {
        endpoint_id: String,
        #[source]
        source: AdapterError,
    },
    #[error("cannot read the stored signing secret")]
    ReadSecret(#[source] AdapterError),
    /// A new endpoint is removed again: nobody could verify its deliveries.
    #[error("cannot store the signing secret of {endpoint_id}")]
    StoreSecret {
        endpoint_id: String,
        #[source]
        source: AdapterError,
    },
    #[error("stripe returned no signing secret in {CREATIONS_MAX} creations")]
    NoSecret,
    #[error("out of time: the function is about to be stopped")]
    OutOfTime,
    /// A bug of ours.
    #[error("internal error: see the function's log")]
    Panicked,
}

/// Executes what the plan asks for. Returns the physical id to answer with.
pub(crate) async fn execute_plan<S, W, J, R, T>(
    envelope: &ResourceRequest,
    endpoint: &StackEndpoint,
    request: &EndpointRequest,
    deps: &ResourceDependencies<S, W, J, R, T>,
) -> Result<String, EndpointFailure>
where
    S: StripeConnector,
    W: WebhookSecretStore,
    J: ResetCursors,
    R: RespondToCloudFormation,
    T: Clock + Pause,
{
    let plan = plan_endpoint(request);
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
        endpoint,
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
            Some(stripe) => run(stripe).create_or_replace(wanted, None).await,
            None => Ok(PhysicalId::unconfigured(&envelope.logical_resource_id)),
        },
        (EndpointPlan::Replace { endpoint_id }, EndpointRequest::Update { wanted, .. }) => {
            let stripe = stripe?.ok_or_else(|| no_key(&endpoint_id))?;
            run(stripe)
                .create_or_replace(wanted, Some(&endpoint_id))
                .await
        }
        (EndpointPlan::UpdateInPlace { endpoint_id }, EndpointRequest::Update { wanted, .. }) => {
            let stripe = stripe?.ok_or_else(|| no_key(&endpoint_id))?;
            run(stripe).update(endpoint_id, wanted).await
        }
        (EndpointPlan::Remove { endpoint_id }, _) => {
            let stripe = stripe?.ok_or_else(|| no_key(&endpoint_id))?;
            run(stripe).remove(&endpoint_id).await?;
            Ok(endpoint_id)
        }
        (EndpointPlan::RemoveLeftovers { request_id }, _) => {
            // Always a success: what made the creation fail (a wrong key, say) may make this fail too, and a FAILED
            // deletion would keep the whole stack from being deleted.
            if let Ok(Some(stripe)) = stripe {
                run(stripe)
                    .remove_created_by_request(request_id.as_deref())
                    .await;
            }
            Ok(envelope.physical_id().to_owned())
        }
        (plan, request) => {
            // Not reachable: `plan_endpoint` returns no other combination.
            tracing::error!("webhook_endpoint_plan_unexpected {plan:?} {request:?}");
            Err(EndpointFailure::Panicked)
        }
    }
}

struct EndpointRun<'a, S: StripeConnector, W, J, R, T> {
    envelope: &'a ResourceRequest,
    endpoint: &'a StackEndpoint,
    deps: &'a ResourceDependencies<S, W, J, R, T>,
    stripe: S::Endpoints,
}

impl<S, W, J, R, T> EndpointRun<'_, S, W, J, R, T>
where
    S: StripeConnector,
    W: WebhookSecretStore,
    J: ResetCursors,
    R: RespondToCloudFormation,
    T: Clock + Pause,
{
    /// Creates or replaces the endpoint. Ends with one endpoint as wanted and its secret current, or with nothing new.
    /// `replaced` is the endpoint that an update replaces.
    ///
    /// Each step protects from a repeat or a rollback:
    ///
    /// 1. Read the document, list the endpoints, and find by their tags those of this resource.
    /// 2. `Overtaken`: the endpoint that this update replaces is already deleted, and the secret of another endpoint
    ///    of this resource is the current one. Then this is a late repeat, and that endpoint belongs to a later
    ///    deployment and is in use: change nothing.
    /// 3. `fitting`: an endpoint as wanted whose secret we have. Then an earlier run of this request created it and its
    ///    answer was lost, or an update is rolled back and the old endpoint still exists. Use it: no second endpoint.
    /// 4. `leftovers`: other endpoints of this resource, from runs that were killed before they could clean up. Delete
    ///    them, because Stripe allows only 16 endpoints.
    /// 5. Create under an idempotency key made of the request's id. A repeat after a lost answer gets the same endpoint
    ///    from Stripe instead of a second one.
    /// 6. If that failed, remove what this run created, but nothing that an earlier run of the same request created:
    ///    CloudFormation may have accepted that run's answer.
    ///
    /// Example: an update replaces `we_1`; the run creates `we_2`, stores its secret and is killed before it can
    /// answer. Lambda's retry finds `we_2` in step 3, sets its events and answers `we_2`. If CloudFormation rolls back
    /// instead, that request wants the old properties: step 3 finds `we_1`, step 4 deletes `we_2`, and `we_1` is
    /// current again.
    async fn create_or_replace(
        &self,
        wanted: &EndpointProperties,
        replaced: Option<&str>,
    ) -> Result<String, EndpointFailure> {
        let document = self
            .read_secret_document(&wanted.secret_arn)
            .await?
            .with_endpoint_id(replaced);
        let live = self.stripe.list().await?;
        let tags = self.tags(wanted);
        let ours = |endpoint: &WebhookEndpoint| {
            EndpointTags::from_metadata(&endpoint.metadata)
                .filter(|its| its.is_same_resource(&tags))
        };

        // A creation uses only what its own request created: another request's endpoint with the same digest is a
        // leftover. An update also uses older ones, for a rollback.
        let fitting = live.iter().find(|endpoint| {
            document.find_secret(&endpoint.id).is_some()
                && ours(endpoint).is_some_and(|its| {
                    its.digest == tags.digest
                        && (replaced.is_some() || its.request_id == tags.request_id)
                })
        });
        // CloudFormation sends one request for a resource at a time. So an endpoint with this resource's tags that is
        // neither the one that CloudFormation knows, nor fits, nor was created by this request, was left by a run that
        // was killed.
        let leftovers: Vec<&WebhookEndpoint> = live
            .iter()
            .filter(|endpoint| {
                ours(endpoint).is_some_and(|its| its.request_id != tags.request_id)
                    && replaced != Some(endpoint.id.as_str())
                    && fitting != Some(endpoint)
            })
            .collect();
        // CloudFormation has the replaced endpoint deleted only after this request was answered. If it is gone and a
        // leftover is current, the request was answered long ago (step 2).
        let is_gone = |id: &str| live.iter().all(|it| it.id != id || ours(it).is_none());
        let in_use = leftovers.iter().find(|it| document.is_current(&it.id));
        if let Some(endpoint) = in_use
            && replaced.is_some_and(is_gone)
        {
            return Err(EndpointFailure::Overtaken {
                endpoint_id: endpoint.id.clone(),
            });
        }
        if let Some(endpoint) = fitting {
            self.adopt_endpoint(endpoint, wanted, document, &live)
                .await?;
            self.delete_all(&leftovers).await?;
            return Ok(endpoint.id.clone());
        }
        self.delete_all(&leftovers).await?;
        let live_count = live.len().saturating_sub(leftovers.len());
        // Begin quietly if any secret is in use. That does not follow from the document alone: when a person had
        // damaged the document, or the secret's ARN had changed, the new endpoint got real events at once, and ingress
        // refused them until it knew the secret.
        let begins_quietly = replaced.is_some() || document.current.is_some();
        let made = self
            .create_and_store(wanted, &tags, document, &live, live_count, begins_quietly)
            .await;
        // An earlier run of this request may have been answered with success, of which only Lambda did not learn. When
        // a failing repeat removed that run's endpoint, no endpoint was left once the old one was deleted. If the
        // answer was not accepted, CloudFormation rolls back or deletes, and that request cleans up.
        let is_repeat = live
            .iter()
            .any(|endpoint| ours(endpoint).is_some_and(|its| its.request_id == tags.request_id));
        if made.is_err() && !is_repeat {
            self.remove_created_by_request(Some(&tags.request_id)).await;
        }
        made
    }

    /// Uses an endpoint that already exists: makes its secret current and sets its URL and events.
    async fn adopt_endpoint(
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
            // Still quiet: the run that created it may have been killed just after it stored the secret, so that not
            // every ingress can know it yet.
            if endpoint.enabled_events == [QUIET_TYPE] {
                self.deps.time.pause(KNOWN_AFTER).await;
            }
            self.set_url_and_events(&endpoint.id, wanted).await?;
        }
        Ok(())
    }

    /// Creates the endpoint and stores its secret. If another secret is in use, the endpoint begins with one quiet
    /// event type and gets the others after [`KNOWN_AFTER`]:
    ///
    /// ```text
    ///  0 s   create we_2 for coupon.deleted only; store its secret (we_1's secret moves to previous)
    /// 10 s   every ingress that meets an unknown signature may read the secrets again
    /// 15 s   give we_2 all event types: from here each event arrives from we_1 and we_2, and counts once
    /// ```
    ///
    /// The first endpoint of a stack does not wait: nothing was delivered before it.
    async fn create_and_store(
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
            self.set_url_and_events(&endpoint_id, wanted).await?;
        }
        Ok(endpoint_id)
    }

    /// Creates an endpoint and returns its secret.
    ///
    /// Stripe answers a repeated idempotency key with its saved answer, even if the endpoint was deleted since. So
    /// every creation is checked against the list:
    ///
    /// - it exists, with its secret: done.
    /// - it exists, but the saved answer has no secret (Stripe does not document whether it does): the secret is lost
    ///   for good, so delete the endpoint and create another under the next key.
    /// - it does not exist: an earlier run of this request failed and removed it, or was rolled back. CloudFormation
    ///   may have gone on since; a new endpoint would belong to nobody and would never be deleted. Fail.
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
                .create(&new, &self.idempotency_key(&number.to_string()))
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

    /// Stores `new` as the current secret; the replaced one moves to `previous`.
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
        // Outcome unknown: the write may have succeeded and only its answer been lost, so read the document.
        match self.read_secret_document(secret_arn).await {
            Ok(stored) if stored.is_current(&endpoint_id) => Ok(()),
            _ => Err(EndpointFailure::StoreSecret {
                endpoint_id,
                source,
            }),
        }
    }

    /// Changes an endpoint in place; if it is gone, creates another.
    async fn update(
        &self,
        endpoint_id: String,
        wanted: &EndpointProperties,
    ) -> Result<String, EndpointFailure> {
        let live = self.stripe.list().await?;
        if let Some(endpoint) = live.iter().find(|endpoint| endpoint.id == endpoint_id)
            && !self.is_ours(endpoint)
        {
            return Err(EndpointFailure::NotOurs { endpoint_id });
        }
        match self.set_url_and_events(&endpoint_id, wanted).await {
            Ok(()) => Ok(endpoint_id),
            // Somebody deleted it in Stripe's dashboard.
            Err(EndpointFailure::Gone { .. }) => {
                self.create_or_replace(wanted, Some(&endpoint_id)).await
            }
            Err(failure) => Err(failure),
        }
    }

    async fn set_url_and_events(
        &self,
        endpoint_id: &str,
        wanted: &EndpointProperties,
    ) -> Result<(), EndpointFailure> {
        let key = self.idempotency_key(&format!("set:{endpoint_id}"));
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

    /// Removes an endpoint, with retries for 40 s: see `REMOVALS_MAX`.
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
        self.promote_other_secret(endpoint_id, &live).await?;
        self.delete(endpoint_id).await
    }

    /// Before the deletion of an endpoint whose secret is current: makes the secret of another endpoint of ours
    /// current, if there is one. Case: an update replaced `we_1` by `we_2`, and `we_2` is deleted while `we_1` still
    /// exists. No other request would make `we_1` current, and the document would name a deleted endpoint.
    async fn promote_other_secret(
        &self,
        endpoint_id: &str,
        live: &[WebhookEndpoint],
    ) -> Result<(), EndpointFailure> {
        let others = live
            .iter()
            .filter(|other| other.id != endpoint_id && self.is_ours(other));
        let others: Vec<&WebhookEndpoint> = others.collect();
        if others.is_empty() {
            return Ok(());
        }
        // A deletion's properties are not checked, so the secret is not taken from them.
        let secret_arn = self.endpoint.secret_arn.as_str();
        let document = self.read_secret_document(secret_arn).await?;
        let successor = others.iter().find_map(|other| {
            let secret = document.find_secret(&other.id)?.clone();
            let endpoint_id = Some(other.id.clone());
            Some(EndpointSecret {
                endpoint_id,
                secret,
            })
        });
        match successor.filter(|_| document.is_current(endpoint_id)) {
            Some(successor) => self.store(secret_arn, document, successor, live).await,
            None => Ok(()),
        }
    }

    /// Removes the endpoints that one request created, or all of this resource (None). Best effort: what cannot be
    /// removed is logged.
    async fn remove_created_by_request(&self, request_id: Option<&str>) {
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
            // Deletes the endpoint even if a step before fails: an endpoint that nobody knows of would deliver for ever
            // and take one of the 16 places.
            if let Err(failure) = self.promote_other_secret(id, &live).await {
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

    /// Deletes an endpoint. Stripe then stops its retries to it, so first the cursors of `reconcile` are set back by
    /// three days, the time for which Stripe retries: the next reconciliation fetches what was not delivered. The other
    /// order could lose those events if the function is killed in between.
    async fn delete(&self, endpoint_id: &str) -> Result<(), EndpointFailure> {
        self.set_cursors_back(endpoint_id).await?;
        Ok(self.stripe.delete(endpoint_id).await?)
    }

    async fn set_cursors_back(&self, endpoint_id: &str) -> Result<(), EndpointFailure> {
        let to_s = cursor_limit_after_delete_s(self.deps.time.now());
        let set = self.deps.jobs.set_back(to_s).await;
        set.map_err(|source| EndpointFailure::SetCursorsBack {
            endpoint_id: endpoint_id.to_owned(),
            source,
        })
    }

    async fn read_secret_document(
        &self,
        secret_arn: &str,
    ) -> Result<SecretDocument, EndpointFailure> {
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

    /// The idempotency key of a step: the same for every run of the request, so that a repeat gets Stripe's saved
    /// answer.
    fn idempotency_key(&self, step: &str) -> String {
        format!("billhook:{}:{step}", self.envelope.request_id)
    }
}
