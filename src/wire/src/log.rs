//! Log pages (NVMe Base 2.0 §5.16.1).

use crate::field::{array, get16, get32, get64, get128, put_bytes, put16, put32, put64, put128};

pub use crate::log::ana::{ANA_GROUP_LEN, ANA_HEADER_LEN, AnaGroup, AnaLog, AnaLogError, AnaState};
pub use crate::log::discovery::{
    DISCOVERY_ENTRY_LEN, DISCOVERY_HEADER_LEN, DiscoveryEntry, DiscoveryHeader, SubsystemType,
    trtype,
};

mod ana;
mod discovery;

/// Supported Log Pages.
pub const SUPPORTED: u8 = 0x00;
/// Error Information.
pub const ERROR: u8 = 0x01;
/// SMART / Health Information.
pub const SMART: u8 = 0x02;
/// Firmware Slot Information.
pub const FIRMWARE_SLOT: u8 = 0x03;
/// Changed Namespace List.
pub const CHANGED_NAMESPACES: u8 = 0x04;
/// Commands Supported and Effects.
pub const EFFECTS: u8 = 0x05;
/// Asymmetric Namespace Access.
pub const ANA: u8 = 0x0c;
/// Feature Identifiers Supported and Effects.
pub const FEATURES: u8 = 0x12;
/// Discovery.
pub const DISCOVERY: u8 = 0x70;
/// Reservation Notification.
pub const RESERVATION: u8 = 0x80;

/// Length of the SMART log in bytes.
pub const SMART_LEN: usize = 512;
/// Length of one error log entry in bytes.
pub const ERROR_ENTRY_LEN: usize = 64;
/// Length of the firmware slot log in bytes.
pub const FIRMWARE_SLOT_LEN: usize = 512;
/// Length of the commands supported and effects log in bytes.
pub const EFFECTS_LEN: usize = 4096;
/// Length of the supported log pages log and of the supported features log in bytes.
pub const SUPPORTED_LEN: usize = 1024;
/// Length of a reservation notification in bytes.
pub const RESERVATION_LEN: usize = 64;

/// Bits of an entry in Commands Supported and Effects (Figure 211).
pub mod effect {
    /// The command is supported.
    pub const SUPPORTED: u32 = 1;
    /// The content of logical blocks may change.
    pub const CONTENT: u32 = 2;
}

/// Bit of an entry in Supported Log Pages and in Feature Identifiers Supported.
pub const ENTRY_SUPPORTED: u32 = 1;

/// Writes a table of 256 dwords (log pages 00h and 12h): `value` at each of `ids`.
pub fn encode_supported(ids: &[(u8, u32)], raw: &mut [u8; SUPPORTED_LEN]) {
    raw.fill(0);
    for (id, value) in ids {
        put32(raw, usize::from(*id) * 4, *value);
    }
}

/// Writes Commands Supported and Effects: admin commands, then I/O commands.
pub fn encode_effects(admin: &[(u8, u32)], io: &[(u8, u32)], raw: &mut [u8; EFFECTS_LEN]) {
    raw.fill(0);
    for (opcode, value) in admin {
        put32(raw, usize::from(*opcode) * 4, *value);
    }
    for (opcode, value) in io {
        put32(raw, 1024 + usize::from(*opcode) * 4, *value);
    }
}

/// SMART / Health Information (Figure 207).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Smart {
    /// Critical warning bits: 0 spare, 1 temperature, 2 reliability, 3 read only, 4 backup.
    pub critical_warning: u8,
    /// Composite temperature in kelvin.
    pub temperature: u16,
    /// Available spare, percent.
    pub spare: u8,
    /// Available spare threshold, percent.
    pub spare_threshold: u8,
    /// Percentage used.
    pub used: u8,
    /// Data units (1000 × 512 bytes) read.
    pub data_units_read: u128,
    /// Data units written.
    pub data_units_written: u128,
    /// Read and Compare commands.
    pub host_reads: u128,
    /// Write commands.
    pub host_writes: u128,
    /// Minutes busy.
    pub busy_minutes: u128,
    /// Power cycles.
    pub power_cycles: u128,
    /// Hours since power on.
    pub power_on_hours: u128,
    /// Unsafe shutdowns.
    pub unsafe_shutdowns: u128,
    /// Media and data integrity errors.
    pub media_errors: u128,
    /// Error log entries over the life of the controller.
    pub error_entries: u128,
}

