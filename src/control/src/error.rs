//! One error type for everything that a command can be refused for.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The classes of refusal; each has one JSON-RPC code and one exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// A parameter is wrong, missing or unknown.
    Invalid,
    /// The named thing is not there.
    NotFound,
    /// The name is taken.
    Exists,
    /// In use, or work of the same kind is under way.
    Busy,
    /// It would lose data or open a door, and was not confirmed.
    Unsafe,
    /// It can be carried out only in part, or the thing is degraded.
    Degraded,
    /// Nobody answers.
    Unreachable,
    /// Not done in the time given; it goes on.
    TimedOut,
    /// This build or this volume cannot do it.
    Unsupported,
    /// It was tried and failed.
    Failed,
}

impl ErrorKind {
    /// The JSON-RPC error code: the standard's for parameters and failures, and negated errno
    /// values for the rest, as SPDK's clients expect them.
    #[must_use]
    pub const fn rpc_code(self) -> i64 {
        match self {
            Self::Invalid => -32602,
            Self::NotFound => -19,
            Self::Exists => -17,
            Self::Busy => -16,
            Self::Unsafe => -1,
            Self::Degraded => -5,
            Self::Unreachable => -111,
            Self::TimedOut => -110,
            Self::Unsupported => -95,
            Self::Failed => -32603,
        }
    }

    /// The exit code of the command line.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::Degraded => 3,
            Self::Unreachable => 4,
            Self::Unsafe => 5,
            Self::TimedOut => 6,
            Self::NotFound | Self::Exists | Self::Busy | Self::Unsupported | Self::Failed => 1,
        }
    }
}

/// Why something was refused or failed: what, which value, what is accepted, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlError {
    /// The class.
    pub kind: ErrorKind,
    /// What went wrong, in a sentence without a full stop that names the thing.
    pub message: String,
    /// What belongs to it; boxed, because errors are returned far more often than made.
    pub detail: Box<Detail>,
}

/// The parts of an error that a program or a reader may want apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// The parameter or key that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The value that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What is accepted instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl ControlError {
    /// An error of this class.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: Box::default() }
    }

    /// A volume, host, job or device that is not there.
    pub fn not_found(what: &str, name: impl fmt::Display) -> Self {
        let remedy = match what {
            "volume" => "`forebay volume list` names the volumes",
            "job" => "`forebay job list` names the jobs",
            "device" => "`forebay stat` names the devices",
            _ => "`forebay stat` shows what there is",
        };
        Self::new(ErrorKind::NotFound, format!("there is no {what} `{name}`")).remedy(remedy)
    }

    /// A failure of the work itself.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// Names the parameter or key.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.detail.field = Some(field.into());
        self
    }

    /// Names the value that was given.
    #[must_use]
    pub fn value(mut self, value: impl fmt::Display) -> Self {
        self.detail.value = Some(value.to_string());
        self
    }

    /// Says what is accepted.
    #[must_use]
    pub fn accepted(mut self, accepted: impl Into<String>) -> Self {
        self.detail.accepted = Some(accepted.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.detail.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let Detail { field, value, accepted, remedy } = &*self.detail;
        for (label, text) in
            [("parameter", field), ("value", value), ("accepted", accepted), ("what to do", remedy)]
        {
            if let Some(text) = text {
                write!(f, "\n  {label}: {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ControlError {}

/// The result of everything in the control plane.
pub type Result<T> = std::result::Result<T, ControlError>;
