//! Dataset Management ranges (NVM Command Set 1.0 §3.2.3).

use crate::field::{get32, get64, put32, put64};

/// Length of one range in bytes.
pub const RANGE_LEN: usize = 16;
/// Most ranges in one command.
pub const RANGES_MAX: usize = 256;

/// One range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Context attributes (hints).
    pub attributes: u32,
    /// Length in logical blocks; not zero-based.
    pub blocks: u32,
    /// First logical block.
    pub slba: u64,
}

impl Range {
    /// The 16 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RANGE_LEN] {
        let mut raw = [0; RANGE_LEN];
        put32(&mut raw, 0, self.attributes);
        put32(&mut raw, 4, self.blocks);
        put64(&mut raw, 8, self.slba);
        raw
    }

    /// From the 16 bytes.
    #[must_use]
    pub fn decode(raw: &[u8; RANGE_LEN]) -> Self {
        Self { attributes: get32(raw, 0), blocks: get32(raw, 4), slba: get64(raw, 8) }
    }

    /// The whole ranges in `bytes`, in order; a partial one at the end is left out.
    pub fn list(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        bytes.as_chunks::<RANGE_LEN>().0.iter().map(Self::decode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nvm_1_0_3_2_3_range_layout() {
        let range = Range { attributes: 0x0403_0201, blocks: 0x0807_0605, slba: 0x1009 };
        assert_eq!(range.encode(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_round_trip(raw: Vec<u8>) {
            let again: Vec<u8> = Range::list(&raw).flat_map(|r| r.encode()).collect();
            prop_assert_eq!(&again[..], &raw[..raw.len() / 16 * 16]);
        }
    }
}
