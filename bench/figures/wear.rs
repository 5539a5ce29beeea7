//! Bytes written to the cache device for each byte that the host writes: random overwrites over
//! whole turnovers of the log, headers, footers and reclaim's own copies included.

use crate::Result;
use crate::node::{Layout, empty_dir, load, program};
use forebay_bench::{Limit, Rw, Workload};
use std::fs;
use std::path::PathBuf;

/// The most that the design allows.
const LIMIT: f64 = 1.15;
/// Turnovers of the cache.
const TURNOVERS: u64 = 2;

/// Device bytes for each host byte under random overwrites
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An empty directory on the device for the cache
    #[arg(long)]
    dir: PathBuf,
    /// The cache in MiB; the working set is half of it
    #[arg(long, default_value_t = 4096)]
    cache: u64,
    /// Commands in flight
    #[arg(long, default_value_t = 32)]
    queue_depth: u16,
    /// The daemon [default: `forebay` beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
    /// TCP port on 127.0.0.1
    #[arg(long, default_value_t = 14421)]
    port: u16,
}

/// Prints the ratio; false where it is above the design's limit.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let program = program(args.program.as_deref())?;
    empty_dir(&args.dir)?;
    let layout = Layout {
        dir: &args.dir,
        cache: format!("uring:{}/cache?size={}M", args.dir.display(), args.cache),
        // In memory, so that all that the kernel counts went to the cache device.
        backing: format!("mem:?size={}M", args.cache / 2),
        mode: "write-back",
        core: 0,
        poll: "busy",
        port: args.port,
        memory_tier: 0,
        ordered_journal: None,
    };
    let node = layout.start(&program)?;
    let ops = (args.cache << 20) * TURNOVERS / 4096;
    let workload = Workload {
        rw: Rw::RandWrite,
        queue_depth: args.queue_depth,
        limit: Limit::Ops(ops),
        ..Workload::default()
    };
    let counted = |what: &str| -> Result<(u64, u64)> {
        let stat = node.stat().ok_or("the daemon does not answer")?;
        let cache = stat.caches.first().ok_or("the daemon has no cache")?.write.bytes;
        let kernel = node.storage_writes()?;
        eprintln!("{what}: {cache} bytes written by the daemon's count, {kernel} by the kernel's");
        Ok((cache, kernel))
    };
    let before = counted("before")?;
    let result = load(&layout.uri(), &workload)?;
    let after = counted("after")?;
    let volume = node.volume()?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let ratio = |bytes: u64| bytes as f64 / result.writes.bytes as f64;
    let (own, kernel) = (ratio(after.0 - before.0), ratio(after.1 - before.1));
    println!(
        "{} bytes of 4 KiB random overwrites at queue depth {} over {TURNOVERS} turnovers of {} MiB, {} bytes destaged meanwhile",
        result.writes.bytes, args.queue_depth, args.cache, volume.destaged_bytes
    );
    println!(
        "device bytes for each host byte: {own:.3} by the daemon's count, {kernel:.3} by the kernel's; at most {LIMIT}"
    );
    drop(node);
    fs::remove_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    Ok(own.max(kernel) <= LIMIT)
}
