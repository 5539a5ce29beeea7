//! The ring of a reactor and the devices on it.

use super::file::{self, UringError};
use forebay_io::{Buf, Completion, Device, DeviceError, DeviceInfo, Op, OpKind};
use forebay_reactor::{PoolBuf, RegionTable, WaitSet};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// Entries of the submission queue.
const ENTRIES: u32 = 1024;
/// Operations under way on one ring at most: completions have twice the entries.
const IN_FLIGHT_MAX: usize = 1024;
/// Files of one ring.
const FILES_MAX: u32 = 256;

/// An operation under way: it owns its buffer, so that the kernel's view of it stays valid.
struct Under {
    device: usize,
    op: Op<PoolBuf>,
    /// Bytes that earlier, short transfers have moved.
    moved: u32,
}

struct OnRing {
    done: VecDeque<Completion<PoolBuf>>,
    in_flight: usize,
    /// The place in the table of registered files, if it has one.
    fixed: Option<u32>,
    fd: RawFd,
    block_device: bool,
    /// Kept open while operations of a dropped device are under way.
    file: Option<OwnedFd>,
}

struct Inner {
    ring: IoUring,
    table: Arc<RegionTable>,
    /// Which regions are registered; `None` where the kernel takes none.
    registered: Option<Vec<bool>>,
    files: bool,
    under: Vec<Option<Under>>,
    free: Vec<usize>,
    devices: Vec<Option<OnRing>>,
    /// Entries pushed since the last call into the kernel.
    pushed: bool,
    /// Operations to go on with after a short transfer.
    again: VecDeque<usize>,
}

/// The io_uring of one reactor. Clones share it.
#[derive(Clone)]
pub struct Ring(Rc<RefCell<Inner>>);

fn build() -> io::Result<IoUring> {
    // One thread submits, and completions run when it asks: no interrupts of its loop (Linux 6.1).
    let mut new = IoUring::builder();
    new.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_coop_taskrun();
    let ring = new.setup_clamp().build(ENTRIES);
    if ring.is_ok() {
        return ring;
    }
    IoUring::builder().setup_clamp().build(ENTRIES)
}

impl Ring {
    pub(crate) fn new(table: Arc<RegionTable>, wait: &WaitSet) -> Result<Self, UringError> {
        let failed = |what| move |error| UringError::Io { what, path: String::new(), error };
        let ring = build().map_err(failed("io_uring is not available (kernel.io_uring_disabled?)"))?;
        wait.add(ring.as_raw_fd()).map_err(failed("the ring cannot be waited for"))?;
        let regions = u32::try_from(forebay_reactor::pool::MAX_REGIONS).unwrap_or(0);
        let registered = ring.submitter().register_buffers_sparse(regions).is_ok();
        let files = ring.submitter().register_files_sparse(FILES_MAX).is_ok();
        let inner = Inner {
            ring,
            table,
            registered: registered.then(|| vec![false; forebay_reactor::pool::MAX_REGIONS]),
            files,
            under: Vec::with_capacity(IN_FLIGHT_MAX),
            free: Vec::with_capacity(IN_FLIGHT_MAX),
            devices: Vec::new(),
            pushed: false,
            again: VecDeque::new(),
        };
        Ok(Self(Rc::new(RefCell::new(inner))))
    }
}

impl Inner {
    fn add(&mut self, fd: OwnedFd, block_device: bool) -> usize {
        let at = self.devices.iter().position(Option::is_none).unwrap_or(self.devices.len());
        let raw = fd.as_raw_fd();
        let fixed = u32::try_from(at).ok().filter(|at| self.files && *at < FILES_MAX).filter(|at| {
            self.ring.submitter().register_files_update(*at, &[raw]).is_ok()
        });
        let device = OnRing {
            done: VecDeque::with_capacity(IN_FLIGHT_MAX),
            in_flight: 0,
            fixed,
            fd: raw,
            block_device,
            file: Some(fd),
        };
        if at == self.devices.len() {
            self.devices.push(Some(device));
        } else {
            self.devices[at] = Some(device);
        }
        at
    }

    fn remove(&mut self, at: usize) {
        let Some(Some(device)) = self.devices.get_mut(at) else { return };
        if device.in_flight > 0 {
            // The last completion removes it.
            device.file = device.file.take();
            device.done.clear();
            return;
        }
        if let Some(fixed) = device.fixed {
            let _ = self.ring.submitter().register_files_update(fixed, &[-1]);
        }
        self.devices[at] = None;
    }

    /// The place of a buffer's region in the table of registered buffers.
    fn region_of(&mut self, buf: &PoolBuf) -> Option<u16> {
        let region = buf.region();
        let slot = self.registered.as_mut()?.get_mut(usize::from(region))?;
        if !*slot {
            let mapped = self.table.get(region)?;
            let whole = libc::iovec { iov_base: mapped.as_ptr().cast(), iov_len: mapped.len() };
            // SAFETY: the region stays mapped as long as the table, which this ring keeps alive.
            let done = unsafe {
                self.ring.submitter().register_buffers_update(u32::from(region), &[whole], None)
            };
            if done.is_err() {
                // Locked memory is used up, or the kernel is too old: plain I/O from now on.
                self.registered = None;
                return None;
            }
            *slot = true;
        }
        Some(region)
    }

