//! What a load generator does.

use core::fmt;
use core::ops::Range;
use core::str::FromStr;

use crate::pace::Pace;
use forebay_io::{DeviceInfo, Duration};

/// The mix and the order of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rw {
    /// Reads in random order.
    RandRead,
    /// Writes in random order.
    RandWrite,
    /// Reads in ascending order.
    Read,
    /// Writes in ascending order.
    Write,
    /// Reads and writes in random order.
    RandRw,
}

impl Rw {
    /// Whether positions are random.
    #[must_use]
    pub const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// Whether anything is written.
    #[must_use]
    pub const fn writes(self) -> bool {
        !matches!(self, Self::RandRead | Self::Read)
    }

    /// The name, as on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRw => "randrw",
        }
    }
}

impl FromStr for Rw {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, WorkloadError> {
        [Self::RandRead, Self::RandWrite, Self::Read, Self::Write, Self::RandRw]
            .into_iter()
            .find(|rw| rw.name() == text)
            .ok_or_else(|| WorkloadError(format!(
                "no access pattern is called \"{text}\"; there are randread, randwrite, read, write and randrw"
            )))
    }
}

/// How random positions are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Evenly.
    Uniform,
    /// By Zipf's law with this exponent (above 0, at most 10), popular blocks scattered.
    Zipf(f64),
    /// Of a hundred operations so many fall, evenly, on the first part of the range.
    HotCold(HotCold),
}

/// A hot part of a range, and how hot it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotCold {
    /// Of a hundred operations, those on the hot part: 1 to 100.
    pub operations: u8,
    /// Of a hundred blocks, those of the hot part, which is the first of the range: 1 to 99.
    pub blocks: u8,
}

impl HotCold {
    /// Blocks of the hot part among `count`; at least one, and not all.
    #[must_use]
    pub fn hot_blocks(self, count: u64) -> u64 {
        let hot = u128::from(count) * u128::from(self.blocks) / 100;
        u64::try_from(hot).unwrap_or(count).clamp(1, count.saturating_sub(1).max(1))
    }
}

impl FromStr for HotCold {
    type Err = WorkloadError;

    /// `OPERATIONS/BLOCKS`, both of a hundred: `90/10`.
    fn from_str(text: &str) -> Result<Self, WorkloadError> {
        let parts = || {
            let (operations, blocks) = text.split_once('/')?;
            Some(Self { operations: operations.parse().ok()?, blocks: blocks.parse().ok()? })
        };
        parts()
            .filter(|hot| (1..=100).contains(&hot.operations) && (1..=99).contains(&hot.blocks))
            .ok_or_else(|| {
                WorkloadError(format!(
                    "\"{text}\" is no hot set; 90/10 puts 90 % of the operations on 10 % of the blocks \
                     (1 to 100, and 1 to 99)"
                ))
            })
    }
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After this time.
    Time(Duration),
    /// After this many operations of each job.
    Ops(u64),
}

/// A load, the same for each job but for its share of the range.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Mix and order.
    pub rw: Rw,
    /// Reads of a hundred operations, for [`Rw::RandRw`].
    pub read_percent: u8,
    /// Bytes of each operation.
    pub block_size: u32,
    /// Operations in flight of each job.
    pub queue_depth: u16,
    /// Jobs, each with devices and a thread of its own.
    pub jobs: u16,
    /// Devices (connections) of each job, which take its operations in turn.
    pub connections: u16,
    /// When operations are due; absent, a new one starts for each that ends.
    pub pace: Option<Pace>,
    /// Bytes of the device that are used; all of it where absent.
    pub range: Option<Range<u64>>,
    /// Spread of random positions.
    pub distribution: Distribution,
    /// Of a hundred operations, those that read on in ascending order beside the others (a scan), over the
    /// whole range or, beside a hot set, over the rest of it.
    pub scan_percent: u8,
    /// When to stop.
    pub limit: Limit,
    /// Time before measuring begins.
    pub warm_up: Duration,
    /// Stamp what is written and check what is read.
    pub verify: bool,
    /// Force Unit Access on writes.
    pub fua: bool,
    /// Every operation repeats, given the same seed.
    pub seed: u64,
    /// Failed operations that are borne before a job gives up.
    pub max_errors: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            rw: Rw::RandRead,
            read_percent: 70,
            block_size: 4096,
            queue_depth: 32,
            jobs: 1,
            connections: 1,
            pace: None,
            range: None,
            distribution: Distribution::Uniform,
            scan_percent: 0,
            limit: Limit::Time(Duration::from_secs(10)),
            warm_up: Duration::ZERO,
            verify: false,
            fua: false,
            seed: 1,
            max_errors: 0,
        }
    }
}

/// Why a load cannot be put on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadError(pub String);

impl fmt::Display for WorkloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for WorkloadError {}

