//! Asks a discovery controller which subsystems there are.

use std::io::IoSlice;

use super::socket::Socket;
use super::{OpenError, RECEIVE, SLICES, resolve, uri};
use forebay_io::Duration;
use forebay_nvmf::initiator::{Discovery, Error};
use forebay_reactor::MonotonicClock;
use forebay_reactor::wait::{Epoll, Interest, Trigger};
use forebay_wire::Nqn;
use forebay_wire::log::DiscoveryEntry;
use std::os::fd::AsRawFd;

/// The discovery log of the controller at `host` and `port`, as `hostnqn` (or a random host) sees
/// it. Waits up to `limit`.
///
/// # Errors
/// Why it could not be read.
pub fn discover(
    host: &str,
    port: u16,
    hostnqn: Option<Nqn>,
    limit: Duration,
) -> Result<Vec<DiscoveryEntry>, OpenError> {
    let begin = MonotonicClock.now();
    let addresses = resolve(host, port)?;
    let address = addresses.last().ok_or(OpenError::Association(Error::Closed))?;
    let mut socket = Socket::connect(address).map_err(OpenError::Connect)?;
    let epoll = Epoll::new().map_err(OpenError::Epoll)?;
    let fd = socket.as_raw_fd();
    epoll.add(fd, 0, Interest::BOTH, Trigger::Level).map_err(OpenError::Epoll)?;
    let hostid = uri::next_host_id();
    let unnamed = OpenError::Association(Error::Unsupported("a host without a name"));
    let hostnqn = hostnqn.or_else(|| uri::host_nqn(hostid)).ok_or(unnamed)?;
    let mut discovery = None;
    let mut receive = vec![0; RECEIVE];
    let mut events = Vec::new();
    loop {
        events.clear();
        epoll.wait(Some(Duration::from_millis(5)), &mut events).map_err(OpenError::Epoll)?;
        let now = MonotonicClock.now();
        if now >= begin + limit {
            return Err(OpenError::Association(Error::Timeout("the discovery controller")));
        }
        if !socket.connected {
            if events.is_empty() {
                continue;
            }
            socket.finish_connect().map_err(OpenError::Connect)?;
            epoll.change(fd, 0, Interest::READ, Trigger::Level).map_err(OpenError::Epoll)?;
        }
        let discovery = match &mut discovery {
            Some(discovery) => discovery,
            none => none.insert(
                Discovery::new(hostnqn.clone(), hostid.0, limit, now)
                    .map_err(OpenError::Association)?,
            ),
        };
        while let Some(count) = socket.receive(&mut receive).map_err(OpenError::Connect)? {
            let bytes = receive.get(..count).filter(|bytes| !bytes.is_empty());
            let bytes = bytes.ok_or(OpenError::Association(Error::Closed))?;
            discovery.handle_bytes(bytes, now).map_err(OpenError::Association)?;
        }
        discovery.handle_timeout(now).map_err(OpenError::Association)?;
        if let Some(entries) = discovery.result() {
            return Ok(entries.to_vec());
        }
        while !discovery.output().is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let used = discovery.output().gather(&mut slices);
            match socket.send(&slices[..used]).map_err(OpenError::Connect)? {
                Some(count) => discovery.output().advance(count),
                None => break,
            }
        }
    }
}
