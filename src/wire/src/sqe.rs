//! Submission queue entries (NVMe Base 2.0 §3.3.3.1) and typed views of the commands in use.

use crate::field::{byte, get16, get32, get64, high16, low16, put16, put32, put64};

/// Length of a submission queue entry in bytes.
pub const SQE_LEN: usize = 64;

/// Opcodes of admin commands (NVMe Base 2.0 §5).
pub mod admin {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Fabrics commands, on every queue.
    pub const FABRICS: u8 = 0x7f;
}

/// Opcodes of the NVM command set (NVM Command Set 1.0 §3) and of I/O commands of the base.
pub mod nvm {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify.
    pub const VERIFY: u8 = 0x0c;
    /// Reservation Register.
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report.
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire.
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// Reservation Release.
    pub const RESERVATION_RELEASE: u8 = 0x15;
    /// Copy.
    pub const COPY: u8 = 0x19;
}

/// Which part of a fused operation a command is (FUSE, dword 0 bits 9:8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fuse {
    /// None.
    #[default]
    Normal,
    /// The first command.
    First,
    /// The second command.
    Second,
    /// The reserved value.
    Reserved,
}

/// How data is described (PSDT, dword 0 bits 15:14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Psdt {
    /// PRPs: not used in fabrics.
    #[default]
    Prp,
    /// An SGL; metadata, if any, in one buffer.
    Sgl,
    /// An SGL; metadata, if any, described by an SGL.
    SglMetadataSgl,
    /// The reserved value.
    Reserved,
}

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

/// A submission queue entry: 64 bytes whose common fields are read in place.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Sqe([u8; SQE_LEN]);

impl core::fmt::Debug for Sqe {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "Sqe {{ opcode: {:#04x}, cid: {}, nsid: {}, sgl: {:?}, cdw10..15: {:08x?} }}",
            self.opcode(),
            self.cid(),
            self.nsid(),
            self.sgl(),
            [10, 11, 12, 13, 14, 15].map(|n| self.cdw(n))
        )
    }
}

impl Sqe {
    /// A command with everything else zero, PSDT "SGL" as fabrics demand.
    #[must_use]
    pub fn new(opcode: u8, cid: u16, nsid: u32) -> Self {
        let mut raw = [0; SQE_LEN];
        raw[0] = opcode;
        raw[1] = 0x40;
        put16(&mut raw, 2, cid);
        put32(&mut raw, 4, nsid);
        Self(raw)
    }

    /// From the 64 bytes. Every pattern is a command; views and the target judge it.
    #[inline]
    #[must_use]
    pub const fn from_bytes(raw: &[u8; SQE_LEN]) -> Self {
        Self(*raw)
    }

    /// The 64 bytes.
    #[inline]
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; SQE_LEN] {
        &self.0
    }

    /// Opcode.
    #[inline]
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Fused operation part.
    #[inline]
    #[must_use]
    pub const fn fuse(&self) -> Fuse {
        match self.0[1] & 3 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// Sets the fused operation part.
    #[must_use]
    pub fn with_fuse(mut self, fuse: Fuse) -> Self {
        let bits = match fuse {
            Fuse::Normal => 0,
            Fuse::First => 1,
            Fuse::Second => 2,
            Fuse::Reserved => 3,
        };
        self.0[1] = self.0[1] & !3 | bits;
        self
    }

    /// How data is described.
    #[inline]
    #[must_use]
    pub const fn psdt(&self) -> Psdt {
        match self.0[1] >> 6 {
            0 => Psdt::Prp,
            1 => Psdt::Sgl,
            2 => Psdt::SglMetadataSgl,
            _ => Psdt::Reserved,
        }
    }

    /// Command identifier.
    #[inline]
    #[must_use]
    pub fn cid(&self) -> u16 {
        get16(&self.0, 2)
    }

    /// The same command under another identifier.
    #[must_use]
    pub fn with_cid(mut self, cid: u16) -> Self {
        put16(&mut self.0, 2, cid);
        self
    }

    /// Namespace identifier.
    #[inline]
    #[must_use]
    pub fn nsid(&self) -> u32 {
        get32(&self.0, 4)
    }

    /// Fabrics command type (byte 4; shares its place with the NSID).
    #[inline]
    #[must_use]
    pub const fn fctype(&self) -> u8 {
        self.0[4]
    }

    /// The data pointer as an SGL descriptor.
    #[inline]
    #[must_use]
    pub fn sgl(&self) -> Sgl {
        Sgl::decode(&crate::field::array(&self.0, 24))
    }

    /// Sets the data pointer.
    #[must_use]
    pub fn with_sgl(mut self, sgl: Sgl) -> Self {
        self.0[24..40].copy_from_slice(&sgl.encode());
        self
    }

    /// Command dword `n`; 0 for a number beyond 15.
    #[inline]
    #[must_use]
    pub fn cdw(&self, n: usize) -> u32 {
        if n < 16 { get32(&self.0, n * 4) } else { 0 }
    }

    /// Sets command dword `n` (ignored beyond 15).
    #[must_use]
    pub fn with_cdw(mut self, n: usize, value: u32) -> Self {
        if n < 16 {
            put32(&mut self.0, n * 4, value);
        }
        self
    }

    pub(crate) fn raw_mut(&mut self) -> &mut [u8; SQE_LEN] {
        &mut self.0
    }
}

