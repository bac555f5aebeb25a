//! Front ends that are not ours.
