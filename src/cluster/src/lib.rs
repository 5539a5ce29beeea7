//! The configuration store: who owns a volume, at which epoch; a locked file for one node.
