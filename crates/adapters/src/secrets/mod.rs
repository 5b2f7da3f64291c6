//! Secrets: reading, caching, changing, revoking and rolling back (secret rotation).
//!
//! Guarantees: no error, log line or `Debug` contains a value; a secret that is not set differs from one that cannot be
//! read; while Secrets Manager is unreachable, the values read last are used for up to 15 minutes, and no longer.
//! `store` reads and writes a secret, `parameter` reads one from the Parameter Store, `cache` is the cache of the
//! signing secrets, `seal` that of the keys that seal stored events, `write` changes a secret. `billhook_core::endpoint::secret` decides what a secret's text means, and
//! `billhook_core::provider::signature` whether it proves a delivery (HMAC). `docs/rotation.md` is for operators.

mod cache;
mod parameter;
mod seal;
mod store;
mod write;

use billhook_core::endpoint::secret::{SecretDocument, SecretKind};
use secrecy::{ExposeSecret, SecretString};

pub use self::cache::SigningKeyCache;
pub use self::seal::{EventSealerCache, SealKeyCache, SealKeyRequest, SealSecrets, make_seal_keys};
use self::store::read_document;
pub use self::store::{
    FetchSecret, PutSecret, SecretVersion, SecretsError, SecretsManager, StoredSecret,
};
pub use self::write::{
    SecretMove, change_members, load_document, move_secret, revoke_replaced, roll_back_secret,
};
use crate::config::{SecretLocation, SecretSource};

/// The key of Stripe's API; `None` if it is not set. It is not cached: its users run every few minutes at most, and a
/// replaced key works at once. A key of the other mode is an error: a live key in a test environment could cancel real
/// payments.
pub async fn read_stripe_key(
    fetch: &impl FetchSecret,
    source: &SecretSource,
    live: bool,
) -> Result<Option<SecretString>, SecretsError> {
    let (name, document) = match &source.location {
        SecretLocation::Here(value) => (
            source.variable.as_str(),
            SecretDocument::parse(value.expose_secret(), SecretKind::StripeKey),
        ),
        SecretLocation::Arn(arn) => (
            arn.as_str(),
            read_document(fetch, arn, SecretKind::StripeKey, SecretVersion::Current)
                .await?
                .0,
        ),
    };
    let unusable = |fault: String| SecretsError::Unusable {
        name: name.to_owned(),
        fault,
    };
    if let Some(fault) = document.faults.into_iter().next() {
        return Err(unusable(fault));
    }
    let is_live = |key: &SecretString| key.expose_secret().contains("_live_");
    match document.current.map(|current| current.secret) {
        Some(key) if is_live(&key) != live => Err(unusable(format!(
            "the Stripe key is {}a live one, refused because LIVE_MODE={live}",
            if live { "not " } else { "" }
        ))),
        key => Ok(key),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::aws::AwsClients;
    use crate::config::EnvLookup;

    /// An AWS that answers one call; also returns the request.
    async fn asked(
        name: &str,
        status: &'static str,
        answer: &'static str,
    ) -> (Result<Option<StoredSecret>, SecretsError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(&stream);
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let from = head.len();
                lines.read_line(&mut head).unwrap();
                if let Some(value) = head[from..].strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            lines.read_exact(&mut body).unwrap();
            let length = answer.len();
            write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{answer}"
            )
            .unwrap();
            head + &String::from_utf8(body).unwrap()
        });
        let aws = AwsClients::from_env(&EnvLookup(&|name| {
            Some(match name {
                "AWS_ENDPOINT_URL" => url.clone(),
                "AWS_REGION" => "eu-central-1".to_owned(),
                "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => "test".to_owned(),
                _ => return None,
            })
        }));
        let manager = SecretsManager::new(&aws.unwrap());
        let fetched = manager.fetch(name, SecretVersion::Current).await;
        (fetched, served.join().unwrap())
    }

    #[tokio::test]
    async fn a_secure_string_of_the_parameter_store_is_read_decrypted() {
        let answer = r#"{"Parameter":{"Type":"SecureString","Value":"whsec_ssm"}}"#;
        let (stored, asked) = asked("ssm:/billhook/stripe", "200 OK", answer).await;
        let text = stored.unwrap().unwrap().text;
        assert_eq!(text.expose_secret(), "whsec_ssm");
        for part in [
            "x-amz-target: AmazonSSM.GetParameter",
            "/eu-central-1/ssm/aws4_request",
            r#""Name":"/billhook/stripe""#,
            r#""WithDecryption":true"#,
        ] {
            assert!(asked.contains(part), "{asked}");
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_told_apart_from_what_cannot_be_read_or_used() {
        let none = [
            ("ssm:/x", r#"{"__type":"ParameterNotFound"}"#),
            ("arn:x", r#"{"__type":"ResourceNotFoundException"}"#),
        ];
        for (name, answer) in none {
            let (stored, _) = asked(name, "400 Bad Request", answer).await;
            assert!(stored.unwrap().is_none(), "{name}");
        }
        let denied = r#"{"__type":"AccessDeniedException","message":"not authorized"}"#;
        for name in ["ssm:/x", "arn:x"] {
            let (stored, _) = asked(name, "400 Bad Request", denied).await;
            let told = stored.unwrap_err().to_string();
            assert!(told.starts_with(&format!("cannot read {name}: ")), "{told}");
        }
        for answer in ["{}", r#"{"Parameter":{"Value":["canary"]}}"#] {
            let (stored, _) = asked("ssm:/x", "200 OK", answer).await;
            let told = stored.unwrap_err().to_string();
            let no_value = told.contains("the answer has no Parameter with a Value");
            assert!(no_value && !told.contains("canary"), "{told}");
        }
        let binary = r#"{"SecretBinary":"Y2FuYXJ5"}"#;
        let (stored, _) = asked("arn:x", "200 OK", binary).await;
        let told = stored.unwrap_err().to_string();
        assert_eq!(
            told,
            "arn:x: the value is binary; store it as text (--secret-string)"
        );
    }
}
