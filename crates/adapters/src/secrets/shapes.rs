//! What people write into a secret, and what is read out of it. Pure.

use billhook_core::time::Timestamp;
use secrecy::SecretString;
use serde_json::{Map, Value};

/// What is looked for in a secret's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The secret that signs Stripe's deliveries.
    StripeSigning,
    /// The secret that signs Lob's deliveries.
    LobSigning,
    /// The key to Stripe's API.
    StripeKey,
}

impl Wanted {
    /// Member names, ours first, then those of secrets that people bring along.
    fn members(self) -> &'static [&'static str] {
        match self {
            Self::StripeSigning => &["signing_secret", "webhookSecret", "secretKey"],
            Self::LobSigning => &["lob_webhook_secret", "webhookSecret"],
            Self::StripeKey => &["stripe_secret_key", "secretKey"],
        }
    }

    /// Several secrets may share one ARN, so a bare text must not pass for another's.
    fn fits_bare(self, text: &str) -> bool {
        let is_key = text.starts_with("sk_") || text.starts_with("rk_");
        match self {
            Self::StripeSigning => !is_key,
            Self::LobSigning => !is_key && !text.starts_with("whsec_"),
            Self::StripeKey => is_key,
        }
    }
}

/// What a secret's text says.
#[derive(Debug, Default)]
pub struct Contents {
    /// The value looked for; `None` while it is not set (absent, empty, blank).
    pub current: Option<SecretString>,
    /// Stripe's id of the endpoint that `current` signs for, where our writers put it.
    pub endpoint_id: Option<String>,
    /// Signing secrets that were replaced. Past `valid_until` they verify nothing.
    pub previous: Vec<Replaced>,
    /// What cannot be understood, without values. The rest counts nevertheless.
    pub faults: Vec<String>,
}

/// A signing secret that was replaced.
#[derive(Debug)]
pub struct Replaced {
    /// Stripe's id of its endpoint.
    pub endpoint_id: Option<String>,
    /// Its value.
    pub secret: SecretString,
    /// Until when it proves a delivery.
    pub valid_until: Timestamp,
}

/// Reads the documented shapes: our JSON, `{"secretKey"}`, `{"webhookSecret"}`, a bare text. Blank and `{}` are what
/// Secrets Manager makes of a secret that nobody has set.
pub fn parse(text: &str, wanted: Wanted) -> Contents {
    let text = text.trim();
    let mut contents = Contents::default();
    if text.starts_with('{') {
        match serde_json::from_str::<Map<String, Value>>(text) {
            Ok(object) => contents.read_object(&object, wanted),
            // The parser's own message might repeat what it met.
            Err(error) => contents.faults.push(format!(
                "no valid JSON at line {}, column {}",
                error.line(),
                error.column()
            )),
        }
    } else if wanted.fits_bare(text) {
        contents.current = set(text);
    } else if !text.is_empty() {
        contents
            .faults
            .push(format!("a bare text that cannot be {wanted:?}"));
    }
    contents
}

