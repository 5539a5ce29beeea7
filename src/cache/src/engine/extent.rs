//! Growing: a shard that does not own all its device asks for extents before it evicts anything.

use super::Engine;
use super::mode::ControlError;
use super::types::Event;
use crate::format::geometry::Extent;
use forebay_io::Buf;

/// Free segments below which an extent is asked for.
const ASK_BELOW: usize = 8;

/// Whether the shard may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// It has what it will ever have, or was told that there is no more.
    Fixed,
    /// It may ask.
    May,
    /// It has asked.
    Asked,
    /// The superblock of this ticket makes the extent its own.
    Granting(u64, Extent),
}

impl<B: Buf> Engine<B> {
    /// More extents may be asked for ([`Event::WantsExtent`]): at the start, where the device has
    /// unowned ones, and again when one was given back.
    pub fn allow_extents(&mut self) {
        if self.extent == Growth::Fixed {
            self.extent = Growth::May;
        }
    }

    /// There is no extent to be had.
    pub fn extent_denied(&mut self) {
        if self.extent == Growth::Asked {
            self.extent = Growth::Fixed;
        }
    }

    /// The shard owns this extent from now on; it is used once the superblock says so.
    ///
    /// # Errors
    /// [`ControlError`]; the extent is not taken.
    pub fn extent_granted(&mut self, extent: Extent) -> Result<(), ControlError> {
        self.usable()?;
        if matches!(self.extent, Growth::Granting(..)) {
            return Err(ControlError::Busy("an extent is just being added"));
        }
        if extent.count == 0 {
            return Err(ControlError::Invalid("an extent has at least one segment"));
        }
        let slots = u64::from(extent.count) * u64::from(self.map.geometry().data_slots());
        let (slots, capacity) = (self.map.data_slots() + slots, self.index.capacity() as u64);
        if slots > capacity {
            return Err(ControlError::IndexTooSmall { slots, capacity });
        }
        self.supers.block.extents.push(extent);
        let ticket = self.supers.change();
        self.extent = Growth::Granting(ticket, extent);
        Ok(())
    }

    /// Whether an extent is on its way, so that nothing has to be evicted.
    pub(super) fn grows(&self) -> bool {
        self.extent != Growth::Fixed
    }

    pub(super) fn extent_step(&mut self) {
        match self.extent {
            Growth::May if self.segs.free_count() < ASK_BELOW && !self.stopping => {
                self.extent = Growth::Asked;
                self.event(Event::WantsExtent);
            }
            Growth::Granting(ticket, extent) if self.supers.passed(ticket) => {
                self.map.grant(extent);
                self.folds.grow(self.map.slots());
                (0..extent.count).for_each(|_| self.segs.add_free());
                self.extent = Growth::May;
            }
            _ => {}
        }
    }
}
