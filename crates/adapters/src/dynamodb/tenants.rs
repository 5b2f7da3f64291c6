//! Scans the tenants table for all connected accounts, for `reconcile`.

use billhook_core::entity::kind::EntityKind as _;
use billhook_core::entity::tenant::{ACCOUNT_COLUMN, TenantKind};
use billhook_core::error::DependencyError;
use billhook_core::ids::AccountId;
use billhook_core::tasks::ports::{AccountsPage, ListAccounts};

use super::attributes::{Item, read_text, string_value};
use super::dependency_error;
use super::jobs::JobsTable;

const TENANT: &str = TenantKind::SCHEMA.key;

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
            .expression_attribute_names("#account", ACCOUNT_COLUMN)
            .set_exclusive_start_key(start)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| dependency_error(format!("scan {table}"), error))?;
        Ok(read_accounts_page(page.items(), page.last_evaluated_key()))
    }
}

fn read_accounts_page(rows: &[Item], last: Option<&Item>) -> AccountsPage {
    let account = |row: &Item| AccountId::parse(read_text(row, ACCOUNT_COLUMN)?).ok();
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
}
