//! The virtual rack.
