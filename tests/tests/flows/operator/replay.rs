//! Replays and redrives: previewed, run, interrupted and resumed.

use aws_sdk_dynamodb::types::AttributeValue;

use super::*;

#[test]
fn a_replay_is_previewed_dry_run_done_and_forced() {
    flow(false, async |stage| {
        let world = &stage.world;
        let ids = [
            park_early_payment(stage, "op_replay_1").await?,
            park_early_payment(stage, "op_replay_2").await?,
        ];
        for own in ["op_replay_1", "op_replay_2"] {
            order(world, &format!("ord_{own}"), None).await?;
        }
        let both = format!("replay {} {}", ids[0], ids[1]);
        let preview = run_billhook(stage, &both).await?;
        insta::assert_snapshot!(
            "replay_preview",
            format!("{}{}", preview.stdout, preview.stderr).replace(&stage.name, "stack")
        );
        assert_eq!(
            event(world, STRIPE, &ids[0]).await?["processing_outcome"],
            "parked"
        );
        let shown = run_billhook(stage, &format!("replay {} --what-if", ids[0])).await?;
        insta::assert_snapshot!("replay_what_if", shown.stdout);
        assert_eq!(world.order("ord_op_replay_1").await?["status"], "pending");

        let done =
            run_billhook(stage, &format!("{both} --yes --reason 'orders were late'")).await?;
        done.assert_exit(0, "done: sent 2 events");
        world
            .settled(STRIPE, "processed", &[&ids[0], &ids[1]])
            .await?;

        // Done ones are left out, unless forced with a reason; and then nothing changes.
        let left_out = format!("{both} --yes --reason 'to be sure'");
        let left_out = run_billhook(stage, &left_out).await?;
        left_out.assert_exit(0, "done: sent 0 events");
        let unreasoned = run_billhook(stage, &format!("{both} --yes --force")).await?;
        unreasoned.assert_exit(2, "--reason");
        let before = world.order("ord_op_replay_1").await?;
        let forced = format!("{both} --yes --force --reason 'to be sure'");
        let forced = run_billhook(stage, &forced).await?;
        forced.assert_exit(0, "done: sent 2 events");
        world
            .settled(STRIPE, "processed", &[&ids[0], &ids[1]])
            .await?;
        let after = world.order("ord_op_replay_1").await?;
        assert_eq!(
            (&before["timeline"], &before["status"]),
            (&after["timeline"], &after["status"])
        );
        assert_eq!(event(world, STRIPE, &ids[0]).await?["attempts"], 3);
        let everything = run_billhook(stage, "replay --reason all --yes").await?;
        everything.assert_exit(1, "does not replay everything");
        Ok(())
    });
}

