//! Which transport is wanted.

/// Which transport lanes use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// RDMA for each pair of nodes that can; TCP for all others.
    #[default]
    Auto,
    /// TCP only.
    Tcp,
    /// RDMA for each pair of nodes that can, also on adapters made of software; TCP where one of the two
    /// cannot. A lane that both can have, and whose first write does not arrive in time, goes down.
    Rdma,
}
