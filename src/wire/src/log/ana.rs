//! Asymmetric Namespace Access log (NVMe Base 2.0 §5.16.1.13).

use crate::field::{get16, get32, get64, put16, put32, put64};

/// Length of the log's header in bytes.
pub const ANA_HEADER_LEN: usize = 16;
/// Length of a group descriptor in bytes, without its namespace identifiers.
pub const ANA_GROUP_LEN: usize = 32;

/// How a namespace can be reached through a controller (§8.1.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnaState {
    /// The best path.
    #[default]
    Optimized,
    /// A path that costs more.
    NonOptimized,
    /// Not through this controller now.
    Inaccessible,
    /// Not through this controller any more.
    PersistentLoss,
    /// In transition.
    Change,
}

impl AnaState {
    /// The value in the log.
    #[must_use]
    pub const fn encode(self) -> u8 {
        match self {
            Self::Optimized => 1,
            Self::NonOptimized => 2,
            Self::Inaccessible => 3,
            Self::PersistentLoss => 4,
            Self::Change => 0xf,
        }
    }

    /// From the value in the log; `None` for a reserved one.
    #[must_use]
    pub const fn decode(value: u8) -> Option<Self> {
        match value & 0xf {
            1 => Some(Self::Optimized),
            2 => Some(Self::NonOptimized),
            3 => Some(Self::Inaccessible),
            4 => Some(Self::PersistentLoss),
            0xf => Some(Self::Change),
            _ => None,
        }
    }
}

/// One group descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaGroup {
    /// Group identifier.
    pub id: u32,
    /// Change count of the group.
    pub change_count: u64,
    /// State.
    pub state: AnaState,
    /// Namespaces in the group, ascending; empty with "return groups only".
    pub nsids: Vec<u32>,
}

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnaLog {
    /// Change count of the log.
    pub change_count: u64,
    /// Groups, ascending.
    pub groups: Vec<AnaGroup>,
}

/// Why bytes are not an ANA log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnaLogError {
    /// Shorter than it says.
    Truncated,
    /// A reserved state.
    State,
}

impl core::fmt::Display for AnaLogError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the ANA log is shorter than it says",
            Self::State => "the ANA log has a reserved state",
        })
    }
}

impl core::error::Error for AnaLogError {}

impl AnaLog {
    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut header = [0; ANA_HEADER_LEN];
        put64(&mut header, 0, self.change_count);
        put16(&mut header, 8, u16::try_from(self.groups.len()).unwrap_or(u16::MAX));
        out.extend_from_slice(&header);
        for group in &self.groups {
            let mut raw = [0; ANA_GROUP_LEN];
            put32(&mut raw, 0, group.id);
            put32(&mut raw, 4, u32::try_from(group.nsids.len()).unwrap_or(u32::MAX));
            put64(&mut raw, 8, group.change_count);
            raw[16] = group.state.encode();
            out.extend_from_slice(&raw);
            for nsid in &group.nsids {
                out.extend_from_slice(&nsid.to_le_bytes());
            }
        }
    }

    /// From bytes that may be longer than the log.
    ///
    /// # Errors
    /// Where they are shorter than the log says, or a state is reserved.
    pub fn decode(raw: &[u8]) -> Result<Self, AnaLogError> {
        let (header, mut rest) =
            raw.split_at_checked(ANA_HEADER_LEN).ok_or(AnaLogError::Truncated)?;
        let mut groups = Vec::new();
        for _ in 0..get16(header, 8) {
            let (group, tail) =
                rest.split_at_checked(ANA_GROUP_LEN).ok_or(AnaLogError::Truncated)?;
            let len = usize::try_from(u64::from(get32(group, 4)) * 4)
                .map_err(|_| AnaLogError::Truncated)?;
            let (nsids, tail) = tail.split_at_checked(len).ok_or(AnaLogError::Truncated)?;
            groups.push(AnaGroup {
                id: get32(group, 0),
                change_count: get64(group, 8),
                state: AnaState::decode(group[16]).ok_or(AnaLogError::State)?,
                nsids: nsids.as_chunks::<4>().0.iter().map(|n| u32::from_le_bytes(*n)).collect(),
            });
            rest = tail;
        }
        Ok(Self { change_count: get64(header, 0), groups })
    }
}
