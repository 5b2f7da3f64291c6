//! Checks of tables that the application made and billhook was given (`ExistingOrdersTableName` …): key, indexes,
//! encryption, recovery, and a sample of the rows (`row_sample`). Each finding has the command that mends it.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndexDescription, IndexStatus,
    KeySchemaElement, KeyType, ScalarAttributeType, TableDescription,
};
use billhook_core::entity::columns::{ColumnOwner, EntityIndex, EntitySchema};
use billhook_core::entity::rules::RowRules;
use serde_json::{Value, json};

use super::aws::recovers_to_point_in_time;
use super::finding::CheckFinding;
use super::row_sample::{check_rows, type_code};
use crate::aws_request::KMS;
use crate::session::StackSession;

/// Without rules the rows are not checked: `row_rules` reports why there are none.
pub(super) async fn check_existing_table(
    session: &StackSession,
    schema: &EntitySchema,
    rules: Option<&RowRules>,
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
    let key = described
        .sse_description()
        .and_then(|it| it.kms_master_key_arn());
    if let Some(key) = key {
        let manager = find_key_manager(session, key).await.ok();
        findings.extend(report_encryption(schema, key, manager.as_deref()));
    }
    let Some(rules) = rules else {
        return Ok(findings);
    };
    findings.extend(check_key_types(schema, table, rules, &described));
    // Without the key there are no rows to speak of.
    if findings.first().is_some_and(|key| key.is_good) {
        findings.extend(check_rows(session, schema, rules, table).await?);
    }
    Ok(findings)
}

/// `AWS` or `CUSTOMER`.
async fn find_key_manager(session: &StackSession, key: &str) -> Result<String> {
    let headers = [
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", "TrentService.DescribeKey"),
    ];
    let question = json!({ "KeyId": key }).to_string();
    let answer = session.aws.post_text(KMS, "/", &headers, question).await?;
    let answer: Value =
        serde_json::from_str(&answer).context("cannot parse the response of KMS")?;
    let manager = answer.pointer("/KeyMetadata/KeyManager");
    let manager = manager.and_then(Value::as_str);
    Ok(manager.context("KMS names no manager")?.to_owned())
}

/// No fault, because a key's policy may allow the roles in many ways; but a table that nobody may decrypt fails with
/// the first event.
fn report_encryption(
    schema: &EntitySchema,
    key: &str,
    manager: Option<&str>,
) -> Option<CheckFinding> {
    let whose = match manager {
        Some("AWS") => return None,
        Some(_) => "a key of your own",
        None => "if that is a key of your own",
    };
    let region = key.split(':').nth(3).unwrap_or("REGION");
    let detail = format!(
        "encrypted with {key}, {whose}: its policy must allow the roles of the functions that use the table \
        (docs/permissions.md), and whoever runs billhook, kms:Decrypt, kms:Encrypt, kms:ReEncrypt*, \
        kms:GenerateDataKey* and kms:DescribeKey, with kms:ViaService dynamodb.{region}.amazonaws.com"
    );
    let check = format!("{}Table can be decrypted", schema.table);
    Some(CheckFinding::from_check(check, true, detail, ""))
}

/// Whether the hash key is this column, and a text. Of several columns a query would have to give each.
fn has_hash_key(
    keys: &[KeySchemaElement],
    attributes: &[AttributeDefinition],
    column: &str,
) -> bool {
    let is_text = attributes.iter().any(|attribute| {
        attribute.attribute_name() == column
            && *attribute.attribute_type() == ScalarAttributeType::S
    });
    let mut hash = keys
        .iter()
        .filter(|key| *key.key_type() == KeyType::Hash)
        .map(KeySchemaElement::attribute_name);
    is_text && hash.next() == Some(column) && hash.next().is_none()
}

fn range_keys(keys: &[KeySchemaElement]) -> Vec<KeySchemaElement> {
    let ranges = keys.iter().filter(|key| *key.key_type() == KeyType::Range);
    ranges.cloned().collect()
}

