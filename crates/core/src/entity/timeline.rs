//! The timeline of an order or statement: a projection of the facts, merged with the entries of other writers.
//!
//! There is one derived entry per (type, fact), so a duplicate adds nothing and the order of arrival leaves no trace.
//! It is not an audit log: the newest 200 derived entries are kept, and all of them are written anew at each write. The
//! events table has every event. `payment::timeline` and `mail::derive` make the entries.

use serde_json::{Map, Value};

use crate::ids::EventId;
use crate::time::Timestamp;

/// Only the newest derived entries are written, because the row has a size limit. Entries of others are not counted.
const DERIVED_MAX: usize = 200;

/// The `actor` of every derived entry. By it we know our own entries again; we never change the others.
pub const ACTOR: &str = "billhook";

#[derive(Clone, Debug, PartialEq)]
pub struct DerivedEntry {
    /// When the fact was first true, by the provider's timestamp; for manual edits and cancellations, by ours.
    pub at: Timestamp,
    /// Such as `payment_succeeded`.
    pub kind: String,
    /// What the entry is about: a provider's id such as `re_1`, or a review reason. Unique together with `kind`.
    pub fact: String,
    /// The source: `stripe`, `lob`, or `billhook` if no event states it.
    pub stated_by: &'static str,
    /// The event with the smallest id that states the fact.
    pub event: Option<EventId>,
    pub meta: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TimelineEntry<T> {
    Derived(DerivedEntry),
    /// An entry of another actor, unchanged.
    Foreign(T),
}

/// Merges our newest entries with the foreign ones, sorted by time. `at` returns the time of a foreign entry as text.
///
/// The times are compared as text, because a foreign entry may have any: one without a time comes first, and
/// `nonsense` comes last, after every digit. Foreign entries with equal times keep their order.
pub fn merge_timelines<T>(
    mut ours: Vec<DerivedEntry>,
    foreign: Vec<T>,
    at: impl Fn(&T) -> Option<String>,
) -> Vec<TimelineEntry<T>> {
    ours.sort_by(|a, b| (a.at, &a.kind, &a.fact).cmp(&(b.at, &b.kind, &b.fact)));
    let older = ours.len().saturating_sub(DERIVED_MAX);
    let mut merged: Vec<(String, TimelineEntry<T>)> = foreign
        .into_iter()
        .map(|entry| {
            (
                at(&entry).unwrap_or_default(),
                TimelineEntry::Foreign(entry),
            )
        })
        .chain(
            ours.into_iter()
                .skip(older)
                .map(|entry| (entry.at.to_string(), TimelineEntry::Derived(entry))),
        )
        .collect();
    merged.sort_by(|a, b| a.0.cmp(&b.0));
    merged.into_iter().map(|(_, entry)| entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(second: i64, kind: &str) -> DerivedEntry {
        DerivedEntry {
            at: Timestamp::from_unix_s(second).unwrap(),
            kind: kind.to_owned(),
            fact: "ch_1".to_owned(),
            stated_by: "stripe",
            event: None,
            meta: Map::new(),
        }
    }

    #[test]
    fn foreign_entries_keep_their_place_and_ours_are_sorted_and_bounded() {
        let many: Vec<_> = (0..250)
            .rev()
            .map(|second| ours(second, "payment_failed"))
            .collect();
        let merged = merge_timelines(many, vec!["1970-01-01T00:04:00.500Z", "nonsense"], |at| {
            Some((*at).to_owned())
        });
        assert_eq!(merged.len(), 202);
        assert_eq!(
            merged.first(),
            Some(&TimelineEntry::Derived(ours(50, "payment_failed")))
        );
        assert_eq!(
            merged.get(191),
            Some(&TimelineEntry::Foreign("1970-01-01T00:04:00.500Z"))
        );
        assert_eq!(merged.last(), Some(&TimelineEntry::Foreign("nonsense")));
    }
}
