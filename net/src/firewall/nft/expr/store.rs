//! What rules ask to keep containers away from the cluster's store.

use super::super::element::Map;
use super::{Meta, REG1, REG32, Rule, Side};
use crate::names::{CONTAINERS_GROUP, CONTAINERS_MASK};

impl Rule {
    /// `iifgroup & 0xff000000 == 0x57000000`: it came by a link that leads to containers
    pub fn by_container_link(mut self) -> Self {
        self.meta_to(Meta::Iifgroup, REG1);
        self.mask(&CONTAINERS_MASK.to_ne_bytes());
        self.compare(false, &CONTAINERS_GROUP.to_ne_bytes());
        self
    }

    /// `tcp dport @set`
    pub fn tcp_port_in(mut self, map: Map) -> Self {
        self.tcp();
        self.payload(2, 2, 2, REG1);
        self.lookup(map, None);
        self
    }

    /// `ip daddr . tcp dport @set`
    pub fn address_and_tcp_port_in(self, v6: bool, map: Map) -> Self {
        let mut rule = self.family(v6);
        rule.tcp();
        let words = if v6 { 4 } else { 1 };
        rule.payload(1, Self::offset(Side::Destination, v6), words * 4, REG1);
        rule.payload(2, 2, 2, REG32 + words);
        rule.lookup(map, None);
        rule
    }

    fn tcp(&mut self) {
        self.meta_to(Meta::L4proto, REG1);
        self.compare(false, &[6]);
    }
}
