//! The events tables: an event store with deduplication (idempotent receiver).
//!
//! Ingress writes each event once, with a conditional put; workers read it with its payload and set its outcome with a
//! conditional update. A payload is compressed if that saves a write unit. A row is sealed, so that one that somebody
//! invented or changed is noticed. DynamoDB deletes a row when `EVENT_RETENTION` is over (retention by TTL on `expires_at`).
//! What a redelivery causes is decided in `billhook_core::intake::inbox`; `ledger` puts the update into a transaction.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure, Update};
use billhook_core::error::DependencyError;
use billhook_core::ids::{AccountId, CorrelationId, EventId, PerProvider, ProviderId};
use billhook_core::intake::inbox::{EVENT_RETENTION, EventRecord, NewEvent, RecordResult};
use billhook_core::intake::index_keys::{open_key_of, slot_of};
use billhook_core::intake::ports::RecordEvent;
use billhook_core::outcome::{EventOutcome, IgnoreReason};
use billhook_core::provider::envelope::EventType;
use billhook_core::provider::trim_payload;
use billhook_core::retry::Disposition;
use billhook_core::seal::{EventSealer, SealPublicKeys, SealVerdict, SealedEvent};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{CommitError, EventUpdate, StoredEvent, StoredPayload};
use data_encoding::HEXLOWER;
use libdeflater::{CompressionLvl, Compressor, Decompressor};
use sha2::{Digest as _, Sha256};

use super::attributes::{self, Item, number_value, string_value};
use super::batch_get::{KEYS_MAX, batch_get_rows};
use super::dependency_error;
use super::update::UpdateBuilder;
use crate::clock::SystemClock;
use crate::secrets::{EventSealerCache, SecretsManager};

/// A compressed payload above this is reduced to the fields that we read. DynamoDB's limit is 400 KB for the whole row.
/// Case: a Lob event of 1 MB with 250 tracking scans compresses to about 500 KB; DynamoDB would reject its row, and
/// each of its deliveries would be answered 503.
const COMPRESSED_BYTES_MAX: usize = 350 * 1024;
/// The limit for decompression, so that a row that somebody edited cannot use up the memory (zip bomb). Ingress accepts
/// bodies of up to 1 MiB.
const INFLATED_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The attribute of an event's row with its seal.
const SEAL: &str = "seal";

/// The events tables, for ingress and `reconcile`.
#[derive(Debug)]
pub struct DynamoInbox {
    pub client: Client,
    pub tables: PerProvider<String>,
    pub sealer: EventSealerCache<SecretsManager, SystemClock>,
}

impl RecordEvent for DynamoInbox {
    async fn record(&self, event: &NewEvent<'_>) -> Result<RecordResult, DependencyError> {
        let table = self.tables.of(event.envelope.provider);
        let sealer = self.sealer.sealer().await;
        let sealer = sealer.map_err(|error| DependencyError {
            doing: format!("seal {}", event.envelope.id),
            disposition: error.disposition(),
            cause: error.into(),
        })?;
        let put = self
            .client
            .put_item()
            .table_name(table)
            .set_item(Some(build_event_item(event, &sealer)))
            // Deduplication: of two deliveries at the same moment only one writes the row. Without the condition the
            // second would set a processed event back to `pending`, and replace a stored payload.
            .condition_expression("attribute_not_exists(event_id)")
            // A failed condition does not prove a duplicate: if the answer to the SDK's first attempt was lost, its
            // second attempt finds our own row. So DynamoDB returns the existing row with the failure, and that row
            // decides: `pending` sends the message, `processed` does not. This needs no second call.
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        let doing = || format!("put {} into {table}", event.envelope.id);
        match put {
            Ok(_) => Ok(RecordResult::New),
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(failed)) => failed
                    .item()
                    .and_then(read_event_record)
                    .map(RecordResult::Known)
                    .ok_or_else(|| DependencyError {
                        doing: doing(),
                        disposition: Disposition::Permanent,
                        cause: "the existing row is not an event of billhook".into(),
                    }),
                _ => Err(dependency_error(doing(), error)),
            },
        }
    }
}

