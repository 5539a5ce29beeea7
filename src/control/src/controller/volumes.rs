//! Commands on volumes.

use super::{Controller, Inner, VOLUMES_MAX, VolumeChange};
use crate::config::{self, VolumeConfig};
use crate::error::{ControlError, ErrorKind, Result};
use crate::jobs::Work;
use crate::node::{DeviceFault, LbaRange, Located, LostCache};
use crate::stat::NodeStat;
use crate::state::{KeptVolume, State};
use crate::value::{LbaSpan, Mode, joined, without};

impl Controller {
    /// Everything there is to know.
    ///
    /// # Errors
    /// See [`NodeControl::stat`].
    pub fn stat(&self) -> Result<NodeStat> {
        self.node.stat()
    }

    /// How a volume is configured now.
    ///
    /// # Errors
    /// No such volume.
    pub fn volume_config(&self, name: &str) -> Result<VolumeConfig> {
        existing(self.lock().keeper.state(), name).cloned()
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// The name or a device is taken, an ordered journal in another mode, or see
    /// [`NodeControl::create_volume`].
    pub fn create_volume(&self, volume: &VolumeConfig) -> Result<()> {
        let mut inner = self.lock();
        check_journal_mode(volume)?;
        self.create_locked(&mut inner, volume)
    }

    pub(super) fn create_locked(&self, inner: &mut Inner, volume: &VolumeConfig) -> Result<()> {
        check_new(inner, volume)?;
        let before = inner.keeper.state().clone();
        inner.keeper.change(|state| {
            let kept = KeptVolume { now: volume.clone(), file: None };
            state.volumes.insert(volume.name.clone(), kept);
            // The file's volume of this name, if there is one, stays deleted: this is another.
            if inner.file.volumes.iter().any(|other| other.name == volume.name) {
                state.deleted.insert(volume.name.clone());
            }
        })?;
        self.node.create_volume(volume).or_else(|error| {
            inner.keeper.change(|state| *state = before)?;
            Err(error)
        })
    }

    /// Deletes a volume; the job's number.
    ///
    /// # Errors
    /// No such volume, busy, or see [`NodeControl::delete_volume`].
    pub fn delete_volume(&self, name: &str, discard_dirty: bool) -> Result<u64> {
        let mut inner = self.lock();
        existing(inner.keeper.state(), name)?;
        let work = Work::Delete { volume: name.to_owned(), discard_dirty };
        self.begin(&mut inner, work, |_| {})
    }

    /// Switches a volume's mode; the job's number.
    ///
    /// # Errors
    /// No such volume, busy, or see [`NodeControl::set_mode`].
    pub fn set_mode(&self, name: &str, mode: Mode) -> Result<u64> {
        let mut inner = self.lock();
        self.set_mode_locked(&mut inner, name, mode)
    }

    pub(super) fn set_mode_locked(&self, inner: &mut Inner, name: &str, mode: Mode) -> Result<u64> {
        existing(inner.keeper.state(), name)?;
        let work = Work::SetMode { volume: name.to_owned(), mode };
        self.begin(inner, work, |state| {
            if let Some(kept) = state.volumes.get_mut(name) {
                kept.now.mode = mode;
            }
        })
    }

    /// Drains a volume; the job's number.
    ///
    /// # Errors
    /// No such volume, or busy.
    pub fn drain(&self, name: &str) -> Result<u64> {
        let mut inner = self.lock();
        existing(inner.keeper.state(), name)?;
        self.begin(&mut inner, Work::Drain { volume: name.to_owned() }, |_| {})
    }

    /// Scrubs what the cache has of a volume, at most `rate` bytes a second; the job's number.
    ///
    /// # Errors
    /// No such volume, busy with another scrub, or see [`NodeControl::scrub`].
    pub fn scrub(&self, name: &str, rate: u64) -> Result<u64> {
        let mut inner = self.lock();
        existing(inner.keeper.state(), name)?;
        self.begin(&mut inner, Work::Scrub { volume: name.to_owned(), rate }, |_| {})
    }

    /// Pins blocks of a volume: they are fetched and then stay in the cache. The number of the job that
    /// fetches.
    ///
    /// # Errors
    /// No such volume, one that does not cache, too many ranges, busy with fetching others, or see
    /// [`NodeControl::update_volume`]; then nothing changes.
    pub fn pin_volume(&self, name: &str, span: LbaSpan) -> Result<u64> {
        let mut inner = self.lock();
        let before = existing(inner.keeper.state(), name)?.clone();
        if before.mode == Mode::PassThrough {
            let message = format!("volume `{name}` in pass-through keeps nothing in the cache");
            return Err(ControlError::new(ErrorKind::Invalid, message)
                .remedy("switch first: forebay volume set-mode NAME MODE"));
        }
        let mut volume = before.clone();
        volume.pin = joined(before.pin.iter().copied().chain([span]));
        check_pins(&volume)?;
        self.update_locked(&mut inner, &volume)?;
        let work = Work::Pin { volume: name.to_owned() };
        self.begin(&mut inner, work, |_| {}).or_else(|error| {
            self.update_locked(&mut inner, &before)?;
            Err(error)
        })
    }

    /// Lets blocks of a volume go at reclaim again; with `None` all that are pinned. Returns how it is
    /// configured then.
    ///
    /// # Errors
    /// No such volume, none of these blocks is pinned, too many ranges would be left, or see
    /// [`NodeControl::update_volume`].
    pub fn unpin_volume(&self, name: &str, span: Option<LbaSpan>) -> Result<VolumeConfig> {
        let mut inner = self.lock();
        let mut volume = existing(inner.keeper.state(), name)?.clone();
        let pinned = core::mem::take(&mut volume.pin);
        if let Some(span) = span {
            volume.pin = without(&pinned, span);
        }
        if volume.pin == pinned {
            let of = if span.is_some() && !pinned.is_empty() { "this range of " } else { "" };
            let message = format!("no block of {of}volume `{name}` is pinned");
            let error = ControlError::new(ErrorKind::NotFound, message).field("lba");
            let shown: Vec<String> = pinned.iter().map(ToString::to_string).collect();
            return Err(match span {
                Some(span) if !of.is_empty() => error.value(span).accepted(shown.join(", ")),
                _ => error,
            });
        }
        check_pins(&volume)?;
        self.update_locked(&mut inner, &volume)?;
        Ok(volume)
    }

    /// Changes limits of a volume, or gives it an ordered journal. Returns how it is configured then.
    ///
    /// # Errors
    /// No such volume, limits that contradict each other, or see [`NodeControl::update_volume`].
    pub fn set_volume(&self, name: &str, change: &VolumeChange) -> Result<VolumeConfig> {
        let mut inner = self.lock();
        let mut volume = existing(inner.keeper.state(), name)?.clone();
        macro_rules! take {
            ($($key:ident),+) => { $(if change.$key.is_some() { volume.$key = change.$key; })+ };
        }
        take!(
            cache_min,
            cache_max,
            dirty_max,
            dirty_age_max,
            batch_max,
            batch_age_max,
            memory_tier
        );
        if let (Some(min), Some(max)) = (volume.cache_min, volume.cache_max)
            && min > max
        {
            return Err(ControlError::new(
                ErrorKind::Invalid,
                format!("volume `{name}` would have a smallest cache above its largest"),
            )
            .field("cache_min")
            .value(min)
            .accepted(format!("at most cache_max = {max}")));
        }
        if let Some(journal) = change.ordered_journal.clone() {
            give_journal(&inner, &mut volume, journal)?;
        }
        self.update_locked(&mut inner, &volume)?;
        Ok(volume)
    }

    pub(super) fn update_locked(&self, inner: &mut Inner, volume: &VolumeConfig) -> Result<()> {
        let before = existing(inner.keeper.state(), &volume.name)?.clone();
        if before == *volume {
            return Ok(());
        }
        let put = |inner: &mut Inner, volume: &VolumeConfig| {
            inner.keeper.change(|state| {
                if let Some(kept) = state.volumes.get_mut(&volume.name) {
                    kept.now = volume.clone();
                }
            })
        };
        put(inner, volume)?;
        self.node.update_volume(volume).or_else(|error| {
            put(inner, &before)?;
            Err(error)
        })
    }

    /// Which copy is current, and where.
    ///
    /// # Errors
    /// See [`NodeControl::locate`].
    pub fn locate(&self, name: &str, range: LbaRange, pieces_max: usize) -> Result<Vec<Located>> {
        self.node.locate(name, range, pieces_max)
    }

    /// What went with a lost cache; with `commit` the volume goes on without it.
    ///
    /// # Errors
    /// See [`NodeControl::recover_lost_cache`].
    pub fn recover_lost_cache(&self, name: &str, commit: bool) -> Result<LostCache> {
        let inner = self.lock();
        existing(inner.keeper.state(), name)?;
        self.node.recover_lost_cache(name, commit)
    }

    /// Injects a fault.
    ///
    /// # Errors
    /// See [`NodeControl::inject_fault`].
    pub fn inject_fault(&self, fault: &DeviceFault) -> Result<()> {
        self.node.inject_fault(fault)
    }
}

fn check_pins(volume: &VolumeConfig) -> Result<()> {
    if volume.pin.len() <= config::PINS_MAX {
        return Ok(());
    }
    let message = format!("volume `{}` would have {} pinned ranges", volume.name, volume.pin.len());
    Err(ControlError::new(ErrorKind::Invalid, message)
        .field("pin")
        .accepted(format!("at most {} that do not touch", config::PINS_MAX))
        .remedy("pin larger ranges"))
}

pub(super) fn existing<'s>(state: &'s State, name: &str) -> Result<&'s VolumeConfig> {
    match state.volumes.get(name) {
        Some(kept) => Ok(&kept.now),
        None => {
            let error = ControlError::not_found("volume", name);
            let names: Vec<&str> = state.volumes.keys().map(String::as_str).collect();
            Err(match crate::value::nearest(name, &names) {
                Some(near) => error.remedy(format!("did you mean `{near}`?")),
                None => error,
            })
        }
    }
}

