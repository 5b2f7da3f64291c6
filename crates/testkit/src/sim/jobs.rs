//! The ports of the scheduled tasks in the simulation: lagging indexes, checkpoints, tenants' accounts.

use std::collections::BTreeSet;

use billhook_core::entity::EntityKey;
use billhook_core::entity::key::{PaymentKey, StateKey};
use billhook_core::error::DependencyError;
use billhook_core::ids::{AccountId, EventId, OrderId, ProviderId, TenantId};
use billhook_core::intake::inbox::EventRecord;
use billhook_core::outcome::EventOutcome;
use billhook_core::proof::listing::{ListStates, ScanSegment, StatePage};
use billhook_core::tasks::checkpoint::{Checkpoint, RECONCILE_PREFIX};
use billhook_core::tasks::ports::{
    AccountsPage, ArrivalSpan, ArrivedEvent, CheckpointSaveResult, CheckpointStore,
    FailedOrderPage, FindFailedOrders, FindKnownEvents, FindOpenStates, FindUnfinishedEvents,
    ListAccounts, UnfinishedEvent, UnfinishedPage,
};
use billhook_core::time::Timestamp;

use super::store::EventRow;
use super::{Mutant, Port, World};
use crate::memory::{
    arrived_events, due_payments, open_page, recent_entities, state_page, troubled_entities,
};

impl World {
    /// Lowers the cursors of `reconcile`.
    pub fn set_cursors_back(&mut self, to_s: i64) {
        for (job, progress) in &mut self.store.jobs {
            if job.starts_with(RECONCILE_PREFIX)
                && progress.done_through_s.is_some_and(|at| at > to_s)
            {
                progress.done_through_s = Some(to_s);
            }
        }
    }

    fn unfinished_events(
        &mut self,
        provider: ProviderId,
        outcome: EventOutcome,
        until: Timestamp,
        after: Option<&UnfinishedEvent>,
        limit: usize,
    ) -> UnfinishedPage {
        let then = self.lagging();
        let all = self.store.events.all_as_of(then);
        let rows = all.filter(|((of, _), _)| *of == provider.as_str());
        let stored = rows.map(|(_, row)| (&row.stored, row.open));
        open_page(stored, outcome, until, after, limit)
    }
}

impl FindOpenStates for Port {
    async fn open_payments(
        &self,
        index_key: &str,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<PaymentKey>, DependencyError> {
        let own = index_key.to_owned();
        self.read("open_payments", index_key, move |world| {
            if world.mutant == Some(Mutant::OpenForgotten) {
                return Vec::new();
            }
            let then = world.lagging();
            let all = world.store.payments.all_as_of(then);
            due_payments(all.map(|(_, payment)| payment), &own, until, limit)
        })
        .await
    }

    async fn troubled_entities(&self) -> Result<Vec<(EntityKey, Timestamp)>, DependencyError> {
        self.read("troubled_entities", "", move |world| {
            let then = world.lagging();
            let all = world.store.entities.all_as_of(then);
            troubled_entities(all.map(|(_, row)| &row.entity))
        })
        .await
    }

    async fn recent_entities(
        &self,
        span: ArrivalSpan,
    ) -> Result<BTreeSet<EntityKey>, DependencyError> {
        self.read("recent_entities", "", move |world| {
            if world.mutant == Some(Mutant::RecentForgotten) {
                return BTreeSet::new();
            }
            let then = world.lagging();
            let all = world.store.entities.all_as_of(then);
            recent_entities(all.map(|(_, row)| &row.entity), span)
        })
        .await
    }
}

impl FindUnfinishedEvents for Port {
    async fn arrived_events(
        &self,
        day: &str,
        span: ArrivalSpan,
    ) -> Result<Vec<ArrivedEvent>, DependencyError> {
        let (provider, own) = (self.provider.as_str(), day.to_owned());
        self.read("arrived_events", day, move |world| {
            let then = world.lagging();
            let all = world.store.events.all_as_of(then);
            let rows = all.filter(|((of, _), _)| *of == provider);
            let rows = rows.map(|(_, row)| (&row.stored, &row.entities));
            let mut arrived = arrived_events(rows, &own, span);
            match world.mutant {
                Some(Mutant::ArrivedForgotten) => arrived.clear(),
                Some(Mutant::RowsForgotten) => {
                    arrived.iter_mut().for_each(|event| event.entities.clear());
                }
                _ => {}
            }
            arrived
        })
        .await
    }

    async fn mark_open(&self, id: &EventId) -> Result<bool, DependencyError> {
        let key = (self.provider.as_str(), id.clone());
        self.write("mark_open", id.as_str(), move |world| {
            let row = world.store.events.get(&key).cloned();
            let is_unmarked =
                |row: &EventRow| row.open.is_none() && row.stored.outcome == EventOutcome::Pending;
            let Some(mut row) = row.filter(is_unmarked) else {
                return false;
            };
            row.open = Some(EventOutcome::Pending);
            let now = world.now();
            world.store.events.put(now, key.clone(), row);
            true
        })
        .await
    }