impl Contents {
    fn read_object(&mut self, object: &Map<String, Value>, wanted: Wanted) {
        for name in wanted.members() {
            match object.get(*name) {
                _ if self.current.is_some() => break,
                Some(Value::String(value)) => self.current = set(value),
                Some(Value::Null) | None => {}
                Some(_) => self.faults.push(format!("{name} must be a string")),
            }
        }
        if wanted == Wanted::StripeKey {
            return;
        }
        self.endpoint_id = string(object, "endpoint_id");
        match object.get("previous") {
            Some(Value::Array(entries)) => {
                for (at, entry) in entries.iter().enumerate() {
                    match replaced(entry) {
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
}

fn replaced(entry: &Value) -> Option<Replaced> {
    let entry = entry.as_object()?;
    Some(Replaced {
        endpoint_id: string(entry, "endpoint_id"),
        secret: set(entry.get("secret")?.as_str()?)?,
        valid_until: Timestamp::parse(entry.get("valid_until")?.as_str()?).ok()?,
    })
}

fn string(object: &Map<String, Value>, name: &str) -> Option<String> {
    object.get(name)?.as_str().map(str::to_owned)
}

/// No provider's secret has white space around it; an editor's newline does.
fn set(value: &str) -> Option<SecretString> {
    let value = value.trim();
    (!value.is_empty()).then(|| SecretString::from(value))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000 + seconds).unwrap()
    }

    fn exposed(secret: Option<&SecretString>) -> Option<&str> {
        secret.map(ExposeSecret::expose_secret)
    }

    #[test]
    fn every_shape_that_people_write_is_understood() {
        use Wanted::{LobSigning, StripeKey, StripeSigning};
        let app = r#"{"stripe_secret_key":"sk_test_1","lob_webhook_secret":" lob_1\n","lob_api_key":"x"}"#;
        let table = [
            (
                StripeSigning,
                r#"{"endpoint_id":"we_1","signing_secret":"whsec_1"}"#,
                Ok(Some("whsec_1")),
            ),
            (
                StripeSigning,
                r#"{"webhookSecret":"whsec_2","secretKey":"sk_test_1"}"#,
                Ok(Some("whsec_2")),
            ),
            (
                StripeSigning,
                r#"{"secretKey":"whsec_3"}"#,
                Ok(Some("whsec_3")),
            ),
            (StripeSigning, " whsec_4\n", Ok(Some("whsec_4"))),
            (StripeSigning, "", Ok(None)),
            (StripeSigning, " \n", Ok(None)),
            (StripeSigning, "{}", Ok(None)),
            (StripeSigning, r#"{"signing_secret":""}"#, Ok(None)),
            (StripeSigning, r#"{"signing_secret":null}"#, Ok(None)),
            (
                StripeSigning,
                r#"{"signing_secret":5}"#,
                Err("signing_secret must be a string"),
            ),
            (
                StripeSigning,
                r#"{"signing_secret":"canary"#,
                Err("no valid JSON at line 1, column 25"),
            ),
            (
                StripeSigning,
                "sk_live_canary",
                Err("a bare text that cannot be StripeSigning"),
            ),
            (LobSigning, app, Ok(Some("lob_1"))),
            (LobSigning, "lob_2", Ok(Some("lob_2"))),
            (
                LobSigning,
                "whsec_canary",
                Err("a bare text that cannot be LobSigning"),
            ),
            (StripeKey, app, Ok(Some("sk_test_1"))),
            (
                StripeKey,
                r#"{"secretKey":"sk_test_2"}"#,
                Ok(Some("sk_test_2")),
            ),
            (StripeKey, "rk_test_3", Ok(Some("rk_test_3"))),
            (
                StripeKey,
                "lob_canary",
                Err("a bare text that cannot be StripeKey"),
            ),
        ];
        for (wanted, text, expected) in table {
            let contents = parse(text, wanted);
            let found = match contents.faults.first() {
                Some(fault) => Err(fault.as_str()),
                None => Ok(exposed(contents.current.as_ref())),
            };
            assert_eq!(found, expected, "{wanted:?} {text}");
        }
    }

    #[test]
    fn a_previous_entry_that_cannot_be_read_spoils_nothing_else() {
        let text = r#"{"endpoint_id":"we_2","signing_secret":"whsec_new","previous":[
            {"endpoint_id":"we_1","secret":"whsec_old","valid_until":"2026-06-10T10:13:20Z"},
            {"secret":"whsec_canary","valid_until":"tomorrow"}]}"#;
        let contents = parse(text, Wanted::StripeSigning);
        assert_eq!(exposed(contents.current.as_ref()), Some("whsec_new"));
        assert_eq!(contents.endpoint_id.as_deref(), Some("we_2"));
        assert_eq!(contents.previous.len(), 1);
        assert_eq!(contents.previous[0].valid_until, at(86_400));
        assert_eq!(
            contents.faults,
            ["previous[1] must have a secret and valid_until (RFC 3339)"]
        );
        assert!(!format!("{contents:?}").contains("whsec"));
    }
}
