//! Device URIs: `uring:/path?size=8G`, `mem:?size=1G`, `nvmf+tcp://host:4420/NQN?nsid=1`, and the
//! wrappers `slow:URI` and `fault:URI`.

use core::fmt;
use core::time::Duration;

/// A device URI, parsed.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceUri {
    /// A file or block device through io_uring.
    Uring {
        /// Its path.
        path: String,
        /// The size to create a file with, sparse, where there is none.
        size: Option<u64>,
    },
    /// Memory of this process.
    Mem {
        /// Bytes.
        size: u64,
    },
    /// A remote namespace; what follows `nvmf+tcp://`, with its options.
    NvmfTcp {
        /// `host:port/NQN`.
        address: String,
        /// The options, in order.
        options: Vec<(String, String)>,
    },
    /// A device with added latency.
    Slow {
        /// The device.
        inner: Box<DeviceUri>,
        /// Added to reads.
        read: Duration,
        /// Added to writes, flushes and the like.
        write: Duration,
        /// How much an added latency varies, as a share of it: 0.2 is ±20 %.
        jitter: f64,
    },
    /// A device that fails on request.
    Fault {
        /// The device.
        inner: Box<DeviceUri>,
    },
}

/// Why a text is not a device URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriError {
    /// The text.
    pub uri: String,
    /// What is wrong with which part of it, and what is accepted.
    pub what: String,
}

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a device URI: {}", self.uri, self.what)
    }
}

impl core::error::Error for UriError {}

const SCHEMES: &str = "uring:/path, mem:?size=1G, nvmf+tcp://host:4420/NQN, slow:URI, fault:URI";

impl core::str::FromStr for DeviceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        parse(text, 0).map_err(|what| UriError { uri: text.to_owned(), what })
    }
}

fn parse(text: &str, depth: u32) -> Result<DeviceUri, String> {
    if depth > 4 {
        return Err("wrappers are nested too deeply".to_owned());
    }
    let (scheme, rest) = text
        .split_once(':')
        .ok_or_else(|| format!("there is no scheme; accepted are {SCHEMES}"))?;
    match scheme {
        "uring" => uring(rest),
        "mem" => mem(rest),
        "nvmf+tcp" => nvmf(rest),
        "slow" => slow(rest, depth),
        "fault" => Ok(DeviceUri::Fault { inner: Box::new(parse(rest, depth + 1)?) }),
        "spdk" | "nvmf+rdma" => Err(format!("`{scheme}:` comes in a later version")),
        _ => Err(format!("`{scheme}:` is not a scheme; accepted are {SCHEMES}")),
    }
}

type Options<'t> = Vec<(&'t str, &'t str)>;

/// Splits `path?key=value&key=value`.
fn options<'t>(rest: &'t str, known: &[&str]) -> Result<(&'t str, Options<'t>), String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut found: Options<'t> = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (key, value) =
            option.split_once('=').ok_or_else(|| format!("the option `{option}` has no value"))?;
        if !known.contains(&key) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(format!("`{key}` is not an option here; accepted: {known}"));
        }
        if found.iter().any(|(other, _)| *other == key) {
            return Err(format!("the option `{key}` is there twice"));
        }
        found.push((key, value));
    }
    Ok((path, found))
}

fn value<'t>(options: &Options<'t>, key: &str) -> Option<&'t str> {
    options.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
}

fn uring(rest: &str) -> Result<DeviceUri, String> {
    let (path, found) = options(rest, &["size"])?;
    if path.is_empty() {
        return Err("a path is missing: uring:/path".to_owned());
    }
    let size = value(&found, "size").map(size).transpose()?;
    Ok(DeviceUri::Uring { path: path.to_owned(), size })
}

fn mem(rest: &str) -> Result<DeviceUri, String> {
    let (path, found) = options(rest, &["size"])?;
    if !path.is_empty() {
        return Err(format!("`{path}` follows `mem:`; accepted is mem:?size=1G"));
    }
    let text = value(&found, "size").ok_or("the size is missing: mem:?size=1G")?;
    Ok(DeviceUri::Mem { size: size(text)? })
}

