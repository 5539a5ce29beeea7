//! The values that configuration, command line and control calls have in common. Each is parsed
//! once, and a refusal says what is accepted.

use crate::error::{ControlError, ErrorKind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Why a text is not such a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue {
    /// What is accepted instead.
    pub accepted: String,
    /// What to do, where that is more than to write an accepted value.
    pub remedy: Option<String>,
}

impl BadValue {
    /// A value that is not one of these.
    pub fn accepted(accepted: impl Into<String>) -> Self {
        Self { accepted: accepted.into(), remedy: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The control error for the value of a field.
    #[must_use]
    pub fn of(self, field: &str, value: impl fmt::Display) -> ControlError {
        let mut error = ControlError::new(ErrorKind::Invalid, format!("{field} is not valid"))
            .field(field)
            .value(value)
            .accepted(self.accepted);
        error.detail.remedy = self.remedy;
        error
    }
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "accepted: {}", self.accepted)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

impl std::error::Error for BadValue {}

/// A number of bytes. Written as `8G`, `64MiB`, `4096`; units are powers of 1024.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 4] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for ByteSize {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || {
            BadValue::accepted(
                "a whole number of bytes, or with a unit K, M, G or T (powers of 1024): 8G, 64MiB",
            )
        };
        let (digits, unit) = split_unit(text);
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1u64 << 40,
            _ => return Err(bad()),
        };
        let count: u64 = digits.parse().map_err(|_| bad())?;
        count.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    /// Exact: the largest unit that divides it, so that it parses to the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, bytes) in SIZE_UNITS {
            if self.0 != 0 && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{unit}", self.0 / bytes);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A span of time. Written as `3s`, `500ms`, `2m`, `1h`, `10us`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Span {
    /// Microseconds.
    pub us: u64,
}

const SPAN_UNITS: [(&str, u64); 5] =
    [("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

impl Span {
    /// A span of whole seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self { us: secs.saturating_mul(1_000_000) }
    }

    /// The same as the standard library's type.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_micros(self.us)
    }
}

impl FromStr for Span {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || BadValue::accepted("a whole number with a unit us, ms, s, m or h: 3s, 500ms");
        let (digits, unit) = split_unit(text);
        let (_, factor) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let count: u64 = digits.parse().map_err(|_| bad())?;
        count.checked_mul(*factor).map(|us| Self { us }).ok_or_else(bad)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, us) in SPAN_UNITS {
            if self.us != 0 && self.us.is_multiple_of(us) {
                return write!(f, "{}{unit}", self.us / us);
            }
        }
        write!(f, "{}us", self.us)
    }
}

/// A range of logical blocks. Written as `N`, `FIRST-LAST` or `FIRST+COUNT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LbaSpan {
    /// The first block.
    pub first: u64,
    /// How many, at least one.
    pub blocks: u64,
}

impl LbaSpan {
    /// The block after the last.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.blocks)
    }
}

impl FromStr for LbaSpan {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || BadValue::accepted("N, FIRST-LAST or FIRST+COUNT: 0, 0-7, 0+8");
        let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
        let (first, blocks) = if let Some((first, count)) = text.split_once('+') {
            (number(first)?, number(count)?)
        } else if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (number(first)?, number(last)?);
            (first, last.checked_sub(first).and_then(|n| n.checked_add(1)).ok_or_else(bad)?)
        } else {
            (number(text)?, 1)
        };
        if blocks == 0 || first.checked_add(blocks).is_none() {
            return Err(bad());
        }
        Ok(Self { first, blocks })
    }
}

impl fmt::Display for LbaSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.blocks {
            1 => write!(f, "{}", self.first),
            _ => write!(f, "{}-{}", self.first, self.end() - 1),
        }
    }
}

impl TryFrom<String> for LbaSpan {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|bad: BadValue| format!("{text:?} is no range: {}", bad.accepted))
    }
}

impl From<LbaSpan> for String {
    fn from(span: LbaSpan) -> Self {
        span.to_string()
    }
}

