//! The sample invocations in `events/webhook-secret` are requests, and lead to the plans of this table.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use billhook_core::endpoint::plan::{EndpointPlan, plan_endpoint};
use billhook_core::provider::stripe::event_types::HANDLED_TYPES;
use serde_json::Value;
use webhook_secret::ResourceRequest;

#[test]
fn every_sample_leads_to_the_plan_that_the_table_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/webhook-secret");
    let planned: BTreeMap<String, Result<EndpointPlan, String>> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let envelope: ResourceRequest =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let planned = envelope.request().map(|request| plan_endpoint(&request));
            (stem, planned.map_err(|error| error.to_string()))
        })
        .collect();
    let endpoint_id = || "we_1RzWhkK9mQ2tLfSAMPLE001".to_owned();
    let replace = || EndpointPlan::Replace {
        endpoint_id: endpoint_id(),
    };
    let in_place = EndpointPlan::UpdateInPlace {
        endpoint_id: endpoint_id(),
    };
    let remove = EndpointPlan::Remove {
        endpoint_id: endpoint_id(),
    };
    let leftovers = EndpointPlan::RemoveLeftovers {
        request_id: Some("49347ca5-c603-44e5-a34b-10cf1854a887".to_owned()),
    };
    let misspelt = "properties: RotationTokn is unknown".to_owned();
    let expected = [
        ("create-connect", Ok(EndpointPlan::Create)),
        ("create-platform", Ok(EndpointPlan::Create)),
        ("delete", Ok(remove)),
        ("delete-after-failed-create", Ok(leftovers)),
        ("delete-unconfigured", Ok(EndpointPlan::Nothing)),
        ("update-api-version", Ok(replace())),
        ("update-events-in-place", Ok(in_place)),
        ("update-misspelt-property", Err(misspelt)),
        ("update-once-there-is-a-key", Ok(EndpointPlan::Create)),
        ("update-rotation-token", Ok(replace())),
    ];
    let expected = expected.map(|(file, plan)| (file.to_owned(), plan));
    assert_eq!(planned, expected.into());
}

#[test]
fn the_samples_ask_for_handled_types() {
    let sample = include_str!("../../../events/webhook-secret/create-connect.json");
    let sample: Value = serde_json::from_str(sample).unwrap();
    let asked = sample.pointer("/ResourceProperties/EnabledEvents").unwrap();
    for event_type in asked.as_array().unwrap() {
        assert!(
            HANDLED_TYPES.contains(&event_type.as_str().unwrap()),
            "{event_type}"
        );
    }
}
