//! Identify Namespace in its forms.

use super::IDENTIFY_LEN;
use crate::field::{array, get16, get32, get64, get128, put_bytes, put16, put32, put64, put128};

/// Most LBA formats decoded (the first 16 of 64).
const FORMATS_MAX: usize = 16;

/// An LBA format (NVM Command Set 1.0 Figure 98).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LbaFormat {
    /// Metadata bytes per block.
    pub metadata: u16,
    /// Block size, 2^n bytes.
    pub data_shift: u8,
    /// Relative performance, 0 best.
    pub performance: u8,
}

/// Identify Namespace of the NVM command set (CNS 00h; NVM Command Set 1.0 Figure 97).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdNamespace {
    /// Size in logical blocks.
    pub nsze: u64,
    /// Capacity in logical blocks.
    pub ncap: u64,
    /// Utilization in logical blocks.
    pub nuse: u64,
    /// Features: bit 0 thin, bit 1 atomics, bit 4 optimal I/O fields.
    pub nsfeat: u8,
    /// Formatted LBA size: index in bits 3:0.
    pub flbas: u8,
    /// Multi-path and sharing: bit 0 shared.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Deallocate features: bits 2:0 value read back (1 zeroes), bit 3 Write Zeroes DEAC.
    pub dlfeat: u8,
    /// Atomic write unit normal, zero-based.
    pub nawun: u16,
    /// Atomic write unit power fail, zero-based.
    pub nawupf: u16,
    /// Atomic compare and write unit, zero-based.
    pub nacwu: u16,
    /// Optimal I/O boundary in logical blocks.
    pub noiob: u16,
    /// NVM capacity in bytes.
    pub nvmcap: u128,
    /// Preferred write granularity, zero-based.
    pub npwg: u16,
    /// Preferred write alignment, zero-based.
    pub npwa: u16,
    /// Preferred deallocate granularity, zero-based.
    pub npdg: u16,
    /// Preferred deallocate alignment, zero-based.
    pub npda: u16,
    /// Optimal write size, zero-based.
    pub nows: u16,
    /// ANA group identifier.
    pub anagrpid: u32,
    /// Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// Globally unique identifier, big-endian.
    pub nguid: [u8; 16],
    /// EUI-64, big-endian; zero is none.
    pub eui64: [u8; 8],
    /// LBA formats, at most 16; NLBAF is their number less one.
    pub formats: Vec<LbaFormat>,
}

impl IdNamespace {
    /// Writes the 4096 bytes; formats beyond 16 are left out.
    pub fn encode(&self, raw: &mut [u8; IDENTIFY_LEN]) {
        raw.fill(0);
        put64(raw, 0, self.nsze);
        put64(raw, 8, self.ncap);
        put64(raw, 16, self.nuse);
        raw[24] = self.nsfeat;
        raw[26] = self.flbas;
        raw[30] = self.nmic;
        raw[31] = self.rescap;
        raw[33] = self.dlfeat;
        put16(raw, 34, self.nawun);
        put16(raw, 36, self.nawupf);
        put16(raw, 38, self.nacwu);
        put16(raw, 46, self.noiob);
        put128(raw, 48, self.nvmcap);
        put16(raw, 64, self.npwg);
        put16(raw, 66, self.npwa);
        put16(raw, 68, self.npdg);
        put16(raw, 70, self.npda);
        put16(raw, 72, self.nows);
        put32(raw, 92, self.anagrpid);
        raw[99] = self.nsattr;
        put_bytes(raw, 104, &self.nguid);
        put_bytes(raw, 120, &self.eui64);
        let mut last = 0;
        for (index, format) in (0u8..).zip(self.formats.iter().take(FORMATS_MAX)) {
            let at = 128 + 4 * usize::from(index);
            put16(raw, at, format.metadata);
            raw[at + 2] = format.data_shift;
            raw[at + 3] = format.performance & 3;
            last = index;
        }
        raw[25] = last;
    }

    /// From the 4096 bytes.
    #[must_use]
    pub fn decode(raw: &[u8; IDENTIFY_LEN]) -> Self {
        let formats = (0..=usize::from(raw[25]).min(FORMATS_MAX - 1))
            .map(|index| {
                let at = 128 + 4 * index;
                LbaFormat {
                    metadata: get16(raw, at),
                    data_shift: raw[at + 2],
                    performance: raw[at + 3] & 3,
                }
            })
            .collect();
        Self {
            nsze: get64(raw, 0),
            ncap: get64(raw, 8),
            nuse: get64(raw, 16),
            nsfeat: raw[24],
            flbas: raw[26],
            nmic: raw[30],
            rescap: raw[31],
            dlfeat: raw[33],
            nawun: get16(raw, 34),
            nawupf: get16(raw, 36),
            nacwu: get16(raw, 38),
            noiob: get16(raw, 46),
            nvmcap: get128(raw, 48),
            npwg: get16(raw, 64),
            npwa: get16(raw, 66),
            npdg: get16(raw, 68),
            npda: get16(raw, 70),
            nows: get16(raw, 72),
            anagrpid: get32(raw, 92),
            nsattr: raw[99],
            nguid: array(raw, 104),
            eui64: array(raw, 120),
            formats,
        }
    }

