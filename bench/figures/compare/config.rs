//! The comparison as a TOML file.

use super::refuse::{Expect, check_config};
use crate::Result;
use forebay_bench::{HotCold, Rw};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What is compared, and how often.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Comparison {
    /// Pairs of runs for each anchor and for the noise floor.
    #[serde(default = "five")]
    pub(crate) pairs: usize,
    /// Seconds of each run.
    #[serde(default = "four")]
    pub(crate) seconds: u32,
    /// MiB of each peer's namespace.
    pub(crate) namespace_mib: u64,
    /// Core of the load; the peers' own settings choose theirs.
    #[serde(default = "one")]
    pub(crate) load_core: usize,
    /// `spdk_nvme_perf`, by its path or in `$PATH`, to use it for all peers in place of this project's
    /// initiator.
    pub(crate) spdk_nvme_perf: Option<PathBuf>,
    /// The same where it is not on this machine.
    #[serde(skip)]
    absent_perf: Option<PathBuf>,
    /// The subject, then its anchors.
    #[serde(rename = "peer")]
    pub(crate) peers: Vec<PeerConfig>,
    /// Loads, each put on every peer.
    #[serde(rename = "work")]
    pub(crate) works: Vec<Work>,
}

/// A target: a daemon's configuration, or commands for a shell, or nothing but a device.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeerConfig {
    /// Its name in the report.
    pub(crate) name: String,
    /// Programs that must be there, as paths or in `$PATH`; without them the peer is reported as absent.
    #[serde(default)]
    pub(crate) requires: Vec<String>,
    /// Prints its version.
    pub(crate) version: Option<String>,
    /// The directory of the file that names it, `$COMPARISON` for its commands.
    #[serde(skip)]
    pub(crate) base: PathBuf,
    /// Where it serves: a device URI, of the form `nvmf+tcp:` for SPDK's initiator.
    pub(crate) uri: String,
    /// Configuration of a Forebay daemon; it names a control socket.
    pub(crate) forebay: Option<PathBuf>,
    /// Starts it and returns when it serves.
    pub(crate) start: Option<String>,
    /// Prints its process.
    pub(crate) pid: Option<String>,
    /// Stops it.
    pub(crate) stop: Option<String>,
}

/// A load.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Work {
    /// Its name in the report.
    pub(crate) name: String,
    /// `randread`, `randwrite`, `read`, `write`, `randrw`.
    pub(crate) rw: String,
    /// Reads of a hundred operations, for `randrw`.
    #[serde(default = "seventy")]
    pub(crate) read_percent: u8,
    /// Commands in flight; at most, in an open loop.
    pub(crate) queue_depth: u16,
    /// Connections, which share them.
    #[serde(default = "single")]
    pub(crate) connections: u16,
    /// Open loop: operations a second that are due; latencies count from then.
    pub(crate) rate: Option<u32>,
    /// `constant` or `poisson`.
    pub(crate) arrivals: Option<String>,
    /// Zipf exponent of random positions.
    pub(crate) zipf: Option<f64>,
    /// `OPERATIONS/BLOCKS` of a hundred: `90/10`.
    pub(crate) hot_cold: Option<String>,
    /// Of a hundred operations, those of a scan beside the others.
    #[serde(default)]
    pub(crate) scan: u8,
    /// Stamp what is written and check what is read.
    #[serde(default)]
    pub(crate) verify: bool,
    /// Bytes of each.
    #[serde(default = "block")]
    pub(crate) block_size: u32,
    /// Write and read the whole range of each peer beforehand.
    #[serde(default = "yes")]
    pub(crate) prefill: bool,
    /// What reads and writes of a Forebay daemon must be for the run to count.
    expect: Option<Expect>,
}

const fn seventy() -> u8 {
    70
}
const fn single() -> u16 {
    1
}
const fn five() -> usize {
    5
}
const fn four() -> u32 {
    4
}
const fn one() -> usize {
    1
}
const fn block() -> u32 {
    4096
}
const fn yes() -> bool {
    true
}

