//! Checks of the machine as a whole.

use super::{Check, Machine, Verdict};
use forebay_control::ServeConfig;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

fn number(text: Option<&String>) -> Option<u64> {
    text?.parse().ok()
}

/// 2 MiB pages, per NUMA node where there are several.
pub(super) fn hugepages(machine: &Machine<'_>) -> Check {
    const DIR: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    const WANTED_PAGES: u64 = 512;
    let total = number(machine.read(&format!("{DIR}/nr_hugepages")).as_ref());
    let free = number(machine.read(&format!("{DIR}/free_hugepages")).as_ref());
    let nodes: Vec<String> = machine
        .list("/sys/devices/system/node")
        .into_iter()
        .filter(|name| name.starts_with("node") && name.len() > 4)
        .filter_map(|name| {
            let path = format!(
                "/sys/devices/system/node/{name}/hugepages/hugepages-2048kB/free_hugepages"
            );
            Some(format!("{name} {}", machine.read(&path)?))
        })
        .collect();
    let (verdict, measured) = match (total, free) {
        (Some(total), Some(free)) => {
            let by_node =
                if nodes.len() > 1 { format!(" ({})", nodes.join(", ")) } else { String::new() };
            let verdict = if free >= WANTED_PAGES { Verdict::Ok } else { Verdict::Advice };
            (verdict, format!("{free} of {total} pages of 2 MiB are free{by_node}"))
        }
        _ => (Verdict::Unknown, "the kernel has no 2 MiB pages".to_owned()),
    };
    Check {
        name: "hugepages".to_owned(),
        verdict,
        measured,
        wanted: "512 free pages of 2 MiB (1 GiB) or more: `[node] memory`",
        fix: format!(
            "sysctl vm.nr_hugepages={}",
            total.unwrap_or(0).saturating_sub(free.unwrap_or(0)) + WANTED_PAGES
        ),
        why: "buffers that never move are registered with devices once; without hugepages \
              ordinary pages are used, with more misses in the TLB",
    }
}

/// What may be locked in memory.
pub(super) fn memlock(machine: &Machine<'_>) -> Check {
    const WANTED: u64 = 1 << 30;
    let limits = machine.read("/proc/self/limits").unwrap_or_default();
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))
        .and_then(|rest| rest.split_whitespace().next().map(str::to_owned));
    let verdict = match soft.as_deref() {
        Some("unlimited") => Verdict::Ok,
        Some(text) => match text.parse::<u64>() {
            Ok(bytes) if bytes >= WANTED => Verdict::Ok,
            Ok(_) => Verdict::Advice,
            Err(_) => Verdict::Unknown,
        },
        None => Verdict::Unknown,
    };
    let measured = match soft.as_deref() {
        Some("unlimited") => "unlimited".to_owned(),
        Some(bytes) => format!("{bytes} bytes"),
        None => "not known".to_owned(),
    };
    Check {
        name: "locked memory".to_owned(),
        verdict,
        measured,
        wanted: "unlimited, or at least `[node] memory`",
        fix: "ulimit -l unlimited; under systemd: LimitMEMLOCK=infinity".to_owned(),
        why: "buffers registered with io_uring are locked; over the limit they are not registered \
              and each I/O pays for pinning pages",
    }
}

/// Whether io_uring may be used.
pub(super) fn io_uring(machine: &Machine<'_>) -> Check {
    let release = machine.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    // The switch came with Linux 6.6; where it is not there, nothing is switched off.
    let disabled = machine.read("/proc/sys/kernel/io_uring_disabled");
    let filtered = machine
        .read("/proc/self/status")
        .is_some_and(|status| status.lines().any(|line| line == "Seccomp:\t2"));
    let (verdict, measured, fix) = match (version, disabled.as_deref()) {
        (version, _) if version < (5, 11) => {
            (Verdict::Problem, format!("Linux {release}"), "install Linux 5.11 or newer")
        }
        (_, Some("2")) => (
            Verdict::Problem,
            "switched off for everybody".to_owned(),
            "sysctl kernel.io_uring_disabled=0",
        ),
        (_, Some("1")) => (
            Verdict::Advice,
            "only for privileged processes and one group".to_owned(),
            "sysctl kernel.io_uring_disabled=0, or run as root",
        ),
        _ if filtered => (
            Verdict::Unknown,
            format!("Linux {release}, but system calls are filtered here"),
            "in a container, let the seccomp profile pass io_uring_setup, io_uring_enter and \
             io_uring_register",
        ),
        _ => (Verdict::Ok, format!("Linux {release}, not switched off"), ""),
    };
    Check {
        name: "io_uring".to_owned(),
        verdict,
        measured,
        wanted: "Linux 5.11 or newer, kernel.io_uring_disabled = 0",
        fix: fix.to_owned(),
        why: "files and block devices are driven through io_uring",
    }
}

