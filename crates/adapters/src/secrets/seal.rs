//! Caches of the keys that seal stored events and states (`billhook_core::seal`), so that no delivery costs a call more.
//!
//! The private key of events is read at the start and every 5 minutes; while Secrets Manager cannot be read, the one that
//! was read last still seals. The keys that check seals are read at the start, and again when a row names a key that is not
//! among them: after a rotation. `webhook-secret` makes and replaces the keys of events.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use billhook_core::ports::Clock;
use billhook_core::seal::{EventSealer, KEY_BYTES, SealKeys, SealPublicKeys, encode_private_key};
use billhook_core::time::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::store::{FetchSecret, PutSecret, SecretVersion, SecretsError, StoredSecret};
use crate::config::{SecretLocation, SecretSource};

/// After a rotation the replaced key seals for this long in instances that are running. Its seals stay genuine.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(300);
/// A delivery does not wait longer for a key that may be a newer one: with it, its calls take less than the time that
/// ingress has (`aws::OPERATION_MAX`).
const READ_AGAIN_MAX: Duration = Duration::from_millis(500);

/// A secret has at most 64 KB, which is 1,300 keys. Keys are never removed, because that would make genuine events
/// tampered; so whoever may ask for rotations must not be able to fill the secret up.
const PUBLIC_KEYS_MAX: usize = 1_000;

/// The private key, for those who store events.
#[derive(Debug)]
pub struct EventSealerCache<F, C> {
    fetch: F,
    clock: C,
    source: SecretSource,
    read: Mutex<Option<(Timestamp, Arc<EventSealer>)>>,
}

impl<F: FetchSecret, C: Clock> EventSealerCache<F, C> {
    pub fn new(source: SecretSource, fetch: F, clock: C) -> Self {
        let read = Mutex::default();
        Self {
            fetch,
            clock,
            source,
            read,
        }
    }

    /// An error if no key could ever be read: an event must not be stored without a seal.
    pub async fn sealer(&self) -> Result<Arc<EventSealer>, SecretsError> {
        let mut read = self.read.lock().await;
        let now = self.clock.now();
        if let Some((at, sealer)) = &*read
            && at.until(now) < READ_AGAIN_AFTER
        {
            return Ok(Arc::clone(sealer));
        }
        let sealer = match &*read {
            None => Arc::new(self.read_sealer().await?),
            Some((_, known)) => match timeout(READ_AGAIN_MAX, self.read_sealer()).await {
                Ok(Ok(sealer)) => Arc::new(sealer),
                // Asked again after as long as after a success, so that an outage costs no call for each delivery.
                Ok(Err(failed)) => {
                    tracing::warn!("secret_unreadable: {failed}");
                    Arc::clone(known)
                }
                Err(_) => {
                    let name = name_of(&self.source);
                    tracing::warn!(
                        "secret_unreadable: no answer about {name} in {READ_AGAIN_MAX:?}"
                    );
                    Arc::clone(known)
                }
            },
        };
        *read = Some((now, Arc::clone(&sealer)));
        Ok(sealer)
    }

    async fn read_sealer(&self) -> Result<EventSealer, SecretsError> {
        let text = read_text(&self.fetch, &self.source).await?;
        let name = name_of(&self.source);
        let parsed = EventSealer::parse(&text.into()).map_err(|error| unusable(name, error))?;
        let not_made = "no key is stored: the stack's resource SealKeys has not been made";
        parsed.ok_or_else(|| unusable(name, not_made))
    }
}

/// The keys that check seals: the public ones of events for those who apply events, that of states for those who read and
/// write states.
#[derive(Debug)]
pub struct SealKeyCache<F, K> {
    fetch: F,
    source: SecretSource,
    read: Mutex<Option<Arc<K>>>,
}

impl<F: FetchSecret, K: SealKeys> SealKeyCache<F, K> {
    pub fn new(source: SecretSource, fetch: F) -> Self {
        let read = Mutex::default();
        Self {
            fetch,
            source,
            read,
        }
    }

    /// The keys with which these seals are checked: read again if one of them names a key that was not among those read
    /// before. An error if they cannot be read then: without them nobody can say whether the row is genuine.
    pub async fn keys_for(
        &self,
        seals: impl IntoIterator<Item = Option<&[u8]>>,
    ) -> Result<Arc<K>, SecretsError> {
        let mut read = self.read.lock().await;
        if let Some(keys) = &*read
            && seals.into_iter().all(|seal| keys.knows_key_of(seal))
        {
            return Ok(Arc::clone(keys));
        }
        let text = read_text(&self.fetch, &self.source).await?;
        let keys = K::parse(&text).map_err(|error| unusable(name_of(&self.source), error))?;
        let keys = Arc::new(keys);
        *read = Some(Arc::clone(&keys));
        Ok(keys)
    }
}

/// What is asked of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealKeyRequest {
    /// That there are some.
    Ensure,
    /// Others, although there are some (key rotation).
    Replace,
}

