//! Identify data structures (NVMe Base 2.0 §5.17.2, NVM Command Set 1.0 §4.1.5).

use crate::field::{array, get16, get32, get64, put_bytes, put16, put32, put64};
use crate::nqn::{NQN_FIELD_LEN, Nqn};

pub use crate::identify::namespace::{
    DescriptorList, IdNamespace, IdNamespaceIndependent, LbaFormat, NamespaceDescriptors,
};

mod namespace;

/// Length of every Identify data structure in bytes.
pub const IDENTIFY_LEN: usize = 4096;
/// Most namespace identifiers in one list.
pub const NSID_LIST_MAX: usize = 1024;

/// Controller or Namespace Structure values (Figure 273).
pub mod cns {
    /// Identify Namespace for the NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// Command set specific Identify Namespace.
    pub const CSI_NAMESPACE: u8 = 0x05;
    /// Command set specific Identify Controller.
    pub const CSI_CONTROLLER: u8 = 0x06;
    /// Active namespace list of a command set.
    pub const CSI_ACTIVE_NAMESPACES: u8 = 0x07;
    /// Command set independent Identify Namespace.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Allocated namespace list (namespace management).
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// I/O command set combinations.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// What kind of controller it is (CNTRLTYPE).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ControllerType {
    /// Not reported.
    #[default]
    NotReported,
    /// I/O controller.
    Io,
    /// Discovery controller.
    Discovery,
    /// Administrative controller.
    Admin,
    /// A reserved value.
    Reserved(u8),
}

impl ControllerType {
    const fn encode(self) -> u8 {
        match self {
            Self::NotReported => 0,
            Self::Io => 1,
            Self::Discovery => 2,
            Self::Admin => 3,
            Self::Reserved(value) => value,
        }
    }

    const fn decode(value: u8) -> Self {
        match value {
            0 => Self::NotReported,
            1 => Self::Io,
            2 => Self::Discovery,
            3 => Self::Admin,
            value => Self::Reserved(value),
        }
    }
}

/// Identify Controller (CNS 01h, Figure 275): the fields that a fabrics controller uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdController {
    /// PCI vendor identifier (0 in fabrics).
    pub vid: u16,
    /// Serial number, up to 20 ASCII characters.
    pub serial: String,
    /// Model number, up to 40 ASCII characters.
    pub model: String,
    /// Firmware revision, up to 8 ASCII characters.
    pub firmware: String,
    /// IEEE OUI, least significant byte first.
    pub ieee: [u8; 3],
    /// Multi-path and sharing capabilities: see [`cmic`].
    pub cmic: u8,
    /// Maximum data transfer size, 2^n memory pages; 0 is unlimited.
    pub mdts: u8,
    /// Controller identifier.
    pub cntlid: u16,
    /// Version.
    pub version: u32,
    /// RTD3 resume latency in microseconds.
    pub rtd3r: u32,
    /// RTD3 entry latency (shutdown time) in microseconds.
    pub rtd3e: u32,
    /// Optional asynchronous events supported: see [`crate::feature::event_bit`].
    pub oaes: u32,
    /// Controller attributes: see [`ctratt`].
    pub ctratt: u32,
    /// What kind of controller.
    pub kind: ControllerType,
    /// Command retry delay times 1–3 in units of 100 ms.
    pub crdt: [u16; 3],
    /// Optional admin commands.
    pub oacs: u16,
    /// Abort command limit, zero-based.
    pub acl: u8,
    /// Asynchronous event request limit, zero-based.
    pub aerl: u8,
    /// Firmware updates: slots (bits 3:1), slot 1 read only (bit 0).
    pub frmw: u8,
    /// Log page attributes: see [`lpa`].
    pub lpa: u8,
    /// Error log page entries, zero-based.
    pub elpe: u8,
    /// Warning composite temperature in kelvin.
    pub wctemp: u16,
    /// Critical composite temperature in kelvin.
    pub cctemp: u16,
    /// Keep-alive granularity in units of 100 ms.
    pub kas: u16,
    /// ANA transition time in seconds.
    pub anatt: u8,
    /// ANA capabilities: see [`anacap`].
    pub anacap: u8,
    /// Largest ANA group identifier.
    pub anagrpmax: u32,
    /// Number of ANA groups.
    pub nanagrpid: u32,
    /// Submission queue entry sizes (required, maximum as powers of two).
    pub sqes: u8,
    /// Completion queue entry sizes.
    pub cqes: u8,
    /// Maximum outstanding commands (per queue in fabrics).
    pub maxcmd: u16,
    /// Number of namespaces (largest NSID).
    pub nn: u32,
    /// Optional NVM commands: see [`oncs`].
    pub oncs: u16,
    /// Fused operations: bit 0 compare and write.
    pub fuses: u16,
    /// Volatile write cache: bit 0 present, bits 2:1 flush to all namespaces.
    pub vwc: u8,
    /// Atomic write unit normal, logical blocks, zero-based.
    pub awun: u16,
    /// Atomic write unit power fail, logical blocks, zero-based.
    pub awupf: u16,
    /// Atomic compare and write unit, logical blocks, zero-based.
    pub acwu: u16,
    /// SGL support: see [`sgls`].
    pub sgls: u32,
    /// Maximum number of allowed namespaces.
    pub mnan: u32,
    /// The subsystem's name; `None` where the field holds no valid name.
    pub subnqn: Option<Nqn>,
    /// I/O queue command capsule size, units of 16 bytes.
    pub ioccsz: u32,
    /// I/O queue response capsule size, units of 16 bytes.
    pub iorcsz: u32,
    /// In-capsule data offset, units of 16 bytes.
    pub icdoff: u16,
    /// Fabrics controller attributes (bit 0 clear: dynamic controllers).
    pub fcatt: u8,
    /// Maximum SGL data block descriptors per command.
    pub msdbd: u8,
    /// Optional fabrics commands: bit 0 Disconnect.
    pub ofcs: u16,
    /// Discovery controller type (1 direct).
    pub dctype: u8,
}

