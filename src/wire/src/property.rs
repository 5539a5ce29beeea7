//! Controller properties (NVMe Base 2.0 §3.1.3).

/// Offset of Controller Capabilities (8 bytes).
pub const CAP: u32 = 0x00;
/// Offset of Version (4 bytes).
pub const VS: u32 = 0x08;
/// Offset of Controller Configuration (4 bytes).
pub const CC: u32 = 0x14;
/// Offset of Controller Status (4 bytes).
pub const CSTS: u32 = 0x1c;
/// Offset of NVM Subsystem Reset (4 bytes).
pub const NSSR: u32 = 0x20;
/// Offset of Controller Ready Timeouts (4 bytes).
pub const CRTO: u32 = 0x68;

/// Version 2.0.0, as in VS and Identify Controller VER.
pub const VERSION_2_0: u32 = 0x0002_0000;

/// Controller Capabilities (§3.1.3.1): what a fabrics controller uses of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cap {
    /// Maximum queue entries supported, zero-based (bits 15:0).
    pub mqes: u16,
    /// Contiguous queues required (bit 16).
    pub cqr: bool,
    /// Timeout for CSTS.RDY in units of 500 ms (bits 31:24).
    pub to: u8,
    /// Command sets supported (bits 44:37): bit 0 NVM, bit 6 I/O command sets by Identify 1Ch.
    pub css: u8,
    /// Smallest memory page size, 2^(12+n) bytes (bits 51:48).
    pub mpsmin: u8,
    /// Largest memory page size, 2^(12+n) bytes (bits 55:52).
    pub mpsmax: u8,
    /// Controller ready modes supported (bits 60:59): bit 0 with media, bit 1 independent of media.
    pub crms: u8,
}

impl Cap {
    /// The property's value.
    #[must_use]
    pub fn encode(&self) -> u64 {
        u64::from(self.mqes)
            | u64::from(self.cqr) << 16
            | u64::from(self.to) << 24
            | u64::from(self.css) << 37
            | u64::from(self.mpsmin & 0xf) << 48
            | u64::from(self.mpsmax & 0xf) << 52
            | u64::from(self.crms & 3) << 59
    }

    /// From the property's value; other bits are dropped.
    #[must_use]
    pub fn decode(value: u64) -> Self {
        let raw = value.to_le_bytes();
        Self {
            mqes: u16::from_le_bytes([raw[0], raw[1]]),
            cqr: raw[2] & 1 != 0,
            to: raw[3],
            css: (value >> 37).to_le_bytes()[0],
            mpsmin: raw[6] & 0xf,
            mpsmax: raw[6] >> 4,
            crms: (raw[7] >> 3) & 3,
        }
    }
}

/// How a shutdown was notified (CC.SHN).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shn {
    /// No notification.
    #[default]
    None,
    /// Normal shutdown.
    Normal,
    /// Abrupt shutdown.
    Abrupt,
    /// The reserved value.
    Reserved,
}

/// Controller Configuration (§3.1.3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cc {
    /// Enable (bit 0).
    pub en: bool,
    /// I/O command set selected (bits 6:4): 0 NVM, 6 all supported, 7 admin only.
    pub css: u8,
    /// Memory page size (bits 10:7).
    pub mps: u8,
    /// Arbitration mechanism (bits 13:11).
    pub ams: u8,
    /// Shutdown notification (bits 15:14).
    pub shn: Shn,
    /// I/O submission queue entry size, 2^n (bits 19:16).
    pub iosqes: u8,
    /// I/O completion queue entry size, 2^n (bits 23:20).
    pub iocqes: u8,
    /// Controller ready independent of media (bit 24).
    pub crime: bool,
}

impl Cc {
    /// The property's value.
    #[must_use]
    pub fn encode(&self) -> u32 {
        let shn = match self.shn {
            Shn::None => 0,
            Shn::Normal => 1,
            Shn::Abrupt => 2,
            Shn::Reserved => 3,
        };
        u32::from(self.en)
            | u32::from(self.css & 7) << 4
            | u32::from(self.mps & 0xf) << 7
            | u32::from(self.ams & 7) << 11
            | shn << 14
            | u32::from(self.iosqes & 0xf) << 16
            | u32::from(self.iocqes & 0xf) << 20
            | u32::from(self.crime) << 24
    }

