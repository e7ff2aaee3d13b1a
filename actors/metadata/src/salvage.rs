//! What can still be read of a meta.redb that something has altered.
//!
//! redb opens such a file not at all, or believes what it finds. This reads the pages itself (file format 3 of redb, its
//! docs/design.md), and only those that are what was written: each is named with its checksum by the one above it, up to
//! a commit slot with one of its own. So a row that is given here was written, in the last commit; what lies below a page
//! that was altered is missing, and how many pages that are is counted. It writes nothing.
//!
//! In the same way it finds out whether anything was altered in a file that redb would open without looking.

use std::{
    collections::{HashSet, VecDeque},
    fs::File,
    os::unix::fs::FileExt as _,
    panic::resume_unwind,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread::ScopedJoinHandle,
};

use cofferdam_types::{Error, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use twox_hash::XxHash3_128;

use crate::table::damaged;

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
/// So many threads compare a file at most, which is taken in so many parts at least.
const THREADS: usize = 4;
const PARTS: usize = 256;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// Of the byte behind the magic number: which slot a commit in two phases made the good one, and that it was one.
const PRIMARY: u8 = 1;
const TWO_PHASE: u8 = 4;
/// A table of one value for each key, as its definition has it.
const PLAIN: u8 = 3;

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

/// How long the keys and the values of a tree are, where each is as long as the others. In our tables none are.
#[derive(Clone, Copy, Debug, Default)]
struct Widths {
    key: Option<usize>,
    value: Option<usize>,
}

/// A tree: where it begins, and what is in it.
#[derive(Clone, Copy, Debug)]
struct Tree {
    root: Named,
    widths: Widths,
}

/// An altered file, as far as it can be read.
#[derive(Debug)]
pub(crate) struct Salvage {
    file: File,
    /// Pages in front of those of a region, and all of them.
    region: (u64, u64),
    /// The tree of tables.
    root: Option<Named>,
    /// The trees of tables, ours and redb's own, that redb opens the file with, without reading them.
    unread: Vec<Named>,
}

impl Salvage {
    /// Looks at a file. An error: it can't be read at all.
    pub(crate) fn open(path: &Path) -> Result<Salvage> {
        Salvage::of(File::open(path).map_err(|e| Error::io("metadata", "", "opening meta.redb", &e))?)
    }

    /// Looks at one that is open.
    pub(crate) fn of(file: File) -> Result<Salvage> {
        let mut head = vec![0; PAGE as usize];
        let length = file.metadata().map_or(0, |meta| meta.len()).min(PAGE) as usize;
        file.read_exact_at(&mut head[..length], 0).map_err(|e| Error::io("metadata", "", "reading meta.redb", &e))?;
        // A file of less than a region has these, and a longer one where its head is whole.
        let fields = (&head[..9] == MAGIC && word(&head, 12) == Some(PAGE as u32))
            .then(|| Some((u64::from(word(&head, 16)?), u64::from(word(&head, 20)?))))
            .flatten();
        let (before, most) =
            fields.filter(|(before, most)| *before < 1 << 20 && (1..=1 << 20).contains(most)).unwrap_or((0, 1 << 20));
        let unread = unread(&head).unwrap_or_default();
        let mut salvage = Salvage { file, region: (before, before + most), root: None, unread };
        salvage.root = salvage.last_commit(&head);
        Ok(salvage)
    }

    /// Reads all that redb would believe without reading it, and compares it with its checksums. Where that is nothing, since
    /// a crash came in between, or the head is altered, redb finds out by itself.
    pub(crate) fn verify(&self) -> Result<()> {
        // Read page by page, a file that is not in memory would take a hundred times as long. It is only for that.
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        let (mut altered, mut met) = (0, HashSet::new());
        let mut trees = Vec::new();
        for root in &self.unread {
            let definitions = Tree { root: *root, widths: Widths::default() };
            altered += self.walk(definitions, 0, &mut met, &mut |_, definition| trees.extend(tree(definition)));
        }
        let (parts, lost) = self.parts(trees);
        altered += lost;
        // It is the processor's work, where the file is in memory, and a start waits for it.
        let next = AtomicUsize::new(0);
        let walk = || {
            let (mut altered, mut met) = (0, HashSet::new());
            while let Some((tree, depth)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                altered += self.walk(*tree, *depth, &mut met, &mut |_, _| {});
            }
            altered
        };
        altered += std::thread::scope(|scope| {
            let others = std::thread::available_parallelism().map_or(0, |all| all.get().min(THREADS) - 1);
            let others: Vec<_> = (0..others).map(|_| scope.spawn(walk)).collect();
            // PANIC: what another thread panics with is this one's panic, as if it had come to it itself.
            let join = |other: ScopedJoinHandle<'_, u64>| other.join().unwrap_or_else(|panic| resume_unwind(panic));
            walk() + others.into_iter().map(join).sum::<u64>()
        });
        match altered {
            0 => Ok(()),
            1 => Err(damaged("a page of it is not what was written")),
            _ => Err(damaged(format!("{altered} pages of it are not what was written"))),
        }
    }

    /// What lies below few trees, as many smaller ones: each with how deep it lies. Says how many pages are altered on the
    /// way there.
    fn parts(&self, trees: Vec<Tree>) -> (Vec<(Tree, usize)>, u64) {
        let mut parts: VecDeque<_> = trees.into_iter().map(|tree| (tree, 0)).collect();
        let mut altered = 0;
        while parts.len() < PARTS {
            let Some((tree, depth)) = parts.pop_front() else { break };
            let below = self.page(tree.root, tree.widths).filter(|_| depth < DEEPEST).and_then(|page| match page[0] {
                LEAF => leaf(&page, tree.widths, &mut |_, _| {}).map(|()| Vec::new()),
                _ => (0..children(&page)?).map(|n| Some(Tree { root: child(&page, n)?, ..tree })).collect(),
            });
            match below {
                Some(below) => parts.extend(below.into_iter().map(|tree| (tree, depth + 1))),
                None => altered += 1,
            }
        }
        (parts.into(), altered)
    }

    /// The tree of the last commit, or of the one before it. Which of them the head names tells nothing more.
    fn last_commit(&self, head: &[u8]) -> Option<Named> {
        let root = |slot: usize| user_root(whole(head, slot)?);
        newer(head).into_iter().filter_map(root).find(|root| self.page(*root, Widths::default()).is_some())
    }

    /// Whether there is anything to be read.
    pub(crate) fn is_readable(&self) -> bool {
        self.root.is_some()
    }

    /// Visits the rows of a table in the order of their keys. Says how many pages are lost with what lay below them.
    pub(crate) fn rows(&self, table: &str, visit: &mut Visit<'_>) -> u64 {
        let Some(root) = self.root else { return 1 };
        let (mut found, mut met) = (None, HashSet::new());
        let definitions = Tree { root, widths: Widths::default() };
        let lost = self.walk(definitions, 0, &mut met, &mut |name, definition| {
            if name == table.as_bytes() {
                found = Some(definition.to_vec());
            }
        });
        match found {
            Some(definition) if definition.get(9) == Some(&0) => 0,
            Some(definition) => match tree(&definition) {
                // Rows as ours are, whatever it says: of others nothing can be read.
                Some(Tree { root, .. }) => self.walk(Tree { root, widths: Widths::default() }, 0, &mut met, visit),
                None => 1,
            },
            // Nobody knows whether it was there.
            None => lost,
        }
    }

    /// `met`: the pages that were read. One that is named twice is part of no tree.
    fn walk(&self, tree: Tree, depth: usize, met: &mut HashSet<u64>, visit: &mut Visit<'_>) -> u64 {
        let Tree { root, widths } = tree;
        let page = self.page(root, widths).filter(|_| depth < DEEPEST && met.insert(root.number));
        let walked = page.and_then(|page| match page[0] {
            LEAF => leaf(&page, widths, visit).map(|()| 0),
            _ => {
                let mut lost = 0;
                for n in 0..children(&page)? {
                    lost += self.walk(Tree { root: child(&page, n)?, widths }, depth + 1, met, visit);
                }
                Some(lost)
            }
        });
        walked.unwrap_or(1)
    }

    /// A page that is what it was when it was written.
    fn page(&self, named: Named, widths: Widths) -> Option<Vec<u8>> {
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
            LEAF => leaf_end(&page, widths)?,
            BRANCH => branch_end(&page, widths)?,
            _ => return None,
        };
        (hash(page.get(..end)?) == named.checksum).then_some(page)
    }
}

