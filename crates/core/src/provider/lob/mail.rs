//! Reads the facts of a printed piece from one event of Lob. `entity::mail` merges them and derives the columns.
//!
//! The piece's id and the time are required, and an event without them is parked as `field_malformed`. Everything else
//! is optional, so a value of a wrong type counts as missing, and so does a redacted `template_version`.

use std::collections::BTreeMap;

use crate::entity::mail::facts::{CarrierScan, MailFacts, MailStage, PieceFacts};
use crate::entity::merge::{FactSource, MaxRegister, MinRegister, SeenInterval};
use crate::ids::ObjectId;
use crate::json::NestedObject;
use crate::outcome::ParkReason;
use crate::provider::lob::event::{LobEvent, LobMetadata};

/// The facts of the event; `None` if its type is not a stage of a piece.
pub fn read_mail_facts(event: &LobEvent) -> Option<Result<MailFacts, ParkReason>> {
    let stage = MailStage::of_type(event.event_type.id.as_str())?;
    Some(read_stage_facts(event, stage))
}

fn read_stage_facts(event: &LobEvent, stage: MailStage) -> Result<MailFacts, ParkReason> {
    let id = event.piece_id().ok_or(ParkReason::FieldMalformed)?;
    let at = event.created().ok_or(ParkReason::FieldMalformed)?;
    let first = FactSource {
        at,
        event: event.id.clone(),
    };
    let mut piece = PieceFacts::default();
    piece.stages.insert(stage, SeenInterval::once(first));
    if let Some(body) = event.piece() {
        let latest = |text: Option<&String>| text.map(|text| MaxRegister((at, text.clone())));
        piece.expected_delivery_date = latest(body.expected_delivery_date.value());
        piece.tracking_number = latest(body.tracking_number.value());
        piece.template_version = latest(
            event
                .metadata()
                .and_then(|metadata| LobMetadata::unredacted(&metadata.template_version)),
        );
        for NestedObject(scan) in body.tracking_events.value().iter().flat_map(|list| &list.0) {
            let Some(id) = scan.id.value().and_then(|id| ObjectId::parse(id).ok()) else {
                continue;
            };
            let least = |text: Option<&String>| text.cloned().map(MinRegister);
            let scan = CarrierScan {
                name: least(scan.name.value()),
                time: least(scan.time.value()),
                location: least(scan.location.value()),
            };
            piece.scans.insert(id, scan);
        }
    }
    Ok(MailFacts {
        pieces: BTreeMap::from([(id.clone(), piece)]),
    })
}
