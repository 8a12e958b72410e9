//! Expressions about what a packet for the host is for.

use super::{Meta, REG1, Rule};
use crate::firewall::Protocol;

/// NFT_SOCKET_MARK (enum nft_socket_keys)
const SOCKET_MARK: u32 = 1;
/// NFT_CT_STATE (enum nft_ct_keys), and its bit for a new connection (enum ip_conntrack_info, nf_conntrack_common.h)
const CT_STATE: u32 = 0;
const NEW: u32 = 8;

impl Rule {
    /// `socket mark 0x10000000`: the packet is for a socket of the host with this mark
    pub fn socket_mark(mut self, mark: u32) -> Self {
        self.expr("socket", |w| {
            w.u32(1, SOCKET_MARK);
            w.u32(2, REG1);
        });
        self.compare(false, &mark.to_ne_bytes());
        self
    }

    /// `meta l4proto tcp ct state new`
    pub fn new_connection(mut self, protocol: Protocol) -> Self {
        self.meta_to(Meta::L4proto, REG1);
        self.compare(false, &[protocol.number()]);
        self.expr("ct", |w| {
            w.u32(1, REG1);
            w.u32(2, CT_STATE);
        });
        self.mask(&NEW.to_ne_bytes());
        self.compare(true, &[0; 4]);
        self
    }
}
