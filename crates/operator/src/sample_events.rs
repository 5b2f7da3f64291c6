//! Sample events of all providers for test deliveries, taken from `events/payloads`, with a new id and the current time.

use anyhow::{Context as _, Result, anyhow, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::provider::interpret::TimeForm;
use billhook_core::provider::signature::SigningKey;
use billhook_core::provider::{catalogue, event_fields};
use billhook_core::time::Timestamp;
use serde_json::{Value, json};

/// Every file of `events/payloads`: its provider, its name without its ending, and its text.
const FILES: &[(&str, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/samples.rs"));

/// The account of a test event for a stack whose only endpoint is that of the connected accounts.
const TEST_ACCOUNT: &str = "acct_billhook";

/// An event of a type that no worker handles, which one of the keys proves: its id and its body.
pub(crate) fn build_test_event(
    provider: ProviderId,
    event_type: &str,
    keys: &[SigningKey],
) -> Result<(String, String)> {
    let known = load_samples(provider);
    let (_, sample) = known.first().context("there are no samples")?;
    let id = new_event_id(provider);
    let mut sets = vec![format!(
        "{}={event_type}",
        event_fields(provider).event_type
    )];
    if keys.iter().all(|key| !key.scope.includes(false)) {
        sets.push(format!("account={TEST_ACCOUNT}"));
    }
    let body = build_sample_body(provider, sample, &id, SystemClock.now(), &sets)?;
    Ok((id, body))
}

pub(crate) fn new_event_id(provider: ProviderId) -> String {
    provider.new_event_id(SystemClock.new_id()).to_string()
}

/// One sample of each type, with its type: first the types of the catalogue, then those that are ignored.
pub(crate) fn load_samples(provider: ProviderId) -> Vec<(String, Value)> {
    let own = FILES.iter().filter(|(of, ..)| *of == provider.as_str());
    let parsed = own.filter_map(|(_, name, text)| {
        let sample: Value = serde_json::from_str(text).ok()?;
        Some((*name, sample))
    });
    let files: Vec<(&str, Value)> = parsed.collect();
    let path = event_fields(provider).event_type;
    let type_of = |sample: &Value| {
        let pointer = format!("/{}", path.replace('.', "/"));
        sample.pointer(&pointer)?.as_str().map(str::to_owned)
    };
    let mut samples: Vec<(String, Value)> = Vec::new();
    for entry in catalogue(provider) {
        let file = files.iter().find(|(name, _)| *name == entry.sample);
        if let Some((_, sample)) = file {
            let mut sample = sample.clone();
            // A stage of Lob without a file of its own has that of a similar one.
            if set_member(&mut sample, path, json!(entry.event_type)).is_ok() {
                samples.push((entry.event_type.to_owned(), sample));
            }
        }
    }
    for (_, sample) in files {
        if let Some(event_type) = type_of(&sample)
            && !samples.iter().any(|(known, _)| *known == event_type)
        {
            samples.push((event_type, sample));
        }
    }
    samples
}

pub(crate) fn build_sample_body(
    provider: ProviderId,
    sample: &Value,
    id: &str,
    now: Timestamp,
    sets: &[String],
) -> Result<String> {
    let mut body = sample.clone();
    let fields = event_fields(provider);
    let created_at = match fields.time_form {
        TimeForm::UnixSeconds => json!(now.unix_s()),
        TimeForm::Rfc3339 => json!(now.to_string()),
    };
    for (name, value) in [(fields.id, json!(id)), (fields.created_at, created_at)] {
        set_member(&mut body, name, value)?;
    }
    for set in sets {
        let (path, value) = set
            .split_once('=')
            .ok_or_else(|| anyhow!("--set {set}: expected PATH=VALUE"))?;
        set_member(
            &mut body,
            path,
            serde_json::from_str(value).unwrap_or_else(|_| json!(value)),
        )?;
    }
    Ok(body.to_string())
}

fn set_member(body: &mut Value, path: &str, value: Value) -> Result<()> {
    let mut place = body;
    for name in path.split('.') {
        if place.is_null() {
            *place = json!({});
        }
        let Some(members) = place.as_object_mut() else {
            bail!("--set {path}: the parent of {name} is not an object");
        };
        place = members.entry(name).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use billhook_core::provider::signature::KeyScope;
    use billhook_testkit::events::envelope;

    fn now() -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000).unwrap()
    }

    #[test]
    fn a_test_event_is_one_that_the_stacks_endpoint_proves() {
        for scope in [
            KeyScope::AllEvents,
            KeyScope::Platform,
            KeyScope::ConnectedAccounts,
        ] {
            let keys = Vec::from_iter(SigningKey::from_value("key", "whsec_1", scope));
            let (_, body) = build_test_event(ProviderId::Stripe, "a.b", &keys).unwrap();
            let account = envelope(ProviderId::Stripe, body.as_bytes()).account;
            assert!(scope.includes(account.is_some()), "{scope:?} {body}");
        }
    }

    #[test]
    fn every_type_of_the_catalogue_has_a_sample_that_accepts_values() {
        for provider in ProviderId::ALL {
            let known = load_samples(*provider);
            for entry in catalogue(*provider) {
                let of = known.iter().filter(|(name, _)| name == entry.event_type);
                assert_eq!(of.count(), 1, "{provider} {}", entry.event_type);
            }
            for (name, sample) in &known {
                let id = new_event_id(*provider);
                let body = build_sample_body(*provider, sample, &id, now(), &[]).unwrap();
                let envelope = envelope(*provider, body.as_bytes());
                assert_eq!(
                    (envelope.id.as_str(), envelope.event_type.as_str()),
                    (id.as_str(), name.as_str())
                );
            }
        }
        let mut body = json!({ "data": {}, "n": 1 });
        set_member(&mut body, "data.object.amount", json!(7)).unwrap();
        assert_eq!(body["data"]["object"]["amount"], 7);
        assert!(set_member(&mut body, "n.x", json!(1)).is_err());
    }
}
