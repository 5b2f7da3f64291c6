//! Reads secrets from standard input. On the command line every process of the machine could read them in `ps`, and the
//! shell would write them to its history.

use std::io::{BufRead as _, IsTerminal as _};
use std::process::{Command, Stdio};

use anyhow::{Result, anyhow, bail};
use billhook_core::provider::signature::{KeyScope, SigningKey};
use secrecy::{ExposeSecret as _, SecretString};

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
    let line = if std::io::stdin().is_terminal() {
        print_notice(&format!("Enter {what} (it is not shown):"));
        let mut shell = Command::new("sh");
        let read = shell.args(["-c", HIDDEN_LINE]).stdin(Stdio::inherit());
        let read = read.stderr(Stdio::inherit()).output()?;
        if !read.status.success() {
            bail!("cannot read a secret from this terminal without showing it: pipe it in instead");
        }
        String::from_utf8(read.stdout)?
    } else {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_until(b'\n', &mut bytes)?;
        String::from_utf8(bytes)
            .map_err(|_| anyhow!("the secret is not UTF-8 text, so nothing was stored: store the file as UTF-8, or paste the secret"))?
    };
    let secret = line.trim();
    if secret.is_empty() {
        bail!("standard input has no secret: pipe it in, for example `pass show … | billhook …`");
    }
    if let Some(fault) = find_fault(secret) {
        bail!(
            "the secret {fault}, so nothing was stored: copy it again, without anything around it"
        );
    }
    Ok(SecretString::from(secret))
}

/// `--secret-stdin`: a signing secret that proves every event.
pub(crate) fn read_key_from_stdin() -> Result<Vec<SigningKey>> {
    let secret = read_secret("the signing secret")?;
    let key = SigningKey::from_value("stdin", secret.expose_secret(), KeyScope::AllEvents);
    Ok(key.into_iter().collect())
}

/// What copying from a web page, a file or a `.env` adds. With it every delivery would be refused. Secrets and keys of our
/// providers are printable ASCII without spaces.
fn find_fault(secret: &str) -> Option<&'static str> {
    let is_name = |name: &str| {
        let mut chars = name.chars();
        chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let named = secret.split_once('=').filter(|(name, value)| {
        is_name(name)
            && name.contains('_')
            && name.to_ascii_uppercase() == *name
            && !value.is_empty()
    });
    if secret.starts_with('\u{feff}') {
        Some("begins with a byte order mark")
    } else if !secret.is_ascii() {
        Some("has a character that is not ASCII, such as a zero-width space")
    } else if secret.chars().any(|c| c.is_ascii_control()) {
        Some("has a control character, as UTF-16 text does")
    } else if secret.contains(' ') {
        Some("has a space in it")
    } else if secret.starts_with(['"', '\'', '`']) || secret.ends_with(['"', '\'', '`']) {
        Some("is in quotation marks")
    } else if named.is_some() {
        Some("begins with the name of a variable and =")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_copying_adds_is_refused_by_name() {
        for good in [
            "local_lob_secret_0001",
            "whsec_abc+/=",
            "sk_test_1",
            "a=b",
            "YWJj=",
        ] {
            assert_eq!(find_fault(good), None, "{good}");
        }
        for (bad, fault) in [
            ("\u{feff}secret_1", "byte order mark"),
            ("\u{200b}secret_1", "not ASCII"),
            ("secret_1\u{a0}x", "not ASCII"),
            ("s\0e\0c\0", "control character"),
            ("my secret", "space"),
            ("\"secret_1\"", "quotation marks"),
            ("LOB_WEBHOOK_SECRET=secret_1", "name of a variable"),
        ] {
            assert!(find_fault(bad).unwrap().contains(fault), "{bad:?}");
        }
    }
}
