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
use crate::entity::payment::deadlines::{PaymentDeadline, list_deadlines};
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::payment::linked::{LinkState, PaymentCopy, RelinkDecision};
use crate::entity::schema::{
    STATE_SCHEMA, StateHistory, StoredState, UnreadableRow, index_keys_of, open_index_key,
};
use crate::ids::{AccountId, EventId, InvoiceId, OrderId, PaymentRef, StatementId};
use crate::time::Timestamp;

/// The first recheck of a payment without a link, or with an outdated copy; the next ones follow at twice the age.
pub const FIRST_RECHECK_AFTER: Duration = Duration::from_mins(10);
/// One that has been without a link, or outdated, for longer is not rechecked any more, but for a deadline. If its money
/// is unclaimed, it is rechecked again after as long.
const RECHECKS_MAX: Duration = Duration::from_hours(30 * 24);
/// A row may be written a few hours after the payment; money to which nothing is linked for longer is reported.
pub const UNCLAIMED_AFTER: Duration = Duration::from_hours(24);

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
    /// The orders and statements that the metadata of its events names, whether or not they exist.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub named: BTreeSet<EntityKey>,
    /// The connected accounts that get the money of a platform's payment, or for which it is charged.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub recipients: BTreeSet<AccountId>,
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
    named,
    recipients,
    links,
    relink
});

/// The order and the statement that would have the `client_reference_id` of the payment's session as their key.
pub fn referenced_entities(money: &MoneyFacts) -> Vec<EntityKey> {
    let reference = money.users.reference.as_ref();
    let Some(MinRegister(reference)) = reference else {
        return Vec::new();
    };
    let order = OrderId::parse(reference.as_str()).map(EntityKey::Order);
    let statement = StatementId::parse(reference.as_str()).map(EntityKey::Statement);
    order.into_iter().chain(statement).collect()
}

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
    /// The session's `client_reference_id` is the row's key: Payment Links have no other way to name it.
    Reference,
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
    /// The orders and statements that a source names although they are of another tenant than the recipient of the money,
    /// by the rows of the last write.
    pub denied: BTreeSet<EntityKey>,
    /// The version of the copy that each linked order or statement has.
    pub copied: BTreeMap<EntityKey, i64>,
    /// Since when no order or statement is linked to it, or a copy is outdated; not because of a deadline.
    pub open_since: Option<Timestamp>,
    /// Its place in the index of open payments, as it was read or as it is written.
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
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub denied: BTreeSet<EntityKey>,
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

/// Why a payment has to be rechecked; the first that applies is in the index's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenReason {
    /// A copy could not be updated.
    OutdatedCopy,
    /// No order or statement is linked to it.
    Unlinked,
    /// The same, for a day, and it has money that should be an order's or a statement's.
    Unclaimed,
    /// Somebody has to act by a time that is coming.
    Deadline,
}

/// What becomes of the notices about a payment when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeReport {
    /// The writer reports them, so the payment is rechecked for the later ones only.
    ByWriter,
    /// The writer is a command, which counts no metric: they stay in the index, and the worker reports them with the next
    /// recheck.
    ByNextRecheck,
}

impl OpenReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OutdatedCopy => "outdated",
            Self::Unlinked => "unlinked",
            Self::Unclaimed => UNCLAIMED,
            Self::Deadline => "deadline",
        }
    }
}

const UNCLAIMED: &str = "unclaimed";

/// A place in the index of open payments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenEntry {
    /// One of [`open_index_keys`].
    pub index_key: String,
    pub due: Timestamp,
}

/// All values of the index's key under which payments are open.
pub fn open_index_keys() -> impl Iterator<Item = String> {
    let reasons = [
        OpenReason::OutdatedCopy,
        OpenReason::Unlinked,
        OpenReason::Unclaimed,
        OpenReason::Deadline,
    ];
    let reasons = reasons.into_iter();
    reasons.flat_map(|reason| index_keys_of(reason.as_str()))
}

/// The values of the index's key under which payments are unclaimed.
pub fn unclaimed_index_keys() -> impl Iterator<Item = String> {
    index_keys_of(UNCLAIMED)
}

