//! Several jobs on threads of their own, and their results merged.

use core::sync::atomic::{AtomicBool, AtomicU64};

use crate::fan::Fan;
use crate::job::{Job, JobError, JobResult};
use crate::workload::Workload;
use forebay_driver::DriverContext;
use forebay_io::{BufPool, Device};
use forebay_reactor::{LoopTime, MonotonicClock, Pool, PoolConfig, RegionTable, WaitSet};
use std::sync::Arc;

/// Bytes of a job's buffer pool beyond its own buffers.
const POOL_SLACK: usize = 16 << 20;

/// What all jobs have done so far, for a display, and the way to stop them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Operations that ended well, warming up and reading back included.
    pub ops: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Operations that failed.
    pub errors: AtomicU64,
    /// Logical blocks that were wrong.
    pub mismatches: AtomicU64,
    /// Set it to let the jobs end early.
    pub stop: AtomicBool,
}

/// Runs the workload's jobs on the device that a URI names, each on a thread of its own and on
/// devices of its own.
///
/// # Errors
/// The first job's that failed to start.
pub fn measure(uri: &str, workload: &Workload, counters: &Counters) -> Result<JobResult, JobError> {
    if workload.connections > 1 && !uri.contains("nvmf+") && uri.contains("mem:") {
        return Err(JobError::Open(
            "connections of mem: would each have a memory of their own".into(),
        ));
    }
    // Every buffer of a job, and as much again where a device still holds one.
    let depth = usize::from(workload.queue_depth);
    let room = (workload.block_size as usize).next_multiple_of(4096) * depth * 2 + POOL_SLACK;
    run_jobs(workload, counters, |_| {
        let table = Arc::new(RegionTable::new());
        let pool = Pool::new(PoolConfig::bounded(room), Arc::clone(&table));
        let time = LoopTime::new(MonotonicClock.now());
        let wait = WaitSet::new().map_err(|error| error.to_string())?;
        let context = DriverContext::new(time.clone(), wait, table);
        let open = || forebay_driver::open(uri, &context).map_err(|error| error.to_string());
        let others: Result<Vec<_>, String> = (1..workload.connections).map(|_| open()).collect();
        Ok((Fan::new(open()?, others?), pool, time))
    })
}

/// Runs the workload's jobs, each on a thread that opens a device and a pool of its own by `open`
/// (called with the job's number), and merges what they did. The loop time that comes with a
/// device is set for it in each loop. `elapsed` is the longest.
///
/// # Errors
/// The first job's that failed to start.
pub fn run_jobs<D, P>(
    workload: &Workload,
    counters: &Counters,
    open: impl Fn(u16) -> Result<(D, P, LoopTime), String> + Sync,
) -> Result<JobResult, JobError>
where
    D: Device,
    P: BufPool<Buf = D::Buf>,
{
    let run_one = &|number: u16| {
        let (device, pool, time) = open(number).map_err(JobError::Open)?;
        let clock = || {
            let now = MonotonicClock.now();
            time.set(now);
            now
        };
        Ok(Job::new(number, workload, device, pool)?.run(clock, counters))
    };
    let results: Vec<Result<JobResult, JobError>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..workload.jobs).map(|number| scope.spawn(move || run_one(number))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or(Err(JobError::Thread))).collect()
    });
    let mut merged: Option<JobResult> = None;
    for result in results {
        let result = result?;
        match &mut merged {
            None => merged = Some(result),
            Some(all) => all.merge(&result),
        }
    }
    merged.ok_or(JobError::Thread)
}

impl JobResult {
    /// Adds another job's result.
    pub fn merge(&mut self, other: &Self) {
        self.reads.merge(&other.reads);
        self.writes.merge(&other.writes);
        self.scans.merge(&other.scans);
        self.all_ops += other.all_ops;
        self.longest_pause = self.longest_pause.max(other.longest_pause);
        self.elapsed = self.elapsed.max(other.elapsed);
        self.errors += other.errors;
        self.first_error = self.first_error.or(other.first_error);
        self.verified += other.verified;
        self.mismatches += other.mismatches;
        self.first_mismatch = self.first_mismatch.or(other.first_mismatch);
    }
}
