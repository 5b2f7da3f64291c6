//! The oracle: the row that must result from a set of events, as a naive fold that is independent of `billhook_core`.

use std::collections::{BTreeMap, BTreeSet};

use billhook_core::entity::EntityKey;
use billhook_core::time::Timestamp;
use billhook_testkit::sim::stripe::{Emitted, Says};

use crate::customers::DUE;

/// The columns that are compared.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) status: Option<&'static str>,
    pub(crate) payment_status: Option<&'static str>,
    pub(crate) requires_review: Option<bool>,
    pub(crate) review_reasons: BTreeSet<String>,
    pub(crate) amount_paid: i64,
    pub(crate) amount_refunded: i64,
    pub(crate) mail_status: Option<&'static str>,
}

/// What people and the cleanup decided about an order, and what it is in conflict about.
#[derive(Debug, Default)]
pub(crate) struct OrderDecisions {
    pub(crate) is_cancelled: bool,
    /// Since when it counts as refunded, in Unix seconds.
    pub(crate) refunded_at: Option<i64>,
    /// The review reasons that a person saw and cleared.
    pub(crate) cleared: BTreeSet<String>,
    /// The payments that two orders claim. Nobody can clear that.
    pub(crate) conflicts: BTreeSet<String>,
    /// The payment that the application wrote into the row.
    pub(crate) expects: Option<String>,
    /// The payments that a person linked.
    pub(crate) linked: BTreeSet<String>,
}

/// Since when it was in which state, in Unix seconds.
type States = Vec<(i64, &'static str)>;

/// What was said of one payment.
#[derive(Default)]
struct Told<'e> {
    paid: Option<i64>,
    paid_at: i64,
    failed_at: Option<i64>,
    processing_at: Option<i64>,
    attempts: usize,
    /// By id: an amount, and the states since when.
    refunds: BTreeMap<&'e str, (i64, States)>,
    /// In all, of what was captured, since when.
    cumulative: Option<(i64, i64, i64)>,
    /// By id: what it is about, and the states since when.
    disputes: BTreeMap<&'e str, (i64, States)>,
    has_warning: bool,
}

