//! Typed views of the commands in use: what is in their dwords 10 to 15.

use super::Sqe;
use crate::field::{byte, get64, high16, low16, put64};

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
