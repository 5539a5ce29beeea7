//! Checks against made-up machines.

use super::*;
use std::path::PathBuf;

/// A directory in the shape of the kernel's.
struct Fake(PathBuf);

impl Fake {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root =
            std::env::temp_dir().join(format!("forebay-doctor-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
        Self(root)
    }

    fn machine(&self) -> Machine<'_> {
        Machine { root: &self.0 }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const PAGES: &str = "sys/kernel/mm/hugepages/hugepages-2048kB";

#[test]
fn a_good_machine_passes_and_a_bare_one_is_told_what_to_do() {
    let nr = format!("{PAGES}/nr_hugepages");
    let free = format!("{PAGES}/free_hugepages");
    let good = Fake::new(
        "good",
        &[
            (&nr, "1024"),
            (&free, "1000"),
            (
                "proc/self/limits",
                "Limit  Soft\nMax locked memory         unlimited            unlimited   bytes",
            ),
            ("proc/sys/kernel/osrelease", "6.1.0-18-amd64"),
            ("sys/devices/system/cpu/isolated", "2-3"),
            ("sys/devices/system/cpu/online", "0-3"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
        ],
    );
    let machine = good.machine();
    for check in [
        checks::hugepages(&machine),
        checks::memlock(&machine),
        checks::io_uring(&machine),
        checks::isolated(&machine),
        checks::governor(&machine),
        checks::clock(&machine),
    ] {
        assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
    }
    let bad = Fake::new(
        "bad",
        &[
            (&nr, "8"),
            (&free, "3"),
            ("proc/self/limits", "Max locked memory         65536                65536   bytes"),
            ("proc/sys/kernel/osrelease", "6.8.0"),
            ("proc/sys/kernel/io_uring_disabled", "2"),
            ("sys/devices/system/cpu/isolated", ""),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"),
        ],
    );
    let machine = bad.machine();
    let pages = checks::hugepages(&machine);
    assert_eq!(
        (pages.verdict, pages.fix.as_str()),
        (Verdict::Advice, "sysctl vm.nr_hugepages=517")
    );
    assert_eq!(checks::memlock(&machine).verdict, Verdict::Advice);
    let uring = checks::io_uring(&machine);
    assert_eq!(uring.verdict, Verdict::Problem);
    assert_eq!(uring.fix, "sysctl kernel.io_uring_disabled=0");
    assert_eq!(checks::isolated(&machine).verdict, Verdict::Advice);
    assert_eq!(checks::governor(&machine).verdict, Verdict::Advice);
    assert_eq!(checks::clock(&machine).verdict, Verdict::Advice);
    let old = Fake::new("old", &[("proc/sys/kernel/osrelease", "5.10.0-28")]);
    assert_eq!(checks::io_uring(&old.machine()).verdict, Verdict::Problem);
}

#[test]
fn write_caches_are_judged_by_what_is_declared() {
    let fake = Fake::new(
        "caches",
        &[
            ("sys/block/nvme0n1/queue/write_cache", "write back"),
            ("sys/block/nvme1n1/queue/write_cache", "write through"),
            ("sys/block/sda/queue/write_cache", "write back"),
        ],
    );
    let all = devices::caches(&fake.machine(), None);
    let verdicts: Vec<_> = all.iter().map(|check| check.verdict).collect();
    assert_eq!(verdicts, [Verdict::Advice, Verdict::Ok]);
}

#[test]
fn a_port_in_use_is_a_problem_unless_a_daemon_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(checks::port(address, false).verdict, Verdict::Problem);
    assert_eq!(checks::port(address, true).verdict, Verdict::Ok);
    drop(listener);
    assert_eq!(checks::port(address, false).verdict, Verdict::Ok);
}

#[test]
fn this_machine_gets_a_report_with_every_fix_filled_in() {
    let checks = all(&Machine { root: Path::new("/") }, None, false);
    assert!(checks.len() >= 8);
    for check in &checks {
        let silent = check.measured.is_empty() || check.wanted.is_empty() || check.why.is_empty();
        assert!(!silent, "{check:?}");
        assert!(check.verdict == Verdict::Ok || !check.fix.is_empty(), "{check:?}");
    }
    assert!(table(&checks).contains("io_uring"));
}
