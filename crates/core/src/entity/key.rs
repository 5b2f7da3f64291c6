//! Keys of the table `entities`: those of entities with a row of the application ([`EntityKey`]), of payments and of
//! invoices. Each is one text, such as `order#ord_1` or `payment#acct_1#pi_1`.
//!
//! The key of a payment or invoice contains the account (tenant isolation): an account cannot reach a payment of another
//! account by naming its id.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ids::{AccountId, InvoiceId, OrderId, PaymentRef, StatementId, TenantId};

/// The names of the kinds, as they stand in keys.
pub(crate) const ORDER: &str = "order";
pub(crate) const STATEMENT: &str = "statement";
pub(crate) const TENANT: &str = "tenant";

/// Stands for the account where an object lives on the platform's own.
const PLATFORM: &str = "platform";

/// The kind and the key of a row that the application owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntityKey {
    Order(OrderId),
    Statement(StatementId),
    Tenant(TenantId),
}

/// A payment: a PaymentIntent; a charge or Checkout Session as long as its PaymentIntent is not known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentKey {
    /// None is the platform's own account.
    pub account: Option<AccountId>,
    pub payment: PaymentRef,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InvoiceKey {
    /// None is the platform's own account.
    pub account: Option<AccountId>,
    pub invoice: InvoiceId,
}

/// The key of any row in the table `entities`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateKey {
    Entity(EntityKey),
    Payment(PaymentKey),
    Invoice(InvoiceKey),
}

/// The parts of `payment#acct_1#pi_1` after its first word.
fn parse_account_and_id<'t>(word: &str, text: &'t str) -> Option<(Option<AccountId>, &'t str)> {
    let (account, id) = text
        .strip_prefix(word)?
        .strip_prefix('#')?
        .split_once('#')?;
    let account = match account {
        PLATFORM => None,
        account => Some(AccountId::parse(account).ok()?),
    };
    Some((account, id))
}

fn write_key(
    f: &mut fmt::Formatter<'_>,
    word: &str,
    account: Option<&AccountId>,
    id: &str,
) -> fmt::Result {
    let account = account.map_or(PLATFORM, AccountId::as_str);
    write!(f, "{word}#{account}#{id}")
}

impl EntityKey {
    /// The word of the kind: `order` in `order#ord_1`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Order(_) => ORDER,
            Self::Statement(_) => STATEMENT,
            Self::Tenant(_) => TENANT,
        }
    }

    /// The key of a row of this kind; `None` if the word or the id is not valid.
    pub fn of_kind(word: &str, id: &str) -> Option<Self> {
        match word {
            ORDER => OrderId::parse(id).ok().map(Self::Order),
            STATEMENT => StatementId::parse(id).ok().map(Self::Statement),
            TENANT => TenantId::parse(id).ok().map(Self::Tenant),
            _ => None,
        }
    }

    /// Reads what `Display` prints, such as `order#ord_1`.
    pub fn parse(text: &str) -> Option<Self> {
        let (word, id) = text.split_once('#')?;
        Self::of_kind(word, id)
    }

    pub fn id(&self) -> &str {
        match self {
            Self::Order(id) => id.as_str(),
            Self::Statement(id) => id.as_str(),
            Self::Tenant(id) => id.as_str(),
        }
    }

    pub fn order(&self) -> Option<&OrderId> {
        if let Self::Order(id) = self {
            Some(id)
        } else {
            None
        }
    }
}

impl PaymentKey {
    /// Reads what `Display` prints.
    pub fn parse(text: &str) -> Option<Self> {
        let (account, id) = parse_account_and_id("payment", text)?;
        let payment = PaymentRef::parse(id).ok()?;
        Some(Self { account, payment })
    }

    /// Another name of a payment of the same account.
    #[must_use]
    pub fn with_name(&self, payment: PaymentRef) -> Self {
        let account = self.account.clone();
        Self { account, payment }
    }
}

impl InvoiceKey {
    /// Reads what `Display` prints.
    pub fn parse(text: &str) -> Option<Self> {
        let (account, id) = parse_account_and_id("invoice", text)?;
        let invoice = InvoiceId::parse(id).ok()?;
        Some(Self { account, invoice })
    }
}

impl StateKey {
    /// Reads what `Display` prints.
    pub fn parse(text: &str) -> Option<Self> {
        let payment = PaymentKey::parse(text).map(Self::Payment);
        payment
            .or_else(|| InvoiceKey::parse(text).map(Self::Invoice))
            .or_else(|| EntityKey::parse(text).map(Self::Entity))
    }
}

impl StateKey {
    /// `None` for payments and invoices.
    pub fn into_entity(self) -> Option<EntityKey> {
        match self {
            Self::Entity(entity) => Some(entity),
            Self::Payment(_) | Self::Invoice(_) => None,
        }
    }
}

impl fmt::Display for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.word(), self.id())
    }
}

impl fmt::Display for PaymentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_key(f, "payment", self.account.as_ref(), self.payment.as_str())
    }
}

impl fmt::Display for InvoiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_key(f, "invoice", self.account.as_ref(), self.invoice.as_str())
    }
}

impl fmt::Display for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entity(key) => key.fmt(f),
            Self::Payment(key) => key.fmt(f),
            Self::Invoice(key) => key.fmt(f),
        }
    }
}

impl From<EntityKey> for StateKey {
    fn from(key: EntityKey) -> Self {
        Self::Entity(key)
    }
}

impl From<PaymentKey> for StateKey {
    fn from(key: PaymentKey) -> Self {
        Self::Payment(key)
    }
}

impl From<InvoiceKey> for StateKey {
    fn from(key: InvoiceKey) -> Self {
        Self::Invoice(key)
    }
}

macro_rules! stored_as_text {
    ($($key:ident),+) => {$(
        impl Serialize for $key {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $key {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                Self::parse(&text).ok_or_else(|| de::Error::custom("not a key of this kind"))
            }
        }
    )+};
}

stored_as_text!(EntityKey, PaymentKey, InvoiceKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_as_it_is_written() {
        for text in [
            "order#ord_1",
            "order#ord#1",
            "statement#st_1",
            "tenant#ten_1",
            "payment#acct_1#pi_1",
            "payment#platform#cs_1",
            "payment#platform#ch_1#2",
            "invoice#acct_1#in_1",
            "invoice#platform#in_1",
        ] {
            let key = StateKey::parse(text).unwrap();
            assert_eq!(key.to_string(), text);
        }
        for text in [
            "",
            "order",
            "order#",
            "payment#pi_1",
            "payment#other#pi_1",
            "payment#acct_1#",
            "invoice#acct_1#pi_1",
            "letter#ltr_1",
        ] {
            assert_eq!(StateKey::parse(text), None, "{text}");
        }
    }
}
