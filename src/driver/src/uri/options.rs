//! The `name=value&…` part of a URI.

/// Options that nobody has taken yet, and the names that somebody asked for.
pub(super) struct Options {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Options {
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut given: Vec<(String, String)> = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| {
                format!("the option `{part}` has no value; accepted is {part}=VALUE")
            })?;
            if given.iter().any(|(other, _)| other == name) {
                return Err(format!("the option `{name}` is there twice"));
            }
            given.push((name.to_owned(), decode_value(name, value)?));
        }
        Ok(Self { given, known: Vec::new() })
    }

    /// Takes an option, if it is given, through `read`, whose error says what is accepted.
    pub(super) fn take_with<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        self.known.push(name);
        let Some(index) = self.given.iter().position(|(given, _)| given == name) else {
            return Ok(None);
        };
        let (_, value) = self.given.swap_remove(index);
        read(&value).map(Some).map_err(|problem| format!("{name}: {problem}"))
    }

    /// Takes everything that nobody has taken, for a device that checks its
    /// options itself, but for what `keep` says.
    pub(super) fn take_rest(&mut self, keep: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        self.given.extract_if(.., |(name, _)| !keep(name)).collect()
    }

    /// Ends with an error where an option was given that nobody took.
    pub(super) fn finish(self) -> Result<(), String> {
        let Some((name, _)) = self.given.first() else { return Ok(()) };
        let hint = nearest(name, self.known.iter().copied())
            .map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
        let known: Vec<_> = self.known.iter().map(|name| format!("`{name}`")).collect();
        Err(format!("`{name}` is not an option here{hint}; accepted: {}", known.join(", ")))
    }
}

fn decode_value(name: &str, value: &str) -> Result<String, String> {
    // A per cent sign at the end is one (`jitter=20%`), since no two digits follow.
    match value.strip_suffix('%') {
        Some(start) => decode(start).map(|text| text + "%"),
        None => decode(value),
    }
    .map_err(|problem| format!("{name}: {problem}"))
}

/// Resolves `%xx`.
pub(super) fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.get(..2).and_then(|two| core::str::from_utf8(two).ok());
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        let byte = byte.ok_or_else(|| {
            format!(
                "`%` in `{text}` is not followed by two hexadecimal digits; `%25` stands for itself"
            )
        })?;
        bytes.push(byte);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| format!("`{text}` is not UTF-8 once its `%` are resolved"))
}

/// The candidate that needs the fewest single-character changes to become `name`, if those are few.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let short: String = name.chars().take(32).collect();
    candidates
        .map(|candidate| (distance(&short, candidate), candidate))
        .filter(|(changes, candidate)| *changes <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let change = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
