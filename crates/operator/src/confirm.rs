//! Confirmation: a command that changes something says what it would change, and in which account, region and stack, before it
//! does it.
//!
//! With `--yes` it acts at once. Without, it asks at a terminal, also for the reason if it has none; anywhere else it changes
//! nothing and prints the command line that would. A command that can compute what it would change (`replay`, `dlq redrive`,
//! `prove --repair`) shows that instead of asking. Who did it and why is recorded in the audit log and with the change
//! (`audit`).

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::Result;
use clap::Args;

use crate::audit::{AuditContext, PlannedChange, parse_reason};
use crate::exit::CommandExit;
use crate::output::print_notice;
use crate::session::StackSession;

/// The options of every command that changes something.
#[derive(Args, Debug)]
pub(crate) struct ChangeArgs {
    /// The reason; it is recorded with the change, and with who you are to AWS
    #[arg(long, value_parser = parse_reason)]
    reason: Option<String>,
    /// Do it without asking
    #[arg(long, requires = "reason")]
    yes: bool,
}

impl ChangeArgs {
    pub(crate) fn is_confirmed(&self) -> bool {
        self.yes
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    pub(crate) fn has_reason(&self) -> bool {
        self.reason.is_some()
    }

    /// Asks whether to do `what` to a number of rows, and records who does it and why.
    pub(crate) async fn confirm(
        &self,
        session: &StackSession,
        what: &str,
        rows: Option<usize>,
    ) -> Result<AuditContext> {
        if !self.yes {
            let lacking = if self.has_reason() {
                ""
            } else {
                " --reason …"
            };
            ask_to_change(session, what, lacking)?;
        }
        self.start_audit(session, what, rows).await
    }

    /// Records who does what is confirmed, and why.
    pub(crate) async fn start_audit(
        &self,
        session: &StackSession,
        what: &str,
        rows: Option<usize>,
    ) -> Result<AuditContext> {
        let reason = match &self.reason {
            Some(reason) => reason.clone(),
            None => ask_reason()?,
        };
        start_audit(session, reason, what, rows).await
    }
}

pub(crate) async fn start_audit(
    session: &StackSession,
    reason: String,
    what: &str,
    rows: Option<usize>,
) -> Result<AuditContext> {
    let planned = PlannedChange {
        command: typed_command(std::env::args()),
        what,
        rows,
    };
    session.start_audit(reason, planned).await
}

/// At a terminal, asks whether to do `what`; anywhere else refuses it. `lacking` is what the command line lacks besides
/// `--yes`.
pub(crate) fn ask_to_change(
    session: &StackSession,
    what: &str,
    lacking: &str,
) -> Result<(), CommandExit> {
    print_notice(&format!("{}: {what}", session.stack.describe_target()));
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        let typed = typed_command(std::env::args());
        return Err(CommandExit::Refused(format!(
            "nothing was changed; to do it, run: {typed}{lacking} --yes"
        )));
    }
    match is_consent(&ask("Do it? [y/N] ")) {
        true => Ok(()),
        false => Err(CommandExit::Refused("nothing was changed".to_owned())),
    }
}

/// Only who has said yes at a terminal gets here.
fn ask_reason() -> Result<String, CommandExit> {
    parse_reason(&ask("Why? "))
        .map_err(|error| CommandExit::Refused(format!("nothing was changed: {error}")))
}

/// The end of the input is an empty answer.
fn ask(question: &str) -> String {
    let mut line = String::new();
    // If standard error is closed, nobody can answer either.
    let _ = write!(std::io::stderr(), "{question}");
    let _ = std::io::stdin().lock().read_line(&mut line);
    line
}

/// Anything but a yes is a no.
fn is_consent(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}

/// The end of a preview: where it would be done, and the command line that does it.
pub(crate) fn announce_preview(session: &StackSession, what: &str, change: &ChangeArgs) {
    let lacking = if change.has_reason() {
        ""
    } else {
        " --reason …"
    };
    print_notice(&format!(
        "{}: {what}. Nothing was changed; to do it, run: {}{lacking} --yes",
        session.stack.describe_target(),
        typed_command(std::env::args())
    ));
}

/// The command line as it was typed, without the place at which an earlier one continued.
pub(crate) fn typed_command(words: impl Iterator<Item = String>) -> String {
    let mut words = words.skip(1);
    let mut typed = vec!["billhook".to_owned()];
    while let Some(word) = words.next() {
        match word.as_str() {
            "--continue-at" => drop(words.next()),
            word if word.starts_with("--continue-at=") => {}
            word => typed.push(quote_word(word)),
        }
    }
    typed.join(" ")
}

/// A word as a shell takes it.
pub(crate) fn quote_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:".contains(c);
    if word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_one() {
        for yes in ["y\n", " YES \n"] {
            assert!(is_consent(yes), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yes please\n", "\u{fffd}"] {
            assert!(!is_consent(no), "{no:?}");
        }
    }

    #[test]
    fn the_command_that_continues_is_as_it_was_typed_without_the_old_place() {
        let words = [
            "/usr/bin/billhook",
            "prove",
            "--all",
            "--continue-at",
            "segment-3",
            "--repair",
            "--reason",
            "it's late",
            "--yes",
        ];
        assert_eq!(
            typed_command(words.map(str::to_owned).into_iter()),
            r"billhook prove --all --repair --reason 'it'\''s late' --yes"
        );
    }
}
