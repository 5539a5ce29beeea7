//! Crash images: of a recorded history every moment at which a device changed is taken as the moment
//! of a crash. What was certainly on the media is there; of what was not, all subsets where they are
//! few, and samples where they are many, whole or torn at 512 bytes. On each image the production
//! recovery runs, and the oracle of that moment judges everything that can be read, and the backing
//! device wherever the cache has no newer copy.

use crate::boot::{Boot, boot};
use crate::config::Config;
use crate::device::{Device, Touch, overlay, torn};
use crate::history::Moment;
use crate::medium::Medium;
use crate::oracle::Oracle;
use crate::rng::Rng;
use crate::world::World;
use forebay_cache::engine::CacheMode;
use std::rc::Rc;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Images of one moment at most.
    pub per_cut: usize,
    /// One moment in this many.
    pub stride: u64,
    /// One image in this many is also recovered with the recovery interrupted.
    pub interrupt: u64,
    /// One image in this many is also destaged, and the backing device judged alone.
    pub drain: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageCounts {
    /// Histories.
    pub histories: u64,
    /// Moments.
    pub cuts: u64,
    /// Images recovered and judged.
    pub images: u64,
    /// Of those, with torn writes.
    pub torn: u64,
    /// Recoveries that were interrupted and begun again.
    pub interrupted: u64,
    /// Images that were drained.
    pub drained: u64,
}

impl ImageCounts {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.cuts += other.cuts;
        self.images += other.images;
        self.torn += other.torn;
        self.interrupted += other.interrupted;
        self.drained += other.drained;
    }
}

/// What is wrong with an image.
#[derive(Clone, Debug)]
pub struct BadImage {
    /// The moment.
    pub cut: usize,
    /// The image's number there.
    pub image: usize,
    /// In words.
    pub what: String,
}

/// One device, as far as it is certain.
#[derive(Clone)]
struct Replica {
    base: Medium,
    volatile: bool,
    flying: Vec<(u64, u64, Rc<[u8]>, bool)>,
    loose: Vec<(u64, u64, Rc<[u8]>)>,
    completed: u64,
}

impl Replica {
    fn new(device: &Device) -> Self {
        Self {
            base: device.bytes.clone(),
            volatile: device.info.volatile_write_cache,
            flying: Vec::new(),
            loose: Vec::new(),
            completed: device.completed(),
        }
    }

    fn touch(&mut self, touch: &Touch) {
        match touch {
            Touch::Submit { id, offset, data, fua } => {
                self.flying.push((*id, *offset, Rc::clone(data), *fua));
            }
            Touch::Done { id } => {
                let Some(at) = self.flying.iter().position(|f| f.0 == *id) else { return };
                let (_, offset, data, fua) = self.flying.remove(at);
                let number = self.completed;
                self.completed += 1;
                if self.volatile && !fua {
                    self.loose.push((number, offset, data));
                } else {
                    self.base.write(offset, &data);
                    // Earlier writes of the same place must not come back over it.
                    for loose in &mut self.loose {
                        overlay(&mut loose.2, loose.1, offset, &data);
                    }
                }
            }
            Touch::Failed { id } => self.flying.retain(|f| f.0 != *id),
            Touch::Flushed { upto } => {
                for (_, offset, data) in self.loose.iter().filter(|l| l.0 < *upto) {
                    self.base.write(*offset, data);
                }
                self.loose.retain(|l| l.0 >= *upto);
            }
        }
    }

    /// What may or may not be on the medium, in the order of its time. With a process that dies
    /// alone, what completed is there.
    fn uncertain(&self, power: bool) -> Vec<(u64, Rc<[u8]>)> {
        let loose = self.loose.iter().filter(|_| power).map(|l| (l.1, Rc::clone(&l.2)));
        loose.chain(self.flying.iter().map(|f| (f.1, Rc::clone(&f.2)))).collect()
    }

    fn image(&self, power: bool) -> Medium {
        let mut image = self.base.clone();
        for (_, offset, data) in self.loose.iter().filter(|_| !power) {
            image.write(*offset, data);
        }
        image
    }
}

