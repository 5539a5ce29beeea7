//! A node in memory: keeps what it is told and reports it. Jobs end on a thread of their own, when
//! the test lets them.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

pub mod words;

use forebay_control::controller::Prepared;
use forebay_control::error::Result;
use forebay_control::jobs::{JobHandle, ScrubReport};
use forebay_control::node::{Copy, DeviceFault, LbaRange, Located, LostCache, NodeControl};
use forebay_control::rpc::Server;
use forebay_control::stat::*;
use forebay_control::value::Mode;
use forebay_control::{ControlError, Controller, ErrorKind, ServeConfig, VolumeConfig};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct MemoryNode {
    pub volumes: Mutex<Vec<VolumeStat>>,
    pub hosts: Mutex<Vec<String>>,
    pub faults: Mutex<Vec<DeviceFault>>,
    pub calls: AtomicU64,
    /// Jobs do not end while this is set.
    pub hold: Arc<AtomicBool>,
    /// The next change is refused.
    pub refuse: AtomicBool,
    prefix: String,
}

impl MemoryNode {
    pub fn new(config: &ServeConfig) -> Arc<Self> {
        let node = Arc::new(Self {
            volumes: Mutex::default(),
            hosts: Mutex::new(config.security.hosts.clone()),
            faults: Mutex::default(),
            calls: AtomicU64::new(0),
            hold: Arc::default(),
            refuse: AtomicBool::new(false),
            prefix: config.node.nqn_prefix.clone(),
        });
        for volume in &config.volumes {
            node.create_volume(volume).unwrap();
        }
        node
    }

