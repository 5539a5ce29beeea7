//! The seam between core and shell: units, buffers, device operations, block requests, time.
#![forbid(unsafe_code)]
