//! DRAM for each cached block: two daemons with full caches of different size, every block of 4 KiB
//! on its own in the index. The slope leaves out what a daemon needs in any case.

use crate::Result;
use crate::node::{Layout, Node, empty_dir, load, program};
use forebay_bench::{Distribution, Limit, Rw, Workload};
use forebay_io::Duration;
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of a cached block.
const BLOCK: u64 = 4096;
/// One round of load between two looks at how full the cache is.
const ROUND: Duration = Duration::from_secs(5);
/// Rounds without more blocks than before after which a cache counts as full.
const STILL: u32 = 2;
/// Rounds of writes once it is full.
const ROUNDS: u32 = 4;
/// The most that the design allows, bytes.
const LIMIT: f64 = 12.0;

/// DRAM for each cached 4 KiB block
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An empty directory on the device for the caches: needs the larger one's size
    #[arg(long)]
    dir: PathBuf,
    /// The smaller cache in GiB
    #[arg(long, default_value_t = 4)]
    small: u64,
    /// The larger cache in GiB
    #[arg(long, default_value_t = 24)]
    large: u64,
    /// The daemon [default: `forebay` beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
    /// TCP port on 127.0.0.1
    #[arg(long, default_value_t = 14421)]
    port: u16,
}

/// A full cache.
struct Full {
    blocks: u64,
    bytes: u64,
}

/// Prints the slope; false where it is above the design's limit.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.small >= args.large {
        return Err("--small is below --large".into());
    }
    let program = program(args.program.as_deref())?;
    let small = fill(args, &program, args.small)?;
    let large = fill(args, &program, args.large)?;
    if large.blocks <= small.blocks {
        return Err("the larger cache holds no more blocks than the smaller one".into());
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let slope = (large.bytes as f64 - small.bytes as f64) / (large.blocks - small.blocks) as f64;
    println!(
        "DRAM for each cached 4 KiB block (RSS + hugetlb, slope over {} blocks): {slope:.2} bytes; at most {LIMIT}",
        large.blocks - small.blocks
    );
    Ok(slope <= LIMIT)
}

/// Reads and overwrites at random until the cache holds no more than before.
fn fill(args: &Args, program: &Path, gib: u64) -> Result<Full> {
    empty_dir(&args.dir)?;
    let layout = Layout {
        dir: &args.dir,
        cache: format!("uring:{}/cache?size={gib}G", args.dir.display()),
        // A hole of twice the cache: what does not fit is always there to come in.
        backing: format!("uring:{}/backing?size={}G", args.dir.display(), 2 * gib),
        mode: "write-back",
        core: 0,
        poll: "busy",
        port: args.port,
        memory_tier: 0,
        ordered_journal: None,
    };
    let node = layout.start(program)?;
    let empty = node.memory()?;
    // Sixteen blocks at once fill it sooner; each has an entry of its own all the same.
    let mut workload = Workload {
        rw: Rw::RandRead,
        block_size: 16 * 4096,
        queue_depth: 32,
        distribution: Distribution::Uniform,
        limit: Limit::Time(ROUND),
        ..Workload::default()
    };
    // Buffers come as they are needed and stay: more are asked for here than there are, so that each
    // node has all of them and they are no part of the slope.
    let all_buffers =
        Workload { block_size: 128 << 10, queue_depth: 120, jobs: 6, ..workload.clone() };
    load(&layout.uri(), &all_buffers)?;
    let (mut most, mut still) = (0, 0);
    while still < STILL {
        workload.seed += 1;
        load(&layout.uri(), &workload)?;
        let blocks = node.volume()?.cached_bytes / BLOCK;
        eprintln!(
            "{gib} GiB: {blocks} blocks, {} bytes of memory, {}",
            node.memory()?,
            shares(&node)?
        );
        // A hundredth more or less is eviction at work.
        still = if blocks > most + most / 100 { 0 } else { still + 1 };
        most = most.max(blocks);
    }
    let full = overwrite(&node, &layout, &workload)?;
    println!(
        "cache of {gib} GiB: {} blocks in {} bytes, {empty} of them before the first block",
        full.blocks, full.bytes
    );
    drop(node);
    fs::remove_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    Ok(full)
}

/// Rounds of writes as well: dirty blocks, destage and reclaim belong to a full cache.
fn overwrite(node: &Node, layout: &Layout<'_>, workload: &Workload) -> Result<Full> {
    let mut writes = Workload {
        rw: Rw::RandRw,
        read_percent: 70,
        block_size: 4096,
        queue_depth: 120,
        ..workload.clone()
    };
    for _ in 0..ROUNDS {
        writes.seed += 1;
        load(&layout.uri(), &writes)?;
        eprintln!("overwritten: {} bytes of memory, {}", node.memory()?, shares(node)?);
    }
    Ok(Full { blocks: node.volume()?.cached_bytes / BLOCK, bytes: node.memory()? })
}

/// What the daemon says of its memory: index and the like, and buffers.
fn shares(node: &Node) -> Result<String> {
    let memory = node.stat().ok_or("the daemon does not answer")?.node.memory;
    Ok(format!(
        "{} of the index, {} of buffers",
        memory.index_bytes,
        memory.hugepage_bytes + memory.ordinary_bytes
    ))
}