impl Smart {
    /// The 512 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SMART_LEN] {
        let mut raw = [0; SMART_LEN];
        raw[0] = self.critical_warning;
        put16(&mut raw, 1, self.temperature);
        raw[3] = self.spare;
        raw[4] = self.spare_threshold;
        raw[5] = self.used;
        let counters = [
            self.data_units_read,
            self.data_units_written,
            self.host_reads,
            self.host_writes,
            self.busy_minutes,
            self.power_cycles,
            self.power_on_hours,
            self.unsafe_shutdowns,
            self.media_errors,
            self.error_entries,
        ];
        for (i, counter) in counters.into_iter().enumerate() {
            put128(&mut raw, 32 + 16 * i, counter);
        }
        raw
    }

    /// From the 512 bytes.
    #[must_use]
    pub fn decode(raw: &[u8; SMART_LEN]) -> Self {
        let counter = |i: usize| get128(raw, 32 + 16 * i);
        Self {
            critical_warning: raw[0],
            temperature: get16(raw, 1),
            spare: raw[3],
            spare_threshold: raw[4],
            used: raw[5],
            data_units_read: counter(0),
            data_units_written: counter(1),
            host_reads: counter(2),
            host_writes: counter(3),
            busy_minutes: counter(4),
            power_cycles: counter(5),
            power_on_hours: counter(6),
            unsafe_shutdowns: counter(7),
            media_errors: counter(8),
            error_entries: counter(9),
        }
    }
}

/// One entry of Error Information (Figure 205).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Number of the error since the controller began; 0 is "no entry".
    pub count: u64,
    /// Queue.
    pub sqid: u16,
    /// Command.
    pub cid: u16,
    /// Status field, as in the completion (phase bit included).
    pub status_field: u16,
    /// Parameter error location; FFFFh is "not specific".
    pub location: u16,
    /// First logical block.
    pub lba: u64,
    /// Namespace.
    pub nsid: u32,
    /// Transport type.
    pub trtype: u8,
}

impl ErrorEntry {
    /// The 64 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ERROR_ENTRY_LEN] {
        let mut raw = [0; ERROR_ENTRY_LEN];
        put64(&mut raw, 0, self.count);
        put16(&mut raw, 8, self.sqid);
        put16(&mut raw, 10, self.cid);
        put16(&mut raw, 12, self.status_field);
        put16(&mut raw, 14, self.location);
        put64(&mut raw, 16, self.lba);
        put32(&mut raw, 24, self.nsid);
        raw[29] = self.trtype;
        raw
    }

    /// From the 64 bytes.
    #[must_use]
    pub fn decode(raw: &[u8; ERROR_ENTRY_LEN]) -> Self {
        Self {
            count: get64(raw, 0),
            sqid: get16(raw, 8),
            cid: get16(raw, 10),
            status_field: get16(raw, 12),
            location: get16(raw, 14),
            lba: get64(raw, 16),
            nsid: get32(raw, 24),
            trtype: raw[29],
        }
    }
}

/// Writes Firmware Slot Information: slot 1 active, with this revision.
#[must_use]
pub fn encode_firmware_slot(revision: &str) -> [u8; FIRMWARE_SLOT_LEN] {
    let mut raw = [0; FIRMWARE_SLOT_LEN];
    raw[0] = 1;
    put_bytes(&mut raw, 8, &crate::field::padded::<8>(revision));
    raw
}

/// The revision in slot 1 of Firmware Slot Information.
#[must_use]
pub fn decode_firmware_slot(raw: &[u8; FIRMWARE_SLOT_LEN]) -> String {
    crate::field::text(&array::<8>(raw, 8))
}

#[cfg(test)]
mod tests;
