//! Identifiers. Each is a type of its own and is checked once, where it enters; the rest of the code may rely on
//! its length and alphabet (a DynamoDB key takes 2,048 bytes, an SQS deduplication id 128).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a text is no identifier of the wanted kind.
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
    // What came in may be hostile or huge: its length says enough.
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
            /// Checks prefix, length and alphabet.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                check_id(stringify!($name), $prefix, $bytes_max, text).map(|()| Self(text.to_owned()))
            }

            /// The identifier as its owner writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        // In a provider's object a reference is the id, or the object itself where it was expanded.
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
    /// An event, of Stripe or of Lob: both begin with `evt_`. 85 bytes, so that `{event_id}.r.{uuid}` fits the 128 of
    /// a deduplication id.
    EventId = "evt_", 85;
    /// A connected account of Stripe.
    AccountId = "acct_", 64;
    /// Stripe's PaymentIntent.
    PaymentIntentId = "pi_", 255;
    /// Stripe's Checkout Session.
    CheckoutSessionId = "cs_", 255;
    /// Stripe's Charge (`ch_`, for some methods `py_`).
    ChargeId = "", 255;
    /// Stripe's Refund (`re_`, for some methods `pyr_`).
    RefundId = "", 255;
    /// Any other object of a provider.
    ObjectId = "", 255;
    /// A printed piece of Lob: letter, postcard, self mailer or check.
    PieceId = "", 255;
    /// The application's order.
    OrderId = "", 255;
    /// The application's statement.
    StatementId = "", 255;
    /// The application's tenant.
    TenantId = "", 255;
    /// The application's user.
    UserId = "", 255;
}

/// Names one delivery's story through logs, rows and messages: a `UUIDv7` of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CorrelationId(pub uuid::Uuid);

impl CorrelationId {
    /// Reads the hyphenated form.
    pub fn parse(text: &str) -> Option<Self> {
        uuid::Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Who sent an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProviderId {
    /// Stripe: payments.
    Stripe,
    /// Lob: printed mail.
    Lob,
}

impl ProviderId {
    /// The lower-case word used in rows, messages, logs and metrics.
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
