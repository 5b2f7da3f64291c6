//! The facts of printed pieces (letters, postcards, self mailers, checks) that a statement stores, and the stages.
//!
//! The carrier's scans come late, twice, out of order, or never, so there is no sequence of stages to rely on: each
//! stage that an event reports is a fact of its own, and `derive` picks the one that counts.

use std::collections::BTreeMap;

use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::{Deserialize, Serialize};

use crate::entity::merge::{MaxRegister, MinRegister, SeenInterval, merge_fields};
use crate::ids::{ObjectId, PieceId};
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MailFacts {
    /// By piece, because a statement that was mailed again has two.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pieces: BTreeMap<PieceId, PieceFacts>,
}

/// The value of the newest event that has one, by Lob's timestamp.
type LatestValue<T> = Option<MaxRegister<(Timestamp, T)>>;

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PieceFacts {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<MailStage, SeenInterval>,
    /// The carrier's estimate, a date such as `2026-11-27`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_delivery_date: LatestValue<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking_number: LatestValue<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_version: LatestValue<String>,
    /// By the carrier's id, because each of Lob's events repeats all scans so far. No column is derived from them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scans: BTreeMap<ObjectId, CarrierScan>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CarrierScan {
    /// Such as `In Transit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<MinRegister<String>>,
    /// As Lob writes it, not parsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<MinRegister<String>>,
    /// A ZIP code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<MinRegister<String>>,
}

merge_fields!(MailFacts { pieces });

merge_fields!(PieceFacts {
    stages,
    expected_delivery_date,
    tracking_number,
    template_version,
    scans
});

merge_fields!(CarrierScan {
    name,
    time,
    location
});

/// A stage of a piece. The declared order is the rank of the progress stages (`created` to `processed_for_delivery`);
/// `derive` says which stages are final. A stage of Lob's that is not here is ignored as `unhandled_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailStage {
    Created,
    RenderedPdf,
    RenderedThumbnails,
    /// The carrier has it.
    Mailed,
    InTransit,
    InLocalArea,
    ProcessedForDelivery,
    Delivered,
    ReturnedToSender,
    /// Lob could not produce it.
    Failed,
    /// Lob refused to produce it.
    Rejected,
    /// Canceled before it was produced.
    Deleted,
    ReRouted,
    InternationalExit,
    /// Somebody opened its proof.
    Viewed,
    PickupAvailable,
    /// Certified pieces only.
    Issue,
    /// The return envelope is what the recipient answers with; it says nothing about the piece's own delivery.
    ReturnEnvelopeCreated,
    ReturnEnvelopeInTransit,
    ReturnEnvelopeInLocalArea,
    ReturnEnvelopeProcessedForDelivery,
    ReturnEnvelopeReRouted,
    ReturnEnvelopeInternationalExit,
    /// Back at the recipient who posted it.
    ReturnEnvelopeReturnedToSender,
    /// Arrived at the sender of the piece.
    ReturnEnvelopeDelivered,
    /// The carrier announced the piece to the recipient by e-mail.
    InformedDeliveryEmailSent,
    InformedDeliveryEmailOpened,
    InformedDeliveryEmailClickedThrough,
}

impl MailStage {
    pub fn parse(word: &str) -> Option<Self> {
        Self::deserialize(StrDeserializer::<ValueError>::new(word)).ok()
    }

