//! Webhook delivery as Stripe does it: to every endpoint that subscribes to the event, signed with that endpoint's
//! secret and a new timestamp on every attempt, until a 2xx answer or the end of the retry schedule. A redirect is a
//! failure and is not followed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;

use super::state::Target;
use crate::sign::sign_stripe;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    /// The body.
    pub event: Value,
    /// Sets `account`, which makes it an event of this connected account.
    #[serde(default)]
    pub account: Option<String>,
    /// How many copies each endpoint gets, all at the same time.
    #[serde(default = "one")]
    pub copies: u32,
    /// If set, only this endpoint gets the event.
    #[serde(default)]
    pub endpoint: Option<String>,
}

fn one() -> u32 {
    1
}

impl Delivery {
    /// One copy to every endpoint that subscribes to it.
    pub fn of(event: Value) -> Self {
        Self {
            event,
            account: None,
            copies: 1,
            endpoint: None,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One per endpoint and copy; empty if no endpoint subscribes to the event.
    pub deliveries: Vec<Delivered>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Delivered {
    pub endpoint: String,
    /// True if an attempt was answered 2xx.
    pub delivered: bool,
    /// In their order.
    pub attempts: Vec<Attempt>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    /// The HTTP status; `None` without an answer.
    pub status: Option<u16>,
    /// The answer's body, or the reason why there is none.
    pub body: String,
}

pub(super) async fn deliver(
    http: &reqwest::Client,
    targets: Vec<Target>,
    body: String,
    copies: u32,
    delays: &[Duration],
) -> Report {
    let mut sending = JoinSet::new();
    for target in targets {
        for _ in 0..copies {
            let (http, target, body, delays) =
                (http.clone(), target.clone(), body.clone(), delays.to_vec());
            sending.spawn(async move { until_taken(&http, &target, &body, &delays).await });
        }
    }
    Report {
        deliveries: sending.join_all().await,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a server lives in real time, as Stripe does"
)]
async fn until_taken(
    http: &reqwest::Client,
    target: &Target,
    body: &str,
    delays: &[Duration],
) -> Delivered {
    let mut attempts = vec![post(http, target, body).await];
    for delay in delays {
        if attempts.last().is_some_and(Attempt::was_taken) {
            break;
        }
        tokio::time::sleep(*delay).await;
        attempts.push(post(http, target, body).await);
    }
    Delivered {
        endpoint: target.id.clone(),
        delivered: attempts.last().is_some_and(Attempt::was_taken),
        attempts,
    }
}

impl Attempt {
    fn was_taken(&self) -> bool {
        self.status
            .is_some_and(|status| (200..300).contains(&status))
    }
}

async fn post(http: &reqwest::Client, target: &Target, body: &str) -> Attempt {
    let signature = sign_stripe(body.as_bytes(), &target.secret, super::unix_s());
    let sent = http
        .post(&target.url)
        .header("content-type", "application/json; charset=utf-8")
        .header("stripe-signature", signature)
        .header(
            "user-agent",
            "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        )
        .body(body.to_owned())
        .send()
        .await;
    match sent {
        Err(error) => Attempt {
            status: None,
            body: error.to_string(),
        },
        Ok(answer) => Attempt {
            status: Some(answer.status().as_u16()),
            body: answer.text().await.unwrap_or_default(),
        },
    }
}
