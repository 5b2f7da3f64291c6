//! Signature verification of webhooks (HMAC-SHA256, constant time, protection against replay attacks), and the type of a
//! body that is proven to be its provider's: [`Verified`].
//!
//! Stripe and Lob sign `<timestamp>.<raw body>` and send lower-case hex; they differ in the headers, which each
//! provider's own module `signature` parses. A delivery is accepted if a known secret produced the signature over
//! exactly the bytes received, and the timestamp is within the tolerance (300 s, before or after now).
//!
//! Replay attack: a signature is valid for good, so whoever captured a delivery could send it again next year. The
//! timestamp is part of what is signed, so it cannot be renewed, and after 300 s the copy is refused. A copy within
//! 300 s is not stopped here: deduplication by event id (`intake::accept`) makes it harmless.
//! Source: `Receive Stripe events in your webhook endpoint`, `Using webhooks` (Lob), read 2026-11.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::ids::{AccountId, ProviderId};
use crate::provider::envelope::EnvelopeError;
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct SigningKey {
    /// The secret's name for the log, never its value.
    pub label: String,
    pub scope: KeyScope,
    /// The key, used as literal text (Stripe's `whsec_` prefix included).
    pub secret: SecretString,
}

impl SigningKey {
    /// A key from a configured value; `None` if the value is empty or blank. HMAC accepts an empty key, so with a
    /// secret that is not set yet anybody could sign with the empty key and be believed.
    pub fn from_value(label: &str, value: &str, scope: KeyScope) -> Option<Self> {
        (!value.trim().is_empty()).then(|| Self {
            label: label.to_owned(),
            scope,
            secret: SecretString::from(value),
        })
    }
}

/// Which events a secret proves. Each of Stripe's two endpoints signs with its own secret and gets one kind of event only.
/// So whoever has one of the two secrets cannot forge events of the other kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyScope {
    /// All events of the provider: Lob's secret, or one in a variable of a local run, such as that of `stripe listen`.
    AllEvents,
    /// Events of connected accounts, which have `account`: the secret of the endpoint with `connect`.
    ConnectedAccounts,
    /// Events of the platform's own account, which have no `account`.
    Platform,
}

impl KeyScope {
    pub fn includes(self, has_account: bool) -> bool {
        match self {
            Self::AllEvents => true,
            Self::ConnectedAccounts => has_account,
            Self::Platform => !has_account,
        }
    }
}

/// What we know about one provider's secrets now.
#[derive(Clone, Debug, Default)]
pub struct SigningKeys {
    /// The valid keys: the current one, and replaced ones for 24 hours.
    pub keys: Vec<SigningKey>,
    /// Keys replaced more than 24 hours ago. They verify nothing; they only let the log say `secret_expired`.
    pub expired: Vec<SigningKey>,
    /// Secrets that could not be read, and why, without values. If no key matches while one is unreadable, the sender gets
    /// 503 and retries, because that secret might have matched; a 400 would blame the sender for our fault.
    pub unreadable: Vec<String>,
    /// Secrets that nobody has stored yet. They are no fault: an environment waits for its keys, or never uses the
    /// provider.
    pub missing: Vec<String>,
}

/// Why a signature is refused. The sender gets the same answer for all reasons, so that a forger learns nothing; the
/// reason goes into log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureFailure {
    /// No signature header, or for Lob no timestamp header.
    HeaderMissing,
    /// Not in the documented format, or several different values.
    HeaderMalformed,
    /// The timestamp is not 1 to 12 digits (Stripe) or 1 to 15 (Lob).
    TimestampMalformed,
    /// Signed with a known secret, but older than the tolerance.
    TimestampTooOld,
    /// Signed with a known secret, but further in the future than the tolerance.
    TimestampTooNew,
    /// Signed with the secret of Stripe's other endpoint: an event of a connected account with the platform's secret, or the
    /// other way round ([`KeyScope`]).
    WrongScope,
    /// No known secret produces this signature.
    NoMatch,
    /// Signed with a secret that was replaced more than 24 h ago.
    SecretExpired,
    /// Signed with the secret of another provider: the URLs or the secrets of two providers are swapped.
    OtherEndpoint,
    /// No known secret produces this signature, and a secret of the provider was never stored: nobody can say whether the
    /// sender is the provider.
    SecretMissing,
}

