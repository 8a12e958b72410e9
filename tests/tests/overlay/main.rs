//! The overlay as a user meets it, driven by the real executables.

mod agent_down;
mod apart;
mod bridged;
mod cluster;
mod echo;
mod errors;
mod etcd_down;
mod exceptions;
mod fencing;
mod flow;
mod forge;
mod forward;
mod internal;
mod killed;
mod lab;
mod many;
mod reach;
mod records;
mod refused;
mod routed;
mod services;
mod single;
mod store;
mod tls;
mod ways;
