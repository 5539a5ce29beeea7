//! The load, as a process of its own on its core: this project's initiator, or SPDK's.

use super::config::{Comparison, Work};
use super::peer::{Counters, Peer};
use super::refuse::TURNOVERS;
use crate::Result;
use crate::machine;
use crate::sample::Sample;
use core::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// How load is made.
#[derive(Clone, Debug)]
pub(crate) struct Initiator {
    forebay: PathBuf,
    perf: Option<PathBuf>,
    core: usize,
    seconds: u32,
    namespace_mib: u64,
    /// Whether instructions and cycles can be counted.
    counters: bool,
    /// Of the next run: with one seed for all, a later run would read what an earlier one fetched.
    seed: Cell<u64>,
}

impl Initiator {
    /// As the comparison says.
    pub(crate) fn new(comparison: &Comparison, forebay: &Path, counters: bool) -> Self {
        Self {
            forebay: forebay.to_owned(),
            perf: comparison.spdk_nvme_perf.clone(),
            core: comparison.load_core,
            seconds: comparison.seconds,
            namespace_mib: comparison.namespace_mib,
            counters,
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

    /// Overwrites at random until the log of a peer's caches has wrapped as often as a write run needs.
    pub(crate) fn wrap(&self, peer: &Peer, work: &Work) -> Result<()> {
        loop {
            let Some(Counters { written, capacity, .. }) = peer.counters()? else { return Ok(()) };
            let left = (capacity * TURNOVERS).saturating_sub(written);
            if left == 0 {
                return Ok(());
            }
            // In pieces, so that a volume that writes past its cache is noticed.
            let ops = (left / u64::from(work.block_size)).clamp(1024, 1 << 18).to_string();
            self.forebay(peer, &["--rw", "randwrite", "--qd", "64", "--ops", &ops], work)?;
            if peer.counters()?.is_some_and(|after| after.written == written) {
                return Err(format!(
                    "{}: nothing that is written comes to its cache device",
                    peer.name()
                ));
            }
        }
    }

    /// One run.
    pub(crate) fn run(&self, peer: &Peer, work: &Work) -> Result<Sample> {
        let start = Instant::now();
        let counts =
            std::env::temp_dir().join(format!("forebay-bench-{}-perf", std::process::id()));
        let counted =
            self.counters.then_some(()).and(peer.pid()).map(|pid| (pid, counts.as_path()));
        let mut sample = match &self.perf {
            Some(perf) => self.spdk(perf, peer, work, counted)?,
            None => {
                let args = work_args(work, self.seconds);
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                Sample::from_report(&self.bench(peer, &args, work, counted)?)?
            }
        };
        sample.wall = start.elapsed().as_secs_f64();
        if counted.is_some() {
            let text = std::fs::read_to_string(&counts).unwrap_or_default();
            let _gone = std::fs::remove_file(&counts);
            let counted = machine::parse(&text).filter(|_| sample.all_ops > 0.0);
            sample.instructions = counted.map(|(instructions, _)| instructions / sample.all_ops);
            sample.cycles = counted.map(|(_, cycles)| cycles / sample.all_ops);
        }
        Ok(sample)
    }

    fn forebay(&self, peer: &Peer, args: &[&str], work: &Work) -> Result<()> {
        self.bench(peer, args, work, None).map(|_| ())
    }

    fn bench(
        &self,
        peer: &Peer,
        args: &[&str],
        work: &Work,
        counted: Option<(u32, &Path)>,
    ) -> Result<serde_json::Value> {
        let seed = self.seed.get();
        self.seed.set(seed + 1);
        let (seed, size) = (seed.to_string(), work.block_size.to_string());
        let mut all = vec!["--seed", &seed, "--block-size", &size];
        all.extend(args);
        bench(&self.forebay, self.core, peer.uri(), &all, counted)
    }

    fn spdk(
        &self,
        perf: &Path,
        peer: &Peer,
        work: &Work,
        counted: Option<(u32, &Path)>,
    ) -> Result<Sample> {
        let mut command = counting(perf, counted);
        command.args(["-c", &format!("{:#x}", 1_u64 << self.core), "-L", "-a", "1"]);
        command.args(["-q", &work.queue_depth.to_string(), "-o", &work.block_size.to_string()]);
        command.args(["-w", &work.rw, "-t", &self.seconds.to_string()]);
        command.args(["-P", &work.connections.to_string()]);
        if work.rw == "randrw" {
            command.args(["-M", &work.read_percent.to_string()]);
        }
        if let Some(zipf) = work.zipf {
            command.args(["-F", &zipf.to_string()]);
        }
        command.args(["-r", &transport_id(peer.uri())?]);
        let text = output(&mut command)?;
        // It warms up for a second and says nothing of these operations.
        spdk_sample(&text, f64::from(self.seconds + 1))
            .ok_or_else(|| format!("no figures in: {text}"))
    }
}

/// What `spdk_nvme_perf -L` printed, with `seconds` from its first to its last operation.
fn spdk_sample(text: &str, seconds: f64) -> Option<Sample> {
    let total = text.lines().find(|line| line.starts_with("Total"))?;
    let iops: f64 = total.split(':').nth(1)?.split_whitespace().next()?.parse().ok()?;
    let mut curve: Vec<(f64, f64)> = Vec::new();
    for line in text.lines() {
        let point = || {
            let (percent, us) = line.trim().strip_suffix("us")?.split_once("% :")?;
            Some((percent.trim().parse::<f64>().ok()? / 100.0, us.trim().parse::<f64>().ok()?))
        };
        // The first list is that of the one namespace.
        if let Some(point) = point().filter(|(q, _)| curve.last().is_none_or(|last| last.0 < *q)) {
            curve.push(point);
        }
    }
    let at = |percent: f64| {
        curve.iter().find(|(q, _)| (q * 100.0 - percent).abs() < 1e-6).map(|(_, us)| *us)
    };
    let (p50, p99, p99_9, p99_99) = (at(50.0)?, at(99.0)?, at(99.9)?, at(99.99)?);
    Some(Sample {
        iops,
        p50,
        p99,
        p99_9,
        p99_99,
        all_ops: iops * seconds,
        curve,
        ..Sample::default()
    })
}

/// The arguments of `forebay bench` for a work, with a second of warming up.
fn work_args(work: &Work, seconds: u32) -> Vec<String> {
    let mut args: Vec<String> = ["--rw", &work.rw, "--warm-up", "1s"].map(String::from).to_vec();
    let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
    add("--qd", work.queue_depth.to_string());
    add("--time", format!("{seconds}s"));
    add("--read-percent", work.read_percent.to_string());
    add("--connections", work.connections.to_string());
    add("--scan", work.scan.to_string());
    if let Some(rate) = work.rate {
        add("--rate", rate.to_string());
        add("--arrivals", work.arrivals.clone().unwrap_or_else(|| "constant".to_owned()));
    }
    if let Some(zipf) = work.zipf {
        add("--zipf", zipf.to_string());
    }
    if let Some(hot) = &work.hot_cold {
        add("--hot-cold", hot.clone());
    }
    if work.verify {
        args.push("--verify".to_owned());
    }
    args
}

/// Runs `forebay bench` on a core; its report.
pub(crate) fn bench(
    forebay: &Path,
    core: usize,
    uri: &str,
    args: &[&str],
    counted: Option<(u32, &Path)>,
) -> Result<serde_json::Value> {
    let mut command = counting(Path::new("taskset"), counted);
    command.args(["-c", &core.to_string()]).arg(forebay);
    command.args(["bench", uri, "-o", "json", "--yes"]).args(args);
    let text = output(&mut command)?;
    let report: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("no JSON ({error}) in: {text}"))?;
    match (report["errors"].as_u64(), report["mismatches"].as_u64()) {
        (Some(0), Some(0)) => Ok(report),
        _ => Err(format!("operations failed, or read wrong data: {report}")),
    }
}

/// A program, under `perf stat` of another process where that is to be counted.
fn counting(program: &Path, counted: Option<(u32, &Path)>) -> Command {
    let Some((pid, file)) = counted else { return Command::new(program) };
    let mut command = Command::new("perf");
    command.args(["stat", "-x,", "-e", machine::EVENTS, "-p", &pid.to_string(), "-o"]);
    command.arg(file).arg("--").arg(program);
    command
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
    fn what_spdk_prints_is_read() {
        let text = "Total                                  :  262144.50    1024.00     483.10\n\
                    Summary latency data for TCP from core 1:\n\
                    =====\n  1.00000% :   100.000us\n 50.00000% :   483.123us\n 99.00000% :   700.000us\n\
                     99.90000% :   900.500us\n 99.99000% :  1500.000us\n  1.00000% :     1.000us\n";
        let sample = spdk_sample(text, 4.0).unwrap();
        assert_eq!((sample.iops, sample.p50, sample.p99_99), (262_144.5, 483.123, 1500.0));
        assert_eq!((sample.curve.len(), sample.all_ops), (5, 1_048_578.0));
        assert!(spdk_sample("Total : 1.0\n", 4.0).is_none());
    }

    #[test]
    fn a_work_is_told_to_the_load_generator_whole() {
        let work: Work = toml::from_str(
            "name = \"w\"\nrw = \"randrw\"\nread_percent = 30\nqueue_depth = 8\nrate = 100\n\
             arrivals = \"poisson\"\nhot_cold = \"90/10\"\nscan = 5\nverify = true\nconnections = 4\n",
        )
        .unwrap();
        let args = work_args(&work, 3).join(" ");
        assert_eq!(
            args,
            "--rw randrw --warm-up 1s --qd 8 --time 3s --read-percent 30 --connections 4 --scan 5 --rate 100 \
             --arrivals poisson --hot-cold 90/10 --verify"
        );
    }

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
