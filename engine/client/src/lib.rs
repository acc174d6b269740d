//! The shell around the index: lanes to sequencer and storage, appends and state operations as futures.
