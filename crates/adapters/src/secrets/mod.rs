//! Secrets: where they lie, and the cache that the signature check reads.
//!
//! Guarantees: a value appears in no error, log line or `Debug`; a secret that is not set is told apart from one that
//! cannot be read; while Secrets Manager is out of reach the last values serve for 15 minutes, and no longer.
//! `cache` keeps the signing secrets, `write` changes, revokes and rolls back, `parameter` asks the Parameter Store. What
//! a secret's text means is decided in `billhook_core::secret`, whether it proves a delivery in
//! `billhook_core::signature`.

mod cache;
mod parameter;
mod write;

use std::future::Future;

use aws_sdk_secretsmanager::error::ProvideErrorMetadata as _;
use billhook_core::retry::{Disposition, error_chain};
use billhook_core::secret::{SecretDocument, SecretKind};
use billhook_core::time::Timestamp;
use secrecy::{ExposeSecret, SecretString};

pub use self::cache::SigningKeyCache;
use self::parameter::GetParameter;
pub use self::write::{
    PutSecret, change_members, load_document, revoke_replaced, roll_back_secret,
};
use crate::aws::AwsClients;
use crate::config::{SecretLocation, SecretSource};

/// Before the path of a parameter, where the others have an ARN.
const PARAMETER: &str = "ssm:";

/// Which of a secret's two labelled versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretVersion {
    /// `AWSCURRENT`.
    Current,
    /// `AWSPREVIOUS`: what was current before.
    Previous,
}

/// A version of a secret.
#[derive(Clone, Debug)]
pub struct StoredSecret {
    /// The whole text, as it was put.
    pub text: SecretString,
    /// When this version was put.
    pub created_at: Option<Timestamp>,
}

/// Reads a secret; `None` where it has no such version, or does not exist.
pub trait FetchSecret: Send + Sync {
    /// The text of a version.
    fn fetch(
        &self,
        arn: &str,
        version: SecretVersion,
    ) -> impl Future<Output = Result<Option<StoredSecret>, SecretsError>> + Send;
}

/// Why a secret could not be read or written. Names the secret, never its value.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Secrets Manager refused or did not answer.
    #[error("cannot read {arn}: {cause}")]
    Read {
        /// The secret.
        arn: String,
        /// As text, because the SDK's error would show the answer's body.
        cause: String,
    },
    /// The same, while writing.
    #[error("cannot write {arn}: {cause}")]
    Write {
        /// The secret.
        arn: String,
        /// As text.
        cause: String,
    },
    /// The secret's text cannot be used.
    #[error("{name}: {fault}")]
    Unusable {
        /// The secret's ARN, or the variable that holds it.
        name: String,
        /// What is wrong.
        fault: String,
    },
}

impl SecretsError {
    /// What is left to do. Reading or writing the same once more is harmless.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Read { .. } | Self::Write { .. } => Disposition::RetryLater,
            Self::Unusable { .. } => Disposition::Permanent,
        }
    }
}

/// AWS Secrets Manager; for a name `ssm:/path` the Parameter Store, from which people migrate: read only, and without a
/// version before.
#[derive(Clone, Debug)]
pub struct SecretsManager {
    aws: AwsClients,
}

impl SecretsManager {
    /// Over the clients of `aws`.
    pub fn new(aws: &AwsClients) -> Self {
        Self { aws: aws.clone() }
    }
}

impl PutSecret for SecretsManager {
    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), SecretsError> {
        if arn.starts_with(PARAMETER) {
            return Err(SecretsError::Unusable {
                name: arn.to_owned(),
                fault: "a parameter is only read: move the value to Secrets Manager".to_owned(),
            });
        }
        let call = self.aws.secrets_manager().put_secret_value().secret_id(arn);
        match call.secret_string(value.expose_secret()).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(SecretsError::Write {
                arn: arn.to_owned(),
                cause: error_chain(&error),
            }),
        }
    }
}

impl FetchSecret for SecretsManager {
    async fn fetch(
        &self,
        arn: &str,
        version: SecretVersion,
    ) -> Result<Option<StoredSecret>, SecretsError> {
        let call = match (arn.strip_prefix(PARAMETER), version) {
            (Some(_), SecretVersion::Previous) => return Ok(None),
            (Some(path), SecretVersion::Current) => {
                let path = path.to_owned();
                self.aws.ssm(GetParameter { path }).get_secret_value()
            }
            (None, _) => {
                let call = self.aws.secrets_manager().get_secret_value().secret_id(arn);
                call.version_stage(match version {
                    SecretVersion::Current => "AWSCURRENT",
                    SecretVersion::Previous => "AWSPREVIOUS",
                })
            }
        };
        match call.send().await {
            Ok(answer) => {
                let created_ms = answer.created_date().and_then(|at| at.to_millis().ok());
                let text = answer.secret_string.ok_or_else(|| SecretsError::Unusable {
                    name: arn.to_owned(),
                    fault: "a binary value; put it as text (--secret-string)".to_owned(),
                })?;
                Ok(Some(StoredSecret {
                    text: SecretString::from(text),
                    created_at: created_ms.and_then(|ms| Timestamp::from_unix_ms(ms).ok()),
                }))
            }
            Err(error) => match error.code() {
                Some("ResourceNotFoundException" | "ParameterNotFound") => Ok(None),
                _ => Err(SecretsError::Read {
                    arn: arn.to_owned(),
                    cause: error_chain(&error),
                }),
            },
        }
    }
}

/// The key to Stripe's API, read anew each time (its users run seldom); `None` while it is not set. A key of the other
/// mode is refused.
pub async fn read_stripe_key(
    fetch: &impl FetchSecret,
    source: &SecretSource,
    live: bool,
) -> Result<Option<SecretString>, SecretsError> {
    let (name, document) = match &source.at {
        SecretLocation::Here(value) => (
            source.variable,
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

/// A version of a secret, understood, and when it was put. One that is not there is an empty document.
async fn read_document(
    fetch: &impl FetchSecret,
    arn: &str,
    wanted: SecretKind,
    version: SecretVersion,
) -> Result<(SecretDocument, Option<Timestamp>), SecretsError> {
    let stored = fetch.fetch(arn, version).await?;
    let created_at = stored.as_ref().and_then(|stored| stored.created_at);
    let text = stored.map(|stored| stored.text).unwrap_or_default();
    Ok((
        SecretDocument::parse(text.expose_secret(), wanted),
        created_at,
    ))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::config::EnvLookup;

    /// An AWS that answers one call; what it was asked.
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
            "arn:x: a binary value; put it as text (--secret-string)"
        );
    }
}
