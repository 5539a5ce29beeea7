//! Signals of the daemon: blocked in every thread, taken by the main one.

use std::time::Duration;

/// Blocks SIGINT and SIGTERM in this thread and all that it starts from now on.
pub(crate) fn block() {
    let set = stop_signals();
    // SAFETY: `set` is an initialised signal set; no old set is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, core::ptr::null_mut()) };
}

/// Waits for SIGINT or SIGTERM for at most `limit`. Returns whether one came.
pub(crate) fn wait(limit: Duration) -> bool {
    let set = stop_signals();
    let limit = libc::timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // SAFETY: both are valid during the call; no information is asked for.
    unsafe { libc::sigtimedwait(&raw const set, core::ptr::null_mut(), &raw const limit) > 0 }
}

fn stop_signals() -> libc::sigset_t {
    let mut set = core::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; the others change an initialised one, and the numbers
    // are signals that exist.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        set.assume_init()
    }
}
