//! Cache of a provider's signing secrets, with a rate limit for the calls to Secrets Manager.
//!
//! A secret is *fresh* for `SECRETS_TTL_SECONDS` (300) after it was read; then it is read again. If that fails it is
//! *stale*: it is still used, up to 15 minutes after it was read, and never longer. If no known secret matches a
//! delivery, the secrets are read again (refresh after a mismatch), so that a new secret works within 10 seconds.
//! Anybody can send forged deliveries, and each is a mismatch, so two reads are at least 10 seconds apart, whatever
//! caused them; that counts for all secrets of the provider together. The only exceptions: 1 second while a secret can
//! neither be read nor used from the cache, and one read of `AWSPREVIOUS` after each read of the current version.
//! `store` makes the calls; `billhook_core::provider::signature` verifies with the result.

use std::time::Duration;

use billhook_core::endpoint::secret::{
    EndpointSecret, PREVIOUS_VALID_FOR, SecretDocument, SecretKind,
};
use billhook_core::ids::ProviderId;
use billhook_core::intake::ports::ReadSigningKeys;
use billhook_core::ports::Clock;
use billhook_core::provider::signature::{KeyScope, SigningKey, SigningKeys};
use billhook_core::time::Timestamp;
use futures_util::future::join_all;
use secrecy::ExposeSecret;
use tokio::sync::Mutex;

use super::store::{FetchSecret, SecretVersion, SecretsError, StoredSecret};
use crate::config::{SecretLocation, SecretSource, SigningSource};
use crate::metrics;

/// A secret is never used longer than this after it was read, not even in an outage of Secrets Manager. So a revoked
/// secret is refused within 15 minutes.
const STALE_MAX: Duration = Duration::from_secs(900);
/// The least time between two reads, whether a mismatch, an outage or a missing value causes them. Case: a flood of
/// forged deliveries causes one read in 10 s per running instance, and not one call per delivery, which Secrets Manager
/// would throttle and charge and for which genuine deliveries would wait.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// The same while a secret can neither be read nor used from the cache. Then each genuine delivery signed with it is
/// answered 503, so a shorter wait matters more than the number of calls.
const ASK_IN_NEED_AFTER: Duration = Duration::from_secs(1);

/// Only one read is in progress at a time; other callers wait for its result.
pub struct SigningKeyCache<F, C> {
    fetch: F,
    clock: C,
    kind: SecretKind,
    live: bool,
    fresh_for: Duration,
    /// Values from variables, which never change.
    fixed: SigningKeys,
    sources: Vec<CachedSource>,
    state: Mutex<CacheState>,
}

struct CachedSource {
    label: String,
    arn: String,
    scope: KeyScope,
}

#[derive(Default)]
struct CacheState {
    /// One per source, in the same order.
    reads: Vec<CacheSlot>,
    /// When Secrets Manager was last called to read current versions, with or without success.
    asked_at: Option<Timestamp>,
}

#[derive(Default)]
struct CacheSlot {
    read: Option<CachedRead>,
    /// Why the last read failed; `None` after a success. An old `read` stays and is stale.
    error: Option<String>,
}

struct CachedRead {
    at: Timestamp,
    keys: Vec<CachedKey>,
    faults: Vec<String>,
    /// The member that nobody has set yet.
    missing: Option<String>,
    /// Until when `AWSPREVIOUS` is valid, if it has not been read yet: 24 hours after the current version was stored.
    previous_unread_until: Option<Timestamp>,
}

struct CachedKey {
    key: SigningKey,
    valid_until: Option<Timestamp>,
}

impl<F: FetchSecret, C: Clock> SigningKeyCache<F, C> {
    /// `fresh_for` is `SECRETS_TTL_SECONDS`. With `live`, the secret with which Lob's debugger signs is refused.
    pub fn new(
        kind: SecretKind,
        sources: Vec<SigningSource>,
        fresh_for: Duration,
        live: bool,
        fetch: F,
        clock: C,
    ) -> Self {
        let mut fixed = SigningKeys::default();
        let mut remote = Vec::new();
        for SigningSource { secret, scope } in sources {
            let SecretSource { variable, location } = secret;
            match location {
                SecretLocation::Here(value) => fixed.keys.extend(SigningKey::from_value(
                    &variable,
                    value.expose_secret(),
                    scope,
                )),
                SecretLocation::Arn(arn) => remote.push(CachedSource {
                    label: variable,
                    arn,
                    scope,
                }),
            }
        }
        let reads = remote.iter().map(|_| CacheSlot::default()).collect();
        Self {
            fetch,
            clock,
            kind,
            live,
            fresh_for,
            fixed,
            sources: remote,
            state: Mutex::new(CacheState {
                reads,
                asked_at: None,
            }),
        }
    }

