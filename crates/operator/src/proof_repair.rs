//! The repair of what a run of proofs found. Payments first: what follows from them is then often right already.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::ledger::DynamoLedger;
use billhook_adapters::stripe::StripeClient;
use billhook_core::entity::EntityKey;
use billhook_core::entity::key::StateKey;
use billhook_core::entity::payment::deadlines::PaymentDeadline;
use billhook_core::entity::payment::opened_disputes::OpenedDispute;
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::intake::inbox::EventSource;
use billhook_core::intake::message::EventPointer;
use billhook_core::ports::Clock as _;
use billhook_core::proof::prover::EventsByState;
use billhook_core::proof::repair::{ReprocessEvent, repair_state};
use billhook_core::proof::{StateDifference, StateProof};
use billhook_core::worker::batch::{ProcessingFailure, ReceivedMessage, Worker};
use billhook_core::worker::ports::{Ledger as _, NoticeSubject, PaymentNotice};
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};

use crate::audit::AuditContext;
use crate::entity_repair::write_timeline_note;
use crate::events_table::{EventChange, EventSummary};
use crate::exit::CommandExit;
use crate::interrupt::wait_for_interrupt;
use crate::output::print_notice;
use crate::proof_run::{
    OperatorProver, ProofFindings, STATES_AT_ONCE, add_stripe_differences, print_progress,
};
use crate::session::StackSession;

/// A worker stops when its function runs out of time. Here there is no such limit, only an end for an unreachable
/// DynamoDB.
const DEADLINE: Duration = Duration::from_secs(60);

/// Each takes about ten calls, one after the other.
const REPAIRS_AT_ONCE: usize = 8;

/// What a repair did.
#[derive(Debug, Default)]
pub(crate) struct RepairReport {
    /// The keys of the states that were mended, and are proven now.
    pub(crate) mended: Vec<String>,
    /// What is still different, and what was not tried.
    pub(crate) left: ProofFindings,
}

pub(crate) async fn repair_findings(
    session: &StackSession,
    prover: &OperatorProver,
    stripe: Option<&StripeClient>,
    findings: ProofFindings,
    audit: &AuditContext,
) -> Result<RepairReport> {
    let ProofFindings {
        counts,
        found,
        named,
        unfinished: _,
    } = findings;
    let mut report = RepairReport {
        left: ProofFindings {
            counts,
            ..ProofFindings::default()
        },
        ..RepairReport::default()
    };
    let worker = Worker {
        provider: ProviderId::Stripe,
        rules: session.stack.interpret_rules()?,
        ledger: session.ledger(ProviderId::Stripe)?,
        clock: SystemClock,
    };
    let run = RepairRun {
        session,
        prover,
        stripe,
        worker,
        audit,
        named,
        noted: Mutex::default(),
    };
    let started_at = SystemClock.now();
    let (all, mut done) = (found.len(), 0_usize);
    let mut interrupted = pin!(wait_for_interrupt().fuse());
    let mut ranks: BTreeMap<u8, Vec<StateProof>> = BTreeMap::new();
    for proof in found.into_values() {
        let rank = match proof.key {
            StateKey::Payment(_) => 0,
            StateKey::Invoice(_) => 1,
            StateKey::Entity(_) => 2,
        };
        ranks.entry(rank).or_default().push(proof);
    }
    for proofs in ranks.into_values() {
        let mut repaired = stream::iter(proofs)
            .map(async |proof| (run.repair(&proof).await, proof))
            .buffer_unordered(REPAIRS_AT_ONCE);
        while let Some((after, proof)) = repaired.next().await {
            match after {
                Some(after) => report.take(&proof, after),
                None => drop(report.left.found.insert(proof.key.clone(), proof)),
            }
            done += 1;
            let mended = format!("{} mended", report.mended.len());
            print_progress(done, all, started_at, &mended);
            if (&mut interrupted).now_or_never().is_some() {
                let interrupted = format!("interrupted after {done} of {all} repairs");
                report.left.unfinished = Some(CommandExit::Interrupted(interrupted).into());
                return Ok(report);
            }
        }
    }
    // What was mended is reported all the same.
    report.left.unfinished = run.prove_left(&mut report).await.err();
    Ok(report)
}

impl RepairReport {
    fn take(&mut self, before: &StateProof, after: StateProof) {
        self.left.count_change(before.result(), after.result());
        if after.differences.is_empty() {
            self.mended.push(after.key.to_string());
        } else {
            self.left.found.insert(after.key.clone(), after);
        }
    }
}

struct RepairRun<'s> {
    session: &'s StackSession,
    prover: &'s OperatorProver,
    stripe: Option<&'s StripeClient>,
    worker: Worker<DynamoLedger<SystemClock>, SystemClock>,
    audit: &'s AuditContext,
    named: EventsByState,
    /// The orders and statements whose timeline has the note.
    noted: Mutex<BTreeSet<EntityKey>>,
}

