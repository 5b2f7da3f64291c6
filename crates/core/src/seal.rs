//! Seals of stored events (digital signature, Ed25519): proof that ingress or the reconciliation stored an event, and
//! that nobody who may write to the events tables invented or changed it.
//!
//! A seal covers the provider, the event's id and type, the account, the mode and the SHA-256 of the payload. Whoever
//! stores events has the private key ([`EventSealer`]); whoever applies them has the public keys ([`SealPublicKeys`])
//! and cannot seal. Not covered: what happens to an event later (`processing_outcome` and so on), and that a row still
//! exists. `docs/runbook/tampered.md` says what follows.
//!
//! The states of entities are written by those who read them, so their seal is a message authentication code (HMAC) with
//! one key for both ([`StateSealKeys`]).

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::ids::ProviderId;
use crate::intake::inbox::EventRecord;

/// Bytes of a private and of a public key (RFC 8032).
pub const KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;
/// A seal names its key by the first bytes of the public key. Two keys of one stack that begin alike are as good as
/// impossible, and would do no harm: both are tried.
const KEY_ID_BYTES: usize = 4;
/// So that a signature made for something else is never a seal.
const CONTEXT: &[u8] = b"billhook event seal v1";

/// What a seal covers.
#[derive(Clone, Copy, Debug)]
pub struct SealedEvent<'a> {
    pub provider: ProviderId,
    pub event: &'a EventRecord,
    pub livemode: Option<bool>,
    pub payload_sha256: [u8; 32],
}

impl SealedEvent<'_> {
    /// Every part with its length in front, so that no two events have the same text: without it, type `a` of account
    /// `bc` would be sealed as type `ab` of account `c`.
    fn encode(&self) -> Vec<u8> {
        let EventRecord {
            id,
            event_type,
            account,
            ..
        } = self.event;
        let account = account.as_ref().map(|account| account.as_str());
        let livemode = match self.livemode {
            None => "",
            Some(false) => "false",
            Some(true) => "true",
        };
        let parts = [
            CONTEXT,
            self.provider.as_str().as_bytes(),
            id.as_str().as_bytes(),
            event_type.as_str().as_bytes(),
            account.unwrap_or_default().as_bytes(),
            livemode.as_bytes(),
            &self.payload_sha256,
        ];
        let mut text = Vec::with_capacity(256);
        for part in parts {
            text.extend(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            text.extend(part);
        }
        text
    }
}

/// The private key.
#[derive(Debug)]
pub struct EventSealer(Ed25519KeyPair);

impl EventSealer {
    /// From random bytes.
    pub fn from_seed(seed: &[u8; KEY_BYTES]) -> Self {
        // Fails for another length only.
        let pair = Ed25519KeyPair::from_seed_unchecked(seed);
        Self(pair.unwrap_or_else(|_| unreachable!("a seed has {KEY_BYTES} bytes")))
    }

    /// From the text of the secret `Seal`; `None` if no key is stored in it yet.
    pub fn parse(text: &SecretString) -> Result<Option<Self>, InvalidSealKey> {
        let stored: StoredPrivateKey = parse_document(text.expose_secret())?;
        let Some(key) = stored.private_key else {
            return Ok(None);
        };
        let seed = parse_key("private_key", &key)?;
        Ok(Some(Self::from_seed(&seed)))
    }

    pub fn public_key(&self) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(self.0.public_key().as_ref());
        key
    }

    pub fn seal(&self, event: &SealedEvent<'_>) -> Vec<u8> {
        let id: [u8; KEY_ID_BYTES] = first_bytes(&self.public_key());
        let mut seal = id.to_vec();
        seal.extend(self.0.sign(&event.encode()).as_ref());
        seal
    }
}

/// The text of the secret `Seal`.
pub fn encode_private_key(seed: &[u8; KEY_BYTES]) -> SecretString {
    json!({ "private_key": BASE64.encode(seed) })
        .to_string()
        .into()
}

/// Keys that check seals, as a secret has them.
pub trait SealKeys: Sized {
    /// From the text of the secret.
    fn parse(text: &str) -> Result<Self, InvalidSealKey>;
    /// Whether one of them is that which the seal names. Also true where no key could make the seal genuine: newer keys
    /// change nothing then.
    fn knows_key_of(&self, seal: Option<&[u8]>) -> bool;
}

/// The public keys of all private ones that ever sealed: an event is kept longer than a key is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SealPublicKeys {
    /// The newest first.
    keys: Vec<[u8; KEY_BYTES]>,
}

