//! Sends signed deliveries to a webhook as the provider does: HMAC-SHA-256 over timestamp, dot and body.

use std::time::Duration;

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

use crate::stack::DeployedStack;

pub(crate) fn read_webhook_url(stack: &DeployedStack, provider: ProviderId) -> Result<&str> {
    stack.output(match provider {
        ProviderId::Stripe => "WebhookUrlStripe",
        ProviderId::Lob => "WebhookUrlLob",
    })
}

#[derive(Debug)]
pub(crate) struct DeliveryResponse {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Posts a body that is signed with the first secret, the current one.
pub(crate) async fn post_signed_event(
    provider: ProviderId,
    url: &str,
    secrets: &[SecretString],
    body: String,
) -> Result<DeliveryResponse> {
    let secret = secrets
        .first()
        .context("the stack has no signing secret yet")?;
    billhook_adapters::stripe::install_tls();
    let mut request = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .build()?
        .post(url);
    for (name, value) in sign_headers(provider, secret, body.as_bytes(), SystemClock.now()) {
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

pub(crate) fn sign_headers(
    provider: ProviderId,
    secret: &SecretString,
    body: &[u8],
    now: Timestamp,
) -> Vec<(&'static str, String)> {
    match provider {
        ProviderId::Stripe => {
            let at = now.unix_s().to_string();
            let signature = compute_signature(secret, &at, body);
            vec![("Stripe-Signature", format!("t={at},v1={signature}"))]
        }
        ProviderId::Lob => {
            let at = now.unix_ms().to_string();
            let signature = compute_signature(secret, &at, body);
            vec![
                ("Lob-Signature", signature),
                ("Lob-Signature-Timestamp", at),
            ]
        }
    }
}

fn compute_signature(secret: &SecretString, timestamp: &str, body: &[u8]) -> String {
    // Cannot fail: HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()) else {
        return String::new();
    };
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    HEXLOWER.encode(&mac.finalize().into_bytes())
}
