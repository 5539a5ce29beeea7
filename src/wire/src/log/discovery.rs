//! Discovery log (NVMe Base 2.0 §5.16.1.23).

use crate::field::{array, get16, get64, padded, put_bytes, put16, put64, text};
use crate::nqn::{NQN_FIELD_LEN, Nqn};

/// Length of the log's header in bytes.
pub const DISCOVERY_HEADER_LEN: usize = 1024;
/// Length of an entry in bytes.
pub const DISCOVERY_ENTRY_LEN: usize = 1024;

/// Transport types (TRTYPE).
pub mod trtype {
    /// RDMA.
    pub const RDMA: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 3;
}

/// What an entry describes (SUBTYPE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsystemType {
    /// A referral to another discovery subsystem.
    Referral,
    /// An NVM subsystem.
    Nvm,
    /// The discovery subsystem that answers.
    Current,
    /// A reserved value.
    Reserved(u8),
}

impl SubsystemType {
    const fn encode(self) -> u8 {
        match self {
            Self::Referral => 1,
            Self::Nvm => 2,
            Self::Current => 3,
            Self::Reserved(value) => value,
        }
    }

    const fn decode(value: u8) -> Self {
        match value {
            1 => Self::Referral,
            2 => Self::Nvm,
            3 => Self::Current,
            value => Self::Reserved(value),
        }
    }
}

/// The log's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryHeader {
    /// Generation counter: raised by every change.
    pub genctr: u64,
    /// Number of entries.
    pub numrec: u64,
}

impl DiscoveryHeader {
    /// The 1024 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; DISCOVERY_HEADER_LEN] {
        let mut raw = [0; DISCOVERY_HEADER_LEN];
        put64(&mut raw, 0, self.genctr);
        put64(&mut raw, 8, self.numrec);
        raw
    }

    /// From the 1024 bytes; `None` where the record format is not 0.
    #[must_use]
    pub fn decode(raw: &[u8; DISCOVERY_HEADER_LEN]) -> Option<Self> {
        (get16(raw, 16) == 0).then(|| Self { genctr: get64(raw, 0), numrec: get64(raw, 8) })
    }
}

/// One entry (Figure 265).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// Transport type: see [`trtype`].
    pub trtype: u8,
    /// Address family: 1 IPv4, 2 IPv6.
    pub adrfam: u8,
    /// What it describes.
    pub subtype: SubsystemType,
    /// Transport requirements: bits 1:0 secure channel, bit 2 SQ flow control may be off.
    pub treq: u8,
    /// Port identifier.
    pub portid: u16,
    /// Controller identifier: FFFFh for dynamic controllers.
    pub cntlid: u16,
    /// Admin submission queue size that may be used (entries).
    pub asqsz: u16,
    /// Flags: bit 0 duplicate returned information, bit 1 explicit persistent connections.
    pub eflags: u16,
    /// Service identifier (the TCP port), up to 32 characters.
    pub trsvcid: String,
    /// Address, up to 256 characters.
    pub traddr: String,
    /// The subsystem.
    pub subnqn: Nqn,
    /// Transport specific: for TCP the security type (0 none, 2 TLS 1.3).
    pub tsas: u8,
}

impl DiscoveryEntry {
    /// The 1024 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; DISCOVERY_ENTRY_LEN] {
        let mut raw = [0; DISCOVERY_ENTRY_LEN];
        raw[..4].copy_from_slice(&[self.trtype, self.adrfam, self.subtype.encode(), self.treq]);
        put16(&mut raw, 4, self.portid);
        put16(&mut raw, 6, self.cntlid);
        put16(&mut raw, 8, self.asqsz);
        put16(&mut raw, 10, self.eflags);
        put_bytes(&mut raw, 32, &padded::<32>(&self.trsvcid));
        put_bytes(&mut raw, 256, &self.subnqn.to_field());
        put_bytes(&mut raw, 512, &padded::<256>(&self.traddr));
        raw[768] = self.tsas;
        raw
    }

    /// From the 1024 bytes; `None` where the subsystem's name is invalid.
    #[must_use]
    pub fn decode(raw: &[u8; DISCOVERY_ENTRY_LEN]) -> Option<Self> {
        let subnqn: [u8; NQN_FIELD_LEN] = array(raw, 256);
        Some(Self {
            trtype: raw[0],
            adrfam: raw[1],
            subtype: SubsystemType::decode(raw[2]),
            treq: raw[3],
            portid: get16(raw, 4),
            cntlid: get16(raw, 6),
            asqsz: get16(raw, 8),
            eflags: get16(raw, 10),
            trsvcid: text(&raw[32..64]),
            traddr: text(&raw[512..768]),
            subnqn: Nqn::from_field(&subnqn).ok()?,
            tsas: raw[768],
        })
    }
}