/// Read, Write, Compare, Write Zeroes (NVM Command Set 1.0 §3.2): where, how much, how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadWrite {
    /// First logical block.
    pub slba: u64,
    /// Number of logical blocks, 1 to 65536 (zero-based on the wire).
    pub blocks: u32,
    /// Limited retry (dword 12 bit 31).
    pub limited_retry: bool,
    /// Force unit access (dword 12 bit 30).
    pub fua: bool,
    /// Protection information field (dword 12 bits 29:26).
    pub prinfo: u8,
    /// Deallocate; Write Zeroes only (dword 12 bit 25).
    pub deallocate: bool,
}

impl ReadWrite {
    /// From a command's dwords 10–12.
    #[inline]
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let dw12 = sqe.cdw(12);
        Self {
            slba: get64(sqe.as_bytes(), 40),
            blocks: u32::from(low16(dw12)) + 1,
            limited_retry: dw12 & (1 << 31) != 0,
            fua: dw12 & (1 << 30) != 0,
            prinfo: byte(dw12 >> 26, 0) & 0xf,
            deallocate: dw12 & (1 << 25) != 0,
        }
    }

    /// Into a command's dwords 10–12; `blocks` outside 1–65536 is clamped.
    #[must_use]
    pub fn encode(&self, mut sqe: Sqe) -> Sqe {
        put64(sqe.raw_mut(), 40, self.slba);
        let nlb = self.blocks.clamp(1, 1 << 16) - 1;
        sqe.with_cdw(
            12,
            nlb | u32::from(self.limited_retry) << 31
                | u32::from(self.fua) << 30
                | u32::from(self.prinfo & 0xf) << 26
                | u32::from(self.deallocate) << 25,
        )
    }
}

/// Dataset Management (NVM Command Set 1.0 §3.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatasetManagement {
    /// Number of ranges, 1 to 256 (zero-based on the wire).
    pub ranges: u16,
    /// Hint: the ranges will be read as a whole.
    pub integral_read: bool,
    /// Hint: the ranges will be written as a whole.
    pub integral_write: bool,
    /// Deallocate the ranges.
    pub deallocate: bool,
}

impl DatasetManagement {
    /// From a command's dwords 10 and 11.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let dw11 = sqe.cdw(11);
        Self {
            ranges: u16::from(byte(sqe.cdw(10), 0)) + 1,
            integral_read: dw11 & 1 != 0,
            integral_write: dw11 & 2 != 0,
            deallocate: dw11 & 4 != 0,
        }
    }

    /// Into a command's dwords 10 and 11; `ranges` outside 1–256 is clamped.
    #[must_use]
    pub fn encode(&self, sqe: Sqe) -> Sqe {
        let bits = u32::from(self.integral_read)
            | u32::from(self.integral_write) << 1
            | u32::from(self.deallocate) << 2;
        sqe.with_cdw(10, u32::from(self.ranges.clamp(1, 256) - 1)).with_cdw(11, bits)
    }
}

/// Identify (NVMe Base 2.0 §5.17).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identify {
    /// Controller or Namespace Structure.
    pub cns: u8,
    /// Controller identifier.
    pub cntid: u16,
    /// CNS specific identifier.
    pub cnssid: u16,
    /// Command set identifier.
    pub csi: u8,
}

impl Identify {
    /// From a command's dwords 10 and 11.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let (dw10, dw11) = (sqe.cdw(10), sqe.cdw(11));
        Self { cns: byte(dw10, 0), cntid: high16(dw10), cnssid: low16(dw11), csi: byte(dw11, 3) }
    }

    /// Into a command's dwords 10 and 11.
    #[must_use]
    pub fn encode(&self, sqe: Sqe) -> Sqe {
        sqe.with_cdw(10, u32::from(self.cns) | u32::from(self.cntid) << 16)
            .with_cdw(11, u32::from(self.cnssid) | u32::from(self.csi) << 24)
    }
}

