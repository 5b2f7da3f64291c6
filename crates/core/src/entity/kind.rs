//! What an entity kind is ([`EntityKind`]), and the one path by which facts change a row of any kind,
//! [`EntityState::apply_facts`]: find manual edits, merge facts, derive, project.
//!
//! `apply_facts` is pure and idempotent: applying the same facts again gives the same row, so that redelivery, replay
//! and a lost race are harmless. Everything that differs between kinds is in the kind: `order`, `statement`, `tenant`.

use std::fmt::{Debug, Display};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::entity::account::{AccountFacts, DerivedAccount};
use crate::entity::columns::{ColumnWrites, EntitySchema, RowColumns};
use crate::entity::key::PaymentKey;
use crate::entity::mail::derive::DerivedMail;
use crate::entity::mail::facts::MailFacts;
use crate::entity::manual::{DiscardedEdit, ManualEdits};
use crate::entity::merge::{Merge, MinRegister};
use crate::entity::opening::OpeningState;
use crate::entity::payment::derive::{DerivedPayment, PaymentRules, is_covered};
use crate::entity::payment::linked::{LinkedPaymentFacts, PaymentCopy};
use crate::entity::projection::{LoadedRow, RowFinding, RowStanding, know_row, read_opening_state};
use crate::entity::rules::RowRules;
use crate::entity::schema::{
    GuardedColumns, LastDerived, RowIdentity, RowTrouble, STATE_SCHEMA, StateHistory, StateRow,
    StoredState, UnreadableRow, open_index_key,
};
use crate::entity::timeline::DerivedEntry;
use crate::ids::{CheckoutSessionId, PaymentIntentId, PieceId, TenantId, UserId};
use crate::money::{Currency, Money};
use crate::outcome::ParkReason;
use crate::time::Timestamp;

/// Facts that an entity takes, by what they are about.
#[derive(Clone, Debug, PartialEq)]
pub enum StatedFacts {
    /// What the state of one payment says now.
    Payment(PaymentKey, Box<PaymentCopy>),
    /// The cleanup or a person cancelled the order.
    Cancelled(Timestamp),
    Manual(ManualEdits),
    Mail(MailFacts),
    Account(AccountFacts),
}

impl StatedFacts {
    /// Those about payments, in the form in which an order or statement stores them.
    pub(super) fn into_linked_payment_facts(self) -> LinkedPaymentFacts {
        let mut facts = LinkedPaymentFacts::default();
        match self {
            Self::Payment(key, copy) => drop(facts.payments.insert(key, *copy)),
            Self::Cancelled(at) => drop(facts.cancelled.insert(at)),
            Self::Manual(edits) => facts.manual = edits,
            Self::Mail(_) | Self::Account(_) => {}
        }
        facts
    }
}

/// An entity kind: its table, its facts, and how its columns follow from them.
pub trait EntityKind: Clone + Debug + PartialEq + Sized {
    type Id: Clone + Debug + PartialEq + Display;
    /// The columns of the application that billhook reads.
    type Given: Clone + Debug + PartialEq;
    type Facts: Clone + Debug + PartialEq + Default + Merge + Serialize + DeserializeOwned;
    /// What follows from the facts.
    type Derived: Clone + Debug + PartialEq;

    const SCHEMA: EntitySchema;
    /// Why an event of Stripe is parked whose row of this kind does not exist.
    const UNKNOWN: ParkReason;
    /// A part of the amount due needs no review.
    const TAKES_INSTALMENTS: bool = false;
    /// The row has a column for the user who paid.
    const HAS_USER: bool = false;

