//! The stack's endpoints at Stripe, and whether somebody changed them there.

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{SecretLocation, SecretSource};
use billhook_adapters::secrets::{load_document, read_stripe_key};
use billhook_adapters::stripe::{StripeClient, WebhookEndpoint};
use billhook_core::endpoint::plan::EndpointTags;
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::ports::Clock as _;
use billhook_core::provider::stripe::types::HANDLED_TYPES;

use crate::session::Session;

/// An endpoint by the output that names it, and the secret that its deliveries are signed with.
pub(crate) const ENDPOINTS: [(&str, &str); 2] = [
    ("StripeWebhookEndpointState", "StripeWebhookSecretArn"),
    (
        "StripePlatformWebhookEndpointState",
        "StripePlatformWebhookSecretArn",
    ),
];

/// What stands at Stripe in place of one endpoint of the stack.
pub(crate) struct Seen {
    /// The output that names it.
    pub(crate) output: &'static str,
    /// `we_…`, or what the stack says is left to do to make it.
    pub(crate) id: String,
    /// What is not as the stack has it; empty if all is well.
    pub(crate) drift: Vec<String>,
}

/// The stack's endpoints as they are at Stripe, and the ids of others that carry this stack's tag.
pub(crate) async fn seen(session: &Session) -> Result<(Vec<Seen>, Vec<String>)> {
    let stack = &session.stack;
    let live = list(session).await?;
    let url = stack.output("WebhookUrlStripe")?;
    let mut seen = Vec::new();
    for (output, secret) in ENDPOINTS {
        // The parameter StripeEndpoints may want only one.
        let Ok(id) = stack.output(output) else {
            continue;
        };
        let endpoint = live.iter().find(|endpoint| endpoint.id == id);
        let mut drift = match endpoint {
            Some(endpoint) => drift(endpoint, url, stack.parameter("StripeApiVersion")),
            None if id.starts_with("we_") => vec!["it is gone from Stripe".to_owned()],
            None => vec!["it was not made yet".to_owned()],
        };
        let arn = stack.output(secret)?;
        let now = SystemClock.now();
        let document = load_document(&session.secrets, arn, SecretKind::StripeSigning, now).await?;
        let signed_by = document.current.and_then(|current| current.endpoint_id);
        if endpoint.is_some() && signed_by.as_ref().is_some_and(|signed_by| signed_by != id) {
            drift.push("its deliveries are not signed with the secret that is current".to_owned());
        }
        seen.push(Seen {
            output,
            id: id.to_owned(),
            drift,
        });
    }
    let strays = live.iter().filter(|endpoint| {
        let tags = EndpointTags::from_metadata(&endpoint.metadata);
        tags.is_some_and(|tags| is_of(&tags.stack, &stack.id))
            && seen.iter().all(|seen| seen.id != endpoint.id)
    });
    let strays = strays.map(|endpoint| endpoint.id.clone()).collect();
    Ok((seen, strays))
}

async fn list(session: &Session) -> Result<Vec<WebhookEndpoint>> {
    let stack = &session.stack;
    let source = SecretSource {
        variable: "AppSecretArn",
        at: SecretLocation::Arn(stack.output("AppSecretArn")?.to_owned()),
    };
    let key = read_stripe_key(&session.secrets, &source, stack.is_live()).await?;
    let key = key.context("the App secret holds no stripe_secret_key")?;
    let stripe = StripeClient::new(stack.parameter("StripeApiBase"), key, stack.is_live())?;
    Ok(stripe.list_webhook_endpoints().await?)
}

/// Whether two ARNs, as `arn:aws:cloudformation:eu-west-1:111122223333:stack/billhook-prod/…`, are of one stack: of the
/// same account, region and name, also after it was deleted and made again.
fn is_of(arn: &str, other: &str) -> bool {
    let named = |arn: &str| arn.rsplit_once('/').map(|(named, _)| named.to_owned());
    named(arn).is_some() && named(arn) == named(other)
}

fn drift(endpoint: &WebhookEndpoint, url: &str, api_version: &str) -> Vec<String> {
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
            "it sends version {}",
            found.unwrap_or("of the account")
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
            "it does not send {}, which this tool's release handles: deploy that release",
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
    fn each_difference_is_named() {
        let told = |endpoint: &WebhookEndpoint| drift(endpoint, "https://hooks", "v1").join("; ");
        assert_eq!(told(&endpoint()), "");
        let all = WebhookEndpoint {
            enabled_events: vec!["*".to_owned()],
            ..endpoint()
        };
        assert_eq!(told(&all), "");
        let other = WebhookEndpoint {
            status: "disabled".to_owned(),
            url: "https://old".to_owned(),
            api_version: None,
            enabled_events: endpoint().enabled_events[1..].to_vec(),
            ..endpoint()
        };
        assert_eq!(
            told(&other),
            format!(
                "it is disabled; it sends to https://old; it sends version of the account; it does not send {}, which this tool's release handles: deploy that release",
                HANDLED_TYPES[0]
            )
        );
    }

    #[test]
    fn a_stack_is_known_by_account_region_and_name() {
        let arn = "arn:aws:cloudformation:eu-west-1:111122223333:stack/billhook-prod/0a";
        let is = |other: &str| is_of(arn, other);
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
