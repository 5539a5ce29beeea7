//! Recovery on images that a small writer makes, which keeps the rules that the engine owes the
//! format (head of `format.rs`).

mod crash;
mod damage;
mod golden;
mod history;
mod rig;
mod torn;

pub(crate) use rig::volume as test_volume;
