//! `format`: makes a cache device.

use super::Context;
use crate::cli::FormatDevice;
use crate::devices::{self, device_name};
use crate::output;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::value::check_device_uri;

pub(super) fn run(context: &Context, args: &FormatDevice) -> Result<()> {
    let uri = if args.device.starts_with('/') {
        format!("uring:{}", args.device)
    } else {
        args.device.clone()
    };
    check_device_uri(&uri).map_err(|bad| bad.of("DEVICE", &args.device))?;
    if let Some(name) = &args.force
        && name != device_name(&uri)
    {
        return Err(ControlError::new(
            ErrorKind::Unsafe,
            format!("--force {name} is not the name of {uri}"),
        )
        .accepted(device_name(&uri)));
    }
    let made = devices::format(&uri, args.force.is_some())?;
    output::show(context.format, &made, |made| made.to_string())
}
