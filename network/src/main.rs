//! Placeholder until the library is in place.
fn main() {}
