//! Exit codes: why a command ends without having done what was asked, so that scripts can tell the cases apart.

use anyhow::{Result, bail};

/// An end that is no failure of the tool. Any other error exits with 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandExit {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Interrupted(String),
}

impl CommandExit {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) => 3,
            Self::Refused(_) => 4,
            // As shells report it: 128 and the number of SIGINT.
            Self::Interrupted(_) => 130,
        }
    }
}

/// The end of a command that did several things and went on after each error: 4 if some were refused, 1 if some failed.
pub(crate) fn end_of_several(done: usize, word: &str, errors: &[anyhow::Error]) -> Result<()> {
    let is_refused = |error: &&anyhow::Error| error.downcast_ref::<CommandExit>().is_some();
    let refused = errors.iter().filter(is_refused).count();
    let failed = errors.len() - refused;
    let counts = format!("{done} {word}, {refused} refused, {failed} failed");
    if failed > 0 {
        bail!("{counts}: repeat the command; what is done stays done");
    }
    if refused > 0 {
        return Err(CommandExit::Refused(counts).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn of_several_a_failure_counts_more_than_a_refusal() {
        let refused = || CommandExit::Refused("another order has it".to_owned()).into();
        let end = |errors: &[anyhow::Error]| end_of_several(2, "linked", errors);
        assert!(end(&[]).is_ok());
        let only_refused = end(&[refused()]).unwrap_err();
        let exit: &CommandExit = only_refused.downcast_ref().unwrap();
        assert_eq!(exit.exit_code(), 4);
        assert_eq!(exit.to_string(), "2 linked, 1 refused, 0 failed");
        let failed = end(&[refused(), anyhow!("no answer")]).unwrap_err();
        assert!(failed.downcast_ref::<CommandExit>().is_none(), "{failed}");
    }
}
