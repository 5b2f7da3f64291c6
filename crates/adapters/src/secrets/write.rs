//! Changes to a secret: replace a value, revoke replaced values, roll back (rotation).
//!
//! A replaced signing secret stays valid for 24 hours, no matter who stored it, so that a change refuses no genuine
//! delivery; only `revoke_replaced` ends that at once. Every change stores a new version and moves no version label:
//! ingress counts the 24 hours from the creation date of the current version. `cache` reads the result;
//! `docs/rotation.md` explains it.

use billhook_core::endpoint::secret::{PREVIOUS_VALID_FOR, SecretDocument, SecretKind};
use billhook_core::time::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};

use super::store::{FetchSecret, PutSecret, SecretVersion, SecretsError, read_document};

/// The current document, plus the secret in `AWSPREVIOUS` while that is still valid, because the next version will push
/// it out. Case: a person stored `lob_2` over `lob_1`; an hour later another key of the same JSON is changed. Now
/// `AWSPREVIOUS` has `lob_2`, and `lob_1` is valid for 23 more hours only because it is kept under `previous`.
pub async fn load_document(
    store: &impl FetchSecret,
    arn: &str,
    wanted: SecretKind,
    now: Timestamp,
) -> Result<SecretDocument, SecretsError> {
    let (current, created_at) = read_document(store, arn, wanted, SecretVersion::Current).await?;
    match created_at.map(|at| at.after(PREVIOUS_VALID_FOR)) {
        Some(until) if now < until => {
            let (before, _) = read_document(store, arn, wanted, SecretVersion::Previous).await?;
            Ok(current.with_previous_version(before, until))
        }
        _ => Ok(current),
    }
}

/// Changes members of a secret: the Lob secret, or any other key in the same JSON.
pub async fn change_members(
    store: &(impl FetchSecret + PutSecret),
    arn: &str,
    wanted: SecretKind,
    members: &[(&str, SecretString)],
    now: Timestamp,
) -> Result<(), SecretsError> {
    let (current, next) = apply_members(store, arn, wanted, members, now).await?;
    let next = current.prepare_successor(next, &[], now);
    store.put(arn, &next.encode()).await
}

/// For a leaked secret: no replaced value is valid any more, as soon as every cache has read the change (15 minutes).
/// The text is stored twice, because after one put `AWSPREVIOUS` would still be the leaked value. With empty `members`
/// the current secret stays.
pub async fn revoke_replaced(
    store: &(impl FetchSecret + PutSecret),
    arn: &str,
    wanted: SecretKind,
    members: &[(&str, SecretString)],
    now: Timestamp,
) -> Result<(), SecretsError> {
    let (_, next) = apply_members(store, arn, wanted, members, now).await?;
    let value = next.without_replaced().encode();
    store.put(arn, &value).await?;
    store.put(arn, &value).await
}

/// Stores the secret of `AWSPREVIOUS` in a new version; the other members of the JSON stay as they are now.
pub async fn roll_back_secret(
    store: &(impl FetchSecret + PutSecret),
    arn: &str,
    wanted: SecretKind,
    now: Timestamp,
) -> Result<(), SecretsError> {
    let current = require_sound(load_document(store, arn, wanted, now).await?, arn)?;
    let (before, _) = read_document(store, arn, wanted, SecretVersion::Previous).await?;
    let before = require_sound(before, arn)?;
    let Some(secret) = before.current.map(|before| before.secret) else {
        let fault = format!("the previous version has no {}", wanted.member());
        return Err(unusable_secret(arn, fault));
    };
    let current_value = current
        .current
        .as_ref()
        .map(|current| current.secret.expose_secret());
    if current_value == Some(secret.expose_secret()) {
        let fault = format!("the previous version has the same {}", wanted.member());
        return Err(unusable_secret(arn, fault));
    }
    let next = current.clone().with_member(wanted.member(), &secret);
    let next = current.prepare_successor(next, &[], now);
    store.put(arn, &next.encode()).await
}

/// What a move of a secret found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretMove {
    /// It was not in the first secret.
    NothingToMove,
    Moved,
    /// The second secret has one already, which stays; that of the first was removed.
    Removed,
}

/// Moves a signing secret, with its previous ones, from one secret of Secrets Manager into another one. It is in the
/// second before it leaves the first, so that a move that is interrupted loses nothing and can be repeated.
pub async fn move_secret(
    store: &(impl FetchSecret + PutSecret),
    wanted: SecretKind,
    from_arn: &str,
    to_arn: &str,
    now: Timestamp,
) -> Result<SecretMove, SecretsError> {
    let from = require_sound(load_document(store, from_arn, wanted, now).await?, from_arn)?;
    if !from.has_secret() {
        return Ok(SecretMove::NothingToMove);
    }
    let to = require_sound(load_document(store, to_arn, wanted, now).await?, to_arn)?;
    let (taken, rest) = from.split();
    let is_new = to.current.is_none();
    if is_new {
        let next = to.with_secrets_of(taken);
        store.put(to_arn, &next.encode()).await?;
    }
    // Twice, because after one put AWSPREVIOUS would still have it.
    let rest = rest.encode();
    store.put(from_arn, &rest).await?;
    store.put(from_arn, &rest).await?;
    Ok(match is_new {
        true => SecretMove::Moved,
        false => SecretMove::Removed,
    })
}

