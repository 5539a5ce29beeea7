//! Who may touch which blocks now: claims on block ranges, granted in order of arrival.
//!
//! A claim that conflicts with an earlier one, granted or waiting, waits until that one is
//! released; so claims on overlapping ranges never overtake each other, and none starves.

mod table;
#[cfg(test)]
mod tests;

pub use table::{Claim, ClaimId, HazardTable, Mode, Verdict};
