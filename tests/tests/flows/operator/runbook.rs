//! Runs every command of the runbook as it is written there, in an environment that has the ids which the pages name.

use std::collections::BTreeSet;

use super::*;

/// The exit codes of commands that do not exit with 0 here.
const OTHER_EXIT_CODES: [(&str, i32); 8] = [
    // The local AWS lacks some of what is looked for.
    ("doctor", 4),
    // The job id of the pages is an example.
    ("replay --resume", 3),
    ("replay --cancel", 3),
    ("trace 0193", 3),
    // Not paid, and nothing to review.
    ("orders access", 4),
    ("orders review clear", 1),
    ("orders review accept", 1),
    ("sig explain stripe --body", 4),
];

/// What a command says that nobody confirmed.
const TO_DO_IT: &str = "nothing was changed; to do it, run: billhook ";

/// Commands about every event of the last days, so about what the other tests break on purpose.
const OF_ALL_TESTS: [&str; 3] = [
    "replay --since 2d --force",
    "prove --since 2d",
    "rebuild --since 2d",
];

#[test]
fn every_command_of_the_runbook_does_its_work() {
    flow(true, async |stage| {
        let world = &stage.world;
        order(world, "ord_1", None).await?;
        let (id, now) = ("evt_1", world.now_s());
        // It stays parked, whatever the commands do. A relink would let it pass, so the payment that is relinked is another.
        let early = intent_succeeded(id, now, "pi_early", named("ord_op_runbook_later"), 4200);
        let paid = intent_succeeded("evt_paid", now, "pi_1", named("ord_op_runbook_later"), 4200);
        for event in [&early, &paid] {
            world.stripe(event, 1).await?;
        }
        let folder = std::env::temp_dir().join(format!("{}-runbook", stage.name));
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("body.json"), "{}")?;
        let tenant = r#"{"tenant_id":"ten_1","stripe_connected_account_id":"acct_1"}"#;
        std::fs::write(folder.join("tenants.jsonl"), tenant)?;

        // So that there is one to go back to.
        let put = "secrets put lob --reason 'the runbook' --yes";
        run_with_input(stage, put, "local_lob_webhook_secret_3001").await?;

        let mut pages: Vec<_> = std::fs::read_dir(repository().join("docs/runbook"))?
            .map(|page| page.unwrap().path())
            .collect();
        pages.sort();
        let (mut done, mut ended) = (BTreeSet::new(), Vec::new());
        for page in pages {
            let text = std::fs::read_to_string(page)?;
            for line in text.lines().filter(|line| line.starts_with("billhook ")) {
                let line = line.trim_start_matches("billhook ").replace('…', "1");
                let is_of_all = OF_ALL_TESTS.iter().any(|begin| line.starts_with(begin));
                if is_of_all || !done.insert(line.clone()) {
                    continue;
                }
                let is_decided =
                    async || Ok(event(world, STRIPE, id).await?["processing_outcome"] != "pending");
                assert!(world.until(is_decided).await?, "before {line}");
                if line.starts_with("dlq") {
                    let body = r#"{"source":"stripe","event_id":"evt_1"}"#;
                    let own = format!("runbook{}", done.len());
                    world.send("StripeEventsDlqUrl", &own, &own, body).await?;
                }
                let input = match line.contains("secrets put lob") {
                    true => LOB_SECRET,
                    false => "",
                };
                let run = async |line: &str| {
                    let mut command = build_command(stage, line);
                    let mut child = command.current_dir(&folder).stdin(Stdio::piped()).spawn()?;
                    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
                    super::wait_for_exit(child).await
                };
                let mut outcome = run(&line).await?;
                // A person is asked; here the command says what it lacks.
                if let Some((_, confirmed)) = outcome.raw_stderr.split_once(TO_DO_IT) {
                    let confirmed = confirmed.trim().replace("--reason …", "--reason runbook");
                    outcome = run(&confirmed).await?;
                }
                ended.push((line, outcome.code, outcome.stderr));
            }
        }
        std::fs::remove_dir_all(&folder)?;
        let purge = "dlq purge --queue stripe --reason 'a test' --yes";
        run_billhook(stage, purge).await?.assert_exit(0, "purged");
        let expected = |line: &str| {
            let other = OTHER_EXIT_CODES
                .iter()
                .find(|(begin, _)| line.starts_with(begin));
            other.map_or(0, |(_, code)| *code)
        };
        let wrong = ended
            .iter()
            .filter(|(line, code, _)| *code != expected(line));
        assert_eq!(
            wrong.collect::<Vec<_>>(),
            Vec::<&(String, i32, String)>::new()
        );
        assert!(ended.len() > 50, "{}", ended.len());
        scheduled::delete_row(world, "TenantsTable", "tenant_id", "ten_1").await
    });
}
