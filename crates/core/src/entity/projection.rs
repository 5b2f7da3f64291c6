//! The application's row as a projection of the state: what became of it since billhook wrote it last.
//!
//! Only billhook writes `version`, and a copy of the row carries the version at which it was copied. So a row is compared
//! with what billhook wrote **at the version that it bears**: a difference there is an edit, and an older version is a
//! stale copy that somebody put back, as an ORM does that saves whole objects.

use std::collections::{BTreeMap, BTreeSet};

use crate::entity::columns::{ColumnOwner, ColumnType, EntitySchema, RowColumns, TimelineFields};
use crate::entity::manual::{FLAGGED_BY_HAND, FoundEdit, PaymentRecord};
use crate::entity::opening::OpeningState;
use crate::entity::rules::RowRules;
use crate::entity::schema::{GuardedColumns, RowIdentity, StateHistory};
use crate::entity::timeline::ACTOR;
use crate::time::Timestamp;

/// What was loaded of the application's row, beside the columns that its kind reads.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoadedRow {
    /// The version of the write that the row is a copy of; `None` if it bears none.
    pub version: Option<i64>,
    /// By which it was read; they name the column of the version.
    pub rules: RowRules,
    pub created_at: Option<String>,
    /// The application deleted it.
    pub is_missing: bool,
    /// Columns of ours with a value that is none of ours: another type, or a word that we do not know. They are never
    /// written over, because somebody uses the column for something else.
    pub foreign: BTreeSet<&'static str>,
    /// It has no entry of billhook's in its timeline.
    pub is_without_entries: bool,
    /// It lacks the columns of amounts that billhook writes with the payment's status.
    pub is_without_amounts: bool,
    /// What it says, if billhook has never written it and the application made it before billhook was given the table.
    pub opening: Option<OpeningState>,
    /// Payments that others recorded in the timeline, by the entry's time.
    pub recorded: BTreeMap<String, PaymentRecord>,
}

impl LoadedRow {
    /// When the application made it, if it says so in a form that can be read.
    pub fn made_at(&self) -> Option<Timestamp> {
        self.created_at.as_deref().and_then(parse_created_at)
    }
}

/// How the application's row stands to what billhook wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowStanding {
    /// billhook has not written it yet. What differs from the initial values is an edit.
    New,
    /// billhook's last write, with edits or without.
    Current,
    /// An older copy was put back, or billhook's columns were removed: it is restored. Edits that were made in an older
    /// copy are no facts, because nobody can say whether the person knew what came since.
    Stale {
        edits: BTreeSet<FoundEdit>,
    },
    /// The row bears a version that the state has never had: the table of the states was restored from a backup.
    Ahead,
    /// Another row under the same key: the application deleted the one that the state knows, and made a new one.
    Replaced,
    Missing,
}

/// What an operator should know of an application's row that was written, or could not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowFinding {
    /// An older copy was put back, or billhook's columns were removed.
    Restored { found_version: Option<i64> },
    /// A column of ours has a value that is none of ours, and stays.
    ColumnForeign { column: &'static str },
    /// There is no row to write.
    ProjectionMissing,
}

impl LoadedRow {
    pub(super) fn missing(rules: &RowRules) -> Self {
        Self {
            is_missing: true,
            rules: *rules,
            ..Self::default()
        }
    }

