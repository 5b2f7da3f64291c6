//! Money: integer amounts in the currency's minor unit, never floats (0.1 + 0.2 is not 0.3 in a float).
//!
//! There is no conversion and no `Add`: amounts are added and subtracted only by the methods of [`Money`], which refuse
//! another currency. `entity::payment::refunds` has the arithmetic of refunds.

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
    /// ISO 4217 for no currency: nothing is known of one.
    pub(crate) const NONE: Self = Self(*b"xxx");

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

/// Why two amounts have no sum or difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    #[error("an amount in {other} cannot be added to or subtracted from one in {currency}")]
    OtherCurrency { currency: Currency, other: Currency },
    #[error("the result has more than 63 bits")]
    Overflow,
}

impl Money {
    pub fn zero(currency: Currency) -> Self {
        Self {
            amount: 0,
            currency,
        }
    }

    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        self.with_amount(other, i64::checked_add)
    }

    pub fn checked_sub(self, other: Self) -> Result<Self, MoneyError> {
        self.with_amount(other, i64::checked_sub)
    }

    /// Stops at the greatest or least amount that fits. Only for sums that are shown and limited by something else;
    /// the caller says why.
    pub(crate) fn saturating_add(self, other: Self) -> Result<Self, MoneyError> {
        self.with_amount(other, |a, b| Some(a.saturating_add(b)))
    }

    fn with_amount(
        self,
        other: Self,
        combine: impl Fn(i64, i64) -> Option<i64>,
    ) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::OtherCurrency {
                currency: self.currency,
                other: other.currency,
            });
        }
        let amount = combine(self.amount, other.amount).ok_or(MoneyError::Overflow)?;
        Ok(Self { amount, ..self })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.amount, self.currency)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn money() -> impl Strategy<Value = Money> {
        let currency = prop::sample::select(vec!["usd", "jpy", "kwd"]);
        let edges = prop::sample::select(vec![i64::MIN, -1, 0, 1, 1 << 53, i64::MAX]);
        let amount = prop_oneof![any::<i64>(), 0..=1_i64 << 53, edges];
        (amount, currency).prop_map(|(amount, currency)| Money {
            amount,
            currency: Currency::parse(currency).unwrap(),
        })
    }

    proptest! {
        /// Against arithmetic that cannot overflow.
        #[test]
        fn sums_and_differences_are_exact_or_refused(a in money(), b in money()) {
            let (wide_a, wide_b) = (i128::from(a.amount), i128::from(b.amount));
            let expected = |wide: i128| match i64::try_from(wide) {
                _ if a.currency != b.currency => Err(MoneyError::OtherCurrency {
                    currency: a.currency,
                    other: b.currency,
                }),
                Ok(amount) => Ok(Money { amount, ..a }),
                Err(_) => Err(MoneyError::Overflow),
            };
            prop_assert_eq!(a.checked_add(b), expected(wide_a + wide_b));
            prop_assert_eq!(a.checked_sub(b), expected(wide_a - wide_b));
            let limited = (wide_a + wide_b).clamp(i128::from(i64::MIN), i128::from(i64::MAX));
            prop_assert_eq!(a.saturating_add(b), expected(limited));
            if let Ok(sum) = a.checked_add(b) {
                prop_assert_eq!(sum.checked_sub(b), Ok(a));
                prop_assert_eq!(b.checked_add(a), Ok(sum));
            }
        }
    }

    #[test]
    fn currencies_are_three_letters_in_lower_case() {
        assert_eq!(Currency::parse("USD").unwrap().to_string(), "usd");
        for bad in ["", "us", "usdx", "u$d", "é€"] {
            assert_eq!(Currency::parse(bad), Err(InvalidCurrency), "{bad:?}");
        }
    }
}
