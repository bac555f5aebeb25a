//! Why something in the rack did not go as it should.

/// The result of everything in this crate.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// A failed step.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The rack or a server of it.
    #[error(transparent)]
    Lab(#[from] bixi_lab::Error),
    /// A control socket.
    #[error(transparent)]
    Control(#[from] bixi_api::client::ClientError),
    /// This machine.
    #[error(transparent)]
    System(#[from] std::io::Error),
    /// Something that does not encode or decode.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// An expectation that does not hold.
    #[error("{0}")]
    Wrong(String),
}

impl Failure {
    /// An expectation that does not hold.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Wrong(message.into())
    }
}

/// Ends the test with a message unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Failure::new(format!(
                "{}: {}",
                stringify!($condition),
                format!($($message)+)
            )));
        }
    };
}
