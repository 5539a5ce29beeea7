//! The control socket: who may use it, and how much of the daemon a client can take up.

use super::frame::Framer;
use super::message::{encode, handle_frame, parse_error};
use crate::controller::Controller;
use crate::error::{ControlError, ErrorKind, Result};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most connections at once; the next one is told so and closed.
pub const CONNECTIONS_MAX: usize = 32;
/// A request that has begun must be whole within this time.
const PARTIAL_MAX: Duration = Duration::from_secs(10);
/// A connection on which nothing comes is closed after this time.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// A client must take an answer within this time.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// How often a thread looks whether the server stops.
const TICK: Duration = Duration::from_millis(200);

struct Shared {
    controller: Arc<Controller>,
    stop: AtomicBool,
    connections: AtomicUsize,
}

/// A running server. Dropped, it stops: the socket's file is removed.
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    listener: Arc<UnixListener>,
    path: PathBuf,
}

impl Server {
    /// Makes the socket (mode 0660) and serves it on threads of its own.
    ///
    /// # Errors
    /// Busy, where another daemon answers there; else those of the system.
    pub fn start(path: &Path, controller: Arc<Controller>) -> Result<Self> {
        let listener = Arc::new(bind(path)?);
        let accepting = Arc::clone(&listener);
        let shared = Arc::new(Shared {
            controller,
            stop: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
        });
        let of_thread = Arc::clone(&shared);
        let acceptor = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&accepting, &of_thread))
            .map_err(|error| ControlError::failed(format!("no thread for control: {error}")))?;
        Ok(Self { shared, acceptor: Some(acceptor), listener, path: path.to_owned() })
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // The acceptor waits in accept: shutting the listener down wakes it, also where somebody has
        // removed the socket's file, so that a connection could not.
        // SAFETY: the descriptor is a socket of ours that is open as long as `listener` lives.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        let _ = fs::remove_file(&self.path);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let deadline = Instant::now() + 2 * TICK;
        while self.connections() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Binds under another name, sets the mode, then renames: at no time can anybody connect whom the
/// mode does not let.
fn bind(path: &Path) -> Result<UnixListener> {
    let failed = |what: &str, error: &io::Error| {
        ControlError::failed(format!("the control socket {} {what}: {error}", path.display()))
            .field("control.socket")
            .remedy("name another path with `[control] socket`, or make its directory: mkdir -p")
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        fs::create_dir_all(dir).map_err(|error| failed("has no directory", &error))?;
        let mode = fs::Permissions::from_mode(0o750);
        fs::set_permissions(dir, mode).map_err(|error| failed("has no directory", &error))?;
    }
    if let Ok(meta) = fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            let error = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(failed("is something else than a socket", &error));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(ControlError::new(
                ErrorKind::Busy,
                format!("another daemon answers on {}", path.display()),
            )
            .field("control.socket")
            .remedy("stop it, or name another path with `[control] socket`"));
        }
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let _ = fs::remove_file(&temporary);
    let listener =
        UnixListener::bind(&temporary).map_err(|error| failed("cannot be made", &error))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660))
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|error| failed("cannot be made", &error))?;
    Ok(listener)
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let stream = listener.accept();
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        match stream {
            Ok((stream, _)) => admit(stream, shared),
            Err(error) => {
                // Out of descriptors, most likely: others will be closed.
                tracing::warn!("control socket: {error}");
                std::thread::sleep(TICK);
            }
        }
    }
}

