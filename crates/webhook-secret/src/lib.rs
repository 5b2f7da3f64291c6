//! The custom resource behind both webhook endpoints: makes the endpoint at Stripe, stores its signing secret, and
//! answers `CloudFormation`.
//!
//! Guarantees: every request that can be read is answered, once per run, also after a panic and before the function's
//! time is up; a repeated request ends with the same id; an endpoint that is not tagged as ours is never deleted; no
//! secret and no response URL is logged or answered.
//! Not here: what to do about a request (`billhook_core::endpoint`), the calls (`billhook_adapters::stripe`).

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use billhook_adapters::metrics;
use billhook_core::error::error_chain;
use billhook_core::ids::ProviderId;
use billhook_core::ports::{Clock, Pause};
use futures_util::FutureExt;
use secrecy::SecretString;
use serde_json::Value;

mod carry_out;
mod envelope;
/// Where the answer goes.
pub mod http;
/// What it needs from the world.
pub mod ports;

pub use carry_out::{EndpointFailure, KNOWN_AFTER};
pub use envelope::ResourceRequest;
use ports::{EdgeError, OpenStripe, ResetCursors, RespondToCloudFormation, WebhookSecretStore};

/// How long before the function's end the work is given up, so that the answer still leaves.
pub const ANSWER_RESERVE: Duration = Duration::from_secs(5);
/// Tries to answer, and the wait between: all of them fit the reserve where each is refused at once.
const ANSWERS_MAX: u32 = 5;
const ANSWER_DELAY: Duration = Duration::from_millis(500);

/// Everything it works with.
pub struct ResourceDependencies<S, W, J, R, T> {
    /// The way to Stripe.
    pub stripe: S,
    /// Where signing secrets are kept.
    pub secrets: W,
    /// Where `reconcile` goes on reading.
    pub cursors: J,
    /// Who waits for the answer.
    pub cloudformation: R,
    /// The moment, and waiting.
    pub time: T,
    /// `APP_NAME`, for the endpoint's description.
    pub app_name: String,
    /// `ENV`, likewise.
    pub env: String,
}

/// No answer was taken: the invocation fails, so that Lambda repeats it.
#[derive(Debug, thiserror::Error)]
pub enum RequestUnanswered {
    /// Without a response URL there is nobody to answer.
    #[error("not a request of CloudFormation")]
    NoRequest(#[source] serde_json::Error),
    /// `CloudFormation` did not take the answer.
    #[error("cloudformation did not take the answer in {ANSWERS_MAX} tries")]
    NotTaken(#[source] EdgeError),
}

/// Carries a request out and answers it. `time_is_up` comes [`ANSWER_RESERVE`] before the function's end.
pub async fn handle_request<S, W, J, R, T>(
    payload: Value,
    time_is_up: impl Future<Output = ()>,
    deps: &ResourceDependencies<S, W, J, R, T>,
) -> Result<(), RequestUnanswered>
where
    S: OpenStripe,
    W: WebhookSecretStore,
    J: ResetCursors,
    R: RespondToCloudFormation,
    T: Clock + Pause,
{
    let envelope: ResourceRequest =
        serde_json::from_value(payload).map_err(RequestUnanswered::NoRequest)?;
    let work = AssertUnwindSafe(carry_out::execute_plan(&envelope, deps)).catch_unwind();
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
            tracing::error!(request_id, "webhook_endpoint_failed {reason}");
            metrics::ENDPOINT_FAILED.count(ProviderId::Stripe);
        }
    }
    let answer = envelope.answer(outcome.as_deref().map_err(String::as_str));
    send_response(&envelope.response_url.0, answer, deps).await
}

async fn send_response<S, W, J, R: RespondToCloudFormation, T: Pause>(
    url: &SecretString,
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
