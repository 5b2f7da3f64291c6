//! What people and the application wrote into columns of billhook since its last write: which of it stands as a fact
//! (repairs), and which is overwritten. `projection` says how the row stands; this compares its columns.

use std::collections::{BTreeMap, BTreeSet};

use crate::entity::kind::{EntityKind, EntityState};
use crate::entity::manual::{DiscardedEdit, FoundEdit, ManualEdits, PaymentRecord};
use crate::entity::merge::MinRegister;
use crate::entity::payment::linked::LinkedPaymentFacts;
use crate::entity::payment::status::{OrderStatus, PaymentStatus};
use crate::entity::projection::RowStanding;
use crate::entity::schema::GuardedColumns;
use crate::time::Timestamp;

impl<K: EntityKind> EntityState<K> {
    /// Manual edits that are not repairs: somebody changed the column since our last write, and we write another value.
    ///
    /// Example: we derived `payment_failed`, somebody set `pending`, now a payment arrives and we write `completed`:
    /// the edit is lost, so we log it. If somebody set `completed` before the event arrived, nothing is lost. A column
    /// that we never wrote is compared with its initial value: `pending` on a new order is no edit, `draft` is one.
    /// `requiresReview` is left out, because clearing and flagging are repairs. A new reason on a cleared row was once
    /// logged as `edit_overruled`, which sent people looking for a fault.
    pub(super) fn find_discarded_edits(
        &self,
        standing: &RowStanding,
        next: &GuardedColumns,
    ) -> Vec<DiscardedEdit> {
        if let RowStanding::Stale { edits } = standing {
            return self.find_lost_edits(edits, next);
        }
        let Some(baseline) = self.baseline(standing) else {
            return Vec::new();
        };
        let columns = self
            .columns
            .by_name()
            .into_iter()
            .zip(baseline.by_name())
            .zip(K::initial_columns().by_name())
            .zip(next.by_name());
        columns
            .filter_map(
                |((((column, found), (_, was)), (_, initial)), (_, written))| {
                    let was = was.or(initial);
                    let is_overruled =
                        found.is_some() && written.is_some() && found != was && found != written;
                    is_overruled.then(|| DiscardedEdit {
                        column,
                        found: found.unwrap_or_default(),
                        written: written.unwrap_or_default(),
                    })
                },
            )
            .collect()
    }

    /// What billhook wrote into the row that it is compared with; `None` if a difference says nothing about anybody's
    /// intention.
    fn baseline(&self, standing: &RowStanding) -> Option<GuardedColumns> {
        let facts = K::linked_payment_facts(&self.facts);
        let opening = facts.and_then(LinkedPaymentFacts::opening_state);
        match standing {
            // What an adopted row says is its opening state, and nobody's edit.
            RowStanding::New if self.row.opening.is_some() => Some(self.columns.clone()),
            RowStanding::New => Some(GuardedColumns::default()),
            RowStanding::Current => {
                let written = self.history.written.last_key_value();
                written.map(|(_, written)| written.clone().or_opening(opening))
            }
            RowStanding::Stale { .. } => {
                let written = self.history.written.last_key_value();
                written.map(|(_, written)| {
                    GuardedColumns::baseline_of_unwritten(&self.columns, written)
                })
            }
            RowStanding::Ahead | RowStanding::Replaced | RowStanding::Missing => None,
        }
    }

