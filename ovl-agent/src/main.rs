//! `ovl-agent`: the overlay on each host.
#![forbid(unsafe_code)]

fn main() {}
