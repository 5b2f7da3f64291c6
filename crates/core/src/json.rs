//! One strict parser for everything a provider sends, the same in ingress and workers: UTF-8, nested at most 64 deep,
//! no duplicate keys among the fields we read (serde's derived structs refuse them), integers exact.
//!
//! Inside that, single fields are read leniently through [`LenientField`], because providers change and redact their objects:
//! a wrong type never fails the whole event, it is `MalformedField`, and whoever needs that field decides.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeSeq, Serializer};

/// Deeper nesting is refused. Stripe's and Lob's objects stay below 10.
const DEPTH_MAX: usize = 64;
/// A longer text in a field we read is malformed: no identifier or status is near it.
const TEXT_BYTES_MAX: usize = 1_000;
/// Integers are exact in every reader up to here (2^53); amounts beyond it are malformed.
const INTEGER_MAX: i64 = 1 << 53;
/// More items of a list than this are not kept: with four full texts each they still fit a row of DynamoDB. A letter has
/// about ten scans.
const ITEMS_MAX: usize = 50;

/// Why a body is no JSON we accept. Says where, never what: bodies hold personal data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Bytes that are not UTF-8.
    #[error("the body is not UTF-8 from byte {at}")]
    NotUtf8 {
        /// The first wrong byte.
        at: usize,
    },
    /// Nested too deep.
    #[error("the body is nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// Not JSON, a duplicate key, or a field that must be there is missing or of another kind.
    #[error("the body is no event we can read: line {line}, column {column}")]
    Unreadable {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
}

/// Parses a whole body.
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

fn nesting_depth(raw: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.find(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']')) {
        match byte {
            // On to the end of the text, which a byte behind a backslash is not.
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

/// A field of a provider's object, read without trusting its type.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum LenientField<T> {
    /// Missing or null.
    #[default]
    Absent,
    /// There, but not what the documentation says.
    Malformed,
    /// There.
    Value(T),
}

impl<T> LenientField<T> {
    /// The value, where there is a good one.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Malformed => None,
        }
    }

    /// For `skip_serializing_if`.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// The value or nothing; an error where the field is there and wrong.
    pub fn checked(&self) -> Result<Option<&T>, MalformedField> {
        match self {
            Self::Value(value) => Ok(Some(value)),
            Self::Absent => Ok(None),
            Self::Malformed => Err(MalformedField),
        }
    }
}

/// A field was there and of another kind than documented.
#[derive(Debug, PartialEq, Eq)]
pub struct MalformedField;

/// What a type makes of the kinds of JSON value; whatever it does not take is malformed.
pub trait LenientValue<'de>: Sized {
    /// From a text.
    fn from_text(_: &str) -> Option<Self> {
        None
    }
    /// From an integer of at most 2^53 either side.
    fn from_integer(_: i64) -> Option<Self> {
        None
    }
    /// From a truth value.
    fn from_bool(_: bool) -> Option<Self> {
        None
    }
    /// From an object.
    fn from_object<A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
    /// From a list.
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

/// A nested object of which `T` names the fields we read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NestedObject<T>(pub T);

impl<'de, T: Deserialize<'de>> LenientValue<'de> for NestedObject<T> {
    fn from_object<A: MapAccess<'de>>(object: A) -> Result<Option<Self>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(object)).map(|read| Some(Self(read)))
    }
}

/// The good items of a list, at most 50.
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

// Written back only for bodies too large to keep whole: what was read is what a later reading finds, a malformed
// field included (a fraction is malformed for every kind we read).
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
            "the body is no event we can read: line 1, column 15"
        );
        assert_eq!(
            parse_body::<Sample>(b"\xff{}"),
            Err(JsonError::NotUtf8 { at: 0 })
        );
    }
}
