//! The load, as a process of its own on its core: this project's initiator, or SPDK's.

use super::config::{Comparison, Work};
use super::peer::Peer;
use crate::Result;
use core::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What one run gave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Operations a second.
    pub(crate) iops: f64,
    /// Median latency in microseconds.
    pub(crate) p50: f64,
    /// 99 of a hundred are at most this.
    pub(crate) p99: f64,
    /// Seconds from the initiator's start to its end.
    pub(crate) wall: f64,
    /// Share of a core that the target had in this time.
    pub(crate) target_cpu: f64,
}

/// How load is made.
#[derive(Clone, Debug)]
pub(crate) struct Initiator {
    forebay: PathBuf,
    perf: Option<PathBuf>,
    core: usize,
    seconds: u32,
    namespace_mib: u64,
    /// Of the next run: with one seed for all, a later run would read what an earlier one fetched.
    seed: Cell<u64>,
}

impl Initiator {
    /// As the comparison says.
    pub(crate) fn new(comparison: &Comparison, forebay: &Path) -> Self {
        Self {
            forebay: forebay.to_owned(),
            perf: comparison.spdk_nvme_perf.clone(),
            core: comparison.load_core,
            seconds: comparison.seconds,
            namespace_mib: comparison.namespace_mib,
            seed: Cell::new(1),
        }
    }

    /// Writes the whole namespace once in order, then reads six times as much at random (all but one
    /// of 400 blocks are read), so that it is cached where a peer has a cache.
    pub(crate) fn fill(&self, peer: &Peer, work: &Work) -> Result<()> {
        for (rw, passes) in [("write", 1), ("randread", 6)] {
            let ops =
                ((self.namespace_mib << 20) / u64::from(work.block_size) * passes).to_string();
            self.forebay(peer, &["--rw", rw, "--qd", "64", "--ops", &ops], work)?;
        }
        Ok(())
    }

    /// One run.
    pub(crate) fn run(&self, peer: &Peer, work: &Work) -> Result<Sample> {
        let start = Instant::now();
        let mut sample = match &self.perf {
            Some(perf) => self.spdk(perf, peer, work)?,
            None => {
                let (depth, time) =
                    (work.queue_depth.to_string(), format!("{}s", self.seconds + 1));
                let args = ["--rw", &work.rw, "--qd", &depth, "--time", &time, "--warm-up", "1s"];
                let report = self.forebay(peer, &args, work)?;
                let field = |name: &str| report["total"][name].as_f64();
                let late = |name: &str| report["total"]["latency_us"][name].as_f64();
                match (field("iops"), late("p50"), late("p99")) {
                    (Some(iops), Some(p50), Some(p99)) => {
                        Sample { iops, p50, p99, ..Sample::default() }
                    }
                    _ => return Err(format!("no figures in {report}")),
                }
            }
        };
        sample.wall = start.elapsed().as_secs_f64();
        Ok(sample)
    }

    fn forebay(&self, peer: &Peer, args: &[&str], work: &Work) -> Result<serde_json::Value> {
        let mut command = self.on_core(&self.forebay);
        let seed = self.seed.get();
        self.seed.set(seed + 1);
        command.args(["bench", peer.uri(), "-o", "json", "--yes", "--seed", &seed.to_string()]);
        command.args(args);
        command.args(["--block-size", &work.block_size.to_string()]);
        let text = output(&mut command)?;
        let value: serde_json::Value = text
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line).ok())
            .or_else(|| serde_json::from_str(&text).ok())
            .ok_or_else(|| format!("no JSON in: {text}"))?;
        let report = value.get("results").and_then(|all| all.get(0)).unwrap_or(&value).clone();
        match report["errors"].as_u64() {
            Some(0) => Ok(report),
            _ => Err(format!("operations failed: {report}")),
        }
    }

    fn spdk(&self, perf: &Path, peer: &Peer, work: &Work) -> Result<Sample> {
        let mut command = Command::new(perf);
        command.args(["-c", &format!("{:#x}", 1_u64 << self.core), "-L", "-a", "1"]);
        command.args(["-q", &work.queue_depth.to_string(), "-o", &work.block_size.to_string()]);
        command.args(["-w", &work.rw, "-t", &self.seconds.to_string()]);
        command.args(["-r", &transport_id(peer.uri())?]);
        let text = output(&mut command)?;
        let percentile = |name: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(name))?;
            line.split(':').nth(1)?.trim().trim_end_matches("us").parse::<f64>().ok()
        };
        let total = text.lines().find(|line| line.starts_with("Total"));
        let iops =
            total.and_then(|line| line.split(':').nth(1)?.split_whitespace().next()?.parse().ok());
        match (iops, percentile("50.00000%"), percentile("99.00000%")) {
            (Some(iops), Some(p50), Some(p99)) => {
                Ok(Sample { iops, p50, p99, ..Sample::default() })
            }
            _ => Err(format!("no figures in: {text}")),
        }
    }

    fn on_core(&self, program: &Path) -> Command {
        let mut command = Command::new("taskset");
        command.args(["-c", &self.core.to_string()]).arg(program);
        command
    }
}

/// `nvmf+tcp://ADDRESS:PORT/NQN?hostnqn=…` in SPDK's words.
fn transport_id(uri: &str) -> Result<String> {
    let parts = || {
        let rest = uri.strip_prefix("nvmf+tcp://")?;
        let (place, rest) = rest.split_once('/')?;
        let (address, port) = place.rsplit_once(':')?;
        let (nqn, options) = rest.split_once('?').unwrap_or((rest, ""));
        let host = options.split('&').find_map(|option| option.strip_prefix("hostnqn="));
        let host = host.map(|nqn| format!(" hostnqn:{nqn}")).unwrap_or_default();
        Some(format!("trtype:TCP adrfam:IPv4 traddr:{address} trsvcid:{port} subnqn:{nqn}{host}"))
    };
    parts().ok_or_else(|| format!("{uri}: nvmf+tcp://ADDRESS:PORT/NQN is needed"))
}

fn output(command: &mut Command) -> Result<String> {
    let done = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(format!("{command:?}: {}: {said}", done.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_told_in_the_words_of_spdk() {
        assert_eq!(
            transport_id("nvmf+tcp://127.0.0.1:4420/nqn.x:v?nsid=1&hostnqn=nqn.h").as_deref(),
            Ok("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.x:v hostnqn:nqn.h")
        );
        assert_eq!(
            transport_id("nvmf+tcp://127.0.0.1:4420/nqn.x:v").as_deref(),
            Ok("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.x:v")
        );
        assert!(transport_id("uring:/dev/null").is_err());
    }
}
