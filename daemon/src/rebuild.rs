//! `cofferd --rebuild`: tables from what is readable in damaged ones, and from what lies on disk.
//!
//! The damaged file stays, under another name, and so does what no record names any more: it is put aside, where no start
//! sweeps it. What nothing keeps in the new tables is held as if it had been made by hand.

mod aside;
mod content;
mod tasks;

use std::{fmt::Write as _, fs::File, io::ErrorKind, path::Path};

use cofferdam_events::Journal;
use cofferdam_metadata::rebuild::{Replacement, Taken};
use cofferdam_types::{Error, Finding, Result};

use crate::{claim, config::Config, directories::TABLES};

/// Makes new tables for the root of a daemon that doesn't run, and says what became of the old ones.
pub fn rebuild(config: &Config) -> Result<String> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::failed_precondition("daemon", "", "--rebuild runs as root, as the daemon does"));
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    // A daemon that serves what is readable doesn't hold the file.
    let _claim = config.state.is_dir().then(|| claim::claim(&config.state)).transpose()?;
    let tables = config.root.join(TABLES);
    if !tables.is_file() {
        let why = "has no meta.redb: give --root the directory of the damaged one (an empty file of that name is enough where it is lost)";
        return Err(Error::not_found("directory", config.root.display(), why));
    }
    let mut replacement = Replacement::begin(&tables)?;
    let taken = replacement.tables.taken();
    let new = &mut replacement.tables;
    new.count_from("event", last_event(&config.root)?)?;
    new.count_from("ingest", last_ingest(&config.root))?;
    let blobs = content::register(new, &config.root)?;
    let tasks = tasks::find(new, config)?;
    let left = new.settle()?;
    // Where all was taken over, what has no record is what a crash left: a start sweeps it.
    let aside = if taken.pages + taken.unsound > 0 { aside::put(&new.read()?, &config.root)? } else { 0 };
    // With the new tables in place, what stands where no record names it is swept: the moves come first, on disk too.
    let synced = File::open(&config.root).and_then(cofferdam_sys::fd::syncfs);
    synced.map_err(|e| Error::io("directory", config.root.display(), "syncing it", &e))?;
    let kept = replacement.finish()?;
    Ok(report(&taken, &blobs, &tasks, aside, &left, &kept, &config.root))
}

fn report(
    taken: &Taken,
    blobs: &content::Registered,
    tasks: &tasks::Found,
    aside: u64,
    left: &[Finding],
    kept: &Path,
    root: &Path,
) -> String {
    let Taken { rows, unsound, pages } = taken;
    let mut text =
        format!("{rows} rows were taken over; {pages} pages of them are lost, and {unsound} rows that can't be read\n");
    let mut say = |count: usize, what: String| {
        if count > 0 {
            let _ = writeln!(text, "{count} {what}");
        }
    };
    say(blobs.of_images, "blobs of images are on record again".into());
    say(blobs.others, format!("blobs that no record names are in namespace {} now", content::NAMESPACE));
    say(
        blobs.lost.len(),
        format!("blobs that images need are not on disk: pull them again ({})", blobs.lost.join(", ")),
    );
    say(tasks.again, "tasks are on record again, by what their shims wrote down".into());
    say(
        tasks.unknown.len(),
        format!(
            "shims hold what no record names; the next start of the daemon ends them ({})",
            tasks.unknown.join(", ")
        ),
    );
    say(aside as usize, format!("directories that no record names are in {}", root.join(aside::NAME).display()));
    say(left.len(), "records name what isn't there: coffer system check says which, and what to do".into());
    let _ = writeln!(text, "what was there before is {}", kept.display());
    text
}

/// A number that no event of the journal exceeds.
fn last_event(root: &Path) -> Result<u64> {
    match File::open(root.join("events")) {
        Ok(dir) => Journal::highest(dir.into()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
        Err(e) => Err(Error::io("directory", root.display(), "reading the journal in it", &e)),
    }
}

fn last_ingest(root: &Path) -> u64 {
    names(&root.join("content/ingest")).iter().filter_map(|name| name.parse().ok()).max().unwrap_or(0)
}

/// What is in a directory; nothing where there is none.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
