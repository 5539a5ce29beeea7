//! What the tests of the real daemon share: the daemon as a process, a host over the project's own
//! initiator, and load whose every answer is held against a model.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test binary uses a part of it, and none of it is outside tests"
)]

pub mod daemon;
pub mod dir;
pub mod host;
pub mod load;
pub mod model;
pub mod mount;
pub mod ordered;
pub mod records;
pub mod setup;

pub use daemon::{Daemon, Refusal, forebay, forebay_armed, refused};
pub use dir::Dir;
pub use host::{Host, HostOptions};
pub use load::{Load, Plan};
pub use model::Model;
pub use mount::{Loop, Mount};
pub use setup::{Setup, Volume};

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Daemons killed by their tests so far, at moments that nothing in the daemon chose.
pub static RANDOM_KILLS: AtomicU64 = AtomicU64::new(0);
/// Daemons that ended at the failpoint they were armed with.
pub static FAILPOINT_KILLS: AtomicU64 = AtomicU64::new(0);

/// Says how often daemons were killed since this was last said, and how many blocks the test read in all
/// and found right. `ci/test` adds these lines up.
pub fn conclude(verified: u64) {
    println!(
        "total: {} random kills, {} at failpoints, {verified} blocks verified, 0 lost",
        RANDOM_KILLS.swap(0, Ordering::Relaxed),
        FAILPOINT_KILLS.swap(0, Ordering::Relaxed)
    );
}

/// Starts the node once more: everything reads right, and after a drain the backing file of its volume `v` is what the host
/// wrote. Returns the bytes compared.
pub fn last_look(setup: &Setup, load: &mut Load, backing: &Path) -> u64 {
    let daemon = Daemon::start(setup);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    load.verify(&mut host);
    load.assert_no_errors();
    host.disconnect();
    daemon.drain("v", Duration::from_secs(60));
    let compared = load.compare_file(backing);
    daemon.stop();
    compared
}

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// Waits until `done` gives something, and says what was waited for when it does not in time.
pub fn wait<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The seed of a test: `FOREBAY_TEST_SEED`, or this one; printed, so that a run can be repeated.
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var("FOREBAY_TEST_SEED")
        .ok()
        .map_or(default, |text| text.parse().expect("FOREBAY_TEST_SEED is a number"));
    println!("process: seed {seed}");
    seed
}
