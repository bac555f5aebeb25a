//! Acceptance tests in the rack.
