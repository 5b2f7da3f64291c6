//! Disputes, inquiries and early fraud warnings that a payment did not have before: somebody has to hear of each when it
//! comes, whatever the payment is linked to. Pure.
//!
//! An order or statement says so too, as a review reason, but only once one is linked to the payment. [`deadlines`] reports
//! a dispute again before it has to be answered.
//!
//! [`deadlines`]: crate::entity::payment::deadlines

use crate::entity::merge::latest_state;
use crate::entity::payment::deadlines::{DeadlineObject, list_deadlines};
use crate::entity::payment::facts::{DisputeState, MoneyFacts};
use crate::ids::ObjectId;
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DisputeKind {
    /// The customer's bank demands the money back.
    Dispute,
    /// It asks about the payment.
    Inquiry,
    /// The card's network says that the payment is fraud: a refund now mostly prevents the dispute.
    FraudWarning,
}

impl DisputeKind {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dispute => "dispute",
            Self::Inquiry => "inquiry",
            Self::FraudWarning => "fraud_warning",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenedDispute {
    pub kind: DisputeKind,
    /// Its id at Stripe.
    pub object: ObjectId,
    /// Until when it has to be answered, if Stripe says so.
    pub due: Option<Timestamp>,
}

/// What is open by these facts and was not by the facts before. An inquiry that becomes a dispute opens, and so does an
/// appeal against one that was lost. What is over when it is first heard of does not: a review reason tells a lost one.
pub fn find_opened_disputes(before: &MoneyFacts, now: &MoneyFacts) -> Vec<OpenedDispute> {
    // Most writes of a payment change neither.
    if now.disputes == before.disputes && now.warnings == before.warnings {
        return Vec::new();
    }
    let deadlines = list_deadlines(now);
    let due_of = |id: &ObjectId| {
        let mut its = deadlines.iter();
        let its = its.find(|deadline| deadline.object == DeadlineObject::Dispute(id.clone()));
        its.map(|deadline| deadline.due)
    };
    let state_in = |facts: &MoneyFacts, id: &ObjectId| {
        let dispute = facts.disputes.get(id)?;
        latest_state(&dispute.states)
    };
    let disputes = now.disputes.keys().filter_map(|id| {
        let kind = match (state_in(before, id), state_in(now, id)?) {
            (Some(DisputeState::Open), DisputeState::Open | DisputeState::Inquiry)
            | (Some(DisputeState::Inquiry), DisputeState::Inquiry) => return None,
            (_, DisputeState::Open) => DisputeKind::Dispute,
            (_, DisputeState::Inquiry) => DisputeKind::Inquiry,
            (
                _,
                DisputeState::InquiryClosed
                | DisputeState::Prevented
                | DisputeState::Won
                | DisputeState::Lost,
            ) => return None,
        };
        Some(OpenedDispute {
            kind,
            object: id.clone(),
            due: due_of(id),
        })
    });
    let warnings = now.warnings.keys();
    let warnings = warnings.filter(|id| !before.warnings.contains_key(*id));
    let warnings = warnings.map(|id| OpenedDispute {
        kind: DisputeKind::FraudWarning,
        object: id.clone(),
        due: None,
    });
    disputes.chain(warnings).collect()
}
