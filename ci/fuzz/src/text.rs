//! Text that people write: configuration files and device URIs.

use crate::reached::{CONFIGS, URIS};
use forebay_control::config as control;
use forebay_driver::DeviceUri;

pub(crate) const URI: &[&str] = &[
    "uring:",
    "mem:",
    "nvmf+tcp://",
    "slow:",
    "fault:",
    "spdk:",
    "?",
    "&",
    "=",
    "%",
    "%00",
    "%3f",
    "%ff",
    "%C3%A9",
    "/",
    "size=",
    "1G",
    "18446744073709551615",
    "9223372036854775807T",
    "K",
    "block_size=",
    "4096",
    "512",
    "read_us=",
    "write_us=",
    "flush_us=",
    "jitter=",
    "101%",
    "seed=",
    "nsid=",
    "é",
    "\u{0}",
    "127.0.0.1:4420/",
    "nqn.2026-01.io.forebay:v",
];

/// A configuration file.
pub fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match control::parse("fuzz.toml", &text) {
        Ok(config) => {
            CONFIGS.add(1);
            // What is accepted can be written and read again, to the same.
            let again = control::parse("fuzz.toml", &control::export(&config));
            assert_eq!(again.expect("what is exported is valid"), config, "{text}");
        }
        Err(errors) => {
            let shown = errors.to_string();
            assert!(!errors.errors.is_empty() && shown.len() < 64 << 10, "{shown}");
            assert!(errors.errors.iter().all(|error| error.line > 0 && error.column > 0));
        }
    }
}

/// A device URI.
pub fn uri(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match text.parse::<DeviceUri>() {
        Ok(uri) => {
            URIS.add(1);
            check(&uri, 0);
        }
        Err(error) => assert!(!error.what.is_empty() && error.to_string().len() < 64 << 10),
    }
}

fn check(uri: &DeviceUri, depth: usize) {
    assert!(depth <= 2, "each wrapper once");
    match uri {
        DeviceUri::Uring { path, size } => {
            assert!(!path.is_empty() && !path.contains('\0'));
            assert!(size.is_none_or(|size| size > 0 && i64::try_from(size).is_ok()));
        }
        DeviceUri::Mem { size, block_size } => {
            assert!(*size > 0 && size.is_multiple_of(u64::from(*block_size)));
        }
        DeviceUri::NvmfTcp { address, .. } => assert!(address.contains('/')),
        DeviceUri::Slow { inner, latency } => {
            assert!(latency.jitter <= 100);
            check(inner, depth + 1);
        }
        DeviceUri::Fault { inner } => check(inner, depth + 1),
    }
}
