//! The volumes of a running node, from the control plane's side: their keys in the store, where they
//! live, and how they are presented to hosts.

use forebay_cache::engine::CacheMode;
use forebay_cluster::{FileStore, Keyed, Mode as KeptMode, StoreError, VolumeKey};
use forebay_control::config::VolumeConfig;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::value::Mode;
use forebay_io::{Uuid, VolumeId};

/// A volume that is served, or was tried to be.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) config: VolumeConfig,
    pub(crate) id: VolumeId,
    pub(crate) uuid: Uuid,
    pub(crate) nguid: Uuid,
    pub(crate) nqn: String,
    pub(crate) nsid: u32,
    pub(crate) size: u64,
    pub(crate) owner_epoch: u64,
    /// The reactor that it lives on, its engine there and its cache device's number.
    pub(crate) reactor: u32,
    pub(crate) engine: usize,
    pub(crate) cache: u32,
}

/// A volume whose cache is not here: it is not served until somebody says that the cache is lost.
#[derive(Clone, Debug)]
pub(crate) struct Down {
    pub(crate) config: VolumeConfig,
    pub(crate) cause: String,
}

/// Keys and places of all volumes.
pub(crate) struct Registry {
    pub(crate) store: FileStore,
    pub(crate) served: Vec<Served>,
    pub(crate) down: Vec<Down>,
    next_id: u32,
}

impl Registry {
    pub(crate) fn new(store: FileStore) -> Self {
        Self { store, served: Vec::new(), down: Vec::new(), next_id: 0 }
    }

    /// A handle for one more volume; never used again while the node runs.
    pub(crate) fn new_id(&mut self) -> VolumeId {
        let id = VolumeId(self.next_id);
        self.next_id += 1;
        id
    }

    pub(crate) fn find(&self, name: &str) -> Result<&Served> {
        self.served
            .iter()
            .find(|served| served.config.name == name)
            .ok_or_else(|| ControlError::not_found("volume", name))
    }

    pub(crate) fn find_mut(&mut self, name: &str) -> Result<&mut Served> {
        self.served
            .iter_mut()
            .find(|served| served.config.name == name)
            .ok_or_else(|| ControlError::not_found("volume", name))
    }

    pub(crate) fn key(&self, name: &str) -> Result<Keyed> {
        self.store.find(name).cloned().ok_or_else(|| ControlError::not_found("volume", name))
    }

    /// Changes a volume's key, if `change` changes anything.
    pub(crate) fn change(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut VolumeKey),
    ) -> Result<Keyed> {
        let keyed = self.key(name)?;
        let mut key = keyed.key.clone();
        change(&mut key);
        if key == keyed.key {
            return Ok(keyed);
        }
        self.store.swap(keyed.revision, key).map_err(store_error)
    }
}

/// What the store refused, for the operator.
pub(crate) fn store_error(error: StoreError) -> ControlError {
    let kind = match &error {
        StoreError::Exists(_) => ErrorKind::Exists,
        StoreError::NoSuchVolume(_) => ErrorKind::NotFound,
        _ => ErrorKind::Failed,
    };
    ControlError::new(kind, error.to_string())
}

/// A mode as the engine knows it.
pub(crate) const fn engine_mode(mode: Mode) -> CacheMode {
    match mode {
        Mode::PassThrough => CacheMode::PassThrough,
        Mode::WriteAround => CacheMode::WriteAround,
        Mode::WriteThrough => CacheMode::WriteThrough,
        Mode::WriteBack => CacheMode::WriteBack,
        Mode::WriteBackOrdered => CacheMode::WriteBackOrdered,
    }
}

/// An engine's mode as the control plane knows it.
pub(crate) const fn shown_mode(mode: CacheMode) -> Mode {
    match mode {
        CacheMode::PassThrough => Mode::PassThrough,
        CacheMode::WriteAround => Mode::WriteAround,
        CacheMode::WriteThrough => Mode::WriteThrough,
        CacheMode::WriteBack => Mode::WriteBack,
        CacheMode::WriteBackOrdered => Mode::WriteBackOrdered,
    }
}

/// A mode as the store keeps it.
pub(crate) const fn kept_mode(mode: Mode) -> KeptMode {
    match mode {
        Mode::PassThrough => KeptMode::PassThrough,
        Mode::WriteAround => KeptMode::WriteAround,
        Mode::WriteThrough => KeptMode::WriteThrough,
        Mode::WriteBack => KeptMode::WriteBack,
        Mode::WriteBackOrdered => KeptMode::WriteBackOrdered,
    }
}

/// A kept mode as the control plane knows it.
pub(crate) const fn from_kept(mode: KeptMode) -> Mode {
    match mode {
        KeptMode::PassThrough => Mode::PassThrough,
        KeptMode::WriteAround => Mode::WriteAround,
        KeptMode::WriteThrough => Mode::WriteThrough,
        KeptMode::WriteBack => Mode::WriteBack,
        KeptMode::WriteBackOrdered => Mode::WriteBackOrdered,
    }
}
