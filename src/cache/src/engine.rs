//! The cache engine: one logical shard of a cache device with its volumes, as a state machine
//! without I/O.
//!
//! Requests, completions and time go in; operations for the devices and events come out. Nothing
//! is allocated per I/O once the tables have grown to the load.
//!
//! | module | holds |
//! |---|---|
//! | [`types`] | requests' companions: actions, events, limits, volumes to add |
//! | `intake`, `write`, `read`, `fill`, `range_ops`, `backing` | a request's way |
//! | `log`, `stream`, `segments`, `seal` | batches, segments, footers |
//! | `destage`, `reclaim` | dirty data to the backing devices, room for new data |
//! | `mode`, `detach`, `super_io` | live switches, drain, attach, detach, stop; the superblock |
//! | `order` | batches of `write-back-ordered`, and their journal |
//! | `warm` | what recovery left for later |
//! | `share`, `pins` | what volumes keep of the cache and may have of it; pinned blocks |
//! | `throttle`, `flush`, `failure`, `stats`, `scrub`, `locate` | as named |

mod backing;
mod destage;
mod detach;
mod extent;
mod failure;
mod fill;
mod flush;
mod intake;
mod locate;
mod log;
mod mode;
mod ops;
mod order;
mod pins;
mod range_ops;
mod read;
mod rebuild;
mod reclaim;
mod request;
mod scrub;
mod seal;
mod segments;
mod share;
mod slab;
mod stats;
mod stream;
mod super_io;
mod throttle;
pub mod types;
mod volume;
mod warm;
mod write;

pub use locate::{CopyAt, Place};
pub use mode::{ControlError, MAX_VOLUMES};
pub use order::{OrderJournalStats, OrderState};
pub use pins::PinStatus;
pub use scrub::{ScrubReport, ScrubState, ScrubStatus};
pub use share::{BlockRange, KEPT_PERCENT, PINS_MAX, Quota};
pub use stats::{BlockCounts, Counts, EngineStats, SILENT, VolumeStats};
pub use types::{Action, Aim, BLOCK, CacheMode, Event, Limits, OnFailure, Source, VolumeSpec};

use crate::fold::Folds;
use crate::format::device::DeviceHeader;
use crate::format::geometry::{LogStream, Numbers, ShardMap};
use crate::hazard::HazardTable;
use crate::index::Index;
use crate::policy::{Policy, PolicyKind};
use crate::recovery::{Recovered, RecoveredRange, RecoveredVolume, SegmentState};
use crate::tier::Tier;
use destage::Destage;
use fill::Fills;
use flush::Flushes;
use forebay_io::{Buf, BufPool, Completion, DeviceError, Duration, Instant, Lsn, Piece, Uuid};
use ops::{Under, What};
use reclaim::Reclaim;
use request::Req;
use segments::Segments;
use slab::{Handle, Slab};
use std::collections::VecDeque;
use stream::Stream;
use super_io::SuperWriter;
use volume::Volumes;

/// Requests that hold claims at once at most; more wait.
const CLAIMS_MAX: u16 = 4096;
/// Closed batches of one log at most; more data waits in its requests.
const QUEUE_MAX: usize = 8;

/// How often the age of the oldest dirty data is looked up.
const OLDEST_EVERY: Duration = Duration::from_millis(5);

/// What each call carries with it.
struct Cx<'a, P> {
    pool: &'a mut P,
    now: Instant,
}

/// How an engine is made.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Limits, also changed live.
    pub limits: Limits,
    /// Pages of the memory tier; 0 for none.
    pub tier_pages: u32,
    /// What is admitted and what is kept.
    pub policy: PolicyKind,
    /// Blocks that the policy remembers after it let them go (2.5 bytes each).
    pub ghost_blocks: usize,
    /// The cache device may lose completed writes at a power loss until a flush.
    pub volatile_write_cache: bool,
}

