//! The cursors of `reconcile`, as far as a deletion touches them (`billhook_core::jobs`).

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::jobs::{DONE_THROUGH_S, JOB_ID, RECONCILE_PREFIX};
use billhook_core::ports::DependencyError;

use super::dependency_error;

/// The jobs table.
#[derive(Clone, Debug)]
pub struct ReconcileCursors {
    client: Client,
    table: String,
}

impl ReconcileCursors {
    /// Over a client of `Aws`.
    pub fn new(client: Client, table: String) -> Self {
        Self { client, table }
    }

    /// Lowers each cursor that is above `to_s`; none is raised or made. The table holds few rows: a handful per account.
    pub async fn set_back(&self, to_s: i64) -> Result<(), DependencyError> {
        let scan = self.client.scan().table_name(&self.table);
        let mut pages = scan
            .filter_expression("begins_with(#id, :prefix) AND #at > :to")
            .projection_expression("#id")
            .expression_attribute_names("#id", JOB_ID)
            .expression_attribute_names("#at", DONE_THROUGH_S)
            .expression_attribute_values(":prefix", AttributeValue::S(RECONCILE_PREFIX.into()))
            .expression_attribute_values(":to", number_value(to_s))
            .consistent_read(true)
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let doing = || format!("look for cursors in {}", self.table);
            let page = page.map_err(|error| dependency_error(doing(), error))?;
            for mut row in page.items.unwrap_or_default() {
                if let Some(id) = row.remove(JOB_ID) {
                    self.lower(id, to_s).await?;
                }
            }
        }
        Ok(())
    }

    async fn lower(&self, id: AttributeValue, to_s: i64) -> Result<(), DependencyError> {
        let name = id.as_s().map_or("a cursor", String::as_str);
        let doing = format!("set {name} of {} back", self.table);
        let update = self.client.update_item().table_name(&self.table);
        let updated = update
            .key(JOB_ID, id)
            .update_expression("SET #at = :to")
            .condition_expression("#at > :to")
            .expression_attribute_names("#at", DONE_THROUGH_S)
            .expression_attribute_values(":to", number_value(to_s))
            .send()
            .await;
        match updated {
            // Lower or gone meanwhile.
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(()),
            other => other
                .map(drop)
                .map_err(|error| dependency_error(doing, error)),
        }
    }
}

fn number_value(seconds: i64) -> AttributeValue {
    AttributeValue::N(seconds.to_string())
}