/// The secrets of the keys.
#[derive(Clone, Copy, Debug)]
pub struct SealSecrets<'a> {
    /// `SEAL_ARN`
    pub private_arn: &'a str,
    /// `SEAL_PUBLIC_ARN`
    pub public_arn: &'a str,
}

/// Makes a pair of keys. First the public key is stored, then the private one: an event must never be sealed with a key
/// that no worker can know. A repeated request makes one more pair, which does no harm.
pub async fn make_seal_keys(
    secrets: &(impl FetchSecret + PutSecret),
    SealSecrets {
        private_arn,
        public_arn,
    }: SealSecrets<'_>,
    request: SealKeyRequest,
) -> Result<(), SecretsError> {
    let fetched = secrets.fetch(public_arn, SecretVersion::Current).await?;
    let public = SealPublicKeys::parse(text_of(fetched.as_ref()))
        .map_err(|error| unusable(public_arn, error))?;
    let fetched = secrets.fetch(private_arn, SecretVersion::Current).await?;
    // A private key that nobody can read is replaced: it seals nothing.
    let text = text_of(fetched.as_ref()).into();
    let known = EventSealer::parse(&text).ok().flatten();
    let is_there = known.is_some_and(|sealer| public.contains(&sealer.public_key()));
    if is_there && request == SealKeyRequest::Ensure {
        return Ok(());
    }
    if public.len() >= PUBLIC_KEYS_MAX {
        let fault = format!("it has {} keys, and no more are added", public.len());
        return Err(unusable(public_arn, fault));
    }
    let mut seed = [0; KEY_BYTES];
    getrandom::fill(&mut seed)
        .map_err(|error| unusable(private_arn, format!("no random bytes for a key: {error}")))?;
    let newest = EventSealer::from_seed(&seed).public_key();
    let public = public.with_newest(newest).encode();
    secrets.put(public_arn, &public.into()).await?;
    secrets.put(private_arn, &encode_private_key(&seed)).await
}

fn unusable(name: &str, fault: impl fmt::Display) -> SecretsError {
    SecretsError::Unusable {
        name: name.to_owned(),
        fault: fault.to_string(),
    }
}

fn name_of(source: &SecretSource) -> &str {
    match &source.location {
        SecretLocation::Here(_) => &source.variable,
        SecretLocation::Arn(arn) => arn,
    }
}

async fn read_text(
    fetch: &impl FetchSecret,
    source: &SecretSource,
) -> Result<String, SecretsError> {
    let stored = match &source.location {
        SecretLocation::Here(value) => return Ok(value.expose_secret().to_owned()),
        SecretLocation::Arn(arn) => fetch.fetch(arn, SecretVersion::Current).await?,
    };
    Ok(text_of(stored.as_ref()).to_owned())
}

