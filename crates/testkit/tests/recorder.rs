//! The recording proxy, and the local AWS's own log of the requests that reach it.

#![cfg(test)]

use std::fs::{create_dir_all, read_to_string, remove_dir_all};
use std::path::Path;

use billhook_testkit::local::{LocalAws, Options};
use billhook_testkit::proxy::Proxy;
use serde_json::Value;

/// A key id that the local AWS does not know, as the flows give one to the operator's tool.
const KEY: &str = "events_list";

async fn list_tables(endpoint: &str) -> u16 {
    let signed = format!(
        "AWS4-HMAC-SHA256 Credential={KEY}/20260101/eu-west-1/dynamodb/aws4_request, Signature=0"
    );
    let request = reqwest::Client::new().post(endpoint).body("{}");
    let request = request
        .header("authorization", signed)
        .header("x-amz-target", "DynamoDB_20120810.ListTables")
        .header("content-type", "application/x-amz-json-1.0");
    request.send().await.expect("answers").status().as_u16()
}

fn read_lines(path: &Path) -> Vec<Value> {
    let text = read_to_string(path).expect("is written");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("is JSON"))
        .collect()
}

#[tokio::test]
async fn a_request_around_the_recorder_is_refused_and_the_local_aws_writes_it_down() {
    let folder = std::env::temp_dir().join(format!("billhook-{}-wire", std::process::id()));
    create_dir_all(&folder).expect("creates");
    let log = folder.join("emulator.log");
    let options = Options {
        request_log: Some(log.clone()),
        ..Options::temporary("recorder")
    };
    let aws = LocalAws::start(&options).expect("starts");
    let proxy = Proxy::start().await.expect("starts");
    proxy.set_upstream(&aws.endpoint());
    proxy.record(&folder, "tool").expect("records");

    assert_eq!(list_tables(&proxy.endpoint()).await, 200);
    assert_eq!(list_tables(&aws.endpoint()).await, 400);

    let recorded = read_lines(&folder.join("tool.jsonl"));
    assert_eq!(recorded.len(), 1);
    let authorization = recorded[0]["authorization"].as_str().unwrap_or_default();
    assert!(authorization.contains(KEY), "{authorization}");
    let seen: Vec<(Value, Value)> = read_lines(&log)
        .iter()
        .map(|line| (line["key"].clone(), line["recorded"].clone()))
        .collect();
    let expected = [("000000000000", Value::from("tool:1")), (KEY, Value::Null)];
    assert_eq!(seen, expected.map(|(key, mark)| (Value::from(key), mark)));
    drop(aws);
    remove_dir_all(&folder).expect("removes");
}
