//! The ordering core: pure, no I/O, no clock.