pub fn build_event_item(event: &NewEvent<'_>, sealer: &EventSealer) -> Item {
    let envelope = &event.envelope;
    let received_at = event.received_at;
    let mut item = Item::from([
        ("event_id".to_owned(), string_value(envelope.id.as_str())),
        (
            "event_type".to_owned(),
            string_value(envelope.event_type.as_str()),
        ),
        ("source".to_owned(), string_value(event.source.as_str())),
        (
            "correlation_id".to_owned(),
            string_value(event.correlation_id.to_string()),
        ),
        ("group".to_owned(), string_value(&envelope.group)),
        (
            "received_at".to_owned(),
            string_value(received_at.to_string()),
        ),
        (
            "slot".to_owned(),
            string_value(slot_of(received_at, &envelope.id)),
        ),
        ("processed".to_owned(), AttributeValue::Bool(false)),
        (
            "processing_outcome".to_owned(),
            string_value(EventOutcome::Pending.as_str()),
        ),
        ("attempts".to_owned(), number_value(0)),
        (
            "expires_at".to_owned(),
            number_value(received_at.after(EVENT_RETENTION).unix_s()),
        ),
    ]);
    if envelope.provider == ProviderId::Stripe {
        item.insert(
            "stripe_event_id".to_owned(),
            string_value(envelope.id.as_str()),
        );
    }
    let optional = [
        (
            "connected_account_id",
            envelope
                .account
                .as_ref()
                .map(|account| string_value(account.as_str())),
        ),
        (
            "api_version",
            envelope.api_version.as_deref().map(string_value),
        ),
        ("object_id", envelope.object_id.as_deref().map(string_value)),
        (
            "template_version",
            envelope.template_version.as_deref().map(string_value),
        ),
        (
            "tenant_hint",
            envelope.tenant_hint.as_deref().map(string_value),
        ),
        ("livemode", envelope.livemode.map(AttributeValue::Bool)),
    ];
    item.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?))),
    );
    let record = event.to_record();
    let seal = |payload_sha256| {
        sealer.seal(&SealedEvent {
            provider: envelope.provider,
            event: &record,
            livemode: envelope.livemode,
            payload_sha256,
        })
    };
    add_payload(&mut item, envelope.provider, event.body.raw_body(), &seal);
    item
}

/// Makes the seal over the digest of the payload as it is stored.
type SealPayload<'a> = &'a dyn Fn([u8; 32]) -> Vec<u8>;

/// Adds the payload: reduced to the fields that we read if it is too large, and compressed if that saves a write unit.
fn add_payload(item: &mut Item, provider: ProviderId, raw_body: &[u8], seal: SealPayload<'_>) {
    let compressed = compress_gzip(raw_body);
    if compressed.len() > COMPRESSED_BYTES_MAX {
        // The body was parsed before, so this does not fail. If it did, DynamoDB would reject the row and the sender
        // would get 503, which is better than a stored event without its facts.
        if let Ok(projected) = trim_payload(provider, raw_body) {
            item.insert("payload_truncated".to_owned(), AttributeValue::Bool(true));
            return insert_smaller_form(item, &projected, compress_gzip(&projected), seal);
        }
    }
    insert_smaller_form(item, raw_body, compressed, seal);
}

/// Compares write units, not bytes. Case: a Stripe event of 2.6 KB takes 4 units as text and 2 compressed, so it is
/// compressed; if both forms take the same number of units, the row keeps the readable text.
fn insert_smaller_form(
    item: &mut Item,
    payload: &[u8],
    compressed: Vec<u8>,
    seal: SealPayload<'_>,
) {
    let digest = Sha256::digest(payload);
    let shown = HEXLOWER.encode(&digest);
    item.insert("payload_sha256".to_owned(), string_value(shown));
    item.insert(
        SEAL.to_owned(),
        AttributeValue::B(Blob::new(seal(digest.into()))),
    );
    let rest = attributes::item_size(item);
    let units = |name: &str, bytes: usize| attributes::count_write_units(rest + name.len() + bytes);
    let raw_units = units("payload", payload.len());
    match std::str::from_utf8(payload) {
        Ok(text) if raw_units <= units("payload_gz", compressed.len()) => {
            item.insert("payload".to_owned(), string_value(text));
        }
        _ => {
            item.insert(
                "payload_gz".to_owned(),
                AttributeValue::B(Blob::new(compressed)),
            );
        }
    }
}

/// Level 5 takes about 1.5 times as long as level 1 and makes events 4 to 15 % smaller. For an event of 59 KB that
/// saves one write unit in ingress's put and two in the worker's transaction, which DynamoDB charges twice. Higher
/// levels save 1 % more at most. `docs/performance.md` has the times.
const LEVEL: i32 = 5;

