//! Events decided again: replays and dead letters, previewed, done, cut and continued.

use super::*;

#[test]
fn a_replay_is_previewed_shown_done_and_forced() {
    flow(false, async |stage| {
        let world = &stage.world;
        let ids = [
            too_early(stage, "op_replay_1").await?,
            too_early(stage, "op_replay_2").await?,
        ];
        for own in ["op_replay_1", "op_replay_2"] {
            order(world, &format!("ord_{own}"), None).await?;
        }
        let both = format!("replay {} {}", ids[0], ids[1]);
        let preview = billhook(stage, &both).await?;
        insta::assert_snapshot!("replay_preview", format!("{}{}", preview.out, preview.told));
        assert_eq!(
            event(world, STRIPE, &ids[0]).await?["processing_outcome"],
            "parked"
        );
        let shown = billhook(stage, &format!("replay {} --what-if", ids[0])).await?;
        insta::assert_snapshot!("replay_what_if", shown.out);
        assert_eq!(world.order("ord_op_replay_1").await?["status"], "pending");

        let done = billhook(stage, &format!("{both} --yes --reason 'orders were late'")).await?;
        done.says(0, "done: 2 sent");
        world
            .settled(STRIPE, "processed", &[&ids[0], &ids[1]])
            .await?;

        // Done ones are left out, unless forced with a reason; and then nothing changes.
        let left_out = billhook(stage, &format!("{both} --yes")).await?;
        left_out.says(0, "done: 0 sent");
        let unreasoned = billhook(stage, &format!("{both} --yes --force")).await?;
        unreasoned.says(2, "--reason");
        let before = world.order("ord_op_replay_1").await?;
        let forced = format!("{both} --yes --force --reason 'to be sure'");
        let forced = billhook(stage, &forced).await?;
        forced.says(0, "done: 2 sent");
        world
            .settled(STRIPE, "processed", &[&ids[0], &ids[1]])
            .await?;
        let after = world.order("ord_op_replay_1").await?;
        assert_eq!(
            (&before["timeline"], &before["status"]),
            (&after["timeline"], &after["status"])
        );
        assert_eq!(event(world, STRIPE, &ids[0]).await?["attempts"], 3);
        let everything = billhook(stage, "replay --yes").await?;
        everything.says(1, "replaying everything");
        Ok(())
    });
}

#[test]
fn a_replay_that_is_cut_is_continued_and_sends_each_event_once() {
    flow(false, async |stage| {
        let before = cut_and_continued(stage, "op_cut", 60, "20", 10).await?;
        assert!(
            (10..60).contains(&before),
            "{before} were sent before the cut"
        );
        Ok(())
    });
}

/// `make replay` runs it, and shows the figures.
#[test]
#[ignore = "takes minutes"]
fn a_bulk_replay_of_5000_events_is_cut_and_continued() {
    flow(true, async |stage| {
        let before = cut_and_continued(stage, "op_bulk", 5_000, "300", 1_000).await?;
        assert!(
            (1_000..5_000).contains(&before),
            "{before} were sent before the cut"
        );
        Ok(())
    });
}

/// Stores parked events whose payload is none.
async fn parked(world: &World, own: &str, events: usize) -> Result<()> {
    let id = |n: usize| format!("evt_{own}_{n:04}");
    for n in 0..events {
        let row = json!({ "event_id": id(n), "source": "stripe", "event_type": "invoice.paid", "group": format!("{own}{n}"),
            "received_at": Timestamp::from_unix_s(1_781_000_000 + i64::try_from(n)?)?.to_string(),
            "received_day": "2026-06-09", "processed": false, "processing_outcome": "parked", "open": "parked",
            "processing_error": own, "attempts": 0,
            "payload": "{}", "payload_sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" });
        world.put(STRIPE, row).await?;
    }
    Ok(())
}

/// Stores parked events, replays them, cuts that with Ctrl-C, goes on, and looks at each. Answers how many were sent
/// before the cut.
async fn cut_and_continued(
    stage: &'static Stage,
    own: &str,
    events: usize,
    rate: &str,
    enough: u64,
) -> Result<u64> {
    let world = &stage.world;
    let id = |n: usize| format!("evt_{own}_{n:04}");
    parked(world, own, events).await?;
    let replay = format!("replay --outcome parked --error {own} --rate {rate} --yes");
    let running = begun(stage, &replay)?;
    let sent = async || -> Result<u64> {
        let mut sent = 0;
        for n in 0..events {
            let row = event(world, STRIPE, &id(n)).await?;
            let Some(notes) = row["notes"].as_array() else {
                break;
            };
            assert_eq!(notes.len(), 1, "{row}");
            sent += 1;
        }
        Ok(sent)
    };
    let last = id(usize::try_from(enough)? - 1);
    let is_sent = async || Ok(event(world, STRIPE, &last).await?["notes"].is_array());
    assert!(world.until(is_sent).await?);
    let cut = interrupted(running).await?;
    assert_eq!(cut.code, 130, "{}", cut.told);
    let told = cut.raw;
    let before = sent().await?;
    let job = told.trim().rsplit_once("--resume ").unwrap().1.to_owned();
    assert!(
        told.contains(&format!("cut after {before} of {events} events")),
        "{told}"
    );

    let resumed = billhook(stage, &format!("replay --resume {job}")).await?;
    assert!(
        resumed.told.contains(&format!("done: {events} sent")),
        "{}",
        resumed.told
    );
    // Their payload is no event, so each is parked once more: by its one message.
    for n in 0..events {
        let decided = async || {
            Ok(event(world, STRIPE, &id(n)).await?["processing_error"] == "payload_unreadable")
        };
        assert!(world.until(decided).await?);
        let row = event(world, STRIPE, &id(n)).await?;
        assert_eq!(
            (&row["attempts"], row["notes"].as_array().unwrap().len()),
            (&json!(1), 1),
            "{row}"
        );
    }
    let again = billhook(stage, &format!("replay --resume {job}")).await?;
    again.says(1, "is done, nothing is left");
    println!(
        "{before} of {events} sent before the cut; {}",
        resumed.told.trim()
    );
    Ok(before)
}

