//! What a statement's mail is, by the merged facts.

use serde_json::{Map, json};

use crate::entity::mail::facts::{MailFacts, MailStage, PieceFacts};
use crate::entity::merge::{MaxRegister, SeenInterval};
use crate::entity::timeline::DerivedEntry;
use crate::ids::PieceId;
use crate::time::Timestamp;

/// What follows from the facts for a statement's columns.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct DerivedMail {
    /// The stage that counts.
    pub status: Option<MailStage>,
    /// When it was reached last.
    pub status_at: Option<Timestamp>,
    /// Why a person should look.
    pub attention_reason: Option<MailStage>,
    /// The carrier's estimate.
    pub expected_delivery_date: Option<String>,
    /// The carrier's number.
    pub tracking_number: Option<String>,
    /// The template of the piece that counts.
    pub template_version: Option<String>,
    /// One entry per stage, of every piece.
    pub timeline: Vec<DerivedEntry>,
}

/// How a stage bears on `mail_status`.
enum StageRole {
    /// Ends the piece's life; of several the latest counts, ties by this number.
    Terminal(u8),
    /// On the way: the furthest counts.
    OnTheWay,
    /// Beside the way.
    Side,
}

/// The table, mirrored in `docs/SEMANTICS.md`.
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

/// Why a person should look: the piece ended badly, or had an issue and nothing has ended it since.
fn find_attention_reason(
    piece: &PieceFacts,
    status: Option<(MailStage, &SeenInterval)>,
) -> Option<MailStage> {
    let ended = status.filter(|(stage, _)| matches!(stage_role(*stage), StageRole::Terminal(_)));
    match ended {
        Some((
            stage @ (MailStage::Failed | MailStage::Rejected | MailStage::ReturnedToSender),
            _,
        )) => Some(stage),
        _ => piece
            .stages
            .get(&MailStage::Issue)
            .filter(|issue| ended.is_none_or(|(_, end)| end.last_at.0 < issue.last_at.0))
            .map(|_| MailStage::Issue),
    }
}

/// Derives it. `mailed` is the piece that the application says it mailed; without it, or while nothing is known of that
/// one, the piece that began last counts.
pub fn derive_mail(facts: &MailFacts, mailed: Option<&PieceId>) -> DerivedMail {
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
    let Some(piece) = mailed.and_then(|id| facts.pieces.get(id)).or_else(newest) else {
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
        told_by: "lob",
        event: Some(seen.first.event.clone()),
        meta: Map::from_iter([("pieceId".to_owned(), json!(id.as_str()))]),
    })
}
