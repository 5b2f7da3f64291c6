//! What stands in a secret: the shapes that people and billhook write, what is read out of them, and what is written
//! where a value is replaced, rolled back or revoked.
//!
//! Pure. A value appears in no fault and no `Debug`. Ingress and `webhook-secret` read the same document here.

use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use crate::endpoint::plan::ENDPOINTS_MAX;
use crate::time::Timestamp;

/// How long a replaced secret still proves deliveries: Stripe's own limit for a rolled secret.
pub const PREVIOUS_VALID_FOR: Duration = Duration::from_hours(24);

/// What is looked for in a secret's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// The secret that signs Stripe's deliveries.
    StripeSigning,
    /// The secret that signs Lob's deliveries.
    LobSigning,
    /// The key to Stripe's API.
    StripeKey,
}

impl SecretKind {
    /// Our name of the member.
    pub fn member(self) -> &'static str {
        match self {
            Self::StripeSigning => "signing_secret",
            Self::LobSigning => "lob_webhook_secret",
            Self::StripeKey => "stripe_secret_key",
        }
    }

    /// Names in secrets that people bring along.
    fn foreign_member_names(self) -> &'static [&'static str] {
        match self {
            Self::StripeSigning => &["webhookSecret", "secretKey"],
            Self::LobSigning => &["webhookSecret"],
            Self::StripeKey => &["secretKey"],
        }
    }

    /// Why a value without a name of ours cannot be the one looked for: several secrets may share one ARN, and a
    /// placeholder must not become a key that anybody can guess.
    fn misfit(self, value: &str) -> Option<&'static str> {
        let is_key = value.starts_with("sk_") || value.starts_with("rk_");
        let is_stripes = value.starts_with("whsec_");
        match self {
            Self::StripeSigning => (!is_stripes)
                .then_some("does not begin with whsec_, as Stripe's signing secrets do"),
            Self::LobSigning => {
                (is_key || is_stripes).then_some("begins as Stripe's secrets do and is not Lob's")
            }
            Self::StripeKey => {
                (!is_key).then_some("does not begin with sk_ or rk_, as Stripe's keys do")
            }
        }
    }
}

/// A value, and the endpoint at Stripe that signs with it.
#[derive(Clone, Debug)]
pub struct EndpointSecret {
    /// Unknown where a person put the secret; Lob and keys have none.
    pub endpoint_id: Option<String>,
    /// The value.
    pub secret: SecretString,
}

/// A signing secret that was replaced. Past `valid_until` it proves nothing; what is left of it then serves a rollback.
#[derive(Clone, Debug)]
pub struct ReplacedSecret {
    /// What was replaced.
    pub of: EndpointSecret,
    /// Until when it proves a delivery.
    pub valid_until: Timestamp,
}

/// A secret's text, understood.
#[derive(Clone)]
pub struct SecretDocument {
    wanted: SecretKind,
    /// The value looked for; `None` while it is not set (absent, empty, blank).
    pub current: Option<EndpointSecret>,
    /// Signing secrets that were replaced.
    pub previous: Vec<ReplacedSecret>,
    /// What cannot be understood, without values. The rest counts nevertheless.
    pub faults: Vec<String>,
    /// The other members of the same JSON, which are carried on as they are.
    others: Map<String, Value>,
}

impl fmt::Debug for SecretDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("current", &self.current)
            .field("previous", &self.previous)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl SecretDocument {
    /// Nothing is set.
    pub fn empty(wanted: SecretKind) -> Self {
        Self {
            wanted,
            current: None,
            previous: Vec::new(),
            faults: Vec::new(),
            others: Map::new(),
        }
    }

    /// Reads the documented shapes: our JSON, `{"secretKey"}`, `{"webhookSecret"}`, a bare text. Blank and `{}` are
    /// what Secrets Manager makes of a secret that nobody has set.
    pub fn parse(text: &str, wanted: SecretKind) -> Self {
        let text = text.trim();
        let mut document = Self::empty(wanted);
        if text.starts_with('{') {
            match serde_json::from_str(text) {
                Ok(members) => document.read_members(members),
                // The parser's own message might repeat what it met.
                Err(error) => document.faults.push(format!(
                    "no valid JSON at line {}, column {}",
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

    /// A value that stands under no name of ours; whether it can be the one looked for.
    fn accept_unnamed(
        &mut self,
        place: &str,
        secret: SecretString,
        endpoint_id: Option<String>,
    ) -> bool {
        if let Some(misfit) = self.wanted.misfit(secret.expose_secret()) {
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

    /// The secret known for an endpoint, current or previous.
    pub fn find_secret(&self, endpoint_id: &str) -> Option<&SecretString> {
        self.current
            .iter()
            .chain(self.previous.iter().map(|previous| &previous.of))
            .find(|known| known.endpoint_id.as_deref() == Some(endpoint_id))
            .map(|known| &known.secret)
    }

    /// Whether this endpoint's secret is the current one.
    pub fn is_current(&self, endpoint_id: &str) -> bool {
        self.current
            .as_ref()
            .and_then(|current| current.endpoint_id.as_deref())
            == Some(endpoint_id)
    }

    /// With the version before (`AWSPREVIOUS`) among the previous ones: where a person put the current one, it stands
    /// nowhere else, and the next version would push it out.
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

    /// With the endpoint of the current secret named, where the document does not.
    #[must_use]
    pub fn with_endpoint_id(mut self, endpoint_id: Option<&str>) -> Self {
        if let Some(current) = &mut self.current
            && current.endpoint_id.is_none()
        {
            current.endpoint_id = endpoint_id.map(str::to_owned);
        }
        self
    }

    /// With one member of another value.
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

    /// With `new` as current, else the same.
    #[must_use]
    pub fn with_replacement(self, new: EndpointSecret, live: &[&str], now: Timestamp) -> Self {
        let next = Self {
            current: Some(new),
            ..self.clone()
        };
        self.prepare_successor(next, live, now)
    }

    /// `next` as it is to be written over this one: the replaced secret proves deliveries for another 24 h; of the
    /// earlier ones those stay that still do or whose endpoint still lives (for a rollback).
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

    /// Without anything that was replaced. Put twice, so that it is its own version before, it refuses a leaked secret
    /// once every cache has read it.
    #[must_use]
    pub fn without_replaced(mut self) -> Self {
        self.previous.clear();
        self
    }

    /// As stored.
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

/// It is shown in logs, so that what is no id (a secret put into the wrong member) is not taken for one.
fn parse_endpoint_id(members: &Map<String, Value>) -> Option<String> {
    let id = members.get("endpoint_id")?.as_str()?;
    id.starts_with("we_").then(|| id.to_owned())
}

/// No provider's secret has white space around it; an editor's newline does.
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
        Err("no valid JSON at line 1, column 25")
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
        Err("the bare text begins as Stripe's secrets do and is not Lob's")
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

    /// The App secret through changes: (lob's secret, the previous ones, a telnyx key) after each.
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
        // The way back: the version before as a new version, and what was current is no less known.
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
