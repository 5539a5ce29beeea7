//! `nvmf+tcp://host:port/NQN?nsid=1&…`.

use core::fmt;
use core::str::FromStr;
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

use forebay_io::{Duration, Uuid};
use forebay_nvmf::initiator::HostConfig;
use forebay_nvmf::initiator::admin::Identity;
use forebay_nvmf::initiator::qpair::DEPTH_MAX;
use forebay_nvmf::initiator::remote::RemoteConfig;
use forebay_wire::Nqn;
use forebay_wire::tcp::Digests;

/// The URI's beginning.
pub const SCHEME: &str = "nvmf+tcp://";
/// The port where none is given.
const PORT: u16 = 4420;
/// The options, all of them.
pub const OPTIONS: [&str; 12] = [
    "nsid",
    "hdgst",
    "ddgst",
    "queues",
    "disable_sqflow",
    "hostnqn",
    "hostid",
    "qd",
    "timeout",
    "connect_timeout",
    "keep_alive",
    "fail_after",
];

/// Where a remote namespace is and how it is used.
#[derive(Clone, Debug)]
pub struct NvmfUri {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How the initiator behaves.
    pub config: RemoteConfig,
}

/// Why a text is no such URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriError(String);

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for UriError {}

fn refuse<T>(text: String) -> Result<T, UriError> {
    Err(UriError(text))
}

impl FromStr for NvmfUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return refuse(format!("\"{text}\" does not begin with {SCHEME}"));
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self::from_parts(place, pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "1"))))
    }
}

impl NvmfUri {
    /// From `host:port/NQN` and the options, see [`OPTIONS`].
    ///
    /// # Errors
    /// What is wrong with which of them, and what is accepted.
    pub fn from_parts<'a>(
        address: &str,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, UriError> {
        let Some((authority, nqn)) = address.split_once('/') else {
            return refuse(format!(
                "\"{address}\" names no subsystem: {SCHEME}HOST:PORT/NQN?nsid=1"
            ));
        };
        let (host, port) = host_and_port(authority)?;
        let subnqn: Nqn =
            nqn.parse().map_err(|error| UriError(format!("subsystem \"{nqn}\": {error}")))?;
        let mut given = Given::default();
        for (key, value) in options {
            given.set(key, value)?;
        }
        Ok(Self { host, port, config: given.config(subnqn)? })
    }
}

/// Splits `host:port`, `[v6]:port`, or either without a port.
///
/// # Errors
/// Where the host is empty or the port is not a number from 1 to 65535.
pub fn host_and_port(authority: &str) -> Result<(String, u16), UriError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or(port))),
            None => return refuse(format!("\"{authority}\": the bracket is not closed")),
        },
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let number = port.map_or(Some(PORT), |port| port.parse().ok().filter(|port| *port > 0));
    match number {
        _ if host.is_empty() => refuse(format!("\"{authority}\" names no host")),
        None => refuse(format!("\"{authority}\": a port is a number from 1 to 65535")),
        Some(port) => Ok((host.to_owned(), port)),
    }
}

/// The parameters of a URI.
struct Given {
    nsid: u32,
    digests: Digests,
    no_sq_flow: bool,
    queues: u16,
    depth: u16,
    hostnqn: Option<Nqn>,
    hostid: Option<Uuid>,
    keep_alive: Duration,
    timeout: Duration,
    connect_timeout: Duration,
    fail_after: Duration,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            nsid: 1,
            digests: Digests::default(),
            no_sq_flow: false,
            queues: 1,
            depth: 128,
            hostnqn: None,
            hostid: None,
            keep_alive: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            fail_after: Duration::from_secs(5),
        }
    }
}

impl Given {
    fn set(&mut self, key: &str, value: &str) -> Result<(), UriError> {
        let wrong = |what: &str| UriError(format!("{key}={value}: {what}"));
        let flag = || match value {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(wrong("0 or 1")),
        };
        let number = |least: u32, most: u32| {
            let number = value.parse().ok().filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| wrong(&format!("a number from {least} to {most}")))
        };
        let small = |most: u16| {
            number(1, u32::from(most)).map(|number| u16::try_from(number).unwrap_or(most))
        };
        let span = || duration(value).ok_or_else(|| wrong("a time such as 30s or 500ms"));
        match key {
            "nsid" => self.nsid = number(1, u32::MAX - 1)?,
            "hdgst" => self.digests.header = flag()?,
            "ddgst" => self.digests.data = flag()?,
            "disable_sqflow" => self.no_sq_flow = flag()?,
            "queues" => self.queues = small(64)?,
            "qd" => self.depth = small(DEPTH_MAX)?,
            "hostnqn" => self.hostnqn = Some(value.parse().map_err(|_| wrong("an NQN"))?),
            "hostid" => self.hostid = Some(value.parse().map_err(|_| wrong("a UUID"))?),
            "keep_alive" => self.keep_alive = span()?,
            "timeout" => self.timeout = span()?,
            "connect_timeout" => self.connect_timeout = span()?,
            "fail_after" => self.fail_after = span()?,
            _ => {
                let all = OPTIONS.join(", ");
                return refuse(format!("`{key}` is not an option here; accepted: {all}"));
            }
        }
        Ok(())
    }

    fn config(self, subnqn: Nqn) -> Result<RemoteConfig, UriError> {
        let hostid = self.hostid.unwrap_or_else(next_host_id);
        let hostnqn = match self.hostnqn {
            Some(nqn) => nqn,
            None => host_nqn(hostid).ok_or_else(|| UriError("the host's own NQN".into()))?,
        };
        Ok(RemoteConfig {
            host: HostConfig {
                identity: Identity { hostnqn, hostid: hostid.0, subnqn },
                nsid: self.nsid,
                queues: self.queues,
                depth: self.depth,
                digests: self.digests,
                no_sq_flow: self.no_sq_flow,
                keep_alive: self.keep_alive,
                setup_timeout: self.connect_timeout,
                io_timeout: self.timeout,
            },
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
            fail_after: self.fail_after,
        })
    }
}