    pub(super) fn read(
        schema: &EntitySchema,
        rules: &RowRules,
        row: &impl RowColumns,
        is_ours: impl Fn(&str, &str) -> bool,
    ) -> Self {
        let version_column = rules.version_column;
        let columns = schema.columns.iter();
        let ours = columns.filter(|column| column.owner != ColumnOwner::Application);
        let foreign = ours.filter(|column| {
            let is_text = column.kind == ColumnType::Text;
            match row.column_type(version_column.name_of(column.name)) {
                None => false,
                // ORMs write a set back as a list.
                Some(ColumnType::List) if column.kind == ColumnType::TextSet => false,
                Some(found) if found != column.kind => true,
                Some(_) if !is_text => false,
                // Some ORMs write an empty text for what they do not know.
                Some(_) => row
                    .text(column.name)
                    .is_some_and(|word| !word.is_empty() && !is_ours(column.name, word)),
            }
        });
        Self {
            // An application may create its rows with a version of 0.
            version: row
                .integer(version_column.as_str())
                .filter(|version| *version > 0),
            rules: *rules,
            created_at: schema
                .created_at
                .and_then(|column| read_created_at(row, column)),
            is_missing: false,
            foreign: foreign
                .map(|column| version_column.name_of(column.name))
                .collect(),
            is_without_entries: !row.has_own_entries(),
            is_without_amounts: ["amountRefunded", "amount_refunded"]
                .iter()
                .all(|column| row.column_type(column).is_none()),
            opening: None,
            recorded: row
                .timeline_entries("payment_recorded")
                .into_iter()
                .filter_map(read_payment_record)
                .collect(),
        }
    }

    /// Whether the last write had its version in another column.
    pub(super) fn is_renamed(&self, history: &StateHistory) -> bool {
        !history.written.is_empty()
            && history.version_column != self.rules.version_column.stored_name()
    }

    pub(super) fn standing(
        &self,
        columns: &GuardedColumns,
        identity: &RowIdentity,
        history: &StateHistory,
    ) -> RowStanding {
        if self.is_missing {
            return RowStanding::Missing;
        }
        let Some((last, _)) = history.written.last_key_value() else {
            // An application may use a column `version` of its own; only a row with an entry of ours was ever ours.
            return match (self.version, self.is_without_entries) {
                (Some(_), false) => RowStanding::Ahead,
                _ => RowStanding::New,
            };
        };
        if is_made_later(identity, &history.row) {
            return RowStanding::Replaced;
        }
        // Where the application uses the column for something else, or the column was another one at the last write, no
        // copy can be told from the last write.
        let is_renamed = self.is_renamed(history);
        if is_renamed || self.foreign.contains(self.rules.version_column.as_str()) {
            return RowStanding::Current;
        }
        match self.version {
            Some(version) if version == *last => RowStanding::Current,
            Some(version) if version > *last => RowStanding::Ahead,
            None if is_another(identity, &history.row) => RowStanding::Replaced,
            version => {
                let written = version.and_then(|version| history.written.get(&version));
                // A word that is none of ours is nobody's decision.
                let mut columns = columns.clone();
                for column in &self.foreign {
                    columns.keep(column, &GuardedColumns::default());
                }
                let edits = written.map(|written| columns.edits_since(written));
                RowStanding::Stale {
                    edits: edits.unwrap_or_default(),
                }
            }
        }
    }
}

/// A payment that another actor recorded. An entry without a valid time is none: it could not be known again.
fn read_payment_record(entry: TimelineFields) -> Option<(String, PaymentRecord)> {
    let actor = entry.actor.filter(|actor| actor != ACTOR)?;
    let at = Timestamp::parse(&entry.at?).ok()?;
    let record = PaymentRecord {
        at,
        by: entry.actor_id.unwrap_or(actor),
        reason: entry.reason.unwrap_or_default(),
        is_entry: true,
    };
    Some((at.to_string(), record))
}

/// The opening state of a row that billhook has never written: `None` if the application made it after billhook was given
/// the table, or does not say when it made it.
pub(super) fn read_opening_state(
    schema: &EntitySchema,
    rules: &RowRules,
    row: &impl RowColumns,
    columns: &GuardedColumns,
) -> Option<OpeningState> {
    let adopted_before = rules.adopted_before?;
    let created_at = parse_created_at(&read_created_at(row, schema.created_at?)?)?;
    if !rules.adopts(created_at) {
        return None;
    }
    let amount_refunded = schema
        .amount_refunded
        .and_then(|column| row.integer(column));
    let mut review_reasons = BTreeSet::new();
    if columns.requires_review == Some(true) {
        if let Some(column) = schema.review_reasons {
            review_reasons = row.texts(column);
        }
        // A flag without a reason needs one, to be kept and to be cleared.
        if review_reasons.is_empty() {
            review_reasons.insert(format!("{FLAGGED_BY_HAND}:{created_at}"));
        }
    }
    Some(OpeningState {
        adopted_before,
        status: columns.status.clone(),
        payment_status: columns.payment_status.clone(),
        amount_refunded: amount_refunded.filter(|amount| *amount > 0),
        review_reasons,
        mail_status: columns.mail_status.clone(),
        intent: None,
        piece: None,
    })
}

