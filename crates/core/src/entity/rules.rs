//! What a deployment says about the application's rows: the name of the column of billhook's version, which rows were made
//! before billhook was given their table (adoption), and whether Checkout may adjust what they ask for.
//!
//! The rules come from the function's configuration and are an argument of [`super::EntityKey::read`]; nothing else
//! decides by them, so that a changed parameter never changes what was read before.

use crate::entity::columns::VERSION;
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RowRules {
    pub version_column: VersionColumn,
    /// The application's word about a row that it made before this time is believed.
    pub adopted_before: Option<Timestamp>,
    /// A Checkout Session with a discount, shipping or tax of its own does not pay what its items cost.
    pub refuses_adjustments: bool,
}

impl RowRules {
    /// Whether a row that was made at this time was there before billhook.
    pub(super) fn adopts(&self, created_at: Timestamp) -> bool {
        self.adopted_before
            .is_some_and(|before| created_at < before)
    }
}

/// The column of the application's row that has the version of billhook's last write. An ORM may have a `version` of its
/// own, which it increments with each save; then billhook's needs another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionColumn(&'static str);

impl Default for VersionColumn {
    fn default() -> Self {
        Self(VERSION)
    }
}

impl VersionColumn {
    /// `name` is valid: see [`VersionColumn::parse`].
    pub(super) const fn of_valid_name(name: &'static str) -> Self {
        Self(name)
    }

    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// As states store it: `None` is the usual name.
    pub(super) fn stored_name(self) -> Option<String> {
        (self.0 != VERSION).then(|| self.0.to_owned())
    }

    /// The name that a column of the schema has in the table.
    pub fn name_of(self, column: &'static str) -> &'static str {
        match column {
            VERSION => self.0,
            other => other,
        }
    }
}
