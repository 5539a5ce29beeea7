//! NVMe/TCP initiator (host) as state machines: bytes in, bytes out, time as an argument.
//!
//! | module | holds |
//! |---|---|
//! | [`qpair`] | one connection: initialization, capsules, data, R2T, digests |
//! | [`admin`] | the admin queue: bring-up of a controller, keep-alive, events |
//! | [`controller`] | an association: admin queue and I/O queues, one namespace |
//! | [`discovery`] | reading a discovery log |
//! | [`remote`] | device operations on a namespace, with reconnection |
//!
//! The shell opens the sockets that the machines ask for, carries bytes both ways and calls
//! `handle_timeout`. Every fault of the other side ends the association with an [`Error`]; none
//! can panic.

use core::fmt;

use forebay_wire::Status;
use forebay_wire::tcp::Fatal;

pub mod admin;
pub mod controller;
pub mod discovery;
pub mod qpair;
mod receive;
pub mod remote;
#[cfg(test)]
mod tests;

pub use controller::{Controller, ControllerInfo, HostConfig, NamespaceInfo};
pub use discovery::Discovery;
pub use qpair::{Command, Finished, Qpair, Transfer};
pub use remote::{Remote, SocketAction};

/// Why an association ended or could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The controller broke the protocol; it was told why.
    Protocol(Fatal),
    /// The controller ended the connection, saying why.
    Terminated(Fatal),
    /// A command of the bring-up was refused.
    Refused {
        /// Which one.
        what: &'static str,
        /// Its status.
        status: Status,
    },
    /// No answer in time to this.
    Timeout(&'static str),
    /// The controller cannot do what is needed.
    Unsupported(&'static str),
    /// The connection was closed or could not be opened.
    Closed,
}

impl Error {
    /// Whether trying again is expected to fail again.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Refused { status, .. } => status.is_dnr(),
            Self::Unsupported(_) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(fatal) => write!(f, "the controller broke the protocol: {fatal}"),
            Self::Terminated(fatal) => write!(f, "the controller ended the connection: {fatal}"),
            Self::Refused { what, status } => write!(f, "{what} was refused: {status}"),
            Self::Timeout(what) => write!(f, "no answer in time to {what}"),
            Self::Unsupported(what) => write!(f, "the controller does not support {what}"),
            Self::Closed => f.write_str("the connection is closed"),
        }
    }
}

impl core::error::Error for Error {}

impl From<Fatal> for Error {
    fn from(fatal: Fatal) -> Self {
        Self::Protocol(fatal)
    }
}
