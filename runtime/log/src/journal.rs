//! systemd's journal, by its native protocol: a datagram of fields for each line ("Native Journal Protocol",
//! systemd.io).

use std::{
    cell::Cell,
    io,
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cofferdam_types::{Error, Labels, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    Stream,
    writer::{Loss, pieces},
};

/// Where journald listens.
pub const JOURNAL: &str = "/run/systemd/journal/socket";
/// How long a container waits for the journal to take what was read from it at once. What it has not taken by then is lost.
const PATIENCE: Duration = Duration::from_millis(500);

thread_local! {
    /// The journal was waited for as long as that: until then nobody of this thread waits for it again, so that others than who
    /// writes are served.
    static REST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What is left of the patience for one piece of output.
struct Wait(Instant);

impl Wait {
    fn begin(stuck: bool) -> Wait {
        let now = Instant::now();
        let rests = REST.get().is_some_and(|until| now < until);
        Wait(if stuck || rests { now } else { now + PATIENCE })
    }

    /// Waits until the journal takes something; whether it may.
    fn pass(&self, socket: &UnixDatagram, stuck: &mut bool) -> bool {
        let now = Instant::now();
        let Some(left) = self.0.checked_duration_since(now).filter(|left| !left.is_zero()) else { return false };
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        // An error is the next attempt's to find.
        let ready = !matches!(poll(&mut fds, left), Ok(0));
        *stuck = !ready;
        if !ready || Instant::now() >= self.0 {
            REST.set(Some(Instant::now() + PATIENCE));
        }
        ready
    }
}

/// A connection to the journal, and what stands in each entry.
pub struct Journal {
    path: PathBuf,
    socket: UnixDatagram,
    fields: Vec<u8>,
    /// It took nothing when it was last waited for: until it does it is not waited for again.
    stuck: bool,
}

impl Journal {
    /// Connects. `attributes` become fields, their names in capitals.
    pub fn open(path: &Path, namespace: &str, container: &str, attributes: &Labels) -> Result<Journal> {
        let socket = connect(path).map_err(|e| {
            let why = format!(
                "can't be reached at {}: {e}; start systemd-journald or choose another log driver",
                path.display()
            );
            Error::failed_precondition("journal", "", why)
        })?;
        let mut fields = Vec::new();
        for (name, value) in [
            ("SYSLOG_IDENTIFIER", container),
            ("CONTAINER_ID", container),
            ("CONTAINER_NAME", container),
            ("CONTAINER_NAMESPACE", namespace),
        ] {
            field(&mut fields, name, value.as_bytes());
        }
        for (key, value) in attributes {
            // A name begins with a letter and has at most 64 of A-Z, 0-9 and _.
            let name: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let name = format!("LABEL_{}", name.to_ascii_uppercase());
            field(&mut fields, &name[..name.len().min(64)], value.as_bytes());
        }
        Ok(Journal { path: path.to_owned(), socket, fields, stuck: false })
    }

    pub(crate) fn put(&mut self, stream: Stream, bytes: &[u8], loss: &mut Loss) {
        let wait = Wait::begin(self.stuck);
        if loss.unsaid > 0 {
            let text = format!("{} bytes of the container's output are lost: the journal took nothing", loss.unsaid);
            let mut entry = self.entry(Stream::Stderr, text.as_bytes());
            field(&mut entry, "CONTAINER_LOST", loss.unsaid.to_string().as_bytes());
            if self.send(&entry, &wait).is_err() {
                return loss.add(bytes.len() as u64);
            }
            loss.unsaid = 0;
        }
        for piece in pieces(bytes, true) {
            let (line, whole) = piece.strip_suffix(b"\n").map_or((piece, false), |line| (line, true));
            let mut entry = self.entry(stream, line);
            if !whole {
                field(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
            }
            if self.send(&entry, &wait).is_err() {
                loss.add(piece.len() as u64);
            }
        }
    }

    fn entry(&self, stream: Stream, message: &[u8]) -> Vec<u8> {
        let mut entry = self.fields.clone();
        // As docker's: informational, and an error.
        field(&mut entry, "PRIORITY", if stream == Stream::Stdout { b"6" } else { b"3" });
        field(&mut entry, "MESSAGE", message);
        entry
    }

    fn send(&mut self, entry: &[u8], wait: &Wait) -> io::Result<()> {
        let mut again = true;
        loop {
            match self.socket.send(entry) {
                Ok(_) => {
                    self.stuck = false;
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Read at its pace, as from any reader of a pipe; but not for ever.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && wait.pass(&self.socket, &mut self.stuck) => {}
                Err(e) if again && e.kind() != io::ErrorKind::WouldBlock => {
                    // It was started anew, and has another socket of that name.
                    again = false;
                    self.socket = connect(&self.path)?;
                }
                Err(e) => return Err(e),
            }
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A field in the form that takes any bytes: no text can forge another field.
fn field(into: &mut Vec<u8>, name: &str, value: &[u8]) {
    into.extend(name.as_bytes());
    into.push(b'\n');
    into.extend((value.len() as u64).to_le_bytes());
    into.extend(value);
    into.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Writer;

    fn fields(mut entry: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| *byte == b'\n').unwrap();
            let name = String::from_utf8(entry[..end].to_vec()).unwrap();
            let length = u64::from_le_bytes(entry[end + 1..end + 9].try_into().unwrap()) as usize;
            let value = entry[end + 9..end + 9 + length].to_vec();
            assert_eq!(entry[end + 9 + length], b'\n');
            assert_eq!(all.insert(name, value), None);
            entry = &entry[end + 10 + length..];
        }
        all
    }

    fn receive(socket: &UnixDatagram) -> BTreeMap<String, Vec<u8>> {
        let mut buffer = vec![0; 64 << 10];
        let n = socket.recv(&mut buffer).unwrap();
        fields(&buffer[..n])
    }

    #[test]
    fn lines_are_entries_that_can_not_be_forged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let error = Journal::open(&path, "shop", "web", &Labels::new()).err().unwrap();
        assert_eq!(error.code, cofferdam_types::Code::FailedPrecondition);
        assert!(error.message.contains("choose another log driver"), "{error}");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let labels = Labels::from([("com.example/tier".to_owned(), "front\nPRIORITY=0".to_owned())]);
        let mut writer = Writer::journal(Journal::open(&path, "shop", "web", &labels).unwrap());
        writer.write(Stream::Stdout, b"one\nMESSAGE=two\nha");
        writer.write(Stream::Stderr, b"\xff\n");
        let one = receive(&daemon);
        let text = |entry: &BTreeMap<String, Vec<u8>>, name: &str| {
            String::from_utf8_lossy(entry.get(name).map_or(&[], Vec::as_slice)).into_owned()
        };
        assert_eq!(text(&one, "MESSAGE"), "one");
        assert_eq!(text(&one, "PRIORITY"), "6");
        assert_eq!((text(&one, "CONTAINER_ID"), text(&one, "CONTAINER_NAMESPACE")), ("web".into(), "shop".into()));
        assert_eq!(text(&one, "LABEL_COM_EXAMPLE_TIER"), "front\nPRIORITY=0");
        let (two, half, bad) = (receive(&daemon), receive(&daemon), receive(&daemon));
        assert_eq!(
            (text(&two, "MESSAGE"), two.contains_key("CONTAINER_PARTIAL_MESSAGE")),
            ("MESSAGE=two".into(), false)
        );
        assert_eq!((text(&half, "MESSAGE"), text(&half, "CONTAINER_PARTIAL_MESSAGE")), ("ha".into(), "true".into()));
        assert_eq!((bad["MESSAGE"].as_slice(), text(&bad, "PRIORITY")), (&b"\xff"[..], "3".into()));
    }

    #[test]
    fn a_journal_that_is_started_anew_is_found_and_one_that_hangs_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = UnixDatagram::bind(&path).unwrap();
        let mut writer = Writer::journal(Journal::open(&path, "shop", "web", &Labels::new()).unwrap());
        writer.write(Stream::Stdout, b"to the first\n");
        assert_eq!(receive(&first)["MESSAGE"], b"to the first");
        drop(first);
        std::fs::remove_file(&path).unwrap();
        writer.write(Stream::Stdout, b"to nobody\n");
        assert_eq!(writer.lost(), 10);
        let second = UnixDatagram::bind(&path).unwrap();
        writer.write(Stream::Stdout, b"to the second\n");
        let told = receive(&second);
        assert_eq!(told["CONTAINER_LOST"], b"10");
        assert_eq!(receive(&second)["MESSAGE"], b"to the second");
        // It reads nothing: one wait, and from then on none.
        let began = std::time::Instant::now();
        for _ in 0..5000 {
            writer.write(Stream::Stdout, b"more and more\n");
        }
        assert!(writer.lost() > 10);
        assert!(began.elapsed() < PATIENCE * 4, "{:?}", began.elapsed());
    }
    /// It takes a line now and then: all of a piece has one wait, and after that others have their time.
    #[test]
    fn a_journal_that_is_slow_is_waited_for_half_of_the_time_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let (over, goes_on) = std::sync::mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = goes_on.recv_timeout(PATIENCE / 10) {
                receive(&daemon);
            }
        });
        let mut writer = Writer::journal(Journal::open(&path, "shop", "web", &Labels::new()).unwrap());
        let piece = b"a line\n".repeat(2000);
        let began = Instant::now();
        writer.write(Stream::Stdout, &piece);
        // What fits, and ten more.
        assert!(began.elapsed() >= PATIENCE && began.elapsed() < PATIENCE * 4, "{:?}", began.elapsed());
        assert!(writer.lost() > piece.len() as u64 / 2 && writer.lost() < piece.len() as u64, "{}", writer.lost());
        // As at the end of a process that left much: the rest of it has no wait of its own.
        let began = Instant::now();
        for _ in 0..4 {
            writer.write(Stream::Stdout, &piece);
        }
        drop(over);
        assert!(began.elapsed() < PATIENCE * 4, "{:?}", began.elapsed());
        assert!(writer.lost() < piece.len() as u64 * 5);
        let _ = reader.join();
    }
}
