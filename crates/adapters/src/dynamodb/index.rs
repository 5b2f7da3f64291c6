//! Secondary indexes (GSI): finds rows by one column, or by a scan of the whole table while the index is not ACTIVE.
//!
//! An index is only a hint, because DynamoDB updates it after the table (eventual consistency). It may name an order
//! whose column has changed since, and miss one that was written a moment ago. So callers read the rows themselves,
//! consistently, before they decide; if nothing is found, a letter's event is parked and a payment stays open; a later
//! event or the sweep tries again.
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use billhook_core::entity::EntityKey;
    use billhook_core::entity::tenant::TenantHit;
    use billhook_core::ids::{AccountId, OrderId, PaymentIntentId, PieceId, StatementId, TenantId};
    use billhook_core::tasks::ports::FindFailedOrders as _;
    use billhook_core::worker::ports::{Ledger as _, TenantLookup};

    use super::super::ledger::LedgerSeals;
    use super::super::ledger::{DynamoLedger, TableNames};
    use crate::aws::AwsClients;
    use crate::clock::SystemClock;
    use crate::config::EnvLookup;

    const BACKFILLING: &str = r#"{"__type":"com.amazon.coral.validate#ValidationException","message":"Cannot read from backfilling global secondary index: X"}"#;
    const ONE_ROW: &str = r#"{"Count":1,"ScannedCount":1,"Items":[{"id":{"S":"ord_1"},"statement_id":{"S":"st_1"},"tenant_id":{"S":"ten_1"}}]}"#;

    /// Refuses every query, as while the indexes are built, and answers every scan with one row.
    fn converse(stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        let (mut answer, mut length) = ((200, ONE_ROW), 0);
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            if line.contains("DynamoDB_20120810.Query") {
                answer = (400, BACKFILLING);
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                lines.read_exact(&mut vec![0; length])?;
                let (status, body) = answer;
                let length = body.len();
                write!(
                    &stream,
                    "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}"
                )?;
                answer = (200, ONE_ROW);
            }
            line.clear();
        }
        Ok(())
    }

    thread_local! {
        static SCANS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    #[tokio::test]
    async fn while_an_index_is_built_a_scan_answers_and_the_observer_learns_whose_events_need_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                thread::spawn(move || converse(stream.unwrap()));
            }
        });
        let aws = AwsClients::from_env(&EnvLookup(&|name| {
            Some(match name {
                "AWS_ENDPOINT_URL" => url.clone(),
                "AWS_REGION" => "eu-central-1".to_owned(),
                "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => "test".to_owned(),
                _ => return None,
            })
        }));
        let tables = TableNames::of_tests();
        let client = aws.unwrap().dynamodb().clone();
        let ledger = DynamoLedger::new(
            client,
            tables,
            LedgerSeals::of_tests(),
            SystemClock,
            |scan| {
                let (provider, index, table) = (scan.provider, scan.index, scan.table);
                SCANS.with_borrow_mut(|scans| scans.push(format!("{provider} {index} of {table}")));
            },
        );
        let order = OrderId::parse("ord_1").unwrap();
        let statement = EntityKey::Statement(StatementId::parse("st_1").unwrap());

        let intent = PaymentIntentId::parse("pi_1").unwrap();
        let found = ledger.entities_by_payment_intent(&intent).await.unwrap();
        assert_eq!(found, [EntityKey::Order(order.clone()), statement.clone()]);
        let account = AccountId::parse("acct_1").unwrap();
        let lookup = TenantLookup::Fresh;
        let found = ledger.tenants_by_account(&account, lookup).await.unwrap();
        let tenant = TenantHit::Tenant(TenantId::parse("ten_1").unwrap());
        assert_eq!(found.present, [tenant].into());
        let page = ledger.failed_orders(None, 10).await.unwrap();
        assert_eq!((page.orders, page.next), (vec![order], None));
        let piece = PieceId::parse("ltr_1").unwrap();
        let found = ledger.statements_by_piece(&piece).await.unwrap();
        assert_eq!(found, [statement]);

        let mut scans = SCANS.take();
        // Orders and statements are asked at the same time.
        scans.sort();
        let expected = [
            "lob LobLetterIndex of statements",
            "stripe PaymentIntentIndex of orders",
            "stripe PaymentIntentIndex of statements",
            "stripe StatusIndex of orders",
            "stripe stripe_connected_account_id of tenants",
        ];
        assert_eq!(scans, expected);
    }
}
