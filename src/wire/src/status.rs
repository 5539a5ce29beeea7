//! Completion status (NVMe Base 2.0 §3.3.3.2.1).

use core::fmt;

/// The status of a completion: SCT, SC, CRD, M and DNR, without the phase tag.
///
/// Bits 7:0 status code, 10:8 status code type, 12:11 command retry delay, 13 more, 14 Do Not
/// Retry, as in the upper half of completion dword 3 shifted right by one.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Status(u16);

/// Bit 14: retrying the command is expected to fail again.
const DNR: u16 = 1 << 14;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $sct:literal, $sc:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self::new($sct, $sc);)*

            /// The constant's name, for messages; `None` for codes that are not listed here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.code() {
                    $(code if code == Self::$name.0 => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Successful completion.
    SUCCESS = 0, 0x00;
    /// Unknown or unsupported opcode.
    INVALID_OPCODE = 0, 0x01;
    /// A field of the command has a reserved or unsupported value.
    INVALID_FIELD = 0, 0x02;
    /// The command identifier is already in use.
    CID_CONFLICT = 0, 0x03;
    /// Data could not be transferred.
    DATA_TRANSFER_ERROR = 0, 0x04;
    /// An internal error.
    INTERNAL = 0, 0x06;
    /// Aborted because an Abort command asked for it.
    ABORT_REQUESTED = 0, 0x07;
    /// Aborted because its submission queue was deleted.
    ABORTED_SQ_DELETION = 0, 0x08;
    /// The other command of the fused pair failed.
    FUSED_FAILED = 0, 0x09;
    /// The other command of the fused pair did not come.
    FUSED_MISSING = 0, 0x0a;
    /// The namespace does not exist, or its format does not fit.
    INVALID_NAMESPACE = 0, 0x0b;
    /// The command came out of sequence.
    COMMAND_SEQUENCE = 0, 0x0c;
    /// The data SGL's length does not fit the command.
    DATA_SGL_LENGTH_INVALID = 0, 0x0f;
    /// An SGL descriptor type is not supported here.
    SGL_TYPE_INVALID = 0, 0x11;
    /// The atomic write unit was exceeded.
    ATOMIC_WRITE_UNIT_EXCEEDED = 0, 0x14;
    /// The operation is denied to this host.
    OPERATION_DENIED = 0, 0x15;
    /// An SGL offset is invalid (in-capsule data beyond the capsule).
    SGL_OFFSET_INVALID = 0, 0x16;
    /// The host identifier is in use with another format or name.
    HOST_ID_INCONSISTENT = 0, 0x18;
    /// The keep-alive timer expired.
    KEEP_ALIVE_EXPIRED = 0, 0x19;
    /// The keep-alive timeout is invalid.
    KEEP_ALIVE_INVALID = 0, 0x1a;
    /// The namespace is write protected.
    NAMESPACE_WRITE_PROTECTED = 0, 0x20;
    /// Interrupted; retry.
    COMMAND_INTERRUPTED = 0, 0x21;
    /// A transient transport error (such as a wrong data digest); retry.
    TRANSIENT_TRANSPORT = 0, 0x22;
    /// The I/O command set is not supported or not enabled.
    INVALID_IO_COMMAND_SET = 0, 0x2c;
    /// The range lies beyond the end of the namespace.
    LBA_OUT_OF_RANGE = 0, 0x80;
    /// The namespace has no capacity left.
    CAPACITY_EXCEEDED = 0, 0x81;
    /// The namespace is not ready.
    NAMESPACE_NOT_READY = 0, 0x82;
    /// A reservation forbids it.
    RESERVATION_CONFLICT = 0, 0x83;
    /// Queue identifier invalid.
    QID_INVALID = 1, 0x01;
    /// Queue size invalid.
    QUEUE_SIZE_INVALID = 1, 0x02;
    /// Too many Abort commands at once.
    ABORT_LIMIT = 1, 0x03;
    /// Too many Asynchronous Event Requests at once.
    AER_LIMIT = 1, 0x05;
    /// The log page does not exist.
    INVALID_LOG_PAGE = 1, 0x09;
    /// The feature cannot be saved.
    FEATURE_NOT_SAVEABLE = 1, 0x0d;
    /// The feature cannot be changed.
    FEATURE_NOT_CHANGEABLE = 1, 0x0e;
    /// The feature is not per namespace.
    FEATURE_NOT_PER_NAMESPACE = 1, 0x0f;
    /// Connect: the record format is not supported.
    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80;
    /// Connect: the controller is in use or the target is at a limit; try again.
    CONNECT_BUSY = 1, 0x81;
    /// Connect, and other Fabrics commands: a parameter is invalid.
    CONNECT_INVALID_PARAMETERS = 1, 0x82;
    /// Connect: start discovery again.
    CONNECT_RESTART_DISCOVERY = 1, 0x83;
    /// Connect: this host may not connect to this subsystem.
    CONNECT_INVALID_HOST = 1, 0x84;
    /// The discovery log changed while it was read.
    DISCOVERY_RESTART = 1, 0x90;
    /// Authentication is required.
    AUTHENTICATION_REQUIRED = 1, 0x91;
    /// The write did not reach the media.
    WRITE_FAULT = 2, 0x80;
    /// The data cannot be read.
    UNRECOVERED_READ = 2, 0x81;
    /// The data compared is not equal.
    COMPARE_FAILURE = 2, 0x85;
    /// The host may not access the data.
    ACCESS_DENIED = 2, 0x86;
    /// The logical block is deallocated or was never written.
    DEALLOCATED_BLOCK = 2, 0x87;
    /// Path: an internal error of the controller's path.
    PATH_INTERNAL = 3, 0x00;
    /// Path: asymmetric access persistent loss.
    ANA_PERSISTENT_LOSS = 3, 0x01;
    /// Path: asymmetric access inaccessible.
    ANA_INACCESSIBLE = 3, 0x02;
    /// Path: asymmetric access transition.
    ANA_TRANSITION = 3, 0x03;
    /// Path: the host's own pathing error, never sent by a controller.
    HOST_PATH_ERROR = 3, 0x70;
    /// Path: aborted by the host, never sent by a controller.
    HOST_ABORTED = 3, 0x71;
}

