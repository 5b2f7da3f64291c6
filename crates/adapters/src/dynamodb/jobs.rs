//! What the scheduled tasks remember, and the accounts they go through.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use billhook_core::ids::AccountId;
use billhook_core::jobs::{CREATED_S, Cut, JOB_ID, Progress};
use billhook_core::ports::{AccountsPage, CommitError, KeepProgress, ListAccounts, Unavailable};

use super::expression::Expression;
use super::items::{self, Item, n, s, text};
use super::{unavailable, update_item};

const UNTIL_S: &str = "until_s";
const AFTER: &str = "after";
const TENANT: &str = "tenant_id";
const ACCOUNT: &str = "stripe_connected_account_id";

/// The jobs and the tenants.
#[derive(Clone, Debug)]
pub struct Jobs {
    /// The client.
    pub client: Client,
    /// How far each job came.
    pub table: String,
    /// The application's tenants.
    pub tenants_table: String,
}

impl KeepProgress for Jobs {
    async fn progress(&self, job: &str) -> Result<Progress, Unavailable> {
        let got = self
            .client
            .get_item()
            .table_name(&self.table)
            .key(JOB_ID, s(job))
            .consistent_read(true)
            .send()
            .await;
        let row = got.map_err(|error| unavailable(self.doing("read", job), error))?;
        Ok(row.item.as_ref().map(progress).unwrap_or_default())
    }

    async fn keep(&self, job: &str, read: &Progress, next: &Progress) -> Result<bool, Unavailable> {
        let doing = self.doing("write", job);
        let update = match update(&self.table, job, read, next) {
            Ok(update) => update,
            Err(error) => return Err(super::invalid(&doing, error)),
        };
        match update_item(&self.client, update).await {
            Ok(()) => Ok(true),
            // It may be the SDK's own first try that stands there: then the row is as it was to be.
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
                Ok(self.progress(job).await? == *next)
            }
            Err(error) => Err(unavailable(doing, error)),
        }
    }
}

impl Jobs {
    fn doing(&self, what: &str, job: &str) -> String {
        format!("{what} {job} of {}", self.table)
    }
}

fn progress(row: &Item) -> Progress {
    let cut = items::integer(row, UNTIL_S).zip(text(row, AFTER));
    Progress {
        created_s: items::integer(row, CREATED_S),
        cut: cut.map(|(until_s, after)| Cut {
            until_s,
            after: after.to_owned(),
        }),
    }
}

fn update(
    table: &str,
    job: &str,
    read: &Progress,
    next: &Progress,
) -> Result<aws_sdk_dynamodb::types::Update, CommitError> {
    let mut update = Expression::new();
    update.set(CREATED_S, next.created_s.map(n));
    update.set(UNTIL_S, next.cut.as_ref().map(|cut| n(cut.until_s)));
    update.set(AFTER, next.cut.as_ref().map(|cut| s(&cut.after)));
    update.require_as_loaded(CREATED_S, read.created_s.map(n).as_ref());
    update.build(table, JOB_ID, job)
}

impl ListAccounts for Jobs {
    async fn accounts(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<AccountsPage, Unavailable> {
        let table = &self.tenants_table;
        let start = after.map(|tenant| Item::from([(TENANT.to_owned(), s(tenant))]));
        let page = self
            .client
            .scan()
            .table_name(table)
            .projection_expression("tenant_id, #account")
            .expression_attribute_names("#account", ACCOUNT)
            .set_exclusive_start_key(start)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| unavailable(format!("scan {table}"), error))?;
        Ok(accounts_page(page.items(), page.last_evaluated_key()))
    }
}

fn accounts_page(rows: &[Item], last: Option<&Item>) -> AccountsPage {
    let account = |row: &Item| AccountId::parse(text(row, ACCOUNT)?).ok();
    AccountsPage {
        accounts: rows.iter().filter_map(account).collect(),
        next: last.and_then(|row| Some(text(row, TENANT)?.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accounts_behind_a_tenant_with_any_key_are_listed() {
        let last = Item::from([(TENANT.to_owned(), s("Bäckerei Müller"))]);
        let page = accounts_page(&[], Some(&last));
        assert_eq!(page.next.as_deref(), Some("Bäckerei Müller"));
        assert_eq!(accounts_page(&[], None).next, None);
    }

    #[test]
    fn progress_reads_back_as_written_on_condition_of_what_was_read() {
        let cut = Progress::done(1_000).cut(2_000, "evt_1".to_owned());
        let row = Item::from([
            (CREATED_S.to_owned(), n(1_000)),
            (UNTIL_S.to_owned(), n(2_000)),
            (AFTER.to_owned(), s("evt_1")),
        ]);
        assert_eq!(progress(&row), cut);
        assert_eq!(progress(&Item::new()), Progress::default());
        let first = update("jobs", "sweep", &Progress::default(), &cut).unwrap();
        assert_eq!(
            first.condition_expression.as_deref(),
            Some("attribute_not_exists(#created_s)")
        );
        let done = update("jobs", "sweep", &cut, &Progress::done(2_000)).unwrap();
        assert_eq!(
            done.condition_expression.as_deref(),
            Some("#created_s = :v1")
        );
        assert_eq!(
            done.update_expression,
            "SET #created_s = :v0 REMOVE #until_s, #after"
        );
        let cleared = update(
            "jobs",
            "cleanup",
            &Progress::default(),
            &Progress::default(),
        );
        assert_eq!(cleared.unwrap().expression_attribute_values, None);
        let values = done.expression_attribute_values.unwrap();
        assert_eq!((&values[":v0"], &values[":v1"]), (&n(2_000), &n(1_000)));
    }
}
