//! `webhook-ingress`: proves who called, keeps the event, puts a pointer on the queue, answers.
//!
//! Guarantees: a 200 means that the event is stored and its message on the queue; nothing is stored or sent for a call
//! that no known secret proves. What an event means is not decided here (`stripe-worker`, `lob-worker`).

use std::collections::BTreeMap;
use std::time::Duration;

use billhook_adapters::{metrics, telemetry};
use billhook_core::event::{self, Envelope};
use billhook_core::ids::{CorrelationId, Provider};
use billhook_core::inbox::{NewEvent, take_in};
use billhook_core::json::NotJson;
use billhook_core::ports::{Clock, ReadSigningKeys, RecordEvent, SendMessage};
use billhook_core::retry::chain;
use billhook_core::signature::{Reason, SigningKeys, UnverifiedClaim, lob, stripe};
use billhook_core::time::Timestamp;
use serde_json::json;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::proxy::{Header, Request, Response};

pub mod proxy;

/// A larger body is refused: Stripe's and Lob's stay below 100 KB.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Both providers back off by themselves; this is for whoever calls by hand.
const RETRY_AFTER_S: &str = "5";

/// Everything the function needs.
#[derive(Debug)]
pub struct Ingress<I, Q, K, C> {
    /// Where events are kept.
    pub inbox: I,
    /// Where pointers go.
    pub queue: Q,
    /// Stripe's secrets.
    pub stripe_keys: K,
    /// Lob's secrets.
    pub lob_keys: K,
    /// Time and identifiers.
    pub clock: C,
    /// How far a signature's timestamp may be off, either side.
    pub tolerance: Duration,
}

/// How a request ends.
enum Answer {
    Accepted {
        duplicate: bool,
        envelope: Box<Envelope>,
        /// The label of the secret that proved it.
        secret: String,
    },
    Health,
    Refused(Refusal),
}

enum Refusal {
    NotFound,
    MethodNotAllowed(&'static str),
    BodyTooLarge,
    SignatureInvalid {
        reason: Reason,
        /// The label of the secret that made the signature, where that is known.
        secret: Option<String>,
    },
    BodyMalformed(String),
    Unavailable(String),
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::SignatureInvalid {
            reason,
            secret: None,
        }
    }
}

impl From<NotJson> for Refusal {
    fn from(error: NotJson) -> Self {
        Self::BodyMalformed(error.to_string())
    }
}

impl<I: RecordEvent, Q: SendMessage, K: ReadSigningKeys, C: Clock> Ingress<I, Q, K, C> {
    /// Answers one request. Never fails: whatever goes wrong is an answer.
    pub async fn handle(&self, request: Request) -> Response {
        let arrived_at = self.clock.now();
        let correlation_id = CorrelationId(self.clock.new_id());
        // Of the highest level, so that its fields stand in every line that is written.
        let delivery = tracing::error_span!(
            "delivery",
            %correlation_id,
            event_id = Empty,
            stripe_event_id = Empty,
            event_type = Empty,
            tenant_hint = Empty,
        );
        let route = route(&request);
        let provider = route.as_ref().ok().copied().flatten();
        let answer = match route {
            Ok(None) => Ok(Answer::Health),
            Ok(Some(provider)) => {
                let delivering = self.deliver(provider, &request, correlation_id);
                delivering.instrument(delivery.clone()).await
            }
            Err(refusal) => Err(refusal),
        };
        let answer = answer.unwrap_or_else(Answer::Refused);
        if let Some(provider) = provider {
            count(provider, &answer, arrived_at.until(self.clock.now()));
        }
        telemetry::closing(|| delivery.in_scope(|| log(&answer, correlation_id)));
        response(answer, correlation_id)
    }

    async fn deliver(
        &self,
        provider: Provider,
        request: &Request,
        correlation_id: CorrelationId,
    ) -> Result<Answer, Refusal> {
        let raw_body = raw_body(request)?;
        let now = self.clock.now();
        let secret = self.verify(provider, request, &raw_body, now).await?;
        let envelope = event::envelope(provider, &raw_body)?;
        let new = NewEvent {
            source: provider.into(),
            envelope,
            raw_body: &raw_body,
            correlation_id,
            received_at: now,
        };
        name(&new.envelope);
        let kept = take_in(&self.inbox, &self.queue, &self.clock, &new).await;
        let result = match kept {
            Ok(true) => "duplicate",
            Ok(false) => "accepted",
            Err(_) => "failed",
        };
        metrics::genuine(provider, &new.envelope.event_type, result);
        let duplicate = kept.map_err(|error| Refusal::Unavailable(chain(&error)))?;
        Ok(Answer::Accepted {
            duplicate,
            envelope: Box::new(new.envelope),
            secret,
        })
    }

