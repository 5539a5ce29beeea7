//! `forebay serve`: the core's shards on reactors, with devices, sockets and the control plane.
//!
//! | module | holds |
//! |---|---|
//! | `start` | reactors, cache devices, recovery |
//! | `service` | what runs on a reactor |
//! | `net`, `devices`, `shard`, `volumes` | its parts |
//! | `node` | the control plane's way to the reactors; `registry`, `attach`, `publish`, `follow`, `delete`, `scrub`, `backing`, `limits`, `faults` are its parts |
//! | `stat`, `live` | what is shown |
//! | `failpoints` | where a daemon built for tests ends itself |

mod attach;
mod backing;
mod calls;
mod delete;
mod devices;
pub(crate) mod drive;
mod failed;
pub(crate) mod failpoints;
mod fault_plan;
mod faults;
mod follow;
mod journal;
mod limits;
mod live;
mod net;
mod node;
mod publish;
mod registry;
mod scrub;
mod service;
mod shard;
mod share;
mod signals;
pub(crate) mod start;
mod stat;
mod timing;
mod volumes;

pub(crate) use shard::SharedPool;

use forebay_cluster::FileStore;
use forebay_control::Controller;
use forebay_control::config::{Origin, ServeConfig};
use forebay_control::controller::Prepared;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::http::Http;
use forebay_control::node::NodeControl;
use forebay_control::rpc::Server;
use forebay_control::stat::NodeState;
use forebay_reactor::ReactorHandle;
use node::{CacheUnit, Handle, Node};
use registry::{Registry, store_error};
use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often live numbers are shown.
const LIVE_EVERY: Duration = Duration::from_secs(1);

/// How often the node is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often a stop looks whether the reactors are quiet.
const STOP_LOOK_EVERY: Duration = Duration::from_millis(2);

/// Runs a node until SIGINT or SIGTERM.
///
/// # Errors
/// Whatever keeps it from starting; then nothing was changed that is not safe to repeat.
pub(crate) fn run(config: ServeConfig) -> Result<()> {
    log_to_stderr();
    signals::block();
    let prepared = Prepared::load(config)?;
    let jobs = prepared.job_table();
    let config = prepared.effective();
    let store = FileStore::open(&config.node.state_dir, &config.node.name).map_err(store_error)?;
    let (listeners, listening) = listen(&config)?;
    backing::check_all(&config, &store)?;
    let started = start::start(&config)?;
    let caches = caches(&config, &started.found);
    for cache in &caches {
        failed::check(&config.node.state_dir, cache.uuid, &cache.uri)?;
    }
    let sampler = stat::Sampler::new(&started.handles, &config);
    let registry = Registry::new(store);
    let reactors = started.reactors.clone();
    let node = Arc::new(Node::new(config, reactors, caches, listening, registry, sampler));
    let outcome = serve(&node, prepared, jobs, listeners);
    // Where it never served, the error alone is what matters.
    let tell = outcome.is_ok();
    if tell {
        println!("stopping: dirty data stays in the cache and is there at the next start");
    }
    stop(&node, started.handles);
    if tell {
        println!("stopped");
    }
    outcome
}

fn serve(
    node: &Arc<Node>,
    prepared: Prepared,
    jobs: forebay_control::JobTable,
    listeners: Vec<TcpListener>,
) -> Result<()> {
    for volume in &node.config.volumes {
        node.start_or_set_aside(volume)?;
    }
    // Hosts wait in the listeners' queues until there is something to connect to. All listeners are
    // the first reactor's; connections move to their subsystem's.
    node.reactors
        .call(0, move |service, _| {
            listeners.into_iter().try_for_each(|listener| service.net.listen(listener))
        })?
        .map_err(|error| ControlError::failed(format!("cannot listen: {error}")))?;
    let controller = Controller::new(prepared, jobs, Arc::new(Handle(Arc::clone(node))))?;
    for (work, error) in controller.resume() {
        tracing::error!(?work, %error, "cannot go on with what was under way");
    }
    let server = Server::start(&node.config.control.socket, Arc::clone(&controller))?;
    let metrics = node.config.control.metrics;
    let metrics = metrics.map(|at| Http::start(at, Arc::clone(&controller))).transpose()?;
    node.set_state(NodeState::Ready);
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    greet(node);
    watch(node);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    node.set_state(NodeState::Stopping);
    controller.stop();
    drop(metrics);
    drop(server);
    Ok(())
}