/// Empty if nothing is stored.
fn text_of(stored: Option<&StoredSecret>) -> &str {
    stored.map_or("", |stored| stored.text.expose_secret())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex as StdMutex;

    use secrecy::SecretString;
    use uuid::Uuid;

    use super::*;

    /// Secrets Manager, and a clock.
    #[derive(Debug, Default)]
    struct SecretsWorld {
        texts: StdMutex<HashMap<String, String>>,
        is_down: StdMutex<bool>,
        hangs: StdMutex<bool>,
        reads: StdMutex<u32>,
        now_s: StdMutex<i64>,
    }

    impl FetchSecret for SecretsWorld {
        async fn fetch(
            &self,
            arn: &str,
            _: SecretVersion,
        ) -> Result<Option<StoredSecret>, SecretsError> {
            *self.reads.lock().unwrap() += 1;
            if *self.hangs.lock().unwrap() {
                std::future::pending::<()>().await;
            }
            if *self.is_down.lock().unwrap() {
                return Err(SecretsError::Read {
                    arn: arn.to_owned(),
                    cause: "down".to_owned(),
                });
            }
            let texts = self.texts.lock().unwrap();
            Ok(texts.get(arn).map(|text| StoredSecret {
                text: text.as_str().into(),
                created_at: None,
            }))
        }
    }

    impl FetchSecret for &SecretsWorld {
        async fn fetch(
            &self,
            arn: &str,
            version: SecretVersion,
        ) -> Result<Option<StoredSecret>, SecretsError> {
            (**self).fetch(arn, version).await
        }
    }

    impl PutSecret for SecretsWorld {
        async fn put(&self, arn: &str, value: &SecretString) -> Result<(), SecretsError> {
            let text = value.expose_secret().to_owned();
            self.texts.lock().unwrap().insert(arn.to_owned(), text);
            Ok(())
        }
    }

    impl Clock for &SecretsWorld {
        fn now(&self) -> Timestamp {
            Timestamp::from_unix_s(1_781_000_000 + *self.now_s.lock().unwrap()).unwrap()
        }

        fn new_id(&self) -> Uuid {
            Uuid::nil()
        }
    }

    impl SecretsWorld {
        fn store_key(&self, n: u8) -> EventSealer {
            let sealer = EventSealer::from_seed(&[n; 32]);
            let mut texts = self.texts.lock().unwrap();
            let public = texts.entry("public".to_owned()).or_default();
            let keys = SealPublicKeys::parse(public).unwrap();
            *public = keys.with_newest(sealer.public_key()).encode();
            let private = encode_private_key(&[n; 32]);
            texts.insert("private".to_owned(), private.expose_secret().to_owned());
            sealer
        }

        fn reads(&self) -> u32 {
            std::mem::take(&mut self.reads.lock().unwrap())
        }
    }

    fn stored_in(arn: &str) -> SecretSource {
        SecretSource {
            variable: "SEAL_ARN".to_owned(),
            location: SecretLocation::Arn(arn.to_owned()),
        }
    }

    #[tokio::test]
    async fn the_private_key_is_read_every_5_minutes_and_serves_through_an_outage() {
        let world = SecretsWorld::default();
        let cache = EventSealerCache::new(stored_in("private"), &world, &world);
        let told = cache.sealer().await.unwrap_err().to_string();
        assert!(told.contains("SealKeys has not been made"), "{told}");
        let first = world.store_key(1).public_key();
        assert_eq!(world.reads(), 1);
        for (at_s, is_down, reads) in [
            (0, false, 1),
            (299, true, 0),
            (300, true, 1),
            (599, true, 0),
        ] {
            *world.now_s.lock().unwrap() = at_s;
            *world.is_down.lock().unwrap() = is_down;
            assert_eq!(
                cache.sealer().await.unwrap().public_key(),
                first,
                "at {at_s} s"
            );
            assert_eq!(world.reads(), reads, "at {at_s} s");
        }
        // No answer at all costs a delivery half a second, and not the call's 6 seconds.
        *world.now_s.lock().unwrap() = 600;
        *world.hangs.lock().unwrap() = true;
        assert_eq!(cache.sealer().await.unwrap().public_key(), first);
        *world.hangs.lock().unwrap() = false;
        let second = world.store_key(2).public_key();
        *world.now_s.lock().unwrap() = 900;
        *world.is_down.lock().unwrap() = false;
        assert_eq!(cache.sealer().await.unwrap().public_key(), second);
    }

    #[tokio::test]
    async fn keys_are_made_once_and_replaced_without_forgetting_one() {
        let world = SecretsWorld::default();
        let names = SealSecrets {
            private_arn: "private",
            public_arn: "public",
        };
        let made = async |request| {
            make_seal_keys(&world, names, request).await.unwrap();
            let sealer = EventSealerCache::new(stored_in("private"), &world, &world);
            sealer.sealer().await.unwrap().public_key()
        };
        let first = made(SealKeyRequest::Ensure).await;
        assert_eq!(made(SealKeyRequest::Ensure).await, first);
        let second = made(SealKeyRequest::Replace).await;
        assert_ne!(second, first);
        // Made by a process that died between the two secrets: the key is of no use, and another one is made.
        let lost = encode_private_key(&[7; 32]);
        world.put("private", &lost).await.unwrap();
        let third = made(SealKeyRequest::Ensure).await;
        let cache: SealKeyCache<_, SealPublicKeys> = SealKeyCache::new(stored_in("public"), &world);
        let keys = cache.keys_for([]).await.unwrap();
        assert!([first, second, third].iter().all(|key| keys.contains(key)));
        assert_eq!(keys.len(), 3);

        let full = (0..1_000_u32).fold(SealPublicKeys::default(), |keys, n| {
            let mut key = [0; KEY_BYTES];
            key[..4].copy_from_slice(&n.to_be_bytes());
            keys.with_newest(key)
        });
        world.put("public", &full.encode().into()).await.unwrap();
        let refused = make_seal_keys(&world, names, SealKeyRequest::Replace).await;
        assert!(refused.unwrap_err().to_string().contains("1000 keys"));
    }

    #[tokio::test]
    async fn the_public_keys_are_read_once_and_again_for_a_newer_key() {
        let world = SecretsWorld::default();
        world.store_key(1);
        let cache: SealKeyCache<_, SealPublicKeys> = SealKeyCache::new(stored_in("public"), &world);
        // Any bytes of a seal's length that name the key.
        let seal_of = |sealer: &EventSealer| [&sealer.public_key()[..4], &[0; 64]].concat();
        let first = seal_of(&EventSealer::from_seed(&[1; 32]));
        for _ in 0..3 {
            let keys = cache.keys_for([Some(&*first), None]).await.unwrap();
            assert!(!keys.is_empty());
        }
        assert_eq!(world.reads(), 1);
        let second = seal_of(&world.store_key(2));
        let keys = cache
            .keys_for([Some(&*second), Some(&*first)])
            .await
            .unwrap();
        assert!(keys.knows_key_of(Some(&second)) && keys.knows_key_of(Some(&first)));
        assert_eq!(world.reads(), 1);
        // Nobody can say whether it is genuine: not tampered, but tried again.
        *world.is_down.lock().unwrap() = true;
        let third = seal_of(&EventSealer::from_seed(&[3; 32]));
        assert!(cache.keys_for([Some(&*third)]).await.is_err());
        assert!(cache.keys_for([Some(&*first)]).await.is_ok());
    }
}
