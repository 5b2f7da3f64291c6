//! The steps of an event through a round, and the round's one way out.
//!
//! Each stage of a round takes events that are ready and returns an [`EventStep`] for each. [`BatchProgress::pass`]
//! sends the ready ones on to the next stage and takes in all others: a closed event's verdict is written at the end of
//! the round, a failed event is in the next round, a done event is in the report. No stage decides anything here.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};

use crate::entity::key::{InvoiceKey, PaymentKey};
use crate::entity::payment::state::LinkSource;
use crate::entity::{Entity, EntityKey};
use crate::ids::{AccountId, EventId, TenantId};
use crate::intake::inbox::EventRecord;
use crate::outcome::{EventVerdict, ParkReason};
use crate::ports::{Clock, Pause};
use crate::provider::interpret;
use crate::provider::interpret::{EventFacts, EventSubject, PaymentEventFacts};
use crate::worker::batch::{
    CALLS_AT_ONCE, MessageReport, ProcessingFailure, ProcessingSuccess, Worker,
};
use crate::worker::ports::{
    EntityCommit, EventUpdate, Ledger, LoadedRows, PaymentNotice, StoredEvent, StoredPayload,
};

/// What a stage makes of an event.
pub(super) enum EventStep<T> {
    /// Goes on to the next stage, as this.
    Ready(T),
    /// Ends here without changing an entity: this verdict is to be written.
    Close(EventUpdate),
    /// Could not be finished, with the cause: the next round tries again.
    Fail(EventId, ProcessingFailure),
    /// Nothing is left to write.
    Done(Box<MessageReport>),
}

impl<T> EventStep<T> {
    pub(super) fn done(report: MessageReport) -> Self {
        Self::Done(Box::new(report))
    }

    /// The verdict is in the event's row now.
    pub(super) fn written(update: EventUpdate) -> Self {
        Self::done(report_written(update))
    }

    pub(super) fn and_then<U>(self, next: impl FnOnce(T) -> EventStep<U>) -> EventStep<U> {
        match self {
            Self::Ready(event) => next(event),
            Self::Close(update) => EventStep::Close(update),
            Self::Fail(event, failure) => EventStep::Fail(event, failure),
            Self::Done(report) => EventStep::Done(report),
        }
    }
}

/// An event that was read and interpreted; `resolve` adds its tenant and its target.
pub(super) struct EventCandidate {
    pub(super) stored: EventRecord,
    pub(super) event: EventFacts,
    /// The tenant of the event's account; an event of the platform has none.
    pub(super) tenant: Option<TenantId>,
    /// None until it is resolved.
    pub(super) target: Option<EventTarget>,
    /// Why it ends as parked, although its payment takes its facts.
    pub(super) parked: Option<ParkReason>,
    pub(super) row_bytes: usize,
}

/// What takes an event's facts.
pub(super) enum EventTarget {
    Entity(EntityKey),
    Payment {
        key: PaymentKey,
        /// The orders and statements that the event links to the payment.
        links: Vec<(EntityKey, LinkSource)>,
    },
}

impl EventCandidate {
    pub(super) fn new(stored: EventRecord, event: EventFacts, row_bytes: usize) -> Self {
        Self {
            stored,
            event,
            tenant: None,
            target: None,
            parked: None,
            row_bytes,
        }
    }

    /// The accounts whose tenant matters: its own, and those that get the money of its payment.
    pub(super) fn accounts(&self) -> impl Iterator<Item = AccountId> {
        let recipients = match &self.event.subject {
            EventSubject::Payment(payment) => payment.recipients.clone(),
            EventSubject::Piece(..) | EventSubject::Account(_) => BTreeSet::new(),
        };
        self.stored.account.clone().into_iter().chain(recipients)
    }

    pub(super) fn has_recipients(&self) -> bool {
        match &self.event.subject {
            EventSubject::Payment(payment) => !payment.recipients.is_empty(),
            EventSubject::Piece(..) | EventSubject::Account(_) => false,
        }
    }

