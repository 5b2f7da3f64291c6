//! Identifiers: one type per kind, so that an order's id cannot be passed as a statement's.
//!
//! Prefix, length and alphabet are checked once, when the text is parsed; the rest of the code relies on them (a
//! DynamoDB partition key has at most 2,048 bytes, an SQS deduplication id 128). A valid id says nothing about whether
//! the object exists or whose it is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Names the kind, the rule and the length of the text, but not the text itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {rule}, got {got}")]
pub struct InvalidId {
    kind: &'static str,
    rule: String,
    got: String,
}

fn check_id(
    kind: &'static str,
    prefix: &str,
    bytes_max: usize,
    text: &str,
) -> Result<(), InvalidId> {
    let fits = text.starts_with(prefix)
        && text.len() > prefix.len()
        && text.len() <= bytes_max
        && text.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        return Ok(());
    }
    // The text may be hostile, huge or a secret: a signing secret pasted into an id's place must not get into the log.
    Err(InvalidId {
        kind,
        rule: format!("at most {bytes_max} printable ASCII characters beginning with {prefix:?}"),
        got: format!("{} bytes", text.len()),
    })
}

#[derive(Deserialize)]
struct ExpandedReference {
    #[serde(default)]
    id: crate::json::LenientField<String>,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal, $bytes_max:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                check_id(stringify!($name), $prefix, $bytes_max, text).map(|()| Self(text.to_owned()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        // In a provider's object a reference is an id, `"pi_1"`, or the whole object, `{"id": "pi_1", …}`. Stripe
        // expands references in older API versions.
        impl<'de> $crate::json::LenientValue<'de> for $name {
            fn from_text(text: &str) -> Option<Self> {
                Self::parse(text).ok()
            }
            fn from_object<A: serde::de::MapAccess<'de>>(
                object: A,
            ) -> Result<Option<Self>, A::Error> {
                let expanded = ExpandedReference::deserialize(serde::de::value::MapAccessDeserializer::new(object))?;
                Ok(expanded.id.value().and_then(|id| Self::parse(id).ok()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    )*};
}

ids! {
    /// An event of Stripe or Lob; both begin with `evt_`. At most 85 bytes: a replay's deduplication id is
    /// `{event_id}.r.{uuid}`, 85 + 3 + 36 = 124 bytes, and SQS allows 128.
    EventId = "evt_", 85;
    /// A connected Stripe account.
    AccountId = "acct_", 64;
    PaymentIntentId = "pi_", 255;
    CheckoutSessionId = "cs_", 255;
    /// No prefix is required, because it depends on the payment method: `ch_`, for some `py_`.
    ChargeId = "", 255;
    /// No prefix is required: `re_`, for some payment methods `pyr_`.
    RefundId = "", 255;
    /// Any other object of a provider.
    ObjectId = "", 255;
    /// A printed piece of Lob: a letter, postcard, self mailer or check. Each has its own prefix.
    PieceId = "", 255;
    /// The application chooses the ids of its orders, statements, tenants and users; only length and alphabet are
    /// fixed.
    OrderId = "", 255;
    StatementId = "", 255;
    TenantId = "", 255;
    UserId = "", 255;
}

/// What names a payment in the facts, and an attempt to pay: a PaymentIntent; a Checkout Session that has none (nothing
/// to pay, or a subscription's); a charge, where attempts are told apart.
///
/// Stored as the id alone, and ordered by it, whichever kind it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PaymentRef {
    Intent(PaymentIntentId),
    Session(CheckoutSessionId),
    Charge(ChargeId),
}

impl PaymentRef {
    /// The prefix decides. Charges have several (`ch_`, `py_`), so whatever is no intent and no session is a charge.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        if let Ok(intent) = PaymentIntentId::parse(text) {
            return Ok(Self::Intent(intent));
        }
        if let Ok(session) = CheckoutSessionId::parse(text) {
            return Ok(Self::Session(session));
        }
        ChargeId::parse(text).map(Self::Charge)
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Intent(id) => id.as_str(),
            Self::Session(id) => id.as_str(),
            Self::Charge(id) => id.as_str(),
        }
    }

    pub fn intent(&self) -> Option<&PaymentIntentId> {
        match self {
            Self::Intent(intent) => Some(intent),
            Self::Session(_) | Self::Charge(_) => None,
        }
    }
}

impl fmt::Display for PaymentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Ord for PaymentRef {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl PartialOrd for PaymentRef {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl TryFrom<String> for PaymentRef {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::parse(&text)
    }
}

impl From<PaymentRef> for String {
    fn from(payment: PaymentRef) -> Self {
        match payment {
            PaymentRef::Intent(id) => id.into(),
            PaymentRef::Session(id) => id.into(),
            PaymentRef::Charge(id) => id.into(),
        }
    }
}

/// Follows one delivery, or one replay, through response, logs, rows and messages: a `UUIDv7` that billhook makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CorrelationId(pub uuid::Uuid);

impl CorrelationId {
    pub fn parse(text: &str) -> Option<Self> {
        uuid::Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProviderId {
    Stripe,
    Lob,
}

impl ProviderId {
    /// The word in rows, messages, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Lob => "lob",
        }
    }
}

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_leaves_room_for_the_replay_suffix() {
        let longest = format!("evt_{}", "x".repeat(81));
        assert!(EventId::parse(&longest).is_ok());
        assert!(longest.len() + ".r.".len() + 36 <= 128);
        assert!(EventId::parse(&format!("{longest}x")).is_err());
    }

    #[test]
    fn payments_are_stored_and_ordered_by_their_id_alone() {
        let texts = ["ch_1", "cs_1", "pi_", "pi_1", "py_1"];
        let parsed = texts.map(|text| PaymentRef::parse(text).unwrap());
        assert!(parsed.is_sorted());
        assert_eq!(parsed.each_ref().map(PaymentRef::as_str), texts);
        let intents = parsed.iter().filter_map(PaymentRef::intent);
        assert_eq!(
            intents.map(PaymentIntentId::as_str).collect::<Vec<_>>(),
            ["pi_1"]
        );
        assert!(PaymentRef::parse("").is_err());
    }

    #[test]
    fn a_bad_id_is_named_without_being_repeated() {
        let error = AccountId::parse("acct_with space").unwrap_err().to_string();
        assert_eq!(
            error,
            "AccountId must be at most 64 printable ASCII characters beginning with \"acct_\", got 15 bytes"
        );
        assert!(OrderId::parse("").is_err());
        assert!(OrderId::parse(&"x".repeat(10_000)).is_err());
    }
}