/// Get Log Page (NVMe Base 2.0 §5.16).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetLogPage {
    /// Log page identifier.
    pub lid: u8,
    /// Log specific parameter (7 bits).
    pub lsp: u8,
    /// Retain asynchronous event.
    pub rae: bool,
    /// Bytes asked for: a multiple of 4, 4 to 2^34 (dwords, zero-based on the wire).
    pub len: u64,
    /// Log specific identifier.
    pub lsi: u16,
    /// Offset in bytes (or index, where `index_offset`).
    pub offset: u64,
    /// Offset type: whether `offset` is an index.
    pub index_offset: bool,
    /// Command set identifier.
    pub csi: u8,
}

impl GetLogPage {
    /// From a command's dwords 10–14.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let (dw10, dw11, dw14) = (sqe.cdw(10), sqe.cdw(11), sqe.cdw(14));
        let dwords = (u64::from(low16(dw11)) << 16 | u64::from(high16(dw10))) + 1;
        Self {
            lid: byte(dw10, 0),
            lsp: byte(dw10, 1) & 0x7f,
            rae: dw10 & (1 << 15) != 0,
            len: dwords * 4,
            lsi: high16(dw11),
            offset: get64(sqe.as_bytes(), 48),
            index_offset: dw14 & (1 << 23) != 0,
            csi: byte(dw14, 3),
        }
    }

    /// Into a command's dwords 10–14; `len` is rounded up to dwords, at least one.
    #[must_use]
    pub fn encode(&self, mut sqe: Sqe) -> Sqe {
        let numd = self.len.div_ceil(4).clamp(1, 1 << 32) - 1;
        let raw = numd.to_le_bytes();
        let (numdl, numdu) =
            (u16::from_le_bytes([raw[0], raw[1]]), u16::from_le_bytes([raw[2], raw[3]]));
        put64(sqe.raw_mut(), 48, self.offset);
        sqe.with_cdw(
            10,
            u32::from(self.lid)
                | u32::from(self.lsp & 0x7f) << 8
                | u32::from(self.rae) << 15
                | u32::from(numdl) << 16,
        )
        .with_cdw(11, u32::from(numdu) | u32::from(self.lsi) << 16)
        .with_cdw(14, u32::from(self.index_offset) << 23 | u32::from(self.csi) << 24)
    }
}

/// Which value of a feature Get Features returns (NVMe Base 2.0 §5.15).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// Current value.
    #[default]
    Current,
    /// Default value.
    Default,
    /// Saved value.
    Saved,
    /// What can be done with the feature.
    Capabilities,
    /// A reserved value.
    Reserved,
}

/// Get Features (NVMe Base 2.0 §5.15).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetFeatures {
    /// Feature identifier.
    pub fid: u8,
    /// Which value.
    pub select: Select,
    /// Dword 11: feature specific.
    pub dw11: u32,
}

impl GetFeatures {
    /// From a command's dwords 10 and 11.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let dw10 = sqe.cdw(10);
        let select = match byte(dw10, 1) & 7 {
            0 => Select::Current,
            1 => Select::Default,
            2 => Select::Saved,
            3 => Select::Capabilities,
            _ => Select::Reserved,
        };
        Self { fid: byte(dw10, 0), select, dw11: sqe.cdw(11) }
    }

    /// Into a command's dwords 10 and 11.
    #[must_use]
    pub fn encode(&self, sqe: Sqe) -> Sqe {
        let select = match self.select {
            Select::Current => 0,
            Select::Default => 1,
            Select::Saved => 2,
            Select::Capabilities => 3,
            Select::Reserved => 7,
        };
        sqe.with_cdw(10, u32::from(self.fid) | select << 8).with_cdw(11, self.dw11)
    }
}

/// Set Features (NVMe Base 2.0 §5.27).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetFeatures {
    /// Feature identifier.
    pub fid: u8,
    /// Save the value.
    pub save: bool,
    /// Dword 11: feature specific.
    pub dw11: u32,
}

impl SetFeatures {
    /// From a command's dwords 10 and 11.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let dw10 = sqe.cdw(10);
        Self { fid: byte(dw10, 0), save: dw10 & (1 << 31) != 0, dw11: sqe.cdw(11) }
    }

    /// Into a command's dwords 10 and 11.
    #[must_use]
    pub fn encode(&self, sqe: Sqe) -> Sqe {
        sqe.with_cdw(10, u32::from(self.fid) | u32::from(self.save) << 31).with_cdw(11, self.dw11)
    }
}

/// Abort (NVMe Base 2.0 §5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abort {
    /// The queue.
    pub sqid: u16,
    /// The command.
    pub cid: u16,
}

impl Abort {
    /// From a command's dword 10.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        Self { sqid: low16(sqe.cdw(10)), cid: high16(sqe.cdw(10)) }
    }

    /// Into a command's dword 10.
    #[must_use]
    pub fn encode(&self, sqe: Sqe) -> Sqe {
        sqe.with_cdw(10, u32::from(self.sqid) | u32::from(self.cid) << 16)
    }
}

#[cfg(test)]
mod tests;
