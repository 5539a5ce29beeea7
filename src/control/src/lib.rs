//! The control plane: configuration files, JSON-RPC, jobs, statistics.
//!
//! | module | holds |
//! |---|---|
//! | [`value`] | sizes, durations, modes, names: parsed once, with errors that name what is accepted |
//! | [`config`] | the TOML file: parsed, checked, exported |
//! | [`state`] | what commands have changed: a JSON file beside, never the TOML |
//! | [`plan`] | differences between the two, and the steps that remove them |
//! | [`node`] | what the control plane asks of the running node: the trait [`NodeControl`] |
//! | [`stat`] | one tree of statistics, for tables, JSON and metrics alike |
//! | [`jobs`] | long work: progress, waiting, cancelling, resuming |
//! | [`controller`] | state, jobs and node together: every command ends here |
//! | [`rpc`] | JSON-RPC 2.0 on a Unix socket, server and client |
//! | [`http`] | `/metrics` and `/healthz`, off unless configured |
//!
//! Everything here runs on control threads and never on a reactor; [`NodeControl`] is the only way
//! to the data path.

pub mod config;
pub mod controller;
pub mod error;
mod fields;
pub mod files;
pub mod http;
pub mod jobs;
pub mod node;
pub mod plan;
pub mod rpc;
pub mod stat;
pub mod state;
pub mod value;

pub use config::{ServeConfig, VolumeConfig};
pub use controller::Controller;
pub use error::{ControlError, ErrorKind};
pub use jobs::{JobHandle, JobTable};
pub use node::NodeControl;
