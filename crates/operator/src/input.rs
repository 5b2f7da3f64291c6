//! What must never stand on the command line, where every process of the machine can read it.

use std::io::{BufRead as _, IsTerminal as _};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use secrecy::SecretString;

use crate::output::Output;

/// Reads a line that is not shown. A shell does, because its traps bring the echo back however it ends: Ctrl-C ends this
/// process before it could.
const HIDDEN_LINE: &str = r#"
trap 'stty echo' EXIT
trap 'exit 130' HUP INT TERM
stty -echo && IFS= read -r line && printf %s "$line"
"#;

/// The first line of standard input. At a terminal it is asked for, and not echoed.
pub(crate) fn secret(what: &str) -> Result<SecretString> {
    let mut line = String::new();
    if std::io::stdin().is_terminal() {
        Output::tell(&format!("{what}, then Enter (it is not shown):"));
        let mut shell = Command::new("sh");
        let read = shell.args(["-c", HIDDEN_LINE]).stdin(Stdio::inherit());
        let read = read.stderr(Stdio::inherit()).output()?;
        if !read.status.success() {
            bail!(
                "no secret could be read at this terminal without showing it: pipe it in instead"
            );
        }
        line = String::from_utf8(read.stdout)?;
    } else {
        std::io::stdin().lock().read_line(&mut line)?;
    }
    let secret = line.trim();
    if secret.is_empty() {
        bail!("no secret came on standard input: pipe it in, as `pass show … | billhook …`");
    }
    Ok(SecretString::from(secret))
}