    /// Reads the current version of every source that `which` selects.
    async fn read_again(
        &self,
        state: &mut CacheState,
        now: Timestamp,
        which: impl Fn(&CacheSlot) -> bool,
    ) {
        // Set before the calls, so that a read that fails counts for the rate limit too.
        state.asked_at = Some(now);
        let slots = self.sources.iter().zip(&mut state.reads);
        let due = slots.filter(|(_, slot)| which(slot));
        join_all(due.map(|(source, slot)| async move {
            match self.fetch.fetch(&source.arn, SecretVersion::Current).await {
                Ok(stored) => {
                    let mut read = self.parse_read(source, stored, now);
                    slot.error = match self.was_set_before(source, &read).await {
                        Ok(false) => None,
                        // Somebody stored a document without it: lost, and not missing.
                        Ok(true) => {
                            read.faults.extend(read.missing.take());
                            None
                        }
                        Err(failed) => Some(self.report_unreadable(failed.to_string())),
                    };
                    for fault in &read.faults {
                        self.report_unreadable(fault.clone());
                    }
                    slot.read = Some(read);
                }
                // Deliveries are still verified with what was read before.
                Err(failed) if slot.serves(now) => {
                    tracing::warn!("secret_stale: {failed}");
                    slot.error = Some(failed.to_string());
                }
                Err(failed) => slot.error = Some(self.report_unreadable(failed.to_string())),
            }
        }))
        .await;
    }

    /// The signal of whoever is on call: a read of ours that failed, not a delivery that needs its result. Anybody can send
    /// deliveries; reads are as rare as the rate limit says.
    fn report_unreadable(&self, cause: String) -> String {
        tracing::error!("secret_unreadable: {cause}");
        let mut signed = ProviderId::ALL.iter();
        let provider = signed.find(|provider| SecretKind::signing_of(**provider) == self.kind);
        if let Some(provider) = provider {
            metrics::SECRET_UNREADABLE.count(*provider);
        }
        cause
    }

    /// Whether a member that is missing now stands in the version before.
    async fn was_set_before(
        &self,
        source: &CachedSource,
        read: &CachedRead,
    ) -> Result<bool, SecretsError> {
        if read.missing.is_none() {
            return Ok(false);
        }
        let stored = self
            .fetch
            .fetch(&source.arn, SecretVersion::Previous)
            .await?;
        let text = stored.map(|stored| stored.text).unwrap_or_default();
        let before = SecretDocument::parse(text.expose_secret(), self.kind);
        Ok(before.current.is_some())
    }

    /// Adds the secret of `AWSPREVIOUS` if the current version is less than 24 hours old. It is read only after a
    /// mismatch, because most deliveries are signed with the current secret.
    async fn read_previous(&self, state: &mut CacheState, now: Timestamp) {
        let slots = self.sources.iter().zip(&mut state.reads);
        let young = slots.filter_map(|(source, CacheSlot { read, error })| {
            let read = read.as_mut()?;
            // `take`: one call per read of the current version, even if it fails. Otherwise forged deliveries could
            // cause calls during the 24 hours after every rotation.
            let until = read.previous_unread_until.take()?;
            (now < until).then_some((source, read, error, until))
        });
        join_all(young.map(|(source, read, error, until)| async move {
            match self.fetch.fetch(&source.arn, SecretVersion::Previous).await {
                Ok(stored) => {
                    let text = stored.map(|stored| stored.text).unwrap_or_default();
                    let before = SecretDocument::parse(text.expose_secret(), self.kind);
                    if let Some(of) = before.current {
                        self.add(read, source, &of, Some((until, "AWSPREVIOUS")));
                    }
                }
                Err(failed) => *error = Some(self.report_unreadable(failed.to_string())),
            }
        }))
        .await;
    }

