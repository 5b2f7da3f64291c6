//! One request around its plan: what must succeed even if Stripe does not ([`FallbackAnswer`]), and the note of what the endpoint
//! was set to, from which the rollback of a failed update is known (`billhook_core::endpoint::applied`).

use std::sync::OnceLock;

use billhook_core::endpoint::applied::{AnsweredProperties, AppliedProperties};
use billhook_core::endpoint::plan::{EndpointPlan, EndpointRequest, PhysicalId, plan_endpoint};
use billhook_core::endpoint::secret::EndpointSecret;
use billhook_core::error::error_chain;
use billhook_core::ports::{Clock, Pause};

use crate::envelope::{ResourceRequest, SEAL_KEYS_ID, SealKeyChange};
use crate::execute_plan::{EndpointFailure, execute_plan};
use crate::ports::{
    AppliedStore, ResetCursors, ResourceDependencies, RespondToCloudFormation, StripeConnector,
    WebhookSecretStore,
};

/// The physical id with which a request is answered SUCCESS although it failed. It is known before the work begins, so
/// it also holds after a panic and when the time is up.
#[derive(Debug, Default)]
pub(crate) struct FallbackAnswer(OnceLock<String>);

impl FallbackAnswer {
    pub(crate) fn physical_id(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    fn set(&self, physical_id: &str) {
        // Set once for each request, so it cannot be set already.
        self.0.set(physical_id.to_owned()).ok();
    }
}

/// Executes the request's plan. Returns the physical id to answer with.
pub(crate) async fn apply_request<S, W, J, R, T>(
    envelope: &ResourceRequest,
    deps: &ResourceDependencies<S, W, J, R, T>,
    fallback: &FallbackAnswer,
) -> Result<String, EndpointFailure>
where
    S: StripeConnector,
    W: WebhookSecretStore,
    J: ResetCursors + AppliedStore,
    R: RespondToCloudFormation,
    T: Clock + Pause,
{
    match envelope.seal_key_change() {
        Some(SealKeyChange::Make(request)) => {
            let policy = &deps.policy;
            policy.check_seal_keys(&envelope.stack_id, &envelope.logical_resource_id)?;
            let made = deps.secrets.make_seal_keys(request).await;
            made.map_err(EndpointFailure::MakeSealKeys)?;
            return Ok(SEAL_KEYS_ID.to_owned());
        }
        Some(SealKeyChange::Leave) => return Ok(envelope.physical_id().to_owned()),
        None => {}
    }
    // If the properties are wrong, this is a creation or an update: those of a deletion are not read.
    let request = envelope.request()?;
    let physical_id = envelope.physical_id();
    let logical_id = &envelope.logical_resource_id;
    if matches!(request, EndpointRequest::Delete { .. }) {
        fallback.set(physical_id);
    }
    let endpoint = deps.policy.find_endpoint(&envelope.stack_id, logical_id)?;
    let known = match deps.jobs.load_applied(logical_id).await {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!("webhook_endpoint_note_not_read {}", error_chain(&*error));
            None
        }
    };
    let save = async |note: Option<&AppliedProperties>| {
        let saved = deps.jobs.save_applied(logical_id, known.as_ref(), note);
        if let Err(error) = saved.await {
            tracing::warn!("webhook_endpoint_note_not_written {}", error_chain(&*error));
        }
    };
    let (wanted, before) = match &request {
        EndpointRequest::Create { wanted } => (wanted, None),
        EndpointRequest::Update { wanted, before, .. } => (wanted, before.as_ref()),
        EndpointRequest::Delete { .. } => {
            if let Some(known) = &known {
                save(known.clone().without(physical_id).as_ref()).await;
            }
            return execute_plan(envelope, endpoint, &request, deps).await;
        }
    };
    let digest = wanted.full_digest();
    let is_update = matches!(request, EndpointRequest::Update { .. });
    let known_before = known.as_ref().filter(|_| is_update);
    if let Err(refused) = deps.policy.check_properties(endpoint, wanted)
        && !known_before.is_some_and(|known| known.was_applied(&digest))
    {
        // It changes nothing, so it may be answered well, but not be noted: the note is what a rollback may go back to.
        return match plan_endpoint(&request) {
            EndpointPlan::Nothing => Ok(physical_id.to_owned()),
            _ => Err(refused.into()),
        };
    }
    if let Some(known) = known_before
        && let Some(back) = known.find_rollback(physical_id, &digest, deps.time.now())
    {
        fallback.set(back);
        // The update of a resource without an endpoint failed: it has none again, whatever the key can do now.
        let has_failed = known.last.digest == digest
            && before.is_some_and(|before| before.full_digest() != digest);
        let is_nothing = |id| PhysicalId::parse(id) == PhysicalId::Unconfigured;
        if has_failed && is_nothing(back) && is_nothing(physical_id) {
            return Ok(back.to_owned());
        }
        let live = [back, known.last.physical_id.as_str()];
        make_current(&wanted.secret_arn, back, &live, deps).await;
    }
    let done = execute_plan(envelope, endpoint, &request, deps).await;
    if let Some(id) = done.as_deref().ok().or(fallback.physical_id()) {
        let answered = AnsweredProperties {
            physical_id: id.to_owned(),
            digest,
        };
        // What is known before a creation is of another stack, which was deleted.
        let before = known.clone().filter(|_| is_update);
        let note = AppliedProperties::followed_by(before, answered, deps.time.now());
        save(Some(&note)).await;
    }
    done
}

/// In a rollback, before Stripe is asked: the secret of the endpoint that stands becomes current again. Stripe may refuse,
/// or the time may be up, and then it would no longer be valid in 24 hours.
async fn make_current<S, W, J, R, T>(
    secret_arn: &str,
    endpoint_id: &str,
    live: &[&str],
    deps: &ResourceDependencies<S, W, J, R, T>,
) where
    W: WebhookSecretStore,
    T: Clock,
{
    let now = deps.time.now();
    let Ok(document) = deps.secrets.read(secret_arn, now).await else {
        return;
    };
    let secret = document.find_secret(endpoint_id).cloned();
    let Some(secret) = secret.filter(|_| !document.is_current(endpoint_id)) else {
        return;
    };
    let stands = EndpointSecret {
        endpoint_id: Some(endpoint_id.to_owned()),
        secret,
    };
    let document = document.with_replacement(stands, live, now);
    if let Err(error) = deps.secrets.put(secret_arn, &document.encode()).await {
        tracing::warn!(
            "webhook_endpoint_secret_not_restored {}",
            error_chain(&*error)
        );
    }
}
