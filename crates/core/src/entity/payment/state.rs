//! A payment as an entity of its own: the facts about its money, and its links to orders and statements.
//!
//! Every event about a payment ends here, whether or not anything names an order: with a link that comes late, the order
//! gets all facts that are known by then. Linked orders and statements have copies ([`PaymentCopy`]), and the state knows
//! which version each copy has.
//!
//! A payment may first be known by its charge or session. Once its PaymentIntent is known, the row under that name is an
//! alias: it has no facts and names the payment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::entity::EntityKey;
use crate::entity::key::PaymentKey;
use crate::entity::merge::{MaxRegister, MinRegister, merge_fields};
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::payment::linked::{LinkState, PaymentCopy, RelinkDecision};
use crate::entity::schema::{
    STATE_SCHEMA, StateHistory, StoredState, UnreadableRow, index_keys_of, open_index_key,
};
use crate::ids::{EventId, InvoiceId, PaymentRef};
use crate::time::Timestamp;

/// The first recheck of a payment without a link, or with an outdated copy; the next ones follow at twice the age.
pub const FIRST_RECHECK_AFTER: Duration = Duration::from_mins(10);
/// A payment that has been open for longer is not rechecked any more.
const RECHECKS_MAX: Duration = Duration::from_hours(30 * 24);

/// All facts of a payment.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PaymentFacts {
    pub money: MoneyFacts,
    /// Its other names, the rows of which are aliases.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub names: BTreeSet<PaymentRef>,
    /// The invoices that it pays, or that its session made.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub invoices: BTreeSet<InvoiceId>,
    /// The orders and statements that it may belong to: what says so, and since when.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<EntityKey, BTreeMap<LinkSource, MinRegister<Timestamp>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relink: Option<MaxRegister<RelinkDecision>>,
}

merge_fields!(PaymentFacts {
    money,
    names,
    invoices,
    links,
    relink
});

/// What links a payment to an order or statement; the best source first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkSource {
    /// The metadata of the payment or of its session.
    Metadata,
    /// The order's session made the invoice that the payment pays.
    Invoice,
    /// The metadata of a charge, refund or dispute of the payment: shops also use this metadata for other purposes, so it
    /// counts less.
    Object,
    /// The row has the PaymentIntent in its column.
    Column,
}

/// A payment as the worker loaded it, or as it writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct PaymentState {
    pub key: PaymentKey,
    /// How often it was written; 0 if it has no row yet. The condition of its write.
    pub version: i64,
    /// The version of the last write that changed a fact; copies have the same number.
    pub facts_version: i64,
    /// This row is only another name of that payment.
    pub alias_of: Option<PaymentKey>,
    pub facts: PaymentFacts,
    /// The version of the copy that each linked order or statement has.
    pub copied: BTreeMap<EntityKey, i64>,
    /// Since when it is open: no order or statement is linked to it, or a copy is outdated.
    pub open_since: Option<Timestamp>,
    /// Its place in the index of open payments, as it is written.
    pub open: Option<OpenEntry>,
    pub history: StateHistory,
}

/// A payment's row as it is stored.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct PaymentRow {
    pub schema: i64,
    pub version: i64,
    pub facts_version: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias_of: Option<PaymentKey>,
    pub facts: PaymentFacts,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copied: BTreeMap<EntityKey, i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_event_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub event_ids: Vec<EventId>,
}

/// Why a payment has to be rechecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenReason {
    /// A copy could not be updated.
    OutdatedCopy,
    /// No order or statement is linked to it.
    Unlinked,
}

impl OpenReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OutdatedCopy => "outdated",
            Self::Unlinked => "unlinked",
        }
    }
}

/// A place in the index of open payments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenEntry {
    /// One of [`open_index_keys`].
    pub index_key: String,
    pub due: Timestamp,
}

/// All values of the index's key under which payments are open.
pub fn open_index_keys() -> impl Iterator<Item = String> {
    let reasons = [OpenReason::OutdatedCopy, OpenReason::Unlinked].into_iter();
    reasons.flat_map(|reason| index_keys_of(reason.as_str()))
}

impl PaymentState {
    pub fn new(key: PaymentKey) -> Self {
        Self {
            key,
            version: 0,
            facts_version: 0,
            alias_of: None,
            facts: PaymentFacts::default(),
            copied: BTreeMap::new(),
            open_since: None,
            open: None,
            history: StateHistory::default(),
        }
    }

    pub fn read(key: PaymentKey, row: &impl StoredState) -> Result<Self, UnreadableRow> {
        let row: PaymentRow = row.read()?;
        Ok(Self {
            key,
            version: row.version,
            facts_version: row.facts_version,
            alias_of: row.alias_of,
            facts: row.facts,
            copied: row.copied,
            open_since: row.open_since,
            // Decided anew with each write.
            open: None,
            history: StateHistory {
                first_event_at: row.first_event_at,
                last_event_at: row.last_event_at,
                event_ids: row.event_ids,
                ..StateHistory::default()
            },
        })
    }

