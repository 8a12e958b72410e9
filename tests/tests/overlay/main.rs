//! The overlay as a user meets it, driven by the real executables.

mod lab;
mod single;
