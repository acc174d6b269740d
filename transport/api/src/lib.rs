//! The contract of one-sided writes, rings over it, the in-process transport, and the conformance suite.
