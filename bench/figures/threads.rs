//! What the threads of a target had of the processor, as the kernel counts it.

use crate::Result;
use std::collections::BTreeMap;
use std::fs;

/// Nanoseconds of each thread: on a core, and waiting for one (schedstat, in the kernel's
/// Documentation/scheduler/sched-stats.rst).
#[derive(Clone, Debug, Default)]
pub(crate) struct Threads(BTreeMap<u32, (u64, u64)>);

/// What happened between two looks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Usage {
    /// Seconds on cores, of all threads.
    pub(crate) seconds: f64,
    /// The thread that had the most.
    pub(crate) busiest: u32,
    /// Of the time in which that one wanted a core, the share in which it had one.
    pub(crate) core_share: f64,
}

impl Threads {
    /// Of a process, now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&path).map_err(|error| format!("{path}: {error}"))?;
        let mut all = BTreeMap::new();
        for task in tasks.flatten() {
            let Some(id) = task.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A thread may have ended since.
            let said = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let mut fields = said.split_whitespace().filter_map(|field| field.parse().ok());
            if let (Some(ran), Some(waited)) = (fields.next(), fields.next()) {
                all.insert(id, (ran, waited));
            }
        }
        Ok(Self(all))
    }

    /// What happened since `before`; `None` where no thread ran.
    pub(crate) fn since(&self, before: &Self) -> Option<Usage> {
        let spent = |id: &u32, now: &(u64, u64)| {
            let then = before.0.get(id).copied().unwrap_or_default();
            (now.0.saturating_sub(then.0), now.1.saturating_sub(then.1))
        };
        let all = || self.0.iter().map(|(id, now)| (*id, spent(id, now)));
        let (busiest, (ran, waited)) = all().max_by_key(|(_, (ran, _))| *ran)?;
        if ran == 0 {
            return None;
        }
        let seconds = |nanos| core::time::Duration::from_nanos(nanos).as_secs_f64();
        Some(Usage {
            seconds: seconds(all().map(|(_, (ran, _))| ran).sum()),
            busiest,
            core_share: seconds(ran) / seconds(ran + waited),
        })
    }
}

/// The cores that a thread may run on.
pub(crate) fn allowed(pid: u32, thread: u32) -> Result<Vec<usize>> {
    let path = format!("/proc/{pid}/task/{thread}/status");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    text.lines()
        .find_map(|line| cores(line.strip_prefix("Cpus_allowed_list:")?.trim()))
        .ok_or_else(|| format!("{path}: no Cpus_allowed_list"))
}

/// `0-2,5`.
fn cores(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(all)
}

/// Time of all cores, and of it what the machine's own host took (proc(5): /proc/stat), in ticks.
pub(crate) fn stolen() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let fields = text.lines().next()?.split_whitespace().skip(1).take(8);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    Some((ticks.iter().sum(), *ticks.get(7)?))
}

/// The share that the host took since then; 0 where it is not told.
pub(crate) fn stolen_since(then: Option<(u64, u64)>) -> f64 {
    let (Some((all, taken)), Some((all_now, taken_now))) = (then, stolen()) else { return 0.0 };
    #[expect(clippy::cast_precision_loss, reason = "ticks of one run")]
    let share = taken_now.saturating_sub(taken) as f64 / all_now.saturating_sub(all).max(1) as f64;
    share
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn the_busiest_thread_counts_and_what_it_waited() {
        let threads = |all: &[(u32, u64, u64)]| {
            Threads(all.iter().map(|(id, ran, waited)| (*id, (*ran, *waited))).collect())
        };
        let before = threads(&[(1, 100, 0), (2, 500_000_000, 7)]);
        let after = threads(&[(1, 200_000_100, 900), (2, 1_400_000_000, 100_000_007), (3, 0, 0)]);
        let usage = after.since(&before).unwrap();
        assert_eq!(usage.busiest, 2);
        assert!((usage.core_share - 0.9).abs() < 1e-9 && (usage.seconds - 1.1).abs() < 1e-9);
        assert_eq!(before.since(&before), None);
    }

    #[test]
    fn cores_are_read_from_the_kernels_list() {
        assert_eq!(cores("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(cores("3"), Some(vec![3]));
        assert_eq!(cores("x"), None);
        assert!(stolen().is_some_and(|(all, stolen)| all > stolen));
    }

    #[test]
    fn a_process_that_shares_its_core_is_seen_waiting() {
        // Two that spin, on the first core that they may have.
        let core = allowed(std::process::id(), std::process::id()).unwrap()[0].to_string();
        let spin = || {
            Command::new("taskset").args(["-c", &core, "sh", "-c", "while :; do :; done"]).spawn()
        };
        let mut children = [spin().unwrap(), spin().unwrap()];
        let pid = children[0].id();
        let (mut pinned, mut usage, mut before) = (None, None, None);
        // On a busy machine neither may run for seconds.
        let end = Instant::now() + Duration::from_secs(60);
        while usage.is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            pinned = allowed(pid, pid).ok();
            let now = Threads::of(pid).unwrap();
            let before = before.get_or_insert_with(|| now.clone());
            usage = now.since(before).filter(|usage: &Usage| usage.seconds > 0.2);
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(pinned, Some(vec![core.parse().unwrap()]));
        let usage = usage.expect("it ran");
        assert_eq!(usage.busiest, pid);
        assert!(usage.core_share < 0.9, "{usage:?}");
        assert!(Threads::of(pid).is_err(), "it is gone");
    }
}
