//! All states, in segments of a parallel scan. DynamoDB divides the keys by their hash.

use billhook_core::entity::key::StateKey;
use billhook_core::entity::schema::STATE_KEY;
use billhook_core::error::DependencyError;
use billhook_core::ports::Clock;
use billhook_core::proof::listing::{ListStates, ScanSegment, StatePage};

use super::attributes::{Item, read_text, string_value};
use super::dependency_error;
use super::ledger::DynamoLedger;

impl<C: Clock> ListStates for DynamoLedger<C> {
    async fn list_states(
        &self,
        segment: ScanSegment,
        after: Option<&str>,
    ) -> Result<StatePage, DependencyError> {
        let table = &self.tables.entities;
        let start = after.map(|after| Item::from([(STATE_KEY.to_owned(), string_value(after))]));
        let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let page = self
            .client
            .scan()
            .table_name(table)
            .segment(number(segment.number))
            .total_segments(number(segment.total))
            .projection_expression(STATE_KEY)
            .set_exclusive_start_key(start)
            .send()
            .await
            .map_err(|error| dependency_error(format!("read {table}"), error))?;
        let key = |item: &Item| read_text(item, STATE_KEY).map(str::to_owned);
        let keys = page.items().iter().filter_map(key);
        Ok(StatePage {
            // The pages of a large state have keys of their own, which are no state's.
            states: keys.filter_map(|key| StateKey::parse(&key)).collect(),
            next: page.last_evaluated_key.as_ref().and_then(key),
        })
    }
}