fn admit(mut stream: UnixStream, shared: &Arc<Shared>) {
    let _ = stream.set_write_timeout(Some(WRITE_MAX));
    let refuse = |stream: &mut UnixStream, why: &str| {
        let _ = stream.write_all(&encode(&parse_error(why)));
    };
    match peer::is_allowed(&stream) {
        Ok(true) => {}
        Ok(false) => return refuse(&mut stream, "this user may not control the daemon"),
        Err(error) => return refuse(&mut stream, &format!("who asks is not known: {error}")),
    }
    if shared.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
        shared.connections.fetch_sub(1, Ordering::AcqRel);
        return refuse(&mut stream, "too many connections: close one, or try again later");
    }
    let of_thread = Arc::clone(shared);
    let spawned = std::thread::Builder::new().name("control-conn".to_owned()).spawn(move || {
        // Counts down on every way out.
        struct Leave(Arc<Shared>);
        impl Drop for Leave {
            fn drop(&mut self) {
                self.0.connections.fetch_sub(1, Ordering::AcqRel);
            }
        }
        let leave = Leave(of_thread);
        if let Err(error) = serve(stream, &leave.0) {
            tracing::debug!("control connection: {error}");
        }
    });
    if let Err(error) = spawned {
        // The closure was dropped without having run, so it has not counted down.
        shared.connections.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!("control connection: {error}");
    }
}

fn serve(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    let mut framer = Framer::default();
    let mut buffer = vec![0; 16 << 10];
    let (mut last_byte, mut partial_since) = (Instant::now(), None::<Instant>);
    loop {
        if shared.stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if is_wait(&error) => {
                if partial_since.is_some_and(|since| since.elapsed() > PARTIAL_MAX) {
                    stream.write_all(&encode(&parse_error("the request does not end")))?;
                    return Ok(());
                }
                if last_byte.elapsed() > IDLE_MAX {
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut wrote = Ok(());
        let fed = framer.feed(&buffer[..read], |frame| {
            // Answered one by one, so that at most one answer is held in memory.
            if wrote.is_ok()
                && let Some(answer) = handle_frame(&shared.controller, frame)
            {
                wrote = stream.write_all(&answer);
            }
        });
        wrote?;
        if let Err(error) = fed {
            stream.write_all(&encode(&parse_error(&error.to_string())))?;
            return Ok(());
        }
        last_byte = Instant::now();
        partial_since = framer.is_partial().then(|| partial_since.unwrap_or(last_byte));
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Who is at the other end, as the kernel says.
mod peer {
    use super::{AsRawFd, UnixStream, io};
    use std::mem::{MaybeUninit, size_of};

    /// Root, the daemon's own user, or a member of its group.
    pub(super) fn is_allowed(stream: &UnixStream) -> io::Result<bool> {
        let peer = credentials(stream)?;
        // SAFETY: these two calls have no arguments and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        if peer.uid == 0 || peer.uid == uid || peer.gid == gid {
            return Ok(true);
        }
        Ok(groups(stream)?.contains(&gid))
    }

    fn credentials(stream: &UnixStream) -> io::Result<libc::ucred> {
        let mut value = MaybeUninit::<libc::ucred>::zeroed();
        let mut len = socklen(size_of::<libc::ucred>());
        // SAFETY: the descriptor is open as long as `stream` is borrowed; `value` has room for
        // `len` bytes, and any bytes are a valid `ucred`.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                value.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zeroed when it was made and at most overwritten with a `ucred` since.
        Ok(unsafe { value.assume_init() })
    }

    /// Supplementary groups (unix(7), `SO_PEERGROUPS`).
    fn groups(stream: &UnixStream) -> io::Result<Vec<libc::gid_t>> {
        // NGROUPS_MAX of Linux.
        const GROUPS_MAX: usize = 65536;
        let mut groups: Vec<libc::gid_t> = vec![0; GROUPS_MAX];
        let mut len = socklen(GROUPS_MAX * size_of::<libc::gid_t>());
        // SAFETY: the descriptor is open as long as `stream` is borrowed; `groups` has room for
        // `len` bytes.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        groups.truncate(usize::try_from(len).unwrap_or(0) / size_of::<libc::gid_t>());
        Ok(groups)
    }

    fn socklen(bytes: usize) -> libc::socklen_t {
        libc::socklen_t::try_from(bytes).unwrap_or(libc::socklen_t::MAX)
    }
}