    /// Takes the facts that this kind has. `worker::resolve` sends a kind no others.
    fn take_facts(facts: &mut Self::Facts, stated: StatedFacts);
    fn read_given(row: &impl RowColumns) -> Self::Given;
    /// The given columns of a row that is gone, as far as the state remembers them.
    fn remember_given(known: &RowIdentity) -> Self::Given;
    /// The given columns of an older copy: where a value may be billhook's own, as the facts say, its last one.
    fn restore_given(
        given: &Self::Given,
        _facts: &Self::Facts,
        _last: &LastDerived,
    ) -> Self::Given {
        given.clone()
    }
    /// What the given columns say about which row it is.
    fn identify(_given: &Self::Given) -> RowIdentity {
        RowIdentity::default()
    }
    /// Whether billhook may have written this word into this column of text.
    fn is_own_word(_column: &str, _word: &str) -> bool {
        true
    }
    /// The given columns after a write: billhook fills some of them.
    fn fill_given(given: &Self::Given, _written: &LastDerived) -> Self::Given {
        given.clone()
    }
    fn read_guarded(_row: &impl RowColumns) -> GuardedColumns {
        GuardedColumns::default()
    }
    /// The values that the application gives a new row: finding them in a column that we never wrote is no manual edit.
    fn initial_columns() -> GuardedColumns {
        GuardedColumns::default()
    }
    fn derive(facts: &Self::Facts, given: &Self::Given, rules: PaymentRules<'_>) -> Self::Derived;
    /// The columns that people and the application may also write, as billhook writes them now.
    fn project(
        _row: &EntityState<Self>,
        _facts: &Self::Facts,
        _derived: &Self::Derived,
    ) -> LastDerived {
        LastDerived::default()
    }
    /// All columns to write but the version, the timeline and the time of the write, which every kind writes alike.
    fn write_columns(derived: &Self::Derived, written: &LastDerived) -> ColumnWrites;
    /// Not sorted.
    fn timeline(_derived: &Self::Derived) -> Vec<DerivedEntry> {
        Vec::new()
    }

    fn linked_payment_facts(_facts: &Self::Facts) -> Option<&LinkedPaymentFacts> {
        None
    }
    fn linked_payment_facts_mut(_facts: &mut Self::Facts) -> Option<&mut LinkedPaymentFacts> {
        None
    }
    /// Whether a payment status of `refunded` in the row is a person's repair, and not the application's own word.
    fn owns_payment_status(_known: &LinkedPaymentFacts, _new: &LinkedPaymentFacts) -> bool {
        true
    }
    fn payment(_derived: &Self::Derived) -> Option<&DerivedPayment> {
        None
    }
    fn mail(_derived: &Self::Derived) -> Option<&DerivedMail> {
        None
    }
    fn account(_derived: &Self::Derived) -> Option<&DerivedAccount> {
        None
    }
    fn payment_intent(_given: &Self::Given) -> Option<&PaymentIntentId> {
        None
    }
    fn checkout_session(_given: &Self::Given) -> Option<&CheckoutSessionId> {
        None
    }
    /// The given columns if another letter counted.
    fn of_other_pieces(_facts: &Self::Facts, _given: &Self::Given) -> Vec<Self::Given> {
        Vec::new()
    }
    fn piece(_given: &Self::Given) -> Option<&PieceId> {
        None
    }
}

/// An entity as the worker loaded it: its state, and the columns of the application's row.
#[derive(Clone, Debug, PartialEq)]
pub struct EntityState<K: EntityKind> {
    pub id: K::Id,
    /// How often billhook has written the state; 0 if there is none yet. Part of the optimistic lock.
    pub version: i64,
    /// `None` if the row belongs to the platform itself.
    pub tenant: Option<TenantId>,
    pub given: K::Given,
    pub row: LoadedRow,
    /// The columns as they are in the row now. `projection` says what a difference from what billhook wrote means.
    pub columns: GuardedColumns,
    /// The columns as billhook derived them at its last write.
    pub last_derived: LastDerived,
    pub facts: K::Facts,
    pub history: StateHistory,
}

/// An entity after new facts: everything that the ledger writes.
#[derive(Clone, Debug, PartialEq)]
pub struct StateUpdate<K: EntityKind> {
    /// The row as billhook writes it. Its facts are old facts, new facts and manual edits, merged; of the guarded
    /// columns it has only those that are written.
    pub next: EntityState<K>,
    pub derived: K::Derived,
    /// Manual edits that are not repairs and are overwritten; logged as `edit_overruled`.
    pub discarded_edits: Vec<DiscardedEdit>,
    /// How the row stood that this write rests on.
    pub standing: RowStanding,
    /// The row has to be written even if no column changes: it has never been written, is not billhook's last write, or
    /// has an edit that became a fact, which is found only once.
    pub must_write_row: bool,
    /// What an operator should know of the row.
    pub row_findings: Vec<RowFinding>,
}

impl<K: EntityKind> EntityState<K> {
    /// Reads an entity from the application's row and its state: one of them, or both.
    pub(super) fn read(
        id: K::Id,
        rules: &RowRules,
        row: Option<&impl RowColumns>,
        state: Option<&impl StoredState>,
    ) -> Result<Self, UnreadableRow> {
        let mut read = Self {
            id,
            version: 0,
            tenant: row
                .and_then(|row| row.text(K::SCHEMA.tenant))
                .and_then(|id| TenantId::parse(id).ok()),
            given: match row {
                Some(row) => K::read_given(row),
                None => K::remember_given(&RowIdentity::default()),
            },
            row: match row {
                Some(row) => LoadedRow::read(&K::SCHEMA, rules, row, K::is_own_word),
                None => LoadedRow::missing(rules),
            },
            columns: row.map(K::read_guarded).unwrap_or_default(),
            last_derived: LastDerived::default(),
            facts: K::Facts::default(),
            history: StateHistory::default(),
        };
        if let Some(state) = state {
            let stored: StateRow<K::Facts> = state.read()?;
            read.version = stored.version;
            read.last_derived = stored.derived;
            read.facts = stored.facts;
            read.history = StateHistory {
                tenant: stored.tenant_id,
                written: stored.written,
                version_column: stored.version_column,
                row: RowIdentity {
                    created_at: stored.row_created_at,
                    due: stored.row_due,
                    user: stored.row_user,
                },
                trouble: None,
                recent: None,
                first_event_at: stored.first_event_at,
                last_event_at: stored.last_event_at,
                event_ids: stored.event_ids,
            };
            read.history
                .read_open(stored.open.as_deref(), stored.open_at);
        }
        if let (Some(row), true) = (row, read.history.written.is_empty()) {
            let opening = read_opening_state(&K::SCHEMA, rules, row, &read.columns);
            read.row.opening = opening.map(|opening| OpeningState {
                intent: K::payment_intent(&read.given).cloned(),
                piece: K::piece(&read.given).map(PieceId::to_string),
                ..opening
            });
        }
        if read.row.is_missing {
            read.tenant = read.history.tenant.clone();
            let remembered = K::remember_given(&read.history.row);
            read.given = K::fill_given(&remembered, &read.last_derived);
            read.columns = read.last_derived.columns.clone();
        }
        Ok(read)
    }

