//! Time after a crash: a cache file as a crash leaves it (made by the format's own code, holes in
//! place of data that is all zeroes), then the real daemon on it, the page cache dropped before.

mod host;
mod make;

use crate::Result;
use crate::node::{Layout, Node, empty_dir, program};
use host::Host;
use make::{Made, Shape, format, make};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bytes of a cached block.
const BLOCK: u64 = 4096;
/// What the design's targets are for.
const TARGET_BYTES: u64 = 1 << 40;
/// The targets in seconds: accepts writes, reads right, fully warm.
const TARGETS: [(&str, f64); 3] =
    [("accepts writes", 1.0), ("reads right", 2.0), ("fully warm", 15.0)];
/// Blocks of a segment that hold data, at the least, for the size of the file.
const SEGMENT_BLOCKS: u64 = 960;
/// Bytes of a segment.
const SEGMENT: u64 = 4 << 20;
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Time after a crash until the cache serves, reads right and is warm
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An empty directory on the device for the cache: needs about 25 MiB for each GiB of it
    #[arg(long)]
    dir: PathBuf,
    /// Blocks of 4 KiB in the cache
    #[arg(long, default_value_t = 16 << 20)]
    blocks: u64,
    /// Percent of them that are dirty
    #[arg(long, default_value_t = 10)]
    dirty: u64,
    /// Percent of them that hosts wrote, the dirty ones included; the others were read
    #[arg(long, default_value_t = 30)]
    written: u64,
    /// Starts, each after a SIGKILL
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// The daemon [default: `forebay` beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
    /// TCP port on 127.0.0.1
    #[arg(long, default_value_t = 14421)]
    port: u16,
}

/// What one start took, from its beginning, and what was there then.
struct Start {
    seconds: [f64; 3],
    /// Seconds of a processor that the daemon had until it was warm.
    cpu: f64,
    blocks: u64,
    dirty: u64,
    memory: u64,
    peak: u64,
    checked: usize,
}

/// Prints the times and what they mean for a cache of 1 TiB; false where a target is missed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.dirty > args.written || args.written > 100 || args.blocks < SEGMENT_BLOCKS {
        return Err("--dirty is at most --written, that at most 100, --blocks at least 960".into());
    }
    let program = program(args.program.as_deref())?;
    empty_dir(&args.dir)?;
    // Room for trims, for the segments that are open, and for what is written afterwards.
    let size = (args.blocks / SEGMENT_BLOCKS * 102 / 100 + 64) * SEGMENT;
    let dir = args.dir.display();
    let layout = Layout {
        dir: &args.dir,
        cache: format!("uring:{dir}/cache?size={size}"),
        backing: format!(
            "uring:{dir}/backing?size={}",
            (args.blocks * BLOCK).next_power_of_two() * 2
        ),
        mode: "write-back",
        core: 0,
        poll: "busy",
        port: args.port,
        memory_tier: 0,
        ordered_journal: None,
    };
    // The node itself makes the volume's entry.
    let info = Host::connect(&layout.cache)?.info().clone();
    format(&args.dir.join("cache"), &info)?;
    drop(layout.start_formatted(&program)?);
    let shape = Shape { blocks: args.blocks, dirty: args.dirty, written: args.written };
    let began = Instant::now();
    let made = make(&args.dir.join("cache"), &args.dir.join("backing"), &shape)?;
    eprintln!(
        "made in {:.0} s: {} blocks, {} of them dirty, {} of content of their own, in {} segments",
        began.elapsed().as_secs_f64(),
        made.blocks,
        made.dirty,
        made.samples.len(),
        made.segments
    );
    let mut starts = Vec::new();
    for run in 0..args.runs {
        let start = start(&layout, &program, &made, run)?;
        let [writes, reads, warm] = start.seconds;
        println!(
            "start {}: accepts writes {writes:.3} s, reads right {reads:.3} s, fully warm {warm:.3} s; {} blocks in the index, {} dirty, {} samples read right; {} bytes of memory, {} at most; {:.3} s of a processor until warm",
            run + 1,
            start.blocks,
            start.dirty,
            start.checked,
            start.memory,
            start.peak,
            start.cpu
        );
        starts.push(start);
    }
    fs::remove_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    Ok(verdict(&starts, &made))
}

