//! The target as a host sees it: a small host that speaks bytes, and a volume in memory.

mod admin;
mod ana;
mod bring_up;
mod connect;
mod data;
mod events;
mod fused;
mod hostile;
mod limits;
mod rig;