/// Bits of [`IdController::cmic`].
pub mod cmic {
    /// More than one port.
    pub const MULTI_PORT: u8 = 1;
    /// More than one controller.
    pub const MULTI_CONTROLLER: u8 = 2;
    /// Asymmetric namespace access reporting.
    pub const ANA: u8 = 8;
}

/// Bits of [`IdController::ctratt`].
pub mod ctratt {
    /// 128-bit host identifier.
    pub const HOST_ID_128: u32 = 1;
    /// Traffic based keep-alive.
    pub const TBKAS: u32 = 1 << 6;
}

/// Bits of [`IdController::lpa`].
pub mod lpa {
    /// SMART per namespace.
    pub const SMART_PER_NAMESPACE: u8 = 1;
    /// Commands supported and effects.
    pub const EFFECTS: u8 = 2;
    /// Extended data (NUMDU, log page offset).
    pub const EXTENDED: u8 = 4;
    /// Log pages 00h, 12h and 13h are supported.
    pub const SUPPORTED_LOGS: u8 = 1 << 5;
}

/// Bits of [`IdController::anacap`].
pub mod anacap {
    /// The optimized state is reported.
    pub const OPTIMIZED: u8 = 1;
    /// The non-optimized state is reported.
    pub const NON_OPTIMIZED: u8 = 2;
    /// The inaccessible state is reported.
    pub const INACCESSIBLE: u8 = 4;
    /// The persistent loss state is reported.
    pub const PERSISTENT_LOSS: u8 = 8;
    /// The change state is reported.
    pub const CHANGE: u8 = 16;
    /// A namespace's group identifier does not change while it is attached.
    pub const GROUP_FIXED: u8 = 64;
}

/// Bits of [`IdController::oncs`].
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u16 = 2;
    /// Dataset Management.
    pub const DSM: u16 = 4;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 8;
    /// Reservations.
    pub const RESERVATIONS: u16 = 32;
    /// Timestamp.
    pub const TIMESTAMP: u16 = 64;
}

