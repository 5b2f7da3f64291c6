//! What must never stand on the command line, where every process of the machine can read it.

use std::io::{BufRead as _, IsTerminal as _};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use secrecy::SecretString;

use crate::output::Output;

/// The first line of standard input. At a terminal it is asked for, and not echoed.
pub(crate) fn secret(what: &str) -> Result<SecretString> {
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        Output::tell(&format!("{what}, then Enter (it is not shown):"));
        echo("-echo")?;
    }
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    if is_terminal {
        echo("echo")?;
    }
    read?;
    let secret = line.trim();
    if secret.is_empty() {
        bail!("no secret came on standard input: pipe it in, as `pass show … | billhook …`");
    }
    Ok(SecretString::from(secret))
}

fn echo(mode: &str) -> Result<()> {
    let done = Command::new("stty")
        .arg(mode)
        .stdin(Stdio::inherit())
        .status()?;
    if !done.success() {
        bail!("this terminal would show the secret: pipe it in instead");
    }
    Ok(())
}
