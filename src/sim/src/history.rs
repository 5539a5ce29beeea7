//! What hosts asked and got: the events that the oracles judge, kept for those who look at every
//! moment again.

use crate::device::Touch;
use crate::oracle::Oracle;
use forebay_cache::engine::CacheMode;
use std::rc::Rc;

/// Bytes of a volume: first, and how many.
pub type Span = (u64, u64);

/// What concerns the oracles.
#[derive(Clone)]
pub enum Host {
    /// A change began.
    Started {
        /// Volume.
        volume: usize,
        /// Where.
        at: Span,
        /// Its name.
        write: u64,
        /// It makes zeroes.
        zero: bool,
        /// It may not be ignored.
        certain: bool,
        /// When.
        tick: u64,
    },
    /// A change was acknowledged.
    Ended {
        /// Volume.
        volume: usize,
        /// Where.
        at: Span,
        /// Its name.
        write: u64,
        /// When.
        tick: u64,
        /// The begin of the oldest request under way.
        horizon: u64,
        /// It is durable.
        fua: bool,
    },
    /// A change did not happen.
    Never {
        /// Volume.
        volume: usize,
        /// Where.
        at: Span,
        /// Its name.
        write: u64,
    },
    /// A Flush that began at `start` ended.
    Flushed {
        /// Volume.
        volume: usize,
        /// When it began.
        start: u64,
    },
    /// A read ended.
    Read {
        /// Volume.
        volume: usize,
        /// First byte.
        offset: u64,
        /// What it got.
        data: Rc<[u8]>,
        /// When it began.
        start: u64,
        /// When it ended.
        tick: u64,
    },
}

impl Host {
    /// Tells the oracles.
    ///
    /// # Errors
    /// What is wrong with a read.
    pub fn tell(&self, oracles: &mut [Oracle]) -> Result<(), String> {
        match self {
            Self::Started { volume, at, write, zero, certain, tick } => {
                oracles[*volume].started(*at, *write, *zero, *certain, *tick);
            }
            Self::Ended { volume, at, write, tick, horizon, fua } => {
                oracles[*volume].ended(*at, *write, *tick, *horizon, *fua);
            }
            Self::Never { volume, at, write } => oracles[*volume].never(*at, *write),
            Self::Flushed { volume, start } => oracles[*volume].flushed(*start),
            Self::Read { volume, offset, data, start, tick } => {
                return oracles[*volume].read(*offset, data, *start, *tick);
            }
        }
        Ok(())
    }
}

/// Everything that happened, in order.
#[derive(Clone)]
pub enum Moment {
    /// To the cache device.
    Cache(Touch),
    /// To a volume's backing device.
    Backing(usize, Touch),
    /// To a host.
    Host(Host),
    /// A volume is in a mode, or on its way there.
    Mode(usize, CacheMode),
}
