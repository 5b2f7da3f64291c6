//! The command line by itself: what needs no stack.
#![cfg(test)]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn run_billhook(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_billhook"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn stderr_text(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_shows_what_each_command_does_and_every_exit_code() {
    let help = run_billhook(&["--help"], "");
    let help = String::from_utf8(help.stdout).unwrap();
    let (before, rest) = help.split_once("Commands:\n").unwrap();
    let (commands, after) = rest.split_once("\n\n").unwrap();
    for line in commands.lines() {
        let (command, does) = line
            .trim()
            .split_once("  ")
            .unwrap_or_else(|| panic!("{line}"));
        assert!(
            does.trim().contains(' '),
            "{command} does not say what it does"
        );
    }
    insta::assert_snapshot!(format!("{before}Commands: …\n\n{after}"));
}

#[test]
fn errors_say_what_to_do_and_have_their_own_exit_codes() {
    let unknown = run_billhook(&["events", "lst"], "");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        stderr_text(&unknown).contains("'list'"),
        "{}",
        stderr_text(&unknown)
    );
    let nowhere = run_billhook(&["events", "list"], "");
    assert_eq!(nowhere.status.code(), Some(1));
    assert_eq!(
        stderr_text(&nowhere),
        "billhook: the stack is not set: pass --stack, or set BILLHOOK_STACK\n"
    );
    let nameless = run_billhook(&["events", "show", "pi_1"], "");
    assert!(
        stderr_text(&nameless).contains("beginning with \"evt_\""),
        "{}",
        stderr_text(&nameless)
    );
}

#[test]
fn completions_and_manual_cover_the_same_commands() {
    let completions = run_billhook(&["completions", "bash"], "");
    assert!(
        String::from_utf8(completions.stdout)
            .unwrap()
            .contains("billhook__subcmd__dlq")
    );
    let folder = std::env::temp_dir().join(format!("billhook-man-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let man = run_billhook(&["man", folder.to_str().unwrap()], "");
    assert!(man.status.success(), "{}", stderr_text(&man));
    let page = std::fs::read_to_string(folder.join("billhook-replay.1")).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(page.contains("what\\-if"), "{page}");
}

#[test]
fn a_signature_is_explained_without_a_stack_and_without_showing_the_secret() {
    let body = std::env::temp_dir().join(format!("billhook-body-{}", std::process::id()));
    std::fs::write(&body, "{}").unwrap();
    let explain = [
        "sig",
        "explain",
        "stripe",
        "--secret-stdin",
        "--body",
        body.to_str().unwrap(),
        "--header",
        "Stripe-Signature: t=1781000000,v1=00",
    ];
    let wrong = run_billhook(&explain, "whsec_hidden\n");
    let none = run_billhook(&explain, "\n");
    std::fs::remove_file(&body).unwrap();
    let answer = String::from_utf8(wrong.stdout.clone()).unwrap();
    assert_eq!(wrong.status.code(), Some(4), "{}", stderr_text(&wrong));
    assert!(
        answer.contains("no_match") && !answer.contains("hidden"),
        "{answer}"
    );
    assert!(
        stderr_text(&none).contains("standard input has no secret"),
        "{}",
        stderr_text(&none)
    );
}

#[test]
fn every_provider_is_accepted_where_a_command_asks_for_one() {
    for provider in billhook_core::ids::ProviderId::words() {
        for line in [
            &["events", "list", "--provider", provider][..],
            &["replay", "--provider", provider, "--reason", "x"],
            &["dlq", "list", "--queue", provider],
            &["send", provider, "--type", "x"],
            &["sig", "explain", provider, "--body", "/"],
        ] {
            let output = run_billhook(line, "");
            // 2 would be a line that is not valid; without a stack or a file the command fails.
            assert_eq!(
                output.status.code(),
                Some(1),
                "{line:?}: {}",
                stderr_text(&output)
            );
        }
    }
    let unknown = run_billhook(&["dlq", "list", "--queue", "telegraph"], "");
    assert_eq!(unknown.status.code(), Some(2));
}