    fn parse_read(
        &self,
        source: &CachedSource,
        stored: Option<StoredSecret>,
        now: Timestamp,
    ) -> CachedRead {
        let created_at = stored.as_ref().and_then(|stored| stored.created_at);
        let text = stored.map(|stored| stored.text).unwrap_or_default();
        let document = SecretDocument::parse(text.expose_secret(), self.kind);
        let mut read = CachedRead {
            at: now,
            keys: Vec::new(),
            faults: Vec::new(),
            missing: None,
            previous_unread_until: created_at.map(|at| at.after(PREVIOUS_VALID_FOR)),
        };
        for fault in &document.faults {
            read.faults.push(format!("{}: {fault}", source.arn));
        }
        match &document.current {
            Some(of) => self.add(&mut read, source, of, None),
            // Where one was replaced, one was there: it is lost, and not missing.
            None if document.faults.is_empty() => {
                let not_set = format!("{}: {} is not set", source.arn, self.kind.member());
                match document.previous.is_empty() {
                    true => read.missing = Some(not_set),
                    false => read.faults.push(not_set),
                }
            }
            None => {}
        }
        for entry in &document.previous {
            let until = Some((entry.valid_until, "previous"));
            self.add(&mut read, source, &entry.of, until);
        }
        read
    }

    /// The label for the log: the variable, the endpoint's id if it is known, and `(previous)` or `(AWSPREVIOUS)`.
    fn add(
        &self,
        read: &mut CachedRead,
        source: &CachedSource,
        of: &EndpointSecret,
        replaced: Option<(Timestamp, &str)>,
    ) {
        let value = of.secret.expose_secret();
        // Lob's webhook debugger signs with the word `secret`, so anybody could forge deliveries with it.
        if self.live && self.kind == SecretKind::LobSigning && value == "secret" {
            read.faults.push(format!(
                "{}: the secret is the word that Lob's debugger signs with, refused because LIVE_MODE=true",
                source.arn
            ));
            return;
        }
        let mut label = source.label.to_owned();
        if let Some(id) = &of.endpoint_id {
            label = format!("{label} {id}");
        }
        if let Some((_, how)) = replaced {
            label = format!("{label} ({how})");
        }
        if let Some(key) = SigningKey::from_value(&label, value, source.scope) {
            let valid_until = replaced.map(|(until, _)| until);
            read.keys.push(CachedKey { key, valid_until });
        }
    }

    fn answer(&self, state: &CacheState, now: Timestamp) -> SigningKeys {
        let mut answer = self.fixed.clone();
        for slot in &state.reads {
            if let Some(read) = slot.read.as_ref().filter(|read| read.serves(now)) {
                for key in &read.keys {
                    match key.is_valid(now) {
                        true => answer.keys.push(key.key.clone()),
                        false => answer.expired.push(key.key.clone()),
                    }
                }
                answer.unreadable.extend(read.faults.iter().cloned());
                answer.missing.extend(read.missing.clone());
            }
            answer.unreadable.extend(slot.error.clone());
        }
        answer
    }
}

impl CacheState {
    fn asked_within(&self, span: Duration, now: Timestamp) -> bool {
        self.asked_at.is_some_and(|at| at.until(now) < span)
    }
}

impl CacheSlot {
    fn serves(&self, now: Timestamp) -> bool {
        self.read.as_ref().is_some_and(|read| read.serves(now))
    }

    fn is_fresh(&self, now: Timestamp, fresh_for: Duration) -> bool {
        self.read.as_ref().is_some_and(|read| {
            // A secret that is not set will be stored soon, so it is looked for every 10 s and not every 300 s.
            let fresh_for = if read.keys.is_empty() {
                ASK_AGAIN_AFTER
            } else {
                fresh_for
            };
            read.at.until(now) < fresh_for
        })
    }
}

impl CachedRead {
    fn serves(&self, now: Timestamp) -> bool {
        self.at.until(now) < STALE_MAX
    }
}

impl CachedKey {
    fn is_valid(&self, now: Timestamp) -> bool {
        self.valid_until.is_none_or(|until| now < until)
    }
}

