use super::*;
use crate::report::Report;
use crate::workload::Distribution;
use forebay_io::{DeviceInfo, HeapBuf, HeapPool, OpKind};
use forebay_reactor::LoopTime;
use std::cell::Cell;

/// Memory that can be told to misbehave, completing in a scrambled order.
struct Memory {
    info: DeviceInfo,
    bytes: Vec<u8>,
    queue: Vec<Op<HeapBuf>>,
    depth: usize,
    polls: usize,
    writes: u64,
    /// Every n-th write says it was done and was not.
    lose_every: u64,
    /// Every n-th write fails, having taken effect.
    fail_every: u64,
}

impl Memory {
    fn new(size: usize) -> Self {
        let info = DeviceInfo {
            size: size as u64,
            block_size: 512,
            atomic_write: 512,
            volatile_write_cache: false,
            optimal_io: 4096,
            max_io: 1 << 20,
            deallocate: false,
            write_zeroes: false,
            identity: "memory".into(),
        };
        let (bytes, queue) = (vec![0; size], Vec::new());
        Self { info, bytes, queue, depth: 5, polls: 0, writes: 0, lose_every: 0, fail_every: 0 }
    }
}

impl Device for Memory {
    type Buf = HeapBuf;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&mut self, op: Op<HeapBuf>) -> Result<(), Op<HeapBuf>> {
        if self.queue.len() >= self.depth {
            return Err(op);
        }
        self.queue.push(op);
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion<HeapBuf>>) -> usize {
        if self.queue.is_empty() {
            return 0;
        }
        self.polls += 7;
        let mut op = self.queue.swap_remove(self.polls % self.queue.len());
        let place =
            usize::try_from(op.offset).unwrap()..usize::try_from(op.offset + op.len).unwrap();
        let mut result = Ok(());
        let buf = op.buf.as_mut().unwrap();
        if op.kind == OpKind::Read {
            buf.as_mut_slice().unwrap().copy_from_slice(&self.bytes[place]);
        } else {
            self.writes += 1;
            if self.lose_every == 0 || !self.writes.is_multiple_of(self.lose_every) {
                self.bytes[place].copy_from_slice(buf.as_slice());
            }
            if self.fail_every > 0 && self.writes.is_multiple_of(self.fail_every) {
                result = Err(DeviceError::Io(5));
            }
        }
        done.push(Completion { token: op.token, result, buf: op.buf });
        1
    }

    fn in_flight(&self) -> usize {
        self.queue.len()
    }
}

fn run(workload: &Workload, device: Memory) -> JobResult {
    let time = Cell::new(0);
    let clock = || {
        time.set(time.get() + 1000);
        Instant(time.get())
    };
    Job::new(0, workload, device, HeapPool).unwrap().run(clock, &Counters::default())
}

#[test]
fn it_counts_operations_and_latencies() {
    let workload = Workload { limit: Limit::Ops(1000), queue_depth: 8, ..Workload::default() };
    let result = run(&workload, Memory::new(1 << 20));
    assert_eq!((result.reads.ops, result.writes.ops, result.errors), (1000, 0, 0));
    assert_eq!(result.reads.bytes, 4_096_000);
    let report = Report::new("memory", &workload, &result);
    let read = report.read.clone().unwrap();
    assert!(report.write.is_none() && report.is_clean());
    // The clock advances by a microsecond for each look at it.
    assert!(read.latency_us.p50 >= 1.0 && read.latency_us.max < 100.0);
    assert!(
        read.latency_us.p50 <= read.latency_us.p99 && read.latency_us.p99 <= read.latency_us.max
    );
    let want = 1000.0 / report.elapsed_s;
    assert!((read.iops - want).abs() < 1.0);
    let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(
        (json["schema_version"].as_u64(), json["read"]["ops"].as_u64()),
        (Some(1), Some(1000))
    );
    assert!(report.to_table().contains("p99.99"));
}