/// Ranges in their order, those that overlap or touch joined.
#[must_use]
pub fn joined(spans: impl IntoIterator<Item = LbaSpan>) -> Vec<LbaSpan> {
    let mut spans: Vec<LbaSpan> = spans.into_iter().collect();
    spans.sort_unstable();
    let mut all: Vec<LbaSpan> = Vec::new();
    for span in spans {
        match all.last_mut() {
            Some(last) if span.first <= last.end() => {
                last.blocks = last.end().max(span.end()) - last.first;
            }
            _ => all.push(span),
        }
    }
    all
}

/// What is left of ranges without one.
#[must_use]
pub fn without(spans: &[LbaSpan], gone: LbaSpan) -> Vec<LbaSpan> {
    let part = |first: u64, end: u64| {
        let blocks = end.checked_sub(first).filter(|blocks| *blocks > 0)?;
        Some(LbaSpan { first, blocks })
    };
    let parts = |span: &LbaSpan| {
        let before = part(span.first, span.end().min(gone.first));
        [before, part(span.first.max(gone.end()), span.end())]
    };
    spans.iter().flat_map(parts).flatten().collect()
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, as it is written.
            pub const WORDS: &'static [&'static str] = &[$($text),+];

            /// As it is written.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = BadValue;

            fn from_str(text: &str) -> Result<Self, BadValue> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(not_a_word(text, Self::WORDS)),
                }
            }
        }
    };
}

words! {
    /// What the cache does for a volume.
    Mode {
        /// Every command goes to the backing store; nothing is cached.
        PassThrough = "pass-through",
        /// Reads are cached, writes go to the backing store only.
        WriteAround = "write-around",
        /// Reads and writes are cached; a write is acknowledged by the backing store.
        WriteThrough = "write-through",
        /// A write is acknowledged by the journal and destaged later.
        WriteBack = "write-back",
        /// The same, and between batches of destage the backing store is a prefix of the acknowledged
        /// writes.
        WriteBackOrdered = "write-back-ordered",
    }
}

impl Mode {
    /// Whether writes are acknowledged before the backing store has them.
    #[must_use]
    pub const fn is_write_back(self) -> bool {
        matches!(self, Self::WriteBack | Self::WriteBackOrdered)
    }
}

words! {
    /// What is known of a cache device's write cache.
    Durability {
        /// As the device says.
        Auto = "auto",
        /// Declared to be protected against power loss.
        Protected = "protected",
        /// Declared to lose completed writes at a power loss until they are flushed.
        Volatile = "volatile",
    }
}

words! {
    /// How reactors wait.
    Poll {
        /// Spin for a bounded time, then wait in the kernel.
        Adaptive = "adaptive",
        /// Never sleep.
        Busy = "busy",
    }
}

words! {
    /// Whether buffers come from hugepages.
    HugepageUse {
        /// Where there are any; else from ordinary pages.
        Auto = "auto",
        /// Refuse to start without.
        Required = "required",
        /// Never.
        Off = "off",
    }
}

fn not_a_word(text: &str, words: &[&str]) -> BadValue {
    let bad = BadValue::accepted(words.join(", "));
    match nearest(text, words) {
        Some(word) => bad.remedy(format!("did you mean `{word}`?")),
        None => bad,
    }
}

/// The word nearest to `text`, if it is near enough to be a slip of the keyboard.
#[must_use]
pub fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    // Longer texts are no slip of any word we have, and the distance costs their product.
    const TEXT_MAX: usize = 64;
    if text.len() > TEXT_MAX {
        return None;
    }
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    let text = plain(text);
    words
        .iter()
        .map(|word| (distance(&text, &plain(word)), *word))
        .filter(|(d, word)| *d <= (word.len() / 3).max(1))
        .min_by_key(|(d, _)| *d)
        .map(|(_, word)| word)
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Longest NQN in bytes (NVMe Base 2.0 §4.5).
pub const NQN_LEN_MAX: usize = 223;
/// Longest volume or subsystem name in bytes.
pub const NAME_LEN_MAX: usize = 63;

