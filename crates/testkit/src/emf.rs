//! Validator for CloudWatch's embedded metric format (EMF), because no emulator reads these lines.
//! Golden tests and flows check every metric line of `billhook_adapters::metrics` with it.
//! Source: `Specification: Embedded metric format` with its JSON schema, and `MetricDatum`, read 2026-11.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The smallest limit for one log event, that of older regions.
const LINE_BYTES_MAX: usize = 256 * 1024;

/// One metric of a line: namespace, name, unit, dimension sets.
pub type Published = (String, String, String, Vec<BTreeSet<String>>);

/// Checks a line and returns the metrics that it publishes.
///
/// # Errors
/// Names the first rule that the line breaks.
pub fn check(line: &str) -> Result<Vec<Published>> {
    ensure!(line.len() <= LINE_BYTES_MAX, "the line is too large");
    let root: Value = serde_json::from_str(line).context("the line is not one JSON document")?;
    let aws = root.get("_aws").context("no _aws")?;
    let at = aws.get("Timestamp").and_then(Value::as_i64);
    ensure!(
        at.is_some_and(|at| at > 0),
        "Timestamp is no integer: {aws}"
    );
    let mut published = Vec::new();
    for directive in array(aws, "CloudWatchMetrics", 1..=usize::MAX)? {
        let namespace = text(directive.get("Namespace"), 255)?;
        let mut sets = Vec::new();
        for set in array(directive, "Dimensions", 1..=usize::MAX)? {
            let names = set.as_array().context("a dimension set is no array")?;
            ensure!(
                (1..=30).contains(&names.len()),
                "a set has 1 to 30 dimensions: {set}"
            );
            let mut dimensions = BTreeSet::new();
            for name in names {
                let name = text(Some(name), 250)?;
                text(root.get(&name), 1024).with_context(|| format!("value of {name}"))?;
                dimensions.insert(name);
            }
            ensure!(
                dimensions.len() == names.len(),
                "a dimension stands twice: {set}"
            );
            sets.push(dimensions);
        }
        for metric in array(directive, "Metrics", 1..=100)? {
            let name = text(metric.get("Name"), 255)?;
            let unit = text(metric.get("Unit"), 255)?;
            ensure!(
                ["Count", "Milliseconds", "Seconds"].contains(&unit.as_str()),
                "{name} has the unit {unit}"
            );
            let value = root.get(&name).with_context(|| format!("no {name}"))?;
            match value {
                Value::Number(_) => {}
                Value::Array(values) => ensure!(
                    (1..=100).contains(&values.len()) && values.iter().all(Value::is_number),
                    "{name} takes 1 to 100 numbers"
                ),
                _ => anyhow::bail!("{name} is no number: {value}"),
            }
            published.push((namespace.clone(), name, unit, sets.clone()));
        }
    }
    let names: BTreeSet<&String> = published.iter().map(|(_, name, ..)| name).collect();
    ensure!(names.len() == published.len(), "a metric stands twice");
    Ok(published)
}

fn array<'v>(
    of: &'v Value,
    member: &str,
    length: std::ops::RangeInclusive<usize>,
) -> Result<&'v Vec<Value>> {
    let items = of.get(member).and_then(Value::as_array);
    let items = items.with_context(|| format!("{member} is no array"))?;
    ensure!(
        length.contains(&items.len()),
        "{member} has {} items",
        items.len()
    );
    Ok(items)
}

fn text(value: Option<&Value>, characters_max: usize) -> Result<String> {
    let text = value.and_then(Value::as_str).context("no text")?;
    let length = text.chars().count();
    ensure!(
        (1..=characters_max).contains(&length),
        "{text:?} has 1 to {characters_max} characters"
    );
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_rule_is_enforced() {
        let good = || {
            json!({
                "_aws": { "Timestamp": 1, "CloudWatchMetrics": [
                    { "Namespace": "n", "Dimensions": [["E"]], "Metrics": [{ "Name": "M", "Unit": "Count" }] },
                ] },
                "E": "test", "M": [1, 2],
            })
        };
        assert_eq!(check(&good().to_string()).unwrap().len(), 1);
        let directive = "/_aws/CloudWatchMetrics/0";
        for (pointer, bad) in [
            ("/_aws/Timestamp".to_owned(), json!("1")),
            ("/_aws/CloudWatchMetrics".to_owned(), json!([])),
            (format!("{directive}/Namespace"), json!("")),
            (format!("{directive}/Dimensions"), json!([])),
            (format!("{directive}/Dimensions/0"), json!(["E", "E"])),
            (format!("{directive}/Dimensions/0/0"), json!("F")),
            (format!("{directive}/Metrics/0/Name"), json!("N")),
            (format!("{directive}/Metrics/0/Unit"), json!("Days")),
            ("/E".to_owned(), json!(1)),
            ("/M".to_owned(), json!("1")),
            ("/M".to_owned(), json!(vec![1; 101])),
        ] {
            let mut line = good();
            *line.pointer_mut(&pointer).unwrap() = bad.clone();
            assert!(check(&line.to_string()).is_err(), "{pointer} = {bad}");
        }
    }
}
