//! Flows of Lob's events: the life of a letter, and the row that each sample event leaves.

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
        // The same again under another id changes nothing.
        let again = letter(
            "evt_reverse_again",
            "2026-11-20T08:00:00.000Z",
            "ltr_reverse",
            "delivered",
        );
        world.lob(&again).await?;
        world
            .settled(LOB, "processed", &["evt_reverse_again"])
            .await?;
        assert_eq!(types(&world.statement("st_reverse").await?), natural);
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
    const ROWS: [(&str, &str); 21] = [
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
        ("letter_deleted", "deleted deleted - - mail_deleted"),
        ("letter_viewed", "- - 2026-06-17 - mail_viewed"),
        (
            "letter_certified_delivered",
            "delivered - 2026-06-17 92071902358909000011275538 mail_delivered",
        ),
        (
            "letter_certified_issue",
            "- issue 2026-06-17 92071902358909000011275538 mail_issue",
        ),
        (
            "letter_return_envelope_in_transit",
            "- - 2026-06-17 - mail_return_envelope_in_transit",
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

#[test]
fn a_statement_mailed_again_begins_a_new_life_and_keeps_the_old_one() {
    flow(false, async |stage| {
        let world = &stage.world;
        let row = |letter: &str| json!({ "statement_id": "st_again", "lob_letter_id": letter });
        world.put("StatementsTable", row("ltr_first")).await?;
        let lob = async |id: &str, at: &str, of: &str, stage: &str| {
            world.lob(&letter(id, at, of, stage)).await?;
            world.settled(LOB, "processed", &[id]).await?;
            world.statement("st_again").await
        };
        lob("evt_again_1", "2026-11-01T08:00:00Z", "ltr_first", "mailed").await?;
        let back = lob(
            "evt_again_2",
            "2026-11-05T08:00:00Z",
            "ltr_first",
            "returned_to_sender",
        )
        .await?;
        assert_eq!(
            (&back["mail_status"], &back["needs_attention"]),
            (&json!("returned_to_sender"), &json!(true))
        );
        let update = world.aws.dynamodb().update_item();
        update
            .table_name(world.stack.output("StatementsTable")?)
            .key("statement_id", AttributeValue::S("st_again".into()))
            .update_expression("SET lob_letter_id = :second")
            .expression_attribute_values(":second", AttributeValue::S("ltr_second".into()))
            .send()
            .await?;
        let again = lob(
            "evt_again_3",
            "2026-11-06T08:00:00Z",
            "ltr_second",
            "created",
        )
        .await?;
        assert_eq!(
            (&again["mail_status"], &again["needs_attention"]),
            (&json!("created"), &json!(false))
        );
        assert_eq!(again["attention_reason"], Value::Null);
        assert_eq!(
            types(&again),
            ["mail_mailed", "mail_returned_to_sender", "mail_created"]
        );
        // The limit that is written down: no statement has the first letter any more.
        let late = letter(
            "evt_again_4",
            "2026-11-07T08:00:00Z",
            "ltr_first",
            "in_transit",
        );
        world.lob(&late).await?;
        world.settled(LOB, "parked", &["evt_again_4"]).await?;
        let late = event(world, LOB, "evt_again_4").await?;
        assert_eq!(late["processing_error"], "letter_unknown");
        Ok(())
    });
}
