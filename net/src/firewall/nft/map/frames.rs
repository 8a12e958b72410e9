//! Which sets and maps each table is made with.

use super::Map;

impl Map {
    /// Those of the bridge table.
    pub const BRIDGE_FRAME: [Map; 9] = [
        Map::Watched,
        Map::Sources,
        Map::SourceOf,
        Map::Bound,
        Map::Bound6,
        Map::AddressOf,
        Map::Addresses4,
        Map::Addresses6,
        Map::Targets6,
    ];

    /// Those of the overlay's table.
    pub const OVERLAY_FRAME: [Map; 19] = [
        Map::Vnis,
        Map::Vteps4,
        Map::Vteps6,
        Map::Nodes4,
        Map::Nodes6,
        Map::Paths4,
        Map::Paths6,
        Map::VxlanPorts,
        Map::Groups,
        Map::GroupPairs,
        Map::Internal,
        Map::Routed,
        Map::Direct4,
        Map::Direct6,
        Map::Nets4,
        Map::Nets6,
        Map::Stores4,
        Map::Stores6,
        Map::StoresHere,
    ];

    /// Those of the frame of the table for IP.
    pub const FRAME: [Map; 3] = [Map::Bridges, Map::Strict, Map::Localnet];

    /// Those of [`Scope::Tracked`].
    pub(super) const TRACKED: [Map; 10] = [
        Map::Ports4,
        Map::Ports4At,
        Map::Ports6,
        Map::Ports6At,
        Map::Guarded,
        Map::Closed,
        Map::Sealed,
        Map::Isolated,
        Map::Proxied,
        Map::BridgePairs,
    ];

    /// Those whose elements are bridges.
    pub const OF_BRIDGES: [Map; 8] = [
        Map::Bridges,
        Map::Strict,
        Map::Guarded,
        Map::Closed,
        Map::Sealed,
        Map::Isolated,
        Map::Proxied,
        Map::BridgePairs,
    ];
}
