//! `billhook`, the operator's command line: the real binary against a deployed environment.

mod audit;
mod floods;
mod links;
mod replay;
mod runbook;
mod stack;

use std::io::Write as _;
use std::process::Child;

use billhook_core::time::Timestamp;
use billhook_testkit::local::binaries_dir;

use super::*;

/// How a command ended and what it wrote.
pub(super) struct CommandOutcome {
    pub(super) code: i32,
    /// Timestamps and our own ids are replaced by fixed ones.
    pub(super) stdout: String,
    /// The same replacements.
    pub(super) stderr: String,
    /// Without replacements.
    pub(super) raw_stderr: String,
}

impl CommandOutcome {
    #[track_caller]
    pub(super) fn assert_exit(&self, code: i32, text: &str) {
        assert!(
            self.code == code && self.stderr.contains(text),
            "{}: {}",
            self.code,
            self.stderr
        );
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

fn build_command(stage: &'static Stage, line: &str) -> Command {
    command_for(&stage.aws, &stage.tool_proxy, &stage.name, line)
}

/// `line` is split as a shell does: words, and phrases in single quotes. The key id is one that only the proxy's
/// requests can have, and names the command in the record.
pub(super) fn command_for(aws: &LocalAws, proxy: &Proxy, stack: &str, line: &str) -> Command {
    let parts = line.split('\'').enumerate();
    let arguments = parts.flat_map(|(number, part)| match number % 2 {
        1 => vec![part],
        _ => part.split_whitespace().collect(),
    });
    let mut command = Command::new(binaries_dir().unwrap().join("billhook"));
    command
        .args(arguments)
        .env_clear()
        .envs(aws.env())
        .env("AWS_ENDPOINT_URL", proxy.endpoint())
        .env("AWS_ACCESS_KEY_ID", name_command(line))
        .env("BILLHOOK_STACK", stack)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The words of a command line that say which command it is, and whether it does what it otherwise only previews:
/// `replay_--yes`, `events_list`.
fn name_command(line: &str) -> String {
    let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let words = line.split_whitespace();
    let command = words.clone().take(2).take_while(is_word);
    let command = command.take_while(|word| !word.starts_with('-'));
    let yes = words.filter(|word| *word == "--yes").take(1);
    let name: Vec<&str> = command.chain(yes).collect();
    if name.is_empty() {
        "billhook".to_owned()
    } else {
        name.join("_")
    }
}

pub(super) async fn run_billhook(stage: &'static Stage, line: &str) -> Result<CommandOutcome> {
    run_with_input(stage, line, "").await
}

async fn run_with_input(
    stage: &'static Stage,
    line: &str,
    input: &'static str,
) -> Result<CommandOutcome> {
    let mut command = build_command(stage, line);
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    wait_for_exit(child).await
}

/// Starts a command that runs for a while.
fn start_billhook(stage: &'static Stage, line: &str) -> Result<Child> {
    Ok(build_command(stage, line).spawn()?)
}

/// Sends SIGINT, as Ctrl-C does.
pub(super) async fn interrupt_billhook(child: Child) -> Result<CommandOutcome> {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()?
            .success()
    );
    wait_for_exit(child).await
}

/// Waits in a thread of its own: the proxy and the local Stripe that answer the command run on this one.
pub(super) async fn wait_for_exit(child: Child) -> Result<CommandOutcome> {
    let done = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    let raw_stderr = String::from_utf8(done.stderr)?;
    Ok(CommandOutcome {
        code: done.status.code().unwrap_or(-1),
        stdout: replace_volatile(&String::from_utf8(done.stdout)?),
        stderr: replace_volatile(&raw_stderr),
        raw_stderr,
    })
}

/// Replaces timestamps and our own ids by fixed ones of the same length, so that table columns keep their widths.
fn replace_volatile(text: &str) -> String {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || "-:.".contains(c);
    let mut replaced = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        if is_of_word(c) {
            word.push(c);
            continue;
        }
        let is_uuid = word.len() == 36 && word.matches('-').count() == 4;
        if is_uuid {
            replaced.push_str("01936d3c-0000-7000-8000-000000000000");
        } else if word.len() == 24 && Timestamp::parse(&word).is_ok() {
            replaced.push_str("2026-11-21T08:00:00.000Z");
        } else {
            replaced.push_str(&word);
        }
        word.clear();
        if c != '\0' {
            replaced.push(c);
        }
    }
    replaced
}

/// An event that is parked because its order is not there.
async fn park_early_payment(stage: &'static Stage, own: &str) -> Result<String> {
    let (id, now) = (format!("evt_{own}"), stage.world.now_s());
    let named = named(&format!("ord_{own}"));
    let paid = intent_succeeded(&id, now, &format!("pi_{own}"), named, 4200);
    stage.world.stripe(&paid, 1).await?;
    stage.world.settled(STRIPE, "parked", &[&id]).await?;
    Ok(id)
}

#[test]
fn events_are_listed_shown_annotated_parked_and_released() {
    flow(false, async |stage| {
        let world = &stage.world;
        let id = park_early_payment(stage, "op_early").await?;
        let listed = "events list --outcome parked --object pi_op_early";
        let table = run_billhook(stage, listed).await?;
        insta::assert_snapshot!("events_list", table.stdout);
        let lines = run_billhook(stage, &format!("{listed} --output jsonl")).await?;
        assert_eq!(lines.stdout.lines().count(), 1);
        assert_eq!(lines.json()["processing_error"], "order_unknown");

        let shown = run_billhook(stage, &format!("events show {id} --output json")).await?;
        let mut row = shown.json();
        row["payload"]["created"] = json!(0);
        row["expires_at"] = json!(0);
        row["slot"] = json!("2026-11-21#0");
        row["open"] = json!("parked#0");
        row["payload_sha256"] = json!("of the payload");
        row["seal"] = json!("of the event");
        insta::assert_snapshot!("events_show", format!("{row:#}"));
        assert!(
            row["payload"]["data"]["object"]
                .get("client_secret")
                .is_none()
        );

        let outcome = run_billhook(
            stage,
            &format!("events annotate {id} 'asked the shop' --yes"),
        )
        .await?;
        assert_eq!(
            (outcome.code, outcome.stderr.as_str()),
            (0, "added the note to evt_op_early\n")
        );
        let outcome = run_billhook(
            stage,
            &format!("events park {id} --reason 'waits for the shop' --yes"),
        )
        .await?;
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        assert_eq!(
            event(world, STRIPE, &id).await?["processing_error"],
            "by_hand"
        );

        order(world, "ord_op_early", None).await?;
        let outcome = run_billhook(
            stage,
            &format!("events release {id} --reason 'order is there' --yes"),
        )
        .await?;
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
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

        // An event that is done is neither parked nor released; a missing event has its own exit code.
        for refused in ["park", "release"] {
            let outcome = run_billhook(
                stage,
                &format!("events {refused} {id} --reason again --yes"),
            )
            .await?;
            outcome.assert_exit(1, "is already processed or ignored");
        }
        let missing = run_billhook(stage, "events show evt_op_nowhere").await?;
        missing.assert_exit(3, "there is no event evt_op_nowhere");
        let wrong = run_billhook(stage, "--stack nowhere events list").await?;
        wrong.assert_exit(1, "check --stack, --region and --profile");
        Ok(())
    });
}

#[test]
fn a_payment_that_two_orders_have_is_linked_by_a_person_until_the_next_relink() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        for id in ["ord_op_two1", "ord_op_two2"] {
            order(world, id, Some("ten_a")).await?;
        }
        let pay = |n: i64, at: i64| {
            let (event, order) = (format!("evt_op_two{n}"), format!("ord_op_two{n}"));
            let paid = intent_succeeded(&event, now + at, "pi_op_two", named(&order), 4200);
            from_account(paid, "acct_a")
        };
        world.stripe(&pay(1, 0), 1).await?;
        world.stripe(&pay(2, 1), 1).await?;
        let both = ["evt_op_two1", "evt_op_two2"];
        world.settled(STRIPE, "processed", &both).await?;
        let found = async |id: &str| {
            let row = world.order(id).await?;
            let found = [&row["status"], &row["requiresReview"]];
            anyhow::Ok(found.map(Value::clone))
        };
        for id in ["ord_op_two1", "ord_op_two2"] {
            assert_eq!(found(id).await?, [json!("pending"), json!(true)], "{id}");
        }
        let show = "payments show ch_none --account acct_a";
        run_billhook(stage, show)
            .await?
            .assert_exit(3, "no event of payment#acct_a#ch_none has arrived");
        let relink = |to: &str| {
            format!(
                "payments relink pi_op_two --account acct_a --order {to} --reason 'asked the shop' --yes"
            )
        };
        let theirs = "ord_op_nowhere";
        run_billhook(stage, &relink(theirs))
            .await?
            .assert_exit(3, "no such order");
        order(world, "ord_op_two3", None).await?;
        let foreign = run_billhook(stage, &relink("ord_op_two3")).await?;
        foreign.assert_exit(4, "another tenant");

