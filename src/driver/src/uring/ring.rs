//! The ring of a reactor: operations in, completions out, one call into the kernel per poll at most.

use super::entry::{self, Place};
use super::file::UringError;
use core::time::Duration;
use forebay_io::{Completion, DeviceError, Op, OpKind};
use forebay_reactor::pool::MAX_REGIONS;
use forebay_reactor::{EventFd, PoolBuf, RegionTable, WaitSet};
use io_uring::{EnterFlags, IoUring, squeue};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

/// Entries of the submission queue.
const ENTRIES: u32 = 1024;
/// Operations under way on one ring at most; the completion queue has room for twice as many.
const RING_MAX: usize = 4096;
/// Operations under way on one device at most, so that a device that hangs leaves room for others.
pub(super) const DEVICE_MAX: usize = 1024;
/// Files of one ring at most that are registered; further ones are used by their descriptors.
const FILES_MAX: u32 = 256;
/// How long a ring that is dropped waits for operations that are under way.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// Where an operation stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Itself, with this many bytes moved by earlier, short transfers.
    Moving(u32),
    /// A flush after it, since the kernel has no write-through version of it.
    Syncing,
}

/// An operation under way: it owns its buffer, so that the kernel's view of it stays valid.
struct Under {
    device: usize,
    op: Op<PoolBuf>,
    stage: Stage,
}

/// A device on the ring; outlives its handle while operations are under way.
struct OnRing {
    done: VecDeque<Completion<PoolBuf>>,
    in_flight: usize,
    place: Place,
    block_device: bool,
    /// Whether there is a handle that wants the completions.
    wanted: bool,
    /// Keeps the descriptor of `place` open, and with it the lock on the file.
    file: File,
}

/// What is known of a region's place in the table of registered buffers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Registered {
    NotYet,
    Yes,
    /// The kernel refused: locked memory is used up, or it is too old.
    No,
}

/// What a ring did and what the kernel gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Calls into the kernel.
    pub enters: u64,
    /// Operations handed to it, continuations of short ones included.
    pub submitted: u64,
    /// Of those, reads and writes with a registered buffer.
    pub registered_io: u64,
    /// Buffer regions registered.
    pub regions: u32,
    /// Buffer regions that the kernel would not register.
    pub regions_refused: u32,
    /// Whether completions run only when asked for (Linux 6.1).
    pub deferred: bool,
}

pub(super) struct Inner {
    ring: IoUring,
    table: Arc<RegionTable>,
    /// By index in `table`; empty where the kernel has no table of buffers.
    registered: Vec<Registered>,
    files: bool,
    under: Vec<Option<Under>>,
    free: Vec<usize>,
    devices: Vec<Option<OnRing>>,
    /// Operations that had no room in the submission queue, or go on after a short transfer.
    again: VecDeque<usize>,
    stats: RingStats,
    /// Signalled by the kernel when there is something to reap, for a reactor that sleeps.
    _wake: EventFd,
}

/// The io_uring of one reactor, made and used on its thread. Clones share it.
#[derive(Clone)]
pub struct Ring(pub(super) Rc<RefCell<Inner>>);

/// The ring with the best flags that the kernel knows, and whether completions are deferred.
fn build() -> io::Result<(IoUring, bool)> {
    let sized = || {
        let mut builder = IoUring::builder();
        // Twice RING_MAX, so that the queue cannot overflow.
        builder.setup_clamp().setup_cqsize(8192);
        builder
    };
    // One thread submits, and completions run when it asks, without interrupting it (Linux 6.1).
    let mut deferred = sized();
    deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    if let Ok(ring) = deferred.build(ENTRIES) {
        return Ok((ring, true));
    }
    // Completions do not interrupt it (5.19).
    let mut cooperative = sized();
    cooperative.setup_coop_taskrun().setup_taskrun_flag();
    if let Ok(ring) = cooperative.build(ENTRIES) {
        return Ok((ring, false));
    }
    sized().build(ENTRIES).map(|ring| (ring, false))
}

impl Ring {
    /// The ring of this thread, which wakes the reactor of `wait`.
    ///
    /// # Errors
    /// Where the kernel has no io_uring for this process.
    pub(crate) fn new(table: Arc<RegionTable>, wait: &WaitSet) -> Result<Self, UringError> {
        let (ring, deferred) = build().map_err(UringError::NoRing)?;
        // The ring's own descriptor is not reliably readable while completions are deferred; an
        // eventfd is signalled by every kernel.
        let wake = EventFd::new().map_err(UringError::NoRing)?;
        ring.submitter().register_eventfd(wake.as_raw_fd()).map_err(UringError::NoRing)?;
        // Edge-triggered: it is never read.
        wait.add_edge(wake.as_raw_fd()).map_err(UringError::NoRing)?;
        let places = u32::try_from(MAX_REGIONS).unwrap_or(0);
        let buffers = ring.submitter().register_buffers_sparse(places).is_ok();
        let files = ring.submitter().register_files_sparse(FILES_MAX).is_ok();
        let inner = Inner {
            ring,
            table,
            registered: if buffers { vec![Registered::NotYet; MAX_REGIONS] } else { Vec::new() },
            files,
            under: Vec::with_capacity(DEVICE_MAX),
            free: Vec::with_capacity(DEVICE_MAX),
            devices: Vec::new(),
            again: VecDeque::with_capacity(DEVICE_MAX),
            stats: RingStats { deferred, ..RingStats::default() },
            _wake: wake,
        };
        Ok(Self(Rc::new(RefCell::new(inner))))
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        self.0.borrow().stats
    }
}

