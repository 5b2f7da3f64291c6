//! Signed requests (Signature Version 4) to AWS services of which this tool needs one or two calls.
//!
//! Each SDK client makes the binary larger and its build longer; CloudFormation, Lambda, CloudWatch, SNS, API Gateway,
//! WAF and KMS are asked for so little that a signed HTTP request is enough.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::read_process_variable;
use billhook_core::ports::Clock as _;
use reqwest::Method;

/// A synchronous invocation answers when the function ends, and Lambda lets a function run for 15 minutes.
const TOTAL_MAX: Duration = Duration::from_secs(15 * 60 + 30);

#[derive(Debug)]
pub(crate) struct SignedAwsClient {
    config: SdkConfig,
    /// `--endpoint-url`. It wins over the variables, as in the AWS CLI.
    endpoint: Option<String>,
    http: reqwest::Client,
}

/// A service: the name in the signature and in the host, and the variable that overrides its endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AwsService {
    name: &'static str,
    variable: &'static str,
}

impl AwsService {
    const fn new(name: &'static str, variable: &'static str) -> Self {
        Self { name, variable }
    }
}

pub(crate) const CLOUDFORMATION: AwsService =
    AwsService::new("cloudformation", "AWS_ENDPOINT_URL_CLOUDFORMATION");

pub(crate) const LAMBDA: AwsService = AwsService::new("lambda", "AWS_ENDPOINT_URL_LAMBDA");

pub(crate) const LOGS: AwsService = AwsService::new("logs", "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS");

pub(crate) const CLOUDWATCH: AwsService =
    AwsService::new("monitoring", "AWS_ENDPOINT_URL_CLOUDWATCH");

pub(crate) const SNS: AwsService = AwsService::new("sns", "AWS_ENDPOINT_URL_SNS");

pub(crate) const APIGATEWAY: AwsService =
    AwsService::new("apigateway", "AWS_ENDPOINT_URL_API_GATEWAY");

pub(crate) const WAF: AwsService = AwsService::new("wafv2", "AWS_ENDPOINT_URL_WAFV2");

pub(crate) const KMS: AwsService = AwsService::new("kms", "AWS_ENDPOINT_URL_KMS");

