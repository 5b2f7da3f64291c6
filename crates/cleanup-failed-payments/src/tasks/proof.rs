//! The nightly proof: reads a sample of all states and proves each by its stored events, the other states and the
//! application's row (`billhook_core::proof`). Another sample each night, so that with 1 % each state is in one within
//! 100 nights.
//!
//! Guarantees: it only reads, repairs nothing and calls for no effect; a sample that a run did not finish is finished by
//! the next one before it goes on with its own. What is different is logged and counted (`billhook_adapters::report`), and
//! a person decides (docs/runbook/proof.md).
//! `billhook_core::tasks::proof` says which sample is due.

use std::collections::BTreeSet;

use billhook_adapters::metrics;
use billhook_adapters::report::report_state_proof;
use billhook_core::entity::key::StateKey;
use billhook_core::error::{DependencyError, error_chain};
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock;
use billhook_core::proof::listing::ListStates;
use billhook_core::proof::prover::{EventsByState, StateProver};
use billhook_core::proof::{ProofResult, StateProof};
use billhook_core::retry::Disposition;
use billhook_core::tasks::checkpoint::Checkpoint;
use billhook_core::tasks::definitions::ProofInput;
use billhook_core::tasks::ports::{CheckpointSaveResult, CheckpointStore};
use billhook_core::tasks::proof::{ProofPosition, count_missed_nights, next_proof_pass};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::Ledger;
use serde::Serialize;

use crate::scheduled_task::{PassEnd, ScheduledTask, TaskFailed, fail_task, lacks_time_to_start};

/// States that are loaded and proven together.
const STATES_AT_ONCE: usize = 50;
/// Passes of one run: the rest of an interrupted one, then this night's.
const PASSES_MAX: u32 = 2;
/// Different states that the summary names; the log names all.
const NAMED_MAX: usize = 20;

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProofSummary {
    /// Always `proof`.
    pub task: &'static str,
    /// About how many of all states are proven in a night; with 0 a run does nothing.
    pub sample_percent: u32,
    /// All that were proven, whatever the result.
    pub proven: usize,
    pub equal: usize,
    pub edited: usize,
    pub unprovable: usize,
    pub different: usize,
    /// Keys of different states, at most 20.
    pub different_states: Vec<String>,
    /// States that could not be loaded.
    pub failed: usize,
    /// Nights before this one of whose samples nothing was proven.
    pub missed_nights: i64,
    /// False if the deadline interrupted the run: the next run resumes.
    pub completed: bool,
}

/// The task with its ports.
#[derive(Debug)]
pub struct ProofTask<L, J, C> {
    pub prover: StateProver<L>,
    pub jobs: J,
    pub clock: C,
    /// From 0 to 100.
    pub sample_percent: u32,
}

impl<L, J, C> ScheduledTask for ProofTask<L, J, C>
where
    L: Ledger + ListStates,
    J: CheckpointStore,
    C: Clock,
{
    type Input = ProofInput;
    type Summary = ProofSummary;

    /// The rest of an interrupted night, if there is one, then the sample of this night. A run on the same day proves
    /// the sample again: a person has repaired something, and looks whether it is right now.
    async fn run(
        &self,
        ProofInput {}: &ProofInput,
        deadline: Timestamp,
    ) -> Result<ProofSummary, TaskFailed> {
        let mut summary = ProofSummary {
            task: Self::NAME,
            sample_percent: self.sample_percent,
            ..ProofSummary::default()
        };
        if self.sample_percent == 0 {
            tracing::info!("proof_off ProofSamplePercent is 0, so no state is proven");
            summary.completed = true;
            return Ok(summary);
        }
        // Also report 0; otherwise nobody could tell "no state is different" from "no state was proven".
        metrics::PROOF_DIFFERENCES.add(ProviderId::Stripe, 0);
        let read = self.jobs.load_checkpoint(Self::NAME).await;
        let checkpoint = read.map_err(fail_task("load the checkpoint"))?;
        summary.missed_nights = count_missed_nights(&checkpoint, self.clock.now());
        if summary.missed_nights > 0 {
            tracing::warn!(
                nights = summary.missed_nights,
                "proof_missed the samples of {} nights were not proven; they come again",
                summary.missed_nights
            );
        }
        let end = self.run_passes(checkpoint, &mut summary, deadline).await?;
        summary.completed = end == PassEnd::Completed;
        tracing::info!(
            proven = summary.proven,
            different = summary.different,
            completed = summary.completed,
            "proved {} states: {} equal, {} edited, {} unprovable, {} different; {} could not be loaded",
            summary.proven,
            summary.equal,
            summary.edited,
            summary.unprovable,
            summary.different,
            summary.failed
        );
        Ok(summary)
    }
}