impl Workload {
    /// The part of the device that job number `job` uses, in units of the workload's block size.
    /// Jobs that write with stamps have disjoint parts; all others share the range.
    ///
    /// # Errors
    /// Where sizes, range or percentages do not fit the device, in the user's words.
    pub fn blocks_of(&self, job: u16, info: &DeviceInfo) -> Result<Range<u64>, WorkloadError> {
        let refuse = |text: String| Err(WorkloadError(text));
        let size = u64::from(self.block_size);
        if size == 0 || !self.block_size.is_multiple_of(info.block_size) {
            return refuse(format!(
                "block size {size} is not a multiple of the device's {} bytes",
                info.block_size
            ));
        }
        if self.block_size > info.max_io {
            return refuse(format!(
                "block size {size} is above the device's largest transfer of {} bytes",
                info.max_io
            ));
        }
        if self.queue_depth == 0 || self.jobs == 0 || job >= self.jobs || self.connections == 0 {
            return refuse("queue depth, jobs and connections are at least 1".into());
        }
        for (what, percent) in [("reads", self.read_percent), ("a scan", self.scan_percent)] {
            if percent > 100 {
                return refuse(format!("{percent} % of {what}; 100 is the most"));
            }
        }
        if self.scan_percent > 0 && !self.rw.is_random() {
            return refuse(format!(
                "a scan runs beside random operations, not beside {}",
                self.rw.name()
            ));
        }
        if self.pace.is_some_and(|pace| pace.rate < u32::from(self.jobs)) {
            return refuse(format!(
                "a rate is at least one operation a second of each of {} jobs",
                self.jobs
            ));
        }
        if let Distribution::Zipf(theta) = self.distribution
            && !(theta > 0.0 && theta <= 10.0)
        {
            return refuse(format!("Zipf exponent {theta}; it lies above 0 and at most at 10"));
        }
        let range = self.range.clone().unwrap_or(0..info.size);
        if range.end > info.size || range.start >= range.end || !range.start.is_multiple_of(size) {
            return refuse(format!(
                "range {}..{} is not inside the device's {} bytes, or does not begin at a multiple of the block size",
                range.start, range.end, info.size
            ));
        }
        let (first, all) = (range.start / size, (range.end - range.start) / size);
        let share = if self.verify { all / u64::from(self.jobs) } else { all };
        // In verify mode at most one operation is in flight on a block.
        if share < u64::from(self.queue_depth) * if self.verify { 2 } else { 1 } {
            return refuse(format!(
                "{all} blocks of {size} bytes are too few for {} jobs of queue depth {}",
                self.jobs, self.queue_depth
            ));
        }
        let first = if self.verify { first + share * u64::from(job) } else { first };
        Ok(first..first + share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> DeviceInfo {
        DeviceInfo {
            size: 1 << 20,
            block_size: 512,
            atomic_write: 512,
            volatile_write_cache: false,
            optimal_io: 4096,
            max_io: 1 << 17,
            deallocate: false,
            write_zeroes: false,
            identity: "test".into(),
        }
    }

    #[test]
    fn jobs_share_the_range_or_split_it_to_verify() {
        let plain = Workload { jobs: 4, queue_depth: 8, ..Workload::default() };
        assert_eq!(plain.blocks_of(3, &info()), Ok(0..256));
        let verify = Workload { verify: true, range: Some(4096..1 << 20), ..plain };
        assert_eq!(verify.blocks_of(0, &info()), Ok(1..64));
        assert_eq!(verify.blocks_of(3, &info()), Ok(190..253));
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        for (change, word) in [
            (Workload { block_size: 100, ..Workload::default() }, "multiple"),
            (Workload { block_size: 1 << 18, ..Workload::default() }, "largest"),
            (Workload { queue_depth: 0, ..Workload::default() }, "at least 1"),
            (Workload { queue_depth: 300, ..Workload::default() }, "too few"),
            (Workload { read_percent: 101, ..Workload::default() }, "100"),
            (Workload { scan_percent: 101, ..Workload::default() }, "a scan"),
            (Workload { scan_percent: 5, rw: Rw::Read, ..Workload::default() }, "beside read"),
            (Workload { connections: 0, ..Workload::default() }, "connections"),
            (Workload { jobs: 2, pace: Some(Pace::constant(1)), ..Workload::default() }, "rate"),
            (Workload { range: Some(0..2 << 20), ..Workload::default() }, "inside"),
            (Workload { range: Some(512..8192), ..Workload::default() }, "begin"),
            (
                Workload { distribution: Distribution::Zipf(f64::NAN), ..Workload::default() },
                "Zipf",
            ),
        ] {
            let text = change.blocks_of(0, &info()).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
        for wrong in ["90", "0/10", "90/100", "101/10", "a/b", "90/10/1"] {
            assert!(wrong.parse::<HotCold>().is_err(), "{wrong}");
        }
        assert_eq!("90/10".parse(), Ok(HotCold { operations: 90, blocks: 10 }));
        assert!("randrwx".parse::<Rw>().is_err());
        assert_eq!("randrw".parse(), Ok(Rw::RandRw));
    }
}
