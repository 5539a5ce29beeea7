//! What a simulated world is made of.

use crate::device::info;
use crate::rng::Rng;
use crate::script::SCENES_FROM;
use forebay_cache::engine::{CacheMode, EngineConfig, Limits, OnFailure, VolumeSpec};
use forebay_cache::format::plan::{FormatOptions, Step, plan};
use forebay_cache::policy::PolicyKind;
use forebay_io::device::DeviceInfo;
use forebay_io::{Duration, Epoch, Uuid, VolumeId};

use crate::medium::Medium;

/// All modes.
pub const MODES: [CacheMode; 4] =
    [CacheMode::WriteBack, CacheMode::WriteThrough, CacheMode::WriteAround, CacheMode::PassThrough];

/// One volume.
#[derive(Clone, Copy, Debug)]
pub struct VolumeConfig {
    /// Bytes.
    pub size: u64,
    /// Logical block: 512 or 4096.
    pub unit: u32,
    /// The mode at first.
    pub mode: CacheMode,
}

/// A world.
#[derive(Clone, Debug)]
pub struct Config {
    /// Seed of all chance.
    pub seed: u64,
    /// Bytes of the cache device.
    pub cache_bytes: u64,
    /// Blocks of a segment.
    pub segment_slots: u32,
    /// The volumes.
    pub volumes: Vec<VolumeConfig>,
    /// Limits of the engine.
    pub limits: Limits,
    /// Pages of the memory tier.
    pub tier_pages: u32,
    /// The policy.
    pub policy: PolicyKind,
    /// The cache device has a volatile write cache.
    pub volatile: bool,
    /// The backing devices have one.
    pub backing_volatile: bool,
    /// The backing devices can write zeroes.
    pub write_zeroes: bool,
    /// What becomes of requests that a backing device does not take.
    pub on_failure: OnFailure,
    /// Shortest and longest time of an operation of the cache device, in nanoseconds.
    pub cache_latency: (u64, u64),
    /// The same of the backing devices.
    pub backing_latency: (u64, u64),
    /// Longest time of a message between reactors.
    pub mail: u64,
    /// Bytes of the ordered journal of the first volume; 0 for none.
    pub journal: u64,
    /// The rule that is removed on purpose; 0 for none.
    pub plant: u16,
}

/// Bytes in front of the first segment, with one shard and this segment size.
#[must_use]
pub const fn head(segment_slots: u32) -> u64 {
    let segment = segment_slots as u64 * 4096;
    (640 << 10) / segment * segment + if (640 << 10) % segment == 0 { 0 } else { segment }
}

impl Config {
    /// A small world: `segments` of `slots` blocks and one volume.
    #[must_use]
    pub fn small(seed: u64, slots: u32, segments: u64, volume: VolumeConfig) -> Self {
        Self {
            seed,
            cache_bytes: head(slots) + segments * u64::from(slots) * 4096,
            segment_slots: slots,
            volumes: vec![volume],
            limits: Limits { dirty_age: Duration::from_millis(50), ..Limits::default() },
            tier_pages: 0,
            policy: PolicyKind::S3Fifo,
            volatile: false,
            backing_volatile: true,
            write_zeroes: true,
            on_failure: OnFailure::Wait,
            cache_latency: (10_000, 90_000),
            backing_latency: (50_000, 500_000),
            mail: 0,
            journal: 0,
            plant: 0,
        }
    }

