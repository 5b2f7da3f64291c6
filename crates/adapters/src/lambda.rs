//! Start and main loop of every Lambda function: logging, configuration, AWS clients, async runtime, event handler
//! loop.
//!
//! Guarantees: a start that cannot work fails with one log line that names every fault. A failed invocation is one log
//! line with the whole chain of causes; the caller gets only the first sentence. A panic in a handler fails that
//! invocation, not the process. However an invocation ends, unless Lambda ends it at its time-out, its metrics are
//! written. One thread only. `config` reads the variables, `aws` creates the clients, `telemetry` writes the lines.

use std::error::Error;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::process::ExitCode;
use std::time::Duration;

use billhook_core::error::error_chain;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use futures_util::FutureExt as _;
use lambda_runtime::{Context, Diagnostic, LambdaEvent, service_fn};
use serde::{Deserialize, Serialize};
use tokio::runtime::LocalOptions;

use crate::aws::AwsClients;
use crate::clock::SystemClock;
use crate::config::{ConfigError, EnvLookup, EnvReader, combine_faults, read_process_variable};
use crate::telemetry;

/// The body of every `main`: sets up logging, reads the configuration, then calls `start`, which builds the handler and
/// calls `serve_events`.
pub fn run_function<C: 'static>(
    function: &'static str,
    read: impl FnOnce(&EnvLookup<'_>) -> Result<C, ConfigError>,
    start: impl AsyncFnOnce(C, AwsClients) -> Result<(), lambda_runtime::Error> + 'static,
) -> ExitCode {
    let lookup = EnvLookup(&read_process_variable);
    telemetry::init_logging(function, &lookup);
    match start_function(&lookup, read, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("start_refused: {}", error_chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn start_function<C: 'static>(
    lookup: &EnvLookup<'_>,
    read: impl FnOnce(&EnvLookup<'_>) -> Result<C, ConfigError>,
    start: impl AsyncFnOnce(C, AwsClients) -> Result<(), lambda_runtime::Error> + 'static,
) -> Result<(), lambda_runtime::Error> {
    let outside = combine_faults(
        AwsClients::from_env(lookup),
        check_runtime_variables(lookup),
    );
    let (config, (aws, ())) = combine_faults(read(lookup), outside)?;
    // One thread: at 128 MB a function has a fourteenth of a CPU, and waking worker threads would use it up.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build_local(LocalOptions::default())?;
    runtime.block_on(async {
        // As a task, because each wake-up of the future given to `block_on` costs a turn of the event loop: four of the
        // eight `epoll_wait` calls of an accepted delivery.
        let started = tokio::task::spawn_local(start(config, aws)).await;
        // Nobody aborts the task, so an error is a panic, which the panic hook has logged.
        started.unwrap_or_else(|gone| resume_unwind(gone.into_panic()))
    })
}

/// `lambda_runtime` panics if one of these is missing; a fault in our list is easier to read.
fn check_runtime_variables(lookup: &EnvLookup<'_>) -> Result<(), ConfigError> {
    let mut read = EnvReader::new(lookup);
    for name in [
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_VERSION",
    ] {
        read.required(name);
    }
    read.finish(())
}

/// Handles events until Lambda ends the process. An `Err` of `handle` fails the invocation.
pub async fn serve_events<Q, A, E>(
    handle: impl AsyncFn(LambdaEvent<Q>) -> Result<A, E>,
) -> Result<(), lambda_runtime::Error>
where
    Q: for<'de> Deserialize<'de>,
    A: Serialize,
    E: Error + 'static,
{
    let handle = &handle;
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Q>| async move {
        telemetry::begin_invocation(event.context.xray_trace_id.clone());
        // The panic hook has logged the place. The panic's message may contain data, so neither the log nor the caller
        // gets it. Boxed, because the type of the whole tree of calls below is too deep for the compiler.
        let ended = AssertUnwindSafe(Box::pin(handle(event)))
            .catch_unwind()
            .await;
        let answer = match ended {
            Ok(answer) => answer.map_err(|error| report_failure(&error)),
            Err(_) => Err(build_diagnostic("panic".to_owned())),
        };
        telemetry::flush_metrics();
        answer
    }))
    .await
}

fn report_failure(error: &(dyn Error + 'static)) -> Diagnostic {
    tracing::error!("invocation_failed: {}", error_chain(error));
    build_diagnostic(error.to_string())
}

fn build_diagnostic(error_message: String) -> Diagnostic {
    Diagnostic {
        error_type: "InvocationFailed".to_owned(),
        error_message,
    }
}

/// When Lambda will end this invocation (the function's time-out).
pub fn invocation_deadline(context: &Context) -> Timestamp {
    let unix_ms = i64::try_from(context.deadline).unwrap_or(i64::MAX);
    // A deadline after the year 9999 counts as no deadline.
    Timestamp::from_unix_ms(unix_ms).unwrap_or_else(|_| SystemClock.now().after(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use billhook_core::ids::ProviderId;

    use crate::config::WorkerConfig;

    #[test]
    fn a_refused_start_tells_the_faults_of_config_aws_and_runtime_in_one_line() {
        let refused = start_function(
            &EnvLookup(&|_| None),
            |lookup| WorkerConfig::from_env(ProviderId::Lob, lookup),
            async |_, _| Ok(()),
        );
        let line = refused.unwrap_err().to_string();
        for name in ["LOB_EVENTS_TABLE", "AWS_REGION", "AWS_LAMBDA_RUNTIME_API"] {
            assert!(line.contains(&format!("{name} is missing")), "{line}");
        }
    }

    #[test]
    fn a_panic_of_the_start_is_told_by_the_hook_alone() {
        let panics = || {
            start_function(
                &EnvLookup(&|name| match name {
                    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE" => Some("128".to_owned()),
                    "LIVE_MODE" | "ENABLE_BILLING_STREAM" => Some("false".to_owned()),
                    "LOG_LEVEL"
                    | "ADOPTED_BEFORE"
                    | "ACCEPT_CHECKOUT_ADJUSTMENTS"
                    | "ORDER_ID_KEYS"
                    | "ORDER_ID_PATTERN"
                    | "MAX_RECEIVES"
                    | "SEAL_PUBLIC_KEYS"
                    | "STATE_SEAL_KEYS" => None,
                    "SEAL_PUBLIC_ARN" | "STATE_SEAL_ARN" => Some("arn:seal".to_owned()),
                    _ if name.starts_with("AWS_ENDPOINT_URL") => None,
                    _ => Some("x".to_owned()),
                }),
                |lookup| WorkerConfig::from_env(ProviderId::Lob, lookup),
                async |_, _| panic!("{}", "canary".to_owned()),
            )
        };
        let panic = std::panic::catch_unwind(panics).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "canary");
    }
}
