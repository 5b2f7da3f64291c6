//! Secondary indexes (GSI): finds rows by one column, or by a scan of the whole table while the index is not ACTIVE.
//!
//! An index is only a hint, because DynamoDB updates it after the table (eventual consistency). It may name an order
//! whose column has changed since, and miss one that was written a moment ago. So callers read the rows themselves,
//! consistently, before they decide; an event that found nothing is parked, and a later event or the sweep retries it.
//! Exception: the tenant of an account, which hardly ever changes, is taken from the index.
//! `ledger`, `failed_orders` and `unfinished_events` use indexes.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use billhook_core::error::DependencyError;
use billhook_core::ids::ProviderId;

use super::attributes::{Item, read_text, string_value};
use super::dependency_error;

/// A query that became a scan of the whole table, because its index is not ACTIVE.
#[derive(Clone, Copy, Debug)]
pub struct FallbackScan<'a> {
    /// Whose events need the index: the alarm is per provider.
    pub provider: ProviderId,
    pub index: &'a str,
    pub table: &'a str,
}

/// Is told of each fallback scan. A function reports it (`report::report_fallback_scan`); an operator's command, which
/// must not raise the alarm, does not.
pub type ScanObserver = fn(&FallbackScan<'_>);

/// An index with one column as its hash key.
pub(super) struct ColumnIndex<'a> {
    pub(super) client: &'a Client,
    pub(super) on_scan: ScanObserver,
    /// Whose events need the index.
    pub(super) provider: ProviderId,
    pub(super) table: &'a str,
    pub(super) name: &'a str,
    pub(super) column: &'a str,
    /// The name of the table's hash key.
    pub(super) key: &'a str,
}

/// `next` is the last key that was read, if there may be more rows. It need not be the key of a row that was found.
#[derive(Debug, Default)]
pub(super) struct KeyPage {
    pub(super) keys: Vec<String>,
    pub(super) next: Option<String>,
}

impl ColumnIndex<'_> {
    /// The keys of at most `most` rows whose column has this value.
    pub(super) async fn find_keys(
        &self,
        value: &str,
        most: usize,
    ) -> Result<Vec<String>, DependencyError> {
        let KeyPage {
            keys: mut found,
            mut next,
        } = self.query_page(value, None, most).await?;
        // A query returns fewer keys than `most` only on its last page. A scan reads 1 MB of the table per page and may
        // find nothing in it, so only a scan needs another page here.
        while found.len() < most
            && let Some(after) = next
        {
            let page = self
                .scan_page(value, Some(&after), most - found.len())
                .await?;
            found.extend(page.keys);
            next = page.next;
        }
        Ok(found)
    }

    /// At most `most` keys after `after`. A page may be empty and still have a `next`.
    pub(super) async fn query_page(
        &self,
        value: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<KeyPage, DependencyError> {
        let start = after.map(|key| {
            Item::from([
                (self.key.to_owned(), string_value(key)),
                (self.column.to_owned(), string_value(value)),
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
            .expression_attribute_values(":v", string_value(value))
            .projection_expression("#k")
            .set_exclusive_start_key(start)
            .limit(i32::try_from(most).unwrap_or(i32::MAX))
            .send()
            .await;
        match answer {
            Ok(answer) => Ok(self.read_page(answer.items(), answer.last_evaluated_key(), most)),
            Err(error) if is_inactive_index(error.code(), error.message()) => {
                (self.on_scan)(&FallbackScan {
                    provider: self.provider,
                    index: self.name,
                    table: self.table,
                });
                self.scan_page(value, after, most).await
            }
            Err(error) => {
                let doing = format!("query {} of {}", self.name, self.table);
                Err(dependency_error(doing, error))
            }
        }
    }

    async fn scan_page(
        &self,
        value: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<KeyPage, DependencyError> {
        let answer = self
            .client
            .scan()
            .table_name(self.table)
            .consistent_read(true)
            .filter_expression("#c = :v")
            .expression_attribute_names("#c", self.column)
            .expression_attribute_names("#k", self.key)
            .expression_attribute_values(":v", string_value(value))
            .projection_expression("#k")
            .set_exclusive_start_key(
                after.map(|key| Item::from([(self.key.to_owned(), string_value(key))])),
            )
            .send()
            .await
            .map_err(|error| dependency_error(format!("scan {}", self.table), error))?;
        Ok(self.read_page(answer.items(), answer.last_evaluated_key(), most))
    }

    /// A scan has no limit for what it finds, so it may find more than `most`. The surplus is dropped, and `next` is
    /// the last key that was kept, so that the next page finds the dropped rows again.
    fn read_page(&self, items: &[Item], last: Option<&Item>, most: usize) -> KeyPage {
        let key = |item: &Item| read_text(item, self.key).map(str::to_owned);
        let mut keys: Vec<String> = items.iter().filter_map(key).collect();
        let mut next = last.and_then(key);
        if keys.len() > most {
            keys.truncate(most);
            next = keys.last().cloned();
        }
        KeyPage { keys, next }
    }
}

/// Whether a query was refused because its index is missing or still being built. DynamoDB has no error code for this,
/// only these texts: `The table does not have the specified index: …`,
/// `Cannot read from backfilling global secondary index: …`.
/// Source: aws-cloudformation/cloudformation-coverage-roadmap#1075 and users' reports, read 2026-11; not tried on AWS.
fn is_inactive_index(code: Option<&str>, message: Option<&str>) -> bool {
    code == Some("ValidationException")
        && message.is_some_and(|message| {
            message.contains("does not have the specified index")
                || message.contains("backfilling global secondary index")
        })
}
