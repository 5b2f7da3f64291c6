//! Invokes a scheduled task now. The task runs in its Lambda function, with the function's permissions and not the
//! operator's.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::aws_request::LAMBDA;
use crate::output::OutputWriter;
use crate::session::StackSession;

pub(crate) async fn invoke_task(
    input: &Value,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let function = session.stack.output("CleanupFailedPaymentsFunction")?;
    let path = format!("/2015-03-31/functions/{function}/invocations");
    let json = [("content-type", "application/json")];
    let answer = session
        .aws
        .post_text(LAMBDA, &path, &json, input.to_string())
        .await?;
    let answer: Value =
        serde_json::from_str(&answer).context("the response of the function is not JSON")?;
    if let Some(message) = answer.get("errorMessage").and_then(Value::as_str) {
        bail!("{function} failed: {message}");
    }
    output.print_object(&answer);
    Ok(())
}
