//! The progress of a job: bars with bytes and rate on a terminal, a line for beginning and end of each item elsewhere. Both on standard error.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt::Write as _,
    future::{Future, pending},
    io::Write as _,
    time::{Duration, Instant},
};

use cofferdam_client::{Client, Job, JobInfo, JobItem, is_lost};

use crate::{
    cx::watched,
    failure::Failure,
    signals::{ENDING, Signals},
    terminal,
    units::{shorten, show_size},
};

const BAR: usize = 16;
/// How long the daemon may take to say that a job is cancelled.
const CANCEL: Duration = Duration::from_secs(3);
/// What takes longer than this may wait for a pull.
const SOON: Duration = Duration::from_millis(500);

/// Follows a job to its end and gives the names of its images. A signal that would end coffer cancels the job first; the
/// next one ends it whatever the daemon does.
pub async fn follow(job: &Job) -> Result<Vec<String>, Failure> {
    let signals = Signals::take(ENDING)?;
    let mut progress = Progress::new(watched());
    let every = if progress.bars { Duration::from_millis(100) } else { Duration::from_millis(500) };
    let ended = tokio::select! {
        ended = job.follow(every, |info| progress.show(info)) => ended,
        signal = signals.ending() => {
            let signal = signal?;
            let cancelled = tokio::select! {
                cancelled = tokio::time::timeout(CANCEL, job.cancel()) => cancelled.ok(),
                _ = signals.ending() => None,
            };
            return Err(match cancelled {
                Some(Ok(())) => Failure::signal("cancelled", signal),
                Some(Err(error)) if !is_lost(&error) => error.into(),
                _ => Failure::signal("the daemon has not said that the job is cancelled: \"coffer job ls\" shows it", signal),
            });
        }
    };
    Ok(ended?)
}

/// Follows a job to its end and leaves it alone.
pub async fn watch(job: &Job) -> Result<Vec<String>, Failure> {
    let mut progress = Progress::new(watched());
    let every = if progress.bars { Duration::from_millis(100) } else { Duration::from_millis(500) };
    Ok(job.follow(every, |info| progress.show(info)).await?)
}

/// At a terminal: shows how the pull gets on that something waits for, if it waits for one.
pub async fn beside<T>(work: impl Future<Output = T>, client: &Client, namespace: &str, image: &str) -> T {
    if image.is_empty() || !watched() {
        return work.await;
    }
    let show = async {
        tokio::time::sleep(SOON).await;
        if let Some(job) = pulling(client, namespace, image).await {
            let mut progress = Progress::new(true);
            // How it ended is for who waits for it to say.
            let _ = job.follow(Duration::from_millis(100), |info| progress.show(info)).await;
        }
        pending::<Infallible>().await
    };
    tokio::select! {
        biased;
        done = work => done,
        never = show => match never {},
    }
}

/// The pull of an image, whoever began it; its subject is the whole name.
async fn pulling(client: &Client, namespace: &str, image: &str) -> Option<Job> {
    let jobs = client.namespace(namespace).jobs();
    let found = jobs.list().all().await.ok()?;
    let name = without_tag(image);
    let pulls = |info: &&JobInfo| info.kind == "pull" && info.state == "running" && info.subject.contains(name);
    found.iter().find(pulls).map(|info| jobs.get(&info.id))
}