    /// From the property's value; reserved bits are dropped.
    #[must_use]
    pub fn decode(value: u32) -> Self {
        let at = |shift: u32, mask: u8| (value >> shift).to_le_bytes()[0] & mask;
        Self {
            en: value & 1 != 0,
            css: at(4, 7),
            mps: at(7, 0xf),
            ams: at(11, 7),
            shn: match at(14, 3) {
                0 => Shn::None,
                1 => Shn::Normal,
                2 => Shn::Abrupt,
                _ => Shn::Reserved,
            },
            iosqes: at(16, 0xf),
            iocqes: at(20, 0xf),
            crime: value & (1 << 24) != 0,
        }
    }
}

/// Controller Status (§3.1.3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Csts {
    /// Ready (bit 0).
    pub rdy: bool,
    /// Controller fatal status (bit 1).
    pub cfs: bool,
    /// Shutdown status (bits 3:2): 0 normal operation, 1 occurring, 2 complete.
    pub shst: u8,
}

impl Csts {
    /// The property's value.
    #[must_use]
    pub fn encode(&self) -> u32 {
        u32::from(self.rdy) | u32::from(self.cfs) << 1 | u32::from(self.shst & 3) << 2
    }

    /// From the property's value; other bits are dropped.
    #[must_use]
    pub fn decode(value: u32) -> Self {
        Self { rdy: value & 1 != 0, cfs: value & 2 != 0, shst: (value >> 2).to_le_bytes()[0] & 3 }
    }
}

/// Controller Ready Timeouts (§3.1.3.23), in units of 500 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crto {
    /// Ready with media timeout (bits 15:0).
    pub crwmt: u16,
    /// Ready independent of media timeout (bits 31:16).
    pub crimt: u16,
}

impl Crto {
    /// The property's value.
    #[must_use]
    pub fn encode(&self) -> u32 {
        u32::from(self.crwmt) | u32::from(self.crimt) << 16
    }

    /// From the property's value.
    #[must_use]
    pub const fn decode(value: u32) -> Self {
        Self { crwmt: crate::field::low16(value), crimt: crate::field::high16(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base_2_0_3_1_3_1_cap() {
        let cap = Cap { mqes: 127, cqr: true, to: 15, css: 0x41, crms: 1, ..Cap::default() };
        assert_eq!(cap.encode(), 0x0800_0820_0f01_007f);
        assert_eq!(Cap::decode(cap.encode()), cap);
        assert_eq!(Cap { mpsmax: 4, ..Cap::default() }.encode(), 0x0040_0000_0000_0000);
    }

    #[test]
    fn base_2_0_3_1_3_5_cc_as_linux_sets_it() {
        // Enable, 64-byte SQEs (2^6), 16-byte CQEs (2^4).
        let cc = Cc { en: true, iosqes: 6, iocqes: 4, ..Cc::default() };
        assert_eq!(cc.encode(), 0x0046_0001);
        assert_eq!(Cc { shn: Shn::Normal, ..cc }.encode(), 0x0046_4001);
        assert_eq!(Cc { css: 6, ..cc }.encode(), 0x0046_0061);
        assert_eq!(Csts { rdy: true, cfs: false, shst: 2 }.encode(), 0x9);
    }

    proptest! {
        #[test]
        fn any_value_decodes_and_what_is_kept_round_trips(value: u64) {
            let low = value.to_le_bytes();
            let low = u32::from_le_bytes([low[0], low[1], low[2], low[3]]);
            let cap = Cap::decode(value);
            prop_assert_eq!(Cap::decode(cap.encode()), cap);
            prop_assert_eq!(Cc::decode(low).encode(), low & 0x01ff_fff1);
            prop_assert_eq!(Csts::decode(low).encode(), low & 0xf);
            prop_assert_eq!(Crto::decode(low).encode(), low);
        }
    }
}