impl Status {
    /// A status of its type (0–7) and code.
    #[inline]
    #[must_use]
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(u16::from_le_bytes([sc, sct & 7]))
    }

    /// The same with Do Not Retry set.
    #[inline]
    #[must_use]
    pub const fn dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// The same with a command retry delay: 1–3 selects CRDT1–CRDT3 of Identify Controller.
    #[must_use]
    pub const fn retry_after(self, crd: u8) -> Self {
        Self(self.0 & !(3 << 11) | u16::from_le_bytes([0, (crd & 3) << 3]))
    }

    /// Whether this is successful completion.
    #[inline]
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.code() == 0
    }

    /// Whether Do Not Retry is set.
    #[must_use]
    pub const fn is_dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// Status code type and code only (bits 10:0).
    #[inline]
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// The status code type, 0–7.
    #[must_use]
    pub const fn sct(self) -> u8 {
        self.0.to_le_bytes()[1] & 7
    }

    /// The status code.
    #[must_use]
    pub const fn sc(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// The command retry delay selector, 0–3.
    #[must_use]
    pub const fn crd(self) -> u8 {
        (self.0.to_le_bytes()[1] >> 3) & 3
    }

    /// The upper half of completion dword 3, phase tag 0 (reserved in fabrics).
    #[inline]
    #[must_use]
    pub const fn to_field(self) -> u16 {
        self.0 << 1
    }

    /// From the upper half of completion dword 3; the phase tag is dropped.
    #[must_use]
    pub const fn from_field(field: u16) -> Self {
        Self(field >> 1)
    }

    /// Whether type and code are the same, whatever the other bits say.
    #[inline]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        self.code() == other.code()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}h/{:02x}h", self.sct(), self.sc())?;
        if let Some(name) = self.name() {
            write!(f, " {name}")?;
        }
        if self.is_dnr() { f.write_str(" (do not retry)") } else { Ok(()) }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_2_0_3_3_3_2_1_status_field_layout() {
        // DNR is bit 31 of dword 3, SCT 27:25, SC 24:17, phase 16.
        assert_eq!(Status::INVALID_FIELD.dnr().to_field(), 0x8004);
        assert_eq!(Status::ANA_INACCESSIBLE.to_field(), 0x0604);
        assert_eq!(Status::CONNECT_INVALID_PARAMETERS.to_field(), 0x0304);
        assert_eq!(Status::NAMESPACE_NOT_READY.retry_after(1).to_field(), 0x1104);
        assert_eq!(Status::NAMESPACE_NOT_READY.retry_after(1).crd(), 1);
        assert_eq!(Status::from_field(0x8005), Status::INVALID_FIELD.dnr());
    }

    #[test]
    fn every_field_value_round_trips() {
        for raw in 0..=0x7fffu16 {
            assert_eq!(Status::from_field(raw << 1).to_field(), raw << 1);
        }
        assert!(Status::SUCCESS.is_success());
        assert!(!Status::WRITE_FAULT.is_success());
        assert_eq!(Status::WRITE_FAULT.dnr().to_string(), "02h/80h WRITE_FAULT (do not retry)");
        assert_eq!(Status::new(7, 0xfe).to_string(), "07h/feh");
    }
}
