//! The Lambda function: runs the scheduled task that the input names.

use std::process::ExitCode;

use billhook_adapters::config::CleanupConfig;
use billhook_adapters::lambda::{invocation_deadline, run_function, serve_events};
use billhook_core::tasks::definitions::TaskInvocation;
use cleanup_failed_payments::tasks::run_task;
use lambda_runtime::LambdaEvent;

fn main() -> ExitCode {
    run_function(
        "cleanup-failed-payments",
        CleanupConfig::from_env,
        async |config, aws| {
            serve_events(async |event: LambdaEvent<Option<TaskInvocation>>| {
                let deadline = invocation_deadline(&event.context);
                run_task(&config, &aws, event.payload.unwrap_or_default(), deadline).await
            })
            .await
        },
    )
}
