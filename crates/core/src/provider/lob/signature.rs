//! `Lob-Signature: <hex>` over `<Lob-Signature-Timestamp>.<raw body>`.
//!
//! Lob documents the timestamp only as a string; in practice it is milliseconds (a public client had to divide by
//! 1,000). Below 1e11 it is read as seconds: that many milliseconds were 1973.

use crate::provider::signature::{
    SignatureFailure, UnverifiedSignature, decode_signature, parse_timestamp_digits,
};
use crate::time::Timestamp;

const MILLISECONDS_FROM: i64 = 100_000_000_000;

/// Reads the two headers. The signed text is the header's own, whatever its unit.
pub fn parse_signature_headers(
    signature: Option<&str>,
    timestamp: Option<&str>,
) -> Result<UnverifiedSignature, SignatureFailure> {
    let (Some(signature), Some(timestamp)) = (signature, timestamp) else {
        return Err(SignatureFailure::HeaderMissing);
    };
    let number = parse_timestamp_digits(timestamp, 15)?;
    let at = if number < MILLISECONDS_FROM {
        Timestamp::from_unix_s(number)
    } else {
        Timestamp::from_unix_ms(number)
    };
    Ok(UnverifiedSignature {
        signed_timestamp: timestamp.to_owned(),
        at: at.map_err(|_| SignatureFailure::TimestampMalformed)?,
        signatures: vec![decode_signature(signature).ok_or(SignatureFailure::HeaderMalformed)?],
    })
}