impl Comparison {
    /// Reads the file; relative paths in it are relative to it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let fail = |error: &dyn core::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
        let mut all: Self = toml::from_str(&text).map_err(|error| fail(&error))?;
        let base = path.parent().filter(|base| !base.as_os_str().is_empty());
        let base = base.unwrap_or(Path::new("."));
        for peer in &mut all.peers {
            if peer.start.is_some() != peer.pid.is_some() {
                return Err(fail(&format!(
                    "peer \"{}\" has one of `start` and `pid`; give both, or none for a device \
                     that needs no target",
                    peer.name
                )));
            }
            peer.base = base.to_owned();
            peer.forebay = peer.forebay.take().map(|file| base.join(file));
            if let Some(file) = &peer.forebay {
                check_config(file, all.load_core)?;
            }
        }
        for work in &all.works {
            work.check(all.spdk_nvme_perf.is_some())
                .map_err(|why| fail(&format!("work \"{}\": {why}", work.name)))?;
        }
        let here = |program: &PathBuf| found(&program.to_string_lossy(), base);
        if all.spdk_nvme_perf.as_ref().is_some_and(|perf| !here(perf)) {
            all.absent_perf = all.spdk_nvme_perf.take();
        }
        if all.peers.len() < 2 || all.works.is_empty() || all.pairs == 0 {
            return Err(fail(&"at least two peers, one work and one pair are needed"));
        }
        Ok(all)
    }
}

impl Comparison {
    /// How it is measured, in words.
    pub(crate) fn method(&self) -> String {
        let initiator = match (&self.spdk_nvme_perf, &self.absent_perf) {
            (Some(_), _) => {
                "`spdk_nvme_perf` (what it does while warming up is estimated for instructions per I/O)"
            }
            (None, Some(_)) => {
                "`forebay bench` (`spdk_nvme_perf`, which the file names, is **absent**)"
            }
            (None, None) => "`forebay bench`",
        };
        format!(
            "Initiator {initiator} on core {} for all targets, which run one at a time; for each work {} pairs of the \
             subject with itself, then {} with each anchor in turn, each run {} s after 1 s of warming up.",
            self.load_core, self.pairs, self.pairs, self.seconds
        )
    }
}

impl PeerConfig {
    /// Why it cannot take part, where a program that it needs is not there.
    pub(crate) fn absence(&self) -> Option<String> {
        let missing = self.requires.iter().find(|program| !found(program, &self.base))?;
        Some(format!("no {missing} on this machine"))
    }
}

/// Whether a program is there, by its path from `base` or in `$PATH`.
fn found(program: &str, base: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let file = |path: PathBuf| path.is_file();
    if program.contains('/') {
        return file(base.join(program));
    }
    std::env::split_paths(&path).any(|dir| file(dir.join(program)))
}

impl Work {
    /// What its runs must be.
    pub(crate) fn expect(&self) -> Expect {
        self.expect.unwrap_or(Expect::default_of(self.reads()))
    }

    /// Whether it reads.
    pub(crate) fn reads(&self) -> bool {
        !matches!(self.rw.as_str(), "write" | "randwrite")
    }

    /// Whether it writes.
    pub(crate) fn writes(&self) -> bool {
        self.rw.parse().is_ok_and(Rw::writes)
    }

    /// Refuses what would be found out in the middle of a comparison.
    fn check(&self, spdk: bool) -> Result<()> {
        self.rw.parse::<Rw>().map_err(|error| error.to_string())?;
        if let Some(hot) = &self.hot_cold {
            hot.parse::<HotCold>().map_err(|error| error.to_string())?;
        }
        if let Some(arrivals) = &self.arrivals
            && (self.rate.is_none() || !["constant", "poisson"].contains(&arrivals.as_str()))
        {
            return Err(format!(
                "arrivals \"{arrivals}\"; accepted, with `rate`: constant, poisson"
            ));
        }
        if spdk && (self.rate.is_some() || self.hot_cold.is_some() || self.scan > 0 || self.verify)
        {
            return Err("`rate`, `hot_cold`, `scan` and `verify` need `forebay bench` as initiator: leave out \
                        spdk_nvme_perf"
                .to_owned());
        }
        Ok(())
    }