    /// How the application's row stands to what billhook wrote.
    pub fn standing(&self) -> RowStanding {
        self.row
            .standing(&self.columns, &self.identity(), &self.history)
    }

    fn identity(&self) -> RowIdentity {
        RowIdentity {
            created_at: self.row.created_at.clone(),
            ..K::identify(&self.given)
        }
    }

    /// The state in the form in which it is stored.
    pub(super) fn state_row(&self) -> StateRow<&K::Facts> {
        let open = self.history.open();
        StateRow {
            schema: STATE_SCHEMA,
            version: self.version,
            facts: &self.facts,
            derived: self.last_derived.clone(),
            written: self.history.written.clone(),
            version_column: self.history.version_column.clone(),
            tenant_id: self.tenant.clone(),
            row_created_at: self.history.row.created_at.clone(),
            row_due: self.history.row.due,
            row_user: self.history.row.user.clone(),
            open: open.map(|(reason, _)| {
                let key = format!("{}#{}", K::SCHEMA.word, self.id);
                open_index_key(reason, &key)
            }),
            open_at: open.map(|(_, at)| at),
            first_event_at: self.history.first_event_at,
            last_event_at: self.history.last_event_at,
            event_ids: self.history.event_ids.clone(),
        }
    }

    /// Facts → merge → derive → project. `now` dates the manual edits found here; nothing else depends on it.
    pub fn apply_facts(
        &self,
        stated: impl IntoIterator<Item = StatedFacts>,
        now: Timestamp,
    ) -> StateUpdate<K> {
        let mut new = K::Facts::default();
        for stated in stated {
            K::take_facts(&mut new, stated);
        }
        let standing = self.standing();
        let mut facts = self.facts.clone();
        let mut is_edited = false;
        if let Some(new) = K::linked_payment_facts_mut(&mut new) {
            for copy in new.payments.values_mut() {
                self.drop_own_reference(copy);
            }
            if let Some(known) = K::linked_payment_facts_mut(&mut facts) {
                let owns_payment_status = K::owns_payment_status(known, new);
                let made_at = known.date_edit(new, now);
                let edits = self.find_manual_edits(&standing, owns_payment_status, made_at, now);
                is_edited = edits != LinkedPaymentFacts::default();
                known.merge(edits);
                let paid_due = self.find_paid_due(&standing, known);
                if let Some(due) = paid_due {
                    is_edited = true;
                    known.manual.paid_dues.insert(now, MinRegister(due));
                }
                if let (RowStanding::New, Some(opening)) = (&standing, &self.row.opening) {
                    known.opening = Some(MinRegister(opening.clone()));
                }
                let recorded = self.find_recorded_payments(&standing, &known.manual);
                known.manual.merge(recorded);
            }
        }
        facts.merge(new);
        let restored;
        let loaded = match &standing {
            // Values of ours in an older copy are not the application's.
            RowStanding::Stale { .. } => {
                let given = K::restore_given(&self.given, &facts, &self.last_derived);
                restored = Self {
                    given,
                    ..self.clone()
                };
                &restored
            }
            _ => self,
        };
        let derived = K::derive(&facts, &loaded.given, loaded.payment_rules());
        let mut last_derived = K::project(loaded, &facts, &derived);
        let mut foreign: Vec<&'static str> = self.row.foreign.iter().copied().collect();
        if !foreign.is_empty() {
            // What billhook would not write anyway is the application's.
            let written = K::write_columns(&derived, &last_derived);
            foreign.retain(|column| {
                self.bookkeeping_columns().contains(column)
                    || written.iter().any(|(written, _)| written == column)
            });
        }
        for column in &self.row.foreign {
            last_derived.columns.keep(column, &self.columns);
        }
        // What no row shows, nobody has seen.
        if standing == RowStanding::Missing {
            last_derived.review_reasons = self.last_derived.review_reasons.clone();
        }
        let manual = K::linked_payment_facts(&facts).map(|facts| &facts.manual);
        if manual.is_some_and(ManualEdits::is_row_replaced) {
            last_derived = LastDerived {
                columns: GuardedColumns {
                    requires_review: last_derived.columns.requires_review,
                    ..self.columns.clone()
                },
                review_reasons: last_derived.review_reasons,
                ..LastDerived::default()
            };
        }
        let given = K::fill_given(&loaded.given, &last_derived);
        let row = match self.row.is_missing {
            true => self.history.row.clone(),
            false => know_row(self.identity(), &self.history.row),
        };
        let mut history = StateHistory {
            tenant: self.tenant.clone(),
            row,
            recent: Some(now),
            ..self.history.clone()
        };
        let trouble = match (self.row.is_missing, foreign.is_empty()) {
            (true, _) => Some(RowTrouble::Missing),
            (false, false) => Some(RowTrouble::Foreign),
            (false, true) => None,
        };
        history.note_trouble(trouble, now);
        // Told once, and not with every event.
        let is_new_trouble = history.trouble != self.history.trouble;
        StateUpdate {
            row_findings: find_row_findings(&standing, self.row.version, is_new_trouble, foreign),
            must_write_row: match &standing {
                RowStanding::Current => is_edited || self.row.is_renamed(&self.history),
                RowStanding::Missing => false,
                _ => true,
            },
            discarded_edits: self.find_discarded_edits(&standing, &last_derived.columns),
            derived,
            next: Self {
                version: self.version.saturating_add(1),
                given,
                columns: last_derived.columns.clone(),
                last_derived,
                facts,
                history,
                id: self.id.clone(),
                tenant: self.tenant.clone(),
                row: self.row.clone(),
            },
            standing,
        }
    }

