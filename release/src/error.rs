//! Why something with releases cannot be done.

use std::io;
use std::path::Path;

/// Why something with releases cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The bundle, or what is installed of it, is not as its maker made it.
    #[error("{0}")]
    Damaged(String),
    /// No trusted key has signed it.
    #[error(
        "it is signed by the key {key}, which is not trusted here: if that is the key of whoever makes your releases, \
         give its file with --trust FILE"
    )]
    Untrusted {
        /// The key's public part in base64.
        key: String,
    },
    /// A key cannot be used.
    #[error("{0}")]
    Key(String),
    /// What is on the machine stands against it.
    #[error("{0}")]
    Conflict(String),
    /// There is no such version.
    #[error("version {0} is not installed: `bixi release list` shows what is")]
    NotInstalled(String),
    /// A system call.
    #[error("cannot {action}: {source}{}", hint(source))]
    System {
        /// What was attempted.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; nothing was changed: make room and do it again"
        }
        io::ErrorKind::PermissionDenied => "; do it as root",
        _ => "",
    }
}

/// The result of something with releases.
pub type Result<T = ()> = std::result::Result<T, ReleaseError>;

/// Names what was being done to `path`.
pub(crate) fn system(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> ReleaseError {
    let action = format!("{verb} {}", path.display());
    move |source| ReleaseError::System { action, source }
}

pub(crate) fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(ReleaseError::Damaged(what.into()))
}
