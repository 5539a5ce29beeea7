//! Submission queue entries (NVMe Base 2.0 §3.3.3.1) and typed views of the commands in use.

use crate::field::{get16, get32, put16, put32};

mod sgl;
mod views;

pub use sgl::Sgl;
pub use views::{
    Abort, DatasetManagement, GetFeatures, GetLogPage, Identify, ReadWrite, Select, SetFeatures,
};

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

#[cfg(test)]
mod tests;
