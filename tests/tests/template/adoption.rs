//! Existing tables of the application: whatever names a table of the stack names the existing one instead, and the
//! parameters go together.

use super::*;

/// The parts of an `!If` that decide between the stack's own table and the existing one, each with its place.
fn check_references(place: &str, value: &Value, table: &str, found: &mut usize) {
    let own = format!("Own{table}Table");
    if let Some([condition, ours, theirs]) = value["!If"].as_array().map(Vec::as_slice)
        && *condition == json!(own)
    {
        let existing = format!("Existing{table}TableName");
        let arn = "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/";
        let expected = match (ours["!GetAtt"].as_str(), ours["!Sub"].as_str()) {
            (Some(_), _) => json!({ "!Sub": format!("{arn}${{{existing}}}") }),
            (_, Some(text)) => {
                let index = text.split_once(".Arn}").unwrap().1;
                json!({ "!Sub": format!("{arn}${{{existing}}}{index}") })
            }
            _ => json!({ "!Ref": existing }),
        };
        assert_eq!(*theirs, expected, "{place}");
        *found += 1;
        return;
    }
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                check_references(&format!("{place}/{name}"), member, table, found);
            }
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                check_references(&format!("{place}/{number}"), item, table, found);
            }
        }
        Value::String(text) => {
            let logical = format!("{table}Table");
            let names = *text == logical
                || text.starts_with(&format!("{logical}."))
                || text.contains(&format!("${{{logical}"));
            assert!(!names, "{place} names {logical}, which may not be there");
        }
        _ => {}
    }
}

pub(super) fn check_adoption(template: &Value) {
    for schema in ENTITY_SCHEMAS {
        let table = schema.table;
        let (logical, own) = (format!("{table}Table"), format!("Own{table}Table"));
        assert_eq!(template["Resources"][&logical]["Condition"], own);
        let existing = format!("Existing{table}TableName");
        let expected = json!({ "!Equals": [{ "!Ref": existing }, ""] });
        assert_eq!(template["Conditions"][&own], expected);
        let mut found = 0;
        for part in ["Resources", "Outputs"] {
            check_references(part, &template[part], table, &mut found);
        }
        // At least a variable, a permission, and the output.
        assert!(found >= 3, "{table}: {found}");
    }
}

#[test]
fn an_existing_table_takes_the_place_of_the_stacks_own_everywhere() {
    check_adoption(&template());
}

/// The value of a condition, as far as the template's rules need it.
fn is_true(condition: &Value, parameters: &BTreeMap<&str, &str>) -> bool {
    let (function, of) = condition.as_object().unwrap().iter().next().unwrap();
    let of = of.as_array().unwrap();
    let text = |value: &Value| match value["!Ref"].as_str() {
        Some(parameter) => parameters.get(parameter).copied().unwrap_or("").to_owned(),
        None => value.as_str().unwrap().to_owned(),
    };
    match function.as_str() {
        "!Not" => !is_true(&of[0], parameters),
        "!And" => of.iter().all(|part| is_true(part, parameters)),
        "!Equals" => text(&of[0]) == text(&of[1]),
        "!Contains" => {
            let mut list = of[0].as_array().unwrap().iter();
            list.any(|one| text(one) == text(&of[1]))
        }
        other => panic!("{other} is not known here"),
    }
}

pub(super) fn refusals(template: &Value, given: &[(&str, &str)]) -> Vec<String> {
    let given: BTreeMap<&str, &str> = given.iter().copied().collect();
    let rules = template["Rules"].as_object().unwrap();
    let asked = rules.iter().filter(|(_, rule)| {
        let condition = rule.get("RuleCondition");
        condition.is_none_or(|condition| is_true(condition, &given))
    });
    let refused = asked.filter(|(_, rule)| {
        let mut assertions = rule["Assertions"].as_array().unwrap().iter();
        assertions.any(|assertion| !is_true(&assertion["Assert"], &given))
    });
    refused.map(|(name, _)| name.clone()).collect()
}

#[test]
fn an_existing_table_is_refused_without_the_time_of_its_adoption() {
    let template = template();
    let time = ("AdoptedBefore", "2026-11-30T00:00:00Z");
    for name in [
        "ExistingOrdersTableName",
        "ExistingStatementsTableName",
        "ExistingTenantsTableName",
    ] {
        assert_eq!(
            refusals(&template, &[(name, "Shop")]),
            ["ExistingTables"],
            "{name}"
        );
        assert!(
            refusals(&template, &[(name, "Shop"), time]).is_empty(),
            "{name}"
        );
    }
    // Rows may also be copied into the stack's own table.
    assert!(refusals(&template, &[time]).is_empty());
    assert!(refusals(&template, &[]).is_empty());
    let two = [
        ("ExistingOrdersTableName", "Shop"),
        ("OrdersTableName", "Orders"),
        time,
    ];
    assert_eq!(refusals(&template, &two), ["OneOrdersTable"]);
    assert!(refusals(&template, &[("OrdersTableName", "Orders")]).is_empty());
}

#[test]
fn a_version_column_that_billhook_uses_already_is_refused() {
    let template = template();
    let assertion = &template["Rules"]["FreeVersionColumn"]["Assertions"][0]["Assert"];
    let listed = assertion["!Not"][0]["!Contains"][0].as_array().unwrap();
    let listed: BTreeSet<&str> = listed.iter().map(|name| name.as_str().unwrap()).collect();
    let columns = ENTITY_SCHEMAS.iter().flat_map(|schema| schema.columns);
    let taken: BTreeSet<&str> = columns
        .map(|column| column.name)
        .filter(|name| VersionColumn::parse(name).is_err())
        .collect();
    assert_eq!(listed, taken);
    for (name, refused) in [
        ("status", vec!["FreeVersionColumn"]),
        ("statement_id", vec!["FreeVersionColumn"]),
        ("version", vec![]),
        ("billhookVersion", vec![]),
    ] {
        assert_eq!(refusals(&template, &[("VersionColumn", name)]), refused);
    }
}

/// A value that the pattern takes and the functions do not stops every worker.
#[test]
fn the_pattern_of_adopted_before_takes_times_that_the_functions_take() {
    let template = template();
    let pattern = template["Parameters"]["AdoptedBefore"]["AllowedPattern"].as_str();
    let pattern = regex_lite::Regex::new(&format!("^(?:{})$", pattern.unwrap())).unwrap();
    let mut differing = Vec::new();
    let mut compare = |text: String| {
        if pattern.is_match(&text) != Timestamp::parse(&text).is_ok() {
            differing.push(text);
        }
    };
    for month in 0..=13 {
        for day in 0..=32 {
            compare(format!("2026-{month:02}-{day:02}T00:00:00Z"));
            compare(format!("2028-{month:02}-{day:02}T23:59:59.999999999+23:59"));
        }
    }
    for number in 0..=25 {
        compare(format!("2026-11-30T{number:02}:00:00Z"));
    }
    for number in [0, 9, 10, 59, 61, 99] {
        compare(format!("2026-11-30T00:{number:02}:00Z"));
        compare(format!("2026-11-30T00:00:{number:02}-11:30"));
        compare(format!("2026-11-30T00:00:00+02:{number:02}"));
    }
    // No pattern knows the leap years: the functions refuse it, and `billhook doctor` says so.
    assert_eq!(differing, ["2026-02-29T00:00:00Z"]);
    assert!(pattern.is_match(""));
}
