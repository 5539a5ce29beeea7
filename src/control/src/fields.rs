//! Reads named fields out of a TOML table or a JSON object, one reader for both, so that a volume
//! is described with the same words, checks and errors in the file and in a call.

use crate::error::{ControlError, Detail, ErrorKind};
use crate::value::{BadValue, ByteSize, Span, nearest};
use std::collections::BTreeMap;
use std::str::FromStr;

/// Most issues that are collected before the reader stops adding to them.
pub(crate) const ISSUES_MAX: usize = 20;

/// A value of either language, with its place in the text (0 where there is none).
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) at: usize,
    pub(crate) raw: Raw,
}

/// The kinds of value that a field can have.
#[derive(Clone, Debug)]
pub(crate) enum Raw {
    Text(String),
    Int(i128),
    Bool(bool),
    List(Vec<Item>),
    Table(Table),
    /// Anything else, as it is written.
    Other(String),
}

/// Key to (place of the key, value).
pub(crate) type Table = BTreeMap<String, (usize, Item)>;

impl Raw {
    fn shown(&self) -> String {
        let mut text = match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Int(n) => n.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::List(list) => format!("a list of {}", list.len()),
            Self::Table(_) => "a table".to_owned(),
            Self::Other(text) => text.clone(),
        };
        const SHOWN_MAX: usize = 200;
        if text.len() > SHOWN_MAX {
            let cut = (0..=SHOWN_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(cut);
            text.push('…');
        }
        text
    }
}

impl From<serde_json::Value> for Item {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value;
        let raw = match value {
            Value::String(text) => Raw::Text(text),
            Value::Bool(b) => Raw::Bool(b),
            Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Raw::Int(i.into()),
                (_, Some(u)) => Raw::Int(u.into()),
                _ => Raw::Other(n.to_string()),
            },
            Value::Array(list) => Raw::List(list.into_iter().map(Self::from).collect()),
            Value::Object(map) => {
                Raw::Table(map.into_iter().map(|(k, v)| (k, (0, Self::from(v)))).collect())
            }
            Value::Null => Raw::Other("null".to_owned()),
        };
        Self { at: 0, raw }
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issue {
    /// Byte offset in the text.
    pub(crate) at: usize,
    pub(crate) message: String,
    pub(crate) detail: Detail,
}

impl Issue {
    pub(crate) fn into_control_error(self) -> ControlError {
        ControlError {
            kind: ErrorKind::Invalid,
            message: self.message,
            detail: Box::new(self.detail),
        }
    }
}

/// A table being read: every field is taken by name, and what is left over is unknown.
pub(crate) struct Fields<'i> {
    /// Where the table is, as in `volume[0]`; empty at the top.
    path: String,
    at: usize,
    table: Table,
    known: Vec<&'static str>,
    issues: &'i mut Vec<Issue>,
}

impl<'i> Fields<'i> {
    pub(crate) fn new(
        path: impl Into<String>,
        at: usize,
        table: Table,
        issues: &'i mut Vec<Issue>,
    ) -> Self {
        Self { path: path.into(), at, table, known: Vec::new(), issues }
    }

    /// Where the table starts in the text.
    pub(crate) fn place(&self) -> usize {
        self.at
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn issue(&mut self, at: usize, key: &str, what: &str, detail: Detail) {
        if self.issues.len() < ISSUES_MAX {
            let name = self.full(key);
            let message = format!("`{name}` {what}");
            self.issues.push(Issue { at, message, detail: Detail { field: Some(name), ..detail } });
        }
    }

    fn bad(&mut self, at: usize, key: &str, shown: String, bad: BadValue) {
        let detail = Detail {
            field: None,
            value: Some(shown),
            accepted: Some(bad.accepted),
            remedy: bad.remedy,
        };
        self.issue(at, key, "is not valid", detail);
    }

    /// The raw value of an optional field.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Item> {
        self.known.push(key);
        self.table.remove(key).map(|(_, item)| item)
    }

