//! What an operator and fate do to the world: switches, drains, restarts, crashes, rot; and waiting.

use super::ask::Asked;
use super::{Ask, OPEN, World};
use crate::config::id_of;
use crate::device::Device;
use crate::history::Host;
use crate::oracle::content;
use forebay_cache::engine::{Aim, CacheMode, Event};
use forebay_io::Instant;

impl World {
    /// Runs until an event is seen (and takes it).
    pub fn wait_for(&mut self, mut want: impl FnMut(&Event) -> bool) {
        for _ in 0..400_000 {
            if let Some(at) = self.events.iter().position(&mut want) {
                self.events.remove(at);
                return;
            }
            if self.violation.is_some() {
                return;
            }
            self.step();
        }
        self.stuck("an event did not come");
    }

    pub(super) fn stuck(&mut self, what: &str) {
        let now = Instant(self.now);
        let asked: Vec<Asked> = self.asked.values().take(4).cloned().collect();
        let volumes: Vec<_> =
            (0..self.backing.len()).map(|n| self.engine().volume_stats(id_of(n))).collect();
        let stats = self.engine().stats(now);
        self.fail(format!("{what}; under way {asked:?}; {volumes:?}; {stats:?}"));
    }

    /// Runs until no request is under way.
    pub fn quiesce(&mut self) {
        for _ in 0..400_000 {
            if self.asked.is_empty() || self.violation.is_some() || self.over {
                return;
            }
            self.step();
        }
        self.stuck("requests do not end");
    }

    /// Asks for something and waits for its end.
    pub fn ask_and_wait(&mut self, ask: Ask) {
        let tag = self.ask(ask);
        for _ in 0..400_000 {
            if !self.asked.contains_key(&tag) || self.violation.is_some() || self.over {
                return;
            }
            self.step();
        }
        self.stuck("a request does not end");
    }

    /// Waits until the devices have nothing in flight.
    fn land(&mut self) {
        for _ in 0..1000 {
            let flying = self.backing.iter().map(Device::in_flight).sum::<usize>();
            if flying + self.cache.in_flight() == 0 || self.violation.is_some() {
                break;
            }
            self.step();
        }
    }

    /// Waits until nothing is in flight and makes all that completed durable, as a device may at any
    /// time.
    pub fn calm(&mut self) {
        self.quiesce();
        self.land();
        self.cache.settle();
        self.backing.iter_mut().for_each(Device::settle);
        let tick = self.tick();
        for volume in 0..self.oracles.len() {
            self.oracles[volume].flushed(tick);
        }
    }

    /// Begins a mode switch; `false` where it is refused now.
    pub fn set_mode(&mut self, volume: usize, mode: CacheMode) -> bool {
        if self.violation.is_some() {
            return false;
        }
        self.line(|| format!("mode   vol{volume} {mode:?}"));
        let set = self.engine().set_mode(id_of(volume), mode).is_ok();
        if set {
            self.modes[volume] = mode;
            self.note_mode(volume, mode);
        }
        self.pump();
        set
    }

    /// Asks for a drain; [`Event::Drained`] says when it is over.
    pub fn drain(&mut self, volume: usize) {
        if self.violation.is_some() {
            return;
        }
        self.line(|| format!("drain  vol{volume}"));
        let _ = self.engine().drain(id_of(volume));
        self.pump();
    }

    /// Runs until nothing is dirty, or what is left is lost.
    pub fn drain_and_wait(&mut self, volume: usize) {
        let id = id_of(volume);
        let over = |event: &Event| match event {
            Event::Drained { volume } => *volume == id,
            Event::DamageLeft { volume, ended, .. } => (*volume, *ended) == (id, Aim::Drain),
            _ => false,
        };
        self.events.retain(|event| !over(event));
        self.drain(volume);
        self.wait_for(over);
    }

    /// A clean stop and a new start. Requests under way end first.
    pub fn restart(&mut self) {
        self.quiesce();
        if self.violation.is_some() || self.cache_failed || self.over {
            return;
        }
        self.line(|| "stop".to_owned());
        self.engine().stop();
        self.wait_for(|event| *event == Event::Stopped);
        self.land();
        self.mail.clear();
        self.events.clear();
        self.start();
        (0..self.backing.len()).for_each(|volume| self.check_drained(volume));
    }