impl SignedAwsClient {
    pub(crate) fn new(config: SdkConfig, endpoint: Option<String>) -> Result<Self> {
        billhook_adapters::stripe::install_tls();
        let http = reqwest::Client::builder()
            .timeout(TOTAL_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            config,
            endpoint,
            http,
        })
    }

    pub(crate) async fn get_text(&self, service: AwsService, path: &str) -> Result<String> {
        // Without this header API Gateway answers in HAL, another JSON with other names.
        let json = [("accept", "application/json")];
        self.send_signed(Method::GET, service, path, &json, String::new())
            .await
    }

    pub(crate) async fn post_text(
        &self,
        service: AwsService,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<String> {
        self.send_signed(Method::POST, service, path, headers, body)
            .await
    }

    /// Calls a service of AWS's query protocol, which takes a form and answers in XML.
    pub(crate) async fn query_xml(
        &self,
        service: AwsService,
        version: &str,
        pairs: &[(&str, &str)],
    ) -> Result<String> {
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("Version", version)
            .extend_pairs(pairs)
            .finish();
        let form = [("content-type", "application/x-www-form-urlencoded")];
        self.post_text(service, "/", &form, body).await
    }

    async fn send_signed(
        &self,
        method: Method,
        service: AwsService,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<String> {
        let name = service.name;
        let region = self.config.region().context(
            "the AWS region is not set: pass --region, or set AWS_REGION or the region of the profile",
        )?;
        let url = format!("{}{path}", self.base_url(service, region.as_ref()));
        let credentials = self
            .config
            .credentials_provider()
            .context("AWS credentials are not set: run `aws sso login`, or pass --profile")?;
        let credentials = credentials
            .provide_credentials()
            .await
            .context("cannot get AWS credentials: run `aws sso login`, or pass --profile")?;
        let identity = credentials.into();
        let now = SystemClock.now().unix_ms();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(region.as_ref())
            .name(name)
            .time(UNIX_EPOCH + Duration::from_millis(u64::try_from(now)?))
            .settings(SigningSettings::default())
            .build()?
            .into();
        let signable = SignableRequest::new(
            method.as_str(),
            &url,
            headers.iter().copied(),
            SignableBody::Bytes(body.as_bytes()),
        )?;
        let (instructions, _) = sign(signable, &parameters)?.into_parts();
        let mut request = self.http.request(method.clone(), &url);
        for (header, value) in headers.iter().copied().chain(instructions.headers()) {
            request = request.header(header, value);
        }
        let answer = request
            .body(body)
            .send()
            .await
            .with_context(|| format!("{name} did not answer"))?;
        let status = answer.status();
        let text = answer.text().await?;
        if status.is_success() {
            return Ok(text);
        }
        Err(anyhow!(
            "{name} answered {status}: {}",
            extract_error_message(&text)
        ))
    }

    fn base_url(&self, service: AwsService, region: &str) -> String {
        let given = self.endpoint.clone();
        let given = given.or_else(|| read_process_variable(service.variable));
        match given.or_else(|| self.config.endpoint_url().map(str::to_owned)) {
            Some(base) => base.trim_end_matches('/').to_owned(),
            None => {
                let fips = self.config.use_fips().unwrap_or_default();
                let dual_stack = self.config.use_dual_stack().unwrap_or_default();
                format!(
                    "https://{}",
                    host_of(service.name, region, fips, dual_stack)
                )
            }
        }
    }
}

/// Services whose hosts in `GovCloud` are FIPS endpoints under their plain name.
const PLAIN_FIPS_IN_GOVCLOUD: [&str; 4] = ["cloudformation", "logs", "monitoring", "sns"];

/// The host of a service, as AWS's SDKs choose it.
/// Source: the endpoint rule sets of botocore 1.43.106.
fn host_of(service: &str, region: &str, fips: bool, dual_stack: bool) -> String {
    let is_china = region.starts_with("cn-");
    let suffix = match (dual_stack, is_china) {
        (false, false) => "amazonaws.com",
        (false, true) => "amazonaws.com.cn",
        (true, false) => "api.aws",
        (true, true) => "api.amazonwebservices.com.cn",
    };
    let is_plain = region.starts_with("us-gov-")
        && PLAIN_FIPS_IN_GOVCLOUD.contains(&service)
        && (!dual_stack || service == "monitoring");
    let fips = if fips && !is_plain { "-fips" } else { "" };
    format!("{service}{fips}.{region}.{suffix}")
}

/// Services of the query protocol report errors in XML, the others in JSON with `message` or `Message`.
fn extract_error_message(text: &str) -> String {
    if let Ok(document) = roxmltree::Document::parse(text) {
        let message = document
            .descendants()
            .find(|node| node.tag_name().name() == "Message");
        if let Some(message) = message.and_then(|node| node.text()) {
            return message.to_owned();
        }
    }
    let json: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let message = json.as_ref().and_then(|json| {
        ["message", "Message"]
            .iter()
            .find_map(|name| json.get(name)?.as_str())
    });
    message.unwrap_or("(no message)").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_of_the_sdks() {
        for (service, region, fips, dual_stack, host) in [
            (
                "lambda",
                "eu-west-1",
                false,
                false,
                "lambda.eu-west-1.amazonaws.com",
            ),
            (
                "lambda",
                "eu-west-1",
                true,
                false,
                "lambda-fips.eu-west-1.amazonaws.com",
            ),
            ("wafv2", "eu-west-1", false, true, "wafv2.eu-west-1.api.aws"),
            ("kms", "eu-west-1", true, true, "kms-fips.eu-west-1.api.aws"),
            (
                "sns",
                "us-gov-west-1",
                true,
                false,
                "sns.us-gov-west-1.amazonaws.com",
            ),
            (
                "sns",
                "us-gov-west-1",
                true,
                true,
                "sns-fips.us-gov-west-1.api.aws",
            ),
            (
                "monitoring",
                "us-gov-west-1",
                true,
                true,
                "monitoring.us-gov-west-1.api.aws",
            ),
            (
                "apigateway",
                "us-gov-west-1",
                true,
                false,
                "apigateway-fips.us-gov-west-1.amazonaws.com",
            ),
            (
                "logs",
                "cn-north-1",
                true,
                false,
                "logs-fips.cn-north-1.amazonaws.com.cn",
            ),
            (
                "logs",
                "cn-north-1",
                false,
                true,
                "logs.cn-north-1.api.amazonwebservices.com.cn",
            ),
        ] {
            assert_eq!(host_of(service, region, fips, dual_stack), host);
        }
    }

    #[test]
    fn error_messages_are_extracted_from_xml_and_json() {
        let xml = r#"<ErrorResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"><Error><Code>ValidationError</Code><Message>Stack with id x does not exist</Message></Error></ErrorResponse>"#;
        assert_eq!(extract_error_message(xml), "Stack with id x does not exist");
        assert_eq!(
            extract_error_message(r#"{"__type":"X","message":"denied"}"#),
            "denied"
        );
        assert_eq!(extract_error_message(r#"{"Message":"denied"}"#), "denied");
        assert_eq!(extract_error_message("<html>"), "(no message)");
    }
}
