//! The stored form of an entity's state, its row in the table `entities`: the facts, what billhook derived from them
//! last, and what it did when. Only billhook writes that row.
//!
//! The columns that billhook derived and those that the application's row has now differ if a person edited them; that
//! is how `entity::edits` finds manual edits. The layout of all rows is in `docs/data-model.md`; each kind
//! (`entity::order` …) reads and writes its own columns.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::entity::columns::ColumnOwner::Billhook;
use crate::entity::columns::ColumnType::{Bytes, Integer, List, Map, Text, TextSet};
use crate::entity::columns::{EntityColumn, describe_column as column};
use crate::entity::manual::FoundEdit;
use crate::entity::opening::OpeningState;
use crate::entity::payment::derive::DerivedPayment;
use crate::ids::{CheckoutSessionId, EventId, PaymentIntentId, TenantId, UserId};
use crate::money::Money;
use crate::time::Timestamp;

/// The schema version: the number of the stored format. Add one whenever the format changes; `tests/forms.rs` has the
/// format of each version.
///
/// Reason: during a deployment old and new functions write the same rows. An old function would read the row, not know
/// the new fact and drop it when it writes the row back. With a greater version in the row, the event waits
/// for the newer release instead (`newer_schema`).
pub const STATE_SCHEMA: i64 = 1;

/// The key of the table `entities`.
pub const STATE_KEY: &str = "entity";

/// The attributes of a state's row, for `docs/data-model.md`.
#[rustfmt::skip]
pub const STATE_COLUMNS: &[EntityColumn] = &[
    column(STATE_KEY, Text, Billhook, "the kind and the id: `order#ord_1`, `payment#acct_1#pi_1`, `invoice#platform#in_1`"),
    column("schema", Integer, Billhook, "the version of the stored format; events of a row with a greater one are parked as `newer_schema`"),
    column("version", Integer, Billhook, "each of our writes adds 1; the condition of every write"),
    column("facts", Map, Billhook, "what the events, people and the cleanup stated, merged"),
    column("pages", TextSet, Billhook, "the rows `page#<page>#<entity>` that have the facts instead, once they pass 48 KiB"),
    column("derived", Map, Billhook, "the columns of the application's row as last derived, and the review reasons"),
    column("written", Map, Billhook, "the newest 16 writes of the application's row: version and guarded columns"),
    column("facts_version", Integer, Billhook, "payments: the version of the last write that changed a fact; copies have the same number"),
    column("alias_of", Text, Billhook, "payments: this row is another name of that payment"),
    column("copied", Map, Billhook, "payments: the version of the copy that each linked order or statement has"),
    column("open_since", Text, Billhook, "payments: since when no order or statement is linked to it, or a copy is outdated"),
    column("open", Text, Billhook, "key of `OpenIndex`: payments: `outdated#<shard>`, else `unlinked#<shard>`, else `deadline#<shard>` while it is open; others: `missing#<shard>` without the application's row, `foreign#<shard>` if a column of ours has a value that is none of ours, `recent#<shard>` after a write to which no event leads the sweep"),
    column("open_at", Text, Billhook, "sort key of `OpenIndex`: payments: when the sweep has the worker recheck it next, for a deadline or sooner; others: since when, or of that write"),
    column("version_column", Text, Billhook, "the column that has the version of the last write of the application's row, if it is not `version`"),
    column("tenant_id", Text, Billhook, "the tenant that the application's row belonged to at the last write"),
    column("row_created_at", Text, Billhook, "`createdAt` of the application's row, if it has one"),
    column("row_due", Map, Billhook, "the amount due, as the row said last"),
    column("row_user", Text, Billhook, "orders: `userId`, as the row said last"),
    column("first_event_at", Text, Billhook, "the earliest provider's time of an event that was merged"),
    column("last_event_at", Text, Billhook, "the latest"),
    column("event_ids", List, Billhook, "the newest 200 events that were merged, in the order of their processing"),
    column(SEAL, Bytes, Billhook, "proof that billhook wrote these attributes and the facts of all pages (HMAC); without a genuine one, events of the row are parked as `tampered`"),
];

