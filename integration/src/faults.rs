//! A proxy before a registry: it fails in all the ways that networks and registries do, when it is told to, and counts what
//! it was asked and what it sent.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};

const PIECE: usize = 16 << 10;
/// Little: what was sent is soon received, or lost.
const SEND_BUFFER: usize = 32 << 10;

/// What goes wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// So much of the body comes, then the connection ends.
    Cut(u64),
    /// So much comes, then the connection is reset.
    Reset(u64),
    /// So much comes, and the rest when [`Faults::let_go`] is called.
    Stall(u64),
    /// The header announces so many bytes more than there are.
    Length(i64),
    /// It says that it is another range than the one that was asked for.
    OtherRange,
    /// All of it comes, whatever range was asked for.
    Whole,
    /// This comes in its place.
    Status(u16, Vec<(&'static str, String)>),
    /// It leads to this path of the proxy.
    Redirect(String),
    /// A header without end, a byte now and then.
    SlowHeader,
    /// The byte at this place is another.
    Flip(u64),
    /// What comes is no HTTP.
    Garbage,
    /// So much of the request's own body is taken, then the connection ends.
    CutRequest(u64),
}

/// A request.
#[derive(Debug)]
pub struct Asked {
    /// Its method.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The header.
    pub range: Option<String>,
    /// How many came before it for the same by the same method.
    pub times: usize,
    /// Bytes of the answer's body that went out so far.
    sent: AtomicU64,
}

impl Asked {
    /// Bytes of the answer's body that went out so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Whether it is for this blob.
    pub fn blob(&self, digest: &str) -> bool {
        self.path.contains("/blobs/") && self.path.ends_with(digest)
    }
}

type Rule = dyn Fn(&Asked) -> Option<Fault> + Send + Sync;

struct Shared {
    upstream: SocketAddr,
    rule: Mutex<Arc<Rule>>,
    asked: Mutex<Vec<Arc<Asked>>>,
    /// Bytes in a second on each connection; 0: as many as go.
    pace: AtomicU64,
    gone: Mutex<bool>,
    changed: Condvar,
    open: Mutex<Vec<TcpStream>>,
    stop: AtomicBool,
    sending: AtomicUsize,
    most: AtomicUsize,
}

/// Runs until dropped.
pub struct Faults {
    shared: Arc<Shared>,
    port: u16,
    accepting: Option<JoinHandle<()>>,
}

impl Faults {
    /// Before the registry at `host:port` of the loopback.
    pub fn before(upstream: &str) -> Faults {
        Faults::start(upstream, |shared, client| drop(converse(shared, client)))
    }

    /// The same for bytes of any kind, such as TLS: after so many of the server's the connection is cut.
    pub fn wire(upstream: &str, after: u64) -> Faults {
        Faults::start(upstream, move |shared, client| drop(pass(shared, client, after)))
    }

    fn start(upstream: &str, serve: impl Fn(&Shared, TcpStream) + Clone + Send + 'static) -> Faults {
        let port = upstream.rsplit(':').next().unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            upstream: ([127, 0, 0, 1], port).into(),
            rule: Mutex::new(Arc::new(|_| None)),
            asked: Mutex::default(),
            pace: AtomicU64::new(0),
            gone: Mutex::new(false),
            changed: Condvar::new(),
            open: Mutex::default(),
            stop: AtomicBool::new(false),
            sending: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let theirs = shared.clone();
        let accepting = std::thread::spawn(move || {
            let mut serving = Vec::new();
            for stream in listener.incoming() {
                let Ok(stream) = stream else { break };
                if theirs.stop.load(Ordering::Acquire) {
                    break;
                }
                let _ = setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER);
                theirs.open.lock().unwrap().push(stream.try_clone().unwrap());
                let (shared, serve) = (theirs.clone(), serve.clone());
                serving.push(std::thread::spawn(move || serve(&shared, stream)));
            }
            for stream in theirs.open.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
            for thread in serving {
                let _ = thread.join();
            }
        });
        Faults { shared, port: own, accepting: Some(accepting) }
    }

    /// host:port
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What an image is called here.
    pub fn reference(&self, image: &str) -> String {
        format!("{}/{image}", self.host())
    }

    /// From now on this says what goes wrong; what came before is forgotten, and who is held is let go.
    pub fn rule(&self, rule: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) {
        self.let_go();
        *self.shared.rule.lock().unwrap() = Arc::new(rule);
        self.shared.asked.lock().unwrap().clear();
        self.shared.most.store(0, Ordering::Release);
        *self.shared.gone.lock().unwrap() = false;
    }

    /// From now on each connection brings so many bytes in a second; 0: as many as go.
    pub fn pace(&self, bytes: u64) {
        self.shared.pace.store(bytes, Ordering::Release);
    }

    /// Lets go what is held, until the next rule.
    pub fn let_go(&self) {
        *self.shared.gone.lock().unwrap() = true;
        self.shared.changed.notify_all();
    }

    /// All requests since the last rule.
    pub fn asked(&self) -> Vec<Arc<Asked>> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Bytes of a blob that went out since the last rule.
    pub fn sent(&self, digest: &str) -> u64 {
        self.asked().iter().filter(|asked| asked.blob(digest)).map(|asked| asked.sent()).sum()
    }

    /// How many bodies of blobs went out at once, at most.
    pub fn most(&self) -> usize {
        self.shared.most.load(Ordering::Acquire)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.let_go();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn held(&self) {
        let mut gone = self.gone.lock().unwrap();
        while !*gone && !self.stop.load(Ordering::Acquire) {
            gone = self.changed.wait(gone).unwrap();
        }
    }
}

fn pass(shared: &Shared, client: TcpStream, after: u64) -> io::Result<()> {
    let server = TcpStream::connect(shared.upstream)?;
    shared.open.lock().unwrap().push(server.try_clone()?);
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let asking = std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let copied = io::copy(&mut (&server).take(after), &mut &client);
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
    let _ = asking.join();
    copied.map(drop)
}

struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(from: &mut impl BufRead) -> io::Result<Option<Head>> {
        let mut first = String::new();
        if from.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Some(Head { first: first.trim_end().to_owned(), headers }))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    fn length(&self) -> Option<u64> {
        self.get("content-length")?.parse().ok()
    }

    fn set(&mut self, name: &str, value: impl ToString) {
        self.headers.retain(|(own, _)| own != name);
        self.headers.push((name.to_owned(), value.to_string()));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        (text + "\r\n").into_bytes()
    }
}

