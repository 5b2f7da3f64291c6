//! The audit log: what a command changes is there before it is changed.

use billhook_adapters::clock::SystemClock;
use billhook_core::ports::Clock as _;

use super::*;

/// The lines of the commands that have this word.
async fn audit_lines(stage: &'static Stage, word: &str) -> Result<Vec<Value>> {
    let listed = run_billhook(stage, "audit list --since 1h --output json").await?;
    let lines = listed.json();
    let lines = lines.as_array().unwrap().iter();
    let has_word = |line: &&Value| line["command"].as_str().unwrap().contains(word);
    Ok(lines.filter(has_word).cloned().collect())
}

#[test]
fn a_change_has_a_line_in_the_audit_log_before_it_and_one_after_it() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_audit", None).await?;
        run_billhook(stage, "orders mark-paid ord_audit --reason preview").await?;
        assert!(audit_lines(stage, "ord_audit").await?.is_empty());

        let paid = "orders mark-paid ord_audit --reason 'cash, receipt 4711' --yes";
        run_billhook(stage, paid).await?.assert_exit(0, "");
        let lines = audit_lines(stage, "ord_audit").await?;
        let [started, done] = lines.as_slice() else {
            panic!("{lines:?}");
        };
        assert_eq!(started["message"], "change_started");
        assert_eq!(started["rows"], 1);
        let what = "mark-paid of order#ord_audit would change the columns above";
        assert_eq!(started["what"], what);
        assert_eq!(done["message"], "change_done");
        assert_eq!(done["change_id"], started["change_id"]);
        let note = &world.order("ord_audit").await?["timeline"];
        let notes = note.as_array().unwrap().iter();
        let noted = notes.filter(|entry| entry["actor"] == "operator");
        let actors: Vec<&Value> = noted.map(|entry| &entry["actorId"]).collect();
        for line in &lines {
            assert_eq!([&line["actor"]], actors.as_slice(), "{line}");
            assert_eq!(line["reason"], "cash, receipt 4711");
            assert_eq!(
                line["command"],
                "billhook orders mark-paid ord_audit --reason 'cash, receipt 4711' --yes"
            );
        }
        let of = format!("audit list --actor {}", started["actor"].as_str().unwrap());
        let table = run_billhook(stage, &of).await?.stdout;
        assert!(table.contains("change_done"), "{table}");
        let nobody = run_billhook(stage, "audit list --actor nobody --output json").await?;
        assert_eq!(nobody.json(), json!([]));

        // How a change failed is there too, and no key that somebody pasted.
        let relink =
            "payments relink pi_audit_none --order ord_audit --reason 'was sk_test_4711' --yes";
        run_billhook(stage, relink).await?.assert_exit(3, "");
        let lines = audit_lines(stage, "pi_audit_none").await?;
        let [started, failed] = lines.as_slice() else {
            panic!("{lines:?}");
        };
        assert_eq!(started["reason"], "was sk_test_…");
        assert_eq!(
            (&failed["message"], &failed["exit_code"]),
            (&json!("change_failed"), &json!(3))
        );
        assert!(failed["error"].as_str().unwrap().contains("pi_audit_none"));
        assert!(!format!("{lines:?}").contains("4711"));
        Ok(())
    });
}

#[test]
fn what_the_audit_log_does_not_take_is_not_done() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_audit_off", None).await?;
        let before = world.order("ord_audit_off").await?;
        for change in [
            "orders mark-paid ord_audit_off",
            "orders mark-refunded ord_audit_off",
            "tenants add ten_audit_off --account acct_audit_off",
        ] {
            let mut command = build_command(stage, &format!("{change} --reason cash --yes"));
            // Nobody listens there.
            command.env("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", "http://127.0.0.1:1");
            let refused = wait_for_exit(command.spawn()?).await?;
            refused.assert_exit(1, "nothing was changed, because the audit log /billhook/");
            refused.assert_exit(1, "logs:PutLogEvents");
        }
        assert_eq!(world.order("ord_audit_off").await?, before);
        let tenant = run_billhook(stage, "tenants show ten_audit_off").await?;
        assert_eq!(tenant.code, 3, "{}", tenant.stderr);
        Ok(())
    });
}

/// The repairer's own statements for the log, as docs/policies has them.
fn repairers_statements(group: &str) -> Vec<Value> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/policies/repairer.json"
    );
    let policy: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let statements = policy["Statement"].as_array().unwrap().iter();
    let mut of_logs: Vec<Value> = statements
        .filter(|statement| statement.to_string().contains("logs:"))
        .cloned()
        .collect();
    for statement in &mut of_logs {
        // The emulator judges a stream by the name of its group, without `:*`.
        statement["Resource"] = json!(format!("arn:aws:logs:*:*:log-group:{group}*"));
    }
    of_logs
}

#[test]
fn who_may_write_every_table_removes_the_notes_of_a_change_and_not_its_lines() {
    flow(false, async |stage| {
        let world = &stage.world;
        order(world, "ord_audit_hide", None).await?;
        let paid = "orders mark-paid ord_audit_hide --reason 'for a friend' --yes";
        run_billhook(stage, paid).await?.assert_exit(0, "");
        let before = audit_lines(stage, "ord_audit_hide").await?;
        assert_eq!(before.len(), 2, "{before:?}");

        let tables = [json!({ "Effect": "Allow", "Action": "dynamodb:*", "Resource": "*" })];
        let attacker = world.attacker("notes", &tables).await?;
        let whole = world.order("ord_audit_hide").await?;
        let mut emptied = whole.clone();
        emptied["timeline"] = json!([]);
        for row in [emptied, whole] {
            let put = attacker.aws.dynamodb().put_item();
            put.table_name(world.stack.output("OrdersTable")?)
                .set_item(Some(serde_dynamo::to_item(&row)?))
                .send()
                .await?;
            assert_eq!(world.order("ord_audit_hide").await?, row);
        }

        let group = world.stack.output("AuditLogGroup")?;
        let day = SystemClock.now().to_string()[..10].replace('-', "/");
        let stream = json!({ "logGroupName": group, "logStreamName": day });
        let of_group = json!({ "logGroupName": group });
        let removals = [
            ("DeleteLogStream", stream.clone()),
            ("DeleteLogGroup", of_group.clone()),
            (
                "PutRetentionPolicy",
                json!({ "logGroupName": group, "retentionInDays": 1 }),
            ),
        ];
        for (name, statements) in [
            ("hide-tables", tables.to_vec()),
            ("hide-repairer", repairers_statements(group)),
        ] {
            let attacker = world.attacker(name, &statements).await?;
            for (operation, input) in &removals {
                let (status, answer) = attacker.call_logs(operation, input).await?;
                let is_denied = status == 400 && answer.contains("AccessDenied");
                assert!(is_denied, "{name} {operation}: {status} {answer}");
            }
        }
        // The same role that may remove nothing may add: it is the rights that were judged, not the requests.
        let line =
            json!([{ "timestamp": world.now_s() * 1000, "message": "{\"command\":\"by hand\"}" }]);
        let mut added = stream;
        added["logEvents"] = line;
        let repairer = world.attacker("add", &repairers_statements(group)).await?;
        let (status, answer) = repairer.call_logs("PutLogEvents", &added).await?;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(audit_lines(stage, "ord_audit_hide").await?, before);
        Ok(())
    });
}
