//! Compute virtualization.
