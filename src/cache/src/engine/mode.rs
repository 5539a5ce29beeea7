//! Modes and what changes them: live switches, drains, attaching, the clean stop.
//!
//! A switch away from write-back first lets writes go through to the backing device while what is
//! dirty is destaged (`Draining`), then holds only writes to blocks that are still dirty
//! (`Settling`), then, for pass-through and detach, makes all records of the volume dead by a new
//! cache generation in the superblock (`Forgetting`). No I/O waits for more than a round of destage.

use super::order::Order;
use super::stats::BlockCounts;
use super::types::{Aim, BLOCK, CacheMode, Event, VolumeSpec};
use super::volume::{Health, Volume};
use super::{Cx, Engine};
use crate::format::superblock::{VolumeEntry, volume_key};
use crate::plant::Bug;
use crate::ranges::RangeMap;
use crate::recovery::has_changes;
use crate::sequential::Sequential;
use core::fmt;
use forebay_io::{Buf, BufPool, Lsn, VolumeId};
use std::collections::VecDeque;

/// Dirty blocks with which `Draining` ends.
const SETTLE_FROM: u64 = 256;
/// Most volumes of one engine: their commit marks fit one batch header.
pub const MAX_VOLUMES: usize = 64;

/// How far a switch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Switch {
    #[default]
    None,
    Draining,
    Settling,
    /// Waits for the superblock of this ticket.
    Forgetting(u64),
}

/// A mode in the superblock.
pub(super) const fn code(mode: CacheMode) -> u8 {
    match mode {
        CacheMode::PassThrough => 0,
        CacheMode::WriteAround => 1,
        CacheMode::WriteThrough => 2,
        CacheMode::WriteBack => 3,
        CacheMode::WriteBackOrdered => 4,
    }
}

/// Why a control call was refused; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// The engine has no volume with this handle.
    NoSuchVolume(VolumeId),
    /// The handle, or the volume, is in the engine already.
    AlreadyThere(VolumeId),
    /// The engine takes no more volumes.
    TooMany,
    /// The cache holds data of this volume for another backing device.
    OtherBacking {
        /// The identity that the superblock has.
        recorded: String,
        /// The identity of the device that was given.
        found: String,
    },
    /// The backing device has another size than the cache knows.
    OtherSize {
        /// Bytes as recorded.
        recorded: u64,
        /// Bytes of the device that was given.
        found: u64,
    },
    /// The volume was made with another logical block size.
    OtherBlockSize {
        /// As recorded.
        recorded: u32,
        /// As asked for.
        found: u32,
    },
    /// The minimums and pins of all volumes would be more than the cache can keep.
    QuotaTooLarge {
        /// Bytes that the volume would keep.
        keeps: u64,
        /// Bytes that others keep.
        others: u64,
        /// Bytes that all may keep together.
        most: u64,
    },
    /// A volume would keep more than the maximum it may have.
    KeepsMoreThanMax {
        /// Bytes that the volume would keep.
        keeps: u64,
        /// Its maximum in bytes.
        max: u64,
    },
    /// A value is out of its bounds; what is accepted follows.
    Invalid(&'static str),
    /// The index was made for fewer slots than the shard would have with this extent.
    IndexTooSmall {
        /// Slots that the shard would have.
        slots: u64,
        /// Slots that the index takes.
        capacity: u64,
    },
    /// The volume has requests or dirty data; stop the host or drain it first.
    Busy(&'static str),
    /// The cache device failed.
    CacheFailed,
    /// The engine is stopping.
    Stopping,
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchVolume(id) => write!(f, "no volume {id} in this cache"),
            Self::AlreadyThere(id) => write!(f, "volume {id} is in this cache already"),
            Self::TooMany => write!(f, "a shard of a cache takes at most {MAX_VOLUMES} volumes"),
            Self::OtherBacking { recorded, found } => write!(
                f,
                "the cache holds data for the backing device \"{recorded}\", this one is \"{found}\": give the \
                 right device, or forget the cached data with `volume recover --lost-cache`"
            ),
            Self::OtherSize { recorded, found } => write!(
                f,
                "the backing device has {found} bytes, the cache knows it with {recorded}: give it back its \
                 size, or forget the cached data with `volume recover --lost-cache`"
            ),
            Self::OtherBlockSize { recorded, found } => {
                write!(f, "the volume has logical blocks of {recorded} bytes, not {found}")
            }
            Self::IndexTooSmall { slots, capacity } => {
                write!(
                    f,
                    "the shard's index takes {capacity} blocks; with this extent there would be {slots}"
                )
            }
            Self::QuotaTooLarge { keeps, others, most } => write!(
                f,
                "the volume would keep {keeps} bytes of the cache and others keep {others}: together it can be \
                 {most}, half of its data"
            ),
            Self::KeepsMoreThanMax { keeps, max } => write!(
                f,
                "the volume would keep {keeps} bytes of the cache, and may have {max} at most"
            ),
            Self::Invalid(what) => f.write_str(what),
            Self::Busy(what) => f.write_str(what),
            Self::CacheFailed => f.write_str("the cache device failed"),
            Self::Stopping => f.write_str("the cache is stopping"),
        }
    }
}