/// Bits of [`IdController::sgls`].
pub mod sgls {
    /// SGLs supported, no alignment needed (bits 1:0 = 01b).
    pub const SUPPORTED: u32 = 1;
    /// Keyed data block descriptors (RDMA).
    pub const KEYED: u32 = 1 << 2;
    /// The address of a data block may be an offset.
    pub const OFFSET: u32 = 1 << 20;
    /// Transport data block descriptors.
    pub const TRANSPORT: u32 = 1 << 21;
}

impl IdController {
    /// Writes the 4096 bytes.
    pub fn encode(&self, raw: &mut [u8; IDENTIFY_LEN]) {
        raw.fill(0);
        self.encode_base(raw);
        self.encode_admin(raw);
        self.encode_nvm_and_fabrics(raw);
    }

    fn encode_base(&self, raw: &mut [u8; IDENTIFY_LEN]) {
        put16(raw, 0, self.vid);
        put_bytes(raw, 4, &crate::field::padded::<20>(&self.serial));
        put_bytes(raw, 24, &crate::field::padded::<40>(&self.model));
        put_bytes(raw, 64, &crate::field::padded::<8>(&self.firmware));
        put_bytes(raw, 73, &self.ieee);
        raw[76] = self.cmic;
        raw[77] = self.mdts;
        put16(raw, 78, self.cntlid);
        put32(raw, 80, self.version);
        put32(raw, 84, self.rtd3r);
        put32(raw, 88, self.rtd3e);
        put32(raw, 92, self.oaes);
        put32(raw, 96, self.ctratt);
        raw[111] = self.kind.encode();
        for (i, crdt) in self.crdt.iter().enumerate() {
            put16(raw, 128 + 2 * i, *crdt);
        }
    }

    fn encode_admin(&self, raw: &mut [u8; IDENTIFY_LEN]) {
        put16(raw, 256, self.oacs);
        raw[258] = self.acl;
        raw[259] = self.aerl;
        raw[260] = self.frmw;
        raw[261] = self.lpa;
        raw[262] = self.elpe;
        put16(raw, 266, self.wctemp);
        put16(raw, 268, self.cctemp);
        put16(raw, 320, self.kas);
        raw[342] = self.anatt;
        raw[343] = self.anacap;
        put32(raw, 344, self.anagrpmax);
        put32(raw, 348, self.nanagrpid);
    }

    fn encode_nvm_and_fabrics(&self, raw: &mut [u8; IDENTIFY_LEN]) {
        raw[512] = self.sqes;
        raw[513] = self.cqes;
        put16(raw, 514, self.maxcmd);
        put32(raw, 516, self.nn);
        put16(raw, 520, self.oncs);
        put16(raw, 522, self.fuses);
        raw[525] = self.vwc;
        put16(raw, 526, self.awun);
        put16(raw, 528, self.awupf);
        put16(raw, 532, self.acwu);
        put32(raw, 536, self.sgls);
        put32(raw, 540, self.mnan);
        if let Some(nqn) = &self.subnqn {
            put_bytes(raw, 768, &nqn.to_field());
        }
        put32(raw, 1792, self.ioccsz);
        put32(raw, 1796, self.iorcsz);
        put16(raw, 1800, self.icdoff);
        raw[1802] = self.fcatt;
        raw[1803] = self.msdbd;
        put16(raw, 1804, self.ofcs);
        raw[1806] = self.dctype;
    }

    /// From the 4096 bytes.
    #[must_use]
    pub fn decode(raw: &[u8; IDENTIFY_LEN]) -> Self {
        Self {
            vid: get16(raw, 0),
            serial: crate::field::text(&raw[4..24]),
            model: crate::field::text(&raw[24..64]),
            firmware: crate::field::text(&raw[64..72]),
            ieee: array(raw, 73),
            cmic: raw[76],
            mdts: raw[77],
            cntlid: get16(raw, 78),
            version: get32(raw, 80),
            rtd3r: get32(raw, 84),
            rtd3e: get32(raw, 88),
            oaes: get32(raw, 92),
            ctratt: get32(raw, 96),
            kind: ControllerType::decode(raw[111]),
            crdt: [get16(raw, 128), get16(raw, 130), get16(raw, 132)],
            oacs: get16(raw, 256),
            acl: raw[258],
            aerl: raw[259],
            frmw: raw[260],
            lpa: raw[261],
            elpe: raw[262],
            wctemp: get16(raw, 266),
            cctemp: get16(raw, 268),
            kas: get16(raw, 320),
            anatt: raw[342],
            anacap: raw[343],
            anagrpmax: get32(raw, 344),
            nanagrpid: get32(raw, 348),
            ..Self::decode_nvm_and_fabrics(raw)
        }
    }

