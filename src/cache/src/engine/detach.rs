//! Taking a volume out of the engine: clean, or without its dirty data where an operator gives
//! that up. Then all records of the volume die at once, by a new cache generation in the
//! superblock: a crash finds either all of its dirty data or none. Only after that is what memory
//! says of it swept out, a part at each poll.

use super::Engine;
use super::mode::ControlError;
use super::types::{Aim, Event};
use super::volume::Volume;
use crate::plant::Bug;
use crate::ranges::RangeMap;
use forebay_io::{Buf, Instant, VolumeId};

/// Buckets of the index that are looked through at once: 1 MiB of memory.
const SWEEP: usize = 16 << 10;

/// How far dropping a volume's dirty data is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Discard {
    /// It is destaged, as it should be.
    #[default]
    No,
    /// What is under way ends first.
    Wanted,
    /// Waits for the superblock of `ticket`. Blocks are under the index `old`.
    Forgetting {
        /// The volume's index before.
        old: u16,
        /// The superblock's.
        ticket: u64,
    },
    /// Entries of the index `old` are taken out, from bucket `next` on.
    Sweeping {
        /// The volume's index before.
        old: u16,
        /// The next bucket.
        next: usize,
        /// Dirty blocks at the begin of this pass.
        before: u64,
    },
}

impl Volume {
    /// Whether its dirty data is being dropped.
    pub(super) fn discards(&self) -> bool {
        self.discard != Discard::No
    }
}