        let linked = run_billhook(stage, &relink("ord_op_two2")).await?;
        linked.assert_exit(0, "");
        let shown = run_billhook(
            stage,
            "payments show pi_op_two --account acct_a --output json",
        );
        let shown = shown.await?.json();
        let links = shown["links"].as_array().unwrap().iter();
        let states: Vec<_> = links.map(|entity| entity["link"].clone()).collect();
        assert_eq!(states, ["elsewhere", "linked"]);
        assert_eq!(shown["relink"]["reason"], "asked the shop");
        // Another delivery of the first, which names the other order.
        let mut again = pay(1, 2);
        again["id"] = json!("evt_op_two_again");
        world.stripe(&again, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_op_two_again"])
            .await?;
        let [lost, has] = ["ord_op_two1", "ord_op_two2"];
        assert_eq!(found(lost).await?, [json!("pending"), json!(false)]);
        assert_eq!(found(has).await?, [json!("completed"), json!(false)]);
        let trace = run_billhook(stage, "trace pi_op_two").await?;
        assert!(
            trace.stdout.contains("evt_op_two_again"),
            "{}",
            trace.stdout
        );
        Ok(())
    });
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
        let access = "orders access ord_op_order";
        assert_eq!(
            run_billhook(stage, &format!("{access} --output json"))
                .await?
                .json()["status"],
            200
        );
        world.stripe(&dispute, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_op_dispute"])
            .await?;

        let locked = run_billhook(stage, access).await?;
        assert_eq!(locked.code, 4);
        insta::assert_snapshot!("orders_access_locked", locked.stdout);
        let listed = run_billhook(stage, "orders review list --limit 1000 --output json")
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
        let clear = "orders review clear ord_op_order --reason 'answered at Stripe' --yes";
        let cleared = run_billhook(stage, clear).await?;
        assert_eq!(
            (cleared.code, cleared.stderr.as_str()),
            (0, "cleared the review of order#ord_op_order\n")
        );
        assert_eq!(run_billhook(stage, access).await?.code, 0);
        let again = run_billhook(stage, clear).await?;
        assert!(
            again.code == 1
                && again
                    .stderr
                    .contains("order#ord_op_order has no open review"),
            "{}",
            again.stderr
        );

        order(world, "ord_op_cash", None).await?;
        let statement =
            json!({ "statement_id": "st_op_check", "amount_due": 4200, "currency": "usd" });
        world.put("StatementsTable", statement).await?;
        for paid in [
            "orders mark-paid ord_op_cash --reason 'cash, receipt 4711' --yes",
            "statements mark-paid st_op_check --reason 'check 1207' --yes",
        ] {
            assert_eq!(run_billhook(stage, paid).await?.code, 0);
            let again = run_billhook(stage, paid).await?;
            assert!(again.stderr.contains("is already paid"), "{}", again.stderr);
        }
        let row = world.order("ord_op_cash").await?;
        assert_eq!(
            (&row["status"], &row["paymentStatus"]),
            (&json!("completed"), &json!("paid"))
        );
        let recorded = row["timeline"]
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["type"] == "payment_recorded");
        assert_eq!(recorded.unwrap()["meta"]["reason"], "cash, receipt 4711");
        let row = world.statement("st_op_check").await?;
        assert_eq!(
            (&row["payment_status"], &row["amount_paid"]),
            (&json!("paid"), &Value::Null)
        );

        // What was paid is accepted as what was due: a tip, and the rest of an instalment.
        order(world, "ord_op_tip", None).await?;
        let statement =
            json!({ "statement_id": "st_op_part", "amount_due": 4200, "currency": "usd" });
        world.put("StatementsTable", statement).await?;
        let now = world.now_s();
        let part = json!({ "statement_id": "st_op_part" });
        for (id, names, amount) in [("tip", named("ord_op_tip"), 4300), ("part", part, 2100)] {
            let (event, intent) = (format!("evt_op_{id}"), format!("pi_op_{id}"));
            let paid = intent_succeeded(&event, now, &intent, names, amount);
            world.stripe(&paid, 1).await?;
            world.settled(STRIPE, "processed", &[&event]).await?;
        }
        let row = world.order("ord_op_tip").await?;
        assert_eq!(row["reviewReasons"], json!(["overpaid:pi_op_tip"]));
        let row = world.statement("st_op_part").await?;
        let paid = (&row["payment_status"], &row["amount_paid"]);
        assert_eq!(paid, (&json!("partially_paid"), &json!(2100)));
        for accept in [
            "orders review accept ord_op_tip --reason 'a tip' --yes",
            "statements review accept st_op_part --reason 'the rest is waived' --yes",
        ] {
            run_billhook(stage, accept)
                .await?
                .assert_exit(0, "accepted what was paid for");
            let again = run_billhook(stage, accept).await?;
            again.assert_exit(1, "has no open review about an amount");
        }
        let row = world.order("ord_op_tip").await?;
        assert_eq!(
            (&row["requiresReview"], &row["amountPaid"]),
            (&json!(false), &json!(4300))
        );
        let row = world.statement("st_op_part").await?;
        assert_eq!(row["payment_status"], "paid");
        let accepted = row["timeline"].as_array().unwrap().iter();
        let mut accepted = accepted.filter(|entry| entry["type"] == "amount_accepted");
        assert_eq!(
            accepted.next().unwrap()["meta"]["reason"],
            "the rest is waived"
        );

        let refund =
            "orders mark-refunded ord_op_order --reason 'paid back by bank transfer' --yes";
        assert_eq!(run_billhook(stage, refund).await?.code, 0);
        let refused = run_billhook(stage, &format!("{access} --output jsonl")).await?;
        assert_eq!(
            (
                refused.code,
                serde_json::from_str::<Value>(&refused.stdout)?["status"].clone()
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
        let shown = run_billhook(stage, "orders show ord_op_order --output json")
            .await?
            .json();
        assert_eq!(
            (&shown["status"], shown.get("stripe")),
            (&json!("refunded"), None)
        );
        let notes: Vec<_> = shown["timeline"]
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
            notes,
            [
                ("review clear", "answered at Stripe"),
                ("mark-refunded", "paid back by bank transfer")
            ]
        );

        // The payment of a session without metadata has no link until an order has its PaymentIntent.
        let lost = session_completed(
            "evt_op_lost",
            now,
            "cs_op_lost",
            Some("pi_op_lost"),
            json!({}),
            "paid",
        );
        world.stripe(&lost, 1).await?;
        world.settled(STRIPE, "processed", &["evt_op_lost"]).await?;
        let backfill = "orders backfill-payment-intent ord_op_backfill pi_op_lost --reason 'checkout crashed' --yes";
        let outcome = run_billhook(stage, backfill).await?;
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        // It says done once it was seen.
        assert_eq!(world.order("ord_op_backfill").await?["status"], "completed");
        let other = "orders backfill-payment-intent ord_op_backfill pi_other --reason guess --yes";
        let outcome = run_billhook(stage, other).await?;
        outcome.assert_exit(4, "already has pi_op_lost");
        assert_eq!(
            run_billhook(stage, "orders show ord_op_nowhere")
                .await?
                .code,
            3
        );
        Ok(())
    });
}

