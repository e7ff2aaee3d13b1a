//! What the daemon wrote itself, as a disk may give it back.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    ops::Bound,
    path::Path,
    sync::LazyLock,
    time::Duration,
};

use cofferdam_events::{Chunk, Cursor, Journal, Retention};
use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{
    Metadata, Read, Table, Visit,
    graph::Graph,
    records::{
        attachments, check, containers, content, credentials, events, grants, images, ingests, layers, leases,
        namespaces, snapshots, tasks,
    },
};
use cofferdam_types::{Code, Event, Namespace, Result, Timestamp};

/// Takes bytes off the front, so many as the next one or two say.
pub(super) fn part<'a>(data: &mut &'a [u8], wide: bool) -> Option<&'a [u8]> {
    let (len, rest) = match (wide, *data) {
        (false, [len, rest @ ..]) => (usize::from(*len), rest),
        (true, [low, high, rest @ ..]) => (usize::from(u16::from_le_bytes([*low, *high])), rest),
        _ => return None,
    };
    let (part, rest) = rest.split_at(len.min(rest.len()));
    *data = rest;
    Some(part)
}

/// Rows of tables, whatever they say: each is a table's number, a key and a value.
struct Rows(BTreeMap<(&'static str, Vec<u8>), Vec<u8>>);

/// In this order seeds number them.
pub(super) const TABLES: [&str; 21] = [
    "meta",
    "counters",
    "namespaces",
    "containers",
    "images",
    "content",
    "blobs",
    "ingests",
    "snapshots",
    "children",
    "dirs",
    "layers",
    "leases",
    "held",
    "tasks",
    "outbox",
    "attachments",
    "specs",
    "transient",
    "grants",
    "credentials",
];

impl Rows {
    fn new(mut data: &[u8]) -> Rows {
        let mut rows = BTreeMap::new();
        while let Some((table, rest)) = data.split_first() {
            data = rest;
            let Some(key) = part(&mut data, false) else { break };
            let Some(value) = part(&mut data, true) else { break };
            rows.insert((TABLES[usize::from(*table) % TABLES.len()], key.to_vec()), value.to_vec());
        }
        Rows(rows)
    }
}

impl Read for Rows {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(&(table.name(), key.to_vec())).cloned())
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        let within = |key: &[u8]| {
            let begun = match from {
                Bound::Included(from) => key >= from,
                Bound::Excluded(from) => key > from,
                Bound::Unbounded => true,
            };
            begun
                && match to {
                    Bound::Included(to) => key <= to,
                    Bound::Excluded(to) => key < to,
                    Bound::Unbounded => true,
                }
        };
        for ((_, key), value) in self.0.iter().filter(|((name, key), _)| *name == table.name() && within(key)) {
            if visit(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Everything that is read from tables, from rows that say anything.
pub fn records(data: &[u8]) {
    const MOST: usize = 1000;
    let rows = Rows::new(data);
    drop(check::all(&rows));
    let spaces = namespaces::list(&rows, None, MOST).unwrap_or_default();
    let spaces = spaces.into_iter().map(|record| record.name);
    for ns in spaces.chain([Namespace::default_namespace()]) {
        for one in containers::list(&rows, &ns, None, MOST).unwrap_or_default() {
            drop(containers::find(&rows, &ns, &one.id));
        }
        drop(images::list(&rows, &ns, None, MOST));
        drop(content::list(&rows, &ns, None, MOST));
        drop(ingests::list(&rows, &ns, None, MOST));
        drop(leases::list(&rows, &ns, None, MOST));
        drop(leases::by_hand(&rows, &ns, None, MOST));
        drop(credentials::list(&rows, &ns, None, MOST));
        drop(tasks::list(&rows, &ns, None, MOST));
        for one in snapshots::list(&rows, &ns, "overlay", None, MOST).unwrap_or_default() {
            drop(snapshots::ancestors(&rows, &ns, &one));
            drop(snapshots::children(&rows, &ns, "overlay", &one.key, MOST));
            drop(leases::holders(&rows, &ns, &one.resource()));
        }
        if let Ok(graph) = Graph::read(&rows, &ns, Timestamp::now()) {
            assert!(graph.garbage().len() <= graph.nodes().count());
        }
    }
    drop(containers::transient(&rows));
    drop(content::blobs(&rows, None, MOST));
    drop(content::scrubbed(&rows));
    drop(ingests::ids(&rows));
    drop(layers::list(&rows, "overlay", None, MOST));
    drop(snapshots::dirs(&rows, "overlay"));
    drop(attachments::list(&rows, None, MOST));
    drop(grants::list(&rows, &[], None, MOST));
    drop(grants::visit(&rows, &mut |_, _| {}, &mut drop));
    drop(events::last(&rows));
    drop(events::outbox_after(&rows, 0, MOST));
}

/// A good file of tables, which each start moves forward to the format of now.
static TABLES_FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let packed: &[u8] = include_bytes!("../../../actors/metadata/src/tests/formats/2.redb.gz");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).expect("it is whole");
    bytes
});

/// A file of tables, parts of which are other bytes: it is refused, or nothing that counts is another. Each part is a
/// place, four bytes, and what lies there.
pub fn tables(mut data: &[u8]) {
    let scratch = super::scratch();
    let path = scratch.path().join("meta.redb");
    let mut bytes = TABLES_FILE.clone();
    while let Some((place, rest)) = data.split_first_chunk::<4>() {
        data = rest;
        let at = u32::from_le_bytes(*place) as usize % bytes.len();
        let Some(patch) = part(&mut data, false) else { break };
        let end = bytes.len().min(at + patch.len());
        bytes[at..end].copy_from_slice(&patch[..end - at]);
    }
    let good = bytes == *TABLES_FILE;
    fs::write(&path, bytes).expect("a file");
    let used = actix_rt::System::new().block_on(async {
        let kernel = Kernel::new().expect("a kernel");
        let used = use_tables(&kernel, &path).await;
        kernel.stop().await;
        used
    });
    match used {
        Ok(()) => {}
        Err(error) => assert!(!good && error.code == Code::DataLoss, "{error}"),
    }
}

async fn use_tables(kernel: &Kernel, path: &Path) -> Result<()> {
    let meta = Metadata::start(kernel, Placement::Own, path)?;
    kernel.ready().await?;
    let view = meta.read()?;
    // What is readable of a damaged file is served, and may lack anything.
    if let Err(damaged) = meta.writable() {
        drop(check::all(&view));
        return Err(damaged);
    }
    assert_eq!(check::all(&view)?, [], "what was altered is taken for what was written");
    let image = images::get(&view, &Namespace::default_namespace(), "image")?;
    assert_eq!(image.target.size, 1);
    drop(view);
    meta.probe().await
}

/// The journal's directory: opened, read, gone on with, and opened again. The first byte is how many events the tables
/// count; then come files: what they are, the first sequence number, and their bytes.
pub fn journal(data: &[u8]) {
    let (committed, mut data) = super::choice(data);
    let committed = if committed == 0 { u64::MAX / 2 } else { u64::from(committed) };
    let scratch = super::scratch();
    while let [how, first, rest @ ..] = data {
        data = rest;
        let Some(bytes) = part(&mut data, true) else { break };
        let first = if how & 4 == 0 { u64::from(*first) } else { u64::MAX - u64::from(*first) };
        let name = match how & 3 {
            0 | 1 => format!("{first:020}.seg"),
            2 => format!("{first}.seg"),
            _ => format!("{first:020}"),
        };
        let bytes = if how & 1 == 0 { bytes.to_vec() } else { sealed(first, bytes) };
        fs::write(scratch.path().join(name), bytes).expect("a file");
    }
    // Every other time all of them were acknowledged, and what is wrong with them is damage.
    let taken = if committed % 2 == 0 { committed } else { 0 };
    let open = || Journal::open(File::open(scratch.path()).expect("it is there").into(), retention(), committed, taken);
    let journal = match open() {
        Ok(journal) => journal,
        Err(error) => {
            assert_eq!(error.code, Code::FailedPrecondition, "a newer format is refused, and nothing else: {error}");
            return;
        }
    };
    assert!(journal.last() <= committed, "what has not happened is not told");
    drain(&journal, 0);
    journal.damage().expect("it is looked at");
    let next = journal.last().max(taken) + 1;
    let news: Vec<_> = (next..next + 3).map(event).collect();
    journal.append(&news).expect("it goes on");
    assert_eq!(drain(&journal, next), Some(vec![next, next + 1, next + 2]));
    drop(journal);
    // The count of events grows with them.
    let again = Journal::open(File::open(scratch.path()).expect("it is there").into(), retention(), next + 2, taken);
    assert_eq!(drain(&again.expect("it was opened before"), next), Some(vec![next, next + 1, next + 2]));
}

fn retention() -> Retention {
    Retention { bytes: 1 << 20, age: Duration::from_secs(3600), segment: 512 }
}

fn event(sequence: u64) -> Event {
    let payload = serde_json::json!({ "id": "fuzz" });
    Event { sequence, ..Event::new(&Namespace::default_namespace(), "/tasks/start", payload) }
}

/// All that it gives from a place on; `None` where an event can't be read.
fn drain(journal: &Journal, next: u64) -> Option<Vec<u64>> {
    let (mut seen, mut cursor) = (Vec::new(), Cursor::at(next));
    loop {
        let before = cursor.next;
        match journal.read(&mut cursor, 7) {
            Ok(Chunk::Events(events)) => {
                assert!(!events.is_empty() && events.len() <= 7);
                assert_eq!(cursor.next, before + events.len() as u64);
                seen.extend(before..cursor.next);
            }
            Ok(Chunk::Gap { from, to }) => assert!(from == before && to >= from && cursor.next == to + 1),
            Ok(Chunk::End) => return Some(seen),
            Err(error) => {
                assert_eq!(error.code, Code::DataLoss, "{error}");
                return None;
            }
        }
    }
}

/// A segment whose checks are right, whatever its records say.
fn sealed(first: u64, mut data: &[u8]) -> Vec<u8> {
    let mut bytes = b"COFJRNL\x01".to_vec();
    let mut sequence = first;
    while let Some(payload) = part(&mut data, false) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&sequence.to_le_bytes()).update(payload);
        bytes.extend(u32::try_from(payload.len()).expect("it is short").to_le_bytes());
        bytes.extend(&hasher.finalize().as_bytes()[..8]);
        bytes.extend(payload);
        sequence = sequence.wrapping_add(1);
    }
    bytes
}
