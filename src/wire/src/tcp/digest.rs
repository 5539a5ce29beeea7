//! CRC32C digests (NVMe/TCP Transport 1.0 §3.3.1.1), sent least significant byte first.

use super::{Fatal, Fes};

/// Length of a digest in bytes.
pub const DIGEST_LEN: usize = 4;

/// The digest of a header.
#[must_use]
pub fn header_digest(header: &[u8]) -> [u8; DIGEST_LEN] {
    crc_fast::crc32_iscsi(header).to_le_bytes()
}

/// The digest of data that lies in one piece.
#[must_use]
pub fn data_digest(data: &[u8]) -> [u8; DIGEST_LEN] {
    crc_fast::crc32_iscsi(data).to_le_bytes()
}

/// Compares a header with the digest received after it.
///
/// # Errors
/// Header digest error, with the digest received.
pub(super) fn check_header(header: &[u8], received: [u8; DIGEST_LEN]) -> Result<(), Fatal> {
    if header_digest(header) == received {
        return Ok(());
    }
    Err(Fatal { fes: Fes::HeaderDigest, fei: u32::from_le_bytes(received) })
}

/// A data digest computed piece by piece.
#[derive(Clone, Copy, Debug)]
pub struct Digest {
    state: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { state: 0xffff_ffff }
    }
}

impl Digest {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let algorithm = crc_fast::CrcAlgorithm::Crc32Iscsi;
        let mut digest = crc_fast::Digest::new_with_init_state(algorithm, self.state);
        digest.update(bytes);
        self.state = digest.get_state();
    }

    /// The digest of everything taken.
    #[must_use]
    pub fn finish(&self) -> [u8; DIGEST_LEN] {
        let raw = (self.state ^ 0xffff_ffff).to_le_bytes();
        [raw[0], raw[1], raw[2], raw[3]]
    }
}
