use super::*;
use crate::report::Report;
use crate::workload::Distribution;
use crate::{Arrivals, Fan, HotCold, Pace};
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
    /// From and up to this poll it answers nothing.
    stall: Range<u64>,
    looks: u64,
    /// Offsets of the reads, in order.
    reads: std::rc::Rc<std::cell::RefCell<Vec<u64>>>,
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
        Self {
            info,
            bytes,
            queue,
            depth: 5,
            polls: 0,
            writes: 0,
            lose_every: 0,
            fail_every: 0,
            stall: 0..0,
            looks: 0,
            reads: std::rc::Rc::default(),
        }
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
        if op.kind == OpKind::Read {
            self.reads.borrow_mut().push(op.offset);
        }
        self.queue.push(op);
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion<HeapBuf>>) -> usize {
        self.looks += 1;
        if self.queue.is_empty() || self.stall.contains(&self.looks) {
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
    run_in_steps(workload, device, 1000)
}

/// The clock advances by `step` nanoseconds for each look at it, which is one for each poll.
fn run_in_steps<D: Device<Buf = HeapBuf>>(workload: &Workload, device: D, step: u64) -> JobResult {
    let time = Cell::new(0);
    let clock = || {
        time.set(time.get() + step);
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

fn open_loop(rate: u32) -> Workload {
    let limit = Limit::Time(Duration::from_secs(1));
    Workload { limit, queue_depth: 8, pace: Some(Pace::constant(rate)), ..Workload::default() }
}

/// Milliseconds that so many reads are not above.
fn ms(result: &JobResult, quantile: f64) -> u64 {
    result.reads.latency.value_at_quantile(quantile) / 1_000_000
}

#[test]
fn a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() {
    // For 100 ms of a second nothing is answered; each poll takes a microsecond.
    let stalls = || Memory { stall: 500_000..600_000, ..Memory::new(1 << 20) };
    let open = run(&open_loop(10_000), stalls());
    assert_eq!((open.reads.ops, open.errors), (10_000, 0));
    // A tenth of all operations were due in the stall, and waited for its end: 0 to 100 ms.
    assert_eq!(ms(&open, 0.5), 0);
    assert!((85..=92).contains(&ms(&open, 0.99)), "{}", ms(&open, 0.99));
    assert!((45..=55).contains(&ms(&open, 0.95)), "{}", ms(&open, 0.95));
    let closed = run(&Workload { pace: None, ..open_loop(1) }, stalls());
    assert!(closed.reads.ops > 100_000);
    assert_eq!((ms(&closed, 0.999), ms(&closed, 1.0)), (0, 100), "eight operations were in flight");
}

#[test]
fn what_was_due_before_the_end_is_measured_even_if_it_begins_after_it() {
    let stalls = Memory { stall: 900_000..1_400_000, ..Memory::new(1 << 20) };
    let result = run(&open_loop(10_000), stalls);
    assert_eq!((result.reads.ops, result.errors), (10_000, 0));
    assert!(ms(&result, 1.0) >= 499 && ms(&result, 0.95) >= 440);
    assert!(result.elapsed >= Duration::from_millis(1400), "{:?}", result.elapsed);
}

#[test]
fn what_never_begins_is_a_failure() {
    let dead = Memory { stall: 0..u64::MAX, ..Memory::new(1 << 20) };
    let result = run_in_steps(&open_loop(100), dead, 1_000_000);
    assert_eq!((result.reads.ops, result.errors), (0, 100));
    assert_eq!(result.first_error, Some(DeviceError::Timeout));
}

#[test]
fn an_open_loop_warms_up_verifies_and_counts() {
    let workload = Workload {
        rw: Rw::RandRw,
        verify: true,
        warm_up: Duration::from_millis(500),
        pace: Some(Pace { rate: 20_000, arrivals: Arrivals::Poisson }),
        ..open_loop(1)
    };
    let result = run(&workload, Memory::new(1 << 20));
    let ops = result.reads.ops + result.writes.ops;
    assert!((19_400..20_600).contains(&ops), "{ops}");
    assert!((29_200..30_800).contains(&result.all_ops), "{}", result.all_ops);
    assert_eq!((result.errors, result.mismatches), (0, 0));
    let counted = Workload { limit: Limit::Ops(77), ..open_loop(1000) };
    assert_eq!(run(&counted, Memory::new(1 << 20)).reads.ops, 77);
    let table = Report::new("memory", &workload, &result).to_table();
    assert!(table.contains("20000 operations a second due, poisson"), "{table}");
}

#[test]
fn the_loads_own_pauses_are_told() {
    let steady = run(&open_loop(1000), Memory::new(1 << 20));
    assert_eq!(steady.longest_pause, Duration::from_micros(1));
    let looks = Cell::new(0);
    let clock = || {
        looks.set(looks.get() + 1);
        Instant(looks.get() * 1000 + if looks.get() > 500_000 { 70_000_000 } else { 0 })
    };
    let job = Job::new(0, &open_loop(1000), Memory::new(1 << 20), HeapPool).unwrap();
    let paused = job.run(clock, &Counters::default());
    assert_eq!(paused.longest_pause, Duration::from_micros(70_001));
    assert!(ms(&paused, 0.99) >= 50, "seventy of a thousand were due meanwhile");
}

#[test]
fn a_scan_runs_beside_a_hot_set_through_the_rest() {
    let workload = Workload {
        limit: Limit::Ops(2000),
        distribution: Distribution::HotCold(HotCold { operations: 100, blocks: 10 }),
        scan_percent: 30,
        ..Workload::default()
    };
    let device = Memory::new(1 << 20);
    let reads = std::rc::Rc::clone(&device.reads);
    let result = run(&workload, device);
    assert_eq!(result.reads.ops + result.scans.ops, 2000);
    assert!((540..660).contains(&result.scans.ops), "{}", result.scans.ops);
    let cold: Vec<u64> =
        reads.borrow().iter().map(|offset| offset / 4096).filter(|block| *block >= 25).collect();
    assert_eq!(cold.len() as u64, result.scans.ops);
    assert!(cold.iter().zip((25..256).cycle()).all(|(read, next)| *read == next), "{cold:?}");
    assert!(Report::new("memory", &workload, &result).to_table().contains("\nscan "));
}

#[test]
fn connections_take_turns_and_bound_what_is_in_flight() {
    let (first, second) = (Memory::new(1 << 20), Memory::new(1 << 20));
    let counts = [&first.reads, &second.reads].map(std::rc::Rc::clone);
    let workload = Workload { limit: Limit::Ops(1000), queue_depth: 64, ..Workload::default() };
    let result = run_in_steps(&workload, Fan::new(first, vec![second]), 1000);
    assert_eq!((result.reads.ops, result.errors), (1000, 0));
    assert!(counts.iter().all(|reads| (400..=600).contains(&reads.borrow().len())));
    let mut fan = Fan::new(Memory::new(4096), vec![Memory::new(4096), Memory::new(4096)]);
    let read = |token| Op::read(token, 0, 512, HeapPool.alloc(512).unwrap());
    for token in 0..15 {
        assert!(fan.submit(read(token)).is_ok(), "{token}");
    }
    assert_eq!((fan.submit(read(15)).unwrap_err().token, fan.in_flight()), (15, 15));
    let shared = Workload { connections: 2, ..Workload::default() };
    let error = crate::measure("mem:?size=8M", &shared, &Counters::default()).unwrap_err();
    assert!(error.to_string().contains("mem:"), "{error}");
}

#[test]
fn what_is_in_flight_at_the_end_of_a_verified_load_is_measured() {
    let workload = Workload { verify: true, pace: None, ..open_loop(1) };
    let result = run(&workload, Memory { stall: 900_000..1_200_000, ..Memory::new(1 << 20) });
    assert_eq!(ms(&result, 1.0), 300, "it began before the end and ended while reading back");
    assert!(result.verified >= 256 && result.mismatches == 0);
}