/// One logical shard of a cache. See the module's description.
pub struct Engine<B: Buf> {
    header: DeviceHeader,
    shard: u16,
    cache_uuid: Uuid,
    map: ShardMap,
    numbers: Numbers,
    volatile: bool,
    limits: Limits,
    queue_max: usize,
    index: Index,
    folds: Folds,
    tier: Tier<B>,
    policy: Policy,
    segs: Segments,
    streams: [Stream<B>; 3],
    vols: Volumes,
    reqs: Slab<Req<B>>,
    ops: Slab<Under>,
    /// Claims of writes on volumes' blocks, until commit (or, bypassing, until done).
    hold: HazardTable,
    /// Claims on backing devices' blocks.
    backing: HazardTable,
    /// Claims of writes that timed out, and when they end.
    doubtful: VecDeque<(Instant, crate::hazard::ClaimId)>,
    fills: Fills<B>,
    destage: Destage<B>,
    trim_ordinal: Option<u64>,
    ranges_since: Instant,
    reclaim: Reclaim,
    scrub: scrub::Scrub,
    pins: pins::Pins,
    rebuild: Option<rebuild::Rebuild>,
    warm: warm::Warm,
    flush: Flushes,
    supers: SuperWriter,
    /// Footers that wait for a flush, in the order of their seals.
    footers: Vec<seal::Footer<B>>,
    /// Dirty blocks, over all volumes.
    dirty: u64,
    /// Versions that were replaced and are kept for their batch, over all volumes.
    kept: u64,
    plant: crate::plant::Plant,
    zero: Option<B>,
    stalled: VecDeque<Handle>,
    /// Requests to go on with.
    wake: VecDeque<Handle>,
    actions: VecDeque<Action<B>>,
    events: VecDeque<(Event, u32)>,
    pieces: VecDeque<Piece<B>>,
    attaching: Vec<(u16, u64)>,
    detached: Vec<(u16, u64)>,
    extent: extent::Growth,
    found: Vec<RecoveredVolume>,
    found_ranges: Vec<RecoveredRange>,
    next_index: u16,
    cache_failed: Option<(Instant, DeviceError)>,
    cache_hanging: Option<Instant>,
    late_looks: u8,
    refusals: failure::Refusals,
    failure_noted: bool,
    flush_errors: u8,
    mark_errors: u8,
    footer_tries: u8,
    watch_at: Instant,
    last_poll: Instant,
    /// The first poll: no request comes before it. Dirty data from before has no age of its own.
    began: Option<Instant>,
    /// When the oldest dirty data was written, and when that was last looked up: going through the
    /// segments is not for every poll.
    oldest: Option<Instant>,
    oldest_at: Instant,
    late: Vec<(Handle, Under)>,
    stopping: bool,
    stopped: bool,
    stop_ticket: Option<u64>,
    stop_flush: u64,
    stats: Counts,
}

