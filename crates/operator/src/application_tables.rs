//! Reads the application's tables: orders, statements and tenants, cut to the documented columns.

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::dynamodb::attributes::{Item, string_value};
use billhook_core::entity::EntityKey;
use billhook_core::entity::columns::EntitySchema;
use billhook_core::entity::kind::EntityKind as _;
use billhook_core::entity::order::OrderKind;
use billhook_core::entity::rules::RowRules;
use billhook_core::entity::statement::StatementKind;
use billhook_core::entity::tenant::TenantKind;
use serde_json::Value;

use crate::events_table::row_to_json;
use crate::exit::CommandExit;
use crate::row_json::{RowDetail, read_text};
use crate::session::StackSession;

#[derive(Clone, Copy, Debug)]
pub(crate) struct ApplicationTable(&'static EntitySchema);

pub(crate) const ORDERS: ApplicationTable = ApplicationTable(&OrderKind::SCHEMA);
pub(crate) const STATEMENTS: ApplicationTable = ApplicationTable(&StatementKind::SCHEMA);
pub(crate) const TENANTS: ApplicationTable = ApplicationTable(&TenantKind::SCHEMA);

pub(crate) fn locate_entity(key: &EntityKey) -> (ApplicationTable, &str) {
    (ApplicationTable(key.schema()), key.id())
}

impl ApplicationTable {
    pub(crate) fn name(self, session: &StackSession) -> Result<&str> {
        session.stack.application_table(self.0)
    }

    pub(crate) fn key(self) -> &'static str {
        self.0.key
    }

    pub(crate) async fn read_row(
        self,
        session: &StackSession,
        id: &str,
        detail: RowDetail,
    ) -> Result<Value> {
        self.find_row(session, id, detail).await?.ok_or_else(|| {
            let stack = &session.stack.name;
            CommandExit::NotFound(format!("there is no {} {id} in {stack}", self.0.word)).into()
        })
    }

    pub(crate) async fn find_row(
        self,
        session: &StackSession,
        id: &str,
        detail: RowDetail,
    ) -> Result<Option<Value>> {
        let table = self.name(session)?;
        let get = session.dynamodb.get_item().table_name(table);
        let got = get
            .key(self.key(), string_value(id))
            .consistent_read(true)
            .send()
            .await;
        let item = got
            .with_context(|| format!("cannot read {id} from {table}"))?
            .item;
        let rules = session.stack.row_rules()?;
        Ok(item.map(|item| self.select_columns(&rules, &item, detail)))
    }

    fn select_columns(self, rules: &RowRules, item: &Item, detail: RowDetail) -> Value {
        let mut row = row_to_json(item);
        if let (Some(members), RowDetail::Known) = (row.as_object_mut(), detail) {
            // The documented columns. The application owns the others, and they may hold personal data, such as the
            // recipient of a letter.
            let version = rules.version_column;
            members.retain(|name, _| {
                let mut columns = self.0.columns.iter();
                columns.any(|column| version.name_of(column.name) == name)
            });
        }
        row
    }

    /// At most `limit` rows in which one of the columns is true, or any rows if no column is given. No index covers
    /// these columns, so the whole table is read: acceptable for one question of an operator, too expensive for a loop.
    pub(crate) async fn scan_rows(
        self,
        session: &StackSession,
        any_true: &[&str],
        limit: usize,
    ) -> Result<Vec<Value>> {
        let table = self.name(session)?;
        let rules = session.stack.row_rules()?;
        let mut found = Vec::new();
        let mut start = None;
        loop {
            let mut scan = session
                .dynamodb
                .scan()
                .table_name(table)
                .set_exclusive_start_key(start);
            if !any_true.is_empty() {
                let terms: Vec<String> = any_true
                    .iter()
                    .map(|column| format!("#{column} = :true"))
                    .collect();
                scan = scan
                    .filter_expression(terms.join(" OR "))
                    .expression_attribute_values(":true", AttributeValue::Bool(true));
                for column in any_true {
                    scan = scan.expression_attribute_names(format!("#{column}"), *column);
                }
            }
            let page = scan
                .send()
                .await
                .with_context(|| format!("cannot read {table}"))?;
            found.extend(
                page.items()
                    .iter()
                    .map(|item| self.select_columns(&rules, item, RowDetail::Known)),
            );
            start = page.last_evaluated_key;
            if start.is_none() || found.len() >= limit {
                found.sort_by_key(|row| read_text(row, self.key()).map(str::to_owned));
                found.truncate(limit);
                return Ok(found);
            }
        }
    }
}
