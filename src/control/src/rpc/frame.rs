//! Finds where a JSON value ends in a stream that has no other framing.

use std::fmt;

/// Largest request in bytes.
pub const FRAME_LEN_MAX: usize = 1 << 20;
/// Deepest nesting of arrays and objects.
pub const DEPTH_MAX: u32 = 32;

/// Why a stream cannot be read on: there is no telling where the next value begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Longer than [`FRAME_LEN_MAX`].
    TooLong,
    /// Deeper than [`DEPTH_MAX`].
    TooDeep,
    /// A bracket that closes nothing, or not what is open.
    Unbalanced,
    /// A byte that begins no JSON value.
    Stray(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "a request is longer than {FRAME_LEN_MAX} bytes"),
            Self::TooDeep => write!(f, "a request is nested deeper than {DEPTH_MAX}"),
            Self::Unbalanced => f.write_str("a bracket does not match"),
            Self::Stray(byte) => write!(f, "byte {byte:#04x} begins no JSON value"),
        }
    }
}

impl std::error::Error for FrameError {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Between values.
    Between,
    /// In an array or object, outside a text.
    Nested,
    /// In a text; `bool`: after a backslash.
    Text(bool),
    /// In a number or a word at the top.
    Word,
}

/// Cuts a stream of bytes into JSON values. Looks at each byte once and only finds the ends: what
/// is inside is checked by the parser of the value.
#[derive(Debug)]
pub struct Framer {
    place: Place,
    depth: u32,
    /// Bit i: level i is an object.
    objects: u32,
    buffer: Vec<u8>,
    len_max: usize,
}

impl Default for Framer {
    fn default() -> Self {
        Self {
            place: Place::Between,
            depth: 0,
            objects: 0,
            buffer: Vec::new(),
            len_max: FRAME_LEN_MAX,
        }
    }
}

impl Framer {
    /// For answers, which are as long as there is to say; the sender is trusted, but not with all
    /// memory.
    pub(super) fn for_answers() -> Self {
        const ANSWER_LEN_MAX: usize = 1 << 30;
        Self { len_max: ANSWER_LEN_MAX, ..Self::default() }
    }

    /// Takes bytes and hands every value that is complete to `each`, in order.
    ///
    /// # Errors
    /// The stream cannot be read on.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), FrameError> {
        for byte in bytes {
            self.byte(*byte, &mut each)?;
        }
        Ok(())
    }

    /// Whether a value has begun and not ended.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.place != Place::Between
    }

    fn byte(&mut self, byte: u8, each: &mut impl FnMut(&[u8])) -> Result<(), FrameError> {
        if self.place == Place::Word && !in_word(byte) {
            // A word ends where something else begins, which is not part of it.
            self.end(each);
        }
        match (self.place, byte) {
            (Place::Between, b' ' | b'\t' | b'\r' | b'\n') => return Ok(()),
            (Place::Between, b'{' | b'[') | (Place::Nested, b'{' | b'[') => self.open(byte)?,
            (Place::Between, b'"') | (Place::Nested, b'"') => self.place = Place::Text(false),
            (Place::Between, byte) if in_word(byte) => self.place = Place::Word,
            (Place::Between, b'}' | b']') => return Err(FrameError::Unbalanced),
            (Place::Between, byte) => return Err(FrameError::Stray(byte)),
            (Place::Nested, b'}' | b']') => {
                self.close(byte)?;
                self.push(byte)?;
                if self.depth == 0 {
                    self.end(each);
                }
                return Ok(());
            }
            (Place::Text(true), _) => self.place = Place::Text(false),
            (Place::Text(false), b'\\') => self.place = Place::Text(true),
            (Place::Text(false), b'"') => {
                self.push(byte)?;
                self.place = Place::Nested;
                if self.depth == 0 {
                    self.end(each);
                }
                return Ok(());
            }
            _ => {}
        }
        self.push(byte)
    }

    fn push(&mut self, byte: u8) -> Result<(), FrameError> {
        if self.buffer.len() >= self.len_max {
            return Err(FrameError::TooLong);
        }
        self.buffer.push(byte);
        Ok(())
    }

    fn open(&mut self, byte: u8) -> Result<(), FrameError> {
        if self.depth == DEPTH_MAX {
            return Err(FrameError::TooDeep);
        }
        let bit = 1 << self.depth;
        self.objects = if byte == b'{' { self.objects | bit } else { self.objects & !bit };
        self.depth += 1;
        self.place = Place::Nested;
        Ok(())
    }

    fn close(&mut self, byte: u8) -> Result<(), FrameError> {
        self.depth -= 1;
        let is_object = self.objects >> self.depth & 1 == 1;
        if is_object == (byte == b'}') { Ok(()) } else { Err(FrameError::Unbalanced) }
    }

    fn end(&mut self, each: &mut impl FnMut(&[u8])) {
        each(&self.buffer);
        self.place = Place::Between;
        // One long request does not keep its memory for the life of the connection.
        const KEPT_MAX: usize = 64 << 10;
        if self.buffer.capacity() > KEPT_MAX {
            self.buffer = Vec::new();
        }
        self.buffer.clear();
    }
}

/// Bytes of numbers and of `true`, `false`, `null`.
const fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}
