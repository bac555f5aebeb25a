//! How a configuration names a file or a socket: by path, or by a descriptor that the process has inherited.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// `{"path": "/…"}` or `{"fd": 7}`.
///
/// A jailed process opens nothing by path: its starter hands it every file as `{fd}`. By hand, `{path}` is handier.
/// For a UNIX socket to connect to, `{fd}` is either an `O_PATH` descriptor of the socket file, through which the
/// process can connect again as often as it needs, or a stream that is connected already.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FileSource {
    /// A path in the process's own mount namespace.
    Path(PathBuf),
    /// A descriptor number that the process inherited at its start.
    Fd(i32),
}

impl fmt::Display for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Fd(fd) => write!(f, "inherited descriptor {fd}"),
        }
    }
}
