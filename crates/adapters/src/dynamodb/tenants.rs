//! Scans the tenants table for all connected accounts, for `reconcile`, and keeps a note of each account that a tenant had
//! before: a row `account#acct_1` in the table `entities`, which names the tenants. No index has them, because an index of
//! DynamoDB is on one value and not on the elements of a set. The note is a hint like an index: the tenant's row decides, so
//! one that is out of date harms nothing.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{AttributeValue, Update};
use billhook_core::entity::kind::EntityKind as _;
use billhook_core::entity::schema::STATE_KEY;
use billhook_core::entity::tenant::{ACCOUNT_COLUMN, PREVIOUS_COLUMN, TenantKind};
use billhook_core::error::DependencyError;
use billhook_core::ids::{AccountId, TenantId};
use billhook_core::tasks::ports::{AccountsPage, ListAccounts};

use super::attributes::{Item, read_text, string_value};
use super::batch_get::batch_get_rows;
use super::entities::read_tenant_row;
use super::jobs::JobsTable;
use super::{dependency_error, invalid_call, send_update};

const TENANT: &str = TenantKind::SCHEMA.key;
/// The attribute of a note.
const TENANTS: &str = "tenants";

impl ListAccounts for JobsTable {
    async fn accounts(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<AccountsPage, DependencyError> {
        let table = &self.tenants_table;
        let start = after.map(|tenant| Item::from([(TENANT.to_owned(), string_value(tenant))]));
        let page = self
            .client
            .scan()
            .table_name(table)
            .projection_expression("tenant_id, #account, #previous")
            .expression_attribute_names("#account", ACCOUNT_COLUMN)
            .expression_attribute_names("#previous", PREVIOUS_COLUMN)
            .set_exclusive_start_key(start)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| dependency_error(format!("scan {table}"), error))?;
        Ok(read_accounts_page(page.items(), page.last_evaluated_key()))
    }

    async fn note_previous_accounts(
        &self,
        previous: &BTreeSet<(AccountId, TenantId)>,
    ) -> Result<(), DependencyError> {
        let table = &self.entities_table;
        let accounts: BTreeSet<&AccountId> = previous.iter().map(|(account, _)| account).collect();
        let known = read_account_notes(&self.client, table, accounts).await?;
        for (account, tenant) in previous.difference(&known) {
            let doing = format!("note the tenant of {account} in {table}");
            let note = build_account_note(table, account, tenant, None);
            let note = note.map_err(|error| invalid_call(&doing, error))?;
            let sent = send_update(&self.client, note).await;
            sent.map_err(|error| dependency_error(doing, error))?;
        }
        Ok(())
    }
}

fn read_accounts_page(rows: &[Item], last: Option<&Item>) -> AccountsPage {
    let mut page = AccountsPage {
        next: last.and_then(|row| Some(read_text(row, TENANT)?.to_owned())),
        ..AccountsPage::default()
    };
    for row in rows {
        let columns = read_tenant_row(row);
        page.accounts.extend(columns.account);
        let tenant = read_text(row, TENANT).and_then(|id| TenantId::parse(id).ok());
        if let Some(tenant) = tenant {
            let previous = columns.previous.into_iter();
            let previous = previous.map(|account| (account, tenant.clone()));
            page.previous.extend(previous);
        }
    }
    page
}

fn note_key(account: &AccountId) -> String {
    format!("account#{account}")
}

/// The write of a note; it adds to what is noted. A person's change comes with who made it and why.
pub fn build_account_note(
    entities_table: &str,
    account: &AccountId,
    tenant: &TenantId,
    audit: Option<AttributeValue>,
) -> Result<Update, aws_sdk_dynamodb::error::BuildError> {
    let update = Update::builder()
        .table_name(entities_table)
        .key(STATE_KEY, string_value(note_key(account)))
        .expression_attribute_names("#tenants", TENANTS)
        .expression_attribute_values(":tenant", AttributeValue::Ss(vec![tenant.to_string()]));
    let add = "ADD #tenants :tenant";
    match audit {
        None => update.update_expression(add),
        Some(audit) => update
            .update_expression(format!(
                "{add} SET #notes = list_append(if_not_exists(#notes, :none), :note)"
            ))
            .expression_attribute_names("#notes", "notes")
            .expression_attribute_values(":none", AttributeValue::L(Vec::new()))
            .expression_attribute_values(":note", AttributeValue::L(vec![audit])),
    }
    .build()
}