    async fn unfinished_events(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
        after: Option<&UnfinishedEvent>,
        limit: usize,
    ) -> Result<UnfinishedPage, DependencyError> {
        let (provider, after) = (self.provider, after.cloned());
        self.read("open_events", outcome.as_str(), move |world| {
            world.unfinished_events(provider, outcome, until, after.as_ref(), limit)
        })
        .await
    }

    async fn count_unfinished(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
    ) -> Result<usize, DependencyError> {
        let provider = self.provider;
        self.read("count_open", outcome.as_str(), move |world| {
            let page = world.unfinished_events(provider, outcome, until, None, usize::MAX);
            page.events.len()
        })
        .await
    }

    async fn load_with_reasons(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> Result<Vec<(EventRecord, Option<String>)>, DependencyError> {
        let (provider, ids) = (self.provider.as_str(), ids.clone());
        self.read("reasons", "", move |world| {
            let keys = ids.iter().map(|id| (provider, id.clone()));
            let rows = keys.filter_map(|key| world.store.events.get(&key));
            rows.map(|row| (row.stored.clone(), row.error.clone()))
                .collect()
        })
        .await
    }
}

impl ListStates for Port {
    async fn list_states(
        &self,
        segment: ScanSegment,
        after: Option<&str>,
    ) -> Result<StatePage, DependencyError> {
        let after = after.map(str::to_owned);
        self.read("list_states", "", move |world| {
            let store = &world.store;
            let entities = store.entities.all();
            let entities = entities.map(|(key, _)| StateKey::Entity(key.clone()));
            let payments = store.payments.all();
            let payments = payments.map(|(key, _)| StateKey::Payment(key.clone()));
            let invoices = store.invoices.all();
            let invoices = invoices.map(|(key, _)| StateKey::Invoice(key.clone()));
            let all = entities.chain(payments).chain(invoices);
            state_page(all, segment, after.as_deref())
        })
        .await
    }
}

impl FindKnownEvents for Port {
    async fn known_events(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> Result<BTreeSet<EventId>, DependencyError> {
        let ids = ids.clone();
        self.read("known", "", move |world| {
            let stripe = ProviderId::Stripe.as_str();
            let is_known =
                |id: &&EventId| world.store.events.get(&(stripe, (*id).clone())).is_some();
            ids.iter().filter(is_known).cloned().collect()
        })
        .await
    }
}

impl FindFailedOrders for Port {
    async fn failed_orders(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<FailedOrderPage, DependencyError> {
        let after = after.map(str::to_owned);
        self.read("failed_orders", "", move |world| {
            let then = world.lagging();
            let all = world.store.entities.all_as_of(then);
            let failed = all.filter(|(_, row)| !row.entity.row().is_missing);
            let failed = failed.filter(|(_, row)| {
                row.entity.columns().status.as_deref() == Some("payment_failed")
            });
            let ids = failed.filter_map(|(key, _)| key.order().cloned());
            let orders = ids.filter(|id| after.as_deref().is_none_or(|after| id.as_str() > after));
            let orders: Vec<OrderId> = orders.take(limit).collect();
            let last = orders.last().filter(|_| orders.len() == limit);
            let next = last.map(ToString::to_string);
            FailedOrderPage { orders, next }
        })
        .await
    }
}

impl CheckpointStore for Port {
    async fn load_checkpoint(&self, job: &str) -> Result<Checkpoint, DependencyError> {
        let own = job.to_owned();
        self.read("progress", job, move |world| {
            world.store.jobs.get(&own).cloned().unwrap_or_default()
        })
        .await
    }

    async fn save_checkpoint(
        &self,
        job: &str,
        read: &Checkpoint,
        next: &Checkpoint,
    ) -> Result<CheckpointSaveResult, DependencyError> {
        let (own, read, next) = (job.to_owned(), read.clone(), next.clone());
        self.write("keep", job, move |world| {
            let current = world.store.jobs.entry(own.clone()).or_default();
            if current.done_through_s != read.done_through_s {
                return CheckpointSaveResult::Superseded;
            }
            *current = next.clone();
            CheckpointSaveResult::Saved
        })
        .await
    }
}

impl ListAccounts for Port {
    async fn accounts(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<AccountsPage, DependencyError> {
        let after = after.map(str::to_owned);
        self.read("accounts", "", move |world| {
            let all = world.store.accounts.all();
            let rows =
                all.filter(|(id, _)| after.as_deref().is_none_or(|after| id.as_str() > after));
            let rows: Vec<_> = rows.take(limit).collect();
            let last = rows.last().filter(|_| rows.len() == limit);
            let previous = rows.iter().flat_map(|(tenant, _)| {
                let its = world.store.previous_accounts.get(*tenant);
                let its = its.into_iter().flatten().cloned();
                its.map(|account| (account, (*tenant).clone()))
            });
            AccountsPage {
                next: last.map(|(tenant, _)| tenant.to_string()),
                accounts: rows.iter().map(|(_, account)| (*account).clone()).collect(),
                previous: previous.collect(),
            }
        })
        .await
    }

    async fn note_previous_accounts(
        &self,
        previous: &BTreeSet<(AccountId, TenantId)>,
    ) -> Result<(), DependencyError> {
        let previous = previous.clone();
        self.write("note_accounts", "", move |world| {
            world.store.account_notes.extend(previous.iter().cloned());
        })
        .await
    }
}
