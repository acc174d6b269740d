//! The storage log core: batches, segments, recovery; pure.