/// The attribute of a state's row with its seal.
pub const SEAL: &str = "seal";
/// The reason of a state that is in `OpenIndex` so that the sweep comes to its row.
pub const RECENT: &str = "recent";
/// What is open is spread over this many values of the index's key for each reason.
const OPEN_SHARDS: u8 = 4;
/// Writes of the application's row that the state remembers.
const WRITTEN_MAX: usize = 16;
/// Events that the state remembers.
pub(crate) const EVENT_IDS_MAX: usize = 200;

/// The value of `open` for an entity or payment that is open for this reason.
pub(super) fn open_index_key(reason: &str, key: &str) -> String {
    let shard = key.bytes().fold(0_u8, u8::wrapping_add) % OPEN_SHARDS;
    format!("{reason}#{shard}")
}

/// All values of `open` for this reason.
pub fn index_keys_of(reason: &str) -> impl Iterator<Item = String> {
    (0..OPEN_SHARDS).map(move |shard| format!("{reason}#{shard}"))
}

/// The columns that billhook owns and a person may edit. They are part of the write's condition (optimistic lock), and
/// the state has them as billhook last derived them: a difference between the two is a manual edit.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GuardedColumns {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requires_review: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mail_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs_attention: Option<bool>,
}

impl GuardedColumns {
    pub(super) fn of_payment(payment: &DerivedPayment) -> Self {
        Self {
            payment_status: Some(payment.payment_status.as_str().to_owned()),
            requires_review: Some(!payment.review_reasons.is_empty()),
            ..Self::default()
        }
    }

