//! Which transport is wanted.

/// Which transport lanes use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// RDMA for each pair of nodes that can; TCP for all others.
    #[default]
    Auto,
    /// TCP only.
    Tcp,
    /// RDMA only: a lane that is dialled and cannot be one over RDMA goes down.
    Rdma,
}
