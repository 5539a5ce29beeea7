//! Completion queue entries (NVMe Base 2.0 §3.3.3.2).

use crate::field::{get16, get64, put16, put64};
use crate::status::Status;

/// Length of a completion queue entry in bytes.
pub const CQE_LEN: usize = 16;

/// A completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cqe {
    /// Dwords 0 and 1: command specific.
    pub result: u64,
    /// Submission queue head pointer; FFFFh where SQ flow control is off.
    pub sqhd: u16,
    /// Submission queue identifier (reserved in fabrics: zero).
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Status.
    pub status: Status,
}

impl Cqe {
    /// The 16 bytes.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; CQE_LEN] {
        let mut raw = [0; CQE_LEN];
        put64(&mut raw, 0, self.result);
        put16(&mut raw, 8, self.sqhd);
        put16(&mut raw, 10, self.sqid);
        put16(&mut raw, 12, self.cid);
        put16(&mut raw, 14, self.status.to_field());
        raw
    }

    /// From the 16 bytes; the phase tag, reserved in fabrics, is ignored.
    #[inline]
    #[must_use]
    pub fn decode(raw: &[u8; CQE_LEN]) -> Self {
        Self {
            result: get64(raw, 0),
            sqhd: get16(raw, 8),
            sqid: get16(raw, 10),
            cid: get16(raw, 12),
            status: Status::from_field(get16(raw, 14)),
        }
    }

    /// Dword 0 of the result.
    #[must_use]
    pub const fn dw0(&self) -> u32 {
        let raw = self.result.to_le_bytes();
        u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base_2_0_3_3_3_2_layout() {
        let cqe = Cqe {
            result: 0x0102_0304_0506_0708,
            sqhd: 0x1112,
            sqid: 0x2122,
            cid: 0x3132,
            status: Status::COMPARE_FAILURE,
        };
        assert_eq!(
            cqe.encode(),
            [8, 7, 6, 5, 4, 3, 2, 1, 0x12, 0x11, 0x22, 0x21, 0x32, 0x31, 0x0a, 0x05]
        );
        assert_eq!(cqe.dw0(), 0x0506_0708);
    }

    proptest! {
        #[test]
        fn any_bytes_round_trip(mut raw: [u8; 16]) {
            raw[14] &= !1; // the phase tag is dropped
            prop_assert_eq!(Cqe::decode(&raw).encode(), raw);
        }
    }
}
