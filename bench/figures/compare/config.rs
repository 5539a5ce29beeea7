//! The comparison as a TOML file.

use super::peer::Counters;
use crate::Result;
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
    /// `spdk_nvme_perf`'s path, to use it for all peers in place of this project's initiator.
    pub(crate) spdk_nvme_perf: Option<PathBuf>,
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
    /// `randread`, `randwrite`, `read`, `write`.
    pub(crate) rw: String,
    /// Commands in flight.
    pub(crate) queue_depth: u16,
    /// Bytes of each.
    #[serde(default = "block")]
    pub(crate) block_size: u32,
    /// Write and read the whole range of each peer beforehand.
    #[serde(default = "yes")]
    pub(crate) prefill: bool,
    /// What reads of a Forebay daemon must be for the run to count.
    #[serde(default)]
    pub(crate) expect: Expect,
}

/// What reads must be, nearly all of them, for a run to show what it claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Expect {
    /// Anything.
    #[default]
    Anything,
    /// Hits on the cache device, not in the memory tier.
    DeviceHits,
    /// Hits in the memory tier.
    MemoryHits,
    /// Misses.
    Misses,
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
        let base = path.parent().unwrap_or(Path::new("."));
        for peer in &mut all.peers {
            if peer.start.is_some() != peer.pid.is_some() {
                return Err(fail(&format!(
                    "peer \"{}\" has one of `start` and `pid`; give both, or none for a device \
                     that needs no target",
                    peer.name
                )));
            }
            peer.forebay = peer.forebay.take().map(|file| base.join(file));
        }
        if all.peers.len() < 2 || all.works.is_empty() || all.pairs == 0 {
            return Err(fail(&"at least two peers, one work and one pair are needed"));
        }
        Ok(all)
    }
}

impl Expect {
    /// Refuses a run whose reads were of another kind (above one of a hundred blocks).
    pub(crate) fn check(self, work: &str, before: &Counters, after: &Counters) -> Result<()> {
        let memory = after.memory_hits - before.memory_hits;
        let device = (after.hits - before.hits) - memory;
        let misses = (after.misses - before.misses) + (after.bypassed - before.bypassed);
        let wanted = match self {
            Self::Anything => return Ok(()),
            Self::DeviceHits => device,
            Self::MemoryHits => memory,
            Self::Misses => misses,
        };
        let all = memory + device + misses;
        if wanted * 100 >= all * 99 && all > 0 {
            return Ok(());
        }
        Err(format!(
            "{work}: the run does not count: {device} device hits, {memory} memory hits, {misses} misses where {self:?} were expected"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_other_reads_than_claimed_does_not_count() {
        let before = Counters { hits: 100, memory_hits: 10, misses: 7, bypassed: 0 };
        let after = Counters { hits: 1100, memory_hits: 15, misses: 9, bypassed: 1 };
        let check = |expect: Expect| expect.check("work", &before, &after);
        assert!(check(Expect::DeviceHits).is_ok());
        assert!(check(Expect::Anything).is_ok());
        assert!(check(Expect::Misses).is_err());
        let error = check(Expect::MemoryHits).unwrap_err();
        assert!(error.contains("995 device hits, 5 memory hits, 3 misses"), "{error}");
        // Nothing was read at all: nothing was shown.
        assert!(Expect::DeviceHits.check("work", &before, &before).is_err());
    }

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
        assert!(read(&format!("namespace_mib = 1\ntypo = 2\n{peer}{peer}{work}")).is_err());
    }
}
