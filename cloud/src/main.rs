//! `bixi-cloud`: arguments go to the library.

fn main() {}