    fn change(&self) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.refuse.swap(false, Ordering::Relaxed) {
            return Err(ControlError::failed("the node refuses"));
        }
        Ok(())
    }

    fn known(&self, name: &str) -> Result<()> {
        let known = self.volumes.lock().unwrap().iter().any(|volume| volume.name == name);
        if known { Ok(()) } else { Err(ControlError::not_found("volume", name)) }
    }

    /// Runs `end` when jobs may end, unless the job is cancelled first.
    fn later(self: Arc<Self>, job: JobHandle, end: impl FnOnce(&Self) + Send + 'static) {
        std::thread::spawn(move || {
            job.progress(1 << 20, Some("the test holds it".to_owned()));
            while self.hold.load(Ordering::Acquire) {
                if job.is_cancelled() {
                    job.finish(Err(ControlError::failed("cancelled")));
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            end(&self);
            job.finish(Ok(()));
        });
    }
}

fn new_stat(volume: &VolumeConfig, prefix: &str, number: usize) -> VolumeStat {
    VolumeStat {
        name: volume.name.clone(),
        uuid: format!("00000000-0000-4000-8000-{number:012x}"),
        nguid: format!("{number:032x}"),
        nqn: format!("{prefix}:{}", volume.subsystem_name()),
        nsid: 1,
        state: VolumeState::Active,
        cause: None,
        mode: volume.mode,
        target_mode: volume.mode,
        size: 1 << 30,
        block_size: volume.block_size,
        owner_epoch: 1,
        reactor: 0,
        cache: Some(0),
        backing: DeviceStat { uri: volume.backing.clone(), ..DeviceStat::default() },
        read: reads(),
        write: OpStat::default(),
        flush: OpStat::default(),
        hits: 8,
        memory_hits: 1,
        misses: 2,
        bypassed: 0,
        cached_writes: 6,
        bypassed_writes: 1,
        hit_ratio: Some(0.8),
        cached_bytes: 0,
        cache_min_bytes: 0,
        cache_max_bytes: None,
        pinned_bytes: 0,
        memory_tier_bytes: 0,
        dirty_bytes: 0,
        prefix: None,
        ordered_journal: None,
        kept_bytes: 0,
        dirty_pinned_bytes: 0,
        dirty_max: 1 << 28,
        oldest_dirty_ms: None,
        oldest_dirty_before_start: false,
        destaged_bytes: 0,
        destage_bytes_per_s: 0.0,
        lost_bytes: 0,
        damaged_bytes: 0,
        healed: 0,
    }
}

/// Ten reads of 4 KiB, one of them of 9 s.
fn reads() -> OpStat {
    let mut below = [9; BELOW_COUNT];
    below[..5].fill(2);
    let latency = Latency {
        count: 10,
        mean_us: 900_035.0,
        p50_us: 70.0,
        p99_us: 9e6,
        p999_us: 9e6,
        p9999_us: 9e6,
        max_us: 9e6,
    };
    OpStat {
        ops: 10,
        bytes: 40960,
        total_us: 9_000_350,
        latency_since_start: Some(latency),
        below,
        ..OpStat::default()
    }
}

/// What the controller holds: jobs need the node beyond the call.
pub struct Handle(pub Arc<MemoryNode>);

impl std::ops::Deref for Handle {
    type Target = MemoryNode;
    fn deref(&self) -> &MemoryNode {
        &self.0
    }
}

impl MemoryNode {
    fn create_volume(&self, volume: &VolumeConfig) -> Result<()> {
        self.change()?;
        let mut volumes = self.volumes.lock().unwrap();
        if volumes.iter().all(|other| other.name != volume.name) {
            let number = volumes.len();
            volumes.push(new_stat(volume, &self.prefix, number));
        }
        Ok(())
    }
}

impl NodeControl for Handle {
    fn stat(&self) -> Result<NodeStat> {
        Ok(NodeStat {
            schema_version: SCHEMA_VERSION,
            node: NodeInfo {
                name: "n".to_owned(),
                version: "0".to_owned(),
                state: NodeState::Ready,
                nqn_prefix: self.prefix.clone(),
                listen: vec![ListenStat {
                    transport: "tcp".to_owned(),
                    address: "127.0.0.1".to_owned(),
                    port: 4420,
                }],
                ..NodeInfo::default()
            },
            reactors: vec![ReactorStat::default()],
            caches: vec![DeviceStat::default()],
            volumes: self.volumes.lock().unwrap().clone(),
            hosts: Vec::new(),
        })
    }

    fn create_volume(&self, volume: &VolumeConfig) -> Result<()> {
        self.0.create_volume(volume)
    }

    fn delete_volume(&self, name: &str, _discard_dirty: bool, job: JobHandle) -> Result<()> {
        self.change()?;
        self.known(name)?;
        let name = name.to_owned();
        Arc::clone(&self.0).later(job, move |node| {
            node.volumes.lock().unwrap().retain(|volume| volume.name != name);
        });
        Ok(())
    }

    fn set_mode(&self, name: &str, mode: Mode, job: JobHandle) -> Result<()> {
        self.change()?;
        self.known(name)?;
        let name = name.to_owned();
        Arc::clone(&self.0).later(job, move |node| {
            let mut volumes = node.volumes.lock().unwrap();
            if let Some(volume) = volumes.iter_mut().find(|volume| volume.name == name) {
                (volume.mode, volume.target_mode) = (mode, mode);
            }
        });
        Ok(())
    }

    fn drain(&self, name: &str, job: JobHandle) -> Result<()> {
        self.change()?;
        self.known(name)?;
        Arc::clone(&self.0).later(job, |_| {});
        Ok(())
    }

    fn pin(&self, name: &str, job: JobHandle) -> Result<()> {
        self.change()?;
        self.known(name)?;
        Arc::clone(&self.0).later(job, |_| {});
        Ok(())
    }

    fn scrub(&self, name: &str, rate: u64, job: JobHandle) -> Result<()> {
        self.change()?;
        self.known(name)?;
        // So that a test sees what was asked for.
        job.scrubbed(ScrubReport { checked: rate, ..ScrubReport::default() });
        Arc::clone(&self.0).later(job, |_| {});
        Ok(())
    }

    fn update_volume(&self, volume: &VolumeConfig) -> Result<()> {
        self.change()?;
        self.known(&volume.name)
    }

    fn locate(&self, name: &str, range: LbaRange, _pieces_max: usize) -> Result<Vec<Located>> {
        self.known(name)?;
        let LbaRange { lba, blocks } = range;
        let current = Copy::Backing;
        Ok(vec![Located { lba, blocks, current, in_memory: false, lsn: None, place: None }])
    }

    fn recover_lost_cache(&self, name: &str, _commit: bool) -> Result<LostCache> {
        self.known(name)?;
        Err(ControlError::new(ErrorKind::Busy, format!("the cache of `{name}` is not lost")))
    }

    fn set_hosts(&self, hosts: &[String]) -> Result<()> {
        self.change()?;
        *self.hosts.lock().unwrap() = hosts.to_vec();
        Ok(())
    }

    fn inject_fault(&self, fault: &DeviceFault) -> Result<()> {
        self.faults.lock().unwrap().push(fault.clone());
        Ok(())
    }
}

/// A directory that goes with the test.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("forebay-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A configuration with one volume `db`, all in `dir`.
pub fn config(dir: &Path) -> ServeConfig {
    let text = format!(
        "[node]\nname = \"n\"\nstate_dir = {dir:?}\n[[listen]]\naddress = \"127.0.0.1\"\n\
         [[cache]]\ndevice = \"mem:?size=1G\"\n\
         [[volume]]\nname = \"db\"\nbacking = \"uring:/dev/sdb\"\nmode = \"write-back\"\n\
         [security]\nhosts = [\"nqn.2014-08.org.nvmexpress:uuid:1\"]\n\
         [control]\nsocket = {:?}\n",
        dir.join("s")
    );
    forebay_control::config::parse("test.toml", &text).unwrap()
}

/// Node and controller over a configuration's state directory.
pub fn start(config: &ServeConfig) -> (Arc<MemoryNode>, Arc<Controller>) {
    let prepared = Prepared::load(config.clone()).unwrap();
    let node = MemoryNode::new(&prepared.effective());
    let jobs = prepared.job_table();
    let controller = Controller::new(prepared, jobs, Arc::new(Handle(Arc::clone(&node)))).unwrap();
    (node, controller)
}

/// The same with a server on the configuration's socket.
pub fn serve(config: &ServeConfig) -> (Arc<MemoryNode>, Arc<Controller>, Server) {
    let (node, controller) = start(config);
    let server = Server::start(&config.control.socket, Arc::clone(&controller)).unwrap();
    (node, controller, server)
}