/// The notes of these accounts, read consistently.
pub(super) async fn read_account_notes(
    client: &Client,
    entities_table: &str,
    accounts: impl IntoIterator<Item = &AccountId>,
) -> Result<BTreeSet<(AccountId, TenantId)>, DependencyError> {
    let keys = accounts.into_iter().map(note_key);
    let keys: Vec<Item> = keys
        .map(|key| Item::from([(STATE_KEY.to_owned(), string_value(key))]))
        .collect();
    if keys.is_empty() {
        return Ok(BTreeSet::new());
    }
    let wanted = HashMap::from([(entities_table.to_owned(), keys)]);
    let rows = batch_get_rows(client, wanted, None).await?;
    let notes = rows.iter().flat_map(|(_, row)| read_account_note(row));
    Ok(notes.collect())
}

fn read_account_note(row: &Item) -> Vec<(AccountId, TenantId)> {
    let account = read_text(row, STATE_KEY).and_then(|key| key.strip_prefix("account#"));
    let Some(account) = account.and_then(|id| AccountId::parse(id).ok()) else {
        return Vec::new();
    };
    let tenants = row.get(TENANTS).and_then(|tenants| tenants.as_ss().ok());
    let tenants = tenants.into_iter().flatten();
    tenants
        .filter_map(|id| Some((account.clone(), TenantId::parse(id).ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use billhook_core::entity::key::StateKey;
    use billhook_core::entity::tenant::TenantHit;
    use billhook_core::worker::ports::{Ledger as _, TenantLookup};
    use serde_json::{Value, json};

    use super::super::ledger::LedgerSeals;
    use super::super::ledger::{DynamoLedger, TableNames};
    use super::*;
    use crate::aws::AwsClients;
    use crate::clock::SystemClock;
    use crate::config::EnvLookup;

    /// Answers one connection with what `answer` says to each operation and its body, and tells what was asked.
    fn converse(
        stream: TcpStream,
        answer: fn(&str, &str) -> Value,
        asked: &Sender<String>,
    ) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        let (mut operation, mut length) = (String::new(), 0);
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            if let Some((_, name)) = line.trim_end().split_once("DynamoDB_20120810.") {
                operation = name.to_owned();
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                let mut body = vec![0; length];
                lines.read_exact(&mut body)?;
                let body = answer(&operation, &String::from_utf8(body).unwrap()).to_string();
                asked.send(operation.clone()).unwrap();
                let length = body.len();
                write!(
                    &stream,
                    "HTTP/1.1 200 X\r\ncontent-length: {length}\r\n\r\n{body}"
                )?;
            }
            line.clear();
        }
        Ok(())
    }

    fn ledger(answer: fn(&str, &str) -> Value) -> (DynamoLedger<SystemClock>, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (tell, asked) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let tell = tell.clone();
                thread::spawn(move || converse(stream.unwrap(), answer, &tell));
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
        let client = aws.unwrap().dynamodb().clone();
        let ledger = DynamoLedger::new(
            client,
            TableNames::of_tests(),
            LedgerSeals::of_tests(),
            SystemClock,
            |_| (),
        );
        (ledger, asked)
    }

    fn keys(ids: &[&str]) -> Value {
        let items = ids.iter().map(|id| json!({ "tenant_id": { "S": id } }));
        json!({ "Count": ids.len(), "ScannedCount": ids.len(), "Items": items.collect::<Vec<_>>() })
    }

    #[tokio::test]
    async fn a_tenant_whose_id_cannot_be_read_is_a_hit_if_its_row_bears_the_account() {
        let (ledger, asked) = ledger(|operation, body| match operation {
            "Query" => keys(&["Bäckerei Müller", "Café Nord", "ten_1"]),
            _ => {
                assert!(
                    body.contains("Café Nord") && !body.contains("ten_1"),
                    "{body}"
                );
                let row = |id: &str, account: &str| json!({ "tenant_id": { "S": id }, ACCOUNT_COLUMN: { "S": account } });
                // The index still has the second, whose row says otherwise by now.
                let rows = [row("Bäckerei Müller", "acct_1"), row("Café Nord", "acct_2")];
                json!({ "Responses": { "tenants": rows } })
            }
        });
        let account = AccountId::parse("acct_1").unwrap();
        for _ in 0..2 {
            let lookup = TenantLookup::MayBeCached;
            let hits = ledger.tenants_by_account(&account, lookup).await.unwrap();
            let tenant = TenantHit::Tenant(TenantId::parse("ten_1").unwrap());
            let unreadable = TenantHit::Unreadable("Bäckerei Müller".to_owned());
            assert_eq!(hits.present, [tenant, unreadable].into());
        }
        assert_eq!(asked.try_iter().next().as_deref(), Some("Query"));
    }

    #[tokio::test]
    async fn a_tenant_is_remembered_until_it_is_asked_for_anew_and_a_previous_one_never() {
        let (ledger, asked) = ledger(|operation, body| match operation {
            "Query" if body.contains("acct_1") => keys(&["ten_1"]),
            "Query" => keys(&[]),
            _ => {
                let note =
                    json!({ "entity": { "S": "account#acct_2" }, "tenants": { "SS": ["ten_1"] } });
                json!({ "Responses": { "entities": [note] } })
            }
        });
        let hits = async |id: &str, lookup| {
            let account = AccountId::parse(id).unwrap();
            ledger.tenants_by_account(&account, lookup).await.unwrap()
        };
        let calls = || asked.try_iter().collect::<Vec<_>>();
        let (cached, fresh) = (TenantLookup::MayBeCached, TenantLookup::Fresh);
        assert!(!hits("acct_1", cached).await.is_cached);
        assert_eq!(calls(), ["Query"]);
        assert!(hits("acct_1", cached).await.is_cached);
        assert_eq!(calls(), [""; 0]);
        assert!(!hits("acct_1", fresh).await.is_cached);
        assert_eq!(calls(), ["Query"]);
        for _ in 0..2 {
            let previous = hits("acct_2", cached).await;
            let tenant = TenantHit::Tenant(TenantId::parse("ten_1").unwrap());
            assert_eq!(
                (previous.present, previous.previous),
                ([].into(), [tenant].into())
            );
            assert_eq!(calls(), ["Query", "BatchGetItem"]);
        }
    }

    #[test]
    fn the_accounts_behind_a_tenant_with_any_key_are_listed() {
        let last = Item::from([(TENANT.to_owned(), string_value("Bäckerei Müller"))]);
        let page = read_accounts_page(&[], Some(&last));
        assert_eq!(page.next.as_deref(), Some("Bäckerei Müller"));
        assert_eq!(read_accounts_page(&[], None).next, None);
    }

    #[test]
    fn an_account_that_a_tenant_had_before_is_listed_whether_it_is_in_a_set_or_a_list() {
        let account = |id: &str| AccountId::parse(id).unwrap();
        let tenant = TenantId::parse("ten_1").unwrap();
        for previous in [
            AttributeValue::Ss(vec!["acct_1".to_owned(), "no id".to_owned()]),
            AttributeValue::L(vec![string_value("acct_1")]),
        ] {
            let row = Item::from([
                (TENANT.to_owned(), string_value("ten_1")),
                (ACCOUNT_COLUMN.to_owned(), string_value("acct_2")),
                (PREVIOUS_COLUMN.to_owned(), previous),
            ]);
            let page = read_accounts_page(&[row], None);
            assert_eq!(page.accounts, [account("acct_2")].into());
            assert_eq!(page.previous, [(account("acct_1"), tenant.clone())].into());
        }
    }

    #[test]
    fn a_note_of_an_account_is_no_state_and_reads_back() {
        let (account, tenant) = (AccountId::parse("acct_1"), TenantId::parse("ten_1"));
        let (account, tenant) = (account.unwrap(), tenant.unwrap());
        assert_eq!(StateKey::parse(&note_key(&account)), None);
        let note = build_account_note("entities", &account, &tenant, None).unwrap();
        let added = note.expression_attribute_values().unwrap()[":tenant"].clone();
        let mut row = note.key().clone();
        row.insert(TENANTS.to_owned(), added);
        assert_eq!(read_account_note(&row), [(account, tenant)]);
    }
}
