//! Consistent reads of many rows in few calls (`BatchGetItem`).

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::KeysAndAttributes;
use billhook_core::error::DependencyError;
use billhook_core::ports::Pause as _;
use billhook_core::retry::Disposition;

use super::attributes::Item;
use super::{dependency_error, invalid_call};
use crate::clock::SystemClock;

/// DynamoDB takes 100 keys in one read.
pub(super) const KEYS_MAX: usize = 100;
/// How often keys are asked for again that DynamoDB left unprocessed.
const UNPROCESSED_TRIES_MAX: u32 = 5;

/// Consistent reads of many keys, asking again for what was left unprocessed.
pub(super) async fn batch_get_rows(
    client: &Client,
    mut wanted: HashMap<String, Vec<Item>>,
    projection: Option<&str>,
) -> Result<Vec<(String, Item)>, DependencyError> {
    wanted.retain(|_, keys| !keys.is_empty());
    let doing = format!("read {} rows", wanted.values().map(Vec::len).sum::<usize>());
    let mut found = Vec::new();
    for tries in 0..UNPROCESSED_TRIES_MAX {
        if wanted.is_empty() {
            return Ok(found);
        }
        if tries > 0 {
            SystemClock.pause(Duration::from_millis(25 << tries)).await;
        }
        let mut request = HashMap::new();
        for (table, keys) in wanted.drain() {
            let keys = KeysAndAttributes::builder()
                .set_keys(Some(keys))
                .consistent_read(true)
                .set_projection_expression(projection.map(str::to_owned))
                .set_expression_attribute_names(projection.and_then(name_placeholders))
                .build();
            request.insert(table, keys.map_err(|e| invalid_call(&doing, e))?);
        }
        let got = client
            .batch_get_item()
            .set_request_items(Some(request))
            .send()
            .await;
        let got = got.map_err(|error| dependency_error(doing.clone(), error))?;
        for (table, items) in got.responses.unwrap_or_default() {
            found.extend(items.into_iter().map(|item| (table.clone(), item)));
        }
        for (table, left) in got.unprocessed_keys.unwrap_or_default() {
            wanted.insert(table, left.keys);
        }
    }
    if wanted.is_empty() {
        return Ok(found);
    }
    Err(DependencyError {
        doing,
        disposition: Disposition::RetryLater,
        cause: format!("rows left unprocessed {UNPROCESSED_TRIES_MAX} times").into(),
    })
}

/// DynamoDB's own words in a projection stand behind a `#`; only names that are used may be given.
fn name_placeholders(projection: &str) -> Option<HashMap<String, String>> {
    let names = projection
        .split(", ")
        .filter_map(|name| Some((name.to_owned(), name.strip_prefix('#')?.to_owned())));
    let names: HashMap<String, String> = names.collect();
    (!names.is_empty()).then_some(names)
}