impl<F: FetchSecret, C: Clock> ReadSigningKeys for SigningKeyCache<F, C> {
    async fn signing_keys(&self) -> SigningKeys {
        let mut state = self.state.lock().await;
        let now = self.clock.now();
        let due = |slot: &CacheSlot| !slot.is_fresh(now, self.fresh_for);
        let ask_after = match state.reads.iter().all(|slot| slot.serves(now)) {
            true => ASK_AGAIN_AFTER,
            false => ASK_IN_NEED_AFTER,
        };
        if !state.asked_within(ask_after, now) && state.reads.iter().any(due) {
            self.read_again(&mut state, now, due).await;
        }
        self.answer(&state, now)
    }

    async fn refresh_after_mismatch(&self) -> Option<SigningKeys> {
        if self.sources.is_empty() {
            return None;
        }
        let mut state = self.state.lock().await;
        let now = self.clock.now();
        let previous_counts = |slot: &CacheSlot| {
            let until = slot.read.as_ref().and_then(|r| r.previous_unread_until);
            until.is_some_and(|until| now < until)
        };
        if state.asked_within(ASK_AGAIN_AFTER, now) {
            // The current versions were just read, but perhaps not the previous ones. Case: a function starts after a
            // rotation, reads the new secret, and its first delivery is signed with the old one. Without this exception
            // that delivery would be refused, and an instance that handles one event in a while would refuse each.
            if !state.reads.iter().any(previous_counts) {
                return None;
            }
        } else {
            self.read_again(&mut state, now, |_| true).await;
        }
        self.read_previous(&mut state, now).await;
        tracing::info!(
            "secret_refreshed: read the secrets again because no known secret matched a delivery"
        );
        Some(self.answer(&state, now))
    }

