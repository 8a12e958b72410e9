//! Weft's tables: both are named `weft`, so their families tell them apart.

use super::element::Map;
use super::wire;
use std::fmt;

/// A table, with what is in it from the first attachment to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `inet weft`: masquerading, published ports and guarded bridges.
    Inet,
    /// `bridge weft`: source addresses of frames.
    Bridge,
}

impl Table {
    /// All of them.
    pub const ALL: [Table; 2] = [Table::Inet, Table::Bridge];
    /// The name of each.
    pub const NAME: &'static str = "weft";

    /// Its family (NFPROTO_…).
    pub fn family(self) -> u8 {
        match self {
            Table::Inet => wire::INET,
            Table::Bridge => wire::BRIDGE,
        }
    }

    /// The sets and maps that it is made with.
    pub fn frame(self) -> &'static [Map] {
        match self {
            Table::Inet => &Map::FRAME,
            Table::Bridge => &Map::BRIDGE_FRAME,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self {
            Table::Inet => "inet",
            Table::Bridge => "bridge",
        };
        write!(f, "table {family} {}", Table::NAME)
    }
}
