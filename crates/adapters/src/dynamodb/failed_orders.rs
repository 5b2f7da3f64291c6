//! Finds orders whose payment failed, for the cleanup, by the orders table's `StatusIndex`.
//!
//! The index is only a hint: the cleanup reads each order itself and decides from its facts
//! (`billhook_core::tasks::cleanup`).

use billhook_core::entity::kind::EntityKind as _;
use billhook_core::entity::order::OrderKind;
use billhook_core::entity::payment::status::OrderStatus;
use billhook_core::error::DependencyError;
use billhook_core::ids::{OrderId, ProviderId};
use billhook_core::ports::Clock;
use billhook_core::tasks::ports::{FailedOrderPage, FindFailedOrders};

use super::index::ColumnIndex;
use super::ledger::DynamoLedger;

impl<C: Clock> FindFailedOrders for DynamoLedger<C> {
    async fn failed_orders(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<FailedOrderPage, DependencyError> {
        let index = ColumnIndex {
            client: &self.client,
            on_scan: self.on_scan,
            provider: ProviderId::Stripe,
            table: self.application_table(&OrderKind::SCHEMA)?,
            name: "StatusIndex",
            column: "status",
            key: OrderKind::SCHEMA.key,
        };
        let failed = OrderStatus::PaymentFailed.as_str();
        let page = index.query_page(failed, after, limit).await?;
        let orders = page.keys.iter().filter_map(|id| OrderId::parse(id).ok());
        Ok(FailedOrderPage {
            orders: orders.collect(),
            next: page.next,
        })
    }
}
