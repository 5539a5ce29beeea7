//! Device URIs: `uring:/path?size=8G`, `mem:?size=1G`, `nvmf+tcp://host:4420/NQN?nsid=1`, and the
//! wrappers `slow:URI` and `fault:URI`.
//!
//! Wrappers and what they wrap share one list of options behind one `?`; each takes those that it knows.
//! A `%` in paths and values begins a two-digit hexadecimal byte, so `%3f` is a question mark.

mod options;
#[cfg(test)]
mod tests;

use core::fmt;
use core::time::Duration;
use options::{Options, decode, nearest};

/// A device URI, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceUri {
    /// A file or block device through io_uring.
    Uring {
        /// Its path.
        path: String,
        /// The size that the file has, or is made with where there is none.
        size: Option<u64>,
    },
    /// Memory of this process.
    Mem {
        /// Bytes.
        size: u64,
        /// Bytes of a logical block, 512 or 4096.
        block_size: u32,
    },
    /// A remote namespace; what follows `nvmf+tcp://`, with its options.
    NvmfTcp {
        /// `host:port/NQN`.
        address: String,
        /// The options, which the device itself checks.
        options: Vec<(String, String)>,
    },
    /// A device with added latency.
    Slow {
        /// The device.
        inner: Box<DeviceUri>,
        /// How slow.
        latency: Latency,
    },
    /// A device that fails on request.
    Fault {
        /// The device.
        inner: Box<DeviceUri>,
    },
}

/// Latencies of a `slow:` device: the least time from submission to completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Of reads.
    pub read: Duration,
    /// Of writes, deallocations and zeroing.
    pub write: Duration,
    /// Of flushes; as of writes where nothing is said.
    pub flush: Duration,
    /// Each latency varies by up to this many per cent, up or down.
    pub jitter: u8,
    /// What the variations are drawn from: the same seed gives the same series.
    pub seed: u64,
}

/// Why a text is not a device URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriError {
    /// The text, or its beginning where it is very long.
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

const FORMS: &str = "uring:/path, mem:?size=1G, nvmf+tcp://host:4420/NQN, slow:URI, fault:URI";
const SCHEMES: [&str; 5] = ["uring", "mem", "nvmf+tcp", "slow", "fault"];
/// No path or NQN needs more.
const LONGEST: usize = 8192;
/// A minute, in microseconds.
const LONGEST_DELAY: u64 = 60_000_000;

impl core::str::FromStr for DeviceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > LONGEST {
            let uri = text.chars().take(64).chain(['…']).collect();
            let what = format!("it has {} bytes; at most {LONGEST} are accepted", text.len());
            return Err(UriError { uri, what });
        }
        parse(text).map_err(|what| UriError { uri: text.to_owned(), what })
    }
}

fn parse(text: &str) -> Result<DeviceUri, String> {
    let (body, query) = text.split_once('?').unwrap_or((text, ""));
    let mut options = Options::parse(query)?;
    let (mut slow, mut fault) = (false, false);
    let (mut order, mut rest) = (Vec::new(), body);
    let mut uri = loop {
        let (scheme, after) = rest.split_once(':').ok_or_else(|| no_scheme(rest))?;
        let seen = match scheme {
            "slow" => core::mem::replace(&mut slow, true),
            "fault" => core::mem::replace(&mut fault, true),
            _ => break base(scheme, after, &mut options, slow)?,
        };
        if seen {
            return Err(format!("`{scheme}:` is there twice; each wrapper is accepted once"));
        }
        order.push(scheme);
        rest = after;
    };
    let latency = if slow { latency(&mut options)? } else { Latency::default() };
    options.finish()?;
    for scheme in order.iter().rev() {
        let inner = Box::new(uri);
        uri = match *scheme {
            "slow" => DeviceUri::Slow { inner, latency },
            _ => DeviceUri::Fault { inner },
        };
    }
    Ok(uri)
}

fn no_scheme(rest: &str) -> String {
    let hint = if rest.starts_with('/') {
        format!(" (a file or block device is `uring:{rest}`)")
    } else {
        String::new()
    };
    format!("there is no scheme{hint}; accepted are {FORMS}")
}

