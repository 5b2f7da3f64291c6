//! Calls to the few services that need no client of their own: one signed request, one text back.

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

/// A function may run for 15 minutes.
const TOTAL_MAX: Duration = Duration::from_secs(15 * 60 + 30);

/// Signs and sends.
#[derive(Debug)]
pub(crate) struct Caller {
    config: SdkConfig,
    /// `--endpoint-url`, which wins over the variables.
    endpoint: Option<String>,
    http: reqwest::Client,
}

/// A service by the name it signs with and the one its endpoint's variable has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    name: &'static str,
    variable: &'static str,
}

impl Service {
    const fn new(name: &'static str, variable: &'static str) -> Self {
        Self { name, variable }
    }
}

/// The stack.
pub(crate) const CLOUDFORMATION: Service =
    Service::new("cloudformation", "AWS_ENDPOINT_URL_CLOUDFORMATION");

/// The functions.
pub(crate) const LAMBDA: Service = Service::new("lambda", "AWS_ENDPOINT_URL_LAMBDA");

/// The functions' lines.
pub(crate) const LOGS: Service = Service::new("logs", "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS");

/// Alarms.
pub(crate) const CLOUDWATCH: Service = Service::new("monitoring", "AWS_ENDPOINT_URL_CLOUDWATCH");

/// Who hears of alarms.
pub(crate) const SNS: Service = Service::new("sns", "AWS_ENDPOINT_URL_SNS");

/// The API.
pub(crate) const APIGATEWAY: Service = Service::new("apigateway", "AWS_ENDPOINT_URL_API_GATEWAY");

/// The firewall.
pub(crate) const WAF: Service = Service::new("wafv2", "AWS_ENDPOINT_URL_WAFV2");

impl Caller {
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

    /// Gets the text of a success.
    pub(crate) async fn get(&self, service: Service, path: &str) -> Result<String> {
        // Without it API Gateway may answer in another JSON.
        let json = [("accept", "application/json")];
        self.call(Method::GET, service, path, &json, String::new())
            .await
    }

    /// Posts `body` and answers the text of a success.
    pub(crate) async fn post(
        &self,
        service: Service,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<String> {
        self.call(Method::POST, service, path, headers, body).await
    }

    /// Asks a service of the older kind, which takes a form and answers in XML.
    pub(crate) async fn query(
        &self,
        service: Service,
        version: &str,
        pairs: &[(&str, &str)],
    ) -> Result<String> {
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("Version", version)
            .extend_pairs(pairs)
            .finish();
        let form = [("content-type", "application/x-www-form-urlencoded")];
        self.post(service, "/", &form, body).await
    }

    async fn call(
        &self,
        method: Method,
        service: Service,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<String> {
        let name = service.name;
        let region = self.config.region().context(
            "no region is known: give --region, or set AWS_REGION or the profile's region",
        )?;
        let url = format!("{}{path}", self.base(service, region.as_ref()));
        let credentials = self
            .config
            .credentials_provider()
            .context("no credentials")?;
        let credentials = credentials
            .provide_credentials()
            .await
            .context("no credentials: log in (`aws sso login`), or give --profile")?;
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
        Err(anyhow!("{name} answered {status}: {}", said(&text)))
    }

    fn base(&self, service: Service, region: &str) -> String {
        let given = self.endpoint.clone();
        let given = given.or_else(|| read_process_variable(service.variable));
        match given.or_else(|| self.config.endpoint_url().map(str::to_owned)) {
            Some(base) => base.trim_end_matches('/').to_owned(),
            None => {
                let china = if region.starts_with("cn-") { ".cn" } else { "" };
                format!("https://{}.{region}.amazonaws.com{china}", service.name)
            }
        }
    }
}

/// The message of an error, in whichever of AWS's two forms.
fn said(text: &str) -> String {
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
    fn an_errors_message_is_found_in_either_form() {
        let xml = r#"<ErrorResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"><Error><Code>ValidationError</Code><Message>Stack with id x does not exist</Message></Error></ErrorResponse>"#;
        assert_eq!(said(xml), "Stack with id x does not exist");
        assert_eq!(said(r#"{"__type":"X","message":"denied"}"#), "denied");
        assert_eq!(said(r#"{"Message":"denied"}"#), "denied");
        assert_eq!(said("<html>"), "(no message)");
    }
}
