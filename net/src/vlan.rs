//! VLANs of bridge ports. A kernel can be built without them (CONFIG_BRIDGE_VLAN_FILTERING).

use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask, LinkHeader,
    LinkMessage,
};

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::netlink::Netlink;
use crate::socket::emit;
use crate::wire;

/// What [`crate::Error::Unsupported`] calls it.
pub(crate) const FEATURE: &str = "bridge VLAN filtering";
/// IFLA_BRIDGE_VLAN_INFO of linux/if_bridge.h.
const VLAN_INFO: u16 = 2;

/// VLANs of a bridge port: one, or those from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vlans {
    /// The first VLAN, 1 to 4094.
    pub first: u16,
    /// The last VLAN, not below `first`.
    pub last: u16,
    /// Untagged packets that come in belong to it (only for a single VLAN).
    pub pvid: bool,
    /// Packets of it leave without a tag.
    pub untagged: bool,
}

impl Vlans {
    /// The VLAN of a port that knows of none: packets come and go without a tag.
    pub fn access(id: u16) -> Vlans {
        Vlans { first: id, last: id, pvid: true, untagged: true }
    }

    /// VLANs whose packets come and go tagged.
    pub fn tagged(first: u16, last: u16) -> Vlans {
        Vlans { first, last, pvid: false, untagged: false }
    }

    /// # Errors
    /// [`Error::Invalid`] when the numbers are none of VLANs.
    fn check(&self) -> Result<()> {
        let why = if self.first == 0 || self.last > 4094 {
            "a VLAN's number is 1 to 4094"
        } else if self.first > self.last {
            "the first is above the last"
        } else if self.pvid && self.first != self.last {
            "only a single VLAN can be the one of untagged packets"
        } else {
            return Ok(());
        };
        Err(Error::Invalid { what: "VLAN", value: format!("{}-{}", self.first, self.last), why: why.into() })
    }

    fn infos(&self) -> Vec<AfSpecBridge> {
        let mut flags = BridgeVlanInfoFlags::empty();
        flags.set(BridgeVlanInfoFlags::Pvid, self.pvid);
        flags.set(BridgeVlanInfoFlags::Untagged, self.untagged);
        let info = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
        if self.first == self.last {
            return vec![info(self.first, flags)];
        }
        vec![
            info(self.first, flags | BridgeVlanInfoFlags::RangeBegin),
            info(self.last, flags | BridgeVlanInfoFlags::RangeEnd),
        ]
    }
}

impl Batch {
    /// Adds VLANs to the bridge port with that index; `own` when it is the bridge itself.
    ///
    /// # Errors
    /// [`Error::Invalid`] for numbers that are none of VLANs, from here; [`Error::Unsupported`] when the batch is run.
    pub fn vlan_add(&mut self, index: u32, vlans: &Vlans, own: bool) -> Result<&mut Batch> {
        self.vlan("add", libc::RTM_SETLINK, index, vlans, own)
    }

    /// Takes VLANs from the bridge port with that index; `own` when it is the bridge itself.
    ///
    /// # Errors
    /// As [`Batch::vlan_add`].
    pub fn vlan_del(&mut self, index: u32, vlans: &Vlans, own: bool) -> Result<&mut Batch> {
        self.vlan("remove", libc::RTM_DELLINK, index, vlans, own)
    }

    fn vlan(&mut self, verb: &str, kind: u16, index: u32, vlans: &Vlans, own: bool) -> Result<&mut Batch> {
        vlans.check()?;
        let mut spec = Vec::new();
        if own {
            spec.push(AfSpecBridge::Flags(BridgeFlag::LowerDev));
        }
        spec.extend(vlans.infos());
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.header.index = index;
        message.attributes.push(LinkAttribute::AfSpecBridge(spec));
        let what =
            format!("{verb} VLAN {}-{} of bridge port {}", vlans.first, vlans.last, self.name_of(index));
        Ok(self.push(what, kind, 0, |bytes| emit(bytes, &message)).needing(FEATURE))
    }
}

impl Netlink {
    /// The VLANs of a bridge port, single ones, in ascending order. Empty on a kernel without bridge VLAN filtering.
    pub fn vlans(&mut self, index: u32) -> Result<Vec<Vlans>> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        let mask = u32::from(LinkExtentMask::Brvlan).to_ne_bytes().to_vec();
        message.attributes.push(LinkAttribute::Other(DefaultNla::new(libc::IFLA_EXT_MASK, mask)));
        let mut body = Vec::new();
        emit(&mut body, &message);
        self.channel.strict();
        let found = self.channel.dump("list the bridge VLANs", libc::RTM_GETLINK, &body, |_, body| {
            let header = LinkHeader::parse(body).ok().filter(|header| header.index == index)?;
            let spec = wire::find(body.get(header.buffer_len()..)?, libc::IFLA_AF_SPEC)?;
            let infos = wire::attributes(spec).filter(|(kind, _)| *kind == VLAN_INFO);
            Some(infos.filter_map(|(_, info)| single(info)).collect::<Vec<_>>())
        })?;
        Ok(found.into_iter().flatten().collect())
    }
}

/// Reads a struct bridge_vlan_info of a list without ranges.
fn single(info: &[u8]) -> Option<Vlans> {
    let info = BridgeVlanInfo::try_from(info).ok()?;
    let (pvid, untagged) = (BridgeVlanInfoFlags::Pvid, BridgeVlanInfoFlags::Untagged);
    let (pvid, untagged) = (info.flags.contains(pvid), info.flags.contains(untagged));
    Some(Vlans { first: info.vid, last: info.vid, pvid, untagged })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_refused() {
        let mut batch = Batch::new();
        for (first, last) in [(0, 1), (1, 4095), (7, 6)] {
            assert!(batch.vlan_add(1, &Vlans::tagged(first, last), false).is_err());
        }
        assert!(batch.vlan_add(1, &Vlans { last: 9, ..Vlans::access(8) }, false).is_err());
        assert!(batch.is_empty());
        batch.vlan_add(1, &Vlans::tagged(1, 4094), true).unwrap();
        assert_eq!(batch.len(), 1);
    }

    #[test]
    fn a_range_is_two_entries() {
        let raw = |vlans: Vlans| -> Vec<(u16, u16)> {
            let infos = vlans.infos().into_iter();
            infos
                .map(|info| match info {
                    AfSpecBridge::VlanInfo(info) => (info.flags.bits(), info.vid),
                    other => panic!("{other:?}"),
                })
                .collect()
        };
        assert_eq!(raw(Vlans::access(5)), [(0b110, 5)]);
        assert_eq!(raw(Vlans::tagged(5, 9)), [(0b1000, 5), (0b10000, 9)]);
    }
}