/// A row that does not show what the state says is never shown as the truth.
#[test]
fn a_row_that_is_an_older_copy_ahead_foreign_or_gone_is_said_to_be() {
    flow(false, async |stage| {
        let world = &stage.world;
        let now = world.now_s();
        let id = "ord_op_row";
        order(world, id, None).await?;
        let paid = intent_succeeded("evt_op_row", now, "pi_op_row", named(id), 4200);
        world.stripe(&paid, 1).await?;
        world.settled(STRIPE, "processed", &["evt_op_row"]).await?;
        let copy = world.order(id).await?;
        let back = charge_refunded(
            "evt_op_row_r",
            now + 5,
            "ch_op_row",
            Some("pi_op_row"),
            4200,
        );
        world.stripe(&back, 1).await?;
        world
            .settled(STRIPE, "processed", &["evt_op_row_r"])
            .await?;
        let written = world.order(id).await?;
        let show = format!("orders show {id}");
        assert_eq!(run_billhook(stage, &show).await?.stderr, "");

        world.put("OrdersTable", copy.clone()).await?;
        let older = "is an older copy (version 1, billhook wrote 2 last): billhook's state says refunded/refunded";
        let shown = run_billhook(stage, &show).await?;
        assert!(shown.stderr.contains(older), "{}", shown.stderr);
        let traced = run_billhook(stage, &format!("trace {id}")).await?;
        assert!(traced.stdout.contains(older), "{}", traced.stdout);
        let access = run_billhook(stage, &format!("orders access {id}")).await?;
        assert_eq!(access.code, 4, "{}", access.stdout);
        let mark = format!("orders mark-paid {id} --reason 'cash' --yes");
        let marked = run_billhook(stage, &mark).await?;
        assert!(
            marked.stderr.contains("it is restored now"),
            "{}",
            marked.stderr
        );
        let row = world.order(id).await?;
        assert_eq!(row["status"], "refunded");
        let note = row["timeline"].as_array().unwrap().iter();
        let mut note = note.filter(|entry| entry["meta"]["action"] == "row restored");
        assert_eq!(note.next().unwrap()["meta"]["reason"], "cash");

        let mut ahead = row.clone();
        ahead["version"] = json!(99);
        world.put("OrdersTable", ahead).await?;
        for line in [&show, &mark] {
            let said = run_billhook(stage, line).await?;
            let ahead = "has version 99, and billhook wrote at most";
            assert!(said.stderr.contains(ahead), "{line}: {}", said.stderr);
        }

        let mut foreign = row.clone();
        foreign["status"] = json!("shipped");
        world.put("OrdersTable", foreign).await?;
        for line in [&show, &mark] {
            let said = run_billhook(stage, line).await?;
            let foreign = "status of order#ord_op_row has a value that is none of billhook's";
            assert!(said.stderr.contains(foreign), "{line}: {}", said.stderr);
        }

        let delete = world.aws.dynamodb().delete_item();
        let delete = delete.table_name(world.stack.output("OrdersTable")?);
        let key = AttributeValue::S(id.to_owned());
        delete.key("id", key).send().await?;
        let deleted = "the application deleted the row of order#ord_op_row";
        let shown = run_billhook(stage, &show).await?;
        assert!(
            shown.code == 3 && shown.stderr.contains(deleted),
            "{}",
            shown.stderr
        );
        for of in [id, "evt_op_row", "pi_op_row"] {
            let traced = run_billhook(stage, &format!("trace {of}")).await?;
            assert!(
                traced.code == 0 && traced.stdout.contains(deleted),
                "{of}: {} {}",
                traced.stdout,
                traced.stderr
            );
        }
        world.put("OrdersTable", written).await
    });
}

