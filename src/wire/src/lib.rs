//! NVMe, NVMe over Fabrics and NVMe/TCP wire formats, parsed once into validated types.
#![forbid(unsafe_code)]
