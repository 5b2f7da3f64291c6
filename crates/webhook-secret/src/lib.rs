//! `webhook-secret`: the CloudFormation custom resource behind both webhook endpoints at Stripe. It creates, changes,
//! rotates and removes the endpoint, stores its signing secret, and answers CloudFormation.
//!
//! Secret rotation: `billhook secrets rotate`, or a new `RotationToken` of the stack, starts it; `endpoint::plan`
//! decides that the endpoint is replaced; `execute_plan` replaces it, and `apply_request` notes it for a rollback.
//!
//! Guarantees: every request that can be parsed gets an answer, also after a panic and before the function times out
//! (without an answer, the stack hangs until `ServiceTimeout`); a repeated request is idempotent and ends with the same
//! id; a request that is not about this stack's endpoints, as its template makes them, changes nothing, and no host but
//! CloudFormation's is sent anything; an endpoint that is not tagged as ours is never deleted; no secret and no response URL appears in a log or
//! answer. Read next: `billhook_core::endpoint` decides what to do, `execute_plan` executes it step by step.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use billhook_adapters::metrics;
use billhook_core::error::error_chain;
use billhook_core::ids::ProviderId;
use billhook_core::ports::{Clock, Pause};
use futures_util::FutureExt;
use serde_json::Value;

mod apply_request;
mod envelope;
mod execute_plan;
pub mod http;
pub mod ports;
pub mod response_url;

use apply_request::FallbackAnswer;
pub use envelope::ResourceRequest;
pub use execute_plan::{EndpointFailure, KNOWN_AFTER};
use ports::{
    AdapterError, AppliedStore, ResetCursors, ResourceDependencies, RespondToCloudFormation,
    StripeConnector, WebhookSecretStore,
};
use response_url::{ForeignHost, ResponseUrl};

/// The work is abandoned this long before the function times out, so that the answer can still be sent.
pub const ANSWER_RESERVE: Duration = Duration::from_secs(5);
/// Attempts to send the answer, and the wait between them. Five attempts that are refused at once take 2 s of the
/// reserve; of attempts that time out (2 s each), two fit.
const ANSWERS_MAX: u32 = 5;
const ANSWER_DELAY: Duration = Duration::from_millis(500);

/// CloudFormation got no answer: the invocation fails, so that Lambda retries it once.
#[derive(Debug, thiserror::Error)]
pub enum RequestUnanswered {
    /// The payload has no response URL, so there is nobody to answer.
    #[error("not a request of CloudFormation")]
    NoRequest(#[source] serde_json::Error),
    /// Somebody else invoked the function, who shall get no request from it.
    #[error(
        "refused, and nothing was changed: the ResponseURL is not that of CloudFormation, but of {host}"
    )]
    ForeignHost { host: ForeignHost },
    #[error("cloudformation did not accept the answer in {ANSWERS_MAX} attempts")]
    NotTaken(#[source] AdapterError),
}

/// Executes a request and answers it. `time_is_up` completes [`ANSWER_RESERVE`] before the function times out.
///
/// A deletion and the rollback of a failed update are answered SUCCESS whatever happens at Stripe: CloudFormation could
/// do nothing with a failure but leave the stack stuck. The metric and `billhook doctor` report what Stripe still has.
pub async fn handle_request<S, W, J, R, T>(
    payload: Value,
    time_is_up: impl Future<Output = ()>,
    deps: &ResourceDependencies<S, W, J, R, T>,
) -> Result<(), RequestUnanswered>
where
    S: StripeConnector,
    W: WebhookSecretStore,
    J: ResetCursors + AppliedStore,
    R: RespondToCloudFormation,
    T: Clock + Pause,
{
    let envelope: ResourceRequest =
        serde_json::from_value(payload).map_err(RequestUnanswered::NoRequest)?;
    let response_url = deps.response_hosts.check(&envelope.response_url);
    let response_url = response_url.map_err(|host| RequestUnanswered::ForeignHost { host })?;
    let fallback = FallbackAnswer::default();
    let work =
        AssertUnwindSafe(apply_request::apply_request(&envelope, deps, &fallback)).catch_unwind();
    // `biased`: if the work completes just as the time is up, its result counts, not the timeout.
    let outcome = tokio::select! {
        biased;
        done = work => done.unwrap_or(Err(EndpointFailure::Panicked)),
        () = time_is_up => Err(EndpointFailure::OutOfTime),
    };
    let outcome = outcome.map_err(|failure| error_chain(&failure));
    let request_id = &envelope.request_id;
    match &outcome {
        Ok(id) => tracing::info!(request_id, "webhook_endpoint_settled physical_id={id}"),
        Err(reason) => {
            match fallback.physical_id() {
                None => tracing::error!(request_id, "webhook_endpoint_failed {reason}"),
                Some(id) => tracing::error!(
                    request_id,
                    "webhook_endpoint_left_as_it_is physical_id={id}: {reason}"
                ),
            }
            metrics::ENDPOINT_FAILED.count(ProviderId::Stripe);
        }
    }
    let outcome = match (&outcome, fallback.physical_id()) {
        (Err(_), Some(id)) => Ok(id),
        (Ok(id), _) => Ok(id.as_str()),
        (Err(reason), None) => Err(reason.as_str()),
    };
    send_response(&response_url, envelope.answer(outcome), deps).await
}

async fn send_response<S, W, J, R: RespondToCloudFormation, T: Pause>(
    url: &ResponseUrl,
    answer: String,
    deps: &ResourceDependencies<S, W, J, R, T>,
) -> Result<(), RequestUnanswered> {
    let mut tries = 1;
    loop {
        let Err(error) = deps.cloudformation.put(url, answer.clone()).await else {
            return Ok(());
        };
        if tries == ANSWERS_MAX {
            return Err(RequestUnanswered::NotTaken(error));
        }
        tries += 1;
        deps.time.pause(ANSWER_DELAY).await;
    }
}
