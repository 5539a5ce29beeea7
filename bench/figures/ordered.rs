//! What `write-back-ordered` costs against `write-back`: the same random overwrites on a slow backing
//! device, in alternating runs of both modes.

use crate::Result;
use crate::node::{Layout, empty_dir, load, program};
use forebay_bench::{Distribution, Limit, Rw, Workload};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The cost of write-back-ordered against write-back
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An empty directory on the device for the cache
    #[arg(long)]
    dir: PathBuf,
    /// The cache in MiB; the volume has half of it
    #[arg(long, default_value_t = 512)]
    cache: u64,
    /// Microseconds of a write of the backing device
    #[arg(long, default_value_t = 2000)]
    write_us: u64,
    /// Commands in flight
    #[arg(long, default_value_t = 32)]
    queue_depth: u16,
    /// Seconds of a run
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Runs of each mode
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// The daemon [default: `forebay` beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
    /// TCP port on 127.0.0.1
    #[arg(long, default_value_t = 14425)]
    port: u16,
}

/// One run: writes per second, 99th percentile in microseconds, device and backing bytes for each host
/// byte, and seconds to drain what was left.
fn one(args: &Args, mode: &'static str) -> Result<[f64; 5]> {
    let program = program(args.program.as_deref())?;
    empty_dir(&args.dir)?;
    let layout = Layout {
        dir: &args.dir,
        cache: format!("uring:{}/cache?size={}M", args.dir.display(), args.cache),
        backing: format!(
            "slow:mem:?size={}M&read_us={}&write_us={}",
            args.cache / 2,
            args.write_us,
            args.write_us
        ),
        mode,
        core: 0,
        poll: "adaptive",
        port: args.port,
        memory_tier: 0,
    };
    let node = layout.start(&program)?;
    let workload = Workload {
        rw: Rw::RandWrite,
        queue_depth: args.queue_depth,
        distribution: Distribution::Zipf(1.1),
        limit: Limit::Time(Duration::from_secs(args.seconds)),
        ..Workload::default()
    };
    let result = load(&layout.uri(), &workload)?;
    let began = Instant::now();
    node.drain()?;
    let drained = began.elapsed().as_secs_f64();
    let stat = node.stat().ok_or("the daemon does not answer")?;
    let cache = stat.caches.first().ok_or("the daemon has no cache")?.write.bytes;
    let backing = node.volume()?.backing.write.bytes;
    drop(node);
    fs::remove_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let bytes = result.writes.bytes;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let (rate, per) = ((bytes / 4096) as f64 / result.elapsed.as_secs_f64(), |count: u64| {
        count as f64 / bytes as f64
    });
    let p99 = result.writes.latency.value_at_quantile(0.99);
    #[expect(clippy::cast_precision_loss, reason = "microseconds far below 2^52")]
    let p99 = p99 as f64 / 1000.0;
    Ok([rate, p99, per(cache), per(backing), drained])
}

/// Prints each run and the means of both modes.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let modes = ["write-back", "write-back-ordered"];
    let mut sums = [[0.0; 5]; 2];
    for run in 0..args.runs {
        for (mode, sum) in modes.into_iter().zip(&mut sums) {
            let figures = one(args, mode)?;
            print(&format!("run {run} {mode}"), &figures);
            sum.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure);
        }
    }
    for (mode, sum) in modes.into_iter().zip(&sums) {
        print(&format!("mean {mode}"), &sum.map(|sum| sum / f64::from(args.runs)));
    }
    println!("rate of write-back-ordered against write-back: {:.3}", sums[1][0] / sums[0][0]);
    Ok(true)
}

fn print(what: &str, [rate, p99, cache, backing, drained]: &[f64; 5]) {
    println!(
        "{what:<28} {rate:>9.0} writes/s, 99 % within {p99:>8.0} µs, {cache:.3} device and {backing:.3} backing \
         bytes for each host byte (drained in {drained:.1} s)"
    );
}
