//! How even latencies are: hits, misses and writes by an open loop at a rate well below what the node can do,
//! and the same while its backing device hangs or fails.

use crate::Result;
use crate::compare::initiator::bench;
use crate::compare::report::median_curve;
use crate::machine::Machine;
use crate::node::{Layout, Node, VOLUME, empty_dir, program};
use crate::plot::{self, Curve};
use crate::sample::{Figures, Sample};
use crate::stats::Spread;
use crate::threads::{self, Threads};
use core::fmt::Write as _;
use forebay_control::rpc::Client;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the node may take to see that its backing device works again.
const HEALED_MAX: Duration = Duration::from_secs(120);
/// MiB of the working set, all of it cached.
const HOT_MIB: u64 = 64;
/// GiB of the volume: of positions drawn from all of it, hardly one is drawn twice.
const VOLUME_GIB: u64 = 64;

/// Percentiles of hits, misses, and with the backing device down
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An empty directory on the device for the cache; it is removed
    #[arg(long)]
    dir: PathBuf,
    /// Write report.md, a plot and the raw samples into this directory
    #[arg(long)]
    report: PathBuf,
    /// Operations a second that are due
    #[arg(long, default_value_t = 5000)]
    rate: u32,
    /// How they are spread in time
    #[arg(long, default_value = "poisson", value_parser = ["constant", "poisson"])]
    arrivals: String,
    /// Seconds of a run
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Runs of each case, in turn
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// The cache in MiB
    #[arg(long, default_value_t = 2048)]
    cache: u64,
    /// Microseconds of an operation of the backing device
    #[arg(long, default_value_t = 200)]
    backing_us: u64,
    /// The core of the daemon's reactor
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// The core of the load
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// The daemon [default: `forebay` beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
    /// TCP port on 127.0.0.1
    #[arg(long, default_value_t = 14427)]
    port: u16,
}

/// What operations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hit,
    Miss,
    Write,
}

/// A load, and what the backing device does meanwhile.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    kind: Kind,
    fault: Option<&'static str>,
}

const CASES: [Case; 7] = [
    Case { name: "hit", kind: Kind::Hit, fault: None },
    Case { name: "miss", kind: Kind::Miss, fault: None },
    Case { name: "write", kind: Kind::Write, fault: None },
    Case { name: "hit, backing hangs", kind: Kind::Hit, fault: Some("hang") },
    Case { name: "write, backing hangs", kind: Kind::Write, fault: Some("hang") },
    Case { name: "hit, backing fails", kind: Kind::Hit, fault: Some("error") },
    Case { name: "write, backing fails", kind: Kind::Write, fault: Some("error") },
];

/// The raw data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Determinism {
    machine: Machine,
    /// The node and the load in words.
    method: String,
    /// Each case with its runs.
    cases: Vec<(String, Vec<Sample>)>,
}

