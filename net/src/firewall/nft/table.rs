//! Weft's tables. Those of attachments are both named `weft`, so their families tell them apart.

use super::element::{Map, Scope};
use super::wire;
use std::fmt;

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `inet weft`: masquerading, published ports and guarded bridges.
    Inet,
    /// `bridge weft`: source addresses of frames.
    Bridge,
    /// `inet weft-overlay`: what may pass between hosts and overlay networks ([`crate::firewall::overlay`]).
    Overlay,
}

impl Table {
    /// Those that are there from the first attachment to the last.
    pub const OF_ATTACHMENTS: [Table; 2] = [Table::Inet, Table::Bridge];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Table::Inet | Table::Bridge => "weft",
            Table::Overlay => crate::firewall::overlay::NAME,
        }
    }

    /// Its family (NFPROTO_…).
    pub fn family(self) -> u8 {
        match self {
            Table::Inet | Table::Overlay => wire::INET,
            Table::Bridge => wire::BRIDGE,
        }
    }

    /// Tells whether these, which the table has, are all sets and maps that it is made with, and all of each scope that has
    /// one of them; any scope needs [`Scope::Tracked`]. A table that an earlier version made may lack some.
    pub fn is_complete(self, maps: &[Map]) -> bool {
        let scopes = maps.iter().filter_map(|map| map.scope()).flat_map(|scope| [Scope::Tracked, scope]);
        let of_scopes = scopes.flat_map(Map::of_scope);
        self.frame().iter().copied().chain(of_scopes).all(|map| maps.contains(&map))
    }

    /// The sets and maps that it is made with.
    pub fn frame(self) -> &'static [Map] {
        match self {
            Table::Inet => &Map::FRAME,
            Table::Bridge => &Map::BRIDGE_FRAME,
            Table::Overlay => &Map::OVERLAY_FRAME,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self {
            Table::Inet | Table::Overlay => "inet",
            Table::Bridge => "bridge",
        };
        write!(f, "table {family} {}", self.name())
    }
}