/// All requests of a connection.
fn converse(shared: &Shared, client: TcpStream) -> io::Result<()> {
    let mut requests = BufReader::new(client.try_clone()?);
    while let Some(request) = Head::read(&mut requests)? {
        let mut words = request.first.split(' ');
        let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let asked = {
            let mut all = shared.asked.lock().unwrap();
            let times = all.iter().filter(|other| other.method == method && other.path == path).count();
            let range = request.get("range").map(str::to_owned);
            let asked = Arc::new(Asked { method, path, range, times, sent: AtomicU64::new(0) });
            all.push(asked.clone());
            asked
        };
        let rule = shared.rule.lock().unwrap().clone();
        let fault = rule(&asked);
        if !exchange(shared, &client, &mut requests, request, &asked, fault)? {
            let _ = client.shutdown(Shutdown::Both);
            return Ok(());
        }
    }
    Ok(())
}

/// One request and its answer. False: the connection is over.
fn exchange(
    shared: &Shared,
    mut client: &TcpStream,
    requests: &mut impl Read,
    mut request: Head,
    asked: &Asked,
    fault: Option<Fault>,
) -> io::Result<bool> {
    let body = request.length().unwrap_or(0);
    match &fault {
        Some(Fault::Status(status, headers)) => {
            io::copy(&mut requests.take(body), &mut io::sink())?;
            let mut head = Head { first: format!("HTTP/1.1 {status} x"), headers: Vec::new() };
            headers.iter().for_each(|(name, value)| head.set(name, value));
            head.set("content-length", 0);
            client.write_all(&head.bytes())?;
            return Ok(true);
        }
        Some(Fault::Redirect(to)) => {
            let head = format!("HTTP/1.1 307 x\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            client.write_all(head.as_bytes())?;
            return Ok(true);
        }
        Some(Fault::Garbage) => {
            client.write_all(b"\x15\x03\x01\x00\x02\x02\x0a what is this\r\n\r\n")?;
            return Ok(false);
        }
        Some(Fault::SlowHeader) => {
            client.write_all(b"HTTP/1.1 200 x\r\nx-slow: ")?;
            while !shared.stop.load(Ordering::Acquire) {
                client.write_all(b"x")?;
                std::thread::sleep(Duration::from_millis(50));
            }
            return Ok(false);
        }
        Some(Fault::Whole) => request.headers.retain(|(name, _)| name != "range"),
        _ => {}
    }
    let server = TcpStream::connect(shared.upstream)?;
    shared.open.lock().unwrap().push(server.try_clone()?);
    // As an HTTP/1.0 client: the answer has a length, or ends with the connection.
    request.first = request.first.replace("HTTP/1.1", "HTTP/1.0");
    request.set("connection", "close");
    (&server).write_all(&request.bytes())?;
    match fault {
        Some(Fault::CutRequest(most)) if most < body => {
            io::copy(&mut requests.take(most), &mut &server)?;
            return Ok(false);
        }
        _ => io::copy(&mut requests.take(body), &mut &server)?,
    };
    let mut answers = BufReader::new(&server);
    let Some(mut answer) = Head::read(&mut answers)? else { return Ok(false) };
    answer.first = answer.first.replace("HTTP/1.0", "HTTP/1.1");
    answer.set("connection", "keep-alive");
    if asked.method == "HEAD" {
        client.write_all(&answer.bytes())?;
        return Ok(true);
    }
    let (length, small) = match answer.length() {
        Some(length) => (length, Vec::new()),
        None => {
            let mut all = Vec::new();
            answers.read_to_end(&mut all)?;
            (all.len() as u64, all)
        }
    };
    answer.set("content-length", length);
    match &fault {
        Some(Fault::Length(more)) => answer.set("content-length", length.saturating_add_signed(*more)),
        Some(Fault::OtherRange) => answer.set("content-range", format!("bytes 7-{}/{}", length + 6, length + 7)),
        _ => {}
    }
    client.write_all(&answer.bytes())?;
    let blob = asked.path.contains("/blobs/");
    if blob {
        let now = shared.sending.fetch_add(1, Ordering::AcqRel) + 1;
        shared.most.fetch_max(now, Ordering::AcqRel);
    }
    let sent = send(shared, client, io::Cursor::new(small).chain(answers), length, asked, fault.as_ref());
    if blob {
        shared.sending.fetch_sub(1, Ordering::AcqRel);
    }
    sent
}

/// The body of an answer.
fn send(
    shared: &Shared,
    mut client: &TcpStream,
    mut from: impl Read,
    length: u64,
    asked: &Asked,
    fault: Option<&Fault>,
) -> io::Result<bool> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        // Up to where something happens.
        let next = match fault {
            Some(Fault::Cut(place) | Fault::Reset(place) | Fault::Stall(place)) if at < *place => length.min(*place),
            Some(Fault::Cut(_)) => return Ok(false),
            Some(Fault::Reset(_)) => {
                let now = libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(&client, sockopt::Linger, &now).map_err(io::Error::from)?;
                // The last that has it open is the one that counts.
                shared.open.lock().unwrap().retain(|other| other.peer_addr().ok() != client.peer_addr().ok());
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            Some(Fault::Stall(_)) => {
                shared.held();
                length
            }
            _ => length,
        };
        while at < next {
            let most = usize::try_from(next - at).unwrap_or(PIECE).min(PIECE);
            let count = from.read(&mut buffer[..most])?;
            if count == 0 {
                return Ok(false);
            }
            if let Some(Fault::Flip(place)) = fault
                && (at..at + count as u64).contains(place)
            {
                buffer[usize::try_from(place - at).unwrap()] ^= 1;
            }
            client.write_all(&buffer[..count])?;
            at += count as u64;
            asked.sent.fetch_add(count as u64, Ordering::AcqRel);
            let pace = shared.pace.load(Ordering::Acquire);
            if pace > 0 {
                std::thread::sleep(Duration::from_secs_f64(count as f64 / pace as f64));
            }
        }
    }
    // More was announced than there is.
    Ok(!matches!(fault, Some(Fault::Length(_))))
}