/// Whether a seal proves an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealVerdict {
    Genuine,
    /// No seal, or one that belongs to something else.
    Forged,
    /// Made with a key that is not among these. It may be a newer one: see [`SealKeys::knows_key_of`].
    UnknownKey,
}

/// From the secret `SealPublic`; empty if no key is stored in it yet.
impl SealKeys for SealPublicKeys {
    fn parse(text: &str) -> Result<Self, InvalidSealKey> {
        let stored: StoredPublicKeys = parse_document(text)?;
        let keys = stored.public_keys.iter();
        let keys = keys.map(|key| parse_key("public_keys", key));
        Ok(Self {
            keys: keys.collect::<Result<_, _>>()?,
        })
    }

    fn knows_key_of(&self, seal: Option<&[u8]>) -> bool {
        let Some((id, _)) = seal.and_then(split_seal) else {
            return true;
        };
        self.keys.iter().any(|key| key.starts_with(id))
    }
}

impl SealPublicKeys {
    /// The text of the secret `SealPublic`.
    pub fn encode(&self) -> String {
        let keys: Vec<_> = self.keys.iter().map(|key| BASE64.encode(key)).collect();
        json!({ "public_keys": keys }).to_string()
    }

    #[must_use]
    pub fn with_newest(mut self, key: [u8; KEY_BYTES]) -> Self {
        self.keys.retain(|known| *known != key);
        self.keys.insert(0, key);
        self
    }

    pub fn contains(&self, key: &[u8; KEY_BYTES]) -> bool {
        self.keys.contains(key)
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub fn verify(&self, event: &SealedEvent<'_>, seal: Option<&[u8]>) -> SealVerdict {
        let Some((id, signature)) = seal.and_then(split_seal) else {
            return SealVerdict::Forged;
        };
        let mut named = self
            .keys
            .iter()
            .filter(|key| key.starts_with(id))
            .peekable();
        if named.peek().is_none() {
            return SealVerdict::UnknownKey;
        }
        let text = event.encode();
        let proves = |key: &[u8; KEY_BYTES]| {
            let key = UnparsedPublicKey::new(&ED25519, key);
            key.verify(&text, signature).is_ok()
        };
        match named.any(proves) {
            true => SealVerdict::Genuine,
            false => SealVerdict::Forged,
        }
    }
}

/// The key's id and the signature; `None` if it has another length.
fn split_seal(seal: &[u8]) -> Option<(&[u8], &[u8])> {
    let parts = seal.split_at_checked(KEY_ID_BYTES)?;
    (parts.1.len() == SIGNATURE_BYTES).then_some(parts)
}

/// Bytes of the message authentication code in a state's seal. Half of SHA-256 (RFC 2104, section 5): a seal is a part of
/// every write.
const STATE_CODE_BYTES: usize = 16;

/// The keys of the states' seals: the one that seals, and replaced ones, which still prove.
#[derive(Debug)]
pub struct StateSealKeys {
    /// Never empty; the one that seals first.
    keys: Vec<StateSealKey>,
}

#[derive(Debug)]
struct StateSealKey {
    id: [u8; KEY_ID_BYTES],
    secret: SecretString,
}

/// From the secret `StateSeal`.
impl SealKeys for StateSealKeys {
    fn parse(text: &str) -> Result<Self, InvalidSealKey> {
        let stored: StoredStateKeys = parse_document(text)?;
        let key = stored.key.ok_or(InvalidSealKey::NoKey)?;
        let keys = [key].into_iter().chain(stored.previous);
        let keys = keys.map(|secret| {
            // A shorter one can be guessed.
            if secret.len() < KEY_BYTES {
                return Err(InvalidSealKey::TooShort);
            }
            let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
            let id = first_bytes(&digest);
            let secret = SecretString::from(secret);
            Ok(StateSealKey { id, secret })
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { keys })
    }

    fn knows_key_of(&self, seal: Option<&[u8]>) -> bool {
        let Some((id, _)) = seal.and_then(|seal| seal.split_at_checked(KEY_ID_BYTES)) else {
            return true;
        };
        self.keys.iter().any(|key| key.id == id)
    }
}

impl StateSealKeys {
    pub fn seal(&self, state: &[u8]) -> Vec<u8> {
        let key = self.keys.first();
        let seal = key.map(|key| [&key.id[..], &key.code(state)].concat());
        seal.unwrap_or_default()
    }

    pub fn proves(&self, state: &[u8], seal: Option<&[u8]>) -> bool {
        let Some((id, code)) = seal.and_then(|seal| seal.split_at_checked(KEY_ID_BYTES)) else {
            return false;
        };
        let mut named = self.keys.iter().filter(|key| key.id == id);
        named.any(|key| key.proves(state, code))
    }
}

impl StateSealKey {
    fn code(&self, state: &[u8]) -> [u8; STATE_CODE_BYTES] {
        let mac = self.mac(state);
        let code = mac.map(|mac| <[u8; 32]>::from(mac.finalize().into_bytes()));
        first_bytes(&code.unwrap_or_default())
    }

