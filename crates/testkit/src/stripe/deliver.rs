//! Sends an event as Stripe does: to every endpoint that wants it, signed afresh with that endpoint's own secret on
//! every attempt, until it is answered 2xx or the schedule ends. Redirects count as failures and are not followed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;

use super::state::Target;
use crate::sign::sign_stripe;

/// What to deliver.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    /// The event, as it is to be posted.
    pub event: Value,
    /// Makes it an event of this connected account: sets its `account`.
    #[serde(default)]
    pub account: Option<String>,
    /// How often each endpoint gets it, all at the same time.
    #[serde(default = "one")]
    pub copies: u32,
    /// Only this endpoint.
    #[serde(default)]
    pub endpoint: Option<String>,
}

fn one() -> u32 {
    1
}

impl Delivery {
    /// Once, to every endpoint that wants it.
    pub fn of(event: Value) -> Self {
        Self {
            event,
            account: None,
            copies: 1,
            endpoint: None,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One per endpoint and copy; empty where no endpoint wants the event.
    pub deliveries: Vec<Delivered>,
}

/// One endpoint's part.
#[derive(Clone, Debug, Serialize)]
pub struct Delivered {
    /// The endpoint's id.
    pub endpoint: String,
    /// Whether an attempt was answered 2xx.
    pub delivered: bool,
    /// In order.
    pub attempts: Vec<Attempt>,
}

/// One request and its answer.
#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    /// The HTTP status; none where nothing answered.
    pub status: Option<u16>,
    /// The answer's body, or why there is none.
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
