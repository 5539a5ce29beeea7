//! The other end of the control socket, for the command line.

use super::frame::Framer;
use crate::error::{ControlError, Detail, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A call must be answered within this time. Long work answers at once with a job's number.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    next_id: u64,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Unreachable, with how to start a daemon.
    pub fn connect(path: &Path) -> Result<Self> {
        let unreachable = |why: String, remedy: &str| {
            ControlError::new(ErrorKind::Unreachable, why)
                .field("socket")
                .value(path.display())
                .remedy(remedy)
        };
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => unreachable(
                format!("no daemon answers on {}", path.display()),
                "start one: forebay serve --quickstart, or forebay serve --config FILE; \
                 or name the socket of a running one with --socket",
            ),
            io::ErrorKind::PermissionDenied => unreachable(
                format!("this user may not use {}", path.display()),
                "become root, the daemon's user, or a member of its group",
            ),
            _ => unreachable(
                format!("{} cannot be reached: {error}", path.display()),
                "name the socket of a running daemon with --socket",
            ),
        })?;
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_MAX)))
            .map_err(|error| unreachable(error.to_string(), "try again"))?;
        Ok(Self { stream, path: path.to_owned(), next_id: 1 })
    }

    /// Calls a method. `params` is an object; an empty one is left out, as SPDK's clients do.
    ///
    /// # Errors
    /// What the daemon answers, or that it does not answer.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({ "jsonrpc": "2.0", "method": method, "id": id });
        if let (Some(request), Value::Object(params)) = (request.as_object_mut(), params)
            && !params.is_empty()
        {
            request.insert("params".to_owned(), Value::Object(params));
        }
        let lost = |error: io::Error, path: &Path| {
            ControlError::new(
                ErrorKind::Unreachable,
                format!("the daemon on {} does not answer: {error}", path.display()),
            )
            .remedy("see its log; whether the command was carried out is not known")
        };
        self.stream
            .write_all(request.to_string().as_bytes())
            .map_err(|error| lost(error, &self.path))?;
        let answer = self.receive().map_err(|error| lost(error, &self.path))?;
        result_of(answer)
    }

    /// [`Client::call`] with the answer as a type.
    ///
    /// # Errors
    /// As [`Client::call`]; or an answer of another shape, from a daemon of another version.
    pub fn get<T: DeserializeOwned>(&mut self, method: &str, params: Value) -> Result<T> {
        serde_json::from_value(self.call(method, params)?).map_err(|error| {
            ControlError::failed(format!(
                "the daemon's answer to {method} is not understood: {error}"
            ))
            .remedy("use the command line of the daemon's version")
        })
    }

    fn receive(&mut self) -> io::Result<Value> {
        let mut framer = Framer::for_answers();
        let mut buffer = [0; 16 << 10];
        loop {
            let read = self.stream.read(&mut buffer)?;
            if read == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it closed the connection",
                ));
            }
            let mut answer = None;
            framer
                .feed(&buffer[..read], |frame| answer = Some(serde_json::from_slice(frame)))
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if let Some(answer) = answer {
                return answer.map_err(io::Error::from);
            }
        }
    }
}

fn result_of(mut answer: Value) -> Result<Value> {
    let Some(error) = answer.get_mut("error") else {
        return Ok(answer.get_mut("result").map_or(Value::Null, Value::take));
    };
    let message = error.get("message").and_then(Value::as_str).unwrap_or("no message").to_owned();
    let data = error.get_mut("data").map_or(Value::Null, Value::take);
    let kind = data.get("kind").cloned().and_then(|kind| serde_json::from_value(kind).ok());
    let detail: Box<Detail> = serde_json::from_value(data).unwrap_or_default();
    Err(ControlError { kind: kind.unwrap_or(ErrorKind::Failed), message, detail })
}