/// A commit slot that is what was written.
fn whole(head: &[u8], slot: usize) -> Option<&[u8]> {
    let slot = &head[SLOTS[slot]..SLOTS[slot] + SLOT];
    (slot[0] == SLOT_VERSION && sum(slot, SUMMED)? == hash(&slot[..SUMMED])).then_some(slot)
}

fn user_root(slot: &[u8]) -> Option<Named> {
    Named::read(&slot[8..]).filter(|_| slot[1] != 0)
}

/// What a commit in two phases has made the good one redb takes as it is. After any other it reads the file.
fn unread(head: &[u8]) -> Option<Vec<Named>> {
    let god = head[9];
    let slot = whole(head, usize::from(god & PRIMARY)).filter(|_| &head[..9] == MAGIC && god & TWO_PHASE != 0)?;
    let own = Named::read(&slot[40..]).filter(|_| slot[2] != 0);
    Some(user_root(slot).into_iter().chain(own).collect())
}

/// The tree of a table: its type, and how many rows it has, come before its root, and how long these are behind it.
fn tree(definition: &[u8]) -> Option<Tree> {
    if definition.first() != Some(&PLAIN) || definition.get(9) == Some(&0) {
        return None;
    }
    let width = |at: usize| match definition.get(at)? {
        0 => Some(None),
        _ => word(definition, at + 1).map(|width| Some(width as usize)),
    };
    let widths = Widths { key: width(42)?, value: width(47)? };
    Some(Tree { root: Named::read(definition.get(10..)?)?, widths })
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

/// A leaf: where each key ends, where each value ends, the keys, the values. Where all are as long there are no ends.
fn leaf(page: &[u8], widths: Widths, visit: &mut Visit<'_>) -> Option<()> {
    let pairs = count(page);
    let (mut key, mut value) = (keys_start(pairs, widths), key_end(page, pairs.checked_sub(1)?, widths)?);
    for n in 0..pairs {
        let (key_end, value_end) = (key_end(page, n, widths)?, value_end(page, n, widths)?);
        visit(page.get(key..key_end)?, page.get(value..value_end)?);
        (key, value) = (key_end, value_end);
    }
    Some(())
}

fn keys_start(pairs: usize, widths: Widths) -> usize {
    let ends = usize::from(widths.key.is_none()) + usize::from(widths.value.is_none());
    4 + 4 * pairs * ends
}

fn key_end(page: &[u8], n: usize, widths: Widths) -> Option<usize> {
    match widths.key {
        Some(width) => width.checked_mul(n + 1)?.checked_add(keys_start(count(page), widths)),
        None => word(page, 4 + 4 * n).map(|end| end as usize),
    }
}

fn value_end(page: &[u8], n: usize, widths: Widths) -> Option<usize> {
    let pairs = count(page);
    match widths.value {
        Some(width) => width.checked_mul(n + 1)?.checked_add(key_end(page, pairs.checked_sub(1)?, widths)?),
        None => {
            let behind = if widths.key.is_none() { 4 * pairs } else { 0 };
            word(page, 4 + 4 * n + behind).map(|end| end as usize)
        }
    }
}

fn leaf_end(page: &[u8], widths: Widths) -> Option<usize> {
    value_end(page, count(page).checked_sub(1)?, widths)
}

/// A branch: checksums of its children, their pages, where each key ends, the keys, of which there is one less.
fn children(page: &[u8]) -> Option<usize> {
    Some(count(page).checked_add(1)?).filter(|children| *children > 1)
}

fn child(page: &[u8], n: usize) -> Option<Named> {
    let children = children(page)?;
    Some(Named { checksum: sum(page, 8 + 16 * n)?, number: number(page, 8 + 16 * children + 8 * n)? })
}

fn branch_end(page: &[u8], widths: Widths) -> Option<usize> {
    let children = children(page)?;
    let keys = 8 + 24 * children;
    match widths.key {
        Some(width) => width.checked_mul(children - 1)?.checked_add(keys),
        None => Some(word(page, keys + 4 * (children - 2))? as usize),
    }
}
