//! Where the serial port's bytes go to and come from.
//!
//! Output is kept in a ring ([`output::Output`]) that a guest fills without ever waiting. Input is taken from its source
//! only as fast as the guest reads it: a task holds one chunk, offers it to the serial port and reads no further until
//! all of it is taken, so that the source itself is held back and nothing is lost.

pub mod output;