    /// The load in words.
    pub(crate) fn describe(&self) -> String {
        let Self { rw, queue_depth, block_size, connections, .. } = self;
        let mut text = format!("{rw}, {block_size} B, queue depth {queue_depth}");
        let mut add = |part: String| {
            text.push_str(", ");
            text.push_str(&part);
        };
        if rw == "randrw" {
            add(format!("{} % reads", self.read_percent));
        }
        if *connections > 1 {
            add(format!("{connections} connections"));
        }
        if let Some(rate) = self.rate {
            let arrivals = self.arrivals.as_deref().unwrap_or("constant");
            add(format!(
                "open loop of {rate} operations a second ({arrivals}), timed from when they are due"
            ));
        }
        if let Some(zipf) = self.zipf {
            add(format!("Zipf {zipf}"));
        }
        if let Some(hot) = &self.hot_cold {
            add(format!("hot set {hot}"));
        }
        if self.scan > 0 {
            add(format!("{} % of a scan", self.scan));
        }
        if self.verify {
            add("verified".to_owned());
        }
        add(format!("{:?} expected", self.expect()));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let read = |text: &str| -> Result<Comparison> {
            let path = std::env::temp_dir().join(format!("compare-{}.toml", std::process::id()));
            std::fs::write(&path, text).map_err(|error| error.to_string())?;
            let read = Comparison::read(&path);
            std::fs::remove_file(&path).map_err(|error| error.to_string())?;
            read
        };
        let work = "[[work]]\nname = \"w\"\nrw = \"randread\"\nqueue_depth = 1\n";
        let peer = "[[peer]]\nname = \"p\"\nuri = \"mem:?size=1M\"\n";
        assert!(read(&format!("namespace_mib = 1\n{peer}{peer}{work}")).is_ok());
        let error = read(&format!("namespace_mib = 1\n{peer}{work}")).unwrap_err();
        assert!(error.contains("two peers"), "{error}");
        let half = "[[peer]]\nname = \"q\"\nuri = \"mem:?size=1M\"\nstart = \"true\"\n";
        let error = read(&format!("namespace_mib = 1\n{peer}{half}{work}")).unwrap_err();
        assert!(error.contains("\"q\" has one of"), "{error}");
        for (key, word) in [
            ("rw = \"rnd\"", "access pattern"),
            ("hot_cold = \"9\"", "hot set"),
            ("arrivals = \"poisson\"", "with `rate`"),
            ("rate = 5\narrivals = \"bursts\"", "bursts"),
        ] {
            let rw = if key.starts_with("rw") { "" } else { "rw = \"randread\"\n" };
            let work = format!("[[work]]\nname = \"w\"\nqueue_depth = 1\n{rw}{key}\n");
            let error = read(&format!("namespace_mib = 1\n{peer}{peer}{work}")).unwrap_err();
            assert!(error.contains(word) && error.contains("work \"w\""), "{error}");
        }
        let open = format!("{work}rate = 100\n");
        let spdk = "namespace_mib = 1\nspdk_nvme_perf = \"x\"\n";
        let error = read(&format!("{spdk}{peer}{peer}{open}")).unwrap_err();
        assert!(error.contains("need `forebay bench`"), "{error}");
        let without = read(&format!("{spdk}{peer}{peer}{work}")).unwrap();
        assert!(without.spdk_nvme_perf.is_none() && without.method().contains("**absent**"));
        assert!(read(&format!("namespace_mib = 1\ntypo = 2\n{peer}{peer}{work}")).is_err());
    }
    #[test]
    fn a_peer_without_its_programs_is_absent_and_a_work_says_what_it_is() {
        let config = |requires: &str| -> PeerConfig {
            toml::from_str(&format!("name = \"p\"\nuri = \"mem:\"\nrequires = {requires}\n"))
                .unwrap()
        };
        assert_eq!(config("[\"sh\", \"/bin/sh\"]").absence(), None);
        let absence = config("[\"sh\", \"no-such-target\"]").absence();
        assert_eq!(absence.as_deref(), Some("no no-such-target on this machine"));
        assert!(config("[\"/no/such/target\"]").absence().is_some());
        let work: Work = toml::from_str(
            "name = \"w\"\nrw = \"randrw\"\nqueue_depth = 8\nrate = 100\nhot_cold = \"90/10\"\nscan = 5\n",
        )
        .unwrap();
        let text = work.describe();
        for part in
            ["70 % reads", "open loop of 100", "hot set 90/10", "5 % of a scan", "DeviceHits"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(work.reads() && work.writes());
    }
}