    /// The format in use: the one that FLBAS names.
    #[must_use]
    pub fn format(&self) -> Option<LbaFormat> {
        self.formats.get(usize::from(self.flbas & 0xf)).copied()
    }

    /// Bytes per logical block, where the format is one that can be used (512 B to 64 KiB).
    #[must_use]
    pub fn block_size(&self) -> Option<u32> {
        let shift = self.format()?.data_shift;
        (9..=16).contains(&shift).then(|| 1 << shift)
    }
}

/// Command set independent Identify Namespace (CNS 08h; Base 2.0 Figure 280).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdNamespaceIndependent {
    /// Common features: bit 4 rotational, bit 5 no volatile write cache.
    pub nsfeat: u8,
    /// Multi-path and sharing: bit 0 shared.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// ANA group identifier.
    pub anagrpid: u32,
    /// Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// Status: bit 0 ready.
    pub nstat: u8,
}

impl IdNamespaceIndependent {
    /// Writes the 4096 bytes.
    pub fn encode(&self, raw: &mut [u8; IDENTIFY_LEN]) {
        raw.fill(0);
        raw[..3].copy_from_slice(&[self.nsfeat, self.nmic, self.rescap]);
        put32(raw, 4, self.anagrpid);
        raw[8] = self.nsattr;
        raw[14] = self.nstat;
    }

    /// From the 4096 bytes.
    #[must_use]
    pub fn decode(raw: &[u8; IDENTIFY_LEN]) -> Self {
        Self {
            nsfeat: raw[0],
            nmic: raw[1],
            rescap: raw[2],
            anagrpid: get32(raw, 4),
            nsattr: raw[8],
            nstat: raw[14],
        }
    }
}

/// Namespace identification descriptors (CNS 03h; Base 2.0 Figure 277).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceDescriptors {
    /// EUI-64 (type 1).
    pub eui64: Option<[u8; 8]>,
    /// NGUID (type 2).
    pub nguid: Option<[u8; 16]>,
    /// UUID (type 3).
    pub uuid: Option<[u8; 16]>,
    /// Command set identifier (type 4).
    pub csi: Option<u8>,
}

impl NamespaceDescriptors {
    /// Writes the 4096 bytes.
    pub fn encode(&self, raw: &mut [u8; IDENTIFY_LEN]) {
        raw.fill(0);
        let mut at = 0;
        let mut put = |kind: u8, len: u8, value: &[u8]| {
            raw[at] = kind;
            raw[at + 1] = len;
            put_bytes(raw, at + 4, value);
            at += 4 + value.len();
        };
        if let Some(eui64) = &self.eui64 {
            put(1, 8, eui64);
        }
        if let Some(nguid) = &self.nguid {
            put(2, 16, nguid);
        }
        if let Some(uuid) = &self.uuid {
            put(3, 16, uuid);
        }
        if let Some(csi) = self.csi {
            put(4, 1, &[csi]);
        }
    }

    /// From the 4096 bytes; unknown types and wrong lengths are skipped.
    #[must_use]
    pub fn decode(raw: &[u8; IDENTIFY_LEN]) -> Self {
        let mut found = Self::default();
        for (kind, value) in (DescriptorList { rest: raw }) {
            match (kind, value.len()) {
                (1, 8) => found.eui64 = Some(array(value, 0)),
                (2, 16) => found.nguid = Some(array(value, 0)),
                (3, 16) => found.uuid = Some(array(value, 0)),
                (4, 1) => found.csi = Some(value[0]),
                _ => {}
            }
        }
        found
    }
}

/// Iterates over (type, value) of a descriptor list; ends at a zero length or at the end.
#[derive(Clone, Copy, Debug)]
pub struct DescriptorList<'a> {
    rest: &'a [u8],
}

impl<'a> DescriptorList<'a> {
    /// Over the bytes of an Identify CNS 03h answer.
    #[must_use]
    pub const fn new(raw: &'a [u8; IDENTIFY_LEN]) -> Self {
        Self { rest: raw }
    }
}

impl<'a> Iterator for DescriptorList<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, tail) = self.rest.split_at_checked(4)?;
        let len = usize::from(header[1]);
        if len == 0 {
            return None;
        }
        let (value, tail) = tail.split_at_checked(len)?;
        self.rest = tail;
        Some((header[0], value))
    }
}
