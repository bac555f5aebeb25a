//! Storage virtualization.
