//! How refusals look on the control socket.

use super::model::Refused;
use super::records::RecordsError;
use crate::tables::TableError;
use bixi_offload::card::CardError;
use bixi_offload::control::{ListenError, Refusal};

/// A change that the model does not allow.
pub fn of(refused: Refused) -> Refusal {
    let Refused { code, message, hint, bad } = refused;
    if bad {
        Refusal::bad_request(code, message, hint)
    } else {
        Refusal::conflict(code, message, hint)
    }
}

/// A change that was allowed and could not be done.
pub fn failed(why: &Failure) -> Refusal {
    match why {
        Failure::Listen(ListenError::InUse { path }) => Refusal::conflict(
            "SocketInUse",
            format!("another process listens on {}.", path.display()),
            "Stop it, or choose another path.",
        ),
        Failure::Listen(ListenError::NotASocket { path }) => Refusal::conflict(
            "NotASocket",
            format!("{} exists and is not a socket.", path.display()),
            "Remove it, or choose another path.",
        ),
        other => Refusal::failed("Failed", format!("{}.", describe(other)), ""),
    }
}

/// There is no such port.
pub fn no_port(id: &str) -> Refusal {
    let shown: String = id.chars().take(64).collect();
    Refusal::not_found("NoSuchPort", format!("there is no port {shown}."), "")
}

/// The port is not there, or has no metadata.
pub fn no_metadata(id: &str) -> Refusal {
    let shown: String = id.chars().take(64).collect();
    Refusal::not_found("NoMetadata", format!("there is no metadata of a port {shown}."), "")
}

/// There is no such segment.
pub fn no_segment(vni: u32) -> Refusal {
    Refusal::not_found("NoSuchSegment", format!("there is no segment {vni}."), "")
}

/// Why a change could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Its socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Its tables cannot be opened.
    #[error(transparent)]
    Table(#[from] TableError),
    /// It cannot be written down.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The card refuses.
    #[error(transparent)]
    Card(#[from] CardError),
    /// There are as many ports as there can be.
    #[error("there are {0} ports, and no more are possible: delete some")]
    TooMany(usize),
}

/// A failure with its causes.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(" ({cause})"));
        source = cause.source();
    }
    text
}
