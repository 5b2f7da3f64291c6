//! DynamoDB: the repositories of all tables. Every read that a decision rests on is strongly consistent, and every write has
//! a condition that makes a repeat or a race harmless (optimistic lock).
//!
//! One file per table: `events` (with its index, `unfinished_events`), `payments`, `jobs`. The tables of entities
//! (orders, statements, tenants) share `entities`, and `billhook_core::entity` has their columns; `failed_orders` and
//! `tenants` list some of their rows for the scheduled tasks. `attributes`, `update`, `index` and `batch_get` wrap
//! DynamoDB itself. Start with `ledger`, the transaction that writes an entity together with its events.

pub mod attributes;
pub mod batch_get;
mod entities;
pub mod events;
mod failed_orders;
pub mod index;
pub mod jobs;
pub mod ledger;
mod list_states;
mod open_states;
mod pages;
pub mod state_seal;
pub mod tenants;
mod unfinished_events;
mod update;

pub use self::entities::{find_item_faults, read_tenant_row};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::Update;
use billhook_core::error::DependencyError;
use billhook_core::retry::Disposition;

/// Turns the SDK's error into ours. Only errors that say that nothing happened and that a repeat cannot help are
/// permanent. Everything else, time-outs and throttling included, counts as outcome unknown: the caller reads again
/// before it decides.
fn dependency_error<E, R>(doing: String, error: SdkError<E, R>) -> DependencyError
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
    DependencyError {
        doing,
        disposition,
        cause: Box::new(error),
    }
}

/// Sends one update without a transaction, because DynamoDB charges a transaction twice the write units.
async fn send_update(client: &Client, update: Update) -> Result<(), SdkError<UpdateItemError>> {
    client
        .update_item()
        .table_name(update.table_name)
        .set_key(Some(update.key))
        .update_expression(update.update_expression)
        .set_condition_expression(update.condition_expression)
        .set_expression_attribute_names(update.expression_attribute_names)
        .set_expression_attribute_values(update.expression_attribute_values)
        .send()
        .await
        .map(drop)
}

/// A call that we could not build; a repeat does not help.
fn invalid_call(
    doing: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> DependencyError {
    DependencyError {
        doing: doing.to_owned(),
        disposition: Disposition::Permanent,
        cause: Box::new(error),
    }
}