/// `90s`, `500ms`, or whole seconds without a unit.
fn duration(text: &str) -> Option<Duration> {
    if let Some(millis) = text.strip_suffix("ms") {
        return millis.parse().ok().map(Duration::from_millis);
    }
    text.strip_suffix('s').unwrap_or(text).parse().ok().map(Duration::from_secs)
}

/// The name that goes with a host identifier.
#[must_use]
pub fn host_nqn(hostid: Uuid) -> Option<Nqn> {
    format!("nqn.2014-08.org.nvmexpress:uuid:{hostid}").parse().ok()
}

/// A host identifier: random per process, and another one for each device, because a target takes
/// two associations of one host for an old and a new one and holds the second back.
#[must_use]
pub fn next_host_id() -> Uuid {
    static BASE: OnceLock<[u8; 16]> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut raw = *BASE.get_or_init(random);
    let count = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    for (byte, count) in raw[12..].iter_mut().zip(count) {
        *byte ^= count;
    }
    Uuid::from_random(raw)
}

fn random() -> [u8; 16] {
    let mut raw = [0u8; 16];
    // SAFETY: `raw` has room for its length of bytes.
    let count = unsafe { libc::getrandom(raw.as_mut_ptr().cast(), raw.len(), 0) };
    if usize::try_from(count) != Ok(raw.len()) {
        // Without a random source the process and the time must do.
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        raw[..4].copy_from_slice(&std::process::id().to_le_bytes());
        raw[4..12].copy_from_slice(&time.map_or(0u64, |t| t.subsec_nanos().into()).to_le_bytes());
    }
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_uri_is_taken_apart() {
        let uri: NvmfUri = "nvmf+tcp://[::1]:4421/nqn.2026-01.io.forebay:v?nsid=2&hdgst=1&ddgst=1&\
            queues=4&qd=64&disable_sqflow=1&hostid=00000000-0000-4000-8000-000000000001&timeout=500ms"
            .parse()
            .unwrap();
        let host = &uri.config.host;
        assert_eq!((uri.host.as_str(), uri.port, host.nsid), ("::1", 4421, 2));
        assert_eq!((host.queues, host.depth, host.no_sq_flow), (4, 64, true));
        assert_eq!(host.digests, Digests { header: true, data: true });
        assert_eq!(host.io_timeout, Duration::from_millis(500));
        let nqn = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001";
        assert_eq!(host.identity.hostnqn.as_str(), nqn);
        assert_eq!(host.identity.subnqn.as_str(), "nqn.2026-01.io.forebay:v");
    }

    #[test]
    fn defaults_and_host_identifiers() {
        let parse = || "nvmf+tcp://localhost/nqn.a".parse::<NvmfUri>().unwrap();
        let (a, b) = (parse(), parse());
        assert_eq!((a.port, a.config.host.queues), (4420, 1));
        let (a, b) = (a.config.host.identity.hostid, b.config.host.identity.hostid);
        assert_ne!(a, b, "two devices of one process are two hosts");
        assert_eq!(a[..12], b[..12]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word) in [
            ("tcp://x", "begin"),
            ("nvmf+tcp://host:4420", "names no subsystem"),
            ("nvmf+tcp://:4420/nqn.a", "no host"),
            ("nvmf+tcp://h:0/nqn.a", "port"),
            ("nvmf+tcp://[::1/nqn.a", "bracket"),
            ("nvmf+tcp://h:1/", "NQN"),
            ("nvmf+tcp://h:1/nqn.a?nsid=0", "1 to"),
            ("nvmf+tcp://h:1/nqn.a?hdgst=yes", "0 or 1"),
            ("nvmf+tcp://h:1/nqn.a?timeout=fast", "30s"),
            ("nvmf+tcp://h:1/nqn.a?qeues=1", "accepted: nsid"),
            ("nvmf+tcp://h:1/nqn.a?hostid=1", "UUID"),
        ] {
            let error = text.parse::<NvmfUri>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