    fn decode_nvm_and_fabrics(raw: &[u8; IDENTIFY_LEN]) -> Self {
        let subnqn: [u8; NQN_FIELD_LEN] = array(raw, 768);
        Self {
            sqes: raw[512],
            cqes: raw[513],
            maxcmd: get16(raw, 514),
            nn: get32(raw, 516),
            oncs: get16(raw, 520),
            fuses: get16(raw, 522),
            vwc: raw[525],
            awun: get16(raw, 526),
            awupf: get16(raw, 528),
            acwu: get16(raw, 532),
            sgls: get32(raw, 536),
            mnan: get32(raw, 540),
            subnqn: Nqn::from_field(&subnqn).ok(),
            ioccsz: get32(raw, 1792),
            iorcsz: get32(raw, 1796),
            icdoff: get16(raw, 1800),
            fcatt: raw[1802],
            msdbd: raw[1803],
            ofcs: get16(raw, 1804),
            dctype: raw[1806],
            ..Self::default()
        }
    }
}

/// Identify Controller of the NVM command set (CNS 06h, CSI 00h): limits; 0 is "none stated".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdControllerNvm {
    /// Verify size limit, 2^n memory pages.
    pub vsl: u8,
    /// Write Zeroes size limit, 2^n memory pages.
    pub wzsl: u8,
    /// Write Uncorrectable size limit, 2^n memory pages.
    pub wusl: u8,
    /// Dataset Management ranges limit.
    pub dmrl: u8,
    /// Dataset Management range size limit in logical blocks.
    pub dmrsl: u32,
    /// Dataset Management size limit in logical blocks.
    pub dmsl: u64,
}

impl IdControllerNvm {
    /// Writes the 4096 bytes.
    pub fn encode(&self, raw: &mut [u8; IDENTIFY_LEN]) {
        raw.fill(0);
        raw[..4].copy_from_slice(&[self.vsl, self.wzsl, self.wusl, self.dmrl]);
        put32(raw, 4, self.dmrsl);
        put64(raw, 8, self.dmsl);
    }

    /// From the 4096 bytes.
    #[must_use]
    pub fn decode(raw: &[u8; IDENTIFY_LEN]) -> Self {
        Self {
            vsl: raw[0],
            wzsl: raw[1],
            wusl: raw[2],
            dmrl: raw[3],
            dmrsl: get32(raw, 4),
            dmsl: get64(raw, 8),
        }
    }
}

/// Writes a namespace list (CNS 02h, 07h, and log page 04h): ascending, zero-filled.
/// What does not fit is left out.
pub fn encode_nsid_list(nsids: impl Iterator<Item = u32>, raw: &mut [u8; IDENTIFY_LEN]) {
    raw.fill(0);
    for (place, nsid) in raw.as_chunks_mut::<4>().0.iter_mut().zip(nsids) {
        *place = nsid.to_le_bytes();
    }
}

/// The entries of a namespace list, up to the first zero.
pub fn nsid_list(raw: &[u8; IDENTIFY_LEN]) -> impl Iterator<Item = u32> + '_ {
    raw.as_chunks::<4>().0.iter().map(|n| u32::from_le_bytes(*n)).take_while(|n| *n != 0)
}

/// Writes the I/O command set vectors (CNS 1Ch): one combination, the NVM command set alone.
pub fn encode_command_sets_nvm(raw: &mut [u8; IDENTIFY_LEN]) {
    raw.fill(0);
    raw[0] = 1;
}

#[cfg(test)]
mod tests;
