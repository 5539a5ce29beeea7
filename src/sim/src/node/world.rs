//! The node, its hosts and what is between them; time goes on to the next thing that happens.

use super::host::{Host, Place};
use super::judge::Judge;
use super::link::{Link, Net};
use super::reactor::Reactor;
use crate::config::{Config, MODES, VolumeConfig};
use crate::device::{Device, Injected};
use crate::rng::Rng;
use forebay_cache::engine::{CacheMode, Event};
use forebay_io::Duration;
use forebay_nvmf::initiator::HostConfig;
use forebay_nvmf::initiator::admin::Identity;
use forebay_wire::Nqn;
use forebay_wire::tcp::Digests;
use std::collections::BTreeMap;

/// Steps that anything waited for may take.
pub(super) const PATIENCE: u32 = 100_000;
/// Steps of a whole run.
const STEPS_MAX: u64 = 1_000_000;
/// The longest that nothing is looked at.
const IDLE: u64 = 10_000_000;

/// A subsystem: its name, the reactor that its connections live on, its volumes by namespace.
#[derive(Clone, Debug)]
pub struct Subsystem {
    /// Its name.
    pub nqn: Nqn,
    /// The reactor.
    pub home: usize,
    /// Its volumes; the first is namespace 1.
    pub volumes: Vec<usize>,
}

/// A name that is known to be right.
fn name(text: &str) -> Nqn {
    text.parse().expect("a well-formed name")
}

/// How the host of this number connects.
fn host_of(n: u8, subnqn: Nqn, rng: &mut Rng) -> HostConfig {
    let hostnqn = name(&format!("nqn.2014-08.org.nvmexpress:uuid:{n}"));
    HostConfig {
        identity: Identity { hostnqn, hostid: [n; 16], subnqn },
        nsid: 1,
        queues: 1 + u16::try_from(rng.below(4)).unwrap_or(0),
        depth: rng.pick(&[2, 5, 32]),
        digests: Digests { header: rng.one_in(2), data: rng.one_in(2) },
        no_sq_flow: rng.one_in(2),
        keep_alive: Duration::from_millis(rng.pick(&[0, 1000, 3000])),
        setup_timeout: Duration::from_secs(2),
        io_timeout: Duration::from_millis(rng.pick(&[800, 5000, 30_000])),
    }
}

/// What a seed says of a world.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Engines and volumes.
    pub config: Config,
    /// By volume, the reactor that serves it.
    pub homes: Vec<usize>,
    /// The subsystems.
    pub subsystems: Vec<Subsystem>,
    /// The network.
    pub net: Net,
    /// Hosts: subsystem, configuration, whether it asks anew for what is lost.
    pub hosts: Vec<(usize, HostConfig, bool)>,
    /// Longest time of a message between reactors.
    pub mail: u64,
    /// One message in so many finds the mailbox full.
    pub full: u64,
}

impl Plan {
    /// The world of a seed.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 40);
        let mut config = Config::of_seed(seed);
        let single = rng.one_in(2);
        config.volumes = (0..2 + usize::from(single))
            .map(|_| VolumeConfig {
                size: (64 << 10) * (1 + rng.below(8)),
                unit: rng.pick(&[512, 4096]),
                mode: MODES[rng.index(6) % 4],
            })
            .collect();
        let last = rng.index(2);
        let homes = vec![0, 1, last];
        let mut subsystems = vec![Subsystem {
            nqn: name("nqn.2026-01.io.forebay:group"),
            home: 0,
            volumes: vec![0, 1],
        }];
        let mut uses = vec![0, 0];
        if single {
            let nqn = name("nqn.2026-01.io.forebay:single");
            subsystems.push(Subsystem { nqn, home: last, volumes: vec![2] });
            uses.push(1);
        }
        uses.extend(rng.one_in(3).then_some(0));
        let hosts = (1u8..).zip(uses).map(|(n, subsystem)| {
            // The third is the first on another subsystem.
            let n = if subsystem == 1 { 1 } else { n };
            let config = host_of(n, subsystems[subsystem].nqn.clone(), &mut rng);
            (subsystem, config, rng.below(3) > 0)
        });
        let hosts = hosts.collect();
        Self {
            hosts,
            config,
            homes,
            subsystems,
            net: Net {
                delay: rng.pick(&[(5_000, 30_000), (1_000, 2_000), (10_000, 2_000_000)]),
                piece: rng.pick(&[1448, 16 << 10, 256 << 10]),
                tiny: rng.pick(&[0, 3, 30]),
                window: rng.pick(&[3 << 10, 64 << 10, 1 << 20]),
            },
            mail: rng.pick(&[2_000, 20_000, 1_000_000]),
            full: rng.pick(&[0, 3, 20]),
        }
    }
}