thread_local! {
    // Reused: to allocate and clear half a megabyte of tables takes longer than to compress a small event.
    static COMPRESSOR: RefCell<Compressor> =
        RefCell::new(Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default()));
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// Creates the compressor and its tables during init, where Lambda does not limit the CPU; otherwise the first event
/// waits for them. It compresses 64 bytes because libdeflate stores inputs below about 50 bytes without using its
/// tables.
pub fn warm_compressor() {
    compress_gzip(&[0; 64]);
}

fn compress_gzip(bytes: &[u8]) -> Vec<u8> {
    COMPRESSOR.with_borrow_mut(|compressor| {
        let mut compressed = vec![0; compressor.gzip_compress_bound(bytes.len())];
        match compressor.gzip_compress(bytes, &mut compressed) {
            Ok(length) => {
                compressed.truncate(length);
                compressed
            }
            // This cannot fail, because the buffer has the size that the library asks for. If it did, the result would
            // be as large as the body, and the body is stored as text.
            Err(_) => bytes.to_vec(),
        }
    })
}

/// Reads a row without its payload; `None` if a required attribute is missing or malformed.
pub fn read_event_record(item: &Item) -> Option<EventRecord> {
    Some(EventRecord {
        id: EventId::parse(attributes::read_text(item, "event_id")?).ok()?,
        event_type: EventType::try_from(attributes::read_text(item, "event_type")?.to_owned())
            .ok()?,
        account: match attributes::read_text(item, "connected_account_id") {
            Some(account) => Some(AccountId::parse(account).ok()?),
            None => None,
        },
        tenant_hint: attributes::read_text(item, "tenant_hint").map(str::to_owned),
        group: attributes::read_text(item, "group")?.to_owned(),
        correlation_id: attributes::read_text(item, "correlation_id")
            .and_then(CorrelationId::parse),
        received_at: attributes::read_text(item, "received_at")
            .and_then(|at| Timestamp::parse(at).ok()),
        processed: attributes::read_bool(item, "processed")?,
        outcome: EventOutcome::parse(attributes::read_text(item, "processing_outcome")?)?,
    })
}

/// The seal in an event's row, if it has one.
pub fn read_seal(item: &Item) -> Option<&[u8]> {
    match item.get(SEAL) {
        Some(AttributeValue::B(seal)) => Some(seal.as_ref()),
        _ => None,
    }
}

/// Reads a row with its payload and checks its seal. Without a genuine one somebody else than billhook wrote the row or
/// changed it: its event is parked as `tampered`.
pub fn read_stored_event(
    provider: ProviderId,
    item: &Item,
    keys: &SealPublicKeys,
) -> Option<StoredEvent> {
    let stored = read_event_record(item)?;
    let payload = match (item.get("payload"), item.get("payload_gz")) {
        (Some(AttributeValue::S(text)), _) => Some(text.clone().into_bytes()),
        (None, Some(AttributeValue::B(compressed))) => decompress_gzip(compressed.as_ref()),
        _ => None,
    };
    let payload = match payload {
        None => StoredPayload::Unreadable,
        Some(bytes) => {
            let sealed = SealedEvent {
                provider,
                event: &stored,
                livemode: attributes::read_bool(item, "livemode"),
                payload_sha256: Sha256::digest(&bytes).into(),
            };
            match keys.verify(&sealed, read_seal(item)) {
                SealVerdict::Genuine => StoredPayload::Intact(bytes),
                SealVerdict::Forged | SealVerdict::UnknownKey => StoredPayload::Tampered,
            }
        }
    };
    Some(StoredEvent {
        payload,
        row_bytes: attributes::item_size(item),
        is_set_aside: stored.outcome == EventOutcome::Ignored
            && attributes::read_text(item, "processing_error")
                .is_some_and(IgnoreReason::is_by_person),
        stored,
    })
}

fn decompress_gzip(compressed: &[u8]) -> Option<Vec<u8>> {
    // RFC 1952: the last four bytes of a gzip file are the length of the uncompressed data.
    let length = u32::from_le_bytes(*compressed.last_chunk()?);
    let length = usize::try_from(length).ok()?;
    if length > INFLATED_BYTES_MAX {
        return None;
    }
    let mut bytes = vec![0; length];
    let inflated = DECOMPRESSOR
        .with_borrow_mut(|decompressor| decompressor.gzip_decompress(compressed, &mut bytes))
        .ok()?;
    (inflated == length).then_some(bytes)
}

