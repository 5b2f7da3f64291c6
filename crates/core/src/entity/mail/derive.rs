//! Projection of the facts of letters: derives a statement's `mail_status`, its attention flag and its timeline
//! entries.
//!
//! Scans arrive out of order and may be missing, so the rule has no transitions: a final stage beats every progress
//! stage, whatever its timestamp; of several final stages the latest counts; of progress stages the furthest. The table
//! is in `docs/SEMANTICS.md`, Letters; the facts are in `facts`.

use serde_json::{Map, json};

use crate::entity::mail::facts::{MailFacts, MailStage, PieceFacts};
use crate::entity::merge::{MaxRegister, SeenInterval};
use crate::entity::timeline::DerivedEntry;
use crate::ids::PieceId;
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Default)]
pub struct DerivedMail {
    pub status: Option<MailStage>,
    /// When the stage of `status` was last reported, by Lob's timestamp.
    pub status_at: Option<Timestamp>,
    /// Why the letter needs attention; `None` if it does not.
    pub attention_reason: Option<MailStage>,
    pub expected_delivery_date: Option<String>,
    pub tracking_number: Option<String>,
    pub template_version: Option<String>,
    /// One entry per stage, of every piece and not only of the one that counts.
    pub timeline: Vec<DerivedEntry>,
}

/// The effect of a stage on `mail_status`.
enum StageRole {
    /// Final. Of several the latest counts, because a delivered piece may come back; if timestamps are equal, the one
    /// with the greater number.
    Terminal(u8),
    /// Progress. The furthest counts, not the latest: a scan of an earlier stage may be reported late.
    OnTheWay,
    /// No effect.
    Side,
}

/// Mirrored in `docs/SEMANTICS.md`, Letters.
fn stage_role(stage: MailStage) -> StageRole {
    match stage {
        MailStage::Deleted => StageRole::Terminal(0),
        MailStage::Rejected => StageRole::Terminal(1),
        MailStage::Failed => StageRole::Terminal(2),
        MailStage::Delivered => StageRole::Terminal(3),
        MailStage::ReturnedToSender => StageRole::Terminal(4),
        MailStage::Created
        | MailStage::RenderedPdf
        | MailStage::RenderedThumbnails
        | MailStage::Mailed
        | MailStage::InTransit
        | MailStage::InLocalArea
        | MailStage::ProcessedForDelivery => StageRole::OnTheWay,
        MailStage::ReRouted
        | MailStage::InternationalExit
        | MailStage::Viewed
        | MailStage::PickupAvailable
        | MailStage::Issue
        | MailStage::ReturnEnvelopeCreated
        | MailStage::ReturnEnvelopeInTransit
        | MailStage::ReturnEnvelopeInLocalArea
        | MailStage::ReturnEnvelopeProcessedForDelivery
        | MailStage::ReturnEnvelopeReRouted
        | MailStage::ReturnEnvelopeInternationalExit
        | MailStage::ReturnEnvelopeReturnedToSender
        | MailStage::ReturnEnvelopeDelivered
        | MailStage::InformedDeliveryEmailSent
        | MailStage::InformedDeliveryEmailOpened
        | MailStage::InformedDeliveryEmailClickedThrough => StageRole::Side,
    }
}

/// Whether a stage that was known before beats one that is stated now, of whose times nothing is known: a final stage
/// beats progress, and of progress the furthest counts.
pub(in crate::entity) fn is_stronger_stage(known: MailStage, stated: MailStage) -> bool {
    match (stage_role(known), stage_role(stated)) {
        (_, StageRole::Terminal(_)) | (StageRole::Side, _) => false,
        (StageRole::Terminal(_), _) => true,
        (StageRole::OnTheWay, _) => known > stated,
    }
}

/// Why the piece needs attention: its final stage is a bad one, or it had an issue and no final stage since. Example:
/// an issue on 12 Nov and `delivered` on 14 Nov need nothing; an issue on 15 Nov, after that, does.
fn find_attention_reason(
    piece: &PieceFacts,
    status: Option<(MailStage, &SeenInterval)>,
) -> Option<MailStage> {
    let ended = status.filter(|(stage, _)| matches!(stage_role(*stage), StageRole::Terminal(_)));
    match ended {
        Some((
            // Nothing of billhook cancels a letter, so somebody did who may not have told the application.
            stage @ (MailStage::Deleted
            | MailStage::Failed
            | MailStage::Rejected
            | MailStage::ReturnedToSender),
            _,
        )) => Some(stage),
        _ => piece
            .stages
            .get(&MailStage::Issue)
            .filter(|issue| ended.is_none_or(|(_, end)| end.last_at.0 < issue.last_at.0))
            .map(|_| MailStage::Issue),
    }
}

/// Derives the columns from one piece. `current` is the statement's `lob_letter_id`; if it is empty, or no event of
/// that piece has arrived, the piece with the latest first event counts. Example: `ltr_1` was returned, the statement
/// was mailed again as `ltr_2`, and then a late scan of `ltr_1` arrives: `mail_status` stays that of `ltr_2`.
pub fn derive_mail(facts: &MailFacts, current: Option<&PieceId>) -> DerivedMail {
    let timeline = facts
        .pieces
        .iter()
        .flat_map(|(id, piece)| build_timeline_entries(id, piece))
        .collect();
    let began = |piece: &PieceFacts| piece.stages.values().map(|seen| seen.first.at).min();
    let newest = || {
        facts
            .pieces
            .iter()
            .max_by_key(|(id, piece)| (began(piece), *id))
            .map(|(_, piece)| piece)
    };
    let Some(piece) = current.and_then(|id| facts.pieces.get(id)).or_else(newest) else {
        return DerivedMail {
            timeline,
            ..DerivedMail::default()
        };
    };
    let status = find_current_stage(piece);
    let latest = |value: &Option<MaxRegister<(Timestamp, String)>>| {
        value.as_ref().map(|latest| latest.0.1.clone())
    };
    DerivedMail {
        status: status.map(|(stage, _)| stage),
        status_at: status.map(|(_, seen)| seen.last_at.0),
        attention_reason: find_attention_reason(piece, status),
        expected_delivery_date: latest(&piece.expected_delivery_date),
        tracking_number: latest(&piece.tracking_number),
        template_version: latest(&piece.template_version),
        timeline,
    }
}

fn find_current_stage(piece: &PieceFacts) -> Option<(MailStage, &SeenInterval)> {
    let seen = || piece.stages.iter().map(|(stage, seen)| (*stage, seen));
    let terminal = seen()
        .filter_map(|(stage, seen)| match stage_role(stage) {
            StageRole::Terminal(tie) => Some((seen.last_at.0, tie, stage, seen)),
            StageRole::OnTheWay | StageRole::Side => None,
        })
        .max_by_key(|(at, tie, ..)| (*at, *tie))
        .map(|(_, _, stage, seen)| (stage, seen));
    terminal.or_else(|| {
        seen()
            .filter(|(stage, _)| matches!(stage_role(*stage), StageRole::OnTheWay))
            .max_by_key(|(stage, _)| *stage)
    })
}

fn build_timeline_entries<'a>(
    id: &'a PieceId,
    piece: &'a PieceFacts,
) -> impl Iterator<Item = DerivedEntry> + 'a {
    piece.stages.iter().map(move |(stage, seen)| DerivedEntry {
        at: seen.first.at,
        kind: format!("mail_{}", stage.as_str()),
        fact: id.to_string(),
        stated_by: "lob",
        event: Some(seen.first.event.clone()),
        meta: Map::from_iter([("pieceId".to_owned(), json!(id.as_str()))]),
    })
}
