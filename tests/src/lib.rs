//! The product in a rack: cards, guests, and two servers joined by a segment.
//!
//! The acceptance tests (`rack/`), the demo and the soak are made of these parts. All of them use the product as its
//! users do: the programs with their command lines, the control sockets with the types and the client of `bixi-api`.

mod card;
mod cloud;
mod control;
mod daemon;
mod error;
mod guest;
mod pair;

pub use card::{Card, Service, disk_id};
pub use cloud::{Cloud, Instance};
pub use control::Control;
pub use daemon::{Daemon, Lease};
pub use error::{Failure, Result};
pub use guest::{Guest, GuestPlan, Kernel};
pub use pair::{Pair, SEGMENT};

use std::time::{Duration, Instant};

/// Asks again and again until there is an answer.
///
/// # Errors
/// When there is none in time; the last reason is told.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = ask();
        if let Ok(Some(answer)) = answer {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            let reason = answer.err().map(|e| format!(": {e}")).unwrap_or_default();
            return Err(Failure::new(format!("{what} did not happen within {limit:?}{reason}")));
        }
        // Bounded by the deadline; what is asked here cannot be waited on otherwise.
        std::thread::sleep(Duration::from_millis(50));
    }
}
