//! Checks of tables that the application made and billhook was given (`ExistingOrdersTableName` …): key, indexes,
//! recovery, and a sample of the rows. Each finding has the command that mends it.
//!
//! A sample proves nothing about the other rows. A scan reads a table in the order of hashed keys, so the first rows are
//! as good as any.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndexDescription, IndexStatus,
    KeySchemaElement, KeyType, ScalarAttributeType, TableDescription,
};
use billhook_adapters::dynamodb::attributes::{Item, read_text, string_value};
use billhook_adapters::dynamodb::find_item_faults;
use billhook_core::entity::EntityKey;
use billhook_core::entity::columns::{ColumnOwner, ColumnType, EntityIndex, EntitySchema};
use billhook_core::entity::inspect::ColumnFault;
use billhook_core::entity::rules::RowRules;
use billhook_core::entity::schema::STATE_KEY;
use serde_json::{Value, json};

use super::aws::recovers_to_point_in_time;
use super::finding::CheckFinding;
use crate::session::StackSession;

/// Rows of the sample.
const SAMPLE_MAX: usize = 1_000;
/// Rows and words that a finding names.
const NAMED_MAX: usize = 3;
/// Rows whose version is looked up, to know whether billhook wrote it.
const LOOKUPS_MAX: usize = 25;

pub(super) async fn check_existing_table(
    session: &StackSession,
    schema: &EntitySchema,
) -> Result<Vec<CheckFinding>> {
    let table = session.stack.application_table(schema)?;
    let described = session
        .dynamodb
        .describe_table()
        .table_name(table)
        .send()
        .await
        .with_context(|| format!("cannot describe {table}"))?;
    let described = described.table.context("DynamoDB describes no table")?;
    let mut findings = vec![check_key(schema, table, &described)];
    for index in schema.indexes {
        findings.push(check_index(schema, table, index, &described));
    }
    findings.push(CheckFinding::from_check(
        format!("{}Table recovers to a point in time", schema.table),
        recovers_to_point_in_time(session, table).await?,
        "",
        format!("aws dynamodb update-continuous-backups --table-name {table} --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"),
    ));
    // Without the key there are no rows to speak of.
    if findings.first().is_some_and(|key| key.is_good) {
        let rows = sample_rows(session, table).await?;
        let rules = session.stack.row_rules()?;
        let mut sample = RowSample::inspect(schema, &rules, &rows);
        sample.forget_own_versions(session, schema).await?;
        findings.extend(sample.report(schema, table));
    }
    Ok(findings)
}

/// A hash key of texts, and nothing else.
fn has_hash_key(
    keys: &[KeySchemaElement],
    attributes: &[AttributeDefinition],
    column: &str,
) -> bool {
    let is_text = attributes.iter().any(|attribute| {
        attribute.attribute_name() == column
            && *attribute.attribute_type() == ScalarAttributeType::S
    });
    let [key] = keys else {
        return false;
    };
    is_text && key.attribute_name() == column && *key.key_type() == KeyType::Hash
}

/// Such as `orderId (N), line (S)`.
fn describe_keys(keys: &[KeySchemaElement], attributes: &[AttributeDefinition]) -> String {
    let described = keys.iter().map(|key| {
        let mut attributes = attributes.iter();
        let attribute = attributes.find(|it| it.attribute_name() == key.attribute_name());
        let kind = attribute.map_or("?", |attribute| attribute.attribute_type().as_str());
        format!("{} ({kind})", key.attribute_name())
    });
    described.collect::<Vec<_>>().join(", ")
}

