//! TOML text to [`ServeConfig`].

use super::check::check_together;
use super::{
    BLOCK_SIZE, CacheConfig, ControlConfig, ListenConfig, NQN_PREFIX, NodeConfig, Origin, PINS_MAX,
    PORT, SOCKET, STATE_DIR, SecurityConfig, ServeConfig, Transport, VolumeConfig,
};
use crate::error::{ControlError, Detail, ErrorKind};
use crate::fields::{Fields, ISSUES_MAX, Issue, Item, Raw, Table};
use crate::value::{
    BadValue, ByteSize, Durability, HugepageUse, LbaSpan, Mode, Poll, check_block_size,
    check_device_uri, check_name, check_nqn, joined,
};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Largest configuration file in bytes.
const CONFIG_LEN_MAX: usize = 4 << 20;
/// Most listeners, caches and hosts; and most volumes.
const SECTIONS_MAX: usize = 256;
const VOLUMES_MAX: usize = 4096;
/// Most hosts in one list.
const HOSTS_MAX: usize = 1024;

/// One thing that is wrong in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, naming the key.
    pub message: String,
    /// Key, value, what is accepted, what to do.
    pub detail: Detail,
}

/// Everything that is wrong in a configuration file (the first twenty).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file's name as it was given.
    pub file: String,
    /// At least one, in the order of the file.
    pub errors: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}:{}: {}", self.file, error.line, error.column, error.message)?;
            let Detail { value, accepted, remedy, .. } = &error.detail;
            for (label, text) in [("value", value), ("accepted", accepted), ("what to do", remedy)]
            {
                if let Some(text) = text {
                    write!(f, "\n  {label}: {text}")?;
                }
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigErrors> for ControlError {
    fn from(errors: ConfigErrors) -> Self {
        Self::new(ErrorKind::Invalid, errors.to_string())
    }
}

/// Reads and checks a configuration file.
///
/// # Errors
/// A file that cannot be read, or everything that is wrong in it.
pub fn read_file(path: &Path) -> Result<ServeConfig, ControlError> {
    let unreadable = |why: &dyn fmt::Display| {
        ControlError::new(
            ErrorKind::Invalid,
            format!("the configuration file {} cannot be read: {why}", path.display()),
        )
        .remedy("name an existing file with --config, or start with `forebay serve --quickstart`")
    };
    let bytes = crate::files::read_bounded(path)
        .map_err(|error| unreadable(&error))?
        .ok_or_else(|| unreadable(&"there is no such file"))?;
    let text = String::from_utf8(bytes).map_err(|error| unreadable(&error))?;
    let mut config = parse(&path.display().to_string(), &text)?;
    config.origin = Origin::File(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    Ok(config)
}

/// Parses and checks the text of a configuration file; `file` is its name in errors.
///
/// # Errors
/// Everything that is wrong, with line and column.
pub fn parse(file: &str, text: &str) -> Result<ServeConfig, ConfigErrors> {
    let mut issues = Vec::new();
    let config = parse_text(file, text, &mut issues);
    match config {
        Some(config) if issues.is_empty() => Ok(config),
        _ => {
            issues.sort_by_key(|issue| issue.at);
            let errors = issues.into_iter().map(|issue| located(text, issue)).collect();
            Err(ConfigErrors { file: file.to_owned(), errors })
        }
    }
}

fn located(text: &str, issue: Issue) -> ConfigError {
    let mut at = issue.at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    ConfigError {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: issue.message,
        detail: issue.detail,
    }
}

fn parse_text(file: &str, text: &str, issues: &mut Vec<Issue>) -> Option<ServeConfig> {
    let mut plain = |at: usize, message: String| {
        issues.push(Issue { at, message, detail: Detail::default() });
    };
    if text.len() > CONFIG_LEN_MAX {
        plain(0, format!("the file has {} bytes, more than {CONFIG_LEN_MAX}", text.len()));
        return None;
    }
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            plain(at, format!("not TOML: {}", error.message().replace('\n', ", ")));
            return None;
        }
    };
    let mut top = Fields::new("", 0, table_of(&table), issues);
    let sections = Sections::take(&mut top);
    top.finish();
    sections.read(file, issues)
}

/// The sections, taken out of the top table before each is read.
struct Sections {
    node: (usize, Table),
    listen: Vec<(usize, Table)>,
    caches: Vec<(usize, Table)>,
    volumes: Vec<(usize, Table)>,
    security: (usize, Table),
    control: (usize, Table),
}

