//! Bytes from a control connection: framing, requests, parameters. The node refuses every change,
//! so that each input meets the same state.

use crate::reached::{ERRORS, RESULTS};
use forebay_control::controller::Prepared;
use forebay_control::error::Result;
use forebay_control::jobs::JobHandle;
use forebay_control::node::{DeviceFault, LbaRange, Located, LostCache, NodeControl};
use forebay_control::rpc::{Framer, handle_frame};
use forebay_control::stat::NodeStat;
use forebay_control::value::Mode;
use forebay_control::{ControlError, Controller, VolumeConfig};
use serde_json::Value;
use std::path::Path;
use std::sync::{Arc, LazyLock};

#[path = "../../../src/control/tests/support/mod.rs"]
pub(crate) mod support;

/// Reports like a node, changes nothing.
struct Refusing(support::Handle);

fn refuse<T>() -> Result<T> {
    Err(ControlError::failed("the node refuses"))
}

impl NodeControl for Refusing {
    fn stat(&self) -> Result<NodeStat> {
        self.0.stat()
    }
    fn create_volume(&self, _: &VolumeConfig) -> Result<()> {
        refuse()
    }
    fn delete_volume(&self, _: &str, _: bool, _: JobHandle) -> Result<()> {
        refuse()
    }
    fn set_mode(&self, _: &str, _: Mode, _: JobHandle) -> Result<()> {
        refuse()
    }
    fn drain(&self, _: &str, _: JobHandle) -> Result<()> {
        refuse()
    }
    fn scrub(&self, _: &str, _: u64, _: JobHandle) -> Result<()> {
        refuse()
    }
    fn pin(&self, _: &str, _: JobHandle) -> Result<()> {
        refuse()
    }
    fn update_volume(&self, _: &VolumeConfig) -> Result<()> {
        refuse()
    }
    fn locate(&self, name: &str, range: LbaRange, pieces_max: usize) -> Result<Vec<Located>> {
        self.0.locate(name, range, pieces_max)
    }
    fn recover_lost_cache(&self, _: &str, _: bool) -> Result<LostCache> {
        refuse()
    }
    fn set_hosts(&self, _: &[String]) -> Result<()> {
        refuse()
    }
    fn inject_fault(&self, _: &DeviceFault) -> Result<()> {
        refuse()
    }
}

thread_local! {
    /// One for each thread, with a state directory of its own in memory.
    static CONTROLLER: (Arc<Controller>, support::Dir) = start();
}

fn start() -> (Arc<Controller>, support::Dir) {
    let thread = format!("{:?}", std::thread::current().id());
    let name = format!("fuzz-{}-{}", std::process::id(), thread.replace(['(', ')'], ""));
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { memory.join(&name) } else { std::env::temp_dir().join(&name) };
    let dir = support::Dir(dir);
    let config = support::config(&dir.0);
    let prepared = Prepared::load(config).expect("a state directory");
    let node = support::MemoryNode::new(&prepared.effective());
    let jobs = prepared.job_table();
    let node = Arc::new(Refusing(support::Handle(node)));
    (Controller::new(prepared, jobs, node).expect("a controller"), dir)
}

/// Bytes of a control connection, in two parts.
pub fn rpc(input: &[u8]) {
    CONTROLLER.with(|(controller, _)| converse(controller, input));
}

/// A volume that every configuration here has.
static NAME: LazyLock<Value> = LazyLock::new(|| Value::from("db"));

fn converse(controller: &Controller, input: &[u8]) {
    let (first, second) = input.split_at(input.len() / 3);
    let mut framer = Framer::default();
    let mut answers = Vec::new();
    let mut take = |frame: &[u8]| answers.extend(handle_frame(controller, frame));
    let fed = framer.feed(first, &mut take).and_then(|()| framer.feed(second, &mut take));
    if fed.is_ok() {
        let _ = framer.feed(b" ", &mut take);
    }
    for answer in answers {
        let answer: Value = serde_json::from_slice(&answer).expect("an answer is JSON");
        match answer {
            Value::Array(list) => list.iter().for_each(check),
            one => check(&one),
        }
    }
    let db = controller.volume_config("db").expect("the volume that was there is there");
    assert_eq!(Value::from(db.name), *NAME);
}

fn check(answer: &Value) {
    assert_eq!(answer["jsonrpc"], "2.0");
    assert!(answer.get("result").is_some() != answer.get("error").is_some(), "{answer}");
    let failed = answer.get("error").is_some();
    if failed { &ERRORS } else { &RESULTS }.add(1);
    if let Some(error) = answer.get("error") {
        assert!(error["code"].is_i64() && error["message"].is_string(), "{answer}");
    }
}
