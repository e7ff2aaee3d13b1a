//! What can still be read of a meta.redb that something has altered.
//!
//! redb opens such a file not at all, or believes what it finds. This reads the pages itself (file format 3 of redb, its
//! docs/design.md), and only those that are what was written: each is named with its checksum by the one above it, up to
//! a commit slot with one of its own. So a row that is given here was written, in the last commit; what lies below a page
//! that was altered is missing, and how many pages that are is counted. It writes nothing.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use cofferdam_types::{Error, Result};
use twox_hash::XxHash3_128;

const MAGIC: &[u8; 9] = b"redb\x1A\x0A\xA9\x0D\x0A";
const PAGE: u64 = 4096;
/// Where both commit slots lie, how long each is, and what of it its checksum is of.
const SLOTS: [usize; 2] = [64, 192];
const SLOT: usize = 128;
const SUMMED: usize = SLOT - 16;
const SLOT_VERSION: u8 = 3;
/// No page is larger: a record has 4 MiB at most, and a page twice that.
const LARGEST_ORDER: u8 = 12;
/// No tree is deeper: that would be more rows than fit on any disk.
const DEEPEST: usize = 40;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;

/// Called with each row.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) + 'a;

/// A page as the one above it names it.
#[derive(Clone, Copy, Debug)]
struct Named {
    number: u64,
    checksum: u128,
}

impl Named {
    fn read(bytes: &[u8]) -> Option<Named> {
        Some(Named { number: number(bytes, 0)?, checksum: sum(bytes, 8)? })
    }
}

/// An altered file, as far as it can be read.
#[derive(Debug)]
pub(crate) struct Salvage {
    file: File,
    /// Pages in front of those of a region, and all of them.
    region: (u64, u64),
    /// The tree of tables.
    root: Option<Named>,
}

impl Salvage {
    /// Looks at a file. An error: it can't be read at all.
    pub(crate) fn open(path: &Path) -> Result<Salvage> {
        let file = File::open(path).map_err(|e| Error::io("metadata", "", "opening meta.redb", &e))?;
        let mut head = vec![0; PAGE as usize];
        let length = file.metadata().map_or(0, |meta| meta.len()).min(PAGE) as usize;
        file.read_exact_at(&mut head[..length], 0).map_err(|e| Error::io("metadata", "", "reading meta.redb", &e))?;
        // A file of less than a region has these, and a longer one where its head is whole.
        let fields = (&head[..9] == MAGIC && word(&head, 12) == Some(PAGE as u32))
            .then(|| Some((u64::from(word(&head, 16)?), u64::from(word(&head, 20)?))))
            .flatten();
        let (before, most) =
            fields.filter(|(before, most)| *before < 1 << 20 && (1..=1 << 20).contains(most)).unwrap_or((0, 1 << 20));
        let mut salvage = Salvage { file, region: (before, before + most), root: None };
        salvage.root = salvage.last_commit(&head);
        Ok(salvage)
    }

    /// The tree of the last commit, or of the one before it. Which of them the head names tells nothing more.
    fn last_commit(&self, head: &[u8]) -> Option<Named> {
        let whole = |slot: usize| {
            let slot = &head[SLOTS[slot]..SLOTS[slot] + SLOT];
            (slot[0] == SLOT_VERSION && sum(slot, SUMMED)? == hash(&slot[..SUMMED])).then_some(slot)
        };
        let root = |slot: usize| whole(slot).filter(|slot| slot[1] != 0).and_then(|slot| Named::read(&slot[8..]));
        newer(head).into_iter().filter_map(root).find(|root| self.page(*root).is_some())
    }

    /// Whether there is anything to be read.
    pub(crate) fn is_readable(&self) -> bool {
        self.root.is_some()
    }

