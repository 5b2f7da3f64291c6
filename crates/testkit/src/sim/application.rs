//! The application and its people in the simulation: they write whole rows from older copies, as ORMs do, delete rows and
//! put them back, and edit a column that is billhook's.

use std::collections::BTreeSet;

use billhook_core::entity::kind::{EntityKind, EntityState};
use billhook_core::entity::projection::{LoadedRow, RowStanding};
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::time::Timestamp;

use super::World;
use super::store::EntityRow;

/// What a person wrote into a row that was as billhook wrote it last.
#[derive(Clone, Debug)]
pub struct RowEdit {
    pub at: Timestamp,
    pub key: EntityKey,
    pub what: EditKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditKind {
    /// `status` was set to `refunded`.
    Refunded,
    /// `status` was set to `cancelled`.
    Cancelled,
    /// `requiresReview` was set to false where the row showed these reasons.
    Cleared(BTreeSet<String>),
}

/// The state of the one, with the application's row of the other.
fn with_row_of<K: EntityKind>(state: &EntityState<K>, copy: &EntityState<K>) -> EntityState<K> {
    EntityState {
        tenant: copy.tenant.clone(),
        given: copy.given.clone(),
        row: copy.row.clone(),
        columns: copy.columns.clone(),
        ..state.clone()
    }
}

fn without_row<K: EntityKind>(state: &EntityState<K>) -> EntityState<K> {
    let remembered = K::remember_given(&state.history.row);
    EntityState {
        tenant: state.history.tenant.clone(),
        given: K::fill_given(&remembered, &state.last_derived),
        row: LoadedRow {
            is_missing: true,
            ..LoadedRow::default()
        },
        columns: state.last_derived.columns.clone(),
        ..state.clone()
    }
}

impl World {
    /// The rows that billhook has written, and those whose state has something to lose.
    pub fn written_rows(&self) -> Vec<EntityKey> {
        let rows = self.store.entities.all();
        rows.filter(|(_, row)| row.entity.version() > 0)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Writes the whole row as it was then, also where it was deleted since.
    pub fn put_copy(&mut self, key: &EntityKey, then: Timestamp) {
        let (now, Some(current)) = (self.now(), self.store.entities.get(key).cloned()) else {
            return;
        };
        let is_there = |row: &EntityRow| !row.entity.row().is_missing;
        let copy = self.store.entities.copy_as_of(key, then, is_there);
        let Some(copy) = copy.cloned() else {
            return;
        };
        let entity: Entity = match (&current.entity, &copy.entity) {
            (Entity::Order(state), Entity::Order(copy)) => with_row_of(state, copy).into(),
            (Entity::Statement(state), Entity::Statement(copy)) => with_row_of(state, copy).into(),
            (Entity::Tenant(state), Entity::Tenant(copy)) => with_row_of(state, copy).into(),
            _ => return,
        };
        if matches!(entity.standing(), RowStanding::Stale { .. }) {
            self.sometimes("older copy");
        }
        self.tell(|| format!("application    writes {key} as of {then}"));
        let row = EntityRow { entity, ..copy };
        self.store.entities.put(now, key.clone(), row);
    }

    pub fn delete_row(&mut self, key: &EntityKey) {
        let (now, Some(current)) = (self.now(), self.store.entities.get(key).cloned()) else {
            return;
        };
        let entity: Entity = match &current.entity {
            Entity::Order(state) => without_row(state).into(),
            Entity::Statement(state) => without_row(state).into(),
            Entity::Tenant(state) => without_row(state).into(),
        };
        self.sometimes("row deleted");
        self.tell(|| format!("application    deletes {key}"));
        let row = EntityRow { entity, ..current };
        self.store.entities.put(now, key.clone(), row);
    }

    /// The application uses an order's `status` for a word of its own.
    pub fn write_own_word(&mut self, key: &EntityKey) {
        let (now, Some(mut row)) = (self.now(), self.store.entities.get(key).cloned()) else {
            return;
        };
        let Entity::Order(order) = &mut row.entity else {
            return;
        };
        if order.row.is_missing {
            return;
        }
        order.row.foreign.insert("status");
        order.columns.status = Some("shipped".to_owned());
        self.sometimes("foreign word");
        self.tell(|| format!("application    writes its own word into {key}"));
        self.store.entities.put(now, key.clone(), row);
    }

    /// A person edits an order's row, if it is as billhook wrote it last and says something else.
    pub fn edit_order(&mut self, key: &EntityKey) {
        let (now, Some(mut row)) = (self.now(), self.store.entities.get(key).cloned()) else {
            return;
        };
        let Entity::Order(order) = &mut row.entity else {
            return;
        };
        let is_as_written =
            order.standing() == RowStanding::Current && order.columns == order.last_derived.columns;
        if !is_as_written {
            return;
        }
        let status = order.columns.status.as_deref();
        let what = match (self.rng.below(4), order.columns.requires_review) {
            (0, _) if status != Some("refunded") => {
                order.columns.status = Some("refunded".to_owned());
                EditKind::Refunded
            }
            (1, _) if status != Some("cancelled") => {
                order.columns.status = Some("cancelled".to_owned());
                EditKind::Cancelled
            }
            (2.., Some(true)) => {
                order.columns.requires_review = Some(false);
                let seen = order.last_derived.review_reasons.iter();
                EditKind::Cleared(seen.cloned().collect())
            }
            _ => return,
        };
        self.sometimes("row edited");
        self.tell(|| format!("operator       edits {key}: {what:?}"));
        let at = now;
        self.store.entities.put(now, key.clone(), row);
        self.store.edits.push(RowEdit {
            at,
            key: key.clone(),
            what,
        });
    }
}
