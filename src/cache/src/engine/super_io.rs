//! Keeping the superblock: changes of the volume table and of the clean mark become durable before
//! what depends on them.

use super::ops::What;
use super::{Cx, Engine};
use crate::format::superblock::Superblock;
use forebay_io::{Buf, BufPool, DeviceError, Op};

/// The superblock and its writes: one at a time; a waiter names the first one that holds its change.
#[derive(Debug)]
pub(super) struct SuperWriter {
    pub(super) block: Superblock,
    changed: u64,
    sent: u64,
    durable: u64,
    under_way: bool,
    /// The first copy is durable, the second is on its way.
    second: bool,
    errors: u8,
}

impl SuperWriter {
    pub(super) const fn new(block: Superblock) -> Self {
        Self { block, changed: 0, sent: 0, durable: 0, under_way: false, second: false, errors: 0 }
    }

    /// The superblock was changed: the ticket of the write that will hold it.
    pub(super) const fn change(&mut self) -> u64 {
        self.changed += 1;
        self.changed
    }

    pub(super) const fn passed(&self, ticket: u64) -> bool {
        self.durable >= ticket
    }
}

impl<B: Buf> Engine<B> {
    pub(super) fn super_pump<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let nothing = self.supers.sent >= self.supers.changed && !self.supers.second;
        if self.supers.under_way || nothing || self.cache_failed.is_some() {
            return;
        }
        if self.supers.second {
            self.super_write(cx);
            return;
        }
        for vol in self.vols.iter().map(|(_, vol)| vol) {
            if let Some(entry) = self.supers.block.volume_mut(vol.index) {
                entry.epoch = vol.epoch;
                entry.clean = vol.clean();
                entry.mode = super::mode::code(vol.mode);
            }
        }
        self.super_write(cx);
    }

    /// Writes the next generation over the older copy.
    fn super_write<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        self.supers.block.generation += 1;
        let len = self.supers.block.encoded_len();
        let buf = self.alloc(cx, len as u64).and_then(|mut buf| {
            let out = buf.as_mut_slice()?;
            self.supers.block.encode(out).ok()?;
            Some(buf)
        });
        let Some(buf) = buf else {
            self.supers.block.generation -= 1;
            return;
        };
        let at = self.header.superblock_offset(self.shard, self.supers.block.copy());
        if !self.supers.second {
            self.supers.sent = self.supers.changed;
        }
        self.supers.under_way = true;
        let mut op = Op::write(0, at, len as u64, buf);
        op.fua = true;
        self.cache_op(cx.now, What::Superblock, op);
    }

    pub(super) fn super_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        result: Result<(), DeviceError>,
    ) {
        self.supers.under_way = false;
        match result {
            Ok(()) => {
                self.supers.errors = 0;
                // Both copies hold a change before anything relies on it: either alone is enough.
                self.supers.second = !self.supers.second;
                if self.supers.second {
                    self.super_write(cx);
                    return;
                }
                self.supers.durable = self.supers.sent;
                self.control_step(cx);
            }
            Err(error) => {
                // The same copy again: the other one must stay sound until this one is.
                self.supers.block.generation -= 1;
                if !self.supers.second {
                    self.supers.sent = self.supers.durable;
                }
                self.supers.errors += 1;
                let last = self.supers.errors >= 3;
                self.cache_error(cx, error, last);
            }
        }
    }
}
