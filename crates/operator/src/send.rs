//! `billhook send` and `billhook sig explain`: signed sample deliveries, and what is wrong with one that was refused.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::provider::lob::signature::parse_signature_headers;
use billhook_core::provider::signature::{SignatureFailure, SigningKey};
use billhook_core::provider::stripe::signature::parse_signature_header;
use billhook_core::time::Timestamp;
use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::output::Output;
use crate::session::Session;
use crate::{Stop, input};

/// As ingress has it.
const TOLERANCE: Duration = Duration::from_secs(300);

macro_rules! samples {
    ($provider:literal: $($name:literal)*) => {
        &[$(include_str!(concat!("../../../events/payloads/", $provider, "/", $name, ".json")),)*]
    };
}

const STRIPE: &[&str] = samples!("stripe":
    "checkout_session_completed_paid" "checkout_session_async_payment_succeeded"
    "checkout_session_async_payment_failed" "checkout_session_expired" "payment_intent_processing"
    "payment_intent_succeeded" "payment_intent_payment_failed" "payment_intent_canceled" "charge_refunded_full"
    "refund_created" "refund_updated" "refund_failed" "charge_dispute_created" "charge_dispute_closed_lost"
    "charge_dispute_funds_withdrawn" "charge_dispute_funds_reinstated" "connect_account_updated"
    "connect_account_application_authorized" "connect_account_application_deauthorized");
const LOB: &[&str] = samples!("lob":
    "letter_created" "letter_rendered_pdf" "letter_rendered_thumbnails" "letter_mailed" "letter_in_transit"
    "letter_in_local_area" "letter_processed_for_delivery" "letter_delivered" "letter_returned_to_sender"
    "letter_re-routed" "letter_failed" "letter_deleted" "letter_viewed" "postcard_created" "postcard_delivered");

#[derive(Args, Debug)]
#[command(
    after_help = "Every sending has a new event id and the present moment. The signing secret is the stack's, or \
    the first line of standard input with --secret-stdin.\n\nExamples:\n  \
    billhook send stripe --type payment_intent.succeeded --set data.object.metadata.order_id=ord_1\n  \
    billhook send lob --type letter.delivered --set reference_id=ltr_1\n  \
    billhook send stripe --list\n  \
    echo whsec_… | billhook send stripe --type refund.created --url http://127.0.0.1:3000/webhooks/stripe --secret-stdin"
)]
pub(crate) struct Send {
    /// As whom
    #[arg(value_parser = ["stripe", "lob"])]
    provider: String,
    /// Which sample
    #[arg(long = "type", value_name = "TYPE", required_unless_present = "list")]
    event_type: Option<String>,
    /// List the types that there are samples of
    #[arg(long)]
    list: bool,
    /// Where to, instead of the stack's webhook
    #[arg(long)]
    url: Option<String>,
    /// Put a value into the body, as data.object.amount=100; texts need no quotes
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Read the signing secret from standard input
    #[arg(long)]
    secret_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sig {
    /// Say exactly what is wrong with a signature
    #[command(
        after_help = "The secret is the stack's, or the first line of standard input with --secret-stdin; it is \
        never shown.\nThe exit code is 4 if the signature is wrong.\n\nExample:\n  \
        billhook sig explain stripe --body body.json --header 'Stripe-Signature: t=1781000000,v1=…'"
    )]
    Explain(Explain),
}

#[derive(Args, Debug)]
pub(crate) struct Explain {
    /// Whose signature
    #[arg(value_parser = ["stripe", "lob"])]
    provider: String,
    /// The body, byte for byte as it was received
    #[arg(long)]
    body: PathBuf,
    /// A header, as in a log; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The moment it was received; now, if not given
    #[arg(long, value_name = "MOMENT", value_parser = crate::moment::Moment::parse)]
    at: Option<crate::moment::Moment>,
    /// Read the signing secret from standard input
    #[arg(long)]
    secret_stdin: bool,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    Ok((name.trim().to_lowercase(), value.trim().to_owned()))
}

fn provider(name: &str) -> ProviderId {
    match name {
        "lob" => ProviderId::Lob,
        _ => ProviderId::Stripe,
    }
}

