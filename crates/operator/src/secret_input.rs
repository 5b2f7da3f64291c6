//! Reads secrets from standard input. On the command line every process of the machine could read them in `ps`, and the
//! shell would write them to its history.

use std::io::{BufRead as _, IsTerminal as _};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use secrecy::SecretString;

use crate::output::print_notice;

/// Reads a line without echo. A shell does it because its traps restore the echo however it ends: Ctrl-C ends this
/// process before it could, and would leave the operator with a terminal that shows nothing.
const HIDDEN_LINE: &str = r#"
trap 'stty echo' EXIT
trap 'exit 130' HUP INT TERM
stty -echo && IFS= read -r line && printf %s "$line"
"#;

/// The first line of standard input, so that a trailing newline of `pass show` or `echo` does no harm. At a terminal
/// the tool asks for it without echo.
pub(crate) fn read_secret(what: &str) -> Result<SecretString> {
    let mut line = String::new();
    if std::io::stdin().is_terminal() {
        print_notice(&format!("Enter {what} (it is not shown):"));
        let mut shell = Command::new("sh");
        let read = shell.args(["-c", HIDDEN_LINE]).stdin(Stdio::inherit());
        let read = read.stderr(Stdio::inherit()).output()?;
        if !read.status.success() {
            bail!("cannot read a secret from this terminal without showing it: pipe it in instead");
        }
        line = String::from_utf8(read.stdout)?;
    } else {
        std::io::stdin().lock().read_line(&mut line)?;
    }
    let secret = line.trim();
    if secret.is_empty() {
        bail!("standard input has no secret: pipe it in, for example `pass show … | billhook …`");
    }
    Ok(SecretString::from(secret))
}
