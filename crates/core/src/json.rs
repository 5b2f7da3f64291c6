//! The one JSON parser for everything that providers send: strict about the document, lenient about single fields.
//!
//! Strict: UTF-8, nesting of at most 64, exact integers, and no duplicate keys among the fields that we read (serde's
//! derived structs refuse them); with duplicates, ingress and another reader could see two different events. Ingress
//! and workers use the same parser, so the worker can parse every body that ingress accepted.
//!
//! Lenient: a field of a wrong type is [`LenientField::Malformed`] and does not fail the event, because providers
//! change and redact their objects. The code that needs the field decides whether the event is parked.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeSeq, Serializer};

/// Deeper bodies are refused. Stripe's and Lob's objects stay below 10.
const DEPTH_MAX: usize = 64;
/// A longer text in a field that we read is malformed: no id or status comes near it.
const TEXT_BYTES_MAX: usize = 1_000;
/// 2^53. Up to here every JSON reader has exact integers, also one that uses doubles: 2^53 + 1 = 9007199254740993 would
/// silently become 9007199254740992 there. Greater integers are malformed.
const INTEGER_MAX: i64 = 1 << 53;
/// Further items of a list are dropped, because the list must fit a DynamoDB row (400 KB): 50 scans of 4 texts of 1,000
/// bytes are 200 KB. With 200 scans a row had 600 KB, and ingress answered every delivery of that event with 503. A
/// letter has about ten scans.
const ITEMS_MAX: usize = 50;

/// Why we refuse a body. It says where, never what: bodies contain personal data, and this text is logged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    #[error("the body is not UTF-8 from byte {at}")]
    NotUtf8 {
        /// Offset of the first wrong byte, from 0.
        at: usize,
    },
    #[error("the body is nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// Not JSON, a duplicate key, or a required field is missing or has the wrong type.
    #[error("cannot read the body as an event: line {line}, column {column}")]
    Unreadable {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
}

pub fn parse_body<'a, T: Deserialize<'a>>(raw: &'a [u8]) -> Result<T, JsonError> {
    let text = std::str::from_utf8(raw).map_err(|e| JsonError::NotUtf8 {
        at: e.valid_up_to(),
    })?;
    if nesting_depth(raw) > DEPTH_MAX {
        return Err(JsonError::TooDeep);
    }
    serde_json::from_str(text).map_err(|e| JsonError::Unreadable {
        line: e.line(),
        column: e.column(),
    })
}

/// Counts brackets outside of strings. This runs on every delivery, so it only looks for the bytes that matter; that
/// more than halved the time for a body of 60 KB, from 43 to 19 µs.
fn nesting_depth(raw: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.find(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']')) {
        match byte {
            // Skip the string. A byte after a backslash does not end it: `"\""` is one string.
            b'"' => {
                while let Some(b'\\') = bytes.find(|byte| matches!(byte, b'"' | b'\\')) {
                    bytes.next();
                }
            }
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            _ => depth = depth.saturating_sub(1),
        }
    }
    deepest
}

/// A field of a provider's object whose type we do not trust. Absent and malformed are kept apart: a missing amount may
/// be normal, a fraction where an amount should be never is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum LenientField<T> {
    /// Missing or null.
    #[default]
    Absent,
    /// There, but not of the documented type.
    Malformed,
    Value(T),
}

impl<T> LenientField<T> {
    /// Treats malformed as missing: for hints.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Malformed => None,
        }
    }

    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Fails if the field is there and malformed: for optional fields that matter if they are there.
    pub fn checked(&self) -> Result<Option<&T>, MalformedField> {
        match self {
            Self::Value(value) => Ok(Some(value)),
            Self::Absent => Ok(None),
            Self::Malformed => Err(MalformedField),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct MalformedField;

/// Reads a type from the kinds of JSON value that it accepts; every other kind is malformed.
pub trait LenientValue<'de>: Sized {
    fn from_text(_: &str) -> Option<Self> {
        None
    }
    /// Called only with -2^53 to 2^53.
    fn from_integer(_: i64) -> Option<Self> {
        None
    }
    fn from_bool(_: bool) -> Option<Self> {
        None
    }
    /// Must read the object to its end, else the parser stops in the middle of the body.
    fn from_object<A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
    /// Must read the list to its end.
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl LenientValue<'_> for String {
    fn from_text(text: &str) -> Option<Self> {
        (text.len() <= TEXT_BYTES_MAX).then(|| text.to_owned())
    }
}

impl LenientValue<'_> for i64 {
    fn from_integer(integer: i64) -> Option<Self> {
        Some(integer)
    }
}

impl LenientValue<'_> for bool {
    fn from_bool(truth: bool) -> Option<Self> {
        Some(truth)
    }
}

/// A nested object; `T` has the fields that we read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NestedObject<T>(pub T);

impl<'de, T: Deserialize<'de>> LenientValue<'de> for NestedObject<T> {
    fn from_object<A: MapAccess<'de>>(object: A) -> Result<Option<Self>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(object)).map(|read| Some(Self(read)))
    }
}

/// The well-formed items of a list, at most 50; malformed items are dropped.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BoundedList<T>(pub Vec<T>);

