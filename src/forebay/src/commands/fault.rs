//! `fault`, for tests of what a node does when a device fails.

use super::Context;
use crate::cli::Fault;
use forebay_control::error::Result;
use serde_json::json;

pub(super) fn run(context: &Context, args: &Fault) -> Result<()> {
    let mut params = json!({ "device": args.device, "fault": args.fault });
    if !args.ops.is_empty() {
        params["ops"] = json!(args.ops);
    }
    if let Some(count) = args.count {
        params["count"] = json!(count);
    }
    context.client()?.call("device_fault", params).map(|_| ())
}
