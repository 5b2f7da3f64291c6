//! `webhook-ingress`: the HTTP handler for webhooks, an idempotent receiver. It verifies the signature (HMAC over the
//! exact bytes, compared in constant time; a timestamp limits replay attacks to 300 s), stores the event, queues a
//! pointer, and answers.
//!
//! Guarantees: 200 means that the event is stored, and queued unless nothing is left to do; a request with an invalid
//! signature stores and sends nothing, and its body is not even parsed. Not decided here: what an event means
//! (`event-worker`). Read next: `billhook_core::provider::signature` verifies,
//! `billhook_core::intake::accept` stores and queues.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::time::Duration;

use billhook_adapters::{metrics, telemetry};
use billhook_core::error::error_chain;
use billhook_core::ids::{AccountId, CorrelationId, PerProvider, ProviderId};
use billhook_core::intake::accept::{AcceptResult, accept_event};
use billhook_core::intake::inbox::{EventSource, NewEvent};
use billhook_core::intake::ports::{ReadSigningKeys, RecordEvent, SendMessage};
use billhook_core::ports::Clock;
use billhook_core::provider::envelope::{EnvelopeError, EventEnvelope};
use billhook_core::provider::signature::{
    SignatureFailure, SigningKey, SigningKeys, UnverifiedSignature, Verified,
};
use billhook_core::provider::{parse_signature, read_envelope};
use billhook_core::time::Timestamp;
use serde_json::json;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::account_limiter::AccountLimiter;
use crate::base64::decode_base64;
use crate::proxy::{ProxyRequest, ProxyResponse};

pub mod account_limiter;
pub mod base64;
pub mod proxy;

/// Larger bodies get 413. Most events stay below 100 KB; a Lob event with hundreds of scans comes near this limit.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// For other callers: both providers have their own backoff and ignore it.
const RETRY_AFTER_S: &str = "5";
/// As long as it takes until a full bucket of an account's limiter is there again.
const LIMITED_RETRY_AFTER_S: &str = "60";
const BODY_UNDECODABLE: &str = "the gateway's base64 cannot be decoded";

/// The handler with its ports.
#[derive(Debug)]
pub struct WebhookIngress<I, Q, K, C> {
    pub inbox: I,
    pub queue: Q,
    pub keys: PerProvider<K>,
    pub clock: C,
    /// How far a signature's timestamp may be in the past or in the future: limits replay attacks.
    pub tolerance: Duration,
    /// Whether genuine deliveries are counted by event type and result.
    pub counts_types: bool,
    pub account_limiter: AccountLimiter,
}

/// The result of a request.
enum IngressAnswer {
    Accepted {
        duplicate: bool,
        envelope: Box<EventEnvelope>,
        /// The label of the secret that verified it.
        secret: String,
    },
    Health,
    Refused(IngressRefusal),
}