impl Sections {
    fn take(top: &mut Fields<'_>) -> Self {
        let sections = Self {
            node: section(top, "node"),
            listen: section_list(top, "listen", SECTIONS_MAX),
            caches: section_list(top, "cache", SECTIONS_MAX),
            volumes: section_list(top, "volume", VOLUMES_MAX),
            security: section(top, "security"),
            control: section(top, "control"),
        };
        top.later(
            "cluster",
            "remove the section: one node alone keeps its configuration in `node.state_dir`",
        );
        sections
    }

    fn read(self, file: &str, issues: &mut Vec<Issue>) -> Option<ServeConfig> {
        let node = read_node(Fields::new("node", self.node.0, self.node.1, issues));
        let listen = read_listen(self.listen, issues);
        let caches = each("cache", self.caches, issues, read_cache);
        let volumes = each("volume", self.volumes, issues, |mut fields| {
            let volume = read_volume(&mut fields);
            fields.finish();
            volume
        });
        let security =
            read_security(Fields::new("security", self.security.0, self.security.1, issues));
        let control = read_control(Fields::new("control", self.control.0, self.control.1, issues));
        let (node, caches, volumes) = (node?, caches?, volumes?);
        check_together(&node, &caches, &volumes, issues);
        Some(ServeConfig {
            origin: Origin::File(PathBuf::from(file)),
            node,
            listen: listen?,
            caches,
            volumes: volumes.into_iter().map(|(_, volume)| volume).collect(),
            security,
            control,
        })
    }
}

fn item_of(value: &toml::Spanned<DeValue<'_>>) -> Item {
    let raw = match value.get_ref() {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(int) => i128::from_str_radix(int.as_str(), int.radix())
            .map_or_else(|_| Raw::Other(int.to_string()), Raw::Int),
        DeValue::Float(float) => Raw::Other(float.to_string()),
        DeValue::Boolean(b) => Raw::Bool(*b),
        DeValue::Datetime(date) => Raw::Other(date.to_string()),
        DeValue::Array(list) => Raw::List(list.iter().map(item_of).collect()),
        DeValue::Table(table) => Raw::Table(table_of(table)),
    };
    Item { at: value.span().start, raw }
}

fn table_of(table: &DeTable<'_>) -> Table {
    table
        .iter()
        .map(|(key, value)| (key.get_ref().to_string(), (key.span().start, item_of(value))))
        .collect()
}

fn section(top: &mut Fields<'_>, key: &'static str) -> (usize, Table) {
    match top.take(key) {
        Some(Item { at, raw: Raw::Table(table) }) => (at, table),
        Some(Item { at, .. }) => {
            let detail =
                Detail { accepted: Some(format!("a section [{key}]")), ..Detail::default() };
            top.issue(at, key, "is not a section", detail);
            (at, Table::new())
        }
        None => (0, Table::new()),
    }
}

fn section_list(top: &mut Fields<'_>, key: &'static str, max: usize) -> Vec<(usize, Table)> {
    let Some(item) = top.take(key) else { return Vec::new() };
    let mut tables = Vec::new();
    let mut good = false;
    if let Raw::List(list) = item.raw {
        good = list.len() <= max;
        for entry in list {
            match entry.raw {
                Raw::Table(table) => tables.push((entry.at, table)),
                _ => good = false,
            }
        }
    }
    if !good {
        let accepted = Some(format!("at most {max} sections [[{key}]]"));
        top.issue(
            item.at,
            key,
            "is not a list of sections",
            Detail { accepted, ..Detail::default() },
        );
        tables.clear();
    }
    tables
}