/// Cores that the scheduler leaves alone.
pub(super) fn isolated(machine: &Machine<'_>) -> Check {
    let cores = machine.read("/sys/devices/system/cpu/isolated");
    let online = machine.read("/sys/devices/system/cpu/online").unwrap_or_default();
    let verdict = match cores.as_deref() {
        Some("") => Verdict::Advice,
        Some(_) => Verdict::Ok,
        None => Verdict::Unknown,
    };
    let shown = cores.filter(|cores| !cores.is_empty()).unwrap_or_else(|| "none".to_owned());
    Check {
        name: "isolated cores".to_owned(),
        verdict,
        measured: format!("{shown} of {online}"),
        wanted: "the cores of `[node] cores`, with poll = \"busy\"; none for poll = \"adaptive\"",
        fix: "kernel command line: isolcpus=managed_irq,domain,CORES nohz_full=CORES \
              rcu_nocbs=CORES; then reboot"
            .to_owned(),
        why: "a reactor that shares its core waits for whatever else runs there: it shows at p99.9",
    }
}

/// Frequency scaling.
pub(super) fn governor(machine: &Machine<'_>) -> Check {
    let mut governors: Vec<String> = machine
        .list("/sys/devices/system/cpu")
        .iter()
        .filter_map(|cpu| {
            machine.read(&format!("/sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor"))
        })
        .collect();
    governors.sort();
    governors.dedup();
    let (verdict, measured) = if governors.is_empty() {
        (Verdict::Ok, "none: the hypervisor or firmware decides".to_owned())
    } else if governors.iter().all(|governor| governor == "performance") {
        (Verdict::Ok, "performance".to_owned())
    } else {
        (Verdict::Advice, governors.join(", "))
    };
    Check {
        name: "frequency governor".to_owned(),
        verdict,
        measured,
        wanted: "performance",
        fix: "cpupower frequency-set -g performance".to_owned(),
        why: "a core that has just been idle runs slowly for the first requests",
    }
}

/// What the time is read from.
pub(super) fn clock(machine: &Machine<'_>) -> Check {
    let source = machine
        .read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .unwrap_or_default();
    let verdict = match source.as_str() {
        "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "arch_sys_counter" => Verdict::Ok,
        "" => Verdict::Unknown,
        _ => Verdict::Advice,
    };
    Check {
        name: "clock source".to_owned(),
        verdict,
        measured: if source.is_empty() { "not known".to_owned() } else { source },
        wanted: "one that is read without a system call: tsc, kvm-clock, arch_sys_counter",
        fix: "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"
            .to_owned(),
        why: "every poll and every request reads the time",
    }
}

/// The longest pause of a thread that does nothing but look at the clock.
pub(super) fn jitter() -> Check {
    const SPAN: Duration = Duration::from_millis(200);
    const WANTED: Duration = Duration::from_micros(1000);
    let start = Instant::now();
    let (mut last, mut longest) = (start, Duration::ZERO);
    while last - start < SPAN {
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
    }
    Check {
        name: "scheduling".to_owned(),
        verdict: if longest <= WANTED { Verdict::Ok } else { Verdict::Advice },
        measured: format!("longest pause {} us in {} ms", longest.as_micros(), SPAN.as_millis()),
        wanted: "1000 us or less",
        fix: "leave the reactors' cores to them: see isolated cores; look for other load"
            .to_owned(),
        why: "no request is answered during such a pause, whatever we do",
    }
}

/// Whether the listening addresses are free.
pub(super) fn ports(config: Option<&ServeConfig>, daemon: bool) -> Vec<Check> {
    let addresses: Vec<SocketAddr> = match config {
        Some(config) => config.listen.iter().map(|listen| listen.address).collect(),
        None => vec![SocketAddr::from(([127, 0, 0, 1], forebay_control::config::PORT))],
    };
    addresses.into_iter().map(|address| port(address, daemon)).collect()
}

pub(super) fn port(address: SocketAddr, daemon: bool) -> Check {
    let (verdict, measured) = match TcpListener::bind(address) {
        Ok(_) => (Verdict::Ok, "free".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && daemon => {
            (Verdict::Ok, "in use, and a daemon answers on the control socket".to_owned())
        }
        Err(error) => (Verdict::Problem, error.to_string()),
    };
    Check {
        name: format!("address {address}"),
        verdict,
        measured,
        wanted: "free, and this machine's",
        fix: format!(
            "ss -ltnp 'sport = :{}' shows who listens there; `[[listen]]` names another",
            address.port()
        ),
        why: "hosts connect there",
    }
}