impl core::error::Error for ControlError {}

impl Volume {
    /// Whether destage should make the volume clean without delay.
    pub(super) fn wants_clean(&self) -> bool {
        (self.draining || self.detaching || self.switch != Switch::None)
            && !self.discards()
            && (self.dirty > self.lost_blocks || !self.ranges.is_empty())
    }
}

fn check_spec(spec: &VolumeSpec) -> Result<(), ControlError> {
    let block = u64::from(spec.backing.block_size);
    if !matches!(spec.block_size, 512 | 4096) {
        return Err(ControlError::Invalid("the logical block size is 512 or 4096"));
    }
    if !block.is_power_of_two() || block > BLOCK {
        return Err(ControlError::Invalid("the backing device's block size must be 512 to 4096"));
    }
    if spec.backing.size == 0 || !spec.backing.size.is_multiple_of(u64::from(spec.block_size)) {
        return Err(ControlError::Invalid(
            "the backing device's size is not a multiple of the logical block size",
        ));
    }
    if spec.backing.size.div_ceil(BLOCK) > 1 << 36 {
        return Err(ControlError::Invalid("a volume has at most 256 TiB"));
    }
    if spec.uuid.is_nil() || spec.journal.is_nil() {
        return Err(ControlError::Invalid("the volume's and its journal's UUID must be given"));
    }
    Ok(())
}

impl<B: Buf> Engine<B> {
    /// Adds a volume. [`Event::Attached`] says when it may be served. A volume that the cache knows
    /// keeps its data; its backing device must be the same.
    ///
    /// # Errors
    /// [`ControlError`]; nothing changed.
    pub fn add_volume(&mut self, spec: &VolumeSpec) -> Result<(), ControlError> {
        check_spec(spec)?;
        self.usable()?;
        let known = self.supers.block.volumes.iter().find(|entry| entry.uuid == spec.uuid).cloned();
        let there = self.vols.iter().any(|(_, vol)| vol.uuid == spec.uuid);
        if there || self.vols.find(spec.id).is_some() {
            return Err(ControlError::AlreadyThere(spec.id));
        }
        let place = self.vols.vacancy().ok_or(ControlError::TooMany)?;
        if self.vols.iter().count() >= MAX_VOLUMES {
            return Err(ControlError::TooMany);
        }
        let identity = VolumeEntry::identity_text(&spec.backing.identity);
        if let Some(entry) = &known {
            if entry.backing_identity != identity {
                let recorded = entry.backing_identity.clone();
                return Err(ControlError::OtherBacking { recorded, found: identity });
            }
            if entry.backing_size != spec.backing.size {
                let (recorded, found) = (entry.backing_size, spec.backing.size);
                return Err(ControlError::OtherSize { recorded, found });
            }
            if entry.block_size != spec.block_size {
                let (recorded, found) = (entry.block_size, spec.block_size);
                return Err(ControlError::OtherBlockSize { recorded, found });
            }
        }
        let was_known = known.is_some();
        let entry = match known {
            Some(entry) => entry,
            None => self.new_entry(spec, identity)?,
        };
        let mut volume = self.new_volume(spec, &entry);
        // Of an attach that ended in a crash, before its first change, the cache knows no more than
        // nothing: a batch in an ordered journal may be applied in part.
        volume.known = was_known && has_changes(volume.next_lsn - 1);
        self.vols.put(place, volume);
        let ticket = self.supers.change();
        self.attaching.push((place, ticket));
        Ok(())
    }

