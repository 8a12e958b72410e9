//! What a transaction may hold, the same for both stores: refused here before anything is sent or changed.

use std::collections::BTreeSet;

use crate::{Compare, Error, Op, Result, Txn};

/// Conditions and steps of one transaction; etcd's own bound is 128.
pub(crate) const MAX_OPS: usize = 100;
/// The length of a key in bytes, without the prefix: LMDB's bound is 511 with what stands before it.
pub(crate) const MAX_KEY: usize = 500;
/// Keys and values of one transaction in bytes; etcd's own bound is 1.5 MiB.
pub(crate) const MAX_BYTES: usize = 1 << 20;

impl Txn {
    /// Refuses what one of the stores would refuse, so that both behave alike.
    pub(crate) fn check(&self) -> Result<()> {
        for (what, count) in [
            ("conditions", self.when.len()),
            ("steps", self.then.len()),
            ("steps otherwise", self.otherwise.len()),
        ] {
            if count > MAX_OPS {
                return refuse(format!("a transaction has {count} {what}; at most {MAX_OPS} are allowed"));
            }
        }
        let bytes: usize = self.then.iter().chain(&self.otherwise).map(size).sum();
        if bytes > MAX_BYTES {
            return refuse(format!("a transaction has {bytes} bytes; at most {MAX_BYTES} are allowed"));
        }
        let ranges = self.then.iter().chain(&self.otherwise).filter_map(|op| match op {
            Op::DeleteRange(from, to) | Op::Get(from, to) => Some((from, to)),
            _ => None,
        });
        let empty = self.when.iter().filter_map(|compare| match compare {
            Compare::Empty(from, to) => Some((from, to)),
            _ => None,
        });
        if let Some((from, to)) = ranges.chain(empty).find(|(from, to)| from >= to) {
            return refuse(format!("the range from {from:?} to {to:?} ends before it begins"));
        }
        check_branch(&self.then)?;
        check_branch(&self.otherwise)
    }
}

fn refuse<T>(why: String) -> Result<T> {
    Err(Error::Refused(why))
}

fn size(op: &Op) -> usize {
    match op {
        Op::Put(key, value, _) => key.len() + value.len(),
        _ => 0,
    }
}

/// As etcd does: a key is put once in a transaction, and not put when it is removed there too, in whatever order.
fn check_branch(ops: &[Op]) -> Result<()> {
    let mut put = BTreeSet::new();
    for op in ops {
        let Op::Put(key, ..) = op else { continue };
        check_key(key)?;
        let removed = ops.iter().any(|op| match op {
            Op::Delete(other) => other == key,
            Op::DeleteRange(from, to) => from <= key && key < to,
            _ => false,
        });
        if !put.insert(key) || removed {
            return refuse(format!("the key {key:?} is changed twice in one transaction"));
        }
    }
    Ok(())
}

/// Keys are printable ASCII, so that [`crate::range_end`] is beyond all that begin alike.
fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return refuse(format!("the key {key:?} is not 1 to {MAX_KEY} printable ASCII characters"));
    }
    Ok(())
}
