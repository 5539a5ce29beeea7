//! The calls: what each takes and what it answers.

use super::spdk;
use crate::config::{self, VolumeConfig};
use crate::controller::{Controller, VolumeChange};
use crate::error::{ControlError, ErrorKind};
use crate::fields::{Fields, Item, Raw};
use crate::node::{DeviceFault, FaultKind, FaultOp, LbaRange};
use crate::stat::SCHEMA_VERSION;
use crate::value::{BadValue, LbaSpan, check_device_uri, check_nqn, nearest};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Every method there is, by name.
pub const METHODS: &[&str] = &[
    "bdev_get_bdevs",
    "bdev_get_iostat",
    "config_apply",
    "config_diff",
    "config_export",
    "config_plan",
    "device_fault",
    "framework_get_reactors",
    "host_allow",
    "host_deny",
    "host_list",
    "job_cancel",
    "job_list",
    "job_wait",
    "nvmf_get_subsystems",
    "nvmf_get_transports",
    "rpc_get_methods",
    "spdk_get_version",
    "stat",
    "volume_create",
    "volume_delete",
    "volume_drain",
    "volume_list",
    "volume_pin",
    "volume_recover",
    "volume_scrub",
    "volume_set",
    "volume_set_mode",
    "volume_show",
    "volume_unpin",
    "volume_where",
];

/// Longest that `job_wait` holds its connection, in seconds; a client asks again.
pub const WAIT_S_MAX: u64 = 30;
/// Most pieces in an answer of `volume_where`.
pub const PIECES_MAX: u64 = 10_000;

/// Bytes a second that a scrub reads unless told: 1 TiB of cache takes less than five hours, and the
/// device has most of its time for hosts. (While they have requests it is a quarter of this.)
const SCRUB_RATE: u64 = 64 << 20;

/// Why a call is not answered with a result.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is no such method; perhaps this one was meant.
    NoSuchMethod(Option<&'static str>),
    /// It was refused or failed.
    Error(ControlError),
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self::Error(error)
    }
}

type Answer = Result<Value, Refusal>;

/// Carries out one call.
pub(super) fn call(controller: &Controller, method: &str, params: Map<String, Value>) -> Answer {
    match method {
        "stat" => {
            none(params)?;
            value(&controller.stat()?)
        }
        "volume_list" => {
            none(params)?;
            value(&json!({
                "schema_version": SCHEMA_VERSION, "volumes": controller.stat()?.volumes,
            }))
        }
        "volume_show" | "volume_create" | "volume_delete" | "volume_set_mode" | "volume_drain"
        | "volume_set" | "volume_where" | "volume_recover" | "volume_scrub" | "volume_pin"
        | "volume_unpin" => volume(controller, method, params),
        "host_allow" | "host_deny" | "host_list" => host(controller, method, params),
        "job_list" | "job_wait" | "job_cancel" => job(controller, method, params),
        "config_plan" | "config_diff" | "config_apply" | "config_export" => {
            configuration(controller, method, params)
        }
        "device_fault" => {
            controller.inject_fault(&fault(params)?)?;
            Ok(json!(true))
        }
        "rpc_get_methods" => {
            read(params, |fields| {
                // SPDK's client may ask for less; every method can be called at any time here.
                fields.flag("current");
                fields.flag("include_aliases");
                Some(())
            })?;
            value(&METHODS)
        }
        "spdk_get_version"
        | "bdev_get_bdevs"
        | "bdev_get_iostat"
        | "nvmf_get_subsystems"
        | "nvmf_get_transports"
        | "framework_get_reactors" => {
            spdk::call(controller, method, params).map_err(Refusal::Error)
        }
        other => Err(Refusal::NoSuchMethod(nearest(other, METHODS))),
    }
}

fn value(answer: &impl Serialize) -> Answer {
    serde_json::to_value(answer)
        .map_err(|error| ControlError::failed(format!("the answer is no JSON: {error}")).into())
}