enum IngressRefusal {
    NotFound,
    MethodNotAllowed(&'static str),
    BodyTooLarge,
    SignatureInvalid {
        reason: SignatureFailure,
        /// The label of the secret that made the signature, if it is known.
        secret: Option<String>,
    },
    /// The gateway's base64 is wrong; nothing was verified.
    BodyUndecodable,
    /// A proven body that is no event.
    BodyMalformed(String),
    /// A secret that we cannot read may have signed it. Nobody can tell it from a forgery: the read that failed is what
    /// whoever is on call hears of, not the number of such deliveries.
    SecretUnreadable(String),
    /// A proven delivery of a connected account that is over its limit.
    AccountLimited(AccountId),
    /// A proven delivery could not be stored or queued.
    Unavailable(String),
}

impl From<SignatureFailure> for IngressRefusal {
    fn from(reason: SignatureFailure) -> Self {
        Self::SignatureInvalid {
            reason,
            secret: None,
        }
    }
}

impl<I: RecordEvent, Q: SendMessage, K: ReadSigningKeys, C: Clock> WebhookIngress<I, Q, K, C> {
    /// Answers one request. Never fails: every error becomes an HTTP response. A Lambda error would become a 502 of the
    /// gateway, without correlation id and reason.
    pub async fn handle(&self, request: ProxyRequest) -> ProxyResponse {
        let arrived_at = self.clock.now();
        let correlation_id = CorrelationId(self.clock.new_id());
        // At the highest level, so that its fields are in every log line, whatever `LOG_LEVEL` is.
        let delivery = tracing::error_span!(
            "delivery",
            %correlation_id,
            event_id = Empty,
            stripe_event_id = Empty,
            event_type = Empty,
            tenant_hint = Empty,
        );
        let route = route_request(&request);
        let provider = route.as_ref().ok().copied().flatten();
        let answer = match route {
            Ok(None) => Ok(IngressAnswer::Health),
            Ok(Some(provider)) => {
                let delivering = self.deliver(provider, &request, correlation_id);
                delivering.instrument(delivery.clone()).await
            }
            Err(refusal) => Err(refusal),
        };
        let answer = answer.unwrap_or_else(IngressAnswer::Refused);
        if let Some(provider) = provider {
            count_answer(provider, &answer, arrived_at.until(self.clock.now()));
        }
        telemetry::write_final_line(|| delivery.in_scope(|| log_answer(&answer, correlation_id)));
        build_response(answer, correlation_id)
    }

    async fn deliver(
        &self,
        provider: ProviderId,
        request: &ProxyRequest,
        correlation_id: CorrelationId,
    ) -> Result<IngressAnswer, IngressRefusal> {
        let raw_body = decode_body(request)?;
        let now = self.clock.now();
        let (body, secret) = self.verify(provider, request, &raw_body, now).await?;
        let envelope = match read_envelope(&body) {
            Ok(envelope) => envelope,
            Err(EnvelopeError::Json(error)) => {
                return Err(IngressRefusal::BodyMalformed(error.to_string()));
            }
            Err(EnvelopeError::WrongScope) => {
                return Err(IngressRefusal::SignatureInvalid {
                    reason: SignatureFailure::WrongScope,
                    secret: Some(secret),
                });
            }
        };
        let new = NewEvent {
            source: EventSource::Delivery(provider),
            envelope,
            body,
            correlation_id,
            received_at: now,
        };
        record_event_fields(&new.envelope);
        // Events of the platform and of other providers have no account, and no limit.
        if let Some(account) = &new.envelope.account
            && !self.account_limiter.admits(account, now)
        {
            return Err(IngressRefusal::AccountLimited(account.clone()));
        }
        let accepted = accept_event(&self.inbox, &self.queue, &self.clock, &new).await;
        let result = match accepted {
            Ok(AcceptResult::Duplicate) => "duplicate",
            Ok(AcceptResult::Queued) => "accepted",
            Err(_) => "failed",
        };
        if self.counts_types {
            metrics::count_genuine_delivery(provider, &new.envelope.event_type, result);
        }
        let accepted =
            accepted.map_err(|error| IngressRefusal::Unavailable(error_chain(&error)))?;
        Ok(IngressAnswer::Accepted {
            duplicate: accepted == AcceptResult::Duplicate,
            envelope: Box::new(new.envelope),
            secret,
        })
    }