async fn apply_members(
    store: &impl FetchSecret,
    arn: &str,
    wanted: SecretKind,
    members: &[(&str, SecretString)],
    now: Timestamp,
) -> Result<(SecretDocument, SecretDocument), SecretsError> {
    // A document that we cannot parse is not overwritten: a person mistyped its JSON, and its values would be lost.
    let current = require_sound(load_document(store, arn, wanted, now).await?, arn)?;
    let next = members.iter().fold(current.clone(), |next, (name, value)| {
        next.with_member(name, value)
    });
    Ok((current, next))
}

fn require_sound(document: SecretDocument, arn: &str) -> Result<SecretDocument, SecretsError> {
    match document.faults.first() {
        Some(fault) => Err(unusable_secret(arn, fault.clone())),
        None => Ok(document),
    }
}

fn unusable_secret(arn: &str, fault: String) -> SecretsError {
    SecretsError::Unusable {
        name: arn.to_owned(),
        fault,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::time::Duration;

    use billhook_core::intake::ports::ReadSigningKeys as _;
    use billhook_core::ports::Clock;
    use billhook_core::provider::signature::{KeyScope, SigningKeys};
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::config::{SecretLocation, SecretSource, SigningSource};
    use crate::secrets::{SigningKeyCache, StoredSecret};

    const ARN: &str = "arn:app";

    /// Secrets Manager's versions, newest last, and the clock.
    #[derive(Default)]
    struct World {
        versions: Mutex<Vec<(String, Timestamp)>>,
        minutes: Mutex<u64>,
    }

    impl World {
        fn pass(&self, minutes: u64) {
            *self.minutes.lock().unwrap() += minutes;
        }

        fn by_hand(&self, text: &str) {
            self.versions
                .lock()
                .unwrap()
                .push((text.to_owned(), self.now()));
        }

        /// The cache of a container that starts now.
        fn reader(&self) -> SigningKeyCache<&Self, &Self> {
            let location = SecretLocation::Arn(ARN.to_owned());
            let secret = SecretSource {
                variable: "APP".to_owned(),
                location,
            };
            let scope = KeyScope::AllEvents;
            let source = SigningSource { secret, scope };
            let ttl = Duration::from_secs(300);
            SigningKeyCache::new(SecretKind::LobSigning, vec![source], ttl, true, self, self)
        }

        /// The secrets that are valid now, including those that are read only after a mismatch.
        async fn accepted(&self) -> String {
            let reader = self.reader();
            let known = reader.signing_keys().await;
            let known = reader.refresh_after_mismatch().await.unwrap_or(known);
            let values = known.keys.iter().map(|k| k.secret.expose_secret());
            let values: BTreeSet<_> = values.collect();
            values.into_iter().collect::<Vec<_>>().join(" ")
        }

        async fn change(&self, member: &str, value: &str) {
            let members = [(member, SecretString::from(value))];
            change_members(&self, ARN, SecretKind::LobSigning, &members, self.now())
                .await
                .unwrap();
        }
    }

    impl Clock for &World {
        fn now(&self) -> Timestamp {
            World::now(self)
        }
        fn new_id(&self) -> uuid::Uuid {
            uuid::Uuid::nil()
        }
    }

    impl World {
        fn now(&self) -> Timestamp {
            let minutes = *self.minutes.lock().unwrap();
            let start = Timestamp::from_unix_s(1_781_000_000).unwrap();
            start.after(Duration::from_secs(60 * minutes))
        }
    }

    impl FetchSecret for &World {
        async fn fetch(
            &self,
            _: &str,
            version: SecretVersion,
        ) -> Result<Option<StoredSecret>, SecretsError> {
            let versions = self.versions.lock().unwrap();
            let back = match version {
                SecretVersion::Current => 1,
                SecretVersion::Previous => 2,
            };
            let at = versions.len().checked_sub(back);
            Ok(at.map(|at| StoredSecret {
                text: versions[at].0.as_str().into(),
                created_at: Some(versions[at].1),
            }))
        }
    }

    impl PutSecret for &World {
        async fn put(&self, _: &str, value: &SecretString) -> Result<(), SecretsError> {
            self.by_hand(value.expose_secret());
            Ok(())
        }
    }

    const HOUR: u64 = 60;

    #[tokio::test]
    async fn another_key_changed_after_a_secret_was_put_by_hand_drops_nothing() {
        let world = World::default();
        world.by_hand(r#"{"lob_webhook_secret":"lob_1","telnyx_api_key":"KEY1"}"#);
        world.pass(100 * HOUR);
        world.by_hand(r#"{"lob_webhook_secret":"lob_2","telnyx_api_key":"KEY1"}"#);
        assert_eq!(world.accepted().await, "lob_1 lob_2");
        world.pass(HOUR);
        world.change("telnyx_api_key", "KEY2").await;
        assert_eq!(world.accepted().await, "lob_1 lob_2");
        world.pass(HOUR);
        world.change("telnyx_api_key", "KEY3").await;
        assert_eq!(world.accepted().await, "lob_1 lob_2");
        assert!(
            world.versions.lock().unwrap()[3]
                .0
                .contains(r#""telnyx_api_key":"KEY3""#)
        );
        // 24 h after its replacement it is no longer valid, however often the other keys were changed.
        world.pass(22 * HOUR);
        assert_eq!(world.accepted().await, "lob_2");
    }

    #[tokio::test]
    async fn a_typo_is_corrected_without_dropping_what_was_there_before_it() {
        let world = World::default();
        world.by_hand(r#"{"lob_webhook_secret":"lob_1"}"#);
        world.change("lob_webhook_secret", "lob_typo").await;
        world.change("lob_webhook_secret", "lob_2").await;
        assert_eq!(world.accepted().await, "lob_1 lob_2 lob_typo");
    }

    #[tokio::test]
    async fn a_revoked_secret_is_refused_by_every_container_within_15_minutes() {
        let world = World::default();
        world.by_hand(r#"{"lob_webhook_secret":"lob_leaked","lob_api_key":"x"}"#);
        let old_container = world.reader();
        old_container.signing_keys().await;
        let members = [("lob_webhook_secret", SecretString::from("lob_2"))];
        revoke_replaced(&&world, ARN, SecretKind::LobSigning, &members, world.now())
            .await
            .unwrap();
        assert_eq!(world.accepted().await, "lob_2");
        assert!(world.versions.lock().unwrap()[2].0.contains("lob_api_key"));
        world.pass(15);
        let known = old_container.signing_keys().await;
        let values: Vec<_> = known
            .keys
            .iter()
            .map(|k| k.secret.expose_secret())
            .collect();
        assert_eq!((values, known.expired.len()), (vec!["lob_2"], 0));
        let after = old_container.refresh_after_mismatch().await;
        let proves = |known: &SigningKeys, value| {
            let mut keys = known.keys.iter();
            keys.any(|key| key.secret.expose_secret() == value)
        };
        assert!(after.is_none_or(|known| !proves(&known, "lob_leaked")));

        // Only the previous secret leaked: the current one stays.
        let world = World::default();
        world.by_hand(r#"{"lob_webhook_secret":"lob_leaked"}"#);
        world.change("lob_webhook_secret", "lob_2").await;
        revoke_replaced(&&world, ARN, SecretKind::LobSigning, &[], world.now())
            .await
            .unwrap();
        assert_eq!(world.accepted().await, "lob_2");
    }

    #[tokio::test]
    async fn rolling_back_puts_a_new_version_and_drops_nothing() {
        let world = World::default();
        world.by_hand(r#"{"lob_webhook_secret":"lob_1","telnyx_api_key":"KEY1"}"#);
        world.pass(100 * HOUR);
        world.by_hand(r#"{"lob_webhook_secret":"lob_wrong","telnyx_api_key":"KEY2"}"#);
        world.pass(30 * HOUR);
        roll_back_secret(&&world, ARN, SecretKind::LobSigning, world.now())
            .await
            .unwrap();
        assert_eq!(world.versions.lock().unwrap().len(), 3);
        assert_eq!(world.accepted().await, "lob_1 lob_wrong");
        // A rollback does not touch the other keys of the document.
        assert!(world.versions.lock().unwrap()[2].0.contains("KEY2"));
        world.pass(25 * HOUR);
        assert_eq!(world.accepted().await, "lob_1");

        world.change("telnyx_api_key", "KEY3").await;
        let same = roll_back_secret(&&world, ARN, SecretKind::LobSigning, world.now()).await;
        assert_eq!(
            same.unwrap_err().to_string(),
            "arn:app: the previous version has the same lob_webhook_secret"
        );

        let world = World::default();
        world.by_hand("{}");
        world.by_hand(r#"{"lob_webhook_secret":"lob_1"}"#);
        let refused = roll_back_secret(&&world, ARN, SecretKind::LobSigning, world.now()).await;
        assert_eq!(
            refused.unwrap_err().to_string(),
            "arn:app: the previous version has no lob_webhook_secret"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_understood_is_not_written_over() {
        let world = World::default();
        world.by_hand(r#"{"lob_webhook_secret":"canary""#);
        let members = [("telnyx_api_key", SecretString::from("canary"))];
        let refused =
            change_members(&&world, ARN, SecretKind::LobSigning, &members, world.now()).await;
        assert_eq!(
            refused.unwrap_err().to_string(),
            "arn:app: not valid JSON at line 1, column 30"
        );
        assert_eq!(world.versions.lock().unwrap().len(), 1);
    }
}