/// A history to be looked at.
pub struct History {
    config: Config,
    replicas: Vec<Replica>,
    oracles: Vec<Oracle>,
    modes: Vec<CacheMode>,
    bypassed: Vec<bool>,
    moments: Vec<Moment>,
    tick: u64,
}

impl History {
    /// Begins to record a world that is calm.
    pub fn begin(world: &mut World) -> Self {
        world.calm();
        let devices = core::iter::once(&world.cache).chain(&world.backing);
        let history = Self {
            config: world.config.clone(),
            replicas: devices.map(Replica::new).collect(),
            oracles: world.oracles.clone(),
            modes: world.modes.clone(),
            bypassed: (0..world.modes.len()).map(|n| world.has_bypassed(n)).collect(),
            moments: Vec::new(),
            tick: 0,
        };
        world.record();
        history
    }

    /// Ends the record.
    pub fn end(&mut self, world: &mut World) {
        self.moments = world.moments();
        self.tick = world.tick() + 1;
    }

    /// Takes every moment as the moment of a crash. `only`: this moment and image alone.
    ///
    /// # Errors
    /// The first bad image.
    pub fn explore(
        mut self,
        effort: &Effort,
        rng: &mut Rng,
        only: Option<(usize, usize)>,
        counts: &mut ImageCounts,
    ) -> Result<(), BadImage> {
        counts.histories += 1;
        let moments = std::mem::take(&mut self.moments);
        // Each moment has chance of its own, so that one of them can be looked at alone.
        let base = rng.draw();
        let phase = rng.below(effort.stride.max(1));
        let mut nth = 0;
        for (cut, moment) in moments.iter().enumerate() {
            // Before a write completes, or is made durable, it may still be missing: after that
            // fewer images are possible. What is submitted meanwhile only adds to them.
            let shrinks = match moment {
                Moment::Cache(touch) | Moment::Backing(_, touch) => {
                    !matches!(touch, Touch::Submit { .. })
                }
                _ => false,
            };
            if shrinks {
                nth += 1;
                let chosen = nth % effort.stride.max(1) == phase;
                if only.map_or(chosen, |only| only.0 == cut) {
                    self.cut(cut, effort, &mut Rng::new(base, cut as u64), only, counts)?;
                }
            }
            self.go_on(moment).map_err(|what| BadImage { cut, image: 0, what })?;
        }
        if only.is_none_or(|only| only.0 == moments.len()) {
            let mut rng = Rng::new(base, moments.len() as u64);
            self.cut(moments.len(), effort, &mut rng, only, counts)?;
        }
        Ok(())
    }

    fn go_on(&mut self, moment: &Moment) -> Result<(), String> {
        match moment {
            Moment::Cache(touch) => self.replicas[0].touch(touch),
            Moment::Backing(n, touch) => self.replicas[n + 1].touch(touch),
            Moment::Host(host) => return host.tell(&mut self.oracles),
            Moment::Mode(n, mode) => {
                self.modes[*n] = *mode;
                self.bypassed[*n] |=
                    matches!(mode, CacheMode::PassThrough | CacheMode::WriteAround);
            }
        }
        Ok(())
    }

    /// All images of one moment.
    fn cut(
        &self,
        cut: usize,
        effort: &Effort,
        rng: &mut Rng,
        only: Option<(usize, usize)>,
        counts: &mut ImageCounts,
    ) -> Result<(), BadImage> {
        counts.cuts += 1;
        let uncertain: Vec<Vec<(u64, Rc<[u8]>)>> =
            self.replicas.iter().map(|replica| replica.uncertain(true)).collect();
        let total: usize = uncertain.iter().map(Vec::len).sum();
        let exhaustive = total < 16 && (1usize << total) <= effort.per_cut / 2 + 1;
        // What matters most is tried first: the subsets, then torn ones, then a dead process.
        let subsets = if exhaustive { 1 << total } else { effort.per_cut / 2 };
        let tears =
            if total == 0 { 0 } else { effort.per_cut.saturating_sub(subsets).min(4 * total) };
        let dies = usize::from(self.config.volatile && total > 0);
        for image in 0..subsets + tears + dies {
            let power = image < subsets + tears;
            let mut media = Vec::new();
            let mut bit = 0;
            for replica in &self.replicas {
                let mut medium = replica.image(power);
                for (offset, data) in replica.uncertain(power) {
                    let choice = if image < subsets {
                        let there =
                            if exhaustive { image >> bit & 1 == 1 } else { rng.below(2) == 1 };
                        u64::from(there)
                    } else {
                        rng.below(5)
                    };
                    for (from, to) in torn(data.len(), choice, rng) {
                        medium.write(offset + from as u64, &data[from..to]);
                    }
                    bit += 1;
                }
                media.push(medium);
            }
            let (interrupt, drain) = (rng.one_in(effort.interrupt), rng.one_in(effort.drain));
            let seed = rng.draw();
            if only.is_some_and(|only| only.1 != image) {
                continue;
            }
            counts.images += 1;
            counts.torn += u64::from(image >= subsets && power);
            self.judge(&media, power, (interrupt, drain), seed, counts)
                .map_err(|what| BadImage { cut, image, what })?;
        }
        Ok(())
    }

