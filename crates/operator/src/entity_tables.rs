//! Reads the application's tables: orders, statements and tenants, cut to the documented columns.

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::dynamodb::attributes::{Item, string_value};
use billhook_core::entity::EntityKey;
use serde_json::Value;

use crate::events_table::row_to_json;
use crate::exit::CommandExit;
use crate::row_json::{RowDetail, read_text};
use crate::session::StackSession;

#[derive(Clone, Copy, Debug)]
pub(crate) struct EntityTable {
    pub(crate) output: &'static str,
    pub(crate) key: &'static str,
    pub(crate) noun: &'static str,
    /// The columns that `docs/data-model.md` names. The application owns the others, and they may hold personal data,
    /// such as the recipient of a letter.
    columns: &'static [&'static str],
}

pub(crate) const ORDERS: EntityTable = EntityTable {
    output: "OrdersTable",
    key: "id",
    noun: "order",
    columns: &[
        "id",
        "userId",
        "sellerId",
        "tenantId",
        "amountTotal",
        "currency",
        "createdAt",
        "status",
        "paymentStatus",
        "requiresReview",
        "reviewReasons",
        "amountRefunded",
        "paymentFailedAt",
        "stripePaymentIntentId",
        "stripeCheckoutSessionId",
        "timeline",
        "updatedAt",
        "version",
    ],
};
pub(crate) const STATEMENTS: EntityTable = EntityTable {
    output: "StatementsTable",
    key: "statement_id",
    noun: "statement",
    columns: &[
        "statement_id",
        "tenant_id",
        "amount_due",
        "currency",
        "lob_letter_id",
        "payment_status",
        "requires_review",
        "review_reasons",
        "amount_paid",
        "amount_refunded",
        "paid_at",
        "stripe_payment_intent_id",
        "mail_status",
        "mail_status_at",
        "needs_attention",
        "attention_reason",
        "expected_delivery_date",
        "tracking_number",
        "template_version",
        "timeline",
        "version",
    ],
};
pub(crate) const TENANTS: EntityTable = EntityTable {
    output: "TenantsTable",
    key: "tenant_id",
    noun: "tenant",
    columns: &[
        "tenant_id",
        "name",
        "stripe_connected_account_id",
        "charges_enabled",
        "payouts_enabled",
        "stripe_status",
        "version",
    ],
};

pub(crate) fn locate_entity(key: &EntityKey) -> (EntityTable, &str) {
    match key {
        EntityKey::Order(id) => (ORDERS, id.as_str()),
        EntityKey::Statement(id) => (STATEMENTS, id.as_str()),
        EntityKey::Tenant(id) => (TENANTS, id.as_str()),
    }
}

impl EntityTable {
    pub(crate) async fn read_row(
        self,
        session: &StackSession,
        id: &str,
        detail: RowDetail,
    ) -> Result<Value> {
        self.find_row(session, id, detail).await?.ok_or_else(|| {
            let stack = &session.stack.name;
            CommandExit::NotFound(format!("there is no {} {id} in {stack}", self.noun)).into()
        })
    }

    pub(crate) async fn find_row(
        self,
        session: &StackSession,
        id: &str,
        detail: RowDetail,
    ) -> Result<Option<Value>> {
        let table = session.stack.output(self.output)?;
        let get = session.dynamodb.get_item().table_name(table);
        let got = get
            .key(self.key, string_value(id))
            .consistent_read(true)
            .send()
            .await;
        let item = got
            .with_context(|| format!("cannot read {id} from {table}"))?
            .item;
        Ok(item.map(|item| self.select_columns(&item, detail)))
    }

    fn select_columns(self, item: &Item, detail: RowDetail) -> Value {
        let mut row = row_to_json(item);
        if let (Some(members), RowDetail::Known) = (row.as_object_mut(), detail) {
            members.retain(|name, _| self.columns.contains(&name.as_str()));
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
        let table = session.stack.output(self.output)?;
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
                    .map(|item| self.select_columns(item, RowDetail::Known)),
            );
            start = page.last_evaluated_key;
            if start.is_none() || found.len() >= limit {
                found.sort_by_key(|row| read_text(row, self.key).map(str::to_owned));
                found.truncate(limit);
                return Ok(found);
            }
        }
    }
}
