//! Runs that would flatter, refused: what a Forebay peer's reads must have been, the log that must have
//! wrapped, checks that must be on, cores that must be apart.

use super::peer::Counters;
use crate::Result;
use crate::sample::Sample;
use crate::threads;
use serde::Deserialize;
use std::path::Path;

/// Turnovers of the cache device before a write run counts.
pub(crate) const TURNOVERS: u64 = 2;

/// What a run must be to show what it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Expect {
    /// Anything: nothing is claimed of where data came from or went to.
    Anything,
    /// Reads are hits on the cache device, not in the memory tier; writes as `WritesWrapped`.
    DeviceHits,
    /// Reads are hits in the memory tier; writes as `WritesWrapped`.
    MemoryHits,
    /// Reads are misses; writes as `WritesWrapped`.
    Misses,
    /// The log has wrapped twice before the run begins: each write needs room that was reclaimed.
    WritesWrapped,
}

impl Expect {
    /// Where nothing is said: the least flattering for loads of this kind.
    pub(crate) const fn default_of(reads: bool) -> Self {
        if reads { Self::DeviceHits } else { Self::WritesWrapped }
    }

    /// Whether the log must have wrapped for a load that writes.
    pub(crate) const fn wants_wrapped(self) -> bool {
        !matches!(self, Self::Anything)
    }

