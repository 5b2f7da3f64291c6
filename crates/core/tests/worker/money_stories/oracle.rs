//! What an order becomes by a story. It knows the story and not the events, and nothing of the code that it judges.

use std::collections::BTreeSet;

use billhook_core::time::Timestamp;

use super::story::{Edit, Story, StoryPayment, Way, second};

/// The rules, by name. The test of the test switches each off, and some story must then end otherwise.
pub(crate) const RULES: [&str; 20] = [
    "instalments add up",
    "a part is partially paid",
    "too much is paid",
    "a further payment of the due is paid twice",
    "adjusted items fit",
    "what was due stays paid for",
    "a part that went back changes nothing",
    "only everything back is refunded",
    "a dispute belongs to its payment",
    "a partial dispute is its own reason",
    "an episode is a reason of its own",
    "reasons end with the money",
    "a refund is made good",
    "paid by hand stands",
    "a later failure is a reason",
    "the latest word wins",
    "a payment after a refund is told",
    "the user is the payer's",
    "another payment than the row's is unexpected",
    "an unpaid session is in progress",
];

pub(crate) struct Rules {
    pub(crate) without: Option<&'static str>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) status: &'static str,
    pub(crate) payment: &'static str,
    pub(crate) paid: Option<i64>,
    pub(crate) refunded: i64,
    pub(crate) reasons: BTreeSet<String>,
    pub(crate) user: Option<String>,
    pub(crate) dispute_due_by: Option<i64>,
}

/// A payment as it stands at a time.
struct Standing<'s> {
    of: &'s StoryPayment,
    given_back: i64,
    back_at: Option<i64>,
    /// What is disputed: lost, and still open.
    lost: i64,
    open: i64,
}

impl Rules {
    fn has(&self, rule: &'static str) -> bool {
        assert!(RULES.contains(&rule), "{rule}");
        self.without != Some(rule)
    }

