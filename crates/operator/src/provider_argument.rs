//! The argument `stripe` or `lob`; clap has checked it already.

use billhook_core::ids::ProviderId;

pub(crate) fn parse_provider(name: &str) -> ProviderId {
    match name {
        "lob" => ProviderId::Lob,
        _ => ProviderId::Stripe,
    }
}