impl<B: Buf> Engine<B> {
    /// An engine that goes on from what recovery found. Its incarnation is durable already.
    #[must_use]
    pub fn new(config: &EngineConfig, header: DeviceHeader, recovered: Recovered) -> Self {
        let Recovered {
            superblock,
            map,
            numbers,
            index,
            folds,
            segments,
            volumes,
            ranges,
            deferred,
            ..
        } = recovered;
        let mut segs = Segments::new(map.geometry());
        segments.iter().for_each(|_| segs.add_free());
        let mut sealed: Vec<(u64, u32)> = Vec::new();
        let mut dirty = 0;
        for (seg, info) in (0u32..).zip(&segments) {
            match info.state {
                SegmentState::Free => {}
                SegmentState::Sealed => sealed.push((info.seal, seg)),
                SegmentState::Bad => segs.set_bad(seg),
            }
        }
        sealed.sort_unstable();
        for (_, seg) in sealed {
            let Some(info) = segments.get(seg as usize) else { continue };
            let stream = info.stream.unwrap_or(LogStream::Journal);
            segs.restore(seg, stream, info.seq, info.seal);
            if let Some(s) = segs.get_mut(seg) {
                (s.live, s.dirty) = (info.live, info.dirty);
            }
            dirty += u64::from(info.dirty);
        }
        segs.restored();
        for seg in &deferred.segments {
            if let Some(s) = segs.get_mut(*seg) {
                s.cover = segments::Cover::Later;
            }
        }
        Self {
            shard: superblock.shard,
            cache_uuid: header.cache,
            header,
            map,
            numbers,
            volatile: config.volatile_write_cache,
            limits: config.limits,
            queue_max: QUEUE_MAX,
            index,
            folds,
            tier: Tier::new(config.tier_pages),
            policy: Policy::new(config.policy, config.ghost_blocks),
            segs,
            streams: core::array::from_fn(|_| Stream::new()),
            vols: Volumes::default(),
            reqs: Slab::new(),
            ops: Slab::new(),
            hold: HazardTable::new(CLAIMS_MAX),
            backing: HazardTable::new(CLAIMS_MAX),
            fills: Fills::new(),
            destage: Destage::new(),
            trim_ordinal: None,
            ranges_since: Instant(0),
            reclaim: Reclaim::new(),
            scrub: scrub::Scrub::new(),
            pins: pins::Pins::new(),
            rebuild: None,
            doubtful: VecDeque::new(),
            warm: warm::Warm::new(deferred),
            flush: Flushes::default(),
            supers: {
                let mut block = superblock;
                block.clean_stop = false;
                SuperWriter::new(block)
            },
            footers: Vec::new(),
            dirty,
            kept: 0,
            plant: crate::plant::Plant::default(),
            zero: None,
            stalled: VecDeque::new(),
            wake: VecDeque::new(),
            actions: VecDeque::new(),
            events: VecDeque::new(),
            pieces: VecDeque::new(),
            attaching: Vec::new(),
            detached: Vec::new(),
            extent: extent::Growth::Fixed,
            found: volumes,
            found_ranges: ranges,
            next_index: 0,
            cache_failed: None,
            cache_hanging: None,
            late_looks: 0,
            refusals: failure::Refusals::default(),
            failure_noted: false,
            flush_errors: 0,
            mark_errors: 0,
            footer_tries: 0,
            watch_at: Instant(0),
            last_poll: Instant(0),
            began: None,
            oldest: None,
            oldest_at: Instant(0),
            late: Vec::new(),
            stopping: false,
            stopped: false,
            stop_ticket: None,
            stop_flush: 0,
            stats: Counts::default(),
        }
    }

    /// Removes a rule on purpose, by its number in [`crate::plant::Bug`]; 0 for none.
    #[cfg(feature = "planted-bugs")]
    pub const fn plant(&mut self, bug: u16) {
        self.plant = crate::plant::Plant::new(bug);
    }