/// Writes a volume's first ordered journal into its configuration.
fn give_journal(inner: &Inner, volume: &mut VolumeConfig, journal: String) -> Result<()> {
    if volume.ordered_journal.as_ref() == Some(&journal) {
        return Ok(());
    }
    if let Some(there) = &volume.ordered_journal {
        let message = format!("volume `{}` has an ordered journal: {there}", volume.name);
        return Err(ControlError::new(ErrorKind::Exists, message)
            .field("ordered_journal")
            .value(journal)
            .remedy(
                "name another one in the configuration file and start the node again: what is dirty is \
                 in the cache",
            ));
    }
    volume.ordered_journal = Some(journal);
    check_journal_mode(volume)?;
    let kept = inner.keeper.state().volumes.values().map(|kept| &kept.now);
    let others: Vec<VolumeConfig> = kept.filter(|v| v.name != volume.name).cloned().collect();
    config::check_volume(&inner.file, &others, volume)
}

/// A journal is asked for by command where it is used.
fn check_journal_mode(volume: &VolumeConfig) -> Result<()> {
    match &volume.ordered_journal {
        Some(journal) if volume.mode != Mode::WriteBackOrdered => {
            let message = format!(
                "volume `{}` in {} has no use for an ordered journal",
                volume.name, volume.mode
            );
            Err(ControlError::new(ErrorKind::Invalid, message)
                .field("ordered_journal")
                .value(journal)
                .accepted("only with the mode write-back-ordered")
                .remedy("switch first: forebay volume set-mode NAME write-back-ordered"))
        }
        _ => Ok(()),
    }
}

/// What a new volume must not share with those there are.
fn check_new(inner: &Inner, volume: &VolumeConfig) -> Result<()> {
    let state = inner.keeper.state();
    if state.volumes.contains_key(&volume.name) {
        return Err(ControlError::new(
            ErrorKind::Exists,
            format!("there is a volume `{}` already", volume.name),
        )
        .field("name")
        .remedy("choose another name, or see `forebay volume show`"));
    }
    if state.volumes.len() >= VOLUMES_MAX {
        return Err(ControlError::new(
            ErrorKind::Busy,
            format!("there are {VOLUMES_MAX} volumes, as many as a node can have"),
        ));
    }
    let others: Vec<VolumeConfig> = state.volumes.values().map(|kept| kept.now.clone()).collect();
    config::check_volume(&inner.file, &others, volume)
}
