//! `billhook prove` compares states with their stored events, with each other, with the application's rows and, if asked,
//! with Stripe's own objects; `billhook rebuild` is the same, and mends what can be mended.

use anyhow::{Result, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::EventId;
use billhook_core::ports::Clock as _;
use clap::Args;
use serde_json::json;

use crate::confirm::{ChangeArgs, announce_preview, typed_command};
use crate::event_filter::EventFilter;
use crate::event_lookup::load_selected_events;
use crate::output::{OutputWriter, print_notice};
use crate::proof_repair::{RepairReport, repair_findings};
use crate::proof_run::{
    COLUMNS, OperatorProver, ProofFindings, ProofScope, check_findings, describe_counts,
    find_states, open_prover, run_proofs, select_by_events, select_states,
};
use crate::session::StackSession;
use crate::stripe_endpoints::open_stripe;

#[derive(Args, Debug)]
#[command(
    after_help = "The stored events of a state are read and merged again, from nothing. Results: equal; edited (somebody changed \
    the row; the next event takes the edit or overwrites it); unprovable (events are gone, what is left agrees); different. \
    The command exits with 4 if a state is different. Ctrl-C ends it after the current part and prints how to continue; \
    of a repair, what was found by then is mended first, and another Ctrl-C ends that.\n\nExamples:\n  \
    billhook prove ord_1\n  \
    billhook prove pi_1 --account acct_1 --with-stripe\n  \
    billhook prove --since 7d --type 'charge.*'\n  \
    billhook prove --all\n  \
    billhook prove --all --repair --reason 'the table was restored' --yes"
)]
pub(crate) struct ProveArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Mend what can be mended; without --yes the command only shows what it would do
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Facts are taken from the stored events; what no readable event can state (edits, cancellations, decisions of \
    people, facts whose events are gone) stays. Without --yes the command only shows what it would do. It issues no effect.\n\nExamples:\n  \
    billhook rebuild ord_1\n  \
    billhook rebuild ord_1 --reason 'a refund was read wrongly' --yes\n  \
    billhook rebuild --all --reason 'the table was restored' --yes"
)]
pub(crate) struct RebuildArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
struct ScopeArgs {
    /// Orders, statements, tenants or payments, each with what it rests on; ids, or keys as `payment#acct_1#pi_1`. With
    /// --since also the events that came for them since then and that they have lost
    ids: Vec<String>,
    #[command(flatten)]
    filter: EventFilter,
    /// All states, and all events of 400 days or of --since
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// About this percentage of all states; another part each day
    #[arg(long, value_name = "PERCENT", conflicts_with_all = ["ids", "all"], value_parser = clap::value_parser!(u32).range(1..=100))]
    sample: Option<u32>,
    /// Also compare each payment with Stripe's own objects: five calls for each
    #[arg(long)]
    with_stripe: bool,
    /// Calls of Stripe per second; an account may make 100 in live mode and 25 in test mode, with those of the application
    #[arg(long, value_name = "CALLS", default_value_t = 20, requires = "with_stripe", value_parser = clap::value_parser!(u32).range(1..=100))]
    rate: u32,
    /// Continue an interrupted run, as it printed
    #[arg(long, value_name = "PLACE")]
    continue_at: Option<String>,
}

pub(crate) async fn run_prove(
    args: ProveArgs,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    if !args.repair && args.change.has_reason() {
        bail!("--reason is the reason of a repair: pass --repair too");
    }
    let repair = args.repair.then_some(args.change);
    prove_and_repair(args.scope, repair, session, output).await
}

pub(crate) async fn run_rebuild(
    args: RebuildArgs,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let repair = Some(args.change);
    prove_and_repair(args.scope, repair, session, output).await
}

async fn prove_and_repair(
    scope: ScopeArgs,
    repair: Option<ChangeArgs>,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    session.announce_unchecked_states().await?;
    let prover = open_prover(session)?;
    let stripe = match scope.with_stripe {
        true => Some(open_stripe(session).await?.with_rate_limit(scope.rate)),
        false => None,
    };
    let resume_command = typed_command(std::env::args());
    let continue_at = scope.continue_at.clone();
    let scope = scope.resolve(session, &prover).await?;
    let stripe = stripe.as_ref();
    let mut findings = run_proofs(
        &prover,
        stripe,
        &scope,
        continue_at.as_deref(),
        &resume_command,
    )
    .await?;
    let unfinished = findings.unfinished.take();
    let mendable = findings.found.values();
    let mendable = mendable.filter(|proof| !proof.correction.is_none()).count();
    let what = format!("{mendable} states would be mended");
    let Some(change) = repair.as_ref().filter(|change| change.is_confirmed()) else {
        print_findings(&findings, output);
        if let Some(change) = &repair {
            announce_preview(session, &what, change);
        }
        return unfinished.map_or_else(|| check_findings(&findings), Err);
    };
    if unfinished.is_some() && !findings.found.is_empty() {
        // The run that continues does not find these again.
        print_notice("the run ended early; what it has found is mended now, Ctrl-C ends that too");
    }
    let audit = change.start_audit(session, &what, Some(mendable)).await?;
    let mut report = repair_findings(session, &prover, stripe, findings, &audit).await?;
    print_report(&report, output);
    if let Some(unmended) = report.left.unfinished.take() {
        return Err(unmended.context(format!("repeat: {resume_command}")));
    }
    unfinished.map_or_else(|| check_findings(&report.left), Err)
}

impl ScopeArgs {
    async fn resolve(self, session: &StackSession, prover: &OperatorProver) -> Result<ProofScope> {
        let now = SystemClock.now();
        let is_named = !self.ids.is_empty();
        if is_named && self.filter.has_more_than_account_and_since() {
            bail!("of the filters, only --account and --since go with named states");
        }
        if self.all && self.filter.has_more_than_since() {
            bail!("of the filters, only --since goes with --all");
        }
        if let Some(percent) = self.sample {
            if !self.filter.is_empty() {
                bail!("no filter goes with --sample");
            }
            return Ok(ProofScope::Sample(percent));
        }
        if self.all {
            let since = self.filter.resolve(Vec::new(), now).since;
            return Ok(ProofScope::All { since });
        }
        if is_named {
            let account = self.filter.account();
            let states = find_states(session, prover, &self.ids, account).await?;
            let since = self.filter.resolve(Vec::new(), now).since;
            return select_states(prover, &states, since, now).await;
        }
        if self.filter.is_empty() {
            bail!("name states, or pass filters such as --since 7d, or --all, or --sample 1");
        }
        let selection = self.filter.resolve(Vec::new(), now);
        let events = load_selected_events(session, &selection).await?;
        let events: Vec<(EventId, _)> = events
            .iter()
            .map(|event| (event.record.id.clone(), event.states()))
            .collect();
        select_by_events(prover, &events).await
    }
}

fn print_findings(findings: &ProofFindings, output: OutputWriter) {
    output.print_report(&COLUMNS, &findings.rows(), &findings.to_json());
    print_notice(&describe_counts(findings));
}

fn print_report(report: &RepairReport, output: OutputWriter) {
    let mut whole = report.left.to_json();
    if let Some(members) = whole.as_object_mut() {
        members.insert("mended".to_owned(), json!(report.mended));
    }
    output.print_report(&COLUMNS, &report.left.rows(), &whole);
    print_notice(&format!(
        "mended {} states and proved them again; left: {}",
        report.mended.len(),
        describe_counts(&report.left)
    ));
}
