//! Where a figure was measured.

use serde::{Deserialize, Serialize};
use std::fs;
use std::process::Command;

/// The machine and its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// Frequency governor of the first core; absent where there is none, as in most virtual machines.
    pub(crate) governor: Option<String>,
    /// Whether instructions and cycles can be counted; why not.
    pub(crate) counters: core::result::Result<(), String>,
    pub(crate) load_before: String,
    pub(crate) load_after: String,
}

impl Machine {
    /// As it is now.
    pub(crate) fn look() -> Self {
        let first = |path: &str, start: &str| {
            let text = fs::read_to_string(path).ok()?;
            let line = text.lines().find(|line| line.starts_with(start))?;
            Some(line.rsplit(':').next().unwrap_or_default().trim().to_owned())
        };
        Self {
            cpu: first("/proc/cpuinfo", "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, core::num::NonZero::get),
            kernel: first("/proc/sys/kernel/osrelease", "").unwrap_or_default(),
            governor: first("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", ""),
            counters: counters(),
            load_before: first("/proc/loadavg", "").unwrap_or_default(),
            load_after: String::new(),
        }
    }

    /// The load average once all is measured.
    pub(crate) fn done(&mut self) {
        self.load_after = Self::look().load_before;
    }

    /// One line.
    pub(crate) fn show(&self) -> String {
        let Self { cpu, cores, kernel, governor, load_before, load_after, .. } = self;
        let governor = governor.as_deref().unwrap_or("none");
        let counters = match &self.counters {
            Ok(()) => "instructions and cycles counted by `perf stat`".to_owned(),
            Err(why) => format!("no instructions or cycles per I/O: {why}"),
        };
        format!(
            "{cores} × {cpu}, Linux {kernel}, governor {governor}, load average before {load_before}, after \
             {load_after}; {counters}."
        )
    }
}

fn counters() -> core::result::Result<(), String> {
    let done = Command::new("perf").args(["stat", "-x,", "-e", EVENTS, "true"]).output();
    let said = done.map_err(|error| format!("`perf` cannot be run ({error})"))?;
    let text = String::from_utf8_lossy(&said.stderr);
    match parse(&text) {
        Some(_) => Ok(()),
        None => Err("`perf stat` has no such counters on this machine".to_owned()),
    }
}

/// What is counted.
pub(crate) const EVENTS: &str = "instructions,cycles";

/// Instructions and cycles in the words of `perf stat -x,`.
pub(crate) fn parse(text: &str) -> Option<(f64, f64)> {
    let count = |event: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.split(',');
            let count = fields.next()?.trim().parse::<f64>().ok()?;
            let name = fields.nth(1)?;
            (name == event || name.starts_with(&format!("{event}:"))).then_some(count)
        })
    };
    Some((count("instructions")?, count("cycles")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_their_absence_is_seen() {
        let text = "# started\n\n123456,,instructions,1000,100.00,1.23,insn per cycle\n654,,cycles:u,1000,100.00,,\n";
        assert_eq!(parse(text), Some((123_456.0, 654.0)));
        let absent =
            "<not supported>,,instructions,0,100.00,,\n<not supported>,,cycles,0,100.00,,\n";
        assert_eq!(parse(absent), None);
        assert_eq!(parse("5,,instructions,1,100.00,,\n<not counted>,,cycles,0,0.00,,\n"), None);
    }

    #[test]
    fn the_machine_is_named() {
        let mut machine = Machine::look();
        machine.done();
        assert!(machine.cores > 0 && !machine.kernel.is_empty() && !machine.load_after.is_empty());
        machine.counters = Err("for a reason".to_owned());
        assert!(machine.show().contains("no instructions or cycles per I/O: for a reason"));
    }
}
