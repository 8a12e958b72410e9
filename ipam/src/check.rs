//! Examines an LMDB data file without mapping it, so that a damaged one is never trusted: a map over a truncated file
//! ends in SIGBUS, and LMDB itself follows the offsets in a page without a look at where they lead.
//!
//! [`quick`] runs at every opening and costs a few reads; [`walk`] reads every page that is in use. The layout is that
//! of LMDB's `mdb.c` (`MDB_page`, `MDB_meta`, `MDB_db`, `MDB_node`) on 64 bits, in the host's byte order. A walk
//! beside a writer is sound as long as the newest commit stays the newest: its pages are not reused before.
use std::fs::File;
use std::os::unix::fs::FileExt;

const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
const HEADER: usize = 16;
/// Where a page number that means "no page" is all ones.
const NO_PAGE: u64 = u64::MAX;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
/// The flags that say what a page is; the others are a running transaction's.
const KINDS: u16 = 0x6f;
const BIGDATA: u16 = 0x01;

/// Files up to this size are walked at every opening: it costs no more than opening them.
const SMALL: u64 = 64 << 10;

/// What is wrong with a file, for the note about it.
pub type Fault = String;
type Outcome<T> = Result<T, Fault>;

/// The root of one of the two trees of an environment (`MDB_db`).
#[derive(Clone, Copy)]
struct Tree {
    depth: u16,
    branches: u64,
    leaves: u64,
    overflows: u64,
    entries: u64,
    root: u64,
}

/// What the newest meta page says.
#[derive(Clone, Copy)]
pub struct Head {
    psize: usize,
    free: Tree,
    main: Tree,
    last: u64,
    txnid: u64,
    /// The file's length when it was looked at, in bytes.
    len: u64,
}

impl Head {
    /// The length the file has when all its pages are written. LMDB leaves pages at the end unwritten that were taken
    /// and given back in one transaction.
    pub fn full_len(&self) -> u64 {
        self.last.saturating_add(1).saturating_mul(self.psize as u64)
    }

    /// Pages at the end are missing, which is no damage as long as none of them is in use.
    pub fn is_short(&self) -> bool {
        self.len < self.full_len()
    }
}

/// Looks at both meta pages, the length and the roots, and at everything when the file is small.
pub fn quick(file: &File) -> Outcome<Head> {
    let head = head(file)?;
    if head.is_short() {
        return Err(format!("it ends before page {}, its last", head.last));
    }
    if head.len <= SMALL {
        Walk::new(file, head)?.all()?;
    } else {
        let mut walk = Walk::new(file, head)?;
        for tree in [head.free, head.main] {
            if tree.root != NO_PAGE {
                walk.page(tree.root, if tree.depth > 1 { BRANCH } else { LEAF })?;
            }
        }
    }
    Ok(head)
}

/// Reads all pages in use. The file may be short as long as no page in use is missing.
pub fn walk(file: &File) -> Outcome<Head> {
    let head = head(file)?;
    Walk::new(file, head)?.all()?;
    Ok(head)
}

/// Reads both meta pages; both must be sound, since LMDB looks at both.
fn head(file: &File) -> Outcome<Head> {
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    let mut first = [0; 256];
    file.read_exact_at(&mut first, 0).map_err(|_| format!("it is {len} bytes long"))?;
    let one = meta(&first, len)?;
    let mut second = [0; 256];
    let at = one.psize as u64;
    file.read_exact_at(&mut second, at).map_err(|_| format!("it is {len} bytes long"))?;
    let two = meta(&second, len)?;
    if one.psize != two.psize {
        return Err("its two heads differ in page size".to_owned());
    }
    Ok(if two.txnid > one.txnid { two } else { one })
}

fn meta(page: &[u8; 256], len: u64) -> Outcome<Head> {
    if u16_at(page, 10) & KINDS != META || u32_at(page, HEADER) != MAGIC {
        return Err("its head is not that of an LMDB file".to_owned());
    }
    if u32_at(page, HEADER + 4) != DATA_VERSION {
        return Err("its head is of another version of LMDB".to_owned());
    }
    let psize = u32_at(page, HEADER + 24) as usize;
    if !psize.is_power_of_two() || !(4096..=32768).contains(&psize) {
        return Err(format!("its page size is {psize}"));
    }
    // magic, version, address and map size come before the two trees of 48 bytes each.
    let (free, main) = (tree(page, HEADER + 24), tree(page, HEADER + 72));
    let head =
        Head { psize, free, main, last: u64_at(page, HEADER + 120), txnid: u64_at(page, HEADER + 128), len };
    // A file is short by the few pages of one transaction only, and the bitmap of a walk must not follow a wild number.
    if head.last < 1 || head.last > len / psize as u64 + (1 << 20) {
        return Err(format!("its last page is said to be {}", head.last));
    }
    Ok(head)
}

