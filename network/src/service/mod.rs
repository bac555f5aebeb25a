//! The process around the switch: who may have which port, what is written down, and the control socket.
//!
//! ```text
//! control ── requests ──► driver ── rules (pure): may it be?
//!                           ├── records: written down before it is so
//!                           ├── card: sockets, sessions, queues
//!                           └── switch: commands, immutable views
//! ```
//!
//! Invariants: the [`driver`] owns everything here and never waits; handlers only ask it. What was promised is in the
//! state directory before anybody hears that it is so, and a process that starts again promises the same: it listens on
//! every recorded socket before it does anything slow.

pub mod control;
pub mod driver;
mod hush;
pub mod model;
pub mod policy;
mod ports;
pub mod records;
pub mod refusal;
pub mod rules;
pub mod serve;