    pub fn to_row(&self) -> PaymentRow {
        PaymentRow {
            schema: STATE_SCHEMA,
            version: self.version,
            facts_version: self.facts_version,
            alias_of: self.alias_of.clone(),
            facts: self.facts.clone(),
            copied: self.copied.clone(),
            open_since: self.open_since,
            open: self.open.as_ref().map(|open| open.index_key.clone()),
            open_at: self.open.as_ref().map(|open| open.due),
            first_event_at: self.history.first_event_at,
            last_event_at: self.history.last_event_at,
            event_ids: self.history.event_ids.clone(),
        }
    }

    /// How it is linked to each order and statement that a source names or that has a copy. A relink decides; else the one
    /// with the best source is linked, and of several equally good ones none is.
    pub fn link_states(&self) -> BTreeMap<EntityKey, LinkState> {
        let links = &self.facts.links;
        // One that was linked by an earlier relink has a copy and no source.
        let known = links.keys().chain(self.copied.keys());
        let mut states: BTreeMap<EntityKey, LinkState> = known
            .map(|key| (key.clone(), LinkState::Elsewhere))
            .collect();
        if self.alias_of.is_some() {
            return states;
        }
        if let Some(MaxRegister(relink)) = &self.facts.relink {
            states.insert(relink.entity.clone(), LinkState::Linked);
            return states;
        }
        let best_source =
            |sources: &BTreeMap<LinkSource, MinRegister<Timestamp>>| sources.keys().min().copied();
        let best = links.values().filter_map(best_source).min();
        let best_links = || {
            let all = links.iter();
            all.filter(|(_, sources)| best_source(sources) == best)
        };
        let conflict_since = best_links()
            .filter_map(|(_, sources)| sources.get(&best?))
            .max();
        let link = match (best_links().count(), conflict_since) {
            (2.., Some(since)) => LinkState::Conflict(since.0),
            _ => LinkState::Linked,
        };
        states.extend(best_links().map(|(key, _)| (key.clone(), link)));
        states
    }

    /// The copy for an order or statement.
    pub fn copy_for(&self, link: LinkState) -> PaymentCopy {
        let money = &self.facts.money;
        PaymentCopy {
            version: self.facts_version,
            link,
            invoices: self.facts.invoices.clone(),
            relink: self.facts.relink.clone(),
            is_paid: money
                .payments
                .values()
                .any(|payment| payment.succeeded.is_some()),
            facts: match link {
                LinkState::Elsewhere => MoneyFacts::default(),
                LinkState::Linked | LinkState::Conflict(_) => money.clone(),
            },
        }
    }

    /// One whose source is outranked needs no copy; but the order whose session made the invoice has to know that it is
    /// paid.
    fn needs_copy(&self, entity: &EntityKey, link: LinkState) -> bool {
        let sources = self.facts.links.get(entity);
        let by_invoice = sources.is_some_and(|sources| sources.contains_key(&LinkSource::Invoice));
        link != LinkState::Elsewhere || (by_invoice && self.alias_of.is_none())
    }

    /// The orders and statements that do not have the newest copy, or have one that they must lose.
    pub fn outdated_copies(&self) -> BTreeMap<EntityKey, LinkState> {
        let mut outdated = self.link_states();
        outdated.retain(|key, link| {
            let copied = self.copied.get(key);
            match self.needs_copy(key, *link) {
                true => copied.is_none_or(|copied| *copied < self.facts_version),
                false => copied.is_some(),
            }
        });
        outdated
    }

    /// Records that the copy of an order or statement is written with this state.
    pub fn record_copy(&mut self, entity: &EntityKey, link: LinkState) {
        match self.needs_copy(entity, link) {
            true => self.copied.insert(entity.clone(), self.facts_version),
            false => self.copied.remove(entity),
        };
    }

    fn open_reason(&self) -> Option<OpenReason> {
        if !self.outdated_copies().is_empty() {
            return Some(OpenReason::OutdatedCopy);
        }
        let is_linked = self
            .link_states()
            .values()
            .any(|link| *link != LinkState::Elsewhere);
        (self.alias_of.is_none() && !is_linked).then_some(OpenReason::Unlinked)
    }

    /// The state that follows this one, as it is written: `facts` and `alias_of` are what it knows now.
    #[must_use]
    pub fn next_state(&self, facts: PaymentFacts, alias_of: Option<PaymentKey>) -> Self {
        let version = self.version.saturating_add(1);
        let is_changed = facts != self.facts || alias_of != self.alias_of;
        Self {
            key: self.key.clone(),
            version,
            facts_version: match is_changed {
                true => version,
                false => self.facts_version,
            },
            alias_of,
            facts,
            copied: self.copied.clone(),
            open_since: self.open_since,
            open: None,
            history: self.history.clone(),
        }
    }

    /// Sets its place in the index of open payments; call it last, when all copies of this write are recorded. It is
    /// rechecked 10, 20, 40 … minutes after it became open, for 30 days.
    pub fn note_open(&mut self, now: Timestamp) {
        let reason = self.open_reason();
        self.open_since = reason.and(self.open_since.or(Some(now)));
        let age = self
            .open_since
            .map_or(Duration::ZERO, |since| since.until(now));
        self.open = reason
            .filter(|_| age < RECHECKS_MAX)
            .map(|reason| OpenEntry {
                index_key: open_index_key(reason.as_str(), &self.key.to_string()),
                due: now.after(age.max(FIRST_RECHECK_AFTER)),
            });
    }
}