fn base(scheme: &str, rest: &str, options: &mut Options, slow: bool) -> Result<DeviceUri, String> {
    match scheme {
        "uring" => uring(rest, options),
        "mem" => mem(rest, options),
        "nvmf+tcp" => nvmf(rest, options, slow),
        "spdk" | "nvmf+rdma" => {
            Err(format!("`{scheme}:` comes in a later version; accepted are {FORMS}"))
        }
        other => {
            let hint = nearest(other, SCHEMES.into_iter())
                .map_or(String::new(), |near| format!(" (did you mean `{near}:`?)"));
            Err(format!("`{other}:` is not a scheme{hint}; accepted are {FORMS}"))
        }
    }
}

fn uring(rest: &str, options: &mut Options) -> Result<DeviceUri, String> {
    let path = decode(rest)?;
    if path.is_empty() {
        return Err("a path is missing: uring:/path".to_owned());
    }
    if path.contains('\0') {
        return Err("a path cannot hold a zero byte".to_owned());
    }
    let size = options.take_with("size", size)?;
    Ok(DeviceUri::Uring { path, size })
}

fn mem(rest: &str, options: &mut Options) -> Result<DeviceUri, String> {
    if !rest.is_empty() {
        return Err(format!("`{rest}` follows `mem:`; accepted is mem:?size=1G"));
    }
    let given = options.take_with("size", size)?;
    let size = given.ok_or("the size is missing: mem:?size=1G")?;
    let block_size = options.take_with("block_size", |text| match text {
        "512" => Ok(512),
        "4096" | "4K" => Ok(4096),
        other => Err(format!("`{other}` is not a block size; accepted are 512 and 4096")),
    })?;
    let block_size = block_size.unwrap_or(512);
    if !size.is_multiple_of(u64::from(block_size)) {
        return Err(format!("the size {size} is not a multiple of the block size {block_size}"));
    }
    Ok(DeviceUri::Mem { size, block_size })
}

fn nvmf(rest: &str, options: &mut Options, slow: bool) -> Result<DeviceUri, String> {
    const FORM: &str = "nvmf+tcp://host:4420/NQN?nsid=1";
    let address = rest.strip_prefix("//").ok_or_else(|| format!("accepted is {FORM}"))?;
    if !address.contains('/') {
        return Err(format!("the NQN is missing: {FORM}"));
    }
    // The device checks its own options, so those of a wrapper must not be among them.
    let wrapper = |name: &str| slow && LATENCY_OPTIONS.contains(&name);
    Ok(DeviceUri::NvmfTcp { address: decode(address)?, options: options.take_rest(wrapper) })
}

const LATENCY_OPTIONS: [&str; 5] = ["read_us", "write_us", "flush_us", "jitter", "seed"];

fn latency(options: &mut Options) -> Result<Latency, String> {
    let read = options.take_with("read_us", micros)?;
    let write = options.take_with("write_us", micros)?;
    let flush = options.take_with("flush_us", micros)?;
    if read.or(write).or(flush).is_none() {
        return Err("`slow:` without a latency; accepted is read_us=5000&write_us=8000".to_owned());
    }
    let jitter = options.take_with("jitter", |text| {
        let per_cent = text.strip_suffix('%').and_then(|number| number.parse().ok());
        let per_cent = per_cent.filter(|per_cent| *per_cent <= 100);
        per_cent.ok_or_else(|| format!("jitter is 0% to 100%, in whole per cent, not `{text}`"))
    })?;
    let seed = options.take_with("seed", |text| {
        text.parse().map_err(|_| format!("seed is a number from 0 to 2^64-1, not `{text}`"))
    })?;
    let write = write.unwrap_or_default();
    Ok(Latency {
        read: read.unwrap_or_default(),
        write,
        flush: flush.unwrap_or(write),
        jitter: jitter.unwrap_or(0),
        seed: seed.unwrap_or(0),
    })
}

fn micros(text: &str) -> Result<Duration, String> {
    let micros = text.parse().ok().filter(|micros| *micros <= LONGEST_DELAY);
    micros.map(Duration::from_micros).ok_or_else(|| {
        format!("`{text}` is not a number of microseconds from 0 to {LONGEST_DELAY} (a minute)")
    })
}

/// A number of bytes above zero with an optional unit K, M, G or T (powers of 1024).
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
    let size = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(1 << shift));
    // The largest offset in a file is an i64.
    size.filter(|size| *size > 0 && i64::try_from(*size).is_ok()).ok_or_else(bad)
}