    fn world(&self, media: &[Medium], power: bool, seed: u64) -> World {
        let mut config = self.config.clone();
        config.seed = seed;
        (config.cache_latency, config.backing_latency) = ((1_000, 3_000), (1_000, 3_000));
        config.mail = 0;
        let device =
            |n: usize, info| Device::with(info, media[n].clone(), Rng::new(seed, n as u64));
        let cache = device(0, config.cache_info());
        let backing =
            (0..self.modes.len()).map(|n| device(n + 1, config.backing_info(n))).collect();
        let mut oracles = self.oracles.clone();
        for oracle in &mut oracles {
            oracle.crashed(power);
        }
        let mut world = World::on(config, cache, backing, oracles, self.modes.clone(), false);
        for (n, bypassed) in self.bypassed.iter().enumerate() {
            if *bypassed {
                world.set_bypassed(n);
            }
        }
        world
    }

    /// Starts on an image and looks at everything.
    fn judge(
        &self,
        media: &[Medium],
        power: bool,
        (interrupt, drain): (bool, bool),
        seed: u64,
        counts: &mut ImageCounts,
    ) -> Result<(), String> {
        let mut world = self.world(media, power, seed);
        world.start();
        let found = self.look(&mut world)?;
        if drain {
            counts.drained += 1;
            world.check_backing();
            world.violation.take().map_or(Ok(()), Err)?;
        }
        if interrupt {
            let mut rng = Rng::new(seed, 77);
            let mut again = media.to_vec();
            // Up to three times in a row.
            for _ in 0..1 + rng.below(3) {
                let device = Device::with(self.config.cache_info(), again[0].clone(), rng.clone());
                let mut device = device;
                let cut = rng.below(7);
                match boot(&mut device, Some(cut), self.config.plant) {
                    Boot::Cut => device.crash(true),
                    Boot::Up(_) => {}
                    Boot::Refused(why) => return Err(format!("refused in recovery: {why}")),
                }
                again[0] = device.bytes;
                rng.draw();
            }
            counts.interrupted += 1;
            let mut world = self.world(&again, power, seed);
            world.start();
            let second = self.look(&mut world).map_err(|what| format!("recovery again: {what}"))?;
            if found != second {
                return Err("a recovery that was interrupted found something else".to_owned());
            }
        }
        Ok(())
    }

    fn look(&self, world: &mut World) -> Result<Vec<(u64, Vec<u8>)>, String> {
        let mut all = Vec::new();
        for volume in 0..self.modes.len() {
            if let Some(what) = world.violation.take() {
                return Err(what);
            }
            let found = world.read_all(volume);
            if let Some(what) = world.violation.take() {
                return Err(what);
            }
            // (After a process that died alone a later power loss may undo what a volatile cache held.)
            let lasting = !world.config.volatile;
            for (offset, data) in &found {
                world.oracles[volume].judge(*offset, data, self.tick)?;
                world.oracles[volume].settled(*offset, data, self.tick, lasting);
            }
            world.check_places_at(volume, self.tick + 1);
            if let Some(what) = world.violation.take() {
                return Err(what);
            }
            all.extend(found);
        }
        Ok(all)
    }
}
