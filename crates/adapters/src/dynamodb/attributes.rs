//! How values stand in a row: reading, writing and measuring attributes.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

/// A row.
pub type Item = HashMap<String, AttributeValue>;

/// A text.
pub fn string_value(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

/// An integer.
pub fn number_value(integer: i64) -> AttributeValue {
    AttributeValue::N(integer.to_string())
}

/// The text of an attribute.
pub fn read_text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

/// The integer of an attribute; a fraction or a text is none.
pub fn read_integer(item: &Item, name: &str) -> Option<i64> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

/// The truth of an attribute.
pub fn read_bool(item: &Item, name: &str) -> Option<bool> {
    item.get(name)?.as_bool().ok().copied()
}

/// What DynamoDB counts for a row: names in UTF-8, values by kind.
/// Source: DynamoDB Developer Guide, "Item sizes and formats", read 2026-11.
pub fn item_size(item: &Item) -> usize {
    item.iter()
        .map(|(name, value)| attribute_size(name, value))
        .sum()
}

/// The same of one attribute, its name with it.
pub fn attribute_size(name: &str, value: &AttributeValue) -> usize {
    name.len() + value_size(value)
}

fn value_size(value: &AttributeValue) -> usize {
    // A list or map takes 3 bytes, and one more per element.
    match value {
        AttributeValue::S(text) => text.len(),
        // One byte per two digits and one more; a few bytes too many are harmless here.
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

/// Whole kibibytes, as writes are charged.
pub fn count_write_units(bytes: usize) -> usize {
    bytes.div_ceil(1024)
}