fn tree(page: &[u8], at: usize) -> Tree {
    Tree {
        depth: u16_at(page, at + 6),
        branches: u64_at(page, at + 8),
        leaves: u64_at(page, at + 16),
        overflows: u64_at(page, at + 24),
        entries: u64_at(page, at + 32),
        root: u64_at(page, at + 40),
    }
}

/// A walk over the pages in use, each of which may be met only once.
struct Walk<'f> {
    file: &'f File,
    head: Head,
    seen: Vec<u64>,
}

/// What a tree turned out to hold, and the last key met, since keys must ascend over all leaves.
#[derive(Default)]
struct Count {
    branches: u64,
    leaves: u64,
    overflows: u64,
    entries: u64,
    last_key: Option<Vec<u8>>,
}

/// The bounds that the branch above sets for the keys of a page: from the first on, below the second.
type Bounds<'b> = (Option<&'b [u8]>, Option<&'b [u8]>);

impl<'f> Walk<'f> {
    fn new(file: &'f File, head: Head) -> Outcome<Walk<'f>> {
        let words = usize::try_from(head.last / 64 + 1).map_err(|e| e.to_string())?;
        Ok(Walk { file, head, seen: vec![0; words] })
    }

    fn all(&mut self) -> Outcome<()> {
        let (free, main) = (self.head.free, self.head.main);
        self.tree(free, true)?;
        self.tree(main, false)
    }

    fn tree(&mut self, tree: Tree, free: bool) -> Outcome<()> {
        let mut count = Count::default();
        if tree.root == NO_PAGE {
            if tree.depth != 0 {
                return Err("a tree has a depth but no root".to_owned());
            }
        } else {
            if !(1..=32).contains(&tree.depth) {
                return Err(format!("a tree is said to be {} pages deep", tree.depth));
            }
            self.node(tree.root, tree.depth, free, (None, None), &mut count)?;
        }
        let found = (count.branches, count.leaves, count.overflows, count.entries);
        if found != (tree.branches, tree.leaves, tree.overflows, tree.entries) {
            return Err("a tree has more or fewer records than its head says".to_owned());
        }
        Ok(())
    }

    /// Checks the page and all below it; `depth` is 1 at a leaf.
    fn node(
        &mut self,
        number: u64,
        depth: u16,
        free: bool,
        bounds: Bounds<'_>,
        count: &mut Count,
    ) -> Outcome<()> {
        self.mark(number, 1)?;
        let page = self.page(number, if depth > 1 { BRANCH } else { LEAF })?;
        let offsets = page.offsets()?;
        if depth == 1 {
            count.leaves += 1;
            for offset in offsets {
                let (key, value, big) = page.record(offset)?;
                in_order(free, key, bounds, count.last_key.as_deref(), number)?;
                count.last_key = Some(key.to_vec());
                count.entries += 1;
                let whole = match big {
                    Some(len) => self.overflow(value, len, count)?,
                    None => value.to_vec(),
                };
                if free {
                    self.free_list(&whole)?;
                }
            }
            return Ok(());
        }
        count.branches += 1;
        let children = offsets.iter().map(|o| page.child(*o)).collect::<Outcome<Vec<_>>>()?;
        for (i, (key, child)) in children.iter().enumerate() {
            // The first key of a branch stands for "whatever is less" and is usually empty.
            let least = if i == 0 { bounds.0 } else { Some(*key) };
            let above = children.get(i + 1).map_or(bounds.1, |(next, _)| Some(*next));
            self.node(*child, depth - 1, free, (least, above), count)?;
        }
        Ok(())
    }

    /// Reads a page and checks that it is what it should be.
    fn page(&mut self, number: u64, kind: u16) -> Outcome<Page> {
        let mut bytes = vec![0; self.head.psize];
        let read = self.file.read_exact_at(&mut bytes, number.saturating_mul(self.head.psize as u64));
        read.map_err(|_| format!("page {number} is missing"))?;
        if u64_at(&bytes, 0) != number || u16_at(&bytes, 10) & KINDS != kind {
            return Err(format!("page {number} is not what it should be"));
        }
        Ok(Page { bytes, number })
    }

    /// The content of pages that hold one long value; `value` is the number of the first, `len` the value's bytes.
    fn overflow(&mut self, value: &[u8], len: usize, count: &mut Count) -> Outcome<Vec<u8>> {
        let number = u64_at(value, 0);
        let pages = (len + HEADER).div_ceil(self.head.psize) as u64;
        self.mark(number, pages)?;
        let first = self.page(number, OVERFLOW)?;
        if u64::from(u32_at(&first.bytes, 12)) != pages {
            return Err(format!("page {number} begins a value of the wrong length"));
        }
        count.overflows += pages;
        let mut whole = vec![0; len];
        let at = number * self.head.psize as u64 + HEADER as u64;
        self.file.read_exact_at(&mut whole, at).map_err(|_| format!("page {number} is missing"))?;
        Ok(whole)
    }

    /// A list of pages that are free: none of them may be in use, or in another list.
    fn free_list(&mut self, value: &[u8]) -> Outcome<()> {
        let wrong = || "a list of free pages cannot be read".to_owned();
        let (count, pages) = value.split_first_chunk::<8>().ok_or_else(wrong)?;
        let count = usize::try_from(u64::from_ne_bytes(*count)).map_err(|_| wrong())?;
        let len = count.checked_mul(8).ok_or_else(wrong)?;
        for page in pages.get(..len).ok_or_else(wrong)?.chunks_exact(8) {
            self.mark(u64_at(page, 0), 1)?;
        }
        Ok(())
    }

    fn mark(&mut self, first: u64, pages: u64) -> Outcome<()> {
        let end = first.saturating_add(pages);
        if first < 2 || end > self.head.last + 1 {
            return Err(format!("page {first} is out of bounds"));
        }
        for page in first..end {
            let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
            if self.seen[word] & bit != 0 {
                return Err(format!("page {page} is used twice"));
            }
            self.seen[word] |= bit;
        }
        Ok(())
    }
}

fn in_order(free: bool, key: &[u8], bounds: Bounds<'_>, last: Option<&[u8]>, page: u64) -> Outcome<()> {
    if free && key.len() != 8 {
        return Err(format!("page {page} has a key of the wrong length"));
    }
    // The keys of the free list are transaction numbers in the host's byte order.
    let less = |a: &[u8], b: &[u8]| if free && b.len() == 8 { u64_at(a, 0) < u64_at(b, 0) } else { a < b };
    let low = bounds.0.is_some_and(|least| less(key, least));
    let high = bounds.1.is_some_and(|above| !less(key, above));
    if low || high || last.is_some_and(|last| !less(last, key)) {
        return Err(format!("page {page} has keys out of order"));
    }
    Ok(())
}

/// A branch or leaf page: a header, 16-bit offsets that grow upwards, and nodes that grow downwards.
struct Page {
    bytes: Vec<u8>,
    number: u64,
}

impl Page {
    fn wrong(&self) -> Fault {
        format!("page {} is garbled", self.number)
    }

