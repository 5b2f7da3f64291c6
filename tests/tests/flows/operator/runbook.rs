//! Every command of the runbook, run as it stands there: on a stage that has what the pages name.

use std::collections::BTreeSet;

use super::*;

/// How those end that do not end with 0 here.
const ELSE: [(&str, i32); 7] = [
    // The local AWS lacks some of what is looked for.
    ("doctor", 4),
    // The pages' job is nobody's.
    ("replay --resume", 3),
    ("replay --cancel", 3),
    ("trace 0193", 3),
    // Not paid, and nothing to review.
    ("orders access", 4),
    ("orders review clear", 1),
    ("sig explain stripe --body", 4),
];

#[test]
fn every_command_of_the_runbook_does_its_work() {
    flow(true, async |stage| {
        let world = &stage.world;
        order(world, "ord_1", None).await?;
        let (id, now) = ("evt_1", world.now_s());
        let early = intent_succeeded(id, now, "pi_1", named("ord_op_runbook_later"), 4200);
        world.stripe(&early, 1).await?;
        let folder = std::env::temp_dir().join(format!("{}-runbook", stage.name));
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("body.json"), "{}")?;
        let tenant = r#"{"tenant_id":"ten_1","stripe_connected_account_id":"acct_1"}"#;
        std::fs::write(folder.join("tenants.jsonl"), tenant)?;

        // So that there is one to go back to.
        told(stage, "secrets put lob", "local_lob_webhook_secret_3001").await?;

        let mut pages: Vec<_> = std::fs::read_dir(repository().join("docs/runbook"))?
            .map(|page| page.unwrap().path())
            .collect();
        pages.sort();
        let (mut done, mut ended) = (BTreeSet::new(), Vec::new());
        for page in pages {
            let text = std::fs::read_to_string(page)?;
            for line in text.lines().filter(|line| line.starts_with("billhook ")) {
                let line = line.trim_start_matches("billhook ").replace('…', "1");
                // It would decide every event of the other tests again.
                if line.starts_with("replay --since 2d --force") || !done.insert(line.clone()) {
                    continue;
                }
                let is_decided =
                    async || Ok(event(world, STRIPE, id).await?["processing_outcome"] != "pending");
                assert!(world.until(is_decided).await?, "before {line}");
                if line.starts_with("dlq") {
                    let letter = r#"{"source":"stripe","event_id":"evt_1"}"#;
                    let own = format!("runbook{}", done.len());
                    world.send("StripeEventsDlqUrl", &own, &own, letter).await?;
                }
                let input = match line.contains("secrets put lob") {
                    true => LOB_SECRET,
                    false => "",
                };
                let mut command = command(stage, &line);
                let mut child = command.current_dir(&folder).stdin(Stdio::piped()).spawn()?;
                let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
                let said = super::ended(child).await?;
                ended.push((line, said.code, said.told));
            }
        }
        std::fs::remove_dir_all(&folder)?;
        let purge = "dlq purge --queue stripe --reason 'a test' --yes";
        billhook(stage, purge).await?.says(0, "purged");
        let expected = |line: &str| {
            let other = ELSE.iter().find(|(begin, _)| line.starts_with(begin));
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
