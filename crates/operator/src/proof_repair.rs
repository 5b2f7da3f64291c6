//! The repair of what a run of proofs found. Payments first: what follows from them is then often right already.

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::key::StateKey;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::intake::inbox::EventSource;
use billhook_core::intake::message::EventPointer;
use billhook_core::ports::Clock as _;
use billhook_core::proof::repair::{ReprocessEvent, repair_state};
use billhook_core::proof::{DifferenceSource, ProofResult};
use billhook_core::worker::batch::{ProcessingFailure, ReceivedMessage, Worker};
use std::time::Duration;

use crate::audit::AuditContext;
use crate::entity_repair::write_timeline_note;
use crate::event_lookup::find_event;
use crate::events_table::{EventChange, EventSummary};
use crate::output::print_notice;
use crate::proof_run::{OperatorProver, ProofFindings};
use crate::session::StackSession;

/// A worker stops when its function runs out of time. Here there is no such limit, only an end for an unreachable
/// DynamoDB.
const DEADLINE: Duration = Duration::from_secs(60);

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
    let events = LocalReprocessing { session, audit };
    let rank = |key: &StateKey| match key {
        StateKey::Payment(_) => 0,
        StateKey::Invoice(_) => 1,
        StateKey::Entity(_) => 2,
    };
    let mut proofs: Vec<_> = found.into_values().collect();
    proofs.sort_by_key(|proof| (rank(&proof.key), proof.key.to_string()));
    for proof in proofs {
        if proof.correction.is_none() {
            report.left.found.insert(proof.key.clone(), proof);
            continue;
        }
        if let StateKey::Entity(entity) = &proof.key
            && entity.schema().has_timeline()
            && proof.correction.row
        {
            // The note comes first: a note without a repair can be explained, a repair without a note cannot.
            let noted = write_timeline_note(session, entity, "rebuild", audit).await;
            if let Err(error) = noted {
                print_notice(&format!("{entity} was not mended: {error:#}"));
                report.left.found.insert(proof.key.clone(), proof);
                continue;
            }
        }
        let was = proof.result();
        match repair_state(prover, &worker, &events, &proof.key, &named).await {
            Ok(repaired) => {
                let mut after = repaired.after;
                // They were compared once, and are not asked again.
                let at_stripe = proof.differences.iter();
                let at_stripe = at_stripe
                    .filter(|of| of.source == DifferenceSource::Stripe)
                    .cloned();
                after.differences.extend(at_stripe);
                report.left.count_change(was, after.result());
                if after.differences.is_empty() {
                    report.mended.push(after.key.to_string());
                } else {
                    report.left.found.insert(after.key.clone(), after);
                }
            }
            Err(failure) => {
                print_notice(&format!("{} could not be mended: {failure}", proof.key));
                report.left.found.insert(proof.key.clone(), proof);
            }
        }
    }
    Ok(report)
}

impl ProofFindings {
    fn count_change(&mut self, was: ProofResult, is: ProofResult) {
        if let Some(count) = self.counts.get_mut(was.as_str()) {
            *count = count.saturating_sub(1);
        }
        *self.counts.entry(is.as_str()).or_default() += 1;
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
