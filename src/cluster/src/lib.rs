//! The configuration store: who owns a volume, at which epoch, with which in-sync replicas.
//!
//! | module | holds |
//! |---|---|
//! | [`key`] | what is kept of a volume, and which changes of it are allowed |
//! | [`file`] | [`FileStore`]: the keys of one node alone, in a locked file |
//! | [`lock`] | the lock, an open file description lock, which is the lease |
//!
//! A key changes only by compare-and-swap on its revision, in a file as in a cluster, so that the
//! callers are written once.

pub mod file;
pub mod key;
pub mod lock;

pub use file::{FileStore, StoreError};
pub use key::{Keyed, Member, Mode, NewVolume, Owner, Placement, Tombstone, VolumeKey};