#[test]
fn a_replay_that_is_cancelled_stops_and_is_not_gone_on_with() {
    flow(false, async |stage| {
        let world = &stage.world;
        let events = 60;
        let notes = async |n: usize| -> Result<Value> {
            let id = format!("evt_op_cancel_{n:04}");
            Ok(event(world, STRIPE, &id).await?["notes"].clone())
        };
        parked(world, "op_cancel", events).await?;
        let replay = "replay --outcome parked --error op_cancel --rate 10 --yes";
        let begun = begun(stage, replay)?;
        assert!(world.until(async || Ok(notes(0).await?.is_array())).await?);
        let first = notes(0).await?;
        let job = first[0]["correlation_id"].as_str().unwrap();
        let cancelled = billhook(stage, &format!("replay --cancel {job}")).await?;
        cancelled.says(0, "cancelled");
        let stopped = ended(begun).await?;
        stopped.says(1, "was cancelled or is run by another: it stops here");
        let resumed = billhook(stage, &format!("replay --resume {job}")).await?;
        resumed.says(1, "was cancelled: begin a new one");
        assert_eq!(notes(events - 1).await?, Value::Null);
        Ok(())
    });
}

#[test]
fn a_redrive_that_is_cut_goes_on_with_the_letters_that_are_left() {
    flow(true, async |stage| {
        let world = &stage.world;
        let dlq = "StripeEventsDlqUrl";
        too_early(stage, "op_redrive").await?;
        let letter = r#"{"source":"stripe","event_id":"evt_op_redrive"}"#;
        for n in 0..12 {
            let own = format!("op_redrive_{n}");
            world.send(dlq, &own, &own, letter).await?;
        }
        let redrive = "dlq redrive --queue stripe --reason again --yes";
        let running = begun(stage, &format!("{redrive} --rate 4"))?;
        assert!(
            world
                .until(async || Ok(world.depth(dlq).await? < 12))
                .await?
        );
        let cut = interrupted(running).await?;
        cut.says(130, "run the same again to go on");
        let left = world.depth(dlq).await?;
        assert!((1..12).contains(&left), "{left}");
        let rest = billhook(stage, redrive).await?;
        rest.says(0, &format!("done: {left} letters sent again"));
        assert_eq!(world.depth(dlq).await?, 0);
        Ok(())
    });
}

#[test]
fn dead_letters_are_listed_sent_again_and_purged() {
    flow(true, async |stage| {
        let world = &stage.world;
        let dlq = "StripeEventsDlqUrl";
        for own in ["op_letter", "op_purge"] {
            too_early(stage, own).await?;
        }
        order(world, "ord_op_letter", None).await?;
        world
            .send(
                dlq,
                "op_1",
                "op_1",
                r#"{"source":"stripe","event_id":"evt_op_letter"}"#,
            )
            .await?;
        world.send(dlq, "op_2", "op_2", "nonsense").await?;
        world
            .send(
                dlq,
                "op_3",
                "op_3",
                r#"{"source":"stripe","event_id":"evt_op_nowhere"}"#,
            )
            .await?;
        let listed = billhook(stage, "dlq list --queue stripe").await?;
        insta::assert_snapshot!("dlq_list", sorted(&listed.out));
        let shown = billhook(stage, "dlq show --queue stripe evt_op_letter --output json")
            .await?
            .json();
        assert_eq!(
            shown["event"]["processing_error"], "order_unknown",
            "{shown}"
        );

        let redrive = "dlq redrive --queue stripe --reason 'the table is back'";
        let preview = billhook(stage, redrive).await?;
        insta::assert_snapshot!(
            "dlq_redrive_preview",
            format!("{}{}", preview.out, preview.told)
        );
        assert_eq!(world.depth(dlq).await?, 3);
        let done = billhook(stage, &format!("{redrive} --yes")).await?;
        done.says(
            0,
            "done: 1 letters sent again\n2 letters name no stored event",
        );
        world
            .settled(STRIPE, "processed", &["evt_op_letter"])
            .await?;
        assert_eq!(world.order("ord_op_letter").await?["status"], "completed");

        world
            .send(
                dlq,
                "op_4",
                "op_4",
                r#"{"source":"stripe","event_id":"evt_op_purge"}"#,
            )
            .await?;
        let purge = "dlq purge --queue stripe --reason 'test letters'";
        assert!(
            billhook(stage, purge)
                .await?
                .told
                .contains("Nothing was done")
        );
        let done = billhook(stage, &format!("{purge} --yes")).await?;
        done.says(0, "done: 3 letters purged");
        let row = event(world, STRIPE, "evt_op_purge").await?;
        assert_eq!(
            (&row["processing_outcome"], &row["notes"][0]["reason"]),
            (&json!("failed"), &json!("test letters"))
        );
        Ok(())
    });
}

fn sorted(table: &str) -> String {
    let mut lines: Vec<&str> = table.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
