//! The seal of a state's row (HMAC): proof that billhook wrote it. Who may write to the table and has no key cannot make
//! an order paid by its state.
//!
//! It covers the row's key and all attributes of ours, with the facts of all pages: what a reader has after it joined the
//! pages, and a writer before it splits them. Attributes that only a newer release knows are not covered; that release
//! writes another `schema`. A row that was once genuine stays genuine: who puts an older copy back is found by its
//! `version`.

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::schema::{SEAL, STATE_COLUMNS};
use billhook_core::seal::StateSealKeys;

use super::attributes::Item;

pub(super) fn read_state_seal(state: &Item) -> Option<&[u8]> {
    match state.get(SEAL) {
        Some(AttributeValue::B(seal)) => Some(seal.as_ref()),
        _ => None,
    }
}

/// Seals a state whose facts are in it, and not in pages.
pub fn seal_state(state: &mut Item, keys: &StateSealKeys) {
    let seal = keys.seal(&encode_state(state));
    state.insert(SEAL.to_owned(), AttributeValue::B(Blob::new(seal)));
}

pub(super) fn is_genuine(state: &Item, keys: &StateSealKeys) -> bool {
    keys.proves(&encode_state(state), read_state_seal(state))
}

/// One text for one state, whatever the order of a map's or a set's members in memory.
fn encode_state(state: &Item) -> Vec<u8> {
    let mut text = Vec::with_capacity(4 * 1024);
    let covered = STATE_COLUMNS.iter().map(|column| column.name);
    for name in covered.filter(|name| *name != SEAL && *name != "pages") {
        if let Some(value) = state.get(name) {
            encode_bytes(&mut text, b'n', name.as_bytes());
            encode_value(&mut text, value);
        }
    }
    text
}

/// The type, the length, the bytes: so that no two values have the same text.
fn encode_bytes(text: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    encode_count(text, kind, bytes.len());
    text.extend_from_slice(bytes);
}

fn encode_count(text: &mut Vec<u8>, kind: u8, count: usize) {
    text.push(kind);
    // A row has less than 400 KB.
    text.extend(u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
}

fn encode_value(text: &mut Vec<u8>, value: &AttributeValue) {
    match value {
        AttributeValue::S(value) => encode_bytes(text, b'S', value.as_bytes()),
        AttributeValue::N(value) => encode_bytes(text, b'N', value.as_bytes()),
        AttributeValue::B(value) => encode_bytes(text, b'B', value.as_ref()),
        AttributeValue::Bool(value) => encode_count(text, b'b', usize::from(*value)),
        AttributeValue::Null(_) => text.push(b'0'),
        AttributeValue::Ss(values) => {
            let mut values: Vec<&String> = values.iter().collect();
            values.sort_unstable();
            encode_count(text, b's', values.len());
            for value in values {
                encode_bytes(text, b'S', value.as_bytes());
            }
        }
        AttributeValue::L(values) => {
            encode_count(text, b'L', values.len());
            for value in values {
                encode_value(text, value);
            }
        }
        AttributeValue::M(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            encode_count(text, b'M', members.len());
            for (name, value) in members {
                encode_bytes(text, b'n', name.as_bytes());
                encode_value(text, value);
            }
        }
        // No state of ours has another type; if one has, no key proves it.
        _ => text.push(b'?'),
    }
}

#[cfg(test)]
mod tests {
    use billhook_core::seal::SealKeys as _;
    use serde_json::json;

    use super::super::attributes::{number_value, string_value};
    use super::*;

    fn keys() -> StateSealKeys {
        let text = json!({ "key": "k".repeat(64) }).to_string();
        StateSealKeys::parse(&text).unwrap()
    }

    fn state() -> Item {
        let mut state: Item = serde_dynamo::to_item(json!({
            "entity": "order#ord_1", "schema": 1, "version": 3, "tenant_id": "ten_1",
            "facts": { "payments": { "pi_1": { "amount": 4200, "paid": true } } },
            "derived": { "status": "completed" }, "event_ids": ["evt_1", "evt_2"],
        }))
        .unwrap();
        seal_state(&mut state, &keys());
        state
    }

    #[test]
    fn whatever_is_changed_in_a_state_is_noticed() {
        let keys = keys();
        assert!(is_genuine(&state(), &keys));
        let value = |value: serde_json::Value| serde_dynamo::to_attribute_value(value).unwrap();
        let changes = [
            ("entity", string_value("order#ord_2")),
            ("schema", number_value(0)),
            ("version", number_value(4)),
            ("version", string_value("3")),
            ("tenant_id", string_value("ten_2")),
            (
                "facts",
                value(json!({ "payments": { "pi_1": { "amount": 4201, "paid": true } } })),
            ),
            (
                "facts",
                value(json!({ "payments": { "pi_1": { "amount": 4200, "paid": false } } })),
            ),
            ("facts", value(json!({ "payments": {} }))),
            (
                "derived",
                value(json!({ "status": "completed", "more": null })),
            ),
            ("event_ids", value(json!(["evt_2", "evt_1"]))),
            ("event_ids", value(json!(["evt_1evt_2"]))),
            ("alias_of", string_value("payment#platform#pi_2")),
            ("seal", AttributeValue::B(Blob::new([0; 20]))),
        ];
        for (name, value) in changes {
            let mut changed = state();
            changed.insert(name.to_owned(), value.clone());
            assert!(!is_genuine(&changed, &keys), "{name}: {value:?}");
        }
        for name in state().keys().filter(|name| *name != "pages") {
            let mut changed = state();
            changed.remove(name);
            assert!(!is_genuine(&changed, &keys), "without {name}");
        }
    }

    #[test]
    fn neither_pages_nor_the_order_of_a_set_nor_a_newer_releases_attribute_matters() {
        let keys = keys();
        let mut sealed = state();
        let set = |texts: [&str; 2]| AttributeValue::Ss(texts.map(str::to_owned).into());
        sealed.insert("pages".to_owned(), set(["0", "1"]));
        sealed.insert("newer".to_owned(), string_value("x"));
        assert!(is_genuine(&sealed, &keys));
        sealed.insert(
            "facts".to_owned(),
            AttributeValue::M(Item::from([("of".to_owned(), set(["a", "b"]))])),
        );
        seal_state(&mut sealed, &keys);
        sealed.insert(
            "facts".to_owned(),
            AttributeValue::M(Item::from([("of".to_owned(), set(["b", "a"]))])),
        );
        assert!(is_genuine(&sealed, &keys));
    }
}
