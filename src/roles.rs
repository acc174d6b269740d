//! Runs roles: one in this process until it is asked to stop, or all of them as threads.