/// Checks the name of a volume, subsystem or node: it becomes part of an NQN and of file names.
///
/// # Errors
/// What is accepted.
pub fn check_name(name: &str) -> Result<(), BadValue> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && name.len() <= NAME_LEN_MAX && name.chars().all(good) {
        return Ok(());
    }
    Err(BadValue::accepted(format!(
        "1 to {NAME_LEN_MAX} letters, digits, `.`, `_` or `-`, the first a letter or a digit"
    )))
}

/// Checks an NVMe qualified name (NVMe Base 2.0 §4.5).
///
/// # Errors
/// What is accepted.
pub fn check_nqn(nqn: &str) -> Result<(), BadValue> {
    let month = nqn.strip_prefix("nqn.").and_then(|rest| rest.get(..7)).unwrap_or_default();
    let dated = month.bytes().enumerate().all(|(i, b)| match i {
        4 => b == b'-',
        _ => b.is_ascii_digit(),
    }) && month.len() == 7;
    let rest = nqn.get(11..).unwrap_or_default();
    let named = rest.len() > 1 && rest.starts_with('.');
    let plain = nqn.chars().all(|c| !c.is_control() && !c.is_whitespace());
    if dated && named && plain && nqn.len() <= NQN_LEN_MAX {
        return Ok(());
    }
    let bad = BadValue::accepted(format!(
        "an NVMe qualified name of at most {NQN_LEN_MAX} bytes: nqn.2014-08.org.nvmexpress:uuid:…"
    ));
    Err(match nqn {
        "*" | "any" => bad.remedy(
            "there is no wildcard: name each host (on a Linux host: cat /etc/nvme/hostnqn)",
        ),
        _ => bad.remedy("on a Linux host: cat /etc/nvme/hostnqn"),
    })
}

/// Schemes of device URIs that this version opens.
const SCHEMES: [&str; 5] = ["uring", "mem", "nvmf+tcp", "slow", "fault"];
/// Longest device URI in bytes.
const URI_LEN_MAX: usize = 4096;

/// Checks the scheme of a device URI, through its wrappers. What follows is checked where the
/// device is opened.
///
/// # Errors
/// What is accepted.
pub fn check_device_uri(uri: &str) -> Result<(), BadValue> {
    const WRAPPERS_MAX: usize = 8;
    let bad = || {
        BadValue::accepted(
            "uring:/path[?size=8G], mem:?size=1G, nvmf+tcp://host:port/NQN[?nsid=1], \
             slow:URI, fault:URI",
        )
    };
    if uri.len() > URI_LEN_MAX || uri.chars().any(char::is_control) {
        return Err(bad());
    }
    let mut rest = uri;
    for _ in 0..WRAPPERS_MAX {
        let Some((scheme, tail)) = rest.split_once(':') else {
            return Err(if rest.starts_with('/') {
                bad().remedy(format!("did you mean `uring:{rest}`?"))
            } else {
                bad()
            });
        };
        match scheme {
            "slow" | "fault" => rest = tail,
            "spdk" | "nvmf+rdma" => {
                return Err(bad().remedy(format!("`{scheme}:` comes in a later version")));
            }
            "uring" | "mem" | "nvmf+tcp" if tail.is_empty() => return Err(bad()),
            "uring" | "mem" | "nvmf+tcp" => return Ok(()),
            other => {
                return Err(match nearest(other, &SCHEMES) {
                    Some(near) => bad().remedy(format!("did you mean `{near}:`?")),
                    None => bad(),
                });
            }
        }
    }
    Err(bad().remedy(format!("at most {WRAPPERS_MAX} wrappers")))
}

