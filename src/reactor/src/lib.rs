//! Pinned polling reactors: mailboxes, timers, buffer pools, idle strategy.
