//! Expressions about ICMP errors, which have the head of the packet that they are about behind 8 bytes of their own (RFC 792,
//! RFC 4443).

use super::super::element::Map;
use super::{Meta, REG1, Rule};

/// The bytes of an error before the packet that it is about.
const HEADER: u32 = 8;

impl Rule {
    /// `meta l4proto icmp`, or `ipv6-icmp`
    pub fn icmp(self, v6: bool) -> Self {
        let mut rule = self.family(v6);
        rule.meta_to(Meta::L4proto, REG1);
        rule.compare(false, &[if v6 { 58 } else { 1 }]);
        rule
    }

    /// `@th,0,8 8`: an ICMP message of this type. It must have been asked for ICMP.
    pub fn message_type(mut self, kind: u8) -> Self {
        self.payload(2, 0, 1, REG1);
        self.compare(false, &[kind]);
        self
    }

    /// `@th,0,8 & 128 == 128`: an ICMPv6 message that is no error. It must have been asked for ICMPv6.
    pub fn informational(mut self) -> Self {
        self.payload(2, 0, 1, REG1);
        self.mask(&[0x80]);
        self.compare(false, &[0x80]);
        self
    }

    /// `@th,192,32 @set`: the destination of the packet that an ICMP error is about. It must have been asked for ICMP.
    pub fn about(mut self, map: Map) -> Self {
        let (offset, len) = if self.family == Some(true) { (24, 16) } else { (16, 4) };
        self.payload(2, HEADER + offset, len, REG1);
        self.lookup(map, None);
        self
    }
}