/// Measures, prints and writes the report.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.core == args.load_core {
        return Err(format!("core {} cannot have both the daemon and the load", args.core));
    }
    let program = program(args.program.as_deref())?;
    empty_dir(&args.dir)?;
    let dir = args.dir.display();
    let layout = Layout {
        dir: &args.dir,
        cache: format!("uring:{dir}/cache?size={}M", args.cache),
        backing: format!(
            "fault:slow:uring:{dir}/backing?size={VOLUME_GIB}G&read_us={us}&write_us={us}",
            us = args.backing_us
        ),
        mode: "write-back",
        core: args.core,
        poll: "busy",
        port: args.port,
        memory_tier: 0,
        ordered_journal: None,
    };
    let mut figures = Determinism {
        machine: Machine::look(),
        method: format!(
            "Cache of {} MiB on a file, memory tier off, CRC of every block checked; backing device of {} µs an \
             operation; busy polling on core {}. `forebay bench` on core {}: 4 KiB, open loop of {} operations a second \
             ({}), timed from when they are due; hits and writes on {HOT_MIB} MiB, misses on {VOLUME_GIB} GiB; {} runs of \
             {} s for each case, in turn.",
            args.cache,
            args.backing_us,
            args.core,
            args.load_core,
            args.rate,
            args.arrivals,
            args.runs,
            args.seconds
        ),
        cases: CASES.iter().map(|case| (case.name.to_owned(), Vec::new())).collect(),
    };
    let node = layout.start(&program)?;
    let rig = Rig { args, program: &program, node: &node, uri: layout.uri() };
    rig.load(&[
        "--rw",
        "write",
        "--size",
        &format!("{HOT_MIB}M"),
        "--ops",
        &(HOT_MIB * 256).to_string(),
    ])?;
    for round in 0..args.runs {
        for (case, (_, samples)) in CASES.iter().zip(&mut figures.cases) {
            let sample = rig.measure(*case, round)?;
            eprintln!(
                "{}: p50 {:.1}, p99 {:.1}, p99.9 {:.1}, p99.99 {:.1} us",
                case.name, sample.p50, sample.p99, sample.p99_9, sample.p99_99
            );
            samples.push(sample);
        }
    }
    figures.machine.done();
    drop(node);
    std::fs::remove_dir_all(&args.dir).map_err(|error| format!("{dir}: {error}"))?;
    println!("{}", figures.markdown());
    crate::compare::write(&args.report, &Figures::Determinism(figures))?;
    Ok(true)
}

struct Rig<'a> {
    args: &'a Args,
    program: &'a Path,
    node: &'a Node,
    uri: String,
}