    fn look<'s>(&self, of: &'s StoryPayment, until: i64) -> Standing<'s> {
        let made = of.refunds.iter().filter(|refund| refund.at <= until);
        let kept = made.filter(|refund| refund.fails_at.is_none_or(|at| at > until));
        let given_back: i64 = kept.clone().map(|refund| refund.amount).sum();
        let is_back = of.received > 0 && given_back == of.received;
        let rest = (of.received - given_back).max(0);
        let (mut lost, mut open) = (0, 0);
        for disputed in &of.disputes {
            let Some((_, state)) = disputed.states.iter().rev().find(|(at, _)| *at <= until) else {
                continue;
            };
            let about = if disputed.amount < rest {
                disputed.amount
            } else {
                rest.max(1)
            };
            match *state {
                "lost" => lost += about,
                "won" => {}
                _ => open += about,
            }
        }
        Standing {
            of,
            given_back,
            back_at: kept.map(|refund| refund.at).max().filter(|_| is_back),
            lost,
            open,
        }
    }

    /// What it pays of the due.
    fn pays(&self, of: &StoryPayment, due: i64) -> Option<i64> {
        if self.has("adjusted items fit") && of.items == Some(due) {
            return Some(due);
        }
        (!of.is_foreign).then_some(of.received)
    }

    /// The sum of what stands, and whether it ever was enough and still counts.
    fn covers(&self, standing: &[Standing<'_>], due: i64, until: i64) -> (i64, bool, bool) {
        let mut steps = Vec::new();
        for one in standing
            .iter()
            .filter(|one| one.of.succeeds() && one.of.at <= until)
        {
            let Some(pays) = self.pays(one.of, due) else {
                continue;
            };
            steps.push((one.of.at, pays, 1));
            steps.extend(one.back_at.map(|at| (at, -pays, -1)));
        }
        steps.sort_unstable();
        let (mut sum, mut count, mut is_enough, mut was_enough) = (0, 0, false, false);
        for (_, amount, one) in steps {
            (sum, count) = (sum + amount, count + one);
            let reaches = match self.has("instalments add up") {
                true => sum >= due,
                false => amount >= due,
            };
            let reaches = match self.has("too much is paid") {
                true => reaches,
                false => reaches && amount <= due,
            };
            if one > 0 && reaches {
                (is_enough, was_enough) = (true, true);
            }
            let left = match self.has("a part that went back changes nothing") {
                true => count > 0,
                false => sum >= due,
            };
            is_enough &= left;
        }
        (sum, is_enough, was_enough)
    }

    /// What the order is at this time. `edits` are those that said something new.
    pub(crate) fn ending(&self, story: &Story, edits: &[(i64, Edit)], until: i64) -> Ending {
        let edits: Vec<(i64, Edit)> = edits
            .iter()
            .copied()
            .filter(|(at, _)| *at <= until)
            .collect();
        let came = story.payments.iter().filter(|of| of.at <= until);
        let mut standing: Vec<Standing<'_>> = came.map(|of| self.look(of, until)).collect();
        standing.sort_by_key(|one| one.of.at);
        let mut due = story.due;
        // What was due until when, where it was paid then.
        let mut paid_dues: Vec<(i64, i64)> = Vec::new();
        for (at, edit) in &edits {
            if let Edit::Due(new) = *edit {
                let then = story.payments.iter().filter(|of| of.at <= *at);
                let mut then: Vec<Standing<'_>> = then.map(|of| self.look(of, *at)).collect();
                then.sort_by_key(|one| one.of.at);
                let is_noted = paid_dues.iter().any(|(_, noted)| *noted == due);
                if self.covers(&then, due, *at).1 && new != due && !is_noted {
                    paid_dues.push((*at, due));
                }
                due = new;
            }
        }
        if !self.has("what was due stays paid for") {
            paid_dues.clear();
        }
        let last = |wanted: Edit| {
            let mut its = edits.iter().rev().filter(|(_, edit)| *edit == wanted);
            its.next().map(|(at, _)| *at)
        };
        let found_paid = last(Edit::Status("completed"));
        let recorded = last(Edit::Recorded);
        let by_hand = found_paid
            .max(recorded)
            .filter(|_| self.has("paid by hand stands"));
        let is_latest =
            |at: &i64| !self.has("the latest word wins") || Some(*at) > found_paid.max(recorded);
        let refunded_by_hand = last(Edit::Status("refunded")).filter(is_latest);
        let cancelled = edits
            .iter()
            .any(|(_, edit)| *edit == Edit::Status("cancelled"));
        let is_recorded = recorded.is_some();
        let mut records = edits.iter().filter(|(_, edit)| *edit == Edit::Recorded);
        let first_record = records.next().map(|(at, _)| *at);

        let (sum, is_enough, was_enough) = self.covers(&standing, due, i64::MAX);
        let mut earlier = paid_dues.iter().rev();
        let earlier = earlier.find(|(until, due)| self.covers(&standing, *due, *until).1);
        let was_enough = was_enough || earlier.is_some();
        let is_paid = is_enough || earlier.is_some();
        let here = standing
            .iter()
            .filter(|one| one.of.succeeds() && one.back_at.is_none());
        let part_back: i64 = here.map(|one| one.given_back).sum();
        let is_changed = earlier.is_some() && ![sum, sum - part_back].contains(&due);
        let succeeded = || standing.iter().filter(|one| one.of.succeeds());
        let is_back = |one: &Standing<'_>| one.back_at.is_some();
        let is_lost =
            |one: &Standing<'_>| one.lost > 0 && one.lost >= one.of.received - one.given_back;
        let is_open = |one: &Standing<'_>| {
            one.open > 0 && one.lost + one.open >= one.of.received - one.given_back
        };
        let is_gone = |one: &&Standing<'_>| {
            self.has("reasons end with the money") && (is_back(one) || is_lost(one))
        };
        let may_have_money = |one: &Standing<'_>| {
            let is_told = !one.of.is_delayed || self.has("an unpaid session is in progress");
            one.of.way == Way::Processing && is_told
        };
        let has_left = |one: &Standing<'_>| match one.of.received {
            0 => self.pays(one.of, due).is_some_and(|pays| pays > 0),
            _ => !is_back(one),
        };
        let is_everything = standing.iter().any(is_back)
            && match self.has("only everything back is refunded") {
                true => !succeeded().any(has_left) && !standing.iter().any(may_have_money),
                false => true,
            };
        let last_back = standing.iter().flat_map(|one| &one.of.refunds);
        let last_back = last_back.flat_map(|refund| [Some(refund.at), refund.fails_at]);
        let last_back = last_back.flatten().filter(|at| *at <= until).max();
        let is_paid_again = is_everything && found_paid > last_back;

        let mut reasons = BTreeSet::new();
        let mut before = 0;
        for one in succeeded().filter(|one| !is_gone(one)) {
            let id = one.of.id();
            if cancelled {
                reasons.insert(format!("paid_after_cancel:{id}"));
            }
            if refunded_by_hand.is_some_and(|at| one.of.at > at)
                && self.has("a payment after a refund is told")
            {
                reasons.insert(format!("paid_after_refund:{id}"));
            }
            let is_other = edits.iter().any(|(_, edit)| *edit == Edit::Intent);
            if is_other && !is_recorded && self.has("another payment than the row's is unexpected")
            {
                reasons.insert(format!("unexpected_payment:{id}"));
            }
            let asked = match earlier.filter(|_| is_changed) {
                Some((until, then)) if one.of.at <= *until => *then,
                Some((_, then)) => due.max(*then),
                None => due,
            };
            let Some(pays) = self.pays(one.of, asked) else {
                reasons.insert(format!("amount_mismatch:{id}"));
                continue;
            };
            let was_there = before > 0;
            before += pays;
            let is_beside = first_record.is_some_and(|at| pays == asked || one.of.at > at);
            let is_over = is_beside || before > asked;
            let is_twice = pays == asked && (was_there || is_beside);
            if is_over && is_twice && self.has("a further payment of the due is paid twice") {
                reasons.insert(format!("paid_twice:{id}"));
            } else if is_over {
                reasons.insert(format!("overpaid:{id}"));
            } else if !is_changed && sum < due && !is_recorded {
                reasons.insert(format!("amount_mismatch:{id}"));
            }
        }
        if is_changed {
            reasons.insert(format!("due_changed:{due}_usd"));
        }
        for one in &standing {
            self.add_reasons_of(one, until, &mut reasons);
        }
        if let (Some(at), true) = (by_hand, !is_paid && self.has("a later failure is a reason")) {
            let failed = standing
                .iter()
                .filter(|one| one.of.way == Way::Failed && one.of.at > at);
            reasons.extend(failed.map(|one| format!("failed_after_paid:{}", one.of.id())));
        }
        if found_paid.is_some() && !is_recorded && (is_paid_again || !was_enough) {
            reasons.insert("paid_unproven".to_owned());
        }
        if cancelled && (found_paid.is_some() || is_recorded) {
            reasons.insert("paid_after_cancel".to_owned());
        }
        let user = self.user(&standing, &mut reasons);

        let evidence =
            if refunded_by_hand.is_some() || (is_everything && !is_recorded && !is_paid_again) {
                "refunded"
            } else if is_paid || by_hand.is_some() {
                "paid"
            } else if sum > 0 && self.has("a part is partially paid") {
                "partially_paid"
            } else if succeeded().any(|one| !is_back(one)) {
                "unpaid"
            } else if standing.iter().any(may_have_money) {
                "processing"
            } else if succeeded().next().is_some() {
                "unpaid"
            } else if standing.iter().any(|one| one.of.way == Way::Failed) {
                "failed"
            } else {
                "unpaid"
            };
        let is_covered = |stands: &dyn Fn(&Standing<'_>) -> bool| {
            let dues = paid_dues.iter().map(|(_, due)| *due);
            self.has("a dispute belongs to its payment")
                && dues.chain([due]).any(|due| {
                    let rest = succeeded().filter(|one| !is_back(one) && stands(one));
                    let rest: Vec<i64> = rest.filter_map(|one| self.pays(one.of, due)).collect();
                    !rest.is_empty() && rest.iter().sum::<i64>() >= due
                })
        };
        let charged_back = standing.iter().any(is_lost) && !is_covered(&|one| !is_lost(one));
        let disputed =
            standing.iter().any(is_open) && !is_covered(&|one| !is_lost(one) && !is_open(one));
        let payment = match evidence {
            "refunded" => "refunded",
            _ if charged_back && !is_recorded => "charged_back",
            _ if disputed && !is_recorded => "disputed",
            other => other,
        };
        let status = match evidence {
            "refunded" => "refunded",
            "paid" => "completed",
            _ if cancelled => "cancelled",
            "failed" => "payment_failed",
            _ => "pending",
        };
        let received = succeeded()
            .filter(|one| !one.of.is_foreign)
            .map(|one| one.of.received);
        let is_others = !is_paid && found_paid.max(recorded).is_some();
        let due_by = standing.iter().flat_map(|one| &one.of.disputes);
        let due_by = due_by.filter(|disputed| {
            let last = disputed.states.iter().rev().find(|(at, _)| *at <= until);
            last.is_some_and(|(_, state)| *state == "needs_response")
        });
        Ending {
            status,
            payment,
            paid: (!is_others).then(|| received.sum()),
            refunded: standing.iter().map(|one| one.given_back).sum(),
            reasons,
            user,
            dispute_due_by: due_by.map(|disputed| disputed.due_by).min(),
        }
    }

    /// The reasons of a payment's refunds and disputes.
    fn add_reasons_of(&self, one: &Standing<'_>, until: i64, reasons: &mut BTreeSet<String>) {
        let n = one.of.n;
        let mut failed: Vec<(i64, usize, i64)> = Vec::new();
        let mut later: Vec<(i64, usize, i64)> = Vec::new();
        for (which, refund) in one.of.refunds.iter().enumerate() {
            match refund.fails_at.filter(|at| *at <= until) {
                Some(at) => failed.push((at, which, refund.amount)),
                None if refund.at <= until => later.push((refund.at, which, refund.amount)),
                None => {}
            }
        }
        failed.sort_unstable();
        later.sort_unstable();
        for (at, which, amount) in failed {
            let mut good = 0;
            let mut used = Vec::new();
            for (made, its, part) in &later {
                if *made > at && good < amount {
                    good += part;
                    used.push(*its);
                }
            }
            if good >= amount && self.has("a refund is made good") {
                later.retain(|(_, its, _)| !used.contains(its));
            } else if one.back_at.is_none() || !self.has("a refund is made good") {
                reasons.insert(format!("refund_failed:re_{n}_{which}"));
            }
        }
        let rest = one.of.received - one.given_back;
        for (which, disputed) in one.of.disputes.iter().enumerate() {
            let group = |state: &str| match state {
                "lost" | "won" => state.to_owned(),
                _ => "open".to_owned(),
            };
            let told: Vec<(i64, String)> = disputed
                .states
                .iter()
                .filter(|(at, _)| *at <= until)
                .map(|(at, state)| (*at, group(state)))
                .collect();
            let Some((_, last)) = told.last() else {
                continue;
            };
            let word = match last.as_str() {
                "lost" => "dispute_lost",
                "open" => "dispute_open",
                _ => continue,
            };
            let is_part = disputed.amount < rest && self.has("a partial dispute is its own reason");
            let part = if is_part { "partial_" } else { "" };
            // It was this before, and something else since.
            let first = told.iter().position(|(_, state)| state == last).unwrap();
            let left = told
                .iter()
                .skip(first)
                .rev()
                .find(|(_, state)| state != last);
            let left = left.filter(|_| self.has("an episode is a reason of its own"));
            let left =
                left.map(|(at, _)| format!("@{}", Timestamp::from_unix_s(second(*at)).unwrap()));
            reasons.insert(format!(
                "{part}{word}:dp_{n}_{which}{}",
                left.unwrap_or_default()
            ));
        }
    }

    fn user(&self, standing: &[Standing<'_>], reasons: &mut BTreeSet<String>) -> Option<String> {
        let is_gone = |one: &Standing<'_>| {
            let is_lost = one.lost > 0 && one.lost >= one.of.received - one.given_back;
            one.back_at.is_some() || is_lost
        };
        let mut paid: Vec<&Standing<'_>> =
            standing.iter().filter(|one| one.of.succeeds()).collect();
        paid.sort_by_key(|one| is_gone(one));
        let hints = standing.iter().filter_map(|one| one.of.user);
        if paid.is_empty() || !self.has("the user is the payer's") {
            return hints.min().map(str::to_owned);
        }
        let (payer, since) = paid
            .iter()
            .find_map(|one| Some((one.of.user?, one.of.at)))?;
        let is_other = |one: &&Standing<'_>| one.of.user.is_some_and(|user| user != payer);
        for one in standing.iter().filter(is_other) {
            if one.of.at > since && !is_gone(one) {
                reasons.insert(format!("user_conflict:{}", one.of.id()));
            }
        }
        Some(payer.to_owned())
    }
}
