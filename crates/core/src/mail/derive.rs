//! What a statement's mail is, by the merged facts.

use serde_json::{Map, json};

use super::facts::{MailFacts, Piece, Stage};
use crate::ids::PieceId;
use crate::merge::Seen;
use crate::time::Timestamp;
use crate::timeline::Entry;

/// What follows from the facts for a statement's columns.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct MailStanding {
    /// The stage that counts.
    pub status: Option<Stage>,
    /// When it was reached last.
    pub status_at: Option<Timestamp>,
    /// Why a person should look.
    pub attention_reason: Option<Stage>,
    /// The carrier's estimate.
    pub expected_delivery_date: Option<String>,
    /// The carrier's number.
    pub tracking_number: Option<String>,
    /// The template of the piece that counts.
    pub template_version: Option<String>,
    /// One entry per stage, of every piece.
    pub timeline: Vec<Entry>,
}

/// How a stage bears on `mail_status`.
enum Weight {
    /// Ends the piece's life; of several the latest counts, ties by this number.
    Terminal(u8),
    /// On the way: the furthest counts.
    OnTheWay,
    /// Beside the way.
    Side,
}

/// The table, mirrored in `docs/SEMANTICS.md`.
fn weight(stage: Stage) -> Weight {
    match stage {
        Stage::Deleted => Weight::Terminal(0),
        Stage::Rejected => Weight::Terminal(1),
        Stage::Failed => Weight::Terminal(2),
        Stage::Delivered => Weight::Terminal(3),
        Stage::ReturnedToSender => Weight::Terminal(4),
        Stage::Created
        | Stage::RenderedPdf
        | Stage::RenderedThumbnails
        | Stage::Mailed
        | Stage::InTransit
        | Stage::InLocalArea
        | Stage::ProcessedForDelivery => Weight::OnTheWay,
        Stage::ReRouted
        | Stage::InternationalExit
        | Stage::Viewed
        | Stage::PickupAvailable
        | Stage::Issue
        | Stage::ReturnEnvelopeCreated
        | Stage::ReturnEnvelopeInTransit
        | Stage::ReturnEnvelopeInLocalArea
        | Stage::ReturnEnvelopeProcessedForDelivery
        | Stage::ReturnEnvelopeReRouted
        | Stage::ReturnEnvelopeInternationalExit
        | Stage::ReturnEnvelopeReturnedToSender
        | Stage::ReturnEnvelopeDelivered
        | Stage::InformedDeliveryEmailSent
        | Stage::InformedDeliveryEmailOpened
        | Stage::InformedDeliveryEmailClickedThrough => Weight::Side,
    }
}

/// Why a person should look: the piece ended badly, or had an issue and nothing has ended it since.
fn attention(piece: &Piece, status: Option<(Stage, &Seen)>) -> Option<Stage> {
    let ended = status.filter(|(stage, _)| matches!(weight(*stage), Weight::Terminal(_)));
    match ended {
        Some((stage @ (Stage::Failed | Stage::Rejected | Stage::ReturnedToSender), _)) => {
            Some(stage)
        }
        _ => piece
            .stages
            .get(&Stage::Issue)
            .filter(|issue| ended.is_none_or(|(_, end)| end.last_at.0 < issue.last_at.0))
            .map(|_| Stage::Issue),
    }
}

/// Derives it. `mailed` is the piece that the application says it mailed; without it, or while nothing is known of that
/// one, the piece that began last counts.
pub fn derive(facts: &MailFacts, mailed: Option<&PieceId>) -> MailStanding {
    let timeline = facts
        .pieces
        .iter()
        .flat_map(|(id, piece)| entries(id, piece))
        .collect();
    let began = |piece: &Piece| piece.stages.values().map(|seen| seen.first.at).min();
    let newest = || {
        facts
            .pieces
            .iter()
            .max_by_key(|(id, piece)| (began(piece), *id))
            .map(|(_, piece)| piece)
    };
    let Some(piece) = mailed.and_then(|id| facts.pieces.get(id)).or_else(newest) else {
        return MailStanding {
            timeline,
            ..MailStanding::default()
        };
    };
    let status = status(piece);
    let latest = |value: &Option<crate::merge::Greatest<(Timestamp, String)>>| {
        value.as_ref().map(|latest| latest.0.1.clone())
    };
    MailStanding {
        status: status.map(|(stage, _)| stage),
        status_at: status.map(|(_, seen)| seen.last_at.0),
        attention_reason: attention(piece, status),
        expected_delivery_date: latest(&piece.expected_delivery_date),
        tracking_number: latest(&piece.tracking_number),
        template_version: latest(&piece.template_version),
        timeline,
    }
}

fn status(piece: &Piece) -> Option<(Stage, &Seen)> {
    let seen = || piece.stages.iter().map(|(stage, seen)| (*stage, seen));
    let terminal = seen()
        .filter_map(|(stage, seen)| match weight(stage) {
            Weight::Terminal(tie) => Some((seen.last_at.0, tie, stage, seen)),
            Weight::OnTheWay | Weight::Side => None,
        })
        .max_by_key(|(at, tie, ..)| (*at, *tie))
        .map(|(_, _, stage, seen)| (stage, seen));
    terminal.or_else(|| {
        seen()
            .filter(|(stage, _)| matches!(weight(*stage), Weight::OnTheWay))
            .max_by_key(|(stage, _)| *stage)
    })
}

fn entries<'a>(id: &'a PieceId, piece: &'a Piece) -> impl Iterator<Item = Entry> + 'a {
    piece.stages.iter().map(move |(stage, seen)| Entry {
        at: seen.first.at,
        kind: format!("mail_{}", stage.as_str()),
        fact: id.to_string(),
        told_by: "lob",
        event: Some(seen.first.event.clone()),
        meta: Map::from_iter([("pieceId".to_owned(), json!(id.as_str()))]),
    })
}
