//! Reads the discovery log of a discovery controller (NVMe Base 2.0 §5.16.1.23).

use crate::initiator::Error;
use crate::initiator::admin::{Admin, AdminConfig, FIRST_TOKEN, Identity};
use crate::tcp::TxQueue;
use forebay_io::{Buf, Duration, HeapBuf, Instant};
use forebay_wire::log::{
    self, DISCOVERY_ENTRY_LEN, DISCOVERY_HEADER_LEN, DiscoveryEntry, DiscoveryHeader,
};
use forebay_wire::sqe::{GetLogPage, admin};
use forebay_wire::tcp::Digests;
use forebay_wire::{DISCOVERY_NQN, Nqn, Sqe};

/// Bytes asked for at a time.
const CHUNK: u64 = 4096;
/// Most entries that are taken from one log.
const ENTRIES_MAX: u64 = 4096;
/// How often a log that changes while it is read is begun anew.
const ATTEMPTS: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The controller is being brought up.
    Opening,
    /// The header, to know how many entries there are.
    Header,
    /// Entries, from this byte of the log on.
    Entries(u64),
    /// The header again: did anything change?
    Check,
    Done,
}

/// The reading of one discovery log over one connection.
pub struct Discovery {
    admin: Admin,
    step: Step,
    header: DiscoveryHeader,
    entries: Vec<DiscoveryEntry>,
    attempts: u32,
}

impl Discovery {
    /// Begins on a connection that is open.
    ///
    /// # Errors
    /// Never for the well-known name; kept for the type's sake.
    pub fn new(
        hostnqn: Nqn,
        hostid: [u8; 16],
        timeout: Duration,
        now: Instant,
    ) -> Result<Self, Error> {
        let subnqn: Nqn =
            DISCOVERY_NQN.parse().map_err(|_| Error::Unsupported("the discovery name"))?;
        let config = AdminConfig {
            identity: Identity { hostnqn, hostid, subnqn },
            digests: Digests::default(),
            no_sq_flow: false,
            keep_alive: Duration::ZERO,
            timeout,
        };
        Ok(Self {
            admin: Admin::new(config, now),
            step: Step::Opening,
            header: DiscoveryHeader::default(),
            entries: Vec::new(),
            attempts: 0,
        })
    }

    /// What is to be sent.
    pub const fn output(&mut self) -> &mut TxQueue<HeapBuf> {
        self.admin.output()
    }

    /// The entries, once all are read.
    #[must_use]
    pub fn result(&self) -> Option<&[DiscoveryEntry]> {
        (self.step == Step::Done).then_some(&self.entries)
    }

    /// Takes bytes from the connection.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) -> Result<(), Error> {
        self.admin.handle_bytes(bytes, now)?;
        if self.step == Step::Opening && self.admin.is_ready() {
            self.read(Step::Header, now)?;
        }
        while let Some(reply) = self.admin.poll_reply() {
            let what = "Get Log Page of the discovery log";
            let cqe = reply.cqe.ok_or(Error::Closed)?;
            if !cqe.status.is_success() {
                return Err(Error::Refused { what, status: cqe.status });
            }
            let buf = reply.buf.ok_or(Error::Closed)?;
            self.handle_log(buf.as_slice(), now)?;
        }
        Ok(())
    }

    /// Checks time limits.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        self.admin.handle_timeout(now)
    }

    fn read(&mut self, step: Step, now: Instant) -> Result<(), Error> {
        self.step = step;
        let (offset, len) = match step {
            Step::Entries(at) => (at, CHUNK.min(self.end().saturating_sub(at))),
            _ => (0, DISCOVERY_HEADER_LEN as u64),
        };
        let page = GetLogPage { lid: log::DISCOVERY, len, offset, ..GetLogPage::default() };
        let sqe = page.encode(Sqe::new(admin::GET_LOG_PAGE, 0, 0));
        let read = usize::try_from(len).map_err(|_| Error::Unsupported("so long a log"))?;
        self.admin.request(FIRST_TOKEN, sqe, read, now)
    }

    fn end(&self) -> u64 {
        (DISCOVERY_HEADER_LEN as u64)
            .saturating_add(self.header.numrec.saturating_mul(DISCOVERY_ENTRY_LEN as u64))
    }

    fn handle_log(&mut self, raw: &[u8], now: Instant) -> Result<(), Error> {
        let header = || {
            let raw = raw.first_chunk::<DISCOVERY_HEADER_LEN>();
            raw.and_then(DiscoveryHeader::decode).ok_or(Error::Unsupported("this log's format"))
        };
        match self.step {
            Step::Header => {
                self.header = header()?;
                self.entries.clear();
                if self.header.numrec > ENTRIES_MAX {
                    return Err(Error::Unsupported("so few entries: its log has more than 4096"));
                }
                let first = DISCOVERY_HEADER_LEN as u64;
                let next = if self.header.numrec == 0 { Step::Check } else { Step::Entries(first) };
                self.read(next, now)
            }
            Step::Entries(at) => {
                let (entries, _) = raw.as_chunks::<DISCOVERY_ENTRY_LEN>();
                self.entries.extend(entries.iter().filter_map(DiscoveryEntry::decode));
                let at = at.saturating_add(CHUNK);
                self.read(if at < self.end() { Step::Entries(at) } else { Step::Check }, now)
            }
            Step::Check if header()?.genctr == self.header.genctr => {
                self.step = Step::Done;
                Ok(())
            }
            Step::Check if self.attempts + 1 < ATTEMPTS => {
                self.attempts += 1;
                self.read(Step::Header, now)
            }
            Step::Check => Err(Error::Timeout("a discovery log that stays the same")),
            Step::Opening | Step::Done => Ok(()),
        }
    }
}