    fn offsets(&self) -> Outcome<Vec<usize>> {
        let (lower, upper) = (usize::from(u16_at(&self.bytes, 12)), usize::from(u16_at(&self.bytes, 14)));
        let least = if u16_at(&self.bytes, 10) & BRANCH != 0 { 2 } else { 1 };
        if lower < HEADER + 2 * least || lower % 2 != 0 || lower > upper || upper > self.bytes.len() {
            return Err(self.wrong());
        }
        let offsets = (HEADER..lower).step_by(2).map(|at| usize::from(u16_at(&self.bytes, at)));
        let offsets: Vec<usize> = offsets.collect();
        match offsets.iter().all(|o| *o >= upper && o % 2 == 0 && o + 8 <= self.bytes.len()) {
            true => Ok(offsets),
            false => Err(self.wrong()),
        }
    }

    /// Splits a node of a leaf: key, value, and the value's length when it is on pages of its own.
    fn record(&self, at: usize) -> Outcome<(&[u8], &[u8], Option<usize>)> {
        let node = &self.bytes[at..];
        let len = usize::from(u16_at(node, 0)) | usize::from(u16_at(node, 2)) << 16;
        let (flags, key) = (u16_at(node, 4), usize::from(u16_at(node, 6)));
        // Other flags are for trees within trees, which this store does not have.
        let (stored, big) = match flags {
            0 => (len, None),
            BIGDATA => (8, Some(len)),
            _ => return Err(self.wrong()),
        };
        let key = node.get(8..8 + key).ok_or_else(|| self.wrong())?;
        let value = node.get(8 + key.len()..8 + key.len() + stored).ok_or_else(|| self.wrong())?;
        Ok((key, value, big))
    }

    /// Splits a node of a branch: key and page.
    fn child(&self, at: usize) -> Outcome<(&[u8], u64)> {
        let node = &self.bytes[at..];
        let [low, mid, high, key] = [0, 2, 4, 6].map(|at| u64::from(u16_at(node, at)));
        let key = node.get(8..8 + key as usize).ok_or_else(|| self.wrong())?;
        Ok((key, low | mid << 16 | high << 32))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |b| u16::from_ne_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |b| u32::from_ne_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |b| u64::from_ne_bytes(*b))
}
