//! Which states there are, and which events none of them took.
//!
//! States are listed in segments: each has about the same share of all keys, by their hash, so one of a hundred segments
//! is a sample of 1 %, and the next day's sample is the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use super::prover::{EventsByState, StateProver};
use super::stated::EventReadings;
use crate::entity::key::{PaymentKey, StateKey};
use crate::entity::schema::EVENT_IDS_MAX;
use crate::error::DependencyError;
use crate::ids::{EventId, ProviderId};
use crate::outcome::EventOutcome;
use crate::tasks::ports::ArrivedEvent;
use crate::time::Timestamp;
use crate::worker::ports::{Ledger, LoadedRows};

/// States that are loaded together, to see whether they took their events.
const STATES_AT_ONCE: usize = 100;

const DAY_S: i64 = 24 * 60 * 60;

/// A part of all states, by the hash of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanSegment {
    /// From 0.
    pub number: u32,
    pub total: u32,
}

impl ScanSegment {
    /// The sample of this day, of about this percentage of all states, from 1 to 100: after `100 / percent` days each was
    /// in one. A percentage by which 100 cannot be divided is rounded up: 60 proves all, 40 the half.
    pub fn sample_of(percent: u32, at: Timestamp) -> Self {
        let total = (100 / percent.clamp(1, 100)).max(1);
        let days = at.unix_s().div_euclid(DAY_S);
        let number = u32::try_from(days.rem_euclid(i64::from(total))).unwrap_or_default();
        Self { number, total }
    }

    /// As many percent of all states, from 1 to 100, in parts of 1 %; others each day.
    pub fn parts_of_sample(percent: u32, at: Timestamp) -> impl Iterator<Item = Self> {
        const TOTAL: u32 = 100;
        let percent = percent.clamp(1, TOTAL);
        let before = at.unix_s().div_euclid(DAY_S) * i64::from(percent);
        let first = u32::try_from(before.rem_euclid(i64::from(TOTAL))).unwrap_or_default();
        (first..first + percent).map(|number| Self {
            number: number % TOTAL,
            total: TOTAL,
        })
    }

    /// All states in this many segments.
    pub fn all(total: u32) -> impl Iterator<Item = Self> {
        (0..total).map(move |number| Self { number, total })
    }
}

/// A page of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StatePage {
    pub states: Vec<StateKey>,
    /// Where the next page begins.
    pub next: Option<String>,
}

pub trait ListStates: Send + Sync {
    /// A page of the segment, in no order.
    fn list_states(
        &self,
        segment: ScanSegment,
        after: Option<&str>,
    ) -> impl Future<Output = Result<StatePage, DependencyError>> + Send;
}

impl<L: Ledger> StateProver<L> {
    /// The events of which an index says that states took them, and which these do not know; and those of payments that
    /// are processed and that nothing took. A proof of these states has to read these events.
    pub async fn find_lost_events(
        &self,
        provider: ProviderId,
        arrived: &[ArrivedEvent],
    ) -> Result<EventsByState, DependencyError> {
        let mut lost = EventsByState::new();
        let mut named = EventsByState::new();
        let mut taken_by_none = BTreeSet::new();
        for event in arrived {
            if event.outcome == EventOutcome::Processed && event.entities.is_empty() {
                taken_by_none.insert(event.id.clone());
            }
            if matches!(
                event.outcome,
                EventOutcome::Processed | EventOutcome::Parked
            ) {
                for state in &event.entities {
                    let events = named.entry(state.clone()).or_default();
                    events.insert(event.id.clone());
                }
            }
        }
        let named: Vec<(StateKey, BTreeSet<EventId>)> = named.into_iter().collect();
        for chunk in named.chunks(STATES_AT_ONCE) {
            let keys: BTreeSet<StateKey> = chunk.iter().map(|(key, _)| key.clone()).collect();
            let mut rows = self.states.load_rows(&keys).await?;
            let aliases: BTreeMap<PaymentKey, PaymentKey> = rows
                .payments
                .iter()
                .filter_map(|(key, (state, _))| Some((key.clone(), state.alias_of.clone()?)))
                .collect();
            let payments = aliases.values().cloned().map(StateKey::Payment);
            let payments: BTreeSet<StateKey> = payments.collect();
            if !payments.is_empty() {
                rows.extend(self.states.load_rows(&payments).await?);
            }
            for (key, events) in chunk {
                let alias = match key {
                    StateKey::Payment(key) => aliases.get(key).cloned().map(StateKey::Payment),
                    StateKey::Entity(_) | StateKey::Invoice(_) => None,
                };
                let key = alias.as_ref().unwrap_or(key);
                let Some(known) = known_events(key, &rows) else {
                    continue;
                };
                let unknown: BTreeSet<EventId> = events.difference(&known).cloned().collect();
                if !unknown.is_empty() && known.len() < EVENT_IDS_MAX {
                    lost.entry(key.clone()).or_default().extend(unknown);
                }
            }
        }
        let mut readings = EventReadings::default();
        self.read_events_of(provider, &taken_by_none, &mut readings)
            .await?;
        for event in readings.read() {
            let best = event.payment().and_then(|payment| payment.names.first());
            let payment = best.map(|best| {
                StateKey::Payment(PaymentKey {
                    account: event.account.clone(),
                    payment: best.clone(),
                })
            });
            if let Some(payment) = payment {
                lost.entry(payment).or_default().insert(event.id.clone());
            }
        }
        Ok(lost)
    }
}

/// The events that a state remembers; none if there is no state. `None` if nothing can be said: it cannot be read, or
/// it remembers no events.
fn known_events<R>(key: &StateKey, rows: &LoadedRows<R>) -> Option<BTreeSet<EventId>> {
    if rows.unreadable.contains_key(key) {
        return None;
    }
    let known = match key {
        StateKey::Payment(key) => rows.payment(key).map(|state| &*state.history.event_ids),
        StateKey::Entity(key) => rows.entities.get(key).map(|(entity, _)| entity.event_ids()),
        StateKey::Invoice(_) => return None,
    };
    Some(known.unwrap_or_default().iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_share_and_every_part_comes_in_time() {
        for percent in 1..=100 {
            let mut seen = BTreeSet::new();
            for day in 0..i64::from(100_u32.div_ceil(percent)) {
                let at = Timestamp::from_unix_s(20_613 * DAY_S + day * DAY_S + 60).unwrap();
                let parts: Vec<u32> = ScanSegment::parts_of_sample(percent, at)
                    .map(|part| part.number)
                    .collect();
                assert_eq!(parts.len(), usize::try_from(percent).unwrap());
                seen.extend(parts);
            }
            assert_eq!(seen.len(), 100, "{percent}");
        }
    }
}
