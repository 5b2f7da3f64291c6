//! The tables, one file each: `events` (with its index `unfinished_events`), `orders` (with its index
//! `failed_orders`), `statements`, `tenants`, `payments`, `jobs`. `ledger` reads and writes entities with their events in one transaction, on the optimistic lock of
//! the rows as read; `entities` and `row` are what the entities' rows share. `attributes`, `update`, `index` and
//! `batch_get` are DynamoDB's own notions.
//!
//! Every read that decides is consistent; every write carries the condition that makes a repeat or a race harmless.

pub mod attributes;
mod batch_get;
mod entities;
pub mod events;
mod failed_orders;
mod index;
pub mod jobs;
pub mod ledger;
mod orders;
mod payments;
pub mod row;
mod statements;
mod tenants;
mod unfinished_events;
mod update;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::Update;
use billhook_core::error::DependencyError;
use billhook_core::retry::Disposition;

/// A call that failed without an answer we know: what was done, and whether a repeat may help.
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

/// An update by itself, without a transaction, which would cost twice.
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

/// A call that cannot even be made.
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