    /// The columns in which an edit can be overwritten; an edit of `requiresReview` always stands.
    pub(super) fn by_name(&self) -> [(&'static str, Option<String>); 4] {
        let truth = |truth: Option<bool>| truth.map(|truth| truth.to_string());
        [
            ("status", self.status.clone()),
            ("paymentStatus", self.payment_status.clone()),
            ("mailStatus", self.mail_status.clone()),
            ("needsAttention", truth(self.needs_attention)),
        ]
    }

    /// The columns that have another value than billhook wrote. A column that was removed, or that billhook did not
    /// write, is no edit of ours.
    pub(super) fn edits_since(&self, written: &Self) -> BTreeSet<FoundEdit> {
        let flag = |columns: &Self| {
            (
                "requiresReview",
                columns.requires_review.map(|truth| truth.to_string()),
            )
        };
        let found = self.by_name().into_iter().chain([flag(self)]);
        let written = written.by_name().into_iter().chain([flag(written)]);
        let both = found.zip(written);
        let is_edited = |found: &Option<String>, written: &Option<String>| {
            found.is_some() && written.is_some() && found != written
        };
        both.filter(|((_, found), (_, written))| is_edited(found, written))
            .map(|((column, found), (_, written))| FoundEdit {
                column: column.to_owned(),
                found: found.unwrap_or_default(),
                written: written.unwrap_or_default(),
            })
            .collect()
    }

    /// With the values that are found in columns which these do not write.
    #[must_use]
    pub fn or_found(self, found: &Self) -> Self {
        Self {
            status: self.status.or_else(|| found.status.clone()),
            payment_status: self.payment_status.or_else(|| found.payment_status.clone()),
            requires_review: self.requires_review.or(found.requires_review),
            mail_status: self.mail_status.or_else(|| found.mail_status.clone()),
            needs_attention: self.needs_attention.or(found.needs_attention),
        }
    }

    /// Columns that billhook has not written yet are compared with what an adopted row said at first.
    pub(super) fn or_opening(mut self, opening: Option<&OpeningState>) -> Self {
        if let Some(opening) = opening {
            let flagged = (!opening.review_reasons.is_empty()).then_some(true);
            self.status = self.status.or_else(|| opening.status.clone());
            let payment_status = self.payment_status;
            self.payment_status = payment_status.or_else(|| opening.payment_status.clone());
            self.requires_review = self.requires_review.or(flagged);
            let mail_status = self.mail_status;
            self.mail_status = mail_status.or_else(|| opening.mail_status.clone());
        }
        self
    }

    /// Whether none of the columns that billhook wrote was removed, but for the review flag.
    pub(super) fn has_all_of(&self, written: &Self) -> bool {
        let mut both = self.by_name().into_iter().zip(written.by_name());
        both.all(|((_, found), (_, written))| found.is_some() || written.is_none())
    }

    /// Takes over a column by its name in the row, if it would be written.
    pub(super) fn keep(&mut self, column: &str, found: &Self) {
        fn take<T: Clone>(mine: &mut Option<T>, found: &Option<T>) {
            if mine.is_some() {
                mine.clone_from(found);
            }
        }
        match column {
            "status" => take(&mut self.status, &found.status),
            "paymentStatus" | "payment_status" => {
                take(&mut self.payment_status, &found.payment_status);
            }
            "requiresReview" | "requires_review" => {
                take(&mut self.requires_review, &found.requires_review);
            }
            "mail_status" => take(&mut self.mail_status, &found.mail_status),
            "needs_attention" => take(&mut self.needs_attention, &found.needs_attention),
            _ => {}
        }
    }

    /// What a row is compared with that was not written by billhook's last write: only the columns that billhook has not
    /// written are compared, and those with nothing.
    pub(super) fn baseline_of_unwritten(found: &Self, written: &Self) -> Self {
        fn base<T: Clone>(found: &Option<T>, written: &Option<T>) -> Option<T> {
            written.as_ref().and(found.clone())
        }
        Self {
            status: base(&found.status, &written.status),
            payment_status: base(&found.payment_status, &written.payment_status),
            requires_review: base(&found.requires_review, &written.requires_review),
            mail_status: base(&found.mail_status, &written.mail_status),
            needs_attention: base(&found.needs_attention, &written.needs_attention),
        }
    }
}

/// What billhook derived at its last write, stored in the state beside the facts.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LastDerived {
    #[serde(flatten)]
    pub columns: GuardedColumns,
    /// The review reasons at that time: the ones that a person who clears the flag has seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub review_reasons: Vec<String>,
    /// The PaymentIntent that billhook wrote into the column. Another value there is the application's and stays; the
    /// same goes for `session` and `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<PaymentIntentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<CheckoutSessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// Columns that have our last value and follow from nothing any more: they are removed. Only of a write.
    #[serde(skip)]
    pub removed: Vec<&'static str>,
}

/// Why billhook's columns of a row are not what the state says, until a person acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowTrouble {
    /// The application deleted the row.
    Missing,
    /// A column of ours has a value that is none of ours.
    Foreign,
}

impl RowTrouble {
    pub const ALL: [Self; 2] = [Self::Missing, Self::Foreign];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Foreign => "foreign",
        }
    }

    /// The trouble of a state that is open under this value.
    fn of_index_key(open: &str) -> Option<Self> {
        let (word, _) = open.split_once('#')?;
        Self::ALL
            .into_iter()
            .find(|trouble| trouble.as_str() == word)
    }
}

/// What a state knows of the application's row, to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RowIdentity {
    pub created_at: Option<String>,
    pub due: Option<Money>,
    pub user: Option<String>,
}

/// What the state remembers beside facts: the writes of the application's row, and the events.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StateHistory {
    /// The tenant of the application's row at the last write.
    pub tenant: Option<TenantId>,
    /// The newest writes of the application's row: its version, and the guarded columns as billhook wrote them.
    pub written: BTreeMap<i64, GuardedColumns>,
    /// The column into which that version was written, if it is not `version`.
    pub version_column: Option<String>,
    pub row: RowIdentity,
    /// What is wrong with the row, and since when.
    pub trouble: Option<(RowTrouble, Timestamp)>,
    /// When the row was last written without an event whose arrival leads the sweep to it.
    pub recent: Option<Timestamp>,
    pub first_event_at: Option<Timestamp>,
    pub last_event_at: Option<Timestamp>,
    pub event_ids: Vec<EventId>,
}

