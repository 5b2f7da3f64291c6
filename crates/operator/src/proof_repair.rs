//! The repair of what a run of proofs found. Payments first: what follows from them is then often right already.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::ledger::DynamoLedger;
use billhook_core::entity::key::StateKey;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::intake::inbox::EventSource;
use billhook_core::intake::message::EventPointer;
use billhook_core::ports::Clock as _;
use billhook_core::proof::prover::EventsByState;
use billhook_core::proof::repair::{ReprocessEvent, repair_state};
use billhook_core::proof::{DifferenceSource, StateProof};
use billhook_core::worker::batch::{ProcessingFailure, ReceivedMessage, Worker};
use futures_util::stream::{self, StreamExt as _};

use crate::audit::AuditContext;
use crate::entity_repair::write_timeline_note;
use crate::event_lookup::find_event;
use crate::events_table::{EventChange, EventSummary};
use crate::output::print_notice;
use crate::proof_run::{OperatorProver, ProofFindings, STATES_AT_ONCE};
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
        live_mode: session.stack.is_live(),
        ledger: session.ledger(ProviderId::Stripe)?,
        clock: SystemClock,
    };
    let run = RepairRun {
        session,
        prover,
        worker,
        audit,
        named,
    };
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
        }
    }
    run.prove_left(&mut report).await?;
    Ok(report)
}

impl RepairReport {
    fn take(&mut self, before: &StateProof, mut after: StateProof) {
        // They were compared once, and are not asked again.
        let at_stripe = before.differences.iter();
        let at_stripe = at_stripe.filter(|of| of.source == DifferenceSource::Stripe);
        after.differences.extend(at_stripe.cloned());
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
    worker: Worker<DynamoLedger<SystemClock>, SystemClock>,
    audit: &'s AuditContext,
    named: EventsByState,
}

impl RepairRun<'_> {
    /// Returns the proof after the repair; `None` if there is nothing to mend, or it failed.
    async fn repair(&self, proof: &StateProof) -> Option<StateProof> {
        if proof.correction.is_none() {
            return None;
        }
        if let StateKey::Entity(entity) = &proof.key
            && entity.schema().has_timeline()
            && proof.correction.row
        {
            // The note comes first: a note without a repair can be explained, a repair without a note cannot.
            let noted = write_timeline_note(self.session, entity, "rebuild", self.audit).await;
            if let Err(error) = noted {
                print_notice(&format!("{entity} was not mended: {error:#}"));
                return None;
            }
        }
        let events = LocalReprocessing {
            session: self.session,
            audit: self.audit,
        };
        match repair_state(self.prover, &self.worker, &events, &proof.key, &self.named).await {
            Ok(after) => Some(after),
            Err(failure) => {
                print_notice(&format!("{} could not be mended: {failure}", proof.key));
                None
            }
        }
    }

    /// A repair of one state may have mended others, such as the other names of a payment that was lost.
    async fn prove_left(&self, report: &mut RepairReport) -> Result<()> {
        let left = std::mem::take(&mut report.left.found);
        let keys: Vec<StateKey> = left.keys().cloned().collect();
        for keys in keys.chunks(STATES_AT_ONCE) {
            let keys: BTreeSet<StateKey> = keys.iter().cloned().collect();
            let now = SystemClock.now();
            for after in self.prover.prove(&keys, &self.named, now).await? {
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
    async fn reprocess(&self, event: &EventId) -> Result<(), ProcessingFailure> {
        let failed = |error: anyhow::Error| ProcessingFailure::Infrastructure(format!("{error:#}"));
        let (table, item) = find_event(self.session, event).await.map_err(failed)?;
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
            live_mode: self.session.stack.is_live(),
            ledger: self.session.ledger(table.provider).map_err(failed)?,
            clock: SystemClock,
        };
        let message = ReceivedMessage {
            message_id: event.to_string(),
            body: EventPointer::message_for(&summary.record, EventSource::ManualReplay),
            receive_count: 1,
        };
        let deadline = SystemClock.now().after(DEADLINE);
        let done = worker
            .process_batch(&[message], deadline, std::future::pending())
            .await;
        for report in done.messages {
            report.result?;
        }
        Ok(())
    }
}