    /// Verifies the signature; returns the proven body and the label of the secret that made the signature.
    ///
    /// Before a mismatch counts as a forgery, the secrets are read again, at most once in 10 s: the signature may be
    /// made with a secret that was rotated a moment ago. Example: `we_2` delivers 15 s after its secret was stored;
    /// this instance still has the secrets from before, reads them again and accepts.
    async fn verify<'b>(
        &self,
        provider: ProviderId,
        request: &ProxyRequest,
        raw_body: &'b [u8],
        now: Timestamp,
    ) -> Result<(Verified<'b>, String), IngressRefusal> {
        let signature = parse_signature(provider, request)?;
        let reader = self.keys.of(provider);
        let mut known = reader.signing_keys().await;
        let mut verdict = self.verify_with_keys(&signature, raw_body, &known, now);
        let may_be_proven_later = signature.may_be_proven_later(raw_body, now, self.tolerance);
        if verdict == Err(SignatureFailure::NoMatch)
            && may_be_proven_later
            && let Some(refreshed) = reader.refresh_after_mismatch().await
        {
            metrics::SECRET_REFRESH.count(provider);
            known = refreshed;
            verdict = self.verify_with_keys(&signature, raw_body, &known, now);
        }
        match verdict {
            // The secret that would have matched may be the one that we cannot read. That is our fault, so answer 503
            // and not 400: the provider retries, and nothing is lost. One that nobody has stored is no fault: without
            // it, a delivery is as unproven as any forged one. The provider retries after 400 too.
            Err(SignatureFailure::NoMatch)
                if may_be_proven_later && !known.unreadable.is_empty() =>
            {
                Err(IngressRefusal::SecretUnreadable(
                    known.unreadable.join("; "),
                ))
            }
            Err(SignatureFailure::NoMatch) => {
                let mut others = Vec::new();
                for (other, keys) in self.keys.iter() {
                    if other != provider {
                        others.extend(keys.cached_keys().await.keys);
                    }
                }
                Err(explain_mismatch(&signature, raw_body, &known, &others))
            }
            verdict => Ok(verdict?),
        }
    }

    fn verify_with_keys<'b>(
        &self,
        signature: &UnverifiedSignature,
        raw_body: &'b [u8],
        known: &SigningKeys,
        now: Timestamp,
    ) -> Result<(Verified<'b>, String), SignatureFailure> {
        let (body, label) = signature.verify(raw_body, &known.keys, now, self.tolerance)?;
        Ok((body, label.to_owned()))
    }
}

/// The provider of a delivery; `None` for `GET /health`.
fn route_request(request: &ProxyRequest) -> Result<Option<ProviderId>, IngressRefusal> {
    let route = request
        .resource
        .as_deref()
        .or(request.path.as_deref())
        .unwrap_or_default();
    let method = request.http_method.as_deref().unwrap_or_default();
    let provider = route
        .strip_prefix("/webhooks/")
        .and_then(|word| ProviderId::from_str(word).ok());
    match (provider, route, method) {
        (Some(provider), _, "POST") => Ok(Some(provider)),
        (Some(_), ..) => Err(IngressRefusal::MethodNotAllowed("POST")),
        (None, "/health", "GET") => Ok(None),
        (None, "/health", _) => Err(IngressRefusal::MethodNotAllowed("GET")),
        (None, ..) => Err(IngressRefusal::NotFound),
    }
}

/// Adds the event to every log line that follows. Only after verification: before, the body may be anybody's.
fn record_event_fields(envelope: &EventEnvelope) {
    let delivery = tracing::Span::current();
    delivery.record("event_id", envelope.id.as_str());
    if envelope.provider == ProviderId::Stripe {
        delivery.record("stripe_event_id", envelope.id.as_str());
    }
    delivery.record("event_type", envelope.event_type.as_str());
    if let Some(tenant_hint) = &envelope.tenant_hint {
        delivery.record("tenant_hint", tenant_hint.as_str());
    }
}

/// Finds out for the log why no current secret matched: the signature may be made with a replaced secret or with the
/// other provider's. The sender gets the same answer for all reasons.
fn explain_mismatch(
    signature: &UnverifiedSignature,
    raw_body: &[u8],
    known: &SigningKeys,
    others: &[SigningKey],
) -> IngressRefusal {
    let found = |keys: &[SigningKey], reason| {
        let key = signature.signed_with(raw_body, keys)?;
        Some(IngressRefusal::SignatureInvalid {
            reason,
            secret: Some(key.label.clone()),
        })
    };
    let is_missing = !known.missing.is_empty() || known.keys.is_empty();
    let unexplained = match is_missing {
        true => SignatureFailure::SecretMissing,
        false => SignatureFailure::NoMatch,
    };
    found(&known.expired[..], SignatureFailure::SecretExpired)
        .or_else(|| found(others, SignatureFailure::OtherEndpoint))
        .unwrap_or(unexplained.into())
}

