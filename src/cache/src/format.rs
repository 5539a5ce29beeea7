//! The format of a cache device: every structure that Forebay puts on one, encoded and parsed.
//!
//! `docs/FORMAT.md` describes every byte. All numbers are little-endian, every structure carries a
//! CRC32C, and no parser panics on any bytes.
//!
//! | module | holds |
//! |---|---|
//! | [`geometry`] | where things are: segments, slots, extents of a shard |
//! | [`device`] | the device header, and what an unknown device holds instead |
//! | [`superblock`] | one logical shard's superblock with its volume table |
//! | [`record`] | a record: kind, volume, blocks, LSN, epoch |
//! | [`batch`] | one device write of records and data: builder and parser |
//! | [`segment_log`] | the records of an open segment, from which its footer is made |
//! | [`footer`] | the footer of a sealed segment, and the free mark |
//! | [`plan`] | what `forebay format` writes |
//! | [`open`] | reads the header and all superblocks of a device |
//! | [`order_journal`] | the journal of `write-back-ordered`, on a device of its own |
//!
//! # What the engine owes the format (recovery relies on each line; the proof is in FORMAT.md)
//!
//! 1. **Numbers.** One counter per shard ([`geometry::Numbers`]) gives a fresh number to every
//!    segment opened, every batch and every seal. A journal batch takes its number when it is
//!    closed; a fill or reinsert batch takes its number before its first record is appended.
//!    Recovery replays batches in the order of their numbers.
//! 2. **Placement.** A fill or a moved (reinserted) block is appended only while no newer version
//!    of the block, and no record that kills it, exists, whether committed or in flight. A fill
//!    carries the volume's last *committed* LSN from when its backing read began. Zeroes and
//!    discards are moved within the *journal* stream, without the blocks that have a newer
//!    version (in flight ones included); blocks of data to the reinsert stream.
//! 3. **Order in a stream.** A batch counts (commits, inserts) only after it and all earlier batches
//!    of its stream have completed. `durable_below` of a header names the oldest batch of the stream that
//!    was not durable yet.
//! 4. **Commit marks.** The first journal batch of every segment begins with a
//!    [`record::Kind::Commit`] for each volume with its last committed LSN: all up to it are
//!    durable and committed, those of all sealed segments among them.
//!    Before the free mark of a journal segment, commits that cover all LSNs in it are durable in
//!    a later journal segment: else the volume's last LSN would go back.
//! 5. **Seal.** A footer is built only when all batches of its segment and all earlier ones of its
//!    stream are durable (flushed, where the device has a volatile write cache) and each of the
//!    segment's records is committed or dropped; within a stream in the order of opening. It leaves out blocks whose current version is
//!    not there and notes what is clean: it is the truth at the moment of its seal number.
//! 6. **Free.** Segments are freed in the order of their *seal* numbers, each one's mark durable
//!    before the next one's is submitted, and a segment only when every segment opened before its
//!    seal has a durable footer, its dirty blocks are moved durably or trimmed, and no write in
//!    flight replaces a block that it holds. Its entries leave the index, and it is used again,
//!    only after its mark is durable. So nothing that a freed segment killed or trimmed comes
//!    back: older versions were freed before it, or left out of a footer sealed after it. There
//!    are no tombstones and no bitmaps.
//! 7. **Trim.** A trim carries the last committed LSN of the moment at which its blocks were chosen for
//!    destage, and is placed after the backing Flush. What is destaged was durable before, so that
//!    no version on the backing store is newer than the log after a power loss.
//! 8. **No silent forgetting.** An entry leaves the index only for a newer durable version, a
//!    durable kill, a higher cache generation, or rule 6.
//! 9. **Superblock.** An update is written twice, to one copy and, once that is durable, to the
//!    other, each time with the next generation number; it may be relied on after both. So either
//!    copy alone is enough.
//! 10. **Incarnation.** Nothing is written before a superblock with the next incarnation is
//!     durable: [`crate::recovery`] does that, after it has sealed what was open.

pub mod batch;
mod bytes;
pub mod device;
pub mod footer;
pub mod geometry;
pub mod open;
pub mod order_journal;
pub mod plan;
pub mod record;
pub mod segment_log;
pub mod superblock;

/// Bytes of a cache block, of a slot and of every header block.
pub const BLOCK: usize = 4096;
/// [`BLOCK`] as a device offset.
pub const BLOCK_U64: u64 = 4096;
/// The version of the format that this code writes and reads.
pub const VERSION: u16 = 1;

#[cfg(test)]
pub(crate) mod test_support {
    /// Puts the right CRC32C at byte 8 of a structure that a test has changed.
    pub(crate) fn fix_crc(bytes: &mut [u8]) {
        super::bytes::put_crc(bytes);
    }
}

#[cfg(test)]
mod tests;