    /// In constant time.
    fn proves(&self, state: &[u8], code: &[u8]) -> bool {
        let is_whole = code.len() == STATE_CODE_BYTES;
        let mac = self.mac(state).filter(|_| is_whole);
        mac.is_some_and(|mac| mac.verify_truncated_left(code).is_ok())
    }

    /// Never `None`: a key of HMAC may have any length.
    fn mac(&self, state: &[u8]) -> Option<Hmac<Sha256>> {
        let key = self.secret.expose_secret().as_bytes();
        let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
        mac.update(state);
        Some(mac)
    }
}

fn first_bytes<const N: usize>(bytes: &[u8; 32]) -> [u8; N] {
    std::array::from_fn(|at| bytes.get(at).copied().unwrap_or_default())
}

/// Never contains the text, which may be the private key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSealKey {
    #[error("not a JSON object of seal keys")]
    NotADocument,
    #[error("{member} must be {KEY_BYTES} bytes in base64")]
    NotAKey { member: &'static str },
    #[error("no key is stored")]
    NoKey,
    #[error("a key must have at least {KEY_BYTES} characters")]
    TooShort,
}

#[derive(Default, Deserialize)]
struct StoredStateKeys {
    key: Option<String>,
    #[serde(default)]
    previous: Vec<String>,
}

#[derive(Default, Deserialize, Serialize)]
struct StoredPrivateKey {
    private_key: Option<String>,
}

#[derive(Default, Deserialize)]
struct StoredPublicKeys {
    #[serde(default)]
    public_keys: Vec<String>,
}

fn parse_document<T: Default + for<'de> Deserialize<'de>>(text: &str) -> Result<T, InvalidSealKey> {
    match text.trim().is_empty() {
        true => Ok(T::default()),
        false => serde_json::from_str(text).map_err(|_| InvalidSealKey::NotADocument),
    }
}

fn parse_key(member: &'static str, text: &str) -> Result<[u8; KEY_BYTES], InvalidSealKey> {
    let decoded = BASE64.decode(text.trim().as_bytes()).unwrap_or_default();
    <[u8; KEY_BYTES]>::try_from(decoded).map_err(|_| InvalidSealKey::NotAKey { member })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::ids::{AccountId, EventId};
    use crate::outcome::EventOutcome;

    fn event(id: &str, event_type: &str, account: Option<&str>) -> EventRecord {
        EventRecord {
            id: EventId::parse(id).unwrap(),
            event_type: event_type.to_owned().try_into().unwrap(),
            account: account.map(|account| AccountId::parse(account).unwrap()),
            tenant_hint: None,
            group: String::new(),
            correlation_id: None,
            received_at: None,
            processed: false,
            outcome: EventOutcome::Pending,
        }
    }

    fn of(event: &EventRecord) -> SealedEvent<'_> {
        SealedEvent {
            provider: ProviderId::Stripe,
            event,
            livemode: Some(true),
            payload_sha256: [7; 32],
        }
    }

    fn keys(sealers: &[&EventSealer]) -> SealPublicKeys {
        let none = SealPublicKeys::default();
        let add =
            |keys: SealPublicKeys, sealer: &&EventSealer| keys.with_newest(sealer.public_key());
        sealers.iter().fold(none, add)
    }

    #[test]
    fn a_seal_proves_one_event_and_nothing_else() {
        let sealer = EventSealer::from_seed(&[1; 32]);
        let keys = keys(&[&sealer]);
        let sealed = event("evt_1", "charge.refunded", Some("acct_a"));
        let seal = sealer.seal(&of(&sealed));
        assert_eq!(seal.len(), 68);
        assert_eq!(keys.verify(&of(&sealed), Some(&seal)), SealVerdict::Genuine);

        let others = [
            event("evt_2", "charge.refunded", Some("acct_a")),
            event("evt_1", "charge.succeeded", Some("acct_a")),
            event("evt_1", "charge.refunded", Some("acct_b")),
            event("evt_1", "charge.refunded", None),
        ];
        for other in &others {
            assert_eq!(
                keys.verify(&of(other), Some(&seal)),
                SealVerdict::Forged,
                "{other:?}"
            );
        }
        let changed = [
            SealedEvent {
                livemode: Some(false),
                ..of(&sealed)
            },
            SealedEvent {
                livemode: None,
                ..of(&sealed)
            },
            SealedEvent {
                provider: ProviderId::Lob,
                ..of(&sealed)
            },
            SealedEvent {
                payload_sha256: [8; 32],
                ..of(&sealed)
            },
        ];
        for other in &changed {
            assert_eq!(
                keys.verify(other, Some(&seal)),
                SealVerdict::Forged,
                "{other:?}"
            );
        }
        for at in 0..seal.len() {
            let mut broken = seal.clone();
            broken[at] ^= 1;
            assert_ne!(
                keys.verify(&of(&sealed), Some(&broken)),
                SealVerdict::Genuine,
                "byte {at}"
            );
        }
        for none in [None, Some(&seal[..67]), Some(&[][..])] {
            assert_eq!(keys.verify(&of(&sealed), none), SealVerdict::Forged);
            assert!(keys.knows_key_of(none), "no newer key makes it genuine");
        }
    }

