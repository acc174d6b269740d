//! The contract of one-sided writes over TCP.
