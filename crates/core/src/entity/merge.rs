//! Merging: the one mechanism that makes order, repetition and races harmless.
//!
//! Every fact type is built from the pieces below. Each commutes, is associative and idempotent, and so is whatever is
//! composed of them field by field; nothing else may be stored as a fact.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::EventId;
use crate::time::Timestamp;

/// Takes in what another set of events knows.
pub trait Merge {
    /// `a.merge(b)` equals `b.merge(a)`, and merging the same again changes nothing.
    fn merge(&mut self, other: Self);
}

/// The least value seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MinRegister<T>(pub T);

/// The greatest value seen. With a moment first in a pair it is the latest statement, ties settled by the value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaxRegister<T>(pub T);

/// When a fact was first true by the provider's clock, and the least event that states it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FactSource {
    /// The provider's time.
    pub at: Timestamp,
    /// The least id, so that it does not depend on which event came first.
    pub event: EventId,
}

/// A state that something was in: when first, and when last. Of several states the one seen last is believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenInterval {
    /// First.
    #[serde(flatten)]
    pub first: FactSource,
    /// Last.
    pub last_at: MaxRegister<Timestamp>,
}

impl SeenInterval {
    /// Seen once.
    pub fn once(stated: FactSource) -> Self {
        let last_at = MaxRegister(stated.at);
        Self {
            first: stated,
            last_at,
        }
    }
}

/// The state seen last; of those seen at one moment (a provider's grain is a second) the greatest.
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

/// Merges a struct field by field.
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