    /// Refuses a run whose reads were of another kind (above one of a hundred blocks).
    pub(crate) fn check_reads(self, work: &str, before: &Counters, after: &Counters) -> Result<()> {
        let memory = after.memory_hits - before.memory_hits;
        let device = (after.hits - before.hits) - memory;
        let misses = (after.misses - before.misses) + (after.bypassed - before.bypassed);
        let wanted = match self {
            Self::Anything | Self::WritesWrapped => return Ok(()),
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

    /// Refuses a write run that begins on a log with room that was never written, or one whose writes went
    /// past the cache.
    pub(crate) fn check_writes(
        self,
        work: &str,
        before: &Counters,
        after: &Counters,
    ) -> Result<()> {
        if !self.wants_wrapped() {
            return Ok(());
        }
        if before.capacity == 0 || before.written < TURNOVERS * before.capacity {
            return Err(format!(
                "{work}: the run does not count: its log has not wrapped twice: {} bytes written to a cache of {}",
                before.written, before.capacity
            ));
        }
        let past = after.bypassed_writes - before.bypassed_writes;
        let cached = after.cached_writes - before.cached_writes;
        if cached > 0 && past * 100 <= cached + past {
            return Ok(());
        }
        Err(format!(
            "{work}: the run does not count: {cached} blocks were written into the cache and {past} past it"
        ))
    }
}

/// Refuses a daemon's configuration that turns a check of data off, or has the load's core.
pub(crate) fn check_config(file: &Path, load_core: usize) -> Result<()> {
    let fail = |what: &dyn core::fmt::Display| format!("{}: {what}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| fail(&error))?;
    let table: toml::Table = text.parse().map_err(|error| fail(&error))?;
    if let Some(key) = table.iter().find_map(|(key, value)| unchecked_at(key, value)) {
        return Err(fail(&format!("{key}: runs with checks of data off do not count")));
    }
    let cores = table.get("node").and_then(|node| node.get("cores")).and_then(|c| c.as_array());
    let shared = cores.is_some_and(|cores| {
        cores
            .iter()
            .any(|core| core.as_integer().and_then(|c| usize::try_from(c).ok()) == Some(load_core))
    });
    if shared {
        return Err(fail(&format!("`cores` of [node] has core {load_core}, which is the load's")));
    }
    Ok(())
}

/// The first setting that turns a check off: a key, or an option of a URI.
fn unchecked_at(key: &str, value: &toml::Value) -> Option<String> {
    let off = match value {
        toml::Value::Boolean(on) => !on,
        toml::Value::Integer(number) => *number == 0,
        toml::Value::String(text) => is_off(text),
        _ => false,
    };
    if is_check(key) && off { Some(format!("{key} = {value}")) } else { unchecked(value) }
}

fn unchecked(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::Table(table) => table.iter().find_map(|(key, value)| unchecked_at(key, value)),
        toml::Value::Array(all) => all.iter().find_map(unchecked),
        toml::Value::String(uri) => uri
            .split(['?', '&'])
            .skip(1)
            .filter_map(|option| option.split_once('='))
            .find(|(name, value)| is_check(name) && is_off(value))
            .map(|(name, value)| format!("{name}={value}")),
        _ => None,
    }
}

fn is_check(name: &str) -> bool {
    ["crc", "checksum"].iter().any(|word| name.contains(word))
}

fn is_off(text: &str) -> bool {
    matches!(text, "off" | "no" | "none" | "false" | "0" | "never")
}

/// Refuses a daemon that is not the one that users get.
pub(crate) fn check_version(name: &str, version: &str) -> Result<()> {
    if version.contains(' ') {
        return Err(format!("{name} is version {version}: build it with cargo build --release"));
    }
    Ok(())
}

/// Refuses a target whose busiest thread may run where the load does.
pub(crate) fn check_cores(name: &str, pid: u32, thread: u32, load_core: usize) -> Result<()> {
    let cores = threads::allowed(pid, thread)?;
    if cores.contains(&load_core) {
        return Err(format!(
            "{name}: its busiest thread ({thread}) may run on core {load_core}, which is the load's: pin it to \
             another one"
        ));
    }
    Ok(())
}

/// Says that a run was disturbed; it is kept and marked.
pub(crate) fn tell_disturbance(work: &str, name: &str, sample: &Sample) {
    if let Some(what) = sample.disturbance() {
        eprintln!("{work}: {name}: disturbed: {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_run_of_other_reads_than_claimed_does_not_count() {
        let before = Counters { hits: 100, memory_hits: 10, misses: 7, ..Counters::default() };
        let after =
            Counters { hits: 1100, memory_hits: 15, misses: 9, bypassed: 1, ..Counters::default() };
        let check = |expect: Expect| expect.check_reads("work", &before, &after);
        assert!(check(Expect::DeviceHits).is_ok());
        assert!(check(Expect::Anything).is_ok());
        assert!(check(Expect::Misses).is_err());
        let error = check(Expect::MemoryHits).unwrap_err();
        assert!(error.contains("995 device hits, 5 memory hits, 3 misses"), "{error}");
        // Hits of the memory tier, and misses, where device hits are compared.
        for (memory_hits, misses) in [(500, 7), (10, 507)] {
            let after = Counters { hits: 1100, memory_hits, misses, ..Counters::default() };
            assert!(Expect::DeviceHits.check_reads("work", &before, &after).is_err());
        }
        // Nothing was read at all: nothing was shown.
        assert!(Expect::DeviceHits.check_reads("work", &before, &before).is_err());
    }

    #[test]
    fn a_write_run_on_a_log_that_has_not_wrapped_twice_does_not_count() {
        let counters = |written, cached_writes, bypassed_writes| Counters {
            written,
            capacity: 1000,
            cached_writes,
            bypassed_writes,
            ..Counters::default()
        };
        let check = |before, after| Expect::WritesWrapped.check_writes("work", &before, &after);
        assert!(check(counters(2000, 0, 0), counters(2500, 100, 1)).is_ok());
        let error = check(counters(1999, 0, 0), counters(9000, 100, 0)).unwrap_err();
        assert!(error.contains("not wrapped twice: 1999 bytes"), "{error}");
        let error = check(counters(2000, 0, 0), counters(2500, 100, 2)).unwrap_err();
        assert!(error.contains("2 past it"), "{error}");
        assert!(check(counters(2000, 0, 0), counters(2000, 0, 0)).is_err(), "nothing written");
        let (empty, full) = (Counters::default(), counters(0, 1, 0));
        assert!(Expect::Anything.check_writes("work", &empty, &full).is_ok());
        assert!(Expect::DeviceHits.check_writes("work", &empty, &full).is_err());
        assert_eq!(Expect::default_of(true), Expect::DeviceHits);
        assert_eq!(Expect::default_of(false), Expect::WritesWrapped);
    }

    #[test]
    fn a_configuration_without_checks_or_with_the_loads_core_is_refused() {
        let path = std::env::temp_dir().join(format!("refuse-{}.toml", std::process::id()));
        let check = |text: &str, core| {
            std::fs::write(&path, text).unwrap();
            check_config(&path, core)
        };
        let good = "[node]\ncores = [0, 2]\n[[cache]]\ndevice = \"mem:?size=1G\"\n";
        assert_eq!(check(good, 1), Ok(()));
        let error = check(good, 2).unwrap_err();
        assert!(error.contains("has core 2"), "{error}");
        for off in [
            "[[cache]]\ndevice = \"x\"\ncrc = false\n",
            "[cache_defaults]\ncrc_on_hit = \"off\"\n",
            "[[volume]]\nchecksums = 0\n",
            "[[cache]]\ndevice = \"mem:?size=1G&crc=off\"\n",
        ] {
            let error = check(off, 1).unwrap_err();
            assert!(error.contains("do not count"), "{error}");
        }
        assert!(check("[[cache]]\ndevice = \"mem:?crc=on\"\ncrc = true\n", 1).is_ok());
        std::fs::remove_file(&path).unwrap();
        assert!(check_version("Forebay", "0.1.0").is_ok());
        assert!(check_version("Forebay", "0.1.0 with failpoints, not for use").is_err());
    }

    #[test]
    fn a_target_that_may_have_the_loads_core_is_refused() {
        let own = std::process::id();
        let core = threads::allowed(own, own).unwrap()[0];
        let mut child =
            Command::new("taskset").args(["-c", &core.to_string(), "sleep", "60"]).spawn().unwrap();
        // `taskset` sets the mask and becomes the program.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while threads::allowed(child.id(), child.id()) != Ok(vec![core]) {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let apart = check_cores("target", child.id(), child.id(), core + 1);
        let shared = check_cores("target", child.id(), child.id(), core);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(apart, Ok(()));
        assert!(shared.unwrap_err().contains("may run on core"));
    }
}
