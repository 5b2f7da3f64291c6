//! Parser of `Lob-Signature: <hex>`, which signs `<Lob-Signature-Timestamp>.<raw body>`. It verifies nothing;
//! `provider::signature` does.
//!
//! Quirk: Lob documents the timestamp only as a string, without its unit. In practice it is milliseconds (a public
//! client had to divide by 1,000), but we accept both. The size tells them apart: 1e11 milliseconds are March 1973,
//! 1e11 seconds are the year 5138, so no timestamp of our time can be read as the wrong unit. A verifier that reads
//! milliseconds as seconds sees every delivery 56,000 years in the future, and one without a limit there accepts
//! replays for ever.

use crate::ids::ProviderId;
use crate::provider::signature::{
    SignatureFailure, SignatureScheme, UnverifiedSignature, decode_signature,
    parse_timestamp_digits,
};
use crate::time::Timestamp;

/// From this number on, a timestamp is milliseconds.
const MILLISECONDS_FROM: i64 = 100_000_000_000;

/// Parses the two headers: the signature and its timestamp. What is signed is the timestamp's text as sent, whatever
/// its unit.
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
    let at = at.map_err(|_| SignatureFailure::TimestampMalformed)?;
    let signature = decode_signature(signature).ok_or(SignatureFailure::HeaderMalformed)?;
    Ok(UnverifiedSignature {
        provider: ProviderId::Lob,
        signed_prefix: format!("{timestamp}."),
        at,
        scheme: SignatureScheme::HmacSha256(vec![signature]),
    })
}
