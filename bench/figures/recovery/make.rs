//! Makes a cache file as a crash leaves it, by the format's own code: two logs side by side, of what
//! hosts wrote and of what they read, every block on its own, with overwrites, trims and an end that
//! is not sealed. Data that is all zeroes is not written: a hole of the file reads the same.

use crate::Result;
use forebay_bench::random::Random;
use forebay_cache::format::BLOCK;
use forebay_cache::format::batch::{BatchBuilder, Full, SegmentName};
use forebay_cache::format::footer::{Keep, build_footer};
use forebay_cache::format::geometry::{LogStream, Numbers, ShardMap};
use forebay_cache::format::open::{Opened, Opener};
use forebay_cache::format::plan::{FormatOptions, Step, plan};
use forebay_cache::format::record::{Kind, Record};
use forebay_cache::format::segment_log::SegmentLog;
use forebay_cache::format::superblock::VolumeEntry;
use forebay_io::{Buf, Completion, DeviceInfo, HeapBuf, HeapPool, Lsn, Op, Uuid};
use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// One block of so many has content of its own; the others are zeroes.
const SAMPLE: u64 = 1024;
/// One write of so many is of a block that is dirty already.
const OVERWRITE: u64 = 50;
/// Blocks of data in a batch at most, as a busy node gathers them.
const BATCH_BLOCKS: u32 = 64;

/// What is to be made.
pub(crate) struct Shape {
    /// Blocks that the index will have.
    pub(crate) blocks: u64,
    /// Percent of them that are dirty.
    pub(crate) dirty: u64,
    /// Percent of them that hosts wrote, the dirty ones included; hosts read the others.
    pub(crate) written: u64,
}

/// What was made.
pub(crate) struct Made {
    /// Blocks that the index must have.
    pub(crate) blocks: u64,
    /// Those that are dirty.
    pub(crate) dirty: u64,
    /// Segments with records.
    pub(crate) segments: u32,
    /// Blocks with content of their own: number, and whether they are dirty.
    pub(crate) samples: Vec<(u64, Vec<u8>, bool)>,
}

/// Makes a file a cache device, as `forebay format` does, but without setting its space aside.
pub(crate) fn format(cache: &Path, info: &DeviceInfo) -> Result<()> {
    let mut random = [0; 16];
    File::open("/dev/urandom").and_then(|mut from| from.read_exact(&mut random)).map_err(text)?;
    let options =
        FormatOptions { shards: Some(1), ..FormatOptions::new(Uuid::from_random(random)) };
    let file = OpenOptions::new().write(true).open(cache).map_err(text)?;
    for step in plan(info, &options).map_err(text)?.steps {
        match step {
            Step::Write { offset, bytes } => put(&file, offset, &bytes)?,
            Step::Flush => file.sync_all().map_err(text)?,
        }
    }
    Ok(())
}

fn text(error: impl core::fmt::Display) -> String {
    error.to_string()
}

/// Reads what was made of the file.
fn open(file: &File, size: u64) -> Result<Opened> {
    let mut opener = Opener::new(size, None);
    loop {
        while let Some(op) = opener.poll_action(&mut HeapPool) {
            opener.handle_completion(read(file, op)?);
        }
        if let Some(result) = opener.result() {
            return result.map_err(text);
        }
    }
}

fn read(file: &File, mut op: Op<HeapBuf>) -> Result<Completion<HeapBuf>> {
    let mut bytes = vec![0; usize::try_from(op.len).map_err(text)?];
    file.read_exact_at(&mut bytes, op.offset).map_err(text)?;
    if let Some(out) = op.buf.as_mut().and_then(Buf::as_mut_slice) {
        out.copy_from_slice(&bytes);
    }
    Ok(Completion { token: op.token, result: Ok(()), buf: op.buf })
}

/// The content of a sampled block.
fn content(block: u64, lsn: u64) -> Vec<u8> {
    let words = [block, lsn, block ^ lsn.rotate_left(32), !lsn];
    words.iter().cycle().take(BLOCK / 8).flat_map(|word| word.to_le_bytes()).collect()
}