    /// The rows of all names of its payment.
    pub(super) fn payment_names<'p>(
        &'p self,
        payment: &'p PaymentEventFacts,
    ) -> impl Iterator<Item = PaymentKey> + 'p {
        let names = payment.names.iter().cloned();
        names.map(|payment| PaymentKey {
            account: self.stored.account.clone(),
            payment,
        })
    }

    /// Its payment: the one with the best name, or the one that an alias of that name leads to.
    pub(super) fn find_payment<R>(
        &self,
        payment: &PaymentEventFacts,
        rows: &LoadedRows<R>,
    ) -> Option<PaymentKey> {
        let best = self.payment_names(payment).next()?;
        let alias = rows.payment(&best).and_then(|row| row.alias_of.clone());
        Some(alias.unwrap_or(best))
    }

    pub(super) fn invoice(&self, payment: &PaymentEventFacts) -> Option<InvoiceKey> {
        Some(InvoiceKey {
            account: self.stored.account.clone(),
            invoice: payment.invoice.clone()?,
        })
    }

    /// The entity of an event about the account itself.
    pub(super) fn own_tenant(&self) -> Option<EntityKey> {
        match self.event.subject {
            EventSubject::Account(_) => self.tenant.clone().map(EntityKey::Tenant),
            EventSubject::Payment(_) | EventSubject::Piece(..) => None,
        }
    }

    /// Tenant isolation: an event of a connected account may change only entities of its own tenant. An event of the
    /// platform may change any, because destination charges for tenants live on the platform's account.
    pub(super) fn may_change(&self, entity: &Entity) -> bool {
        let is_of_platform = self.stored.account.is_none();
        let tenant = self.tenant.as_ref();
        let is_own = is_of_platform || (tenant.is_some() && tenant == entity.tenant());
        is_own && entity.write_refusal().is_none()
    }

    pub(super) fn event_update(&self, verdict: EventVerdict) -> EventUpdate {
        EventUpdate {
            event: self.stored.id.clone(),
            tenant: self.tenant.clone(),
            entities: BTreeSet::new(),
            verdict,
        }
    }

    /// The outcome once its facts are written.
    pub(super) fn verdict(&self) -> EventVerdict {
        match self.parked {
            Some(reason) => EventVerdict::Parked(reason),
            None => EventVerdict::Processed,
        }
    }

    pub(super) fn park<T>(&self, reason: ParkReason) -> EventStep<T> {
        EventStep::Close(self.event_update(EventVerdict::Parked(reason)))
    }

    pub(super) fn fail<T>(&self, failure: ProcessingFailure) -> EventStep<T> {
        EventStep::Fail(self.stored.id.clone(), failure)
    }
}

fn report_written(update: EventUpdate) -> MessageReport {
    let success = ProcessingSuccess::Decided(update.verdict);
    MessageReport {
        tenant: update.tenant,
        entities: update.entities,
        ..MessageReport::of_event(update.event, Ok(success))
    }
}

pub(super) fn fail_each<T>(
    ids: impl IntoIterator<Item = EventId>,
    failure: &ProcessingFailure,
) -> Vec<EventStep<T>> {
    let fail = |id| EventStep::Fail(id, failure.clone());
    ids.into_iter().map(fail).collect()
}

/// None if it panicked: a bug that one record triggers must not fail the other records of the batch.
pub(super) async fn catch_panic<T>(future: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(future).catch_unwind().await.ok()
}

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    /// Reads the facts from an event's payload. A panic fails only this event.
    pub(super) fn interpret_event(&self, loaded: StoredEvent) -> EventStep<EventCandidate> {
        let StoredEvent {
            stored,
            payload,
            row_bytes,
            ..
        } = loaded;
        let interpreted = catch_unwind(AssertUnwindSafe(|| match &payload {
            StoredPayload::Intact(payload) => {
                interpret(self.provider, &self.rules, stored.account.as_ref(), payload)
            }
            StoredPayload::Tampered => Err(EventVerdict::Parked(ParkReason::Tampered)),
            StoredPayload::Unreadable => Err(EventVerdict::Parked(ParkReason::PayloadUnreadable)),
        }));
        match interpreted {
            Ok(Ok(facts)) => EventStep::Ready(EventCandidate::new(stored, facts, row_bytes)),
            Ok(Err(verdict)) => EventStep::Close(EventUpdate {
                event: stored.id,
                tenant: None,
                entities: BTreeSet::new(),
                verdict,
            }),
            Err(_) => EventStep::Fail(stored.id, ProcessingFailure::Panicked),
        }
    }
}

/// What is known about each event of a batch so far.
///
/// It lives outside the round's future: if one row's call hangs and the round is dropped, the results of what was
/// already committed stay. Before this existed, one slow row made the worker report its neighbours' committed events as
/// failed. For the same reason results are taken in as soon as each call completes.
pub(super) struct BatchProgress {
    /// One per event of the batch. An error is the cause of the last failure: such an event is unfinished.
    pub(super) reports: BTreeMap<EventId, MessageReport>,
    /// What the transactions changed, for the log and the metrics.
    pub(super) commits: Vec<EntityCommit>,
    /// What somebody has to hear of the payments that events or rechecks are about.
    pub(super) notices: BTreeSet<PaymentNotice>,
    closed: Vec<EventUpdate>,
}

