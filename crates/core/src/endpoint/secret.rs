//! The document in a secret: the formats that people and billhook write, how a value is read from them, and what is
//! written when it is rotated, rolled back or revoked.
//!
//! Guarantees: a replaced signing secret stays valid for 24 hours, so a rotation refuses no genuine delivery; a
//! secret's value appears in no fault and in no `Debug`. Pure: `adapters::secrets` reads and stores the text. Ingress,
//! `webhook-secret` and the operator's command line all read secrets with this code. docs/rotation.md has the formats.

use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use crate::endpoint::plan::ENDPOINTS_MAX;
use crate::ids::ProviderId;
use crate::time::Timestamp;

/// How long a replaced secret still verifies deliveries: Stripe's own limit for a rolled secret. A delivery that Stripe
/// signed before the rotation and that arrives late must not be refused.
pub const PREVIOUS_VALID_FOR: Duration = Duration::from_hours(24);

/// Which value to read from a secret's text; one secret may hold several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    StripeSigning,
    LobSigning,
    #[cfg(feature = "third-provider")]
    ParcelSigning,
    /// The key for Stripe's API.
    StripeKey,
}

/// Which of the stack's secrets holds a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretHolder {
    /// Each endpoint at Stripe has a secret of its own.
    EndpointSecrets,
    /// The signing secrets that people store: all that ingress can read beside those of the endpoints.
    InboundSecret,
    /// The key of Stripe's API, which no function reads that answers requests from outside.
    AppSecret,
}

impl SecretKind {
    /// The secret with which a provider signs its deliveries.
    pub fn signing_of(provider: ProviderId) -> Self {
        match provider {
            ProviderId::Stripe => Self::StripeSigning,
            ProviderId::Lob => Self::LobSigning,
            #[cfg(feature = "third-provider")]
            ProviderId::Parcel => Self::ParcelSigning,
        }
    }

    /// The secret that holds the value.
    pub fn holder(self) -> SecretHolder {
        match self {
            Self::StripeSigning => SecretHolder::EndpointSecrets,
            Self::LobSigning => SecretHolder::InboundSecret,
            Self::StripeKey => SecretHolder::AppSecret,
            #[cfg(feature = "third-provider")]
            Self::ParcelSigning => SecretHolder::InboundSecret,
        }
    }

    /// The name of the value's JSON member.
    pub fn member(self) -> &'static str {
        match self {
            Self::StripeSigning => "signing_secret",
            Self::LobSigning => "lob_webhook_secret",
            #[cfg(feature = "third-provider")]
            Self::ParcelSigning => "parcel_public_key",
            Self::StripeKey => "stripe_secret_key",
        }
    }

    /// Member names in secrets of older installations.
    fn foreign_member_names(self) -> &'static [&'static str] {
        match self {
            Self::StripeSigning => &["webhookSecret", "secretKey"],
            Self::LobSigning => &["webhookSecret"],
            #[cfg(feature = "third-provider")]
            Self::ParcelSigning => &[],
            Self::StripeKey => &["secretKey"],
        }
    }

    /// Why a value that has none of our member names cannot be the wanted one. `secretKey` may hold Stripe's key or its
    /// signing secret, so the prefix decides. And a placeholder such as "set me" must not become Stripe's signing
    /// secret: anybody could guess it and forge deliveries. Lob's secrets have no prefix, so for Lob every text counts
    /// that is not one of Stripe's.
    fn find_misfit_reason(self, value: &str) -> Option<&'static str> {
        let is_key = value.starts_with("sk_") || value.starts_with("rk_");
        let is_stripes = value.starts_with("whsec_");
        match self {
            Self::StripeSigning => (!is_stripes)
                .then_some("does not begin with whsec_, as Stripe's signing secrets do"),
            Self::LobSigning => {
                (is_key || is_stripes).then_some("begins like Stripe's secrets, so it is not Lob's")
            }
            #[cfg(feature = "third-provider")]
            Self::ParcelSigning => (is_key || is_stripes).then_some("begins like Stripe's secrets"),
            Self::StripeKey => {
                (!is_key).then_some("does not begin with sk_ or rk_, as Stripe's keys do")
            }
        }
    }
}

/// A secret value, and the endpoint at Stripe that signs with it.
#[derive(Clone, Debug)]
pub struct EndpointSecret {
    /// Unknown if a person stored the secret; Lob's secrets and API keys have none.
    pub endpoint_id: Option<String>,
    pub secret: SecretString,
}

