//! `runtime lab`: several hosts on one machine. A host is a network namespace on an underlay, with an agent, a root and a
//! run directory of its own; etcd is a real one. All of a lab is below one directory (see [`dirs`]).
//!
//! [`file`] and [`plan`] say what is to be, [`up`] and [`down`] make it so and take it away, [`exec`] runs commands on a
//! host, [`live`] says what is, [`ping`] and [`check`] try it, [`walk`] finds the hop that failed, [`fail`] breaks and heals.

mod check;
mod daemons;
mod dirs;
mod down;
mod exec;
mod expect;
mod fail;
pub mod file;
mod graph;
mod http;
mod icmp;
mod live;
mod node;
mod parallel;
mod ping;
pub mod plan;
mod procs;
mod rules;
mod underlay;
mod up;
mod walk;

pub use check::check;
pub use dirs::{Lab, names};
pub use down::down;
pub use exec::exec;
pub use fail::{Part, fail, heal};
pub use graph::{Drawing, draw};
pub use icmp::Manner;
pub use live::{inspect, overview, report};
pub use ping::ping;
pub use up::up;