/// Reads each table of a list; `None` where any of them is wrong.
fn each<T>(
    name: &str,
    tables: Vec<(usize, Table)>,
    issues: &mut Vec<Issue>,
    read: impl Fn(Fields<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let mut all = Some(Vec::new());
    for (i, (at, table)) in tables.into_iter().enumerate() {
        match (read(Fields::new(format!("{name}[{i}]"), at, table, issues)), &mut all) {
            (Some(value), Some(values)) => values.push(value),
            _ => all = None,
        }
    }
    all
}

fn read_node(mut fields: Fields<'_>) -> Option<NodeConfig> {
    let name = fields.text("name", |text| check_name(text).map(|()| text.to_owned()));
    let cores = fields.with("cores", read_cores).unwrap_or_default();
    let poll = fields.parse("poll").unwrap_or(Poll::Adaptive);
    const MEMORY_MIN: ByteSize = ByteSize(64 << 20);
    let memory = fields.with("memory", |raw| {
        let size: ByteSize = match raw {
            Raw::Text(text) => text.parse()?,
            Raw::Int(bytes) => bytes.to_string().parse()?,
            _ => "".parse()?,
        };
        if size < MEMORY_MIN {
            return Err(BadValue::accepted(format!("{MEMORY_MIN} or more")));
        }
        Ok(size)
    });
    let hugepages = fields.parse("hugepages").unwrap_or(HugepageUse::Auto);
    let nqn_prefix = fields
        .text("nqn_prefix", |text| check_nqn(text).map(|()| text.to_owned()))
        .unwrap_or_else(|| NQN_PREFIX.to_owned());
    let state_dir =
        fields.text("state_dir", read_absolute).unwrap_or_else(|| PathBuf::from(STATE_DIR));
    fields.finish();
    let name = name.unwrap_or_else(host_name);
    Some(NodeConfig { name, cores, poll, memory, hugepages, nqn_prefix, state_dir })
}

/// The machine's name, or `node` where it has none that can be a node's.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| check_name(name).is_ok())
        .unwrap_or_else(|| "node".to_owned())
}

fn read_cores(raw: &Raw) -> Result<Vec<usize>, BadValue> {
    const CORE_MAX: usize = 1023;
    let bad =
        || BadValue::accepted("a list of core numbers [0, 1], or a text \"0-3,5\"; each core once");
    let core = |n: i128| usize::try_from(n).ok().filter(|n| *n <= CORE_MAX).ok_or_else(bad);
    let mut cores = Vec::new();
    match raw {
        Raw::List(list) => {
            for entry in list {
                match entry.raw {
                    Raw::Int(n) => cores.push(core(n)?),
                    _ => return Err(bad()),
                }
            }
        }
        Raw::Text(text) => {
            for part in text.split(',') {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let number =
                    |text: &str| text.trim().parse::<u16>().map_err(|_| bad()).map(i128::from);
                let (first, last) = (core(number(first)?)?, core(number(last)?)?);
                cores.extend(first..=last);
            }
        }
        _ => return Err(bad()),
    }
    let distinct: BTreeSet<usize> = cores.iter().copied().collect();
    if cores.is_empty() || distinct.len() != cores.len() {
        return Err(bad());
    }
    Ok(cores)
}

fn read_absolute(text: &str) -> Result<PathBuf, BadValue> {
    let path = PathBuf::from(text);
    if path.is_absolute() && !text.contains('\0') {
        return Ok(path);
    }
    Err(BadValue::accepted("an absolute path"))
}

fn read_listen(tables: Vec<(usize, Table)>, issues: &mut Vec<Issue>) -> Option<Vec<ListenConfig>> {
    let listen = each("listen", tables, issues, |mut fields| {
        let transport = match fields.text("transport", read_transport) {
            Some(transport) => transport,
            None => Transport::Tcp,
        };
        let ip = fields.text("address", |text| {
            text.parse::<IpAddr>().map_err(|_| {
                BadValue::accepted(
                    "an IP address: 192.0.2.1, 0.0.0.0 (all of IPv4), [::] without brackets",
                )
            })
        });
        let port = fields.int("port", 1, 65535);
        if ip.is_none() {
            fields.missing("address", "an IP address, such as 192.0.2.1 or 0.0.0.0");
        }
        fields.finish();
        let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
        Some(ListenConfig { transport, address: SocketAddr::new(ip?, port) })
    })?;
    if listen.is_empty() && issues.len() < ISSUES_MAX {
        issues.push(Issue {
            at: 0,
            message: "no [[listen]] section: no host could connect".to_owned(),
            detail: Detail {
                field: Some("listen".to_owned()),
                remedy: Some(
                    "add: [[listen]] with address = \"127.0.0.1\" (port 4420 unless set)"
                        .to_owned(),
                ),
                ..Detail::default()
            },
        });
        return None;
    }
    Some(listen)
}

fn read_transport(text: &str) -> Result<Transport, BadValue> {
    match text {
        "tcp" => Ok(Transport::Tcp),
        "rdma" => Err(BadValue::accepted("tcp").remedy("`rdma` comes in a later version")),
        _ => Err(BadValue::accepted("tcp")),
    }
}

