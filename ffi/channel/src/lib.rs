//! The shared-memory channel between an engine and a function worker.
