//! `billhook sig explain`: verifies a signature as ingress does and, if it does not match, tries what proxies and
//! people usually do to a body or a secret.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::provider::envelope::EnvelopeError;
use billhook_core::provider::signature::{SignatureFailure, SignatureHeaders, SigningKey};
use billhook_core::provider::{parse_signature, read_envelope};
use billhook_core::time::Timestamp;
use clap::{Args, Subcommand};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::exit::CommandExit;
use crate::output::OutputWriter;
use crate::provider_argument::provider_parser;
use crate::secret_input::read_key_from_stdin;
use crate::session::StackSession;
use crate::time_argument::TimeArgument;

/// The same as in ingress.
const TOLERANCE: Duration = Duration::from_secs(300);

#[derive(Debug, Subcommand)]
pub(crate) enum SigCommand {
    /// Explain what is wrong with a signature
    #[command(
        after_help = "The command checks against the secrets of the stack, or against the first line of standard input if --secret-stdin is \
        given; it never shows them.\nThe exit code is 4 if the signature is wrong.\n\nExample:\n  \
        billhook sig explain stripe --body body.json --header 'Stripe-Signature: t=1781000000,v1=…'"
    )]
    Explain(SigExplainArgs),
}

#[derive(Args, Debug)]
pub(crate) struct SigExplainArgs {
    /// The provider that signed
    #[arg(value_parser = provider_parser())]
    provider: ProviderId,
    /// A file with the body, byte for byte as received
    #[arg(long)]
    body: PathBuf,
    /// A header of the delivery; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    /// When the delivery was received; the default is now
    #[arg(long, value_name = "MOMENT", value_parser = TimeArgument::parse)]
    at: Option<TimeArgument>,
    /// Read the signing secret from standard input
    #[arg(long)]
    secret_stdin: bool,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    Ok((name.trim().to_lowercase(), value.trim().to_owned()))
}

pub(crate) async fn run_sig<'s>(
    command: SigCommand,
    session: impl AsyncFnOnce() -> Result<&'s StackSession>,
    output: OutputWriter,
) -> Result<()> {
    let SigCommand::Explain(args) = command;
    let provider = args.provider;
    let path = args.body.display().to_string();
    let body = std::fs::read(&args.body).with_context(|| format!("cannot read {path}"))?;
    let keys = if args.secret_stdin {
        read_key_from_stdin()?
    } else {
        session().await?.read_signing_keys(provider).await?
    };
    let now = SystemClock.now();
    let now = args.at.map_or(now, |at| at.resolve(now));
    let explanation = explain_signature(provider, &args.headers, &body, &keys, now);
    let is_good = explanation.get("reason") == Some(&Value::Null);
    output.print_object(&explanation);
    if is_good {
        return Ok(());
    }
    Err(CommandExit::Refused("the signature is wrong".to_owned()).into())
}

/// Names in lower case, and values; of a repeated one the first counts.
struct GivenHeaders<'a>(&'a [(String, String)]);

impl SignatureHeaders for GivenHeaders<'_> {
    fn signature_header(&self, name: &str) -> Result<Option<&str>, SignatureFailure> {
        let given = self.0.iter().find(|(given, _)| given == name);
        Ok(given.map(|(_, value)| value.as_str()))
    }
}