fn read_cache(mut fields: Fields<'_>) -> Option<CacheConfig> {
    let device = fields.text("device", |uri| check_device_uri(uri).map(|()| uri.to_owned()));
    let durability = fields.parse("durability").unwrap_or(Durability::Auto);
    if device.is_none() {
        fields.missing("device", "a device URI, such as uring:/dev/nvme0n1");
    }
    fields.finish();
    Some(CacheConfig { device: device?, durability })
}

/// The fields of a volume; also those of the call `volume_create`. Gives its place as well.
pub(crate) fn read_volume(fields: &mut Fields<'_>) -> Option<(usize, VolumeConfig)> {
    let name = fields.text("name", |text| check_name(text).map(|()| text.to_owned()));
    let backing = fields.text("backing", |uri| check_device_uri(uri).map(|()| uri.to_owned()));
    let mode: Option<Mode> = fields.parse("mode");
    let block_size = fields.with("block_size", |raw| match raw {
        Raw::Int(n) => check_block_size(u64::try_from(*n).unwrap_or(0)),
        _ => check_block_size(0),
    });
    let subsystem = fields.text("subsystem", |text| check_name(text).map(|()| text.to_owned()));
    let hosts = fields.texts("hosts", HOSTS_MAX, check_nqn);
    let dirty_max = fields.size("dirty_max");
    let dirty_age_max = fields.span("dirty_age_max");
    let (batch_max, batch_age_max) = (fields.size("batch_max"), fields.span("batch_age_max"));
    let ordered_journal =
        fields.text("ordered_journal", |uri| check_device_uri(uri).map(|()| uri.to_owned()));
    let memory_tier = fields.size("memory_tier");
    let (cache_min, cache_max) = (fields.size("cache_min"), fields.size("cache_max"));
    let pin = fields.texts("pin", PINS_MAX, |text| text.parse::<LbaSpan>().map(|_| ()));
    let pin = joined(pin.iter().flatten().filter_map(|text| text.parse().ok()));
    for copies in ["replicas", "min_copies"] {
        fields.with(copies, |raw| match raw {
            Raw::Int(1) => Ok(()),
            _ => Err(BadValue::accepted("1").remedy("replication comes in a later version")),
        });
    }
    for (key, there, accepted) in [
        ("name", name.is_some(), "a name of letters, digits, `.`, `_` and `-`"),
        ("backing", backing.is_some(), "a device URI, such as uring:/dev/sdb"),
        (
            "mode",
            mode.is_some(),
            "pass-through, write-around, write-through, write-back, write-back-ordered",
        ),
    ] {
        if !there {
            fields.missing(key, accepted);
        }
    }
    if let (Some(min), Some(max)) = (cache_min, cache_max)
        && min > max
    {
        let detail = Detail {
            value: Some(min.to_string()),
            accepted: Some(format!("at most cache_max = {max}")),
            ..Detail::default()
        };
        fields.issue(fields.place(), "cache_min", "is above `cache_max`", detail);
    }
    Some((
        fields.place(),
        VolumeConfig {
            name: name?,
            backing: backing?,
            mode: mode?,
            block_size: block_size.unwrap_or(BLOCK_SIZE),
            subsystem,
            hosts,
            dirty_max,
            dirty_age_max,
            batch_max,
            batch_age_max,
            ordered_journal,
            memory_tier,
            cache_min,
            cache_max,
            pin,
        },
    ))
}

fn read_security(mut fields: Fields<'_>) -> SecurityConfig {
    let hosts = fields.texts("hosts", HOSTS_MAX, check_nqn).unwrap_or_default();
    fields.later("keys", "authentication and TLS are not there yet: keep the network apart");
    fields.finish();
    SecurityConfig { hosts, any_host_from_loopback: false }
}

fn read_control(mut fields: Fields<'_>) -> ControlConfig {
    let socket = fields.text("socket", |text| {
        // sockaddr_un.sun_path has 108 bytes with the final zero; the server binds under a
        // temporary name that is four longer.
        const SOCKET_LEN_MAX: usize = 103;
        if text.len() > SOCKET_LEN_MAX {
            return Err(BadValue::accepted(format!("a path of at most {SOCKET_LEN_MAX} bytes")));
        }
        read_absolute(text)
    });
    let metrics = fields.text("metrics", |text| {
        text.parse::<SocketAddr>()
            .map_err(|_| BadValue::accepted("an address and a port: 127.0.0.1:9820"))
    });
    fields.finish();
    ControlConfig { socket: socket.unwrap_or_else(|| PathBuf::from(SOCKET)), metrics }
}
