//! The baseline of `make bench`: a Lambda function that only returns its input.

use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::value::RawValue;

fn main() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(lambda_runtime::run(service_fn(
        |event: LambdaEvent<Box<RawValue>>| async move { Ok::<_, Error>(event.payload) },
    )))
}