/// Sets an event's outcome, on condition that it has no final outcome yet.
pub(super) fn build_event_update(
    table: &str,
    end: &EventUpdate,
    now: Timestamp,
) -> Result<Update, CommitError> {
    let outcome = end.verdict.outcome();
    let mut update = UpdateBuilder::new();
    update.set("processed", Some(AttributeValue::Bool(outcome.is_done())));
    update.set("processing_outcome", Some(string_value(outcome.as_str())));
    update.set("processing_error", end.verdict.reason().map(string_value));
    update.set(
        "processed_at",
        outcome.is_done().then(|| string_value(now.to_string())),
    );
    update.set("open", open_key_of(outcome, &end.event).map(string_value));
    if !end.entities.is_empty() {
        let entities = end.entities.iter().map(ToString::to_string);
        update.set("entities", Some(AttributeValue::Ss(entities.collect())));
    }
    if let Some(tenant) = &end.tenant {
        update.set("tenant_id", Some(string_value(tenant.as_str())));
    }
    update.add("attempts", number_value(1));
    // Case: a worker gives up a call that hangs, the queue delivers the message to another worker, and that one
    // writes `processed`. Now the first call arrives after all. Without this condition it could park the event, and
    // so reopen it. A lost answer is safe too: the SDK's second attempt fails here, and the next round reads
    // `processed`. An event that is parked stays `processed` = false, so a second attempt parks it again and
    // `attempts` counts one too many.
    update.require_as_loaded("processed", Some(&AttributeValue::Bool(false)));
    update.build(table, "event_id", end.event.as_str())
}

