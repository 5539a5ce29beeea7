//! Golden errors and round trips of configuration files.
