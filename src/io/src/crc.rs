//! CRC32C (Castagnoli), the one checksum of the project: on the wire and on the devices.

/// The CRC32C of `bytes` (initial value all ones, final inversion, as in NVMe/TCP digests).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The CRC32C of a cached block, seeded with its own address so that a block that was written to,
/// or read from, the wrong place does not match: the volume's key, the cache block number and the
/// log sequence number are mixed into the checksum of the data.
#[must_use]
pub fn block_crc(volume_key: u64, block: u64, lsn: u64, data: &[u8]) -> u32 {
    let mut seed = [0u8; 24];
    seed[..8].copy_from_slice(&volume_key.to_le_bytes());
    seed[8..16].copy_from_slice(&block.to_le_bytes());
    seed[16..].copy_from_slice(&lsn.to_le_bytes());
    crc32c(data) ^ crc32c(&seed).rotate_left(1)
}

/// Folds a CRC32C to the 16 bits that are kept in memory for each cached block.
#[must_use]
pub const fn fold16(crc: u32) -> u16 {
    let bytes = crc.to_le_bytes();
    u16::from_le_bytes([bytes[0], bytes[1]]) ^ u16::from_le_bytes([bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_rfc_3720_b_4() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_block_elsewhere_or_of_another_time_has_another_crc() {
        let data = [7u8; 4096];
        let crc = block_crc(1, 2, 3, &data);
        for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)] {
            assert_ne!(crc, block_crc(other.0, other.1, other.2, &data));
        }
    }
}