/// A signing secret that was replaced. After `valid_until` it verifies no delivery; it is then kept only for a
/// rollback, as long as its endpoint exists.
#[derive(Clone, Debug)]
pub struct ReplacedSecret {
    pub of: EndpointSecret,
    pub valid_until: Timestamp,
}

/// A secret's text, parsed.
#[derive(Clone)]
pub struct SecretDocument {
    wanted: SecretKind,
    /// `None` if it is not set: absent, empty or blank.
    pub current: Option<EndpointSecret>,
    /// Signing secrets that were replaced.
    pub previous: Vec<ReplacedSecret>,
    /// What could not be parsed, without any value. One bad entry does not spoil the others.
    pub faults: Vec<String>,
    /// The other members of the same JSON. They are written back unchanged: a secret may also hold keys that billhook
    /// never reads.
    others: Map<String, Value>,
}

impl fmt::Debug for SecretDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretDocument")
            .field("current", &self.current)
            .field("previous", &self.previous)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl SecretDocument {
    pub fn empty(wanted: SecretKind) -> Self {
        Self {
            wanted,
            current: None,
            previous: Vec::new(),
            faults: Vec::new(),
            others: Map::new(),
        }
    }

    /// Parses the documented formats: our JSON, `{"secretKey"}`, `{"webhookSecret"}`, plain text. Blank text and `{}`
    /// mean that nobody has set the secret yet. Never fails: what cannot be parsed is in `faults`.
    pub fn parse(text: &str, wanted: SecretKind) -> Self {
        let text = text.trim();
        let mut document = Self::empty(wanted);
        if text.starts_with('{') {
            match serde_json::from_str(text) {
                Ok(members) => document.read_members(members),
                // Only the place: the parser's own message might quote the secret.
                Err(error) => document.faults.push(format!(
                    "not valid JSON at line {}, column {}",
                    error.line(),
                    error.column()
                )),
            }
        } else if let Some(secret) = non_blank_secret(text) {
            document.accept_unnamed("the bare text", secret, None);
        }
        document
    }

    fn read_members(&mut self, members: Map<String, Value>) {
        self.others = members;
        let endpoint_id = self
            .is_signing_secret()
            .then(|| parse_endpoint_id(&self.others))
            .flatten();
        let ours = self.wanted.member();
        match self.others.remove(ours) {
            Some(Value::String(value)) => {
                self.current = non_blank_secret(&value).map(|secret| EndpointSecret {
                    endpoint_id: endpoint_id.clone(),
                    secret,
                });
            }
            Some(Value::Null) | None => {}
            Some(_) => self.faults.push(format!("{ours} must be a string")),
        }
        for name in self.wanted.foreign_member_names() {
            match self.others.get(*name) {
                _ if self.current.is_some() => break,
                Some(Value::String(value)) => {
                    if let Some(secret) = non_blank_secret(value)
                        && self.accept_unnamed(name, secret, endpoint_id.clone())
                    {
                        self.others.remove(*name);
                    }
                }
                Some(Value::Null) | None => {}
                Some(_) => self.faults.push(format!("{name} must be a string")),
            }
        }
        if self.is_signing_secret() {
            self.others.remove("endpoint_id");
            self.read_previous();
        }
    }

    fn read_previous(&mut self) {
        match self.others.remove("previous") {
            Some(Value::Array(entries)) => {
                for (at, entry) in entries.iter().enumerate() {
                    match parse_replaced_secret(entry) {
                        Some(entry) => self.previous.push(entry),
                        None => self.faults.push(format!(
                            "previous[{at}] must have a secret and valid_until (RFC 3339)"
                        )),
                    }
                }
            }
            Some(Value::Null) | None => {}
            Some(_) => self.faults.push("previous must be a list".to_owned()),
        }
    }

    /// Takes a value that has none of our member names as the current one, if its prefix fits. Returns whether it did.
    fn accept_unnamed(
        &mut self,
        place: &str,
        secret: SecretString,
        endpoint_id: Option<String>,
    ) -> bool {
        if let Some(misfit) = self.wanted.find_misfit_reason(secret.expose_secret()) {
            self.faults.push(format!("{place} {misfit}"));
            return false;
        }
        self.current = Some(EndpointSecret {
            endpoint_id,
            secret,
        });
        true
    }

    fn is_signing_secret(&self) -> bool {
        self.wanted != SecretKind::StripeKey
    }

    /// The secret of an endpoint, current or previous.
    pub fn find_secret(&self, endpoint_id: &str) -> Option<&SecretString> {
        self.current
            .iter()
            .chain(self.previous.iter().map(|previous| &previous.of))
            .find(|known| known.endpoint_id.as_deref() == Some(endpoint_id))
            .map(|known| &known.secret)
    }

    pub fn is_current(&self, endpoint_id: &str) -> bool {
        self.current
            .as_ref()
            .and_then(|current| current.endpoint_id.as_deref())
            == Some(endpoint_id)
    }

    /// Adds the version before (`AWSPREVIOUS`) to the previous secrets. If a person stored the current version with the
    /// AWS CLI, the replaced secret is only in `AWSPREVIOUS`, and our next write would push it out of there.
    #[must_use]
    pub fn with_previous_version(mut self, before: Self, valid_until: Timestamp) -> Self {
        let is_known = |of: &EndpointSecret| {
            let known = self.previous.iter().map(|previous| &previous.of);
            known
                .chain(&self.current)
                .any(|known| is_same_secret(known, of))
        };
        if let Some(of) = before.current.filter(|of| !is_known(of)) {
            self.previous.push(ReplacedSecret { of, valid_until });
        }
        self
    }

    /// Sets the endpoint of the current secret, if the document does not name one because a person stored it.
    #[must_use]
    pub fn with_endpoint_id(mut self, endpoint_id: Option<&str>) -> Self {
        if let Some(current) = &mut self.current
            && current.endpoint_id.is_none()
        {
            current.endpoint_id = endpoint_id.map(str::to_owned);
        }
        self
    }

    /// Sets one member, which may be one that billhook never reads.
    #[must_use]
    pub fn with_member(mut self, member: &str, value: &SecretString) -> Self {
        if member == self.wanted.member() {
            self.current = non_blank_secret(value.expose_secret()).map(|secret| EndpointSecret {
                endpoint_id: None,
                secret,
            });
        } else {
            let value = json!(value.expose_secret());
            self.others.insert(member.to_owned(), value);
        }
        self
    }

    /// Makes `new` current and moves the current secret to the previous ones.
    #[must_use]
    pub fn with_replacement(self, new: EndpointSecret, live: &[&str], now: Timestamp) -> Self {
        let next = Self {
            current: Some(new),
            ..self.clone()
        };
        self.prepare_successor(next, live, now)
    }

    /// Prepares `next` to be written over this document. The replaced secret stays valid for another 24 hours. Of the
    /// earlier ones, those stay that are still valid or whose endpoint still exists (`live`).
    ///
    /// Example: a rotation replaces `we_1` by `we_2`, a deployment stays half done for 25 hours, and then
    /// CloudFormation rolls back. `we_1` still exists, because CloudFormation deletes it only after a complete update.
    /// Its secret is no longer valid, but without it the rollback could not make `we_1` current again: Stripe never
    /// returns it.
    #[must_use]
    pub fn prepare_successor(self, next: Self, live: &[&str], now: Timestamp) -> Self {
        let replaced = self.current.map(|of| ReplacedSecret {
            of,
            valid_until: now.after(PREVIOUS_VALID_FOR),
        });
        let lives = |entry: &ReplacedSecret| {
            let id = entry.of.endpoint_id.as_deref();
            id.is_some_and(|id| live.contains(&id))
        };
        let is_next = |entry: &ReplacedSecret| {
            let next = next.current.as_ref();
            next.is_some_and(|next| is_same_secret(next, &entry.of))
        };
        let previous = replaced
            .into_iter()
            .chain(self.previous)
            .filter(|entry| entry.valid_until > now || lives(entry))
            .filter(|entry| !is_next(entry))
            .take(ENDPOINTS_MAX)
            .collect();
        Self { previous, ..next }
    }

    /// Without the previous secrets, to revoke a leaked one. Must be stored twice: after one write, `AWSPREVIOUS` still
    /// holds the leaked secret, and [`Self::with_previous_version`] would bring it back.
    #[must_use]
    pub fn without_replaced(mut self) -> Self {
        self.previous.clear();
        self
    }

    /// The wanted secret with its previous ones, and the document without them.
    pub fn split(self) -> (Self, Self) {
        let rest = Self {
            // Any kind without previous ones.
            wanted: SecretKind::StripeKey,
            others: self.others,
            ..Self::empty(self.wanted)
        };
        let taken = Self {
            wanted: self.wanted,
            current: self.current,
            previous: self.previous,
            faults: self.faults,
            others: Map::new(),
        };
        (taken, rest)
    }

    /// With the secrets of another document, and the other members as they are here.
    #[must_use]
    pub fn with_secrets_of(self, taken: Self) -> Self {
        Self {
            others: self.others,
            ..taken
        }
    }

    /// Whether the wanted secret or a previous one stands in it.
    pub fn has_secret(&self) -> bool {
        self.current.is_some() || !self.previous.is_empty()
    }

    pub fn encode(&self) -> SecretString {
        let mut members = self.others.clone();
        let current = self.current.as_ref();
        let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
        if let Some(current) = current {
            put(self.wanted.member(), json!(current.secret.expose_secret()));
        }
        if let Some(id) = current.and_then(|current| current.endpoint_id.as_deref()) {
            put("endpoint_id", json!(id));
        }
        if self.is_signing_secret() {
            let previous = self
                .previous
                .iter()
                .map(|ReplacedSecret { of, valid_until }| {
                    let mut entry =
                        json!({ "secret": of.secret.expose_secret(), "valid_until": valid_until });
                    if let (Some(id), Some(entry)) = (&of.endpoint_id, entry.as_object_mut()) {
                        entry.insert("endpoint_id".to_owned(), json!(id));
                    }
                    entry
                });
            put("previous", previous.collect());
        }
        Value::Object(members).to_string().into()
    }
}