/// Checks a logical block size.
///
/// # Errors
/// What is accepted.
pub fn check_block_size(bytes: u64) -> Result<u32, BadValue> {
    match bytes {
        512 => Ok(512),
        4096 => Ok(4096),
        _ => Err(BadValue::accepted("512, 4096")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_blocks() {
        let range = |text: &str| text.parse::<LbaSpan>().map(|span| (span.first, span.blocks));
        assert_eq!(range("7"), Ok((7, 1)));
        assert_eq!(range("0-7"), Ok((0, 8)));
        assert_eq!(range("8+8"), Ok((8, 8)));
        for bad in
            ["", "-", "+", "a", "1-", "18446744073709551615+1", "0-18446744073709551615", "1+-1"]
        {
            assert!(range(bad).is_err(), "{bad}");
            assert!(serde_json::from_value::<LbaSpan>(bad.into()).is_err(), "{bad}");
        }
        for text in ["7", "0-7", "8-15"] {
            let span: LbaSpan = text.parse().unwrap();
            assert_eq!(span.to_string(), text);
            let json = serde_json::to_value(span).unwrap();
            assert_eq!(json.as_str(), Some(text));
            assert_eq!(serde_json::from_value::<LbaSpan>(json).unwrap(), span);
        }
    }

    #[test]
    fn ranges_are_joined_and_taken_away() {
        let spans = |texts: &[&str]| -> Vec<LbaSpan> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let all = joined(spans(&["10-14", "0-2", "15", "2+4", "12"]));
        assert_eq!(all, spans(&["0-5", "10-15"]));
        for (gone, left) in [
            ("3", &["0-2", "4-5", "10-15"] as &[&str]),
            ("0-5", &["10-15"]),
            ("4-11", &["0-3", "12-15"]),
            ("6-9", &["0-5", "10-15"]),
            ("0-99", &[]),
        ] {
            assert_eq!(without(&all, gone.parse().unwrap()), spans(left), "without {gone}");
        }
    }

    #[test]
    fn sizes_and_spans_round_trip() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("8G", 8 << 30),
            ("64MiB", 64 << 20),
            ("1t", 1 << 40),
            ("3k", 3072),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size, ByteSize(bytes));
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for bad in ["", "G", "-1", "1.5G", "8 G", "8X", "99999999999999999999", "20000000T"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        for (text, us) in [("3s", 3_000_000), ("500ms", 500_000), ("1h", 3_600_000_000), ("7us", 7)]
        {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.us, us);
            assert_eq!(span.to_string(), text);
        }
        assert!("3".parse::<Span>().is_err());
        assert!("3 s".parse::<Span>().is_err());
    }

    #[test]
    fn slips_get_a_suggestion_and_strangers_none() {
        assert_eq!(nearest("nmae", &["name", "mode"]), Some("name"));
        assert_eq!(nearest("blocksize", &["block_size"]), Some("block_size"));
        assert_eq!(nearest("quux", &["name", "mode"]), None);
        assert_eq!(
            "writeback".parse::<Mode>().unwrap_err().remedy.unwrap(),
            "did you mean `write-back`?"
        );
        assert_eq!("write-back-ordered".parse::<Mode>().unwrap(), Mode::WriteBackOrdered);
    }

    #[test]
    fn nqns_names_and_uris() {
        check_nqn("nqn.2014-08.org.nvmexpress:uuid:1").unwrap();
        for bad in [
            "",
            "*",
            "nqn.",
            "nqn.2014-08",
            "nqn.2014-8.org.x:y",
            "nqn.2014-08.a b",
            "iqn.2014-08.org",
        ] {
            check_nqn(bad).unwrap_err();
        }
        check_nqn(&format!("nqn.2014-08.{}", "a".repeat(212))).unwrap_err();
        check_name("vm-1.data_2").unwrap();
        for bad in ["", ".", "-a", "a/b", "a b", "é", &"a".repeat(64)] {
            check_name(bad).unwrap_err();
        }
        check_device_uri("slow:fault:uring:/a?size=1G").unwrap();
        check_device_uri("mem:?size=1G").unwrap();
        for bad in [
            "",
            "/dev/sdb",
            "urign:/a",
            "uring:",
            "spdk:0000:5e:00.0",
            "slow:",
            "slow:slow:slow:slow:slow:slow:slow:slow:mem:?size=1",
        ] {
            check_device_uri(bad).unwrap_err();
        }
        assert!(
            check_device_uri("/dev/sdb").unwrap_err().remedy.unwrap().contains("uring:/dev/sdb")
        );
    }
}
