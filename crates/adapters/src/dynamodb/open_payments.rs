//! Finds open payments for the sweep, those without a link or with an outdated copy: by the sparse `OpenIndex` of the
//! table `entities`.
//!
//! The index is only a hint: the worker reads the payment itself and decides.

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::key::PaymentKey;
use billhook_core::entity::schema::STATE_KEY;
use billhook_core::error::DependencyError;
use billhook_core::ports::Clock;
use billhook_core::tasks::ports::FindOpenPayments;
use billhook_core::time::Timestamp;

use super::attributes::{read_text, string_value};
use super::dependency_error;
use super::ledger::DynamoLedger;

impl<C: Clock> FindOpenPayments for DynamoLedger<C> {
    async fn open_payments(
        &self,
        index_key: &str,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<PaymentKey>, DependencyError> {
        let table = &self.tables.entities;
        let answer = self
            .client
            .query()
            .table_name(table)
            .index_name("OpenIndex")
            .key_condition_expression("#open = :open AND #open_at <= :until")
            .expression_attribute_names("#open", "open")
            .expression_attribute_names("#open_at", "open_at")
            .expression_attribute_values(":open", string_value(index_key))
            .expression_attribute_values(":until", AttributeValue::S(until.to_string()))
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| dependency_error(format!("query OpenIndex of {table}"), error))?;
        let keys = answer.items().iter();
        let keys = keys.filter_map(|item| PaymentKey::parse(read_text(item, STATE_KEY)?));
        Ok(keys.collect())
    }
}
