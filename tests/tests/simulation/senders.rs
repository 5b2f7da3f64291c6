//! The callers of ingress: Stripe and Lob, which retry each delivery until it is accepted, and senders of forged
//! deliveries.

use std::time::Duration;

use billhook_core::ids::{EventId, ProviderId};
use billhook_core::outcome::EventOutcome;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use billhook_testkit::sign::{sign_lob, sign_stripe};
use billhook_testkit::sim::SECRET_CANARY;
use serde_json::{Value, json};

use crate::functions::Functions;

/// Sooner than the providers repeat, so that less time passes for nothing.
const REPEATS: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(2),
    Duration::from_mins(5),
    Duration::from_mins(10),
    Duration::from_mins(20),
    Duration::from_mins(40),
];
/// Lob's secret.
pub(crate) fn lob_secret() -> String {
    format!("lob_{SECRET_CANARY}")
}

/// What was sent, as the checks know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// An event, signed with a secret that counts.
    Genuine(ProviderId, EventId, String),
    /// Anything else, and the statuses that may answer it.
    Forged(&'static str, &'static [u16]),
}

/// A request and its answer.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) call: Call,
    pub(crate) began: Timestamp,
    pub(crate) at: Timestamp,
    /// None where the function ended without one.
    pub(crate) answer: Option<(u16, String)>,
    /// The container that answered.
    pub(crate) by: String,
    /// What went wrong for that container so far.
    pub(crate) faults: u64,
    /// What the event's row said before and after.
    pub(crate) before: Option<(bool, EventOutcome)>,
    pub(crate) after: Option<(bool, EventOutcome)>,
}

impl Answered {
    pub(crate) fn status(&self) -> Option<u16> {
        self.answer.as_ref().map(|(status, _)| *status)
    }
}

pub(crate) fn stripe_request(body: &str, secret: &str, at_s: i64) -> Value {
    let header = sign_stripe(body.as_bytes(), secret, at_s);
    json!({
        "resource": "/webhooks/stripe", "httpMethod": "POST",
        "headers": { "Stripe-Signature": header }, "body": body, "isBase64Encoded": false,
    })
}

pub(crate) fn lob_request(body: &str, secret: &str, at_s: i64) -> Value {
    let at = at_s.to_string();
    let signature = sign_lob(body.as_bytes(), secret, &at);
    json!({
        "resource": "/webhooks/lob", "httpMethod": "POST", "body": body, "isBase64Encoded": false,
        "headers": { "lob-signature": signature, "lob-signature-timestamp": at },
    })
}

impl Functions {
    /// Sends a request and keeps what came of it; the answer's status.
    pub(crate) async fn send(&self, call: Call, request: Value) -> Option<u16> {
        let standing = || {
            let Call::Genuine(provider, id, _) = &call else {
                return None;
            };
            let world = self.sim.world();
            let row = world.store.events.get(&(provider.as_str(), id.clone()))?;
            Some((row.stored.processed, row.stored.outcome))
        };
        let (began, before) = (self.sim.now(), standing());
        let (answer, by, faults) = self.request(request).await;
        let after = standing();
        let status = answer.as_ref().map(|(status, _)| *status);
        self.sim
            .world()
            .tell(|| format!("{by:<14} answers {status:?} to {call:?}"));
        let answered = Answered {
            call,
            began,
            at: self.sim.now(),
            answer,
            by,
            faults,
            before,
            after,
        };
        self.seen().answers.push(answered);
        status
    }

    /// Sends every event to every endpoint that wants it.
    pub(crate) async fn deliver(self) {
        let emitted = self.sim.world().stripe.emitted.clone();
        let mut done = 0;
        loop {
            let (count, endpoints) = {
                let world = self.sim.world();
                (world.stripe.events.len(), world.stripe.endpoints.len())
            };
            for event in done..count {
                let is_lobs = self.sim.world().stripe.events[event].provider == ProviderId::Lob;
                if is_lobs {
                    tokio::task::spawn_local(self.clone().deliver_one(event, None));
                    continue;
                }
                for endpoint in 0..endpoints {
                    let world = self.sim.world();
                    let it = &world.stripe.endpoints[endpoint];
                    let kind = &world.stripe.events[event].kind;
                    let wants = it.types.contains(kind) || it.types == ["*"];
                    if it.deleted_at.is_none() && wants {
                        tokio::task::spawn_local(self.clone().deliver_one(event, Some(endpoint)));
                    }
                }
            }
            done = count;
            emitted.notified().await;
        }
    }