#[test]
fn statements_whose_mail_needs_attention_are_listed() {
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
        let listed = run_billhook(stage, "statements attention --output json")
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
        let shown = run_billhook(stage, "statements show st_op").await?;
        insta::assert_snapshot!("statements_show", shown.stdout);
        let raw = run_billhook(stage, "statements show st_op --raw").await?;
        assert!(raw.stdout.contains("Jo Doe"), "{}", raw.stdout);
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
        let add = "tenants add ten_op --name Shop --account acct_op --reason 'a new shop' --yes";
        let added = run_billhook(stage, add).await?;
        assert_eq!(added.code, 0, "{}", added.stderr);
        world
            .settled(STRIPE, "processed", &["evt_op_tenant"])
            .await?;
        assert_eq!(world.order("ord_op_tenant").await?["status"], "completed");

        let shown = run_billhook(stage, "tenants show ten_op --output jsonl").await?;
        let file = std::env::temp_dir().join(format!("{}-tenants.jsonl", stage.name));
        std::fs::write(&file, &shown.stdout)?;
        let again = run_billhook(
            stage,
            &format!("tenants import {} --reason again --yes", file.display()),
        )
        .await?;
        std::fs::remove_file(&file)?;
        assert_eq!(
            (again.code, again.stderr.as_str()),
            (0, "ten_op already exists\n")
        );
        let listed = run_billhook(stage, "tenants list").await?;
        assert!(listed.stdout.contains("ten_op"), "{}", listed.stdout);
        let taken = run_billhook(
            stage,
            "tenants add ten_other --account acct_op --reason 'a try' --yes",
        )
        .await?;
        taken.assert_exit(4, "acct_op already belongs to ten_op");
        Ok(())
    });
}