fn nvmf(rest: &str) -> Result<DeviceUri, String> {
    let known =
        ["nsid", "hdgst", "ddgst", "queues", "disable_sqflow", "hostnqn", "hostid", "qd", "timeout"];
    let rest = rest.strip_prefix("//").ok_or("accepted is nvmf+tcp://host:4420/NQN?nsid=1")?;
    let (address, found) = options(rest, &known)?;
    if !address.contains('/') {
        return Err("the NQN is missing: nvmf+tcp://host:4420/NQN?nsid=1".to_owned());
    }
    let options = found.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Ok(DeviceUri::NvmfTcp { address: address.to_owned(), options })
}

/// The options of `slow:` stand behind those of the inner URI, in the same query.
fn slow(rest: &str, depth: u32) -> Result<DeviceUri, String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mine = |option: &&str| {
        ["read_us=", "write_us=", "jitter="].iter().any(|key| option.starts_with(key))
    };
    let own: Vec<&str> = query.split('&').filter(mine).collect();
    let inner: Vec<&str> = query.split('&').filter(|o| !o.is_empty() && !mine(o)).collect();
    let inner =
        if inner.is_empty() { path.to_owned() } else { format!("{path}?{}", inner.join("&")) };
    let (mut read, mut write, mut jitter) = (Duration::ZERO, Duration::ZERO, 0.0);
    for option in own {
        let (key, text) = option.split_once('=').unwrap_or((option, ""));
        if key == "jitter" {
            let percent = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
            jitter = percent
                .filter(|percent| (0.0..=100.0).contains(percent))
                .ok_or_else(|| format!("jitter is 0% to 100%, not `{text}`"))?
                / 100.0;
            continue;
        }
        let span = text
            .parse::<u64>()
            .ok()
            .filter(|us| *us <= 60_000_000)
            .map(Duration::from_micros)
            .ok_or_else(|| format!("{key} is a number of microseconds up to 60000000, not `{text}`"))?;
        if key == "read_us" {
            read = span;
        } else {
            write = span;
        }
    }
    Ok(DeviceUri::Slow { inner: Box::new(parse(&inner, depth + 1)?), read, write, jitter })
}

/// A number of bytes with an optional unit K, M, G or T (powers of 1024).
fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is not a size; accepted are a number of bytes, 512M, 8G, 1T");
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let shift = match unit {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(bad()),
    };
    let count: u64 = digits.parse().map_err(|_| bad())?;
    count.checked_mul(1 << shift).filter(|size| *size > 0).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> DeviceUri {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_documented_forms_are_read() {
        let path = "/a/b".to_owned();
        let file = DeviceUri::Uring { path, size: Some(8 << 30) };
        assert_eq!(parsed("uring:/a/b?size=8G"), file);
        assert_eq!(parsed("mem:?size=64M"), DeviceUri::Mem { size: 64 << 20 });
        let slow = DeviceUri::Slow {
            inner: Box::new(file.clone()),
            read: Duration::from_micros(5000),
            write: Duration::from_micros(8000),
            jitter: 0.2,
        };
        assert_eq!(parsed("slow:uring:/a/b?size=8G&read_us=5000&write_us=8000&jitter=20%"), slow);
        assert_eq!(
            parsed("fault:slow:uring:/a/b?read_us=5000&write_us=8000&jitter=20%&size=8G"),
            DeviceUri::Fault { inner: Box::new(slow) }
        );
    }

    #[test]
    fn errors_name_the_part_and_what_is_accepted() {
        for (text, part) in [
            ("/dev/sda", "no scheme"),
            ("urng:/a", "not a scheme"),
            ("uring:", "path is missing"),
            ("uring:/a?sze=1", "`sze` is not an option"),
            ("uring:/a?size=1X", "not a size"),
            ("uring:/a?size=0", "not a size"),
            ("uring:/a?size=99999999999T", "not a size"),
            ("uring:/a?size=1&size=2", "twice"),
            ("mem:", "size is missing"),
            ("mem:x?size=1", "follows `mem:`"),
            ("slow:mem:?size=1M&jitter=x", "jitter"),
            ("slow:mem:?size=1M&read_us=-1", "read_us"),
            ("nvmf+tcp://host", "NQN is missing"),
            ("spdk:0000:5e:00.0", "later version"),
            ("fault:fault:fault:fault:fault:fault:mem:?size=1", "nested"),
        ] {
            let error = text.parse::<DeviceUri>().unwrap_err();
            assert!(error.what.contains(part), "{text}: {error}");
        }
    }
}