    fn payment_rules(&self) -> PaymentRules<'_> {
        let last = &self.last_derived;
        let (intent, session) = match K::TAKES_INSTALMENTS {
            true => (None, None),
            false => (
                K::payment_intent(&self.given),
                K::checkout_session(&self.given),
            ),
        };
        PaymentRules {
            // What billhook wrote is no expectation.
            expected_intent: intent.filter(|intent| last.intent.as_ref() != Some(intent)),
            expected_session: session.filter(|session| last.session.as_ref() != Some(session)),
            takes_instalments: K::TAKES_INSTALMENTS,
            has_user: K::HAS_USER,
            refuses_adjustments: self.row.rules.refuses_adjustments,
        }
    }

    /// What was due at billhook's last write, if it was paid and another amount is due now.
    fn find_paid_due(&self, standing: &RowStanding, known: &LinkedPaymentFacts) -> Option<Money> {
        if !matches!(standing, RowStanding::Current | RowStanding::Stale { .. }) {
            return None;
        }
        let was_due = self.history.row.due?;
        let is_new = self.identity().due != Some(was_due);
        let manual = known.manual.of_current_row();
        let mut noted = manual.paid_dues.values();
        let is_noted = noted.any(|due| due.0 == was_due);
        let was_paid = || is_covered(known, was_due, self.payment_rules());
        (is_new && !is_noted && was_paid()).then_some(was_due)
    }

