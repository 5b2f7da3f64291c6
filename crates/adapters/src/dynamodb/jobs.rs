//! What the scheduled tasks remember, and the accounts they go through.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use billhook_core::ids::AccountId;
use billhook_core::jobs::{Checkpoint, DONE_THROUGH_S, JOB_ID, ResumeAt};
use billhook_core::ports::{
    AccountsPage, CheckpointStore, CommitError, DependencyError, ListAccounts,
};

use super::expression::UpdateBuilder;
use super::items::{self, Item, number_value, read_text, string_value};
use super::{dependency_error, send_update};

const UNTIL_S: &str = "until_s";
const AFTER: &str = "after";
const TENANT: &str = "tenant_id";
const ACCOUNT: &str = "stripe_connected_account_id";

/// The jobs and the tenants.
#[derive(Clone, Debug)]
pub struct JobsTable {
    /// The client.
    pub client: Client,
    /// How far each job came.
    pub table: String,
    /// The application's tenants.
    pub tenants_table: String,
}

impl CheckpointStore for JobsTable {
    async fn load_checkpoint(&self, job: &str) -> Result<Checkpoint, DependencyError> {
        let got = self
            .client
            .get_item()
            .table_name(&self.table)
            .key(JOB_ID, string_value(job))
            .consistent_read(true)
            .send()
            .await;
        let row = got.map_err(|error| dependency_error(self.doing("read", job), error))?;
        Ok(row.item.as_ref().map(read_checkpoint).unwrap_or_default())
    }

    async fn save_checkpoint(
        &self,
        job: &str,
        read: &Checkpoint,
        next: &Checkpoint,
    ) -> Result<bool, DependencyError> {
        let doing = self.doing("write", job);
        let update = match build_checkpoint_update(&self.table, job, read, next) {
            Ok(update) => update,
            Err(error) => return Err(super::invalid_call(&doing, error)),
        };
        match send_update(&self.client, update).await {
            Ok(()) => Ok(true),
            // It may be the SDK's own first try that stands there: then the row is as it was to be.
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
                Ok(self.load_checkpoint(job).await? == *next)
            }
            Err(error) => Err(dependency_error(doing, error)),
        }
    }
}

impl JobsTable {
    fn doing(&self, what: &str, job: &str) -> String {
        format!("{what} {job} of {}", self.table)
    }
}

fn read_checkpoint(row: &Item) -> Checkpoint {
    let cut = items::read_integer(row, UNTIL_S).zip(read_text(row, AFTER));
    Checkpoint {
        done_through_s: items::read_integer(row, DONE_THROUGH_S),
        resume_at: cut.map(|(until_s, after)| ResumeAt {
            until_s,
            after: after.to_owned(),
        }),
    }
}

fn build_checkpoint_update(
    table: &str,
    job: &str,
    read: &Checkpoint,
    next: &Checkpoint,
) -> Result<aws_sdk_dynamodb::types::Update, CommitError> {
    let mut update = UpdateBuilder::new();
    update.set(DONE_THROUGH_S, next.done_through_s.map(number_value));
    update.set(
        UNTIL_S,
        next.resume_at.as_ref().map(|cut| number_value(cut.until_s)),
    );
    update.set(
        AFTER,
        next.resume_at.as_ref().map(|cut| string_value(&cut.after)),
    );
    update.require_as_loaded(
        DONE_THROUGH_S,
        read.done_through_s.map(number_value).as_ref(),
    );
    update.build(table, JOB_ID, job)
}

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
            .projection_expression("tenant_id, #account")
            .expression_attribute_names("#account", ACCOUNT)
            .set_exclusive_start_key(start)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| dependency_error(format!("scan {table}"), error))?;
        Ok(read_accounts_page(page.items(), page.last_evaluated_key()))
    }
}

fn read_accounts_page(rows: &[Item], last: Option<&Item>) -> AccountsPage {
    let account = |row: &Item| AccountId::parse(read_text(row, ACCOUNT)?).ok();
    AccountsPage {
        accounts: rows.iter().filter_map(account).collect(),
        next: last.and_then(|row| Some(read_text(row, TENANT)?.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accounts_behind_a_tenant_with_any_key_are_listed() {
        let last = Item::from([(TENANT.to_owned(), string_value("Bäckerei Müller"))]);
        let page = read_accounts_page(&[], Some(&last));
        assert_eq!(page.next.as_deref(), Some("Bäckerei Müller"));
        assert_eq!(read_accounts_page(&[], None).next, None);
    }

    #[test]
    fn progress_reads_back_as_written_on_condition_of_what_was_read() {
        let cut = Checkpoint::completed_through(1_000).interrupted_at(2_000, "evt_1".to_owned());
        let row = Item::from([
            (DONE_THROUGH_S.to_owned(), number_value(1_000)),
            (UNTIL_S.to_owned(), number_value(2_000)),
            (AFTER.to_owned(), string_value("evt_1")),
        ]);
        assert_eq!(read_checkpoint(&row), cut);
        assert_eq!(read_checkpoint(&Item::new()), Checkpoint::default());
        let first = build_checkpoint_update("jobs", "sweep", &Checkpoint::default(), &cut).unwrap();
        assert_eq!(
            first.condition_expression.as_deref(),
            Some("attribute_not_exists(#created_s)")
        );
        let done =
            build_checkpoint_update("jobs", "sweep", &cut, &Checkpoint::completed_through(2_000))
                .unwrap();
        assert_eq!(
            done.condition_expression.as_deref(),
            Some("#created_s = :v1")
        );
        assert_eq!(
            done.update_expression,
            "SET #created_s = :v0 REMOVE #until_s, #after"
        );
        let cleared = build_checkpoint_update(
            "jobs",
            "cleanup",
            &Checkpoint::default(),
            &Checkpoint::default(),
        );
        assert_eq!(cleared.unwrap().expression_attribute_values, None);
        let values = done.expression_attribute_values.unwrap();
        assert_eq!(
            (&values[":v0"], &values[":v1"]),
            (&number_value(2_000), &number_value(1_000))
        );
    }
}