impl<L, J, C> ProofTask<L, J, C>
where
    L: Ledger + ListStates,
    J: CheckpointStore,
    C: Clock,
{
    async fn run_passes(
        &self,
        mut checkpoint: Checkpoint,
        summary: &mut ProofSummary,
        deadline: Timestamp,
    ) -> Result<PassEnd, TaskFailed> {
        let mut last = PassEnd::Interrupted;
        for _ in 0..PASSES_MAX {
            let now = self.clock.now();
            let pass = next_proof_pass(&checkpoint, self.sample_percent, now);
            let is_of_earlier_night = !pass.is_of_night(now);
            let (began_s, mut position) = (pass.began_s, pass.position);
            let passed = self.run_pass(&mut position, summary, deadline).await;
            let next = match &passed {
                Ok(PassEnd::Completed) => Checkpoint::completed_through(began_s),
                Ok(PassEnd::Interrupted) | Err(_) => {
                    checkpoint.interrupted_at(began_s, position.encode())
                }
            };
            let saved = self
                .jobs
                .save_checkpoint(Self::NAME, &checkpoint, &next)
                .await;
            let saved = saved.map_err(fail_task("save the checkpoint"))?;
            last = passed?;
            // Not saved: another run has completed a pass meanwhile, and goes on with the next.
            if !(last == PassEnd::Completed
                && is_of_earlier_night
                && saved == CheckpointSaveResult::Saved)
            {
                break;
            }
            checkpoint = next;
        }
        Ok(last)
    }

    /// Goes on in a segment at `position`, which moves only once every state of a page is proven: what interrupts a page
    /// has it proven again as a whole.
    async fn run_pass(
        &self,
        position: &mut ProofPosition,
        summary: &mut ProofSummary,
        deadline: Timestamp,
    ) -> Result<PassEnd, TaskFailed> {
        loop {
            if lacks_time_to_start(&self.clock, deadline) {
                return Ok(PassEnd::Interrupted);
            }
            let (segment, after) = (position.segment, position.after.as_deref());
            let page = self.prover.states.list_states(segment, after).await;
            let page = page.map_err(fail_task("list states"))?;
            for chunk in page.states.chunks(STATES_AT_ONCE) {
                if lacks_time_to_start(&self.clock, deadline) {
                    return Ok(PassEnd::Interrupted);
                }
                let keys = chunk.iter().cloned().collect();
                let proven = self.prove_chunk(&keys, summary).await;
                proven.map_err(fail_task("prove states"))?;
            }
            position.after = page.next;
            if position.after.is_none() {
                return Ok(PassEnd::Completed);
            }
        }
    }

    /// Proves these states and reports them. If the call itself is refused for good, each is tried alone, so that one
    /// that cannot be loaded keeps no other from being proven. If it fails otherwise, the run fails and the next one
    /// resumes here.
    async fn prove_chunk(
        &self,
        keys: &BTreeSet<StateKey>,
        summary: &mut ProofSummary,
    ) -> Result<(), DependencyError> {
        let refused = match self.prove(keys).await {
            Ok(proofs) => {
                proofs.iter().for_each(|proof| summary.add(proof));
                return Ok(());
            }
            Err(error) if error.disposition == Disposition::Permanent => error,
            Err(error) => return Err(error),
        };
        let mut failures = Vec::new();
        let mut proofs = Vec::new();
        for key in keys {
            match self.prove(&BTreeSet::from([key.clone()])).await {
                Ok(proven) => proofs.extend(proven),
                Err(error) if error.disposition == Disposition::Permanent => {
                    failures.push((key, error));
                }
                Err(error) => return Err(error),
            }
        }
        // No state is to blame: a permission is missing, or the table is gone.
        if proofs.is_empty() && keys.len() > 1 {
            return Err(refused);
        }
        proofs.iter().for_each(|proof| summary.add(proof));
        summary.failed += failures.len();
        for (entity, error) in failures {
            let cause = error_chain(&error);
            tracing::error!(%entity, cause, "proof_failed {entity}: {cause}");
        }
        Ok(())
    }

    async fn prove(&self, keys: &BTreeSet<StateKey>) -> Result<Vec<StateProof>, DependencyError> {
        // Events that no state knows are not looked for: `billhook prove --all` finds them by the day they arrived.
        let none = EventsByState::new();
        self.prover.prove(keys, &none, self.clock.now()).await
    }
}

impl ProofSummary {
    /// Counts, logs and measures one proof.
    fn add(&mut self, proof: &StateProof) {
        report_state_proof(proof);
        self.proven += 1;
        match proof.result() {
            ProofResult::Equal => self.equal += 1,
            ProofResult::Edited => self.edited += 1,
            ProofResult::Unprovable => self.unprovable += 1,
            ProofResult::Different => {
                self.different += 1;
                if self.different_states.len() < NAMED_MAX {
                    self.different_states.push(proof.key.to_string());
                }
            }
        }
    }
}
