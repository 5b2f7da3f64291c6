//! The worker: processes a batch of queue messages and returns one report per message (partial batch response).
//!
//! It works in rounds with an optimistic lock instead of leases: each round reads every unfinished event and its
//! entity, decides, and writes on condition that nothing changed since the read. An event that loses a race is
//! unfinished in the next round. Guarantees: a message is reported as done only if its event was read as processed or
//! this worker wrote its outcome; one bad record never stops another. Not guaranteed: processing order (facts merge in
//! any order, `entity::merge`).
//!
//! An event passes through seven types. It comes as a `ReceivedMessage`, is read as a `StoredEvent` and interpreted as an
//! `EventCandidate`, and is written in a `CommitUnit` or by an `EventUpdate` of its own. Each stage answers with an
//! `EventStep`, and the batch with a `MessageReport`. Read next: `step` has the steps and the one way out of a round,
//! `resolve` finds what an event belongs to, `plan` says what is written, `commit` writes it, `batch` has the limits.
//!
//! A message may also name a payment: then the worker rechecks it without an event (`recheck_payment`).

pub mod batch;
mod commit;
mod plan;
pub mod ports;
mod resolve;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt as _};

use crate::entity::key::{PaymentKey, StateKey};
use crate::entity::payment::linked::RelinkDecision;
use crate::entity::payment::state::{LinkSource, NoticeReport, PaymentState};
use crate::entity::{Entity, EntityKey};
use crate::ids::{AccountId, CorrelationId, EventId, ProviderId};
use crate::intake::message::ReceivedPointer;
use crate::outcome::{EventVerdict, ParkReason};
use crate::ports::{Clock, Pause};
use crate::time::Timestamp;
use crate::worker::batch::{
    BatchReport, CALLS_AT_ONCE, MessageReport, ProcessingFailure, ProcessingSuccess,
    ReceivedMessage, RelinkError, TimeLeft, Worker,
};
use crate::worker::commit::{RoundRows, UnitCommit};
pub use crate::worker::plan::PaymentRebuild;
use crate::worker::plan::{CommitUnit, PaymentRecheck, group_units};
use crate::worker::ports::{EntityCommit, EventUpdate, Ledger, LoadedRows, StoredEvent};
use crate::worker::resolve::{
    AccountTenants, IndexHints, assign_tenants, find_claims, gather_rows, ignore_unread_if_muted,
    recipients_of, resolve_events,
};
use crate::worker::step::{BatchProgress, EventCandidate, EventStep, fail_each};

/// Rounds within one receive of a message. After the fifth the worker reports the message as failed, and the queue
/// delivers it again 60 s later: then the cause is more likely an outage than a race.
const ROUNDS_MAX: u32 = 5;

/// The messages that name an event, each with its own correlation id if it has one.
type MessagesByEvent<'a> = BTreeMap<EventId, Vec<(&'a ReceivedMessage, Option<CorrelationId>)>>;