impl Inner {
    /// Puts a file on the ring and returns its number there.
    pub(super) fn add(&mut self, file: File, block_device: bool) -> usize {
        let at = self.devices.iter().position(Option::is_none).unwrap_or(self.devices.len());
        let fd = file.as_raw_fd();
        let fixed = u32::try_from(at).ok().filter(|at| {
            self.files
                && *at < FILES_MAX
                && self.ring.submitter().register_files_update(*at, &[fd]).is_ok()
        });
        let device = OnRing {
            done: VecDeque::with_capacity(DEVICE_MAX),
            in_flight: 0,
            place: fixed.map_or(Place::Descriptor(fd), Place::Registered),
            block_device,
            wanted: true,
            file,
        };
        if at == self.devices.len() {
            self.devices.push(Some(device));
        } else {
            self.devices[at] = Some(device);
        }
        at
    }

    /// A device's file, unless it is a block device.
    pub(super) fn file_of(&self, at: usize) -> Option<&File> {
        let device = self.devices.get(at)?.as_ref()?;
        (!device.block_device).then_some(&device.file)
    }

    /// The handle is gone; the file closes with the last operation.
    pub(super) fn give_up(&mut self, at: usize) {
        if let Some(Some(device)) = self.devices.get_mut(at) {
            device.wanted = false;
            device.done.clear();
        }
        self.close_if_unused(at);
    }

    fn close_if_unused(&mut self, at: usize) {
        let Some(Some(device)) = self.devices.get(at) else { return };
        if device.wanted || device.in_flight > 0 {
            return;
        }
        if let Place::Registered(place) = device.place {
            // The table holds the file open, too.
            let _ = self.ring.submitter().register_files_update(place, &[-1]);
        }
        self.devices[at] = None;
    }

    /// Takes an operation; gives it back where there is no room.
    pub(super) fn start(&mut self, at: usize, op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        let Some(Some(device)) = self.devices.get_mut(at) else { return Err(op) };
        if device.in_flight >= DEVICE_MAX || self.under.len() - self.free.len() >= RING_MAX {
            return Err(op);
        }
        device.in_flight += 1;
        let under = Some(Under { device: at, op, stage: Stage::Moving(0) });
        let number = self.free.pop().unwrap_or(self.under.len());
        if number == self.under.len() {
            self.under.push(under);
        } else {
            self.under[number] = under;
        }
        self.push(number);
        Ok(())
    }

    /// A completion that never went to the kernel.
    pub(super) fn refuse(&mut self, at: usize, op: Op<PoolBuf>, error: DeviceError) {
        if let Some(Some(device)) = self.devices.get_mut(at) {
            let refused = Completion { token: op.token, result: Err(error), buf: op.buf };
            device.done.push_back(refused);
        }
    }

    /// Moves a device's completions to `done`; how many.
    pub(super) fn take_done(&mut self, at: usize, done: &mut Vec<Completion<PoolBuf>>) -> usize {
        let Some(Some(device)) = self.devices.get_mut(at) else { return 0 };
        let count = device.done.len();
        done.extend(device.done.drain(..));
        count
    }

    /// Operations of a device that have not been taken by `take_done`.
    pub(super) fn in_flight(&self, at: usize) -> usize {
        let device = self.devices.get(at).and_then(Option::as_ref);
        device.map_or(0, |device| device.in_flight + device.done.len())
    }

    /// The place of a buffer's region in the table of registered buffers.
    fn region_of(&mut self, buf: &PoolBuf) -> Option<u16> {
        let region = buf.region();
        let known = self.registered.get_mut(usize::from(region))?;
        if *known == Registered::NotYet {
            let mapped = self.table.get(region)?;
            let whole = libc::iovec { iov_base: mapped.as_ptr().cast(), iov_len: mapped.len() };
            // SAFETY: the region stays mapped as long as the table, which this ring keeps alive.
            let done = unsafe {
                self.ring.submitter().register_buffers_update(u32::from(region), &[whole], None)
            };
            *known = if done.is_ok() { Registered::Yes } else { Registered::No };
            self.stats.regions += u32::from(done.is_ok());
            self.stats.regions_refused += u32::from(done.is_err());
        }
        // A buffer of another table may have the same index: only its address tells.
        let ours = self.table.get(region)?.offset_of(buf.as_ptr(), 1).is_some();
        (*known == Registered::Yes && ours).then_some(region)
    }