fn check_key(schema: &EntitySchema, table: &str, described: &TableDescription) -> CheckFinding {
    let (keys, attributes) = (described.key_schema(), described.attribute_definitions());
    let key = schema.key;
    let is_good = has_hash_key(keys, attributes, key);
    let detail = match is_good {
        true => String::new(),
        false => format!("its key is {}", describe_keys(keys, attributes)),
    };
    let columns = [key]
        .into_iter()
        .chain(schema.indexes.iter().map(|it| it.key));
    let columns: BTreeSet<&str> = columns.collect();
    let columns: Vec<String> = columns
        .iter()
        .map(|column| format!("AttributeName={column},AttributeType=S"))
        .collect();
    let indexes: Vec<Value> = schema.indexes.iter().map(index_definition).collect();
    let fix = format!(
        "a key cannot be changed: make another table and copy the rows (docs/migrate.md): \
        aws dynamodb create-table --table-name {table}-billhook --billing-mode PAY_PER_REQUEST \
        --attribute-definitions {} --key-schema AttributeName={key},KeyType=HASH \
        --global-secondary-indexes '{}'",
        columns.join(" "),
        json!(indexes)
    );
    let check = format!("{}Table has the key {key}", schema.table);
    CheckFinding::from_check(check, is_good, detail, fix)
}

fn index_definition(index: &EntityIndex) -> Value {
    json!({
        "IndexName": index.name,
        "KeySchema": [{ "AttributeName": index.key, "KeyType": "HASH" }],
        "Projection": { "ProjectionType": "KEYS_ONLY" },
    })
}

fn check_index(
    schema: &EntitySchema,
    table: &str,
    index: &EntityIndex,
    described: &TableDescription,
) -> CheckFinding {
    let mut all = described.global_secondary_indexes().iter();
    let found = all.find(|found| found.index_name() == Some(index.name));
    let fault = match found {
        None => Some(IndexFault::Missing),
        Some(found) => find_index_fault(index, found, described),
    };
    let update = format!("aws dynamodb update-table --table-name {table}");
    let mut definition = index_definition(index);
    let billing = described.billing_mode_summary();
    let is_on_demand =
        billing.and_then(|it| it.billing_mode()) == Some(&BillingMode::PayPerRequest);
    if let (false, Some(definition)) = (is_on_demand, definition.as_object_mut()) {
        let throughput = json!({ "ReadCapacityUnits": 5, "WriteCapacityUnits": 5 });
        definition.insert("ProvisionedThroughput".to_owned(), throughput);
    }
    let create = format!(
        "{update} --attribute-definitions AttributeName={},AttributeType=S --global-secondary-index-updates '{}'",
        index.key,
        json!([{ "Create": definition }])
    );
    let delete = format!(
        "{update} --global-secondary-index-updates '{}'",
        json!([{ "Delete": { "IndexName": index.name } }])
    );
    let (detail, fix) = match fault {
        None => (String::new(), String::new()),
        Some(IndexFault::Missing) => ("it is missing".to_owned(), create),
        Some(IndexFault::NotActive(status)) => (
            format!("it is {status}"),
            format!("aws dynamodb wait table-exists --table-name {table}"),
        ),
        Some(IndexFault::OtherKey(key)) => (
            format!("its key is {key}"),
            format!(
                "if nothing else uses it: {delete} && aws dynamodb wait table-exists --table-name {table} && {create}"
            ),
        ),
    };
    let check = format!("{}Table has {} on {}", schema.table, index.name, index.key);
    CheckFinding::from_check(check, detail.is_empty(), detail, fix)
}

enum IndexFault {
    Missing,
    NotActive(String),
    OtherKey(String),
}

/// Any projection will do, because a query of ours reads only the table's key.
fn find_index_fault(
    index: &EntityIndex,
    found: &GlobalSecondaryIndexDescription,
    described: &TableDescription,
) -> Option<IndexFault> {
    let (keys, attributes) = (found.key_schema(), described.attribute_definitions());
    if !has_hash_key(keys, attributes, index.key) {
        return Some(IndexFault::OtherKey(describe_keys(keys, attributes)));
    }
    // The local AWS does not report the status of every index.
    let status = found
        .index_status()
        .filter(|it| **it != IndexStatus::Active);
    status.map(|status| IndexFault::NotActive(status.to_string()))
}

