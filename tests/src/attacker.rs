//! Somebody with a role of their own in the AWS account: an attack has that role's rights, and no others.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use billhook_adapters::aws::AwsClients;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::EnvLookup;
use billhook_core::ports::Clock as _;
use billhook_testkit::local::REGION;
use form_urlencoded::Serializer;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::World;

/// Clients with the rights of the role, and what they sign with; the emulator checks the signature.
pub struct Attacker {
    pub aws: AwsClients,
    credentials: Credentials,
    endpoint: String,
}

impl Attacker {
    /// Invokes a function; returns the status and the answer.
    pub async fn invoke(&self, function: &str, input: &Value) -> Result<(u16, Value)> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let (status, answer) = self.post("lambda", &path, &[], &input.to_string()).await?;
        Ok((status, serde_json::from_str(&answer).unwrap_or_default()))
    }

    /// Calls CloudWatch Logs; returns the status and the answer.
    pub async fn call_logs(&self, operation: &str, input: &Value) -> Result<(u16, String)> {
        let target = format!("Logs_20140328.{operation}");
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", &*target),
        ];
        self.post("logs", "/", &headers, &input.to_string()).await
    }

    async fn post(
        &self,
        service: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<(u16, String)> {
        let url = format!("{}{path}", self.endpoint);
        let now = u64::try_from(SystemClock.now().unix_s())?;
        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name(service)
            .time(UNIX_EPOCH + Duration::from_secs(now))
            .settings(SigningSettings::default())
            .build()?
            .into();
        let signable = SignableBody::Bytes(body.as_bytes());
        let signable = SignableRequest::new("POST", &url, headers.iter().copied(), signable)?;
        let (signed, _) = sign(signable, &parameters)?.into_parts();
        let mut request = reqwest::Client::new().post(&url);
        for (header, value) in headers.iter().copied().chain(signed.headers()) {
            request = request.header(header, value);
        }
        let answer = request.body(body.to_owned()).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }
}

impl World {
    /// An attacker with the rights of a new role that these statements allow. `tests/tools/emulator.py` knows the role by its
    /// prefix, and leaves its requests out of what the functions and the tool do.
    pub async fn attacker(&self, name: &str, statements: &[Value]) -> Result<Attacker> {
        let (key, secret, token) = self.make_role(name, statements).await?;
        let endpoint = self.endpoint().to_owned();
        let lookup = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some(key.clone()),
            "AWS_SECRET_ACCESS_KEY" => Some(secret.clone()),
            "AWS_SESSION_TOKEN" => Some(token.clone()),
            "AWS_REGION" => Some(REGION.to_owned()),
            "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
            _ => None,
        };
        let aws = AwsClients::from_env(&EnvLookup(&lookup))?;
        Ok(Attacker {
            aws,
            credentials: Credentials::new(key, secret, Some(token), None, "attacker"),
            endpoint,
        })
    }

    /// The access key, its secret and the token of the role's session.
    async fn make_role(
        &self,
        name: &str,
        statements: &[Value],
    ) -> Result<(String, String, String)> {
        let role = format!("attacker-{}-{name}", self.stack.name);
        let trust = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": { "AWS": "*" } }] });
        let policy = json!({ "Version": "2012-10-17", "Statement": statements });
        let (trust, policy) = (trust.to_string(), policy.to_string());
        let made = [
            ("Action", "CreateRole"),
            ("Version", "2010-05-08"),
            ("RoleName", &role),
            ("AssumeRolePolicyDocument", &trust),
        ];
        self.query("iam", &made).await?;
        let put = [
            ("Action", "PutRolePolicy"),
            ("Version", "2010-05-08"),
            ("RoleName", &role),
            ("PolicyName", "attacker"),
            ("PolicyDocument", &policy),
        ];
        self.query("iam", &put).await?;
        let arn = format!("arn:aws:iam::000000000000:role/{role}");
        let assume = [
            ("Action", "AssumeRole"),
            ("Version", "2011-06-15"),
            ("RoleArn", &*arn),
            ("RoleSessionName", "attack"),
        ];
        let answer = self.query("sts", &assume).await?;
        let member = |tag: &str| -> Result<String> {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            let text = answer.split(&*open).nth(1);
            let text = text.and_then(|rest| rest.split(&*close).next());
            Ok(text
                .with_context(|| format!("no {tag}: {answer}"))?
                .to_owned())
        };
        Ok((
            member("AccessKeyId")?,
            member("SecretAccessKey")?,
            member("SessionToken")?,
        ))
    }

    /// A call of a service with the Query protocol; returns the XML.
    async fn query(&self, service: &str, pairs: &[(&str, &str)]) -> Result<String> {
        let body = Serializer::new(String::new()).extend_pairs(pairs).finish();
        let request = self.call(Method::POST, service, "/");
        let request = request.header("Content-Type", "application/x-www-form-urlencoded");
        let answer = request.body(body).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        anyhow::ensure!(status.is_success(), "{service}: {status}: {text}");
        Ok(text)
    }
}
