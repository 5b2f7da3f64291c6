//! The published vectors: verdicts of Stripe's own Python and Node libraries, and Lob's documented rule.
#![cfg(test)]

use std::time::Duration;

use billhook_core::provider::lob::signature::parse_signature_headers;
use billhook_core::provider::signature::{
    KeyScope, SignatureFailure, SigningKey, UnverifiedSignature,
};
use billhook_core::provider::stripe::signature::parse_signature_header;
use billhook_core::time::Timestamp;
use data_encoding::BASE64;
use serde_json::Value;

fn vectors(file: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(file).unwrap();
    all["vectors"].as_array().unwrap().clone()
}

fn verdict(
    claim: Result<UnverifiedSignature, SignatureFailure>,
    vector: &Value,
    now: Timestamp,
) -> Result<(), SignatureFailure> {
    let body = BASE64
        .decode(vector["body_b64"].as_str().unwrap().as_bytes())
        .unwrap();
    let keys = SigningKey::from_value(
        "vector",
        vector["secret"].as_str().unwrap(),
        KeyScope::AllEvents,
    );
    let keys: Vec<_> = keys.into_iter().collect();
    claim?
        .verify(&body, &keys, now, Duration::from_secs(300))
        .map(drop)
}

#[test]
fn every_stripe_vector_ends_as_the_official_libraries_agree() {
    let all = vectors(include_str!("vectors/stripe-signature-vectors.json"));
    assert_eq!(all.len(), 54);
    for vector in all {
        let now = Timestamp::from_unix_s(vector["now"].as_i64().unwrap()).unwrap();
        let verdict = verdict(
            parse_signature_header(vector["header"].as_str()),
            &vector,
            now,
        );
        match vector["recommended"].as_str().unwrap() {
            "accept" => assert_eq!(verdict, Ok(()), "{}", vector["name"]),
            // An empty body is refused as no JSON, after its signature.
            "reject" if vector["name"] == "empty_body" => assert_eq!(verdict, Ok(())),
            "reject" => assert!(verdict.is_err(), "{}", vector["name"]),
            // Ours to choose: the future is bounded, the grammar is exact, the raw bytes count.
            "choice" => assert_eq!(
                verdict.is_ok(),
                ["whitespace_body", "utf8_bom_body"].contains(&vector["name"].as_str().unwrap()),
                "{}",
                vector["name"]
            ),
            other => panic!("unknown verdict {other}"),
        }
    }
}

#[test]
fn every_lob_vector_ends_as_the_documented_rule_says() {
    let all = vectors(include_str!("vectors/lob-signature-vectors.json"));
    assert_eq!(all.len(), 16);
    for vector in all {
        let now = Timestamp::from_unix_ms(vector["now_ms"].as_i64().unwrap()).unwrap();
        let headers = &vector["headers"];
        let claim = parse_signature_headers(
            headers["Lob-Signature"].as_str(),
            headers["Lob-Signature-Timestamp"].as_str(),
        );
        let verdict = verdict(claim, &vector, now);
        // Seconds are understood as well as milliseconds: that is our choice.
        let accept = ["accept", "choice"].contains(&vector["expected"].as_str().unwrap());
        assert_eq!(verdict.is_ok(), accept, "{}: {verdict:?}", vector["name"]);
    }
}