/// DynamoDB refuses to write a row in which the key of an index has another type, so a column that billhook writes must
/// have billhook's type there. Example: an index on `updatedAt` as a number.
fn check_key_types(
    schema: &EntitySchema,
    table: &str,
    rules: &RowRules,
    described: &TableDescription,
) -> Vec<CheckFinding> {
    let attributes = described.attribute_definitions().iter();
    let other_types = attributes.filter_map(|attribute| {
        let mut columns = schema.columns.iter();
        let column = columns.find(|column| {
            rules.version_column.name_of(column.name) == attribute.attribute_name()
                && column.owner != ColumnOwner::Application
        })?;
        let found = attribute.attribute_type().as_str();
        let expected = type_code(column.kind);
        (found != expected).then(|| (attribute.attribute_name(), found, expected))
    });
    let report = |(column, found, expected)| {
        CheckFinding::problem(
            format!(
                "{}Table has no index in which {column} has another type",
                schema.table
            ),
            format!(
                "it is a key of the type {found}, and billhook writes {expected}: such a write fails"
            ),
            format!(
                "aws dynamodb describe-table --table-name {table} shows the index; make one on another column, then delete it"
            ),
        )
    };
    other_types.map(report).collect()
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
    let is_good = has_hash_key(keys, attributes, key) && range_keys(keys).is_empty();
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
    // `aws dynamodb wait table-exists` waits for no index.
    let status = format!(
        "aws dynamodb describe-table --table-name {table} --output text --query \
        \"Table.GlobalSecondaryIndexes[?IndexName=='{}'].IndexStatus\"",
        index.name
    );
    let until_active = format!("until {status} | grep -qx ACTIVE; do sleep 10; done");
    let while_deleting = format!("while {status} | grep -qx DELETING; do sleep 10; done");
    let is_good = fault.is_none();
    let (detail, fix) = match fault {
        None => (describe_range_keys(found, described), String::new()),
        Some(IndexFault::Missing) => (
            "it is missing".to_owned(),
            format!("{ONE_BY_ONE}: {create} && {until_active}"),
        ),
        Some(IndexFault::NotActive(status)) => (format!("it is {status}"), until_active),
        Some(IndexFault::OtherKey(key)) => (
            format!("its key is {key}"),
            format!(
                "{ONE_BY_ONE}, and if nothing else uses this one: {delete} && {while_deleting} && {create} && {until_active}"
            ),
        ),
    };
    let check = format!("{}Table has {} on {}", schema.table, index.name, index.key);
    CheckFinding::from_check(check, is_good, detail, fix)
}

const ONE_BY_ONE: &str = "DynamoDB makes the indexes of a table one after the other";

/// A note on an index that serves the queries all the same.
fn describe_range_keys(
    found: Option<&GlobalSecondaryIndexDescription>,
    described: &TableDescription,
) -> String {
    let ranges = found.map_or_else(Vec::new, |found| range_keys(found.key_schema()));
    match ranges.is_empty() {
        true => String::new(),
        false => format!(
            "its range key is {}: a row without it is not in the index, and not found by it",
            describe_keys(&ranges, described.attribute_definitions())
        ),
    }
}

enum IndexFault {
    Missing,
    NotActive(String),
    OtherKey(String),
}

