//! A payment as an entity of its own: the facts about its money, and what bears it.
//!
//! Every event about a payment ends here, whether or not anything names an order: an edge that comes late brings what is
//! known by then. Orders and statements have copies ([`PaymentCopy`]), and the state knows which of them were told its
//! newest facts.
//!
//! A payment may first be known by its charge or session. Once its PaymentIntent is known, the row under that name is an
//! alias: it has no facts and names the payment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::entity::EntityKey;
use crate::entity::key::PaymentKey;
use crate::entity::merge::{MaxRegister, MinRegister, merge_fields};
use crate::entity::payment::bearer::{PaymentCopy, PaymentStanding};
use crate::entity::payment::facts::PaymentFacts;
use crate::entity::schema::{STATE_SCHEMA, StateHistory, StoredState, UnreadableRow};
use crate::ids::{EventId, InvoiceId, PaymentRef};
use crate::time::Timestamp;

/// The first look at a payment that nothing bears, or whose bearers are behind; each look doubles the age.
pub const FIRST_LOOK_AFTER: Duration = Duration::from_mins(10);
/// Older payments are not looked at any more.
const LOOKS_MAX: Duration = Duration::from_hours(30 * 24);
/// The open payments of a stack are spread over this many values of the index's key.
pub const OPEN_SHARDS: u8 = 4;

/// All facts of a payment.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PaymentStateFacts {
    pub money: PaymentFacts,
    /// Its other names, the rows of which are aliases.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub names: BTreeSet<PaymentRef>,
    /// The invoices that it pays, or that its session made.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub invoices: BTreeSet<InvoiceId>,
    /// The orders and statements that were named for it: how, and when first.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub bearers: BTreeMap<EntityKey, BTreeMap<NamedBy, MinRegister<Timestamp>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relink: Option<MaxRegister<RelinkDecision>>,
}

merge_fields!(PaymentStateFacts {
    money,
    names,
    invoices,
    bearers,
    relink
});

/// How an order or statement was named for a payment; the best way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedBy {
    /// The metadata of the payment or of its session.
    Metadata,
    /// The order's session made the invoice that the payment pays.
    Invoice,
    /// The metadata of a charge, refund or dispute of the payment: people write them for other purposes too.
    Object,
    /// The row has the PaymentIntent in its column.
    Index,
}

/// A person's decision about which order or statement bears a payment. The greatest number wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RelinkDecision {
    pub n: i64,
    pub to: EntityKey,
    /// The person's AWS identity.
    pub who: String,
    pub why: String,
}

/// A payment as the worker loaded it, or as it writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct PaymentState {
    pub key: PaymentKey,
    /// How often it was written; 0 if it has no row yet. The condition of its write.
    pub version: i64,
    /// The version of the last write that changed a fact: that of the copies.
    pub changed: i64,
    /// This row is only another name of that payment.
    pub alias_of: Option<PaymentKey>,
    pub facts: PaymentStateFacts,
    /// The version that each bearer was told last, if it has a copy that counts.
    pub told: BTreeMap<EntityKey, i64>,
    /// Since when it is open: nothing bears it, or a bearer is behind.
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
    pub changed: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias_of: Option<PaymentKey>,
    pub facts: PaymentStateFacts,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub told: BTreeMap<EntityKey, i64>,
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

/// Why somebody has to look at a payment again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenReason {
    /// A bearer could not be told the newest facts.
    Reflect,
    /// Nothing bears it.
    Unborne,
}

impl OpenReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reflect => "reflect",
            Self::Unborne => "unborne",
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

fn open_index_key(reason: OpenReason, shard: u8) -> String {
    format!("{}#{shard}", reason.as_str())
}

/// All values of the index's key.
pub fn open_index_keys() -> impl Iterator<Item = String> {
    let reasons = [OpenReason::Reflect, OpenReason::Unborne].into_iter();
    reasons.flat_map(|reason| (0..OPEN_SHARDS).map(move |shard| open_index_key(reason, shard)))
}