    fn new_entry(
        &mut self,
        spec: &VolumeSpec,
        identity: String,
    ) -> Result<VolumeEntry, ControlError> {
        let index = self.fresh_index().ok_or(ControlError::TooMany)?;
        let sb = &mut self.supers.block;
        let entry = VolumeEntry {
            index,
            generation: sb.take_generation(),
            uuid: spec.uuid,
            journal: spec.journal,
            epoch: spec.epoch,
            promised: spec.epoch,
            accounted: Lsn(0),
            base: Lsn(0),
            size: spec.backing.size,
            block_size: spec.block_size,
            clean: true,
            mode: code(spec.mode),
            backing_size: spec.backing.size,
            backing_identity: identity,
            name: cut(&spec.name),
        };
        let at = sb.volumes.partition_point(|other| other.index < index);
        sb.volumes.insert(at, entry.clone());
        Ok(entry)
    }

    /// An index that no entry in memory or in a segment can still name.
    fn fresh_index(&mut self) -> Option<u16> {
        let next = self.next_index;
        let used = self.supers.block.volumes.iter().map(|entry| entry.index + 1).max().unwrap_or(0);
        let index = next.max(used);
        (index < crate::format::record::MAX_VOLUME).then(|| {
            self.next_index = index + 1;
            index
        })
    }

    fn new_volume(&mut self, spec: &VolumeSpec, entry: &VolumeEntry) -> Volume {
        let found = self.found.iter().find(|found| found.volume == entry.index);
        let (last, dirty) =
            found.map_or((entry.accounted.0, 0), |found| (found.last.0, found.dirty));
        let mut ranges = RangeMap::new(usize::MAX);
        for range in self.found_ranges.iter().filter(|range| range.volume == entry.index) {
            let kind = if range.discard {
                crate::ranges::RangeKind::Discarded
            } else {
                crate::ranges::RangeKind::Zeroes
            };
            let (first, blocks, lsn) = (range.block, range.blocks, range.lsn);
            let _ = ranges.insert(crate::ranges::Range { first, blocks, lsn, kind, dirty: true });
        }
        self.found_ranges.retain(|range| range.volume != entry.index);
        let cutoff = self.limits.sequential_cutoff / BLOCK;
        let clean = dirty == 0 && ranges.is_empty();
        // What is dirty must be destaged before the log may be bypassed.
        let bypasses = matches!(spec.mode, CacheMode::PassThrough | CacheMode::WriteAround);
        let left = bypasses && !clean;
        let there = found.is_some_and(|found| found.live > 0 || self.warm.began());
        let cold = spec.mode == CacheMode::PassThrough && there;
        let switching = (left || cold) && !self.plant.has(Bug::AttachDirty);
        Volume {
            id: spec.id,
            index: entry.index,
            generation: entry.generation,
            key: volume_key(entry.journal),
            uuid: spec.uuid,
            epoch: spec.epoch,
            size: spec.backing.size,
            block_size: spec.block_size,
            backing: spec.backing.clone(),
            mode: if switching { CacheMode::WriteBack } else { spec.mode },
            target: spec.mode,
            switch: if switching { Switch::Draining } else { Switch::None },
            on_failure: spec.on_failure,
            attached: false,
            caching: switching || spec.mode != CacheMode::PassThrough,
            detaching: false,
            discard: super::detach::Discard::No,
            draining: false,
            next_lsn: last + 1,
            persisted: last,
            committed: last,
            marked: (0, None, u32::MAX),
            pending: VecDeque::new(),
            ranges,
            dirty,
            lost_blocks: 0,
            healed: 0,
            sequential: Sequential::new(cutoff),
            health: Health::default(),
            backing_ops: 0,
            blocks: BlockCounts::default(),
            destaged: 0,
            requests: 0,
            journaling: 0,
            unflushed: true,
            doubts: 0,
            flushing: 0,
            direct: 0,
            bypassing: 0,
            trims_durable: 0,
            order: if switching { None } else { Order::of(spec.mode) },
            order_journal: None,
            known: false,
            share: super::share::Share::default(),
        }
    }

