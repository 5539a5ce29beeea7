//! Waiting in the kernel: epoll and eventfd.

use core::time::Duration;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What to be told about a file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// There is something to read (also: end of stream, errors).
    pub read: bool,
    /// There is room to write.
    pub write: bool,
}

impl Interest {
    /// Only readability.
    pub const READ: Self = Self { read: true, write: false };
    /// Both.
    pub const BOTH: Self = Self { read: true, write: true };
}

/// How often to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// As long as it holds.
    Level,
    /// Each time it comes to hold.
    Edge,
}

/// An event of an [`Epoll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key that the descriptor was added with.
    pub key: u64,
    /// There is something to read.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The other side is gone or an error is pending; reading tells which.
    pub closed: bool,
}

/// The most events that one wait returns.
pub const MAX_EVENTS: usize = 256;

/// A set of file descriptors to wait for.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// Where the kernel refuses (file descriptors are used up).
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        Ok(Self { fd: owned(fd)? })
    }

    /// Adds a descriptor.
    ///
    /// # Errors
    /// The kernel's: already added, cannot be waited for, limits.
    pub fn add(&self, fd: RawFd, key: u64, what: Interest, trigger: Trigger) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, key, what, trigger)
    }

    /// Changes what is told of a descriptor.
    ///
    /// # Errors
    /// The kernel's: not added.
    pub fn change(&self, fd: RawFd, key: u64, what: Interest, trigger: Trigger) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, key, what, trigger)
    }

    /// Removes a descriptor; closing its last copy does so, too.
    ///
    /// # Errors
    /// The kernel's: not added.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, Interest::READ, Trigger::Level)
    }

    fn control(
        &self,
        operation: i32,
        fd: RawFd,
        key: u64,
        what: Interest,
        trigger: Trigger,
    ) -> io::Result<()> {
        let mut events = 0;
        if what.read {
            events |= libc::EPOLLIN | libc::EPOLLRDHUP;
        }
        if what.write {
            events |= libc::EPOLLOUT;
        }
        if trigger == Trigger::Edge {
            events |= libc::EPOLLET;
        }
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: key };
        // SAFETY: `event` is valid during the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) })?;
        Ok(())
    }

    /// Waits until something holds, `limit` has passed (`None`: for ever; zero: not at all) or a signal
    /// arrives; appends what holds to `events`.
    ///
    /// # Errors
    /// The kernel's; an interruption by a signal is no error.
    pub fn wait(&self, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let mut raw = [libc::epoll_event { events: 0, u64: 0 }; MAX_EVENTS];
        let count = match limit {
            Some(Duration::ZERO) => self.wait_millis(&mut raw, 0),
            None => self.wait_millis(&mut raw, -1),
            Some(limit) => self.wait_nanos(&mut raw, limit),
        };
        let count = match count {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        events.extend(raw.iter().take(count).map(|event| {
            let bits = event.events.cast_signed();
            Event {
                key: event.u64,
                readable: bits & libc::EPOLLIN != 0,
                writable: bits & libc::EPOLLOUT != 0,
                closed: bits & (libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) != 0,
            }
        }));
        Ok(())
    }

    fn wait_millis(&self, raw: &mut [libc::epoll_event], millis: i32) -> io::Result<usize> {
        let room = i32::try_from(raw.len()).unwrap_or(i32::MAX);
        // SAFETY: `raw` has room for `room` events.
        let count =
            unsafe { libc::epoll_wait(self.fd.as_raw_fd(), raw.as_mut_ptr(), room, millis) };
        check(count)
    }

    /// epoll_pwait2 (Linux 5.11) waits with nanoseconds; without it milliseconds are rounded up.
    fn wait_nanos(&self, raw: &mut [libc::epoll_event], limit: Duration) -> io::Result<usize> {
        static MISSING: AtomicBool = AtomicBool::new(false);
        if !MISSING.load(Ordering::Relaxed) {
            let timeout = libc::timespec {
                tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(limit.subsec_nanos()),
            };
            // SAFETY: `raw` has room for its length of events; `timeout` is valid during the call; no
            // signal mask is passed.
            let count = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    self.fd.as_raw_fd(),
                    raw.as_mut_ptr(),
                    raw.len(),
                    &raw const timeout,
                    core::ptr::null::<libc::sigset_t>(),
                    0usize,
                )
            };
            match check(i32::try_from(count).unwrap_or(-1)) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                    MISSING.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        let millis = limit.as_nanos().div_ceil(1_000_000);
        self.wait_millis(raw, i32::try_from(millis).unwrap_or(i32::MAX))
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A counter in the kernel that can be waited for.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// A new one, at zero.
    ///
    /// # Errors
    /// Where the kernel refuses (file descriptors are used up).
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self { fd: owned(fd)? })
    }

    /// Adds one. Waited for with [`Trigger::Edge`] it never needs to be read.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are valid to read. The only failure is a counter that is full after 2^64
        // signals, which is readable anyway.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// What wakes a sleeping reactor besides its mailbox: sockets, sets of sockets, rings. Clones share.
#[derive(Clone, Debug)]
pub struct WaitSet {
    epoll: Rc<Epoll>,
}

impl WaitSet {
    /// An empty set; reactors make their own, tests and tools this one.
    ///
    /// # Errors
    /// Where the kernel refuses (file descriptors are used up).
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Rc::new(Epoll::new()?) })
    }

    /// From now on the reactor wakes while `fd` is readable; its service must then make it unreadable.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&self, fd: RawFd) -> io::Result<()> {
        self.epoll.add(fd, 0, Interest::READ, Trigger::Level)
    }

    /// From now on the reactor wakes each time `fd` becomes readable.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_edge(&self, fd: RawFd) -> io::Result<()> {
        self.epoll.add(fd, 0, Interest::READ, Trigger::Edge)
    }

    /// The descriptor no longer wakes the reactor.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.epoll.remove(fd)
    }

    /// Waits as [`Epoll::wait`]; what holds is found out by polling.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        events.clear();
        self.epoll.wait(limit, events)
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
