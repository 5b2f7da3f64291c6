//! The catalogue of Lob's event types: one row for each stage of a letter. Postcards, self mailers and checks have the
//! same stages under their own names; `MailStage::of_type` reads all of them.
//! Source: `lob-openapi`, event types, and `Tracking your mail`, read 2026-11.

use crate::provider::interpret::CatalogueEntry;

macro_rules! catalogue {
    ($($event_type:literal => $sample:literal, $meaning:literal;)*) => {
        pub(super) const EVENT_TYPES: &[CatalogueEntry] = &[$(CatalogueEntry {
            event_type: $event_type,
            meaning: $meaning,
            sample: $sample,
        },)*];
    };
}

// A stage without a sample of its own has that of a stage with the same fields; `billhook send` sets the type.
catalogue! {
    "letter.created" => "letter_created", "Lob accepted the letter";
    "letter.rendered_pdf" => "letter_rendered_pdf", "its proof is rendered";
    "letter.rendered_thumbnails" => "letter_rendered_thumbnails", "the thumbnails of its proof are rendered";
    "letter.mailed" => "letter_mailed", "the carrier has it";
    "letter.in_transit" => "letter_in_transit", "the carrier's first scan";
    "letter.in_local_area" => "letter_in_local_area", "it is near its destination";
    "letter.processed_for_delivery" => "letter_processed_for_delivery", "it is ready for delivery";
    "letter.delivered" => "letter_delivered", "it was delivered";
    "letter.returned_to_sender" => "letter_returned_to_sender", "it could not be delivered and comes back";
    "letter.failed" => "letter_failed", "Lob could not produce it";
    "letter.rejected" => "letter_failed", "Lob refused to produce it";
    "letter.deleted" => "letter_deleted", "it was canceled before it was produced";
    "letter.re-routed" => "letter_re-routed", "the carrier sends it to another address";
    "letter.international_exit" => "letter_in_transit", "it left the country";
    "letter.viewed" => "letter_viewed", "somebody opened its proof";
    "letter.certified.pickup_available" => "letter_certified_delivered", "it waits at the post office";
    "letter.certified.issue" => "letter_certified_issue", "a problem with its delivery";
    "letter.return_envelope.created" => "letter_return_envelope_in_transit", "a return envelope belongs to it";
    "letter.return_envelope.in_transit" => "letter_return_envelope_in_transit", "the recipient posted the return envelope";
    "letter.return_envelope.in_local_area" => "letter_return_envelope_in_transit", "the return envelope is near its destination";
    "letter.return_envelope.processed_for_delivery" => "letter_return_envelope_in_transit", "the return envelope is ready for delivery";
    "letter.return_envelope.re-routed" => "letter_return_envelope_in_transit", "the return envelope goes to another address";
    "letter.return_envelope.international_exit" => "letter_return_envelope_in_transit", "the return envelope left the country";
    "letter.return_envelope.returned_to_sender" => "letter_return_envelope_in_transit", "the return envelope went back to the recipient";
    "letter.return_envelope.delivered" => "letter_return_envelope_in_transit", "the return envelope arrived at the sender";
    "letter.informed_delivery.email_sent" => "letter_viewed", "the carrier announced it to the recipient by e-mail";
    "letter.informed_delivery.email_opened" => "letter_viewed", "the recipient opened that e-mail";
    "letter.informed_delivery.email_clicked_through" => "letter_viewed", "the recipient followed a link in that e-mail";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::mail::facts::MailStage;

    #[test]
    fn every_stage_has_its_row_in_declared_order() {
        let rows = EVENT_TYPES.iter();
        let stages: Vec<_> = rows
            .map(|row| MailStage::of_type(row.event_type).unwrap())
            .collect();
        assert_eq!(stages, MailStage::ALL);
    }
}
