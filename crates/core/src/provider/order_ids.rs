//! How metadata names an order: under which keys, and what an order id of the application looks like. Other shops and plug-ins
//! on the same Stripe account write metadata too, some under the same keys.

use regex_lite::Regex;

use crate::ids::OrderId;

/// Stripe's limit for the key of a metadata entry.
const KEY_CHARACTERS_MAX: usize = 40;

/// Which metadata names an order of the application.
#[derive(Clone, Debug)]
pub struct OrderIdRules {
    /// The first key with a usable id counts.
    keys: Vec<String>,
    /// The ids that the application issues; without it, every id that can be one.
    pattern: Option<Regex>,
}

impl Default for OrderIdRules {
    fn default() -> Self {
        Self {
            keys: ["orderId", "order_id"].map(str::to_owned).to_vec(),
            pattern: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrderIdRules {
    #[error("has an empty key")]
    EmptyKey,
    #[error(
        "has the key {0:?}: Stripe's metadata keys have at most {KEY_CHARACTERS_MAX} characters"
    )]
    LongKey(String),
    #[error("is not a regular expression: {0}")]
    Pattern(String),
}

impl OrderIdRules {
    /// `keys` are separated by commas.
    pub fn with_keys(mut self, keys: &str) -> Result<Self, InvalidOrderIdRules> {
        let parse_key = |key: &str| match key.trim() {
            "" => Err(InvalidOrderIdRules::EmptyKey),
            key if key.chars().count() > KEY_CHARACTERS_MAX => {
                Err(InvalidOrderIdRules::LongKey(key.to_owned()))
            }
            key => Ok(key.to_owned()),
        };
        self.keys = keys.split(',').map(parse_key).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// `pattern` is a regular expression for the whole id.
    pub fn with_pattern(mut self, pattern: &str) -> Result<Self, InvalidOrderIdRules> {
        let whole = Regex::new(&format!("^(?:{pattern})$"));
        self.pattern =
            Some(whole.map_err(|error| InvalidOrderIdRules::Pattern(error.to_string()))?);
        Ok(self)
    }

    /// Whether an order's id is looked for under this key.
    pub fn reads(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known == key)
    }

    /// The order that metadata names. An id that the application cannot have issued names nothing.
    pub fn find_order<'m>(&self, read: impl Fn(&str) -> Option<&'m str>) -> Option<OrderId> {
        let mut named = self.keys.iter().filter_map(|key| {
            let id = OrderId::parse(read(key)?.trim()).ok()?;
            let pattern = self.pattern.as_ref();
            pattern
                .is_none_or(|pattern| pattern.is_match(id.as_str()))
                .then_some(id)
        });
        named.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(rules: &OrderIdRules, metadata: &[(&str, &'static str)]) -> Option<String> {
        let read = |key: &str| {
            let mut of_key = metadata.iter().filter(|(known, _)| *known == key);
            of_key.next().map(|(_, id)| *id)
        };
        rules.find_order(read).map(|id| id.to_string())
    }

    #[test]
    fn the_first_key_with_a_usable_id_names_the_order() {
        let usual = OrderIdRules::default();
        for (metadata, expected) in [
            (&[("order_id", "ord_1")][..], Some("ord_1")),
            (
                &[("order_id", "ord_1"), ("orderId", "ord_2")],
                Some("ord_2"),
            ),
            (&[("orderId", ""), ("order_id", "ord_1")], Some("ord_1")),
            (
                &[("orderId", "Order 1001"), ("order_id", "ord_1")],
                Some("ord_1"),
            ),
            (&[("orderId", "\u{a0}ord_1 \t")], Some("ord_1")),
            (&[("orderId", "Order 1001")], None),
            (&[("OrderID", "ord_1")], None),
            (&[], None),
        ] {
            assert_eq!(named(&usual, metadata).as_deref(), expected, "{metadata:?}");
        }
        let other = usual.with_keys("OrderID, Order Id").unwrap();
        assert_eq!(named(&other, &[("order_id", "ord_1")]), None);
        assert_eq!(named(&other, &[("OrderID", "ord_1")]).unwrap(), "ord_1");
        assert_eq!(named(&other, &[("Order Id", "ord_1")]).unwrap(), "ord_1");
    }

    #[test]
    fn an_id_that_the_application_does_not_issue_names_nothing() {
        let rules = OrderIdRules::default()
            .with_pattern("ord_[0-9]+|b-.*")
            .unwrap();
        for (id, is_ours) in [
            ("ord_1", true),
            ("b-7", true),
            ("1001", false),
            ("xord_1", false),
            ("ord_1x", false),
        ] {
            let found = named(&rules, &[("order_id", id)]).is_some();
            assert_eq!(found, is_ours, "{id}");
        }
    }

    #[test]
    fn a_wrong_parameter_is_refused_with_its_fault() {
        let keys = |keys: &str| {
            OrderIdRules::default()
                .with_keys(keys)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(keys("orderId,,x"), "has an empty key");
        assert_eq!(keys(""), "has an empty key");
        assert!(keys(&"k".repeat(41)).contains("at most 40 characters"));
        assert!(OrderIdRules::default().with_keys(&"k".repeat(40)).is_ok());
        let refused = OrderIdRules::default().with_pattern("ord_(");
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.starts_with("is not a regular expression: "),
            "{refused}"
        );
    }
}