    /// Some applications put the order's id into `client_reference_id`. It is not a user: without this line `ord_1` ended
    /// up in `userId` if the session's metadata did not repeat the order's id.
    pub(super) fn drop_own_reference(&self, copy: &mut PaymentCopy) {
        let id = self.id.to_string();
        let is_own = |hint: &mut MinRegister<UserId>| hint.0.as_str() == id;
        let payers = copy.facts.payments.values_mut();
        let payers = payers.map(|payment| &mut payment.payer);
        for users in payers.chain([&mut copy.facts.users]) {
            users.reference.take_if(is_own);
        }
    }

    /// As if nobody had edited the row since billhook wrote it.
    pub(super) fn unedited(&self) -> Self {
        let mut unedited = self.clone();
        if self.standing() == RowStanding::Current
            && let Some((_, written)) = self.history.written.last_key_value()
        {
            unedited.columns = written.clone();
            let written = LastDerived {
                removed: Vec::new(),
                ..self.last_derived.clone()
            };
            unedited.given = K::fill_given(&self.given, &written);
            for column in &self.row.foreign {
                unedited.columns.keep(column, &self.columns);
            }
        }
        unedited
    }

    pub(super) fn has_unseen_statement(&self) -> bool {
        let (found, known) = (self.identity(), &self.history.row);
        let is_other_due = known.due.is_some() && found.due != known.due;
        let facts = K::linked_payment_facts(&self.facts);
        let is_recorded =
            |entry| facts.is_some_and(|facts| facts.manual.recorded.contains_key(entry));
        // Of a row in another one's place, billhook keeps what it says: another writing of it is the application's.
        let is_held = facts.is_some_and(|facts| facts.manual.is_row_replaced());
        let is_written_anew = is_held && self.standing() != RowStanding::Current;
        is_other_due || is_written_anew || !self.row.recorded.keys().all(is_recorded)
    }

    pub(super) fn may_be_of_another_piece(&self) -> bool {
        let last = &self.last_derived.columns;
        let of_mail =
            |columns: &GuardedColumns| (columns.mail_status.clone(), columns.needs_attention);
        K::of_other_pieces(&self.facts, &self.given)
            .into_iter()
            .any(|given| {
                let derived = K::derive(&self.facts, &given, self.payment_rules());
                let other = Self {
                    given,
                    ..self.clone()
                };
                let columns = K::project(&other, &self.facts, &derived).columns;
                of_mail(&columns) == of_mail(last)
            })
    }