/// See the module's description.
pub struct World {
    /// Engines and volumes.
    pub config: Config,
    /// The subsystems.
    pub subsystems: Vec<Subsystem>,
    /// By volume, the reactor that serves it.
    pub homes: Vec<usize>,
    /// By volume, where hosts find it.
    pub places: Vec<Place>,
    /// The reactors.
    pub reactors: Vec<Reactor>,
    /// The backing devices, by volume.
    pub backing: Vec<Device>,
    /// Where each volume's mode goes.
    pub modes: Vec<CacheMode>,
    /// Volumes whose writes have bypassed the log.
    pub(super) bypassed: Vec<bool>,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The connections.
    pub links: BTreeMap<u32, Link>,
    pub(super) next_link: u32,
    /// How the network is.
    pub net: Net,
    pub(super) mail: u64,
    pub(super) full: u64,
    /// What was asked and told.
    pub judge: Judge,
    /// Virtual time in nanoseconds.
    pub now: u64,
    pub(super) rng: Rng,
    steps: u64,
    /// Events of the engines that nothing has waited for yet.
    pub(super) events: Vec<Event>,
    /// A cache device counts as failed.
    pub cache_failed: bool,
    /// Sockets are read: not while the node stops.
    pub(super) serving: bool,
    /// Neither network nor node misbehave any more.
    pub quiet: bool,
    /// A read of the checkers' own, and its end.
    pub(super) raw: Option<(u64, Option<super::check::RawEnd>)>,
    pub(super) next_raw: u64,
}

impl World {
    /// A world that serves, with hosts on their way.
    #[must_use]
    pub fn new(plan: Plan, lines: bool) -> Self {
        let Plan { config, homes, subsystems, net, hosts, mail, full } = plan;
        let seed = config.seed;
        let backing = (0..config.volumes.len()).map(|n| {
            let mut disk = Device::new(config.backing_info(n), Rng::new(seed, 10 + n as u64));
            disk.latency = config.backing_latency;
            disk
        });
        let place = |volume: usize| {
            let of = |s: &Subsystem| s.volumes.iter().position(|v| *v == volume);
            let found = subsystems.iter().enumerate().find_map(|(at, s)| Some((at, of(s)?)));
            let (subsystem, nsid) = found.expect("each volume is in a subsystem");
            let unit = u64::from(config.volumes[volume].unit);
            Place { subsystem, nsid: u32::try_from(nsid).unwrap_or(0) + 1, unit }
        };
        let mut world = Self {
            backing: backing.collect(),
            places: (0..config.volumes.len()).map(place).collect(),
            modes: config.volumes.iter().map(|v| v.mode).collect(),
            bypassed: vec![false; config.volumes.len()],
            reactors: (0..2).map(|n| Reactor::new(&config, n)).collect(),
            judge: Judge::new(&config, hosts.len(), lines),
            hosts: hosts
                .into_iter()
                .map(|(at, config, keeps)| Host::new(at, config, keeps))
                .collect(),
            links: BTreeMap::new(),
            next_link: 1,
            now: 1_000_000,
            rng: Rng::new(seed, 41),
            steps: 0,
            events: Vec::new(),
            cache_failed: false,
            serving: true,
            quiet: false,
            raw: None,
            next_raw: 1,
            config,
            subsystems,
            homes,
            net,
            mail,
            full,
        };
        world.start();
        world
    }

    /// The engine that serves a volume.
    ///
    /// # Panics
    /// Before the start.
    pub fn engine(
        &mut self,
        volume: usize,
    ) -> &mut forebay_cache::engine::Engine<crate::buffer::SimBuf> {
        let home = self.homes[volume];
        self.reactors[home].shard.engine(0).expect("the node has started")
    }

    /// Whether something is wrong.
    #[must_use]
    pub const fn failed(&self) -> bool {
        self.judge.violation.is_some()
    }

