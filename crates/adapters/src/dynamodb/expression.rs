//! Updates with their conditions, every name and value by placeholder.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::{AttributeValue, Update};
use billhook_core::ports::CommitError;

use super::items::s;

/// An update with its condition, every name and value by placeholder.
#[derive(Default)]
pub(super) struct Expression {
    sets: Vec<String>,
    removes: Vec<String>,
    adds: Vec<String>,
    conditions: Vec<String>,
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
}

impl Expression {
    fn name(&mut self, name: &str) -> String {
        let placeholder = format!("#{name}");
        self.names.insert(placeholder.clone(), name.to_owned());
        placeholder
    }

    fn value(&mut self, value: AttributeValue) -> String {
        let placeholder = format!(":v{}", self.values.len());
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    pub(super) fn set(&mut self, name: &str, value: Option<AttributeValue>) {
        let name = self.name(name);
        match value {
            Some(value) => {
                let value = self.value(value);
                self.sets.push(format!("{name} = {value}"));
            }
            None => self.removes.push(name),
        }
    }

    pub(super) fn add(&mut self, name: &str, value: AttributeValue) {
        let (name, value) = (self.name(name), self.value(value));
        self.adds.push(format!("{name} {value}"));
    }

    pub(super) fn require_as_loaded(&mut self, name: &str, loaded: Option<&AttributeValue>) {
        let name = self.name(name);
        let condition = match loaded {
            Some(value) => format!("{name} = {}", self.value(value.clone())),
            None => format!("attribute_not_exists({name})"),
        };
        self.conditions.push(condition);
    }

    pub(super) fn require_other(&mut self, name: &str, value: AttributeValue) {
        let (name, value) = (self.name(name), self.value(value));
        self.conditions
            .push(format!("attribute_exists({name}) AND {name} <> {value}"));
    }

    pub(super) fn require_size(&mut self, name: &str, size: usize) {
        let name = self.name(name);
        let size = self.value(AttributeValue::N(size.to_string()));
        self.conditions.push(format!("size({name}) = {size}"));
    }

    pub(super) fn build(
        self,
        table: &str,
        key_name: &str,
        key: &str,
    ) -> Result<Update, CommitError> {
        let clauses = [
            ("SET", self.sets),
            ("REMOVE", self.removes),
            ("ADD", self.adds),
        ];
        let clauses = clauses.iter().filter(|(_, parts)| !parts.is_empty());
        let clauses: Vec<String> = clauses
            .map(|(verb, parts)| format!("{verb} {}", parts.join(", ")))
            .collect();
        Update::builder()
            .table_name(table)
            .key(key_name, s(key))
            .update_expression(clauses.join(" "))
            .condition_expression(self.conditions.join(" AND "))
            .set_expression_attribute_names(Some(self.names))
            // DynamoDB takes no empty map.
            .set_expression_attribute_values(Some(self.values).filter(|values| !values.is_empty()))
            .build()
            .map_err(|error| CommitError::Refused(error.to_string()))
    }
}