    /// The word in row and timeline.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::RenderedPdf => "rendered_pdf",
            Self::RenderedThumbnails => "rendered_thumbnails",
            Self::Mailed => "mailed",
            Self::InTransit => "in_transit",
            Self::InLocalArea => "in_local_area",
            Self::ProcessedForDelivery => "processed_for_delivery",
            Self::Delivered => "delivered",
            Self::ReturnedToSender => "returned_to_sender",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Deleted => "deleted",
            Self::ReRouted => "re_routed",
            Self::InternationalExit => "international_exit",
            Self::Viewed => "viewed",
            Self::PickupAvailable => "pickup_available",
            Self::Issue => "issue",
            Self::ReturnEnvelopeCreated => "return_envelope_created",
            Self::ReturnEnvelopeInTransit => "return_envelope_in_transit",
            Self::ReturnEnvelopeInLocalArea => "return_envelope_in_local_area",
            Self::ReturnEnvelopeProcessedForDelivery => "return_envelope_processed_for_delivery",
            Self::ReturnEnvelopeReRouted => "return_envelope_re_routed",
            Self::ReturnEnvelopeInternationalExit => "return_envelope_international_exit",
            Self::ReturnEnvelopeReturnedToSender => "return_envelope_returned_to_sender",
            Self::ReturnEnvelopeDelivered => "return_envelope_delivered",
            Self::InformedDeliveryEmailSent => "informed_delivery_email_sent",
            Self::InformedDeliveryEmailOpened => "informed_delivery_email_opened",
            Self::InformedDeliveryEmailClickedThrough => "informed_delivery_email_clicked_through",
        }
    }

    /// In declared order.
    pub const ALL: [Self; 28] = [
        Self::Created,
        Self::RenderedPdf,
        Self::RenderedThumbnails,
        Self::Mailed,
        Self::InTransit,
        Self::InLocalArea,
        Self::ProcessedForDelivery,
        Self::Delivered,
        Self::ReturnedToSender,
        Self::Failed,
        Self::Rejected,
        Self::Deleted,
        Self::ReRouted,
        Self::InternationalExit,
        Self::Viewed,
        Self::PickupAvailable,
        Self::Issue,
        Self::ReturnEnvelopeCreated,
        Self::ReturnEnvelopeInTransit,
        Self::ReturnEnvelopeInLocalArea,
        Self::ReturnEnvelopeProcessedForDelivery,
        Self::ReturnEnvelopeReRouted,
        Self::ReturnEnvelopeInternationalExit,
        Self::ReturnEnvelopeReturnedToSender,
        Self::ReturnEnvelopeDelivered,
        Self::InformedDeliveryEmailSent,
        Self::InformedDeliveryEmailOpened,
        Self::InformedDeliveryEmailClickedThrough,
    ];

    /// The stage in an event type; `None` for types that are not about a piece (addresses, bank accounts).
    ///
    /// Quirks: Lob writes both `re-routed` and `re_routed`; `letter.certified.mailed` is the stage `mailed`, but
    /// `letter.return_envelope.in_transit` is a stage of its own, `return_envelope_in_transit`.
    pub fn of_type(event_type: &str) -> Option<Self> {
        let (piece, stage) = event_type.split_once('.')?;
        if !["letter", "postcard", "self_mailer", "check"].contains(&piece) {
            return None;
        }
        let stage = stage
            .strip_prefix("certified.")
            .unwrap_or(stage)
            .replace(['-', '.'], "_");
        Self::ALL.into_iter().find(|known| known.as_str() == stage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every event type of Lob's API and its stage. Source: lob-openapi, event types, read 2026-11.
    #[test]
    fn every_type_of_the_api_is_known() {
        let base = "created rejected rendered_pdf rendered_thumbnails deleted failed viewed mailed in_transit \
                    in_local_area processed_for_delivery delivered re-routed returned_to_sender international_exit";
        let certified = "mailed in_transit in_local_area processed_for_delivery re-routed returned_to_sender delivered \
                         pickup_available issue";
        let envelope = "created in_transit in_local_area processed_for_delivery re_routed re-routed returned_to_sender \
                        delivered international_exit";
        let informed = "email_sent email_opened email_clicked_through";
        let mut seen = std::collections::BTreeSet::new();
        for (pieces, between, stages, prefix) in [
            ("letter postcard self_mailer check", "", base, ""),
            ("letter", "certified.", certified, ""),
            ("letter", "return_envelope.", envelope, "return_envelope_"),
            (
                "letter postcard self_mailer",
                "informed_delivery.",
                informed,
                "informed_delivery_",
            ),
        ] {
            for piece in pieces.split(' ') {
                for stage in stages.split_ascii_whitespace() {
                    let found = MailStage::of_type(&format!("{piece}.{between}{stage}"));
                    let word = format!("{prefix}{}", stage.replace('-', "_"));
                    assert_eq!(
                        found.map(MailStage::as_str),
                        Some(&*word),
                        "{piece}.{between}{stage}"
                    );
                    seen.extend(found);
                }
            }
        }
        assert_eq!(seen.len(), MailStage::ALL.len());
        for other in [
            "address.created",
            "address.deleted",
            "bank_account.verified",
            "letter.teleported",
            "letter",
            "",
        ] {
            assert_eq!(MailStage::of_type(other), None, "{other}");
        }
    }
}
