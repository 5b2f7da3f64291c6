//! The tenants table: the columns that billhook writes, and the list of all connected accounts for `reconcile`.
//!
//! `ACCOUNT` is the basis of tenant isolation: it says which tenant a connected account belongs to. `ledger` looks the
//! tenant up by it; `billhook_core::worker` compares the result with the entity's tenant.

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::{EntityFacts, EntityUpdate};
use billhook_core::error::DependencyError;
use billhook_core::ids::AccountId;
use billhook_core::tasks::ports::{AccountsPage, ListAccounts};
use billhook_core::worker::ports::CommitError;

use super::attributes::{Item, read_text, string_value};
use super::dependency_error;
use super::jobs::JobsTable;
use super::row::{ColumnUpdates, RowSchema, from_attribute, schema_member, to_attribute};

const TENANT: &str = "tenant_id";
pub(super) const ACCOUNT: &str = "stripe_connected_account_id";

pub(super) fn tenant_schema(table: String) -> RowSchema {
    RowSchema {
        table,
        key: TENANT,
        tenant: TENANT,
        amount: None,
        intent: None,
        facts: "stripe",
        guarded: &[
            ACCOUNT,
            "charges_enabled",
            "payouts_enabled",
            "stripe_status",
        ],
    }
}

pub(super) fn read_facts(stored: &AttributeValue) -> Result<EntityFacts, String> {
    Ok(EntityFacts {
        account: from_attribute(stored.clone())?,
        ..EntityFacts::default()
    })
}

pub(super) fn build_columns(next: &EntityUpdate) -> Result<ColumnUpdates, CommitError> {
    let mut facts = to_attribute(&next.facts.account)?;
    if let AttributeValue::M(members) = &mut facts {
        members.extend([schema_member()]);
    }
    let status = string_value(next.account.status.as_str());
    let mut columns = vec![("stripe", Some(facts)), ("stripe_status", Some(status))];
    if let Some(able) = next.account.abilities {
        let truth = |truth| Some(AttributeValue::Bool(truth));
        columns.push(("charges_enabled", truth(able.charges_enabled)));
        columns.push(("payouts_enabled", truth(able.payouts_enabled)));
    }
    Ok(columns)
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
}
