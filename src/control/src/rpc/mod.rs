//! JSON-RPC 2.0 on a Unix socket, framed as SPDK's is: JSON values one after the other, with or
//! without white space between them, `params` absent when empty, batches as arrays.
//!
//! | module | holds |
//! |---|---|
//! | `frame` | where a JSON value ends, byte by byte, bounded in size and depth |
//! | `message` | requests, responses, errors, batches |
//! | `server` | the socket, its permissions, connections and their bounds |
//! | `methods` | the calls, and what each takes |
//! | `spdk` | the read-only calls of SPDK, as views of our statistics |
//! | `client` | the other end, for the command line |

mod client;
mod frame;
mod message;
mod methods;
mod server;
mod spdk;

pub use client::Client;
pub use frame::{DEPTH_MAX, FRAME_LEN_MAX, FrameError, Framer};
pub use message::{BATCH_MAX, handle_frame};
pub use methods::{METHODS, PIECES_MAX, WAIT_S_MAX};
pub use server::{CONNECTIONS_MAX, Server};