/// Sends; `session` is made only where something of the stack is needed.
pub(crate) async fn send(
    send: Send,
    session: impl AsyncFnOnce() -> Result<Session>,
    output: Output,
) -> Result<()> {
    let provider = provider(&send.provider);
    let Some(event_type) = &send.event_type else {
        let rows: Vec<Value> = samples(provider)
            .iter()
            .map(|(name, _)| json!({ "type": name }))
            .collect();
        output.list(&["type"], &rows);
        return Ok(());
    };
    let known = samples(provider);
    let sample = known.iter().find(|(name, _)| name == event_type);
    let (_, sample) = sample.with_context(|| {
        format!("there is no sample of {event_type}: see `billhook send {provider} --list`")
    })?;
    let now = SystemClock.now();
    let id = format!("evt_{}", SystemClock.new_id().simple());
    let body = made(provider, sample, &id, now, &send.set)?;
    let (url, secrets) = match (&send.url, send.secret_stdin) {
        (Some(url), true) => (url.clone(), vec![input::secret("the signing secret")?]),
        (url, secret_stdin) => {
            let session = session().await?;
            let url = url
                .as_deref()
                .map_or_else(|| session.stack.output(webhook_url(provider)), Ok)?;
            let secrets = if secret_stdin {
                vec![input::secret("the signing secret")?]
            } else {
                session.signing_secrets(provider).await?
            };
            (url.to_owned(), secrets)
        }
    };
    let (status, text) = deliver(provider, &url, &secrets, body).await?;
    let said = serde_json::from_str(&text).unwrap_or_else(|_| json!(text));
    output.one(&json!({ "event_id": id, "event_type": event_type, "url": url, "status": status, "answer": said }));
    if status == 200 {
        return Ok(());
    }
    Err(Stop::No(format!("{url} answered {status}")).into())
}

/// The output that says where a provider delivers.
pub(crate) fn webhook_url(provider: ProviderId) -> &'static str {
    match provider {
        ProviderId::Stripe => "WebhookUrlStripe",
        ProviderId::Lob => "WebhookUrlLob",
    }
}

/// An event of a type of its own: its id and its body.
pub(crate) fn test_event(provider: ProviderId, event_type: &str) -> Result<(String, String)> {
    let known = samples(provider);
    let (_, sample) = known.first().context("there are no samples")?;
    let id = format!("evt_{}", SystemClock.new_id().simple());
    let member = match provider {
        ProviderId::Stripe => "type",
        ProviderId::Lob => "event_type.id",
    };
    let set = format!("{member}={event_type}");
    let body = made(provider, sample, &id, SystemClock.now(), &[set])?;
    Ok((id, body))
}

/// Posts a body, signed with the first of the secrets; the status and what was said.
pub(crate) async fn deliver(
    provider: ProviderId,
    url: &str,
    secrets: &[SecretString],
    body: String,
) -> Result<(u16, String)> {
    let secret = secrets
        .first()
        .context("the stack has no signing secret yet")?;
    billhook_adapters::stripe::install_tls();
    let mut request = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .build()?
        .post(url);
    for (name, value) in signed(provider, secret, body.as_bytes(), SystemClock.now()) {
        request = request.header(name, value);
    }
    let answer = request
        .body(body)
        .send()
        .await
        .with_context(|| format!("{url} did not answer"))?;
    let status = answer.status().as_u16();
    Ok((status, answer.text().await?))
}

pub(crate) async fn sig(
    sig: Sig,
    session: impl AsyncFnOnce() -> Result<Session>,
    output: Output,
) -> Result<()> {
    let Sig::Explain(explain) = sig;
    let provider = provider(&explain.provider);
    let path = explain.body.display().to_string();
    let body = std::fs::read(&explain.body).with_context(|| format!("cannot read {path}"))?;
    let secrets = if explain.secret_stdin {
        vec![input::secret("the signing secret")?]
    } else {
        session().await?.signing_secrets(provider).await?
    };
    let now = SystemClock.now();
    let now = explain.at.map_or(now, |at| at.from(now));
    let explained = explained(provider, &explain.headers, &body, &secrets, now);
    let is_good = explained.get("reason") == Some(&Value::Null);
    output.one(&explained);
    if is_good {
        return Ok(());
    }
    Err(Stop::No("the signature is wrong".to_owned()).into())
}

/// The samples by their type.
fn samples(provider: ProviderId) -> Vec<(String, Value)> {
    let texts = match provider {
        ProviderId::Stripe => STRIPE,
        ProviderId::Lob => LOB,
    };
    let parsed = texts
        .iter()
        .filter_map(|text| serde_json::from_str(text).ok());
    parsed
        .filter_map(|sample: Value| {
            let name = match provider {
                ProviderId::Stripe => sample.get("type")?.as_str()?,
                ProviderId::Lob => sample.get("event_type")?.get("id")?.as_str()?,
            };
            Some((name.to_owned(), sample))
        })
        .collect()
}

