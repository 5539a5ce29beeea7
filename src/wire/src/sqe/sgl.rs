//! The data pointer of a command as an SGL.

use crate::field::{get32, get64, put32, put64};

/// The data pointer as one SGL descriptor (NVMe Base 2.0 §4.1.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// Data block, offset subtype (01h): data in the capsule.
    InCapsule {
        /// Offset from the start of in-capsule data.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Transport data block (5Ah): data moves by the transport's own PDUs.
    Transport {
        /// Bytes.
        len: u32,
    },
    /// Keyed data block (40h, or 4Fh to invalidate the key at completion): RDMA.
    Keyed {
        /// Address in the host's memory.
        address: u64,
        /// Bytes (24 bits).
        len: u32,
        /// Remote key.
        key: u32,
        /// Whether the key is to be invalidated (subtype Fh).
        invalidate: bool,
    },
    /// Anything else, by its identifier byte (type in the upper half).
    Other(u8),
}

impl Sgl {
    /// The 16 bytes; [`Sgl::Other`] is encoded with no address and no length.
    #[must_use]
    pub fn encode(&self) -> [u8; 16] {
        let mut raw = [0; 16];
        match *self {
            Self::InCapsule { offset, len } => {
                put64(&mut raw, 0, offset);
                put32(&mut raw, 8, len);
                raw[15] = 0x01;
            }
            Self::Transport { len } => {
                put32(&mut raw, 8, len);
                raw[15] = 0x5a;
            }
            Self::Keyed { address, len, key, invalidate } => {
                put64(&mut raw, 0, address);
                put32(&mut raw, 8, len & 0x00ff_ffff);
                put32(&mut raw, 11, key);
                raw[15] = if invalidate { 0x4f } else { 0x40 };
            }
            Self::Other(id) => raw[15] = id,
        }
        raw
    }

    /// From the 16 bytes.
    #[inline]
    #[must_use]
    pub fn decode(raw: &[u8; 16]) -> Self {
        match raw[15] {
            0x01 => Self::InCapsule { offset: get64(raw, 0), len: get32(raw, 8) },
            0x5a => Self::Transport { len: get32(raw, 8) },
            id @ (0x40 | 0x4f) => Self::Keyed {
                address: get64(raw, 0),
                len: get32(raw, 8) & 0x00ff_ffff,
                key: get32(raw, 11),
                invalidate: id == 0x4f,
            },
            id => Self::Other(id),
        }
    }

    /// The length in bytes that the descriptor states; 0 for [`Sgl::Other`].
    #[must_use]
    pub const fn len(&self) -> u32 {
        match *self {
            Self::InCapsule { len, .. } | Self::Transport { len } | Self::Keyed { len, .. } => len,
            Self::Other(_) => 0,
        }
    }

    /// Whether the stated length is zero.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
