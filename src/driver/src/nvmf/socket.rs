//! Client sockets that never wait.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A TCP connection that is being opened or open.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    pub(super) connected: bool,
    /// The kernel took less than there was: wait for room.
    pub(super) blocked: bool,
}

impl Socket {
    /// Begins to connect.
    pub(super) fn connect(address: &SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(family, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let result = connect_raw(fd.as_raw_fd(), address);
        let waiting = |error: &io::Error| error.raw_os_error() == Some(libc::EINPROGRESS);
        match result {
            Err(error) if !waiting(&error) => return Err(error),
            _ => {}
        }
        let stream = TcpStream::from(fd);
        stream.set_nodelay(true)?;
        Ok(Self { stream, connected: false, blocked: false })
    }

    /// After the socket became writable: whether the connection is open.
    pub(super) fn finish_connect(&mut self) -> io::Result<()> {
        match self.stream.take_error()? {
            Some(error) => Err(error),
            None => {
                self.stream.peer_addr()?;
                self.connected = true;
                Ok(())
            }
        }
    }

    /// Receives; `None` while nothing is there, 0 at the end of the stream.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.stream.read(buffer) {
            Ok(count) => Ok(Some(count)),
            Err(error) if is_temporary(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends; `None` while there is no room.
    pub(super) fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        match self.stream.write_vectored(slices) {
            Ok(count) => Ok(Some(count)),
            Err(error) if is_temporary(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn connect_raw(fd: RawFd, address: &SocketAddr) -> io::Result<()> {
    let result = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `raw` is a whole address of the length given, valid during the call.
            unsafe { libc::connect(fd, (&raw const raw).cast(), length::<libc::sockaddr_in>()) }
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: `raw` is a whole address of the length given, valid during the call.
            unsafe { libc::connect(fd, (&raw const raw).cast(), length::<libc::sockaddr_in6>()) }
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

fn length<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
