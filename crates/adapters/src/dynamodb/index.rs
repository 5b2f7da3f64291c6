//! Rows found by an index; by a scan of the whole table while the index is not ACTIVE.
//!
//! An index only nominates: it lags behind its table, and whoever asks reads the rows themselves afterwards.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use billhook_core::ids::Provider;
use billhook_core::ports::Unavailable;

use super::items::{Item, s, text};
use super::unavailable;
use crate::metrics;

/// An index by one column.
pub(super) struct Index<'a> {
    pub(super) client: &'a Client,
    pub(super) table: &'a str,
    pub(super) name: &'a str,
    /// The indexed column.
    pub(super) column: &'a str,
    /// The table's key.
    pub(super) key: &'a str,
}

/// Keys of rows, and the last one read, if there may be more.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) keys: Vec<String>,
    pub(super) next: Option<String>,
}

impl Index<'_> {
    /// The keys that hold a value, at most `most`.
    pub(super) async fn find(&self, value: &str, most: usize) -> Result<Vec<String>, Unavailable> {
        let Page {
            keys: mut found,
            mut next,
        } = self.page(value, None, most).await?;
        // Only a scan finds less than it may in a page that is not the last.
        while found.len() < most
            && let Some(after) = next
        {
            let page = self.scan(value, Some(&after), most - found.len()).await?;
            found.extend(page.keys);
            next = page.next;
        }
        Ok(found)
    }

    /// At most `most` keys after `after`. A page may be empty and still have a next one.
    pub(super) async fn page(
        &self,
        value: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Page, Unavailable> {
        let start = after.map(|key| {
            Item::from([
                (self.key.to_owned(), s(key)),
                (self.column.to_owned(), s(value)),
            ])
        });
        let answer = self
            .client
            .query()
            .table_name(self.table)
            .index_name(self.name)
            .key_condition_expression("#c = :v")
            .expression_attribute_names("#c", self.column)
            .expression_attribute_names("#k", self.key)
            .expression_attribute_values(":v", s(value))
            .projection_expression("#k")
            .set_exclusive_start_key(start)
            .limit(i32::try_from(most).unwrap_or(i32::MAX))
            .send()
            .await;
        match answer {
            Ok(answer) => Ok(self.read(answer.items(), answer.last_evaluated_key(), most)),
            Err(error) if is_inactive(error.code(), error.message()) => {
                let (index, table) = (self.name, self.table);
                // Letters are Lob's; all other indexes serve Stripe's events.
                metrics::INDEX_FALLBACK_SCAN.count(match index {
                    "LobLetterIndex" => Provider::Lob,
                    _ => Provider::Stripe,
                });
                tracing::warn!(
                    index,
                    table,
                    "[orders-index-warning] {index} of {table} is not ACTIVE: the whole table is scanned instead, \
                     slowly; see `aws dynamodb describe-table --table-name {table}`"
                );
                self.scan(value, after, most).await
            }
            Err(error) => {
                let doing = format!("query {} of {}", self.name, self.table);
                Err(unavailable(doing, error))
            }
        }
    }

    async fn scan(
        &self,
        value: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Page, Unavailable> {
        let answer = self
            .client
            .scan()
            .table_name(self.table)
            .consistent_read(true)
            .filter_expression("#c = :v")
            .expression_attribute_names("#c", self.column)
            .expression_attribute_names("#k", self.key)
            .expression_attribute_values(":v", s(value))
            .projection_expression("#k")
            .set_exclusive_start_key(after.map(|key| Item::from([(self.key.to_owned(), s(key))])))
            .send()
            .await
            .map_err(|error| unavailable(format!("scan {}", self.table), error))?;
        Ok(self.read(answer.items(), answer.last_evaluated_key(), most))
    }

    /// A scan's page is bounded by what it reads, not by what it finds: the rest is read again.
    fn read(&self, items: &[Item], last: Option<&Item>, most: usize) -> Page {
        let key = |item: &Item| text(item, self.key).map(str::to_owned);
        let mut keys: Vec<String> = items.iter().filter_map(key).collect();
        let mut next = last.and_then(key);
        if keys.len() > most {
            keys.truncate(most);
            next = keys.last().cloned();
        }
        Page { keys, next }
    }
}

/// Whether a query was refused because its index is missing or being filled. DynamoDB has no code of its own for it.
/// Its texts: `The table does not have the specified index: …`, `Cannot read from backfilling global secondary index: …`.
/// Source: aws-cloudformation/cloudformation-coverage-roadmap#1075 and users' reports, read 2026-11; on AWS not tried.
fn is_inactive(code: Option<&str>, message: Option<&str>) -> bool {
    code == Some("ValidationException")
        && message.is_some_and(|message| {
            message.contains("does not have the specified index")
                || message.contains("backfilling global secondary index")
        })
}
