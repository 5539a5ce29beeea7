//! Allocations of the reactor for 100,000 commands in steady state: hits in the memory tier, hits of the
//! cache device, write-back writes.
//!
//! The daemon counts what each reactor's thread allocates (`stat`, `reactors[].allocations`). What a
//! connection and the questions for the count allocate is the same for a short run and for a longer one
//! of the same work: the difference of the two is what the commands alone do.

use crate::Result;
use crate::node::{Layout, Node, empty_dir, load, program};
use forebay_bench::{Limit, Rw, Workload};
use std::fs;
use std::path::PathBuf;

/// Commands of a short run; a long one has [`COMMANDS`] more.
const SHORT: u64 = 50_000;
/// Commands that are counted.
const COMMANDS: u64 = 100_000;
/// Allocations in the longer run that are not the commands': the control plane's questions, by time.
const FEW: u64 = 100;
/// The volume, in MiB.
const VOLUME_MIB: u64 = 16;
/// The cache: the volume and room for reclaim to work in.
const CACHE_MIB: u64 = 256;

/// Allocations of the reactor for 100,000 commands in steady state
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An empty directory for the node's files
    #[arg(long)]
    dir: PathBuf,
    /// The cache device [default: memory]
    #[arg(long)]
    cache: Option<String>,
    /// Commands in flight
    #[arg(long, default_value_t = 64)]
    queue_depth: u16,
    /// The daemon [default: `forebay` beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
    /// TCP port on 127.0.0.1
    #[arg(long, default_value_t = 14423)]
    port: u16,
}

/// Prints the counts; false where a kind of command allocates.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let program = program(args.program.as_deref())?;
    empty_dir(&args.dir)?;
    let mut none = true;
    for (name, tier, rw) in [
        ("hits in the memory tier", (2 * VOLUME_MIB) << 20, Rw::RandRead),
        ("hits of the cache device", 0, Rw::RandRead),
        ("write-back writes", 0, Rw::RandWrite),
    ] {
        // Each a node of its own: what is in memory does not outlive one.
        let dir = args.dir.join(name.replace(' ', "-"));
        empty_dir(&dir)?;
        let layout = Layout {
            dir: &dir,
            cache: args.cache.clone().unwrap_or_else(|| format!("mem:?size={CACHE_MIB}M")),
            backing: format!("mem:?size={VOLUME_MIB}M"),
            mode: "write-back",
            core: 0,
            poll: "busy",
            port: args.port,
            memory_tier: tier,
            ordered_journal: None,
        };
        let node = layout.start(&program)?;
        let work = |rw, ops| Workload {
            rw,
            queue_depth: args.queue_depth,
            limit: Limit::Ops(ops),
            ..Workload::default()
        };
        // All blocks are in the cache, and tables, queues and lists get their size: of writes in four
        // turnovers of it.
        load(&layout.uri(), &work(Rw::Write, VOLUME_MIB << 8))?;
        load(&layout.uri(), &work(rw, CACHE_MIB << 10))?;
        let hits = node.volume()?;
        let short = counted(&node, &layout.uri(), &work(rw, SHORT))?;
        let long = counted(&node, &layout.uri(), &work(rw, SHORT + COMMANDS))?;
        let now = node.volume()?;
        if rw == Rw::RandRead {
            let reads = 2 * SHORT + COMMANDS;
            let counted =
                if tier > 0 { now.memory_hits - hits.memory_hits } else { now.hits - hits.hits };
            if counted < reads / 100 * 99 {
                return Err(format!("{name}: {counted} of {reads} reads were such hits"));
            }
        }
        let more = long.saturating_sub(short);
        println!("{name}: {more} allocations for {COMMANDS} commands (runs of {short} and {long})");
        none &= more <= FEW;
    }
    fs::remove_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    Ok(none)
}

/// What the node's reactor allocates during a load, connection and questions included.
fn counted(node: &Node, uri: &str, workload: &Workload) -> Result<u64> {
    let count = || -> Result<u64> {
        let stat = node.stat().ok_or("the daemon does not answer")?;
        Ok(stat.reactors.first().ok_or("the daemon has no reactor")?.allocations)
    };
    let before = count()?;
    load(uri, workload)?;
    Ok(count()? - before)
}
