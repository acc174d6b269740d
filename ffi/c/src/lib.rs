//! The C ABI of the function SDK.
