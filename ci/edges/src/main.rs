//! Checks the dependencies between the crates against the allowed edges of the architecture.
fn main() {}