/// Off a terminal, where nobody can be asked.
#[test]
fn a_command_that_nobody_confirmed_changes_nothing_and_says_what_would() {
    flow(false, async |stage| {
        let world = &stage.world;
        let id = park_early_payment(stage, "op_asked").await?;
        order(world, "ord_op_asked_2", None).await?;
        let statement =
            json!({ "statement_id": "st_op_asked", "amount_due": 4200, "currency": "usd" });
        world.put("StatementsTable", statement).await?;
        let read = async || -> Result<Value> {
            Ok(json!([
                event(world, STRIPE, &id).await?,
                world.order("ord_op_asked_2").await?,
                world.statement("st_op_asked").await?,
                stack::stored_stripe_key(world).await?,
            ]))
        };
        let before = read().await?;
        let of_event = |command: &str| command.replace("ID", &id);
        for line in [
            of_event("events annotate ID 'asked the shop'"),
            of_event("events park ID --reason 'waits for the shop'"),
            of_event("events release ID"),
            "orders mark-paid ord_op_asked_2 --reason cash".to_owned(),
            "orders mark-refunded ord_op_asked_2".to_owned(),
            "orders backfill-payment-intent ord_op_asked_2 pi_op_asked".to_owned(),
            "statements mark-paid st_op_asked".to_owned(),
            "payments relink pi_op_asked --order ord_op_asked_2".to_owned(),
            "tenants add ten_op_asked --account acct_op_asked".to_owned(),
            "secrets put stripe-key".to_owned(),
            "send stripe --type payment_intent.succeeded".to_owned(),
            "sweep run".to_owned(),
            "cleanup run --minutes 1".to_owned(),
        ] {
            let asked = run_with_input(stage, &line, TEST_KEY).await?;
            let reason = if line.contains("--reason") || line.contains("annotate") {
                ""
            } else {
                " --reason …"
            };
            asked.assert_exit(
                4,
                &format!("nothing was changed; to do it, run: billhook {line}{reason} --yes"),
            );
            let target = format!("{} (test) of account 000000000000 in ", stage.name);
            assert!(asked.stderr.contains(&target), "{}", asked.stderr);
        }
        // A repair shows its columns.
        let paid = run_billhook(stage, "orders mark-paid ord_op_asked_2").await?;
        assert!(
            paid.stderr.contains("status: \"pending\" -> \"completed\""),
            "{}",
            paid.stderr
        );
        assert_eq!(read().await?, before);
        let tenant = run_billhook(stage, "tenants show ten_op_asked").await?;
        assert_eq!(tenant.code, 3, "{}", tenant.stderr);
        let unreasoned = run_billhook(
            stage,
            "tenants add ten_op_asked --account acct_op_asked --yes",
        )
        .await?;
        unreasoned.assert_exit(2, "--reason");
        Ok(())
    });
}

