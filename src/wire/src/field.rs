//! Little-endian fields at fixed places. Callers pass slices whose length they have checked.

#[inline]
pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
pub(crate) fn get32(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

#[inline]
pub(crate) fn get64(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[inline]
pub(crate) fn get128(bytes: &[u8], at: usize) -> u128 {
    let mut raw = [0; 16];
    raw.copy_from_slice(&bytes[at..at + 16]);
    u128::from_le_bytes(raw)
}

#[inline]
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut raw = [0; N];
    raw.copy_from_slice(&bytes[at..at + N]);
    raw
}

#[inline]
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

#[inline]
pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[inline]
pub(crate) fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[inline]
pub(crate) fn put128(bytes: &mut [u8], at: usize, value: u128) {
    bytes[at..at + 16].copy_from_slice(&value.to_le_bytes());
}

#[inline]
pub(crate) fn put_bytes(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The low 16 bits of a dword.
#[inline]
pub(crate) const fn low16(value: u32) -> u16 {
    let raw = value.to_le_bytes();
    u16::from_le_bytes([raw[0], raw[1]])
}

/// The high 16 bits of a dword.
#[inline]
pub(crate) const fn high16(value: u32) -> u16 {
    low16(value >> 16)
}

/// Byte `index` (0 is least significant) of a dword.
#[inline]
pub(crate) const fn byte(value: u32, index: usize) -> u8 {
    value.to_le_bytes()[index]
}

/// ASCII text in a fixed field: cut to its size, padded with spaces (NVMe Base 2.0 §1.4.2).
#[must_use]
pub(crate) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = if (0x20..0x7f).contains(&from) { from } else { b'?' };
    }
    field
}

/// The text of a space-padded ASCII field, without the padding; other bytes become `?`.
pub(crate) fn text(field: &[u8]) -> String {
    let shown: String = field
        .iter()
        .take_while(|b| **b != 0)
        .map(|b| if (0x20..0x7f).contains(b) { char::from(*b) } else { '?' })
        .collect();
    shown.trim_end().to_owned()
}