impl PaymentState {
    pub fn new(key: PaymentKey) -> Self {
        Self {
            key,
            version: 0,
            changed: 0,
            alias_of: None,
            facts: PaymentStateFacts::default(),
            told: BTreeMap::new(),
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
            changed: row.changed,
            alias_of: row.alias_of,
            facts: row.facts,
            told: row.told,
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

    pub fn stored(&self) -> PaymentRow {
        PaymentRow {
            schema: STATE_SCHEMA,
            version: self.version,
            changed: self.changed,
            alias_of: self.alias_of.clone(),
            facts: self.facts.clone(),
            told: self.told.clone(),
            open_since: self.open_since,
            open: self.open.as_ref().map(|open| open.index_key.clone()),
            open_at: self.open.as_ref().map(|open| open.due),
            first_event_at: self.history.first_event_at,
            last_event_at: self.history.last_event_at,
            event_ids: self.history.event_ids.clone(),
        }
    }

    /// How it stands to each order and statement that was named for it, or was told of it. A relink decides; else the one
    /// that was named best bears it, and of several that were named equally well none does.
    pub fn standings(&self) -> BTreeMap<EntityKey, PaymentStanding> {
        let bearers = &self.facts.bearers;
        // One that bore it by an earlier relink is in no way named for it.
        let known = bearers.keys().chain(self.told.keys());
        let mut standings: BTreeMap<EntityKey, PaymentStanding> = known
            .map(|key| (key.clone(), PaymentStanding::Other))
            .collect();
        if self.alias_of.is_some() {
            return standings;
        }
        if let Some(MaxRegister(relink)) = &self.facts.relink {
            standings.insert(relink.to.clone(), PaymentStanding::Borne);
            return standings;
        }
        let best_way =
            |ways: &BTreeMap<NamedBy, MinRegister<Timestamp>>| ways.keys().min().copied();
        let best = bearers.values().filter_map(best_way).min();
        let named_best = || {
            let named = bearers.iter();
            named.filter(|(_, ways)| best_way(ways) == best)
        };
        let last_named = named_best().filter_map(|(_, ways)| ways.get(&best?)).max();
        let standing = match (named_best().count(), last_named) {
            (2.., Some(since)) => PaymentStanding::Conflict(since.0),
            _ => PaymentStanding::Borne,
        };
        standings.extend(named_best().map(|(key, _)| (key.clone(), standing)));
        standings
    }

    /// The copy for a bearer.
    pub fn copy_for(&self, standing: PaymentStanding) -> PaymentCopy {
        let money = &self.facts.money;
        PaymentCopy {
            version: self.changed,
            standing,
            invoices: self.facts.invoices.clone(),
            is_paid: money
                .payments
                .values()
                .any(|payment| payment.succeeded.is_some()),
            facts: match standing {
                PaymentStanding::Other => PaymentFacts::default(),
                PaymentStanding::Borne | PaymentStanding::Conflict(_) => money.clone(),
            },
        }
    }

    /// One that was only named, and outranked, needs no copy; but the order whose session made the invoice has to know
    /// that it is paid.
    fn needs_copy(&self, bearer: &EntityKey, standing: PaymentStanding) -> bool {
        let ways = self.facts.bearers.get(bearer);
        let by_invoice = ways.is_some_and(|ways| ways.contains_key(&NamedBy::Invoice));
        standing != PaymentStanding::Other || (by_invoice && self.alias_of.is_none())
    }

    /// The bearers that do not have the newest copy.
    pub fn behind(&self) -> BTreeMap<EntityKey, PaymentStanding> {
        let mut behind = self.standings();
        behind.retain(|key, standing| {
            let told = self.told.get(key);
            match self.needs_copy(key, *standing) {
                true => told.is_none_or(|told| *told < self.changed),
                false => told.is_some(),
            }
        });
        behind
    }

    /// Notes that a bearer's copy is written with this state.
    pub fn note_told(&mut self, bearer: &EntityKey, standing: PaymentStanding) {
        match self.needs_copy(bearer, standing) {
            true => self.told.insert(bearer.clone(), self.changed),
            false => self.told.remove(bearer),
        };
    }

    fn open_reason(&self) -> Option<OpenReason> {
        if !self.behind().is_empty() {
            return Some(OpenReason::Reflect);
        }
        let is_borne = self
            .standings()
            .values()
            .any(|standing| *standing != PaymentStanding::Other);
        (self.alias_of.is_none() && !is_borne).then_some(OpenReason::Unborne)
    }

    /// The state that follows this one, as it is written: `facts` and `alias_of` are what it knows now.
    #[must_use]
    pub fn next(&self, facts: PaymentStateFacts, alias_of: Option<PaymentKey>) -> Self {
        let version = self.version.saturating_add(1);
        let is_changed = facts != self.facts || alias_of != self.alias_of;
        Self {
            key: self.key.clone(),
            version,
            changed: match is_changed {
                true => version,
                false => self.changed,
            },
            alias_of,
            facts,
            told: self.told.clone(),
            open_since: self.open_since,
            open: None,
            history: self.history.clone(),
        }
    }

    /// Sets its place in the index of open payments; call it last, when all bearers of this write are noted. It is looked
    /// at 10, 20, 40 … minutes after it became open, for 30 days.
    pub fn note_open(&mut self, now: Timestamp) {
        let reason = self.open_reason();
        self.open_since = reason.and(self.open_since.or(Some(now)));
        let age = self
            .open_since
            .map_or(Duration::ZERO, |since| since.until(now));
        let bytes = self.key.to_string().into_bytes();
        let shard = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) % OPEN_SHARDS;
        self.open = reason.filter(|_| age < LOOKS_MAX).map(|reason| OpenEntry {
            index_key: open_index_key(reason, shard),
            due: now.after(age.max(FIRST_LOOK_AFTER)),
        });
    }
}
