//! The overlay as a user meets it, driven by the real executables.

mod apart;
mod cluster;
mod echo;
mod forge;
mod lab;
mod many;
mod reach;
mod refused;
mod single;
mod ways;