/// The newest by its second; of one second, the one that ends it.
fn newest(said: &[(i64, &'static str)]) -> Option<&'static str> {
    let newest = said.iter().max_by_key(|(at, _)| *at);
    newest.map(|(_, said)| *said)
}

impl Told<'_> {
    fn captured(&self) -> i64 {
        let by_charge = self.cumulative.map(|(_, captured, _)| captured);
        self.paid.into_iter().chain(by_charge).max().unwrap_or(0)
    }

    /// What went back, without a limit: what is known by id, or the figure without what came back.
    fn given_back(&self) -> i64 {
        let (mut counted, mut undone) = (0, 0);
        for (amount, states) in self.refunds.values() {
            match newest(states) {
                Some("failed") => undone += amount,
                _ => counted += amount,
            }
        }
        let total = self.cumulative.map_or(0, |(total, ..)| total);
        counted.max(total - undone).max(0)
    }

    fn refunded(&self) -> i64 {
        match self.captured() {
            0 => self.given_back(),
            captured => self.given_back().min(captured),
        }
    }

    fn is_back(&self) -> bool {
        self.captured() > 0 && self.refunded() == self.captured()
    }

    /// When the last of it went back.
    fn back_at(&self) -> i64 {
        let counted = self
            .refunds
            .values()
            .filter(|(_, states)| newest(states) != Some("failed"));
        let by_id: i64 = counted.clone().map(|(amount, _)| amount).sum();
        let begun = counted.filter_map(|(_, states)| states.iter().map(|(at, _)| *at).min());
        let figure = self.cumulative.filter(|_| self.given_back() > by_id);
        begun.chain(figure.map(|(.., at)| at)).max().unwrap_or(0)
    }

    fn is_processing(&self) -> bool {
        let is_newer = |at: i64| self.failed_at.is_none_or(|failed| at > failed);
        self.paid.is_none() && self.processing_at.is_some_and(is_newer)
    }

    /// What the disputes in this state are about, and whether the rest of them covers the payment.
    fn disputed(&self, words: &[&str]) -> i64 {
        let rest = (self.captured() - self.refunded()).max(0);
        let disputes = self.disputes.values();
        let disputes =
            disputes.filter(|(_, states)| newest(states).is_some_and(|is| words.contains(&is)));
        disputes
            .map(|(about, _)| if *about < rest { *about } else { rest.max(1) })
            .sum()
    }

    /// Whether nothing came of it yet, as far as anybody knows.
    fn may_come(&self) -> bool {
        let is_money = self.paid.is_some() || self.cumulative.is_some() || self.has_warning;
        let is_over = self.failed_at.is_some() && !self.is_processing();
        !is_money && !is_over && self.refunds.is_empty() && self.disputes.is_empty()
    }

    fn is_lost(&self) -> bool {
        let lost = self.disputed(&["lost"]);
        lost > 0 && lost >= self.captured() - self.refunded()
    }

    fn is_disputed(&self) -> bool {
        let open = self.disputed(&["needs_response", "under_review"]);
        let lost = self.disputed(&["lost"]);
        open > 0 && open + lost >= self.captured() - self.refunded()
    }

    /// The reasons of its disputes.
    fn dispute_reasons(&self) -> Vec<String> {
        let rest = self.captured() - self.refunded();
        let reasons = self.disputes.iter().filter_map(|(id, (about, states))| {
            let last = newest(states)?;
            let word = match last {
                "lost" => "dispute_lost",
                "needs_response" | "under_review" => "dispute_open",
                _ => return None,
            };
            let part = if *about < rest { "partial_" } else { "" };
            // It was something else between.
            let group = |state: &str| match state {
                "needs_response" | "under_review" => "open",
                "lost" => "lost",
                _ => "won",
            };
            let first = states
                .iter()
                .filter(|(_, state)| group(state) == group(last));
            let first = first.map(|(at, _)| *at).min()?;
            let others = states
                .iter()
                .filter(|(_, state)| group(state) != group(last));
            let left = others.map(|(at, _)| *at).filter(|at| *at > first).max();
            let left = left.map(|at| format!("@{}", Timestamp::from_unix_s(at).unwrap()));
            Some(format!("{part}{word}:{id}{}", left.unwrap_or_default()))
        });
        reasons.collect()
    }

    /// The refunds that failed and that no later one made good.
    fn missing_refunds(&self) -> Vec<String> {
        if self.is_back() {
            return Vec::new();
        }
        let failed = self.refunds.iter().filter_map(|(id, (amount, states))| {
            let failed = states.iter().filter(|(_, state)| *state == "failed");
            Some((failed.map(|(at, _)| *at).min()?, *id, *amount))
        });
        let mut failed: Vec<_> = failed.collect();
        failed.sort_unstable();
        let counted = self.refunds.iter().filter_map(|(id, (amount, states))| {
            let begun = states.iter().map(|(at, _)| *at).min()?;
            (newest(states) != Some("failed")).then_some((begun, *id, *amount))
        });
        let mut counted: Vec<_> = counted.collect();
        counted.sort_unstable();
        let mut missing = Vec::new();
        for (at, id, amount) in failed {
            let later = counted
                .iter()
                .filter(|(begun, its, _)| *begun >= at && *its != id);
            let (mut good, mut used) = (0, BTreeSet::new());
            for (_, its, part) in later {
                if good < amount {
                    good += part;
                    used.insert(*its);
                }
            }
            match good >= amount {
                true => counted.retain(|(_, its, _)| !used.contains(its)),
                false => missing.push(format!("refund_failed:{id}")),
            }
        }
        missing
    }
}

/// Folds the events of one entity. What was decided is no event's word.
pub(crate) fn expected(key: &EntityKey, events: &[&Emitted], decided: &OrderDecisions) -> Expected {
    let mut told: BTreeMap<&str, Told<'_>> = BTreeMap::new();
    let mut doubts: BTreeSet<String> = BTreeSet::new();
    let mut mail: Vec<(i64, &'static str)> = Vec::new();
    for event in events {
        let at = event.created_s;
        if let Says::Mail(stage) = event.says {
            mail.push((at, stage));
            continue;
        }
        let of = told.entry(event.of.as_str()).or_default();
        match &event.says {
            Says::Nothing | Says::Mail(_) => {}
            Says::Failed => {
                of.attempts += 1;
                of.failed_at = of.failed_at.max(Some(at));
            }
            Says::Canceled => of.failed_at = of.failed_at.max(Some(at)),
            Says::Processing => of.processing_at = of.processing_at.max(Some(at)),
            Says::Paid(amount) => {
                of.paid_at = of.paid.map_or(at, |_| of.paid_at.min(at));
                of.paid = Some(*amount);
            }
            Says::Refund(id, amount, state) => {
                let known = of.refunds.entry(id).or_insert((*amount, Vec::new()));
                known.1.push((at, state));
            }
            Says::Refunded(total, captured) => {
                let known = of.cumulative.unwrap_or((0, *captured, at));
                of.cumulative = Some((known.0.max(*total), *captured, known.2.min(at)));
            }
            Says::Dispute(id, state, about) => {
                let known = of.disputes.entry(id).or_insert((*about, Vec::new()));
                known.1.push((at, state));
            }
            Says::Warning => of.has_warning = true,
        }
    }
    let takes_instalments = key.order().is_none();
    let has_gone = |of: &Told<'_>| of.is_back() || of.is_lost();
    let expected = decided.expects.as_deref();
    let is_waiting = expected.is_some_and(|id| told.get(id).is_none_or(Told::may_come));
    for (id, of) in &told {
        doubts.extend(of.dispute_reasons());
        doubts.extend(of.missing_refunds());
        if of.has_warning && !of.is_back() {
            doubts.insert(format!("fraud_warning:issfr_{id}"));
        }
        if of.captured() > 0 && of.given_back() > of.captured() {
            doubts.insert("refund_exceeds_captured".to_owned());
        }
        if of.paid.is_none() || has_gone(of) {
            continue;
        }
        if is_waiting && !takes_instalments && !decided.linked.contains(*id) {
            doubts.insert(format!("unexpected_payment:{id}"));
        }
        if decided.is_cancelled {
            doubts.insert(format!("paid_after_cancel:{id}"));
        }
        if decided
            .refunded_at
            .is_some_and(|refunded| of.paid_at > refunded)
        {
            doubts.insert(format!("paid_after_refund:{id}"));
        }
    }
    let is_uncertain = |of: &Told<'_>| {
        let has_moved = !of.refunds.is_empty() || !of.disputes.is_empty() || of.is_processing();
        of.captured() == 0 && has_moved
    };
    let is_full = told.values().any(Told::is_back)
        && told.values().all(|of| of.captured() == 0 || of.is_back())
        && !told.values().any(is_uncertain);

    // Money comes and goes by its time; once it was enough, it stays enough until nothing is left.
    let mut steps: Vec<(i64, bool, &str, i64)> = Vec::new();
    for (id, of) in &told {
        let Some(paid) = of.paid else { continue };
        steps.push((of.paid_at, false, id, paid));
        if of.is_back() {
            steps.push((of.back_at().max(of.paid_at), true, id, paid));
        }
    }
    steps.sort_unstable();
    let (mut sum, mut standing, mut is_paid, mut was_paid) = (0, 0, false, false);
    for (_, leaves, _, amount) in &steps {
        if *leaves {
            (sum, standing) = (sum - amount, standing - 1);
            is_paid &= standing > 0;
        } else {
            (sum, standing) = (sum + amount, standing + 1);
            is_paid |= sum >= DUE;
            was_paid |= is_paid;
        }
    }
    let mut standing: Vec<(i64, &str, i64)> = told
        .iter()
        .filter(|(_, of)| !has_gone(of))
        .filter_map(|(id, of)| Some((of.paid_at, *id, of.paid?)))
        .collect();
    standing.sort_unstable();
    let mut before = 0;
    for (_, id, amount) in standing {
        let is_over = before + amount > DUE;
        if is_over && amount == DUE && before > 0 {
            doubts.insert(format!("paid_twice:{id}"));
        } else if is_over {
            doubts.insert(format!("overpaid:{id}"));
        } else if sum < DUE && (was_paid || !takes_instalments) {
            doubts.insert(format!("amount_mismatch:{id}"));
        }
        before += amount;
    }

    let evidence = if is_full || decided.refunded_at.is_some() {
        "refunded"
    } else if is_paid {
        "paid"
    } else if sum > 0 {
        "partially_paid"
    } else if told.values().any(Told::is_processing) {
        "processing"
    } else if told.values().any(|of| of.paid.is_some()) {
        "unpaid"
    } else if told.values().any(|of| of.attempts > 0) {
        "failed"
    } else {
        "unpaid"
    };
    let covers = |stands: &dyn Fn(&Told<'_>) -> bool| {
        let standing = told.values().filter(|of| !of.is_back() && stands(of));
        standing.filter_map(|of| of.paid).sum::<i64>() >= DUE
    };
    let is_lost = told.values().any(Told::is_lost) && !covers(&|of| !of.is_lost());
    let is_disputed =
        told.values().any(Told::is_disputed) && !covers(&|of| !of.is_lost() && !of.is_disputed());
    let payment_status = match evidence {
        "refunded" => "refunded",
        _ if is_lost => "charged_back",
        _ if is_disputed => "disputed",
        other => other,
    };
    let status = match evidence {
        "refunded" => "refunded",
        "paid" => "completed",
        _ if decided.is_cancelled => "cancelled",
        "failed" => "payment_failed",
        _ => "pending",
    };
    doubts.retain(|reason| !decided.cleared.contains(reason));
    let conflicts = decided.conflicts.iter();
    doubts.extend(conflicts.map(|of| format!("link_conflict:{of}")));
    let way = ["created", "mailed", "in_transit", "processed_for_delivery"];
    let ends: Vec<(i64, &'static str)> = mail
        .iter()
        .filter(|(_, stage)| !way.contains(stage))
        .copied()
        .collect();
    let furthest = way
        .iter()
        .rev()
        .find(|stage| mail.iter().any(|(_, its)| its == *stage));
    let is_order = key.order().is_some();
    // That a session expired says nothing about a payment.
    let is_stated = events
        .iter()
        .any(|event| !matches!(event.says, Says::Mail(_) | Says::Nothing));
    Expected {
        status: is_order.then_some(status),
        payment_status: (is_order || is_stated).then_some(payment_status),
        requires_review: (is_order || !told.is_empty() || !decided.conflicts.is_empty())
            .then_some(!doubts.is_empty()),
        review_reasons: doubts,
        amount_paid: told.values().filter_map(|of| of.paid).sum(),
        amount_refunded: told.values().map(Told::refunded).sum(),
        mail_status: newest(&ends).or(furthest.copied()),
    }
}
