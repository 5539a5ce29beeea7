//! Counters and lists for `stat` and `host list`.

use super::ConnId;
use super::conn::Home;
use forebay_io::{Instant, LatencyHistogram};
use forebay_wire::Nqn;

/// Counters of a target since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetStats {
    /// Associations made.
    pub associations: u64,
    /// Connects refused.
    pub connects_refused: u64,
    /// Connections ended for a protocol error.
    pub protocol_errors: u64,
    /// Keep-alive timers expired.
    pub keep_alive_expired: u64,
    /// Commands whose data digest was wrong.
    pub data_digest_errors: u64,
    /// Completions that arrived for a command that no longer exists.
    pub stale_completions: u64,
}

/// Counters of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnStats {
    /// Commands received.
    pub commands: u64,
    /// Commands that ended with an error.
    pub errors: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
}

/// Counters of a namespace, by commands that ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceCounters {
    /// Read and Compare commands.
    pub reads: u64,
    /// Blocks read and compared.
    pub blocks_read: u64,
    /// Write commands (also Write Zeroes and Dataset Management).
    pub writes: u64,
    /// Blocks written by Write commands.
    pub blocks_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Commands that the volume could not carry out.
    pub errors: u64,
}

/// How long the commands of a namespace took that [`NamespaceCounters`] counts: from the arrival of
/// their capsule to the end of the loop in which their response was queued. For a write whose data
/// does not come with the capsule this includes that the host is asked for it and sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceLatency {
    /// What `reads` counts.
    pub read: LatencyHistogram,
    /// What `writes` counts.
    pub write: LatencyHistogram,
    /// What `flushes` counts.
    pub flush: LatencyHistogram,
}

/// Which histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Read,
    Write,
    Flush,
}

impl NamespaceLatency {
    pub(super) fn record(&mut self, ended: &Ended, at: Instant) {
        let histogram = match ended.side {
            Side::Read => &mut self.read,
            Side::Write => &mut self.write,
            Side::Flush => &mut self.flush,
        };
        histogram.record_many(ended.arrived, at, ended.commands);
    }
}

/// Commands of one kind and one arrival whose responses are queued and whose end is not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) home: Home,
    pub(super) nsid: u32,
    pub(super) side: Side,
    pub(super) arrived: Instant,
    pub(super) commands: u64,
}

impl Ended {
    /// Whether a command counts together with these: what one receive brought usually does.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.arrived == other.arrived
            && self.nsid == other.nsid
            && self.side == other.side
            && self.home == other.home
    }
}

/// The host side of an association.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// Host name.
    pub nqn: Nqn,
    /// Host identifier.
    pub id: [u8; 16],
}

/// One controller, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Identifier.
    pub cntlid: u16,
    /// The subsystem; `None` for a discovery controller.
    pub subnqn: Option<Nqn>,
    /// The host.
    pub host: HostInfo,
    /// Whether it is enabled and ready.
    pub ready: bool,
    /// Whether its I/O waits until an older controller of the same host has ended.
    pub held: bool,
    /// Keep-alive timeout in milliseconds, 0 for none.
    pub kato_ms: u32,
    /// Connections: queue number, name, counters, commands in the volume.
    pub queues: Vec<(u16, ConnId, ConnStats, u32)>,
}
