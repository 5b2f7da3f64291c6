//! The tables. `items` says how values stand in a row, `inbox` keeps events, `rows` how entities
//! stand in theirs, `index` finds rows by a column, `ledger` reads and writes them with their events in one transaction.
//!
//! Every read that decides is consistent; every write carries the condition that makes a repeat or a race harmless.

pub mod cursors;
mod expression;
pub mod inbox;
mod index;
pub mod items;
pub mod ledger;
pub mod rows;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use billhook_core::ports::Unavailable;
use billhook_core::retry::Disposition;

/// A call that failed without an answer we know: what was done, and whether a repeat may help.
fn unavailable<E, R>(doing: String, error: SdkError<E, R>) -> Unavailable
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let disposition = match error.code() {
        Some("ValidationException" | "ResourceNotFoundException" | "AccessDeniedException") => {
            Disposition::Permanent
        }
        _ => Disposition::OutcomeUnknown,
    };
    Unavailable {
        doing,
        disposition,
        cause: Box::new(error),
    }
}