impl<'de, T: LenientValue<'de>> LenientValue<'de> for BoundedList<T> {
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element::<LenientField<T>>()? {
            if let (LenientField::Value(item), true) = (item, items.len() < ITEMS_MAX) {
                items.push(item);
            }
        }
        Ok(Some(Self(items)))
    }
}

impl<'de, T: LenientValue<'de>> Deserialize<'de> for LenientField<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(LenientVisitor(PhantomData))
    }
}

struct LenientVisitor<T>(PhantomData<T>);

fn value_or_malformed<T>(read: Option<T>) -> LenientField<T> {
    read.map_or(LenientField::Malformed, LenientField::Value)
}

impl<'de, T: LenientValue<'de>> Visitor<'de> for LenientVisitor<T> {
    type Value = LenientField<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_unit<E>(self) -> Result<LenientField<T>, E> {
        Ok(LenientField::Absent)
    }
    fn visit_bool<E>(self, truth: bool) -> Result<LenientField<T>, E> {
        Ok(value_or_malformed(T::from_bool(truth)))
    }
    fn visit_i64<E: serde::de::Error>(self, integer: i64) -> Result<LenientField<T>, E> {
        let exact = (-INTEGER_MAX..=INTEGER_MAX).contains(&integer);
        Ok(value_or_malformed(
            exact.then(|| T::from_integer(integer)).flatten(),
        ))
    }
    fn visit_u64<E: serde::de::Error>(self, integer: u64) -> Result<LenientField<T>, E> {
        self.visit_i64(i64::try_from(integer).unwrap_or(i64::MAX))
    }
    fn visit_f64<E>(self, _: f64) -> Result<LenientField<T>, E> {
        Ok(LenientField::Malformed)
    }
    fn visit_str<E>(self, text: &str) -> Result<LenientField<T>, E> {
        Ok(value_or_malformed(T::from_text(text)))
    }
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<LenientField<T>, A::Error> {
        T::from_object(object).map(value_or_malformed)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<LenientField<T>, A::Error> {
        T::from_list(list).map(value_or_malformed)
    }
}

/// A struct whose fields are all read leniently.
macro_rules! lenient_struct {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $($(#[$field_doc])* #[serde(default, skip_serializing_if = "LenientField::is_absent")]
            pub $field: $crate::json::LenientField<$kind>,)*
        }
    };
}
pub(crate) use lenient_struct;

// Used only by `trim_payload`, for bodies that are too large to store whole. Reading the trimmed body must give the
// same result as reading the whole one. So a malformed field has to stay malformed and not become absent: it is written
// as 0.5, which is malformed for every type that we read.
impl<T: Serialize> Serialize for LenientField<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent => to.serialize_unit(),
            Self::Malformed => to.serialize_f64(0.5),
            Self::Value(value) => value.serialize(to),
        }
    }
}

impl<T: Serialize> Serialize for NestedObject<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<T: Serialize> Serialize for BoundedList<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.0.len()))?;
        for item in &self.0 {
            list.serialize_element(item)?;
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Sample {
        #[serde(default)]
        amount: LenientField<i64>,
        #[serde(default)]
        name: LenientField<String>,
    }

    #[track_caller]
    fn check(json: &str, amount: LenientField<i64>) {
        let read: Sample = parse_body(json.as_bytes()).unwrap();
        assert_eq!(read.amount, amount, "{json}");
    }

    #[test]
    fn integers_are_exact_or_malformed() {
        check(r#"{"amount":4200}"#, LenientField::Value(4200));
        check(r#"{"amount":-1}"#, LenientField::Value(-1));
        check(r#"{}"#, LenientField::Absent);
        check(r#"{"amount":null}"#, LenientField::Absent);
        check(
            r#"{"amount":9007199254740992}"#,
            LenientField::Value(1 << 53),
        );
        for wrong in [
            "9007199254740993",
            "1e3",
            "42.0",
            "99999999999999999999",
            "\"4200\"",
            "true",
            "{}",
            "[1]",
        ] {
            check(&format!(r#"{{"amount":{wrong}}}"#), LenientField::Malformed);
        }
    }

    #[test]
    fn duplicate_keys_in_fields_we_read_are_refused_and_elsewhere_ignored() {
        assert!(parse_body::<Sample>(br#"{"amount":1,"amount":2}"#).is_err());
        assert!(parse_body::<Sample>(br#"{"amount":1,"x":2,"x":3}"#).is_ok());
    }

    #[test]
    fn depth_is_counted_outside_texts_only() {
        let nested =
            |levels: usize| format!(r#"{{"x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        assert!(parse_body::<Sample>(nested(63).as_bytes()).is_ok());
        assert_eq!(
            parse_body::<Sample>(nested(64).as_bytes()),
            Err(JsonError::TooDeep)
        );
        let text = format!(r#"{{"name":"\"{}"}}"#, "[".repeat(100));
        assert!(parse_body::<Sample>(text.as_bytes()).is_ok());
    }

    #[test]
    fn errors_say_where_and_never_what() {
        let error = parse_body::<Sample>(b"{\"name\":\"Pat\" Sample}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the body as an event: line 1, column 15"
        );
        assert_eq!(
            parse_body::<Sample>(b"\xff{}"),
            Err(JsonError::NotUtf8 { at: 0 })
        );
    }
}
