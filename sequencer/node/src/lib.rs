//! The sequencer role: the ordering core on a transport.