impl<L: Ledger, C: Clock + Pause> Worker<L, C> {
    /// Processes a batch in at most 5 rounds. Starts no round and no transaction within [`batch::TIME_TO_FINISH`] of
    /// `deadline`; only failures are still marked.
    ///
    /// When `late` completes, the calls in progress are abandoned and their messages reported as failed. Without that,
    /// one call that hangs would run into Lambda's timeout, and all ten messages of the batch would be received again.
    pub async fn process_batch(
        &self,
        messages: &[ReceivedMessage],
        deadline: Timestamp,
        late: impl Future<Output = ()>,
    ) -> BatchReport {
        let mut late = std::pin::pin!(late);
        let mut is_late = false;
        let (named, payments, mut reports) = read_pointers(self.provider, messages);
        let mut progress = BatchProgress::new(named.keys());
        for round in 0..ROUNDS_MAX {
            if progress.unfinished_ids().is_empty()
                || self.time_left(deadline) == TimeLeft::TooLittle
            {
                break;
            }
            if round > 0 {
                // Exponential backoff: 50, 100, 200, 400 ms, so that the other writer can finish.
                self.clock.pause(Duration::from_millis(25 << round)).await;
            }
            let round = std::pin::pin!(self.run_round(deadline, &mut progress));
            is_late = matches!(select(round, late.as_mut()).await, Either::Right(_));
            if is_late {
                break;
            }
        }
        let mut rechecked = BTreeMap::new();
        // Several at once, so that one slow call does not take the time of all.
        let rechecks = payments.keys().map(|payment| async move {
            let result = self.recheck_payment(payment, deadline).await;
            (payment.clone(), result)
        });
        let rechecks = stream::iter(rechecks).buffer_unordered(CALLS_AT_ONCE);
        let mut rechecks = std::pin::pin!(rechecks);
        while !is_late {
            match select(rechecks.next(), late.as_mut()).await {
                Either::Left((Some((payment, result)), _)) => {
                    rechecked.insert(payment, result);
                }
                Either::Left((None, _)) => break,
                Either::Right(_) => is_late = true,
            }
        }
        for (payment, messages) in &payments {
            let result = rechecked.remove(payment);
            let result = result.unwrap_or(Err(ProcessingFailure::OutOfTime));
            let result = result.map(|unit| {
                progress.commits.extend(unit.commits);
                progress.notices.extend(unit.notices);
                ProcessingSuccess::Rechecked
            });
            reports.extend(messages.iter().map(|message| {
                let result = match &result {
                    // Nothing is lost: the payment's row says that it is open, and the sweep finds it.
                    Err(failure) if message.is_last_receive => {
                        Ok(ProcessingSuccess::LeftToSweep(failure.to_string()))
                    }
                    result => result.clone(),
                };
                MessageReport {
                    payment: Some(payment.clone()),
                    ..MessageReport::of_message(Some((*message).clone()), result)
                }
            }));
        }
        // If it is late, there is no time for this write: the events stay pending, and the sweep retries them.
        if !is_late {
            self.mark_failed(&named, &mut progress).await;
        }
        reports.extend(report_messages(named, progress.reports));
        BatchReport {
            messages: reports,
            commits: progress.commits,
            notices: progress.notices,
        }
    }

    /// Rechecks a payment without an event: searches the indexes if no order or statement is linked to it, and updates
    /// outdated copies. Repeats lost races like a round.
    async fn recheck_payment(
        &self,
        payment: &PaymentKey,
        deadline: Timestamp,
    ) -> Result<UnitCommit, ProcessingFailure> {
        let mut failure = ProcessingFailure::OutOfTime;
        for round in 0..ROUNDS_MAX {
            if self.time_left(deadline) == TimeLeft::TooLittle {
                break;
            }
            if round > 0 {
                self.clock.pause(Duration::from_millis(25 << round)).await;
            }
            match self.recheck_once(payment).await {
                Ok(unit) => return Ok(unit),
                Err(failed) => failure = failed,
            }
        }
        Err(failure)
    }

    async fn recheck_once(&self, payment: &PaymentKey) -> Result<UnitCommit, ProcessingFailure> {
        let loaded = self.load_recheck(payment, None).await?;
        // Of an alias only the copies that were made under its name are left to remove.
        let is_open = |payment: &&PaymentState| {
            payment.alias_of.is_none() || !payment.outdated_copies().is_empty()
        };
        let Some(known) = loaded.rows.payment(payment).filter(is_open) else {
            return Ok(UnitCommit::default());
        };
        let may_claim = |entity: &Entity| {
            let tenants = &loaded.tenants;
            tenants.may_change(payment.account.as_ref(), entity)
                && tenants
                    .receipt_refusal(&known.facts.recipients, entity)
                    .is_none()
        };
        let hits = match known.may_be_claimed() {
            true => find_claims(
                payment,
                Some(known),
                None,
                &loaded.rows,
                &loaded.hints,
                may_claim,
            ),
            false => Ok(Vec::new()),
        };
        let recheck = PaymentRecheck {
            hits: hits.map_err(ProcessingFailure::Infrastructure)?,
            notices: NoticeReport::ByWriter,
            ..PaymentRecheck::of_command(payment)
        };
        self.commit_recheck(recheck, &loaded.rows, &loaded.tenants)
            .await
    }

