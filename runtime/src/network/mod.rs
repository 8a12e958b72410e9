//! Networks: each is a conflist in the configuration directory.

mod conflist;
pub mod meta;
pub mod options;
pub mod pools;
