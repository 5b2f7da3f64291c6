//! Signs webhook bodies as Stripe and Lob do (HMAC-SHA256). Written from their documentation and independently of the
//! verifier in `billhook_core`, so a mistake would have to be made twice to go unnoticed; in `tests/official_stripe.rs`
//! Stripe's own library accepts the signatures.
//! Source: `Receive Stripe events in your webhook endpoint`, `Using webhooks` (Lob), read 2026-11.

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The `Stripe-Signature` header over `body`. The whole `whsec_…` text is the key.
pub fn sign_stripe(body: &[u8], secret: &str, unix_s: i64) -> String {
    format!(
        "t={unix_s},v1={}",
        signature(secret, &unix_s.to_string(), body)
    )
}

/// The `Lob-Signature` header over `body`; `timestamp` is the text of the `Lob-Signature-Timestamp` header.
pub fn sign_lob(body: &[u8], secret: &str, timestamp: &str) -> String {
    signature(secret, timestamp, body)
}

#[expect(
    clippy::expect_used,
    reason = "HMAC takes a key of any length, so this cannot fail"
)]
fn signature(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length is a key");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    HEXLOWER.encode(&mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use billhook_core::provider::lob::signature::parse_signature_headers;
    use billhook_core::provider::signature::{KeyScope, SigningKey};
    use billhook_core::provider::stripe::signature::parse_signature_header;
    use billhook_core::time::Timestamp;

    use super::*;

    #[test]
    fn what_is_signed_here_is_believed_by_the_verifier() {
        let keys: Vec<_> = SigningKey::from_value("test", "whsec_x", KeyScope::AllEvents)
            .into_iter()
            .collect();
        let now = Timestamp::from_unix_s(1_781_000_000).unwrap();
        let tolerance = Duration::from_secs(300);

        let header = sign_stripe(b"{}", "whsec_x", now.unix_s());
        let claim = parse_signature_header(Some(&header)).unwrap();
        let label = claim.verify(b"{}", &keys, now, tolerance).unwrap().1;
        assert_eq!(label, "test");

        let at = now.unix_ms().to_string();
        let claim =
            parse_signature_headers(Some(&sign_lob(b"{}", "whsec_x", &at)), Some(&at)).unwrap();
        let label = claim.verify(b"{}", &keys, now, tolerance).unwrap().1;
        assert_eq!(label, "test");
    }
}