    fn entry(&mut self, at: usize) -> Option<squeue::Entry> {
        let under = self.under.get(at)?.as_ref()?;
        let device = self.devices.get(under.device)?.as_ref()?;
        let (fixed, fd, block_device) = (device.fixed, device.fd, device.block_device);
        let (kind, moved, fua) = (under.op.kind, under.moved, under.op.fua);
        let offset = under.op.offset + u64::from(moved);
        let buf = under.op.buf.clone();
        let len = u32::try_from(under.op.len).unwrap_or(u32::MAX) - moved.min(u32::try_from(under.op.len).unwrap_or(0));
        let place = buf.as_ref().and_then(|buf| {
            Some((buf.as_ptr().wrapping_add(usize::try_from(moved).ok()?), buf))
        });
        let region = place.as_ref().and_then(|(_, buf)| self.region_of(buf));
        let sync = if fua { libc::RWF_DSYNC } else { 0 };
        let entry = match (kind, place.map(|(ptr, _)| ptr), region) {
            (OpKind::Read, Some(ptr), Some(region)) => match fixed {
                Some(file) => opcode::ReadFixed::new(types::Fixed(file), ptr.cast_mut(), len, region).offset(offset).build(),
                None => opcode::ReadFixed::new(types::Fd(fd), ptr.cast_mut(), len, region).offset(offset).build(),
            },
            (OpKind::Read, Some(ptr), None) => match fixed {
                Some(file) => opcode::Read::new(types::Fixed(file), ptr.cast_mut(), len).offset(offset).build(),
                None => opcode::Read::new(types::Fd(fd), ptr.cast_mut(), len).offset(offset).build(),
            },
            (OpKind::Write, Some(ptr), Some(region)) => match fixed {
                Some(file) => opcode::WriteFixed::new(types::Fixed(file), ptr, len, region).offset(offset).rw_flags(sync).build(),
                None => opcode::WriteFixed::new(types::Fd(fd), ptr, len, region).offset(offset).rw_flags(sync).build(),
            },
            (OpKind::Write, Some(ptr), None) => match fixed {
                Some(file) => opcode::Write::new(types::Fixed(file), ptr, len).offset(offset).rw_flags(sync).build(),
                None => opcode::Write::new(types::Fd(fd), ptr, len).offset(offset).rw_flags(sync).build(),
            },
            (OpKind::Flush, ..) => {
                opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build()
            }
            (OpKind::Deallocate | OpKind::WriteZeroes, ..) => {
                let mode = if kind == OpKind::Deallocate || block_device {
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
                } else {
                    libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
                };
                let span = self.under.get(at)?.as_ref()?.op.len;
                opcode::Fallocate::new(types::Fd(fd), span).offset(offset).mode(mode).build()
            }
            (OpKind::Read | OpKind::Write, None, _) => return None,
        };
        Some(entry.user_data(at as u64))
    }

    /// Puts an operation's entry into the submission queue.
    fn push(&mut self, at: usize) -> bool {
        let Some(entry) = self.entry(at) else { return false };
        for _ in 0..2 {
            // SAFETY: buffer and file of the entry are owned by `under[at]` and `devices` until the
            // completion arrives.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.pushed = true;
                return true;
            }
            let _ = self.enter();
        }
        false
    }

    /// One call into the kernel: hands over what was pushed and runs what has completed.
    fn enter(&mut self) -> io::Result<usize> {
        let pushed = self.ring.submission().len();
        self.pushed = false;
        let to_submit = u32::try_from(pushed).unwrap_or(u32::MAX);
        // IORING_ENTER_GETEVENTS, so that deferred completions are run.
        // SAFETY: no argument is passed beside numbers.
        unsafe { self.ring.submitter().enter::<libc::sigset_t>(to_submit, 0, 1, None) }
    }

    fn poll(&mut self) {
        let work = self.pushed || {
            let submission = self.ring.submission();
            submission.taskrun() || submission.cq_overflow()
        };
        if work {
            // What cannot be submitted now stays in the queue and is tried at the next poll.
            if self.enter().is_err() {
                self.pushed = true;
            }
        }
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { break };
            self.completed(&entry);
        }
        while let Some(at) = self.again.pop_front() {
            if !self.push(at) {
                self.again.push_front(at);
                break;
            }
        }
    }

    fn completed(&mut self, entry: &cqueue::Entry) {
        let at = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
        let Some(Some(under)) = self.under.get_mut(at) else { return };
        let moves = matches!(under.op.kind, OpKind::Read | OpKind::Write);
        let result = match u32::try_from(entry.result()) {
            Ok(0) if moves => Err(DeviceError::OutOfRange),
            Ok(moved) if moves => {
                under.moved += moved;
                if u64::from(under.moved) < under.op.len {
                    self.again.push_back(at);
                    return;
                }
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(_) if matches!(-entry.result(), libc::EAGAIN | libc::EINTR) => {
                self.again.push_back(at);
                return;
            }
            Err(_) => Err(device_error(-entry.result())),
        };
        self.finish(at, result);
    }

    fn finish(&mut self, at: usize, result: Result<(), DeviceError>) {
        let Some(under) = self.under.get_mut(at).and_then(Option::take) else { return };
        self.free.push(at);
        let Some(Some(device)) = self.devices.get_mut(under.device) else { return };
        device.in_flight -= 1;
        let (token, buf) = (under.op.token, under.op.buf);
        device.done.push_back(Completion { token, result, buf });
    }

    fn start(&mut self, device: usize, op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        if self.under.len() - self.free.len() >= IN_FLIGHT_MAX {
            return Err(op);
        }
        let at = self.free.pop().unwrap_or(self.under.len());
        let under = Some(Under { device, op, moved: 0 });
        if at == self.under.len() {
            self.under.push(under);
        } else {
            self.under[at] = under;
        }
        if let Some(Some(device)) = self.devices.get_mut(device) {
            device.in_flight += 1;
        }
        if !self.push(at) {
            self.again.push_back(at);
        }
        Ok(())
    }
}

