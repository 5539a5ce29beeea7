//! Targets side by side on one machine in one run: the first peer is the subject, each other one an
//! anchor. Runs alternate (subject, anchor, subject, anchor …), one target running at a time on its
//! core, the same initiator on another; a run of the subject against itself gives the noise floor.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | the comparison as a TOML file |
//! | [`peer`] | a target: started, stopped, held still while another one runs |
//! | [`initiator`] | the load: this project's, or SPDK's `spdk_nvme_perf` |
//! | [`report`] | medians, spread, ratios as Markdown |

mod config;
mod initiator;
mod peer;
mod report;

use crate::Result;
use crate::node::program;
use config::Comparison;
use initiator::{Initiator, Sample};
use peer::Peer;
use report::{Noise, Row};
use std::path::PathBuf;

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
}

/// Measures and prints the report.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let comparison = Comparison::read(&args.config)?;
    let program = program(args.program.as_deref())?;
    let initiator = Initiator::new(&comparison, &program);
    let mut peers = Vec::new();
    for config in &comparison.peers {
        let peer = Peer::start(config, &program)?;
        peer.hold()?;
        peers.push(peer);
    }
    println!("{}", report::environment(&comparison));
    let wanted = |name: &str| args.only.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let mut rows = Vec::new();
    for work in comparison.works.iter().filter(|work| wanted(&work.name)) {
        for peer in &peers {
            prepare(peer, work, &initiator)?;
        }
        let (subject, anchors) = peers.split_first().ok_or("no peers")?;
        let noise = noise(subject, work, &initiator, comparison.pairs)?;
        let mut pairs: Vec<Vec<(Sample, Sample)>> = vec![Vec::new(); anchors.len()];
        for _ in 0..comparison.pairs {
            for (anchor, pairs) in anchors.iter().zip(&mut pairs) {
                let ours = measure(subject, work, &initiator)?;
                let theirs = measure(anchor, work, &initiator)?;
                pairs.push((ours, theirs));
            }
        }
        for (anchor, pairs) in anchors.iter().zip(pairs) {
            rows.push(Row::new(&work.name, anchor.name(), &noise, pairs));
        }
        println!("{}", report::work(&work.name, subject.name(), &rows, &noise));
    }
    println!("{}", report::summary(&rows));
    Ok(!rows.is_empty())
}

/// One pass over the range, so that what is read has been written, and is cached where a peer has a
/// cache.
fn prepare(peer: &Peer, work: &config::Work, initiator: &Initiator) -> Result<()> {
    if !work.prefill {
        return Ok(());
    }
    eprintln!("{}: {} is being filled", work.name, peer.name());
    peer.released(|| initiator.fill(peer, work))
}

/// The subject against itself.
fn noise(
    subject: &Peer,
    work: &config::Work,
    initiator: &Initiator,
    pairs: usize,
) -> Result<Noise> {
    let mut all = Vec::new();
    for _ in 0..pairs {
        let first = measure(subject, work, initiator)?;
        all.push((first, measure(subject, work, initiator)?));
    }
    Ok(Noise::new(&all))
}

/// One run. What a peer with a control socket served is held against what the work is about.
fn measure(peer: &Peer, work: &config::Work, initiator: &Initiator) -> Result<Sample> {
    let sample = peer.released(|| {
        let before = peer.counters()?;
        let cpu = peer.cpu()?;
        let mut sample = initiator.run(peer, work)?;
        sample.target_cpu = (peer.cpu()? - cpu) / sample.wall;
        if let (Some(before), Some(after)) = (before, peer.counters()?) {
            work.expect.check(&work.name, &before, &after)?;
        }
        Ok(sample)
    })?;
    eprintln!(
        "{}: {}: {:.0} IOPS, p50 {:.1} us, p99 {:.1} us, target {:.2} of its core",
        work.name,
        peer.name(),
        sample.iops,
        sample.p50,
        sample.p99,
        sample.target_cpu
    );
    Ok(sample)
}