    /// The world of a seed.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let slots = rng.pick(&[16, 16, 32, 64]);
        let mut volumes = Vec::new();
        for _ in 0..1 + rng.below(3).saturating_sub(1) {
            let unit = rng.pick(&[512, 4096]);
            let odd = if unit == 512 { 512 * rng.below(8) } else { 0 };
            let size = (64 << 10) * (1 + rng.below(12)) + odd;
            volumes.push(VolumeConfig { size, unit, mode: MODES[rng.index(6) % 4] });
        }
        let mut config = Self::small(seed, slots, 12 + rng.below(24), volumes[0]);
        config.volumes = volumes;
        config.limits = Limits {
            dirty_max: rng.pick(&[u64::MAX, 256 << 10, 1 << 20]),
            dirty_age: Duration::from_millis(rng.pick(&[1, 5, 50, 2000])),
            destage_from: rng.pick(&[5, 20, 60]),
            sequential_cutoff: rng.pick(&[0, 64 << 10, 8 << 20]),
            admit_at_once: rng.below(4) > 0,
            op_timeout: Duration::from_millis(rng.pick(&[300, 2000])),
            throttle_max: Duration::from_millis(5),
            ..Limits::default()
        };
        config.tier_pages = rng.pick(&[0, 0, 8, 32]);
        config.policy = rng.pick(&[
            PolicyKind::S3Fifo,
            PolicyKind::S3Fifo,
            PolicyKind::Fifo,
            PolicyKind::WriteOnly,
        ]);
        config.volatile = rng.one_in(3) || (seed >= SCENES_FROM && seed.is_multiple_of(2));
        config.backing_volatile = !rng.one_in(5);
        config.write_zeroes = !rng.one_in(4);
        config.on_failure = rng.pick(&[OnFailure::Wait, OnFailure::Fail]);
        config.cache_latency = rng.pick(&[(10_000, 90_000), (1_000, 2_000), (10_000, 2_000_000)]);
        config.backing_latency =
            rng.pick(&[(100_000, 3_000_000), (20_000, 60_000), (1_000_000, 20_000_000)]);
        config.mail = rng.pick(&[0, 20_000, 500_000]);
        config
    }

    /// The engine's part of it.
    #[must_use]
    pub const fn engine(&self) -> EngineConfig {
        EngineConfig {
            limits: self.limits,
            tier_pages: self.tier_pages,
            policy: self.policy,
            ghost_blocks: 256,
            volatile_write_cache: self.volatile,
        }
    }

    /// What the cache device states of itself.
    #[must_use]
    pub fn cache_info(&self) -> DeviceInfo {
        info("cache", self.cache_bytes, self.volatile)
    }

    /// What a backing device states of itself.
    #[must_use]
    pub fn backing_info(&self, volume: usize) -> DeviceInfo {
        let size = self.volumes[volume].size;
        let mut info = info(&format!("backing{volume}"), size, self.backing_volatile);
        info.write_zeroes = self.write_zeroes;
        info
    }

    /// What is attached, in a mode.
    #[must_use]
    pub fn spec(&self, volume: usize, mode: CacheMode, backing: DeviceInfo) -> VolumeSpec {
        let n = u8::try_from(volume).unwrap_or(0);
        VolumeSpec {
            id: id_of(volume),
            uuid: uuid(n + 1),
            journal: uuid(n + 101),
            name: format!("vol{volume}"),
            block_size: self.volumes[volume].unit,
            mode,
            backing,
            epoch: Epoch(1),
            on_failure: self.on_failure,
        }
    }

    /// A formatted cache device.
    #[must_use]
    pub fn formatted(&self) -> Medium {
        let mut medium = Medium::new(self.cache_bytes);
        let mut options = FormatOptions::new(uuid(200));
        (options.shards, options.segment_slots) = (Some(1), Some(self.segment_slots));
        let plan = plan(&self.cache_info(), &options).expect("the options fit the device");
        for step in plan.steps {
            if let Step::Write { offset, bytes } = step {
                medium.write(offset, &bytes);
            }
        }
        medium
    }
}

/// The identifier of the cache and, by number, of volumes and journals.
#[must_use]
pub fn uuid(n: u8) -> Uuid {
    Uuid::from_random([n; 16])
}

/// The handle of a volume.
#[must_use]
pub fn id_of(volume: usize) -> VolumeId {
    VolumeId(u32::try_from(volume).unwrap_or(0) + 3)
}