    /// Finds the manual edits that stand (repairs) and returns them as facts.
    ///
    /// How: `written` is what billhook wrote at the row's version, `columns` is what the row says now. If they differ,
    /// somebody else wrote the column. The optimistic lock includes these columns, so an edit between our read and our
    /// write makes the write fail, and the next round finds it here.
    ///
    /// Why as facts: every column is derived from facts at every write, so anything that is not a fact is overwritten.
    /// Example: a person refunds by bank transfer and sets `status` to `refunded`. The next event, a late
    /// `payment_intent.payment_failed`, derives `completed` from the payment. With the fact `manual.refunded` it
    /// derives `refunded`, now and at every later event.
    ///
    /// Only paid, refunded, cancelled and the review flag are repairs.
    pub(super) fn find_manual_edits(
        &self,
        standing: &RowStanding,
        owns_payment_status: bool,
        made_at: Timestamp,
        now: Timestamp,
    ) -> LinkedPaymentFacts {
        let mut facts = LinkedPaymentFacts::default();
        match standing {
            RowStanding::Replaced => drop(facts.manual.replaced.insert(now)),
            RowStanding::Stale { edits } if !edits.is_empty() => {
                facts.manual.conflicts.insert(now, edits.clone());
            }
            _ => {}
        }
        let Some(was) = self.baseline(standing) else {
            return facts;
        };
        let now_in_row = &self.columns;
        let changed_to = |column: &Option<String>, written: &Option<String>, word: &str| {
            column.as_deref() == Some(word) && column != written
        };
        let status =
            |status: OrderStatus| changed_to(&now_in_row.status, &was.status, status.as_str());
        let payment_status = |status: PaymentStatus| {
            owns_payment_status
                && changed_to(
                    &now_in_row.payment_status,
                    &was.payment_status,
                    status.as_str(),
                )
        };
        if status(OrderStatus::Refunded) || payment_status(PaymentStatus::Refunded) {
            facts.manual.refunded.insert(made_at);
        }
        if status(OrderStatus::Completed) || payment_status(PaymentStatus::Paid) {
            facts.manual.found_paid.insert(made_at);
        }
        if status(OrderStatus::Cancelled) {
            facts.cancelled.insert(now);
        }
        match (now_in_row.requires_review, was.requires_review) {
            // Only the reasons that the person could see are cleared. If a person cleared dp_1 and the event of this
            // write opens dp_2, `dispute_open:dp_2` flags the row again. A flag that was removed is cleared, unless
            // other columns of ours are gone too: then somebody wrote the row without them.
            (Some(false), Some(true)) => facts.manual.cleared = self.clear_seen_reasons(now),
            (None, Some(true)) if self.is_only_flag_removed(&was) => {
                facts.manual.cleared = self.clear_seen_reasons(now);
            }
            (Some(true), None | Some(false)) => {
                facts.manual.flagged.insert(now);
            }
            _ => {}
        }
        facts
    }

    /// Whether the review flag was removed, and nothing else of ours.
    fn is_only_flag_removed(&self, was: &GuardedColumns) -> bool {
        let is_foreign = |column| self.row.foreign.contains(column);
        let has_entries = !self.row.is_without_entries || is_foreign("timeline");
        let has_amounts = !self.row.is_without_amounts || was.payment_status.is_none();
        let has_flag = is_foreign("requiresReview") || is_foreign("requires_review");
        !has_flag && has_entries && has_amounts && self.columns.has_all_of(was)
    }

    /// Payments that others recorded in the row's timeline. They stand in an older copy too, because they say when. One
    /// whose entry is gone, because somebody wrote the row without it, gets an entry of billhook's.
    pub(super) fn find_recorded_payments(
        &self,
        standing: &RowStanding,
        known: &ManualEdits,
    ) -> ManualEdits {
        if matches!(
            standing,
            RowStanding::Ahead | RowStanding::Replaced | RowStanding::Missing
        ) {
            return ManualEdits::default();
        }
        let in_row = self.row.recorded.clone().into_iter();
        let in_row = in_row.map(|(entry, record)| (entry, MinRegister(record)));
        let known = known.recorded.iter();
        let gone = known.filter(|(entry, _)| !self.row.recorded.contains_key(*entry));
        let gone = gone.map(|(entry, MinRegister(record))| {
            let record = PaymentRecord {
                is_entry: false,
                ..record.clone()
            };
            (entry.clone(), MinRegister(record))
        });
        ManualEdits {
            recorded: in_row.chain(gone).collect(),
            ..ManualEdits::default()
        }
    }

    /// Edits in a row that is no copy of a write that billhook remembers. They are overwritten, and nobody can be asked.
    fn find_lost_edits(
        &self,
        conflicts: &BTreeSet<FoundEdit>,
        next: &GuardedColumns,
    ) -> Vec<DiscardedEdit> {
        let written = self.history.written.values().chain([next]);
        let known: Vec<_> = written
            .map(GuardedColumns::by_name)
            .chain([K::initial_columns().by_name()])
            .collect();
        let found = self.columns.by_name().into_iter().enumerate();
        found
            .filter_map(|(number, (column, found))| {
                let is_known = |known: &[(&str, Option<String>); 4]| {
                    known.get(number).is_some_and(|(_, known)| *known == found)
                };
                let is_conflict = conflicts.iter().any(|edit| edit.column == column);
                if is_conflict || known.iter().any(is_known) {
                    return None;
                }
                let (_, written) = next.by_name().into_iter().nth(number)?;
                Some(DiscardedEdit {
                    column,
                    found: found?,
                    written: written?,
                })
            })
            .collect()
    }

    fn clear_seen_reasons(&self, now: Timestamp) -> BTreeMap<String, MinRegister<Timestamp>> {
        let reasons = self.last_derived.review_reasons.iter();
        reasons
            .map(|reason| (reason.clone(), MinRegister(now)))
            .collect()
    }
}
