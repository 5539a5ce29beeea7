//! Little-endian numbers in byte slices. Writers index (the offsets are constants of the callers),
//! the reader never panics.

use forebay_io::crc::crc32c;

pub(super) fn put_u16(out: &mut [u8], at: usize, value: u16) {
    out[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Reads one value after the other; `None` past the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(len)?;
        self.bytes = tail;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = tail;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Bytes before the ones that a structure's CRC covers: its magic, compared in full, and the CRC.
pub(super) const CRC_FROM: usize = 12;

/// Puts the CRC32C of everything behind it at byte 8.
pub(super) fn put_crc(bytes: &mut [u8]) {
    let crc = crc32c(&bytes[CRC_FROM..]);
    put_u32(bytes, 8, crc);
}

/// Whether the bytes begin with this magic and the CRC32C at byte 8 is that of what follows it.
pub(super) fn sound(bytes: &[u8], magic: &[u8; 8]) -> bool {
    let Some(body) = bytes.get(CRC_FROM..) else { return false };
    bytes.starts_with(magic) && bytes[8..CRC_FROM] == crc32c(body).to_le_bytes()
}