    /// Links a payment to an order or statement, or to none, by a person's decision: later events, replays and rebuilds
    /// keep it. The one that it was linked to before loses the payment's facts in the same transaction.
    pub async fn relink_payment(
        &self,
        payment: &PaymentKey,
        to: Option<&EntityKey>,
        actor: &str,
        reason: &str,
    ) -> Result<Vec<EntityCommit>, RelinkError> {
        let loaded = self.load_recheck(payment, to).await?;
        let known = check_link_target(payment, to, &loaded)?;
        let last = known.facts.relink.as_ref().map_or(0, |last| last.0.number);
        let recheck = PaymentRecheck {
            relink: Some(RelinkDecision {
                number: last.saturating_add(1),
                entity: to.cloned(),
                actor: actor.to_owned(),
                reason: reason.to_owned(),
            }),
            ..PaymentRecheck::of_command(payment)
        };
        let committed = self.commit_recheck(recheck, &loaded.rows, &loaded.tenants);
        Ok(committed.await?.commits)
    }

    /// Links a payment, however old it is, to the order or statement that bears its PaymentIntent in its column, or is
    /// about to: the index need not show it yet. Not if another one has a better link; the payment's state then says so.
    pub async fn link_payment(
        &self,
        payment: &PaymentKey,
        to: &EntityKey,
    ) -> Result<Vec<EntityCommit>, RelinkError> {
        let loaded = self.load_recheck(payment, Some(to)).await?;
        check_link_target(payment, Some(to), &loaded)?;
        let recheck = PaymentRecheck {
            hits: vec![(to.clone(), LinkSource::Column)],
            ..PaymentRecheck::of_command(payment)
        };
        let committed = self.commit_recheck(recheck, &loaded.rows, &loaded.tenants);
        Ok(committed.await?.commits)
    }

    /// Writes a payment's state as its events say, and the copies of it. `rows` are as they were proven, so nothing is
    /// written if one of them changed since.
    pub async fn rebuild_payment(
        &self,
        payment: &PaymentKey,
        rebuild: PaymentRebuild,
        rows: &LoadedRows<L::Row>,
    ) -> Result<Vec<EntityCommit>, ProcessingFailure> {
        let recheck = PaymentRecheck {
            rebuild,
            ..PaymentRecheck::of_command(payment)
        };
        let rebuilt = recheck.rebuild.facts.iter();
        let recipients = rebuilt.flat_map(|facts| facts.recipients.iter().cloned());
        let accounts: Vec<AccountId> = payment
            .account
            .clone()
            .into_iter()
            .chain(recipients)
            .chain(recipients_of(rows))
            .collect();
        let mut tenants = AccountTenants::default();
        let mut tenant_rows = LoadedRows::empty();
        tenants
            .add(&self.ledger, accounts.iter().cloned(), &mut tenant_rows)
            .await?;
        tenants.check_known(&accounts)?;
        Ok(self.commit_recheck(recheck, rows, &tenants).await?.commits)
    }

    async fn load_recheck(
        &self,
        payment: &PaymentKey,
        to: Option<&EntityKey>,
    ) -> Result<RecheckRows<L::Row>, ProcessingFailure> {
        let mut tenants = AccountTenants::ask(&self.ledger, payment.account.clone()).await;
        let asked = BTreeSet::from([payment.clone()]);
        let mut more = tenants.row_keys();
        more.extend(to.cloned().map(StateKey::Entity));
        let (mut rows, hints) = gather_rows(&self.ledger, &[], &asked, &more).await?;
        tenants.confirm(&self.ledger, &mut rows).await;
        let recipients: Vec<AccountId> = recipients_of(&rows).collect();
        tenants
            .add(&self.ledger, recipients.iter().cloned(), &mut rows)
            .await?;
        tenants.check_known(payment.account.iter().chain(&recipients))?;
        match rows.unreadable.get(&StateKey::Payment(payment.clone())) {
            Some(unreadable) => Err(ProcessingFailure::NewerSchema(unreadable.to_string())),
            None => Ok(RecheckRows {
                rows,
                hints,
                tenants,
            }),
        }
    }

    async fn commit_recheck(
        &self,
        recheck: PaymentRecheck,
        rows: &LoadedRows<L::Row>,
        tenants: &AccountTenants,
    ) -> Result<UnitCommit, ProcessingFailure> {
        let unit = CommitUnit {
            events: Vec::new(),
            rechecks: vec![recheck],
        };
        let round = RoundRows {
            rows,
            tenants,
            now: self.clock.now(),
        };
        self.commit_unit(unit, &round).await
    }

