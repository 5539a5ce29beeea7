//! The initiator against the project's own target, both in this process.
