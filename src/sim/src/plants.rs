//! Rules of the core that are removed on purpose, one at a time: whether the checkers notice, and how
//! soon.

/// Prints the score. `only`: this one alone; 0 for all.
pub fn score(_only: u64, _seeds: u64) -> bool {
    println!("plants: not in this build");
    false
}
