//! `Stripe-Signature: t=<unix seconds>,v1=<hex>[,v1=…][,v0=…]`.
//!
//! Only `v1` counts: `v0` comes with test events, and any other scheme is ignored so that nobody can downgrade.

use super::{Reason, UnverifiedClaim, digits, signature_bytes};
use crate::time::Timestamp;

/// More signatures than this are refused: Stripe sends one per active secret, at most two while a secret is rolled.
const SIGNATURES_MAX: usize = 16;

/// Reads the header. Elements are separated by commas, key and value by the first `=`, in any order.
pub fn claim(header: Option<&str>) -> Result<UnverifiedClaim, Reason> {
    let header = header.ok_or(Reason::HeaderMissing)?;
    let mut timestamp = None;
    let mut signatures = Vec::new();
    let mut saw_v1 = false;
    for element in header.split(',') {
        let (key, value) = element.split_once('=').ok_or(Reason::HeaderMalformed)?;
        match key {
            "t" if timestamp.is_some_and(|earlier| earlier != value) => {
                return Err(Reason::HeaderMalformed);
            }
            "t" => timestamp = Some(value),
            "v1" => {
                saw_v1 = true;
                signatures.extend(signature_bytes(value));
            }
            _ => {}
        }
    }
    let timestamp = timestamp.ok_or(Reason::HeaderMalformed)?;
    if !saw_v1 || signatures.len() > SIGNATURES_MAX {
        return Err(Reason::HeaderMalformed);
    }
    let seconds = digits(timestamp, 12)?;
    // Official libraries sign the integer, we the text: a leading zero would make them differ.
    let at = Timestamp::from_unix_s(seconds).map_err(|_| Reason::TimestampMalformed)?;
    Ok(UnverifiedClaim {
        signed_timestamp: timestamp.to_owned(),
        at,
        signatures,
    })
}