/// One of the two logs, with its open segment.
struct Log {
    stream: LogStream,
    open: Option<OpenSegment>,
}

struct OpenSegment {
    name: SegmentName,
    /// The shard's number of it.
    segment: u32,
    log: SegmentLog,
    slot: u32,
}

/// A record that waits for its place.
#[derive(Clone, Copy)]
enum Next {
    Data { block: u64, sampled: bool },
    Trim { block: u64, lsn: u64 },
}

struct Maker {
    file: File,
    backing: File,
    map: ShardMap,
    volume: VolumeEntry,
    shard: u16,
    cache: Uuid,
    numbers: Numbers,
    lsn: u64,
    segments: u32,
    buffer: Vec<u8>,
    /// Dirty blocks in the order of their writes, and the LSN of each.
    dirty: VecDeque<(u64, u64)>,
    /// Of each block that was overwritten or is sampled: its last LSN.
    last: HashMap<u64, u64>,
    samples: HashMap<u64, u64>,
}

/// Fills the cache file of a stopped node. The backing device gets what it must have of the clean
/// blocks.
pub(crate) fn make(cache: &Path, backing: &Path, shape: &Shape) -> Result<Made> {
    let open_file = |path: &Path| {
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.map_err(|error| format!("{}: {error}", path.display()))
    };
    let file = open_file(cache)?;
    let size = file.metadata().map_err(text)?.len();
    let opened = open(&file, size)?;
    let map = opened.map(0).ok_or("the cache has no shard")?;
    let mut superblock = opened.shards.first().cloned().ok_or("the cache has no shard")?;
    superblock.incarnation += 1;
    superblock.clean_stop = false;
    for entry in &mut superblock.volumes {
        entry.clean = false;
    }
    for _ in 0..2 {
        superblock.generation += 1;
        let mut bytes = vec![0; superblock.encoded_len()];
        superblock.encode(&mut bytes).map_err(text)?;
        put(&file, opened.header.superblock_offset(0, superblock.copy()), &bytes)?;
    }
    let volume = superblock.volumes.first().cloned().ok_or("the cache has no volume")?;
    let maker = Maker {
        file,
        backing: open_file(backing)?,
        map,
        shard: superblock.shard,
        cache: superblock.cache,
        numbers: Numbers::new(superblock.incarnation),
        lsn: volume.accounted.0,
        volume,
        segments: 0,
        buffer: vec![0; (1 + BATCH_BLOCKS as usize) * BLOCK],
        dirty: VecDeque::new(),
        last: HashMap::new(),
        samples: HashMap::new(),
    };
    maker.run(shape)
}

fn put(file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
    file.write_all_at(bytes, offset).map_err(|error| format!("a file cannot be written: {error}"))
}

impl Maker {
    fn run(mut self, shape: &Shape) -> Result<Made> {
        let mut random = Random::new(1);
        let mut logs =
            [LogStream::Journal, LogStream::Fill].map(|stream| Log { stream, open: None });
        let dirty_max = usize::try_from(shape.blocks * shape.dirty / 100).unwrap_or(usize::MAX);
        // An odd factor scatters the blocks over the volume, each once.
        let span = 1u64 << (self.volume.size / BLOCK as u64).max(1).ilog2();
        let scattered = |entry: u64| entry.wrapping_mul(0x9e37_79b9_7f4a_7c15) & (span - 1);
        if shape.blocks > span {
            return Err(format!("the volume has fewer than {} blocks", shape.blocks));
        }
        let (mut placed, mut written) = (0, 0);
        while placed < shape.blocks {
            let journal = written * 100 <= placed * shape.written;
            let mut batch = Vec::new();
            for _ in 0..u64::from(BATCH_BLOCKS).min(shape.blocks - placed) {
                let again = self.dirty.len() as u64;
                if journal && again > 0 && random.below(OVERWRITE) == 0 {
                    let at = usize::try_from(random.below(again)).unwrap_or(0);
                    let block = self.dirty.get(at).map_or(0, |(block, _)| *block);
                    batch.push(Next::Data { block, sampled: self.samples.contains_key(&block) });
                } else {
                    let block = scattered(placed);
                    batch.push(Next::Data { block, sampled: placed % SAMPLE == 0 });
                    placed += 1;
                    written += u64::from(journal);
                }
                if journal
                    && self.dirty.len() + batch.len() > dirty_max
                    && let Some((block, lsn)) = self.dirty.pop_front()
                {
                    batch.push(Next::Trim { block, lsn });
                }
            }
            self.place(&mut logs[usize::from(!journal)], &batch)?;
        }
        self.torn(&mut logs[0])?;
        self.file.sync_all().map_err(text)?;
        self.finish(placed)
    }

