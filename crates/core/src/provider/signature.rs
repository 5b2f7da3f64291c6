//! Proof of the sender: raw bytes, headers, secrets and the moment in; a verdict out.
//!
//! Both providers sign `<timestamp>.<raw body>` with HMAC-SHA256 and send lower-case hex; they differ in where the
//! timestamp and the signature stand. `stripe` and `lob` read that, this module decides.
//! Source: `Receive Stripe events in your webhook endpoint`, `Using webhooks` (Lob), read 2026-11.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::time::Timestamp;

/// One secret that proves a sender, and where it came from.
#[derive(Clone, Debug)]
pub struct SigningKey {
    /// What the log calls it when it matches: the secret's name, never its value.
    pub label: String,
    /// The key, used as literal text (Stripe's `whsec_` prefix included).
    pub secret: SecretString,
}

impl SigningKey {
    /// A key from a configured value; `None` where that is empty or blank, because an empty key verifies anything
    /// that anybody signed with it.
    pub fn usable(label: &str, value: &str) -> Option<Self> {
        (!value.trim().is_empty()).then(|| Self {
            label: label.to_owned(),
            secret: SecretString::from(value),
        })
    }
}

/// Everything known about a provider's secrets at one moment.
#[derive(Clone, Debug, Default)]
pub struct SigningKeys {
    /// Keys that may prove a delivery; never an empty or blank one.
    pub keys: Vec<SigningKey>,
    /// Replaced ones past their time. They prove nothing and say why a delivery is refused.
    pub expired: Vec<SigningKey>,
    /// What could not be read, and why (never a value). A delivery that no key proves is then ours to answer for.
    pub unreadable: Vec<String>,
}

/// Why a delivery is not believed. One answer for all of them; the reason is for log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureFailure {
    /// No signature header, or no timestamp header.
    HeaderMissing,
    /// Not the documented grammar, or more than one value.
    HeaderMalformed,
    /// The timestamp is not 1 to 12 digits (Stripe) or 1 to 15 (Lob).
    TimestampMalformed,
    /// Older than the tolerance.
    TimestampTooOld,
    /// Further in the future than the tolerance.
    TimestampTooNew,
    /// No known secret makes this signature.
    NoMatch,
    /// A secret makes it that was replaced more than 24 h ago.
    SecretExpired,
    /// The other provider's secret makes it.
    OtherEndpoint,
}

impl SignatureFailure {
    /// The word in log and metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HeaderMissing => "header_missing",
            Self::HeaderMalformed => "header_malformed",
            Self::TimestampMalformed => "timestamp_malformed",
            Self::TimestampTooOld => "timestamp_too_old",
            Self::TimestampTooNew => "timestamp_too_new",
            Self::NoMatch => "no_match",
            Self::SecretExpired => "secret_expired",
            Self::OtherEndpoint => "other_endpoint",
        }
    }
}

/// What a delivery claims: read from its headers, not yet believed.
#[derive(Debug, PartialEq, Eq)]
pub struct UnverifiedSignature {
    /// The timestamp exactly as signed.
    pub(super) signed_timestamp: String,
    /// The same as a moment.
    pub(super) at: Timestamp,
    /// Candidate signatures, 32 bytes each. Anything else was dropped: it can match nothing.
    pub(super) signatures: Vec<[u8; 32]>,
}

impl UnverifiedSignature {
    /// The label of the key that proves the claim over `raw_body`. The signature is checked before the age, so that
    /// a stale delivery of ours and a forged one are told apart in the log.
    pub fn verify<'k>(
        &self,
        raw_body: &[u8],
        keys: &'k [SigningKey],
        now: Timestamp,
        tolerance: Duration,
    ) -> Result<&'k str, SignatureFailure> {
        let key = self
            .signed_with(raw_body, keys)
            .ok_or(SignatureFailure::NoMatch)?;
        if self.at.after(tolerance) < now {
            return Err(SignatureFailure::TimestampTooOld);
        }
        if now.after(tolerance) < self.at {
            return Err(SignatureFailure::TimestampTooNew);
        }
        Ok(&key.label)
    }

    /// The key that makes one of the signatures, whatever its age.
    pub fn signed_with<'k>(
        &self,
        raw_body: &[u8],
        keys: &'k [SigningKey],
    ) -> Option<&'k SigningKey> {
        keys.iter().find(|key| self.is_signed_by(key, raw_body))
    }

    fn is_signed_by(&self, key: &SigningKey, raw_body: &[u8]) -> bool {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.secret.expose_secret().as_bytes())
        else {
            return false;
        };
        mac.update(self.signed_timestamp.as_bytes());
        mac.update(b".");
        mac.update(raw_body);
        // `verify_slice` compares in constant time; every candidate is compared.
        self.signatures.iter().fold(false, |found, signature| {
            mac.clone().verify_slice(signature).is_ok() | found
        })
    }
}

/// 64 lower-case hex digits as 32 bytes. Upper case is refused, as Stripe's Python, Node and Ruby libraries do.
pub(super) fn decode_signature(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let wanted = hex.len() == 64 && !hex.bytes().any(|b| b.is_ascii_uppercase());
    if !wanted {
        return None;
    }
    data_encoding::HEXLOWER
        .decode_mut(hex.as_bytes(), &mut bytes)
        .ok()?;
    Some(bytes)
}

pub(super) fn parse_timestamp_digits(
    text: &str,
    digits_max: usize,
) -> Result<i64, SignatureFailure> {
    let fits =
        !text.is_empty() && text.len() <= digits_max && text.bytes().all(|b| b.is_ascii_digit());
    if !fits {
        return Err(SignatureFailure::TimestampMalformed);
    }
    text.parse()
        .map_err(|_| SignatureFailure::TimestampMalformed)
}
