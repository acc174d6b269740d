//! Applications, load generator, audits and figures.

#![forbid(unsafe_code)]

pub mod audit;
pub mod chaos;
pub mod cluster;
pub mod demo;
pub mod failover;
pub mod http;
pub mod load;
pub mod log;
pub mod partition;
pub mod report;
pub mod takeover;
pub mod transport;
pub mod travel;