impl SignatureFailure {
    /// Whether the sender has a secret of ours, or had a delivery that one of them signed: no stranger can cause it. Only
    /// such refusals count where an alarm reads.
    pub fn is_signed_with_our_secret(self) -> bool {
        match self {
            Self::TimestampTooOld
            | Self::TimestampTooNew
            | Self::WrongScope
            | Self::SecretExpired
            | Self::OtherEndpoint => true,
            Self::HeaderMissing
            | Self::HeaderMalformed
            | Self::TimestampMalformed
            | Self::NoMatch
            | Self::SecretMissing => false,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::HeaderMissing => "header_missing",
            Self::HeaderMalformed => "header_malformed",
            Self::TimestampMalformed => "timestamp_malformed",
            Self::TimestampTooOld => "timestamp_too_old",
            Self::TimestampTooNew => "timestamp_too_new",
            Self::WrongScope => "wrong_scope",
            Self::NoMatch => "no_match",
            Self::SecretExpired => "secret_expired",
            Self::OtherEndpoint => "other_endpoint",
            Self::SecretMissing => "secret_missing",
        }
    }
}

/// The headers of a delivery.
pub trait SignatureHeaders {
    /// The value of a header, by its name in lower case. Fails with `header_malformed` if there are several different
    /// values, because nothing says which of them the provider sent.
    fn signature_header(&self, name: &str) -> Result<Option<&str>, SignatureFailure>;
}

/// A body that its provider wrote, byte for byte: its signature was verified, or we read it from the provider's own API.
/// There is no other way to make one, so nobody can read an envelope from unverified bytes. (The second way is open to
/// the client of Stripe's API alone: a lint and a test keep others out.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified<'b> {
    provider: ProviderId,
    raw_body: &'b [u8],
    origin: BodyOrigin<'b>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyOrigin<'b> {
    /// Proven by a secret of this scope.
    Delivered(KeyScope),
    /// Read from the API, from the list of this account's events; none is the platform.
    Fetched(Option<&'b AccountId>),
}

impl<'b> Verified<'b> {
    /// Whose body it is proven to be: one provider's is never read as another's.
    pub fn provider(&self) -> ProviderId {
        self.provider
    }

    pub fn raw_body(&self) -> &'b [u8] {
        self.raw_body
    }

    /// The account that the event belongs to; `in_body` is what the body says. For an event that we fetched, it is the
    /// account that we asked about, whatever the body says (tenant isolation). A delivered event must be of the kind that
    /// its secret proves.
    pub(super) fn account(
        &self,
        in_body: Option<AccountId>,
    ) -> Result<Option<AccountId>, EnvelopeError> {
        match self.origin {
            BodyOrigin::Delivered(scope) if scope.includes(in_body.is_some()) => Ok(in_body),
            BodyOrigin::Delivered(_) => Err(EnvelopeError::WrongScope),
            BodyOrigin::Fetched(account) => Ok(account.cloned()),
        }
    }
}

/// An event as Stripe's API listed it, and the account that was asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedEvent {
    body: String,
    account: Option<AccountId>,
}

impl FetchedEvent {
    /// Only for the client of Stripe's API: TLS has proven that the answer is Stripe's. Clippy refuses other callers.
    pub fn from_stripe_api(body: String, account: Option<AccountId>) -> Self {
        Self { body, account }
    }

    pub fn verified(&self) -> Verified<'_> {
        Verified {
            provider: ProviderId::Stripe,
            raw_body: self.body.as_bytes(),
            origin: BodyOrigin::Fetched(self.account.as_ref()),
        }
    }
}

/// A parsed signature header, not verified yet.
#[derive(Debug, PartialEq, Eq)]
pub struct UnverifiedSignature {
    pub(super) provider: ProviderId,
    /// What is signed before the raw body: the timestamp, exactly as sent, and the provider's separator.
    pub(super) signed_prefix: String,
    /// The timestamp, parsed.
    pub(super) at: Timestamp,
    pub(super) scheme: SignatureScheme,
}

/// How a provider signs, and the signatures of this delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SignatureScheme {
    /// With a shared secret. Several candidates: one per secret while Stripe rolls a secret. What is not 32 bytes of hex
    /// is dropped; it cannot match.
    HmacSha256(Vec<[u8; 32]>),
    /// With the provider's private key; the "secret" that we know is its public key, in base64.
    #[cfg(feature = "third-provider")]
    Ed25519(Vec<u8>),
}

