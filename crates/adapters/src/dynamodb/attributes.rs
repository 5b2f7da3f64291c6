//! DynamoDB attribute values: how we read and write them, and how many bytes and write units a row takes.
//!
//! The readers return `None` for a missing attribute and for one of another type; they never guess a value.
//! `entities` builds whole rows from these.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

pub type Item = HashMap<String, AttributeValue>;

pub fn string_value(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub fn number_value(integer: i64) -> AttributeValue {
    AttributeValue::N(integer.to_string())
}

pub fn read_text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

/// `None` for a fraction too: amounts are integers in the currency's minor unit.
pub fn read_integer(item: &Item, name: &str) -> Option<i64> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

pub fn read_bool(item: &Item, name: &str) -> Option<bool> {
    item.get(name)?.as_bool().ok().copied()
}

/// The bytes that DynamoDB counts for a row: names in UTF-8, values by type.
/// Source: DynamoDB Developer Guide, "Item sizes and formats", read 2026-11.
pub fn item_size(item: &Item) -> usize {
    item.iter()
        .map(|(name, value)| attribute_size(name, value))
        .sum()
}

/// The bytes of one attribute, including its name.
pub fn attribute_size(name: &str, value: &AttributeValue) -> usize {
    name.len() + value_size(value)
}

fn value_size(value: &AttributeValue) -> usize {
    // A list or map takes 3 bytes, and each element one more.
    match value {
        AttributeValue::S(text) => text.len(),
        // DynamoDB counts about one byte per two digits, plus one. We may count a few bytes too many, which is
        // harmless: `ROW_BYTES_MAX` leaves about 100 KB of room below DynamoDB's limit.
        AttributeValue::N(number) => number.len().div_ceil(2) + 2,
        AttributeValue::B(bytes) => bytes.as_ref().len(),
        AttributeValue::Bool(_) | AttributeValue::Null(_) => 1,
        AttributeValue::Ss(texts) | AttributeValue::Ns(texts) => {
            texts.iter().map(String::len).sum()
        }
        AttributeValue::Bs(blobs) => blobs.iter().map(|blob| blob.as_ref().len()).sum(),
        AttributeValue::L(items) => {
            3 + items.iter().map(|item| 1 + value_size(item)).sum::<usize>()
        }
        AttributeValue::M(members) => 3 + members.len() + item_size(members),
        _ => 0,
    }
}

/// DynamoDB charges a write by the whole row in units of 1 KiB: a row of 1,025 bytes costs 2 units, and in a
/// transaction 4. Index entries come on top.
pub fn count_write_units(bytes: usize) -> usize {
    bytes.div_ceil(1024)
}
