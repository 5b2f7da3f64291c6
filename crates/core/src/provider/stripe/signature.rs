//! Parser of `Stripe-Signature: t=<unix seconds>,v1=<hex>[,v1=…][,v0=…]`. It verifies nothing; `provider::signature`
//! does.
//!
//! Only `v1` counts. Stripe adds `v0` to test events; if any other scheme counted, an attacker could choose the weakest
//! one (downgrade attack). A header with `v0` alone is malformed.

use crate::ids::ProviderId;
use crate::provider::signature::{
    SignatureFailure, SignatureScheme, UnverifiedSignature, decode_signature,
    parse_timestamp_digits,
};
use crate::time::Timestamp;

/// A limit on work per delivery: each signature costs a comparison per key. Stripe sends one per active secret, two
/// while a secret is rolled.
const SIGNATURES_MAX: usize = 16;

/// Parses the header. Elements are separated by commas, key and value by the first `=`; the order does not matter. Two
/// different `t` are refused, because we could not know which of them was signed.
pub fn parse_signature_header(
    header: Option<&str>,
) -> Result<UnverifiedSignature, SignatureFailure> {
    let header = header.ok_or(SignatureFailure::HeaderMissing)?;
    let mut timestamp = None;
    let mut signatures = Vec::new();
    let mut saw_v1 = false;
    for element in header.split(',') {
        let (key, value) = element
            .split_once('=')
            .ok_or(SignatureFailure::HeaderMalformed)?;
        match key {
            "t" if timestamp.is_some_and(|earlier| earlier != value) => {
                return Err(SignatureFailure::HeaderMalformed);
            }
            "t" => timestamp = Some(value),
            "v1" => {
                saw_v1 = true;
                signatures.extend(decode_signature(value));
            }
            _ => {}
        }
    }
    let timestamp = timestamp.ok_or(SignatureFailure::HeaderMalformed)?;
    if !saw_v1 || signatures.len() > SIGNATURES_MAX {
        return Err(SignatureFailure::HeaderMalformed);
    }
    let seconds = parse_timestamp_digits(timestamp, 12)?;
    // We sign the text of `t`, the official libraries the integer. They differ only for leading zeros, which Stripe
    // does not send: `t=01781000000` verifies there and is `no_match` here.
    let at = Timestamp::from_unix_s(seconds).map_err(|_| SignatureFailure::TimestampMalformed)?;
    Ok(UnverifiedSignature {
        provider: ProviderId::Stripe,
        signed_prefix: format!("{timestamp}."),
        at,
        scheme: SignatureScheme::HmacSha256(signatures),
    })
}
