//! The `lorafa-opt` command.
fn main() {}
