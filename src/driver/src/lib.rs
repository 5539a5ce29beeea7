//! Devices (io_uring, memory, remote NVMe-oF, slow and fault wrappers) and TCP transport for the reactor.