async fn sample_rows(session: &StackSession, table: &str) -> Result<Vec<Item>> {
    let mut rows: Vec<Item> = Vec::new();
    let mut pages = session
        .dynamodb
        .scan()
        .table_name(table)
        .into_paginator()
        .send();
    while rows.len() < SAMPLE_MAX
        && let Some(page) = pages.next().await
    {
        let page = page.with_context(|| format!("cannot read {table}"))?;
        rows.extend(page.items.unwrap_or_default());
    }
    rows.truncate(SAMPLE_MAX);
    Ok(rows)
}

/// Faults of one kind: of one column, and of one type or of any word.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FaultKind {
    /// An id that billhook does not take.
    Id,
    Type {
        column: &'static str,
        found: ColumnType,
        expected: ColumnType,
        owner: ColumnOwner,
    },
    Word(&'static str),
    CreatedAt(&'static str),
    Version(&'static str),
}

#[derive(Debug, Default, PartialEq, Eq)]
struct FaultyRows {
    ids: BTreeSet<String>,
    /// The words or values that were found.
    words: BTreeSet<String>,
}

#[derive(Debug)]
struct RowSample {
    rows: usize,
    faults: BTreeMap<FaultKind, FaultyRows>,
}

impl RowSample {
    fn inspect(schema: &EntitySchema, rules: &RowRules, rows: &[Item]) -> Self {
        let mut faults: BTreeMap<FaultKind, FaultyRows> = BTreeMap::new();
        let mut add = |kind, id: &str, word: Option<String>| {
            let rows = faults.entry(kind).or_default();
            rows.ids.insert(id.to_owned());
            rows.words.extend(word);
        };
        for row in rows {
            let id = read_text(row, schema.key).unwrap_or_default();
            let Some(key) = EntityKey::of_kind(schema.word, id) else {
                add(FaultKind::Id, id, None);
                continue;
            };
            for fault in find_item_faults(&key, rules, row) {
                match fault {
                    ColumnFault::Type {
                        column,
                        found,
                        expected,
                        owner,
                    } => {
                        let kind = FaultKind::Type {
                            column,
                            found,
                            expected,
                            owner,
                        };
                        add(kind, id, None);
                    }
                    ColumnFault::Word { column, word } => {
                        add(FaultKind::Word(column), id, Some(word));
                    }
                    ColumnFault::CreatedAt { column, found } => {
                        let found = found.unwrap_or_else(|| "none".to_owned());
                        add(FaultKind::CreatedAt(column), id, Some(found));
                    }
                    ColumnFault::Version { column } => add(FaultKind::Version(column), id, None),
                }
            }
        }
        Self {
            rows: rows.len(),
            faults,
        }
    }

    /// A version of billhook's own may stand in a row without an entry: a state says that it is one.
    async fn forget_own_versions(
        &mut self,
        session: &StackSession,
        schema: &EntitySchema,
    ) -> Result<()> {
        let entities = session.stack.output("EntitiesTable")?;
        for (kind, rows) in &mut self.faults {
            if !matches!(kind, FaultKind::Version(_)) {
                continue;
            }
            let mut others = BTreeSet::new();
            for id in rows.ids.iter().take(LOOKUPS_MAX) {
                let get = session.dynamodb.get_item().table_name(entities);
                let key = string_value(format!("{}#{id}", schema.word));
                let got = get.key(STATE_KEY, key).send().await;
                let got = got.with_context(|| format!("cannot read {entities}"))?;
                if got.item.is_none() {
                    others.insert(id.clone());
                }
            }
            others.extend(rows.ids.iter().skip(LOOKUPS_MAX).cloned());
            rows.ids = others;
        }
        self.faults.retain(|_, rows| !rows.ids.is_empty());
        Ok(())
    }

    fn report(&self, schema: &EntitySchema, table: &str) -> Vec<CheckFinding> {
        let sampled = self.rows;
        if self.faults.is_empty() {
            let check = format!("{}Table rows are as billhook reads them", schema.table);
            let detail = format!("{sampled} rows sampled");
            return vec![CheckFinding::from_check(check, true, detail, "")];
        }
        let reports = self.faults.iter().map(|(kind, rows)| {
            let first = rows.ids.first().map_or("", String::as_str);
            let (what, fix) = kind.describe(schema, table, first);
            let ids: Vec<&str> = rows
                .ids
                .iter()
                .map(String::as_str)
                .take(NAMED_MAX)
                .collect();
            let words: Vec<&str> = rows
                .words
                .iter()
                .map(String::as_str)
                .take(NAMED_MAX)
                .collect();
            let words = match words.is_empty() {
                true => String::new(),
                false => format!(" ({})", words.join(", ")),
            };
            let detail = format!(
                "{} of {sampled} rows sampled{words}, such as {}",
                rows.ids.len(),
                ids.join(", ")
            );
            let check = format!("{}Table rows: {what}", schema.table);
            let mut finding = CheckFinding::problem(check, detail, fix);
            finding.data = json!({ "count": rows.ids.len(), "sampled": sampled, "ids": ids });
            finding
        });
        reports.collect()
    }
}

impl FaultKind {
    /// What is asked of the rows, and how to mend the first one.
    fn describe(&self, schema: &EntitySchema, table: &str, first: &str) -> (String, String) {
        let update = |expression: &str, names: &Value, values: Option<Value>| {
            let key = shell_quoted(&json!({ schema.key: { "S": first } }).to_string());
            let values = values.map_or_else(String::new, |values| {
                format!(" --expression-attribute-values '{values}'")
            });
            format!(
                "for each of them: aws dynamodb update-item --table-name {table} --key {key} \
                --update-expression '{expression}' --expression-attribute-names '{names}'{values}"
            )
        };
        let set = |column: &str, value: Value| {
            update(
                "SET #c = :v",
                &json!({ "#c": column }),
                Some(json!({ ":v": value })),
            )
        };
        let move_away = |column: &str| {
            let names = json!({ "#from": column, "#to": format!("app_{column}") });
            update("SET #to = #from REMOVE #from", &names, None)
        };
        match self {
            Self::Id => (
                format!(
                    "{} is 1 to 255 printable ASCII characters without spaces",
                    schema.key
                ),
                "billhook parks events about such rows; give them other ids".to_owned(),
            ),
            Self::Type {
                column,
                found,
                expected,
                owner,
            } => {
                let (found, expected) = (type_code(*found), type_code(*expected));
                let what = format!("{column} has the type {expected}, not {found}");
                let fix = match owner {
                    // Only the application knows what its value means as the right type.
                    ColumnOwner::Application => set(column, json!({ expected: "…" })),
                    ColumnOwner::Billhook | ColumnOwner::Both => move_away(column),
                };
                (what, fix)
            }
            Self::Word(column) => {
                let what = format!("{column} has a word that billhook knows");
                (what, move_away(column))
            }
            Self::CreatedAt(column) => (
                format!("{column} is a time, so that the row can be adopted"),
                set(column, json!({ "S": "2026-01-31T00:00:00Z" })),
            ),
            Self::Version(column) => (
                format!("{column} is billhook's version, and not the application's"),
                "deploy with VersionColumn=billhookVersion, or another column that is free"
                    .to_owned(),
            ),
        }
    }
}

/// For a shell, because an id may have a quote in it.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// DynamoDB's code of a type.
fn type_code(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Text => "S",
        ColumnType::Integer => "N",
        ColumnType::Bool => "BOOL",
        ColumnType::TextSet => "SS",
        ColumnType::List => "L",
        ColumnType::Map => "M",
        ColumnType::Other => "another one",
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::{BillingModeSummary, ProvisionedThroughputDescription};
    use billhook_core::entity::kind::EntityKind as _;
    use billhook_core::entity::order::OrderKind;
    use billhook_core::entity::rules::VersionColumn;
    use billhook_core::time::Timestamp;

    use super::*;

    const ORDERS: EntitySchema = OrderKind::SCHEMA;

    fn hash(column: &str) -> KeySchemaElement {
        let key = KeySchemaElement::builder().attribute_name(column);
        key.key_type(KeyType::Hash).build().unwrap()
    }

    fn of_type(column: &str, kind: ScalarAttributeType) -> AttributeDefinition {
        let attribute = AttributeDefinition::builder().attribute_name(column);
        attribute.attribute_type(kind).build().unwrap()
    }

    fn index_on(name: &str, column: &str, status: IndexStatus) -> GlobalSecondaryIndexDescription {
        let index = GlobalSecondaryIndexDescription::builder().index_name(name);
        index.key_schema(hash(column)).index_status(status).build()
    }

    #[test]
    fn a_missing_index_is_made_by_the_command_that_is_printed() {
        let on_demand = BillingModeSummary::builder().billing_mode(BillingMode::PayPerRequest);
        let table = TableDescription::builder()
            .key_schema(hash("id"))
            .attribute_definitions(of_type("id", ScalarAttributeType::S))
            .billing_mode_summary(on_demand.build())
            .build();
        assert!(check_key(&ORDERS, "Shop", &table).is_good);
        let [intents, status] = ORDERS.indexes else {
            panic!("two indexes");
        };
        let found = check_index(&ORDERS, "Shop", intents, &table);
        assert_eq!(
            found.check,
            "OrdersTable has PaymentIntentIndex on stripePaymentIntentId"
        );
        assert_eq!(
            found.fix,
            "aws dynamodb update-table --table-name Shop --attribute-definitions \
            AttributeName=stripePaymentIntentId,AttributeType=S --global-secondary-index-updates \
            '[{\"Create\":{\"IndexName\":\"PaymentIntentIndex\",\"KeySchema\":[{\"AttributeName\":\"stripePaymentIntentId\",\"KeyType\":\"HASH\"}],\"Projection\":{\"ProjectionType\":\"KEYS_ONLY\"}}}]'"
        );
        // A table with provisioned capacity needs some for the index.
        let provisioned = TableDescription::builder()
            .key_schema(hash("id"))
            .attribute_definitions(of_type("id", ScalarAttributeType::S))
            .provisioned_throughput(ProvisionedThroughputDescription::builder().build())
            .build();
        let found = check_index(&ORDERS, "Shop", status, &provisioned);
        assert!(
            found.fix.contains("\"ProvisionedThroughput\""),
            "{}",
            found.fix
        );
    }

    #[test]
    fn a_key_or_an_index_of_another_form_is_described() {
        let range = KeySchemaElement::builder().attribute_name("line");
        let range = range.key_type(KeyType::Range).build().unwrap();
        let others: [(Vec<KeySchemaElement>, ScalarAttributeType, &str); 3] = [
            (
                vec![hash("orderId")],
                ScalarAttributeType::S,
                "its key is orderId (S)",
            ),
            (
                vec![hash("id")],
                ScalarAttributeType::N,
                "its key is id (N)",
            ),
            (
                vec![hash("id"), range],
                ScalarAttributeType::S,
                "its key is id (S), line (N)",
            ),
        ];
        for (keys, kind, detail) in others {
            let table = TableDescription::builder()
                .attribute_definitions(of_type(keys[0].attribute_name(), kind))
                .attribute_definitions(of_type("line", ScalarAttributeType::N))
                .set_key_schema(Some(keys))
                .build();
            let found = check_key(&ORDERS, "Shop", &table);
            assert_eq!((found.is_good, found.detail.as_str()), (false, detail));
            assert!(
                found
                    .fix
                    .contains("create-table --table-name Shop-billhook")
            );
            assert!(
                found
                    .fix
                    .contains("--key-schema AttributeName=id,KeyType=HASH")
            );
        }
        let [intents, status] = ORDERS.indexes else {
            panic!("two indexes");
        };
        let table = TableDescription::builder()
            .attribute_definitions(of_type("state", ScalarAttributeType::S))
            .attribute_definitions(of_type(intents.key, ScalarAttributeType::S))
            .global_secondary_indexes(index_on("StatusIndex", "state", IndexStatus::Active))
            .global_secondary_indexes(index_on(intents.name, intents.key, IndexStatus::Creating))
            .build();
        let found = check_index(&ORDERS, "Shop", status, &table);
        assert_eq!(found.detail, "its key is state (S)");
        let delete =
            r#"'[{"Delete":{"IndexName":"StatusIndex"}}]' && aws dynamodb wait table-exists"#;
        assert!(found.fix.contains(delete), "{}", found.fix);
        let found = check_index(&ORDERS, "Shop", intents, &table);
        assert_eq!(found.detail, "it is CREATING");
    }

    fn sample(rules: &RowRules, rows: Value) -> Vec<CheckFinding> {
        let rows = rows.as_array().unwrap().iter();
        let rows: Vec<Item> = rows
            .map(|row| serde_dynamo::to_item(row).unwrap())
            .collect();
        RowSample::inspect(&ORDERS, rules, &rows).report(&ORDERS, "Shop")
    }

    #[test]
    fn rows_of_another_form_are_counted_by_column_and_mended_one_by_one() {
        let made = "2025-01-01T00:00:00Z";
        let fine = json!({ "id": "ord_0", "createdAt": 1_700_000_000, "status": "completed",
            "amountTotal": 4200, "currency": "usd", "reviewReasons": ["a:1"], "coupon": null });
        let rules = RowRules {
            adopted_before: Some(Timestamp::parse(made).unwrap()),
            ..RowRules::default()
        };
        let [good] = &sample(&rules, json!([fine]))[..] else {
            panic!("one finding");
        };
        assert_eq!(
            (good.is_good, good.detail.as_str()),
            (true, "1 rows sampled")
        );
        let rows = json!([
            fine,
            { "id": "it's", "createdAt": made, "status": "shipped" },
            { "id": "ord_2", "createdAt": made, "status": "packed", "amountTotal": "42.00" },
            { "id": "ord_3", "createdAt": "in May", "requiresReview": "no", "version": 57 },
            { "id": "ord_4" },
            { "id": "ord 5", "createdAt": made },
        ]);
        let found: Vec<String> = sample(&rules, rows.clone())
            .iter()
            .map(|finding| format!("{}: {}", finding.check, finding.detail))
            .collect();
        let expected = [
            "OrdersTable rows: id is 1 to 255 printable ASCII characters without spaces: 1 of 6 rows sampled, such as ord 5",
            "OrdersTable rows: amountTotal has the type N, not S: 1 of 6 rows sampled, such as ord_2",
            "OrdersTable rows: requiresReview has the type BOOL, not S: 1 of 6 rows sampled, such as ord_3",
            "OrdersTable rows: status has a word that billhook knows: 2 of 6 rows sampled (packed, shipped), such as it's, ord_2",
            "OrdersTable rows: createdAt is a time, so that the row can be adopted: 2 of 6 rows sampled (in May, none), such as ord_3, ord_4",
            "OrdersTable rows: version is billhook's version, and not the application's: 1 of 6 rows sampled, such as ord_3",
        ];
        assert_eq!(found, expected);
        let status = &sample(&rules, rows.clone())[3];
        let fix = r##"for each of them: aws dynamodb update-item --table-name Shop --key '{"id":{"S":"it'\''s"}}' --update-expression 'SET #to = #from REMOVE #from' --expression-attribute-names '{"#from":"status","#to":"app_status"}'"##;
        assert_eq!(status.fix, fix);
        let rules = RowRules {
            version_column: VersionColumn::parse("billhookVersion").unwrap(),
            ..rules
        };
        assert_eq!(sample(&rules, rows).len(), expected.len() - 1);
    }
}
