//! Starts, stops and crashes of the node; what operators and fate do to it.

use super::host::Host;
use super::link::End;
use super::world::World;
use crate::boot::{Boot, boot};
use crate::config::{id_of, uuid};
use crate::device::{Device, Faults};
use forebay_cache::engine::{CacheMode, Engine, Event};
use forebay_io::Instant;
use forebay_nvmf::initiator::{Controller, Error};
use forebay_nvmf::target::{AnaState, BlockSize, HostAccess, NamespaceConfig, SubsystemConfig};

/// How long a stopping reactor waits for hosts' commands under way, as the daemon's.
const STOP_PATIENCE: u64 = 10_000_000_000;

impl World {
    /// Opens the cache devices, attaches all volumes in the modes where they were going, and shows
    /// them to hosts.
    pub(super) fn start(&mut self) {
        self.serving = false;
        for r in 0..self.reactors.len() {
            let reactor = &mut self.reactors[r];
            match boot(&mut reactor.cache, None, self.config.plant) {
                Boot::Up(up) => {
                    let (header, recovered) = *up;
                    if !recovered.lost.is_empty() && !self.judge.tolerance.lost {
                        self.judge.fail(format!("recovery lists {:?} as lost", recovered.lost));
                    }
                    let engine = Engine::new(&self.config.engine(), header, recovered);
                    reactor.forget(self.now);
                    #[cfg(feature = "planted-bugs")]
                    let engine = {
                        let mut engine = engine;
                        engine.plant(self.config.plant);
                        reactor.shard.plant(self.config.plant);
                        engine
                    };
                    reactor.shard.add_engine(engine);
                }
                Boot::Cut => {}
                Boot::Refused(why) => {
                    return self.judge.fail(format!("the cache device was refused: {why}"));
                }
            }
        }
        for volume in 0..self.backing.len() {
            let mode = self.modes[volume];
            self.note_mode(volume, mode);
            let spec = self.config.spec(volume, mode, self.backing[volume].info.clone());
            if let Err(error) = self.engine(volume).add_volume(&spec) {
                return self.judge.fail(format!("volume {volume} was refused: {error}"));
            }
            self.kick(volume);
            self.wait_for(&Event::Attached { volume: id_of(volume) });
        }
        self.present();
        self.serving = true;
    }

    fn present(&mut self) {
        let now = Instant(self.now);
        for subsystem in &self.subsystems {
            let (nqn, home) = (subsystem.nqn.clone(), subsystem.home);
            let shard = &mut self.reactors[home].shard;
            let config = SubsystemConfig { nqn, serial: "1".to_owned(), hosts: HostAccess::Any };
            let mut shown = shard.target.add_subsystem(config).map_err(|e| e.to_string());
            for (nsid, volume) in (1u32..).zip(&subsystem.volumes) {
                let of = self.config.volumes[*volume];
                let lives = self.homes[*volume];
                if lives != home {
                    shard.route(id_of(*volume), u32::try_from(lives).unwrap_or(0));
                }
                let id = uuid(u8::try_from(*volume).unwrap_or(0) + 1);
                let namespace = NamespaceConfig {
                    nsid,
                    volume: id_of(*volume),
                    blocks: of.size / u64::from(of.unit),
                    block_size: BlockSize::from_bytes(of.unit).unwrap_or(BlockSize::B512),
                    uuid: id,
                    nguid: id.0,
                    volatile_write_cache: self.config.volatile,
                    read_only: false,
                    ana: AnaState::Optimized,
                    optimal_io: 4096,
                };
                let added = shard.target.add_namespace(&subsystem.nqn, namespace, now);
                shown = shown.and(added.map_err(|e| e.to_string()));
            }
            if let Err(error) = shown {
                self.judge.fail(format!("{} cannot be shown: {error}", subsystem.nqn));
            }
        }
    }

    fn note_mode(&mut self, volume: usize, mode: CacheMode) {
        self.bypassed[volume] |= matches!(mode, CacheMode::PassThrough | CacheMode::WriteAround);
    }

    /// The reactor of a volume looks at what control has set going.
    fn kick(&mut self, volume: usize) {
        let home = self.homes[volume];
        self.reactors[home].wake();
        self.poll(home);
    }

    /// Runs until an event is seen (and takes it).
    pub(super) fn wait_for(&mut self, event: &Event) {
        self.until("an event did not come", |world| {
            let at = world.events.iter().position(|seen| seen == event);
            at.map(|at| world.events.remove(at)).is_some()
        });
    }

    /// Begins a mode switch, unless it is refused now.
    pub fn set_mode(&mut self, volume: usize, mode: CacheMode) {
        self.judge.line(|| format!("mode   vol{volume} {mode:?}"));
        if self.engine(volume).set_mode(id_of(volume), mode).is_ok() {
            self.modes[volume] = mode;
            self.note_mode(volume, mode);
        }
        self.kick(volume);
    }

    /// Asks for a drain; [`Event::Drained`] says when it is over.
    pub fn drain(&mut self, volume: usize) {
        self.judge.line(|| format!("drain  vol{volume}"));
        let _ = self.engine(volume).drain(id_of(volume));
        self.kick(volume);
    }

