//! Devices for the reactor, behind one closed enum and opened by URI.
//!
//! | module | holds |
//! |---|---|
//! | [`uri`] | device URIs: parsed once, with errors that say what is accepted |
//! | [`any`] | [`AnyDevice`], and [`open`] |
//! | [`mem`] | `mem:` memory of this process |
//! | [`uring`] | `uring:` files and block devices through io_uring |
//! | [`nvmf`] | `nvmf+tcp:` namespaces of remote controllers; discovery |
//! | [`slow`] | `slow:URI` a device with added latency |
//! | [`fault`] | `fault:URI` a device that fails on request |

pub mod any;
mod check;
pub mod fault;
pub mod mem;
pub mod nvmf;
pub mod slow;
#[cfg(test)]
mod testing;
pub mod uri;
pub mod uring;

pub use any::{AnyDevice, DriverContext, OpenError, open};
pub use fault::{Fault, FaultHandle, FaultOps, FaultRule};
pub use uri::{DeviceUri, Latency, UriError};
