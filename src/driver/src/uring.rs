//! `uring:` files and block devices through io_uring.
//!
//! All devices of a reactor share one [`Ring`], so that a loop costs one call into the kernel at most.
//! Buffers are registered region by region as the pool maps them; where the kernel refuses that, plain
//! reads and writes serve.

mod device;
mod entry;
mod file;
mod identity;
mod ring;
#[cfg(test)]
mod tests;

pub use device::UringDevice;
pub use file::UringError;
pub use ring::{Ring, RingStats};
