//! Drift detection: compares the stack's webhook endpoints with what Stripe has, because anybody with access to
//! Stripe's dashboard can disable, redirect or delete them without a trace in AWS.

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{SecretLocation, SecretSource};
use billhook_adapters::secrets::{load_document, read_stripe_key};
use billhook_adapters::stripe::{StripeClient, WebhookEndpoint};
use billhook_core::endpoint::plan::EndpointTags;
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::ports::Clock as _;
use billhook_core::provider::stripe::event_types::HANDLED_TYPES;
use secrecy::SecretString;

use crate::session::StackSession;

/// The stack output with the endpoint's id, and the output with the ARN of the secret that signs its deliveries.
pub(crate) const STACK_ENDPOINTS: [(&str, &str); 2] = [
    ("StripeWebhookEndpointState", "StripeWebhookSecretArn"),
    (
        "StripePlatformWebhookEndpointState",
        "StripePlatformWebhookSecretArn",
    ),
];

#[derive(Debug)]
pub(crate) struct EndpointStatus {
    pub(crate) output: &'static str,
    /// `we_…`, or the stack's text about what is left to do if the endpoint was not created.
    pub(crate) id: String,
    /// Each difference from the stack; empty if there is none.
    pub(crate) drift: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct EndpointComparison {
    pub(crate) endpoints: Vec<EndpointStatus>,
    /// Ids of other endpoints with this stack's tag, such as one that a failed deployment left behind.
    pub(crate) strays: Vec<String>,
}

pub(crate) async fn compare_endpoints(session: &StackSession) -> Result<EndpointComparison> {
    let stack = &session.stack;
    let live = list_stripe_endpoints(session).await?;
    let url = stack.output("WebhookUrlStripe")?;
    let mut endpoints = Vec::new();
    for (output, secret) in STACK_ENDPOINTS {
        // The parameter StripeEndpoints may ask for only one of them.
        let Ok(id) = stack.output(output) else {
            continue;
        };
        let endpoint = live.iter().find(|endpoint| endpoint.id == id);
        let mut drift = match endpoint {
            Some(endpoint) => find_drift(endpoint, url, stack.parameter("StripeApiVersion")),
            None if id.starts_with("we_") => vec!["it was deleted at Stripe".to_owned()],
            None => vec!["it was not created yet".to_owned()],
        };
        let arn = stack.output(secret)?;
        let now = SystemClock.now();
        let document = load_document(&session.secrets, arn, SecretKind::StripeSigning, now).await?;
        let signed_by = document.current.and_then(|current| current.endpoint_id);
        if endpoint.is_some() && signed_by.as_ref().is_some_and(|signed_by| signed_by != id) {
            drift.push("the current secret does not belong to it".to_owned());
        }
        endpoints.push(EndpointStatus {
            output,
            id: id.to_owned(),
            drift,
        });
    }
    let strays = live.iter().filter(|endpoint| {
        let tags = EndpointTags::from_metadata(&endpoint.metadata);
        tags.is_some_and(|tags| is_same_stack(&tags.stack, &stack.id))
            && endpoints.iter().all(|status| status.id != endpoint.id)
    });
    let strays = strays.map(|endpoint| endpoint.id.clone()).collect();
    Ok(EndpointComparison { endpoints, strays })
}

async fn list_stripe_endpoints(session: &StackSession) -> Result<Vec<WebhookEndpoint>> {
    let stripe = open_stripe(session).await?;
    Ok(stripe.list_webhook_endpoints().await?)
}

/// The stack's key for Stripe; none if nobody has stored one.
pub(crate) async fn read_key(session: &StackSession) -> Result<Option<SecretString>> {
    let stack = &session.stack;
    let source = SecretSource {
        variable: "AppSecretArn".to_owned(),
        location: SecretLocation::Arn(stack.output("AppSecretArn")?.to_owned()),
    };
    Ok(read_stripe_key(&session.secrets, &source, stack.is_live()).await?)
}

/// Stripe's API with the stack's key.
pub(crate) async fn open_stripe(session: &StackSession) -> Result<StripeClient> {
    let stack = &session.stack;
    let key = read_key(session).await?.context(
        "the App secret has no stripe_secret_key: put it with `billhook secrets put stripe-key`",
    )?;
    let base = stack.parameter("StripeApiBase");
    Ok(StripeClient::new(base, key, stack.is_live())?)
}

/// Whether two ARNs, as `arn:aws:cloudformation:eu-west-1:111122223333:stack/billhook-prod/…`, are of one stack: of the
/// same account, region and name, also after it was deleted and made again.
fn is_same_stack(arn: &str, other: &str) -> bool {
    let named = |arn: &str| arn.rsplit_once('/').map(|(named, _)| named.to_owned());
    named(arn).is_some() && named(arn) == named(other)
}

fn find_drift(endpoint: &WebhookEndpoint, url: &str, api_version: &str) -> Vec<String> {
    let mut drift = Vec::new();
    if endpoint.status != "enabled" {
        drift.push(format!("it is {}", endpoint.status));
    }
    if endpoint.url != url {
        drift.push(format!("it sends to {}", endpoint.url));
    }
    if endpoint.api_version.as_deref() != Some(api_version) {
        let found = endpoint.api_version.as_deref();
        drift.push(format!(
            "it sends API version {}",
            found.unwrap_or("(account default)")
        ));
    }
    let sends = |wanted: &&str| endpoint.enabled_events.iter().any(|sent| sent == wanted);
    let missing: Vec<&str> = HANDLED_TYPES
        .iter()
        .copied()
        .filter(|wanted| !sends(wanted))
        .collect();
    if !missing.is_empty() && !sends(&"*") {
        drift.push(format!(
            "it does not send {}, which this version of billhook handles: deploy this version",
            missing.join(", ")
        ));
    }
    drift
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> WebhookEndpoint {
        WebhookEndpoint {
            id: "we_1".to_owned(),
            url: "https://hooks".to_owned(),
            status: "enabled".to_owned(),
            api_version: Some("v1".to_owned()),
            enabled_events: HANDLED_TYPES
                .iter()
                .map(|name| (*name).to_owned())
                .collect(),
            metadata: Default::default(),
        }
    }

    #[test]
    fn each_drift_of_an_endpoint_is_reported() {
        let drift =
            |endpoint: &WebhookEndpoint| find_drift(endpoint, "https://hooks", "v1").join("; ");
        assert_eq!(drift(&endpoint()), "");
        let all = WebhookEndpoint {
            enabled_events: vec!["*".to_owned()],
            ..endpoint()
        };
        assert_eq!(drift(&all), "");
        let other = WebhookEndpoint {
            status: "disabled".to_owned(),
            url: "https://old".to_owned(),
            api_version: None,
            enabled_events: endpoint().enabled_events[1..].to_vec(),
            ..endpoint()
        };
        assert_eq!(
            drift(&other),
            format!(
                "it is disabled; it sends to https://old; it sends API version (account default); it does not send {}, which this version of billhook handles: deploy this version",
                HANDLED_TYPES[0]
            )
        );
    }

    #[test]
    fn a_stack_is_identified_by_account_region_and_name() {
        let arn = "arn:aws:cloudformation:eu-west-1:111122223333:stack/billhook-prod/0a";
        let is = |other: &str| is_same_stack(arn, other);
        assert!(is(&arn.replace("/0a", "/0b")), "made again");
        for (from, to) in [
            ("eu-west-1", "eu-west-2"),
            ("1111", "2222"),
            ("-prod", "-dev"),
        ] {
            assert!(!is(&arn.replace(from, to)), "{to}");
        }
        assert!(!is(""));
    }
}
