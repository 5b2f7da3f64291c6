//! Strongly consistent reads of many rows in few calls (`BatchGetItem`), with exponential backoff for unprocessed keys.
//!
//! Either all keys were read or the call is an error: a caller never takes a row that DynamoDB skipped for one that
//! does not exist. `ledger`, `events` and `billhook doctor` read through this module.

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

/// DynamoDB's limit for one `BatchGetItem`, over all tables.
pub(super) const KEYS_MAX: usize = 100;
/// DynamoDB may answer with only a part, because of throttling or its 16 MB limit per answer. The pauses before the
/// next tries are 50, 100, 200 and 400 ms.
const UNPROCESSED_TRIES_MAX: u32 = 5;

/// Returns the rows that exist, with one call for every 100 keys. Fails with retry later if DynamoDB leaves keys
/// unprocessed in every try.
pub async fn batch_get_rows(
    client: &Client,
    wanted: HashMap<String, Vec<Item>>,
    projection: Option<&str>,
) -> Result<Vec<(String, Item)>, DependencyError> {
    let keys = wanted.into_iter();
    let keys = keys.flat_map(|(table, keys)| keys.into_iter().map(move |key| (table.clone(), key)));
    let keys: Vec<(String, Item)> = keys.collect();
    let mut found = Vec::new();
    for keys in keys.chunks(KEYS_MAX) {
        let mut wanted: HashMap<String, Vec<Item>> = HashMap::new();
        for (table, key) in keys {
            wanted.entry(table.clone()).or_default().push(key.clone());
        }
        found.extend(read_chunk(client, wanted, projection).await?);
    }
    Ok(found)
}

async fn read_chunk(
    client: &Client,
    mut wanted: HashMap<String, Vec<Item>>,
    projection: Option<&str>,
) -> Result<Vec<(String, Item)>, DependencyError> {
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
        cause: format!("dynamodb left rows unprocessed {UNPROCESSED_TRIES_MAX} times").into(),
    })
}

/// Reserved words of DynamoDB, such as `group`, need a placeholder `#group` in a projection. DynamoDB rejects a call
/// that defines a placeholder and does not use it, so this returns exactly those in the projection.
fn name_placeholders(projection: &str) -> Option<HashMap<String, String>> {
    let names = projection
        .split(", ")
        .filter_map(|name| Some((name.to_owned(), name.strip_prefix('#')?.to_owned())));
    let names: HashMap<String, String> = names.collect();
    (!names.is_empty()).then_some(names)
}
