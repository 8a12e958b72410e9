//! Nodes on one store, in one process: the embedded store, and a real etcd where it is installed.

mod agent;
mod attach;
mod etcd;
mod guard;
mod networks;
mod nodes;
mod outage;
mod rounds;
mod scale;
mod settle;
