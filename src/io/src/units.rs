//! Sized integers and identifiers that the compiler keeps apart.

use core::fmt;
use core::str::FromStr;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

unit! {
    /// A logical block address, in the logical blocks of the namespace (512 or 4096 bytes).
    Lba(u64)
}
unit! {
    /// A volume's log sequence number: contiguous, one for each change by a host; 0 is "none yet".
    Lsn(u64)
}
unit! {
    /// An epoch of ownership; only rises.
    Epoch(u64)
}
unit! {
    /// A node-local handle of a volume: an index that is small, dense and never on a medium.
    VolumeId(u32)
}

impl Lsn {
    /// The log sequence number that follows this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A 128-bit identifier in RFC 9562 form (of a volume, a journal, a cache device, a cluster).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// No identifier: all bits zero.
    pub const NIL: Self = Self([0; 16]);

    /// Makes a version 4 (random) identifier of 16 random bytes supplied by the caller.
    #[must_use]
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// Whether this is [`Uuid::NIL`].
    #[must_use]
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UuidParseError;

impl fmt::Display for UuidParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a UUID is 32 hexadecimal digits, with hyphens as in 8-4-4-4-12 or without")
    }
}

impl core::error::Error for UuidParseError {}

impl FromStr for Uuid {
    type Err = UuidParseError;

    fn from_str(text: &str) -> Result<Self, UuidParseError> {
        let hyphens_right = match text.len() {
            32 => !text.contains('-'),
            36 => {
                text.bytes().enumerate().all(|(i, b)| (b == b'-') == matches!(i, 8 | 13 | 18 | 23))
            }
            _ => false,
        };
        if !hyphens_right {
            return Err(UuidParseError);
        }
        let mut bytes = [0u8; 16];
        let mut digits = text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16));
        for byte in &mut bytes {
            let (Some(Some(high)), Some(Some(low))) = (digits.next(), digits.next()) else {
                return Err(UuidParseError);
            };
            *byte = u8::try_from(high * 16 + low).map_err(|_| UuidParseError)?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_text_round_trips_and_refuses_others() {
        let uuid = Uuid::from_random([0xab; 16]);
        assert_eq!(uuid.to_string(), "abababab-abab-4bab-abab-abababababab");
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        assert_eq!(uuid.to_string().replace('-', "").parse(), Ok(uuid));
        for bad in ["", "abab", "abababab-abab-4bab-abab-ababababab", "g".repeat(32).as_str()] {
            assert_eq!(bad.parse::<Uuid>(), Err(UuidParseError), "{bad}");
        }
        assert!("-".repeat(36).parse::<Uuid>().is_err());
    }
}
