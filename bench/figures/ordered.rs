//! What `write-back-ordered` costs against `write-back`, without and with an ordered journal: the same
//! random overwrites on a slow backing device, in alternating runs.

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
    /// The ordered journal in MiB, beside the cache
    #[arg(long, default_value_t = 64)]
    journal: u64,
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

/// What is compared: its name, the mode, and whether it has an ordered journal.
const ARMS: [(&str, &str, bool); 3] = [
    ("write-back", "write-back", false),
    ("write-back-ordered", "write-back-ordered", false),
    ("the same with a journal", "write-back-ordered", true),
];

/// One run: writes per second, 99th percentile in microseconds, bytes of the cache device, the journal and
/// the backing device for each host byte, and seconds to drain what was left.
fn one(args: &Args, mode: &'static str, journaled: bool) -> Result<[f64; 6]> {
    let program = program(args.program.as_deref())?;
    empty_dir(&args.dir)?;
    let path = args.dir.join("journal");
    let made = |error| format!("{}: {error}", path.display());
    if journaled {
        fs::File::create(&path).and_then(|file| file.set_len(args.journal << 20)).map_err(made)?;
    }
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
        ordered_journal: journaled.then(|| format!("uring:{}", path.display())),
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
    let volume = node.volume()?;
    let journal = volume.ordered_journal.map_or(0, |journal| journal.device.write.bytes);
    if journaled && journal == 0 {
        return Err("nothing was written to the ordered journal".to_owned());
    }
    let backing = volume.backing.write.bytes;
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
    Ok([rate, p99, per(cache), per(journal), per(backing), drained])
}

/// Prints each run and the means.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut sums = [[0.0; 6]; ARMS.len()];
    for run in 0..args.runs {
        for ((name, mode, journaled), sum) in ARMS.into_iter().zip(&mut sums) {
            let figures = one(args, mode, journaled)?;
            print(&format!("run {run} {name}"), &figures);
            sum.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure);
        }
    }
    for ((name, ..), sum) in ARMS.into_iter().zip(&sums) {
        print(&format!("mean {name}"), &sum.map(|sum| sum / f64::from(args.runs)));
    }
    for ((name, ..), sum) in ARMS.into_iter().zip(&sums).skip(1) {
        println!("rate of {name} against write-back: {:.3}", sum[0] / sums[0][0]);
    }
    Ok(true)
}

fn print(what: &str, [rate, p99, cache, journal, backing, drained]: &[f64; 6]) {
    println!(
        "{what:<30} {rate:>9.0} writes/s, 99 % within {p99:>8.0} µs, {cache:.3} device, {journal:.3} journal and \
         {backing:.3} backing bytes for each host byte (drained in {drained:.1} s)"
    );
}