impl Rig<'_> {
    fn load(&self, args: &[&str]) -> Result<serde_json::Value> {
        bench(self.program, self.args.load_core, &self.uri, args, None)
    }

    fn fault(&self, fault: &str) -> Result<()> {
        let params = json!({ "device": format!("backing:{VOLUME}"), "fault": fault });
        let mut client = Client::connect(&self.node.socket()).map_err(|error| error.to_string())?;
        client.call("device_fault", params).map(|_| ()).map_err(|error| error.to_string())
    }

    /// One run. A run of other operations than the case's does not count.
    fn measure(&self, case: Case, round: u32) -> Result<Sample> {
        let Args { rate, arrivals, seconds, .. } = self.args;
        let (rate, time) = (rate.to_string(), format!("{seconds}s"));
        let (seed, hot) = ((round + 2).to_string(), format!("{HOT_MIB}M"));
        let mut args =
            vec!["--rate", &rate, "--arrivals", arrivals, "--time", &time, "--seed", &seed];
        args.extend(["--warm-up", "1s", "--qd", "256", "--rw"]);
        args.push(if case.kind == Kind::Write { "randwrite" } else { "randread" });
        if case.kind != Kind::Miss {
            args.extend(["--size", &hot]);
        }
        if let Some(fault) = case.fault {
            self.fault(fault)?;
        }
        let (before, threads, ticks) = (self.node.volume()?, self.threads()?, threads::stolen());
        let report = self.load(&args)?;
        let (after, usage) = (self.node.volume()?, self.threads()?.since(&threads));
        let mut sample = Sample::from_report(&report)?;
        sample.core_share = usage.map(|usage| usage.core_share);
        sample.stolen = threads::stolen_since(ticks);
        if case.fault.is_some() {
            self.fault("heal")?;
            self.healed()?;
        }
        let device_hits = (after.hits - before.hits) - (after.memory_hits - before.memory_hits);
        let misses = after.misses - before.misses;
        let writes = after.cached_writes - before.cached_writes;
        check(case, (device_hits, misses, writes), report["all_ops"].as_u64().unwrap_or(u64::MAX))?;
        Ok(sample)
    }

    fn threads(&self) -> Result<Threads> {
        Threads::of(self.node.pid())
    }

    fn healed(&self) -> Result<()> {
        let end = Instant::now() + HEALED_MAX;
        while Instant::now() < end {
            if self.node.stat().is_some_and(|stat| stat.complaints().is_empty()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err("the node does not see that its backing device works again".to_owned())
    }
}

/// Refuses a run where more than one of a hundred operations were of another kind.
fn check(case: Case, (hits, misses, writes): (u64, u64, u64), ops: u64) -> Result<()> {
    let wanted = match case.kind {
        Kind::Hit => hits,
        Kind::Miss => misses,
        Kind::Write => writes,
    };
    if wanted.saturating_mul(100) >= ops.saturating_mul(99) && ops > 0 {
        return Ok(());
    }
    Err(format!(
        "{}: the run does not count: {hits} device hits, {misses} misses, {writes} cached writes of {ops} operations",
        case.name
    ))
}

impl Determinism {
    /// The files of the report.
    pub(crate) fn files(&self) -> Vec<(String, String)> {
        let curves = self.cases.iter().map(|(name, samples)| {
            let points = median_curve(&samples.iter().collect::<Vec<_>>());
            Curve { name: name.clone(), points }
        });
        let plot = plot::latency("Latency by percentile", &curves.collect::<Vec<_>>());
        vec![("report.md".to_owned(), self.markdown()), ("determinism.svg".to_owned(), plot)]
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "# Determinism\n\n{}\n{}\n\nMicroseconds: median of the runs (least–most). Beside them the longest time for \
             which the load itself was held up: what lies at or below it may be the machine's.\n\n\
             | | runs | operations/s | p50 | p99 | p99.9 | p99.99 | load held up | disturbed runs |\n\
             |---|---|---|---|---|---|---|---|---|\n",
            self.machine.show(),
            self.method
        );
        for (name, samples) in &self.cases {
            let of = |what: fn(&Sample) -> f64| Spread::of(samples.iter().map(what)).show(1);
            let disturbed: Vec<String> = samples.iter().filter_map(Sample::disturbance).collect();
            let disturbed =
                if disturbed.is_empty() { "none".to_owned() } else { disturbed.join("; ") };
            let _infallible = writeln!(
                text,
                "| {name} | {} | {} | {} | {} | {} | {} | {} | {disturbed} |",
                samples.len(),
                Spread::of(samples.iter().map(|sample| sample.iops)).show(0),
                of(|sample| sample.p50),
                of(|sample| sample.p99),
                of(|sample| sample.p99_9),
                of(|sample| sample.p99_99),
                of(|sample| sample.longest_pause.unwrap_or(f64::NAN))
            );
        }
        text.push_str("\n![latency by percentile](determinism.svg)\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_other_operations_does_not_count() {
        let [hit, miss, write, ..] = CASES;
        assert!(check(hit, (990, 10, 0), 1000).is_ok());
        assert!(check(hit, (989, 11, 0), 1000).unwrap_err().contains("989 device hits"));
        assert!(check(miss, (20, 980, 0), 1000).is_err());
        assert!(check(write, (0, 0, 999), 1000).is_ok());
        assert!(check(write, (1000, 0, 0), 1000).is_err());
        assert!(check(hit, (0, 0, 0), 0).is_err(), "nothing was done");
    }

    #[test]
    fn the_table_says_what_disturbed_it() {
        let sample = |p99, core_share| Sample {
            p99,
            core_share: Some(core_share),
            curve: vec![(0.0, 1.0), (0.99, p99)],
            longest_pause: Some(33.0),
            ..Sample::default()
        };
        let cases =
            vec![("hit".to_owned(), vec![sample(5.0, 0.99), sample(7.0, 0.5), sample(9.0, 1.0)])];
        let figures = Determinism { machine: Machine::look(), method: "so".to_owned(), cases };
        let text = figures.markdown();
        assert!(
            text.contains("| 7.0 (5.0–9.0) |") && text.contains("had 0.50 of its core |"),
            "{text}"
        );
        assert!(text.contains("| 33.0 (33.0–33.0) |"), "{text}");
        let files = figures.files();
        assert!(files[1].0 == "determinism.svg" && files[1].1.contains(">hit<"));
    }
}
