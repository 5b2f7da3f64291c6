//! Global options of the command line: the stack, the AWS profile, the region and the endpoint.

use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct StackOptions {
    /// The CloudFormation stack, for example billhook-prod
    #[arg(long, global = true, env = "BILLHOOK_STACK")]
    pub(crate) stack: Option<String>,
    /// The AWS profile to use
    #[arg(long, global = true)]
    pub(crate) profile: Option<String>,
    /// The AWS region
    #[arg(long, global = true)]
    pub(crate) region: Option<String>,
    /// Send all AWS requests to this URL, for example to a local AWS
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) endpoint_url: Option<String>,
}
