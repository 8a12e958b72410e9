//! What every other crate may use. It depends on none of them.

#![forbid(unsafe_code)]

pub mod file;
