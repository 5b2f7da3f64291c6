//! Money: integer amounts in the currency's minor unit, never floats (0.1 + 0.2 is not 0.3 in a float).
//!
//! There is no conversion and no `Add`: code that sums amounts checks the currency first and says what happens to the
//! rest. `entity::payment::refunds` has the arithmetic.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A three-letter ISO 4217 code in lower case, as Stripe writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a currency is three letters such as usd")]
pub struct InvalidCurrency;

impl Currency {
    /// Accepts both cases: Stripe writes `usd`, but an order's column is the application's. Does not check that the
    /// currency exists.
    pub fn parse(text: &str) -> Result<Self, InvalidCurrency> {
        match text.as_bytes() {
            &[a, b, c] if text.bytes().all(|b| b.is_ascii_alphabetic()) => {
                Ok(Self([a, b, c].map(|letter| letter.to_ascii_lowercase())))
            }
            _ => Err(InvalidCurrency),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|&b| write!(f, "{}", char::from(b)))
    }
}

impl TryFrom<String> for Currency {
    type Error = InvalidCurrency;
    fn try_from(text: String) -> Result<Self, InvalidCurrency> {
        Self::parse(&text)
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.to_string()
    }
}

/// An amount in a currency. The order (amount first) only serves sets and registers of facts, which need some total
/// order; it does not compare values: 4,200 jpy is greater than 4,199 usd here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Money {
    /// In the minor unit, as Stripe sends it: 4200 is 42.00 usd, but 4,200 jpy (no decimals) and 4.200 kwd (three).
    pub amount: i64,
    pub currency: Currency,
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.amount, self.currency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn currencies_are_three_letters_in_lower_case() {
        assert_eq!(Currency::parse("USD").unwrap().to_string(), "usd");
        for bad in ["", "us", "usdx", "u$d", "é€"] {
            assert_eq!(Currency::parse(bad), Err(InvalidCurrency), "{bad:?}");
        }
    }
}
