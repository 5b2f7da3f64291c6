//! Reads and writes single secrets: Secrets Manager, and for `ssm:/path` the Parameter Store (read only).
//!
//! An error names the secret and never its value. A secret that does not exist is `None`, not an error, because a stack
//! is deployed before its secrets are stored. `cache` and `write` use this through the traits `FetchSecret` and
//! `PutSecret`.

use std::future::Future;

use aws_sdk_secretsmanager::error::ProvideErrorMetadata as _;
use billhook_core::endpoint::secret::{SecretDocument, SecretKind};
use billhook_core::error::error_chain;
use billhook_core::retry::Disposition;
use billhook_core::time::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use super::parameter::GetParameter;
use crate::aws::AwsClients;

/// Prefix of a parameter's path; all other names are ARNs.
const PARAMETER: &str = "ssm:";

/// The two versions of a secret that Secrets Manager labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretVersion {
    /// `AWSCURRENT`.
    Current,
    /// `AWSPREVIOUS`: the version that was current before.
    Previous,
}

#[derive(Clone, Debug)]
pub struct StoredSecret {
    /// The whole text, as it was stored.
    pub text: SecretString,
    /// When this version was stored; `None` for a parameter.
    pub created_at: Option<Timestamp>,
}

pub trait FetchSecret: Send + Sync {
    /// `None` if the secret does not exist or has no such version.
    fn fetch(
        &self,
        arn: &str,
        version: SecretVersion,
    ) -> impl Future<Output = Result<Option<StoredSecret>, SecretsError>> + Send;
}

/// Names the secret, never its value.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Secrets Manager refused the call or did not answer.
    #[error("cannot read {arn}: {cause}")]
    Read {
        arn: String,
        /// As text, because the `Debug` of the SDK's error contains the body of the answer.
        cause: String,
    },
    #[error("cannot write {arn}: {cause}")]
    Write { arn: String, cause: String },
    /// The secret's text cannot be used.
    #[error("{name}: {fault}")]
    Unusable {
        /// The secret's ARN, or the variable that holds it.
        name: String,
        fault: String,
    },
}

impl SecretsError {
    /// A repeated read or write is harmless.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Read { .. } | Self::Write { .. } => Disposition::RetryLater,
            Self::Unusable { .. } => Disposition::Permanent,
        }
    }
}

/// AWS Secrets Manager; for a name `ssm:/path` the Parameter Store, which older installations use. Parameters are read
/// only and have no previous version.
#[derive(Clone, Debug)]
pub struct SecretsManager {
    aws: AwsClients,
}

impl SecretsManager {
    pub fn new(aws: &AwsClients) -> Self {
        Self { aws: aws.clone() }
    }
}

impl PutSecret for SecretsManager {
    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), SecretsError> {
        if arn.starts_with(PARAMETER) {
            return Err(SecretsError::Unusable {
                name: arn.to_owned(),
                fault: "billhook only reads parameters; move the value to Secrets Manager"
                    .to_owned(),
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
                    fault: "the value is binary; store it as text (--secret-string)".to_owned(),
                })?;
                Ok(Some(StoredSecret {
                    text: SecretString::from(text),
                    created_at: created_ms.and_then(|ms| Timestamp::from_unix_ms(ms).ok()),
                }))
            }
            Err(error) => match error.code() {
                // The secret itself is gone, or its name is wrong: that is no secret without a value. Only the text tells them
                // apart: it is that of moto and ministack, which repeat AWS's; AWS documents the code alone.
                Some("ResourceNotFoundException")
                    if error
                        .message()
                        .is_some_and(|text| text.ends_with("the specified secret.")) =>
                {
                    Err(SecretsError::Read {
                        arn: arn.to_owned(),
                        cause: error_chain(&error),
                    })
                }
                Some("ResourceNotFoundException" | "ParameterNotFound") => Ok(None),
                _ => Err(SecretsError::Read {
                    arn: arn.to_owned(),
                    cause: error_chain(&error),
                }),
            },
        }
    }
}

/// Reads and parses a version of a secret; also returns when it was stored. A missing version is an empty document.
pub(super) async fn read_document(
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

pub trait PutSecret: Send + Sync {
    /// Stores `value` as the current version; the version before becomes `AWSPREVIOUS`.
    fn put(
        &self,
        arn: &str,
        value: &SecretString,
    ) -> impl Future<Output = Result<(), SecretsError>> + Send;
}