/// Any projection and any range key will do: a query of ours gives the hash key and reads only the table's key.
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

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::{BillingModeSummary, ProvisionedThroughputDescription};
    use billhook_core::entity::kind::EntityKind as _;
    use billhook_core::entity::order::OrderKind;

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
            "DynamoDB makes the indexes of a table one after the other: \
            aws dynamodb update-table --table-name Shop --attribute-definitions \
            AttributeName=stripePaymentIntentId,AttributeType=S --global-secondary-index-updates \
            '[{\"Create\":{\"IndexName\":\"PaymentIntentIndex\",\"KeySchema\":[{\"AttributeName\":\"stripePaymentIntentId\",\"KeyType\":\"HASH\"}],\"Projection\":{\"ProjectionType\":\"KEYS_ONLY\"}}}]' \
            && until aws dynamodb describe-table --table-name Shop --output text --query \
            \"Table.GlobalSecondaryIndexes[?IndexName=='PaymentIntentIndex'].IndexStatus\" \
            | grep -qx ACTIVE; do sleep 10; done"
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
        let delete = r#"'[{"Delete":{"IndexName":"StatusIndex"}}]' && while aws dynamodb describe-table --table-name Shop "#;
        assert!(found.fix.contains(delete), "{}", found.fix);
        let delete = "grep -qx DELETING; do sleep 10; done && aws dynamodb update-table";
        assert!(found.fix.contains(delete), "{}", found.fix);
        let found = check_index(&ORDERS, "Shop", intents, &table);
        assert_eq!(found.detail, "it is CREATING");
        let until = "until aws dynamodb describe-table --table-name Shop --output text";
        assert!(found.fix.starts_with(until), "{}", found.fix);
    }

    fn index_with(keys: Vec<KeySchemaElement>) -> GlobalSecondaryIndexDescription {
        GlobalSecondaryIndexDescription::builder()
            .index_name("StatusIndex")
            .set_key_schema(Some(keys))
            .build()
    }

    #[test]
    fn an_index_with_a_range_key_serves_and_one_with_two_hash_keys_does_not() {
        let range = KeySchemaElement::builder().attribute_name("createdAt");
        let range = range.key_type(KeyType::Range).build().unwrap();
        let checked = |keys: Vec<KeySchemaElement>| {
            let table = TableDescription::builder()
                .attribute_definitions(of_type("status", ScalarAttributeType::S))
                .attribute_definitions(of_type("createdAt", ScalarAttributeType::N))
                .global_secondary_indexes(index_with(keys))
                .build();
            check_index(&ORDERS, "Shop", &ORDERS.indexes[1], &table)
        };
        let found = checked(vec![hash("status"), range]);
        assert!(found.is_good, "{found:?}");
        assert_eq!(
            found.detail,
            "its range key is createdAt (N): a row without it is not in the index, and not found by it"
        );
        assert_eq!(checked(vec![hash("status")]).detail, "");
        let found = checked(vec![hash("status"), hash("createdAt")]);
        assert!(!found.is_good, "{found:?}");
    }

    #[test]
    fn a_column_of_billhooks_has_billhooks_type_in_every_index() {
        let check = |column: &str, kind| {
            let attributes = of_type(column, kind);
            let table = TableDescription::builder().attribute_definitions(attributes);
            let rules = RowRules::default();
            check_key_types(&ORDERS, "Shop", &rules, &table.build()).len()
        };
        assert_eq!(check("updatedAt", ScalarAttributeType::N), 1);
        assert_eq!(check("requiresReview", ScalarAttributeType::S), 1);
        assert_eq!(check("updatedAt", ScalarAttributeType::S), 0);
        // The application's own.
        assert_eq!(check("createdAt", ScalarAttributeType::N), 0);
        assert_eq!(check("shelf", ScalarAttributeType::B), 0);
    }

    #[test]
    fn a_key_of_the_customer_is_named_with_what_its_policy_needs() {
        let key = "arn:aws:kms:eu-west-1:123456789012:key/k1";
        assert_eq!(report_encryption(&ORDERS, key, Some("AWS")), None);
        let own = report_encryption(&ORDERS, key, Some("CUSTOMER")).unwrap();
        assert!(
            own.detail
                .contains("k1, a key of your own: its policy must allow")
        );
        assert!(
            own.detail
                .ends_with("kms:ViaService dynamodb.eu-west-1.amazonaws.com")
        );
        let unknown = report_encryption(&ORDERS, key, None).unwrap();
        assert!(
            unknown
                .detail
                .contains("k1, if that is a key of your own: ")
        );
    }
}