    pub(super) fn rebased(&self, stated: Vec<StatedFacts>, now: Timestamp) -> Self {
        let next = self.apply_facts(stated, now).next;
        let version = self.row.version.unwrap_or_default().max(self.version);
        let mut history = next.history;
        history.record_write(version, next.last_derived.columns.clone());
        history.version_column = self.row.rules.version_column.stored_name();
        Self {
            version,
            facts: next.facts,
            last_derived: next.last_derived,
            history,
            ..self.clone()
        }
    }

    /// The columns that every kind writes alike.
    fn bookkeeping_columns(&self) -> [&'static str; 3] {
        let version = self.row.rules.version_column.as_str();
        [version, K::SCHEMA.updated_at, "timeline"]
    }

    /// Why nothing may be written, if so.
    pub(super) fn write_refusal(&self) -> Option<ParkReason> {
        let known = &self.history.tenant;
        // The row was moved to another tenant, whose row would show this one's facts.
        let is_moved = known.is_some() && *known != self.tenant;
        if is_moved {
            return Some(ParkReason::CrossTenant);
        }
        // What the row has was derived from facts that are not here.
        (self.standing() == RowStanding::Ahead).then_some(ParkReason::StateBehind)
    }
}

impl<K: EntityKind> StateUpdate<K> {
    /// The entity once the application's row is written too, and not only its state.
    #[must_use]
    pub fn with_row_written(&self) -> EntityState<K> {
        let mut next = self.next.clone();
        let columns = next.last_derived.columns.clone();
        next.history.record_write(next.version, columns);
        next.history.version_column = next.row.rules.version_column.stored_name();
        next.row.version = Some(next.version);
        let has_entries = self.may_write("timeline") && !K::timeline(&self.derived).is_empty();
        next.row.is_without_entries &= !has_entries;
        // They are written with the payment's status, and in a row that is held back neither is.
        let has_amounts = next.columns.payment_status.is_some() && !self.is_held();
        next.row.is_without_amounts &= !has_amounts;
        next
    }

    pub(super) fn may_write(&self, column: &str) -> bool {
        let row = &self.next.row;
        let is_of_review = REVIEW_COLUMNS.contains(&column)
            || [row.rules.version_column.as_str(), K::SCHEMA.updated_at].contains(&column);
        !row.foreign.contains(column) && (!self.is_held() || is_of_review)
    }

    /// Whether the row is in another one's place, and a person has not decided yet.
    fn is_held(&self) -> bool {
        let manual = K::linked_payment_facts(&self.next.facts).map(|facts| &facts.manual);
        manual.is_some_and(ManualEdits::is_row_replaced)
    }
}

/// What is written of a row that is in another one's place, beside the version and the time of the write.
const REVIEW_COLUMNS: [&str; 4] = [
    "requiresReview",
    "reviewReasons",
    "requires_review",
    "review_reasons",
];

fn find_row_findings(
    standing: &RowStanding,
    found_version: Option<i64>,
    is_new_trouble: bool,
    foreign: Vec<&'static str>,
) -> Vec<RowFinding> {
    let own = match standing {
        RowStanding::Stale { .. } => Some(RowFinding::Restored { found_version }),
        RowStanding::Missing if is_new_trouble => Some(RowFinding::ProjectionMissing),
        _ => None,
    };
    let foreign = foreign.into_iter().filter(|_| is_new_trouble);
    let foreign = foreign.map(|column| RowFinding::ColumnForeign { column });
    own.into_iter().chain(foreign).collect()
}

/// The amount that the application asks for; `None` if its amount or its currency column is missing.
pub(super) fn read_due(row: &impl RowColumns, amount: &str) -> Option<Money> {
    Some(Money {
        amount: row.integer(amount)?,
        currency: Currency::parse(row.text("currency")?).ok()?,
    })
}

/// A column with two writers, such as `userId`: we write it only if it is empty or still has the value that we wrote
/// last; a value that the application wrote stays. Ours is removed once it follows from nothing.
pub(super) fn keep_if_ours<T: Clone>(
    column: &'static str,
    new: &Option<T>,
    found: Option<&str>,
    last: Option<&str>,
    removed: &mut Vec<&'static str>,
) -> Option<T> {
    if new.is_none() && found.is_some() && found == last {
        removed.push(column);
    }
    new.clone().filter(|_| found.is_none() || found == last)
}