fn made(
    provider: ProviderId,
    sample: &Value,
    id: &str,
    now: Timestamp,
    sets: &[String],
) -> Result<String> {
    let mut body = sample.clone();
    let created = match provider {
        ProviderId::Stripe => ("created", json!(now.unix_s())),
        ProviderId::Lob => ("date_created", json!(now.to_string())),
    };
    for (name, value) in [("id", json!(id)), created] {
        put(&mut body, name, value)?;
    }
    for set in sets {
        let (path, value) = set
            .split_once('=')
            .ok_or_else(|| anyhow!("--set {set}: expected PATH=VALUE"))?;
        put(
            &mut body,
            path,
            serde_json::from_str(value).unwrap_or_else(|_| json!(value)),
        )?;
    }
    Ok(body.to_string())
}

fn put(body: &mut Value, path: &str, value: Value) -> Result<()> {
    let mut place = body;
    for name in path.split('.') {
        if place.is_null() {
            *place = json!({});
        }
        let Some(members) = place.as_object_mut() else {
            bail!("--set {path}: what lies above {name} is no object");
        };
        place = members.entry(name).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}

fn signed(
    provider: ProviderId,
    secret: &SecretString,
    body: &[u8],
    now: Timestamp,
) -> Vec<(&'static str, String)> {
    match provider {
        ProviderId::Stripe => {
            let at = now.unix_s().to_string();
            let signature = signature(secret, &at, body);
            vec![("Stripe-Signature", format!("t={at},v1={signature}"))]
        }
        ProviderId::Lob => {
            let at = now.unix_ms().to_string();
            let signature = signature(secret, &at, body);
            vec![
                ("Lob-Signature", signature),
                ("Lob-Signature-Timestamp", at),
            ]
        }
    }
}

fn signature(secret: &SecretString, timestamp: &str, body: &[u8]) -> String {
    // A key of any length makes an HMAC.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()) else {
        return String::new();
    };
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    HEXLOWER.encode(&mac.finalize().into_bytes())
}

/// The verdict of ingress, and where it is `no_match`, which change of body or secret would have matched.
fn explained(
    provider: ProviderId,
    headers: &[(String, String)],
    body: &[u8],
    secrets: &[SecretString],
    now: Timestamp,
) -> Value {
    let one = |name: &str| {
        headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    };
    let claim = match provider {
        ProviderId::Stripe => parse_signature_header(one("stripe-signature")),
        ProviderId::Lob => {
            parse_signature_headers(one("lob-signature"), one("lob-signature-timestamp"))
        }
    };
    let keys = |secrets: &[SecretString]| -> Vec<SigningKey> {
        let usable = secrets
            .iter()
            .filter_map(|secret| SigningKey::usable("secret", secret.expose_secret()));
        usable.collect()
    };
    let known = keys(secrets);
    let verdict = claim
        .as_ref()
        .map_err(|reason| *reason)
        .and_then(|claim| claim.verify(body, &known, now, TOLERANCE).map(|_| ()));
    let reason = verdict.err();
    let fits = |body: &[u8], keys: &[SigningKey]| {
        claim.as_ref().is_ok_and(|claim| {
            claim.verify(body, keys, now, TOLERANCE) != Err(SignatureFailure::NoMatch)
        })
    };
    let because = reason.map(|reason| match reason {
        SignatureFailure::HeaderMissing => "the signature's header is not there: was it dropped by a proxy, or not copied?".to_owned(),
        SignatureFailure::HeaderMalformed => "the header is not of the documented form: was it cut, or joined with another?".to_owned(),
        SignatureFailure::TimestampMalformed => "the timestamp is no number of seconds (Stripe) or milliseconds (Lob)".to_owned(),
        SignatureFailure::TimestampTooOld => "signed with a known secret, more than 300 s before it was received: a repeat, or a slow clock".to_owned(),
        SignatureFailure::TimestampTooNew => "signed with a known secret, more than 300 s after it was received: a clock is wrong".to_owned(),
        SignatureFailure::SecretExpired => "signed with a secret that was replaced more than 24 hours ago".to_owned(),
        SignatureFailure::OtherEndpoint => "signed with the other provider's secret: it was sent to the wrong path".to_owned(),
        SignatureFailure::NoMatch => changed_body(body)
            .into_iter()
            .find(|(_, body)| fits(body, &known))
            .map(|(what, _)| format!("the body was changed after it was signed: {what} would match"))
            .or_else(|| {
                let trimmed: Vec<_> = secrets.iter().map(|s| SecretString::from(s.expose_secret().trim())).collect();
                fits(body, &keys(&trimmed)).then(|| "the secret has white space around it: put it again without".to_owned())
            })
            .unwrap_or_else(|| {
                "no known secret makes this signature over this body: another endpoint's secret, a rotation that is \
                 not known here yet, or a body that is not byte for byte what was sent".to_owned()
            }),
    });
    json!({ "provider": provider.as_str(), "verdict": if reason.is_none() { "genuine" } else { "refused" },
        "reason": reason.map(SignatureFailure::as_str), "because": because, "body_bytes": body.len(), "secrets_tried": known.len() })
}

