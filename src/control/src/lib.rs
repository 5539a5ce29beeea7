//! JSON-RPC control, configuration files, jobs and statistics.
