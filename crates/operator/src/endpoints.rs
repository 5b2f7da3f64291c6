//! The stack's endpoints at Stripe, and whether somebody changed them there.

use anyhow::{Context as _, Result};
use billhook_adapters::config::{SecretAt, SecretSource};
use billhook_adapters::secrets::stripe_key;
use billhook_adapters::stripe::{Endpoint, Stripe};
use billhook_core::endpoint::Tags;
use billhook_core::event::stripe_types::HANDLED_TYPES;

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
    for (output, _) in ENDPOINTS {
        // The parameter StripeEndpoints may want only one.
        let Ok(id) = stack.output(output) else {
            continue;
        };
        let endpoint = live.iter().find(|endpoint| endpoint.id == id);
        let drift = match endpoint {
            Some(endpoint) => drift(endpoint, url, stack.parameter("StripeApiVersion")),
            None if id.starts_with("we_") => vec!["it is gone from Stripe".to_owned()],
            None => vec!["it was not made yet".to_owned()],
        };
        seen.push(Seen {
            output,
            id: id.to_owned(),
            drift,
        });
    }
    let strays = live.iter().filter(|endpoint| {
        let tags = Tags::read(&endpoint.metadata);
        tags.is_some_and(|tags| is_of(&tags.stack, &stack.name))
            && seen.iter().all(|seen| seen.id != endpoint.id)
    });
    let strays = strays.map(|endpoint| endpoint.id.clone()).collect();
    Ok((seen, strays))
}

async fn list(session: &Session) -> Result<Vec<Endpoint>> {
    let stack = &session.stack;
    let source = SecretSource {
        variable: "AppSecretArn",
        at: SecretAt::Arn(stack.output("AppSecretArn")?.to_owned()),
    };
    let key = stripe_key(&session.secrets, &source, stack.is_live()).await?;
    let key = key.context("the App secret holds no stripe_secret_key")?;
    let stripe = Stripe::new(stack.parameter("StripeApiBase"), key, stack.is_live())?;
    Ok(stripe.list_webhook_endpoints().await?)
}

/// `arn:aws:cloudformation:eu-west-1:111122223333:stack/billhook-prod/…`
fn is_of(arn: &str, name: &str) -> bool {
    arn.split('/').nth(1) == Some(name)
}

fn drift(endpoint: &Endpoint, url: &str, api_version: &str) -> Vec<String> {
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
        drift.push(format!("it does not send {}", missing.join(", ")));
    }
    drift
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint {
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
        let told = |endpoint: &Endpoint| drift(endpoint, "https://hooks", "v1").join("; ");
        assert_eq!(told(&endpoint()), "");
        let all = Endpoint {
            enabled_events: vec!["*".to_owned()],
            ..endpoint()
        };
        assert_eq!(told(&all), "");
        let other = Endpoint {
            status: "disabled".to_owned(),
            url: "https://old".to_owned(),
            api_version: None,
            enabled_events: endpoint().enabled_events[1..].to_vec(),
            ..endpoint()
        };
        assert_eq!(
            told(&other),
            format!(
                "it is disabled; it sends to https://old; it sends version of the account; it does not send {}",
                HANDLED_TYPES[0]
            )
        );
    }

    #[test]
    fn a_stack_is_known_by_its_whole_name() {
        let arn = "arn:aws:cloudformation:eu-west-1:111122223333:stack/billhook-prod/0a";
        assert!(is_of(arn, "billhook-prod"));
        assert!(!is_of(arn, "billhook"));
    }
}
