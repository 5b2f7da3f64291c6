//! Somebody with a role of their own in the AWS account: an attack has that role's rights, and no others.

use anyhow::{Context as _, Result};
use billhook_adapters::aws::AwsClients;
use billhook_adapters::config::EnvLookup;
use billhook_testkit::local::REGION;
use form_urlencoded::Serializer;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::World;

impl World {
    /// Clients with the rights of a new role that these statements allow. `tests/tools/emulator.py` knows the role by its
    /// prefix, and leaves its requests out of what the functions and the tool do.
    pub async fn attacker(&self, name: &str, statements: &[Value]) -> Result<AwsClients> {
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
        let (key, secret, token) = (
            member("AccessKeyId")?,
            member("SecretAccessKey")?,
            member("SessionToken")?,
        );
        let endpoint = self.endpoint().to_owned();
        let lookup = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some(key.clone()),
            "AWS_SECRET_ACCESS_KEY" => Some(secret.clone()),
            "AWS_SESSION_TOKEN" => Some(token.clone()),
            "AWS_REGION" => Some(REGION.to_owned()),
            "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
            _ => None,
        };
        Ok(AwsClients::from_env(&EnvLookup(&lookup))?)
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
