//! From process start to the last event: the same few lines for every function.
//!
//! Guarantees: one thread; a start that cannot work is refused with one line that says everything; a failed
//! invocation is one line with the whole chain of causes, and the caller learns its first sentence only.
//! A panic of a handler ends that invocation, not the process. However an invocation ends, its metrics are written.

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

/// What `main` returns: sets up the log, reads the configuration, then lets `start` make its clients and call `serve_events`.
pub fn run_function<C: 'static>(
    function: &'static str,
    read: fn(&EnvLookup<'_>) -> Result<C, ConfigError>,
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
    read: fn(&EnvLookup<'_>) -> Result<C, ConfigError>,
    start: impl AsyncFnOnce(C, AwsClients) -> Result<(), lambda_runtime::Error> + 'static,
) -> Result<(), lambda_runtime::Error> {
    let outside = combine_faults(
        AwsClients::from_env(lookup),
        check_runtime_variables(lookup),
    );
    let (config, (aws, ())) = combine_faults(read(lookup), outside)?;
    // One thread: a function has a fraction of a CPU, and waking workers would use it up.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build_local(LocalOptions::default())?;
    runtime.block_on(async {
        // As a task, because another task that wakes what `block_on` was given costs a turn of the event loop.
        let started = tokio::task::spawn_local(start(config, aws)).await;
        // Nobody aborts it, so that it can only have panicked, of which the hook has told.
        started.unwrap_or_else(|gone| resume_unwind(gone.into_panic()))
    })
}

/// What `lambda_runtime` would otherwise panic about.
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

/// Takes events until the process is ended. An `Err` of `handle` fails the invocation.
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
        // The panic hook has told the place; the message, which may hold data, goes to nobody.
        // Boxed, because the whole tree of calls below is too deep a type for the compiler.
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

/// When Lambda ends this invocation.
pub fn invocation_deadline(context: &Context) -> Timestamp {
    let unix_ms = i64::try_from(context.deadline).unwrap_or(i64::MAX);
    // A deadline beyond the calendar is none.
    Timestamp::from_unix_ms(unix_ms).unwrap_or_else(|_| SystemClock.now().after(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LobWorkerConfig;

    #[test]
    fn a_refused_start_tells_the_faults_of_config_aws_and_runtime_in_one_line() {
        let refused = start_function(
            &EnvLookup(&|_| None),
            LobWorkerConfig::from_env,
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
                    "LOG_LEVEL" => None,
                    _ if name.starts_with("AWS_ENDPOINT_URL") => None,
                    _ => Some("x".to_owned()),
                }),
                LobWorkerConfig::from_env,
                async |_, _| panic!("{}", "canary".to_owned()),
            )
        };
        let panic = std::panic::catch_unwind(panics).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "canary");
    }
}
