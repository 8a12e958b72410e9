//! Reading and writing netlink attributes by hand, for messages that the packet crates do not cover, or where taking a
//! message apart completely would cost more than the two fields that are wanted (RTM_NEWLINK carries a kilobyte of
//! statistics and settings, and one unreadable attribute among them would make the whole link unreadable).

use netlink_packet_core::{NLA_F_NESTED, NLA_TYPE_MASK};

/// Appends the attribute `kind` with `value`, padded to four bytes.
pub fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    nest_raw(out, kind, |out| out.extend_from_slice(value));
}

/// Appends a number in the host's byte order (rtnetlink).
pub fn put_u32(out: &mut Vec<u8>, kind: u16, value: u32) {
    put(out, kind, &value.to_ne_bytes());
}

/// Appends a string with its NUL.
pub fn put_str(out: &mut Vec<u8>, kind: u16, value: &str) {
    nest_raw(out, kind, |out| {
        out.extend_from_slice(value.as_bytes());
        out.push(0);
    });
}

/// Appends an attribute that holds the attributes which `fill` appends.
pub fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    nest_raw(out, kind | NLA_F_NESTED, fill);
}

fn nest_raw(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    // A single attribute is below 64 KiB: the longest values here are names, aliases and VLAN lists of 4,094 entries.
    let length = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    out[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
    out.resize(start + (out.len() - start).next_multiple_of(4), 0);
}

/// The attributes in `bytes`: (type without the flag bits, value). Stops at the first that is cut short.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of type `kind` in `bytes`.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A 32-bit number in the host's byte order.
pub fn u32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A 16-bit number in the host's byte order.
pub fn u16_of(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?))
}

/// A string up to its NUL; what is not UTF-8 is replaced (link aliases are free bytes).
pub fn str_of(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut out = Vec::new();
        put_u32(&mut out, 4, 1500);
        put_str(&mut out, 3, "eth0");
        nest(&mut out, 18, |out| {
            put_str(out, 1, "veth");
            put(out, 2, &[]);
        });
        assert_eq!(out.len() % 4, 0);
        assert_eq!(find(&out, 4).and_then(u32_of), Some(1500));
        assert_eq!(find(&out, 3).map(str_of), Some("eth0".to_owned()));
        let info: Vec<_> = attributes(find(&out, 18).unwrap()).collect();
        assert_eq!(info, [(1, &b"veth\0"[..]), (2, &[][..])]);
        assert_eq!(find(&out, 99), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(attributes(&bytes).count() <= 50);
        }
    }
}
