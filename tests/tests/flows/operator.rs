//! The operator's tool: the real binary, asked as a person asks it.

use std::io::Write as _;

use billhook_core::time::Timestamp;
use billhook_testkit::local::binaries_dir;

use super::*;

/// What a command said.
struct Said {
    code: i32,
    /// The answer, moments and our own ids made steady.
    out: String,
    /// What was said on the way.
    told: String,
}

impl Said {
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.told);
        serde_json::from_str(&self.out).unwrap()
    }
}

fn command(stage: &'static Stage, arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries_dir().unwrap().join("billhook"));
    command
        .args(arguments)
        .env_clear()
        .envs(stage.aws.env())
        .env("BILLHOOK_STACK", &stage.name)
        .stdin(Stdio::null());
    command
}

/// Runs it in a thread of its own: what answers it runs on this one.
async fn billhook(stage: &'static Stage, arguments: &[&str]) -> Result<Said> {
    told(stage, arguments, "").await
}

/// The same, with something on its standard input.
async fn told(stage: &'static Stage, arguments: &[&str], input: &'static str) -> Result<Said> {
    let mut command = command(stage, arguments);
    let done = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // A command that reads nothing may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output()
    })
    .await??;
    Ok(Said {
        code: done.status.code().unwrap_or(-1),
        out: steady(&String::from_utf8(done.stdout)?),
        told: steady(&String::from_utf8(done.stderr)?),
    })
}

/// Moments, ids of ours and names of this run replaced by others of the same length.
fn steady(text: &str) -> String {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || "-:.".contains(c);
    let mut steady = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        if is_of_word(c) {
            word.push(c);
            continue;
        }
        let is_uuid = word.len() == 36 && word.matches('-').count() == 4;
        if is_uuid {
            steady.push_str("01936d3c-0000-7000-8000-000000000000");
        } else if word.len() == 24 && Timestamp::parse(&word).is_ok() {
            steady.push_str("2026-11-21T08:00:00.000Z");
        } else {
            steady.push_str(&word);
        }
        word.clear();
        if c != '\0' {
            steady.push(c);
        }
    }
    steady
}

/// An event that is parked because its order is not there.
async fn too_early(stage: &'static Stage, own: &str) -> Result<String> {
    let (id, now) = (format!("evt_{own}"), stage.world.now_s());
    let named = named(&format!("ord_{own}"));
    let paid = intent_succeeded(&id, now, &format!("pi_{own}"), named, 4200);
    stage.world.stripe(&paid, 1).await?;
    stage.world.settled(STRIPE, "parked", &[&id]).await?;
    Ok(id)
}