/// An image's name as far as its repository.
fn without_tag(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

struct Progress {
    bars: bool,
    /// How many lines the last picture has.
    drawn: usize,
    items: HashMap<String, Seen>,
}

/// What was last seen of an item.
struct Seen {
    phase: String,
    /// Where and when the phase began, for the rate.
    began: (u64, Instant),
}

impl Progress {
    fn new(bars: bool) -> Progress {
        Progress { bars, drawn: 0, items: HashMap::new() }
    }

    fn show(&mut self, info: &JobInfo) {
        let width = terminal::size().map_or(80, |(_, columns)| usize::from(columns));
        let text = if self.bars { self.picture(info, Instant::now(), width) } else { self.steps(info) };
        // Progress that can't be shown is no reason to end the job.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// The lines of all items, over those of the last picture.
    fn picture(&mut self, info: &JobInfo, now: Instant, width: usize) -> String {
        let mut text = String::new();
        if self.drawn > 0 {
            let _ = write!(text, "\x1b[{}A", self.drawn);
        }
        for item in &info.items {
            let rate = self.rate(item, now);
            let _ = write!(text, "\x1b[2K{}\r\n", shorten(&bar(item, rate), width.saturating_sub(1)));
        }
        self.drawn = info.items.len();
        text
    }

    fn rate(&mut self, item: &JobItem, now: Instant) -> u64 {
        let seen = self.items.entry(item.name.clone()).or_insert_with(|| Seen::new(item, now));
        if seen.phase != item.phase {
            *seen = Seen::new(item, now);
        }
        let (from, since) = seen.began;
        let millis = now.saturating_duration_since(since).as_millis() as u64;
        if millis < 50 { 0 } else { item.done.saturating_sub(from).saturating_mul(1000) / millis }
    }

    /// Two lines for each item: one when there is something to do about it, and one when it is done.
    fn steps(&mut self, info: &JobInfo) -> String {
        let mut text = String::new();
        for item in &info.items {
            let step = match item.phase.as_str() {
                "waiting" => continue,
                "done" => "done",
                _ => "begun",
            };
            let now = Seen { phase: step.to_owned(), ..Seen::new(item, Instant::now()) };
            let last = self.items.insert(item.name.clone(), now);
            if last.is_none_or(|last| last.phase != step) {
                let size = item.total.max(item.done);
                let size = if size > 0 { format!(" ({})", show_size(size)) } else { String::new() };
                let _ = writeln!(text, "{}: {}{size}", short_name(&item.name), item.phase);
            }
        }
        text
    }
}

impl Seen {
    fn new(item: &JobItem, now: Instant) -> Seen {
        Seen { phase: item.phase.clone(), began: (item.done, now) }
    }
}

fn bar(item: &JobItem, rate: u64) -> String {
    // The hexadecimal digits alone: with sizes and rate a line fits into 80 columns.
    let name = short_name(&item.name);
    let name = shorten(name.split_once(':').map_or(&*name, |(_, hex)| hex), 16);
    let mut line = format!("{name:16} {:9}", item.phase);
    if matches!(item.phase.as_str(), "fetching" | "unpacking") {
        if item.total > 0 {
            let full = (u128::from(item.done.min(item.total)) * BAR as u128 / u128::from(item.total)) as usize;
            let _ = write!(line, " [{}{}]", "=".repeat(full), " ".repeat(BAR - full));
            let _ = write!(line, " {} / {}", show_size(item.done), show_size(item.total));
        } else {
            let _ = write!(line, " {}", show_size(item.done));
        }
        if rate > 0 {
            let _ = write!(line, "  {}/s", show_size(rate));
        }
    } else if item.total > 0 {
        let _ = write!(line, " {}", show_size(item.total));
    }
    line
}

/// A digest's first twelve digits; any other name as it is, without what could move the cursor.
pub fn short_name(name: &str) -> String {
    match name.split_once(':') {
        Some((algorithm, hex)) if hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            format!("{algorithm}:{}", &hex[..12])
        }
        _ => shorten(&name.chars().filter(|c| !c.is_control()).collect::<String>(), 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(phase: &str, done: u64) -> JobInfo {
        let item = JobItem { name: format!("sha256:{}", "ab".repeat(32)), phase: phase.into(), done, total: 4 << 20 };
        JobInfo { items: vec![item], ..JobInfo::default() }
    }

    #[test]
    fn a_repository_is_what_stands_before_tag_and_digest() {
        for (image, repository) in [
            ("busybox", "busybox"),
            ("busybox:1", "busybox"),
            ("h:5000/a/b", "h:5000/a/b"),
            ("h:5000/a/b:1@sha256:00", "h:5000/a/b"),
        ] {
            assert_eq!(without_tag(image), repository);
        }
    }

    #[test]
    fn bars_show_bytes_and_rate_in_place() {
        let mut progress = Progress::new(true);
        let start = Instant::now();
        let first = progress.picture(&info("fetching", 0), start, 120);
        assert!(first.contains("abababababab ") && first.contains("0 B / 4.0 MiB"), "{first}");
        assert!(!first.contains("\x1b[1A") && !first.contains("/s"));
        let second = progress.picture(&info("fetching", 2 << 20), start + Duration::from_secs(1), 120);
        assert!(second.starts_with("\x1b[1A"), "{second:?}");
        assert!(second.contains("[========        ] 2.0 MiB / 4.0 MiB  2.0 MiB/s"), "{second}");
        assert!(second.trim_start_matches("\x1b[1A\x1b[2K").trim_end().len() < 80, "{second:?}");
        let third = progress.picture(&info("done", 4 << 20), start + Duration::from_secs(2), 120);
        assert!(third.contains("done      4.0 MiB") && !third.contains("/s"), "{third}");
        let narrow = progress.picture(&info("fetching", 0), start, 40);
        assert!(narrow.lines().all(|line| line.chars().filter(|c| !c.is_control()).count() < 50), "{narrow:?}");
    }

    #[test]
    fn elsewhere_beginning_and_end_are_a_line_each() {
        let mut progress = Progress::new(false);
        assert_eq!(progress.steps(&info("waiting", 0)), "");
        assert_eq!(progress.steps(&info("fetching", 0)), "sha256:abababababab: fetching (4.0 MiB)\n");
        assert_eq!(progress.steps(&info("fetching", 9)), "");
        assert_eq!(progress.steps(&info("unpacking", 4 << 20)), "", "its beginning and its end are enough");
        assert_eq!(progress.steps(&info("done", 4 << 20)), "sha256:abababababab: done (4.0 MiB)\n");
    }
}