    /// One round: read, decide, write, in five stages. Each stage gets the events that are ready and returns a step for
    /// each; `progress` lets the ready ones pass and takes in the others. It is the only way out of a round: an event
    /// that no stage finished is unfinished in the next round.
    ///
    /// 1. Load the unfinished events, consistently. A missing row fails its message (`NotStored`); a row that is
    ///    already processed is done (a redelivered message, or a worker that was faster).
    /// 2. Interpret each payload into facts. A panic on one event fails only that event.
    /// 3. Ask which tenants may have each account, by a cache or index.
    /// 4. Read their rows, which decide, together with the others, and resolve what each event belongs to: at most five reads of rows, one index query for each piece, and one for each
    ///    payment that the rows and the events link to nothing.
    /// 5. Commit: merge, derive and write payments and entities.
    ///
    /// Last, write the outcome of every event that a stage closed, because it changes no entity.
    ///
    /// Why rounds: between read and write another worker, the cleanup or a person may change the row. Then the
    /// decision is based on old facts, so the worker must not repeat the write but read and decide again. Example: two
    /// payments of one order have different message groups, so two workers can get them at the same moment.
    ///
    /// ```text
    ///  ms   worker A (evt_a of pi_1)              worker B (evt_b of pi_2)
    ///   0   reads ord_1: version 7
    ///   2                                         reads ord_1: version 7
    ///  10   writes version 7 → 8, evt_a processed
    ///  12                                         writes 7 → 8: condition fails, nothing is written (LostRace)
    ///  62                                         round 2, after 50 ms: reads ord_1: version 8, with facts of evt_a
    ///  70                                         writes version 8 → 9, evt_b processed: the row has both facts
    /// ```
    ///
    /// If A and B have the same event, the condition on the event fails instead, and in round 2 B reads it as
    /// processed. If B wrote and only lost the answer, round 2 finds the same: nothing is applied twice.
    async fn run_round(&self, deadline: Timestamp, progress: &mut BatchProgress) {
        let loaded = self.load_events(progress).await;
        let loaded = progress.pass(loaded);

        let interpreted = loaded.into_iter().map(|event| self.interpret_event(event));
        let interpreted = progress.pass(interpreted);

        let malformed = progress.accounts_of_malformed();
        let accounts = interpreted.iter().flat_map(EventCandidate::accounts);
        let accounts = accounts.chain(malformed.values().cloned());
        let mut tenants = AccountTenants::ask(&self.ledger, accounts).await;
        let of_tenants = progress.pass(assign_tenants(interpreted, &tenants));

        let (resolved, rows) = resolve_events(&self.ledger, of_tenants, &mut tenants).await;
        let resolved = progress.pass(resolved);

        let units = group_units(resolved, &rows);
        let round = RoundRows {
            rows: &rows,
            tenants: &tenants,
            now: self.clock.now(),
        };
        self.commit_units(units, &round, deadline, progress).await;

        let mut closed = progress.take_closed();
        ignore_unread_if_muted(&mut closed, &malformed, &tenants, &rows);
        let closed = closed.into_iter();
        let writing = closed.map(|update| self.write_outcome(update));
        progress.pass_each(writing).await;
    }

    async fn load_events(&self, progress: &mut BatchProgress) -> Vec<EventStep<StoredEvent>> {
        let mut ids = progress.unfinished_ids();
        let loaded = match self.ledger.load_events(self.provider, &ids).await {
            Ok(loaded) => loaded,
            Err(error) => return fail_each(ids, &error.into()),
        };
        progress.note_rows(&loaded);
        for loaded in &loaded {
            ids.remove(&loaded.stored.id);
        }
        let mut steps = fail_each(ids, &ProcessingFailure::NotStored);
        steps.extend(loaded.into_iter().map(|loaded| {
            let StoredEvent { stored, .. } = &loaded;
            match stored.processed {
                true => {
                    let done = ProcessingSuccess::AlreadyDone(stored.outcome);
                    EventStep::done(MessageReport::of_event(stored.id.clone(), Ok(done)))
                }
                false => EventStep::Ready(loaded),
            }
        }));
        steps
    }

