//! Fuzz targets `header`, `body` and `proxy_event`: the whole handler of `webhook-ingress` over in-memory ports.

use std::time::Duration;

use billhook_core::error::DependencyError;
use billhook_core::ids::{PerProvider, ProviderId};
use billhook_core::intake::ports::SendMessage;
use billhook_core::time::Timestamp;
use billhook_testkit::memory::{FixedClock, KnownKeys, MemoryQueue, MemoryTables};
use billhook_testkit::sign::{sign_lob, sign_stripe};
use serde_json::{Map, Value, json};
use webhook_ingress::proxy::{ProxyRequest, ProxyResponse};
use webhook_ingress::{BODY_BYTES_MAX, WebhookIngress};

use super::{LOB_SECRET, NOW_S, STRIPE_SECRET, check_secrets, watched};

/// Larger than any answer should be.
const ANSWER_BYTES_MAX: usize = 2048;
const TOLERANCE_S: i64 = 300;

#[derive(Default)]
struct Kept {
    tables: MemoryTables,
    queue: MemoryQueue,
}

impl Kept {
    fn counts(&self) -> (usize, usize) {
        let sent = self.queue.sent.lock().unwrap().len();
        (self.tables.events.lock().unwrap().len(), sent)
    }

    /// Handles one request and compares the answer with what was stored and sent.
    fn deliver(&self, request: ProxyRequest) -> ProxyResponse {
        let before = self.counts();
        let ingress = WebhookIngress {
            inbox: &self.tables,
            queue: QueueRef(&self.queue),
            keys: PerProvider::new(|provider| {
                KnownKeys::one(match provider {
                    ProviderId::Stripe => STRIPE_SECRET,
                    _ => LOB_SECRET,
                })
            }),
            clock: FixedClock::at(Timestamp::from_unix_s(NOW_S).unwrap()),
            tolerance: Duration::from_secs(TOLERANCE_S.unsigned_abs()),
            counts_types: true,
            account_limiter: webhook_ingress::account_limiter::AccountLimiter::default(),
        };
        let answer = watched(ingress.handle(request));
        check_answer(&answer);
        let after = self.counts();
        if answer.status_code != 200 {
            assert_eq!(
                before, after,
                "a refused request left something: {answer:?}"
            );
        }
        for (.., message) in self.queue.sent.lock().unwrap().iter() {
            assert!(message.is_ascii() && message.len() < 1024, "{message}");
            check_secrets(message);
        }
        answer
    }
}

struct QueueRef<'a>(&'a MemoryQueue);

impl SendMessage for QueueRef<'_> {
    async fn send(
        &self,
        provider: ProviderId,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> Result<(), DependencyError> {
        self.0.send(provider, group, deduplication_id, body).await
    }
}

