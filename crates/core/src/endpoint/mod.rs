//! The webhook endpoints at Stripe as resources of the stack: what to do about a request ([`plan`]), and the document
//! that holds an endpoint's signing secret ([`secret`]).

pub mod plan;
pub mod secret;
