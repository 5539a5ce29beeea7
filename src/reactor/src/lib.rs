//! Pinned polling reactors: mailboxes, timers, buffer pools, idle strategy.
//!
//! A reactor is one thread with one [`Service`] that owns everything it touches. Others reach it
//! through its [`Mailbox`]; buffers that it gave away come home by a lock-free path of the [`pool`].
//!
//! | module | holds |
//! |---|---|
//! | [`run`] | the loop: messages, the service's poll, sleep; threads and their pinning |
//! | [`mailbox`] | bounded lock-free queue into a reactor, which wakes it only if it sleeps |
//! | [`gate`] | the sleep and wake protocol (checked with loom) |
//! | [`wait`] | epoll and eventfd |
//! | [`timers`] | a cancellable deadline heap |
//! | [`clock`] | one monotonic clock reading per loop, shared with devices |
//! | [`pool`] | reference-counted buffers in size classes over hugepage regions |
//! | [`stats`] | what a reactor did with its time |

pub mod clock;
pub mod gate;
pub mod mailbox;
pub mod pool;
pub mod run;
pub mod stats;
mod sync;
pub mod timers;
pub mod wait;

pub use clock::{LoopTime, MonotonicClock};
pub use mailbox::{MailSender, Mailbox, mailbox};
pub use pool::{Pool, PoolBuf, PoolConfig, PoolUsage, RegionTable};
pub use run::{
    Context, PollMode, Progress, ReactorConfig, ReactorHandle, Service, Setup, SpawnError, spawn,
};
pub use stats::{ReactorStats, StatsSnapshot};
pub use timers::{TimerId, Timers};
pub use wait::{Epoll, EventFd, Interest, Trigger, WaitSet};