    /// Marks events as `failed` on the last receive of their message, before the queue moves it to the dead-letter
    /// queue; on earlier receives the event stays as it is, because the queue delivers the message again. If this write
    /// fails too, the event stays pending and the sweep retries it.
    ///
    /// An event that waits for a newer release is parked instead, and its message is done: the sweep sends it again.
    async fn mark_failed(&self, named: &MessagesByEvent<'_>, progress: &mut BatchProgress) {
        for (id, messages) in named {
            if !messages.iter().any(|(message, _)| message.is_last_receive) {
                continue;
            }
            if let Some(report) = progress.reports.get(id)
                && let (Err(failure), Some(_)) = (&report.result, &report.stored)
            {
                let update = |verdict| EventUpdate {
                    event: id.clone(),
                    tenant: None,
                    entities: BTreeSet::new(),
                    verdict,
                };
                if let ProcessingFailure::NewerSchema(_) = failure {
                    let parked = update(EventVerdict::Parked(ParkReason::NewerSchema));
                    let steps = self.write_outcome(parked).await;
                    progress.pass(steps);
                } else {
                    self.write_outcome(update(EventVerdict::Failed(failure.to_string())))
                        .await;
                }
            }
        }
    }
}

/// What a recheck rests on.
struct RecheckRows<R> {
    rows: LoadedRows<R>,
    hints: IndexHints,
    tenants: AccountTenants,
}

/// The payment that is to be linked, if it may be linked to this order or statement.
fn check_link_target<'r, R>(
    payment: &PaymentKey,
    to: Option<&EntityKey>,
    loaded: &'r RecheckRows<R>,
) -> Result<&'r PaymentState, RelinkError> {
    let known = loaded.rows.payment(payment);
    let known = known.ok_or(RelinkError::PaymentUnknown)?;
    if let Some(alias_of) = &known.alias_of {
        return Err(RelinkError::Alias(alias_of.clone()));
    }
    let Some(to) = to else { return Ok(known) };
    let (Some((target, _)), EntityKey::Order(_) | EntityKey::Statement(_)) =
        (loaded.rows.entities.get(to), to)
    else {
        return Err(RelinkError::TargetUnknown);
    };
    if target.row().is_missing {
        return Err(RelinkError::TargetUnknown);
    }
    if target.write_refusal() == Some(ParkReason::StateBehind) {
        return Err(RelinkError::StateBehind);
    }
    match loaded.tenants.may_change(payment.account.as_ref(), target) {
        true => Ok(known),
        false => Err(RelinkError::OtherTenant),
    }
}

/// The messages by the event or payment that they point to, and a report for each message that is no pointer.
fn read_pointers(
    provider: ProviderId,
    messages: &[ReceivedMessage],
) -> (
    MessagesByEvent<'_>,
    BTreeMap<PaymentKey, Vec<&ReceivedMessage>>,
    Vec<MessageReport>,
) {
    let mut named = MessagesByEvent::new();
    let mut payments: BTreeMap<PaymentKey, Vec<&ReceivedMessage>> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for message in messages {
        match ReceivedPointer::parse(provider, &message.body) {
            Some(ReceivedPointer::Event(pointer)) => {
                let correlation_id = pointer.correlation_id.as_deref();
                let correlation_id = correlation_id.and_then(CorrelationId::parse);
                let known = named.entry(pointer.event_id).or_default();
                known.push((message, correlation_id));
            }
            Some(ReceivedPointer::Payment(payment)) => {
                payments.entry(payment).or_default().push(message);
            }
            None => unreadable.push(MessageReport::of_message(
                Some(message.clone()),
                Err(ProcessingFailure::Unreadable),
            )),
        }
    }
    (named, payments, unreadable)
}

/// One report per message.
fn report_messages(
    named: MessagesByEvent<'_>,
    mut by_event: BTreeMap<EventId, MessageReport>,
) -> Vec<MessageReport> {
    for report in by_event.values_mut() {
        let stored = report.stored.as_ref();
        report.correlation_id = stored.and_then(|stored| stored.correlation_id);
    }
    let mut reports = Vec::new();
    for (event, messages) in named {
        let Some(report) = by_event.remove(&event) else {
            continue;
        };
        for (message, correlation_id) in messages {
            reports.push(MessageReport {
                message: Some(message.clone()),
                correlation_id: correlation_id.or(report.correlation_id),
                ..report.clone()
            });
        }
    }
    reports
}
