//! Lob's events: the life of a letter, and the row that each sample leaves.

use super::*;

#[test]
fn a_letters_life_in_reverse() {
    flow(false, async |stage| {
        let world = &stage.world;
        let row = json!({ "statement_id": "st_reverse", "tenant_id": "ten_a", "lob_letter_id": "ltr_reverse",
            "payment_status": "paid" });
        world.put("StatementsTable", row).await?;
        let stages = [
            "delivered",
            "processed_for_delivery",
            "in_local_area",
            "in_transit",
            "mailed",
            "rendered_pdf",
            "created",
        ];
        let mut ids = Vec::new();
        for (n, stage) in stages.iter().enumerate() {
            let id = format!("evt_reverse_{n}");
            let at = format!("2026-11-{:02}T08:00:00.000Z", 20 - n);
            assert_eq!(
                world
                    .lob(&letter(&id, &at, "ltr_reverse", stage))
                    .await?
                    .status,
                200
            );
            ids.push(id);
        }
        world
            .settled(
                LOB,
                "processed",
                &ids.iter().map(String::as_str).collect::<Vec<_>>(),
            )
            .await?;
        let row = world.statement("st_reverse").await?;
        assert_eq!(
            (&row["mail_status"], &row["mail_status_at"]),
            (&json!("delivered"), &json!("2026-11-20T08:00:00.000Z"))
        );
        assert_eq!(
            (&row["expected_delivery_date"], &row["needs_attention"]),
            (&json!("2026-11-27"), &json!(false))
        );
        let mut natural = stages.map(|stage| format!("mail_{stage}"));
        natural.reverse();
        assert_eq!(types(&row), natural);
        // Paid by other means than Stripe: not ours to write.
        assert_eq!(row["payment_status"], "paid");
        let unknown = letter(
            "evt_reverse_u",
            "2026-11-20T08:00:00.000Z",
            "ltr_nobodys",
            "mailed",
        );
        world.lob(&unknown).await?;
        world.settled(LOB, "parked", &["evt_reverse_u"]).await?;
        assert_eq!(
            event(world, LOB, "evt_reverse_u").await?["processing_error"],
            "letter_unknown"
        );
        Ok(())
    });
}

#[test]
fn every_sample_of_lob_leaves_the_row_of_this_table() {
    // Sample, and of its statement: mail_status, attention_reason, expected_delivery_date, tracking_number, timeline.
    const ROWS: [(&str, &str); 20] = [
        ("letter_created", "created - 2026-06-17 - mail_created"),
        (
            "letter_rendered_pdf",
            "rendered_pdf - 2026-06-17 - mail_rendered_pdf",
        ),
        (
            "letter_rendered_thumbnails",
            "rendered_thumbnails - 2026-06-17 - mail_rendered_thumbnails",
        ),
        ("letter_mailed", "mailed - 2026-06-17 - mail_mailed"),
        (
            "letter_in_transit",
            "in_transit - 2026-06-17 - mail_in_transit",
        ),
        (
            "letter_in_local_area",
            "in_local_area - 2026-06-17 - mail_in_local_area",
        ),
        (
            "letter_processed_for_delivery",
            "processed_for_delivery - 2026-06-17 - mail_processed_for_delivery",
        ),
        (
            "letter_processed_for_delivery_redacted",
            "processed_for_delivery - 2026-06-17 - mail_processed_for_delivery",
        ),
        (
            "letter_delivered",
            "delivered - 2026-06-17 - mail_delivered",
        ),
        (
            "letter_returned_to_sender",
            "returned_to_sender returned_to_sender 2026-06-17 - mail_returned_to_sender",
        ),
        ("letter_re-routed", "- - 2026-06-17 - mail_re_routed"),
        ("letter_failed", "failed failed 2026-06-17 - mail_failed"),
        ("letter_deleted", "deleted - - - mail_deleted"),
        ("letter_viewed", "- - 2026-06-17 - mail_viewed"),
        (
            "letter_certified_delivered",
            "delivered - 2026-06-17 92071902358909000011275538 mail_delivered",
        ),
        (
            "letter_certified_issue",
            "- issue 2026-06-17 92071902358909000011275538 mail_issue",
        ),
        ("postcard_created", "created - 2026-06-17 - mail_created"),
        (
            "postcard_delivered",
            "delivered - 2026-06-17 - mail_delivered",
        ),
        (
            "self_mailer_returned_to_sender",
            "returned_to_sender returned_to_sender 2026-06-24 - mail_returned_to_sender",
        ),
        ("check_mailed", "mailed - 2026-06-17 - mail_mailed"),
    ];
    flow(false, async |stage| {
        let world = &stage.world;
        let mut found = Vec::new();
        for (n, (name, _)) in ROWS.iter().enumerate() {
            let own = format!("{n:016x}");
            let mut event = sample("lob", name, &own);
            event["id"] = json!(format!("evt_sample_{n}"));
            let statement = format!("st_{own}");
            let row = json!({ "statement_id": statement, "lob_letter_id": event["reference_id"] });
            world.put("StatementsTable", row).await?;
            assert_eq!(world.lob(&event).await?.status, 200, "{name}");
            world
                .settled(LOB, "processed", &[event["id"].as_str().unwrap()])
                .await?;
            let row = world.statement(&statement).await?;
            let text = |column: &str| row[column].as_str().unwrap_or("-").to_owned();
            found.push(format!(
                "{} {} {} {} {}",
                text("mail_status"),
                text("attention_reason"),
                text("expected_delivery_date"),
                text("tracking_number"),
                types(&row).join(",")
            ));
            // The next sample of the same piece is another statement's.
            world
                .put("StatementsTable", json!({ "statement_id": statement }))
                .await?;
        }
        for ((name, expected), found) in ROWS.iter().zip(&found) {
            assert_eq!(found, expected, "{name}");
        }
        Ok(())
    });
}