/// Shows live numbers until a signal comes.
fn watch(node: &Arc<Node>) {
    let shown =
        std::io::stdout().is_terminal() || matches!(node.config.origin, Origin::Quickstart(_));
    let handle = Handle(Arc::clone(node));
    let mut totals = live::Totals::default();
    let mut at = Instant::now();
    let mut shown_at = Instant::now();
    while !signals::wait(LOOK_EVERY) {
        node.note_failed_caches();
        if !shown || shown_at.elapsed() < LIVE_EVERY {
            continue;
        }
        shown_at = Instant::now();
        let seconds = at.elapsed().as_secs_f64();
        at = Instant::now();
        match handle.stat() {
            Ok(stat) => {
                if let Some(line) = live::line(&stat, &mut totals, seconds) {
                    println!("{line}");
                }
            }
            Err(error) => eprintln!("forebay: {error}"),
        }
    }
}

/// Stops the reactors: commands under way end, logs are sealed, dirty data stays in the cache.
fn stop(node: &Node, handles: Vec<ReactorHandle>) {
    // A reactor that does not answer any more has nothing that could be waited for.
    let _ = node.reactors.each(|service, _| service.quiesce());
    // One reactor's hosts may use another's volumes: all are quiet before the first engine stops.
    let until = Instant::now() + service::STOP_PATIENCE;
    while Instant::now() < until {
        let quiet = node.reactors.each(|service, _| service.is_quiet());
        if quiet.is_ok_and(|quiet| quiet.into_iter().all(|quiet| quiet)) {
            break;
        }
        std::thread::sleep(STOP_LOOK_EVERY);
    }
    let _ = node.reactors.each(|service, context| service.stop(context.now));
    for handle in handles {
        if handle.join().is_err() {
            eprintln!("forebay: a reactor ended in a panic; its volumes recover at the next start");
        }
    }
}

fn listen(config: &ServeConfig) -> Result<(Vec<TcpListener>, Vec<SocketAddr>)> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for wanted in &config.listen {
        let failed = |error: std::io::Error| {
            ControlError::new(
                ErrorKind::Failed,
                format!("cannot listen on {}: {error}", wanted.address),
            )
            .remedy(format!("see who does: ss -ltnp 'sport = :{}'", wanted.address.port()))
        };
        let listener = TcpListener::bind(wanted.address).map_err(failed)?;
        addresses.push(listener.local_addr().map_err(failed)?);
        listeners.push(listener);
    }
    Ok((listeners, addresses))
}

fn caches(config: &ServeConfig, found: &[(u32, start::Found)]) -> Vec<CacheUnit> {
    let mut all = Vec::new();
    for (reactor, found) in found {
        let Some(cache) = usize::try_from(found.number).ok().and_then(|at| config.caches.get(at))
        else {
            continue;
        };
        tracing::info!(device = cache.device, cache = %found.uuid, "{}", found.summary);
        all.push(CacheUnit {
            uri: cache.device.clone(),
            uuid: found.uuid,
            reactor: *reactor,
            engine: found.engine,
            info: found.info.clone(),
            durability: cache.durability,
        });
    }
    all
}

/// What a person at a terminal wants to know first.
fn greet(node: &Node) {
    for served in node.served() {
        println!(
            "volume {} ({}, {} GiB, {} B blocks) is namespace {} of {}",
            served.config.name,
            served.config.mode.as_str(),
            live::as_f64(served.size) / f64::from(1 << 30),
            served.config.block_size,
            served.nsid,
            served.nqn
        );
        for address in &node.listening {
            println!(
                "  connect a host:  nvme connect -t tcp -a {} -s {} -n {}",
                address.ip(),
                address.port(),
                served.nqn
            );
            println!(
                "  put load on it:  forebay bench 'nvmf+tcp://{address}/{}?nsid={}' --rw randwrite --qd 32",
                served.nqn, served.nsid
            );
        }
    }
    println!("control socket: {}", node.config.control.socket.display());
    println!("ready; Ctrl-C stops it and keeps everything");
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("FOREBAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours);
    // A second initialisation, in tests, keeps the first.
    let _ = log.try_init();
}