    async fn cached_keys(&self) -> SigningKeys {
        let state = self.state.lock().await;
        self.answer(&state, self.clock.now())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::sync::{Arc, Mutex as StdMutex};

    use secrecy::SecretString;

    use super::*;
    use crate::secrets::read_stripe_key;

    const ARN: &str = "arn:stripe";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000 + seconds).unwrap()
    }

    fn exposed(secret: Option<&SecretString>) -> Option<&str> {
        secret.map(ExposeSecret::expose_secret)
    }

    /// Secrets Manager and the clock, both controlled by the test.
    #[derive(Default)]
    struct World {
        seconds: AtomicI64,
        texts: StdMutex<HashMap<&'static str, (String, i64)>>,
        asked: StdMutex<Vec<SecretVersion>>,
        is_down: StdMutex<bool>,
    }

    impl World {
        fn put(&self, stage: &'static str, text: &str, created_s: i64) {
            let mut texts = self.texts.lock().unwrap();
            texts.insert(stage, (text.to_owned(), created_s));
        }
        fn pass(&self, seconds: i64) {
            self.seconds.fetch_add(seconds, Ordering::SeqCst);
        }
        fn asked(&self) -> usize {
            std::mem::take(&mut *self.asked.lock().unwrap()).len()
        }
        fn reader(&self) -> SigningKeyCache<&Self, &Self> {
            self.reader_of(SecretKind::StripeSigning, true)
        }
        fn reader_of(&self, wanted: SecretKind, live: bool) -> SigningKeyCache<&Self, &Self> {
            let secret = SecretSource {
                variable: "SECRET_ARN".to_owned(),
                location: SecretLocation::Arn(ARN.to_owned()),
            };
            let scope = KeyScope::Platform;
            let source = SigningSource { secret, scope };
            let ttl = Duration::from_secs(300);
            SigningKeyCache::new(wanted, vec![source], ttl, live, self, self)
        }
    }

    impl FetchSecret for &World {
        async fn fetch(
            &self,
            arn: &str,
            version: SecretVersion,
        ) -> Result<Option<StoredSecret>, SecretsError> {
            self.asked.lock().unwrap().push(version);
            if *self.is_down.lock().unwrap() {
                return Err(SecretsError::Read {
                    arn: arn.to_owned(),
                    cause: "down".to_owned(),
                });
            }
            let stage = match version {
                SecretVersion::Current => "current",
                SecretVersion::Previous => "previous",
            };
            let texts = self.texts.lock().unwrap();
            Ok(texts.get(stage).map(|(text, created_s)| StoredSecret {
                text: SecretString::from(text.as_str()),
                created_at: Some(at(*created_s)),
            }))
        }
    }

    impl Clock for &World {
        fn now(&self) -> Timestamp {
            at(self.seconds.load(Ordering::SeqCst))
        }
        fn new_id(&self) -> uuid::Uuid {
            uuid::Uuid::nil()
        }
    }

    #[track_caller]
    fn check(keys: &SigningKeys, values: &[&str], unreadable: &[&str]) {
        let found: Vec<_> = keys.keys.iter().map(|k| k.secret.expose_secret()).collect();
        assert_eq!(found, values);
        assert_eq!(keys.unreadable, unreadable);
    }

    const LONG_AGO: i64 = -1_000_000;

    #[tokio::test]
    async fn a_read_serves_for_its_time_and_is_then_read_again() {
        let world = World::default();
        world.put("current", "whsec_1", LONG_AGO);
        let reader = world.reader();
        for _ in 0..3 {
            check(&reader.signing_keys().await, &["whsec_1"], &[]);
            world.pass(99);
        }
        assert_eq!(world.asked(), 1);
        world.put("current", "whsec_2", LONG_AGO);
        world.pass(3);
        check(&reader.signing_keys().await, &["whsec_2"], &[]);
        assert_eq!(world.asked(), 1);
    }

    #[tokio::test]
    async fn an_outage_is_bridged_for_15_minutes_and_asked_about_every_10_s() {
        let world = World::default();
        world.put("current", "whsec_1", LONG_AGO);
        let reader = world.reader();
        reader.signing_keys().await;
        *world.is_down.lock().unwrap() = true;
        world.pass(301);
        let down = "cannot read arn:stripe: down";
        for _ in 0..5 {
            check(&reader.signing_keys().await, &["whsec_1"], &[down]);
        }
        assert_eq!(world.asked(), 2);
        world.pass(599);
        check(&reader.signing_keys().await, &[], &[down]);
        *world.is_down.lock().unwrap() = false;
        world.pass(1);
        check(&reader.signing_keys().await, &["whsec_1"], &[]);
    }

    #[tokio::test]
    async fn a_mismatch_asks_again_at_most_every_10_s() {
        let world = World::default();
        world.put("current", "whsec_1", LONG_AGO);
        let reader = world.reader();
        reader.signing_keys().await;
        assert!(reader.refresh_after_mismatch().await.is_none(), "just read");
        world.put("current", "whsec_2", LONG_AGO);
        world.pass(10);
        check(
            &reader.refresh_after_mismatch().await.unwrap(),
            &["whsec_2"],
            &[],
        );
        assert!(reader.refresh_after_mismatch().await.is_none());
        assert_eq!(world.asked(), 2);
    }

    #[tokio::test]
    async fn the_version_before_proves_for_24_h_and_is_read_only_when_needed() {
        let world = World::default();
        world.put("current", "whsec_2", 0);
        world.put("previous", "whsec_1", LONG_AGO);
        let reader = world.reader();
        check(&reader.signing_keys().await, &["whsec_2"], &[]);
        // Also in the first seconds of a container, because one that is seldom called has no others.
        let both = ["whsec_2", "whsec_1"];
        check(&reader.refresh_after_mismatch().await.unwrap(), &both, &[]);
        assert!(reader.refresh_after_mismatch().await.is_none());
        assert_eq!(world.asked(), 2);
        world.pass(86_400);
        check(&reader.signing_keys().await, &["whsec_2"], &[]);
        world.pass(10);
        check(
            &reader.refresh_after_mismatch().await.unwrap(),
            &["whsec_2"],
            &[],
        );
        assert_eq!(*world.asked.lock().unwrap(), [SecretVersion::Current; 2]);
    }

    #[tokio::test]
    async fn a_previous_entry_verifies_nothing_past_its_time() {
        let world = World::default();
        let text = format!(
            r#"{{"signing_secret":"whsec_2","previous":[{{"secret":"whsec_1","valid_until":"{}"}}]}}"#,
            at(100)
        );
        world.put("current", &text, LONG_AGO);
        let reader = world.reader();
        check(&reader.signing_keys().await, &["whsec_2", "whsec_1"], &[]);
        world.pass(100);
        check(&reader.signing_keys().await, &["whsec_2"], &[]);
        assert_eq!(world.asked(), 1);
    }

    #[tokio::test]
    async fn a_secret_that_is_not_set_yet_is_missing_and_looked_for_every_10_s() {
        // Without a document, without a version, or deleted.
        for text in [Some("{}"), Some(" "), None] {
            let world = World::default();
            if let Some(text) = text {
                world.put("current", text, LONG_AGO);
            }
            let reader = world.reader();
            let missing = ["arn:stripe: signing_secret is not set"];
            check(&reader.signing_keys().await, &[], &[]);
            assert_eq!(reader.cached_keys().await.missing, missing);
            world.put("current", "whsec_1", LONG_AGO);
            world.pass(9);
            assert_eq!(reader.signing_keys().await.missing, missing);
            world.pass(1);
            check(&reader.signing_keys().await, &["whsec_1"], &[]);
            assert!(reader.cached_keys().await.missing.is_empty());
        }
    }

    #[tokio::test]
    async fn a_secret_that_cannot_be_read_or_used_is_not_missing() {
        let world = World::default();
        world.put("current", "{}", LONG_AGO);
        let reader = world.reader();
        assert_eq!(reader.signing_keys().await.missing.len(), 1);
        *world.is_down.lock().unwrap() = true;
        world.pass(10);
        let down = "cannot read arn:stripe: down";
        check(&reader.signing_keys().await, &[], &[down]);
        *world.is_down.lock().unwrap() = false;
        world.put("current", r#"{"signing_secret": 7}"#, LONG_AGO);
        world.pass(10);
        let unusable = reader.signing_keys().await;
        check(
            &unusable,
            &[],
            &["arn:stripe: signing_secret must be a string"],
        );
        assert!(unusable.missing.is_empty());
        // Somebody took the current one out of the document.
        let lost = format!(
            r#"{{"previous":[{{"secret":"whsec_1","valid_until":"{}"}}]}}"#,
            at(100)
        );
        world.put("current", &lost, LONG_AGO);
        world.pass(10);
        let lost = reader.signing_keys().await;
        check(
            &lost,
            &["whsec_1"],
            &["arn:stripe: signing_secret is not set"],
        );
        assert!(lost.missing.is_empty());
        // Somebody stored a document without it, days ago.
        let world = World::default();
        world.put("current", "{}", LONG_AGO);
        world.put("previous", "whsec_1", LONG_AGO);
        let lost = world.reader().signing_keys().await;
        check(&lost, &[], &["arn:stripe: signing_secret is not set"]);
        assert!(lost.missing.is_empty());
    }

    #[tokio::test]
    async fn a_provider_that_is_not_used_has_no_secrets_and_asks_for_none() {
        let world = World::default();
        let ttl = Duration::from_secs(300);
        let wanted = SecretKind::LobSigning;
        let reader = SigningKeyCache::new(wanted, Vec::new(), ttl, true, &world, &world);
        check(&reader.signing_keys().await, &[], &[]);
        assert!(reader.refresh_after_mismatch().await.is_none());
        assert_eq!(world.asked(), 0);
    }

    #[tokio::test]
    async fn forged_deliveries_ask_once_a_second_at_most_where_a_secret_cannot_be_read() {
        let world = World::default();
        *world.is_down.lock().unwrap() = true;
        let reader = world.reader();
        for _ in 0..20 {
            reader.signing_keys().await;
            reader.refresh_after_mismatch().await;
        }
        assert_eq!(world.asked(), 1);
        world.pass(1);
        reader.signing_keys().await;
        assert_eq!(world.asked(), 1);
    }

    /// The lines `secret_unreadable`, and what they count; `World` and the reader are as in a running function.
    fn errors_of(work: impl Future<Output = ()>) -> (usize, u64) {
        let seen: Arc<StdMutex<Vec<u8>>> = Arc::default();
        let sink = Arc::clone(&seen);
        let write = move |line: &[u8]| sink.lock().unwrap().extend_from_slice(line);
        let stage = metrics::MetricEnvironment::new("billhook", "test");
        let lines = crate::telemetry::build_subscriber(
            "webhook-ingress",
            stage.clone(),
            tracing::level_filters::LevelFilter::ERROR,
            crate::clock::SystemClock,
            write,
        );
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        tracing::subscriber::with_default(lines, || runtime.unwrap().block_on(work));
        let text = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        let counted = metrics::drain_lines(&stage, at(0));
        let counted = counted.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["SecretUnreadable"].as_u64().unwrap_or(0)
        });
        (text.matches("secret_unreadable").count(), counted.sum())
    }

    #[test]
    fn whoever_is_on_call_hears_of_our_failed_reads_and_not_of_the_number_of_deliveries() {
        // It is down: one error for each read, however many deliveries need it.
        let world = World::default();
        *world.is_down.lock().unwrap() = true;
        let errors = errors_of(async {
            let reader = world.reader();
            for _ in 0..20 {
                reader.signing_keys().await;
                reader.refresh_after_mismatch().await;
            }
        });
        assert_eq!((errors, world.asked()), ((1, 1), 1));
        // The values that were read before still serve.
        let world = World::default();
        world.put("current", "whsec_1", LONG_AGO);
        let errors = errors_of(async {
            let reader = world.reader();
            reader.signing_keys().await;
            *world.is_down.lock().unwrap() = true;
            world.pass(301);
            reader.signing_keys().await;
        });
        assert_eq!((errors, world.asked()), ((0, 0), 2));
        // It was never stored: no fault of ours, whatever arrives.
        let world = World::default();
        let errors = errors_of(async {
            let reader = world.reader();
            for _ in 0..20 {
                reader.signing_keys().await;
                reader.refresh_after_mismatch().await;
                world.pass(10);
            }
        });
        assert_eq!(errors, (0, 0));
        // Its text cannot be used.
        let world = World::default();
        world.put("current", r#"{"signing_secret": 7}"#, LONG_AGO);
        let errors = errors_of(async {
            world.reader().signing_keys().await;
        });
        assert_eq!(errors, (1, 1));
    }

    #[tokio::test]
    async fn the_debuggers_word_proves_nothing_at_a_live_stage() {
        let world = World::default();
        world.put("current", r#"{"lob_webhook_secret":"secret"}"#, LONG_AGO);
        let live = world.reader_of(SecretKind::LobSigning, true);
        check(
            &live.signing_keys().await,
            &[],
            &[
                "arn:stripe: the secret is the word that Lob's debugger signs with, refused because LIVE_MODE=true",
            ],
        );
        let test = world.reader_of(SecretKind::LobSigning, false);
        check(&test.signing_keys().await, &["secret"], &[]);
    }

    #[tokio::test]
    async fn a_key_of_the_other_mode_is_refused_without_being_repeated() {
        let world = World::default();
        let source = SecretSource {
            variable: "APP_SECRETS_ARN".to_owned(),
            location: SecretLocation::Arn(ARN.to_owned()),
        };
        let table = [
            ("{}", true, Ok(None)),
            ("sk_live_1", true, Ok(Some("sk_live_1"))),
            ("sk_test_1", false, Ok(Some("sk_test_1"))),
            (
                "sk_test_1",
                true,
                Err("arn:stripe: the Stripe key is not a live one, refused because LIVE_MODE=true"),
            ),
            (
                "rk_live_1",
                false,
                Err("arn:stripe: the Stripe key is a live one, refused because LIVE_MODE=false"),
            ),
        ];
        for (text, live, expected) in table {
            world.put("current", text, LONG_AGO);
            let found = read_stripe_key(&&world, &source, live).await;
            let found = found.map_err(|error| error.to_string());
            let found = found.as_ref().map(|key| exposed(key.as_ref()));
            assert_eq!(found.map_err(String::as_str), expected);
        }
    }

    #[tokio::test]
    async fn values_from_variables_need_no_fetch_and_no_refresh() {
        let world = World::default();
        let secret = SecretSource {
            variable: "STRIPE_WEBHOOK_SECRET".to_owned(),
            location: SecretLocation::Here(SecretString::from("whsec_local")),
        };
        let scope = KeyScope::AllEvents;
        let source = SigningSource { secret, scope };
        let ttl = Duration::from_secs(300);
        let wanted = SecretKind::StripeSigning;
        let reader = SigningKeyCache::new(wanted, vec![source], ttl, false, &world, &world);
        check(&reader.signing_keys().await, &["whsec_local"], &[]);
        assert!(reader.refresh_after_mismatch().await.is_none());
        assert_eq!(world.asked(), 0);
    }
}