impl RepairRun<'_> {
    /// Returns the proof after the repair; `None` if there is nothing to mend, or it failed.
    async fn repair(&self, proof: &StateProof) -> Option<StateProof> {
        if proof.correction.is_none() {
            return None;
        }
        if let Err(error) = self.note_rows(proof).await {
            print_notice(&format!("{} was not mended: {error:#}", proof.key));
            return None;
        }
        let events = LocalReprocessing {
            session: self.session,
            audit: self.audit,
        };
        match repair_state(self.prover, &self.worker, &events, &proof.key, &self.named).await {
            Ok(mut after) => {
                if let Some(stripe) = self.stripe {
                    let proofs = std::slice::from_mut(&mut after);
                    if let Err(error) = add_stripe_differences(self.prover, stripe, proofs).await {
                        let cause = format!("{error:#}");
                        after
                            .differences
                            .push(StateDifference::not_compared(&cause));
                    }
                }
                Some(after)
            }
            Err(failure) => {
                print_notice(&format!("{} could not be mended: {failure}", proof.key));
                None
            }
        }
    }

    /// Notes the reason in the timeline of each row that the repair may write, once. The note comes first: a note without a
    /// repair can be explained, a repair without a note cannot.
    async fn note_rows(&self, proof: &StateProof) -> Result<()> {
        let mut entities = BTreeSet::new();
        match &proof.key {
            StateKey::Entity(entity) if proof.correction.row => {
                entities.insert(entity.clone());
            }
            StateKey::Payment(key) => {
                let keys = BTreeSet::from([proof.key.clone()]);
                let rows = self.prover.states.load_rows(&keys).await?;
                let mut payment = match rows.payment(key) {
                    Some(payment) => payment.clone(),
                    None => PaymentState::new(key.clone()),
                };
                entities.extend(payment.link_states().into_keys());
                if let Some(facts) = &proof.correction.payment {
                    payment.facts = (**facts).clone();
                    entities.extend(payment.link_states().into_keys());
                }
            }
            StateKey::Entity(_) | StateKey::Invoice(_) => {}
        }
        let keys = entities.into_iter().map(StateKey::Entity).collect();
        let rows = self.prover.states.load_rows(&keys).await?;
        for (entity, (state, _)) in &rows.entities {
            let has_timeline = entity.schema().has_timeline() && !state.row().is_missing;
            let is_new = || {
                let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
                noted.insert(entity.clone())
            };
            if has_timeline && is_new() {
                write_timeline_note(self.session, entity, "rebuild", self.audit).await?;
            }
        }
        Ok(())
    }

    /// A repair of one state may have mended others, such as the other names of a payment that was lost.
    async fn prove_left(&self, report: &mut RepairReport) -> Result<()> {
        let left = std::mem::take(&mut report.left.found);
        let keys: Vec<StateKey> = left.keys().cloned().collect();
        for keys in keys.chunks(STATES_AT_ONCE) {
            let keys: BTreeSet<StateKey> = keys.iter().cloned().collect();
            let now = SystemClock.now();
            let mut proofs = self.prover.prove(&keys, &self.named, now).await?;
            if let Some(stripe) = self.stripe {
                add_stripe_differences(self.prover, stripe, &mut proofs).await?;
            }
            for after in proofs {
                if let Some(before) = left.get(&after.key) {
                    report.take(before, after);
                }
            }
        }
        report.mended.sort_unstable();
        Ok(())
    }
}

/// Opens an event again, with a note, and processes it here.
struct LocalReprocessing<'s> {
    session: &'s StackSession,
    audit: &'s AuditContext,
}

impl ReprocessEvent for LocalReprocessing<'_> {
    async fn reprocess(
        &self,
        provider: ProviderId,
        event: &EventId,
    ) -> Result<(), ProcessingFailure> {
        let failed = |error: anyhow::Error| ProcessingFailure::Infrastructure(format!("{error:#}"));
        let table = self.session.events_table(provider).map_err(failed)?;
        let item = table.get_item(event).await.map_err(failed)?;
        let item = item.ok_or(ProcessingFailure::NotStored)?;
        let Some(summary) = EventSummary::from_item(table.provider, &item) else {
            return Err(ProcessingFailure::NotStored);
        };
        let change = match summary.record.processed {
            true => EventChange::Reopen,
            false => EventChange::Resend,
        };
        let note = self.audit.build_note("reprocess", SystemClock.now(), None);
        table
            .apply_change(event, change, note)
            .await
            .map_err(failed)?;
        let worker = Worker {
            provider: table.provider,
            rules: self.session.stack.interpret_rules().map_err(failed)?,
            ledger: self.session.ledger(table.provider).map_err(failed)?,
            clock: SystemClock,
        };
        let message = ReceivedMessage {
            message_id: event.to_string(),
            body: EventPointer::message_for(&summary.record, EventSource::ManualReplay),
            receive_count: 1,
            is_last_receive: false,
        };
        let deadline = SystemClock.now().after(DEADLINE);
        let done = worker
            .process_batch(&[message], deadline, std::future::pending())
            .await;
        for report in done.messages {
            report.result?;
        }
        // The worker reports them; whoever runs this command took its place.
        for PaymentNotice { payment, subject } in done.notices {
            print_notice(&match subject {
                NoticeSubject::Opened(OpenedDispute { kind, object, .. }) => {
                    format!("{} {object} of {payment} is open", kind.as_str())
                }
                NoticeSubject::NearDeadline(PaymentDeadline { due, object }) => {
                    let (kind, object) = (object.kind(), object.id());
                    format!("{kind} {object} of {payment} is due {due}")
                }
                NoticeSubject::Unclaimed { since } => {
                    format!("nothing has been linked to the money of {payment} since {since}")
                }
            });
        }
        Ok(())
    }
}