#[test]
fn a_trace_shows_the_same_history_for_each_of_its_ids() {
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
        let history = run_billhook(stage, "trace ord_op_trace").await?;
        insta::assert_snapshot!("trace", history.stdout.replace(&stage.name, "stack"));
        for id in [
            "evt_op_trace",
            "evt_op_trace_r",
            "pi_op_trace",
            "ch_op_trace",
        ] {
            assert_eq!(
                run_billhook(stage, &format!("trace {id}")).await?.stdout,
                history.stdout,
                "{id}"
            );
        }
        let correlation = answer[0].body["correlation_id"].as_str().unwrap();
        assert_eq!(
            run_billhook(stage, &format!("trace {correlation}"))
                .await?
                .stdout,
            history.stdout
        );
        // With the lines of the functions: each delivery, the second one a duplicate, and the attempt.
        world.stripe(&paid, 1).await?;
        let with_logs = world
            .until(async || {
                let trace = run_billhook(stage, "trace evt_op_trace --logs")
                    .await?
                    .stdout;
                Ok(trace.matches("stripe_webhook_received").count() == 2
                    && trace.contains("webhook_duplicate")
                    && trace.contains("event_processed"))
            })
            .await?;
        assert!(
            with_logs,
            "{}",
            run_billhook(stage, "trace evt_op_trace --logs")
                .await?
                .stdout
        );
        let nothing = run_billhook(stage, "trace re_op_nowhere").await?;
        nothing.assert_exit(3, "found nothing about re_op_nowhere");
        Ok(())
    });
}