#[test]
fn time_limits_and_warming_up() {
    let workload = Workload {
        limit: Limit::Time(Duration::from_millis(10)),
        warm_up: Duration::from_millis(5),
        rw: Rw::RandRw,
        read_percent: 25,
        ..Workload::default()
    };
    let result = run(&workload, Memory::new(1 << 20));
    let ops = result.reads.ops + result.writes.ops;
    assert!((9_000..=10_050).contains(&ops), "{ops}");
    assert!((20..30).contains(&(result.reads.ops * 100 / ops)));
    assert!(result.elapsed >= Duration::from_micros(9_900), "{:?}", result.elapsed);
}

fn verified(rw: Rw) -> Workload {
    let distribution = Distribution::Zipf(0.9);
    let limit = Limit::Ops(3000);
    Workload {
        rw,
        limit,
        verify: true,
        queue_depth: 16,
        distribution,
        max_errors: 10_000,
        ..Workload::default()
    }
}

#[test]
fn an_honest_device_verifies() {
    for rw in [Rw::RandRw, Rw::RandWrite, Rw::Write] {
        let result = run(&verified(rw), Memory::new(1 << 20));
        assert_eq!((result.mismatches, result.errors), (0, 0), "{rw:?}");
        assert!(result.verified >= 2048, "{rw:?}: {}", result.verified);
    }
    let small = Workload { block_size: 512, ..verified(Rw::RandRw) };
    assert_eq!(run(&small, Memory::new(1 << 18)).mismatches, 0);
}

#[test]
fn failed_writes_may_have_taken_effect() {
    let result = run(&verified(Rw::RandRw), Memory { fail_every: 5, ..Memory::new(1 << 20) });
    assert_eq!(result.mismatches, 0, "{:?}", result.first_mismatch);
    assert!(result.errors > 100);
    assert_eq!(result.first_error, Some(DeviceError::Io(5)));
}

#[test]
fn a_device_that_loses_writes_is_caught() {
    let result = run(&verified(Rw::RandWrite), Memory { lose_every: 500, ..Memory::new(1 << 20) });
    assert!(result.mismatches > 0 && result.first_mismatch.is_some());
    let report = Report::new("memory", &verified(Rw::RandWrite), &result);
    assert!(
        !report.is_clean() && report.to_table().contains("mismatches; the first: logical block")
    );
}

#[test]
fn too_many_errors_end_the_job() {
    let workload = Workload { max_errors: 3, ..verified(Rw::RandWrite) };
    let result = run(&workload, Memory { fail_every: 1, ..Memory::new(1 << 20) });
    assert!((4..40).contains(&result.errors), "{}", result.errors);
}

#[test]
fn jobs_on_threads_are_merged() {
    let workload = Workload { jobs: 3, limit: Limit::Ops(500), ..Workload::default() };
    let counters = Counters::default();
    let open = |_| Ok((Memory::new(1 << 20), HeapPool, LoopTime::default()));
    let result = crate::run_jobs(&workload, &counters, open).unwrap();
    assert_eq!(result.reads.ops, 1500);
    assert_eq!(result.reads.latency.len(), 1500);
    assert_eq!(counters.ops.load(Ordering::Relaxed), 1500);
    let refuse = |_| Err::<(Memory, HeapPool, LoopTime), _>("no such device".to_string());
    let error = crate::run_jobs(&workload, &counters, refuse).unwrap_err();
    assert_eq!(error.to_string(), "no such device");
}

#[test]
fn a_device_is_opened_by_its_uri() {
    let workload = Workload {
        limit: Limit::Ops(4000),
        jobs: 2,
        verify: true,
        rw: Rw::RandRw,
        ..Workload::default()
    };
    let counters = Counters::default();
    let result = crate::measure("mem:?size=8M", &workload, &counters).unwrap();
    assert_eq!((result.errors, result.mismatches), (0, 0));
    assert!(result.verified >= 2048 && result.reads.ops + result.writes.ops == 8000);
    let error = crate::measure("memory:", &workload, &counters).unwrap_err().to_string();
    assert!(error.contains("memory:"), "{error}");
}