/// What often happens to a body on its way.
fn changed_body(body: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut changed = Vec::new();
    if let Some(cut) = body.strip_suffix(b"\n") {
        changed.push((
            "without the newline at its end",
            cut.strip_suffix(b"\r").unwrap_or(cut).to_vec(),
        ));
    }
    changed.push(("with a newline at its end", [body, b"\n"].concat()));
    if let Ok(text) = std::str::from_utf8(body) {
        changed.push((
            "with Unix line ends",
            text.replace("\r\n", "\n").into_bytes(),
        ));
    }
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        changed.push((
            "without white space between its members",
            value.to_string().into_bytes(),
        ));
        changed.push(("indented by two", format!("{value:#}").into_bytes()));
    }
    changed
}

#[cfg(test)]
mod tests {
    use billhook_core::provider::read_envelope;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000).unwrap()
    }

    fn because(body: &[u8], secret: &str, at: Timestamp, sent: &[u8]) -> (Value, String) {
        let real = SecretString::from("whsec_1");
        let headers = signed(ProviderId::Stripe, &real, sent, now());
        let headers: Vec<_> = headers
            .into_iter()
            .map(|(n, v)| (n.to_lowercase(), v))
            .collect();
        let told = explained(
            ProviderId::Stripe,
            &headers,
            body,
            &[SecretString::from(secret)],
            at,
        );
        (told["reason"].clone(), told["because"].to_string())
    }

    #[test]
    fn each_fault_of_a_signature_is_told_apart() {
        let sent = br#"{"a":1}"#;
        assert_eq!(because(sent, "whsec_1", now(), sent).0, Value::Null);
        for (body, secret, at, reason, text) in [
            (
                &b"{\"a\":1}\n"[..],
                "whsec_1",
                now(),
                "no_match",
                "without the newline at its end",
            ),
            (
                b"{ \"a\": 1 }",
                "whsec_1",
                now(),
                "no_match",
                "without white space",
            ),
            (sent, " whsec_1 ", now(), "no_match", "white space around"),
            (sent, "whsec_2", now(), "no_match", "no known secret"),
            (
                sent,
                "whsec_1",
                now().after(Duration::from_secs(301)),
                "timestamp_too_old",
                "300 s before",
            ),
            (
                sent,
                "whsec_1",
                now().before(Duration::from_secs(301)),
                "timestamp_too_new",
                "clock is wrong",
            ),
        ] {
            let told = because(body, secret, at, sent);
            assert_eq!(told.0, reason);
            assert!(told.1.contains(text), "{told:?}");
            assert!(!told.1.contains("whsec"), "{told:?}");
        }
        let nothing = explained(
            ProviderId::Lob,
            &[],
            sent,
            &[SecretString::from("x")],
            now(),
        );
        assert_eq!(nothing["reason"], "header_missing");
    }

    #[test]
    fn every_sample_has_a_type_and_takes_values() {
        for (provider, texts) in [(ProviderId::Stripe, STRIPE), (ProviderId::Lob, LOB)] {
            let known = samples(provider);
            assert_eq!(known.len(), texts.len());
            for (name, sample) in &known {
                let body = made(provider, sample, "evt_new", now(), &[]).unwrap();
                let envelope = read_envelope(provider, body.as_bytes()).unwrap();
                assert_eq!(
                    (envelope.id.as_str(), envelope.event_type.as_str()),
                    ("evt_new", name.as_str())
                );
            }
        }
        let mut body = json!({ "data": {}, "n": 1 });
        put(&mut body, "data.object.amount", json!(7)).unwrap();
        assert_eq!(body["data"]["object"]["amount"], 7);
        assert!(put(&mut body, "n.x", json!(1)).is_err());
    }
}
