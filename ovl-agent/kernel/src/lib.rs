//! The overlay in the kernel.
#![forbid(unsafe_code)]
