//! Requests and responses of JSON-RPC 2.0.

use super::methods;
use crate::controller::Controller;
use crate::error::{ControlError, ErrorKind};
use serde_json::{Map, Value, json};
use std::io;

/// Most requests in a batch.
pub const BATCH_MAX: usize = 128;

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;

/// Answers one frame: a request or a batch. `None` where nothing is to be answered.
#[must_use]
pub fn handle_frame(controller: &Controller, frame: &[u8]) -> Option<Vec<u8>> {
    let answer = match serde_json::from_slice::<Value>(frame) {
        Err(error) => Some(parse_error(&error.to_string())),
        Ok(Value::Array(batch)) => handle_batch(controller, batch),
        Ok(request) => handle_request(controller, request),
    };
    answer.as_ref().map(encode)
}

/// The answer to a stream that cannot be read on.
pub(super) fn parse_error(why: &str) -> Value {
    failure(Value::Null, PARSE_ERROR, &format!("Parse error: {why}"), None)
}

fn handle_batch(controller: &Controller, batch: Vec<Value>) -> Option<Value> {
    if batch.is_empty() || batch.len() > BATCH_MAX {
        let why = format!("a batch has 1 to {BATCH_MAX} requests, not {}", batch.len());
        return Some(invalid_request(Value::Null, &why));
    }
    let answers: Vec<Value> =
        batch.into_iter().filter_map(|request| handle_request(controller, request)).collect();
    (!answers.is_empty()).then_some(Value::Array(answers))
}

fn invalid_request(id: Value, why: &str) -> Value {
    failure(id, INVALID_REQUEST, &format!("Invalid request: {why}"), None)
}

fn handle_request(controller: &Controller, request: Value) -> Option<Value> {
    let Value::Object(mut request) = request else {
        return Some(invalid_request(Value::Null, "a request is an object"));
    };
    let id = request.remove("id");
    if !matches!(id, None | Some(Value::Null | Value::String(_) | Value::Number(_))) {
        return Some(invalid_request(Value::Null, "`id` is a text, a number or null"));
    }
    let answer_id = id.clone().unwrap_or(Value::Null);
    if request.remove("jsonrpc") != Some(json!("2.0")) {
        return Some(invalid_request(answer_id, "`jsonrpc` is \"2.0\""));
    }
    let Some(Value::String(method)) = request.remove("method") else {
        return Some(invalid_request(answer_id, "`method` is a text"));
    };
    let params = match request.remove("params") {
        None => Map::new(),
        Some(Value::Object(params)) => params,
        // No method has parameters by position, so an empty list is no parameters.
        Some(Value::Array(params)) if params.is_empty() => Map::new(),
        Some(_) => {
            let error = ControlError::new(ErrorKind::Invalid, "`params` is not valid")
                .field("params")
                .accepted("an object: parameters go by name");
            return id.map(|id| refusal(id, &error));
        }
    };
    if let Some(key) = request.keys().next() {
        let why = format!("`{}` is not known", key.chars().take(64).collect::<String>());
        return Some(invalid_request(answer_id, &why));
    }
    let result = methods::call(controller, &method, params);
    // A request without `id` is a notification: carried out, not answered.
    let id = id?;
    Some(match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(methods::Refusal::NoSuchMethod(near)) => {
            let data = near.map(|near| json!({ "remedy": format!("did you mean `{near}`?") }));
            failure(id, -32601, "Method not found", data)
        }
        Err(methods::Refusal::Error(error)) => refusal(id, &error),
    })
}

fn refusal(id: Value, error: &ControlError) -> Value {
    let mut data = serde_json::to_value(&*error.detail).unwrap_or_default();
    if let Value::Object(data) = &mut data {
        data.insert("kind".to_owned(), json!(error.kind));
    }
    failure(id, error.kind.rpc_code(), &error.message, Some(data))
}

fn failure(id: Value, code: i64, message: &str, data: Option<Value>) -> Value {
    let mut error = json!({ "code": code, "message": message });
    if let (Some(data), Value::Object(error)) = (data, &mut error) {
        error.insert("data".to_owned(), data);
    }
    json!({ "jsonrpc": "2.0", "id": id, "error": error })
}

/// JSON in ASCII: published clients decode what one `recv` gave by itself, and a character cut in
/// two would be lost.
pub(super) fn encode(value: &Value) -> Vec<u8> {
    struct Ascii;
    impl serde_json::ser::Formatter for Ascii {
        fn write_string_fragment<W: ?Sized + io::Write>(
            &mut self,
            writer: &mut W,
            fragment: &str,
        ) -> io::Result<()> {
            for c in fragment.chars() {
                if c.is_ascii() && c != '\x7f' {
                    writer.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?;
                } else {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
            Ok(())
        }
    }
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Ascii);
    // Writing a Value to memory cannot fail.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    out.push(b'\n');
    out
}