    /// The submission entry of an operation in its stage.
    fn entry(&mut self, number: usize) -> Option<squeue::Entry> {
        let under = self.under.get_mut(number)?.as_mut()?;
        let device = self.devices.get(under.device)?.as_ref()?;
        let (place, block_device) = (device.place, device.block_device);
        // The buffer leaves its slot for the time of the look-up, which needs all of `self`.
        let buf = under.op.buf.take();
        let region = buf.as_ref().and_then(|buf| self.region_of(buf));
        let under = self.under.get_mut(number)?.as_mut()?;
        under.op.buf = buf;
        self.stats.registered_io += u64::from(region.is_some());
        let entry = entry::build(&under.op, under.stage, place, region, block_device)?;
        Some(entry.user_data(u64::try_from(number).ok()?))
    }

    /// Puts an operation's entry into the submission queue, or the operation onto the waiting list.
    fn push(&mut self, number: usize) {
        let Some(entry) = self.entry(number) else {
            self.finish(number, Err(DeviceError::Io(libc::EINVAL)));
            return;
        };
        if self.ring.submission().is_full() {
            self.enter();
        }
        // SAFETY: the buffer and the file of the entry are owned by `under` and `devices` until the
        // completion has arrived; on drop they are leaked rather than freed before that.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.again.push_back(number);
        }
    }

    /// One call into the kernel: hands over what was pushed and runs what has completed. What it does
    /// not take now stays in the queue for the next poll.
    fn enter(&mut self) {
        let pushed = self.ring.submission().len();
        let to_submit = u32::try_from(pushed).unwrap_or(u32::MAX);
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed beside numbers.
        let taken =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(to_submit, 0, flags, None) };
        self.stats.enters += 1;
        self.stats.submitted += taken.map_or(0, |taken| u64::try_from(taken).unwrap_or(0));
    }

    /// Hands over what was pushed and sorts what has completed to its devices.
    pub(super) fn poll(&mut self) {
        for _ in 0..self.again.len() {
            if let Some(number) = self.again.pop_front() {
                self.push(number);
            }
        }
        let submission = self.ring.submission();
        let work = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if work {
            self.enter();
        }
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            self.completed(
                usize::try_from(entry.user_data()).unwrap_or(usize::MAX),
                entry.result(),
            );
        }
    }

    /// The kernel's answer to the entry of an operation.
    fn completed(&mut self, number: usize, result: i32) {
        let Some(Some(under)) = self.under.get_mut(number) else { return };
        let ended = match (u32::try_from(result), under.stage) {
            (Err(_), _) if matches!(-result, libc::EAGAIN | libc::EINTR) => None,
            (Err(_), _) => Some(Err(entry::device_error(-result))),
            (Ok(_), Stage::Syncing) => Some(Ok(())),
            (Ok(moved), Stage::Moving(before)) => match under.op.kind {
                // Nothing moved: beyond the end of a file that was cut short.
                OpKind::Read | OpKind::Write if moved == 0 => Some(Err(DeviceError::OutOfRange)),
                OpKind::Read | OpKind::Write => {
                    under.stage = Stage::Moving(before + moved);
                    (u64::from(before + moved) >= under.op.len).then_some(Ok(()))
                }
                OpKind::Deallocate | OpKind::WriteZeroes if under.op.fua => {
                    under.stage = Stage::Syncing;
                    None
                }
                OpKind::Deallocate | OpKind::WriteZeroes | OpKind::Flush => Some(Ok(())),
            },
        };
        match ended {
            Some(result) => self.finish(number, result),
            None => self.again.push_back(number),
        }
    }

    fn finish(&mut self, number: usize, result: Result<(), DeviceError>) {
        let Some(under) = self.under.get_mut(number).and_then(Option::take) else { return };
        self.free.push(number);
        let Some(Some(device)) = self.devices.get_mut(under.device) else { return };
        device.in_flight -= 1;
        if device.wanted {
            let (token, buf) = (under.op.token, under.op.buf);
            device.done.push_back(Completion { token, result, buf });
        } else {
            self.close_if_unused(under.device);
        }
    }
}

impl Drop for Inner {
    /// The kernel may write to buffers of reads until they complete, so they must not be reused: the
    /// ring waits, and leaks the buffers of a device that does not answer.
    fn drop(&mut self) {
        let begun = std::time::Instant::now();
        while self.under.len() > self.free.len() {
            if begun.elapsed() > DROP_PATIENCE {
                core::mem::forget(core::mem::take(&mut self.under));
                return;
            }
            self.poll();
            if self.under.len() > self.free.len() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }
}
