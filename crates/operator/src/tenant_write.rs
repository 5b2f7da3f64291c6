//! Writes the rows of a tenant and of its accounts in one transaction: all of them, or none.

use anyhow::{Result, bail};
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::types::{TransactWriteItem, Update};

use crate::session::StackSession;

pub(crate) async fn write_tenant(session: &StackSession, updates: Vec<Update>) -> Result<()> {
    let actions = updates.into_iter();
    let actions = actions.map(|update| TransactWriteItem::builder().update(update).build());
    let sent = session
        .dynamodb
        .transact_write_items()
        .set_transact_items(Some(actions.collect()))
        .send()
        .await;
    match sent {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("TransactionCanceledException") => {
            bail!("the tenant was changed by others meanwhile, and nothing is written: try again")
        }
        Err(error) => Err(error.into()),
    }
}
