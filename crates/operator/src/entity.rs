//! Rows of the application's tables: reading and listing them, and repairs by the code that decides about events, so
//! that status, review and timeline follow at once.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::{Item, string_value};
use billhook_core::entity::{Entity, EntityFacts, EntityKey};
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::worker::ports::{CommitError, CommitPart, Ledger as _};
use serde_json::{Value, json};

use crate::audit::By;
use crate::session::Session;
use crate::{Stop, store};

/// Others write the same row; a repair that loses so often is told to the person.
const TRIES_MAX: usize = 5;

/// A table of the application.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) output: &'static str,
    pub(crate) key: &'static str,
    pub(crate) noun: &'static str,
    /// The columns that `docs/data-model.md` names: others are the application's own and may hold anything.
    columns: &'static [&'static str],
}

pub(crate) const ORDERS: Table = Table {
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
pub(crate) const STATEMENTS: Table = Table {
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
pub(crate) const TENANTS: Table = Table {
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

impl Table {
    /// A row, cut to the columns that are known unless all are asked for.
    pub(crate) async fn row(self, session: &Session, id: &str, raw: bool) -> Result<Value> {
        self.find(session, id, raw).await?.ok_or_else(|| {
            let stack = &session.stack.name;
            Stop::NotThere(format!("there is no {} {id} in {stack}", self.noun)).into()
        })
    }

    pub(crate) async fn find(
        self,
        session: &Session,
        id: &str,
        raw: bool,
    ) -> Result<Option<Value>> {
        let table = session.stack.output(self.output)?;
        let get = session.dynamodb.get_item().table_name(table);
        let got = get
            .key(self.key, string_value(id))
            .consistent_read(true)
            .send()
            .await;
        let item = got
            .with_context(|| format!("cannot read {id} of {table}"))?
            .item;
        Ok(item.map(|item| self.shown(&item, raw)))
    }

    fn shown(self, item: &Item, raw: bool) -> Value {
        let mut row = store::json(item);
        if let (Some(members), false) = (row.as_object_mut(), raw) {
            members.retain(|name, _| self.columns.contains(&name.as_str()));
        }
        row
    }

    /// At most `most` rows that fulfil a condition on boolean columns; no index has them, so the table is read through.
    pub(crate) async fn scan(
        self,
        session: &Session,
        any_true: &[&str],
        most: usize,
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
            found.extend(page.items().iter().map(|item| self.shown(item, false)));
            start = page.last_evaluated_key;
            if start.is_none() || found.len() >= most {
                found.sort_by_key(|row| crate::filter::text(row, self.key).map(str::to_owned));
                found.truncate(most);
                return Ok(found);
            }
        }
    }
}

/// Puts a fact that a person states into an order or statement, in the way of any event's. `state` makes it of the row
/// as it is, or says why not. Who and why stand in the timeline.
pub(crate) async fn repair(
    session: &Session,
    key: &EntityKey,
    action: &str,
    by: &By,
    state: impl Fn(&Entity) -> Result<EntityFacts>,
) -> Result<()> {
    let ledger = session.ledger(ProviderId::Stripe)?;
    let keys = BTreeSet::from([key.clone()]);
    let mut is_noted = false;
    for _ in 0..TRIES_MAX {
        let mut rows = ledger.load_rows(&keys, &BTreeSet::new()).await?;
        if let Some(reason) = rows.unreadable.remove(key) {
            bail!("{key} cannot be read, {reason}: restore it from a backup");
        }
        let missing = || Stop::NotThere(format!("there is no {key}"));
        let (entity, row) = rows.entities.remove(key).ok_or_else(missing)?;
        let facts = state(&entity)?;
        if !is_noted {
            // Before the deed: a note without one misleads less than a deed without a note.
            note(session, key, action, by).await?;
            is_noted = true;
            continue;
        }
        let now = SystemClock.now();
        let next = entity.apply_facts(facts, now);
        let commit = CommitPart {
            entity: Some((&entity, &row, &next)),
            events: Vec::new(),
            payments: Vec::new(),
            now,
        };
        match ledger.commit(ProviderId::Stripe, &[commit]).await {
            Ok(()) => return Ok(()),
            Err(CommitError::LostRace | CommitError::Busy(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot write {key}")),
        }
    }
    bail!("{key} kept changing while it was to be written: try again")
}

async fn note(session: &Session, key: &EntityKey, action: &str, by: &By) -> Result<()> {
    let (table, id) = match key {
        EntityKey::Order(id) => (ORDERS, id.as_str()),
        EntityKey::Statement(id) => (STATEMENTS, id.as_str()),
        EntityKey::Tenant(id) => (TENANTS, id.as_str()),
    };
    let meta = HashMap::from([
        ("action".to_owned(), string_value(action)),
        ("reason".to_owned(), string_value(&by.reason)),
    ]);
    let entry = AttributeValue::M(HashMap::from([
        ("type".to_owned(), string_value("note")),
        ("at".to_owned(), string_value(SystemClock.now().to_string())),
        ("actor".to_owned(), string_value("operator")),
        ("actorType".to_owned(), string_value("user")),
        ("actorId".to_owned(), string_value(&by.actor)),
        ("meta".to_owned(), AttributeValue::M(meta)),
    ]));
    session
        .dynamodb
        .update_item()
        .table_name(session.stack.output(table.output)?)
        .key(table.key, string_value(id))
        .update_expression("SET timeline = list_append(if_not_exists(timeline, :none), :entry)")
        .condition_expression("attribute_exists(#key)")
        .expression_attribute_names("#key", table.key)
        .expression_attribute_values(":none", AttributeValue::L(Vec::new()))
        .expression_attribute_values(":entry", AttributeValue::L(vec![entry]))
        .send()
        .await
        .with_context(|| format!("cannot write into the timeline of {key}"))?;
    Ok(())
}

/// A row's column as text, an empty one where it is missing.
pub(crate) fn column(row: &Value, name: &str) -> String {
    match row.get(name) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => json!(other).to_string(),
    }
}
