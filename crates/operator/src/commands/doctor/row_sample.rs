//! A sample of the rows of a table that the application made: what billhook could not use of them, counted by column,
//! with the command that mends a row.
//!
//! A sample proves nothing about the other rows. A scan reads a table in the order of hashed keys, so the first rows are
//! as good as any.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result};
use billhook_adapters::dynamodb::attributes::{Item, read_text, string_value};
use billhook_adapters::dynamodb::batch_get::batch_get_rows;
use billhook_adapters::dynamodb::find_item_faults;
use billhook_core::entity::columns::{ColumnOwner, ColumnType, EntitySchema};
use billhook_core::entity::inspect::FaultKind;
use billhook_core::entity::payment::status::{OrderStatus, PaymentStatus};
use billhook_core::entity::rules::RowRules;
use billhook_core::entity::schema::STATE_KEY;
use serde_json::{Value, json};

use super::finding::CheckFinding;
use crate::session::StackSession;

/// Rows of the sample.
const SAMPLE_MAX: usize = 1_000;
/// Rows and words that a finding names.
const NAMED_MAX: usize = 3;

/// Checks a sample of the rows, and which of them have a state if that says what they are.
pub(super) async fn check_rows(
    session: &StackSession,
    schema: &EntitySchema,
    rules: &RowRules,
    table: &str,
) -> Result<Vec<CheckFinding>> {
    let rows = sample_rows(session, table).await?;
    let mut sample = RowSample::inspect(schema, rules, &rows);
    let known = find_states(session, schema, sample.ids_in_doubt()).await?;
    sample.forget_rows_with_state(&known);
    Ok(sample.report(schema, table))
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

/// Those of the ids that have a state in this stack.
async fn find_states(
    session: &StackSession,
    schema: &EntitySchema,
    ids: BTreeSet<String>,
) -> Result<BTreeSet<String>> {
    let table = session.stack.output("EntitiesTable")?;
    let prefix = format!("{}#", schema.word);
    let keys = ids.iter().map(|id| {
        let key = string_value(format!("{prefix}{id}"));
        Item::from([(STATE_KEY.to_owned(), key)])
    });
    let wanted = HashMap::from([(table.to_owned(), keys.collect())]);
    let found = batch_get_rows(&session.dynamodb, wanted, Some(STATE_KEY));
    let found = found
        .await
        .with_context(|| format!("cannot read {table}"))?;
    let id = |(_, item): &(String, Item)| {
        let key = read_text(item, STATE_KEY)?.strip_prefix(&prefix)?;
        Some(key.to_owned())
    };
    Ok(found.iter().filter_map(id).collect())
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
    faults: BTreeMap<(FaultKind, &'static str), FaultyRows>,
}

impl RowSample {
    fn inspect(schema: &EntitySchema, rules: &RowRules, rows: &[Item]) -> Self {
        let mut faults: BTreeMap<_, FaultyRows> = BTreeMap::new();
        for row in rows {
            let id = read_text(row, schema.key).unwrap_or_default();
            for fault in find_item_faults(schema, rules, row) {
                let rows = faults.entry((fault.kind, fault.column)).or_default();
                rows.ids.insert(id.to_owned());
                rows.words.extend(fault.found);
            }
        }
        Self {
            rows: rows.len(),
            faults,
        }
    }

    /// The rows of which a state says whether there is a fault.
    fn ids_in_doubt(&self) -> BTreeSet<String> {
        let faults = self.faults.iter();
        let in_doubt = faults.filter(|((kind, _), _)| kind.is_refuted_by_state());
        in_doubt
            .flat_map(|(_, rows)| rows.ids.iter().cloned())
            .collect()
    }

    fn forget_rows_with_state(&mut self, known: &BTreeSet<String>) {
        for ((kind, _), rows) in &mut self.faults {
            if kind.is_refuted_by_state() {
                rows.ids.retain(|id| !known.contains(id));
            }
        }
        self.faults.retain(|_, rows| !rows.ids.is_empty());
    }

    fn report(&self, schema: &EntitySchema, table: &str) -> Vec<CheckFinding> {
        let sampled = self.rows;
        if self.faults.is_empty() {
            let check = format!("{}Table rows are as billhook reads them", schema.table);
            let detail = format!("{sampled} rows sampled");
            return vec![CheckFinding::from_check(check, true, detail, "")];
        }
        let reports = self.faults.iter().map(|((kind, column), rows)| {
            let first = rows.ids.first().map_or("", String::as_str);
            let row = RowUpdate {
                table,
                key: schema.key,
                id: first,
            };
            let (what, fix) = describe_fault(*kind, column, &row);
            let named = |texts: &BTreeSet<String>| -> Vec<String> {
                texts.iter().take(NAMED_MAX).cloned().collect()
            };
            let (ids, words) = (named(&rows.ids), named(&rows.words));
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

/// What is asked of the rows, and how to mend the first one.
fn describe_fault(kind: FaultKind, column: &str, row: &RowUpdate<'_>) -> (String, String) {
    match kind {
        FaultKind::Id => (
            format!("{column} is 1 to 255 printable ASCII characters without spaces"),
            "billhook parks events about such rows; give them other ids".to_owned(),
        ),
        FaultKind::Type {
            found,
            expected,
            owner,
        } => {
            let code = type_code(expected);
            let what = format!("{column} has the type {code}, not {}", type_code(found));
            let fix = match (owner, StatusWords::of_column(column)) {
                (ColumnOwner::Billhook, Some(words)) => row.replace_word(column, &words),
                // What billhook derives afresh may go; of other values only the application knows the right form.
                (ColumnOwner::Billhook, None) => row.move_away(column),
                _ if expected == ColumnType::Text => row.set(column, code, "value"),
                (ColumnOwner::Application, _) => row.set(column, code, "value"),
                (ColumnOwner::Both, _) => row.move_away(column),
            };
            (what, fix)
        }
        FaultKind::Word => {
            let fix = match StatusWords::of_column(column) {
                Some(words) => row.replace_word(column, &words),
                None => row.move_away(column),
            };
            (format!("{column} has a word that billhook knows"), fix)
        }
        FaultKind::Due { expected } => (
            format!("{column} is there, so that a payment can match it"),
            row.set(column, type_code(expected), "value"),
        ),
        FaultKind::Fraction => (
            format!("{column} is a whole number of the currency's minor unit"),
            row.set(column, type_code(ColumnType::Integer), "amount"),
        ),
        FaultKind::Currency => (
            format!("{column} is three letters, as in ISO 4217"),
            row.set(column, type_code(ColumnType::Text), "currency"),
        ),
        FaultKind::CreatedAt => (
            format!("{column} is a time, so that the row can be adopted"),
            row.set(column, type_code(ColumnType::Text), "time"),
        ),
        FaultKind::Version => (
            format!("{column} is billhook's version, and not the application's"),
            "deploy with VersionColumn=billhookVersion, or another column that is free".to_owned(),
        ),
        FaultKind::OtherStack => (
            "a row that billhook wrote has its state in this stack".to_owned(),
            "another stack wrote these rows, and this one would park each of their events as state_behind: \
            deploy with another VersionColumn, see docs/adopt.md#rows-that-another-stack-wrote"
                .to_owned(),
        ),
    }
}

/// The words of a status column.
struct StatusWords {
    /// Stands in the command for the word that a person has to choose. Never a word that is merely safe: for an order
    /// that was shipped, `pending` is wrong.
    example: &'static str,
    all: String,
}

impl StatusWords {
    fn of_column(column: &str) -> Option<Self> {
        Some(match column {
            "status" => Self {
                example: "completed",
                all: OrderStatus::ALL.map(OrderStatus::as_str).join(", "),
            },
            "paymentStatus" | "payment_status" => Self {
                example: "paid",
                all: PaymentStatus::ALL.map(PaymentStatus::as_str).join(", "),
            },
            "mail_status" => Self {
                example: "delivered",
                all: "docs/SEMANTICS.md lists Lob's stages".to_owned(),
            },
            _ => return None,
        })
    }
}

/// Prints commands that change one row.
struct RowUpdate<'a> {
    table: &'a str,
    key: &'a str,
    id: &'a str,
}

impl RowUpdate<'_> {
    fn print(&self, expression: &str, names: &Value, more: &str) -> String {
        let key = shell_quoted(&json!({ self.key: { "S": self.id } }).to_string());
        let table = self.table;
        format!(
            "aws dynamodb update-item --table-name {table} --key {key} --update-expression '{expression}' \
            --expression-attribute-names '{names}'{more}"
        )
    }

    /// Only the application knows the value.
    fn set(&self, column: &str, code: &str, what: &str) -> String {
        let values = placeholder_values(":v", code, what);
        let command = self.print("SET #c = :v", &json!({ "#c": column }), &values);
        format!("for each of them, with its own <{what}>: {command}")
    }

    /// `app_…` must be free: it may be the application's, or have the value from an earlier run.
    fn move_away(&self, column: &str) -> String {
        let names = json!({ "#from": column, "#to": format!("app_{column}") });
        let command = self.print("SET #to = #from REMOVE #from", &names, TARGET_IS_FREE);
        format!("for each of them: {command}")
    }

    /// A status that is only removed would count as `pending` or `unpaid`.
    fn replace_word(&self, column: &str, words: &StatusWords) -> String {
        let StatusWords { example, all } = words;
        let names = json!({ "#from": column, "#to": format!("app_{column}") });
        let values = placeholder_values(":word", "S", example);
        let more = format!("{TARGET_IS_FREE}{values}");
        let command = self.print("SET #to = #from, #from = :word", &names, &more);
        format!(
            "for each of them, with the word of billhook's that you choose for <{example}> ({all}): {command}"
        )
    }
}

const TARGET_IS_FREE: &str = " --condition-expression 'attribute_not_exists(#to)'";

/// A placeholder outside the quotes: a shell takes `<completed>` for a redirection from a file that is not there, so a
/// command that is run as it is printed changes nothing.
fn placeholder_values(name: &str, code: &str, what: &str) -> String {
    format!(" --expression-attribute-values '{{\"{name}\":{{\"{code}\":\"'<{what}>'\"}}}}'")
}

/// For a shell, because an id may have a quote in it.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// DynamoDB's code of a type.
pub(super) fn type_code(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Text => "S",
        ColumnType::Integer => "N",
        ColumnType::Bool => "BOOL",
        ColumnType::TextSet => "SS",
        ColumnType::List => "L",
        ColumnType::Map => "M",
        ColumnType::Bytes => "B",
        ColumnType::Other => "another one",
    }
}

#[cfg(test)]
mod tests {
    use billhook_core::entity::kind::EntityKind as _;
    use billhook_core::entity::order::OrderKind;
    use billhook_core::entity::rules::VersionColumn;
    use billhook_core::entity::tenant::TenantKind;
    use billhook_core::time::Timestamp;

    use super::*;

    const ORDERS: EntitySchema = OrderKind::SCHEMA;

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
        let with = |columns: Value| {
            let mut row = fine.clone();
            let columns = columns.as_object().unwrap().clone();
            row.as_object_mut().unwrap().extend(columns);
            row
        };
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
            with(json!({ "id": "it's", "createdAt": made, "status": "shipped" })),
            with(json!({ "id": "ord_2", "status": "packed", "amountTotal": "42.00" })),
            with(
                json!({ "id": "ord_3", "createdAt": "in May", "requiresReview": "no", "version": 57 })
            ),
            with(
                json!({ "id": "ord_4", "createdAt": null, "currency": null, "amountTotal": 42.5 })
            ),
            with(json!({ "id": "ord 5", "status": "shipped" })),
            with(
                json!({ "id": "ord_6", "currency": "€", "amountTotal": null, "amountRefunded": 0.5 })
            ),
            with(
                json!({ "id": "ord_7", "version": 3, "timeline": [{ "actor": "billhook" }], "createdAt": 20_261_205 })
            ),
            with(json!({ "id": "ord_8", "version": 0, "userId": 8, "status": 3 })),
        ]);
        let found: Vec<String> = sample(&rules, rows.clone())
            .iter()
            .map(|finding| format!("{}: {}", finding.check, finding.detail))
            .collect();
        let expected = [
            "OrdersTable rows: id is 1 to 255 printable ASCII characters without spaces: 1 of 9 rows sampled, such as ord 5",
            "OrdersTable rows: amountTotal has the type N, not S: 1 of 9 rows sampled, such as ord_2",
            "OrdersTable rows: requiresReview has the type BOOL, not S: 1 of 9 rows sampled, such as ord_3",
            "OrdersTable rows: status has the type S, not N: 1 of 9 rows sampled, such as ord_8",
            "OrdersTable rows: userId has the type S, not N: 1 of 9 rows sampled, such as ord_8",
            "OrdersTable rows: status has a word that billhook knows: 2 of 9 rows sampled (packed, shipped), such as it's, ord_2",
            "OrdersTable rows: currency is there, so that a payment can match it: 1 of 9 rows sampled, such as ord_4",
            "OrdersTable rows: amountTotal is there, so that a payment can match it: 1 of 9 rows sampled, such as ord_6",
            "OrdersTable rows: amountRefunded is a whole number of the currency's minor unit: 1 of 9 rows sampled (0.5), such as ord_6",
            "OrdersTable rows: amountTotal is a whole number of the currency's minor unit: 1 of 9 rows sampled (42.5), such as ord_4",
            "OrdersTable rows: currency is three letters, as in ISO 4217: 1 of 9 rows sampled (€), such as ord_6",
            "OrdersTable rows: createdAt is a time, so that the row can be adopted: 3 of 9 rows sampled (20261205, in May), such as ord_3, ord_4, ord_7",
            "OrdersTable rows: version is billhook's version, and not the application's: 1 of 9 rows sampled, such as ord_3",
            "OrdersTable rows: a row that billhook wrote has its state in this stack: 1 of 9 rows sampled, such as ord_7",
        ];
        assert_eq!(found, expected);
        let rules = RowRules {
            version_column: VersionColumn::parse("billhookVersion").unwrap(),
            ..rules
        };
        assert_eq!(sample(&rules, rows).len(), expected.len() - 2);
    }

    fn fix_of(row: Value, check: &str) -> String {
        let found = sample(&RowRules::default(), json!([row]));
        let found = found.into_iter().find(|it| it.check.contains(check));
        found.unwrap().fix
    }

    /// What a shell makes of the command: `None` if it refuses to run it.
    fn run_in_shell(command: &str) -> Option<String> {
        let script = format!("aws() {{ printf '%s\\n' \"$@\"; }}; {command}");
        let shell = std::process::Command::new("sh")
            .args(["-c", &script])
            .output();
        let output = shell.unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn a_printed_command_changes_nothing_until_a_person_chose_the_value() {
        let row = json!({ "id": "it's", "status": "shipped", "createdAt": "in May", "requiresReview": "no" });
        let fix = fix_of(row.clone(), "status has a word");
        let (text, command) = fix.split_once(": aws").unwrap();
        assert_eq!(
            text,
            "for each of them, with the word of billhook's that you choose for <completed> \
            (pending, payment_failed, completed, refunded, cancelled)"
        );
        let command = format!("aws{command}");
        assert_eq!(run_in_shell(&command), None, "{command}");
        let chosen = run_in_shell(&command.replace("<completed>", "completed")).unwrap();
        let expected = [
            "dynamodb",
            "update-item",
            "--table-name",
            "Shop",
            "--key",
            r#"{"id":{"S":"it's"}}"#,
            "--update-expression",
            "SET #to = #from, #from = :word",
            "--expression-attribute-names",
            r##"{"#from":"status","#to":"app_status"}"##,
            "--condition-expression",
            "attribute_not_exists(#to)",
            "--expression-attribute-values",
            r#"{":word":{"S":"completed"}}"#,
        ];
        assert_eq!(chosen.lines().collect::<Vec<_>>(), expected);

        let fix = fix_of(row.clone(), "createdAt is a time");
        let (text, command) = fix.split_once(": aws").unwrap();
        assert_eq!(text, "for each of them, with its own <time>");
        assert_eq!(run_in_shell(&format!("aws{command}")), None);

        // Nothing to choose: billhook derives it afresh, and the value that was there stays beside.
        let fix = fix_of(row, "requiresReview has the type");
        let (_, command) = fix.split_once(": aws").unwrap();
        let moved = run_in_shell(&format!("aws{command}")).unwrap();
        assert!(moved.contains("SET #to = #from REMOVE #from"), "{moved}");
        assert!(moved.contains("attribute_not_exists(#to)"), "{moved}");
        // As a number it is a status too, and without one the order would count as pending.
        let fix = fix_of(json!({ "id": "ord_1", "status": 3 }), "status has the type");
        assert!(fix.contains("SET #to = #from, #from = :word"), "{fix}");
    }

    #[test]
    fn a_version_that_a_state_knows_is_billhooks() {
        let rows = json!([
            { "id": "ord_1", "version": 1, "timeline": [{ "actor": "billhook" }] },
            { "id": "ord_2", "version": 1 },
            { "id": "ord_3", "version": 1, "timeline": [{ "actor": "billhook" }] },
        ]);
        let rows: Vec<Item> = serde_json::from_value::<Vec<Value>>(rows)
            .unwrap()
            .iter()
            .map(|row| serde_dynamo::to_item(row).unwrap())
            .collect();
        let mut sample = RowSample::inspect(&ORDERS, &RowRules::default(), &rows);
        let all = ["ord_1", "ord_2", "ord_3"].map(str::to_owned);
        assert_eq!(sample.ids_in_doubt(), all.clone().into());
        sample.forget_rows_with_state(&all[..2].iter().cloned().collect());
        let found = sample.report(&ORDERS, "Shop");
        let kinds: Vec<&FaultKind> = sample.faults.keys().map(|(kind, _)| kind).collect();
        assert!(!kinds.contains(&&FaultKind::Version), "{kinds:?}");
        let other = found
            .iter()
            .find(|it| it.fix.contains("state_behind"))
            .unwrap();
        assert!(other.detail.ends_with("such as ord_3"), "{other:?}");
        sample.forget_rows_with_state(&all.into());
        let kinds: Vec<&FaultKind> = sample.faults.keys().map(|(kind, _)| kind).collect();
        assert!(!kinds.contains(&&FaultKind::OtherStack), "{kinds:?}");
    }

    #[test]
    fn a_tenants_own_version_is_reported_although_it_has_no_timeline() {
        let tenant = json!({ "tenant_id": "ten_1", "version": 9 });
        let rows: Vec<Item> = vec![serde_dynamo::to_item(tenant).unwrap()];
        let sample = RowSample::inspect(&TenantKind::SCHEMA, &RowRules::default(), &rows);
        let kinds: Vec<_> = sample.faults.keys().copied().collect();
        assert_eq!(kinds, [(FaultKind::Version, "version")]);
    }
}
