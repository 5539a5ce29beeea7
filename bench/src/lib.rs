//! Load generator over devices and the project's own initiator.