/// Whatever form the application gives it: text, or a number.
pub(super) fn read_created_at(row: &impl RowColumns, column: &str) -> Option<String> {
    let text = row.text(column).map(str::to_owned);
    text.or_else(|| row.number(column))
}

/// The digits of a time in seconds and in milliseconds, from September 2001 to 2286. Other numbers are no Unix time: as
/// one, 20261205 (a day) or 2026 (a year) would be in 1970, and every order of the future would be adopted.
const SECONDS_DIGITS: usize = 10;
const MILLISECONDS_DIGITS: usize = 13;

/// The time in `createdAt`, whatever form it has. A date is its first moment, and without an offset a time is in UTC.
pub(super) fn parse_created_at(text: &str) -> Option<Timestamp> {
    if text.starts_with(|first: char| first.is_ascii_digit()) && text.parse::<f64>().is_ok() {
        return parse_unix_time(text);
    }
    let forms = [text.to_owned(), format!("{text}Z")];
    let mut forms = forms.iter().map(|form| Timestamp::parse(form));
    forms.find_map(Result::ok).or_else(|| parse_day(text))
}

fn parse_day(text: &str) -> Option<Timestamp> {
    Timestamp::parse(&format!("{text}T00:00:00Z")).ok()
}

/// Seconds or milliseconds, with a fraction or without: databases and Python write `1700000000.123`.
fn parse_unix_time(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let number: i64 = whole.parse().ok().filter(|number| *number > 0)?;
    match whole.len() {
        SECONDS_DIGITS => {
            let millis: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
            Timestamp::from_unix_ms(number * 1000 + millis).ok()
        }
        MILLISECONDS_DIGITS => Timestamp::from_unix_ms(number).ok(),
        _ => None,
    }
}

fn created_at_of(row: &RowIdentity) -> Option<Timestamp> {
    row.created_at.as_deref().and_then(parse_created_at)
}

/// Whether the row was made later than the one that is known, so that it is another one. A row that said only the day may
/// have been made at any time of it: a migration that writes `2026-06-08T10:00:00Z` for `2026-06-08` makes no other row.
fn is_made_later(found: &RowIdentity, known: &RowIdentity) -> bool {
    if found.created_at == known.created_at {
        return false;
    }
    let (Some(found), Some(at)) = (created_at_of(found), created_at_of(known)) else {
        return false;
    };
    let day = known.created_at.as_deref().and_then(parse_day);
    match day == Some(at) {
        true => found.day() > at.day(),
        false => found > at,
    }
}

/// Of a row that does not say when it was made: whether its amount or user says that it is another one.
fn is_another(found: &RowIdentity, known: &RowIdentity) -> bool {
    if created_at_of(found).is_some() && created_at_of(known).is_some() {
        return false;
    }
    let is_other_due = found.due.is_some() && known.due.is_some() && found.due != known.due;
    let is_other_user = found.user.is_some() && known.user.is_some() && found.user != known.user;
    is_other_due || is_other_user
}

/// What is known of the row after it was found like this.
pub(super) fn know_row(found: RowIdentity, known: &RowIdentity) -> RowIdentity {
    RowIdentity {
        created_at: found.created_at.or_else(|| known.created_at.clone()),
        due: found.due.or(known.due),
        user: found.user.or_else(|| known.user.clone()),
    }
}
