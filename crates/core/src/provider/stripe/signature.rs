//! `Stripe-Signature: t=<unix seconds>,v1=<hex>[,v1=…][,v0=…]`.
//!
//! Only `v1` counts: `v0` comes with test events, and any other scheme is ignored so that nobody can downgrade.

use crate::provider::signature::{
    SignatureFailure, UnverifiedSignature, decode_signature, parse_timestamp_digits,
};
use crate::time::Timestamp;

/// More signatures than this are refused: Stripe sends one per active secret, at most two while a secret is rolled.
const SIGNATURES_MAX: usize = 16;

/// Reads the header. Elements are separated by commas, key and value by the first `=`, in any order.
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
    // Official libraries sign the integer, we the text: a leading zero would make them differ.
    let at = Timestamp::from_unix_s(seconds).map_err(|_| SignatureFailure::TimestampMalformed)?;
    Ok(UnverifiedSignature {
        signed_timestamp: timestamp.to_owned(),
        at,
        signatures,
    })
}