fn check_answer(answer: &ProxyResponse) {
    assert!(
        matches!(answer.status_code, 200 | 400 | 404 | 405 | 413),
        "{answer:?}"
    );
    assert!(answer.body.len() <= ANSWER_BYTES_MAX, "{answer:?}");
    check_secrets(&answer.body);
    let correlation_id = &answer.headers["X-Correlation-ID"];
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    if body["error"] == "signature_invalid" {
        let constant = json!({ "error": "signature_invalid", "correlation_id": correlation_id,
            "message": "the signature is not valid for this request" });
        assert_eq!(body, constant, "one answer, whatever is wrong");
        assert_eq!(answer.headers.len(), 2, "{answer:?}");
    }
    for value in answer.headers.values() {
        assert!(value.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
}

/// The event as API Gateway sends it.
fn request(provider: ProviderId, headers: &[(&str, &str)], body: &[u8]) -> ProxyRequest {
    let headers: Map<String, Value> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let event = json!({ "resource": format!("/webhooks/{provider}"), "httpMethod": "POST", "headers": headers,
        "body": data_encoding::BASE64.encode(body), "isBase64Encoded": true });
    serde_json::from_value(event).unwrap()
}

fn signed(provider: ProviderId, body: &[u8], secret: &str) -> ProxyRequest {
    match provider {
        ProviderId::Stripe => {
            let header = sign_stripe(body, secret, NOW_S);
            request(provider, &[("Stripe-Signature", &header)], body)
        }
        ProviderId::Lob => {
            let at = (NOW_S * 1000).to_string();
            let signature = sign_lob(body, secret, &at);
            let headers = [
                ("Lob-Signature", &*signature),
                ("Lob-Signature-Timestamp", &*at),
            ];
            request(provider, &headers, body)
        }
        #[cfg(feature = "third-provider")]
        ProviderId::Parcel => unreachable!("only the provider itself can sign"),
    }
}

/// The input is the body, signed as its provider does.
pub(super) fn body(input: &[u8]) -> bool {
    let mut came_through = false;
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(input).is_ok();
    for (provider, secret) in [
        (ProviderId::Stripe, STRIPE_SECRET),
        (ProviderId::Lob, LOB_SECRET),
    ] {
        let kept = Kept::default();
        let forged = kept.deliver(signed(provider, input, "guessed"));
        let answer = kept.deliver(signed(provider, input, secret));
        let again = kept.deliver(signed(provider, input, secret));
        assert_eq!(answer.status_code, again.status_code);
        if input.len() > BODY_BYTES_MAX {
            assert_eq!((forged.status_code, answer.status_code), (413, 413));
            continue;
        }
        assert_eq!(forged.status_code, 400);
        match answer.status_code {
            200 => {
                assert!(is_json, "{provider} took what is no JSON");
                assert_eq!(kept.counts(), (1, 1), "one event, told once");
                let events = kept.tables.events.lock().unwrap();
                assert_eq!(events.values().next().unwrap().payload, input);
                came_through = true;
            }
            status => assert_eq!((status, kept.counts()), (400, (0, 0))),
        }
    }
    came_through
}

/// The body that `header` signs.
const BODY: &[u8] = br#"{"id":"evt_1","object":"event","type":"invoice.paid","created":1781000000,"reference_id":"ltr_1","event_type":{"id":"letter.created"},"date_created":"2026-06-09T10:13:20Z","body":{}}"#;

/// Valid headers of both providers, and some invalid ones.
pub(super) fn headers() -> Vec<Vec<u8>> {
    let (old, new) = (NOW_S - 301, NOW_S + 301);
    let stripe = [NOW_S, old, new].map(|at| sign_stripe(BODY, STRIPE_SECRET, at));
    let [seconds, milliseconds] = [NOW_S, NOW_S * 1000].map(|at| at.to_string());
    let lob = [seconds, milliseconds].map(|at| (sign_lob(BODY, LOB_SECRET, &at), at));
    let mut all = Vec::new();
    for (n, header) in stripe.iter().enumerate() {
        let (signature, at) = &lob[n % 2];
        all.push(format!("{header}\n{signature}\n{at}").into_bytes());
        all.push(format!("{header},v0=00,v1=11\n{at}\n{signature}").into_bytes());
    }
    all
}

/// The input is three headers, one per line.
pub(super) fn header(input: &[u8]) -> bool {
    let mut came_through = false;
    let text = String::from_utf8_lossy(input);
    let mut lines = text.splitn(3, '\n');
    let [stripe, lob, at] = [(); 3].map(|()| lines.next().unwrap_or_default());
    for (provider, headers) in [
        (ProviderId::Stripe, vec![("stripe-signature", stripe)]),
        (
            ProviderId::Lob,
            vec![("Lob-Signature", lob), ("LOB-SIGNATURE-TIMESTAMP", at)],
        ),
    ] {
        let kept = Kept::default();
        let answer = kept.deliver(request(provider, &headers, BODY));
        let values: Vec<&str> = headers.iter().map(|(_, value)| *value).collect();
        let is_taken = answer.status_code == 200;
        assert_eq!(is_taken, kept.counts() == (1, 1));
        assert!(!is_taken || proves(provider, &values, BODY), "{text:?}");
        came_through |= is_taken;
    }
    came_through
}

/// Whether these header values contain a valid and current signature of the body, perhaps beside other text. Written
/// from the providers' documentation and independently of the code.
fn proves(provider: ProviderId, values: &[&str], body: &[u8]) -> bool {
    let is_now = |at: i64| (NOW_S - TOLERANCE_S..=NOW_S + TOLERANCE_S).contains(&at);
    match provider {
        ProviderId::Stripe => values.iter().any(|value| {
            let elements: Vec<&str> = value.split(',').collect();
            let moments = elements
                .iter()
                .filter_map(|e| e.strip_prefix("t=")?.parse().ok());
            { moments }.any(|at| {
                let good = sign_stripe(body, STRIPE_SECRET, at);
                let (_, good) = good.split_once(',').unwrap();
                is_now(at) && elements.contains(&good)
            })
        }),
        ProviderId::Lob => values.iter().any(|at| {
            let Ok(moment) = at.parse::<i64>() else {
                return false;
            };
            let good = sign_lob(body, LOB_SECRET, at);
            // Fractions of a second are ignored.
            let is_now = is_now(moment) || is_now(moment / 1000);
            is_now && values.contains(&good.as_str())
        }),
        #[cfg(feature = "third-provider")]
        ProviderId::Parcel => false,
    }
}

/// The input is API Gateway's event.
pub(super) fn proxy_event(input: &[u8]) -> bool {
    // API Gateway creates the shape of the event; the sender controls the rest.
    let Ok(request) = serde_json::from_slice::<ProxyRequest>(input) else {
        return false;
    };
    // The fields that we read may be valid even if the rest is not.
    let event: Value = serde_json::from_slice(input).unwrap_or_default();
    let kept = Kept::default();
    let answer = kept.deliver(request);
    if kept.counts() == (0, 0) {
        let is_accepted = answer.body.contains("\"received\":true");
        assert!(!is_accepted, "accepted and not kept: {event}");
        return false;
    }
    if event.is_null() {
        return false;
    }
    assert_eq!((answer.status_code, kept.counts()), (200, (1, 1)));
    let text = event["body"].as_str().unwrap_or_default();
    let body = match event["isBase64Encoded"] == true {
        true => data_encoding::BASE64.decode(text.as_bytes()).unwrap(),
        false => text.as_bytes().to_vec(),
    };
    let mut values = Vec::new();
    for map in ["headers", "multiValueHeaders"] {
        let map = event[map].as_object().into_iter().flatten();
        for (_, value) in map {
            values.extend(value.as_str());
            values.extend(
                value
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str),
            );
        }
    }
    let is_proven = ProviderId::ALL
        .iter()
        .any(|provider| proves(*provider, &values, &body));
    assert!(is_proven, "what nothing proves was kept: {event}");
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_knows_a_proof() {
        let genuine = sign_stripe(BODY, STRIPE_SECRET, NOW_S);
        assert!(proves(ProviderId::Stripe, &[&genuine], BODY));
        assert!(!proves(ProviderId::Stripe, &[&genuine], b"{}"));
        let old = sign_stripe(BODY, STRIPE_SECRET, NOW_S - 301);
        assert!(!proves(ProviderId::Stripe, &[&old], BODY));
    }
}
