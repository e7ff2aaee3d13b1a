//! Tables that were written as redb writes them, down to the checksums, and say anything: what reads altered ones believes
//! each page whose checksum is right.

use std::{fs, path::Path};

use cofferdam_metadata::rebuild::{Replacement, inspect};
use cofferdam_types::Code;
use twox_hash::XxHash3_128;

use super::own::{TABLES, part};

const PAGE: usize = 4096;
/// Pages in front of the others of a region, and all others of it.
const REGION: (u32, u32) = (1, 64);

/// A page as others name it.
type Named = [u8; 24];

/// Pages that are there, one behind the other.
#[derive(Default)]
struct Pages {
    bytes: Vec<u8>,
    named: Vec<Named>,
}

impl Pages {
    /// One that is named with the checksum of what counts of it where keys and values are so long, or of any length.
    fn add(&mut self, mut page: Vec<u8>, widths: (Option<usize>, Option<usize>)) {
        page.resize(PAGE, 0);
        let end = end(&page, widths).filter(|end| *end <= PAGE).unwrap_or(PAGE);
        let mut named = [0; 24];
        named[..8].copy_from_slice(&(self.named.len() as u64).to_le_bytes());
        named[8..].copy_from_slice(&XxHash3_128::oneshot(&page[..end]).to_le_bytes());
        self.named.push(named);
        self.bytes.extend(page);
    }

    fn get(&self, n: u8) -> Named {
        self.named.get(usize::from(n) % self.named.len().max(1)).copied().unwrap_or([0xFF; 24])
    }

    /// A file whose commit names the last page, as its own tables and as redb's.
    fn file(&self) -> Vec<u8> {
        let mut head = vec![0; PAGE + REGION.0 as usize * PAGE];
        // Committed in two phases, the first slot the good one.
        head[..10].copy_from_slice(b"redb\x1A\x0A\xA9\x0D\x0A\x04");
        for (at, word) in [(12, PAGE as u32), (16, REGION.0), (20, REGION.1)] {
            head[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let slot = &mut head[64..192];
        slot[..3].copy_from_slice(&[3, 1, 1]);
        let root = self.get(u8::try_from(self.named.len().saturating_sub(1)).unwrap_or(0));
        slot[8..32].copy_from_slice(&root);
        slot[40..64].copy_from_slice(&root);
        slot[104] = 1;
        let sum = XxHash3_128::oneshot(&slot[..112]);
        slot[112..].copy_from_slice(&sum.to_le_bytes());
        [head, self.bytes.clone()].concat()
    }
}

fn word(page: &[u8], at: usize) -> Option<usize> {
    page.get(at..at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize)
}

/// Where what counts of a page ends.
fn end(page: &[u8], (key, value): (Option<usize>, Option<usize>)) -> Option<usize> {
    let count = usize::from(u16::from_le_bytes([page[2], page[3]]));
    if page[0] == 2 {
        let keys = 8 + 24 * (count + 1);
        return key.map_or_else(|| word(page, keys + 4 * count.checked_sub(1)?), |key| Some(keys + key * count));
    }
    let ends = |width: Option<usize>| if width.is_none() { 4 * count } else { 0 };
    let keys = 4 + ends(key) + ends(value);
    let key_end = key.map_or_else(|| word(page, 4 * count), |key| Some(keys + key * count));
    value.map_or_else(|| word(page, 4 * count + ends(key)), |value| Some(key_end? + value * count))
}

/// A leaf as it should be.
fn leaf(rows: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut page = vec![1, 0];
    page.extend((rows.len() as u16).to_le_bytes());
    let mut end = 4 + 8 * rows.len() as u32;
    for part in rows.iter().map(|row| &row.0).chain(rows.iter().map(|row| &row.1)) {
        end += part.len() as u32;
        page.extend(end.to_le_bytes());
    }
    page.extend(rows.iter().flat_map(|row| row.0.clone()));
    page.extend(rows.iter().flat_map(|row| row.1.clone()));
    page
}

/// A branch over pages that are there.
fn branch(children: &[Named]) -> Vec<u8> {
    let keys = children.len().saturating_sub(1);
    let mut page = vec![2, 0];
    page.extend((keys as u16).to_le_bytes());
    page.extend([0; 4]);
    children.iter().for_each(|child| page.extend(&child[8..]));
    children.iter().for_each(|child| page.extend(&child[..8]));
    let end = (8 + 28 * children.len() as u32).saturating_sub(4);
    (0..keys).for_each(|_| page.extend(end.to_le_bytes()));
    page
}

/// Each part is a page: what it is, how long keys and values of its tree are, and what is in it. A leaf has any bytes, or rows
/// that are the part's parts; a branch, pages by their number; a list of tables, a table's number, its page, and two lengths.
pub fn pages(mut data: &[u8]) {
    let mut pages = Pages::default();
    while let [kind, widths, rest @ ..] = data {
        data = rest;
        let Some(mut body) = part(&mut data, true) else { break };
        let width = |bits: u8| (bits != 0).then(|| usize::from(bits) * 8 - 8);
        let widths = (width(widths & 15), width(widths >> 4));
        let page = match kind % 4 {
            0 => [&[1, 0], body].concat(),
            1 => {
                let mut rows = Vec::new();
                while let Some(key) = part(&mut body, false) {
                    rows.push((key.to_vec(), part(&mut body, false).unwrap_or_default().to_vec()));
                }
                leaf(&rows)
            }
            2 => branch(&body.iter().take(128).map(|n| pages.get(*n)).collect::<Vec<_>>()),
            _ => leaf(&body.as_chunks::<4>().0.iter().map(|one| table(&pages, *one)).collect::<Vec<_>>()),
        };
        if page.len() <= PAGE && pages.named.len() < REGION.1 as usize {
            pages.add(page, widths);
        }
    }
    let scratch = super::scratch();
    let path = scratch.path().join("meta.redb");
    fs::write(&path, pages.file()).expect("a file");
    let (taken, whole) = inspect(&path).expect("it is read");
    if let Err(error) = whole {
        assert_eq!(error.code, Code::DataLoss, "{error}");
    }
    rebuild(&path, taken.rows);
}

fn table(pages: &Pages, [table, page, key, value]: [u8; 4]) -> (Vec<u8>, Vec<u8>) {
    let mut definition = vec![3];
    definition.extend(1_u64.to_le_bytes());
    definition.push(1);
    definition.extend(pages.get(page));
    definition.extend(1_u64.to_le_bytes());
    for width in [key, value] {
        definition.push(u8::from(width != 0));
        definition.extend(u32::from(width).wrapping_sub(1).wrapping_mul(8).to_le_bytes());
    }
    let name = TABLES[usize::from(table) % TABLES.len()];
    (name.as_bytes().to_vec(), definition)
}

/// What is taken over makes tables that open.
fn rebuild(path: &Path, rows: u64) {
    let mut new = match Replacement::begin(path) {
        Ok(new) => new,
        Err(error) => {
            assert_eq!(error.code, Code::FailedPrecondition, "a newer format is refused, and nothing else: {error}");
            return;
        }
    };
    assert_eq!(new.tables.taken().rows, rows);
    if new.tables.settle().is_ok() {
        new.finish().expect("it is put in place");
        let (_, whole) = inspect(path).expect("it is read");
        whole.expect("it is as it was written");
    }
}