/// The exact bytes that were sent, over which the signature was computed. Parsing and printing the JSON again would
/// change white space and key order, and no signature would match.
fn decode_body(request: &ProxyRequest) -> Result<Vec<u8>, IngressRefusal> {
    let body = request.body.as_deref().unwrap_or_default();
    // Checked before decoding too, so that a large body is not copied first. Base64 has four characters for three
    // bytes.
    if body.len() > BODY_BYTES_MAX.div_ceil(3) * 4 {
        return Err(IngressRefusal::BodyTooLarge);
    }
    let raw_body = if request.is_base64_encoded {
        decode_base64(body.as_bytes()).ok_or(IngressRefusal::BodyUndecodable)?
    } else {
        body.as_bytes().to_vec()
    };
    if raw_body.len() > BODY_BYTES_MAX {
        return Err(IngressRefusal::BodyTooLarge);
    }
    Ok(raw_body)
}

fn build_response(answer: IngressAnswer, correlation_id: CorrelationId) -> ProxyResponse {
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
        IngressAnswer::Accepted {
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
        IngressAnswer::Health => (
            200,
            json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }),
        ),
        IngressAnswer::Refused(refusal) => {
            match refusal {
                IngressRefusal::NotFound => {
                    refused(404, "not_found", "there is nothing at this path".to_owned())
                }
                IngressRefusal::MethodNotAllowed(allowed) => {
                    headers.insert("Allow", allowed.to_owned());
                    refused(
                        405,
                        "method_not_allowed",
                        format!("only {allowed} is allowed here"),
                    )
                }
                IngressRefusal::BodyTooLarge => refused(
                    413,
                    "body_too_large",
                    format!("the body has more than {BODY_BYTES_MAX} bytes"),
                ),
                // The same answer for every reason: a forger must not learn whether the format, the timestamp or the
                // signature was wrong.
                IngressRefusal::SignatureInvalid { .. } => refused(
                    400,
                    "signature_invalid",
                    "the signature is not valid for this request".to_owned(),
                ),
                IngressRefusal::BodyUndecodable => {
                    refused(400, "body_malformed", BODY_UNDECODABLE.to_owned())
                }
                IngressRefusal::BodyMalformed(message) => refused(400, "body_malformed", message),
                IngressRefusal::AccountLimited(account) => {
                    headers.insert("Retry-After", LIMITED_RETRY_AFTER_S.to_owned());
                    let message = format!("too many events of {account}; send it again later");
                    refused(429, "account_limited", message)
                }
                IngressRefusal::SecretUnreadable(_) | IngressRefusal::Unavailable(_) => {
                    headers.insert("Retry-After", RETRY_AFTER_S.to_owned());
                    refused(
                        503,
                        "unavailable",
                        "the event could not be accepted now; send it again".to_owned(),
                    )
                }
            }
        }
    };
    ProxyResponse {
        status_code,
        headers,
        body: body.to_string(),
        is_base64_encoded: false,
    }
}

fn log_answer(answer: &IngressAnswer, correlation_id: CorrelationId) {
    match answer {
        IngressAnswer::Health => {}
        IngressAnswer::Refused(refusal) => log_refusal(refusal, correlation_id),
        IngressAnswer::Accepted {
            duplicate,
            envelope,
            secret,
        } => tracing::info!(
            secret,
            "{} correlation_id={correlation_id}",
            match duplicate {
                true => "webhook_duplicate".to_owned(),
                false => format!("{}_webhook_received", envelope.provider),
            },
        ),
    }
}