    pub(super) fn usable(&self) -> Result<(), ControlError> {
        if self.stopping {
            return Err(ControlError::Stopping);
        }
        if self.cache_failed.is_some() { Err(ControlError::CacheFailed) } else { Ok(()) }
    }

    /// Switches a volume's mode, live. [`Event::ModeChanged`] says when it is complete; until then
    /// [`VolumeStats::target`](super::stats::VolumeStats::target) is where it goes.
    ///
    /// # Errors
    /// [`ControlError`]; nothing changed.
    pub fn set_mode(&mut self, id: VolumeId, mode: CacheMode) -> Result<(), ControlError> {
        self.usable()?;
        let place = self.vols.find(id).ok_or(ControlError::NoSuchVolume(id))?;
        let Some(vol) = self.vols.get_mut(place) else {
            return Err(ControlError::NoSuchVolume(id));
        };
        if vol.detaching {
            return Err(ControlError::Busy("the volume is being detached"));
        }
        vol.target = mode;
        if let Switch::Forgetting(_) = vol.switch {
            // Clean and forgotten, it can enter any mode, as soon as that is durable.
            return Ok(());
        }
        if mode == vol.mode && vol.switch == Switch::Settling {
            // It is the mode in which a switch settles, with dirty blocks: reached at its end.
            return Ok(());
        }
        if mode == vol.mode {
            vol.switch = Switch::None;
            if vol.order.is_none() {
                vol.order = Order::of(mode);
            }
            self.event(Event::ModeChanged { volume: id, mode });
            return Ok(());
        }
        // The order ends as soon as the mode is being left.
        self.order_set(place, Order::of(mode));
        let Some(vol) = self.vols.get_mut(place) else { return Ok(()) };
        if mode.is_write_back() || vol.mode == CacheMode::PassThrough {
            // Nothing has to be made clean: what pass-through left is forgotten already.
            vol.mode = mode;
            vol.caching = true;
            vol.switch = Switch::None;
            self.supers.change();
            self.event(Event::ModeChanged { volume: id, mode });
            return Ok(());
        }
        vol.switch = Switch::Draining;
        Ok(())
    }

    /// Destages all dirty data of a volume as fast as its backing device takes it.
    /// [`Event::Drained`] says when none is left; `cancel_drain` ends it before.
    ///
    /// # Errors
    /// [`ControlError::NoSuchVolume`].
    pub fn drain(&mut self, id: VolumeId) -> Result<(), ControlError> {
        let place = self.vols.find(id).ok_or(ControlError::NoSuchVolume(id))?;
        if let Some(vol) = self.vols.get_mut(place) {
            vol.draining = true;
        }
        Ok(())
    }

    /// Ends a drain before it is complete.
    ///
    /// # Errors
    /// [`ControlError::NoSuchVolume`].
    pub fn cancel_drain(&mut self, id: VolumeId) -> Result<(), ControlError> {
        let place = self.vols.find(id).ok_or(ControlError::NoSuchVolume(id))?;
        if let Some(vol) = self.vols.get_mut(place) {
            vol.draining = false;
        }
        Ok(())
    }