impl StateHistory {
    /// Notes what is wrong with the row now; the time is that of the first such write.
    pub(super) fn note_trouble(&mut self, found: Option<RowTrouble>, now: Timestamp) {
        let known = self.trouble.filter(|(known, _)| Some(*known) == found);
        self.trouble = known.or(found.map(|found| (found, now)));
    }

    /// Reads `open` and `open_at`.
    pub(super) fn read_open(&mut self, open: Option<&str>, open_at: Option<Timestamp>) {
        let (Some(open), Some(at)) = (open, open_at) else {
            return;
        };
        match RowTrouble::of_index_key(open) {
            Some(trouble) => self.trouble = Some((trouble, at)),
            None => self.recent = Some(at),
        }
    }

    /// The reason and the time under which the state is in `OpenIndex`. Trouble first: it has to be listed.
    pub(super) fn open(&self) -> Option<(&'static str, Timestamp)> {
        let trouble = self
            .trouble
            .map(|(trouble, since)| (trouble.as_str(), since));
        trouble.or(self.recent.map(|at| (RECENT, at)))
    }

    /// Remembers events that are merged. An event that is merged again moves to the end.
    pub fn record_events<'a>(
        &mut self,
        events: impl IntoIterator<Item = (&'a EventId, Option<Timestamp>)>,
    ) {
        for (id, at) in events {
            self.event_ids.retain(|known| known != id);
            self.event_ids.push(id.clone());
            self.first_event_at = self.first_event_at.into_iter().chain(at).min();
            self.last_event_at = self.last_event_at.into_iter().chain(at).max();
        }
        let over = self.event_ids.len().saturating_sub(EVENT_IDS_MAX);
        self.event_ids.drain(..over);
    }

    /// Remembers a write of the application's row.
    pub fn record_write(&mut self, version: i64, columns: GuardedColumns) {
        self.written.insert(version, columns);
        while self.written.len() > WRITTEN_MAX {
            self.written.pop_first();
        }
    }
}

/// A state's row as it is stored; `F` are the facts of its kind, owned or borrowed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct StateRow<F> {
    pub schema: i64,
    pub version: i64,
    pub facts: F,
    #[serde(default)]
    pub derived: LastDerived,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub written: BTreeMap<i64, GuardedColumns>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_column: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_created_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_due: Option<Money>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_user: Option<String>,
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

/// A state's row as an adapter loaded it.
pub trait StoredState {
    /// `Err` if a newer release wrote it, or if it cannot be read.
    fn read<R: DeserializeOwned>(&self) -> Result<R, UnreadableRow>;
}

/// For a row that has no state yet, and for tests.
impl StoredState for serde_json::Value {
    fn read<R: DeserializeOwned>(&self) -> Result<R, UnreadableRow> {
        check_schema(self.get("schema").and_then(Self::as_i64))?;
        R::deserialize(self).map_err(|error| UnreadableRow::Broken(error.to_string()))
    }
}

/// Refuses a newer schema version.
pub fn check_schema(number: Option<i64>) -> Result<(), UnreadableRow> {
    match number {
        Some(number) if number > STATE_SCHEMA => Err(UnreadableRow::NewerSchema(number)),
        _ => Ok(()),
    }
}

/// Why a row cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableRow {
    /// A newer release wrote it. This one does not know all of its members, so it must not write it.
    #[error("its state has schema version {0}; this release reads up to {STATE_SCHEMA}")]
    NewerSchema(i64),
    #[error("{0}")]
    Broken(String),
    /// Somebody else wrote or changed it.
    #[error("its state has no genuine seal: somebody else than billhook wrote it")]
    Tampered,
}