    #[test]
    fn the_keys_before_still_prove_and_a_later_one_is_unknown() {
        let [first, second, third] = [1, 2, 3].map(|n| EventSealer::from_seed(&[n; 32]));
        let keys = keys(&[&first, &second]);
        let sealed = event("evt_1", "charge.refunded", None);
        for (sealer, verdict) in [
            (&first, SealVerdict::Genuine),
            (&second, SealVerdict::Genuine),
            (&third, SealVerdict::UnknownKey),
        ] {
            let seal = sealer.seal(&of(&sealed));
            assert_eq!(keys.verify(&of(&sealed), Some(&seal)), verdict);
            assert_eq!(
                keys.knows_key_of(Some(&seal)),
                verdict == SealVerdict::Genuine
            );
        }
        // Whoever names a known key must have it.
        let mut forged = first.public_key()[..KEY_ID_BYTES].to_vec();
        forged.extend(&third.seal(&of(&sealed))[KEY_ID_BYTES..]);
        assert_eq!(
            keys.verify(&of(&sealed), Some(&forged)),
            SealVerdict::Forged
        );
    }

    #[test]
    fn a_states_seal_proves_the_state_alone_also_after_a_rotation() {
        let (first, second) = ("a".repeat(64), "b".repeat(64));
        let keys = |text: Value| StateSealKeys::parse(&text.to_string()).unwrap();
        let before = keys(json!({ "key": first }));
        let after = keys(json!({ "key": second, "previous": [first] }));
        let seal = before.seal(b"state");
        assert_eq!(seal.len(), KEY_ID_BYTES + STATE_CODE_BYTES);
        for keys in [&before, &after] {
            assert!(keys.proves(b"state", Some(&seal)) && keys.knows_key_of(Some(&seal)));
            assert!(!keys.proves(b"stata", Some(&seal)));
            for at in 0..seal.len() {
                let mut broken = seal.clone();
                broken[at] ^= 1;
                assert!(!keys.proves(b"state", Some(&broken)), "byte {at}");
            }
            for part in [None, Some(&seal[..4]), Some(&seal[..19]), Some(&[][..])] {
                assert!(!keys.proves(b"state", part), "{part:?}");
            }
        }
        let newer = after.seal(b"state");
        assert!(after.proves(b"state", Some(&newer)) && !before.knows_key_of(Some(&newer)));
        assert_eq!(
            StateSealKeys::parse("{}").unwrap_err(),
            InvalidSealKey::NoKey
        );
        let short = StateSealKeys::parse(r#"{"key":"canary"}"#).unwrap_err();
        assert_eq!(short, InvalidSealKey::TooShort);
        assert!(!format!("{before:?}").contains("aaaa"));
    }

    #[test]
    fn keys_are_stored_as_text_and_read_again() {
        let text = encode_private_key(&[9; 32]);
        let sealer = EventSealer::parse(&text).unwrap().unwrap();
        assert_eq!(
            sealer.public_key(),
            EventSealer::from_seed(&[9; 32]).public_key()
        );
        let keys = keys(&[&sealer, &EventSealer::from_seed(&[1; 32])]);
        assert_eq!(SealPublicKeys::parse(&keys.encode()), Ok(keys));
        for empty in ["", "{}", " \n"] {
            assert!(EventSealer::parse(&empty.into()).unwrap().is_none());
            assert!(SealPublicKeys::parse(empty).unwrap().is_empty());
        }
        for broken in [
            r#"{"private_key":"canary"}"#,
            r#"{"private_key":"AAAA"}"#,
            "canary",
            "[]",
        ] {
            let told = EventSealer::parse(&broken.into()).unwrap_err().to_string();
            assert!(!told.contains("canary"), "{told}");
        }
    }
}
