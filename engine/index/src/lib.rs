//! The engine's view of the log: quorum commit, tag index, resubmission; pure.
