//! Network virtualization.