    /// A clean stop, as the daemon's: sockets are not read any more, each reactor waits for its own
    /// commands, then its engine stops; when all have, the sockets close. Then a new start.
    pub fn restart(&mut self) {
        if self.failed() || self.cache_failed {
            return;
        }
        self.judge.line(|| "stop".to_owned());
        self.judge.stopped = true;
        self.serving = false;
        let until = self.now + STOP_PATIENCE;
        let mut stopping = [false; 2];
        self.until("the node does not stop", |world| {
            for (r, begun) in stopping.iter_mut().enumerate() {
                let reactor = &mut world.reactors[r];
                let over = world.now >= until || reactor.shard.target.outstanding() == 0;
                if over && !*begun {
                    *begun = true;
                    if let Some(engine) = reactor.shard.engine(0) {
                        engine.stop();
                    }
                    reactor.wake();
                }
            }
            world.reactors.iter().all(|reactor| reactor.stopped)
        });
        if self.now >= until {
            self.judge.fail("a stop waited for commands that did not end".to_owned());
        }
        self.until("devices do not end", |world| {
            let caches = world.reactors.iter().map(|reactor| &reactor.cache);
            caches.chain(&world.backing).all(|disk| disk.in_flight() == 0)
        });
        let ids: Vec<u32> = self.links.keys().copied().collect();
        for id in ids {
            if let Some(link) = self.links.get_mut(&id) {
                link.end = End::Gone;
                link.blocked = false;
            }
            self.close_link(id);
        }
        self.events.clear();
        if !self.failed() {
            self.start();
        }
    }

    /// The process dies, or all loses power; then a new start, and everything is looked at before hosts
    /// come back.
    pub fn crash(&mut self, power: bool) {
        // Some of what was sent arrives: acknowledgements must hold.
        let ids: Vec<u32> = self.links.keys().copied().collect();
        for id in ids {
            while self.rng.one_in(2)
                && self.links.get(&id).is_some_and(|link| link.open && link.down.next() != u64::MAX)
            {
                if let Some(link) = self.links.get(&id) {
                    self.now = self.now.max(link.down.next());
                    self.judge.now = self.now;
                }
                self.host_receive(id);
            }
        }
        self.judge.crashed(power, self.config.volatile);
        for reactor in &mut self.reactors {
            reactor.cache.crash(power);
            reactor.pool.dry(0);
            reactor.forget(self.now);
        }
        self.backing.iter_mut().for_each(|disk| disk.crash(power));
        self.links.clear();
        self.now += 1_000_000;
        for host in &mut self.hosts {
            host.forget(self.now + self.rng.pick(&[100_000, 20_000_000]));
        }
        self.events.clear();
        self.start();
        self.serving = false;
        if !self.failed() {
            self.look_at_all(power);
        }
        self.serving = true;
    }

    /// Something is on its way to a host while a cache device has operations under way.
    pub fn answers_early(&self) -> bool {
        self.reactors.iter().any(|reactor| reactor.cache.in_flight() > 0)
            && self.links.values().any(|link| link.open && !link.down.is_empty())
    }

    /// A connection breaks: either end learns of it some time.
    pub fn cut(&mut self, pick: usize) {
        let Some(id) = self.links.keys().nth(pick % self.links.len().max(1)).copied() else {
            return;
        };
        self.judge.counts.network += 1;
        let Some(link) = self.links.get_mut(&id) else { return };
        let (host, queue) = (link.host, link.queue);
        let late = |rng: &mut crate::rng::Rng| rng.pick(&[10_000, 3_000_000, 700_000_000]);
        let (up, down) = (late(&mut self.rng), late(&mut self.rng));
        link.up.cut(self.now + up, &mut self.rng);
        link.down.cut(self.now + down, &mut self.rng);
        self.judge.line(|| format!("cut    queue {queue} of host{host}"));
    }

    /// Nothing passes between a host and the node for a while.
    pub fn stall(&mut self, h: usize, time: u64) {
        self.judge.counts.network += 1;
        self.judge.line(|| format!("stall  host{h} for {} µs", time / 1000));
        for link in self.links.values_mut().filter(|link| link.host == h) {
            link.up.stall(self.now + time);
            link.down.stall(self.now + time);
        }
    }

    /// A reactor does nothing for a while.
    pub fn sleep(&mut self, r: usize, time: u64) {
        self.judge.counts.network += 1;
        self.judge.line(|| format!("sleep  reactor {r} for {} µs", time / 1000));
        self.reactors[r].asleep_until = self.now + time;
    }

    /// A host leaves of itself.
    pub fn leave(&mut self, h: usize) {
        if self.hosts[h].controller.is_some() {
            self.lose(h, &Error::Closed);
        }
    }

    /// Waits until every host is connected and no connection is broken any more; from then on no host
    /// is refused or loses its association.
    pub fn settle_down(&mut self) {
        self.until("hosts do not connect", |world| {
            let ready = |host: &Host| host.controller.as_ref().is_some_and(Controller::is_ready);
            world.hosts.iter().all(ready)
                && world.links.values().all(|l| l.open && !l.up.is_closed() && !l.down.is_closed())
        });
        self.quiet = true;
    }

    /// All faults of devices end, other than those that never do.
    pub fn calm(&mut self) {
        let gone = self.cache_failed;
        let calm = |disk: &mut Device| disk.faults = Faults::default();
        self.backing.iter_mut().for_each(calm);
        for reactor in &mut self.reactors {
            if !gone {
                calm(&mut reactor.cache);
            }
            reactor.pool.dry(0);
        }
        for link in self.links.values_mut() {
            link.up.flow(self.now);
            link.down.flow(self.now);
        }
    }
}