    /// Begins a clean stop: no new requests; open segments are sealed, the superblock is marked
    /// clean. Dirty data stays in the cache. [`Event::Stopped`] says when all is durable.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Goes on with switches, drains, detaches and the stop.
    pub(super) fn control_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        self.attach_step();
        for place in 0..self.vols.bound() {
            let Some(vol) = self.vols.get(place) else { continue };
            if vol.draining && vol.settled() {
                let (volume, blocks) = (vol.id, vol.dirty);
                if let Some(vol) = self.vols.get_mut(place) {
                    vol.draining = false;
                }
                self.event(if blocks == 0 {
                    Event::Drained { volume }
                } else {
                    Event::DamageLeft { volume, blocks, ended: Aim::Drain }
                });
            }
            self.switch_step(place);
            self.detach_step(place);
            if !self.stopping {
                self.quiet_flush(cx.now, place);
            }
        }
        self.extent_step();
        self.stop_step(cx);
        self.super_pump(cx);
    }

    /// Something became clean.
    pub(super) fn clean_points<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        self.control_step(cx);
    }

    pub(super) fn attach_step(&mut self) {
        let mut attaching = core::mem::take(&mut self.attaching);
        attaching.retain(|(place, ticket)| {
            let cold = self.vols.get(*place).and_then(|vol| vol.order_journal.as_ref());
            let passed = self.supers.passed(*ticket) && cold.is_none_or(|journal| !journal.cold());
            if passed && let Some(vol) = self.vols.get_mut(*place) {
                vol.attached = true;
                let volume = vol.id;
                self.event(Event::Attached { volume });
            }
            !passed
        });
        self.attaching = attaching;
    }

    fn switch_step(&mut self, place: u16) {
        let Some(vol) = self.vols.get(place) else { return };
        let (id, mut target, lost) = (vol.id, vol.target, vol.lost_blocks);
        let dirty = vol.dirty - lost.min(vol.dirty) + vol.ranges.len() as u64;
        let next = match vol.switch {
            Switch::None => return,
            Switch::Draining if dirty <= SETTLE_FROM => {
                // From now on writes bypass the log, and hold where a block is still dirty.
                Some((Switch::Settling, CacheMode::WriteAround))
            }
            Switch::Settling
                if vol.clean()
                    && vol.journaling == 0
                    && target == CacheMode::PassThrough
                    && !self.plant.has(Bug::NoForget) =>
            {
                let ticket = self.forget(place);
                Some((Switch::Forgetting(ticket), CacheMode::WriteAround))
            }
            Switch::Settling if vol.settled() && vol.journaling == 0 => {
                if target == CacheMode::PassThrough {
                    // Without the cache damaged blocks would read as what they were before: the
                    // volume goes on in the nearest mode that keeps them known.
                    target = CacheMode::WriteAround;
                    let ended = Aim::PassThrough;
                    self.event(Event::DamageLeft { volume: id, blocks: lost, ended });
                }
                None
            }
            Switch::Forgetting(ticket) if self.supers.passed(ticket) => None,
            _ => return,
        };
        let Some(vol) = self.vols.get_mut(place) else { return };
        if let Some((switch, mode)) = next {
            (vol.switch, vol.mode) = (switch, mode);
            return;
        }
        (vol.switch, vol.mode, vol.target) = (Switch::None, target, target);
        vol.caching = target != CacheMode::PassThrough;
        if vol.order.is_none() {
            vol.order = Order::of(target);
        }
        self.supers.change();
        self.event(Event::ModeChanged { volume: id, mode: target });
    }

    /// Whether the records of a volume are being made dead, and would still be found after a crash.
    pub(super) fn forgets(&self, vol: &Volume) -> bool {
        let forgets =
            matches!(vol.switch, Switch::Forgetting(ticket) if !self.supers.passed(ticket));
        // A cache that failed never gets there, and is refused at the next start.
        forgets && self.cache_failed.is_none() && !self.plant.has(Bug::ForgetNotDurable)
    }

    /// Makes all records of a clean volume dead: a new generation, and a new index so that what the
    /// index of blocks still has is never found. Returns the superblock's ticket.
    pub(super) fn forget(&mut self, place: u16) -> u64 {
        self.kill_fills(place, 0, u64::MAX, true);
        self.order_set(place, None);
        // What is pinned is fetched again, once the volume caches.
        self.pins_changed(place);
        let fresh = self.fresh_index();
        let Some(vol) = self.vols.get_mut(place) else { return 0 };
        let old = vol.index;
        let sb = &mut self.supers.block;
        let generation = sb.take_generation();
        vol.caching = false;
        vol.generation = generation;
        vol.marked = (0, None, u32::MAX);
        // Fills on their way are of the generation before.
        vol.share.placing = 0;
        if let Some(at) = sb.volumes.iter().position(|entry| entry.index == old) {
            let mut entry = sb.volumes.remove(at);
            entry.generation = generation;
            entry.accounted = Lsn(vol.committed);
            entry.base = Lsn(vol.committed);
            entry.clean = true;
            if let Some(index) = fresh {
                (entry.index, vol.index) = (index, index);
            }
            let at = sb.volumes.partition_point(|other| other.index < entry.index);
            sb.volumes.insert(at, entry);
        }
        if fresh.is_none() && !self.vols.get(place).is_some_and(Volume::discards) {
            // All indexes were used in this life: the entries are taken out one by one.
            self.index.retain(|key, _| key.volume() != old);
        }
        self.supers.change()
    }

    /// A stop with no request left: what is dirty stays in the cache, and a round under way ends
    /// with what it has begun.
    pub(super) fn winds_down(&self) -> bool {
        self.stopping && self.reqs.len() == 0
    }

    fn stop_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        if !self.stopping || self.stopped {
            return;
        }
        if self.cache_failed.is_some() {
            // Nothing more can be kept on the device, and it will not be served again as it is.
            if self.reqs.len() == 0 && self.refusals.is_empty() {
                self.stopped = true;
                self.event(Event::Stopped);
            }
            return;
        }
        let idle = self.reqs.len() == 0 && self.destage.resting() && self.reclaim.is_idle();
        let idle = idle && self.scrub.resting() && self.rebuild.is_none() && self.warm.resting();
        // The next start knows nothing of writes that may still be carried out.
        let idle = idle && self.doubtful.is_empty() && !self.destage.is_owed();
        let idle = idle && self.vols.iter().all(|(_, vol)| vol.journal_rests());
        if !idle || self.streams.iter().any(|stream| !stream.is_idle()) {
            return;
        }
        self.end_before(u64::MAX);
        if !self.segs.young().is_empty() {
            self.seal_step(cx);
            return;
        }
        match self.stop_ticket {
            None => {
                let mut last: Vec<(u16, u64)> = Vec::new();
                last.extend(self.vols.iter().map(|(_, vol)| (vol.index, vol.committed)));
                for (index, committed) in last {
                    if let Some(entry) = self.supers.block.volume_mut(index) {
                        entry.accounted = Lsn(committed);
                    }
                }
                self.supers.block.clean_stop = true;
                let ticket = self.flush_ticket();
                self.flush_pump(cx.now);
                self.stop_flush = ticket;
                self.stop_ticket = Some(0);
            }
            Some(0) if self.flush_passed(self.stop_flush) => {
                self.stop_ticket = Some(self.supers.change());
            }
            Some(ticket) if ticket > 0 && self.supers.passed(ticket) => {
                self.stopped = true;
                self.event(Event::Stopped);
            }
            Some(_) => {}
        }
    }
}

/// A name as the superblock takes it.
fn cut(name: &str) -> String {
    let mut end = name.len().min(crate::format::superblock::MAX_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mode from the superblock.
    fn from_code(code: u8) -> CacheMode {
        match code {
            1 => CacheMode::WriteAround,
            2 => CacheMode::WriteThrough,
            3 => CacheMode::WriteBack,
            4 => CacheMode::WriteBackOrdered,
            _ => CacheMode::PassThrough,
        }
    }

    #[test]
    fn modes_survive_the_superblock() {
        for mode in [
            CacheMode::PassThrough,
            CacheMode::WriteAround,
            CacheMode::WriteThrough,
            CacheMode::WriteBack,
            CacheMode::WriteBackOrdered,
        ] {
            assert_eq!(from_code(code(mode)), mode);
        }
    }
}
