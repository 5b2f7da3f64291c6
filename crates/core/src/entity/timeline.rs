//! The timeline of an order or statement: derived from the merged facts, one entry per (type, fact), so that a repeat
//! adds nothing and the order of arrival leaves no trace.

use serde_json::{Map, Value};

use crate::ids::EventId;
use crate::time::Timestamp;

/// Derived entries beyond the newest 200 are not written.
const DERIVED_MAX: usize = 200;

/// The `actor` of every derived entry. Entries of any other actor are never touched.
pub const ACTOR: &str = "billhook";

/// One derived entry.
#[derive(Clone, Debug, PartialEq)]
pub struct DerivedEntry {
    /// When it was first true, by the provider's clock.
    pub at: Timestamp,
    /// What happened, `payment_succeeded`.
    pub kind: String,
    /// The id of the fact it tells.
    pub fact: String,
    /// Who said so: `stripe`, `lob`, `cleanup`.
    pub told_by: &'static str,
    /// The least event that states it.
    pub event: Option<EventId>,
    /// What a reader wants to know beside.
    pub meta: Map<String, Value>,
}

/// An entry of the written timeline.
#[derive(Clone, Debug, PartialEq)]
pub enum TimelineEntry<T> {
    /// Derived.
    Derived(DerivedEntry),
    /// Somebody else's, as it stood.
    Foreign(T),
}

/// Our newest entries and everybody else's, in the order of their moments. `at` reads the moment of a foreign entry
/// as it is written there; one without any comes first. The foreign ones keep their order among themselves.
pub fn merge_timelines<T>(
    mut ours: Vec<DerivedEntry>,
    theirs: Vec<T>,
    at: impl Fn(&T) -> Option<String>,
) -> Vec<TimelineEntry<T>> {
    ours.sort_by(|a, b| (a.at, &a.kind, &a.fact).cmp(&(b.at, &b.kind, &b.fact)));
    let older = ours.len().saturating_sub(DERIVED_MAX);
    let mut woven: Vec<(String, TimelineEntry<T>)> = theirs
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
    woven.sort_by(|a, b| a.0.cmp(&b.0));
    woven.into_iter().map(|(_, entry)| entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(second: i64, kind: &str) -> DerivedEntry {
        DerivedEntry {
            at: Timestamp::from_unix_s(second).unwrap(),
            kind: kind.to_owned(),
            fact: "ch_1".to_owned(),
            told_by: "stripe",
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
        let woven = merge_timelines(many, vec!["1970-01-01T00:04:00.500Z", "nonsense"], |at| {
            Some((*at).to_owned())
        });
        assert_eq!(woven.len(), 202);
        assert_eq!(
            woven.first(),
            Some(&TimelineEntry::Derived(ours(50, "payment_failed")))
        );
        assert_eq!(
            woven.get(191),
            Some(&TimelineEntry::Foreign("1970-01-01T00:04:00.500Z"))
        );
        assert_eq!(woven.last(), Some(&TimelineEntry::Foreign("nonsense")));
    }
}
