//! The webhook endpoints at Stripe as resources of the stack (CloudFormation custom resource): what to do about a
//! request ([`plan`]), the rollback of a failed update ([`applied`]), and the document with an endpoint's signing secret, its
//! rotation and its rollback ([`secret`]). Pure; the crate `webhook-secret` executes both.

pub mod applied;
pub mod plan;
pub mod secret;
