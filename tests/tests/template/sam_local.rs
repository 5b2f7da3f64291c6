//! `events/env.json` gives `sam local invoke` the names of other resources, which SAM does not know.

use std::collections::BTreeMap;

use serde_json::Value;

use super::alarms::read;
use super::{resources, template};

/// The resources of the template that a value refers to.
fn named_resources(value: &Value, template: &Value) -> Vec<String> {
    let texts = match value {
        Value::String(text) => {
            let name = text.split('.').next().unwrap();
            let is_resource = template["Resources"].get(name).is_some();
            return is_resource.then(|| name.to_owned()).into_iter().collect();
        }
        Value::Array(items) => items.iter().collect(),
        Value::Object(members) => members.values().collect(),
        _ => Vec::new(),
    };
    let named = texts.into_iter();
    named
        .flat_map(|text| named_resources(text, template))
        .collect()
}

/// The name of a resource in the stack `billhook-dev`.
fn default_name(properties: &Value) -> String {
    let kinds = ["TableName", "QueueName", "Name"];
    let name = kinds.iter().find_map(|kind| properties.get(kind)).unwrap();
    // The orders table: its default name, or the parameter's.
    let name = name.get("!If").map_or(name, |either| &either[1]);
    let name = name["!Sub"].as_str().unwrap();
    name.replace("${AppName}", "billhook")
        .replace("${Env}", "dev")
}

#[test]
fn env_json_names_every_resource_that_a_function_is_told_of() {
    let template = template();
    let given: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(&read("events/env.json")).unwrap();
    let mut needed = BTreeMap::new();
    for (function, properties) in resources(&template, "AWS::Serverless::Function") {
        let variables = properties["Environment"]["Variables"].as_object().unwrap();
        let mut values = BTreeMap::new();
        for (variable, value) in variables {
            let Some(resource) = named_resources(value, &template).pop() else {
                continue;
            };
            let name = default_name(&template["Resources"][&resource]["Properties"]);
            let value = match variable.rsplit('_').next().unwrap() {
                "TABLE" => name,
                "URL" => format!("https://sqs.us-east-1.amazonaws.com/111122223333/{name}"),
                "ARN" => {
                    format!("arn:aws:secretsmanager:us-east-1:111122223333:secret:{name}-AbCdEf")
                }
                _ => panic!("{variable} is {value}"),
            };
            values.insert(variable.clone(), value);
        }
        needed.insert(function, values);
    }
    assert_eq!(given, needed);
}