fn is_same_secret(one: &EndpointSecret, other: &EndpointSecret) -> bool {
    one.secret.expose_secret() == other.secret.expose_secret()
}

fn parse_replaced_secret(entry: &Value) -> Option<ReplacedSecret> {
    let entry = entry.as_object()?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    Some(ReplacedSecret {
        of: EndpointSecret {
            endpoint_id: parse_endpoint_id(entry),
            secret: non_blank_secret(text("secret")?)?,
        },
        valid_until: Timestamp::parse(text("valid_until")?).ok()?,
    })
}

/// Only `we_…`: the id appears in logs as the secret's label. When any text was accepted, a signing secret that a
/// person pasted into this member by mistake was logged with every delivery.
fn parse_endpoint_id(members: &Map<String, Value>) -> Option<String> {
    let id = members.get("endpoint_id")?.as_str()?;
    id.starts_with("we_").then(|| id.to_owned())
}

/// Trimmed: no provider's secret has white space around it, but an editor adds a newline at the end.
fn non_blank_secret(value: &str) -> Option<SecretString> {
    let value = value.trim();
    (!value.is_empty()).then(|| SecretString::from(value))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::endpoint::secret::SecretKind::{LobSigning, StripeKey, StripeSigning};

    const APP: &str =
        r#"{"stripe_secret_key":"sk_test_1","lob_webhook_secret":" lob_1\n","lob_api_key":"x"}"#;

    fn value(document: &SecretDocument) -> Option<&str> {
        let current = document.current.as_ref();
        current.map(|current| current.secret.expose_secret())
    }

    #[rstest]
    #[case(
        StripeSigning,
        r#"{"endpoint_id":"we_1","signing_secret":"whsec_1"}"#,
        Ok(Some("whsec_1"))
    )]
    #[case(
        StripeSigning,
        r#"{"webhookSecret":"whsec_2","secretKey":"sk_test_1"}"#,
        Ok(Some("whsec_2"))
    )]
    #[case(StripeSigning, r#"{"secretKey":"whsec_3"}"#, Ok(Some("whsec_3")))]
    #[case(StripeSigning, " whsec_4\n", Ok(Some("whsec_4")))]
    #[case(StripeSigning, "", Ok(None))]
    #[case(StripeSigning, " \n", Ok(None))]
    #[case(StripeSigning, "{}", Ok(None))]
    #[case(StripeSigning, r#"{"signing_secret":""}"#, Ok(None))]
    #[case(StripeSigning, r#"{"signing_secret":null}"#, Ok(None))]
    #[case(
        StripeSigning,
        r#"{"signing_secret":5}"#,
        Err("signing_secret must be a string")
    )]
    #[case(
        StripeSigning,
        r#"{"signing_secret":"canary"#,
        Err("not valid JSON at line 1, column 25")
    )]
    #[case(
        StripeSigning,
        "sk_live_canary",
        Err("the bare text does not begin with whsec_, as Stripe's signing secrets do")
    )]
    #[case(
        StripeSigning,
        "set me",
        Err("the bare text does not begin with whsec_, as Stripe's signing secrets do")
    )]
    #[case(
        StripeSigning,
        r#"{"secretKey":"sk_test_1"}"#,
        Err("secretKey does not begin with whsec_, as Stripe's signing secrets do")
    )]
    #[case(LobSigning, APP, Ok(Some("lob_1")))]
    #[case(LobSigning, "lob_2", Ok(Some("lob_2")))]
    #[case(
        LobSigning,
        "whsec_canary",
        Err("the bare text begins like Stripe's secrets, so it is not Lob's")
    )]
    #[case(StripeKey, APP, Ok(Some("sk_test_1")))]
    #[case(StripeKey, r#"{"secretKey":"sk_test_2"}"#, Ok(Some("sk_test_2")))]
    #[case(StripeKey, "rk_test_3", Ok(Some("rk_test_3")))]
    #[case(
        StripeKey,
        "lob_canary",
        Err("the bare text does not begin with sk_ or rk_, as Stripe's keys do")
    )]
    fn every_shape_that_people_write_is_understood(
        #[case] wanted: SecretKind,
        #[case] text: &str,
        #[case] expected: Result<Option<&str>, &str>,
    ) {
        let document = SecretDocument::parse(text, wanted);
        let found = match document.faults.first() {
            Some(fault) => Err(fault.as_str()),
            None => Ok(value(&document)),
        };
        assert_eq!(found, expected);
        let shown = format!("{document:?}");
        assert!(
            !shown.contains("canary") && !shown.contains("sk_test"),
            "{shown}"
        );
    }

    #[test]
    fn a_secret_put_where_the_endpoints_id_belongs_is_not_shown() {
        let text = r#"{"endpoint_id":"whsec_canary","signing_secret":"whsec_canary","previous":[
            {"endpoint_id":"whsec_canary","secret":"whsec_old","valid_until":"2026-06-10T10:13:20Z"}]}"#;
        let shown = format!("{:?}", SecretDocument::parse(text, StripeSigning));
        assert!(!shown.contains("canary"), "{shown}");
    }

    #[test]
    fn a_previous_entry_that_cannot_be_read_spoils_nothing_else() {
        let text = r#"{"endpoint_id":"we_2","signing_secret":"whsec_new","previous":[
            {"endpoint_id":"we_1","secret":"whsec_old","valid_until":"2026-06-10T10:13:20Z"},
            {"secret":"whsec_canary","valid_until":"tomorrow"}]}"#;
        let document = SecretDocument::parse(text, StripeSigning);
        assert!(document.is_current("we_2") && value(&document) == Some("whsec_new"));
        assert_eq!(document.previous.len(), 1);
        assert_eq!(document.previous[0].valid_until, at(24));
        assert_eq!(
            document.faults,
            ["previous[1] must have a secret and valid_until (RFC 3339)"]
        );
    }

    fn new(id: &str) -> EndpointSecret {
        EndpointSecret {
            endpoint_id: Some(id.to_owned()),
            secret: format!("whsec_{id}").into(),
        }
    }

    fn at(hours: u64) -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000)
            .unwrap()
            .after(Duration::from_hours(hours))
    }

    fn first() -> SecretDocument {
        SecretDocument::empty(StripeSigning).with_replacement(new("we_1"), &[], at(0))
    }

    #[test]
    fn a_replaced_secret_is_kept_for_24_h_or_as_long_as_its_endpoint_lives() {
        let second = first().with_replacement(new("we_2"), &["we_1"], at(1));
        let stored: Value = serde_json::from_str(second.encode().expose_secret()).unwrap();
        assert_eq!(
            stored,
            json!({
                "endpoint_id": "we_2",
                "signing_secret": "whsec_we_2",
                "previous": [{"endpoint_id": "we_1", "secret": "whsec_we_1", "valid_until": at(25)}],
            })
        );
        let read = SecretDocument::parse(second.encode().expose_secret(), StripeSigning);
        assert!(read.is_current("we_2") && !read.is_current("we_1"));
        assert!(read.find_secret("we_1").is_some());

        let alive = read
            .clone()
            .with_replacement(new("we_3"), &["we_1"], at(100));
        assert!(alive.find_secret("we_1").is_some());
        let gone = read.with_replacement(new("we_3"), &[], at(100));
        assert!(gone.find_secret("we_1").is_none() && gone.find_secret("we_2").is_some());
    }

    #[test]
    fn putting_the_same_secret_again_makes_no_second_entry() {
        let again = first().with_replacement(new("we_1"), &[], at(1));
        assert_eq!(
            first().encode().expose_secret(),
            again.encode().expose_secret()
        );
    }

    #[rstest]
    #[case(r#"{"webhookSecret":"whsec_x"}"#, true)]
    #[case(r#"{"secretKey":" whsec_x\n"}"#, true)]
    #[case("whsec_x\n", true)]
    #[case("{}", false)]
    #[case(r#"{"signing_secret":""}"#, false)]
    #[case("set me", false)]
    #[case("", false)]
    fn a_secret_put_by_a_person_becomes_the_previous_one(#[case] stored: &str, #[case] kept: bool) {
        let document = SecretDocument::parse(stored, StripeSigning)
            .with_endpoint_id(Some("we_1"))
            .with_replacement(new("we_2"), &[], at(0));
        let found = document
            .find_secret("we_1")
            .map(ExposeSecret::expose_secret);
        assert_eq!(found, kept.then_some("whsec_x"));
        let printed = document.encode();
        assert_eq!(
            printed.expose_secret().matches("whsec_x").count(),
            usize::from(kept)
        );
    }

    /// The App secret through several changes: (Lob's secret, the previous ones, a Telnyx key) after each.
    #[test]
    fn a_change_of_another_key_of_the_same_json_drops_nothing() {
        let show = |document: &SecretDocument| {
            let previous = document.previous.iter();
            let previous: Vec<_> = previous
                .map(|p| p.of.secret.expose_secret().to_owned())
                .collect();
            let stored: Value = serde_json::from_str(document.encode().expose_secret()).unwrap();
            assert_eq!(stored["lob_api_key"], "x");
            (
                value(document).unwrap().to_owned(),
                previous.join(","),
                stored["telnyx_api_key"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            )
        };
        let texts =
            |one: &str, two: &str, three: &str| (one.to_owned(), two.to_owned(), three.to_owned());
        let put = |document: &SecretDocument, member: &str, value: &str, hours| {
            let next = document.clone().with_member(member, &value.into());
            document.clone().prepare_successor(next, &[], at(hours))
        };
        let second = put(
            &SecretDocument::parse(APP, LobSigning),
            "lob_webhook_secret",
            "lob_2",
            0,
        );
        assert_eq!(show(&second), texts("lob_2", "lob_1", ""));
        let telnyx = put(&second, "telnyx_api_key", "KEY1", 1);
        assert_eq!(show(&telnyx), texts("lob_2", "lob_1", "KEY1"));
        assert_eq!(telnyx.previous[0].valid_until, at(24));
        let corrected = put(&telnyx, "lob_webhook_secret", "lob_3", 2);
        assert_eq!(show(&corrected), texts("lob_3", "lob_2,lob_1", "KEY1"));
        let later = put(&corrected, "telnyx_api_key", "KEY2", 25);
        assert_eq!(show(&later), texts("lob_3", "lob_2", "KEY2"));
        // Rollback: the version before is stored as a new version, and what was current stays valid as previous.
        let back = corrected.clone().prepare_successor(telnyx, &[], at(3));
        assert_eq!(show(&back), texts("lob_2", "lob_3,lob_1", "KEY1"));
        assert_eq!(
            show(&corrected.without_replaced()),
            texts("lob_3", "", "KEY1")
        );
    }

    #[test]
    fn a_version_before_that_a_person_replaced_is_carried_on_once() {
        let by_hand = || SecretDocument::parse(r#"{"lob_webhook_secret":"lob_2"}"#, LobSigning);
        let before = || SecretDocument::parse("lob_1", LobSigning);
        let read = by_hand().with_previous_version(before(), at(24));
        assert_eq!(read.previous.len(), 1);
        assert_eq!(read.previous[0].of.secret.expose_secret(), "lob_1");
        assert_eq!(
            read.with_previous_version(before(), at(25)).previous.len(),
            1
        );
        assert!(
            by_hand()
                .with_previous_version(by_hand(), at(24))
                .previous
                .is_empty()
        );
    }
}
