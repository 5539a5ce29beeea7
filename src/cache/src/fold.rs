//! Sixteen bits of each cached block's CRC32C, kept in memory and checked on every hit.

use forebay_io::crc::fold16;

/// One folded CRC for each slot: 2 bytes a slot, allocated once.
pub struct Folds(Vec<u16>);

impl Folds {
    /// Folds for slots 0 to `slots` − 1.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self(vec![0; slots as usize])
    }

    /// The folds that recovery found.
    #[must_use]
    pub const fn from_vec(folds: Vec<u16>) -> Self {
        Self(folds)
    }

    /// Makes room for slots up to `slots` − 1: the shard got an extent.
    pub fn grow(&mut self, slots: u64) {
        let slots = usize::try_from(slots).unwrap_or(usize::MAX);
        if self.0.len() < slots {
            self.0.resize(slots, 0);
        }
    }

    /// Notes the CRC of what a slot holds. Slots beyond the last are ignored.
    pub fn set(&mut self, slot: u32, crc: u32) {
        if let Some(fold) = self.0.get_mut(slot as usize) {
            *fold = fold16(crc);
        }
    }

    /// Whether data with this CRC may be what was written to the slot. A difference is certain;
    /// an agreement is wrong with a probability of 2⁻¹⁶.
    #[must_use]
    pub fn matches(&self, slot: u32, crc: u32) -> bool {
        self.0.get(slot as usize) == Some(&fold16(crc))
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.0.capacity() * size_of::<u16>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_other_data_and_slots_apart() {
        let mut folds = Folds::new(4);
        folds.set(2, 0x1234_5678);
        folds.set(4, 0x1234_5678);
        assert!(folds.matches(2, 0x1234_5678));
        assert!(!folds.matches(2, 0x1234_5679) && !folds.matches(2, 0x1235_5678));
        assert!(!folds.matches(1, 0x1234_5678) && !folds.matches(4, 0x1234_5678));
        assert_eq!(folds.memory_bytes(), size_of::<Folds>() + 8);
    }
}