fn device_error(errno: i32) -> DeviceError {
    match errno {
        libc::ENOSPC | libc::EDQUOT => DeviceError::NoSpace,
        libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => DeviceError::Unsupported,
        libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN => DeviceError::Gone,
        libc::ENODATA | libc::EILSEQ | libc::EUCLEAN => DeviceError::Media,
        libc::ETIMEDOUT => DeviceError::Timeout,
        other => DeviceError::Io(other),
    }
}

/// A file or block device on a reactor's ring.
pub struct UringDevice {
    ring: Ring,
    at: usize,
    info: DeviceInfo,
}

impl UringDevice {
    /// Opens a file or block device exclusively; with `size`, makes a sparse file where there is none.
    ///
    /// # Errors
    /// [`UringError`].
    pub fn open(path: &str, size: Option<u64>, ring: Ring) -> Result<Self, UringError> {
        let opened = file::open(path, size)?;
        let at = ring.0.borrow_mut().add(opened.file.into(), opened.block_device);
        Ok(Self { ring, at, info: opened.info })
    }

    fn check(&self, op: &Op<PoolBuf>) -> Result<(), DeviceError> {
        if op.kind == OpKind::Flush {
            return Ok(());
        }
        let inside = op.offset.checked_add(op.len).is_some_and(|end| end <= self.info.size);
        if !inside {
            return Err(DeviceError::OutOfRange);
        }
        let moves = matches!(op.kind, OpKind::Read | OpKind::Write);
        let room = op.buf.as_ref().map_or(0, Buf::len) as u64;
        let writable = op.kind != OpKind::Read || op.buf.as_ref().is_some_and(PoolBuf::is_unique);
        if moves && (room < op.len || op.len == 0 || !writable) {
            return Err(DeviceError::Io(libc::EINVAL));
        }
        Ok(())
    }
}

impl Device for UringDevice {
    type Buf = PoolBuf;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&mut self, op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        let checked = self.check(&op);
        let mut ring = self.ring.0.borrow_mut();
        if let Err(error) = checked {
            if let Some(Some(device)) = ring.devices.get_mut(self.at) {
                let refused = Completion { token: op.token, result: Err(error), buf: op.buf };
                device.done.push_back(refused);
            }
            return Ok(());
        }
        ring.start(self.at, op)
    }

    fn poll(&mut self, done: &mut Vec<Completion<PoolBuf>>) -> usize {
        let mut ring = self.ring.0.borrow_mut();
        ring.poll();
        let Some(Some(device)) = ring.devices.get_mut(self.at) else { return 0 };
        let count = device.done.len();
        done.extend(device.done.drain(..));
        count
    }

    fn in_flight(&self) -> usize {
        let ring = self.ring.0.borrow();
        ring.devices.get(self.at).and_then(Option::as_ref).map_or(0, |d| d.in_flight + d.done.len())
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        // The kernel may still use buffers of operations under way: wait for them, as closing does.
        for _ in 0..10_000 {
            let mut ring = self.ring.0.borrow_mut();
            let busy = ring.devices.get(self.at).and_then(Option::as_ref).is_some_and(|d| d.in_flight > 0);
            if !busy {
                break;
            }
            let _ = ring.enter();
            ring.poll();
            drop(ring);
            std::thread::sleep(core::time::Duration::from_millis(1));
        }
        self.ring.0.borrow_mut().remove(self.at);
    }
}