#[test]
fn events_are_listed_shown_annotated_set_aside_and_released() {
    flow(false, async |stage| {
        let world = &stage.world;
        let id = too_early(stage, "op_early").await?;
        let listed = [
            "events",
            "list",
            "--outcome",
            "parked",
            "--object",
            "pi_op_early",
        ];
        let table = billhook(stage, &listed).await?;
        insta::assert_snapshot!("events_list", table.out);
        let lines = billhook(stage, &[&listed[..], &["--output", "jsonl"]].concat()).await?;
        assert_eq!(lines.out.lines().count(), 1);
        assert_eq!(lines.json()["processing_error"], "order_unknown");

        let shown = billhook(stage, &["events", "show", &id, "--output", "json"]).await?;
        let mut row = shown.json();
        row["payload"]["created"] = json!(0);
        row["expires_at"] = json!(0);
        row["received_day"] = json!("2026-11-21");
        row["payload_sha256"] = json!("of the payload");
        insta::assert_snapshot!("events_show", format!("{row:#}"));
        assert!(
            row["payload"]["data"]["object"]
                .get("client_secret")
                .is_none()
        );

        let said = billhook(stage, &["events", "annotate", &id, "asked the shop"]).await?;
        assert_eq!(
            (said.code, said.told.as_str()),
            (0, "noted on evt_op_early\n")
        );
        let said = billhook(
            stage,
            &["events", "park", &id, "--reason", "waits for the shop"],
        )
        .await?;
        assert_eq!(said.code, 0, "{}", said.told);
        assert_eq!(
            event(world, STRIPE, &id).await?["processing_error"],
            "by_hand"
        );

        order(world, "ord_op_early", None).await?;
        let said = billhook(
            stage,
            &["events", "release", &id, "--reason", "order is there"],
        )
        .await?;
        assert_eq!(said.code, 0, "{}", said.told);
        world.settled(STRIPE, "processed", &[&id]).await?;
        let row = event(world, STRIPE, &id).await?;
        let notes: Vec<_> = row["notes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|note| {
                (
                    note["action"].as_str().unwrap(),
                    note["reason"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            notes,
            [
                ("annotate", "asked the shop"),
                ("park", "waits for the shop"),
                ("replay", "order is there")
            ]
        );
        assert!(
            row["notes"][0]["actor"]
                .as_str()
                .unwrap()
                .starts_with("arn:aws:"),
            "{row}"
        );
        assert_eq!(world.order("ord_op_early").await?["status"], "completed");

        // What is done is neither set aside nor released, and what is not there is said so.
        for refused in ["park", "release"] {
            let said = billhook(stage, &["events", refused, &id, "--reason", "again"]).await?;
            assert!(
                said.code == 1 && said.told.contains("is done already"),
                "{}",
                said.told
            );
        }
        let missing = billhook(stage, &["events", "show", "evt_op_nowhere"]).await?;
        assert!(
            missing.code == 3 && missing.told.contains("there is no event evt_op_nowhere"),
            "{}",
            missing.told
        );
        let wrong = billhook(stage, &["--stack", "nowhere", "events", "list"]).await?;
        assert!(
            wrong.code == 1 && wrong.told.contains("check --stack, --region and --profile"),
            "{}",
            wrong.told
        );
        Ok(())
    });
}

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
        let both = ["replay", &ids[0], &ids[1]];
        let preview = billhook(stage, &both).await?;
        insta::assert_snapshot!("replay_preview", format!("{}{}", preview.out, preview.told));
        assert_eq!(
            event(world, STRIPE, &ids[0]).await?["processing_outcome"],
            "parked"
        );
        let shown = billhook(stage, &["replay", &ids[0], "--what-if"]).await?;
        insta::assert_snapshot!("replay_what_if", shown.out);
        assert_eq!(world.order("ord_op_replay_1").await?["status"], "pending");

        let done = billhook(
            stage,
            &[&both[..], &["--yes", "--reason", "orders were late"]].concat(),
        )
        .await?;
        assert!(
            done.code == 0 && done.told.contains("done: 2 sent"),
            "{}",
            done.told
        );
        world
            .settled(STRIPE, "processed", &[&ids[0], &ids[1]])
            .await?;

        // Done ones are left out, unless forced with a reason; and then nothing changes.
        let left_out = billhook(stage, &[&both[..], &["--yes"]].concat()).await?;
        assert!(left_out.told.contains("done: 0 sent"), "{}", left_out.told);
        let unreasoned = billhook(stage, &[&both[..], &["--yes", "--force"]].concat()).await?;
        assert!(
            unreasoned.code == 2 && unreasoned.told.contains("--reason"),
            "{}",
            unreasoned.told
        );
        let before = world.order("ord_op_replay_1").await?;
        let forced = ["--yes", "--force", "--reason", "to be sure"];
        let forced = billhook(stage, &[&both[..], &forced].concat()).await?;
        assert!(forced.told.contains("done: 2 sent"), "{}", forced.told);
        world
            .settled(STRIPE, "processed", &[&ids[0], &ids[1]])
            .await?;
        let after = world.order("ord_op_replay_1").await?;
        assert_eq!(
            (&before["timeline"], &before["status"]),
            (&after["timeline"], &after["status"])
        );
        assert_eq!(event(world, STRIPE, &ids[0]).await?["attempts"], 3);
        let everything = billhook(stage, &["replay", "--yes"]).await?;
        assert!(
            everything.code == 1 && everything.told.contains("replaying everything"),
            "{}",
            everything.told
        );
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
    for n in 0..events {
        let row = json!({ "event_id": id(n), "source": "stripe", "event_type": "invoice.paid", "group": format!("{own}{n}"),
            "received_at": Timestamp::from_unix_s(1_781_000_000 + i64::try_from(n)?)?.to_string(),
            "received_day": "2026-06-09", "processed": false, "processing_outcome": "parked", "open": "parked",
            "processing_error": own, "attempts": 0,
            "payload": "{}", "payload_sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" });
        world.put(STRIPE, row).await?;
    }
    let replay = [
        "replay",
        "--outcome",
        "parked",
        "--error",
        own,
        "--rate",
        rate,
        "--yes",
    ];
    let mut running = command(stage, &replay);
    let running = running
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let pid = running.id().to_string();
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
    let interrupt = ["-INT", &pid];
    assert!(Command::new("kill").args(interrupt).status()?.success());
    let cut = tokio::task::spawn_blocking(move || running.wait_with_output()).await??;
    let told = String::from_utf8(cut.stderr)?;
    assert_eq!(cut.status.code(), Some(130), "{told}");
    let before = sent().await?;
    let job = told.trim().rsplit_once("--resume ").unwrap().1.to_owned();
    assert!(
        told.contains(&format!("cut after {before} of {events} events")),
        "{told}"
    );

    let resumed = billhook(stage, &["replay", "--resume", &job]).await?;
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
    let again = billhook(stage, &["replay", "--resume", &job]).await?;
    assert!(
        again.code == 1 && again.told.contains("is done, nothing is left"),
        "{}",
        again.told
    );
    println!(
        "{before} of {events} sent before the cut; {}",
        resumed.told.trim()
    );
    Ok(before)
}

#[test]
fn orders_are_reviewed_repaired_and_backfilled_and_access_follows() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        for own in ["op_order", "op_backfill"] {
            order(world, &format!("ord_{own}"), None).await?;
        }
        let paid = intent_succeeded(
            "evt_op_order",
            now,
            "pi_op_order",
            named("ord_op_order"),
            4200,
        );
        world.stripe(&paid, 1).await?;
        let dispute = json!({ "id": "du_op_order", "object": "dispute", "payment_intent": "pi_op_order", "charge": "ch_op_order",
            "amount": 4200, "currency": "usd", "status": "needs_response", "metadata": {} });
        let dispute = stripe("evt_op_dispute", "charge.dispute.created", now + 1, dispute);
        world
            .settled(STRIPE, "processed", &["evt_op_order"])
            .await?;
        let access = ["orders", "access", "ord_op_order"];
        assert_eq!(
            billhook(stage, &[&access[..], &["--output", "json"]].concat())
                .await?
                .json()["status"],
            200
        );
        world.stripe(&dispute, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_op_dispute"])
            .await?;

        let locked = billhook(stage, &access).await?;
        assert_eq!(locked.code, 4);
        insta::assert_snapshot!("orders_access_locked", locked.out);
        let listed = billhook(
            stage,
            &[
                "orders", "review", "list", "--limit", "1000", "--output", "json",
            ],
        )
        .await?
        .json();
        assert!(
            listed
                .as_array()
                .unwrap()
                .iter()
                .any(|row| row["id"] == "ord_op_order"),
            "{listed}"
        );
        let clear = [
            "orders",
            "review",
            "clear",
            "ord_op_order",
            "--reason",
            "answered at Stripe",
        ];
        let cleared = billhook(stage, &clear).await?;
        assert_eq!(
            (cleared.code, cleared.told.as_str()),
            (0, "the review of order#ord_op_order is cleared\n")
        );
        assert_eq!(billhook(stage, &access).await?.code, 0);
        let again = billhook(stage, &clear).await?;
        assert!(
            again.code == 1
                && again
                    .told
                    .contains("no review of order#ord_op_order stands"),
            "{}",
            again.told
        );

        let refund = [
            "orders",
            "mark-refunded",
            "ord_op_order",
            "--reason",
            "paid back by bank transfer",
        ];
        assert_eq!(billhook(stage, &refund).await?.code, 0);
        let refused = billhook(stage, &[&access[..], &["--output", "jsonl"]].concat()).await?;
        assert_eq!(
            (
                refused.code,
                serde_json::from_str::<Value>(&refused.out)?["status"].clone()
            ),
            (4, json!(403))
        );
        // A later event of Stripe's does not undo it.
        let late = charge_refunded(
            "evt_op_late",
            now + 5,
            "ch_op_order",
            Some("pi_op_order"),
            100,
        );
        world.stripe(&late, 1).await?;
        world.settled(STRIPE, "processed", &["evt_op_late"]).await?;
        let shown = billhook(
            stage,
            &["orders", "show", "ord_op_order", "--output", "json"],
        )
        .await?
        .json();
        assert_eq!(
            (&shown["status"], shown.get("stripe")),
            (&json!("refunded"), None)
        );
        let told: Vec<_> = shown["timeline"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| entry["actor"] == "operator")
            .map(|entry| {
                (
                    entry["meta"]["action"].as_str().unwrap(),
                    entry["meta"]["reason"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("review clear", "answered at Stripe"),
                ("mark-refunded", "paid back by bank transfer")
            ]
        );

        // A session without metadata and without an order that bears its payment waits, until the order is told.
        let lost = session_completed(
            "evt_op_lost",
            now,
            "cs_op_lost",
            Some("pi_op_lost"),
            json!({}),
            "paid",
        );
        world.stripe(&lost, 1).await?;
        world.settled(STRIPE, "parked", &["evt_op_lost"]).await?;
        let backfill = [
            "orders",
            "backfill-payment-intent",
            "ord_op_backfill",
            "pi_op_lost",
            "--reason",
            "checkout crashed",
        ];
        let said = billhook(stage, &backfill).await?;
        assert_eq!(said.code, 0, "{}", said.told);
        world.settled(STRIPE, "processed", &["evt_op_lost"]).await?;
        assert_eq!(world.order("ord_op_backfill").await?["status"], "completed");
        let other = [
            "orders",
            "backfill-payment-intent",
            "ord_op_backfill",
            "pi_other",
            "--reason",
            "guess",
        ];
        let said = billhook(stage, &other).await?;
        assert!(
            said.code == 1 && said.told.contains("bears pi_op_lost already"),
            "{}",
            said.told
        );
        assert_eq!(
            billhook(stage, &["orders", "show", "ord_op_nowhere"])
                .await?
                .code,
            3
        );
        Ok(())
    });
}

#[test]
fn a_statements_mail_that_needs_attention_is_listed() {
    flow(false, async |stage| {
        let world = &stage.world;
        let row = json!({ "statement_id": "st_op", "amount_due": 4200, "currency": "usd", "lob_letter_id": "ltr_op",
            "recipient": "Jo Doe" });
        world.put("StatementsTable", row).await?;
        world
            .lob(&letter(
                "evt_op_returned",
                "2026-11-20T10:00:00.000Z",
                "ltr_op",
                "returned_to_sender",
            ))
            .await?;
        world
            .settled(LOB, "processed", &["evt_op_returned"])
            .await?;
        let listed = billhook(stage, &["statements", "attention", "--output", "json"])
            .await?
            .json();
        assert!(
            listed
                .as_array()
                .unwrap()
                .iter()
                .any(|row| row["statement_id"] == "st_op"),
            "{listed}"
        );
        let shown = billhook(stage, &["statements", "show", "st_op"]).await?;
        insta::assert_snapshot!("statements_show", shown.out);
        let raw = billhook(stage, &["statements", "show", "st_op", "--raw"]).await?;
        assert!(raw.out.contains("Jo Doe"), "{}", raw.out);
        Ok(())
    });
}

#[test]
fn a_tenant_that_is_added_releases_its_events() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_op_tenant", Some("ten_op")).await?;
        let paid = intent_succeeded(
            "evt_op_tenant",
            world.now_s(),
            "pi_op_tenant",
            named("ord_op_tenant"),
            4200,
        );
        world.stripe(&from_account(paid, "acct_op"), 1).await?;
        world.settled(STRIPE, "parked", &["evt_op_tenant"]).await?;
        let add = [
            "tenants",
            "add",
            "ten_op",
            "--name",
            "Shop",
            "--account",
            "acct_op",
        ];
        let added = billhook(stage, &add).await?;
        assert_eq!(added.code, 0, "{}", added.told);
        world
            .settled(STRIPE, "processed", &["evt_op_tenant"])
            .await?;
        assert_eq!(world.order("ord_op_tenant").await?["status"], "completed");

        let shown = billhook(stage, &["tenants", "show", "ten_op", "--output", "jsonl"]).await?;
        let file = std::env::temp_dir().join(format!("{}-tenants.jsonl", stage.name));
        std::fs::write(&file, &shown.out)?;
        let import = ["tenants", "import", file.to_str().unwrap()];
        let again = billhook(stage, &import).await?;
        std::fs::remove_file(&file)?;
        assert_eq!(
            (again.code, again.told.as_str()),
            (0, "ten_op is there already\n")
        );
        let listed = billhook(stage, &["tenants", "list"]).await?;
        assert!(listed.out.contains("ten_op"), "{}", listed.out);
        let taken = billhook(
            stage,
            &["tenants", "add", "ten_other", "--account", "acct_op"],
        )
        .await?;
        assert!(
            taken.code == 1 && taken.told.contains("acct_op belongs to ten_op"),
            "{}",
            taken.told
        );
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
        let on_stripe = ["--queue", "stripe"];
        let listed = billhook(stage, &[&["dlq", "list"], &on_stripe[..]].concat()).await?;
        insta::assert_snapshot!("dlq_list", sorted(&listed.out));
        let shown = billhook(
            stage,
            &[
                "dlq",
                "show",
                "--queue",
                "stripe",
                "evt_op_letter",
                "--output",
                "json",
            ],
        )
        .await?
        .json();
        assert_eq!(
            shown["event"]["processing_error"], "order_unknown",
            "{shown}"
        );

        let redrive = [
            "dlq",
            "redrive",
            "--queue",
            "stripe",
            "--reason",
            "the table is back",
        ];
        let preview = billhook(stage, &redrive).await?;
        insta::assert_snapshot!(
            "dlq_redrive_preview",
            format!("{}{}", preview.out, preview.told)
        );
        assert_eq!(world.depth(dlq).await?, 3);
        let done = billhook(stage, &[&redrive[..], &["--yes"]].concat()).await?;
        assert!(
            done.told
                .contains("done: 1 letters sent again\n2 letters name no stored event"),
            "{}",
            done.told
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
        let purge = [
            "dlq",
            "purge",
            "--queue",
            "stripe",
            "--reason",
            "test letters",
        ];
        assert!(
            billhook(stage, &purge)
                .await?
                .told
                .contains("Nothing was done")
        );
        let done = billhook(stage, &[&purge[..], &["--yes"]].concat()).await?;
        assert!(
            done.told.contains("done: 3 letters purged"),
            "{}",
            done.told
        );
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

#[test]
fn an_ids_story_is_told_from_each_of_its_ids() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        order(world, "ord_op_trace", None).await?;
        let paid = intent_succeeded(
            "evt_op_trace",
            now - 120,
            "pi_op_trace",
            named("ord_op_trace"),
            4200,
        );
        let answer = world.stripe(&paid, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_op_trace"])
            .await?;
        let refund = charge_refunded(
            "evt_op_trace_r",
            now - 60,
            "ch_op_trace",
            Some("pi_op_trace"),
            4200,
        );
        world.stripe(&refund, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_op_trace_r"])
            .await?;
        let story = billhook(stage, &["trace", "ord_op_trace"]).await?;
        insta::assert_snapshot!("trace", story.out.replace(&stage.name, "stack"));
        for id in [
            "evt_op_trace",
            "evt_op_trace_r",
            "pi_op_trace",
            "ch_op_trace",
        ] {
            assert_eq!(
                billhook(stage, &["trace", id]).await?.out,
                story.out,
                "{id}"
            );
        }
        let correlation = answer[0].body["correlation_id"].as_str().unwrap();
        assert_eq!(
            billhook(stage, &["trace", correlation]).await?.out,
            story.out
        );
        let nothing = billhook(stage, &["trace", "re_op_nowhere"]).await?;
        assert!(
            nothing.code == 3 && nothing.told.contains("nothing is known of re_op_nowhere"),
            "{}",
            nothing.told
        );
        Ok(())
    });
}

#[test]
fn a_sample_is_sent_and_a_wrong_signature_explained() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_op_send", None).await?;
        let sent = billhook(
            stage,
            &[
                "send",
                "stripe",
                "--type",
                "payment_intent.succeeded",
                "--output",
                "json",
                "--set",
                "data.object.metadata.order_id=ord_op_send",
                "--set",
                "data.object.id=pi_op_send",
                "--set",
                "data.object.amount_received=4200",
                "--set",
                "data.object.currency=usd",
            ],
        )
        .await?
        .json();
        assert_eq!(
            (&sent["status"], &sent["answer"]["duplicate"]),
            (&json!(200), &json!(false)),
            "{sent}"
        );
        world
            .settled(STRIPE, "processed", &[sent["event_id"].as_str().unwrap()])
            .await?;
        assert_eq!(world.order("ord_op_send").await?["status"], "completed");
        let sent = billhook(
            stage,
            &[
                "send",
                "lob",
                "--type",
                "letter.delivered",
                "--output",
                "json",
            ],
        )
        .await?
        .json();
        world
            .settled(LOB, "parked", &[sent["event_id"].as_str().unwrap()])
            .await?;

        let (now, secret) = (
            world.now_s(),
            signing_secret(world, "StripeWebhookSecretArn").await?,
        );
        let header = format!(
            "Stripe-Signature: {}",
            sign_stripe(b"{\"a\":1}", &secret, now)
        );
        let body = std::env::temp_dir().join(format!("{}-body.json", stage.name));
        std::fs::write(&body, "{\"a\":1}\n")?;
        let explained = billhook(
            stage,
            &[
                "sig",
                "explain",
                "stripe",
                "--header",
                &header,
                "--body",
                body.to_str().unwrap(),
            ],
        )
        .await?;
        std::fs::remove_file(&body)?;
        assert_eq!(explained.code, 4, "{}", explained.told);
        // How many were tried depends on the rotations of other tests.
        let told = explained
            .out
            .lines()
            .filter(|line| !line.starts_with("secrets_tried"));
        insta::assert_snapshot!("sig_explain", told.collect::<Vec<_>>().join("\n"));
        Ok(())
    });
}

