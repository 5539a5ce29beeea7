//! Features (NVMe Base 2.0 §5.27.1).

use crate::field::{high16, low16};

/// Arbitration.
pub const ARBITRATION: u8 = 0x01;
/// Power Management.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature Threshold.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error Recovery.
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile Write Cache.
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues.
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Write Atomicity Normal.
pub const WRITE_ATOMICITY: u8 = 0x0a;
/// Asynchronous Event Configuration.
pub const ASYNC_EVENT_CONFIG: u8 = 0x0b;
/// Timestamp.
pub const TIMESTAMP: u8 = 0x0e;
/// Keep Alive Timer.
pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
/// Host Behavior Support.
pub const HOST_BEHAVIOR: u8 = 0x16;
/// Host Identifier.
pub const HOST_IDENTIFIER: u8 = 0x81;
/// Reservation Notification Mask.
pub const RESERVATION_MASK: u8 = 0x82;
/// Reservation Persistence.
pub const RESERVATION_PERSISTENCE: u8 = 0x83;

/// Capabilities that Get Features returns for "supported capabilities" (§5.15, Figure 193).
pub mod capability {
    /// Saveable.
    pub const SAVEABLE: u32 = 1;
    /// Namespace specific.
    pub const PER_NAMESPACE: u32 = 2;
    /// Changeable.
    pub const CHANGEABLE: u32 = 4;
}

/// Bits of Asynchronous Event Configuration (§5.27.1.8) and of OAES.
pub mod event_bit {
    /// SMART / health critical warnings.
    pub const SMART: u32 = 0xff;
    /// Namespace attribute notices.
    pub const NAMESPACE: u32 = 1 << 8;
    /// Asymmetric namespace access change notices.
    pub const ANA: u32 = 1 << 11;
    /// Discovery log page change notices.
    pub const DISCOVERY: u32 = 1 << 31;
}

/// Number of Queues (§5.27.1.5): I/O queue pairs asked for or granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// Submission queues, zero-based.
    pub nsq: u16,
    /// Completion queues, zero-based.
    pub ncq: u16,
}

impl NumberOfQueues {
    /// The dword.
    #[must_use]
    pub fn encode(&self) -> u32 {
        u32::from(self.nsq) | u32::from(self.ncq) << 16
    }

    /// From the dword.
    #[must_use]
    pub const fn decode(dword: u32) -> Self {
        Self { nsq: low16(dword), ncq: high16(dword) }
    }
}

/// An asynchronous event (§5.2, Figure 145), in dword 0 of the request's completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// Event type: 0 error, 1 SMART, 2 notice.
    pub kind: u8,
    /// Event information.
    pub info: u8,
    /// The log page that tells more.
    pub lid: u8,
}

impl AsyncEvent {
    /// Notice: namespace attributes changed (Changed Namespace List).
    pub const NAMESPACE: Self = Self { kind: 2, info: 0x00, lid: crate::log::CHANGED_NAMESPACES };
    /// Notice: asymmetric namespace access changed.
    pub const ANA: Self = Self { kind: 2, info: 0x03, lid: crate::log::ANA };
    /// Notice: the discovery log page changed.
    pub const DISCOVERY: Self = Self { kind: 2, info: 0xf0, lid: crate::log::DISCOVERY };

    /// The dword.
    #[must_use]
    pub fn encode(&self) -> u32 {
        u32::from_le_bytes([self.kind & 7, self.info, self.lid, 0])
    }

    /// From the dword.
    #[must_use]
    pub const fn decode(dword: u32) -> Self {
        let raw = dword.to_le_bytes();
        Self { kind: raw[0] & 7, info: raw[1], lid: raw[2] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base_2_0_5_2_figure_145_events() {
        assert_eq!(AsyncEvent::NAMESPACE.encode(), 0x0004_0002);
        assert_eq!(AsyncEvent::ANA.encode(), 0x000c_0302);
        assert_eq!(AsyncEvent::DISCOVERY.encode(), 0x0070_f002);
        assert_eq!(NumberOfQueues { nsq: 3, ncq: 5 }.encode(), 0x0005_0003);
    }

    proptest! {
        #[test]
        fn any_dword_round_trips(dword: u32) {
            prop_assert_eq!(NumberOfQueues::decode(dword).encode(), dword);
            prop_assert_eq!(AsyncEvent::decode(dword).encode(), dword & 0x00ff_ff07);
        }
    }
}
