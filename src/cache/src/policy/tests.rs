use super::*;
use std::collections::{BTreeMap, VecDeque};

/// A cache of segments reclaimed first in, first out, as the engine's is, without the data.
struct Log {
    policy: Policy,
    live: BTreeMap<Key, Flags>,
    fifo: VecDeque<Key>,
    slots: usize,
    hits: u64,
    reads: u64,
}

const SEGMENT: usize = 64;

impl Log {
    fn new(kind: PolicyKind, slots: usize) -> Self {
        let policy = Policy::new(kind, slots / 2);
        Self { policy, live: BTreeMap::new(), fifo: VecDeque::new(), slots, hits: 0, reads: 0 }
    }

    fn read(&mut self, block: u64) {
        let key = Key::new(1, block).unwrap();
        self.reads += 1;
        if let Some(flags) = self.live.get_mut(&key) {
            *flags = flags.with_freq(flags.freq() + 1);
            self.hits += 1;
            return;
        }
        // Up to one segment is free right after a reclaim: that is the reserve, not room.
        let room = if self.fifo.len() + SEGMENT < self.slots { Room::Free } else { Room::Full };
        if self.policy.on_miss(key, false, room) == Admission::Admit {
            while self.fifo.len() >= self.slots {
                self.reclaim();
            }
            self.live.insert(key, Flags::NONE);
            self.fifo.push_back(key);
        }
    }

    fn reclaim(&mut self) {
        // At most three quarters of a segment go forward, so that reclaim always gains.
        let mut budget = SEGMENT * 3 / 4;
        for _ in 0..SEGMENT {
            let key = self.fifo.pop_front().unwrap();
            match self.policy.on_reclaim(key, self.live[&key], budget > 0) {
                Reclaim::Reinsert(flags) => {
                    budget -= 1;
                    self.live.insert(key, flags);
                    self.fifo.push_back(key);
                }
                Reclaim::Evict => {
                    self.live.remove(&key);
                }
            }
        }
    }
}

/// A skewed workload over `space` blocks: the cube of a uniform number.
fn skewed(state: &mut u64, space: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let u = *state >> 44;
    let cube = (((u * u) >> 20) * u) >> 20;
    (cube * space) >> 20
}

fn hit_permille(kind: PolicyKind, scan_every: u64) -> u64 {
    let mut log = Log::new(kind, 4096);
    let mut state = 9;
    let mut scan = 1 << 30;
    for step in 0..600_000u64 {
        if step == 100_000 {
            (log.hits, log.reads) = (0, 0);
        }
        if scan_every > 0 && step % scan_every == 0 {
            // A scan is not counted: only what it does to the others.
            let (hits, reads) = (log.hits, log.reads);
            for _ in 0..8192 {
                log.read(scan);
                scan += 1;
            }
            (log.hits, log.reads) = (hits, reads);
        }
        log.read(skewed(&mut state, 40_000));
    }
    log.hits * 1000 / log.reads
}

#[test]
fn it_beats_plain_fifo_on_skewed_reads_and_bears_scans() {
    let (fifo, s3) = (hit_permille(PolicyKind::Fifo, 0), hit_permille(PolicyKind::S3Fifo, 0));
    assert!(s3 > fifo + 80, "S3-FIFO {s3}, FIFO {fifo} (thousandths)");
    // Scans of twice the cache, again and again.
    let (fifo_scan, s3_scan) =
        (hit_permille(PolicyKind::Fifo, 50_000), hit_permille(PolicyKind::S3Fifo, 50_000));
    println!("fifo {fifo}, with scans {fifo_scan}; s3 {s3}, with scans {s3_scan}");
    assert!(s3_scan + 10 > s3, "a scan costs {s3} → {s3_scan}");
    assert!(s3_scan > fifo_scan + 80, "S3-FIFO {s3_scan}, FIFO {fifo_scan}");
}

#[test]
fn a_pure_scan_is_mostly_bypassed_and_a_second_read_enters() {
    let mut log = Log::new(PolicyKind::S3Fifo, 1024);
    (0..200_000).for_each(|block| log.read(block));
    let stats = log.policy.stats();
    assert!(stats.bypassed > stats.admitted * 3, "{stats:?}");
    let key = Key::new(1, 199_999).unwrap();
    log.policy.ghost.insert(key);
    assert_eq!(log.policy.on_miss(key, false, Room::Full), Admission::Admit);
}

#[test]
fn each_kind_decides_as_it_says() {
    let key = Key::new(1, 1).unwrap();
    let mut fifo = Policy::new(PolicyKind::Fifo, 100);
    assert_eq!(fifo.on_miss(key, false, Room::Full), Admission::Admit);
    assert_eq!(fifo.on_miss(key, true, Room::Free), Admission::Bypass);
    assert_eq!(fifo.on_reclaim(key, Flags::NONE.with_freq(3), true), Reclaim::Evict);
    let mut none = Policy::new(PolicyKind::WriteOnly, 100);
    assert_eq!(none.on_miss(key, false, Room::Free), Admission::Bypass);
    let mut s3 = Policy::new(PolicyKind::S3Fifo, 100);
    let twice = Flags::NONE.with_freq(2);
    assert_eq!(s3.on_reclaim(key, twice, true), Reclaim::Reinsert(twice.with_freq(1)));
    assert_eq!(s3.on_reclaim(key, twice, false), Reclaim::Evict);
    assert_eq!(s3.on_reclaim(key, Flags::NONE, true), Reclaim::Evict);
    assert_eq!(s3.on_miss(key, true, Room::Free), Admission::Bypass);
    assert_eq!(s3.on_miss(key, false, Room::Full), Admission::Admit);
}