    /// The label of the secret that proves the call.
    async fn verify(
        &self,
        provider: Provider,
        request: &Request,
        raw_body: &[u8],
        now: Timestamp,
    ) -> Result<String, Refusal> {
        let claim = claim(provider, request)?;
        let (reader, other) = match provider {
            Provider::Stripe => (&self.stripe_keys, &self.lob_keys),
            Provider::Lob => (&self.lob_keys, &self.stripe_keys),
        };
        let mut known = reader.signing_keys().await;
        let mut verdict = self.proven_by(&claim, raw_body, &known, now);
        if verdict == Err(Reason::NoMatch)
            && let Some(refreshed) = reader.refreshed().await
        {
            metrics::SECRET_REFRESH.count(provider);
            known = refreshed;
            verdict = self.proven_by(&claim, raw_body, &known, now);
        }
        match verdict {
            // The key that would have proven it may be the one we could not read, or do not have yet: our fault.
            Err(Reason::NoMatch) if !known.unreadable.is_empty() => {
                Err(Refusal::Unavailable(known.unreadable.join("; ")))
            }
            Err(Reason::NoMatch) if known.keys.is_empty() => Err(Refusal::Unavailable(format!(
                "no signing secret of {provider} is set"
            ))),
            Err(Reason::NoMatch) => {
                Err(why_no_match(&claim, raw_body, &known, &other.held().await))
            }
            verdict => Ok(verdict?),
        }
    }

    fn proven_by(
        &self,
        claim: &UnverifiedClaim,
        raw_body: &[u8],
        known: &SigningKeys,
        now: Timestamp,
    ) -> Result<String, Reason> {
        claim
            .verify(raw_body, &known.keys, now, self.tolerance)
            .map(str::to_owned)
    }
}

/// Whose delivery it is; `None` asks for our health.
fn route(request: &Request) -> Result<Option<Provider>, Refusal> {
    let route = request
        .resource
        .as_deref()
        .or(request.path.as_deref())
        .unwrap_or_default();
    let method = request.http_method.as_deref().unwrap_or_default();
    match (route, method) {
        ("/webhooks/stripe", "POST") => Ok(Some(Provider::Stripe)),
        ("/webhooks/lob", "POST") => Ok(Some(Provider::Lob)),
        ("/health", "GET") => Ok(None),
        ("/webhooks/stripe" | "/webhooks/lob", _) => Err(Refusal::MethodNotAllowed("POST")),
        ("/health", _) => Err(Refusal::MethodNotAllowed("GET")),
        _ => Err(Refusal::NotFound),
    }
}

/// Names the event in every line that follows.
fn name(envelope: &Envelope) {
    let delivery = tracing::Span::current();
    delivery.record("event_id", envelope.id.as_str());
    if envelope.provider == Provider::Stripe {
        delivery.record("stripe_event_id", envelope.id.as_str());
    }
    delivery.record("event_type", envelope.event_type.as_str());
    if let Some(tenant_hint) = &envelope.tenant_hint {
        delivery.record("tenant_hint", tenant_hint.as_str());
    }
}

/// Told for who looks into it; the sender gets one answer for all of them.
fn why_no_match(
    claim: &UnverifiedClaim,
    raw_body: &[u8],
    known: &SigningKeys,
    other: &SigningKeys,
) -> Refusal {
    let found = |keys, reason| {
        let key = claim.signed_with(raw_body, keys)?;
        Some(Refusal::SignatureInvalid {
            reason,
            secret: Some(key.label.clone()),
        })
    };
    found(&known.expired, Reason::SecretExpired)
        .or_else(|| found(&other.keys, Reason::OtherEndpoint))
        .unwrap_or(Reason::NoMatch.into())
}

fn claim(provider: Provider, request: &Request) -> Result<UnverifiedClaim, Reason> {
    let header = |header| request.header(header).map_err(|_| Reason::HeaderMalformed);
    match provider {
        Provider::Stripe => stripe::claim(header(Header::StripeSignature)?),
        Provider::Lob => lob::claim(
            header(Header::LobSignature)?,
            header(Header::LobSignatureTimestamp)?,
        ),
    }
}

/// The exact bytes that were sent.
fn raw_body(request: &Request) -> Result<Vec<u8>, Refusal> {
    let body = request.body.as_deref().unwrap_or_default();
    // Checked before decoding too: base64 takes four characters for three bytes.
    if body.len() > BODY_BYTES_MAX.div_ceil(3) * 4 {
        return Err(Refusal::BodyTooLarge);
    }
    let raw_body = if request.is_base64_encoded {
        let decoded = base64_simd::STANDARD.decode_to_vec(body);
        decoded.map_err(|_| {
            Refusal::BodyMalformed("the gateway's base64 cannot be decoded".to_owned())
        })?
    } else {
        body.as_bytes().to_vec()
    };
    if raw_body.len() > BODY_BYTES_MAX {
        return Err(Refusal::BodyTooLarge);
    }
    Ok(raw_body)
}