#[test]
fn a_sample_is_sent_and_a_wrong_signature_explained() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_op_send", None).await?;
        let sent = run_billhook(
            stage,
            "send stripe --type payment_intent.succeeded --output json --set data.object.metadata.order_id=ord_op_send --set data.object.id=pi_op_send --set data.object.amount_received=4200 --set data.object.currency=usd --reason 'a try' --yes",
        )
        .await?
        .json();
        assert_eq!(
            (&sent["status"], &sent["answer"]["duplicate"]),
            (&json!(200), &json!(false)),
            "{sent}"
        );
        let id = sent["event_id"].as_str().unwrap();
        world.settled(STRIPE, "processed", &[id]).await?;
        assert_eq!(world.order("ord_op_send").await?["status"], "completed");
        // It is no event of Stripe's, and its row says so.
        let note = &event(world, STRIPE, id).await?["notes"][0];
        assert_eq!(
            (&note["action"], &note["reason"]),
            (&json!("send"), &json!("a try"))
        );
        assert!(
            note["actor"].as_str().unwrap().starts_with("arn:aws:"),
            "{note}"
        );
        let sent = run_billhook(
            stage,
            "send lob --type letter.delivered --output json --reason 'a try' --yes",
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
        let explained = run_billhook(
            stage,
            &format!(
                "sig explain stripe --header '{header}' --body {}",
                body.display()
            ),
        )
        .await?;
        std::fs::remove_file(&body)?;
        assert_eq!(explained.code, 4, "{}", explained.stderr);
        // How many were tried depends on the rotations of other tests.
        let explanation = explained
            .stdout
            .lines()
            .filter(|line| !line.starts_with("secrets_tried"));
        insta::assert_snapshot!("sig_explain", explanation.collect::<Vec<_>>().join("\n"));
        Ok(())
    });
}
