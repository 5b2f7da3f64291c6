//! Compares facts in the form in which they are stored, and says what they should be.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::show_value;
use super::stated::StatedByEvents;
use super::{DifferenceSource, StateDifference};
use crate::entity::merge::Merge;
use crate::ids::EventId;
use crate::time::Timestamp;

/// The member of a fact that names the event which states it.
const EVENT: &str = "event";

/// The facts as they should be. If all events can be read, exactly what they state. If some are missing, what is stored
/// and what the others state, without each fact whose own event can be read and does not state it.
pub(super) fn correct_facts<F>(stored: &F, stated: &StatedByEvents<F>, is_complete: bool) -> F
where
    F: Merge + Clone + Serialize + DeserializeOwned,
{
    let mut corrected = match is_complete {
        true => return stated.all.clone(),
        false => take_away_unstated(stored, &stated.by_event),
    };
    corrected.merge(stated.all.clone());
    corrected
}

fn take_away_unstated<F>(stored: &F, by_event: &BTreeMap<EventId, Option<F>>) -> F
where
    F: Clone + Serialize + DeserializeOwned,
{
    let by_event: BTreeMap<&str, Value> = by_event
        .iter()
        .map(|(event, facts)| (event.as_str(), to_json(facts)))
        .collect();
    let stated = by_event.iter().map(|(event, facts)| (*event, Some(facts)));
    let mut facts = to_json(stored);
    if let Value::Object(members) = &mut facts {
        prune_members(members, &stated.collect());
    }
    serde_json::from_value(facts).unwrap_or_else(|_| stored.clone())
}

/// What became of a part of the facts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PruneResult {
    /// It names no event.
    Unnamed,
    Kept,
    /// The events that it names can be read and do not state it.
    Unstated,
}

/// `stated` has, for each event that can be read, what it states at the same place.
fn prune_members(
    members: &mut Map<String, Value>,
    stated: &BTreeMap<&str, Option<&Value>>,
) -> PruneResult {
    if let Some(event) = members.get(EVENT).and_then(Value::as_str)
        && members.contains_key("at")
    {
        return match stated.get(event) {
            Some(None) => PruneResult::Unstated,
            Some(Some(_)) | None => PruneResult::Kept,
        };
    }
    let mut results = Vec::new();
    members.retain(|name, value| {
        let inner_stated = stated
            .iter()
            .map(|(event, facts)| (*event, facts.and_then(|facts| facts.get(name))));
        let inner = match value {
            Value::Object(inner) => inner,
            Value::Array(values) => {
                let stated = inner_stated.filter_map(|(_, facts)| facts?.as_array());
                return !is_contradicted(values, stated);
            }
            _ => return true,
        };
        let result = prune_members(inner, &inner_stated.collect());
        results.push(result);
        result != PruneResult::Unstated
    });
    // What names no event of its own goes with the facts beside it: an amount with its refund.
    match (
        results.contains(&PruneResult::Kept),
        results.contains(&PruneResult::Unstated),
    ) {
        (true, _) => PruneResult::Kept,
        (false, true) => PruneResult::Unstated,
        (false, false) => PruneResult::Unnamed,
    }
}

/// Whether a set of amounts was misread: events that can be read state amounts of it, and it has none of them. Such as an
/// amount of 0.42 that a release read where two events say 42.00, one of which is gone: it would be a second amount of
/// the payment, which then matches nothing.
///
/// A list that is no set, such as a value with its time, may have a later value of an event that is gone.
fn is_contradicted<'s>(values: &[Value], stated: impl Iterator<Item = &'s Vec<Value>>) -> bool {
    let stated: Vec<&Value> = stated.flatten().collect();
    let is_amounts = values.iter().all(Value::is_object);
    is_amounts && !stated.is_empty() && !stated.iter().any(|stated| values.contains(stated))
}

/// With the members that only the other facts have.
pub(super) fn fill_missing<F>(facts: &F, others: &F) -> F
where
    F: Clone + Serialize + DeserializeOwned,
{
    fn fill(value: &mut Value, other: &Value) {
        if let (Value::Object(members), Value::Object(others)) = (value, other) {
            for (name, other) in others {
                match members.get_mut(name) {
                    Some(known) => fill(known, other),
                    None => drop(members.insert(name.clone(), other.clone())),
                }
            }
        }
    }
    let mut filled = to_json(facts);
    fill(&mut filled, &to_json(others));
    serde_json::from_value(filled).unwrap_or_else(|_| facts.clone())
}

/// The events that facts name.
pub(super) fn named_events(facts: &impl Serialize) -> BTreeSet<EventId> {
    let mut events = BTreeSet::new();
    collect_events(&to_json(facts), &mut events);
    events
}

/// Whether a state remembers the events that its facts name. If not, it has forgotten others too, which nothing names: it
/// was lost, and made again from copies.
pub(super) fn remembers_all<F: Serialize + Default + PartialEq>(
    remembered: &[EventId],
    facts: &F,
) -> bool {
    let remembered: BTreeSet<&EventId> = remembered.iter().collect();
    let named = named_events(facts);
    (!remembered.is_empty() || *facts == F::default())
        && named.iter().all(|event| remembered.contains(event))
}

fn collect_events(facts: &Value, events: &mut BTreeSet<EventId>) {
    let Value::Object(members) = facts else {
        return;
    };
    if members.contains_key("at")
        && let Some(event) = members.get(EVENT).and_then(Value::as_str)
    {
        events.extend(EventId::parse(event).ok());
    }
    for inner in members.values() {
        collect_events(inner, events);
    }
}

/// The earliest time at which a fact was true.
pub(super) fn first_time(facts: &impl Serialize) -> Option<Timestamp> {
    fn collect(facts: &Value, times: &mut Vec<Timestamp>) {
        let Value::Object(members) = facts else {
            return;
        };
        let at = members.get("at").and_then(Value::as_str);
        times.extend(at.and_then(|at| Timestamp::parse(at).ok()));
        for inner in members.values() {
            collect(inner, times);
        }
    }
    let mut times = Vec::new();
    collect(&to_json(facts), &mut times);
    times.into_iter().min()
}

fn to_json(facts: &impl Serialize) -> Value {
    serde_json::to_value(facts).unwrap_or_default()
}

/// Where the stored form of two facts differs, each place with both values.
pub(super) fn compare_facts(
    source: DifferenceSource,
    place: &str,
    stored: &impl Serialize,
    expected: &impl Serialize,
) -> Vec<StateDifference> {
    let mut differences = Vec::new();
    compare_values(
        source,
        place,
        Some(&to_json(stored)),
        Some(&to_json(expected)),
        &mut differences,
    );
    differences
}

fn compare_values(
    source: DifferenceSource,
    place: &str,
    stored: Option<&Value>,
    expected: Option<&Value>,
    differences: &mut Vec<StateDifference>,
) {
    if stored == expected {
        return;
    }
    if let (Some(Value::Object(stored)), Some(Value::Object(expected))) = (stored, expected) {
        let names: BTreeSet<&String> = stored.keys().chain(expected.keys()).collect();
        for name in names {
            compare_values(
                source,
                &format!("{place}.{name}"),
                stored.get(name),
                expected.get(name),
                differences,
            );
        }
        return;
    }
    differences.push(StateDifference {
        source,
        place: place.to_owned(),
        stored: stored.map(show_value),
        expected: expected.map(show_value),
        decision: None,
    });
}
