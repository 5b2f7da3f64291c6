//! Lists the rows of the application that do not show what billhook's state says, until a person acts: from the sparse
//! `OpenIndex` of the table `entities`. `docs/runbook/row-trouble.md` says what to do.

use anyhow::Result;
use billhook_adapters::dynamodb::attributes::{Item, read_text, string_value};
use billhook_core::entity::schema::{RowTrouble, STATE_KEY, index_keys_of};
use serde_json::json;

use super::finding::CheckFinding;
use crate::session::StackSession;

/// How many rows a finding names.
const NAMED_MAX: usize = 10;
const PAGE: &str = "docs/runbook/row-trouble.md";

/// A row in trouble: since when, and the key of its entity, such as `order#ord_1`.
type RowInTrouble = (String, String);

pub(super) async fn check_row_trouble(session: &StackSession) -> Result<Vec<CheckFinding>> {
    let mut findings = Vec::new();
    for trouble in RowTrouble::ALL {
        let mut rows = Vec::new();
        for index_key in index_keys_of(trouble.as_str()) {
            rows.extend(list_rows(session, &index_key).await?);
        }
        findings.push(report_rows(trouble, rows));
    }
    Ok(findings)
}

async fn list_rows(session: &StackSession, index_key: &str) -> Result<Vec<RowInTrouble>> {
    let mut pages = session
        .dynamodb
        .query()
        .table_name(session.stack.output("EntitiesTable")?)
        .index_name("OpenIndex")
        .key_condition_expression("#open = :open")
        .expression_attribute_names("#open", "open")
        .expression_attribute_values(":open", string_value(index_key))
        .into_paginator()
        .send();
    let mut rows = Vec::new();
    let read = |item: &Item| {
        let since = read_text(item, "open_at")?.to_owned();
        Some((since, read_text(item, STATE_KEY)?.to_owned()))
    };
    while let Some(page) = pages.next().await {
        rows.extend(page?.items().iter().filter_map(read));
    }
    Ok(rows)
}

fn report_rows(trouble: RowTrouble, mut rows: Vec<RowInTrouble>) -> CheckFinding {
    rows.sort();
    let check = match trouble {
        RowTrouble::Missing => "no row with a state is missing",
        RowTrouble::Foreign => "no column of billhook has another owner's value",
    };
    let Some((since, first)) = rows.first() else {
        return CheckFinding::from_check(check, true, "", "");
    };
    let named: Vec<&str> = rows
        .iter()
        .take(NAMED_MAX)
        .map(|(_, entity)| entity.as_str())
        .collect();
    let more = match rows.len() > NAMED_MAX {
        true => ", …",
        false => "",
    };
    let detail = format!("{} since {since}: {}{more}", rows.len(), named.join(", "));
    let id = first.split_once('#').map_or(first.as_str(), |(_, id)| id);
    let fix = format!("billhook trace {id}, then follow {PAGE}");
    let mut finding = CheckFinding::problem(check, detail, fix);
    finding.data = json!({ "count": rows.len(), "since": since, "entities": named, "page": PAGE });
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_trouble_are_counted_and_the_oldest_are_named() {
        let none = report_rows(RowTrouble::Missing, Vec::new());
        assert!(none.is_good && none.render().get("count").is_none());
        let rows = (0..12).rev().map(|number| {
            let since = format!("2026-11-{:02}T00:00:00.000Z", number + 10);
            (since, format!("order#ord_{number}"))
        });
        let found = report_rows(RowTrouble::Foreign, rows.collect()).render();
        assert_eq!(
            (&found["result"], &found["count"]),
            (&json!("bad"), &json!(12))
        );
        assert_eq!(found["since"], "2026-11-10T00:00:00.000Z");
        assert_eq!(found["entities"].as_array().map(Vec::len), Some(NAMED_MAX));
        assert_eq!(found["entities"][0], "order#ord_0");
        let fix = "billhook trace ord_0, then follow docs/runbook/row-trouble.md";
        assert_eq!(found["fix"], fix);
        let detail = found["detail"].as_str().unwrap();
        assert!(detail.starts_with("12 since 2026-11-10T00:00:00.000Z: order#ord_0, order#ord_1,"));
        assert!(detail.ends_with("order#ord_9, …"), "{detail}");
    }
}