#[test]
fn an_interrupted_replay_is_resumed_and_sends_each_event_once() {
    flow(false, async |stage| {
        let before = interrupt_and_resume(stage, "op_cut", 60, "20", 10).await?;
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
fn a_bulk_replay_of_5000_events_is_interrupted_and_resumed() {
    flow(true, async |stage| {
        let before = interrupt_and_resume(stage, "op_bulk", 5_000, "300", 1_000).await?;
        assert!(
            (1_000..5_000).contains(&before),
            "{before} were sent before the cut"
        );
        Ok(())
    });
}

/// Stores parked events whose payload is none.
async fn store_parked_events(world: &World, own: &str, events: usize) -> Result<()> {
    let id = |n: usize| format!("evt_{own}_{n:04}");
    for n in 0..events {
        let row = json!({ "event_id": id(n), "source": "stripe", "event_type": "invoice.paid", "group": format!("{own}{n}"),
            "received_at": Timestamp::from_unix_s(1_781_000_000 + i64::try_from(n)?)?.to_string(),
            "slot": "2026-06-09#0", "processed": false, "processing_outcome": "parked", "open": "parked#0",
            "processing_error": own, "attempts": 0,
            "payload": "{}" });
        world.put_event(STRIPE, row).await?;
    }
    Ok(())
}

/// Stores parked events, replays them, interrupts the replay with Ctrl-C, resumes it, and checks each event. Returns
/// how many were sent before the interruption.
async fn interrupt_and_resume(
    stage: &'static Stage,
    own: &str,
    events: usize,
    rate: &str,
    enough: u64,
) -> Result<u64> {
    let world = &stage.world;
    let id = |n: usize| format!("evt_{own}_{n:04}");
    store_parked_events(world, own, events).await?;
    let replay = format!("replay --outcome parked --error {own} --rate {rate} --reason late --yes");
    let running = start_billhook(stage, &replay)?;
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
    let cut = interrupt_billhook(running).await?;
    assert_eq!(cut.code, 130, "{}", cut.stderr);
    let stderr = cut.raw_stderr;
    let before = sent().await?;
    let job = stderr.trim().rsplit_once("--resume ").unwrap().1;
    let job = job.strip_suffix(" --reason late").unwrap().to_owned();
    assert!(
        stderr.contains(&format!("interrupted after {before} of {events} events")),
        "{stderr}"
    );

    let resumed = run_billhook(stage, &format!("replay --resume {job} --reason on --yes")).await?;
    assert!(
        resumed
            .stderr
            .contains(&format!("done: sent {events} events")),
        "{}",
        resumed.stderr
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
    let again = run_billhook(stage, &format!("replay --resume {job} --reason on --yes")).await?;
    again.assert_exit(1, "is done: nothing is left");
    println!(
        "{before} of {events} sent before the cut; {}",
        resumed.stderr.trim()
    );
    Ok(before)
}

#[test]
fn a_cancelled_replay_stops_and_cannot_be_resumed() {
    flow(false, async |stage| {
        let world = &stage.world;
        let events = 60;
        let notes = async |n: usize| -> Result<Value> {
            let id = format!("evt_op_cancel_{n:04}");
            Ok(event(world, STRIPE, &id).await?["notes"].clone())
        };
        store_parked_events(world, "op_cancel", events).await?;
        let replay = "replay --outcome parked --error op_cancel --rate 10 --reason late --yes";
        let running = start_billhook(stage, replay)?;
        assert!(world.until(async || Ok(notes(0).await?.is_array())).await?);
        let first = notes(0).await?;
        let job = first[0]["correlation_id"].as_str().unwrap();
        let cancelled = run_billhook(
            stage,
            &format!("replay --cancel {job} --reason wrong --yes"),
        )
        .await?;
        cancelled.assert_exit(0, "cancelled");
        let stopped = wait_for_exit(running).await?;
        stopped.assert_exit(1, "was cancelled, or resumed elsewhere: this run stops");
        let resumed =
            run_billhook(stage, &format!("replay --resume {job} --reason on --yes")).await?;
        resumed.assert_exit(1, "was cancelled: start a new one");
        assert_eq!(notes(events - 1).await?, Value::Null);
        Ok(())
    });
}

#[test]
fn an_interrupted_redrive_continues_with_the_messages_that_are_left() {
    flow(true, async |stage| {
        let world = &stage.world;
        let dlq = "StripeEventsDlqUrl";
        park_early_payment(stage, "op_redrive").await?;
        let body = r#"{"source":"stripe","event_id":"evt_op_redrive"}"#;
        for n in 0..12 {
            let own = format!("op_redrive_{n}");
            world.send(dlq, &own, &own, body).await?;
        }
        let redrive = "dlq redrive --queue stripe --reason again --yes";
        let running = start_billhook(stage, &format!("{redrive} --rate 4"))?;
        assert!(
            world
                .until(async || Ok(world.depth(dlq).await? < 12))
                .await?
        );
        let cut = interrupt_billhook(running).await?;
        cut.assert_exit(130, "run the same command again to continue");
        let left = world.depth(dlq).await?;
        assert!((1..12).contains(&left), "{left}");
        let rest = run_billhook(stage, redrive).await?;
        rest.assert_exit(0, &format!("done: {left} messages redriven"));
        assert_eq!(world.depth(dlq).await?, 0);
        Ok(())
    });
}

/// SQS gives the messages of a group in their order, and none behind one that is being read.
#[test]
fn unusable_messages_at_the_head_of_a_group_hide_no_other() {
    flow(true, async |stage| {
        let world = &stage.world;
        let dlq = "StripeEventsDlqUrl";
        park_early_payment(stage, "op_behind").await?;
        for n in 0..12 {
            let own = format!("op_head_{n}");
            world.send(dlq, "op_head", &own, "nonsense").await?;
        }
        let body = r#"{"source":"stripe","event_id":"evt_op_behind"}"#;
        world.send(dlq, "op_head", "op_behind", body).await?;
        let redrive = "dlq redrive --queue stripe --reason 'the order is there' --yes";
        run_billhook(stage, redrive).await?.assert_exit(
            0,
            "done: 1 messages redriven\n12 messages stay in the queue",
        );
        assert_eq!(world.depth(dlq).await?, 12);
        let purge = "dlq purge --queue stripe --reason 'a test' --yes";
        run_billhook(stage, purge)
            .await?
            .assert_exit(0, "done: 12 messages purged");
        Ok(())
    });
}

/// As the account's owner would in the console: calls of AWS that neither billhook nor its functions make.
fn call_aws(stage: &Stage, program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(repository().join(".venv/bin/python"))
        .args(["-c", &format!("import boto3, sys; {program}")])
        .args(arguments)
        .env_clear()
        .envs(stage.aws.env())
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    Ok(())
}

/// A poller that Lambda throttles uses up the receives of its messages.
#[test]
fn messages_of_throttled_polls_are_untried_and_one_command_releases_them() {
    const RESERVE: &str = "boto3.client('lambda').put_function_concurrency(FunctionName=sys.argv[1], ReservedConcurrentExecutions=0)";
    const FREE: &str =
        "boto3.client('lambda').delete_function_concurrency(FunctionName=sys.argv[1])";
    const HIDE: &str = "boto3.client('sqs').set_queue_attributes(QueueUrl=sys.argv[1], Attributes={'VisibilityTimeout': sys.argv[2]})";
    flow(true, async |stage| {
        let world = &stage.world;
        let worker = world.stack.output("StripeWorkerFunction")?;
        let queue = world.stack.output("StripeEventsQueueUrl")?;
        call_aws(stage, HIDE, &[queue, "1"])?;
        call_aws(stage, RESERVE, &[worker])?;
        order(world, "ord_throttled", None).await?;
        let now = world.now_s();
        let paid = intent_succeeded(
            "evt_throttled",
            now,
            "pi_throttled",
            named("ord_throttled"),
            4200,
        );
        world.stripe(&paid, 1).await?;
        let dlq = "StripeEventsDlqUrl";
        let is_given_up = async || Ok(world.depth(dlq).await? == 1);
        let given_up = world.until(is_given_up).await?;
        call_aws(stage, HIDE, &[queue, "60"])?;
        call_aws(stage, FREE, &[worker])?;
        assert!(given_up);
        let row = event(world, STRIPE, "evt_throttled").await?;
        assert_eq!(
            (&row["processing_outcome"], &row["attempts"]),
            (&json!("pending"), &json!(0))
        );
        let listed = run_billhook(stage, "dlq list --queue stripe").await?;
        assert!(listed.stdout.contains("untried"), "{}", listed.stdout);
        let release =
            "dlq redrive --queue stripe --only untried --reason 'concurrency was raised' --yes";
        run_billhook(stage, release)
            .await?
            .assert_exit(0, "done: 1 messages redriven");
        world
            .settled(STRIPE, "processed", &["evt_throttled"])
            .await?;
        assert_eq!(world.order("ord_throttled").await?["status"], "completed");
        Ok(())
    });
}

/// What throttled polls leave, beside what a worker has failed on and what rechecks a payment.
#[test]
fn messages_that_no_worker_has_tried_are_told_apart_and_released_alone() {
    flow(true, async |stage| {
        let world = &stage.world;
        let dlq = "StripeEventsDlqUrl";
        for own in ["op_untried", "op_tried"] {
            park_early_payment(stage, own).await?;
            let body = format!(r#"{{"source":"stripe","event_id":"evt_{own}"}}"#);
            world.send(dlq, own, own, &body).await?;
        }
        let update = world.aws.dynamodb().update_item();
        let update = update.table_name(world.stack.output(STRIPE)?);
        let id = AttributeValue::S("evt_op_untried".to_owned());
        let none = AttributeValue::N("0".to_owned());
        let update = update
            .key("event_id", id)
            .update_expression("SET attempts = :none")
            .expression_attribute_values(":none", none);
        update.send().await?;
        let recheck = r#"{"source":"recheck","payment":"payment#acct_1#pi_op_recheck"}"#;
        world.send(dlq, "op_recheck", "op_recheck", recheck).await?;
        for own in ["op_untried", "op_tried"] {
            order(world, &format!("ord_{own}"), None).await?;
        }
        let listed = run_billhook(stage, "dlq list --queue stripe").await?.stdout;
        for words in [
            ["untried", "evt_op_untried"],
            ["open", "evt_op_tried"],
            ["recheck", "-"],
        ] {
            let is_there = listed.lines().any(|line| {
                let line: Vec<&str> = line.split_whitespace().collect();
                line.get(1..3) == Some(&words)
            });
            assert!(is_there, "{words:?}: {listed}");
        }
        let redrive = "dlq redrive --queue stripe --reason 'concurrency was raised'";
        let alone = format!("{redrive} --only untried --yes");
        run_billhook(stage, &alone)
            .await?
            .assert_exit(0, "done: 1 messages redriven\n2 messages stay in the queue");
        let settled = world.settled(STRIPE, "processed", &["evt_op_untried"]);
        settled.await?;
        let row = event(world, STRIPE, "evt_op_tried").await?;
        assert_eq!(row["processing_outcome"], "parked");
        run_billhook(stage, &format!("{redrive} --yes"))
            .await?
            .assert_exit(0, "done: 2 messages redriven");
        world
            .settled(STRIPE, "processed", &["evt_op_tried"])
            .await?;
        assert_eq!(world.depth(dlq).await?, 0);
        Ok(())
    });
}

#[test]
fn dead_letter_messages_are_listed_redriven_and_purged() {
    flow(true, async |stage| {
        let world = &stage.world;
        let dlq = "StripeEventsDlqUrl";
        for own in ["op_message", "op_purge"] {
            park_early_payment(stage, own).await?;
        }
        order(world, "ord_op_message", None).await?;
        world
            .send(
                dlq,
                "op_1",
                "op_1",
                r#"{"source":"stripe","event_id":"evt_op_message"}"#,
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
        let listed = run_billhook(stage, "dlq list --queue stripe").await?;
        insta::assert_snapshot!("dlq_list", sort_lines(&listed.stdout));
        let shown = run_billhook(
            stage,
            "dlq show --queue stripe evt_op_message --output json",
        )
        .await?
        .json();
        assert_eq!(
            shown["event"]["processing_error"], "order_unknown",
            "{shown}"
        );

        let redrive = "dlq redrive --queue stripe --reason 'the table is back'";
        let preview = run_billhook(stage, redrive).await?;
        insta::assert_snapshot!(
            "dlq_redrive_preview",
            format!("{}{}", preview.stdout, preview.stderr).replace(&stage.name, "stack")
        );
        assert_eq!(world.depth(dlq).await?, 3);
        let done = run_billhook(stage, &format!("{redrive} --yes")).await?;
        done.assert_exit(0, "done: 1 messages redriven\n2 messages stay in the queue");
        world
            .settled(STRIPE, "processed", &["evt_op_message"])
            .await?;
        assert_eq!(world.order("ord_op_message").await?["status"], "completed");

        world
            .send(
                dlq,
                "op_4",
                "op_4",
                r#"{"source":"stripe","event_id":"evt_op_purge"}"#,
            )
            .await?;
        let purge = "dlq purge --queue stripe --reason 'test messages'";
        assert!(
            run_billhook(stage, purge)
                .await?
                .stderr
                .contains("Nothing was changed")
        );
        let done = run_billhook(stage, &format!("{purge} --yes")).await?;
        done.assert_exit(0, "done: 3 messages purged");
        let row = event(world, STRIPE, "evt_op_purge").await?;
        assert_eq!(
            (&row["processing_outcome"], &row["notes"][0]["reason"]),
            (&json!("failed"), &json!("test messages"))
        );
        Ok(())
    });
}

fn sort_lines(table: &str) -> String {
    let mut lines: Vec<&str> = table.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
