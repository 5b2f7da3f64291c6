//! Merging of facts (join-semilattice, state-based CRDT): makes duplicates, out-of-order delivery and races harmless.
//!
//! A payment takes the facts of its events even if no order or statement is linked to it yet, so facts can arrive before
//! the link.
//!
//! The building blocks are the smallest value, the greatest value, the union of sets, maps merged by key, and the
//! greatest entries of such a map (`payment::facts::NewestFailures`). Each is commutative (order of arrival),
//! associative (batching) and idempotent (redelivery, replay), and so is every struct made of them field by field. `crates/core/tests/worker/laws.rs` tests these laws on generated histories.
//!
//! Nothing else may be stored as a fact. What breaks, by example:
//! - A counter or a sum of differences is not idempotent: a refund of 10.00 delivered twice becomes 20.00.
//! - "The event that arrives last wins" is not commutative: `lost` at 10:05 and `needs_response` at 10:00 give an open
//!   dispute if they arrive in the wrong order. Keep both states with their times instead ([`SeenInterval`]).
//! - A flag that is set and taken back is not commutative either: `review.closed` before `review.opened` would leave
//!   the review open for good. Keep "opened" and "closed" as two facts and derive the flag.
//!
//! Why we do it at all: `docs/adr/0002-facts-merge-derive.md`. The facts are in `payment::facts`, `mail::facts` and
//! `account`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::EventId;
use crate::time::Timestamp;

/// The join of a join-semilattice: the least state that contains what both sides know.
pub trait Merge {
    /// Must be commutative, associative and idempotent.
    fn merge(&mut self, other: Self);
}

/// Keeps the smallest value. Used for values that all events of an object should agree on, such as the account: if two
/// events disagree, every order of arrival still ends in the same value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MinRegister<T>(pub T);

/// Keeps the greatest value. Right for cumulative figures: `amount_refunded` 10.00 and later 15.00 merge to 15.00 in
/// either order. Holding a pair `(timestamp, value)` it keeps the latest value, and the greater one within one second.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaxRegister<T>(pub T);

/// When a fact was first true by the provider's timestamps, and one event that says so.
///
/// The two fields merge separately: `evt_a` of 10:05 and `evt_b` of 10:01 give 10:01 and `evt_a`. The event is a place
/// to look, not the event that carried the time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FactSource {
    pub at: Timestamp,
    /// The smallest id of all events that state the fact; of a failed attempt, the latest event.
    pub event: EventId,
}

/// When something was in a state, first and last, by the provider's timestamps. It may have left the state in between:
/// a dispute that was open, lost and is open again on appeal has one interval for `open` and one for `lost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenInterval {
    /// Dates the timeline entry, so that a repeat does not move it.
    #[serde(flatten)]
    pub first: FactSource,
    /// Decides which of several states is the current one.
    pub last_at: MaxRegister<Timestamp>,
}

impl SeenInterval {
    pub fn once(stated: FactSource) -> Self {
        let last_at = MaxRegister(stated.at);
        Self {
            first: stated,
            last_at,
        }
    }
}

/// The current state: the one with the latest timestamp. Stripe's timestamps are whole seconds, so two states may have
/// the same one; then the greater state wins, by the declared order of its enum.
pub fn latest_state<S: Ord + Copy>(states: &BTreeMap<S, SeenInterval>) -> Option<S> {
    let last = states
        .iter()
        .max_by_key(|(state, seen)| (seen.last_at.0, **state));
    last.map(|(state, _)| *state)
}

impl<T: Ord> Merge for MinRegister<T> {
    fn merge(&mut self, other: Self) {
        if other.0 < self.0 {
            *self = other;
        }
    }
}

impl<T: Ord> Merge for MaxRegister<T> {
    fn merge(&mut self, other: Self) {
        if other.0 > self.0 {
            *self = other;
        }
    }
}

impl Merge for FactSource {
    fn merge(&mut self, other: Self) {
        self.at = self.at.min(other.at);
        if other.event < self.event {
            self.event = other.event;
        }
    }
}

impl<T: Merge> Merge for Option<T> {
    fn merge(&mut self, other: Self) {
        match (self, other) {
            (_, None) => {}
            (Some(known), Some(new)) => known.merge(new),
            (nothing, new) => *nothing = new,
        }
    }
}

impl<T: Ord> Merge for BTreeSet<T> {
    fn merge(&mut self, other: Self) {
        self.extend(other);
    }
}

impl<K: Ord, V: Merge> Merge for BTreeMap<K, V> {
    fn merge(&mut self, other: Self) {
        for (key, new) in other {
            match self.entry(key) {
                std::collections::btree_map::Entry::Occupied(mut known) => {
                    known.get_mut().merge(new)
                }
                std::collections::btree_map::Entry::Vacant(place) => {
                    place.insert(new);
                }
            }
        }
    }
}

/// Implements [`Merge`] for a struct, field by field. The pattern names every field, so that a new fact that is not
/// merged does not compile.
macro_rules! merge_fields {
    ($name:ident { $($field:ident),+ $(,)? }) => {
        impl $crate::entity::merge::Merge for $name {
            fn merge(&mut self, other: Self) {
                let Self { $($field),+ } = other;
                $($crate::entity::merge::Merge::merge(&mut self.$field, $field);)+
            }
        }
    };
}
pub(crate) use merge_fields;

merge_fields!(SeenInterval { first, last_at });
