//! The keys under which the indexes of the events tables find an event.
//!
//! DynamoDB takes about 1,000 write units a second for one value of an index's key, and does not split a key that grows
//! with the time. Under one key for each day, every delivery of a stack would go through one partition. So each day and
//! each outcome has several keys (shards), and an event's id chooses one of them.

use crate::ids::EventId;
use crate::outcome::EventOutcome;
use crate::time::Timestamp;

/// Keys of one day. At 10,000 deliveries a second each takes about 625 write units a second: one for the entry and one
/// for its outcome.
pub const SLOTS_PER_DAY: u8 = 32;
/// Keys of one outcome that is not done. Fewer, because only events that wait are there.
pub const OPEN_SHARDS: u8 = 16;

/// FNV-1a: the ids of one burst differ in few characters.
fn hash_id(id: &EventId) -> u64 {
    id.as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

fn shard_of(id: &EventId, shards: u8) -> u64 {
    // The upper bits: the lowest ones of FNV depend on the lowest bits of the characters only.
    (hash_id(id) >> 32) % u64::from(shards)
}

/// The key of an event in `SlotIndex`: the day on which it arrived, and a shard.
pub fn slot_of(received_at: Timestamp, id: &EventId) -> String {
    format!("{}#{}", received_at.day(), shard_of(id, SLOTS_PER_DAY))
}

/// All keys of a day in `SlotIndex`.
pub fn slots_of_day(day: &str) -> impl Iterator<Item = String> {
    (0..SLOTS_PER_DAY).map(move |shard| format!("{day}#{shard}"))
}

/// The key of an event in `OpenIndex`; `None` if it is done and in no index.
pub fn open_key_of(outcome: EventOutcome, id: &EventId) -> Option<String> {
    let shard = shard_of(id, OPEN_SHARDS);
    (!outcome.is_done()).then(|| format!("{outcome}#{shard}"))
}

/// All keys of an outcome in `OpenIndex`.
pub fn open_keys(outcome: EventOutcome) -> impl Iterator<Item = String> {
    (0..OPEN_SHARDS).map(move |shard| format!("{outcome}#{shard}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const DELIVERIES_PER_S: usize = 10_000;
    /// What a key should take at most, below the 1,000 that DynamoDB takes.
    const UNITS_PER_S_MAX: usize = 800;

    /// The most write units that one key takes in a second: an entry and its outcome for each event.
    fn hottest_key(key_of: impl Fn(Timestamp, &EventId) -> String) -> usize {
        let mut hottest = 0;
        let mut random = 1_u64;
        for second in 0..10 {
            let at = Timestamp::from_unix_s(1_781_000_000 + second).unwrap();
            let mut units: BTreeMap<String, usize> = BTreeMap::new();
            for _ in 0..DELIVERIES_PER_S {
                // As Stripe's ids: a beginning that grows with the time, and random characters.
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let id = EventId::parse(&format!("evt_1SQ{second}{random:016x}")).unwrap();
                *units.entry(key_of(at, &id)).or_default() += 2;
            }
            hottest = hottest.max(units.into_values().max().unwrap());
        }
        hottest
    }

    #[test]
    fn no_key_is_hot_at_ten_thousand_deliveries_a_second() {
        let slots = hottest_key(slot_of);
        assert!(slots <= UNITS_PER_S_MAX, "{slots}");
        // An outage of the workers: every event is overdue, an entry each.
        let open = hottest_key(|_, id| open_key_of(EventOutcome::Pending, id).unwrap());
        assert!(open / 2 <= UNITS_PER_S_MAX, "{open}");
        // Without the shard, and as one key for all that is pending.
        assert!(hottest_key(|at, _| at.day()) > UNITS_PER_S_MAX);
        assert!(hottest_key(|_, _| "pending".to_owned()) > UNITS_PER_S_MAX);
    }

    #[test]
    fn an_events_key_is_one_of_its_days_and_of_its_outcomes_keys() {
        let at = Timestamp::from_unix_s(1_781_000_000).unwrap();
        for n in 0..500 {
            let id = EventId::parse(&format!("evt_{n}")).unwrap();
            assert!(slots_of_day(&at.day()).any(|slot| slot == slot_of(at, &id)));
            let open = open_key_of(EventOutcome::Parked, &id).unwrap();
            assert!(open_keys(EventOutcome::Parked).any(|key| key == open));
            assert_eq!(open_key_of(EventOutcome::Ignored, &id), None);
        }
    }
}
