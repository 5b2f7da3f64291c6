//! Where secrets lie: Secrets Manager, and read only the Parameter Store.

use std::future::Future;

use aws_sdk_secretsmanager::error::ProvideErrorMetadata as _;
use billhook_core::endpoint::secret::{SecretDocument, SecretKind};
use billhook_core::error::error_chain;
use billhook_core::retry::Disposition;
use billhook_core::time::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use super::parameter::GetParameter;
use crate::aws::AwsClients;

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

/// A version of a secret, understood, and when it was put. One that is not there is an empty document.
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

/// Writes a secret.
pub trait PutSecret: Send + Sync {
    /// Makes `value` the current text. The one before becomes `AWSPREVIOUS`.
    fn put(
        &self,
        arn: &str,
        value: &SecretString,
    ) -> impl Future<Output = Result<(), SecretsError>> + Send;
}
