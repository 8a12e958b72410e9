//! Published ports: how they are written, the sockets that hold them on the host, and the proxy behind those sockets.
//!
//! The kernel's address translation serves them; the sockets make a taken port an error at once, keep other programs off
//! it, and answer where translation does not reach.

mod bind;
mod datagram;
pub mod form;
mod holder;
mod proxy;

#[cfg(test)]
mod tests;

pub use bind::bind;
pub use proxy::Proxy;