    /// Time goes on to the next thing that happens.
    pub fn step(&mut self) {
        self.steps += 1;
        if self.steps > STEPS_MAX && !self.failed() {
            self.stuck("the run does not end");
        }
        let mut next = self.now + IDLE;
        for r in 0..self.reactors.len() {
            next = next.min(self.due(r));
        }
        for h in 0..self.hosts.len() {
            next = next.min(self.host_due(h));
        }
        let open = self.links.values().filter(|link| link.open);
        next = next.min(open.map(|link| link.down.next()).min().unwrap_or(u64::MAX));
        // A poll costs at least two microseconds, and several things may happen in one.
        self.now = next.max(self.now + 2_000) + self.rng.below(3) * 3_000;
        self.judge.now = self.now;
        let first = self.rng.index(2);
        for r in [first, 1 - first] {
            if self.due(r) <= self.now {
                self.poll(r);
            }
        }
        self.arrive();
        for h in 0..self.hosts.len() {
            if self.host_due(h) <= self.now {
                self.host_poll(h);
            }
        }
        self.check_bounds();
    }

    /// When host `h` has something to do.
    fn host_due(&self, h: usize) -> u64 {
        let room =
            |link: &Link| link.host == h && link.open && link.full && link.up.room(&self.net) > 0;
        if self.links.values().any(room) { 0 } else { self.hosts[h].due() }
    }

    /// What has arrived at the hosts.
    fn arrive(&mut self) {
        let now = self.now;
        let due = |link: &Link| link.open && link.down.next() <= now;
        let ids: Vec<u32> =
            self.links.iter().filter(|(_, link)| due(link)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.host_receive(id));
    }

    /// Polls until `done`; what does not come is a violation.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..PATIENCE {
            if self.failed() || done(self) {
                return;
            }
            self.step();
        }
        self.stuck(what);
    }

    fn stuck(&mut self, what: &str) {
        let asked: Vec<_> = self.judge.asked.iter().take(4).collect();
        let shards: Vec<_> = self.reactors.iter().map(|r| r.shard.target.outstanding()).collect();
        let controllers = self.reactors.iter().flat_map(|r| r.shard.target.controllers());
        let controllers: Vec<_> =
            controllers.map(|c| (c.cntlid, c.ready, c.held, c.queues.len())).collect();
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .map(|host| (host.controller.is_some(), host.waiting.len(), host.in_flight()))
            .collect();
        let volumes: Vec<_> = (0..self.backing.len())
            .map(|n| {
                let id = crate::config::id_of(n);
                let home = self.homes[n];
                self.reactors[home].shard.engine(0).and_then(|engine| engine.volume_stats(id))
            })
            .collect();
        let text = format!(
            "{what}; under way {asked:?}; in volumes {shards:?}; controllers {controllers:?}; hosts {hosts:?}; {volumes:?}"
        );
        self.judge.fail(text);
    }

    /// Bounds that hold at every moment.
    fn check_bounds(&mut self) {
        /// The logs' batches and spare ones, reads of requests and destage, data of hosts.
        const BYTES_MAX: u64 = 64 << 20;
        /// Messages that the commands of all hosts' queues can stand for, many times.
        const MAIL_MAX: usize = 4096;
        let tier = u64::from(self.config.tier_pages) * 4096;
        for reactor in &mut self.reactors {
            let (live, _) = reactor.pool.bytes();
            if live > BYTES_MAX + tier {
                self.judge.fail(format!("{live} bytes in buffers of one reactor"));
            }
            if reactor.inbox.len() > MAIL_MAX {
                self.judge.fail(format!("{} messages in a mailbox", reactor.inbox.len()));
            }
            let stale = reactor.shard.target.stats().stale_completions;
            if stale > 0 {
                self.judge.fail(format!("{stale} ends of requests that nobody waits for"));
            }
        }
        let caches = self.reactors.iter_mut().map(|reactor| &mut reactor.cache);
        for disk in caches.chain(&mut self.backing) {
            if let Some(what) = disk.complaints.pop() {
                self.judge.fail(format!("a device was asked for what it cannot do: {what}"));
            }
        }
        for (n, disk) in self.backing.iter_mut().enumerate() {
            if core::mem::take(&mut disk.overlaps) > 0 {
                self.judge.fail(format!("overlapping writes of the backing device of volume {n}"));
            }
        }
    }

    /// Faults injected so far.
    #[must_use]
    pub fn injected(&self) -> Injected {
        let mut all = Injected::default();
        let caches = self.reactors.iter().map(|reactor| &reactor.cache);
        for disk in caches.chain(&self.backing) {
            all.errors += disk.injected.errors;
            all.lies += disk.injected.lies;
            all.crashed += disk.injected.crashed;
        }
        all.errors += self.reactors.iter().map(|reactor| reactor.pool.refused()).sum::<u64>();
        all
    }
}