/// Reads parameters; the first thing that is wrong is the error.
pub(super) fn read<T>(
    params: Map<String, Value>,
    read: impl FnOnce(&mut Fields<'_>) -> Option<T>,
) -> Result<T, ControlError> {
    let mut issues = Vec::new();
    let Raw::Table(table) = Item::from(Value::Object(params)).raw else {
        return Err(ControlError::new(ErrorKind::Invalid, "`params` is not an object"));
    };
    let mut fields = Fields::new("", 0, table, &mut issues);
    let value = read(&mut fields);
    fields.finish();
    match (value, issues.into_iter().next()) {
        (_, Some(issue)) => Err(issue.into_control_error()),
        (Some(value), None) => Ok(value),
        (None, None) => Err(ControlError::new(ErrorKind::Invalid, "parameters are missing")),
    }
}

/// For methods without parameters.
pub(super) fn none(params: Map<String, Value>) -> Result<(), ControlError> {
    read(params, |_| Some(()))
}

fn name(fields: &mut Fields<'_>) -> Option<String> {
    needed_text(fields, "name", "the name of a volume")
}

fn needed_text(fields: &mut Fields<'_>, key: &'static str, accepted: &str) -> Option<String> {
    // What names something that exists is looked up, not checked: a name that cannot be is not
    // found.
    let text = fields.text(key, |text| Ok(text.to_owned()));
    if text.is_none() {
        fields.missing(key, accepted);
    }
    text
}

fn number(fields: &mut Fields<'_>, key: &'static str, accepted: &str) -> Option<u64> {
    let number = fields.int(key, 0, u64::MAX);
    if number.is_none() {
        fields.missing(key, accepted);
    }
    number
}

fn volume(controller: &Controller, method: &str, params: Map<String, Value>) -> Answer {
    match method {
        "volume_create" => {
            let (_, volume) = read(params, config::read_volume)?;
            controller.create_volume(&volume)?;
            show(controller, &volume.name)
        }
        "volume_show" => show(controller, &read(params, name)?),
        "volume_delete" => {
            let (name, discard) = read(params, |fields| {
                let discard = fields.flag("discard_dirty").unwrap_or(false);
                Some((name(fields)?, discard))
            })?;
            began(controller.delete_volume(&name, discard)?)
        }
        "volume_set_mode" => {
            let (name, mode) = read(params, |fields| {
                let (name, mode) = (name(fields), fields.parse("mode"));
                if mode.is_none() {
                    fields.missing("mode", &crate::value::Mode::WORDS.join(", "));
                }
                Some((name?, mode?))
            })?;
            began(controller.set_mode(&name, mode)?)
        }
        "volume_drain" => began(controller.drain(&read(params, name)?)?),
        "volume_scrub" => {
            let (name, rate) = read(params, |fields| {
                let rate = fields.size("rate").map_or(SCRUB_RATE, |rate| rate.0);
                Some((name(fields)?, rate))
            })?;
            began(controller.scrub(&name, rate)?)
        }
        "volume_set" => {
            let (name, change) = read(params, |fields| {
                let change = VolumeChange {
                    cache_min: fields.size("cache_min"),
                    cache_max: fields.size("cache_max"),
                    dirty_max: fields.size("dirty_max"),
                    dirty_age_max: fields.span("dirty_age_max"),
                    batch_max: fields.size("batch_max"),
                    batch_age_max: fields.span("batch_age_max"),
                    ordered_journal: fields.text("ordered_journal", |uri| {
                        check_device_uri(uri).map(|()| uri.to_owned())
                    }),
                    memory_tier: fields.size("memory_tier"),
                };
                Some((name(fields)?, change))
            })?;
            value(&controller.set_volume(&name, &change)?)
        }
        "volume_where" => locate(controller, params),
        "volume_pin" => {
            let (name, span) = read(params, |fields| {
                let (name, span) = (name(fields), span(fields));
                if span.is_none() {
                    fields.missing("lba", "the first logical block, and `blocks` of them");
                }
                Some((name?, span?))
            })?;
            began(controller.pin_volume(&name, span)?)
        }
        "volume_unpin" => {
            let (name, span) = read(params, |fields| {
                let span = span(fields);
                Some((name(fields)?, span))
            })?;
            value(&controller.unpin_volume(&name, span)?)
        }
        _ => {
            let (name, commit) = read(params, |fields| {
                let commit = fields.flag("commit").unwrap_or(false);
                let name = name(fields);
                match fields.flag("lost_cache") {
                    Some(true) => {}
                    _ => fields.missing("lost_cache", "true"),
                }
                Some((name?, commit))
            })?;
            value(&controller.recover_lost_cache(&name, commit)?)
        }
    }
}

/// Logical blocks, if any are said: from `lba` on, one or as many as `blocks` says.
fn span(fields: &mut Fields<'_>) -> Option<LbaSpan> {
    let first = fields.int("lba", 0, u64::MAX - 1);
    let most = u64::MAX - first.unwrap_or(0);
    let blocks = fields.int("blocks", 1, most).unwrap_or(1);
    Some(LbaSpan { first: first?, blocks })
}

fn began(job: u64) -> Answer {
    Ok(json!({ "job": job }))
}

fn show(controller: &Controller, name: &str) -> Answer {
    let config: VolumeConfig = controller.volume_config(name)?;
    let stat = controller.stat()?;
    let jobs: Vec<_> =
        controller.job_list().into_iter().filter(|job| job.work.volume() == Some(name)).collect();
    value(&json!({
        "schema_version": SCHEMA_VERSION,
        "config": config,
        "volume": stat.volume(name),
        "jobs": jobs,
    }))
}

fn locate(controller: &Controller, params: Map<String, Value>) -> Answer {
    let (name, range, max) = read(params, |fields| {
        let name = name(fields);
        let lba = number(fields, "lba", "the first logical block");
        let blocks = fields.int("blocks", 1, u64::MAX).unwrap_or(1);
        let max = fields.int("pieces_max", 1, PIECES_MAX).unwrap_or(PIECES_MAX);
        Some((name?, LbaRange { lba: lba?, blocks }, max))
    })?;
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let pieces = controller.locate(&name, range, max)?;
    value(&json!({ "schema_version": SCHEMA_VERSION, "volume": name, "pieces": pieces }))
}

fn host(controller: &Controller, method: &str, params: Map<String, Value>) -> Answer {
    if method == "host_list" {
        none(params)?;
        let hosts = controller.hosts()?;
        return value(&json!({ "schema_version": SCHEMA_VERSION, "hosts": hosts }));
    }
    let (nqn, volume) = read(params, |fields| {
        let nqn = fields.text("nqn", |nqn| check_nqn(nqn).map(|()| nqn.to_owned()));
        if nqn.is_none() {
            fields.missing("nqn", "the NQN of a host: cat /etc/nvme/hostnqn");
        }
        let volume = fields.text("volume", |name| Ok(name.to_owned()));
        Some((nqn?, volume))
    })?;
    let changed = match method {
        "host_allow" => controller.allow_host(&nqn, volume.as_deref())?,
        _ => controller.deny_host(&nqn, volume.as_deref())?,
    };
    Ok(json!({ "changed": changed }))
}

fn job(controller: &Controller, method: &str, params: Map<String, Value>) -> Answer {
    match method {
        "job_list" => {
            none(params)?;
            value(&json!({ "schema_version": SCHEMA_VERSION, "jobs": controller.job_list() }))
        }
        "job_wait" => {
            let (id, timeout) = read(params, |fields| {
                let timeout = fields.int("timeout_s", 0, WAIT_S_MAX).unwrap_or(WAIT_S_MAX);
                Some((number(fields, "id", "the number of a job")?, timeout))
            })?;
            value(&controller.jobs().wait(id, Duration::from_secs(timeout))?)
        }
        _ => {
            let id = read(params, |fields| number(fields, "id", "the number of a job"))?;
            value(&controller.jobs().cancel(id)?)
        }
    }
}

fn configuration(controller: &Controller, method: &str, params: Map<String, Value>) -> Answer {
    if method == "config_export" {
        none(params)?;
        return Ok(json!({ "toml": config::export(&controller.effective()) }));
    }
    let (text, file) = read(params, |fields| {
        let text = fields.text("text", |text| Ok(text.to_owned()));
        let file = fields.text("file", |file| Ok(file.to_owned()));
        Some((text, file.unwrap_or_else(|| "configuration".to_owned())))
    })?;
    // The daemon opens no file that a client names: it may have other rights.
    let own = text.is_none();
    let wanted = match text {
        Some(text) => config::parse(&file, &text).map_err(ControlError::from)?,
        None => controller.read_own_file()?,
    };
    if method == "config_apply" {
        return value(&controller.apply(&wanted, own)?);
    }
    let differences = controller.diff(&wanted);
    value(&json!({ "schema_version": SCHEMA_VERSION, "differences": differences }))
}

fn fault(params: Map<String, Value>) -> Result<DeviceFault, ControlError> {
    read(params, |fields| {
        let accepted = "a device URI, `cache:N`, `backing:VOLUME` or `journal:VOLUME`";
        let device = needed_text(fields, "device", accepted);
        let fault = fields.text("fault", |text| match text {
            "error" => Ok(FaultKind::Error),
            "hang" => Ok(FaultKind::Hang),
            "gone" => Ok(FaultKind::Gone),
            "heal" => Ok(FaultKind::Heal),
            _ => Err(BadValue::accepted("error, hang, gone, heal")),
        });
        if fault.is_none() {
            fields.missing("fault", "error, hang, gone, heal");
        }
        let op = |text: &str| match text {
            "read" => Ok(FaultOp::Read),
            "write" => Ok(FaultOp::Write),
            "flush" => Ok(FaultOp::Flush),
            _ => Err(BadValue::accepted("read, write, flush")),
        };
        let ops = fields.texts("ops", 3, |text| op(text).map(|_| ())).unwrap_or_default();
        let ops = ops.iter().filter_map(|text| op(text).ok()).collect();
        let count = fields.int("count", 1, u64::MAX);
        Some(DeviceFault { device: device?, fault: fault?, ops, count })
    })
}