/// The verdict of ingress. For `no_match` also the change of the body or the secret that would match.
fn explain_signature(
    provider: ProviderId,
    headers: &[(String, String)],
    body: &[u8],
    known: &[SigningKey],
    now: Timestamp,
) -> Value {
    let claim = parse_signature(provider, &GivenHeaders(headers));
    let verdict = claim.as_ref().map_err(|reason| *reason).and_then(|claim| {
        let (verified, _) = claim.verify(body, known, now, TOLERANCE)?;
        match read_envelope(&verified) {
            Err(EnvelopeError::WrongScope) => Err(SignatureFailure::WrongScope),
            // A signature may be right over what is no event.
            Ok(_) | Err(EnvelopeError::Json(_)) => Ok(()),
        }
    });
    let reason = verdict.err();
    let fits = |body: &[u8], keys: &[SigningKey]| {
        claim.as_ref().is_ok_and(|claim| {
            claim.verify(body, keys, now, TOLERANCE) != Err(SignatureFailure::NoMatch)
        })
    };
    let because = reason.map(|reason| match reason {
        SignatureFailure::HeaderMissing => "the signature header is missing: a proxy dropped it, or it was not passed with --header".to_owned(),
        SignatureFailure::HeaderMalformed => "the signature header does not have the documented format: it may be truncated, or joined with another".to_owned(),
        SignatureFailure::TimestampMalformed => "the timestamp is not a number of seconds (Stripe) or milliseconds (Lob)".to_owned(),
        SignatureFailure::TimestampTooOld => "signed with a known secret, but more than 300 s before it was received: an old delivery was repeated, or the receiving clock is ahead".to_owned(),
        SignatureFailure::TimestampTooNew => "signed with a known secret, but more than 300 s after it was received: one of the clocks is wrong".to_owned(),
        SignatureFailure::SecretExpired => "signed with a secret that was replaced more than 24 hours ago".to_owned(),
        SignatureFailure::OtherEndpoint => "signed with the secret of the other endpoint: the delivery went to the wrong path".to_owned(),
        SignatureFailure::WrongScope => "signed with the secret of Stripe's other endpoint: the platform's secret proves no event with `account`, and that of \
             the connected accounts none without".to_owned(),
        SignatureFailure::SecretMissing => "nobody has stored the provider's signing secret".to_owned(),
        SignatureFailure::NoMatch => list_body_variants(body)
            .into_iter()
            .find(|(_, body)| fits(body, known))
            .map(|(what, _)| format!("the body was changed after it was signed; it matches {what}"))
            .or_else(|| {
                let trimmed = known.iter().filter_map(|key| {
                    SigningKey::from_value(&key.label, key.secret.expose_secret().trim(), key.scope)
                });
                fits(body, &trimmed.collect::<Vec<_>>()).then(|| "the secret has white space around it: store it again without".to_owned())
            })
            .unwrap_or_else(|| {
                "no known secret gives this signature for this body: the secret belongs to another endpoint, a rotation is \
                 newer than the secrets here, or the body is not byte for byte what was sent".to_owned()
            }),
    });
    json!({ "provider": provider.as_str(), "verdict": if reason.is_none() { "genuine" } else { "refused" },
        "reason": reason.map(SignatureFailure::as_str), "because": because, "body_bytes": body.len(), "secrets_tried": known.len() })
}

/// Bodies as they may have been before an editor, a proxy or `curl --data` changed them.
fn list_body_variants(body: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
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
            "with Unix line endings",
            text.replace("\r\n", "\n").into_bytes(),
        ));
    }
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        changed.push((
            "without white space between its members",
            value.to_string().into_bytes(),
        ));
        changed.push(("indented by two spaces", format!("{value:#}").into_bytes()));
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use billhook_core::provider::sign_test_delivery;
    use billhook_core::provider::signature::KeyScope;
    use secrecy::SecretString;

    fn now() -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000).unwrap()
    }

    fn because(body: &[u8], secret: &str, at: Timestamp, sent: &[u8]) -> (Value, String) {
        let real = SecretString::from("whsec_1");
        let headers = sign_test_delivery(ProviderId::Stripe, &real, sent, now()).unwrap();
        let headers: Vec<_> = headers
            .into_iter()
            .map(|(n, v)| (n.to_lowercase(), v))
            .collect();
        let explanation = explain_signature(
            ProviderId::Stripe,
            &headers,
            body,
            &Vec::from_iter(SigningKey::from_value("secret", secret, KeyScope::Platform)),
            at,
        );
        (
            explanation["reason"].clone(),
            explanation["because"].to_string(),
        )
    }

    #[test]
    fn each_fault_of_a_signature_has_its_own_explanation() {
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
                "clocks is wrong",
            ),
        ] {
            let explanation = because(body, secret, at, sent);
            assert_eq!(explanation.0, reason);
            assert!(explanation.1.contains(text), "{explanation:?}");
            assert!(!explanation.1.contains("whsec"), "{explanation:?}");
        }
        let account = br#"{"id":"evt_1","type":"x.y","account":"acct_1"}"#;
        let explanation = because(account, "whsec_1", now(), account);
        assert_eq!(explanation.0, "wrong_scope", "{explanation:?}");
        let nothing = explain_signature(
            ProviderId::Lob,
            &[],
            sent,
            &Vec::from_iter(SigningKey::from_value("secret", "x", KeyScope::AllEvents)),
            now(),
        );
        assert_eq!(nothing["reason"], "header_missing");
    }
}
