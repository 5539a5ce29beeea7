//! `format`: makes a cache device.

use super::Context;
use crate::cli::FormatDevice;
use crate::{devices, output};
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

/// What `--force` repeats: the last part of the device's path, without parameters.
fn device_name(uri: &str) -> &str {
    let path = uri.split('?').next().unwrap_or(uri);
    path.rsplit(['/', ':']).next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::device_name;

    #[test]
    fn a_device_is_named_by_the_end_of_its_path() {
        assert_eq!(device_name("uring:/dev/nvme1n1"), "nvme1n1");
        assert_eq!(device_name("uring:/var/cache.img?size=8G"), "cache.img");
        assert_eq!(device_name("fault:uring:/dev/disk/by-id/x"), "x");
    }
}
