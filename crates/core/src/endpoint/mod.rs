//! The webhook endpoints at Stripe as resources of the stack (CloudFormation custom resource): what to do about a
//! request ([`plan`]), which requests are obeyed ([`policy`]), the rollback of a failed update ([`applied`]), and the document
//! with an endpoint's signing secret, its rotation and its rollback ([`secret`]). Pure; the crate `webhook-secret` executes
//! them.

pub mod applied;
pub mod plan;
pub mod policy;
pub mod secret;