    /// What was made, and the clean samples on the backing device.
    fn finish(self, blocks: u64) -> Result<Made> {
        let dirty: HashMap<u64, u64> = self.dirty.iter().copied().collect();
        let mut samples = Vec::new();
        for (block, lsn) in &self.samples {
            let is_dirty = dirty.contains_key(block);
            if !is_dirty {
                put(&self.backing, block * BLOCK as u64, &content(*block, *lsn))?;
            }
            samples.push((*block, content(*block, *lsn), is_dirty));
        }
        samples.sort_unstable();
        self.backing.sync_all().map_err(text)?;
        Ok(Made { blocks, dirty: dirty.len() as u64, segments: self.segments, samples })
    }

    fn record(&self, kind: Kind, block: u64, blocks: u32, lsn: u64) -> Record {
        Record {
            kind,
            moved: false,
            clean: kind == Kind::Fill,
            volume: self.volume.index,
            generation: self.volume.generation,
            block,
            blocks,
            lsn: Lsn(lsn),
            epoch: self.volume.epoch,
            slot: 0,
        }
    }

    /// Places records in as many batches as they need.
    fn place(&mut self, log: &mut Log, mut batch: &[Next]) -> Result<()> {
        while !batch.is_empty() {
            let done = self.batch(log, batch)?;
            batch = batch.get(done..).unwrap_or_default();
        }
        Ok(())
    }

    /// One batch of as many as fit; says how many. A full segment is sealed and the next one opened.
    fn batch(&mut self, log: &mut Log, batch: &[Next]) -> Result<usize> {
        let fresh = log.open.is_none();
        let mut open = match log.open.take() {
            Some(open) => open,
            None => self.open(log.stream)?,
        };
        let slot = u16::try_from(open.slot).map_err(text)?;
        let mut builder = BatchBuilder::new(open.name, slot, 0);
        // A fill batch takes its number first, a journal batch when it is closed.
        let early = (log.stream == LogStream::Fill).then(|| self.numbers.next());
        if fresh && log.stream == LogStream::Journal {
            let commit = self.record(Kind::Commit, 0, 0, self.lsn);
            let done = builder.append_mark(&mut self.buffer, &mut open.log, &commit);
            done.map_err(|full| format!("a commit does not fit: {full:?}"))?;
        }
        let (mut done, mut full, mut sampled) = (0, None, Vec::new());
        for next in batch {
            let placed = match *next {
                Next::Data { block, sampled: is } => {
                    let place = self.data(&mut builder, &mut open.log, log.stream, block, is);
                    place.map(|slot| {
                        if is {
                            sampled.push((slot, block))
                        }
                    })
                }
                Next::Trim { block, lsn } => {
                    let trim = self.record(Kind::Trim, block, 1, lsn);
                    builder.append_mark(&mut self.buffer, &mut open.log, &trim).map(|_| ())
                }
            };
            match placed {
                Ok(()) => done += 1,
                Err(why) => {
                    full = Some(why);
                    break;
                }
            }
        }
        let offset = self.map.segment_offset(open.segment).ok_or("no such segment")?;
        if !builder.is_empty() {
            let (end, next_slot) = (builder.end(), builder.next_slot());
            let number = early.unwrap_or_else(|| self.numbers.next());
            builder.finish(&mut self.buffer, &mut open.log, number, number);
            let at = offset + u64::from(open.slot) * BLOCK as u64;
            put(&self.file, at, self.buffer.get(..BLOCK).unwrap_or_default())?;
            for (slot, _) in &sampled {
                let from = (u32::from(*slot) - open.slot) as usize * BLOCK;
                let data = self.buffer.get(from..from + BLOCK).unwrap_or_default();
                put(&self.file, offset + u64::from(*slot) * BLOCK as u64, data)?;
            }
            self.buffer.get_mut(..end).unwrap_or_default().fill(0);
            open.slot = next_slot;
        }
        match full {
            Some(Full::Segment) => self.seal(open)?,
            Some(Full::Invalid) => return Err("a record breaks the format".into()),
            _ if open.slot + 1 >= open.log.data_slots() => self.seal(open)?,
            _ => log.open = Some(open),
        }
        Ok(done)
    }