#[test]
fn the_scheduled_tasks_are_run_by_hand() {
    flow(true, async |stage| {
        let counted = billhook(stage, &["cleanup", "run", "--dry-run", "--output", "json"])
            .await?
            .json();
        assert_eq!(counted["dry_run"], true);
        let refused = billhook(stage, &["cleanup", "run", "--minutes", "0"]).await?;
        assert_eq!(refused.code, 2, "{}", refused.told);
        for task in ["sweep", "reconcile"] {
            let done = billhook(stage, &[task, "run", "--output", "json"]).await?;
            assert!(
                done.code == 0 && done.json().is_object(),
                "{task}: {}{}",
                done.out,
                done.told
            );
        }
        Ok(())
    });
}

#[test]
fn secrets_show_their_ages_and_are_rotated() {
    flow(true, async |stage| {
        let world = &stage.world;
        let before = signing_secret(world, "StripeWebhookSecretArn").await?;
        let status = billhook(stage, &["secrets", "status"]).await?;
        assert!(
            status.code == 0
                && status.out.contains("AppSecret")
                && status.out.contains("AWSCURRENT"),
            "{}",
            status.told
        );
        assert!(!status.out.contains(&before) && !status.out.contains("sk_test"));
        let preview = billhook(stage, &["secrets", "rotate", "stripe"]).await?;
        assert!(
            preview.told.contains("Nothing was done"),
            "{}",
            preview.told
        );
        assert_eq!(
            signing_secret(world, "StripeWebhookSecretArn").await?,
            before
        );
        let old = stage.endpoints();
        let rotated = billhook(stage, &["secrets", "rotate", "stripe", "--yes"]).await?;
        assert!(
            rotated.code == 0 && rotated.told.contains("endpoints of Stripe are replaced"),
            "{}",
            rotated.told
        );
        assert_ne!(
            signing_secret(world, "StripeWebhookSecretArn").await?,
            before
        );
        let new = stage.endpoints();
        assert!(
            new.len() == 2 && new.keys().all(|id| !old.contains_key(id)),
            "{old:?} {new:?}"
        );
        Ok(())
    });
}

