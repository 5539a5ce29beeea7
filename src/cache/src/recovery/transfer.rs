//! Reads and writes of byte ranges of any length, as device operations of bounded size and number.

use forebay_io::{Buf, BufPool, Completion, DeviceError, Op, OpKind};
use std::collections::VecDeque;

/// Bytes of one device operation at most: a size that every pool has and every device takes.
pub const CHUNK: usize = 64 * 1024;
/// Device operations in flight at once.
pub const MAX_IN_FLIGHT: usize = 32;

/// What is to be done with a range.
#[derive(Debug)]
struct Job {
    id: u64,
    kind: OpKind,
    offset: u64,
    bytes: Vec<u8>,
    /// Bytes handed to the device.
    issued: usize,
    /// Chunks in flight.
    flying: usize,
    error: Option<DeviceError>,
}

/// A range that is done: what was asked, its bytes, how it ended.
#[derive(Debug)]
pub struct Done {
    /// The caller's name of it.
    pub id: u64,
    /// What was read; of a write, what was written. Handing it back with
    /// [`Transfer::recycle`] saves an allocation.
    pub bytes: Vec<u8>,
    /// The first error of any part.
    pub result: Result<(), DeviceError>,
}

/// Jobs in flight and waiting.
#[derive(Debug, Default)]
pub struct Transfer {
    /// By place; a place is free when `None`.
    jobs: Vec<Option<Job>>,
    waiting: VecDeque<u32>,
    /// A chunk for which the pool had no buffer stays at the front of `waiting`.
    in_flight: usize,
    pending: usize,
    spare: Vec<Vec<u8>>,
}

impl Transfer {
    /// Asks for a read of `len` bytes.
    pub fn read(&mut self, id: u64, offset: u64, len: usize) {
        let mut bytes = self.spare.pop().unwrap_or_default();
        // A read that ends well fills all of it.
        bytes.resize(len, 0);
        self.push(id, OpKind::Read, offset, bytes);
    }

    /// Asks for a write.
    pub fn write(&mut self, id: u64, offset: u64, bytes: Vec<u8>) {
        self.push(id, OpKind::Write, offset, bytes);
    }

    /// Asks for a flush of the device.
    pub fn flush(&mut self, id: u64) {
        self.push(id, OpKind::Flush, 0, Vec::new());
    }

    /// Takes back the bytes of a job that is done.
    pub fn recycle(&mut self, bytes: Vec<u8>) {
        if self.spare.len() < MAX_IN_FLIGHT {
            self.spare.push(bytes);
        }
    }

    /// Jobs that are not done.
    #[must_use]
    pub const fn pending(&self) -> usize {
        self.pending
    }

    /// Device operations in flight.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn push(&mut self, id: u64, kind: OpKind, offset: u64, bytes: Vec<u8>) {
        self.pending += 1;
        let job = Job { id, kind, offset, bytes, issued: 0, flying: 0, error: None };
        let place = self.jobs.iter().position(Option::is_none).unwrap_or(self.jobs.len());
        if place == self.jobs.len() {
            self.jobs.push(Some(job));
        } else {
            self.jobs[place] = Some(job);
        }
        self.waiting.push_back(u32::try_from(place).unwrap_or(u32::MAX));
    }

    /// The next device operation; `None` while enough are in flight, nothing waits, or the pool
    /// has no buffer.
    pub fn poll_action<P: BufPool>(&mut self, pool: &mut P) -> Option<Op<P::Buf>> {
        if self.in_flight >= MAX_IN_FLIGHT {
            return None;
        }
        let place = *self.waiting.front()?;
        let job = self.jobs.get_mut(usize::try_from(place).ok()?)?.as_mut()?;
        let from = job.issued;
        let len = (job.bytes.len() - from).min(CHUNK);
        let token = u64::from(place) << 32 | u64::try_from(from / CHUNK).unwrap_or(0);
        let offset = job.offset + u64::try_from(from).unwrap_or(0);
        let op = match job.kind {
            OpKind::Write => {
                let mut buf = pool.alloc(len)?;
                buf.as_mut_slice()?.copy_from_slice(&job.bytes[from..from + len]);
                Op::write(token, offset, len as u64, buf)
            }
            OpKind::Read => Op::read(token, offset, len as u64, pool.alloc(len)?),
            _ => Op::flush(token),
        };
        job.issued += len;
        job.flying += 1;
        self.in_flight += 1;
        if job.issued == job.bytes.len() {
            self.waiting.pop_front();
        }
        Some(op)
    }

    /// Takes a completion; the job if it was its last part. Foreign tokens are ignored.
    pub fn handle_completion<B: Buf>(&mut self, completion: Completion<B>) -> Option<Done> {
        let place = usize::try_from(completion.token >> 32).ok()?;
        let chunk = usize::try_from(completion.token & u64::from(u32::MAX)).ok()?;
        let slot = self.jobs.get_mut(place)?;
        let job = slot.as_mut()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        job.flying = job.flying.saturating_sub(1);
        match (completion.result, completion.buf) {
            (Err(error), _) => job.error = job.error.or(Some(error)),
            (Ok(()), Some(buf)) if job.kind == OpKind::Read => {
                let from = chunk * CHUNK;
                let len = job.bytes.len().saturating_sub(from).min(CHUNK);
                match (job.bytes.get_mut(from..from + len), buf.as_slice().get(..len)) {
                    (Some(out), Some(bytes)) => out.copy_from_slice(bytes),
                    _ => job.error = Some(DeviceError::OutOfRange),
                }
            }
            (Ok(()), _) => {}
        }
        if job.flying > 0 || job.issued < job.bytes.len() {
            return None;
        }
        let job = slot.take()?;
        self.pending -= 1;
        Some(Done { id: job.id, bytes: job.bytes, result: job.error.map_or(Ok(()), Err) })
    }
}