impl BatchProgress {
    pub(super) fn new<'a>(ids: impl Iterator<Item = &'a EventId>) -> Self {
        let unfinished = |id: &EventId| {
            let failure = Err(ProcessingFailure::OutOfTime);
            (id.clone(), MessageReport::of_event(id.clone(), failure))
        };
        Self {
            reports: ids.map(unfinished).collect(),
            commits: Vec::new(),
            notices: BTreeSet::new(),
            closed: Vec::new(),
        }
    }

    pub(super) fn unfinished_ids(&self) -> BTreeSet<EventId> {
        let unfinished = self.reports.iter().filter(|(_, of)| of.result.is_err());
        unfinished.map(|(id, _)| id.clone()).collect()
    }

    /// Notes the row of each unfinished event as it was just read, for the report.
    pub(super) fn note_rows(&mut self, loaded: &[StoredEvent]) {
        for (id, report) in &mut self.reports {
            if report.result.is_err() {
                let row = loaded.iter().find(|loaded| loaded.stored.id == *id);
                report.stored = row.map(|loaded| loaded.stored.clone());
            }
        }
    }

    /// Returns the ready events and takes in all others.
    pub(super) fn pass<T>(&mut self, steps: impl IntoIterator<Item = EventStep<T>>) -> Vec<T> {
        let mut ready = Vec::new();
        for step in steps {
            match step {
                EventStep::Ready(event) => ready.push(event),
                EventStep::Close(update) => self.closed.push(update),
                EventStep::Fail(event, failure) => self.fail_event(&event, failure),
                EventStep::Done(report) => self.finish_event(*report),
            }
        }
        ready
    }

    /// The same for steps that need calls: at most [`CALLS_AT_ONCE`] are in progress, and each one's steps are taken in
    /// as soon as it completes.
    pub(super) async fn pass_each<T>(
        &mut self,
        stages: impl IntoIterator<Item = impl Future<Output = Vec<EventStep<T>>>>,
    ) -> Vec<T> {
        let mut completed = stream::iter(stages).buffer_unordered(CALLS_AT_ONCE);
        let mut ready = Vec::new();
        while let Some(steps) = completed.next().await {
            ready.extend(self.pass(steps));
        }
        ready
    }

    pub(super) fn take_closed(&mut self) -> Vec<EventUpdate> {
        std::mem::take(&mut self.closed)
    }

    /// The accounts of the events that are parked because nobody can read what they say. A stored payload that was damaged
    /// or changed is not the account's doing.
    pub(super) fn accounts_of_malformed(&self) -> BTreeMap<EventId, AccountId> {
        let is_malformed = |update: &&EventUpdate| match update.verdict {
            EventVerdict::Parked(ParkReason::Tampered | ParkReason::PayloadUnreadable) => false,
            EventVerdict::Parked(_) => true,
            EventVerdict::Processed | EventVerdict::Ignored(_) | EventVerdict::Failed(_) => false,
        };
        let malformed = self.closed.iter().filter(is_malformed);
        let accounts = malformed.filter_map(|update| {
            let stored = self.reports.get(&update.event)?.stored.as_ref()?;
            Some((update.event.clone(), stored.account.clone()?))
        });
        accounts.collect()
    }

    fn fail_event(&mut self, event: &EventId, failure: ProcessingFailure) {
        if let Some(report) = self.reports.get_mut(event)
            && report.result.is_err()
        {
            report.result = Err(failure);
        }
    }

    fn finish_event(&mut self, mut report: MessageReport) {
        if let Some(known) = report
            .event
            .as_ref()
            .and_then(|event| self.reports.get_mut(event))
        {
            report.stored = known.stored.take();
            *known = report;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> EventId {
        EventId::parse(id).unwrap()
    }

    fn closed(event: &str) -> EventUpdate {
        EventUpdate {
            event: id(event),
            tenant: None,
            entities: BTreeSet::new(),
            verdict: EventVerdict::Parked(ParkReason::OrderUnknown),
        }
    }

    #[test]
    fn only_ready_events_pass_and_only_failed_ones_stay_unfinished() {
        let ids = ["evt_fails", "evt_closes", "evt_ends", "evt_passes"].map(id);
        let mut progress = BatchProgress::new(ids.iter());
        let ready = progress.pass([
            EventStep::Fail(id("evt_fails"), ProcessingFailure::NotStored),
            EventStep::Close(closed("evt_closes")),
            EventStep::written(closed("evt_ends")),
            EventStep::Ready("evt_passes"),
        ]);
        assert_eq!(ready, ["evt_passes"]);
        assert_eq!(progress.take_closed(), [closed("evt_closes")]);
        assert_eq!(progress.take_closed(), []);
        // Until its verdict is written, a closed event is unfinished too.
        let unfinished = ["evt_closes", "evt_fails", "evt_passes"].map(id);
        assert_eq!(progress.unfinished_ids(), unfinished.into());
        let failure = &progress.reports[&id("evt_fails")].result;
        assert_eq!(*failure, Err(ProcessingFailure::NotStored));
    }

    #[test]
    fn no_failure_takes_back_a_result() {
        let mut progress = BatchProgress::new([id("evt_1")].iter());
        progress.pass([EventStep::<()>::written(closed("evt_1"))]);
        progress.pass([EventStep::<()>::Fail(
            id("evt_1"),
            ProcessingFailure::Panicked,
        )]);
        assert!(progress.reports[&id("evt_1")].result.is_ok());
    }
}