/// Consistent reads of the events that exist; an id without a row is left out.
pub async fn load_event_items(
    client: &Client,
    table: &str,
    ids: &BTreeSet<EventId>,
    projection: Option<&'static str>,
) -> Result<Vec<Item>, DependencyError> {
    let mut rows = Vec::new();
    let ids: Vec<&EventId> = ids.iter().collect();
    for ids in ids.chunks(KEYS_MAX) {
        let keys = ids
            .iter()
            .map(|id| Item::from([("event_id".to_owned(), string_value(id.as_str()))]))
            .collect();
        let wanted = HashMap::from([(table.to_owned(), keys)]);
        let found = batch_get_rows(client, wanted, projection).await?;
        rows.extend(found.into_iter().map(|(_, row)| row));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use billhook_testkit::events::new_event;
    use flate2::Compression;
    use flate2::read::GzDecoder;
    use flate2::write::GzEncoder;

    use super::*;

    fn event(raw_body: &[u8]) -> Item {
        let correlation_id = CorrelationId::parse("01936d3c-0000-7000-8000-000000000000").unwrap();
        let received_at = Timestamp::from_unix_s(1_781_000_000).unwrap();
        let new = new_event(ProviderId::Stripe, raw_body, correlation_id, received_at);
        build_event_item(&new, &sealer())
    }

    fn sealer() -> EventSealer {
        EventSealer::from_seed(&[1; 32])
    }

    fn read(item: &Item) -> StoredPayload {
        let keys = SealPublicKeys::default().with_newest(sealer().public_key());
        read_stored_event(ProviderId::Stripe, item, &keys)
            .unwrap()
            .payload
    }

    fn body(filler: &str) -> Vec<u8> {
        format!(
            r#"{{"id":"evt_1","type":"charge.refunded","livemode":false,"created":1781000000,"data":{{"object":{{"id":"ch_1","amount_refunded":"x","filler":"{filler}"}}}}}}"#
        )
        .into_bytes()
    }

    /// Pseudo-random hex digits: gzip halves them, but not more.
    fn noise(bytes: usize) -> String {
        let mut state = 1_u64;
        let mut text = String::new();
        while text.len() < bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            text.push_str(&format!("{:08x}", state >> 32));
        }
        text
    }

    #[test]
    fn a_small_body_stays_readable_and_a_larger_one_is_compressed() {
        let small = event(&body("x"));
        assert_eq!(small["payload"].as_s().unwrap().as_bytes(), body("x"));
        let large = event(&body(&"x".repeat(5_000)));
        assert!(!large.contains_key("payload"));
        assert_eq!(
            attributes::count_write_units(attributes::item_size(&large)),
            1
        );
        for (item, filler) in [(small, "x".to_owned()), (large, "x".repeat(5_000))] {
            assert_eq!(read(&item), StoredPayload::Intact(body(&filler)));
        }
    }

    #[test]
    fn what_the_kept_compressor_makes_is_gzip_whatever_came_before() {
        let noise: Vec<u8> = noise(200_000)
            .bytes()
            .map(|byte| byte.wrapping_mul(37))
            .collect();
        for bytes in [b"".as_slice(), &noise, &body("x"), &noise, b"{}"] {
            let compressed = compress_gzip(bytes);
            assert_eq!(decompress_gzip(&compressed).unwrap(), bytes);
            let mut read = Vec::new();
            GzDecoder::new(&*compressed).read_to_end(&mut read).unwrap();
            assert_eq!(read, bytes);
        }
    }

    #[test]
    fn another_gzip_is_read_and_a_broken_one_is_not() {
        let mut other = GzEncoder::new(Vec::new(), Compression::default());
        other.write_all(&body("x")).unwrap();
        let whole = other.finish().unwrap();
        assert_eq!(decompress_gzip(&whole).unwrap(), body("x"));
        for end in 0..whole.len() {
            assert!(
                decompress_gzip(&whole[..end]).is_none(),
                "the first {end} bytes"
            );
        }
        for at in [0, 20, whole.len() - 5, whole.len() - 1] {
            let mut broken = whole.clone();
            broken[at] ^= 0x55;
            assert!(decompress_gzip(&broken).is_none(), "another byte at {at}");
        }
        assert!(decompress_gzip(&[&*whole, b"\x00\x02\x00\x00"].concat()).is_none());
    }

    #[test]
    fn a_body_too_large_to_keep_is_cut_to_what_is_read_of_it() {
        let raw = body(&noise(900 * 1024));
        let row = event(&raw);
        assert_eq!(row["payload_truncated"], AttributeValue::Bool(true));
        assert!(attributes::item_size(&row) < 2048);
        let StoredPayload::Intact(projected) = read(&row) else {
            panic!("not intact");
        };
        use billhook_core::provider::stripe::event::StripeEvent;
        assert_eq!(
            StripeEvent::parse(&projected).unwrap(),
            StripeEvent::parse(&raw).unwrap()
        );
    }

    #[test]
    fn the_largest_body_leaves_a_row_that_dynamodb_takes() {
        let text = noise(2_000 * 1_000);
        let mut texts = (0..2_000).map(|n| &text[n * 1_000..(n + 1) * 1_000]);
        let mut next = || texts.next().unwrap();
        let scans: Vec<_> = (0..250)
            .map(|_| serde_json::json!({ "id": next(), "name": next(), "time": next(), "location": next() }))
            .collect();
        let body = serde_json::json!({ "id": "evt_1", "event_type": { "id": "letter.in_transit" },
            "reference_id": "ltr_1", "body": { "tracking_events": scans } });
        let raw_body = body.to_string().into_bytes();
        assert!(raw_body.len() > 1_000_000);
        let correlation_id = CorrelationId::parse("01936d3c-0000-7000-8000-000000000000").unwrap();
        let received_at = Timestamp::from_unix_s(1_781_000_000).unwrap();
        let new = new_event(ProviderId::Lob, &raw_body, correlation_id, received_at);
        let row = build_event_item(&new, &sealer());
        assert_eq!(row["payload_truncated"], AttributeValue::Bool(true));
        assert!(
            attributes::item_size(&row) < 400_000,
            "{}",
            attributes::item_size(&row)
        );
    }

    /// Each was a paid order before rows were sealed: the digest is not keyed, so whoever writes the row makes it fit.
    #[test]
    fn a_row_that_was_changed_or_invented_is_tampered() {
        let row = event(&body("x"));
        let forged = body("y");
        let digest = HEXLOWER.encode(&Sha256::digest(&forged));
        let text = |value: &str| Some(string_value(value));
        type Change = Vec<(&'static str, Option<AttributeValue>)>;
        let other = String::from_utf8(forged).unwrap();
        let changes: [Change; 6] = [
            vec![("payload", text("{}"))],
            vec![("payload", text(&other)), ("payload_sha256", text(&digest))],
            vec![("connected_account_id", text("acct_other"))],
            vec![("event_type", text("charge.succeeded"))],
            vec![("livemode", Some(AttributeValue::Bool(true)))],
            vec![("seal", None)],
        ];
        for change in changes {
            let mut row = row.clone();
            for (name, value) in change.clone() {
                match value {
                    Some(value) => row.insert(name.to_owned(), value),
                    None => row.remove(name),
                };
            }
            assert_eq!(read(&row), StoredPayload::Tampered, "{change:?}");
        }
        // The seal of a genuine event, on another's row.
        let mut copy = row.clone();
        copy.insert("event_id".to_owned(), string_value("evt_2"));
        assert_eq!(read(&copy), StoredPayload::Tampered);
        let mut gone = row;
        gone.remove("payload");
        assert_eq!(read(&gone), StoredPayload::Unreadable);
    }
}
