//! Random numbers: identifiers, and where several agents should not all do the same.

use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::time::Duration;

/// Lower-case hexadecimal digits, two for each of `bytes`, from the kernel's generator.
pub(crate) fn id(bytes: usize) -> std::io::Result<String> {
    let mut buffer = vec![0; bytes];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut buffer)?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A number below `limit` (0 when that is 0). Good enough to choose by, not to keep secrets by.
pub(crate) fn below(limit: usize) -> usize {
    let number = RandomState::new().hash_one(0u8);
    (number % limit.max(1) as u64) as usize
}

/// The time, a tenth longer or shorter at most.
pub(crate) fn jitter(time: Duration) -> Duration {
    time.mul_f64(0.9 + below(200) as f64 / 1000.0)
}

/// The time, or less, down to a part of it (0 to 1).
pub(crate) fn shorten(time: Duration, part: f64) -> Duration {
    time.mul_f64(part + (1.0 - part) * below(1000) as f64 / 1000.0)
}

/// Mixes a list up.
pub(crate) fn shuffle<T>(list: &mut [T]) {
    for i in (1..list.len()).rev() {
        list.swap(i, below(i + 1));
    }
}