    /// Places one block; returns its slot.
    fn data(
        &mut self,
        builder: &mut BatchBuilder,
        log: &mut SegmentLog,
        stream: LogStream,
        block: u64,
        sampled: bool,
    ) -> core::result::Result<u16, Full> {
        let journal = stream == LogStream::Journal;
        let lsn = self.lsn + u64::from(journal);
        let record = self.record(if journal { Kind::Write } else { Kind::Fill }, block, 1, lsn);
        let data = if sampled { content(block, lsn) } else { Vec::new() };
        let placed =
            builder.append_with(&mut self.buffer, log, &record, self.volume.key(), |out| {
                // The buffer is zero wherever nothing was put.
                if sampled {
                    out.copy_from_slice(&data);
                }
                true
            })?;
        self.lsn = lsn;
        if journal {
            self.dirty.push_back((block, lsn));
            self.last.insert(block, lsn);
        }
        if sampled {
            self.samples.insert(block, lsn);
        }
        Ok(placed.slot)
    }

    fn open(&mut self, stream: LogStream) -> Result<OpenSegment> {
        let segment = self.segments;
        self.segments += 1;
        let device = self.map.device_segment(segment).ok_or("the cache is too small")?;
        let seq = self.numbers.next();
        let name =
            SegmentName { cache: self.cache, shard: self.shard, segment: device, seq, stream };
        Ok(OpenSegment { name, segment, log: SegmentLog::new(self.map.geometry()), slot: 0 })
    }

    fn seal(&mut self, open: OpenSegment) -> Result<()> {
        let geometry = self.map.geometry();
        let mut bytes = vec![0; geometry.footer_bytes()];
        let seal = self.numbers.next();
        let built = build_footer(&mut bytes, &open.log, &open.name, seal, |record, _| {
            match record.kind {
                Kind::Fill => Keep::Clean,
                // All that is trimmed was written long before.
                _ if self.last.get(&record.block) == Some(&record.lsn.0) => Keep::Dirty,
                _ => Keep::Dead,
            }
        });
        let built = built.ok_or("a footer is too short")?;
        let offset = self.map.segment_offset(open.segment).ok_or("no such segment")?;
        let at = offset + u64::from(geometry.footer_slot()) * BLOCK as u64;
        put(&self.file, at, bytes.get(..built.bytes).unwrap_or_default())
    }

    /// The write that the crash tore: its header is there, its data are not. Nobody was told of it.
    fn torn(&mut self, log: &mut Log) -> Result<()> {
        let Some(mut open) = log.open.take() else { return Ok(()) };
        let slot = u16::try_from(open.slot).map_err(text)?;
        let mut builder = BatchBuilder::new(open.name, slot, 0);
        let block = self.dirty.back().map_or(0, |(block, _)| *block);
        let record = self.record(Kind::Write, block, 1, self.lsn + 1);
        let data = [0x5a; BLOCK];
        let key = self.volume.key();
        let done = builder.append_data(&mut self.buffer, &mut open.log, &record, key, &data);
        if done.is_ok() {
            let number = self.numbers.next();
            builder.finish(&mut self.buffer, &mut open.log, number, number);
            let offset = self.map.segment_offset(open.segment).ok_or("no such segment")?;
            let at = offset + u64::from(slot) * BLOCK as u64;
            put(&self.file, at, self.buffer.get(..BLOCK).unwrap_or_default())?;
        }
        Ok(())
    }
}
