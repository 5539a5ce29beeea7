//! NVMe over Fabrics target and initiator as state machines without I/O.
#![forbid(unsafe_code)]