/// The medians, taken to 1 TiB in proportion to the blocks.
fn verdict(starts: &[Start], made: &Made) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let factor = TARGET_BYTES as f64 / (made.blocks * BLOCK) as f64;
    let mut good = true;
    for (at, (what, target)) in TARGETS.iter().enumerate() {
        let mut all: Vec<f64> =
            starts.iter().filter_map(|start| start.seconds.get(at).copied()).collect();
        all.sort_by(f64::total_cmp);
        let median = all.get(all.len() / 2).copied().unwrap_or(f64::INFINITY);
        let there = median * factor;
        good &= there <= *target;
        println!(
            "{what}: median {median:.3} s; for 1 TiB, in proportion to the blocks, {there:.1} s; target {target} s"
        );
    }
    good
}

/// Starts the daemon on a device that is not in the page cache, and takes the times.
fn start(layout: &Layout<'_>, program: &std::path::Path, made: &Made, run: u32) -> Result<Start> {
    drop_caches()?;
    let began = Instant::now();
    let mut node = layout.spawn(program)?;
    // It polls only for its own operations, and not while the cache gets warm.
    let uri = format!("{}&keep_alive=0s", layout.uri());
    let mut host = connect(&mut node, &uri)?;
    let seconds = || began.elapsed().as_secs_f64();
    // Of the last block nothing is sampled: it is the highest one, at the end of the volume.
    let unused = made.samples.last().map_or(0, |(block, ..)| block + 1);
    let first = [u8::try_from(run + 1).unwrap_or(1); 4096];
    host.write(unused, &first)?;
    let writes = seconds();
    let dirty = made.samples.iter().rev().find(|(_, _, dirty)| *dirty);
    let clean = made.samples.iter().rev().find(|(_, _, dirty)| !*dirty);
    for sample in [dirty, clean].into_iter().flatten() {
        check(&mut host, sample)?;
    }
    let reads = seconds();
    let warm = loop {
        let blocks = node.volume().map_or(0, |volume| volume.cached_bytes / BLOCK);
        if blocks >= made.blocks {
            break seconds();
        }
        node.still_runs()?;
        if began.elapsed() > PATIENCE {
            return Err(format!("{blocks} of {} blocks came back", made.blocks));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let cpu = node.cpu_seconds()?;
    let volume = node.volume()?;
    let (memory, peak) = (node.memory()?, node.memory_peak()?);
    for sample in &made.samples {
        check(&mut host, sample)?;
    }
    if host.read(unused)? != first {
        return Err("the block that was written reads as something else".into());
    }
    let (blocks, dirty) = (volume.cached_bytes / BLOCK, volume.dirty_bytes / BLOCK);
    node.crash()?;
    let seconds = [writes, reads, warm];
    Ok(Start { seconds, cpu, blocks, dirty, memory, peak, checked: made.samples.len() })
}

fn check(host: &mut Host, (block, content, dirty): &(u64, Vec<u8>, bool)) -> Result<()> {
    if host.read(*block)? == *content {
        return Ok(());
    }
    let what = if *dirty { "dirty" } else { "clean" };
    Err(format!("block {block}, {what}, is not what was written"))
}

/// Connects as soon as the node listens and shows the volume.
fn connect(node: &mut Node, uri: &str) -> Result<Host> {
    let end = Instant::now() + PATIENCE;
    loop {
        match Host::connect(uri) {
            Ok(host) => return Ok(host),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => node.still_runs()?,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Empties the page cache, so that all comes from the device.
fn drop_caches() -> Result<()> {
    let synced = std::process::Command::new("sync").status().map_err(|error| error.to_string())?;
    let path = "/proc/sys/vm/drop_caches";
    if !synced.success() {
        return Err("sync failed".into());
    }
    fs::write(path, "3").map_err(|error| format!("{path}: {error}; run this as root"))
}
