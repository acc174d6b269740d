//! The metadata store: members, epochs, incarnations; compare-and-set.
