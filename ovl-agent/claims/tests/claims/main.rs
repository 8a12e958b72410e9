//! Nodes on one store, in one process: the embedded store, and a real etcd where it is installed.

// Tests may unwrap: a failed unwrap is the failure report.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod agent;
mod attach;
mod checks;
mod etcd;
mod guard;
mod identity;
mod lost;
mod networks;
mod nodes;
mod outage;
mod restored;
mod rounds;
mod scale;
mod settle;
mod vteps;