    async fn deliver_one(self, event: usize, endpoint: Option<usize>) {
        self.sim
            .wait(Duration::from_millis(1), Duration::from_secs(20))
            .await;
        let mut repeats = REPEATS.iter();
        loop {
            let (call, request, often) = {
                let mut world = self.sim.world();
                let (now_s, often) = (world.now().unix_s(), world.rng.chance(80));
                let event = &world.stripe.events[event];
                let secret = match endpoint.map(|at| &world.stripe.endpoints[at]) {
                    // Stripe's retries end with the endpoint.
                    Some(endpoint) if endpoint.deleted_at.is_some() => return,
                    Some(endpoint) => endpoint.secret.clone(),
                    None => lob_secret(),
                };
                let request = match event.provider {
                    ProviderId::Stripe => stripe_request(&event.body, &secret, now_s),
                    ProviderId::Lob => lob_request(&event.body, &secret, now_s),
                };
                let id = EventId::parse(&event.id).unwrap();
                let call = Call::Genuine(event.provider, id, secret);
                (call, request, often)
            };
            if often {
                // The same at the same moment.
                let own = self.clone();
                let (call, request) = (call.clone(), request.clone());
                tokio::task::spawn_local(async move { own.send(call, request).await });
            }
            let status = self.send(call, request).await;
            let is_believed = !self.sim.world().rng.chance(30);
            if status == Some(200) && is_believed {
                return;
            }
            let Some(span) = repeats.next() else {
                return;
            };
            tokio::time::sleep(*span).await;
            self.sim.wait(Duration::ZERO, *span).await;
        }
    }

    /// Tries what a stranger may try.
    pub(crate) async fn forge(self, until: Timestamp) {
        while self.sim.now() < until {
            self.sim
                .wait(Duration::from_secs(10), Duration::from_mins(6))
                .await;
            let (call, request) = self.forgery();
            self.send(call, request).await;
        }
    }

    fn forgery(&self) -> (Call, Value) {
        let mut world = self.sim.world();
        let now_s = world.now().unix_s();
        let secret = world
            .stripe
            .endpoints
            .iter()
            .find(|it| it.deleted_at.is_none());
        let secret = secret.map_or("whsec_none".to_owned(), |endpoint| endpoint.secret.clone());
        let known = world
            .stripe
            .events
            .iter()
            .find(|e| e.provider == ProviderId::Stripe);
        let known = known.map_or("{}".to_owned(), |event| event.body.clone());
        let forged = json!({ "id": "evt_forged", "object": "event", "type": "charge.refunded" });
        let forged = forged.to_string();
        let kind = world.rng.below(9);
        match kind {
            0 => (
                Call::Forged("another secret", &[400]),
                stripe_request(&forged, "whsec_guessed", now_s),
            ),
            1 => (
                Call::Forged("too old", &[400]),
                stripe_request(&known, &secret, now_s - 301),
            ),
            2 => (
                Call::Forged("from the future", &[400]),
                stripe_request(&forged, &secret, now_s + 310),
            ),
            3 => {
                let mut request = stripe_request(&known, &secret, now_s);
                request["body"] = json!(forged);
                (Call::Forged("another body", &[400]), request)
            }
            4 => {
                let mut request = stripe_request(&forged, &secret, now_s);
                request["headers"] = Value::Null;
                (Call::Forged("no signature", &[400]), request)
            }
            5 => {
                let mut request = stripe_request(&forged, &secret, now_s);
                request["httpMethod"] = json!("PUT");
                (Call::Forged("another method", &[405]), request)
            }
            6 => (
                Call::Forged("no event", &[400]),
                stripe_request("{\"id\":\"\u{1f4b8}", &secret, now_s),
            ),
            7 => {
                let body = "x".repeat(1024 * 1024 + 1);
                let mut request = stripe_request("", &secret, now_s);
                request["body"] = json!(body);
                (Call::Forged("too large", &[413]), request)
            }
            _ => (
                Call::Forged("another provider's secret", &[400]),
                lob_request(&forged, &secret, now_s),
            ),
        }
    }
}
