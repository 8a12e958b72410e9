//! The names under which Weft keeps things in the kernel. Every name is derived from the attachment (network, container,
//! interface), so that DEL and GC find everything without any state saved on disk.

use sha2::{Digest, Sha256};

/// The device group of links that are taken out of service and wait for their deletion (see [`crate::dead`]).
pub const DEAD_GROUP: u32 = 0xDEAD0;
/// The device groups of links by which packets of containers come into the host: this one of the bridges that Weft made and of
/// their legs in VLANs, and this plus the VNI of an overlay network's links.
pub const CONTAINERS_GROUP: u32 = 0x5700_0000;
/// The bits of a device group that are the same in all of these. A VNI has the others.
pub const CONTAINERS_MASK: u32 = 0xff00_0000;
/// What the alias (IFLA_IFALIAS) of every link made for an attachment starts with; the owner's tag follows.
pub const ALIAS_PREFIX: &str = "weft:";
/// The alias of a bridge that Weft made, and may therefore remove.
pub const BRIDGE_ALIAS: &str = "weft:bridge";
/// The longest tag, in bytes: an nft comment holds 128 with its NUL (NFTNL_UDATA_COMMENT_MAXLEN).
pub const TAG_MAX: usize = 127;

/// Longest network name in a tag, in bytes.
const NETWORK_MAX: usize = 40;
/// Longest container ID in a tag, in bytes: a SHA-256 in hex fits whole.
const CONTAINER_MAX: usize = 66;

/// An attachment: one interface of one container in one network. Whatever Weft puts into the kernel has one owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The network's name.
    pub network: String,
    /// The container's ID.
    pub container: String,
    /// The interface's name in the container.
    pub ifname: String,
}

impl Owner {
    /// The owner of interface `ifname` of `container` in `network`.
    pub fn new(network: impl Into<String>, container: impl Into<String>, ifname: impl Into<String>) -> Owner {
        Owner { network: network.into(), container: container.into(), ifname: ifname.into() }
    }

    /// `NETWORK/CONTAINER/IFNAME` in at most [`TAG_MAX`] bytes, for link aliases and nft comments. Names that are too long
    /// are clipped ([`clip_network`], [`clip_container`]).
    pub fn tag(&self) -> String {
        format!("{}/{}/{}", clip_network(&self.network), clip_container(&self.container), self.ifname)
    }

    /// The owner that a tag names, with network and container as clipped as they are in it; None when the text is no tag.
    pub fn parse_tag(tag: &str) -> Option<Owner> {
        let mut parts = tag.split('/');
        let owner = Owner::new(parts.next()?, parts.next()?, parts.next()?);
        let whole = parts.next().is_none()
            && ![&owner.network, &owner.container, &owner.ifname].iter().any(|part| part.is_empty());
        whole.then_some(owner)
    }

    /// The owner that a link's alias names.
    pub fn parse_alias(alias: &str) -> Option<Owner> {
        Owner::parse_tag(alias.strip_prefix(ALIAS_PREFIX)?)
    }

    /// The alias of this owner's host link: `weft:` and the tag.
    pub fn alias(&self) -> String {
        format!("{ALIAS_PREFIX}{}", self.tag())
    }

    /// True when `tag` was made for this owner.
    pub fn same(&self, tag: &str) -> bool {
        self.tag() == tag
    }

    /// The name of the host's end of the veth: `veth` and 11 hex digits (exactly 15 bytes, the most that a name may have).
    pub fn host_veth(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.network.as_bytes());
        hash.update([0]);
        hash.update(self.container.as_bytes());
        hash.update([0]);
        hash.update(self.ifname.as_bytes());
        let mut name = String::from("veth");
        hex(&hash.finalize(), 11, &mut name);
        name
    }
}

/// A network's name as it stands in a tag: itself up to 40 bytes, else its first 31, `~` and 8 hex digits of its SHA-256.
pub fn clip_network(name: &str) -> String {
    clip(name, NETWORK_MAX)
}

/// A container's ID as it stands in a tag: itself up to 66 bytes, else its first 57, `~` and 8 hex digits of its SHA-256.
pub fn clip_container(id: &str) -> String {
    clip(id, CONTAINER_MAX)
}

fn clip(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let mut end = max - 9;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let mut clipped = format!("{}~", &name[..end]);
    hex(&Sha256::digest(name.as_bytes()), 8, &mut clipped);
    clipped
}

/// Appends the first `digits` hex digits of `bytes`.
fn hex(bytes: &[u8], digits: usize, out: &mut String) {
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(digits);
    out.extend(nibbles.filter_map(|nibble| char::from_digit(nibble.into(), 16)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_names_stand_as_they_are() {
        let owner = Owner::new("pods", "0123456789abcdef".repeat(4), "eth0");
        assert_eq!(owner.tag(), format!("pods/{}/eth0", owner.container));
        assert_eq!(Owner::parse_tag(&owner.tag()), Some(owner.clone()));
        assert_eq!(Owner::parse_alias(&owner.alias()), Some(owner));
        assert_eq!(Owner::parse_alias(BRIDGE_ALIAS), None);
        assert_eq!(Owner::parse_alias("uplink to rack 3/b/c"), None);
    }

    #[test]
    fn the_host_veths_name_never_changes() {
        // Other releases must find what this one made.
        assert_eq!(Owner::new("pods", "c1", "eth0").host_veth(), "veth39a7199053c");
    }

    proptest! {
        #[test]
        fn a_tag_fits_and_reads_back(
            network in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,200}",
            container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,200}",
            ifname in "[a-z0-9_.-]{1,15}",
        ) {
            let owner = Owner::new(network, container, ifname);
            let tag = owner.tag();
            prop_assert!(tag.len() <= TAG_MAX);
            prop_assert!(owner.same(&tag));
            let back = Owner::parse_tag(&tag);
            prop_assert_eq!(
                back,
                Some(Owner::new(clip_network(&owner.network), clip_container(&owner.container), owner.ifname.clone()))
            );
            prop_assert_eq!(owner.host_veth().len(), 15);
        }

        #[test]
        fn clipping_keeps_names_apart(a in "[a-z]{30,60}", b in "[a-z]{30,60}") {
            prop_assume!(a != b);
            prop_assert_ne!(clip_network(&a), clip_network(&b));
            // A clipped name is clipped no further, and no valid name looks like one.
            prop_assert_eq!(clip_network(&clip_network(&a)), clip_network(&a));
        }

        #[test]
        fn owners_differ_in_every_part(a in "[a-z]{1,9}", b in "[a-z]{1,9}", c in "[a-z]{1,9}") {
            let name = Owner::new(&*a, &*b, &*c).host_veth();
            prop_assert_ne!(&name, &Owner::new(format!("{a}{b}"), "x", &*c).host_veth());
            prop_assert_ne!(&name, &Owner::new(&*a, format!("{b}1"), &*c).host_veth());
            prop_assert_ne!(&name, &Owner::new(&*a, &*b, format!("{c}1")).host_veth());
        }

        #[test]
        fn any_text_is_handled(text in ".{0,300}") {
            let owner = Owner::new(&*text, &*text, "eth0");
            prop_assert!(owner.tag().len() <= TAG_MAX);
            let _ = Owner::parse_tag(&text);
        }
    }
}