    /// Visits the rows of a table in the order of their keys. Says how many pages are lost with what lay below them.
    pub(crate) fn rows(&self, table: &str, visit: &mut Visit<'_>) -> u64 {
        let Some(root) = self.root else { return 1 };
        let mut found = None;
        let lost = self.walk(root, 0, &mut |name, definition| {
            if name == table.as_bytes() {
                found = Some(definition.to_vec());
            }
        });
        // Its type, and how many rows it has, come before its root.
        match found {
            Some(definition) if definition.get(9) == Some(&0) => 0,
            Some(definition) => match definition.get(10..).and_then(Named::read) {
                Some(root) => self.walk(root, 0, visit),
                None => 1,
            },
            // Nobody knows whether it was there.
            None => lost,
        }
    }

    fn walk(&self, named: Named, depth: usize, visit: &mut Visit<'_>) -> u64 {
        let page = self.page(named).filter(|_| depth < DEEPEST);
        let walked = page.and_then(|page| match page[0] {
            LEAF => leaf(&page, visit).map(|()| 0),
            _ => {
                let mut lost = 0;
                for n in 0..children(&page)? {
                    lost += self.walk(child(&page, n)?, depth + 1, visit);
                }
                Some(lost)
            }
        });
        walked.unwrap_or(1)
    }

    /// A page that is what it was when it was written.
    fn page(&self, named: Named) -> Option<Vec<u8>> {
        let order = (named.number >> 59) as u8;
        if order > LARGEST_ORDER {
            return None;
        }
        let (index, region) = (named.number & (0xF_FFFF >> order), named.number >> 20 & 0xF_FFFF);
        let size = PAGE << order;
        let at = PAGE + (region * self.region.1 + self.region.0) * PAGE + index * size;
        let mut page = vec![0; usize::try_from(size).ok()?];
        self.file.read_exact_at(&mut page, at).ok()?;
        let end = match page[0] {
            LEAF => leaf_end(&page)?,
            BRANCH => branch_end(&page)?,
            _ => return None,
        };
        (hash(page.get(..end)?) == named.checksum).then_some(page)
    }
}

/// Both slots, the one of the later transaction first.
fn newer(head: &[u8]) -> [usize; 2] {
    let transaction = |slot: usize| number(head, SLOTS[slot] + 104).unwrap_or(0);
    if transaction(1) > transaction(0) { [1, 0] } else { [0, 1] }
}

fn hash(bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot(bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn sum(bytes: &[u8], at: usize) -> Option<u128> {
    Some(u128::from_le_bytes(bytes.get(at..at + 16)?.try_into().ok()?))
}

fn count(page: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([page[2], page[3]]))
}

/// A leaf: where each key ends, where each value ends, the keys, the values.
fn leaf(page: &[u8], visit: &mut Visit<'_>) -> Option<()> {
    let pairs = count(page);
    let end = |n: usize| word(page, 4 + 4 * n).map(|end| end as usize);
    let (mut key, mut value) = (4 + 8 * pairs, end(pairs.checked_sub(1)?)?);
    for n in 0..pairs {
        let (key_end, value_end) = (end(n)?, end(pairs + n)?);
        visit(page.get(key..key_end)?, page.get(value..value_end)?);
        (key, value) = (key_end, value_end);
    }
    Some(())
}

fn leaf_end(page: &[u8]) -> Option<usize> {
    let pairs = count(page);
    let last = (2 * pairs).checked_sub(1)?;
    Some(word(page, 4 + 4 * last)? as usize)
}

/// A branch: checksums of its children, their pages, where each key ends, the keys, of which there is one less.
fn children(page: &[u8]) -> Option<usize> {
    Some(count(page).checked_add(1)?).filter(|children| *children > 1)
}

fn child(page: &[u8], n: usize) -> Option<Named> {
    let children = children(page)?;
    Some(Named { checksum: sum(page, 8 + 16 * n)?, number: number(page, 8 + 16 * children + 8 * n)? })
}

fn branch_end(page: &[u8]) -> Option<usize> {
    let children = children(page)?;
    Some(word(page, 8 + 24 * children + 4 * (children - 2))? as usize)
}