    /// Changes the limits, live.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        for (_, vol) in self.vols.iter_mut() {
            vol.sequential.set_cutoff(limits.sequential_cutoff / BLOCK);
        }
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes the end of an operation.
    pub fn handle_completion<P: BufPool<Buf = B>>(
        &mut self,
        source: Source,
        done: Completion<B>,
        pool: &mut P,
        now: Instant,
    ) {
        let mut cx = Cx { pool, now };
        self.last_poll = now;
        let h = Handle::from_token(done.token);
        let Some(under) = self.ops.get(h).copied() else { return };
        self.ops.free(h);
        if let Some(place) = under.backing {
            debug_assert!(source != Source::Cache, "a backing device's completion");
            if let Some(vol) = self.vols.get_mut(place) {
                vol.backing_ops -= 1;
            }
        }
        self.dispatch(&mut cx, under.what, done);
        self.settle(&mut cx);
    }

    fn dispatch<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        what: What,
        done: Completion<B>,
    ) {
        let token = done.token;
        match what {
            What::None => {}
            What::Hit { req, part, blocks, volume, block, slot } => {
                self.hit_done(cx, (req, part, blocks), (volume, block, slot), token, done);
            }
            What::Miss { req, part, blocks, volume, block, fill } => {
                self.miss_done(cx, (req, part, blocks), (volume, block), fill, token, done);
            }
            What::Batch { stream, ordinal } => {
                self.batch_done(cx, stream, ordinal, done.result, done.buf);
                self.pump(cx.now, stream);
            }
            What::Footer { seg } => self.footer_done(cx, seg, done.result, done.buf),
            What::DestageFooter { seg } => {
                self.destage_footer(cx, seg, done);
                self.destage_step(cx);
            }
            What::WarmFooter { seg } => self.warm_footer(cx, seg, done),
            What::DestageRead { run, at, blocks, slot } => {
                self.destage_read(cx, run, (at, blocks, slot), done);
                self.destage_step(cx);
            }
            What::DestageWrite { run } | What::DestageZeroes { run } => {
                self.destage_write_done(cx, run, done.result);
                self.destage_step(cx);
            }
            What::Gathered { run } => {
                self.gathered(cx, run, done.result);
                self.destage_step(cx);
            }
            What::Ordered { place, step } => {
                self.journal_done(cx, place, step, done);
                self.journals_step(cx);
            }
            What::DestageFlush { volume } => {
                self.destage_flush_done(cx, volume, done.result);
                self.destage_step(cx);
            }
            What::LateFlush { volume } => self.flush_ended(cx, volume, done.result),
            What::ReclaimFooter { seg } => {
                self.reclaim_footer(cx, seg, done);
                self.reclaim_step(cx);
            }
            What::ReclaimRead { at } => {
                self.reclaim_read(cx, at, done);
                self.reclaim_step(cx);
            }
            What::FreeMark => {
                self.mark_done(cx, done.result);
                self.reclaim_step(cx);
            }
            What::CacheFlush => {
                self.cache_flush_done(cx, done.result);
                self.flush_pump(cx.now);
            }
            What::HostWrite { req } | What::HostRange { req } => {
                self.host_write_done(cx, req, done.result)
            }
            What::HostFlush { req } => self.host_flush_done(cx, req, done.result),
            What::QuietFlush { volume } => self.quiet_flush_done(cx, volume, done.result),
            What::Superblock => self.super_done(cx, done.result),
            What::Probe { volume } => self.probe_done(cx, volume, done.result),
            What::Rebuild => {
                self.rebuild_read(cx, done);
                self.destage_step(cx);
                self.reclaim_step(cx);
            }
            What::ScrubFooter { seg } => self.scrub_footer(cx, seg, done),
            What::ScrubRead { slot } => self.scrub_read(cx, slot, done),
            What::ScrubFill { volume, block, fill, serial } => {
                self.refetched(cx, (volume, block), (fill, serial), done);
            }
            What::PinFill { volume, block, blocks, fill } => {
                self.pin_fetched(cx, (volume, block), (fill, blocks), done);
            }
        }
    }

    /// Timers. Call it at [`Engine::next_deadline`] or later.
    pub fn handle_timeout<P: BufPool<Buf = B>>(&mut self, pool: &mut P, now: Instant) {
        self.end_of_poll(pool, now);
    }

    /// The end of a poll: what it gathered goes to the device in one write, and the background
    /// work takes its next steps.
    pub fn end_of_poll<P: BufPool<Buf = B>>(&mut self, pool: &mut P, now: Instant) {
        let mut cx = Cx { pool, now };
        if self.stopped {
            return;
        }
        self.last_poll = now;
        self.refusals_go(now);
        self.began.get_or_insert(now);
        if now.since(self.oldest_at) >= OLDEST_EVERY || (self.dirty > 0) != self.oldest.is_some() {
            self.oldest_at = now;
            self.oldest = if self.dirty > 0 { self.segs.oldest_dirty() } else { None };
        }
        if !self.stalled.is_empty() {
            self.stalled_go(&mut cx);
            self.settle(&mut cx);
        }
        if self.cache_failed.is_none() {
            self.destage_step(&mut cx);
            self.reclaim_step(&mut cx);
            self.fill_pump(&mut cx);
            for kind in LogStream::ALL {
                self.pump(now, kind);
            }
            if !self.segs.young().is_empty() {
                self.seal_step(&mut cx);
            }
            self.flush_pump(now);
        }
        if !self.warm.is_idle() {
            self.warm_step(&mut cx);
        }
        if !self.scrub.is_idle() {
            self.scrub_step(&mut cx);
        }
        if !self.pins.is_idle() {
            self.pins_step(&mut cx);
        }
        self.journals_step(&mut cx);
        self.control_step(&mut cx);
        self.watch(&mut cx);
        self.settle(&mut cx);
    }

    /// When [`Engine::handle_timeout`] is due at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        let mut at = Instant::NEVER;
        if self.stopped {
            return at;
        }
        if self.ops.len() > 0 || self.vols.iter().any(|(_, vol)| vol.health.failing.is_some()) {
            at = at.min(self.watch_at);
        }
        if let Some(since) = self.fills.since {
            at = at.min(since + fill::STAGED_MAX);
        }
        at = at
            .min(self.destage.deadline())
            .min(self.sweep_deadline())
            .min(self.journals_deadline());
        if self.destage.zeroes_from > self.last_poll {
            at = at.min(self.destage.zeroes_from);
        }
        if let Some((end, _)) = self.doubtful.front() {
            at = at.min((*end).max(self.watch_at));
        }
        if self.cache_failed.is_none() {
            at = at.min(self.orders_deadline());
        }
        if !self.warm.is_idle() && self.warm.resting() {
            // There was no buffer.
            at = at.min(self.last_poll + throttle::RETRY);
        }
        at = at.min(self.refusals.deadline()).min(self.scrub.deadline()).min(self.pins.deadline());
        for h in &self.stalled {
            if let Some(req) = self.reqs.get(*h) {
                // Those that wait for room are taken up with the next completion; look again soon
                // all the same, as the room may come from a timer.
                at = at.min(req.release.max(self.last_poll + throttle::RETRY));
            }
        }
        if let Some(oldest) = self.oldest.filter(|_| self.cache_failed.is_none()) {
            at = at.min((oldest + self.limits.dirty_age).max(self.last_poll + throttle::RETRY));
        }
        at
    }

    /// The next operation for a device.
    pub fn poll_action(&mut self) -> Option<Action<B>> {
        self.actions.pop_front()
    }

    /// The next event; the data of a read that ended is appended to `pieces`.
    pub fn poll_event(&mut self, pieces: &mut Vec<Piece<B>>) -> Option<Event> {
        let (event, count) = self.events.pop_front()?;
        for _ in 0..count {
            pieces.extend(self.pieces.pop_front());
        }
        Some(event)
    }

    /// Whether there is nothing under way: no request, no operation, no background work.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reqs.len() == 0
            && self.ops.len() == 0
            && self.actions.is_empty()
            && self.events.is_empty()
            && self.refusals.is_empty()
            && self.destage.is_idle()
            && self.vols.iter().all(|(_, vol)| !vol.journal_busy())
            && self.reclaim.is_idle()
            && self.warm.is_idle()
            && self.streams.iter().all(Stream::is_idle)
    }

    /// Volumes of the superblock that are not attached: their UUIDs. Their dirty data waits.
    pub fn known_volumes(&self) -> impl Iterator<Item = (Uuid, Lsn)> + '_ {
        self.supers.block.volumes.iter().map(|entry| (entry.uuid, entry.accounted))
    }
}
