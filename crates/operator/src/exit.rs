//! Exit codes: why a command ends without having done what was asked, so that scripts can tell the cases apart.

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
