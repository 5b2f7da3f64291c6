//! The command line by itself: what needs no stack.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn billhook(arguments: &[&str], input: &str) -> Output {
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

fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_shows_every_command_and_every_exit_code() {
    let help = billhook(&["--help"], "");
    insta::assert_snapshot!(String::from_utf8(help.stdout).unwrap());
}

#[test]
fn errors_name_what_to_do_and_have_their_own_code() {
    let unknown = billhook(&["events", "lst"], "");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(told(&unknown).contains("'list'"), "{}", told(&unknown));
    let nowhere = billhook(&["events", "list"], "");
    assert_eq!(nowhere.status.code(), Some(1));
    assert_eq!(
        told(&nowhere),
        "billhook: no stack is named: give --stack, or set BILLHOOK_STACK\n"
    );
    let nameless = billhook(&["events", "show", "pi_1"], "");
    assert!(
        told(&nameless).contains("beginning with \"evt_\""),
        "{}",
        told(&nameless)
    );
}

#[test]
fn completions_and_manual_are_made_of_the_same_line() {
    let completions = billhook(&["completions", "bash"], "");
    assert!(
        String::from_utf8(completions.stdout)
            .unwrap()
            .contains("billhook__subcmd__dlq")
    );
    let folder = std::env::temp_dir().join(format!("billhook-man-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let man = billhook(&["man", folder.to_str().unwrap()], "");
    assert!(man.status.success(), "{}", told(&man));
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
    let wrong = billhook(&explain, "whsec_hidden\n");
    let none = billhook(&explain, "\n");
    std::fs::remove_file(&body).unwrap();
    let answer = String::from_utf8(wrong.stdout.clone()).unwrap();
    assert_eq!(wrong.status.code(), Some(4), "{}", told(&wrong));
    assert!(
        answer.contains("no_match") && !answer.contains("hidden"),
        "{answer}"
    );
    assert!(
        told(&none).contains("no secret came on standard input"),
        "{}",
        told(&none)
    );
}