fn log_refusal(refusal: &IngressRefusal, correlation_id: CorrelationId) {
    let (code, reason, secret) = match refusal {
        IngressRefusal::NotFound => ("not_found", None, None),
        IngressRefusal::MethodNotAllowed(_) => ("method_not_allowed", None, None),
        IngressRefusal::BodyTooLarge => ("body_too_large", None, None),
        IngressRefusal::SignatureInvalid { reason, secret } => (
            "signature_invalid",
            Some(reason.as_str()),
            secret.as_deref(),
        ),
        IngressRefusal::BodyUndecodable => ("body_malformed", Some(BODY_UNDECODABLE), None),
        IngressRefusal::BodyMalformed(message) => ("body_malformed", Some(message.as_str()), None),
        IngressRefusal::SecretUnreadable(cause) => ("unavailable", Some(cause.as_str()), None),
        IngressRefusal::AccountLimited(account) => {
            ("account_limited", Some(account.as_str()), None)
        }
        IngressRefusal::Unavailable(cause) => {
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

fn count_answer(provider: ProviderId, answer: &IngressAnswer, taken: Duration) {
    let milliseconds = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
    metrics::WEBHOOK_PROCESSING_TIME.add(provider, milliseconds);
    if counts_as_genuine(answer) {
        let accepted = matches!(answer, IngressAnswer::Accepted { .. });
        metrics::WEBHOOK_SUCCESS.add(provider, u64::from(accepted));
    }
    match answer {
        IngressAnswer::Accepted {
            duplicate: true, ..
        } => metrics::WEBHOOK_DUPLICATE.count(provider),
        IngressAnswer::Refused(IngressRefusal::SignatureInvalid {
            reason: SignatureFailure::SecretMissing,
            ..
        }) => metrics::WEBHOOK_SECRET_MISSING.count(provider),
        IngressAnswer::Refused(IngressRefusal::SignatureInvalid { reason, .. }) => {
            metrics::count_invalid_signature(provider, reason.as_str());
        }
        IngressAnswer::Refused(IngressRefusal::AccountLimited(_)) => {
            metrics::WEBHOOK_LIMITED.count(provider);
        }
        IngressAnswer::Refused(_) => metrics::WEBHOOK_ERROR.count(provider),
        IngressAnswer::Accepted {
            duplicate: false, ..
        }
        | IngressAnswer::Health => {}
    }
}

/// Whether a delivery counts as accepted or not: its sender has a secret of ours. What anybody can send is left out: no
/// alarm may depend on it, neither to fire nor to stay silent because forged deliveries outnumber the genuine ones.
fn counts_as_genuine(answer: &IngressAnswer) -> bool {
    match answer {
        IngressAnswer::Accepted { .. } => true,
        IngressAnswer::Refused(refusal) => match refusal {
            IngressRefusal::SignatureInvalid { reason, .. } => reason.is_signed_with_our_secret(),
            IngressRefusal::BodyMalformed(_) | IngressRefusal::Unavailable(_) => true,
            // It is signed, and held back on purpose: one account that floods pages nobody.
            IngressRefusal::AccountLimited(_)
            | IngressRefusal::NotFound
            | IngressRefusal::MethodNotAllowed(_)
            | IngressRefusal::BodyTooLarge
            | IngressRefusal::BodyUndecodable
            | IngressRefusal::SecretUnreadable(_) => false,
        },
        IngressAnswer::Health => false,
    }
}

#[cfg(test)]
mod tests {
    use billhook_core::provider::signature::KeyScope;
    use billhook_core::provider::stripe::signature::parse_signature_header;
    use billhook_testkit::sign::sign_stripe;

    use super::*;

    #[test]
    fn a_mismatch_says_why_and_which_secret_it_was() {
        let keys = |label: &str, secret: &str| {
            Vec::from_iter(SigningKey::from_value(label, secret, KeyScope::AllEvents))
        };
        let known = SigningKeys {
            keys: keys("STRIPE we_2", "whsec_2"),
            expired: keys("STRIPE we_1 (previous)", "whsec_1"),
            ..SigningKeys::default()
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
            let signature = parse_signature_header(Some(&header)).unwrap();
            match explain_mismatch(&signature, b"{}", &known, &other.keys) {
                IngressRefusal::SignatureInvalid { reason: r, secret } => {
                    assert_eq!((r.as_str(), secret.as_deref()), (reason, label));
                }
                _ => panic!("another refusal"),
            }
        }
    }
}