impl PaymentState {
    pub fn new(key: PaymentKey) -> Self {
        Self {
            key,
            version: 0,
            facts_version: 0,
            alias_of: None,
            facts: PaymentFacts::default(),
            denied: BTreeSet::new(),
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
            denied: row.denied,
            copied: row.copied,
            open_since: row.open_since,
            open: row
                .open
                .zip(row.open_at)
                .map(|(index_key, due)| OpenEntry { index_key, due }),
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
            denied: self.denied.clone(),
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
    /// with the best source is linked, and of several equally good ones none is. One of another tenant than the recipient of
    /// the money is not linked.
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
            states.extend(relink.entity.clone().map(|key| (key, LinkState::Linked)));
            return states;
        }
        // Metadata beats a reference even while there is no row of its name.
        let counts =
            |source: &&LinkSource| **source != LinkSource::Reference || self.facts.named.is_empty();
        let best_source = |sources: &BTreeMap<LinkSource, MinRegister<Timestamp>>| {
            sources.keys().filter(counts).min().copied()
        };
        let allowed = || links.iter().filter(|(key, _)| !self.denied.contains(*key));
        let best = allowed()
            .filter_map(|(_, sources)| best_source(sources))
            .min();
        let best_links = || {
            let is_best = |source| best.is_some() && source == best;
            allowed().filter(move |(_, sources)| is_best(best_source(sources)))
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
        let mut money = self.facts.money.clone();
        let mut links = self.facts.links.values();
        if links.any(|sources| sources.contains_key(&LinkSource::Reference)) {
            // It is the key of a row, and no user.
            let payers = money.payments.values_mut();
            let users = payers.map(|payment| &mut payment.payer);
            for users in users.chain([&mut money.users]) {
                users.reference = None;
            }
        }
        PaymentCopy {
            version: self.facts_version,
            link,
            invoices: self.facts.invoices.clone(),
            relink: self.facts.relink.clone(),
            is_paid: self
                .facts
                .money
                .payments
                .values()
                .any(|payment| payment.succeeded.is_some()),
            facts: match link {
                LinkState::Elsewhere => MoneyFacts::default(),
                LinkState::Linked | LinkState::Conflict(_) => money,
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

    /// Why it is open whether or not there are deadlines.
    fn lasting_open_reason(&self) -> Option<OpenReason> {
        match self.outdated_copies().is_empty() {
            false => Some(OpenReason::OutdatedCopy),
            true => self.is_unlinked().then_some(OpenReason::Unlinked),
        }
    }

    /// Whether a person decided that it belongs to no order and no statement.
    pub fn is_nobodys(&self) -> bool {
        let relink = self.facts.relink.as_ref();
        relink.is_some_and(|relink| relink.0.entity.is_none())
    }

    /// The orders and statements that it is linked to: one, several if they are in conflict, or none.
    pub fn linked_entities(&self) -> BTreeSet<EntityKey> {
        let states = self.link_states().into_iter();
        let linked = states.filter(|(_, link)| *link != LinkState::Elsewhere);
        linked.map(|(entity, _)| entity).collect()
    }

    /// Whether a row that has it in its column, or that its session refers to, may still get it.
    pub fn may_be_claimed(&self) -> bool {
        let mut links = self.facts.links.iter();
        let has_better = links.any(|(key, sources)| {
            let is_better = sources.keys().any(|source| *source < LinkSource::Reference);
            is_better && !self.denied.contains(key)
        });
        self.alias_of.is_none() && self.facts.relink.is_none() && !has_better
    }

    fn is_unlinked(&self) -> bool {
        self.alias_of.is_none() && !self.is_nobodys() && self.linked_entities().is_empty()
    }

    /// Whether somebody has to find out whose its money is. Whoever has a connected account may sell elsewhere too, so that
    /// the money there is ours only if something named an order or statement.
    fn must_be_claimed(&self) -> bool {
        self.is_unlinked() && self.has_own_money(&self.facts)
    }

    fn has_own_money(&self, facts: &PaymentFacts) -> bool {
        let is_ours = self.key.account.is_none() || !facts.named.is_empty();
        is_ours && facts.money.has_money()
    }

    /// Since when its money is unclaimed, if that is for long enough to be reported.
    pub fn unclaimed_since(&self, now: Timestamp) -> Option<Timestamp> {
        let since = self.open_since.filter(|_| self.must_be_claimed())?;
        (since.after(UNCLAIMED_AFTER) <= now).then_some(since)
    }

    /// The deadlines that have to be reported now.
    pub fn near_deadlines(&self, now: Timestamp) -> impl Iterator<Item = PaymentDeadline> {
        let deadlines = list_deadlines(&self.facts.money).into_iter();
        deadlines.filter(move |deadline| deadline.is_near(now))
    }

    /// When it has to be rechecked for a deadline.
    fn next_report_at(&self, now: Timestamp, near: NoticeReport) -> Option<Timestamp> {
        let deadlines = list_deadlines(&self.facts.money).into_iter();
        let unreported = deadlines.filter(|deadline| match near {
            NoticeReport::ByWriter => now < deadline.report_at(),
            NoticeReport::ByNextRecheck => now < deadline.due,
        });
        unreported.map(|deadline| deadline.report_at()).min()
    }

    /// The state that follows this one, as it is written: `facts` and `alias_of` are what it knows now.
    #[must_use]
    pub fn next_state(
        &self,
        facts: PaymentFacts,
        alias_of: Option<PaymentKey>,
        denied: BTreeSet<EntityKey>,
    ) -> Self {
        let version = self.version.saturating_add(1);
        let is_changed = facts != self.facts || alias_of != self.alias_of || denied != self.denied;
        // The day in which a row may still be written begins now.
        let is_first_money = self.has_own_money(&facts) && !self.has_own_money(&self.facts);
        Self {
            key: self.key.clone(),
            version,
            facts_version: match is_changed {
                true => version,
                false => self.facts_version,
            },
            alias_of,
            facts,
            denied,
            copied: self.copied.clone(),
            open_since: self.open_since.filter(|_| !is_first_money),
            // `note_open` decides it for each write.
            open: None,
            history: self.history.clone(),
        }
    }

    /// Sets its place in the index of open payments; call it last, when all copies of this write are recorded. One without a
    /// link, or with an outdated copy, is rechecked 10, 20, 40 … minutes after it became so, for 30 days; any is
    /// rechecked when a deadline comes near, if that is earlier. Example: unlinked for 20 days, and a dispute is to be
    /// answered in 5: the backoff would come in 20 days, so the payment is rechecked in 2.
    ///
    /// Money without a link is reported after a day: by the recheck that comes then, and by each that follows, so that it
    /// stays in the index until somebody claims it.
    pub fn note_open(&mut self, now: Timestamp, near: NoticeReport) {
        let lasting = self.lasting_open_reason();
        self.open_since = lasting.and(self.open_since.or(Some(now)));
        let age = self
            .open_since
            .map_or(Duration::ZERO, |since| since.until(now));
        let next_retry = now.after(age.max(FIRST_RECHECK_AFTER));
        let unclaimed_from = self
            .open_since
            .filter(|_| self.must_be_claimed())
            .map(|since| since.after(UNCLAIMED_AFTER));
        let is_unclaimed = unclaimed_from.is_some_and(|from| from <= now);
        let retry_at = match unclaimed_from {
            Some(from) if !is_unclaimed => Some(next_retry.min(from)),
            Some(_) => Some(match near {
                NoticeReport::ByWriter => now.after(age.min(RECHECKS_MAX)),
                NoticeReport::ByNextRecheck => now,
            }),
            None => lasting.filter(|_| age < RECHECKS_MAX).map(|_| next_retry),
        };
        let report_at = self.next_report_at(now, near);
        let reason = match is_unclaimed {
            true => OpenReason::Unclaimed,
            false => lasting.unwrap_or(OpenReason::Deadline),
        };
        self.open = retry_at
            .into_iter()
            .chain(report_at)
            .min()
            .map(|due| OpenEntry {
                index_key: open_index_key(reason.as_str(), &self.key.to_string()),
                due,
            });
    }
}
