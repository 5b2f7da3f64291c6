//! Sends signed deliveries to a webhook as the provider does.

use std::time::Duration;

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::provider::sign_test_delivery;
use billhook_core::provider::signature::SigningKey;
use serde_json::Value;

use crate::stack::DeployedStack;

pub(crate) fn read_webhook_url(stack: &DeployedStack, provider: ProviderId) -> Result<&str> {
    stack.output(&format!("WebhookUrl{}", provider.title()))
}

#[derive(Debug)]
pub(crate) struct DeliveryResponse {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Posts a body that is signed with the first secret that proves it: the current one of the endpoint that gets such events.
pub(crate) async fn post_signed_event(
    provider: ProviderId,
    url: &str,
    keys: &[SigningKey],
    body: String,
) -> Result<DeliveryResponse> {
    let event: Value = serde_json::from_str(&body)?;
    let has_account = event
        .get("account")
        .is_some_and(|account| !account.is_null());
    let key = keys.iter().find(|key| key.scope.includes(has_account));
    let secret = &key
        .context(match has_account {
            true => "the stack has no signing secret for events of connected accounts",
            false => "the stack has no signing secret for events of the platform's own account",
        })?
        .secret;
    billhook_adapters::stripe::install_tls();
    let mut request = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .build()?
        .post(url);
    let signed = sign_test_delivery(provider, secret, body.as_bytes(), SystemClock.now());
    for (name, value) in signed.with_context(|| format!("only {provider} itself can sign"))? {
        request = request.header(name, value);
    }
    let answer = request
        .body(body)
        .send()
        .await
        .with_context(|| format!("{url} did not answer"))?;
    let status = answer.status().as_u16();
    let body = answer.text().await?;
    Ok(DeliveryResponse { status, body })
}