impl<B: Buf> Engine<B> {
    /// Takes a volume out of the engine: new requests are refused, what is dirty is destaged, its
    /// records are made dead. [`Event::Detached`] says when. A volume that comes back is cold.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn detach(&mut self, id: VolumeId) -> Result<(), ControlError> {
        self.usable()?;
        let place = self.vols.find(id).ok_or(ControlError::NoSuchVolume(id))?;
        if let Some(vol) = self.vols.get_mut(place) {
            vol.detaching = true;
        }
        Ok(())
    }

    /// Takes a detach back: the volume takes requests again. `false` where its records are dying
    /// already, or there is none under way.
    pub fn cancel_detach(&mut self, id: VolumeId) -> bool {
        let Some(place) = self.vols.find(id) else { return false };
        let dying = self.detached.iter().any(|(at, _)| *at == place);
        let Some(vol) = self.vols.get_mut(place) else { return false };
        if !vol.detaching || dying || !matches!(vol.discard, Discard::No | Discard::Wanted) {
            return false;
        }
        (vol.detaching, vol.discard) = (false, Discard::No);
        true
    }

    /// [`Engine::detach`] without the destage: what is dirty is dropped, also while the backing
    /// device fails. [`Event::Detached`] says when; the superblock has it then. After a crash
    /// before that the volume is there as it was, or already empty: call it again.
    ///
    /// # Errors
    /// [`ControlError`]; nothing changed.
    pub fn detach_discarding(&mut self, id: VolumeId) -> Result<(), ControlError> {
        self.detach(id)?;
        if let Some(vol) = self.vols.find(id).and_then(|place| self.vols.get_mut(place))
            && vol.discard == Discard::No
        {
            vol.discard = Discard::Wanted;
        }
        Ok(())
    }

    pub(super) fn detach_step(&mut self, place: u16) {
        let Some(vol) = self.vols.get(place) else { return };
        if vol.discards() {
            return self.discard_step(place);
        }
        if !vol.detaching
            || vol.requests > 0
            || vol.backing_ops > 0
            || vol.journal_busy()
            || !(vol.settled() || self.plant.has(Bug::DetachDirty))
            || !self.destage.resting()
        {
            return;
        }
        if vol.lost_blocks > 0 {
            // Only an operator may give up what was acknowledged: the volume stays.
            let (volume, blocks) = (vol.id, vol.lost_blocks);
            if let Some(vol) = self.vols.get_mut(place) {
                vol.detaching = false;
            }
            self.event(Event::DamageLeft { volume, blocks, ended: Aim::Detach });
            return;
        }
        match self.detached.iter().position(|(at, _)| *at == place) {
            None if self.plant.has(Bug::DetachWarm) => {
                let ticket = self.supers.change();
                self.detached.push((place, ticket));
            }
            None => {
                let ticket = self.forget(place);
                self.detached.push((place, ticket));
            }
            Some(at) if self.supers.passed(self.detached[at].1) => {
                self.detached.swap_remove(at);
                if let Some(vol) = self.vols.take(place) {
                    self.event(Event::Detached { volume: vol.id });
                }
            }
            Some(_) => {}
        }
    }

    /// Takes dropping a volume's dirty data as far as it goes now.
    fn discard_step(&mut self, place: u16) {
        let Some(vol) = self.vols.get(place) else { return };
        match vol.discard {
            Discard::No => {}
            Discard::Wanted => {
                // What waits for room or for the backing device would wait for ever.
                self.refuse_stalled(place);
                let Some(vol) = self.vols.get(place) else { return };
                let busy = vol.requests > 0 || vol.backing_ops > 0 || !vol.pending.is_empty();
                // A batch that is left complete would be applied again, over whatever comes.
                let busy = busy || vol.journal_voids();
                if busy || !self.destage.resting() {
                    return;
                }
                let old = vol.index;
                let ticket = self.forget(place);
                self.set_discard(place, Discard::Forgetting { old, ticket });
            }
            Discard::Forgetting { old, ticket } => {
                if self.supers.passed(ticket) {
                    let before = vol.dirty;
                    if let Some(vol) = self.vols.get_mut(place) {
                        vol.ranges = RangeMap::new(usize::MAX);
                    }
                    self.set_discard(place, Discard::Sweeping { old, next: 0, before });
                    self.discard_step(place);
                }
            }
            Discard::Sweeping { old, next, before } => self.sweep(place, old, next, before),
        }
    }

    fn set_discard(&mut self, place: u16, discard: Discard) {
        if let Some(vol) = self.vols.get_mut(place) {
            vol.discard = discard;
        }
    }

    fn refuse_stalled(&mut self, place: u16) {
        let mut stalled = core::mem::take(&mut self.stalled);
        stalled.retain(|h| {
            let theirs =
                self.reqs.get(*h).is_some_and(|req| req.volume == place && req.placed == 0);
            if theirs {
                self.refuse(*h);
            }
            !theirs
        });
        stalled.append(&mut self.stalled);
        self.stalled = stalled;
    }

    /// Takes a part of the volume's entries out of the index.
    fn sweep(&mut self, place: u16, old: u16, next: usize, before: u64) {
        let Self { index, segs, map, vols, .. } = self;
        let mut dropped = 0;
        let next = index.retain_some(next, SWEEP, |key, entry| {
            let theirs = key.volume() == old;
            if theirs {
                let dirty = entry.flags.dirty();
                segs.count(map.segment_of(entry.slot), -1, -i32::from(dirty));
                dropped += u64::from(dirty);
            }
            !theirs
        });
        self.dirty = self.dirty.saturating_sub(dropped);
        let Some(vol) = vols.get_mut(place) else { return };
        vol.dirty = vol.dirty.saturating_sub(dropped);
        // Entries that moved during a pass are found in the next one; one that finds none is the last.
        let again = vol.dirty > 0 && vol.dirty < before;
        vol.discard = match next {
            Some(next) => Discard::Sweeping { old, next, before },
            None if again => Discard::Sweeping { old, next: 0, before: vol.dirty },
            None => {
                let id = vol.id;
                self.vols.take(place);
                self.event(Event::Detached { volume: id });
                return;
            }
        };
    }

    /// When the next part of a sweep is due: at once, if there is one.
    pub(super) fn sweep_deadline(&self) -> Instant {
        let sweeps = |vol: &Volume| matches!(vol.discard, Discard::Sweeping { .. });
        if self.vols.iter().any(|(_, vol)| sweeps(vol)) { self.last_poll } else { Instant::NEVER }
    }
}