    /// A field read by `read`, which says what it accepts instead.
    pub(crate) fn with<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Raw) -> Result<T, BadValue>,
    ) -> Option<T> {
        let item = self.take(key)?;
        match read(&item.raw) {
            Ok(value) => Some(value),
            Err(bad) => {
                self.bad(item.at, key, item.raw.shown(), bad);
                None
            }
        }
    }

    /// A text checked or parsed by `read`.
    pub(crate) fn text<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, BadValue>,
    ) -> Option<T> {
        self.with(key, |raw| match raw {
            Raw::Text(text) => read(text),
            _ => Err(BadValue::accepted("a text in quotes")),
        })
    }

    /// A text that parses.
    pub(crate) fn parse<T: FromStr<Err = BadValue>>(&mut self, key: &'static str) -> Option<T> {
        self.text(key, str::parse)
    }

    /// A size, as a text or a number of bytes.
    pub(crate) fn size(&mut self, key: &'static str) -> Option<ByteSize> {
        self.with(key, |raw| match raw {
            Raw::Text(text) => text.parse(),
            Raw::Int(bytes) => bytes.to_string().parse(),
            // No text is a size: the refusal of the empty one says what is.
            _ => "".parse(),
        })
    }

    /// A span of time.
    pub(crate) fn span(&mut self, key: &'static str) -> Option<Span> {
        self.parse(key)
    }

    /// A whole number from `min` to `max`.
    pub(crate) fn int(&mut self, key: &'static str, min: u64, max: u64) -> Option<u64> {
        self.with(key, |raw| match raw {
            Raw::Int(n) if (i128::from(min)..=i128::from(max)).contains(n) => {
                u64::try_from(*n).map_err(|_| BadValue::accepted("a whole number"))
            }
            _ => Err(BadValue::accepted(format!("a whole number from {min} to {max}"))),
        })
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.with(key, |raw| match raw {
            Raw::Bool(b) => Ok(*b),
            _ => Err(BadValue::accepted("true, false")),
        })
    }

    /// A list of texts, each checked by `check`, of at most `max`.
    pub(crate) fn texts(
        &mut self,
        key: &'static str,
        max: usize,
        check: impl Fn(&str) -> Result<(), BadValue>,
    ) -> Option<Vec<String>> {
        let item = self.take(key)?;
        let Raw::List(list) = &item.raw else {
            self.bad(item.at, key, item.raw.shown(), BadValue::accepted("a list of texts"));
            return None;
        };
        if list.len() > max {
            let shown = format!("{} entries", list.len());
            self.bad(item.at, key, shown, BadValue::accepted(format!("at most {max} entries")));
            return None;
        }
        let mut texts = Vec::new();
        for entry in list {
            match &entry.raw {
                Raw::Text(text) => match check(text) {
                    Ok(()) => texts.push(text.clone()),
                    Err(bad) => self.bad(entry.at, key, entry.raw.shown(), bad),
                },
                other => {
                    let shown = other.shown();
                    self.bad(entry.at, key, shown, BadValue::accepted("a text in quotes"));
                }
            }
        }
        Some(texts)
    }

    /// Says that a field which must be there is not.
    pub(crate) fn missing(&mut self, key: &'static str, accepted: &str) {
        // A field that is there but wrong has been complained about already.
        let name = self.full(key);
        if self.issues.iter().any(|issue| issue.detail.field.as_ref() == Some(&name)) {
            return;
        }
        let detail = Detail { accepted: Some(accepted.to_owned()), ..Detail::default() };
        self.issue(self.at, key, "is missing", detail);
    }

    /// Refuses a field that belongs to a later version, if it is there.
    pub(crate) fn later(&mut self, key: &'static str, remedy: &str) {
        if let Some(item) = self.take(key) {
            let detail = Detail { remedy: Some(remedy.to_owned()), ..Detail::default() };
            self.issue(item.at, key, "comes in a later version", detail);
        }
    }

    /// Every field that nobody asked for is unknown. Returns whether there was none.
    pub(crate) fn finish(mut self) {
        for (key, (at, _)) in std::mem::take(&mut self.table) {
            let shown = Raw::Text(key).shown();
            let key = shown.trim_matches('"');
            let detail = Detail {
                accepted: Some(if self.known.is_empty() {
                    "nothing".to_owned()
                } else {
                    self.known.join(", ")
                }),
                remedy: nearest(key, &self.known).map(|near| format!("did you mean `{near}`?")),
                ..Detail::default()
            };
            self.issue(at, key, "is not known", detail);
        }
    }
}
