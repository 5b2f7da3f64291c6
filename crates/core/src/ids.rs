//! Identifiers: one type per kind, so that an order's id cannot be passed as a statement's.
//!
//! Prefix, length and alphabet are checked once, when the text is parsed; the rest of the code relies on them (a
//! DynamoDB partition key has at most 2,048 bytes, an SQS deduplication id 128). A valid id says nothing about whether
//! the object exists or whose it is.

use std::fmt;
use std::str::FromStr;

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

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
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

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal, $bytes_max:literal;)*) => {$(
        id_types! { $(#[$doc])* $name; }

        impl $name {
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                check_id(stringify!($name), $prefix, $bytes_max, text).map(|()| Self(text.to_owned()))
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
    )*};
}

ids! {
    /// A connected Stripe account.
    AccountId = "acct_", 64;
    PaymentIntentId = "pi_", 255;
    CheckoutSessionId = "cs_", 255;
    /// No prefix is required, because it depends on the payment method: `ch_`, for some `py_`.
    ChargeId = "", 255;
    InvoiceId = "in_", 255;
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

/// At most this long, because a replay's deduplication id is `{event_id}.r.{uuid}`: 85 + 3 + 36 = 124 bytes, and SQS
/// allows 128.
const EVENT_ID_BYTES_MAX: usize = 85;

id_types! {
    /// An event, by the id that its provider gave it.
    EventId;
}

impl EventId {
    /// Accepts the form of any provider; [`ProviderId::parse_event_id`] only that of one.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let checked = ProviderId::ALL
            .iter()
            .map(|provider| provider.parse_event_id(text));
        let mut refused: Vec<InvalidId> = Vec::new();
        for checked in checked {
            match checked {
                Ok(id) => return Ok(id),
                Err(error) if refused.contains(&error) => {}
                Err(error) => refused.push(error),
            }
        }
        let got = format!("{} bytes", text.len());
        let rules: Vec<String> = refused.into_iter().map(|error| error.rule).collect();
        Err(InvalidId {
            kind: "EventId",
            rule: rules.join(", or "),
            got,
        })
    }
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

/// The form of a provider's event ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventIdForm {
    Prefix(&'static str),
    /// With hyphens.
    #[cfg(feature = "third-provider")]
    Uuid,
}

impl EventIdForm {
    fn check(self, text: &str) -> Result<(), InvalidId> {
        match self {
            Self::Prefix(prefix) => check_id("EventId", prefix, EVENT_ID_BYTES_MAX, text),
            #[cfg(feature = "third-provider")]
            Self::Uuid if text.len() == 36 && uuid::Uuid::try_parse(text).is_ok() => Ok(()),
            #[cfg(feature = "third-provider")]
            Self::Uuid => Err(InvalidId {
                kind: "EventId",
                rule: "a UUID".to_owned(),
                got: format!("{} bytes", text.len()),
            }),
        }
    }
}

macro_rules! providers {
    ($($(#[$meta:meta])* $name:ident: $word:literal, $form:expr;)*) => {
        /// Who sends webhooks. Each has its own events table, queue, dead-letter queue and worker, which are named by
        /// its word. `provider` has a module for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ProviderId {
            $($(#[$meta])* $name,)*
        }

        impl ProviderId {
            /// Every provider. Code that does something for each of them iterates over this list or over a
            /// [`PerProvider`], and never names them.
            pub const ALL: &'static [Self] = &[$($(#[$meta])* Self::$name,)*];

            /// The word in rows, messages, logs, metrics and names of resources.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($(#[$meta])* Self::$name => $word,)*
                }
            }

            /// The name in the logical ids and outputs of the template: `Stripe` in `StripeEventsTable`.
            pub const fn title(self) -> &'static str {
                match self {
                    $($(#[$meta])* Self::$name => stringify!($name),)*
                }
            }

            fn event_id_form(self) -> EventIdForm {
                match self {
                    $($(#[$meta])* Self::$name => $form,)*
                }
            }
        }
    };
}

// The one list of providers. The compiler then asks for each new one's module in `provider`; the tests ask for its
// resources, alarms and documents.
providers! {
    Stripe: "stripe", EventIdForm::Prefix("evt_");
    Lob: "lob", EventIdForm::Prefix("evt_");
    #[cfg(feature = "third-provider")]
    Parcel: "parcel", EventIdForm::Uuid;
}

impl ProviderId {
    /// The name of a function's environment variable that exists once per provider: `STRIPE_EVENTS_TABLE`.
    pub fn variable(self, suffix: &str) -> String {
        format!("{}_{suffix}", self.as_str().to_uppercase())
    }

    /// Parses an event's id in this provider's own form.
    pub fn parse_event_id(self, text: &str) -> Result<EventId, InvalidId> {
        let checked = self.event_id_form().check(text);
        checked.map(|()| EventId(text.to_owned()))
    }

    /// An id in this provider's form, for a test event.
    pub fn new_event_id(self, unique: uuid::Uuid) -> EventId {
        EventId(match self.event_id_form() {
            EventIdForm::Prefix(prefix) => format!("{prefix}{}", unique.simple()),
            #[cfg(feature = "third-provider")]
            EventIdForm::Uuid => unique.hyphenated().to_string(),
        })
    }

    /// The words of all providers, for arguments of the command line.
    pub fn words() -> Vec<&'static str> {
        Self::ALL.iter().map(|provider| provider.as_str()).collect()
    }
}

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no provider {0:?}: expected {expected}", expected = ProviderId::words().join(" or "))]
pub struct UnknownProvider(String);

impl FromStr for ProviderId {
    type Err = UnknownProvider;
    fn from_str(word: &str) -> Result<Self, UnknownProvider> {
        let known = Self::ALL.iter().find(|provider| provider.as_str() == word);
        known
            .copied()
            .ok_or_else(|| UnknownProvider(word.to_owned()))
    }
}

/// One value for each provider: a table, a queue, a ledger. It can only be made for all of them, so that none is
/// forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerProvider<T>(Vec<T>);

impl<T: Default> Default for PerProvider<T> {
    fn default() -> Self {
        Self::new(|_| T::default())
    }
}

impl<T> PerProvider<T> {
    pub fn new(make: impl FnMut(ProviderId) -> T) -> Self {
        Self(ProviderId::ALL.iter().copied().map(make).collect())
    }

    /// Fails with the first error.
    pub fn try_new<E>(make: impl FnMut(ProviderId) -> Result<T, E>) -> Result<Self, E> {
        let made = ProviderId::ALL.iter().copied().map(make);
        made.collect::<Result<_, E>>().map(Self)
    }

    #[expect(
        clippy::indexing_slicing,
        clippy::as_conversions,
        reason = "`ALL` has the variants in their order, and there is a value for each"
    )]
    pub fn of(&self, provider: ProviderId) -> &T {
        &self.0[provider as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = (ProviderId, &T)> {
        ProviderId::ALL.iter().copied().zip(&self.0)
    }

    pub fn map<U>(self, make: impl FnMut(T) -> U) -> PerProvider<U> {
        PerProvider(self.0.into_iter().map(make).collect())
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
    fn every_provider_is_found_by_its_word_and_has_a_value_of_its_own() {
        let words = PerProvider::new(ProviderId::as_str);
        for (provider, word) in words.iter() {
            assert_eq!(word.parse(), Ok(provider));
            assert_eq!(words.of(provider), word);
            assert_eq!(provider.title().to_lowercase(), provider.as_str());
        }
        let unknown = "telegraph".parse::<ProviderId>().unwrap_err().to_string();
        assert!(
            unknown.starts_with(r#"there is no provider "telegraph": expected stripe or lob"#),
            "{unknown}"
        );
        assert_eq!(ProviderId::Lob.variable("EVENTS_TABLE"), "LOB_EVENTS_TABLE");
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
