//! NVMe qualified names (NVMe Base 2.0 §4.5).

use core::fmt;
use core::str::FromStr;

/// Longest name in bytes, without the terminating NUL.
pub const NQN_LEN_MAX: usize = 223;
/// Length of the fields that hold a name in Connect data and log pages.
pub const NQN_FIELD_LEN: usize = 256;

/// A name: UTF-8, 1 to 223 bytes, no control characters.
///
/// The `nqn.` prefix is not insisted on: hosts in the field use other forms, and comparing whole
/// names is all that a target does with them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Box<str>);

/// Why bytes are not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NqnError {
    /// No byte before the terminating NUL.
    Empty,
    /// More than 223 bytes, or no terminating NUL in the field.
    TooLong,
    /// Not UTF-8, or a control character.
    NotText,
}

impl fmt::Display for NqnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an NQN has at least one character",
            Self::TooLong => "an NQN has at most 223 bytes and ends with a NUL in its field",
            Self::NotText => "an NQN is UTF-8 without control characters",
        })
    }
}

impl core::error::Error for NqnError {}

impl Nqn {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// From a NUL-terminated field.
    ///
    /// # Errors
    /// Where the field holds no valid name; an unterminated one is [`NqnError::TooLong`].
    pub fn from_field(field: &[u8; NQN_FIELD_LEN]) -> Result<Self, NqnError> {
        let end = field.iter().position(|b| *b == 0).ok_or(NqnError::TooLong)?;
        core::str::from_utf8(&field[..end]).map_err(|_| NqnError::NotText)?.parse()
    }

    /// As a NUL-terminated field, filled up with NULs.
    #[must_use]
    pub fn to_field(&self) -> [u8; NQN_FIELD_LEN] {
        let mut field = [0; NQN_FIELD_LEN];
        field[..self.0.len()].copy_from_slice(self.0.as_bytes());
        field
    }

    /// Whether this is the well-known discovery subsystem.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        &*self.0 == crate::DISCOVERY_NQN
    }
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(text: &str) -> Result<Self, NqnError> {
        match text.len() {
            0 => Err(NqnError::Empty),
            1..=NQN_LEN_MAX if text.chars().any(char::is_control) => Err(NqnError::NotText),
            1..=NQN_LEN_MAX => Ok(Self(text.into())),
            _ => Err(NqnError::TooLong),
        }
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_without_nul_is_refused() {
        assert_eq!(Nqn::from_field(&[b'a'; 256]), Err(NqnError::TooLong));
        assert_eq!(Nqn::from_field(&[0; 256]), Err(NqnError::Empty));
        let mut field = [0; 256];
        field[..224].fill(b'a');
        assert_eq!(Nqn::from_field(&field), Err(NqnError::TooLong));
        field[223] = 0;
        let nqn = Nqn::from_field(&field).unwrap();
        assert_eq!(nqn.as_str().len(), 223);
        assert_eq!(nqn.to_field(), field);
        field[3] = 0xff;
        assert_eq!(Nqn::from_field(&field), Err(NqnError::NotText));
        assert_eq!("a\nb".parse::<Nqn>(), Err(NqnError::NotText));
        assert!(crate::DISCOVERY_NQN.parse::<Nqn>().unwrap().is_discovery());
    }
}
