//! Types and codecs that every role speaks.