#[test]
fn a_stack_is_looked_over_and_its_events_counted() {
    flow(true, async |stage| {
        let world = &stage.world;
        let looked = billhook(stage, &["doctor", "--output", "json"]).await?;
        let found: Vec<Value> = serde_json::from_str(&looked.out)?;
        let result = |check: &str| {
            found
                .iter()
                .find(|found| found["check"] == check)
                .map(|found| found["result"].clone())
        };
        for check in [
            "StripeEventsDlq empty",
            "LobEventsQueue has a dead-letter queue",
            "StripeEventsTable indexes ACTIVE",
            "stripe signing secret",
            "lob signing secret",
            "API answers",
        ] {
            assert_eq!(result(check), Some(json!("ok")), "{check}: {}", looked.out);
        }
        // The local AWS does not turn on what the template asks for here.
        let recovery = result("OrdersTable recovers to a point in time");
        assert_eq!(recovery, Some(json!("bad")), "{}", looked.out);
        world
            .send("LobEventsDlqUrl", "op_doctor", "op_doctor", "nonsense")
            .await?;
        let looked = billhook(stage, &["doctor"]).await?;
        assert!(
            looked.code == 4 && looked.out.contains("bad     LobEventsDlq empty"),
            "{}",
            looked.out
        );
        let purge = [
            "dlq", "purge", "--queue", "lob", "--reason", "a test's", "--yes",
        ];
        assert_eq!(billhook(stage, &purge).await?.code, 0);

        let paid = intent_succeeded(
            "evt_op_counted",
            world.now_s(),
            "pi_op_counted",
            named("ord_op_nowhere"),
            4200,
        );
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "parked", &["evt_op_counted"]).await?;
        let counted = billhook(stage, &["metrics", "export", "--since", "1h"]).await?;
        assert!(counted.out.contains("stripe_webhook_events_total{event_type=\"payment_intent.succeeded\",result=\"accepted\"}"), "{}", counted.out);
        Ok(())
    });
}

#[test]
fn the_functions_lines_are_found_by_their_correlation_id() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_op_logs", None).await?;
        let paid = intent_succeeded(
            "evt_op_logs",
            world.now_s(),
            "pi_op_logs",
            named("ord_op_logs"),
            4200,
        );
        let answers = world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_op_logs"]).await?;
        let correlation = answers[0].body["correlation_id"].as_str().unwrap();
        let asked = ["logs", "--correlation", correlation, "--output", "json"];
        let mut lines = Value::Null;
        let told = world
            .until(async || {
                lines = billhook(stage, &asked).await?.json();
                Ok(["stripe_webhook_received", "event_processed"]
                    .iter()
                    .all(|name| lines.to_string().contains(name)))
            })
            .await?;
        assert!(told, "{lines}");
        // One may be about a secret that was read again, and so about no event.
        let is_of_story = |line: &Value| line.get("event_id").is_none_or(|id| id == "evt_op_logs");
        assert!(lines.as_array().unwrap().iter().all(is_of_story), "{lines}");
        Ok(())
    });
}