impl UnverifiedSignature {
    /// Verifies signature and age; returns the proven body and the label of the key that matched.
    ///
    /// Why the signature comes before the age: before it is verified, the timestamp is whatever the sender wrote, so
    /// its age proves nothing. In this order `timestamp_too_old` in the log means that the provider really signed it:
    /// our clock is wrong, the delivery was held up, or somebody replays it. A forgery with an old timestamp is
    /// `no_match`.
    ///
    /// Why the future has a limit too: a timestamp in the wrong unit, milliseconds read as seconds, lies 56,000 years
    /// ahead. With a limit on the age alone, such a delivery could be replayed for ever.
    pub fn verify<'b, 'k>(
        &self,
        raw_body: &'b [u8],
        keys: &'k [SigningKey],
        now: Timestamp,
        tolerance: Duration,
    ) -> Result<(Verified<'b>, &'k str), SignatureFailure> {
        let key = self
            .signed_with(raw_body, keys)
            .ok_or(SignatureFailure::NoMatch)?;
        self.check_age(now, tolerance)?;
        let verified = Verified {
            provider: self.provider,
            raw_body,
            origin: BodyOrigin::Delivered(key.scope),
        };
        Ok((verified, &key.label))
    }

    fn check_age(&self, now: Timestamp, tolerance: Duration) -> Result<(), SignatureFailure> {
        if self.at.after(tolerance) < now {
            return Err(SignatureFailure::TimestampTooOld);
        }
        if now.after(tolerance) < self.at {
            return Err(SignatureFailure::TimestampTooNew);
        }
        Ok(())
    }

    /// Whether a secret that we do not know could prove this delivery. If not, it is refused whatever our secrets are, so
    /// it is no reason to read them again, and none to answer 503. The body is not parsed: it is not proven.
    ///
    /// Examples: a timestamp of yesterday; `v1=abc`, which is no signature; a body that is not a JSON object.
    pub fn may_be_proven_later(
        &self,
        raw_body: &[u8],
        now: Timestamp,
        tolerance: Duration,
    ) -> bool {
        let has_signature = match &self.scheme {
            SignatureScheme::HmacSha256(signatures) => !signatures.is_empty(),
            #[cfg(feature = "third-provider")]
            SignatureScheme::Ed25519(signature) => signature.len() == 64,
        };
        let body = raw_body.trim_ascii();
        let is_object = body.starts_with(b"{") && body.ends_with(b"}");
        has_signature && is_object && self.check_age(now, tolerance).is_ok()
    }

    /// The key that produced one of the signatures, whatever the age. Also used to explain a refusal.
    pub fn signed_with<'k>(
        &self,
        raw_body: &[u8],
        keys: &'k [SigningKey],
    ) -> Option<&'k SigningKey> {
        keys.iter().find(|key| self.is_signed_by(key, raw_body))
    }

    fn is_signed_by(&self, key: &SigningKey, raw_body: &[u8]) -> bool {
        let key = key.secret.expose_secret();
        match &self.scheme {
            SignatureScheme::HmacSha256(signatures) => {
                self.has_hmac(key.as_bytes(), signatures, raw_body)
            }
            #[cfg(feature = "third-provider")]
            SignatureScheme::Ed25519(signature) => {
                let Ok(key) = data_encoding::BASE64.decode(key.as_bytes()) else {
                    return false;
                };
                let signed = [self.signed_prefix.as_bytes(), raw_body].concat();
                let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key);
                key.verify(&signed, signature).is_ok()
            }
        }
    }

    fn has_hmac(&self, key: &[u8], signatures: &[[u8; 32]], raw_body: &[u8]) -> bool {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
            return false;
        };
        mac.update(self.signed_prefix.as_bytes());
        mac.update(raw_body);
        // Constant time: with a comparison that stops at the first wrong byte, an attacker measures how many bytes of
        // a guess are right and finds the signature byte by byte. `verify_slice` always compares all 32 bytes, and `|`
        // (not `||`) tries every candidate. `crates/core/tests/signature_timing.rs` measures it. Which key matched may
        // show in the time; it is no secret.
        signatures.iter().fold(false, |found, signature| {
            mac.clone().verify_slice(signature).is_ok() | found
        })
    }
}

/// Signs as Stripe and Lob do. `None` never occurs: HMAC takes keys of any length.
pub(super) fn sign_hmac(secret: &SecretString, prefix: &str, body: &[u8]) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).ok()?;
    mac.update(prefix.as_bytes());
    mac.update(body);
    Some(data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes()))
}

/// Decodes 64 lower-case hex digits. Upper case is refused: Stripe's Python, Node and Ruby libraries compare text and
/// refuse it too, and no provider sends it.
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

/// Digits only: `parse` alone would also accept `+5`, and the official libraries differ on such forms.
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
