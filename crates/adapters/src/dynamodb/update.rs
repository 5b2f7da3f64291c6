//! Builder for one conditional `UpdateItem` expression: what to set, add and remove, and the conditions that must hold
//! (compare-and-set, optimistic lock).
//!
//! Every name and value is a placeholder, so that reserved words and values from outside cannot change the expression.
//! All conditions must hold together. `events`, `ledger` and `jobs` say which race each condition prevents.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::{AttributeValue, ConditionCheck, Update};
use billhook_core::worker::ports::CommitError;

use super::attributes::string_value;

pub(super) struct UpdateBuilder {
    set: String,
    remove: String,
    add: String,
    condition: String,
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
}

impl UpdateBuilder {
    pub(super) fn new() -> Self {
        // An order's update has 17 names and up to 25 values; growing the maps step by step takes longer than filling
        // them.
        Self {
            set: String::new(),
            remove: String::new(),
            add: String::new(),
            condition: String::new(),
            names: HashMap::with_capacity(28),
            values: HashMap::with_capacity(28),
        }
    }

    fn name(&mut self, name: &str) -> String {
        let placeholder = ["#", name].concat();
        self.names.insert(placeholder.clone(), name.to_owned());
        placeholder
    }

    fn value(&mut self, value: AttributeValue) -> String {
        let placeholder = format!(":v{}", self.values.len());
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    /// `None` removes the attribute.
    pub(super) fn set(&mut self, name: &str, value: Option<AttributeValue>) {
        let name = self.name(name);
        match value {
            Some(value) => {
                let value = self.value(value);
                append_term(&mut self.set, ", ", [&name, " = ", &value]);
            }
            None => append_term(&mut self.remove, ", ", [&*name]),
        }
    }

    /// Adds to a number or to a set. DynamoDB adds to the value at the time of the write, so two workers that add
    /// at once lose nothing.
    pub(super) fn add(&mut self, name: &str, value: AttributeValue) {
        let (name, value) = (self.name(name), self.value(value));
        append_term(&mut self.add, ", ", [&name, " ", &value]);
    }

    /// The attribute must be as it was read; `None` means that it was missing and must still be missing. Case for
    /// `None`: a person sets `status` on an order that had none, between our read and our write.
    pub(super) fn require_as_loaded(&mut self, name: &str, loaded: Option<&AttributeValue>) {
        let name = self.name(name);
        match loaded {
            Some(value) => {
                let value = self.value(value.clone());
                self.require([&name, " = ", &value]);
            }
            None => self.require(["attribute_not_exists(", &name, ")"]),
        }
    }

    /// A list must have this many entries. Comparing the list itself would send it once more with every write: up to
    /// 200 of our entries and all of the application's. So an entry that is edited in place is not noticed, only a new
    /// or removed one (`docs/data-model.md`).
    pub(super) fn require_size(&mut self, name: &str, size: usize) {
        let name = self.name(name);
        let size = self.value(AttributeValue::N(size.to_string()));
        self.require(["size(", &name, ") = ", &size]);
    }

    fn require<const N: usize>(&mut self, parts: [&str; N]) {
        append_term(&mut self.condition, " AND ", parts);
    }

    /// Refused without a condition: whoever forgets it would overwrite what another writer wrote.
    pub(super) fn build(
        self,
        table: &str,
        key_name: &str,
        key: &str,
    ) -> Result<Update, CommitError> {
        if self.condition.is_empty() {
            let reason = format!("an update of {table} has no condition");
            return Err(CommitError::Refused(reason));
        }
        self.build_unguarded(table, key_name, key)
    }

    /// For a row that another row's condition protects, in the same transaction.
    pub(super) fn build_unguarded(
        self,
        table: &str,
        key_name: &str,
        key: &str,
    ) -> Result<Update, CommitError> {
        let mut update = String::new();
        for (verb, clause) in [
            ("SET ", self.set),
            ("REMOVE ", self.remove),
            ("ADD ", self.add),
        ] {
            if !clause.is_empty() {
                append_term(&mut update, " ", [verb, &clause]);
            }
        }
        Update::builder()
            .table_name(table)
            .key(key_name, string_value(key))
            .update_expression(update)
            .set_condition_expression(
                Some(self.condition).filter(|condition| !condition.is_empty()),
            )
            .set_expression_attribute_names(Some(self.names))
            // DynamoDB rejects an empty map of values. Case: the cleanup clears its checkpoint, which removes
            // attributes and sets none.
            .set_expression_attribute_values(Some(self.values).filter(|values| !values.is_empty()))
            .build()
            .map_err(|error| CommitError::Refused(error.to_string()))
    }
}

impl UpdateBuilder {
    /// The conditions without a write, for a transaction.
    pub(super) fn build_check(
        self,
        table: &str,
        key_name: &str,
        key: &str,
    ) -> Result<ConditionCheck, CommitError> {
        ConditionCheck::builder()
            .table_name(table)
            .key(key_name, string_value(key))
            .condition_expression(self.condition)
            .set_expression_attribute_names(Some(self.names))
            .set_expression_attribute_values(Some(self.values).filter(|values| !values.is_empty()))
            .build()
            .map_err(|error| CommitError::Refused(error.to_string()))
    }
}

fn append_term<const N: usize>(terms: &mut String, separator: &str, parts: [&str; N]) {
    if !terms.is_empty() {
        terms.push_str(separator);
    }
    terms.extend(parts);
}
