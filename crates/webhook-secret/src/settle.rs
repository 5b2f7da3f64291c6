//! One request around its plan: what must succeed even if Stripe does not ([`WayOut`]), and the note of what the endpoint
//! was set to, from which the way back of a failed update is known (`billhook_core::endpoint::applied`).

use std::sync::OnceLock;

use billhook_core::endpoint::applied::{AnsweredProperties, AppliedProperties};
use billhook_core::endpoint::plan::{EndpointRequest, PhysicalId};
use billhook_core::endpoint::secret::EndpointSecret;
use billhook_core::error::error_chain;
use billhook_core::ports::{Clock, Pause};

use crate::envelope::ResourceRequest;
use crate::execute_plan::{EndpointFailure, execute_plan};
use crate::ports::{
    AppliedStore, ResetCursors, ResourceDependencies, RespondToCloudFormation, StripeConnector,
    WebhookSecretStore,
};

/// The physical id with which a request is answered SUCCESS although it failed. It is known before the work begins, so
/// it also holds after a panic and when the time is up.
#[derive(Debug, Default)]
pub(crate) struct WayOut(OnceLock<String>);

impl WayOut {
    pub(crate) fn physical_id(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    fn set(&self, physical_id: &str) {
        // Set once for each request, so it cannot be set already.
        self.0.set(physical_id.to_owned()).ok();
    }
}

/// Executes the request's plan. Returns the physical id to answer with.
pub(crate) async fn settle<S, W, J, R, T>(
    envelope: &ResourceRequest,
    deps: &ResourceDependencies<S, W, J, R, T>,
    way_out: &WayOut,
) -> Result<String, EndpointFailure>
where
    S: StripeConnector,
    W: WebhookSecretStore,
    J: ResetCursors + AppliedStore,
    R: RespondToCloudFormation,
    T: Clock + Pause,
{
    let request = match envelope.request() {
        Ok(request) => request,
        Err(invalid) => {
            // The properties of a deletion are not read, so this is a creation or an update.
            return Err(invalid.into());
        }
    };
    let physical_id = envelope.physical_id();
    if matches!(request, EndpointRequest::Delete { .. }) {
        way_out.set(physical_id);
    }
    let logical_id = &envelope.logical_resource_id;
    let applied = match deps.jobs.load_applied(logical_id).await {
        Ok(applied) => applied,
        Err(error) => {
            tracing::warn!("webhook_endpoint_note_not_read {}", error_chain(&*error));
            None
        }
    };
    let wanted = match &request {
        EndpointRequest::Create { wanted } | EndpointRequest::Update { wanted, .. } => Some(wanted),
        EndpointRequest::Delete { .. } => None,
    };
    let digest = wanted.map(|wanted| wanted.full_digest());
    if let (EndpointRequest::Update { .. }, Some(applied), Some(digest)) =
        (&request, &applied, &digest)
        && let Some(back) = applied.find_way_back(physical_id, digest, deps.time.now())
    {
        way_out.set(back);
        let is_nothing = |id| PhysicalId::parse(id) == PhysicalId::Unconfigured;
        if is_nothing(back) && is_nothing(physical_id) {
            return Ok(back.to_owned());
        }
    }
    let done = execute_plan(envelope, &request, deps).await;
    let answered = done.as_ref().map_or(way_out.physical_id(), |id| Some(id));
    let note = match (answered, digest) {
        (Some(id), Some(digest)) => {
            let answered = AnsweredProperties {
                physical_id: id.to_owned(),
                digest,
            };
            let now = deps.time.now();
            Some(AppliedProperties::followed_by(
                applied.clone(),
                answered,
                now,
            ))
        }
        (Some(id), None) => applied.clone().map(|applied| applied.without(id)),
        (None, _) => None,
    };
    if let Some(note) = note
        && let Err(error) = deps
            .jobs
            .save_applied(logical_id, applied.as_ref(), &note)
            .await
    {
        tracing::warn!("webhook_endpoint_note_not_written {}", error_chain(&*error));
    }
    if let (Err(_), Some(back), Some(wanted)) = (&done, way_out.physical_id(), wanted) {
        make_current(&wanted.secret_arn, back, deps).await;
    }
    done
}

/// On a way back that Stripe refused: the secret of the endpoint that stands becomes current again, or it would no longer
/// be valid in 24 hours.
async fn make_current<S, W, J, R, T>(
    secret_arn: &str,
    endpoint_id: &str,
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
    let document = document.with_replacement(stands, &[], now);
    if let Err(error) = deps.secrets.put(secret_arn, &document.encode()).await {
        tracing::warn!(
            "webhook_endpoint_secret_not_restored {}",
            error_chain(&*error)
        );
    }
}