fn response(answer: Answer, correlation_id: CorrelationId) -> Response {
    let correlation = correlation_id.to_string();
    let mut headers = BTreeMap::from([
        ("Content-Type", "application/json".to_owned()),
        ("X-Correlation-ID", correlation.clone()),
    ]);
    let refused = |status, code: &str, message: String| {
        (
            status,
            json!({ "error": code, "message": message, "correlation_id": correlation }),
        )
    };
    let (status_code, body) = match answer {
        Answer::Accepted {
            duplicate,
            envelope,
            ..
        } => (
            200,
            json!({
                "received": true,
                "duplicate": duplicate,
                "event_id": envelope.id.as_str(),
                "correlation_id": correlation,
            }),
        ),
        Answer::Health => (
            200,
            json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }),
        ),
        Answer::Refused(refusal) => {
            match refusal {
                Refusal::NotFound => {
                    refused(404, "not_found", "there is nothing at this path".to_owned())
                }
                Refusal::MethodNotAllowed(allowed) => {
                    headers.insert("Allow", allowed.to_owned());
                    refused(
                        405,
                        "method_not_allowed",
                        format!("only {allowed} is allowed here"),
                    )
                }
                Refusal::BodyTooLarge => refused(
                    413,
                    "body_too_large",
                    format!("the body has more than {BODY_BYTES_MAX} bytes"),
                ),
                // One answer, whatever is wrong: it must not help a forger.
                Refusal::SignatureInvalid { .. } => refused(
                    400,
                    "signature_invalid",
                    "the signature does not prove this request".to_owned(),
                ),
                Refusal::BodyMalformed(message) => refused(400, "body_malformed", message),
                Refusal::Unavailable(_) => {
                    headers.insert("Retry-After", RETRY_AFTER_S.to_owned());
                    refused(
                        503,
                        "unavailable",
                        "this could not be taken in now; send it again".to_owned(),
                    )
                }
            }
        }
    };
    Response {
        status_code,
        headers,
        body: body.to_string(),
        is_base64_encoded: false,
    }
}

fn log(answer: &Answer, correlation_id: CorrelationId) {
    match answer {
        Answer::Health => {}
        Answer::Refused(refusal) => log_refusal(refusal, correlation_id),
        Answer::Accepted {
            duplicate,
            envelope,
            secret,
        } => tracing::info!(
            secret,
            "{} correlation_id={correlation_id}",
            match (duplicate, envelope.provider) {
                (true, _) => "webhook_duplicate",
                (false, Provider::Stripe) => "stripe_webhook_received",
                (false, Provider::Lob) => "lob_webhook_received",
            },
        ),
    }
}

fn log_refusal(refusal: &Refusal, correlation_id: CorrelationId) {
    let (code, reason, secret) = match refusal {
        Refusal::NotFound => ("not_found", None, None),
        Refusal::MethodNotAllowed(_) => ("method_not_allowed", None, None),
        Refusal::BodyTooLarge => ("body_too_large", None, None),
        Refusal::SignatureInvalid { reason, secret } => (
            "signature_invalid",
            Some(reason.as_str()),
            secret.as_deref(),
        ),
        Refusal::BodyMalformed(message) => ("body_malformed", Some(message.as_str()), None),
        Refusal::Unavailable(cause) => {
            tracing::error!(
                code = "unavailable",
                reason = cause,
                "webhook_rejected correlation_id={correlation_id}: {cause}"
            );
            return;
        }
    };
    tracing::warn!(
        code,
        reason,
        secret,
        "webhook_rejected correlation_id={correlation_id}"
    );
}

fn count(provider: Provider, answer: &Answer, taken: Duration) {
    let milliseconds = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
    metrics::WEBHOOK_PROCESSING_TIME.add(provider, milliseconds);
    let accepted = matches!(answer, Answer::Accepted { .. });
    metrics::WEBHOOK_SUCCESS.add(provider, u64::from(accepted));
    match answer {
        Answer::Accepted {
            duplicate: true, ..
        } => metrics::WEBHOOK_DUPLICATE.count(provider),
        Answer::Refused(Refusal::SignatureInvalid { reason, .. }) => {
            metrics::invalid_signature(provider, reason.as_str());
        }
        Answer::Refused(_) => metrics::WEBHOOK_ERROR.count(provider),
        Answer::Accepted {
            duplicate: false, ..
        }
        | Answer::Health => {}
    }
}

#[cfg(test)]
mod tests {
    use billhook_core::signature::SigningKey;
    use billhook_testkit::sign::sign_stripe;

    use super::*;

    #[test]
    fn a_mismatch_says_why_and_which_secret_it_was() {
        let keys = |label: &str, secret: &str| Vec::from_iter(SigningKey::usable(label, secret));
        let known = SigningKeys {
            keys: keys("STRIPE we_2", "whsec_2"),
            expired: keys("STRIPE we_1 (previous)", "whsec_1"),
            unreadable: Vec::new(),
        };
        let other = SigningKeys {
            keys: keys("APP", "lob"),
            ..SigningKeys::default()
        };
        for (secret, reason, label) in [
            ("whsec_1", "secret_expired", Some("STRIPE we_1 (previous)")),
            ("lob", "other_endpoint", Some("APP")),
            ("guessed", "no_match", None),
        ] {
            let header = sign_stripe(b"{}", secret, 1);
            let claim = stripe::claim(Some(&header)).unwrap();
            match why_no_match(&claim, b"{}", &known, &other) {
                Refusal::SignatureInvalid { reason: r, secret } => {
                    assert_eq!((r.as_str(), secret.as_deref()), (reason, label));
                }
                _ => panic!("another refusal"),
            }
        }
    }
}
