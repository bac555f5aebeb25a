//! How a worker runs.

use std::time::Duration;

/// How a worker runs.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The thread's name, up to 15 bytes.
    pub name: String,
    /// The processor it stays on; anywhere unless told.
    pub core: Option<usize>,
    /// How long a queue is polled after its last work before it is armed. 0 arms at once; [`Duration::MAX`] never
    /// does.
    pub spin: Duration,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self { name: "worker".to_owned(), core: None, spin: Duration::from_micros(50) }
    }
}
