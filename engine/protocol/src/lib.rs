//! The logging protocols: pure async functions over a narrow trait.
