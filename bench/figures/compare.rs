//! Targets side by side on one machine in one run: the first peer is the subject, each other one an
//! anchor. A run of the subject against itself gives the noise floor; then runs alternate (subject, anchor,
//! subject, anchor …), one target running at a time on its core, the same initiator on another.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | the comparison as a TOML file |
//! | [`peer`] | a target: started, stopped, held still while another one runs |
//! | [`initiator`] | the load: this project's, or SPDK's `spdk_nvme_perf` |
//! | [`refuse`] | runs that would flatter |
//! | [`report`] | medians, spread, ratios and plots |

mod config;
pub(crate) mod initiator;
mod peer;
mod refuse;
pub(crate) mod report;

use crate::Result;
use crate::machine::Machine;
use crate::node::program;
use crate::sample::{Compared, Figures, Pair, Sample, Target, WorkPairs};
use crate::threads;
use config::{Comparison, Work};
use initiator::Initiator;
use peer::Peer;
use std::path::{Path, PathBuf};

/// Targets side by side, in alternating runs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The comparison: peers, works, pairs
    config: PathBuf,
    /// The daemon and this project's initiator [default: `forebay` beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
    /// Only works whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Write report.md, plots and the raw samples into this directory, after each work
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Measures and prints the report.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let comparison = Comparison::read(&args.config)?;
    let program = program(args.program.as_deref())?;
    let machine = Machine::look();
    let initiator = Initiator::new(&comparison, &program, machine.counters.is_ok());
    let (peers, targets) = start(&comparison, &program)?;
    let mut compared = Compared {
        machine,
        method: comparison.method(),
        files: files(&args.config, &comparison)?,
        targets,
        works: Vec::new(),
    };
    eprintln!("{}", compared.machine.show());
    let wanted = |name: &str| args.only.as_ref().is_none_or(|part| name.contains(part.as_str()));
    for work in comparison.works.iter().filter(|work| wanted(&work.name)) {
        let rig = Rig { work, initiator: &initiator, load_core: comparison.load_core };
        compared.works.push(rig.pairs(&peers, comparison.pairs)?);
        compared.machine.done();
        // A later work may be refused: what was measured stays.
        if let Some(dir) = &args.report {
            write(dir, &Figures::Comparison(compared.clone()))?;
        }
    }
    let measured = !compared.works.is_empty();
    println!("{}", report::markdown(&compared));
    Ok(measured)
}

/// Writes raw data, report and plots.
pub(crate) fn write(dir: &Path, figures: &Figures) -> Result<()> {
    figures.store(dir)?;
    let files = match figures {
        Figures::Comparison(compared) => report::files(compared),
        Figures::Determinism(determinism) => determinism.files(),
    };
    for (name, text) in files {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Starts the peers that are there and holds them still.
fn start(comparison: &Comparison, program: &Path) -> Result<(Vec<Peer>, Vec<Target>)> {
    let (mut peers, mut targets) = (Vec::new(), Vec::new());
    for (number, config) in comparison.peers.iter().enumerate() {
        let mut target = Target {
            name: config.name.clone(),
            uri: config.uri.clone(),
            version: None,
            absent: config.absence(),
        };
        if let Some(why) = &target.absent {
            if number == 0 {
                return Err(format!("{}, the subject, is absent: {why}", target.name));
            }
            eprintln!("{} is absent: {why}", target.name);
        } else {
            let peer = Peer::start(config, program)?;
            target.version = peer.version()?;
            if let (true, Some(version)) = (config.forebay.is_some(), &target.version) {
                refuse::check_version(&config.name, version)?;
            }
            peer.hold()?;
            peers.push(peer);
        }
        targets.push(target);
    }
    Ok((peers, targets))
}

/// The comparison's file and those of its daemons, as they are now.
fn files(path: &Path, comparison: &Comparison) -> Result<Vec<(String, String)>> {
    let daemons = comparison.peers.iter().filter_map(|peer| peer.forebay.as_deref());
    std::iter::once(path)
        .chain(daemons)
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(path);
            Ok((name, text.map_err(|error| format!("{}: {error}", path.display()))?))
        })
        .collect()
}

/// One work, and how it is put on a peer.
struct Rig<'a> {
    work: &'a Work,
    initiator: &'a Initiator,
    load_core: usize,
}

impl Rig<'_> {
    /// All its runs: A/A, then the anchors in turn.
    fn pairs(&self, peers: &[Peer], count: usize) -> Result<WorkPairs> {
        for peer in peers {
            self.prepare(peer)?;
        }
        let (subject, anchors) = peers.split_first().ok_or("no peers")?;
        let mut noise = Vec::new();
        for _ in 0..count {
            let first = self.measure(subject)?;
            noise.push((first, self.measure(subject)?));
        }
        let mut pairs: Vec<(String, Vec<Pair>)> =
            anchors.iter().map(|anchor| (anchor.name().to_owned(), Vec::new())).collect();
        for _ in 0..count {
            for (anchor, (_, pairs)) in anchors.iter().zip(&mut pairs) {
                let ours = self.measure(subject)?;
                pairs.push((ours, self.measure(anchor)?));
            }
        }
        let (name, load) = (self.work.name.clone(), self.work.describe());
        Ok(WorkPairs { name, load, noise, anchors: pairs })
    }

    /// One pass over the range, so that what is read has been written, and is cached where a peer has a
    /// cache; then writes until a log has wrapped.
    fn prepare(&self, peer: &Peer) -> Result<()> {
        let Self { work, initiator, .. } = self;
        let wraps = work.writes() && work.expect().wants_wrapped();
        if work.prefill || wraps {
            eprintln!("{}: {} is being filled", work.name, peer.name());
        }
        peer.released(|| {
            if work.prefill {
                initiator.fill(peer, work)?;
            }
            if wraps { initiator.wrap(peer, work) } else { Ok(()) }
        })
    }

    /// One run, refused where it does not show what it claims.
    fn measure(&self, peer: &Peer) -> Result<Sample> {
        let Self { work, initiator, load_core } = self;
        let sample = peer.released(|| {
            let (before, threads, ticks) = (peer.counters()?, peer.threads()?, threads::stolen());
            let mut sample = initiator.run(peer, work)?;
            let after = peer.threads()?;
            sample.stolen = threads::stolen_since(ticks);
            if let (Some(pid), Some(usage)) = (peer.pid(), after.since(&threads)) {
                refuse::check_cores(peer.name(), pid, usage.busiest, *load_core)?;
                sample.target_cpu = Some(usage.seconds / sample.wall);
                sample.core_share = Some(usage.core_share);
            }
            if let (Some(before), Some(after)) = (before, peer.counters()?) {
                if work.reads() {
                    work.expect().check_reads(&work.name, &before, &after)?;
                }
                if work.writes() {
                    work.expect().check_writes(&work.name, &before, &after)?;
                    #[expect(clippy::cast_precision_loss, reason = "bytes of one run")]
                    let turnovers =
                        (after.written - before.written) as f64 / after.capacity.max(1) as f64;
                    sample.turnovers = Some(turnovers);
                }
            }
            Ok(sample)
        })?;
        eprintln!(
            "{}: {}: {:.0} IOPS, p50 {:.1} us, p99 {:.1} us, target {:.2} of a core",
            work.name,
            peer.name(),
            sample.iops,
            sample.p50,
            sample.p99,
            sample.target_cpu.unwrap_or_default()
        );
        refuse::tell_disturbance(&work.name, peer.name(), &sample);
        Ok(sample)
    }
}