    /// A volume leaves the cache, somebody else writes its backing device, and it comes back.
    pub fn reattach(&mut self, volume: usize) {
        self.quiesce();
        if self.violation.is_some() || self.cache_failed || self.over {
            return;
        }
        self.line(|| format!("detach vol{volume}"));
        if self.engine().detach(id_of(volume)).is_err() {
            return;
        }
        self.wait_for(|event| *event == Event::Detached { volume: id_of(volume) });
        if self.violation.is_some() || self.over {
            return;
        }
        self.shard.unserve(id_of(volume));
        self.backing[volume].settle();
        let units = self.config.volumes[volume].size / 512;
        let (from, write) = (self.rng.below(units), self.times.len() as u64);
        let at = (from * 512, (1 + self.rng.below(64)).min(units - from) * 512);
        let start = self.ticked();
        self.tell(Host::Started { volume, at, write, zero: false, certain: true, tick: start });
        self.backing[volume].put(at.0, &content(write, at.0, at.1));
        let tick = self.ticked();
        self.times.push((start, tick));
        self.tell(Host::Ended { volume, at, write, tick, horizon: start, fua: true });
        self.line(|| format!("others vol{volume} {}+{} write {write}", at.0, at.1));
        self.attach(volume);
    }

    /// Begins to scrub a volume, as fast as it goes.
    pub fn scrub(&mut self, volume: usize) {
        self.line(|| format!("scrub  vol{volume}"));
        let _ = self.engine().scrub(id_of(volume), 1 << 30);
        self.pump();
    }

    /// The process dies, or all loses power; then a new start, and everything is looked at.
    pub fn crash(&mut self, power: bool) {
        self.die(power);
        self.start();
        (0..self.backing.len()).for_each(|volume| self.check_drained(volume));
        if self.violation.is_none() && !self.over {
            self.look_at_all(power);
        }
    }

    /// The process dies, or all loses power.
    pub(super) fn die(&mut self, power: bool) {
        self.counts.crashes += 1;
        self.line(|| format!("crash  power {power}"));
        self.cache.crash(power);
        for disk in self.backing.iter_mut().chain(&mut self.journal) {
            disk.crash(power);
        }
        self.pool.dry(0);
        for oracle in &mut self.oracles {
            oracle.crashed(power);
        }
        if power && self.config.volatile {
            self.times.iter_mut().for_each(|times| *times = (0, OPEN));
        }
        self.asked.clear();
        self.mail.clear();
        self.events.clear();
        self.versions.clear();
        self.replaced.clear();
        if power && self.config.volatile {
            self.drained.fill(false);
        }
        self.now += 1_000_000;
    }

    /// Flips bits in blocks of data of sealed segments: what was durable, and known to be.
    pub fn rot(&mut self, blocks: u64) {
        for _ in 0..blocks * 4 {
            let (at, bit) = (self.sealed_block(), self.rng.index(4096 * 8));
            let Some(at) = at else { continue };
            let mut block = self.cache.bytes.bytes(at, 4096);
            block[bit / 8] ^= 1 << (bit % 8);
            self.cache.rot(at, &block);
        }
    }

    /// Makes blocks of sealed segments unreadable.
    pub fn spoil(&mut self, blocks: u64) {
        for _ in 0..blocks * 4 {
            if let Some(at) = self.sealed_block() {
                self.cache.spoil(at);
            }
        }
    }

    /// Where a random block of data is, if its segment is sealed.
    fn sealed_block(&mut self) -> Option<u64> {
        let slots = u64::from(self.config.segment_slots);
        let first = crate::config::head(self.config.segment_slots);
        let segments = (self.config.cache_bytes - first) / (slots * 4096);
        let data = slots - 1 - slots.div_ceil(48);
        let start = first + self.rng.below(segments) * slots * 4096;
        let at = start + self.rng.below(data) * 4096;
        let footer = self.cache.bytes.bytes(start + (data + 1) * 4096, 40);
        let header = self.cache.bytes.bytes(start, 40);
        // A footer of the segment's earlier life does not seal this one (both have the life's number
        // in bytes 32 to 39).
        let sealed = footer.starts_with(b"FBYFOOT\0") && footer[32..] == header[32..];
        (sealed && !self.cache.bytes.bytes(at, 8).starts_with(b"FBYBATCH")).then_some(at)
    }
}
